//! The client's workflow against a repository that is attacked, and python-tuf's verdict on the same
//! files.

#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

mod judge;
mod repository;

use jiff::{Timestamp as Time, ToSpan as _};
use release::tuf::{Code, Trusted, TufError};

use repository::{CHANNEL, Files, Repository, TARGET, key, now};

/// What a host keeps of the last time.
#[derive(Clone, Default)]
pub struct Seen {
    timestamp: Option<Vec<u8>>,
    snapshot: Option<Vec<u8>>,
}

/// A client that reads from a directory that is in memory, as one with a network would.
pub fn walk(
    files: &Files,
    first_root: &[u8],
    seen: &mut Seen,
    now: Time,
    allow_expired: bool,
) -> Result<Vec<u8>, TufError> {
    let get = |name: &str| files.get(name).cloned().unwrap_or_default();
    let mut trusted = Trusted::new(first_root, now, allow_expired)?;
    while let Some(root) = files.get(&trusted.next_root()) {
        trusted.update_root(root)?;
    }
    trusted.finish_root()?;
    let timestamp = get("timestamp.json");
    trusted.update_timestamp(&timestamp, seen.timestamp.as_deref())?;
    seen.timestamp = Some(timestamp);
    let snapshot = get(&trusted.snapshot_file().unwrap().0);
    trusted.update_snapshot(&snapshot, seen.snapshot.as_deref())?;
    seen.snapshot = Some(snapshot);
    trusted.update_targets(&get(&trusted.targets_file("targets").unwrap().0))?;
    let (name, _) = trusted
        .targets_file(CHANNEL)
        .ok_or_else(|| TufError::NoTarget("the snapshot names no such channel".into()))?;
    let target = trusted.target(CHANNEL, &get(&name), TARGET)?;
    let content = get(TARGET);
    target.check(TARGET, &content)?;
    Ok(content)
}

fn verdict(files: &Files, seen: &mut Seen) -> Result<Vec<u8>, Code> {
    let root = Repository::new().build()["1.root.json"].clone();
    walk(files, &root, seen, now(), false).map_err(|e| e.code())
}

#[test]
fn a_good_repository_leads_to_its_target() {
    let files = Repository::new().build();
    let mut seen = Seen::default();
    assert_eq!(verdict(&files, &mut seen).unwrap(), b"the manifest");
    // Again, and newer.
    assert!(verdict(&files, &mut seen).is_ok());
    let newer = Repository {
        version: 2,
        content: b"a newer one".to_vec(),
        ..Repository::new()
    };
    assert_eq!(verdict(&newer.build(), &mut seen).unwrap(), b"a newer one");
}

/// Every attack has a code of its own, and what was believed before stays.
#[test]
fn attacks_are_told_apart() {
    for attack in repository::attacks() {
        let mut seen = Seen::default();
        // The host saw version 2 last.
        let two = Repository {
            version: 2,
            ..Repository::new()
        };
        verdict(&two.build(), &mut seen).unwrap();
        let got = verdict(&attack.files, &mut seen);
        assert_eq!(got, Err(attack.code), "{}", attack.name);
    }
}

#[test]
fn expired_metadata_is_for_who_asks_for_it() {
    let files = Repository {
        expires: now() - 1.hour(),
        ..Repository::new()
    }
    .build();
    let root = &files["1.root.json"];
    let strict = walk(&files, root, &mut Seen::default(), now(), false).unwrap_err();
    assert_eq!(strict.code(), Code::Expired);
    assert!(walk(&files, root, &mut Seen::default(), now(), true).is_ok());
}

/// Two of three keys replace the third, and the host follows; then also the online key, after which
/// what the old one signed counts for nothing.
#[test]
fn keys_are_rotated() {
    let first = Repository::new();
    let one = first.build();
    let second = Repository {
        root_version: 2,
        root_keys: vec![key(1), key(2), key(9)],
        online: key(10),
        version: 2,
        ..Repository::new()
    };
    let mut files = second.build();
    files.insert("1.root.json".into(), one["1.root.json"].clone());
    files.insert(
        "2.root.json".into(),
        second.root_signed_by(&[key(1), key(2)]),
    );
    assert!(verdict(&files, &mut Seen::default()).is_ok());

    // One of the old is not enough, and neither are two that the old root does not know.
    for keys in [vec![key(1)], vec![key(8), key(9)], vec![key(1), key(9)]] {
        files.insert("2.root.json".into(), second.root_signed_by(&keys));
        let got = verdict(&files, &mut Seen::default());
        assert_eq!(got, Err(Code::BelowThreshold), "{} keys", keys.len());
    }
}

#[test]
fn a_channel_speaks_for_itself_alone() {
    let other = Repository {
        target: "beta/manifest.json".into(),
        ..Repository::new()
    };
    let got = verdict(&other.build(), &mut Seen::default());
    assert_eq!(got, Err(Code::NoTarget));
}
