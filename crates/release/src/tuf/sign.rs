//! Making metadata.

use std::collections::BTreeMap;

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use jiff::Timestamp as Time;
use serde::Serialize;

use super::canonical;
use super::metadata::{
    Delegation, Delegations, FileMeta, Hashes, Key, KeyValue, Kind, Role, Root, Signature, Signed,
    Snapshot, TargetMeta, Targets, Timestamp,
};
use crate::Sha256;

const SPEC_VERSION: &str = "1.0.31";

#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("the metadata cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    #[error("the metadata has numbers that are no integers, so it cannot be signed")]
    NotCanonical,
}

/// A public key as metadata lists it, and its name: the digest of the former.
pub fn key(public: &VerifyingKey) -> (String, Key) {
    let public = hex::encode(public.to_bytes());
    // Canonical by construction.
    let text =
        format!(r#"{{"keytype":"ed25519","keyval":{{"public":"{public}"}},"scheme":"ed25519"}}"#);
    let key = Key {
        keytype: "ed25519".into(),
        scheme: "ed25519".into(),
        keyval: KeyValue { public },
    };
    (Sha256::of(text).to_string(), key)
}

/// Signs a piece of metadata with each of the keys.
pub fn seal(value: &impl Serialize, keys: &[&SigningKey]) -> Result<Signed, SignError> {
    let mut signed = Signed {
        signatures: Vec::new(),
        signed: serde_json::to_value(value)?,
    };
    for key in keys {
        add(&mut signed, key)?;
    }
    Ok(signed)
}

/// One more signature (or the same one again) on what is signed already: for keys that never meet.
pub fn add(signed: &mut Signed, with: &SigningKey) -> Result<(), SignError> {
    let message = canonical::bytes(&signed.signed).ok_or(SignError::NotCanonical)?;
    let (keyid, _) = key(&with.verifying_key());
    signed.signatures.retain(|s| s.keyid != keyid);
    signed.signatures.push(Signature {
        keyid,
        sig: hex::encode(with.sign(&message).to_bytes()),
    });
    Ok(())
}

impl Signed {
    /// The file's bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, SignError> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

fn role(keys: &[VerifyingKey], threshold: u32, listed: &mut BTreeMap<String, Key>) -> Role {
    let ids = keys.iter().map(|public| {
        let (id, key) = key(public);
        listed.insert(id.clone(), key);
        id
    });
    Role {
        keyids: ids.collect(),
        threshold,
    }
}

/// The specification's form of a time has no fractions.
fn whole_seconds(time: Time) -> Time {
    Time::from_second(time.as_second()).unwrap_or(time)
}

/// Who holds which role.
#[derive(Clone, Debug)]
pub struct Holders {
    pub root: Vec<VerifyingKey>,
    pub root_threshold: u32,
    pub targets: Vec<VerifyingKey>,
    /// For snapshot and timestamp.
    pub online: Vec<VerifyingKey>,
}

impl Root {
    pub fn of(version: u64, expires: Time, holders: &Holders) -> Self {
        let mut keys = BTreeMap::new();
        let roles = [
            (
                "root",
                role(&holders.root, holders.root_threshold, &mut keys),
            ),
            ("targets", role(&holders.targets, 1, &mut keys)),
            ("snapshot", role(&holders.online, 1, &mut keys)),
            ("timestamp", role(&holders.online, 1, &mut keys)),
        ];
        Self {
            kind: Kind::Root,
            spec_version: SPEC_VERSION.into(),
            version,
            expires: whole_seconds(expires),
            consistent_snapshot: true,
            keys,
            roles: roles.map(|(name, role)| (name.to_owned(), role)).into(),
        }
    }
}

impl Targets {
    /// The top: no targets of its own, but who speaks for which channel.
    pub fn top(version: u64, expires: Time, channels: &[(&str, Vec<VerifyingKey>)]) -> Self {
        let mut keys = BTreeMap::new();
        let roles = channels.iter().map(|(channel, holders)| {
            let role = role(holders, 1, &mut keys);
            Delegation {
                name: (*channel).to_owned(),
                keyids: role.keyids,
                threshold: role.threshold,
                terminating: true,
                paths: vec![format!("{channel}/*")],
            }
        });
        let roles = roles.collect();
        Self {
            delegations: Some(Delegations { keys, roles }),
            ..Self::of(version, expires, BTreeMap::new())
        }
    }

    /// A channel's.
    pub fn of(version: u64, expires: Time, targets: BTreeMap<String, TargetMeta>) -> Self {
        Self {
            kind: Kind::Targets,
            spec_version: SPEC_VERSION.into(),
            version,
            expires: whole_seconds(expires),
            targets,
            delegations: None,
        }
    }
}

impl TargetMeta {
    pub fn of(bytes: &[u8], custom: Option<serde_json::Value>) -> Self {
        Self {
            length: bytes.len() as u64,
            hashes: Hashes {
                sha256: Sha256::of(bytes),
            },
            custom,
        }
    }
}

impl FileMeta {
    pub fn of(version: u64, bytes: &[u8]) -> Self {
        Self {
            version,
            length: Some(bytes.len() as u64),
            hashes: Some(Hashes {
                sha256: Sha256::of(bytes),
            }),
        }
    }
}

impl Snapshot {
    pub fn of(version: u64, expires: Time, meta: BTreeMap<String, FileMeta>) -> Self {
        Self {
            kind: Kind::Snapshot,
            spec_version: SPEC_VERSION.into(),
            version,
            expires: whole_seconds(expires),
            meta,
        }
    }
}

impl Timestamp {
    pub fn of(version: u64, expires: Time, snapshot: FileMeta) -> Self {
        Self {
            kind: Kind::Timestamp,
            spec_version: SPEC_VERSION.into(),
            version,
            expires: whole_seconds(expires),
            meta: [("snapshot.json".to_owned(), snapshot)].into(),
        }
    }
}
