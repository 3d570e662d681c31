//! interfaces(5) of Debian's ifupdown, as config drives of Rackspace and old OpenStack carry it.

use std::net::IpAddr;

use super::values::{Cidr, bond_mode, class, hash_policy, is_domain, is_link_name, mac};
use super::{Bond, Converted, Kind, Link, Master, Route};
use crate::finding::{Finding, Pos};

/// A line's words and its number, from 0.
struct Line<'a> {
    number: usize,
    words: Vec<&'a str>,
}

impl Line<'_> {
    fn error(&self, message: impl Into<String>) -> Finding {
        Finding::error(self.pos(), self.words[0], message)
    }

    fn pos(&self) -> Pos {
        Pos {
            line: self.number + 1,
            column: 1,
        }
    }

    fn value<T>(&self, what: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<T, Finding> {
        let Some(word) = self.words.get(1) else {
            return Err(self.error("a value is missing"));
        };
        read(word).ok_or_else(|| self.error(format!("{word:?} is not {what}")))
    }
}

pub(super) fn convert(text: &str) -> Result<Converted, Finding> {
    let mut out = Converted::default();
    let mut current: Option<Stanza> = None;
    for line in lines(text) {
        match line.words[0] {
            "auto" | "source" | "source-directory" | "mapping" => {
                finish(current.take(), &mut out)?;
            }
            word if word.starts_with("allow-") => finish(current.take(), &mut out)?,
            "iface" => {
                finish(current.take(), &mut out)?;
                current = Some(Stanza::new(&line)?);
            }
            _ => match &mut current {
                Some(stanza) => stanza.option(&line, &mut out.notes)?,
                None => return Err(line.error("outside of an iface")),
            },
        }
    }
    finish(current, &mut out)?;
    link_up(&mut out);
    Ok(out)
}

/// Lines with something on them; a backslash at the end joins the next.
fn lines(text: &str) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    let mut joined = false;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            joined = false;
            continue;
        }
        let (content, more) = match line.strip_suffix('\\') {
            Some(content) => (content, true),
            None => (line, false),
        };
        let words: Vec<&str> = content.split_whitespace().collect();
        match lines.last_mut().filter(|_| joined) {
            Some(last) => last.words.extend(words),
            None if words.is_empty() => {}
            None => lines.push(Line { number, words }),
        }
        joined = more;
    }
    lines
}

#[derive(Default)]
struct Stanza {
    link: Link,
    address: Option<Cidr>,
    mask: Option<String>,
    pos: Option<Pos>,
    loopback: bool,
    bonded: bool,
    bond: Bond,
    members: Vec<String>,
    vlan_parent: Option<String>,
}

impl Stanza {
    fn new(line: &Line<'_>) -> Result<Self, Finding> {
        let [_, name, family, method, ..] = line.words[..] else {
            return Err(line.error("expected: iface NAME FAMILY METHOD"));
        };
        if !is_link_name(name) {
            return Err(line.error(format!("{name:?} is not the name of a link")));
        }
        let mut stanza = Self {
            pos: Some(line.pos()),
            ..Self::default()
        };
        name.clone_into(&mut stanza.link.name);
        match (family, method) {
            (_, "loopback") => stanza.loopback = true,
            ("inet", "dhcp") => stanza.link.dhcp4 = true,
            ("inet6", "dhcp") => stanza.link.dhcp6 = true,
            ("inet" | "inet6", "static" | "auto") => {}
            ("inet" | "inet6", "manual") => stanza.link.manual = true,
            _ => return Err(line.error(format!("{family} {method} is not supported"))),
        }
        Ok(stanza)
    }

    fn option(&mut self, line: &Line<'_>, notes: &mut Vec<Finding>) -> Result<(), Finding> {
        let address = |text: &str| text.parse::<IpAddr>().ok();
        let number = |text: &str| text.parse::<u32>().ok();
        let key = line.words[0].replace('_', "-");
        match key.as_str() {
            "address" => self.address = Some(line.value("an address", |text| text.parse().ok())?),
            "netmask" => {
                let mask = line.value("a netmask", |text| {
                    Cidr::with_mask(IpAddr::from([0; 16]), text).map(|_| text.to_owned())
                })?;
                self.mask = Some(mask);
            }
            "gateway" => self.link.routes.push(Route {
                destination: None,
                gateway: Some(line.value("an address", address)?),
                metric: None,
            }),
            "dns-nameservers" | "dns-nameserver" => {
                for text in &line.words[1..] {
                    let server = address(text);
                    let server =
                        server.ok_or_else(|| line.error(format!("{text:?} is not an address")))?;
                    self.link.dns.push(server);
                }
            }
            "dns-search" | "dns-domain" => {
                for text in &line.words[1..] {
                    if !is_domain(text) {
                        return Err(line.error(format!("{text:?} is not a domain")));
                    }
                    self.link.search.push((*text).to_owned());
                }
            }
            "hwaddress" => {
                let text = line.words.last().copied().unwrap_or_default();
                let found = mac(text);
                let wrong = || line.error(format!("{text:?} is not a MAC address"));
                self.link.mac = Some(found.ok_or_else(wrong)?);
            }
            "mtu" => self.link.mtu = Some(line.value("a number", number)?),
            "vlan-raw-device" => self.vlan_parent = Some(line.value("a link", link_name)?),
            "bond-master" => {
                let name = line.value("a link", link_name)?;
                self.link.master = Some(Master::Bond(name));
            }
            "bond-slaves" | "slaves" => {
                self.bonded = true;
                for text in line.words[1..].iter().filter(|text| **text != "none") {
                    let name = link_name(text);
                    let wrong = || line.error(format!("{text:?} is not the name of a link"));
                    self.members.push(name.ok_or_else(wrong)?);
                }
            }
            "bond-mode" => {
                self.bonded = true;
                self.bond.mode = Some(line.value("a bond mode", bond_mode)?);
            }
            "bond-miimon" => self.bond.miimon = Some(line.value("a number", number)?),
            "bond-updelay" => self.bond.up_delay = Some(line.value("a number", number)?),
            "bond-downdelay" => self.bond.down_delay = Some(line.value("a number", number)?),
            "bond-xmit-hash-policy" => {
                self.bond.hash_policy = Some(line.value("a hash policy", hash_policy)?);
            }
            "bond-lacp-rate" => {
                self.bond.lacp_rate = Some(line.value("a rate", |text| match text {
                    "0" | "slow" => Some("slow".to_owned()),
                    "1" | "fast" => Some("fast".to_owned()),
                    _ => None,
                })?);
            }
            "up" | "post-up" | "pre-up" => match route(&line.words[1..]) {
                Some(route) => self.link.routes.push(route),
                None => notes.push(ignored(line)),
            },
            // Taken back by itself when the link goes.
            "down" | "pre-down" | "post-down" | "network" | "broadcast" | "label" => {}
            _ => notes.push(ignored(line)),
        }
        Ok(())
    }
}

fn link_name(text: &str) -> Option<String> {
    is_link_name(text).then(|| text.to_owned())
}

fn ignored(line: &Line<'_>) -> Finding {
    Finding::warning(line.pos(), line.words[0], "not supported, ignored")
}

/// `route add [-net|-host] N [netmask M] gw G [metric N]`, or `ip route add N via G`.
fn route(words: &[&str]) -> Option<Route> {
    let after = |name: &str| {
        let index = words.iter().position(|word| *word == name)?;
        words.get(index + 1).copied()
    };
    let metric = after("metric").and_then(|text| text.parse().ok());
    if let ["ip", "route", "add", network, "via", gateway, ..]
    | ["ip", "-6", "route", "add", network, "via", gateway, ..] = words
    {
        let destination = match *network {
            "default" => None,
            network => Some(network.parse().ok()?),
        };
        let gateway = Some(gateway.parse().ok()?);
        return Some(Route {
            destination,
            gateway,
            metric,
        });
    }
    let ["route", "add", rest @ ..] = words else {
        return None;
    };
    let network = rest.iter().find(|word| !word.starts_with('-'))?;
    let gateway = Some(after("gw")?.parse().ok()?);
    let destination = match (*network, after("netmask")) {
        ("default", _) => None,
        (network, Some(mask)) => {
            let network: Cidr = network.parse().ok()?;
            Some(Cidr::with_mask(network.address, mask)?)
        }
        (network, None) => Some(network.parse().ok()?),
    };
    Some(Route {
        destination: destination.filter(|d| !d.is_default()),
        gateway,
        metric,
    })
}

/// Adds a stanza; a second one of the same name, for the other family, adds to the first.
fn finish(stanza: Option<Stanza>, out: &mut Converted) -> Result<(), Finding> {
    let Some(mut stanza) = stanza.filter(|stanza| !stanza.loopback) else {
        return Ok(());
    };
    if let Some(cidr) = stanza.address {
        let full = Cidr::host(cidr.address);
        let cidr = match (&stanza.mask, cidr.address) {
            (Some(mask), address) => Cidr::with_mask(address, mask).ok_or_else(|| {
                let pos = stanza.pos.unwrap_or(Pos::START);
                Finding::error(pos, "netmask", format!("{mask:?} does not fit {address}"))
            })?,
            (None, IpAddr::V4(address)) if cidr == full => Cidr {
                address: cidr.address,
                prefix: class(address),
            },
            (None, IpAddr::V6(_)) if cidr == full => Cidr { prefix: 64, ..cidr },
            _ => cidr,
        };
        stanza.link.addresses.push(cidr);
    }
    if stanza.bonded {
        stanza.link.kind = Kind::Bond(stanza.bond);
        for member in stanza.members {
            if out.network.link(&member).is_none() {
                out.network.links.push(Link {
                    name: member.clone(),
                    ..Link::default()
                });
            }
            if let Some(link) = out.network.link(&member) {
                link.master = Some(Master::Bond(stanza.link.name.clone()));
            }
        }
    }
    let name = stanza.link.name.clone();
    let dotted = name.rsplit_once('.');
    let id = match (dotted, name.strip_prefix("vlan")) {
        (Some((_, id)), _) => id.parse().ok(),
        (None, Some(id)) => id.parse().ok(),
        (None, None) => None,
    };
    let parent = stanza
        .vlan_parent
        .or(dotted.map(|(parent, _)| parent.to_owned()));
    if let (Some(id), Some(parent)) = (id.filter(|id| (1..4095).contains(id)), parent) {
        stanza.link.kind = Kind::Vlan { id, parent };
    }
    match out.network.link(&name) {
        Some(link) => {
            link.addresses.append(&mut stanza.link.addresses);
            link.routes.append(&mut stanza.link.routes);
            link.dns.append(&mut stanza.link.dns);
            link.search.append(&mut stanza.link.search);
            link.dhcp4 |= stanza.link.dhcp4;
            link.dhcp6 |= stanza.link.dhcp6;
            link.mac = stanza.link.mac.take().or(link.mac.take());
            link.mtu = stanza.link.mtu.or(link.mtu);
            link.master = stanza.link.master.or(link.master.take());
            link.manual &= stanza.link.manual;
            if stanza.link.kind != Kind::Physical {
                link.kind = stanza.link.kind;
            }
        }
        None => out.network.links.push(stanza.link),
    }
    Ok(())
}

/// A member may name its bond, or the bond its members; a parent of a VLAN may not be named at all.
fn link_up(out: &mut Converted) {
    let masters: Vec<String> = out
        .network
        .links
        .iter()
        .filter_map(|link| match &link.master {
            Some(Master::Bond(name)) => Some(name.clone()),
            _ => None,
        })
        .collect();
    for name in masters {
        match out.network.link(&name) {
            Some(link) if link.kind == Kind::Physical => link.kind = Kind::Bond(Bond::default()),
            Some(_) => {}
            None => out.network.links.push(Link {
                name,
                kind: Kind::Bond(Bond::default()),
                manual: true,
                ..Link::default()
            }),
        }
    }
    let parents: Vec<String> = out
        .network
        .links
        .iter()
        .filter_map(|link| match &link.kind {
            Kind::Vlan { parent, .. } => Some(parent.clone()),
            _ => None,
        })
        .collect();
    for name in parents {
        if out.network.link(&name).is_none() {
            out.network.links.push(Link {
                name,
                manual: true,
                ..Link::default()
            });
        }
    }
}
