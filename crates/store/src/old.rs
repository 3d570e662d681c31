//! The addresses of etcd 0.4, as the section `etcd` of cloud-config gives them: HOST:PORT and not a URL, in
//! `ETCD_ADDR` and `ETCD_PEER_ADDR` what others are told, in `ETCD_BIND_ADDR` and `ETCD_PEER_BIND_ADDR` where to listen.

use crate::config::Server;

/// Takes them where neither the command line nor today's variables say anything (`is_default`, by the name of the
/// field). Gives what to tell the operator.
pub fn take(
    server: &mut Server,
    is_default: &dyn Fn(&str) -> bool,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut said = vec![];
    let scheme = |certificate: bool| if certificate { "https" } else { "http" };
    let of_clients = scheme(server.cert_file.is_some());
    let of_peers = scheme(server.peer_cert_file.is_some());
    let ways = [
        (
            &mut server.advertise_client_urls,
            &mut server.listen_client_urls,
            ["advertise_client_urls", "listen_client_urls"],
            ["ETCD_ADDR", "ETCD_BIND_ADDR"],
            of_clients,
        ),
        (
            &mut server.initial_advertise_peer_urls,
            &mut server.listen_peer_urls,
            ["initial_advertise_peer_urls", "listen_peer_urls"],
            ["ETCD_PEER_ADDR", "ETCD_PEER_BIND_ADDR"],
            of_peers,
        ),
    ];
    for (advertise, listen, fields, names, scheme) in ways {
        let [address, bind] = names.map(|name| variable(name).filter(|text| !text.is_empty()));
        let port = address
            .as_deref()
            .and_then(|address| address.rsplit_once(':'))
            .map(|(_, port)| port.to_owned());
        if let Some(address) = &address
            && is_default(fields[0])
        {
            *advertise = format!("{scheme}://{address}");
            said.push(format!(
                "{} of etcd 0.4: others are told {advertise}",
                names[0]
            ));
        }
        // Not told where to listen, programs on the host itself are to reach it as well.
        let listens = match (&bind, &port) {
            (Some(bind), Some(port)) if !bind.contains(':') => Some(format!("{bind}:{port}")),
            (Some(bind), _) if bind.starts_with(':') => Some(format!("0.0.0.0{bind}")),
            (Some(bind), _) => Some(bind.clone()),
            (None, Some(port)) => Some(format!("0.0.0.0:{port}")),
            (None, None) => None,
        };
        if let Some(listens) = listens
            && is_default(fields[1])
        {
            *listen = format!("{scheme}://{listens}");
            said.push(format!(
                "{} of etcd 0.4: listens on {listen}",
                names.join(" or ")
            ));
        }
    }
    if variable("ETCD_PEERS").is_some_and(|text| !text.is_empty()) {
        said.push(
            "ETCD_PEERS of etcd 0.4 is ignored: name the first members with --discovery or --initial-cluster"
                .into(),
        );
    }
    said
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        server: Server,
    }

    fn check(variables: &[(&str, &str)], given: &[&str], expect: [&str; 4]) {
        let mut server = Cli::parse_from(["store"]).server;
        let variable = |name: &str| {
            let found = variables.iter().find(|(own, _)| *own == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        take(&mut server, &|field| !given.contains(&field), &variable);
        let got = [
            &server.advertise_client_urls,
            &server.listen_client_urls,
            &server.initial_advertise_peer_urls,
            &server.listen_peer_urls,
        ];
        assert_eq!(got, expect, "{variables:?}");
    }

    const LOCAL: [&str; 4] = [
        "http://localhost:2379",
        "http://localhost:2379",
        "http://localhost:2380",
        "http://localhost:2380",
    ];

    #[test]
    fn addresses_of_etcd_0_4_are_urls_of_today() {
        check(&[], &[], LOCAL);
        let both = [
            ("ETCD_ADDR", "10.0.0.4:4001"),
            ("ETCD_PEER_ADDR", "10.0.0.4:7001"),
        ];
        let urls = [
            "http://10.0.0.4:4001",
            "http://0.0.0.0:4001",
            "http://10.0.0.4:7001",
            "http://0.0.0.0:7001",
        ];
        check(&both, &[], urls);
        // Today's names count, if they say something.
        let mut given = urls;
        given[0] = LOCAL[0];
        check(&both, &["advertise_client_urls"], given);
        check(&[("ETCD_ADDR", ""), ("ETCD_PEER_ADDR", "")], &[], LOCAL);
        let mut bound = LOCAL;
        for (bind, expect) in [
            ("127.0.0.1", "http://127.0.0.1:4001"),
            (":4002", "http://0.0.0.0:4002"),
            ("10.0.0.5:4003", "http://10.0.0.5:4003"),
        ] {
            bound[0] = "http://10.0.0.4:4001";
            bound[1] = expect;
            check(
                &[("ETCD_ADDR", "10.0.0.4:4001"), ("ETCD_BIND_ADDR", bind)],
                &[],
                bound,
            );
        }
    }
}
