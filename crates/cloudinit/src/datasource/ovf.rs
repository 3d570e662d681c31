//! Discs with an `ovf-env.xml`: VMware's OVF environment, and what Azure hands over at a machine's
//! creation.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use base64::Engine;
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::disk::Disk;
use super::{Datasource, Found, Probe, SourceError, meta_data};
use crate::finding::{Finding, Pos};
use crate::forget::NOTHING;
use crate::network::Format;
use crate::userdata::gunzip;
use crate::yaml::{self, Node, Value};

const FILE: &str = "ovf-env.xml";

pub(super) struct Ovf;

impl Datasource for Ovf {
    fn name(&self) -> &'static str {
        "ovf disc"
    }

    fn fetch(&self, probe: &Probe<'_>) -> Result<Option<Found>, SourceError> {
        let Some((origin, environment)) = read(probe)? else {
            return Ok(None);
        };
        // Azure's is completed by its metadata service.
        if environment.azure {
            return Ok(None);
        }
        let mut found = guestinfo(&environment.properties);
        found.origin = format!("ovf {origin}");
        Ok(Some(found))
    }
}

/// An OVF environment that lies somewhere as a file.
pub fn from_file(path: &Path) -> anyhow::Result<Found> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let environment = environment(&bytes).with_context(|| path.display().to_string())?;
    let mut found = guestinfo(&environment.properties);
    found.origin = format!("ovf {}", path.display());
    Ok(found)
}

/// What Azure's disc says.
pub(crate) fn azure_disc(probe: &Probe<'_>) -> Option<Found> {
    let (origin, environment) = read(probe).ok()??;
    if !environment.azure {
        return None;
    }
    let get = |key: &str| environment.properties.get(key).cloned();
    let mut found = Found {
        origin: format!("azure {origin}"),
        ..Found::default()
    };
    found.metadata.hostname = get("HostName");
    match get("CustomData").map(|text| unpack(&text, "base64")) {
        Some(Ok(bytes)) => found.user_data = Some(bytes),
        Some(Err(problem)) => {
            found.findings.push(warning("CustomData", problem));
            found.silent = true;
        }
        None => {}
    }
    found.metadata.ssh_keys = get("Value").into_iter().collect();
    Some(found)
}

#[derive(Debug, Default)]
struct Environment {
    azure: bool,
    properties: BTreeMap<String, String>,
}

fn read(probe: &Probe<'_>) -> Result<Option<(String, Environment)>, SourceError> {
    // Any disk may have it, so one that cannot be read must not hide the next.
    let mut problem = None;
    for mut disk in Disk::all(probe) {
        let bytes = match disk.read(FILE) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => continue,
            Err(error) => {
                problem = Some(error);
                continue;
            }
        };
        let origin = disk.path.display().to_string();
        return match environment(&bytes) {
            Ok(environment) => Ok(Some((origin, environment))),
            Err(error) => Err(SourceError::Unsupported {
                problem: format!("{origin}: {FILE}: {error}"),
            }),
        };
    }
    problem.map_or(Ok(None), Err)
}

/// `<Property oe:key="…" oe:value="…"/>`, and elements with nothing but text, by their local names.
fn environment(bytes: &[u8]) -> Result<Environment, quick_xml::Error> {
    let text = String::from_utf8_lossy(bytes);
    let mut reader = Reader::from_str(&text);
    let mut found = Environment::default();
    let mut open = None;
    loop {
        match reader.read_event()? {
            Event::Eof => return Ok(found),
            Event::Empty(element) => property(&element, &mut found),
            Event::Start(element) => {
                property(&element, &mut found);
                let name = element.local_name().as_ref().to_owned();
                found.azure |= name == "ProvisioningSection";
                open = Some(name);
            }
            Event::End(_) => open = None,
            Event::Text(text) => {
                if let Some(name) = &open {
                    let text = text.trim().to_owned();
                    if !text.is_empty() {
                        found.properties.insert(name.clone(), text);
                    }
                }
            }
            _ => {}
        }
    }
}

fn property(element: &BytesStart<'_>, found: &mut Environment) {
    if element.local_name().as_ref() != "Property" {
        return;
    }
    let get = |name: &str| {
        let mut attributes = element.attributes().flatten();
        let attribute = attributes.find(|a| a.key.local_name().as_ref() == name)?;
        let raw = attribute.value.into_owned();
        let value = quick_xml::escape::unescape(&raw).map(|text| text.into_owned());
        Some(value.unwrap_or(raw))
    };
    if let (Some(key), Some(value)) = (get("key"), get("value")) {
        found.properties.insert(key, value);
    }
}

/// User-data and metadata out of the keys that CoreOS, Flatcar and cloud-init have for them.
pub(super) fn guestinfo(properties: &BTreeMap<String, String>) -> Found {
    let get = |key: &str| {
        let key = key.strip_prefix("guestinfo.").unwrap_or(key);
        let value = properties
            .get(key)
            .or_else(|| properties.get(&format!("guestinfo.{key}")));
        value.filter(|text| !matches!(text.trim(), "" | NOTHING))
    };
    let mut found = Found::default();
    for key in DATA_KEYS {
        let Some(text) = get(key) else { continue };
        let base = key.strip_suffix(".data").unwrap_or(key);
        let encoding = get(&format!("{key}.encoding")).or_else(|| get(&format!("{base}.encoding")));
        match unpack(text, encoding.map_or("", String::as_str)) {
            Ok(bytes) => {
                found.user_data = Some(bytes);
                break;
            }
            Err(problem) => found.findings.push(warning(key, problem)),
        }
    }
    if let Some(text) = get(METADATA) {
        let encoding = get(&format!("{METADATA}.encoding")).map_or("", String::as_str);
        match unpack(text, encoding) {
            Ok(bytes) => seed(&bytes, &mut found),
            Err(problem) => found.findings.push(warning(METADATA, problem)),
        }
    }
    for (value, key) in [
        (&mut found.metadata.hostname, "hostname"),
        (&mut found.metadata.instance_id, "instance-id"),
    ] {
        *value = get(key).cloned().or(value.take());
    }
    let network: String = properties
        .iter()
        .filter(|(key, _)| {
            let key = key.strip_prefix("guestinfo.").unwrap_or(key);
            key.starts_with("interface.") || key.starts_with("dns.")
        })
        .map(|(key, value)| format!("{key} = {value}\n"))
        .collect();
    if !network.is_empty() {
        found.network("guestinfo", Format::VMware, network.as_bytes());
    }
    found
}

/// The keys that the metadata wants to have deleted, without `guestinfo.`.
pub(super) fn redact(properties: &BTreeMap<String, String>) -> Vec<String> {
    let get = |key: &str| properties.get(key).map_or("", String::as_str);
    let encoding = get(&format!("{METADATA}.encoding"));
    let Ok(bytes) = unpack(get(METADATA), encoding) else {
        return Vec::new();
    };
    let Ok(Some(tree)) = yaml::parse(&String::from_utf8_lossy(&bytes)) else {
        return Vec::new();
    };
    let lists = ["redact", "cleanup-guestinfo"].map(|key| tree.get(key));
    let names = lists
        .into_iter()
        .flatten()
        .flat_map(|list| match &list.value {
            Value::Seq(items) => items.iter().filter_map(Node::text).collect(),
            _ => list.text().into_iter().collect::<Vec<_>>(),
        });
    names.map(str::to_owned).collect()
}

/// What cloud-init takes: NoCloud's `meta-data`, with the network in it, as it is or packed.
fn seed(bytes: &[u8], found: &mut Found) {
    match meta_data(bytes) {
        Ok(metadata) => found.metadata = metadata,
        Err(finding) => return found.findings.push(finding),
    }
    let Ok(Some(tree)) = yaml::parse(&String::from_utf8_lossy(bytes)) else {
        return;
    };
    let text = |key| tree.get(key).and_then(Node::text);
    match (text("network"), tree.get("network")) {
        (Some(packed), _) => match unpack(packed, text("network.encoding").unwrap_or_default()) {
            Ok(network) => found.network(METADATA, Format::NoCloud, &network),
            Err(problem) => found.findings.push(warning(METADATA, problem)),
        },
        (None, Some(_)) => found.network(METADATA, Format::NoCloud, bytes),
        (None, None) => {}
    }
}

pub(crate) const METADATA: &str = "guestinfo.metadata";
pub(super) const DATA_KEYS: [&str; 3] = [
    "guestinfo.coreos.config.data",
    "guestinfo.ignition.config.data",
    "guestinfo.userdata",
];

pub(super) fn unpack(text: &str, encoding: &str) -> Result<Vec<u8>, String> {
    let base64 = || {
        let packed: String = text.split_whitespace().collect();
        base64::engine::general_purpose::STANDARD
            .decode(packed)
            .map_err(|error| format!("not base64: {error}"))
    };
    match encoding.trim() {
        "" => Ok(text.as_bytes().to_vec()),
        "b64" | "base64" => base64(),
        "gz+b64" | "gz+base64" | "gzip+b64" | "gzip+base64" => gunzip(&base64()?),
        other => Err(format!("unknown encoding {other:?}")),
    }
}

fn warning(key: &str, problem: String) -> Finding {
    Finding::warning(Pos::START, key, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_and_elements() {
        let text = br#"<Environment xmlns:oe="x"><PropertySection>
            <Property oe:key="guestinfo.coreos.config.data" oe:value="I2Nsb3VkLWNvbmZpZwo="/>
            <Property oe:key="guestinfo.coreos.config.data.encoding" oe:value="base64"/>
            <Property oe:key="guestinfo.hostname" oe:value="a&amp;b"/>
            <Property oe:key="guestinfo.interface.0.mac" oe:value="00:11:22:33:44:55"/>
            <Property oe:key="guestinfo.interface.0.dhcp" oe:value="yes"/>
            </PropertySection></Environment>"#;
        let found = guestinfo(&environment(text).unwrap().properties);
        assert_eq!(found.user_data.as_deref(), Some(&b"#cloud-config\n"[..]));
        assert_eq!(found.metadata.hostname.as_deref(), Some("a&b"));
        assert!(found.metadata.network.unwrap().links[0].dhcp4);
        assert_eq!(found.findings, []);
    }

    #[test]
    fn metadata_of_cloud_init() {
        let check = |metadata: &str, hostname: &str, links: usize| {
            let pairs = [
                ("guestinfo.metadata", metadata),
                ("guestinfo.hostname", "outside"),
            ];
            let mut properties: BTreeMap<String, String> =
                pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
            if hostname != "outside" {
                properties.remove("guestinfo.hostname");
            }
            let found = guestinfo(&properties);
            assert_eq!(found.findings, []);
            assert_eq!(found.metadata.hostname.as_deref(), Some(hostname));
            assert_eq!(found.metadata.instance_id.as_deref(), Some("i"));
            let network = found.metadata.network;
            assert_eq!(network.map_or(0, |network| network.links.len()), links);
        };
        let names = "instance-id: i\nlocal-hostname: inside\n";
        check(names, "inside", 0);
        check(names, "outside", 0);
        let network = "network: {version: 2, ethernets: {a: {dhcp4: true}}}\n";
        check(&format!("{names}{network}"), "inside", 1);
        let packed = base64::engine::general_purpose::STANDARD.encode(network);
        check(
            &format!("{names}network: {packed}\nnetwork.encoding: base64\n"),
            "inside",
            1,
        );
    }

    #[test]
    fn bytes_of_any_kind_do_no_harm() {
        assert!(environment(b"<a><b").is_err());
        let wrong = BTreeMap::from([("userdata".to_owned(), "*".to_owned())]);
        assert_eq!(guestinfo(&wrong).user_data.as_deref(), Some(&b"*"[..]));
    }
}
