//! What the platform says about this machine; user-data wins over it.

use crate::substitute::Variables;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    pub instance_id: Option<String>,
    pub hostname: Option<String>,
    pub ssh_keys: Vec<String>,
    pub addresses: Variables,
}

impl Metadata {
    /// The host name, if it is one: platforms hand over display names too.
    pub fn usable_hostname(&self) -> Option<&String> {
        let odd = |c: char| !c.is_ascii_alphanumeric() && !"-._".contains(c);
        self.hostname
            .as_ref()
            .filter(|name| (1..=64).contains(&name.len()) && !name.contains(odd))
    }
}
