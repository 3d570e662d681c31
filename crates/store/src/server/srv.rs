//! The first members by DNS: `_etcd-server-ssl._tcp` and `_etcd-server._tcp` of a domain name hosts and ports, and which of
//! them is this member is known by its address.

use std::collections::HashSet;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, anyhow, bail};
use hickory_resolver::TokioResolver;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::RData;

use crate::config::{Endpoint, Server};

/// A member as DNS has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    scheme: &'static str,
    service: String,
    host: String,
    port: u16,
    addresses: Vec<SocketAddr>,
}

/// A peer URL that this member advertises.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Advertised {
    url: String,
    tls: bool,
    addresses: Vec<SocketAddr>,
}

/// Fills in the cluster if a domain is named, with the URLs of DNS also for this member.
pub(super) async fn found(config: &Server) -> Result<Server> {
    let mut config = config.clone();
    let domain = config.discovery_srv.trim_end_matches('.').to_owned();
    if domain.is_empty() {
        return Ok(config);
    }
    let mut own = Vec::new();
    for endpoint in Endpoint::list(
        "initial-advertise-peer-urls",
        &config.initial_advertise_peer_urls,
    )? {
        let addresses = addresses(&endpoint.host, endpoint.port)
            .await
            .with_context(|| format!("--initial-advertise-peer-urls: {}", endpoint.url))?;
        own.push(Advertised {
            url: endpoint.url,
            tls: endpoint.tls,
            addresses,
        });
    }
    let resolver = TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .context("/etc/resolv.conf: no resolver of DNS can be made of it")?;
    let suffix = match config.discovery_srv_name.as_str() {
        "" => String::new(),
        name => format!("-{name}"),
    };
    let mut all = Vec::new();
    let mut errors = Vec::new();
    for (scheme, service) in [("https", "etcd-server-ssl"), ("http", "etcd-server")] {
        let service = format!("{service}{suffix}");
        match look_up(&resolver, scheme, &service, &domain).await {
            Ok(some) => all.extend(some),
            Err(error) => errors.push(format!(
                "error querying DNS SRV records for _{service} {error:#}"
            )),
        }
    }
    if all.is_empty() {
        bail!("{}", errors.join("; "));
    }
    let (cluster, urls) = cluster(&config.name, &own, &all)?;
    for node in &cluster {
        tracing::info!(node, "got bootstrap from DNS for etcd-server");
    }
    config.initial_cluster = Some(cluster.join(","));
    config.initial_advertise_peer_urls = urls.join(",");
    Ok(config)
}

async fn addresses(host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((host, port)).await?.collect())
}

/// What one kind of records says. A host without an address is left out if others have one.
async fn look_up(
    resolver: &TokioResolver,
    scheme: &'static str,
    service: &str,
    domain: &str,
) -> Result<Vec<Found>> {
    // With the dot: a search list is for what people type.
    let name = format!("_{service}._tcp.{domain}.");
    let answer = match resolver.srv_lookup(name.clone()).await {
        Ok(answer) => answer,
        Err(error) => {
            let name = name.trim_end_matches('.');
            let what = match &error {
                NetError::Dns(_) if error.is_no_records_found() => "no such host".to_owned(),
                other => other.to_string(),
            };
            return Err(anyhow!("lookup {name}: {what}"));
        }
    };
    let mut found = Vec::new();
    let mut failed = None;
    for record in answer.answers() {
        let RData::SRV(srv) = &record.data else {
            continue;
        };
        let host = srv.target.to_ascii().trim_end_matches('.').to_owned();
        match addresses(&host, srv.port).await {
            Ok(addresses) => found.push(Found {
                scheme,
                service: service.to_owned(),
                host,
                port: srv.port,
                addresses,
            }),
            Err(error) => failed = Some(anyhow!("lookup {host}: {error}")),
        }
    }
    match failed {
        Some(error) if found.is_empty() => Err(error),
        Some(error) => {
            tracing::warn!("left out of the cluster that DNS names: {error:#}");
            Ok(found)
        }
        None => Ok(found),
    }
}

/// `NAME=URL` of each, and this member's URLs. The others have numbers for names.
fn cluster(name: &str, own: &[Advertised], all: &[Found]) -> Result<(Vec<String>, Vec<String>)> {
    let mut parts = Vec::new();
    let mut urls = Vec::new();
    let mut seen = HashSet::new();
    let mut numbers = (0..).map(|n: u32| n.to_string()).filter(|n| n != name);
    for found in all {
        let host = if found.host.contains(':') {
            format!("[{}]", found.host)
        } else {
            found.host.clone()
        };
        let url = format!("{}://{host}:{}", found.scheme, found.port);
        if !seen.insert(url.clone()) {
            continue;
        }
        let here = own
            .iter()
            .find(|own| own.addresses.iter().any(|a| found.addresses.contains(a)));
        match here {
            Some(here) if here.tls != (found.scheme == "https") => bail!(
                "bootstrap at {url} from DNS for {} has scheme mismatch with expected peer {}",
                found.service,
                here.url
            ),
            Some(_) => {
                parts.push(format!("{name}={url}"));
                urls.push(url);
            }
            None => parts.push(format!("{}={url}", numbers.next().unwrap_or_default())),
        }
    }
    if urls.is_empty() {
        bail!(
            "cannot find local etcd member {name:?} in SRV records: none of {} has an address of --initial-advertise-peer-urls {}",
            seen_in_order(&parts),
            own.iter()
                .map(|own| own.url.as_str())
                .collect::<Vec<_>>()
                .join(",")
        );
    }
    Ok((parts, urls))
}

fn seen_in_order(parts: &[String]) -> String {
    let urls: Vec<&str> = parts
        .iter()
        .filter_map(|part| Some(part.split_once('=')?.1))
        .collect();
    urls.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(scheme: &'static str, host: &str, address: &str) -> Found {
        let address: SocketAddr = address.parse().expect("an address");
        Found {
            scheme,
            service: "etcd-server".to_owned(),
            host: host.to_owned(),
            port: address.port(),
            addresses: vec![address],
        }
    }

    fn own(url: &str, address: &str) -> Vec<Advertised> {
        vec![Advertised {
            url: url.to_owned(),
            tls: url.starts_with("https"),
            addresses: vec![address.parse().expect("an address")],
        }]
    }

    #[test]
    fn the_own_member_is_known_by_its_address() {
        let all = [
            found("http", "a.example", "10.0.0.1:2380"),
            found("http", "b.example", "10.0.0.2:2380"),
            found("http", "c.example", "10.0.0.3:2380"),
        ];
        let (parts, urls) = cluster("0", &own("http://10.0.0.2:2380", "10.0.0.2:2380"), &all)
            .expect("it is one of them");
        assert_eq!(
            parts,
            [
                "1=http://a.example:2380",
                "0=http://b.example:2380",
                "2=http://c.example:2380"
            ]
        );
        assert_eq!(urls, ["http://b.example:2380"]);
    }

    #[test]
    fn who_is_not_among_them_is_told() {
        let all = [found("http", "a.example", "10.0.0.1:2380")];
        let said = |url: &str, address: &str| {
            cluster("n1", &own(url, address), &all)
                .expect_err("refused")
                .to_string()
        };
        let text = said("http://10.0.0.9:2380", "10.0.0.9:2380");
        assert!(
            text.starts_with("cannot find local etcd member \"n1\" in SRV records"),
            "{text}"
        );
        assert_eq!(
            said("https://10.0.0.1:2380", "10.0.0.1:2380"),
            "bootstrap at http://a.example:2380 from DNS for etcd-server has scheme mismatch with expected peer https://10.0.0.1:2380"
        );
    }
}
