//! OpenStack's `network_data.json`.

use super::values::{At, Cidr, tree, whole};
use super::{Bond, Converted, Kind, Link, Master, Route};
use crate::finding::Finding;

pub(super) fn convert(text: &str) -> Result<Converted, Finding> {
    let mut out = Converted::default();
    let Some(tree) = tree(text)? else {
        return Ok(out);
    };
    let root = At {
        node: &tree,
        key: "",
    };
    root.entries()?;
    // Platform ids such as tap1a2b3c4d are no names that a host knows.
    let mut ids: Vec<(&str, String)> = Vec::new();
    for (index, at) in root.list("links")?.into_iter().enumerate() {
        let id = required(at, "id")?.text()?;
        let kind = at.get("type").map_or(Ok("phy"), |at| at.text())?;
        let number = ids.len();
        let (name, kind) = match kind {
            "bond" => (format!("bond{number}"), Kind::Bond(bond(at)?)),
            "vlan" => {
                let vlan = required(at, "vlan_id")?.vlan_id()?;
                let parent = required(at, "vlan_link")?;
                let parent = known(&ids, parent)?;
                (format!("vlan{vlan}"), Kind::Vlan { id: vlan, parent })
            }
            _ => (format!("net{index}"), Kind::Physical),
        };
        let mac = at.either(&["ethernet_mac_address", "vlan_mac_address"]);
        let mut link = Link {
            name: name.clone(),
            mac: mac.map(|at| at.mac()).transpose()?,
            mtu: at.get("mtu").map(|at| at.number()).transpose()?,
            manual: true,
            kind,
            ..Link::default()
        };
        match link.kind {
            Kind::Physical if link.mac.is_none() => {
                return Err(at.error(format!("link {id} has no ethernet_mac_address")));
            }
            Kind::Bond(_) => {
                for member in at.list("bond_links")? {
                    let member_name = known(&ids, member)?;
                    if let Some(member) = out.network.link(&member_name) {
                        member.master = Some(Master::Bond(name.clone()));
                    }
                }
                // An address of its own is fine; the kernel gives it that of its first member.
                link.mac = None;
            }
            _ => {}
        }
        ids.push((id, name));
        out.network.links.push(link);
    }
    for at in root.list("networks")? {
        let name = known(&ids, required(at, "link")?)?;
        if let Some(link) = out.network.link(&name) {
            network(at, link)?;
        }
    }
    for at in root.list("services")? {
        if at
            .get("type")
            .is_some_and(|kind| kind.node.text() == Some("dns"))
        {
            let server = required(at, "address")?.address()?;
            let first = out.network.links.iter_mut().find(|link| !link.manual);
            if let Some(link) = first.filter(|link| !link.dns.contains(&server)) {
                link.dns.push(server);
            }
        }
    }
    if out.network.links.is_empty() {
        return Err(whole("no links in it"));
    }
    Ok(out)
}

fn required<'a>(at: At<'a>, key: &'a str) -> Result<At<'a>, Finding> {
    at.get(key)
        .ok_or_else(|| at.error(format!("{key} is missing")))
}

fn known(ids: &[(&str, String)], at: At<'_>) -> Result<String, Finding> {
    let id = at.text()?;
    let found = ids.iter().find(|(other, _)| *other == id);
    found
        .map(|(_, name)| name.clone())
        .ok_or_else(|| at.error(format!("there is no link {id:?} before this")))
}

fn bond(at: At<'_>) -> Result<Bond, Finding> {
    Ok(Bond {
        mode: at.get("bond_mode").map(|at| at.bond_mode()).transpose()?,
        miimon: at.get("bond_miimon").map(|at| at.number()).transpose()?,
        hash_policy: at
            .get("bond_xmit_hash_policy")
            .map(|at| at.hash_policy())
            .transpose()?,
        ..Bond::default()
    })
}

fn network(at: At<'_>, link: &mut Link) -> Result<(), Finding> {
    link.manual = false;
    match required(at, "type")?.text()? {
        "ipv4_dhcp" => link.dhcp4 = true,
        "ipv6_dhcp" | "ipv6_dhcpv6-stateful" | "ipv6_dhcpv6-stateless" => link.dhcp6 = true,
        // Router advertisements are listened to anyhow.
        "ipv6_slaac" => {}
        "ipv4" | "ipv6" => {
            let address = required(at, "ip_address")?;
            let cidr: Cidr = address.parse("an IP address")?;
            link.addresses.push(match at.get("netmask") {
                None => cidr,
                Some(mask) => Cidr::with_mask(cidr.address, mask.text()?)
                    .ok_or_else(|| mask.error("not a netmask"))?,
            });
            if let Some(gateway) = at.get("gateway") {
                link.routes.push(Route {
                    destination: None,
                    gateway: Some(gateway.address()?),
                    metric: None,
                });
            }
        }
        other => return Err(at.error(format!("unknown type {other:?}"))),
    }
    for route in at.list("routes")? {
        let network = required(route, "network")?;
        let mut destination: Cidr = network.parse("a network")?;
        if let Some(mask) = route.get("netmask") {
            destination = Cidr::with_mask(destination.address, mask.text()?)
                .ok_or_else(|| mask.error("not a netmask"))?;
        }
        let gateway = required(route, "gateway")?.address()?;
        let new = Route {
            destination: Some(destination).filter(|d| !d.is_default()),
            gateway: Some(gateway),
            metric: None,
        };
        if !link.routes.contains(&new) {
            link.routes.push(new);
        }
    }
    for at in at.list("services")? {
        if at
            .get("type")
            .is_none_or(|kind| kind.node.text() == Some("dns"))
        {
            link.dns.push(required(at, "address")?.address()?);
        }
    }
    for server in at.list("dns_nameservers")? {
        link.dns.push(server.address()?);
    }
    Ok(())
}
