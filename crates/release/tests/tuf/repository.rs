//! A repository, and what can be wrong with it.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use jiff::{Timestamp as Time, ToSpan as _};
use release::tuf::sign::{Holders, add, seal};
use release::tuf::{Code, FileMeta, Root, Signed, Snapshot, TargetMeta, Targets, Timestamp};

pub type Files = BTreeMap<String, Vec<u8>>;

pub const CHANNEL: &str = "stable";
pub const TARGET: &str = "stable/manifest.json";

pub fn now() -> Time {
    // Also python-tuf's clock must find it valid.
    Time::now()
}

pub fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

pub struct Repository {
    pub root_version: u64,
    pub root_keys: Vec<SigningKey>,
    pub targets: SigningKey,
    pub channel: SigningKey,
    pub online: SigningKey,
    /// Of all but the root.
    pub version: u64,
    pub expires: Time,
    pub target: String,
    pub content: Vec<u8>,
}

impl Repository {
    pub fn new() -> Self {
        Self {
            root_version: 1,
            root_keys: vec![key(1), key(2), key(3)],
            targets: key(4),
            channel: key(5),
            online: key(6),
            version: 1,
            expires: now() + 240.hours(),
            target: TARGET.into(),
            content: b"the manifest".to_vec(),
        }
    }

    pub fn root(&self) -> Root {
        let public = |keys: &[SigningKey]| keys.iter().map(|k| k.verifying_key()).collect();
        let holders = Holders {
            root: public(&self.root_keys),
            root_threshold: 2,
            targets: vec![self.targets.verifying_key()],
            online: vec![self.online.verifying_key()],
        };
        Root::of(self.root_version, now() + 24_000.hours(), &holders)
    }

    pub fn root_signed_by(&self, keys: &[SigningKey]) -> Vec<u8> {
        let keys: Vec<&SigningKey> = keys.iter().collect();
        seal(&self.root(), &keys).unwrap().to_bytes().unwrap()
    }

    pub fn channel_targets(&self) -> Vec<u8> {
        let targets = [(self.target.clone(), TargetMeta::of(&self.content, None))];
        let targets = Targets::of(self.version, self.expires, targets.into());
        seal(&targets, &[&self.channel])
            .unwrap()
            .to_bytes()
            .unwrap()
    }

    pub fn top(&self) -> Vec<u8> {
        let channels = [(CHANNEL, vec![self.channel.verifying_key()])];
        let top = Targets::top(self.version, self.expires, &channels);
        seal(&top, &[&self.targets]).unwrap().to_bytes().unwrap()
    }

    pub fn build(&self) -> Files {
        self.assemble(self.top(), self.channel_targets())
    }

    /// With a snapshot and a timestamp of these targets.
    pub fn assemble(&self, top: Vec<u8>, channel: Vec<u8>) -> Files {
        let version = self.version;
        let meta = [
            ("targets.json".to_owned(), FileMeta::of(version, &top)),
            (format!("{CHANNEL}.json"), FileMeta::of(version, &channel)),
        ];
        let snapshot = Snapshot::of(version, self.expires, meta.into());
        let snapshot = seal(&snapshot, &[&self.online])
            .unwrap()
            .to_bytes()
            .unwrap();
        let timestamp = Timestamp::of(version, self.expires, FileMeta::of(version, &snapshot));
        let timestamp = seal(&timestamp, &[&self.online])
            .unwrap()
            .to_bytes()
            .unwrap();
        let root = self.root_signed_by(&self.root_keys[..2]);
        Files::from([
            (format!("{}.root.json", self.root_version), root),
            ("timestamp.json".into(), timestamp),
            (format!("{version}.snapshot.json"), snapshot),
            (format!("{version}.targets.json"), top),
            (format!("{version}.{CHANNEL}.json"), channel),
            (self.target.clone(), self.content.clone()),
        ])
    }
}

fn edited(bytes: &[u8], edit: impl FnOnce(&mut Signed)) -> Vec<u8> {
    let mut signed: Signed = serde_json::from_slice(bytes).unwrap();
    edit(&mut signed);
    signed.to_bytes().unwrap()
}

pub struct Attack {
    pub name: &'static str,
    pub files: Files,
    /// What we call it.
    pub code: Code,
    /// What python-tuf calls it.
    pub exception: &'static str,
}

/// Each against a host that saw version 2 and has the first root.
pub fn attacks() -> Vec<Attack> {
    let three = || Repository {
        version: 3,
        ..Repository::new()
    };
    let mut attacks = Vec::new();
    let mut attack = |name, files, code, exception| {
        attacks.push(Attack {
            name,
            files,
            code,
            exception,
        });
    };

    attack(
        "replay",
        Repository::new().build(),
        Code::Rollback,
        "BadVersionNumberError",
    );

    let old = Repository {
        expires: now() - 1.hour(),
        ..three()
    };
    attack("freeze", old.build(), Code::Expired, "ExpiredMetadataError");

    let mut files = three().build();
    let other = Repository {
        content: b"another".to_vec(),
        ..three()
    }
    .channel_targets();
    files.insert("3.stable.json".into(), other);
    attack(
        "mix and match",
        files,
        Code::MixAndMatch,
        "LengthOrHashMismatchError",
    );

    let mut files = three().build();
    let two = Repository {
        version: 2,
        ..Repository::new()
    }
    .build();
    files.insert("3.snapshot.json".into(), two["2.snapshot.json"].clone());
    attack(
        "an older snapshot",
        files,
        Code::MixAndMatch,
        "LengthOrHashMismatchError",
    );

    let stranger = Repository {
        online: key(66),
        ..three()
    };
    let mut files = stranger.build();
    files.insert("1.root.json".into(), three().build()["1.root.json"].clone());
    attack(
        "signed by a stranger",
        files,
        Code::BelowThreshold,
        "UnsignedMetadataError",
    );

    let mut files = three().build();
    let root = Repository {
        root_version: 2,
        root_keys: vec![key(66), key(67), key(68)],
        ..three()
    };
    let root = root.root_signed_by(&[key(66), key(67), key(1)]);
    files.insert("2.root.json".into(), root);
    attack(
        "a root below its threshold",
        files,
        Code::BelowThreshold,
        "UnsignedMetadataError",
    );

    let mut files = three().build();
    let second = Repository {
        root_version: 2,
        ..three()
    };
    let root = edited(&second.root_signed_by(&[key(1)]), |root| {
        // The same signature under two names is one signature.
        let mut again = root.signatures[0].clone();
        again.keyid = root.signed["roles"]["root"]["keyids"][1]
            .as_str()
            .unwrap()
            .into();
        root.signatures.push(again);
    });
    files.insert("2.root.json".into(), root);
    attack(
        "one signature twice",
        files,
        Code::BelowThreshold,
        "UnsignedMetadataError",
    );

    let mut files = three().build();
    let wrong = edited(&files["3.snapshot.json"].clone(), |_| ());
    files.insert("timestamp.json".into(), wrong);
    attack(
        "a snapshot as timestamp",
        files,
        Code::WrongRole,
        "RepositoryError",
    );

    let mut files = three().build();
    let mut endless = files["timestamp.json"].clone();
    endless.resize(1 << 20, b' ');
    files.insert("timestamp.json".into(), endless);
    attack(
        "endless data",
        files,
        Code::Endless,
        "DownloadLengthMismatchError",
    );

    let mut files = three().build();
    // As long as it should be: the digest alone tells.
    files.insert(TARGET.into(), b"the forgery.".to_vec());
    attack(
        "another target",
        files,
        Code::WrongTarget,
        "LengthOrHashMismatchError",
    );

    let mut files = three().build();
    let changed = edited(&files["timestamp.json"].clone(), |it| {
        it.signed["version"] = 9.into()
    });
    files.insert("timestamp.json".into(), changed);
    attack(
        "a changed file",
        files,
        Code::BelowThreshold,
        "UnsignedMetadataError",
    );

    // The channel's role signs for targets of its own, but not as the top.
    let usurper = Repository {
        targets: key(5),
        ..three()
    };
    let mut files = usurper.build();
    files.insert("1.root.json".into(), three().build()["1.root.json"].clone());
    attack(
        "a channel as the top",
        files,
        Code::BelowThreshold,
        "UnsignedMetadataError",
    );

    let mut files = three().build();
    files.insert("timestamp.json".into(), b"{}".to_vec());
    attack(
        "something else",
        files,
        Code::Malformed,
        "DeserializationError",
    );

    let mut root = serde_json::from_slice::<Signed>(&three().root_signed_by(&[])).unwrap();
    root.signed["version"] = 3.into();
    add(&mut root, &key(1)).unwrap();
    add(&mut root, &key(2)).unwrap();
    let mut files = three().build();
    files.insert("2.root.json".into(), root.to_bytes().unwrap());
    attack(
        "a root that skips a version",
        files,
        Code::MixAndMatch,
        "BadVersionNumberError",
    );

    attacks
}
