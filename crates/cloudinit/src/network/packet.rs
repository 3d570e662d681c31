//! The `network` of Packet's (Equinix Metal's) metadata: one bond over all links.

use super::values::{At, Cidr, tree, whole};
use super::{Bond, Converted, Kind, Link, Master, Route};
use crate::finding::Finding;

pub(super) fn convert(text: &str) -> Result<Converted, Finding> {
    let Some(tree) = tree(text)? else {
        return Err(whole("empty"));
    };
    let root = At {
        node: &tree,
        key: "",
    };
    let root = root.get("network").unwrap_or(root);
    root.entries()?;
    let mut out = Converted::default();
    let mut mode = Some("802.3ad".to_owned());
    if let Some(at) = root.get("bonding").and_then(|at| at.get("mode")) {
        mode = Some(at.bond_mode()?);
    }
    let lacp = mode.as_deref() == Some("802.3ad");
    let mut bond = Link {
        name: "bond0".to_owned(),
        kind: Kind::Bond(Bond {
            mode,
            miimon: Some(100),
            hash_policy: lacp.then(|| "layer3+4".to_owned()),
            lacp_rate: lacp.then(|| "fast".to_owned()),
            up_delay: Some(200),
            down_delay: Some(200),
        }),
        ..Link::default()
    };
    for at in root.list("interfaces")? {
        let name = at.get("name").ok_or_else(|| at.error("name is missing"))?;
        let mac = at.get("mac").ok_or_else(|| at.error("mac is missing"))?;
        out.network.links.push(Link {
            name: name.link_name()?,
            mac: Some(mac.mac()?),
            master: Some(Master::Bond(bond.name.clone())),
            ..Link::default()
        });
    }
    if out.network.links.is_empty() {
        return Err(root.error("no interfaces in it"));
    }
    for at in root.list("addresses")? {
        address(at, &mut bond)?;
    }
    for server in root.list("dns")? {
        bond.dns.push(server.address()?);
    }
    out.network.links.push(bond);
    Ok(out)
}

fn address(at: At<'_>, bond: &mut Link) -> Result<(), Finding> {
    if let Some(enabled) = at.get("enabled")
        && !enabled.boolean()?
    {
        return Ok(());
    }
    let own = at
        .get("address")
        .ok_or_else(|| at.error("address is missing"))?
        .address()?;
    let cidr = match at.either(&["cidr", "netmask"]) {
        Some(mask) => {
            let text = mask.text()?;
            Cidr::with_mask(own, text)
                .ok_or_else(|| mask.error(format!("{text:?} is no netmask")))?
        }
        None => Cidr::host(own),
    };
    bond.addresses.push(cidr);
    let Some(gateway) = at.get("gateway") else {
        return Ok(());
    };
    let gateway = gateway.address()?;
    let public = at.get("public").map_or(Ok(true), |at| at.boolean())?;
    // Private addresses lead to the other private ones only.
    let destination = match (public, own.is_ipv4()) {
        (true, _) => None,
        (false, true) => Some("10.0.0.0/8"),
        (false, false) => return Ok(()),
    };
    bond.routes.push(Route {
        destination: destination.and_then(|text| text.parse().ok()),
        gateway: Some(gateway),
        metric: None,
    });
    Ok(())
}
