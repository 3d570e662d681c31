//! What the platform says about this machine; user-data wins over it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::imports::Imported;
use crate::network::Network;
use crate::substitute::Variables;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metadata {
    pub instance_id: Option<String>,
    pub hostname: Option<String>,
    pub ssh_keys: Vec<String>,
    #[serde(with = "addresses")]
    pub addresses: Variables,
    /// Under which name keys are authorized, where it is not ours.
    pub key_name: Option<String>,
    /// What was fetched for the user-data. It is written down on its own.
    #[serde(skip)]
    pub imported: Imported,
    /// The networks as the platform has set them up.
    pub network: Option<Network>,
}

/// The names of variables are ours, whatever a file says.
mod addresses {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::substitute::{NAMES, Variables};

    pub(super) fn serialize<S: Serializer>(value: &Variables, to: S) -> Result<S::Ok, S::Error> {
        value.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Variables, D::Error> {
        let mut map = BTreeMap::<String, String>::deserialize(from)?;
        let known = NAMES.into_iter();
        Ok(known
            .filter_map(|name| Some((name, map.remove(name)?)))
            .collect())
    }
}

impl Metadata {
    /// Sets a variable, if it is an address.
    pub fn address(&mut self, variable: &'static str, value: Option<String>) {
        // Some services write the length of the prefix behind it.
        let value = value
            .as_deref()
            .map(|text| text.split('/').next().unwrap_or(text));
        if let Some(address) = value.and_then(|text| text.trim().parse::<IpAddr>().ok()) {
            self.addresses.insert(variable, address.to_string());
        }
    }

    /// The host name, if it is one: platforms hand over display names too. One that is too long with its
    /// domain is taken without.
    pub fn usable_hostname(&self) -> Option<&str> {
        let name = self.hostname.as_deref()?;
        let name = match name.len() {
            ..=64 => name,
            _ => name.split('.').next().unwrap_or(name),
        };
        let odd = |c: char| !c.is_ascii_alphanumeric() && !"-._".contains(c);
        ((1..=64).contains(&name.len()) && !name.contains(odd)).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_of_platforms() {
        let check = |name: &str, expect: Option<&str>| {
            let metadata = Metadata {
                hostname: Some(name.to_owned()),
                ..Metadata::default()
            };
            assert_eq!(metadata.usable_hostname(), expect, "{name}");
        };
        check("a.example", Some("a.example"));
        check("My machine", None);
        check("", None);
        check(&format!("g.c.{}.internal", "p".repeat(60)), Some("g"));
        check(&"p".repeat(65), None);
    }

    #[test]
    fn only_addresses_become_variables() {
        let mut metadata = Metadata::default();
        metadata.address("public_ipv4", Some("192.0.2.1/24".to_owned()));
        metadata.address("public_ipv6", Some("none".to_owned()));
        metadata.address("private_ipv4", None);
        assert_eq!(metadata.addresses.len(), 1);
        let json = serde_json::to_string(&metadata).unwrap();
        let back: Metadata = serde_json::from_str(&json).unwrap();
        assert_eq!(back, metadata);
        assert_eq!(back.addresses["public_ipv4"], "192.0.2.1");
    }
}
