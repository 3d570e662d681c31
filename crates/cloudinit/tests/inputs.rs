//! What else a user may hand over: archives, Ignition, keys of cloud-init.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step is a failed test; clippy only knows test functions, not their helpers"
)]

use std::time::SystemTime;

use cloudinit::metadata::Metadata;
use cloudinit::pipeline::{self, Input, Outcome};
use cloudinit::plan::{Facts, FileOp};

fn outcome(text: &str) -> Outcome {
    outcome_with(text, &[])
}

/// On a host that has these units.
fn outcome_with(text: &str, units: &[&str]) -> Outcome {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in [
        ("etc/passwd", "core:x:500:500::/home/core:/bin/bash\n"),
        ("etc/group", "core:x:500:\nsudo:x:27:\n"),
        ("etc/issue", "hello\n"),
        ("usr/share/zoneinfo/Europe/Berlin", ""),
    ] {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    for unit in units {
        let dir = root.path().join("usr/lib/systemd/system");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(unit), "").unwrap();
    }
    let facts = Facts::read(root.path(), SystemTime::UNIX_EPOCH).unwrap();
    let input = Input {
        user_data: Some(text.as_bytes()),
        metadata: Metadata::default(),
        ..Input::default()
    };
    pipeline::plan(&input, &facts)
}

/// Findings, accounts, files and calls, a line each.
fn show(text: &str) -> String {
    let outcome = outcome(text);
    let plan = outcome.plan;
    let mut lines: Vec<String> = outcome.findings.iter().map(ToString::to_string).collect();
    lines.extend(plan.hostname.map(|name| format!("host name {name}")));
    lines.extend(plan.account_changes);
    lines.extend(
        plan.imports
            .iter()
            .map(|url| format!("fetch {}", url.value.url)),
    );
    for op in &plan.files {
        lines.push(match op {
            FileOp::Write(write) => {
                let text = String::from_utf8_lossy(&write.content).into_owned();
                format!(
                    "{} {:o} {} {text:?}",
                    write.path, write.mode, write.owner.name
                )
            }
            FileOp::Link { path, target, .. } => format!("{path} -> {target}"),
            FileOp::Directory {
                path, mode, owner, ..
            } => format!("{path}/ {mode:o} {}", owner.name),
            other => format!("{other:?}"),
        });
    }
    lines.extend(plan.calls.iter().map(ToString::to_string));
    lines.join("\n")
}

#[test]
fn parts_of_an_archive_add_up() {
    let text = "Content-Type: multipart/mixed; boundary=xx\n\n--xx\nContent-Type: text/cloud-config\n\n#cloud-config\nhostname: a\nwrite_files: [{path: /a}]\n--xx\nContent-Type: text/x-shellscript\n\n#!/bin/sh\none\n--xx\nContent-Type: text/x-shellscript\nContent-Transfer-Encoding: base64\n\nIyEvYmluL3NoCnR3bwo=\n--xx\nContent-Type: text/cloud-config\n\n#cloud-config\nhostname: b\nhostnme: c\nwrite_files: [{path: /b}]\n--xx\nContent-Type: text/part-handler\n\n#part-handler\n--xx--\n";
    insta::assert_snapshot!(show(text));
}

#[test]
fn ignition() {
    let text = r#"{
  "ignition": {"version": "3.4.0"},
  "passwd": {
    "groups": [{"name": "app", "gid": 900}],
    "users": [{"name": "ann", "uid": 1234, "groups": ["sudo"], "homeDir": "/srv/ann", "sshAuthorizedKeys": ["ssh-ed25519 A"]}]
  },
  "storage": {
    "directories": [{"path": "/srv/data", "mode": 488, "user": {"name": "ann"}, "group": {"id": 900}}],
    "files": [
      {"path": "/etc/a", "mode": 384, "contents": {"source": "data:,a%20b%0A"}},
      {"path": "/etc/b", "overwrite": true, "contents": {"compression": "gzip", "source": "data:;base64,H4sIAAAAAAACA0viAgDE8sf2AgAAAA=="}},
      {"path": "/etc/issue", "append": [{"source": "data:,more%0A"}]}
    ],
    "links": [{"path": "/etc/l", "target": "../a"}]
  },
  "systemd": {"units": [
    {"name": "a.service", "enabled": true, "contents": "[Service]\nExecStart=/bin/true\n"},
    {"name": "b.service", "mask": true},
    {"name": "c.service", "dropins": [{"name": "x.conf", "contents": "[Service]\n"}]}
  ]}
}"#;
    insta::assert_snapshot!(show(text));
}

#[test]
fn ignition_that_cannot_be_done() {
    let check = |text: &str, expect: &str| assert_eq!(show(text), expect, "{text}");
    check(
        r#"{"ignition": {"version": "2.2.0"}}"#,
        "1:26: error: ignition.version: version \"2.2.0\" is not supported (3.0.0 to 3.6.0 are)",
    );
    check(
        "{\"ignition\": {\"version\": \"3.0.0\"},\n \"storage\": {\"disks\": [{}],\n \"luks\": [{}]}}",
        "2:23: error: storage.disks: not supported (the system is running already; use units for other disks)\n3:10: error: storage.luks: not supported (the system is running already; use units for other disks)",
    );
    check(
        "{\"ignition\": {\"version\": \"3.0.0\"},\n \"storage\": {\"files\": [{\"path\": \"/a\", \"contents\": {\"source\": \"s3://example/a\"}}]}}",
        "2:62: error: storage.files[0].contents.source: \"s3://example/a\" cannot be fetched (data:, http:// and https:// are supported)",
    );
    check(
        "{\"ignition\": {\"version\": \"3.0.0\"},\n \"storage\": {\"files\": [{\"path\": \"/a\", \"contents\": {\"source\": \"data:,a\", \"verification\": {\"hash\": \"sha256-00\"}}}]}}",
        "2:98: error: storage.files[0].contents.verification.hash: the content has sha256-ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
    );
    check(
        "{\"ignition\": {\"version\": \"3.0.0\"",
        "2:1: error: while parsing a flow mapping, did not find expected ',' or '}'",
    );
}

/// Settings for a service are worth nothing without the service.
#[test]
fn services_that_are_not_here_are_named() {
    let sections = "#cloud-config\ncoreos:\n  etcd2: {name: a}\n  fleet: {}\n  flannel:\n    interface: eth1\n";
    let findings = |text: &str, units: &[&str]| {
        let all = outcome_with(text, units).findings;
        let lines: Vec<String> = all.iter().map(ToString::to_string).collect();
        lines.join("\n")
    };
    assert_eq!(
        findings(sections, &["etcd2.service"]),
        "4:10: warning: coreos.fleet: there is no fleet.service on this host: this section does nothing\n6:5: warning: coreos.flannel: there is no flanneld.service on this host: this section does nothing"
    );
    let units = "#cloud-config\ncoreos:\n  units:\n  - {name: a@1.service, command: start}\n  - {name: b.service, enable: true}\n  - {name: c.service, command: start, content: x}\n  - {name: d.service, command: start}\n  - {name: locksmithd.service, command: start}\n";
    assert_eq!(
        findings(units, &["a@.service", "b.service"]),
        "7:12: warning: coreos.units[3].name: there is no d.service on this host, and no content for it here"
    );
    assert_eq!(findings(units, &[]), "");
}

#[test]
fn keys_of_cloud_init() {
    let source =
        "#cloud-config\nwrite_files: [{path: /a, source: {uri: 'http://x/a', headers: {a: b}}}]\n";
    assert_eq!(show(source), "fetch http://x/a");
    let text = "#cloud-config
fqdn: n1.example.org
manage_etc_hosts: localhost
groups: [app, {ops: [core]}]
users:
- default
- {name: ann, lock_passwd: true, passwd: $6$x, ssh_import_id: [\"gh:ann\", lp:ann], uid: 1234}
- {name: bob, coreos_ssh_import_github: bob, coreos-ssh-import-url: 'https://keys.example/bob'}
ssh_import_id: gh:me
ssh_pwauth: no
timezone: Europe/Berlin
ntp: {servers: [ntp1.example], pools: [pool.example]}
write_files:
- {path: /etc/issue, content: \"more\\n\", append: true, defer: true}
runcmd:
- echo a > /b
- [touch, \"it's\"]
bootcmd:
- echo boot
coreos:
  units: [{name: x.service, command: start}]
";
    insta::assert_snapshot!(show(text));
    assert_eq!(
        show("#cloud-config\ntimezone: Mars/Base\n"),
        "2:11: warning: timezone: the time zone \"Mars/Base\" is not known here"
    );
}
