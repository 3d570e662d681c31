//! VMware's guestinfo, as CoreOS reads it: `interface.0.ip.0.address = 10.0.0.2/24`, one key a line.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::values::{Cidr, is_domain, is_link_name, mac};
use super::{Converted, Link, Route};
use crate::finding::{Finding, Pos};

/// A value and its line.
type Values<'a> = BTreeMap<&'a str, (&'a str, usize)>;

pub(super) fn convert(text: &str) -> Result<Converted, Finding> {
    let mut values = Values::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err(at(index, "expected KEY = VALUE"));
        };
        let key = key.trim();
        let key = key.strip_prefix("guestinfo.").unwrap_or(key);
        values.insert(key, (value.trim().trim_matches('"'), index));
    }
    let dns = numbered(&values, "dns.server.", "", |text| {
        text.parse::<IpAddr>().ok()
    })?;
    let search = numbered(&values, "dns.domain.", "", |text| {
        is_domain(text).then(|| text.to_owned())
    })?;
    let mut out = Converted::default();
    for number in 0.. {
        let prefix = format!("interface.{number}.");
        if !values.keys().any(|key| key.starts_with(&prefix)) {
            break;
        }
        let get = |key: &str| values.get(format!("{prefix}{key}").as_str()).copied();
        let mut link = Link {
            name: format!("net{number}"),
            dns: dns.clone(),
            search: search.clone(),
            ..Link::default()
        };
        if let Some((text, line)) = get("name") {
            if !is_link_name(text) {
                return Err(at(line, format!("{text:?} is not the name of a link")));
            }
            text.clone_into(&mut link.name);
        }
        if let Some((text, line)) = get("mac") {
            let mac = mac(text).ok_or_else(|| at(line, format!("{text:?} is not a MAC address")));
            link.mac = Some(mac?);
        }
        match get("dhcp") {
            None | Some(("no" | "false", _)) => {}
            Some(("yes" | "true", _)) => (link.dhcp4, link.dhcp6) = (true, true),
            Some((text, line)) => {
                return Err(at(line, format!("expected yes or no, found {text:?}")));
            }
        }
        let ips = format!("{prefix}ip.");
        link.addresses = numbered(&values, &ips, ".address", |text| text.parse::<Cidr>().ok())?;
        let routes = format!("{prefix}route.");
        let gateways = numbered(&values, &routes, ".gateway", |text| text.parse().ok())?;
        let destinations = numbered(&values, &routes, ".destination", |text| {
            text.parse::<Cidr>().ok()
        })?;
        link.routes = gateways
            .into_iter()
            .enumerate()
            .map(|(index, gateway)| Route {
                destination: destinations.get(index).copied().filter(|d| !d.is_default()),
                gateway: Some(gateway),
                metric: None,
            })
            .collect();
        if link.mac.is_none() && get("name").is_none() {
            let line = values.iter().find(|(key, _)| key.starts_with(&prefix));
            let line = line.map_or(0, |(_, (_, line))| *line);
            return Err(at(
                line,
                format!("interface {number} has neither mac nor name"),
            ));
        }
        out.network.links.push(link);
    }
    Ok(out)
}

/// The values of `PREFIX0SUFFIX`, `PREFIX1SUFFIX` and so on.
fn numbered<T>(
    values: &Values<'_>,
    prefix: &str,
    suffix: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, Finding> {
    let mut found = Vec::new();
    while let Some((text, line)) = values.get(format!("{prefix}{}{suffix}", found.len()).as_str()) {
        let value = read(text).ok_or_else(|| at(*line, format!("{text:?} cannot be used here")))?;
        found.push(value);
    }
    Ok(found)
}

fn at(line: usize, message: impl Into<String>) -> Finding {
    let pos = Pos {
        line: line + 1,
        column: 1,
    };
    Finding::error(pos, "", message)
}
