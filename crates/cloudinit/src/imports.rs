//! What user-data has at a URL: keys, the content of files, more user-data.
//!
//! Whoever reads the user-data only notes down what it names. The process that has the network fetches it,
//! and the next plan has it.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Import {
    pub url: String,
    pub purpose: Purpose,
    /// More lines of the request.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    Keys,
    File,
    UserData,
}

impl Import {
    pub fn new(url: impl Into<String>, purpose: Purpose) -> Self {
        Self {
            url: url.into(),
            purpose,
            headers: Vec::new(),
        }
    }
}

/// What was fetched, by its URL.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Imported {
    pub keys: BTreeMap<String, Vec<String>>,
    pub contents: BTreeMap<String, Content>,
}

impl Imported {
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.contents.is_empty()
    }

    pub fn has(&self, import: &Import) -> bool {
        match import.purpose {
            Purpose::Keys => self.keys.contains_key(&import.url),
            Purpose::File | Purpose::UserData => self.contents.contains_key(&import.url),
        }
    }

    /// Takes in what was fetched later.
    pub fn extend(&mut self, later: Self) {
        self.keys.extend(later.keys);
        self.contents.extend(later.contents);
    }

    /// Forgets the contents that nothing names any more. Keys are small, and stay.
    pub fn retain(&mut self, named: &[Import]) {
        self.contents
            .retain(|url, _| named.iter().any(|import| import.url == *url));
    }
}

/// Bytes that are shared by all who have a copy; base64 where they are written down.
#[derive(Clone, PartialEq, Eq)]
pub struct Content(Arc<[u8]>);

impl Content {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

/// It may be a secret.
impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
        Ok(bytes.into())
    }
}
