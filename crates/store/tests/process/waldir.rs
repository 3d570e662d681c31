//! A log on a disk of its own.

use std::fs;
use std::path::Path;

use crate::members::{Member, Place, cluster};
use crate::{PATIENCE, get_patiently, put_patiently};

/// Starts a member that must not start, and returns what it says.
fn refused(place: &Place, flags: &[&str]) -> String {
    let _ = fs::remove_file(place.log());
    let mut member = Member::start(place, flags);
    assert_eq!(member.ended(PATIENCE), Some(false), "it serves");
    fs::read_to_string(place.log()).unwrap()
}

async fn serves(place: &Place, flags: &[&str], keys: usize) {
    let member = Member::start(place, flags);
    put_patiently(place, &format!("k/{keys}"), "v").await;
    assert_eq!(get_patiently(place, "k/", "k0").await.len(), keys + 1);
    member.kill();
}

fn has_log(dir: &Path) -> bool {
    dir.join("wal").is_dir()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_can_be_elsewhere_and_is_not_mixed_up() {
    let dir = tempfile::tempdir().unwrap();
    let place = &cluster(dir.path(), 1)[0];
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let at_first = ["--wal-dir", first.to_str().unwrap()];
    let at_second = ["--wal-dir", second.to_str().unwrap()];

    // From the start, and after a kill.
    serves(place, &at_first, 0).await;
    assert!(has_log(&first) && !has_log(&place.member_dir()));
    serves(place, &at_first, 1).await;

    // Forgotten, or another directory: told where it is, and nothing is made.
    let said = refused(place, &[]);
    let home = first.canonicalize().unwrap();
    assert!(
        said.contains(&format!("start it with --wal-dir {}", home.display())),
        "{said}"
    );
    let said = refused(place, &at_second);
    assert!(said.contains("Move it to"), "{said}");
    assert!(!has_log(&second) && !has_log(&place.member_dir()));

    // Moved by hand, there and back to the data.
    fs::rename(first.join("wal"), second.join("wal")).unwrap();
    let said = refused(place, &at_first);
    assert!(said.contains("there is a checkpoint, but no log"), "{said}");
    serves(place, &at_second, 2).await;
    fs::rename(second.join("wal"), place.member_dir().join("wal")).unwrap();
    let said = refused(place, &at_second);
    assert!(said.contains("Move it to"), "{said}");
    serves(place, &[], 3).await;

    // A log that was with the data and goes elsewhere.
    fs::rename(place.member_dir().join("wal"), first.join("wal")).unwrap();
    serves(place, &at_first, 4).await;

    // Another member's log, and two of them.
    let other = &cluster(&dir.path().join("other"), 1)[0];
    serves(other, &at_second, 0).await;
    fs::rename(first.join("wal"), dir.path().join("aside")).unwrap();
    fs::rename(second.join("wal"), first.join("wal")).unwrap();
    let said = refused(place, &at_first);
    assert!(said.contains("belongs to cluster"), "{said}");
    fs::rename(dir.path().join("aside"), place.member_dir().join("wal")).unwrap();
    let said = refused(place, &at_first);
    assert!(said.contains("there is a log in"), "{said}");
    fs::remove_dir_all(first.join("wal")).unwrap();
    serves(place, &[], 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_elsewhere_serves_one_member() {
    let dir = tempfile::tempdir().unwrap();
    let places = [
        &cluster(&dir.path().join("a"), 1)[0],
        &cluster(&dir.path().join("b"), 1)[0],
    ];
    let log = dir.path().join("log");
    let flags = ["--wal-dir", log.to_str().unwrap()];
    let _member = Member::start(places[0], &flags);
    put_patiently(places[0], "k", "v").await;
    let said = refused(places[1], &flags);
    assert!(said.contains("another process serves from here"), "{said}");

    // The directory of etcd's own log is left alone.
    let etcd = dir.path().join("etcd");
    fs::create_dir_all(&etcd).unwrap();
    fs::write(etcd.join("0000000000000000-0000000000000000.wal"), "").unwrap();
    let said = refused(places[1], &["--wal-dir", etcd.to_str().unwrap()]);
    assert!(said.contains("this is the data of etcd itself"), "{said}");
}
