//! What the fuzz targets of `fuzz/update` start from and have found, once more with every test, and
//! each of it cut off and changed at some places. `ORLOP_WRITE_SEEDS=1` writes what is made here.

#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

#[path = "../../../fuzz/update/src/lib.rs"]
mod targets;

use std::fs;
use std::io::{Cursor, Write as _};
use std::path::PathBuf;

use release::dsse::Envelope;
use release::keys::SigningKey;
use release::omaha::{APP_ID, AppResponse, Offer, Response, UpdateCheck};
use release::{Compression, File, Manifest, Payload, Sha256, Usr};

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 5] = [
    ("omaha", targets::omaha),
    ("manifest", targets::manifest),
    ("tuf", targets::tuf),
    ("delta", targets::delta),
    ("gpt", targets::gpt),
];

fn seeds() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/update/seeds")
}

fn omaha() -> Vec<u8> {
    let app = AppResponse {
        app_id: APP_ID.into(),
        status: "ok".into(),
        update_check: Some(UpdateCheck::Offer(Offer {
            codebases: vec!["http://one/2/".into(), "https://two/2/".into()],
            version: "2".parse().unwrap(),
            packages: Vec::new(),
        })),
        ping: true,
        events: 2,
    };
    let response = Response {
        daystart_seconds: 3,
        apps: vec![app],
    };
    response.to_xml().into_bytes()
}

fn manifest() -> Vec<u8> {
    let file = |name: &str| File {
        name: name.parse().unwrap(),
        size: 100,
        sha256: Sha256::of(name),
    };
    let manifest = Manifest {
        format: Manifest::FORMAT,
        version: "2".parse().unwrap(),
        epoch: 1,
        minimum_source_version: Some("1".parse().unwrap()),
        architecture: "x86-64".into(),
        created: 7,
        usr: Usr {
            root_hash: Sha256::of("usr"),
            size: 4096,
            payload: Payload {
                file: file("usr.erofs.zst"),
                compression: Compression::Zstd,
            },
            index: Some(file("usr.index")),
        },
        uki: file("uki.efi"),
        kernel: None,
        deltas: Vec::new(),
        extensions: Vec::new(),
        sbom: Some(file("sbom.spdx.json")),
    };
    // The key that the target believes.
    let key = SigningKey::from_bytes(&[7; 32]);
    Envelope::sign(&manifest, &key).unwrap().to_json().unwrap()
}

/// From zeros, as the target has them, to something that is partly zeros.
fn delta() -> Vec<u8> {
    let on_disk = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    };
    let names = delta::make::Names {
        source: [0; 32],
        target: [0; 32],
    };
    let options = delta::make::Options {
        workers: 1,
        segment_size: 16 << 10,
        window_size: 64 << 10,
    };
    let mut new = vec![0; 40 << 10];
    for (i, byte) in new.iter_mut().enumerate().skip(9_000).take(12_000) {
        *byte = u8::try_from(i * i % 251).unwrap();
    }
    let mut out = Cursor::new(Vec::new());
    let (old, new) = (on_disk(&[0; 32 << 10]), on_disk(&new));
    delta::make::make(&old, &new, names, &mut out, options, &|_, _| ()).unwrap();
    out.into_inner()
}

/// The form of a root, with a signature by nobody.
const TUF_ROOT: &str = r#"{"signed":{"_type":"root","spec_version":"1.0.0","version":1,"expires":"2036-01-01T00:00:00Z","consistent_snapshot":true,"keys":{"aa":{"keytype":"ed25519","scheme":"ed25519","keyval":{"public":"0101010101010101010101010101010101010101010101010101010101010101"}}},"roles":{"root":{"keyids":["aa"],"threshold":1},"targets":{"keyids":["aa"],"threshold":1},"snapshot":{"keyids":["aa"],"threshold":1},"timestamp":{"keyids":["aa"],"threshold":1}}},"signatures":[{"keyid":"aa","sig":"00"}]}"#;

fn gpt() -> Vec<u8> {
    let disk = targets::disk();
    let len = disk.len();
    [&disk[..targets::TABLE], &disk[len - targets::TABLE..]].concat()
}

#[test]
fn seeds_and_what_is_near_them() {
    let made: [(&str, Vec<u8>); 5] = [
        ("tuf/root", TUF_ROOT.as_bytes().to_vec()),
        ("omaha/offer", omaha()),
        ("manifest/signed", manifest()),
        ("delta/small", delta()),
        ("gpt/two-slots", gpt()),
    ];
    if std::env::var_os("ORLOP_WRITE_SEEDS").is_some() {
        for (name, bytes) in &made {
            let path = seeds().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
    let mut runs = 0;
    for (target, run) in TARGETS {
        let stored = fs::read_dir(seeds().join(target)).into_iter().flatten();
        let stored = stored.map(|entry| fs::read(entry.unwrap().path()).unwrap());
        let fresh = made
            .iter()
            .filter(|(name, _)| name.split('/').next() == Some(target))
            .map(|(_, bytes)| bytes.clone());
        let all: Vec<Vec<u8>> = stored.chain(fresh).collect();
        assert!(!all.is_empty(), "fuzz/update/seeds/{target} is empty");
        // A disk is large, so fewer of them.
        let changes = if target == "gpt" { 40 } else { 200 };
        for seed in all {
            run(&seed);
            for i in 0..changes {
                let at = seed.len() * i / changes;
                run(&seed[..at]);
                let mut changed = seed.clone();
                if let Some(byte) = changed.get_mut(at) {
                    *byte ^= 1 << (i % 8);
                }
                run(&changed);
                runs += 2;
            }
        }
    }
    println!("{runs} runs");
}
