//! systemd.network(5), systemd.netdev(5), systemd.link(5).

use std::fmt::Write;

use super::{Bond, Kind, Link, Master, Network, Route};

/// A file below `/run/systemd/network`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkFile {
    pub name: String,
    pub text: String,
}

/// Before the files that come with the system, behind those of people who start with `00-`.
const ORDER: &str = "05-cloudinit";

pub fn render(network: &Network) -> Vec<NetworkFile> {
    let mut files = Vec::new();
    for link in &network.links {
        let mut add = |suffix: &str, text: String| {
            let odd = |c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c);
            let plain = |c: char| if odd(c) { '-' } else { c };
            let name: String = link.name.chars().map(plain).collect();
            files.push(NetworkFile {
                name: format!("{ORDER}-{name}.{suffix}"),
                text,
            });
        };
        if link.rename {
            let name = &link.name;
            let found = found(link, "OriginalName", &[]);
            add("link", format!("[Match]\n{found}\n[Link]\nName={name}\n"));
        }
        if let Some(text) = netdev(link) {
            add("netdev", text);
        }
        add("network", unit(link, network));
    }
    files
}

/// By what a physical link is found. `names` are those that it may have besides.
fn found(link: &Link, key: &str, names: &[&str]) -> String {
    let mut out = match (&link.mac, &link.found) {
        (Some(mac), _) => by_address(link, mac),
        (None, Some(globs)) => {
            let names = names.iter().map(|name| format!(" {name}"));
            format!("{key}={globs}{}\n", names.collect::<String>())
        }
        (None, None) => format!("{key}={}\n", link.name),
    };
    if let Some(driver) = &link.driver {
        let _ = writeln!(out, "Driver={driver}");
    }
    out
}

/// VLANs have the address of their link, so kinds are left out. Members of a bond take its address, and others may get
/// a new one: only the one they were made with tells them apart. Other links may not have one of that sort.
fn by_address(link: &Link, mac: &str) -> String {
    let key = match (&link.master, &link.new_mac) {
        (Some(Master::Bond(_)), _) | (_, Some(_)) => "PermanentMACAddress",
        _ => "MACAddress",
    };
    format!("{key}={mac}\nType=ether\nKind=!*\n")
}

fn netdev(link: &Link) -> Option<String> {
    let (kind, section) = match &link.kind {
        Kind::Physical => return None,
        Kind::Bond(bond) => ("bond", bond_section(bond)),
        Kind::Bridge => ("bridge", String::new()),
        Kind::Vlan { id, .. } => ("vlan", format!("\n[VLAN]\nId={id}\n")),
    };
    let mut out = format!("[NetDev]\nName={}\nKind={kind}\n", link.name);
    if let Some(mac) = &link.mac {
        let _ = writeln!(out, "MACAddress={mac}");
    }
    if let Some(mtu) = link.mtu {
        let _ = writeln!(out, "MTUBytes={mtu}");
    }
    Some(out + &section)
}

fn bond_section(bond: &Bond) -> String {
    let mut out = "\n[Bond]\n".to_owned();
    let milliseconds = |value: Option<u32>| value.map(|ms| format!("{ms}ms"));
    for (key, value) in [
        ("Mode", bond.mode.clone()),
        ("TransmitHashPolicy", bond.hash_policy.clone()),
        ("LACPTransmitRate", bond.lacp_rate.clone()),
        ("MIIMonitorSec", milliseconds(bond.miimon)),
        ("UpDelaySec", milliseconds(bond.up_delay)),
        ("DownDelaySec", milliseconds(bond.down_delay)),
    ] {
        if let Some(value) = value {
            let _ = writeln!(out, "{key}={value}");
        }
    }
    out
}

fn unit(link: &Link, network: &Network) -> String {
    let mut out = "[Match]\n".to_owned();
    match &link.kind {
        // Until it is called so, it has the name that it had.
        Kind::Physical if link.rename => out.push_str(&found(link, "Name", &[&link.name])),
        Kind::Physical => {
            out.push_str(&found(link, "Name", &[]));
            // Without an address, it may be any: but not one that is made of others.
            if link.mac.is_none() && link.found.as_deref() == Some("*") {
                out.push_str("Type=ether\nKind=!*\n");
            }
        }
        _ => {
            let _ = writeln!(out, "Name={}", link.name);
        }
    }
    if let Kind::Physical = &link.kind {
        let mtu = link.mtu.map(|mtu| format!("MTUBytes={mtu}\n"));
        let mac = link
            .new_mac
            .as_ref()
            .map(|mac| format!("MACAddress={mac}\n"));
        let settings: String = mtu.into_iter().chain(mac).collect();
        if !settings.is_empty() {
            let _ = write!(out, "\n[Link]\n{settings}");
        }
    }
    out.push_str("\n[Network]\n");
    match &link.master {
        Some(Master::Bond(name)) => {
            let _ = writeln!(out, "Bond={name}");
        }
        Some(Master::Bridge(name)) => {
            let _ = writeln!(out, "Bridge={name}");
        }
        None => {}
    }
    for child in &network.links {
        if matches!(&child.kind, Kind::Vlan { parent, .. } if *parent == link.name) {
            let _ = writeln!(out, "VLAN={}", child.name);
        }
    }
    let dhcp = match (link.dhcp4, link.dhcp6) {
        (true, true) => Some("yes"),
        (true, false) => Some("ipv4"),
        (false, true) => Some("ipv6"),
        (false, false) => None,
    };
    if let Some(dhcp) = dhcp {
        let _ = writeln!(out, "DHCP={dhcp}");
    }
    if link.master.is_some() || link.manual {
        out.push_str("LinkLocalAddressing=no\nIPv6AcceptRA=no\n");
    }
    for address in &link.addresses {
        let _ = writeln!(out, "Address={address}");
    }
    for server in &link.dns {
        let _ = writeln!(out, "DNS={server}");
    }
    if !link.search.is_empty() {
        let _ = writeln!(out, "Domains={}", link.search.join(" "));
    }
    for route in &link.routes {
        out.push_str(&route_section(route, link));
    }
    if link.dhcp4 {
        out.push_str("\n[DHCPv4]\nClientIdentifier=mac\nUseDomains=yes\n");
    }
    out
}

fn route_section(route: &Route, link: &Link) -> String {
    let mut out = "\n[Route]\n".to_owned();
    if let Some(destination) = &route.destination {
        let _ = writeln!(out, "Destination={destination}");
    }
    if let Some(gateway) = &route.gateway {
        let _ = writeln!(out, "Gateway={gateway}");
        // A gateway outside of all networks of the link is reached over the link itself.
        let near = link.addresses.iter().any(|own| own.contains(*gateway));
        if !near && !link.addresses.is_empty() {
            out.push_str("GatewayOnLink=yes\n");
        }
    } else {
        out.push_str("Scope=link\n");
    }
    if let Some(metric) = route.metric {
        let _ = writeln!(out, "Metric={metric}");
    }
    out
}
