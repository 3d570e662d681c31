//! A publisher with TUF metadata, and hosts that follow it.

use std::collections::BTreeMap;
use std::fs;

use jiff::{Timestamp, ToSpan as _};
use release::keys::SigningKey;
use release::tuf::sign::{Holders, seal};
use release::tuf::{
    FileMeta, Root, Snapshot, TargetMeta, Targets, Timestamp as Stamp, target_name,
};

use crate::host::{Host, Release};
use crate::server::Server;

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

const ROOTS: [u8; 2] = [1, 2];
const TARGETS: u8 = 3;
const ONLINE: u8 = 4;
const STABLE: u8 = 5;

/// From here on the host believes what [`publish`] signs, and nothing else.
pub fn bake_root(host: &Host) {
    let holders = Holders {
        root: ROOTS.map(|n| key(n).verifying_key()).to_vec(),
        root_threshold: 2,
        targets: vec![key(TARGETS).verifying_key()],
        online: vec![key(ONLINE).verifying_key()],
    };
    let root = Root::of(1, Timestamp::now() + 9000.hours(), &holders);
    let signed = seal(&root, &ROOTS.map(key).each_ref()).unwrap();
    fs::create_dir_all(host.path("usr/lib/orlop/tuf")).unwrap();
    let bytes = signed.to_bytes().unwrap();
    fs::write(host.path("usr/lib/orlop/tuf/root.json"), bytes).unwrap();
}

/// Signs the releases into the channel `stable`, and gives the last one and the metadata to the server.
pub fn publish(server: &Server, releases: &[&Release]) {
    let (soon, far) = (48.hours(), 9000.hours());
    let (soon, far) = (Timestamp::now() + soon, Timestamp::now() + far);
    let version = releases.len() as u64;
    let channels = [("stable", vec![key(STABLE).verifying_key()])];
    let top = seal(&Targets::top(version, far, &channels), &[&key(TARGETS)]).unwrap();
    let target = |release: &&Release| {
        let name = target_name("stable", &release.manifest.version);
        (name, TargetMeta::of(&release.envelope, None))
    };
    let targets: BTreeMap<String, TargetMeta> = releases.iter().map(target).collect();
    let stable = seal(&Targets::of(version, far, targets), &[&key(STABLE)]).unwrap();
    let (top, stable) = (top.to_bytes().unwrap(), stable.to_bytes().unwrap());
    let meta = [
        ("targets.json".to_owned(), FileMeta::of(version, &top)),
        ("stable.json".to_owned(), FileMeta::of(version, &stable)),
    ];
    let online = key(ONLINE);
    let snapshot = seal(&Snapshot::of(version, soon, meta.into()), &[&online]).unwrap();
    let snapshot = snapshot.to_bytes().unwrap();
    let stamp = Stamp::of(version, soon, FileMeta::of(version, &snapshot));
    let stamp = seal(&stamp, &[&online]).unwrap().to_bytes().unwrap();
    server.with(|s| {
        for (file, bytes) in [
            ("timestamp.json".to_owned(), stamp),
            (format!("{version}.snapshot.json"), snapshot),
            (format!("{version}.targets.json"), top),
            (format!("{version}.stable.json"), stable),
        ] {
            s.files.insert(format!("tuf/{file}"), bytes);
        }
    });
    if let Some(last) = releases.last() {
        last.publish(server);
    }
}
