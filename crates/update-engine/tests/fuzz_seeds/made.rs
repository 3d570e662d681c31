//! What the targets start from: what our own tools make, and some of it by hand.

use std::io::{Cursor, Write as _};

use release::dsse::Envelope;
use release::keys::SigningKey;
use release::omaha::{APP_ID, AppResponse, Offer, Response, UpdateCheck};
use release::tuf::sign::{Holders, seal};
use release::tuf::{FileMeta, Root, Signed, Snapshot, TargetMeta, Targets, Timestamp};
use release::{Compression, File, Manifest, Payload, Sha256, Usr};

use crate::targets;

/// The name of each seed, with its target's, and what is in it.
pub fn all() -> Vec<(String, Vec<u8>)> {
    let mut made: Vec<(String, Vec<u8>)> = [
        ("tuf/root", TUF_ROOT.as_bytes().to_vec()),
        ("tuf/signed", tuf(false)),
        ("tuf/sparse", tuf(true)),
        ("omaha/offer", omaha()),
        ("manifest/signed", manifest()),
        ("manifest/plain", serde_json::to_vec(&release()).unwrap()),
        ("gpt/two-slots", gpt()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into();
    made.extend(deltas());
    made.extend(parts());
    made
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

fn release() -> Manifest {
    let file = |name: &str| File {
        name: name.parse().unwrap(),
        size: 100,
        sha256: Sha256::of(name),
    };
    Manifest {
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
    }
}

fn manifest() -> Vec<u8> {
    // The key that the target believes.
    let key = SigningKey::from_bytes(&[7; 32]);
    Envelope::sign(&release(), &key).unwrap().to_json().unwrap()
}

/// Segments that are made in one way each.
fn ways() -> [(&'static str, Vec<u8>); 4] {
    let from = |at: usize, len: usize| targets::OLD[at..at + len].to_vec();
    let block = delta::BLOCK;
    // Numbers that grew, as addresses do: that is what bsdiff is for.
    let mut moved = from(5 * block, 2 * block);
    for byte in moved.iter_mut().step_by(24) {
        *byte = byte.wrapping_add(1);
    }
    // What is left out and turned round finds zstd in its window.
    let pieces = [from(70_003, 900), from(66_001, 700), from(69_001, 1_100)];
    let text = "what was nowhere before\n".repeat(100);
    [
        (
            "copy",
            [from(9 * block, block), from(3 * block, 2 * block)].concat(),
        ),
        ("bsdiff", [from(block, block), moved].concat()),
        ("zstd", pieces.concat()),
        ("raw", text.into_bytes()),
    ]
}

/// From the old image that the targets have.
fn delta(new: &[u8]) -> (delta::make::Made, Vec<u8>) {
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
        segment_size: 12 << 10,
        window_size: targets::WINDOW,
    };
    let mut out = Cursor::new(Vec::new());
    let (old, new) = (on_disk(&targets::OLD), on_disk(new));
    let made = delta::make::make(&old, &new, names, &mut out, options, &|_, _| ()).unwrap();
    (made, out.into_inner())
}

fn deltas() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut all = Vec::new();
    for (way, new) in ways() {
        let (made, file) = delta(&new);
        let want = match way {
            "copy" => (1, 0, 0),
            "bsdiff" => (0, 1, 0),
            _ => (0, 0, 1),
        };
        assert_eq!((made.copied, made.bsdiff, made.zstd), want, "{way}");
        // Behind the header and an index of one.
        let payload = &file[136 + 52..];
        let len = u16::try_from(new.len() - 1).unwrap().to_le_bytes();
        seeds.push((format!("segment/{way}"), [&len, payload].concat()));
        seeds.push((format!("delta/{way}"), file));
        all.extend(new);
        all.resize(all.len().next_multiple_of(12 << 10), 0);
    }
    seeds.push(("delta/small".into(), delta(&all).1));
    seeds
}

/// By hand, see the target: what would be packed, as it is.
fn parts() -> Vec<(String, Vec<u8>)> {
    // One copy: block 0 of the segment is block 3 of the old image. One window: blocks 2 and 3.
    let (copy, window) = ([1, 0, 1, 6], [1, 4, 2]);
    let plan = [&copy[..], &window].concat();
    let text = b"what is not in the old image";
    // Add 8 bytes to the old ones, take 3, go back by 4; add 4 bytes, take none.
    let control = [8, 3, 7, 4, 0, 0];
    let bsdiff = [
        &[2, 1, 7, 6, 3][..],
        &plan,
        &control,
        b"new",
        &[0, 1, 2, 3, 4, 5, 6, 7, 9, 9, 9, 9],
    ];
    [
        ("copy", [&[0, 1, 5, 0, 0][..], &copy, &[0]].concat()),
        ("raw", [&[1, 0, 2, 0, 0, 0, 0][..], text].concat()),
        ("zstd", [&[1, 1, 7, 0, 0][..], &plan, text].concat()),
        ("bsdiff", bsdiff.concat()),
    ]
    .map(|(name, bytes)| (format!("parts/{name}"), bytes))
    .into()
}

/// All files of a repository: see the target. With what our tools put into them, or with as little as possible.
fn tuf(sparse: bool) -> Vec<u8> {
    let (one, two) = (
        SigningKey::from_bytes(&[1; 32]),
        SigningKey::from_bytes(&[2; 32]),
    );
    let public = [&one, &two].map(SigningKey::verifying_key);
    let expires: jiff::Timestamp = "2036-01-01T00:00:00Z".parse().unwrap();
    // The target signs what is not signed.
    let signed = |value: Signed| match sparse {
        true => serde_json::to_vec(&value).unwrap(),
        false => value.to_bytes().unwrap(),
    };
    let keys: &[&SigningKey] = if sparse { &[] } else { &[&one, &two] };
    let holders = Holders {
        root: public[..if sparse { 1 } else { 2 }].to_vec(),
        root_threshold: if sparse { 1 } else { 2 },
        targets: vec![public[0]],
        online: vec![public[0]],
    };
    let root = |version| {
        let root = Root::of(version, expires, &holders);
        signed(seal(&root, keys).unwrap())
    };
    let meta = |version, bytes: &[u8]| match sparse {
        true => FileMeta {
            version,
            length: None,
            hashes: None,
        },
        false => FileMeta::of(version, bytes),
    };
    let top = Targets::top(1, expires, &[("stable", vec![public[0]])]);
    let top = signed(seal(&top, keys).unwrap());
    let target = TargetMeta::of(b"the manifest", None);
    let channel = Targets::of(1, expires, [("stable/1.json".to_owned(), target)].into());
    let channel = signed(seal(&channel, keys).unwrap());
    let snapshot = |version| {
        let named = [
            ("targets.json".to_owned(), meta(1, &top)),
            ("stable.json".to_owned(), meta(1, &channel)),
        ];
        let snapshot = Snapshot::of(version, expires, named.into());
        signed(seal(&snapshot, keys).unwrap())
    };
    let timestamp = |version, snapshot: &[u8]| {
        let timestamp = Timestamp::of(version, expires, meta(version, snapshot));
        signed(seal(&timestamp, keys).unwrap())
    };
    let (old, new) = (snapshot(1), snapshot(2));
    let files = [
        root(1),
        root(2),
        timestamp(1, &old),
        timestamp(2, &new),
        old,
        new,
        top,
        channel,
    ];
    files.join(&0)
}

/// The form of a root, with a signature by nobody.
const TUF_ROOT: &str = r#"{"signed":{"_type":"root","spec_version":"1.0.0","version":1,"expires":"2036-01-01T00:00:00Z","consistent_snapshot":true,"keys":{"aa":{"keytype":"ed25519","scheme":"ed25519","keyval":{"public":"0101010101010101010101010101010101010101010101010101010101010101"}}},"roles":{"root":{"keyids":["aa"],"threshold":1},"targets":{"keyids":["aa"],"threshold":1},"snapshot":{"keyids":["aa"],"threshold":1},"timestamp":{"keyids":["aa"],"threshold":1}}},"signatures":[{"keyid":"aa","sig":"00"}]}"#;

fn gpt() -> Vec<u8> {
    let disk = targets::disk();
    let len = disk.len();
    [&disk[..targets::TABLE], &disk[len - targets::TABLE..]].concat()
}
