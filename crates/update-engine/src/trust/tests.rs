use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use std::time::Duration;

use jiff::{Timestamp, ToSpan as _};
use release::keys::SigningKey;
use release::tuf::sign::{Holders, seal};
use release::tuf::{FileMeta, Root, Snapshot, TargetMeta, Targets, Timestamp as Stamp};

use super::*;

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn now() -> Timestamp {
    "2026-11-25T12:00:00Z".parse().unwrap()
}

/// A publisher whose every number can be chosen.
struct Publisher {
    version: u64,
    /// What the timestamp says of itself, if not the same as all others.
    stamp: Option<u64>,
    expires: Timestamp,
    online: u8,
    manifests: Vec<(&'static str, Vec<u8>)>,
    files: RefCell<HashMap<String, Vec<u8>>>,
}

impl Publisher {
    fn new() -> Self {
        let it = Self {
            version: 1,
            stamp: None,
            expires: now() + 48.hours(),
            online: 5,
            manifests: vec![("2", b"two".to_vec())],
            files: RefCell::default(),
        };
        it.write();
        it
    }

    fn root() -> Vec<u8> {
        let roots = [1, 2, 3].map(|n| key(n).verifying_key());
        let holders = Holders {
            root: roots.to_vec(),
            root_threshold: 2,
            targets: vec![key(4).verifying_key()],
            online: vec![key(5).verifying_key()],
        };
        let root = Root::of(1, now() + 9000.hours(), &holders);
        let signed = seal(&root, &[&key(1), &key(2)]).unwrap();
        signed.to_bytes().unwrap()
    }

    fn write(&self) {
        let (version, until, online) = (self.version, self.expires, key(self.online));
        let far = now() + 9000.hours();
        let channels = [("stable", vec![key(6).verifying_key()])];
        let top = seal(&Targets::top(version, far, &channels), &[&key(4)]).unwrap();
        let targets: BTreeMap<String, TargetMeta> = self
            .manifests
            .iter()
            .map(|(v, bytes)| {
                let name = target_name("stable", &v.parse().unwrap());
                (name, TargetMeta::of(bytes, None))
            })
            .collect();
        let stable = seal(&Targets::of(version, far, targets), &[&key(6)]).unwrap();
        let (top, stable) = (top.to_bytes().unwrap(), stable.to_bytes().unwrap());
        let meta = [
            ("targets.json".to_owned(), FileMeta::of(version, &top)),
            ("stable.json".to_owned(), FileMeta::of(version, &stable)),
        ];
        let snapshot = Snapshot::of(version, until, meta.into());
        let snapshot = seal(&snapshot, &[&online]).unwrap().to_bytes().unwrap();
        let stamp = self.stamp.unwrap_or(version);
        let stamp = Stamp::of(stamp, until, FileMeta::of(version, &snapshot));
        let stamp = seal(&stamp, &[&online]).unwrap().to_bytes().unwrap();
        let mut files = self.files.borrow_mut();
        files.insert("timestamp.json".into(), stamp);
        files.insert(format!("{version}.snapshot.json"), snapshot);
        files.insert(format!("{version}.targets.json"), top);
        files.insert(format!("{version}.stable.json"), stable);
    }

    fn set(&self, file: &str, bytes: Vec<u8>) {
        self.files.borrow_mut().insert(file.into(), bytes);
    }

    fn file(&self, file: &str) -> Vec<u8> {
        self.files.borrow()[file].clone()
    }
}

impl Source for Publisher {
    fn get(&self, _stored: &str, file: &str, limit: u64) -> Result<Vec<u8>, NoFile> {
        let files = self.files.borrow();
        let bytes = files.get(file);
        let bytes = bytes.ok_or_else(|| NoFile::Missing(format!("{file} is missing")))?;
        match bytes.len() as u64 > limit {
            true => Err(NoFile::TooLong {
                file: file.into(),
                limit,
            }),
            false => Ok(bytes.clone()),
        }
    }
}

/// In the boot `boot`, which has lasted this many hours.
fn clock(now: Timestamp, boot: &str, up: u64) -> Clock {
    Clock {
        now,
        boot: boot.into(),
        up: Duration::from_secs(up * 3600),
        built: None,
    }
}

struct Host {
    dir: tempfile::TempDir,
    overrides: Overrides,
    group: &'static str,
    channel: Option<&'static str>,
}

impl Host {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            overrides: Overrides::default(),
            group: "stable",
            channel: None,
        }
    }

    fn follow(&self, publisher: &Publisher, at: Timestamp) -> Result<ChannelTargets, TrustError> {
        self.follow_by(publisher, &clock(at, "1", 1))
    }

    fn follow_by(
        &self,
        publisher: &Publisher,
        clock: &Clock,
    ) -> Result<ChannelTargets, TrustError> {
        let follow = Follow {
            channel: self.channel.map(|c| c.parse().unwrap()),
            group: self.group.parse().unwrap(),
        };
        let store = Store::new(self.dir.path().join("tuf"));
        let root = Publisher::root();
        refresh(&root, &store, publisher, &follow, clock, self.overrides)
    }

    fn code(&self, publisher: &Publisher) -> i64 {
        self.code_by(publisher, &clock(now(), "1", 1))
    }

    fn code_by(&self, publisher: &Publisher, clock: &Clock) -> i64 {
        self.follow_by(publisher, clock)
            .map_or_else(|e| e.code() as i64, |_| 0)
    }
}

#[test]
fn what_is_signed_for_the_channel_is_believed() {
    let (host, publisher) = (Host::new(), Publisher::new());
    let targets = host.follow(&publisher, now()).unwrap();
    let two = "2".parse().unwrap();
    check_manifest(&targets, &two, b"two").unwrap();
    let refused = |version: &str, bytes: &[u8]| {
        check_manifest(&targets, &version.parse().unwrap(), bytes)
            .unwrap_err()
            .code() as i64
    };
    assert_eq!(refused("2", b"TWO"), 67);
    assert_eq!(refused("2", b"two and more"), 67);
    assert_eq!(refused("3", b"two"), 68);
}

#[test]
fn each_attack_has_its_code() {
    let check = |expect: i64, attack: &dyn Fn(&mut Publisher)| {
        let (host, mut publisher) = (Host::new(), Publisher::new());
        publisher.version = 4;
        publisher.write();
        assert_eq!(host.code(&publisher), 0);
        attack(&mut publisher);
        assert_eq!(host.code(&publisher), expect);
        // What was refused leaves no trace: the honest publisher goes on.
        let mut honest = Publisher::new();
        honest.version = 6;
        honest.write();
        assert_eq!(host.code(&honest), 0, "after {expect}");
    };
    check(60, &|p| p.set("timestamp.json", b"{}".to_vec()));
    check(61, &|p| {
        p.version = 5;
        p.online = 9;
        p.write();
    });
    check(62, &|p| p.set("timestamp.json", p.file("4.snapshot.json")));
    check(63, &|p| {
        p.version = 3;
        p.write();
    });
    // The online key signs that everything is as it was before.
    check(69, &|p| {
        p.version = 3;
        p.stamp = Some(5);
        p.write();
    });
    check(64, &|p| {
        p.version = 5;
        p.expires = now() - 1.hour();
        p.write();
    });
    check(65, &|p| {
        p.version = 5;
        p.write();
        p.set("5.snapshot.json", p.file("4.snapshot.json"));
    });
    check(66, &|p| p.set("timestamp.json", vec![b' '; 1 << 20]));
    check(66, &|p| {
        p.version = 5;
        p.write();
        let mut long = p.file("5.stable.json");
        long.extend(b"      ");
        p.set("5.stable.json", long);
    });
    check(10, &|p| drop(p.files.borrow_mut().remove("timestamp.json")));
}

#[test]
fn only_what_is_allowed_by_hand_is_let_through() {
    let (mut host, mut publisher) = (Host::new(), Publisher::new());
    publisher.version = 4;
    publisher.write();
    assert_eq!(host.code(&publisher), 0);
    publisher.version = 2;
    publisher.write();
    host.overrides.allow_expired = true;
    assert_eq!(host.code(&publisher), 63);
    host.overrides.allow_rollback = true;
    assert_eq!(host.code(&publisher), 0);
    publisher.version = 3;
    publisher.expires = now() - 1.hour();
    publisher.write();
    assert_eq!(host.code(&publisher), 0);
    host.overrides = Overrides::default();
    assert_eq!(host.code(&publisher), 64);
    // Nothing excuses a signature.
    host.overrides = Overrides {
        allow_expired: true,
        allow_rollback: true,
        allow_older: false,
    };
    publisher.online = 9;
    publisher.write();
    assert_eq!(host.code(&publisher), 61);
}

/// The publisher's files are valid for two days. All the time the clock says when they were accepted.
#[test]
fn a_clock_that_is_held_back_does_not_keep_metadata_valid() {
    let (mut host, publisher) = (Host::new(), Publisher::new());
    let at = |boot, up| clock(now(), boot, up);
    assert_eq!(host.code_by(&publisher, &at("1", 10)), 0);
    assert_eq!(host.code_by(&publisher, &at("1", 100)), 0);
    assert_eq!(host.code_by(&publisher, &at("1", 110)), 64);
    // A reboot begins at the same place, and so does a clock that is turned back still further.
    assert_eq!(host.code_by(&publisher, &at("2", 0)), 64);
    let further = clock(now() - 9000.hours(), "3", 0);
    assert_eq!(host.code_by(&publisher, &further), 64);
    // Root may still say so, and that does not say what time it is.
    host.overrides.allow_expired = true;
    assert_eq!(host.code_by(&publisher, &at("3", 1)), 0);
    host.overrides = Overrides::default();
    assert_eq!(host.code_by(&publisher, &at("3", 1)), 64);
    // What is newer is believed under the same clock.
    let mut newer = Publisher::new();
    newer.version = 2;
    newer.expires = now() + 100.hours();
    newer.write();
    assert_eq!(host.code_by(&newer, &at("3", 1)), 0);
}

#[test]
fn running_time_counts_over_reboots() {
    let (host, publisher) = (Host::new(), Publisher::new());
    let boots = ["1", "2", "3", "4", "5"];
    let codes = boots.map(|boot| host.code_by(&publisher, &clock(now(), boot, 30)));
    assert_eq!(codes, [0, 0, 0, 0, 64]);
}

/// As far ahead as it can be: to the last second of a timestamp.
#[test]
fn a_clock_that_was_ahead_locks_nobody_out() {
    let (host, mut publisher) = (Host::new(), Publisher::new());
    let ahead = now() + 47.hours() + 59.minutes();
    assert_eq!(host.code_by(&publisher, &clock(ahead, "1", 0)), 0);
    // Another four years ahead nothing is valid, so nothing is learned from it.
    let poisoned = clock(now() + 35000.hours(), "1", 0);
    assert_eq!(host.code_by(&publisher, &poisoned), 64);
    for hours in (12..=240).step_by(12) {
        let true_time = now() + hours.hours();
        publisher.version += 1;
        publisher.expires = true_time + 48.hours();
        publisher.write();
        let up = u64::try_from(hours).unwrap();
        let fresh = host.code_by(&publisher, &clock(true_time, "1", up));
        assert_eq!(fresh, 0, "after {hours} hours");
    }
    // Everything is as it was: what is signed once is believed for as long as it says.
    let later = clock(now() + 287.hours(), "1", 287);
    assert_eq!(host.code_by(&publisher, &later), 0);
    let over = clock(now() + 289.hours(), "1", 289);
    assert_eq!(host.code_by(&publisher, &over), 64);
}

#[test]
fn it_is_not_earlier_than_the_running_release() {
    let (host, publisher) = (Host::new(), Publisher::new());
    let long_ago = Clock {
        built: Some(now() + 49.hours()),
        ..clock(now() - 9000.hours(), "1", 0)
    };
    assert_eq!(host.code_by(&publisher, &long_ago), 64);
}

#[test]
fn a_group_that_is_no_channel_is_on_stable() {
    let (mut host, publisher) = (Host::new(), Publisher::new());
    host.group = "web";
    assert_eq!(host.follow(&publisher, now()).unwrap().channel, "stable");
    host.channel = Some("alpha");
    assert_eq!(host.code(&publisher), 68);
}

#[test]
fn the_writer_reads_what_the_daemon_stored_and_remembers_for_itself() {
    let (daemon, writer, mut publisher) = (Host::new(), Host::new(), Publisher::new());
    publisher.version = 4;
    publisher.write();
    daemon.follow(&publisher, now()).unwrap();
    let stored = daemon.dir.path().join("tuf");
    let follow = Follow {
        channel: None,
        group: "stable".parse().unwrap(),
    };
    let store = Store::new(writer.dir.path().join("tuf"));
    let read = |dir: &Path| {
        let source = FromDirectory { dir: dir.into() };
        refresh(
            &Publisher::root(),
            &store,
            &source,
            &follow,
            &clock(now(), "1", 1),
            Overrides::default(),
        )
        .map_or_else(|e| e.code() as i64, |_| 0)
    };
    assert_eq!(read(&stored), 0);
    // A daemon that was taken over shows what was true once.
    let old = Host::new();
    publisher.version = 3;
    publisher.write();
    old.follow(&publisher, now()).unwrap();
    assert_eq!(read(&old.dir.path().join("tuf")), 63);
    // A link is not followed, wherever it leads.
    std::fs::remove_file(stored.join("timestamp.json")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", stored.join("timestamp.json")).unwrap();
    assert_eq!(read(&stored), 10);
}

#[test]
fn what_root_allows_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("overrides");
    let allowed = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let it = Overrides::for_a_while(&path, now());
        (it.allow_expired, it.allow_rollback)
    };
    let text = r#"{"allow_expired":true,"until":"2026-11-25T12:00:01Z"}"#;
    assert_eq!(allowed(text), (true, false));
    let over = r#"{"allow_expired":true,"allow_rollback":true,"until":"2026-11-25T11:59:59Z"}"#;
    assert_eq!(allowed(over), (false, false));
    assert_eq!(allowed("{"), (false, false));
}
