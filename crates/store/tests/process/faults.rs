//! A disk that fails at each edge where something becomes durable. `strace` makes one system call of the real program
//! fail, or be its last: nothing in the program knows of the test.

use std::process::Command;

use crate::members::{Member, Place, cluster};
use crate::{PATIENCE, get_patiently, put, put_patiently};

/// What a member does about it.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// It ends, and its log says this.
    Stops(&'static str),
    /// It says this and goes on.
    GoesOn(&'static str),
    /// It has no chance to say anything.
    Dies,
}

/// What fails: a file below `member/`, a system call on it, how (`strace`'s words), the size of the values written.
type Case = (&'static str, &'static str, &'static str, usize, Then);

const FIRST: &str = "wal/0000000000000001.wal";
const SECOND: &str = "wal/0000000000000002.wal";
/// What becomes the second segment.
const NEXT: &str = "wal/next.spare|wal/segment.part";
const SMALL: usize = 1 << 10;
/// Enough of them fill a segment.
const BIG: usize = 1300 << 10;

/// `paths` below `member/`, with `|` between them. Of a rename it is the old name.
pub(crate) fn traced(place: &Place, paths: &str, call: &str, how: &str) -> Vec<String> {
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:{how}"));
    // -D: the program stays our child, so that its end is seen and it can be killed.
    let mut words: Vec<String> = [
        "strace",
        "-D",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        &trace,
        "-e",
        &inject,
    ]
    .map(str::to_owned)
    .to_vec();
    for path in paths.split('|') {
        let path = place.member_dir().join(path);
        words.extend(["-P".to_owned(), path.display().to_string()]);
    }
    words
}

pub(crate) fn strace_is_there() -> bool {
    let works = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "true"])
        .status();
    let works = works.is_ok_and(|status| status.success());
    if !works {
        eprintln!("left out: strace cannot trace here");
    }
    works
}

async fn judge((path, call, how, size, then): Case) {
    let what = format!("{call} of {path}: {how}");
    let dir = tempfile::tempdir().unwrap();
    let place = &cluster(dir.path(), 1)[0];
    let member = Member::start(place, &[]);
    put_patiently(place, "base", "1").await;
    member.kill();
    let mut member = Member::start_under(
        place,
        &["--snapshot-count", "10"],
        &traced(place, path, call, how),
    );
    let value = "x".repeat(size);
    let mut acknowledged = vec!["base".to_owned()];
    // It is there once it takes the first, unless the fault comes even before.
    let since = std::time::Instant::now();
    while member.lives() && put(place, "begin", "1").await.is_none() {
        assert!(since.elapsed() < PATIENCE, "{what}: it does not start");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let mut n = 0;
    while n < 40 && n * size < 28 << 20 && member.lives() {
        n += 1;
        let key = format!("k/{n:04}");
        if put(place, &key, &value).await.is_some() {
            acknowledged.push(key);
        } else {
            break;
        }
    }
    let log = || std::fs::read_to_string(place.log()).unwrap();
    match then {
        Then::Stops(said) => {
            assert_eq!(member.ended(PATIENCE), Some(false), "{what}: {}", log());
            let log = log();
            assert!(log.contains(said), "{what}: {log}");
            let below = format!("{}/wal", place.member_dir().display());
            assert!(log.contains(&below), "{what}: no file is named: {log}");
        }
        Then::GoesOn(said) => {
            // Checkpoints are written in the background.
            let since = std::time::Instant::now();
            while !log().contains(said) {
                assert!(since.elapsed() < PATIENCE, "{what}: {}", log());
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            assert!(member.lives(), "{what}: {}", log());
            assert_eq!(n + 1, acknowledged.len(), "{what}: a write was refused");
        }
        Then::Dies => assert_eq!(member.ended(PATIENCE), Some(false), "{what}: it never came"),
    }
    member.kill();
    let member = Member::start(place, &[]);
    put_patiently(place, "after", "1").await;
    for key in &acknowledged {
        let found = get_patiently(place, key, "").await;
        let whole = found.get(key).is_some_and(|v| key == "base" || *v == value);
        assert!(whole, "{what}: {key} was acknowledged and is lost");
    }
    member.kill();
}

async fn all(cases: &[Case]) {
    if strace_is_there() {
        for case in cases {
            judge(*case).await;
        }
    }
}

const EIO: &str = "Input/output error";
const ENOSPC: &str = "No space left on device";
const NO_CHECKPOINT: &str = "cannot write a checkpoint, the log is kept instead";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_and_syncs_of_the_log_that_fail() {
    all(&[
        (
            FIRST,
            "pwrite64",
            "error=EIO:when=9",
            SMALL,
            Then::Stops(EIO),
        ),
        (
            FIRST,
            "pwrite64",
            "error=ENOSPC:when=9+",
            SMALL,
            Then::Stops(ENOSPC),
        ),
        (FIRST, "pwrite64", "signal=KILL:when=9", SMALL, Then::Dies),
        (
            FIRST,
            "fdatasync",
            "error=EIO:when=9",
            SMALL,
            Then::Stops(EIO),
        ),
        (
            FIRST,
            "fdatasync",
            "error=ENOSPC:when=9",
            SMALL,
            Then::Stops(ENOSPC),
        ),
        (FIRST, "fdatasync", "signal=KILL:when=9", SMALL, Then::Dies),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_segments_that_fail() {
    all(&[
        (
            "wal/next.part",
            "pwrite64",
            "error=ENOSPC:when=3+",
            BIG,
            Then::GoesOn("cannot prepare the next segment of the log"),
        ),
        (
            "wal/next.part",
            "fsync",
            "signal=KILL:when=1",
            BIG,
            Then::Dies,
        ),
        (NEXT, "rename", "error=EIO:when=1", BIG, Then::Stops(EIO)),
        (NEXT, "rename", "signal=KILL:when=1", BIG, Then::Dies),
        (
            SECOND,
            "pwrite64",
            "error=EIO:when=1",
            BIG,
            Then::Stops(EIO),
        ),
        (SECOND, "pwrite64", "signal=KILL:when=1", BIG, Then::Dies),
        (SECOND, "fdatasync", "signal=KILL:when=1", BIG, Then::Dies),
        ("wal", "fsync", "error=EIO:when=1", BIG, Then::Stops(EIO)),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_that_cannot_be_put_aside() {
    all(&[
        (FIRST, "rename", "error=EIO:when=1", BIG, Then::Stops(EIO)),
        (FIRST, "rename", "signal=KILL:when=1", BIG, Then::Dies),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_that_fail() {
    const PART: &str = "snap/checkpoint.part";
    let on = Then::GoesOn(NO_CHECKPOINT);
    all(&[
        (PART, "openat", "error=ENOSPC:when=1+", SMALL, on),
        (PART, "write", "error=ENOSPC:when=1", SMALL, on),
        (PART, "write", "error=EIO:when=1", SMALL, on),
        (PART, "write", "signal=KILL:when=1", SMALL, Then::Dies),
        (PART, "fsync", "error=EIO:when=1", SMALL, on),
        (PART, "fsync", "signal=KILL:when=1", SMALL, Then::Dies),
        (PART, "rename", "error=EIO:when=1", SMALL, on),
        (PART, "rename", "signal=KILL:when=1", SMALL, Then::Dies),
        ("snap", "fsync", "error=EIO:when=1", SMALL, on),
        ("snap", "fsync", "signal=KILL:when=1", SMALL, Then::Dies),
    ])
    .await;
}
