mod again;
mod kept;
mod network;
mod others;

use std::cell::RefCell;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::*;
use crate::config::Verb;
use crate::datasource::Found;
use crate::service::{self, Origin};
use crate::status::{PENDING, State, Status};

const CONFIG: &str = "#cloud-config
hostname: node1
ssh_authorized_keys: [ssh-ed25519 AAAA top]
users:
- name: core
  ssh_authorized_keys: [ssh-ed25519 AAAA own, ssh-ed25519 AAAA top]
- name: alice
  passwd: $6$hash
  groups: [sudo]
  sudo: ALL=(ALL) NOPASSWD:ALL
write_files:
- path: /opt/deep/down/x
  permissions: 0755
  owner: alice:sudo
  content: hi
coreos:
  update: {group: beta, reboot-strategy: \"off\"}
  units:
  - name: a.service
    command: restart
    enable: true
    content: |
      [Service]
      ExecStart=/bin/true
  - {name: old.service, mask: true}
  - {name: b.network, content: x}
";

/// A host that is a directory, with a systemd that writes down what it is asked.
struct Host {
    dir: tempfile::TempDir,
    systemd: Recorder,
}

#[derive(Default)]
struct Recorder {
    asked: RefCell<Vec<String>>,
    /// Units that refuse.
    broken: Vec<&'static str>,
}

impl Recorder {
    fn ask(&self, what: String, unit: &str) -> anyhow::Result<()> {
        self.asked.borrow_mut().push(what);
        match self.broken.contains(&unit) {
            true => Err(anyhow::anyhow!("no such unit")),
            false => Ok(()),
        }
    }
}

impl Services for Recorder {
    fn enable(&self, unit: &str, runtime: bool) -> anyhow::Result<()> {
        self.ask(format!("enable {unit} {runtime}"), unit)
    }
    fn reload(&self) -> anyhow::Result<()> {
        self.ask("reload".to_owned(), "")
    }
    fn job(&self, verb: Verb, unit: &str) -> anyhow::Result<()> {
        self.ask(format!("{verb} {unit}"), unit)
    }
    fn nudge(&self, unit: &str) -> anyhow::Result<()> {
        self.ask(format!("nudge {unit}"), unit)
    }

    fn queue(&self, unit: &str) -> anyhow::Result<()> {
        self.ask(format!("queue {unit}"), unit)
    }
}

impl Host {
    fn new() -> Self {
        let host = Self {
            dir: tempfile::tempdir().unwrap(),
            systemd: Recorder::default(),
        };
        host.put(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/bash\ncore:x:500:500::/home/core:/bin/bash\n",
        );
        host.put(
            "etc/group",
            "root:x:0:\nsudo:x:27:core\nshadow:x:42:\ncore:x:500:\n",
        );
        host.put("etc/shadow", "root:*:1::::::\ncore:*:1:0:99999:7:::\n");
        host.put(
            "etc/gshadow",
            "root:*::\nsudo:*::core\nshadow:*::\ncore:!::\n",
        );
        host.put("etc/skel/.bashrc", "alias l=ls\n");
        host.put("proc/sys/kernel/hostname", "localhost\n");
        host.put("proc/sys/kernel/random/boot_id", "boot-1\n");
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap()
    }

    fn run(&self, config: &str) -> Status {
        self.put("seed", config);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400);
        let seed = self.path("seed");
        service::run(
            self.dir.path(),
            Origin::File(&seed),
            now,
            Some(&self.systemd),
        )
        .unwrap()
    }

    fn finish(&self) -> Option<Status> {
        service::finish(self.dir.path(), &self.systemd).unwrap()
    }

    /// What systemd was asked since the last time.
    fn asked(&self) -> String {
        self.systemd.asked.take().join("\n")
    }

    /// Every file with mode, owner, time of change and content; the status tells of itself.
    fn snapshot(&self) -> Vec<String> {
        let mut all = Vec::new();
        walk(self.dir.path(), &mut all);
        all.retain(|line| !line.contains("/run/cloudinit") && !line.contains("/seed"));
        all.sort();
        all
    }
}

fn walk(dir: &Path, all: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        let (uid, gid, time) = (meta.uid(), meta.gid(), (meta.ctime(), meta.ctime_nsec()));
        all.push(format!(
            "{} {:o} {uid}:{gid} {time:?}",
            path.display(),
            meta.mode()
        ));
        if meta.is_dir() {
            walk(&path, all);
        }
    }
}

/// Owners can only be given by root; without it the tests of other things still run.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_host_is_made_and_the_second_time_nothing_happens() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let status = host.run(CONFIG);
    assert_eq!(status.state, State::Applied, "{:?}", status.error);
    insta::assert_snapshot!(status.changed.join("\n"), @r"
    wrote /etc/hostname
    set the host name to node1
    made /home/core
    made /home/alice
    wrote /etc/group
    wrote /etc/gshadow
    wrote /etc/shadow
    wrote /etc/passwd
    authorized 2 keys for core
    wrote /etc/sudoers.d/cloudinit-alice
    wrote /opt/deep/down/x
    wrote /etc/coreos/update.conf
    wrote /etc/systemd/system/a.service
    masked /etc/systemd/system/old.service
    wrote /etc/systemd/network/b.network
    masked /run/systemd/system/locksmithd.service
    ");
    insta::assert_snapshot!(host.asked(), @r"
    enable a.service false
    reload
    nudge systemd-networkd.service
    nudge locksmith.service
    nudge update-engine.service
    ");
    assert!(host.path(PENDING).exists());
    let finished = host.finish().unwrap();
    assert!(
        finished
            .calls
            .iter()
            .all(|call| call.state != CallState::Pending)
    );
    assert_eq!(host.asked(), "restart a.service");
    assert!(!host.path(PENDING).exists());

    assert_eq!(host.text("etc/hostname"), "node1\n");
    assert_eq!(host.text("proc/sys/kernel/hostname"), "node1");
    insta::assert_snapshot!(host.text("etc/passwd"), @r"
    root:x:0:0:root:/root:/bin/bash
    core:x:500:500::/home/core:/bin/bash
    alice:x:1000:1000::/home/alice:/bin/bash
    ");
    insta::assert_snapshot!(host.text("etc/group"), @r"
    root:x:0:
    sudo:x:27:core,alice
    shadow:x:42:
    core:x:500:
    alice:x:1000:
    ");
    insta::assert_snapshot!(host.text("etc/shadow"), @r"
    root:*:1::::::
    core:*:1:0:99999:7:::
    alice:$6$hash:20000:0:99999:7:::
    ");
    insta::assert_snapshot!(host.text("etc/gshadow"), @r"
    root:*::
    sudo:*::core,alice
    shadow:*::
    core:!::
    alice:!::
    ");
    insta::assert_snapshot!(host.text("home/core/.ssh/authorized_keys"), @r"
    # BEGIN coreos-cloudinit: these lines are replaced at every boot
    ssh-ed25519 AAAA own
    ssh-ed25519 AAAA top
    # END coreos-cloudinit
    ");
    let owner = |path: &str| {
        let meta = host.path(path).symlink_metadata().unwrap();
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    };
    assert_eq!(owner("home/core/.ssh/authorized_keys"), (500, 500, 0o600));
    assert_eq!(owner("home/alice"), (1000, 1000, 0o700));
    assert_eq!(owner("home/alice/.bashrc"), (1000, 1000, 0o644));
    assert_eq!(owner("opt/deep/down/x"), (1000, 27, 0o755));
    assert_eq!(owner("etc/shadow"), (0, 42, 0o640));
    assert_eq!(owner("var/lib/cloudinit/user-data"), (0, 0, 0o600));
    let masked = std::fs::read_link(host.path("etc/systemd/system/old.service")).unwrap();
    assert_eq!(masked, Path::new("/dev/null"));

    let before = host.snapshot();
    let status = host.run(CONFIG);
    assert_eq!(status.changed, [""; 0]);
    assert_eq!(host.finish(), None);
    assert_eq!(host.asked(), "");
    assert_eq!(host.snapshot(), before);
}

#[test]
fn the_next_boot_starts_what_is_to_run_and_writes_nothing() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    host.run(CONFIG);
    host.finish();
    host.asked();
    host.put("proc/sys/kernel/random/boot_id", "boot-2\n");
    std::fs::remove_dir_all(host.path("run")).unwrap();
    let before: Vec<String> = host.snapshot();
    let status = host.run(CONFIG);
    // Masks below /run do not survive a boot.
    assert_eq!(
        status.changed,
        ["masked /run/systemd/system/locksmithd.service"]
    );
    host.finish().unwrap();
    insta::assert_snapshot!(host.asked(), @r"
    enable a.service false
    nudge systemd-networkd.service
    nudge locksmith.service
    nudge update-engine.service
    restart a.service
    ");
    let after: Vec<String> = host.snapshot();
    let news: Vec<&String> = after.iter().filter(|line| !before.contains(line)).collect();
    let expected = ["/run", "/proc/sys/kernel/random", "/var/lib/cloudinit"];
    assert!(
        news.iter()
            .all(|line| expected.iter().any(|part| line.contains(part))),
        "{news:#?}"
    );
}

#[test]
fn a_changed_unit_is_restarted_and_the_others_are_left_alone() {
    let host = Host::new();
    let config = |a: &str| {
        format!(
            "#cloud-config\ncoreos:\n  units:\n  - {{name: a.service, command: restart, content: {a}}}\n  - {{name: b.service, command: start, content: b}}\n"
        )
    };
    host.run(&config("one"));
    host.finish();
    assert_eq!(host.asked(), "reload\nrestart a.service\nstart b.service");
    host.run(&config("two"));
    host.finish();
    assert_eq!(host.asked(), "reload\nrestart a.service");
}

#[test]
fn a_call_that_fails_is_told_and_tried_again_and_does_not_stop_the_rest() {
    let mut host = Host::new();
    host.systemd.broken = vec!["a.service"];
    let config = "#cloud-config\ncoreos:\n  units:\n  - {name: a.service, command: start}\n  - {name: b.service, command: start}\n";
    host.run(config);
    let status = host.finish().unwrap();
    assert_eq!(host.asked(), "start a.service\nstart b.service");
    assert_eq!(status.calls[0].state, CallState::Failed);
    assert_eq!(status.calls[0].error.as_deref(), Some("no such unit"));
    assert_eq!(status.calls[1].state, CallState::Done);
    host.run(config);
    host.finish();
    assert_eq!(host.asked(), "start a.service");
}

/// What is wrong with a host is found before the first change: nothing of the file is applied.
#[test]
fn what_would_fail_half_way_fails_at_the_start() {
    let check = |prepare: &dyn Fn(&Host), config: &str, expect: &str| {
        let host = Host::new();
        prepare(&host);
        let before = host.snapshot();
        let status = host.run(&format!("#cloud-config\nhostname: new\n{config}"));
        assert_eq!(status.state, State::Invalid);
        let root = host.dir.path().to_str().unwrap();
        let finding = status
            .findings
            .last()
            .unwrap()
            .to_string()
            .replace(root, "");
        assert_eq!(finding, expect);
        let after: Vec<String> = host.snapshot();
        let news: Vec<&String> = after.iter().filter(|line| !before.contains(line)).collect();
        let ours = ["/var", "/run", "/etc/.pwd.lock", "/etc "];
        assert!(
            news.iter().all(|l| ours.iter().any(|p| l.contains(p))),
            "{news:#?}"
        );
        assert!(!host.path("etc/hostname").exists());
    };
    check(
        &|host| host.put("etc/x/y", ""),
        "write_files:\n- path: /etc/x\n",
        "4:9: error: write_files[0].path: /etc/x: there is a directory in its place",
    );
    check(
        &|host| host.put("opt", ""),
        "write_files:\n- path: /opt/bin/x\n",
        "4:9: error: write_files[0].path: /opt/bin/x: /opt is not a directory",
    );
    let homes = |prepare: &dyn Fn(&Host), home: &str, problem: &str| {
        let config = format!("users:\n- {{name: app, homedir: {home}}}\n");
        let expect = format!("4:10: error: users[0].name: {home}: {problem}");
        check(prepare, &config, &expect);
    };
    homes(
        &|host| host.put("srv/app", ""),
        "/srv/app/home",
        "/srv/app is not a directory",
    );
    homes(
        &|host| host.put("srv/app", ""),
        "/srv/app",
        "there is a file in its place",
    );
    for home in ["/etc", "/", "//var//lib", "/dev/shm/app"] {
        homes(&|_| {}, home, "a directory of the system is no home");
    }
    check(
        &|_| {},
        "users:\n- {name: a, homedir: /srv/both}\n- {name: b, homedir: /srv/both}\n",
        "5:10: error: users[1].name: /srv/both: it is another user's home already",
    );
}

/// Whoever gets keys must not be able to lead root to another file, nor keep others from theirs.
#[test]
fn what_a_user_put_in_place_of_the_keys_is_not_touched() {
    let config = "#cloud-config\nssh_authorized_keys: [ssh-ed25519 AAAA x]\nusers:\n- name: alice\n  ssh_authorized_keys: [ssh-ed25519 AAAA y]\nwrite_files:\n- {path: /etc/z, content: z}\n";
    let check = |prepare: &dyn Fn(&Host), expect: &str| {
        let host = Host::new();
        host.put("home/core/secret", "a secret\n");
        host.put("elsewhere/x", "");
        prepare(&host);
        let status = host.run(config);
        assert_eq!(status.state, State::Applied);
        let findings: Vec<String> = status.findings.iter().map(ToString::to_string).collect();
        assert!(
            findings
                .iter()
                .any(|it| it.contains("warning") && it.contains(expect)),
            "{expect}: {findings:?}"
        );
        assert_eq!(host.text("home/core/secret"), "a secret\n");
        assert_eq!(
            std::fs::read_dir(host.path("elsewhere")).unwrap().count(),
            1
        );
        // The others have theirs.
        assert!(
            host.text("home/alice/.ssh/authorized_keys")
                .contains("AAAA y")
        );
        assert_eq!(host.text("etc/z"), "z");
    };
    let ssh = |host: &Host| {
        std::fs::create_dir_all(host.path("home/core/.ssh")).unwrap();
        host.path("home/core/.ssh/authorized_keys")
    };
    check(
        &|host| symlink(host.path("elsewhere"), host.path("home/core/.ssh")).unwrap(),
        "/home/core/.ssh/authorized_keys is not written",
    );
    check(&|host| host.put("home/core/.ssh", ""), "is not written");
    check(
        &|host| symlink("../secret", ssh(host)).unwrap(),
        "is not written",
    );
    check(
        &|host| {
            let path = ssh(host);
            std::fs::hard_link(host.path("home/core/secret"), path).unwrap();
        },
        "it belongs to uid",
    );
    check(
        &|host| {
            use rustix::fs::{CWD, FileType, Mode, mknodat};
            mknodat(CWD, ssh(host), FileType::Fifo, Mode::from(0o600), 0).unwrap();
        },
        "authorized_keys is no file",
    );
}

#[test]
fn keys_beside_ours_need_not_be_text() {
    let host = Host::new();
    host.put("home/core/.ssh/authorized_keys", "");
    let path = host.path("home/core/.ssh/authorized_keys");
    std::fs::write(&path, b"ssh-ed25519 AAAA m\xfcller\n").unwrap();
    host.run("#cloud-config\nssh_authorized_keys: [ssh-ed25519 AAAA x]\n");
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.starts_with(b"ssh-ed25519 AAAA m\xfcller\n# BEGIN"));
}

/// A typo must not lock out those who were let in before.
#[test]
fn user_data_that_became_wrong_takes_no_keys_away() {
    let host = Host::new();
    let found = |user_data: &str| Found {
        origin: "a disk".into(),
        user_data: Some(user_data.as_bytes().to_vec()),
        metadata: crate::metadata::Metadata {
            ssh_keys: vec!["ssh-ed25519 AAAA platform".into()],
            ..Default::default()
        },
        ..Found::default()
    };
    let run = |user_data: &str| {
        let given = found(user_data);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400);
        service::run(host.dir.path(), Origin::Given(&given), now, None).unwrap()
    };
    let good = "#cloud-config\nssh_authorized_keys: [ssh-ed25519 AAAA admin]\n";
    assert_eq!(run(good).state, State::Applied);
    let both = host.text("home/core/.ssh/authorized_keys");
    assert!(
        both.contains("platform") && both.contains("admin"),
        "{both}"
    );
    assert_eq!(run("#cloud-config\nhostname: [a]\n").state, State::Invalid);
    let kept = host.text("home/core/.ssh/authorized_keys");
    assert!(
        kept.contains("platform") && kept.contains("admin"),
        "{kept}"
    );
    // What is right again counts alone.
    let other = "#cloud-config\nssh_authorized_keys: [ssh-ed25519 AAAA other]\n";
    assert_eq!(run(other).state, State::Applied);
    let replaced = host.text("home/core/.ssh/authorized_keys");
    assert!(
        !replaced.contains("admin") && replaced.contains("other"),
        "{replaced}"
    );
}

/// An account that cannot be made does not keep the platform's keys away.
#[test]
fn what_fails_half_way_leaves_a_way_in() {
    let host = Host::new();
    // Not to be seen beforehand: what is to become the home cannot be made.
    host.put("srv/.part-app", "");
    let given = Found {
        origin: "a disk".into(),
        user_data: Some(b"#cloud-config\nusers:\n- {name: app, homedir: /srv/app}\n".to_vec()),
        metadata: crate::metadata::Metadata {
            ssh_keys: vec!["ssh-ed25519 AAAA platform".into()],
            ..Default::default()
        },
        ..Found::default()
    };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400);
    let status = service::run(host.dir.path(), Origin::Given(&given), now, None).unwrap();
    assert_eq!(status.state, State::Failed, "{status:?}");
    let keys = host.text("home/core/.ssh/authorized_keys");
    assert!(keys.contains("platform"), "{keys}");
}

#[test]
fn everything_that_would_fail_is_named_where_it_stands() {
    let host = Host::new();
    host.put("etc/x/y", "");
    host.put("etc/systemd", "");
    let status = host.run("#cloud-config\nwrite_files:\n- {path: /a}\n- content: x\n  path: /etc/x\ncoreos:\n  units:\n  - {name: a.service, mask: true}\n  - {content: \\$private_ipv4, name: b.service, drop_ins: [{name: 1.conf, content: x}]}\n");
    let root = host.dir.path().to_str().unwrap();
    let findings: Vec<String> = status.findings.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(findings.join("\n").replace(root, ""), @r"
    5:9: error: write_files[1].path: /etc/x: there is a directory in its place
    8:12: error: coreos.units[0].name: /etc/systemd/system/a.service: /etc/systemd is not a directory
    9:37: error: coreos.units[1].name: /etc/systemd/system/b.service: /etc/systemd is not a directory
    9:37: error: coreos.units[1].name: /etc/systemd/system/b.service.d/1.conf: /etc/systemd is not a directory
    ");
    assert!(!host.path("a").exists());
}

#[test]
fn a_bad_file_changes_nothing_and_says_so() {
    let host = Host::new();
    let status = host.run(
        "#cloud-config\nhostname: new\ncoreos:\n  units:\n  - {name: a.service, command: go}\n",
    );
    assert_eq!(
        (status.state, status.changed.len(), status.calls.len()),
        (State::Invalid, 0, 0)
    );
    assert!(!host.path("etc/hostname").exists());
    assert_eq!(Status::read(host.dir.path()), Some(status));
}

#[test]
fn a_script_becomes_a_unit_that_runs_once_per_boot() {
    let host = Host::new();
    let status = host.run("#!/bin/sh\necho hi\n");
    assert_eq!(status.kind, crate::pipeline::Kind::Script);
    host.finish();
    assert_eq!(host.asked(), "reload\nstart cloudinit-script.service");
    let mode = host
        .path(&format!("{}/user-data", crate::plan::SCRIPTS))
        .metadata()
        .unwrap()
        .mode();
    assert_eq!(mode & 0o7777, 0o700);
    host.run("#!/bin/sh\necho hi\n");
    host.finish();
    assert_eq!(host.asked(), "");
}

#[test]
fn keys_of_others_stay() {
    let check = |old: &str, keys: &[&str], expect: &str| {
        let marked = |text: &str| {
            text.replace(
                '<',
                "# BEGIN coreos-cloudinit: these lines are replaced at every boot",
            )
            .replace('>', "# END coreos-cloudinit")
        };
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        assert_eq!(
            authorized_keys(marked(old).as_bytes(), &keys, KEY_NAME),
            marked(expect).into_bytes()
        );
    };
    check("", &["a"], "<\na\n>\n");
    check("mine", &["a", "b"], "mine\n<\na\nb\n>\n");
    check("mine\n<\nold\n>\nlater\n", &["a"], "mine\n<\na\n>\nlater\n");
    check("<\nold\nno end\n", &["a"], "<\nold\nno end\n<\na\n>\n");
}

#[test]
fn metadata_alone_is_enough() {
    let host = Host::new();
    let now = SystemTime::UNIX_EPOCH;
    let status = service::run(host.dir.path(), Origin::Machine(Duration::ZERO), now, None).unwrap();
    assert_eq!(status.state, State::NoData);
    assert_eq!(status.datasource, None);
}
