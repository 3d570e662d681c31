//! What the first phase leaves to the network, and what comes of it.

use crate::datasource::Found;
use crate::imports::{Import, Imported, Purpose};
use crate::remote::{Fetched, Remote, Request};
use crate::status::State;

use super::*;

impl Host {
    fn boot(&self, origin: Origin<'_>) -> Status {
        let now = SystemTime::UNIX_EPOCH;
        service::run(self.dir.path(), origin, now, Some(&self.systemd)).unwrap()
    }

    fn first_phase(&self) -> Status {
        self.boot(Origin::Machine(Duration::ZERO))
    }
}

fn found(config: &str) -> Option<Found> {
    Some(Found {
        origin: "ec2 http://169.254.169.254/latest".to_owned(),
        user_data: Some(config.as_bytes().to_vec()),
        ..Found::default()
    })
}

#[test]
fn a_machine_without_a_network_source_starts_nothing() {
    let host = Host::new();
    let status = host.first_phase();
    assert_eq!(status.state, State::NoData);
    assert_eq!(host.asked(), "");
    assert!(!host.path(Request::PATH).exists());
}

#[test]
fn a_cloud_is_asked_once_the_network_is_up() {
    let host = Host::new();
    host.put("sys/class/dmi/id/sys_vendor", "Amazon EC2\n");
    let status = host.first_phase();
    assert_eq!(status.state, State::Waiting);
    assert_eq!(status.tried.last().unwrap(), "ec2: in the network phase");
    assert_eq!(host.asked(), "queue cloudinit-apply.service");
    let request = Request::read(host.dir.path()).unwrap();
    assert_eq!(request.sources, [Remote::Ec2]);
    let fetched = Fetched {
        found: found(
            "#cloud-config\nwrite_files: [{path: /etc/x, content: y}]\ncoreos: {units: [{name: a.service, command: start}]}\n",
        ),
        tried: vec!["ec2: found".to_owned()],
        ..Fetched::default()
    };
    fetched.write(host.dir.path()).unwrap();
    let status = host.boot(Origin::Fetched);
    assert_eq!(status.state, State::Applied);
    assert_eq!(
        status.datasource.as_deref(),
        Some("ec2 http://169.254.169.254/latest")
    );
    assert_eq!(status.changed, ["wrote /etc/x"]);
    host.finish();
    assert_eq!(host.asked(), "start a.service");
    // Asked again in the same boot, nothing happens again.
    let status = host.boot(Origin::Fetched);
    assert_eq!(status.changed, [] as [&str; 0]);
    host.finish();
    assert_eq!(host.asked(), "");
}

#[test]
fn a_cloud_that_does_not_answer_is_told() {
    let host = Host::new();
    host.put("sys/class/dmi/id/sys_vendor", "Hetzner\n");
    host.first_phase();
    let fetched = Fetched {
        tried: vec!["hetzner: no answer".to_owned()],
        ..Fetched::default()
    };
    fetched.write(host.dir.path()).unwrap();
    let status = host.boot(Origin::Fetched);
    assert_eq!(status.state, State::NoData);
    assert_eq!(status.tried[0], "hetzner: no answer");
}

#[test]
fn a_url_comes_before_the_disk_and_the_disk_completes_it() {
    let host = Host::new();
    host.put("proc/cmdline", "cloud-config-url=http://x/y\n");
    host.put(
        "sys/firmware/qemu_fw_cfg/by_name/opt/orlop/user-data/raw",
        "#cloud-config\nhostname: disk\n",
    );
    assert_eq!(host.first_phase().state, State::Waiting);
    assert_eq!(host.asked(), "queue cloudinit-apply.service");
    // Nothing came: what the machine has is taken.
    Fetched::default().write(host.dir.path()).unwrap();
    assert_eq!(host.boot(Origin::Fetched).state, State::Applied);
    assert_eq!(host.text("etc/hostname"), "disk\n");
    let mut file = found("#cloud-config\nhostname: url\n");
    file.as_mut().unwrap().origin = "url http://x/y".to_owned();
    let fetched = Fetched {
        found: file,
        ..Fetched::default()
    };
    fetched.write(host.dir.path()).unwrap();
    host.boot(Origin::Fetched);
    assert_eq!(host.text("etc/hostname"), "url\n");
}

#[test]
fn keys_are_fetched_and_remembered() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let raw = "sys/firmware/qemu_fw_cfg/by_name/opt/orlop/user-data/raw";
    host.put(raw, "#cloud-config\nssh_import_id: gh:me\n");
    assert_eq!(host.first_phase().state, State::Applied);
    assert_eq!(host.asked(), "queue cloudinit-apply.service");
    let url = "https://github.com/me.keys";
    let asked = Request::read(host.dir.path()).unwrap().imports;
    assert_eq!(asked, [Import::new(url, Purpose::Keys)]);
    Fetched::default().write(host.dir.path()).unwrap();
    let finding = host.boot(Origin::Fetched).findings[0].to_string();
    let expect = "2:16: warning: ssh_import_id: no keys came from https://github.com/me.keys";
    assert_eq!(finding, expect);
    let fetched = Fetched {
        imported: Imported {
            keys: [(url.to_owned(), vec!["ssh-ed25519 A me".to_owned()])].into(),
            ..Imported::default()
        },
        ..Fetched::default()
    };
    fetched.write(host.dir.path()).unwrap();
    host.boot(Origin::Fetched);
    let keys = host.text("home/core/.ssh/authorized_keys");
    assert!(keys.contains("ssh-ed25519 A me"), "{keys}");
    // The next boot has them before there is a network.
    host.put("proc/sys/kernel/random/boot_id", "boot-2\n");
    assert_eq!(host.first_phase().changed, [] as [&str; 0]);
    assert_eq!(host.text("home/core/.ssh/authorized_keys"), keys);
}

/// What came for the URLs that the user-data names.
fn came(contents: &[(&str, &str)]) -> Fetched {
    let contents = contents.iter();
    let contents = contents.map(|(url, text)| ((*url).to_owned(), text.as_bytes().to_vec().into()));
    Fetched {
        imported: Imported {
            contents: contents.collect(),
            ..Imported::default()
        },
        ..Fetched::default()
    }
}

const RAW: &str = "sys/firmware/qemu_fw_cfg/by_name/opt/orlop/user-data/raw";

#[test]
fn included_user_data_is_fetched_and_remembered() {
    let host = Host::new();
    host.put(RAW, "#include\nhttp://x/a\nhttp://x/b\n");
    let status = host.first_phase();
    assert_eq!((status.state, status.changed.len()), (State::Applied, 0));
    assert_eq!(host.asked(), "queue cloudinit-apply.service");
    let asked = Request::read(host.dir.path()).unwrap().imports;
    let user_data = |url: &str| Import::new(url, Purpose::UserData);
    assert_eq!(asked, [user_data("http://x/a"), user_data("http://x/b")]);
    // One of them is not enough.
    let a = ("http://x/a", "#cloud-config\nhostname: a\n");
    came(&[a]).write(host.dir.path()).unwrap();
    let status = host.boot(Origin::Fetched);
    assert_eq!(status.state, State::Invalid);
    let expect = "3:1: error: #include: http://x/b could not be fetched";
    assert_eq!(status.findings[0].to_string(), expect);
    assert!(!host.path("etc/hostname").exists());
    // Neither is a bad one.
    let b = (
        "http://x/b",
        "#cloud-config\nwrite_files: [{path: /etc/x, owner: nobody-here}]\n",
    );
    came(&[a, b]).write(host.dir.path()).unwrap();
    let status = host.boot(Origin::Fetched);
    let expect =
        "3:1: error: http://x/b, 2:37: write_files[0].owner: user \"nobody-here\" does not exist";
    assert_eq!(status.findings[0].to_string(), expect);
    let b = (
        "http://x/b",
        "#cloud-config\nwrite_files: [{path: /etc/x}]\n",
    );
    came(&[a, b]).write(host.dir.path()).unwrap();
    assert_eq!(host.boot(Origin::Fetched).state, State::Applied);
    assert_eq!(host.text("etc/hostname"), "a\n");
    assert!(host.path("etc/x").exists());
    // The next boot has them before there is a network, or where there is none.
    host.put("proc/sys/kernel/random/boot_id", "boot-2\n");
    std::fs::remove_file(host.path("etc/x")).unwrap();
    assert_eq!(host.first_phase().changed, ["wrote /etc/x"]);
    Fetched::default().write(host.dir.path()).unwrap();
    assert_eq!(host.boot(Origin::Fetched).state, State::Applied);
}

#[test]
fn a_file_at_a_url_is_written_when_it_is_there() {
    let host = Host::new();
    let hash = crate::plan::sha256(b"right");
    host.put(
        RAW,
        &format!(
            r#"{{"ignition": {{"version": "3.4.0"}}, "storage": {{"files": [
  {{"path": "/etc/here"}},
  {{"path": "/etc/there", "contents": {{"source": "http://x/f", "verification": {{"hash": "sha256-{hash}"}}}}}}
]}}}}"#
        ),
    );
    assert_eq!(host.first_phase().changed, ["wrote /etc/here"]);
    came(&[("http://x/f", "wrong")])
        .write(host.dir.path())
        .unwrap();
    let status = host.boot(Origin::Fetched);
    assert_eq!(status.state, State::Invalid);
    let finding = status.findings[0].to_string();
    let expect =
        "3:88: error: storage.files[1].contents.verification.hash: the content has sha256-";
    assert!(finding.starts_with(expect), "{finding}");
    assert!(!host.path("etc/there").exists());
    came(&[("http://x/f", "right")])
        .write(host.dir.path())
        .unwrap();
    assert_eq!(host.boot(Origin::Fetched).changed, ["wrote /etc/there"]);
    assert_eq!(host.text("etc/there"), "right");
}

#[test]
fn networks_of_the_platform_become_files_of_networkd() {
    let host = Host::new();
    let seed = "var/lib/cloud/seed/nocloud";
    host.put(&format!("{seed}/user-data"), "#cloud-config\n");
    host.put(&format!("{seed}/meta-data"), "instance-id: i\n");
    host.put(
        &format!("{seed}/network-config"),
        "version: 2\nethernets:\n  eth0: {addresses: [192.0.2.5/24], gateway4: 192.0.2.1, wakeonlan: true}\n",
    );
    let status = host.first_phase();
    assert_eq!(status.state, State::Applied);
    let path = "run/systemd/network/05-cloudinit-eth0.network";
    assert!(host.text(path).contains("Address=192.0.2.5/24"));
    assert_eq!(host.asked(), "nudge systemd-networkd.service");
    let finding = status.findings[0].to_string();
    assert_eq!(
        finding,
        "3:69: warning: network-config: wakeonlan: not supported, ignored"
    );
}

#[test]
fn a_key_on_the_command_line() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    host.put("proc/cmdline", "quiet \"sshkey=ssh-ed25519 A pxe\"\n");
    host.first_phase();
    let keys = host.text("home/core/.ssh/authorized_keys");
    assert!(keys.contains("ssh-ed25519 A pxe"), "{keys}");
}

#[test]
fn what_ran_once_runs_again_on_a_copy_of_the_disk() {
    let host = Host::new();
    let seed = "var/lib/cloud/seed/nocloud";
    host.put(
        &format!("{seed}/user-data"),
        "#cloud-config\nruncmd: [echo a]\n",
    );
    let mark = "var/lib/cloudinit/done/runcmd-x";
    let boot = |id: &str| {
        host.put(
            &format!("{seed}/meta-data"),
            &format!("instance-id: {id}\n"),
        );
        assert_eq!(host.first_phase().state, State::Applied);
        host.path(mark).exists()
    };
    boot("one");
    host.put(mark, "");
    assert!(boot("one"));
    assert!(!boot("two"));
}
