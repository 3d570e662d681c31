//! Whatever the dialect: the second time, nothing happens.

use std::os::unix::fs::MetadataExt;

use super::*;

const IGNITION: &str = r#"{
  "ignition": {"version": "3.4.0"},
  "storage": {
    "directories": [{"path": "/srv/data", "mode": 448}],
    "files": [
      {"path": "/etc/a", "mode": 384, "contents": {"source": "data:,a%0A"}},
      {"path": "/etc/issue", "append": [{"source": "data:,more%0A"}]}
    ],
    "links": [{"path": "/etc/l", "target": "a"}]
  },
  "systemd": {"units": [{"name": "a.service", "enabled": true, "contents": "[Service]\n"}]}
}"#;

const CLOUD_INIT: &str = "#cloud-config
groups: [app]
ssh_pwauth: no
timezone: Europe/Berlin
ntp: {servers: [ntp.example]}
write_files: [{path: /etc/issue, content: \"more\\n\", append: true}]
runcmd: [echo a]
bootcmd: [echo b]
";

const ARCHIVE: &str = "Content-Type: multipart/mixed; boundary=x

--x

#cloud-config
write_files: [{path: /etc/b}]
--x

#!/bin/sh
one
--x

#!/bin/sh
two
--x--
";

/// Masks that one key sets and another one takes away.
const COREOS: &str = "#cloud-config
hostname: h
ssh_authorized_keys: [ssh-ed25519 AAAA a]
coreos:
  update: {reboot-strategy: off, group: beta}
  locksmith: {window-start: \"04:00\"}
  units:
  - {name: a.service, mask: true, content: \"[Service]\\n\"}
  - {name: b.service, runtime: true, content: \"\"}
  - {name: c.service, runtime: true, mask: true}
";

#[test]
fn the_second_time_nothing_happens() {
    if !is_root() {
        return;
    }
    for (config, changes) in [(IGNITION, 5), (CLOUD_INIT, 10), (ARCHIVE, 5), (COREOS, 9)] {
        let host = Host::new();
        host.put("etc/issue", "hello\n");
        host.put("usr/share/zoneinfo/Europe/Berlin", "");
        let first = host.run(config);
        assert_eq!(first.findings, [], "{config}");
        assert_eq!(first.changed.len(), changes, "{:?}", first.changed);
        host.finish();
        assert_ne!(host.asked(), "");
        let before = host.snapshot();
        assert_eq!(host.run(config).changed, [] as [&str; 0]);
        host.finish();
        assert_eq!(host.asked(), "", "{config}");
        assert_eq!(host.snapshot(), before);
    }
}

#[test]
fn what_ignition_asks_for_is_there() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    host.put("etc/issue", "hello\n");
    host.run(IGNITION);
    assert_eq!(host.text("etc/issue"), "hello\nmore\n");
    assert_eq!(
        std::fs::read_link(host.path("etc/l")).unwrap(),
        Path::new("a")
    );
    let mode = |path| std::fs::metadata(host.path(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode("srv/data"), mode("etc/a")), (0o700, 0o600));
    host.finish();
    assert_eq!(
        host.asked(),
        "enable a.service false\nreload\nstart a.service"
    );
    // A link in place of a file, and a directory that cannot be one.
    host.put("etc/m", "a file");
    let link = r#"{"ignition": {"version": "3.4.0"}, "storage": {"links": [{"path": "/etc/m", "target": "a"}]}}"#;
    host.run(link);
    assert_eq!(host.text("etc/m"), "a\n");
    let blocked =
        r#"{"ignition": {"version": "3.4.0"}, "storage": {"directories": [{"path": "/etc/a"}]}}"#;
    let status = host.run(blocked);
    let finding = status.findings[0].to_string();
    assert!(
        finding.contains("there is a file in its place"),
        "{finding}"
    );
}
