//! `network-config` of NoCloud: version 1 is cloud-init's own, version 2 is netplan's.

use super::values::{At, Cidr, tree};
use super::{Bond, Converted, Kind, Link, Master, Network, Route};
use crate::finding::Finding;

pub(super) fn convert(text: &str) -> Result<Converted, Finding> {
    let Some(tree) = tree(text)? else {
        return Ok(Converted::default());
    };
    let root = At {
        node: &tree,
        key: "",
    };
    let root = root.get("network").unwrap_or(root);
    root.entries()?;
    let version = root
        .get("version")
        .ok_or_else(|| root.error("version is missing"))?;
    let mut out = Converted::default();
    match version.text()? {
        "1" => version_1(root, &mut out)?,
        "2" => version_2(root, &mut out)?,
        other => return Err(version.error(format!("version {other:?} is not supported"))),
    }
    adopt_parents(&mut out.network);
    Ok(out)
}

/// A VLAN on a link that is not described itself still needs that link up.
fn adopt_parents(network: &mut Network) {
    let parents: Vec<String> = network
        .links
        .iter()
        .filter_map(|link| match &link.kind {
            Kind::Vlan { parent, .. } => Some(parent.clone()),
            _ => None,
        })
        .collect();
    for name in parents {
        if network.link(&name).is_none() {
            network.links.push(Link {
                name,
                manual: true,
                ..Link::default()
            });
        }
    }
}

fn version_1(root: At<'_>, out: &mut Converted) -> Result<(), Finding> {
    let mut members: Vec<(String, Master)> = Vec::new();
    // Of the host, so every link that has addresses gets them.
    let (mut dns, mut search) = (Vec::new(), Vec::new());
    let mut routes: Vec<(Route, usize)> = Vec::new();
    for at in root.list("config")? {
        let kind = at.get("type").ok_or_else(|| at.error("type is missing"))?;
        match kind.text()? {
            "nameserver" => {
                for server in at.get("address").map_or_else(Vec::new, |at| at.items()) {
                    dns.push(server.address()?);
                }
                for domain in at.get("search").map_or_else(Vec::new, |at| at.items()) {
                    search.push(domain.domain()?);
                }
            }
            "route" => {
                let last = out.network.links.len().checked_sub(1);
                let last = last.ok_or_else(|| at.error("a route before any link"))?;
                routes.push((route_1(at)?, last));
            }
            "loopback" => {}
            kind => {
                let link = link_1(at, kind, &mut members)?;
                out.network.links.push(link);
            }
        }
    }
    // Of the host too: the link that reaches the gateway has it, else the one before.
    for (route, before) in routes {
        let reaches = |link: &Link| {
            let gateway = route.gateway.filter(|gateway| !gateway.is_unspecified());
            gateway.is_some_and(|gateway| link.addresses.iter().any(|a| a.contains(gateway)))
        };
        let place = out.network.links.iter().position(reaches).unwrap_or(before);
        if let Some(link) = out.network.links.get_mut(place) {
            link.routes.push(route);
        }
    }
    for link in out.network.links.iter_mut().filter(|link| !link.manual) {
        link.dns.extend(&dns);
        link.search.extend(search.iter().cloned());
    }
    for (name, master) in members {
        if out.network.link(&name).is_none() {
            out.network.links.push(Link {
                name: name.clone(),
                ..Link::default()
            });
        }
        if let Some(link) = out.network.link(&name) {
            link.master = Some(master);
        }
    }
    Ok(())
}

fn link_1<'a>(
    at: At<'a>,
    kind: &str,
    members: &mut Vec<(String, Master)>,
) -> Result<Link, Finding> {
    let name = at.get("name").ok_or_else(|| at.error("name is missing"))?;
    let mut link = Link {
        name: name.link_name()?,
        mtu: at.get("mtu").map(|at| at.number()).transpose()?,
        mac: at.get("mac_address").map(|at| at.mac()).transpose()?,
        ..Link::default()
    };
    let mut of_master = |key: &'a str, master: Master| -> Result<(), Finding> {
        for member in at.list(key)? {
            members.push((member.link_name()?, master.clone()));
        }
        Ok(())
    };
    match kind {
        "physical" => link.rename = link.mac.is_some(),
        "bond" => {
            of_master("bond_interfaces", Master::Bond(link.name.clone()))?;
            let params = at.get("params").unwrap_or(at);
            link.kind = Kind::Bond(bond(params, '-')?);
        }
        "bridge" => {
            of_master("bridge_interfaces", Master::Bridge(link.name.clone()))?;
            link.kind = Kind::Bridge;
        }
        "vlan" => {
            let parent = at
                .get("vlan_link")
                .ok_or_else(|| at.error("vlan_link is missing"))?;
            let id = at
                .get("vlan_id")
                .ok_or_else(|| at.error("vlan_id is missing"))?;
            link.kind = Kind::Vlan {
                id: id.vlan_id()?,
                parent: parent.link_name()?,
            };
        }
        other => return Err(at.error(format!("type {other:?} is not supported"))),
    }
    let subnets = at.list("subnets")?;
    link.manual = subnets.is_empty();
    for subnet in subnets {
        subnet_1(subnet, &mut link)?;
    }
    Ok(link)
}

fn subnet_1(at: At<'_>, link: &mut Link) -> Result<(), Finding> {
    let kind = at.get("type").ok_or_else(|| at.error("type is missing"))?;
    match kind.text()? {
        "dhcp" | "dhcp4" => link.dhcp4 = true,
        "dhcp6" | "ipv6_dhcpv6-stateful" | "ipv6_dhcpv6-stateless" => link.dhcp6 = true,
        "ipv6_slaac" => {}
        "manual" => link.manual = true,
        "static" | "static6" => {
            let address = at
                .get("address")
                .ok_or_else(|| at.error("address is missing"))?;
            let cidr: Cidr = address.parse("an IP address")?;
            link.addresses.push(match at.get("netmask") {
                Some(mask) => Cidr::with_mask(cidr.address, mask.text()?)
                    .ok_or_else(|| mask.error("not a netmask"))?,
                None => cidr,
            });
        }
        other => return Err(kind.error(format!("type {other:?} is not supported"))),
    }
    if let Some(gateway) = at.get("gateway") {
        link.routes.push(Route {
            destination: None,
            gateway: Some(gateway.address()?),
            metric: None,
        });
    }
    for server in at
        .get("dns_nameservers")
        .map_or_else(Vec::new, |at| at.items())
    {
        link.dns.push(server.address()?);
    }
    for domain in at.get("dns_search").map_or_else(Vec::new, |at| at.items()) {
        link.search.push(domain.domain()?);
    }
    for route in at.list("routes")? {
        link.routes.push(route_1(route)?);
    }
    Ok(())
}

fn route_1(at: At<'_>) -> Result<Route, Finding> {
    let network = at
        .either(&["destination", "network"])
        .ok_or_else(|| at.error("destination is missing"))?;
    let mut destination: Cidr = network.parse("a network")?;
    if let Some(mask) = at.get("netmask") {
        destination = Cidr::with_mask(destination.address, mask.text()?)
            .ok_or_else(|| mask.error("not a netmask"))?;
    }
    Ok(Route {
        destination: Some(destination).filter(|d| !d.is_default()),
        gateway: at.get("gateway").map(|at| at.address()).transpose()?,
        metric: at.get("metric").map(|at| at.number()).transpose()?,
    })
}

/// Version 1 writes `bond-mode`, version 2 `mode`; both mean the kernel's names.
fn bond(at: At<'_>, separator: char) -> Result<Bond, Finding> {
    let get = |one: &'static str, two: &'static str| match separator {
        '-' => at.either(&[one, two]),
        _ => at.get(two),
    };
    let lacp = |at: At<'_>| match at.text()? {
        "0" | "slow" => Ok("slow".to_owned()),
        "1" | "fast" => Ok("fast".to_owned()),
        other => Err(at.error(format!("{other:?} is neither slow nor fast"))),
    };
    Ok(Bond {
        mode: get("bond-mode", "mode")
            .map(|at| at.bond_mode())
            .transpose()?,
        miimon: get("bond-miimon", "mii-monitor-interval")
            .map(|at| at.number())
            .transpose()?,
        hash_policy: get("bond-xmit-hash-policy", "transmit-hash-policy")
            .or_else(|| at.get("bond-xmit_hash_policy"))
            .map(|at| at.hash_policy())
            .transpose()?,
        lacp_rate: get("bond-lacp-rate", "lacp-rate").map(lacp).transpose()?,
        up_delay: get("bond-updelay", "up-delay")
            .map(|at| at.number())
            .transpose()?,
        down_delay: get("bond-downdelay", "down-delay")
            .map(|at| at.number())
            .transpose()?,
    })
}

fn version_2(root: At<'_>, out: &mut Converted) -> Result<(), Finding> {
    let mut ids: Vec<&str> = Vec::new();
    let mut members: Vec<(At<'_>, Master)> = Vec::new();
    let mut parents: Vec<(usize, At<'_>)> = Vec::new();
    let links = &mut out.network.links;
    for (key, section) in root.entries()? {
        match key {
            "version" => {}
            "renderer" => {}
            "ethernets" | "bonds" | "bridges" | "vlans" => {
                for (id, at) in section.entries()? {
                    let link = match key {
                        "ethernets" => ethernet(id, at, &mut out.notes)?,
                        _ => made(key, id, at, &mut members, &mut out.notes)?,
                    };
                    if ids.contains(&id) || links.iter().any(|other| other.name == link.name) {
                        let name = &link.name;
                        return Err(at.error(format!("there is another link {name:?}")));
                    }
                    let parent = at.get("link").filter(|_| key == "vlans");
                    parents.extend(parent.map(|parent| (links.len(), parent)));
                    ids.push(id);
                    links.push(link);
                }
            }
            _ => out.notes.push(section.note("not supported, ignored")),
        }
    }
    // What others call it is its id, whatever the link itself is called in the end.
    for (index, at) in parents {
        let id = at.text()?;
        let name = match ids.iter().position(|other| *other == id) {
            Some(found) => links[found].name.clone(),
            None => at.link_name()?,
        };
        if let Kind::Vlan { parent, .. } = &mut links[index].kind {
            *parent = name;
        }
    }
    for (at, master) in members {
        let id = at.text()?;
        let index = ids.iter().position(|other| *other == id);
        match index.and_then(|index| links.get_mut(index)) {
            Some(link) => link.master = Some(master),
            // Not described itself: it is the kernel's name.
            None => links.push(Link {
                name: at.link_name()?,
                master: Some(master),
                ..Link::default()
            }),
        }
    }
    Ok(())
}

/// A link that is there. With `match`, its id is a name for others to call it by, and nothing more.
fn ethernet(id: &str, at: At<'_>, notes: &mut Vec<Finding>) -> Result<Link, Finding> {
    let mut link = Link {
        name: id.to_owned(),
        ..Link::default()
    };
    let matched = at.get("match");
    match matched {
        None => check_name(id, at)?,
        Some(_) if id.len() > 64 || id.contains(char::is_control) => {
            return Err(at.error(format!("{id:?} cannot be the name for a link")));
        }
        Some(matched) => {
            for (key, value) in matched.entries()? {
                match key {
                    "macaddress" => link.mac = Some(value.mac()?),
                    "name" => link.found = Some(globs(value)?),
                    "driver" => link.driver = Some(globs(value)?),
                    _ => notes.push(value.note("not supported, ignored")),
                }
            }
            if link.mac.is_none() && link.found.is_none() {
                link.found = Some("*".to_owned());
            }
        }
    }
    for (key, value) in at.entries()? {
        match key {
            "match" => {}
            "macaddress" => link.new_mac = Some(value.mac()?),
            "set-name" => {
                link.name = value.link_name()?;
                link.rename = matched.is_some();
                if matched.is_none() {
                    link.name = id.to_owned();
                    notes.push(value.note("not supported without match, ignored"));
                }
            }
            _ => common(key, value, &mut link, notes)?,
        }
    }
    Ok(link)
}

/// A link that is made, and is called what its id is.
fn made<'a>(
    section: &str,
    id: &str,
    at: At<'a>,
    members: &mut Vec<(At<'a>, Master)>,
    notes: &mut Vec<Finding>,
) -> Result<Link, Finding> {
    check_name(id, at)?;
    let parameters = at.get("parameters").unwrap_or(at);
    let kind = match section {
        "bonds" => Kind::Bond(bond(parameters, ' ')?),
        "bridges" => Kind::Bridge,
        _ => {
            let parent = at.get("link").ok_or_else(|| at.error("link is missing"))?;
            let id = at.get("id").ok_or_else(|| at.error("id is missing"))?;
            Kind::Vlan {
                id: id.vlan_id()?,
                parent: parent.text()?.to_owned(),
            }
        }
    };
    let mut link = Link {
        name: id.to_owned(),
        kind,
        ..Link::default()
    };
    for (key, value) in at.entries()? {
        match key {
            "macaddress" => link.mac = Some(value.mac()?),
            "interfaces" => {
                let master = match section {
                    "bonds" => Master::Bond(id.to_owned()),
                    _ => Master::Bridge(id.to_owned()),
                };
                let items = value.items().into_iter();
                members.extend(items.map(|member| (member, master.clone())));
            }
            "link" | "id" | "parameters" => {}
            _ => common(key, value, &mut link, notes)?,
        }
    }
    Ok(link)
}

fn check_name(id: &str, at: At<'_>) -> Result<(), Finding> {
    match super::values::is_link_name(id) {
        true => Ok(()),
        false => Err(at.error(format!("{id:?} is not the name of a link"))),
    }
}

/// What links of every kind have.
fn common(
    key: &str,
    value: At<'_>,
    link: &mut Link,
    notes: &mut Vec<Finding>,
) -> Result<(), Finding> {
    match key {
        "dhcp4" => link.dhcp4 = value.boolean()?,
        "dhcp6" => link.dhcp6 = value.boolean()?,
        "mtu" => link.mtu = Some(value.number()?),
        "addresses" => {
            for address in value.items() {
                link.addresses
                    .push(address.parse("an IP address with a prefix")?);
            }
        }
        "gateway4" | "gateway6" => link.routes.push(Route {
            destination: None,
            gateway: Some(value.address()?),
            metric: None,
        }),
        "nameservers" => {
            for server in value.list("addresses")? {
                link.dns.push(server.address()?);
            }
            for domain in value.list("search")? {
                link.search.push(domain.domain()?);
            }
        }
        "routes" => {
            for route in value.items() {
                link.routes.push(route_2(route)?);
            }
        }
        "optional" | "accept-ra" => {}
        _ => notes.push(value.note("not supported, ignored")),
    }
    Ok(())
}

/// One or more, as networkd has them in a line.
fn globs(at: At<'_>) -> Result<String, Finding> {
    let globs: Result<Vec<String>, Finding> = at.items().into_iter().map(glob).collect();
    match globs? {
        globs if globs.is_empty() => Err(at.error("expected a name")),
        globs => Ok(globs.join(" ")),
    }
}

/// A name with `*` and `?`, as networkd matches it too.
fn glob(at: At<'_>) -> Result<String, Finding> {
    let text = at.text()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.*?[]".contains(c);
    match (1..32).contains(&text.len()) && text.chars().all(plain) {
        true => Ok(text.to_owned()),
        false => Err(at.error(format!("{text:?} does not match the name of a link"))),
    }
}

fn route_2(at: At<'_>) -> Result<Route, Finding> {
    let to = at.get("to").ok_or_else(|| at.error("to is missing"))?;
    let destination = match to.text()? {
        "default" => None,
        _ => Some(to.parse::<Cidr>("a network")?).filter(|d| !d.is_default()),
    };
    Ok(Route {
        destination,
        gateway: at.get("via").map(|at| at.address()).transpose()?,
        metric: at.get("metric").map(|at| at.number()).transpose()?,
    })
}
