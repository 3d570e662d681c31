//! VMware's guestinfo, asked for at the hypervisor's own port, which needs no privilege and no program.

use std::collections::BTreeMap;
use std::path::Path;

use host::cmdline::Cmdline;
use vmw_backdoor::BackdoorGuard;

use super::{Datasource, Found, Probe, SourceError, ovf};
use crate::finding::{Finding, Pos};
use crate::forget::NOTHING;

/// Of links, addresses and routes each.
const MOST: usize = 16;

/// Nothing is done with it, but it may be as secret as user-data.
const VENDOR_DATA: &str = "guestinfo.vendordata";
/// On the kernel command line: what is user-data is deleted.
const OPTION: &str = "orlop.forget-guestinfo";

pub(super) struct VMware;

/// This machine's guestinfo.
pub fn guestinfo() -> Result<Option<Found>, SourceError> {
    VMware.fetch(&Probe {
        root: Path::new("/"),
    })
}

/// Guestinfo cannot be listed, so what may be there is asked for one by one.
fn properties(mut get: impl FnMut(&str) -> Option<String>) -> BTreeMap<String, String> {
    let mut properties = BTreeMap::new();
    let mut ask = |key: String| {
        let value = get(&key);
        let there = value.is_some();
        properties.extend(value.map(|value| (key, value)));
        there
    };
    for key in ovf::DATA_KEYS.into_iter().chain([VENDOR_DATA]) {
        if ask(key.to_owned()) {
            ask(format!("{key}.encoding"));
        }
    }
    for key in [ovf::METADATA, "guestinfo.hostname"] {
        ask(key.to_owned());
    }
    ask(format!("{}.encoding", ovf::METADATA));
    let mut numbered = |prefix: &str, names: &[&str]| {
        // Up to the first number that nothing is known of.
        (0..MOST)
            .take_while(|number| {
                let key = |name: &&str| format!("guestinfo.{prefix}{number}{name}");
                names.iter().map(key).filter(|key| ask(key.clone())).count() > 0
            })
            .count()
    };
    numbered("dns.server.", &[""]);
    numbered("dns.domain.", &[""]);
    for link in 0..numbered("interface.", &[".name", ".mac", ".dhcp", ".role"]) {
        numbered(&format!("interface.{link}.ip."), &[".address"]);
        let route = format!("interface.{link}.route.");
        numbered(&route, &[".gateway", ".destination"]);
    }
    properties
}

/// Which keys are to be deleted: all user-data, if the command line says so, and what `redact` in the metadata names,
/// as cloud-init has it (`cleanup-guestinfo` in older releases).
fn forget(properties: &BTreeMap<String, String>, cmdline: &Cmdline, found: &mut Found) {
    let known: Vec<&str> = ovf::DATA_KEYS
        .into_iter()
        .chain([VENDOR_DATA, ovf::METADATA])
        .collect();
    let mut keys: Vec<String> = Vec::new();
    let off = |value: &str| matches!(value, "no" | "off" | "false" | "0");
    if cmdline.has(OPTION) && !cmdline.get(OPTION).is_some_and(off) {
        let data = known.iter().filter(|key| **key != ovf::METADATA);
        keys.extend(data.map(|key| (*key).to_owned()));
    }
    for name in ovf::redact(properties) {
        let key = format!("guestinfo.{name}");
        match known.contains(&key.as_str()) {
            true if keys.contains(&key) => {}
            true => keys.push(key),
            false => {
                let known = known
                    .iter()
                    .filter_map(|key| key.strip_prefix("guestinfo."));
                let known = known.collect::<Vec<_>>().join(", ");
                let message = format!("redact: {name:?} is not known, ignored (one of {known})");
                let finding = Finding::warning(Pos::START, ovf::METADATA, message);
                found.findings.push(finding);
            }
        }
    }
    let there = |key: &String| properties.get(key).is_some_and(|value| value != NOTHING);
    found.forget = keys
        .into_iter()
        .flat_map(|key| [key.clone(), format!("{key}.encoding")])
        .filter(there)
        .collect();
}

/// What was deleted, and what nothing is done with, must not hide the next source.
fn says_something(properties: &BTreeMap<String, String>) -> bool {
    properties.iter().any(|(key, value)| {
        value != NOTHING && !key.starts_with(VENDOR_DATA) && !key.ends_with(".encoding")
    })
}

fn unsupported(problem: impl std::fmt::Display) -> SourceError {
    SourceError::Unsupported {
        problem: format!("guestinfo: {problem}"),
    }
}

/// Whether one can ask at all; afterwards what is not there is not set.
fn open(port: &mut BackdoorGuard) -> Result<(), SourceError> {
    port.open_enhanced_chan().map_err(unsupported)?;
    Ok(())
}

/// A channel for each question, as `vmware-rpctool` has.
fn value(port: &mut BackdoorGuard, key: &str) -> Option<String> {
    let mut channel = port.open_enhanced_chan().ok()?;
    let bytes = channel.get_guestinfo(key.as_bytes()).ok()??;
    let text = String::from_utf8(bytes).ok()?;
    let text = text.trim_end_matches(['\0', '\n', '\r', ' ']);
    (!text.is_empty()).then(|| text.to_owned())
}

impl Datasource for VMware {
    fn name(&self) -> &'static str {
        "vmware"
    }

    fn fetch(&self, probe: &Probe<'_>) -> Result<Option<Found>, SourceError> {
        let vendor = std::fs::read_to_string(probe.path("/sys/class/dmi/id/sys_vendor"));
        if !vendor.is_ok_and(|vendor| vendor.starts_with("VMware")) {
            return Ok(None);
        }
        // Anywhere else the instruction would end this process.
        if !vmw_backdoor::is_vmware_cpu() {
            return Err(unsupported(
                "the firmware says VMware, and the processor does not",
            ));
        }
        let mut port = vmw_backdoor::probe_backdoor().map_err(unsupported)?;
        open(&mut port)?;
        let get = |key: &str| value(&mut port, key);
        let properties = properties(get);
        if !says_something(&properties) {
            return Ok(None);
        }
        let mut found = ovf::guestinfo(&properties);
        found.origin = "vmware guestinfo".to_owned();
        let cmdline = Cmdline::read(probe.root).unwrap_or_default();
        forget(&properties, &cmdline, &mut found);
        Ok(Some(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_asked_for_link_by_link() {
        let there = [
            ("guestinfo.userdata", "#!/bin/sh"),
            ("guestinfo.userdata.encoding", ""),
            ("guestinfo.dns.server.0", "192.0.2.1"),
            ("guestinfo.interface.0.name", "ens192"),
            ("guestinfo.interface.0.ip.0.address", "192.0.2.5/24"),
            ("guestinfo.interface.0.route.0.gateway", "192.0.2.1"),
            ("guestinfo.interface.0.route.0.destination", "0.0.0.0/0"),
            ("guestinfo.interface.1.name", "ens224"),
            ("guestinfo.interface.1.dhcp", "yes"),
            ("guestinfo.interface.3.dhcp", "yes"),
        ];
        let get = |key: &str| {
            let found = there.iter().find(|(name, _)| *name == key);
            found.map(|(_, value)| (*value).to_owned())
        };
        let found = properties(get);
        assert_eq!(found.len(), there.len() - 1);
        assert!(!found.contains_key("guestinfo.interface.3.dhcp"));
        let found = ovf::guestinfo(&found);
        assert_eq!(found.user_data.as_deref(), Some(b"#!/bin/sh".as_slice()));
        assert_eq!(found.findings, []);
        let names = found.metadata.network.map(|n| n.links.len());
        assert_eq!(names, Some(2));
    }

    fn said(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        owned.collect()
    }

    fn to_forget(pairs: &[(&str, &str)], cmdline: &str) -> (Vec<String>, Vec<String>) {
        let mut found = Found::default();
        forget(&said(pairs), &Cmdline::parse(cmdline), &mut found);
        let findings = found.findings.iter().map(ToString::to_string).collect();
        (found.forget, findings)
    }

    #[test]
    fn deleted_is_what_somebody_asks_for_and_what_is_there() {
        let pairs = [
            ("guestinfo.userdata", "I2Nsb3VkLWNvbmZpZwo="),
            ("guestinfo.userdata.encoding", "base64"),
            ("guestinfo.coreos.config.data", "---"),
            ("guestinfo.vendordata", "x"),
            (
                "guestinfo.metadata",
                "local-hostname: a\nredact: [userdata, bogus]\n",
            ),
        ];
        let user_data = ["guestinfo.userdata", "guestinfo.userdata.encoding"];
        let (keys, findings) = to_forget(&pairs, "");
        assert_eq!(keys, user_data);
        let expect = "1:1: warning: guestinfo.metadata: redact: \"bogus\" is not known, ignored (one of \
                      coreos.config.data, ignition.config.data, userdata, vendordata, metadata)";
        assert_eq!(findings, [expect]);
        let (keys, _) = to_forget(&pairs, "orlop.forget-guestinfo");
        assert_eq!(keys, [&user_data[..], &["guestinfo.vendordata"]].concat());
        let (keys, _) = to_forget(&pairs[..4], "orlop.forget-guestinfo=yes");
        assert_eq!(keys.len(), 3);
        let (keys, _) = to_forget(&pairs[..4], "orlop.forget-guestinfo=no");
        assert_eq!(keys, [""; 0]);
        let older = [
            (
                "guestinfo.metadata",
                "Y2xlYW51cC1ndWVzdGluZm86CiAgLSBtZXRhZGF0YQo=",
            ),
            ("guestinfo.metadata.encoding", "base64"),
        ];
        let (keys, _) = to_forget(&older, "");
        assert_eq!(keys, ["guestinfo.metadata", "guestinfo.metadata.encoding"]);
    }

    #[test]
    fn what_was_deleted_is_not_user_data_and_hides_nothing() {
        let gone = said(&[("guestinfo.userdata", "---"), ("guestinfo.vendordata", "x")]);
        assert!(!says_something(&gone));
        assert_eq!(ovf::guestinfo(&gone).user_data, None);
        assert!(says_something(&said(&[("guestinfo.hostname", "a")])));
    }
}
