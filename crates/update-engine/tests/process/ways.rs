//! The ways to a release, from the smallest download up, on real processes.

use std::fs::{self, DirEntry};
use std::path::Path;

use disk::Slot;

use crate::host::{Host, Release, noise, wait_for};
use crate::server::{Mood, Server};

struct Scene {
    server: Server,
    host: Host,
    one: Release,
    two: Release,
}

impl Scene {
    /// A host that runs version 1, and a release 2 that `make` makes.
    fn new(make: impl FnOnce(&Release) -> Release) -> Self {
        let (server, one) = (Server::start(), Release::new("1"));
        let two = make(&one);
        let host = Host::new(&server, &[&one, &two]);
        two.publish(&server);
        Self {
            server,
            host,
            one,
            two,
        }
    }

    /// Updates; version 2 must be in slot b in the end. The files that were asked for.
    fn updated(&self) -> Vec<String> {
        let daemon = self.host.daemon();
        daemon.good().update().unwrap();
        self.is_there();
        let peak = daemon.peak_memory();
        assert!(peak < 16 * 1024, "{peak} KiB");
        self.asked()
    }

    fn is_there(&self) {
        assert!(self.host.is_intact(Slot::A, &self.one), "the running slot");
        assert!(self.host.is_intact(Slot::B, &self.two), "the new slot");
    }

    /// Without repetitions and ranges.
    fn asked(&self) -> Vec<String> {
        let requests = self.server.with(|s| s.requests.clone());
        let mut names: Vec<String> = requests
            .iter()
            .map(|r| r.split([' ', '/']).nth(2).unwrap().to_owned())
            .collect();
        names.dedup();
        names
    }

    /// Where the requests for a file began.
    fn asked_from(&self, file: &str) -> Vec<usize> {
        let requests = self.server.with(|s| s.requests.clone());
        let of = requests.iter().filter_map(|r| {
            let range = r.strip_prefix(&format!("GET {file} "))?;
            Some(range.split('-').next()?.parse().unwrap_or(0))
        });
        of.collect()
    }

    /// How long the delta of `/usr` is.
    fn delta(&self) -> usize {
        let delta = self.two.extra.iter();
        let mut delta = delta.filter(|(name, _)| name == "usr-from-1.delta");
        delta.next().unwrap().1.len()
    }

    fn sent(&self) -> usize {
        self.server.with(|s| s.sent)
    }

    /// What lies there of downloads, without the directories' names.
    fn downloaded(&self) -> Vec<String> {
        let list = |dir: &Path| -> Vec<DirEntry> {
            let entries = fs::read_dir(dir).into_iter().flatten();
            entries.map(Result::unwrap).collect()
        };
        let dirs = list(&self.host.path("var/lib/update-engine/download"));
        let files = dirs.iter().flat_map(|dir| list(&dir.path()));
        let mut names: Vec<_> = files
            .map(|file| file.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn with_delta(one: &Release) -> Release {
    one.next("2").with_delta(one, &one.usr, &one.uki)
}

const BY_DELTA: [&str; 3] = ["manifest.dsse.json", "uki-from-1.delta", "usr-from-1.delta"];
const BY_BLOCKS: [&str; 4] = [
    "manifest.dsse.json",
    "uki.efi",
    "usr.index",
    "usr.erofs.zst",
];

#[test]
fn a_delta_is_all_that_is_fetched() {
    let mut scene = Scene::new(with_delta);
    assert_eq!(scene.updated(), BY_DELTA);
    assert!(scene.sent() < 40_000, "{} bytes", scene.sent());
    assert_eq!(scene.host.boot(), Slot::B);
}

#[test]
fn from_another_version_only_what_is_not_here() {
    let two = |one: &Release| {
        let other = Release::new("0");
        one.next("2").with_delta(&other, &other.usr, &other.uki)
    };
    let scene = Scene::new(two);
    assert_eq!(scene.updated(), BY_BLOCKS);
    let (sent, whole) = (scene.sent(), scene.two.payload.len());
    assert!(
        sent > scene.two.uki.len() && sent < whole / 2,
        "{sent} of {whole}"
    );
    let requests = scene.server.with(|s| s.requests.clone());
    let parts = requests.iter().filter(|r| r.contains("usr.erofs.zst"));
    assert!(parts.clone().count() >= 2, "{requests:?}");
    assert!(
        parts
            .clone()
            .all(|r| !r.ends_with("all") && !r.ends_with('-')),
        "{requests:?}"
    );
}

#[test]
fn a_damaged_delta_is_fetched_again_from_where_it_is_damaged() {
    let scene = Scene::new(with_delta);
    let delta = scene.delta();
    let damage = Mood::Flip(delta - 100);
    scene.server.set_once(damage, "2/usr-from-1.delta");
    assert_eq!(scene.updated(), BY_DELTA);
    let from = scene.asked_from("2/usr-from-1.delta");
    assert!(from[0] == 0 && from[1] > 0 && from.len() == 2, "{from:?}");
    let usual = Scene::new(with_delta);
    usual.updated();
    assert_eq!(scene.sent(), usual.sent() + delta - from[1]);
}

/// Neither its header nor anything else that was not damaged helps here.
#[test]
fn a_delta_whose_server_damages_it_is_given_up() {
    for at in [20, 200, 5_000] {
        let scene = Scene::new(with_delta);
        let fault = move |request: &str| {
            let damaged = request.contains("usr-from-1.delta");
            damaged.then_some(Mood::Flip(at))
        };
        scene.server.with(|s| s.fault = Some(Box::new(fault)));
        assert_eq!(scene.updated(), [&BY_DELTA[..], &BY_BLOCKS[1..]].concat());
        let tries = scene.asked_from("2/usr-from-1.delta").len();
        assert_eq!(tries, 2, "byte {at}");
    }
}

#[test]
fn what_one_address_damages_the_next_one_repairs() {
    let scene = Scene::new(with_delta);
    let second = Server::start();
    scene.two.publish(&second);
    // Mirrors do not call it by the same name.
    second.with(|s| s.tag = Some("\"other\""));
    let fault = |request: &str| {
        let damaged = request.contains("usr-from-1.delta");
        damaged.then_some(Mood::Flip(10_000))
    };
    scene.server.with(|s| {
        s.more = vec![second.file_url("2/")];
        s.fault = Some(Box::new(fault));
    });
    assert_eq!(scene.updated(), BY_DELTA);
    let asked = second.with(|s| s.requests.clone());
    let from = asked[0].strip_prefix("GET 2/usr-from-1.delta ");
    assert!(from.is_some_and(|from| from != "all"), "{asked:?}");
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(second.with(|s| s.sent) < scene.delta());
}

/// What was left by another server is no reason to give up a way.
#[test]
fn a_mixture_is_fetched_once_more() {
    let scene = Scene::new(with_delta);
    scene.server.with(|s| s.tag = Some(""));
    let daemon = scene.host.daemon();
    daemon.good();
    // Before, what is here is not known to be of this release, and is removed.
    daemon.call("Check", serde_json::json!({})).unwrap();
    let dir = scene.host.path("var/lib/update-engine/download");
    let dir = dir.join(scene.two.id().to_string());
    std::fs::create_dir_all(&dir).unwrap();
    let files = ["uki-from-1.delta", "usr-from-1.delta"];
    for file in files {
        std::fs::write(dir.join(format!("{file}.part")), [7; 100]).unwrap();
    }
    daemon.update().unwrap();
    scene.is_there();
    for file in files {
        assert_eq!(scene.asked_from(&format!("2/{file}")), [100, 0]);
    }
}

/// Signed, and yet wrong: it was made from something else. The slot is half written by then.
#[test]
fn a_delta_that_leads_elsewhere_costs_a_larger_download() {
    let two = |one: &Release| {
        let two = one.next("2");
        let mut other = one.usr.clone();
        // There it finds what is new, so it copies it from there.
        other[500 * 4096..503 * 4096].copy_from_slice(&two.usr[100 * 4096..103 * 4096]);
        two.with_delta(one, &other, &one.uki)
    };
    let scene = Scene::new(two);
    assert_eq!(scene.updated(), [&BY_DELTA[..], &BY_BLOCKS[1..]].concat());
}

/// The same `/usr` can be booted by another UKI, one with another command line.
#[test]
fn another_kernel_is_noticed_before_the_first_write() {
    let two = |one: &Release| {
        let mut two = one.next("2").with_delta(one, &one.usr, &one.uki);
        let uki = two.manifest.deltas[0].uki.as_mut().unwrap();
        uki.from_sha256 = release::Sha256::of("another kernel");
        two.sign();
        two
    };
    let scene = Scene::new(two);
    assert_eq!(scene.updated(), [&BY_DELTA[..], &BY_BLOCKS[1..]].concat());
}

#[test]
fn what_the_server_lost_is_not_needed() {
    let scene = Scene::new(with_delta);
    scene.server.with(|s| {
        s.files.remove("2/usr-from-1.delta");
        s.files
            .insert("2/usr.index".into(), b"something else".to_vec());
    });
    let asked = scene.updated();
    assert_eq!(
        asked,
        [&BY_DELTA[..], &["uki.efi", "usr.index", "usr.erofs.zst"],].concat()
    );
    let requests = scene.server.with(|s| s.requests.clone());
    assert_eq!(requests.last().unwrap(), "GET 2/usr.erofs.zst all");
}

/// Nothing in common: fetching blocks would be fetching everything, in pieces.
#[test]
fn what_is_all_new_is_fetched_as_a_whole() {
    let two = |_: &Release| Release::new("77").next("2");
    let scene = Scene::new(two);
    scene.updated();
    let requests = scene.server.with(|s| s.requests.clone());
    assert_eq!(requests.last().unwrap(), "GET 2/usr.erofs.zst all");
}

#[test]
fn parts_are_not_fetched_twice_either() {
    let scene = Scene::new(|one| one.next("2"));
    let daemon = scene.host.daemon();
    daemon.good();
    scene.server.set(Mood::Truncate(70_000));
    // Each answer breaks off; what came is kept.
    daemon.update().unwrap();
    scene.is_there();
    let whole = Scene::new(|one| one.next("2"));
    whole.updated();
    assert_eq!(scene.sent(), whole.sent());
}

/// A server without ranges, or in front of it a proxy that drops them.
#[test]
fn without_ranges_it_is_the_whole_image() {
    let scene = Scene::new(|one| one.next("2"));
    scene.server.set(Mood::NoRanges);
    scene.updated();
    let requests = scene.server.with(|s| s.requests.clone());
    assert_eq!(requests.last().unwrap(), "GET 2/usr.erofs.zst all");
}

/// The writer takes a delta from nobody either.
#[test]
fn the_writer_checks_deltas_itself() {
    let scene = Scene::new(with_delta);
    scene.host.run(&["mark-good"]);
    let before = scene.host.disk_digest();
    let mut call = scene.two.call(&scene.host);
    let dir = scene.host.path("var/lib/update-engine/download/x");
    let put = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).unwrap();
    for (name, bytes) in &scene.two.extra {
        put(name, bytes);
    }
    let stage = |call: &serde_json::Value| {
        let mut writer = scene.host.writer();
        let replies = writer
            .call_more("io.orlop.UpdateWriter.Stage", call)
            .unwrap();
        replies.last().unwrap().map_err(|e| e.to_string())
    };
    call["way"] = "delta".into();
    call["usr"] = dir.join("usr-from-1.delta").to_str().into();
    call["uki"] = dir.join("uki-from-1.delta").to_str().into();
    let good = std::fs::read(dir.join("usr-from-1.delta")).unwrap();
    let mut bad = good.clone();
    bad[700] ^= 1;
    put("usr-from-1.delta", &bad);
    let error = stage(&call).unwrap_err();
    assert!(
        error.contains("has the SHA-256") && error.contains("Refused"),
        "{error}"
    );
    put("usr-from-1.delta", &good);

    // What was fetched for the blocks is signed by nobody: it is found out while writing.
    let mut blocks = call.clone();
    blocks["way"] = "blocks".into();
    blocks["index"] = dir.join("usr.index").to_str().into();
    blocks["uki"] = dir.join("uki.efi").to_str().into();
    blocks["usr"] = dir.join("fetched").to_str().into();
    put("usr.index", b"orlopIDX and so on");
    let error = stage(&blocks).unwrap_err();
    assert!(error.contains("Refused"), "{error}");
    assert_eq!(scene.host.disk_digest(), before, "{error}");
    for (name, bytes) in &scene.two.extra {
        put(name, bytes);
    }
    put("fetched", &noise("whatever", 100_000));
    let error = stage(&blocks).unwrap_err();
    assert!(error.contains("WayClosed"), "{error}");
    assert!(!scene.host.entry(Slot::B).is_some_and(|e| e.valid));
    assert!(scene.host.is_intact(Slot::A, &scene.one));

    stage(&call).unwrap();
    scene.is_there();
}

/// The writer finds out, when both are here.
#[test]
fn files_of_a_way_that_was_closed_are_deleted() {
    let two = |one: &Release| {
        let two = one.next("2");
        let mut other = one.usr.clone();
        other[500 * 4096..503 * 4096].copy_from_slice(&two.usr[100 * 4096..103 * 4096]);
        two.with_delta(one, &other, &one.uki)
    };
    let scene = Scene::new(two);
    scene.server.with(|s| s.files.remove("2/usr.erofs.zst"));
    let daemon = scene.host.daemon();
    daemon.good().update().unwrap_err();
    assert_eq!(scene.asked(), [&BY_DELTA[..], &BY_BLOCKS[1..]].concat());
    // It serves what is left as well.
    assert_eq!(scene.downloaded(), ["uki.efi"]);
}

#[test]
fn half_of_a_file_of_a_way_that_was_closed_is_deleted() {
    let scene = Scene::new(with_delta);
    scene.server.set(Mood::Dies(1000));
    let daemon = scene.host.daemon();
    daemon.good().update().unwrap_err();
    let half = ["usr-from-1.delta.etag", "usr-from-1.delta.part"];
    assert_eq!(scene.downloaded()[1..], half);
    scene.server.set(Mood::Good);
    scene.server.with(|s| {
        for name in ["usr-from-1.delta", "usr.index", "usr.erofs.zst"] {
            s.files.remove(&format!("2/{name}"));
        }
    });
    daemon.update().unwrap_err();
    assert_eq!(scene.downloaded(), ["uki.efi"]);
}

#[test]
fn a_download_goes_when_another_release_comes_or_it_is_written() {
    let scene = Scene::new(|one| one.next("2"));
    scene.server.set(Mood::Dies(1000));
    let daemon = scene.host.daemon();
    daemon.good().update().unwrap_err();
    let half = ["uki.efi.etag", "uki.efi.part"];
    assert_eq!(scene.downloaded(), half);
    // Only the newer one's are there, not both.
    scene.one.next("3").publish(&scene.server);
    daemon.update().unwrap_err();
    assert_eq!(scene.downloaded(), half);
    scene.server.set(Mood::Good);
    daemon.update().unwrap();
    wait_for(|| scene.downloaded().is_empty());
}
