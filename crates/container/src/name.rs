use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A value that cannot be: which one, and what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value:?}: {hint}")]
pub struct Invalid {
    pub field: &'static str,
    pub value: String,
    pub hint: String,
}

impl Invalid {
    pub fn new(field: &'static str, value: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            field,
            value: value.into(),
            hint: hint.into(),
        }
    }
}

/// The name of an image or a container: what systemd takes for a machine name, in lower case, so
/// that it is also a file name, a part of a unit name and a host name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// A unit name has 255 characters, a machine name 64.
const LONGEST: usize = 64;

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The unit that runs a container of this name.
    pub fn unit(&self) -> String {
        format!("container-{}.service", self.0)
    }

    pub fn from_unit(unit: &str) -> Option<Self> {
        unit.strip_prefix("container-")?
            .strip_suffix(".service")?
            .parse()
            .ok()
    }
}

impl FromStr for Name {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let edge =
            |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let inside =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
        let ok = text.len() <= LONGEST
            && edge(text.chars().next())
            && edge(text.chars().last())
            && text.chars().all(inside)
            && !text.contains("..");
        match ok {
            true => Ok(Self(text.to_owned())),
            false => Err(Invalid::new(
                "name",
                text,
                "use 1 to 64 lower-case letters, digits, and - _ . in between, e.g. web-1",
            )),
        }
    }
}

impl TryFrom<String> for Name {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "debian", "web-1", "a.b_c", &"x".repeat(64)] {
            let name: Name = good.parse().unwrap();
            assert_eq!(Name::from_unit(&name.unit()), Some(name));
        }
        for bad in [
            "",
            ".",
            "..",
            "a..b",
            "-a",
            "a-",
            ".part",
            "A",
            "a/b",
            "a b",
            "ä",
            "a\n",
            &"x".repeat(65),
        ] {
            let error = bad.parse::<Name>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("name {bad:?}: use 1 to 64")),
                "{error}"
            );
        }
    }
}
