//! Values that are what they say: addresses, prefixes, names.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::finding::{Finding, Pos};
use crate::yaml::{self, Node, Value};

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Cidr {
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= full(address)).then_some(Self { address, prefix })
    }

    /// An address alone.
    pub fn host(address: IpAddr) -> Self {
        Self {
            address,
            prefix: full(address),
        }
    }

    pub fn is_default(&self) -> bool {
        self.prefix == 0 && self.address.is_unspecified()
    }

    /// With a mask such as `255.255.255.0`, `/24` or `24`.
    pub fn with_mask(address: IpAddr, mask: &str) -> Option<Self> {
        Self::new(address, prefix(mask)?)
    }
}

impl FromStr for Cidr {
    type Err = ();

    /// `10.0.0.1/24`, `10.0.0.1/255.255.255.0`, or an address alone.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, mask) = match text.split_once('/') {
            Some((address, mask)) => (address, Some(mask)),
            None => (text, None),
        };
        let address = address.trim().parse().map_err(|_| ())?;
        match mask {
            None => Ok(Self::host(address)),
            Some(mask) => Self::with_mask(address, mask).ok_or(()),
        }
    }
}

fn full(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn prefix(mask: &str) -> Option<u8> {
    let mask = mask.trim().trim_start_matches('/');
    if let Ok(length) = mask.parse() {
        return Some(length);
    }
    let bits = match mask.parse::<IpAddr>().ok()? {
        IpAddr::V4(mask) => u128::from(u32::from(mask)) << 96,
        IpAddr::V6(mask) => u128::from(mask),
    };
    let length = bits.leading_ones();
    let rest = bits.checked_shl(length).unwrap_or(0);
    (rest == 0).then(|| u8::try_from(length).ok()).flatten()
}

/// The prefix that an IPv4 address had before there were masks; what Debian takes without one.
pub(super) fn class(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        _ => 24,
    }
}

/// A name that the kernel takes and that does not leave a directory.
pub(super) fn is_link_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
    (1..16).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.')
}

/// Lower case, with colons.
pub(crate) fn mac(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase().replace('-', ":");
    let parts: Vec<&str> = text.split(':').collect();
    let valid = |part: &&str| part.len() == 2 && part.chars().all(|c| c.is_ascii_hexdigit());
    (parts.len() == 6 && parts.iter().all(valid)).then_some(text)
}

/// The kernel's names, which networkd takes; in their order they are the kernel's numbers, which it does not take.
const BOND_MODES: [&str; 7] = [
    "balance-rr",
    "active-backup",
    "balance-xor",
    "broadcast",
    "802.3ad",
    "balance-tlb",
    "balance-alb",
];
const HASH_POLICIES: [&str; 5] = ["layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4"];

pub(super) fn bond_mode(text: &str) -> Option<String> {
    named_or_numbered(&BOND_MODES, text)
}

pub(super) fn hash_policy(text: &str) -> Option<String> {
    named_or_numbered(&HASH_POLICIES, text)
}

fn named_or_numbered(names: &[&str], text: &str) -> Option<String> {
    let by_number = text
        .parse()
        .ok()
        .and_then(|number: usize| names.get(number));
    let found = by_number.or_else(|| names.iter().find(|name| **name == text));
    found.map(|name| (*name).to_owned())
}

pub(super) fn is_domain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
    !name.is_empty() && name.len() < 254 && name.chars().all(plain)
}

/// The tree of a JSON or YAML text; nothing where it is empty.
pub(super) fn tree(text: &str) -> Result<Option<Node>, Finding> {
    yaml::parse(text).map_err(|error| Finding::error(error.pos, "", error.message))
}

/// A node and its key, for errors that say where they are.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) node: &'a Node,
    pub(super) key: &'a str,
}

impl<'a> At<'a> {
    pub(super) fn error(&self, message: impl Into<String>) -> Finding {
        Finding::error(self.node.pos, self.key, message)
    }

    pub(super) fn note(&self, message: impl Into<String>) -> Finding {
        Finding::warning(self.node.pos, self.key, message)
    }

    pub(super) fn get(&self, key: &'a str) -> Option<Self> {
        let node = self.node.get(key).filter(|node| !node.is_null())?;
        Some(Self { node, key })
    }

    /// The first of several names for the same.
    pub(super) fn either(&self, keys: &[&'a str]) -> Option<Self> {
        keys.iter().find_map(|key| self.get(key))
    }

    /// The items of a list; a value alone is a list of one.
    pub(super) fn items(&self) -> Vec<Self> {
        let key = self.key;
        match &self.node.value {
            Value::Seq(items) => items.iter().map(|node| Self { node, key }).collect(),
            Value::Scalar(scalar) if scalar.is_null() => Vec::new(),
            _ => vec![*self],
        }
    }

    pub(super) fn list(&self, key: &'a str) -> Result<Vec<Self>, Finding> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(at) => match at.node.value {
                Value::Seq(_) => Ok(at.items()),
                _ => Err(at.error(format!("expected a list, found {}", at.node.kind()))),
            },
        }
    }

    /// The entries of a mapping.
    pub(super) fn entries(&self) -> Result<Vec<(&'a str, Self)>, Finding> {
        match &self.node.value {
            Value::Map(entries) => Ok(entries
                .iter()
                .map(|e| {
                    let at = Self {
                        node: &e.node,
                        key: &e.key,
                    };
                    (e.key.as_str(), at)
                })
                .collect()),
            _ if self.node.is_null() => Ok(Vec::new()),
            _ => Err(self.error(format!("expected a mapping, found {}", self.node.kind()))),
        }
    }

    pub(super) fn text(&self) -> Result<&'a str, Finding> {
        self.node
            .text()
            .map(str::trim)
            .ok_or_else(|| self.error(format!("expected a value, found {}", self.node.kind())))
    }

    pub(super) fn parse<T: FromStr>(&self, what: &str) -> Result<T, Finding> {
        let text = self.text()?;
        text.parse()
            .map_err(|_| self.error(format!("{text:?} is not {what}")))
    }

    pub(super) fn address(&self) -> Result<IpAddr, Finding> {
        self.parse("an IP address")
    }

    pub(super) fn number(&self) -> Result<u32, Finding> {
        self.parse("a number")
    }

    pub(super) fn boolean(&self) -> Result<bool, Finding> {
        match &self.node.value {
            Value::Scalar(scalar) => scalar.boolean(),
            _ => None,
        }
        .ok_or_else(|| self.error("expected true or false"))
    }

    pub(crate) fn mac(&self) -> Result<String, Finding> {
        let text = self.text()?;
        mac(text).ok_or_else(|| self.error(format!("{text:?} is not a MAC address")))
    }

    pub(super) fn link_name(&self) -> Result<String, Finding> {
        let text = self.text()?;
        match is_link_name(text) {
            true => Ok(text.to_owned()),
            false => Err(self.error(format!("{text:?} is not the name of a link"))),
        }
    }

    pub(super) fn domain(&self) -> Result<String, Finding> {
        let text = self.text()?;
        match is_domain(text) {
            true => Ok(text.to_owned()),
            false => Err(self.error(format!("{text:?} is not a domain"))),
        }
    }

    pub(super) fn vlan_id(&self) -> Result<u16, Finding> {
        let id: u16 = self.parse("a VLAN id")?;
        match (1..4095).contains(&id) {
            true => Ok(id),
            false => Err(self.error(format!("{id} is not a VLAN id (1 to 4094)"))),
        }
    }

    pub(super) fn bond_mode(&self) -> Result<String, Finding> {
        let text = self.text()?;
        let names = BOND_MODES.join(", ");
        bond_mode(text).ok_or_else(|| {
            self.error(format!("there is no bond mode {text}"))
                .hint(format!("one of {names}"))
        })
    }

    pub(super) fn hash_policy(&self) -> Result<String, Finding> {
        let text = self.text()?;
        let names = HASH_POLICIES.join(", ");
        hash_policy(text).ok_or_else(|| {
            self.error(format!("there is no hash policy {text}"))
                .hint(format!("one of {names}"))
        })
    }
}

pub(super) fn whole(message: impl Into<String>) -> Finding {
    Finding::error(Pos::START, "", message)
}

impl Cidr {
    /// `other` is in this network.
    pub fn contains(&self, other: IpAddr) -> bool {
        let (bits, width) = match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(u32::from(a) ^ u32::from(b)), 32),
            (IpAddr::V6(_), IpAddr::V6(b)) if b.is_unicast_link_local() => return true,
            (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b), 128),
            _ => return false,
        };
        bits.checked_shr(width - u32::from(self.prefix))
            .unwrap_or(0)
            == 0
    }
}
