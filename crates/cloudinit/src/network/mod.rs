//! Networks as platforms describe them, and the files of networkd that set them up.
//!
//! Each format is a small file that makes a [`Network`] of a text; [`render`] makes networkd's files of
//! that. What a platform writes ends up in lines of those files, so every value is checked for what it
//! is before it gets into a [`Network`].

mod debian;
mod nocloud;
mod openstack;
mod packet;
mod render;
#[cfg(test)]
mod tests;
mod values;
mod vmware;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::finding::Finding;

pub use render::{NetworkFile, render};
pub use values::Cidr;
pub(crate) use values::mac;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub links: Vec<Link>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The name of virtual links; for others the name that the platform has for it.
    pub name: String,
    pub kind: Kind,
    /// How a physical link is found: by MAC address, else by `found`, else by `name`.
    pub mac: Option<String>,
    /// Names, with `*` and `?`, of which it may have one where it is not called `name`.
    pub found: Option<String>,
    /// And by the name of its driver.
    pub driver: Option<String>,
    /// The address that a physical link is to get instead of its own.
    pub new_mac: Option<String>,
    /// The physical link is to be called `name`.
    pub rename: bool,
    pub mtu: Option<u32>,
    /// The bond or the bridge that it belongs to.
    pub master: Option<Master>,
    pub dhcp4: bool,
    pub dhcp6: bool,
    pub addresses: Vec<Cidr>,
    pub routes: Vec<Route>,
    pub dns: Vec<IpAddr>,
    pub search: Vec<String>,
    /// Brought up without an address.
    pub manual: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    #[default]
    Physical,
    Bond(Bond),
    Bridge,
    Vlan {
        id: u16,
        parent: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Master {
    Bond(String),
    Bridge(String),
}

/// What networkd knows of a bond. Other keys that platforms have are left out with a note: a `[Bond]`
/// section with an unknown key only makes networkd complain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bond {
    pub mode: Option<String>,
    pub miimon: Option<u32>,
    pub hash_policy: Option<String>,
    pub lacp_rate: Option<String>,
    pub up_delay: Option<u32>,
    pub down_delay: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// `None`: the default route.
    pub destination: Option<Cidr>,
    pub gateway: Option<IpAddr>,
    pub metric: Option<u32>,
}

/// A network, and what is odd about the text that it was read from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Converted {
    pub network: Network,
    pub notes: Vec<Finding>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `network_data.json`.
    OpenStack,
    /// `/etc/network/interfaces`, as Rackspace and old OpenStack have it.
    Debian,
    /// The `network` of Packet's metadata, or all of the metadata.
    Packet,
    /// `network-config` of NoCloud, version 1 or 2 (netplan).
    NoCloud,
    /// `key = value` lines of guestinfo.
    VMware,
}

impl Format {
    pub const ALL: [(&'static str, Self); 5] = [
        ("openstack", Self::OpenStack),
        ("debian", Self::Debian),
        ("packet", Self::Packet),
        ("nocloud", Self::NoCloud),
        ("vmware", Self::VMware),
    ];

    pub fn named(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(other, _)| *other == name);
        found.map(|(_, format)| *format)
    }

    pub fn convert(self, text: &str) -> Result<Converted, Finding> {
        match self {
            Self::OpenStack => openstack::convert(text),
            Self::Debian => debian::convert(text),
            Self::Packet => packet::convert(text),
            Self::NoCloud => nocloud::convert(text),
            Self::VMware => vmware::convert(text),
        }
    }
}

impl Network {
    pub fn link(&mut self, name: &str) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.name == name)
    }
}
