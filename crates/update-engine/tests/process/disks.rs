//! The daemon's own files on a disk that fails. `strace` makes one system call of the real program
//! fail: nothing in the program knows of the test.

use std::fs;

use crate::host::left_out;
use crate::requests::Releases;

const FULL: &str = "error=ENOSPC";
const BROKEN: &str = "error=EIO";

fn strace_is_there() -> bool {
    let mut strace = std::process::Command::new("strace");
    strace.args(["-qq", "-o", "/dev/null", "true"]);
    let works = strace.status().is_ok_and(|status| status.success());
    if !works {
        left_out("strace cannot trace here");
    }
    works
}

/// An update while a system call fails so, on this path below the daemon's directory if one is
/// given. Whether it was called at all.
fn update(releases: &Releases, path: Option<&str>, call: &str, how: &str) -> bool {
    let (_server, host) = releases.host();
    let log = host.path("strace.log");
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:{how}"));
    let log_name = log.display().to_string();
    // -D: the program stays our child.
    let words = [
        "-D", "-f", "-qq", "-o", &log_name, "-e", &trace, "-e", &inject,
    ];
    let mut words: Vec<String> = words.map(str::to_owned).to_vec();
    // Without a path, the kernel can pick the calls, which is faster by far.
    words.extend(path.is_none().then(|| "--seccomp-bpf".to_owned()));
    if let Some(path) = path {
        let path = host.path("var/lib/update-engine").join(path);
        words.extend(["-P".to_owned(), path.display().to_string()]);
    }
    let mut daemon = host.daemon_under("strace", &words);
    daemon.good();
    let tried = daemon.update().map(drop);
    let what = format!("{call} of {path:?}: {how}: {tried:?}");
    println!("{what}");
    // It ends rather than do what it could not remember.
    let ended = daemon.child.try_wait().unwrap().is_some();
    assert!(!ended || tried.is_err(), "{what}");
    if !ended {
        releases.judge(&host, &daemon, &tried, &what);
    }
    daemon.kill();
    drop(daemon);
    let daemon = host.daemon();
    releases.succeeds(&host, &daemon, &what);
    let traced = fs::read_to_string(log).unwrap();
    traced.contains("(INJECTED)")
}

#[test]
fn a_fault_at_each_file_of_an_update() {
    if !strace_is_there() {
        return;
    }
    let releases = Releases::new();
    let download = format!("download/{}", releases.two.id());
    let extension = format!("extensions/{}", releases.two.root_hash());
    for (path, call, how) in [
        (download.clone(), "mkdir", FULL),
        (format!("{download}/uki.efi.part"), "openat", FULL),
        (format!("{download}/uki.efi.part"), "ftruncate", BROKEN),
        (format!("{download}/uki.efi.part"), "write", FULL),
        (format!("{download}/uki.efi.part"), "read", BROKEN),
        (
            format!("{download}/usr.erofs.zst.part"),
            "write",
            "error=ENOSPC:when=3+",
        ),
        (format!("{download}/usr.erofs.zst.part"), "rename", BROKEN),
        (format!("{download}/uki.efi.etag"), "openat", FULL),
        (format!("{download}/uki.efi.etag"), "write", FULL),
        ("tuf".into(), "mkdir", FULL),
        ("tuf".into(), "fsync", BROKEN),
        (extension.clone(), "mkdir", FULL),
        (format!("{extension}/debug.sysext.zst.part"), "write", FULL),
        (
            format!("{extension}/debug.sysext.zst.part"),
            "rename",
            BROKEN,
        ),
        (format!("{extension}/debug.part"), "openat", FULL),
        (format!("{extension}/debug.part"), "write", FULL),
        (format!("{extension}/debug.part"), "fsync", BROKEN),
        (format!("{extension}/debug.part"), "rename", BROKEN),
    ] {
        let hit = update(&releases, Some(&path), call, how);
        assert!(hit, "{call} of {path} is never called");
    }
}

/// Metadata, memory and notes replace what was there by way of files whose names are made up. So
/// each of those calls, wherever it is from.
fn sweep(call: &str) {
    if !strace_is_there() {
        return;
    }
    let releases = Releases::new();
    let mut nth = 1;
    // The worker has some twenty of either. Beyond that it is the status, shown again and again.
    while nth < 40 && update(&releases, None, call, &format!("{BROKEN}:when={nth}")) {
        nth += 1;
    }
    assert!(nth > 5, "{nth} calls of {call} are all there are");
}

#[test]
fn each_flush_fails_once() {
    sweep("fsync");
}

#[test]
fn each_replacement_fails_once() {
    sweep("/^rename");
}
