//! A release of Flatcar's, for Flatcar's own hosts. It is handed on as it is: those hosts believe the
//! signature inside the payload, so nothing of ours signs it, and no host of ours is offered it.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use serde::{Deserialize, Serialize};

use crate::{File, Version};

/// How every payload for update_engine begins.
pub const PAYLOAD_MAGIC: &[u8; 4] = b"CrAU";

/// What is published beside the files; `{"flatcar": …}` as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlatcarRelease {
    pub version: Version,
    /// `x86-64` or `arm64`.
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_source_version: Option<Version>,
    /// A full payload, as Flatcar signed it.
    pub payload: File,
    /// Older clients want it.
    pub payload_sha1: Sha1,
    /// System extensions, which hosts fetch as far as they use them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extensions: Vec<File>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlatcarError {
    #[error("the architecture is {0:?}: Flatcar has x86-64 and arm64")]
    Architecture(String),
    #[error("the file name {0:?} is used twice")]
    DuplicateFile(String),
    #[error("the payload is empty")]
    Empty,
}

impl FlatcarRelease {
    pub fn files(&self) -> impl Iterator<Item = &File> {
        std::iter::once(&self.payload).chain(&self.extensions)
    }

    /// Rules that the types cannot hold.
    pub fn check(&self) -> Result<(), FlatcarError> {
        if !["x86-64", "arm64"].contains(&self.architecture.as_str()) {
            return Err(FlatcarError::Architecture(self.architecture.clone()));
        }
        if self.payload.size == 0 {
            return Err(FlatcarError::Empty);
        }
        let mut names: Vec<&str> = self.files().map(|file| file.name.as_str()).collect();
        names.push(crate::MANIFEST_FILE);
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(FlatcarError::DuplicateFile(pair[0].into())),
            None => Ok(()),
        }
    }
}

/// A SHA-1 digest, 40 lowercase hex digits in text. Nothing is trusted for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha1(pub [u8; 20]);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a SHA-1 digest: 40 hex digits")]
pub struct Sha1Error(String);

impl Sha1 {
    /// As a package's `hash` has it.
    pub fn to_base64(self) -> String {
        base64::engine::general_purpose::STANDARD.encode(self.0)
    }
}

impl fmt::Display for Sha1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Sha1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha1({self})")
    }
}

impl FromStr for Sha1 {
    type Err = Sha1Error;

    fn from_str(text: &str) -> Result<Self, Sha1Error> {
        let mut digest = [0; 20];
        match hex::decode_to_slice(text, &mut digest) {
            Ok(()) => Ok(Self(digest)),
            Err(_) => Err(Sha1Error(text.chars().take(80).collect())),
        }
    }
}

crate::serde_as_text!(Sha1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sha256;

    fn example() -> FlatcarRelease {
        let file = |name: &str| File {
            name: name.parse().unwrap(),
            size: 1,
            sha256: Sha256::of(name),
        };
        FlatcarRelease {
            version: "4152.2.0".parse().unwrap(),
            architecture: "x86-64".into(),
            minimum_source_version: None,
            payload: file("update.gz"),
            payload_sha1: "da39a3ee5e6b4b0d3255bfef95601890afd80709".parse().unwrap(),
            extensions: vec![file("oem-azure.gz")],
        }
    }

    fn check(change: impl FnOnce(&mut FlatcarRelease), expect: &str) {
        let mut release = example();
        change(&mut release);
        let got = release
            .check()
            .map_or_else(|error| error.to_string(), |()| "good".into());
        assert_eq!(got, expect);
    }

    #[test]
    fn nonsense_is_named() {
        check(|_| (), "good");
        check(
            |r| r.architecture = "riscv64".into(),
            r#"the architecture is "riscv64": Flatcar has x86-64 and arm64"#,
        );
        check(|r| r.payload.size = 0, "the payload is empty");
        check(
            |r| r.extensions[0].name = r.payload.name.clone(),
            r#"the file name "update.gz" is used twice"#,
        );
        check(
            |r| r.payload.name = crate::MANIFEST_FILE.parse().unwrap(),
            r#"the file name "manifest.dsse.json" is used twice"#,
        );
    }

    #[test]
    fn its_json_is_read_back() {
        let json = serde_json::to_string(&example()).unwrap();
        assert_eq!(
            serde_json::from_str::<FlatcarRelease>(&json).unwrap(),
            example()
        );
        assert_eq!(
            example().payload_sha1.to_base64(),
            "2jmj7l5rSw0yVb/vlWAYkK/YBwk="
        );
        assert!("da39".parse::<Sha1>().is_err());
    }
}
