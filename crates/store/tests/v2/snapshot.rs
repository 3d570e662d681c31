//! Snapshots with real `etcdctl`: what works with ours, and what it says where formats differ.

use std::path::Path;
use std::process::Command;

use super::peer::{self, Peer};

/// Whether it went well, and all that was said.
fn run(program: &Path, args: &[&str]) -> (bool, String) {
    let output = Command::new(program)
        .env_clear()
        .env("ETCDCTL_API", "3")
        .args(args)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn etcdctl_saves_what_we_restore() {
    let etcdctl = peer::programs().join("etcdctl");
    let ours = Path::new(env!("CARGO_BIN_EXE_orlop-store"));
    let dir = tempfile::tempdir().unwrap();
    let at = |file: &str| dir.path().join(file).display().to_string();
    let member = Peer::start(ours, &[]);
    let endpoint = format!("--endpoints={}", member.address);
    for key in ["a", "b", "c"] {
        let (ok, said) = run(&etcdctl, &[&endpoint, "put", key, "1"]);
        assert!(ok, "{said}");
    }
    let file = at("saved.db");
    let (ok, said) = run(&etcdctl, &[&endpoint, "snapshot", "save", &file]);
    assert!(ok && said.contains("Snapshot saved"), "{said}");
    drop(member);
    let (ok, said) = run(ours, &["snapshot", "status", &file]);
    assert!(
        ok && said.contains("3 keys") && !said.contains("without a checksum"),
        "{said}"
    );

    // Another format than etcd's: etcdctl can make nothing of it, and says so before it has made a directory.
    let (ok, said) = run(&etcdctl, &["snapshot", "status", &file]);
    assert!(!ok, "{said}");
    let (ok, said) = run(
        &etcdctl,
        &["snapshot", "restore", &file, "--data-dir", &at("etcdctl")],
    );
    assert!(!ok, "{said}");

    let data = at("data");
    let (ok, said) = run(
        ours,
        &[
            "snapshot",
            "restore",
            &file,
            "--data-dir",
            &data,
            "--bump-revision",
            "1000",
            "--mark-compacted",
        ],
    );
    assert!(
        ok && said.contains("Restored 3 keys at revision 1004"),
        "{said}"
    );
    let member = Peer::start(ours, &["--data-dir", &data]);
    let endpoint = format!("--endpoints={}", member.address);
    let (_, said) = run(&etcdctl, &[&endpoint, "get", "", "--prefix", "--keys-only"]);
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["a", "b", "c"]);
    let (_, said) = run(&etcdctl, &[&endpoint, "put", "d", "1", "-w", "json"]);
    assert!(said.contains("\"revision\":1005"), "{said}");
    // A watch that was at home before the snapshot learns that it has missed something.
    let (_, said) = run(&etcdctl, &[&endpoint, "watch", "a", "--rev=3"]);
    assert!(
        said.contains("required revision has been compacted"),
        "{said}"
    );
}

#[test]
fn what_etcd_saved_is_refused_with_a_way_out() {
    let etcdctl = peer::programs().join("etcdctl");
    let ours = Path::new(env!("CARGO_BIN_EXE_orlop-store"));
    let dir = tempfile::tempdir().unwrap();
    let at = |file: &str| dir.path().join(file).display().to_string();
    let etcd = Peer::start(&peer::programs().join("etcd"), &[]);
    let endpoint = format!("--endpoints={}", etcd.address);
    let file = at("etcd.db");
    let (ok, said) = run(&etcdctl, &[&endpoint, "put", "a", "1"]);
    assert!(ok, "{said}");
    let (ok, said) = run(&etcdctl, &[&endpoint, "snapshot", "save", &file]);
    assert!(ok, "{said}");
    let (ok, said) = run(
        ours,
        &["snapshot", "restore", &file, "--data-dir", &at("x")],
    );
    assert!(!ok && said.contains("make-mirror"), "{said}");
    // The directory that etcdctl makes of it is etcd's: refused as well, and left as it is.
    let data = at("restored");
    let (ok, said) = run(
        &etcdctl,
        &["snapshot", "restore", &file, "--data-dir", &data],
    );
    assert!(ok, "{said}");
    let (ok, said) = run(
        ours,
        &[
            "--data-dir",
            &data,
            "--listen-client-urls",
            "http://127.0.0.1:0",
            "--listen-peer-urls",
            "http://127.0.0.1:0",
        ],
    );
    assert!(
        !ok && said.contains("this is the data of etcd itself"),
        "{said}"
    );
}
