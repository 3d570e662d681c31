//! Extensions, from the server to where systemd-sysext looks.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use disk::verity;
use release::{Compression, Extension, File, Payload, Sha256};

use crate::host::{Host, Release, noise, wait_for};
use crate::server::{Mood, Server};

pub fn image(version: &str) -> Vec<u8> {
    noise(&format!("debug {version}"), 40 * 4096)
}

/// A release with the extension `debug`.
pub fn release(version: &str, image: &[u8]) -> Release {
    let mut release = Release::new(version);
    let packed = zstd::encode_all(image, 1).unwrap();
    release.manifest.extensions.push(Extension {
        name: "debug".parse().unwrap(),
        root_hash: Sha256(verity::build(&mut &*image).unwrap().root.0),
        size: image.len() as u64,
        payload: Payload {
            file: File {
                name: "debug.sysext.zst".parse().unwrap(),
                size: packed.len() as u64,
                sha256: Sha256::of(&packed),
            },
            compression: Compression::Zstd,
        },
    });
    release.extra.push(("debug.sysext.zst".into(), packed));
    release.sign();
    release
}

struct Scene {
    server: Server,
    host: Host,
    one: Release,
    two: Release,
}

impl Scene {
    fn new() -> Self {
        Self::with(&image("1"))
    }

    fn with(image_of_one: &[u8]) -> Self {
        let server = Server::start();
        let (one, two) = (release("1", image_of_one), release("2", &image("2")));
        let host = Host::new(&server, &[&one, &two]);
        fs::create_dir_all(host.path("etc/orlop")).unwrap();
        host.write("etc/orlop/extensions", "debug # for now\n");
        // Where a server has what it published earlier.
        server.with(|s| {
            let packed = one.extra[0].1.clone();
            for (name, bytes) in [
                ("manifest.dsse.json", one.envelope.clone()),
                ("debug.sysext.zst", packed),
            ] {
                s.files.insert(format!("releases/1/{name}"), bytes);
            }
        });
        Self {
            server,
            host,
            one,
            two,
        }
    }

    fn fetched(&self, release: &Release) -> PathBuf {
        let dir = self.host.path("var/lib/update-engine/extensions");
        dir.join(release.root_hash().to_string())
            .join("debug.sysext")
    }

    /// What systemd-sysext would lay over `/usr`.
    fn linked(&self) -> Option<Vec<u8>> {
        fs::read(self.host.path("run/extensions/debug.raw")).ok()
    }
}

#[test]
fn the_running_release_gets_its_own_and_so_does_the_next() {
    let mut scene = Scene::new();
    let daemon = scene.host.daemon();
    let _ = daemon.good().call("Check", serde_json::json!({}));
    assert_eq!(fs::read(scene.fetched(&scene.one)).unwrap(), image("1"));
    assert!(
        scene
            .host
            .path("var/lib/update-engine/extensions/arrived")
            .exists()
    );
    scene.host.run(&["extensions", "boot"]);
    assert_eq!(scene.linked().unwrap(), image("1"));

    scene.two.publish(&scene.server);
    daemon.update().unwrap();
    assert_eq!(fs::read(scene.fetched(&scene.two)).unwrap(), image("2"));
    // Root has its own copy of the first.
    assert!(!scene.fetched(&scene.one).exists());
    drop(daemon);

    scene.host.boot();
    scene.host.run(&["extensions", "boot"]);
    assert_eq!(scene.linked().unwrap(), image("2"));
    scene.host.run(&["mark-good"]);
    let kept = fs::read_dir(scene.host.path("var/lib/orlop/extensions")).unwrap();
    assert_eq!(kept.count(), 2, "one for each slot");

    scene.host.write("etc/orlop/extensions", "");
    scene.host.run(&["extensions", "boot"]);
    assert_eq!(scene.linked(), None);
}

/// A unit that runs is not started once more by what changes meanwhile.
#[test]
fn what_changes_while_links_are_made_counts() {
    let scene = Scene::with(&vec![1; 256 << 20]);
    let _ = scene
        .host
        .daemon()
        .good()
        .call("Check", serde_json::json!({}));
    let copies = scene.host.path("var/lib/orlop/extensions");
    let copies = copies.join(scene.one.root_hash().to_string());
    let mut linking = scene.host.engine(&["extensions", "boot"]).spawn().unwrap();
    // It has read what is wanted, and is busy for a while.
    while !copies.join("debug.part").exists() {
        assert!(linking.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    fs::write(scene.host.path("etc/orlop/new"), "").unwrap();
    let list = scene.host.path("etc/orlop/extensions");
    fs::rename(scene.host.path("etc/orlop/new"), list).unwrap();
    assert!(linking.wait().unwrap().success());
    assert!(copies.join("debug.raw").exists());
    assert_eq!(scene.linked(), None);
}

#[test]
fn two_that_make_links_take_turns() {
    let scene = Scene::new();
    let copies = scene.host.path("var/lib/orlop/extensions");
    fs::create_dir_all(&copies).unwrap();
    let lock = fs::File::open(&copies).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut second = scene.host.engine(&["extensions", "boot"]).spawn().unwrap();
    let _ = scene
        .host
        .daemon()
        .good()
        .call("Check", serde_json::json!({}));
    assert!(second.try_wait().unwrap().is_none());
    drop(lock);
    assert!(second.wait().unwrap().success());
    assert_eq!(scene.linked().unwrap(), image("1"));
}

#[test]
fn lost_word_of_what_came_is_given_again() {
    let scene = Scene::new();
    let daemon = scene.host.daemon();
    let daemon = daemon.good();
    let arrived = "var/lib/update-engine/extensions/arrived";
    let check = || {
        let _ = daemon.call("Check", serde_json::json!({}));
        scene.host.path(arrived).exists()
    };
    assert!(check());
    fs::remove_file(scene.host.path(arrived)).unwrap();
    assert!(check());
    scene.host.run(&["extensions", "boot"]);
    fs::remove_file(scene.host.path(arrived)).unwrap();
    assert!(!check(), "it is linked");
}

/// It is fetched before the release is written, and linked after the reboot.
#[test]
fn what_the_staged_release_needs_is_not_cleaned_away() {
    let scene = Scene::new();
    scene.two.publish(&scene.server);
    let daemon = scene.host.daemon();
    daemon.good().update().unwrap();
    assert!(scene.fetched(&scene.two).exists());
    fs::remove_file(scene.fetched(&scene.one)).unwrap();
    let _ = daemon.call("Check", serde_json::json!({}));
    assert!(scene.fetched(&scene.one).exists());
    assert!(scene.fetched(&scene.two).exists());
}

#[test]
fn what_was_verified_earlier_is_linked_again() {
    let scene = Scene::new();
    let daemon = scene.host.daemon();
    let daemon = daemon.good();
    let check = || drop(daemon.call("Check", serde_json::json!({})));
    check();
    scene.host.run(&["extensions", "boot"]);
    // Only root's copy is left.
    check();
    assert!(!scene.fetched(&scene.one).exists());
    fs::remove_file(scene.host.path("run/extensions/debug.raw")).unwrap();
    let arrived = scene.host.path("var/lib/update-engine/extensions/arrived");
    fs::remove_file(&arrived).unwrap();
    check();
    assert!(arrived.exists());
}

/// That check may have looked already at what is wanted.
#[test]
fn who_joins_a_check_gets_what_is_wanted_by_then() {
    let scene = Scene::new();
    scene.host.write("etc/orlop/extensions", "");
    scene.server.set(Mood::Thinks(Duration::from_secs(1)));
    let daemon = scene.host.daemon();
    let daemon = daemon.good();
    std::thread::scope(|threads| {
        let first = threads.spawn(|| daemon.call("Check", serde_json::json!({})));
        wait_for(|| scene.server.with(|s| s.asked) == 1);
        scene.host.write("etc/orlop/extensions", "debug\n");
        let mut second = daemon.client();
        let replies = second.call_more("io.orlop.UpdateEngine.Check", serde_json::json!({}));
        let replies: Vec<_> = replies.unwrap().map(Result::unwrap).collect();
        assert!(scene.fetched(&scene.one).exists());
        // It heard at once that it joined.
        assert_eq!(replies[0]["status"]["update"]["state"], "checking");
        first.join().unwrap().unwrap();
    });
    assert_eq!(scene.server.with(|s| s.asked), 1);
}

#[test]
fn a_release_without_it_is_not_taken() {
    let scene = Scene::new();
    scene.host.write("etc/orlop/extensions", "debug\ndocker\n");
    scene.two.publish(&scene.server);
    let daemon = scene.host.daemon();
    let error = daemon.good().update().unwrap_err();
    assert!(
        error.contains("version 2 has no extension docker, which /etc/orlop/extensions asks for"),
        "{error}"
    );
}

#[test]
fn only_what_was_signed_is_linked() {
    let scene = Scene::new();
    let _ = scene
        .host
        .daemon()
        .good()
        .call("Check", serde_json::json!({}));
    let fetched = scene.fetched(&scene.one);
    let refused = || {
        let output = scene.host.engine(&["extensions", "boot"]).output().unwrap();
        assert!(!output.status.success());
        assert_eq!(scene.linked(), None);
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };

    let good = fs::read(&fetched).unwrap();
    let mut bad = good.clone();
    bad[70_000] ^= 1;
    fs::write(&fetched, &bad).unwrap();
    assert!(refused().contains("has root hash"));
    fs::write(&fetched, &good[..good.len() - 4096]).unwrap();
    assert!(refused().contains("ends after 159744 of 163840 bytes"));
    fs::write(&fetched, [&good[..], &[0]].concat()).unwrap();
    assert!(refused().contains("has more than 163840 bytes"));

    // The other release's, signed as it is.
    fs::write(&fetched, &good).unwrap();
    let manifest = fetched.with_file_name("manifest.dsse.json");
    fs::write(&manifest, &scene.two.envelope).unwrap();
    assert!(refused().contains("another release than the running one"));
    // Somebody else's.
    let stranger = release::keys::SigningKey::from_bytes(&[7; 32]);
    fs::write(&manifest, Release::signed("1", &stranger).envelope).unwrap();
    refused();
    // A link to what only root may read.
    fs::remove_file(&manifest).unwrap();
    std::os::unix::fs::symlink("/etc/shadow", &manifest).unwrap();
    assert!(refused().contains("cannot read"));

    fs::remove_file(&manifest).unwrap();
    fs::write(&manifest, &scene.one.envelope).unwrap();
    scene.host.run(&["extensions", "boot"]);
    assert_eq!(scene.linked().unwrap(), good);
}
