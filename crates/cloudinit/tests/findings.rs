//! Every mistake has its line and column, says what to do, and changes nothing.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step is a failed test; clippy only knows test functions, not their helpers"
)]

use std::time::SystemTime;

use cloudinit::finding::Severity;
use cloudinit::metadata::Metadata;
use cloudinit::pipeline::{self, Input, Outcome};
use cloudinit::plan::{Facts, Plan};

fn outcome(text: &str) -> Outcome {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("etc")).unwrap();
    std::fs::write(
        root.path().join("etc/passwd"),
        "core:x:500:500::/home/core:/bin/bash\n",
    )
    .unwrap();
    std::fs::write(root.path().join("etc/group"), "core:x:500:\nsudo:x:27:\n").unwrap();
    let facts = Facts::read(root.path(), SystemTime::UNIX_EPOCH).unwrap();
    let input = Input {
        user_data: Some(text.as_bytes()),
        metadata: Metadata::default(),
        ..Input::default()
    };
    pipeline::plan(&input, &facts)
}

/// The findings of `body` under a header, which is line 1.
fn findings(body: &str) -> String {
    let outcome = outcome(&format!("#cloud-config\n{body}"));
    let lines: Vec<String> = outcome.findings.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// What is left of a plan with errors, where no metadata asks for anything.
fn nothing() -> Plan {
    Plan {
        keep_keys: true,
        ..Plan::default()
    }
}

/// An error: this finding alone, and a plan without anything in it.
#[track_caller]
fn error(body: &str, expect: &str) {
    assert_eq!(findings(body), expect, "\n{body}");
    let outcome = outcome(&format!("#cloud-config\n{body}"));
    assert!(outcome.has_errors(), "{body}");
    assert_eq!(outcome.plan, nothing(), "{body}");
    assert_eq!(outcome.exit(), 1);
}

/// Warnings: the rest counts, and the exit code is 0.
#[track_caller]
fn warning(body: &str, expect: &str) -> Plan {
    assert_eq!(findings(body), expect, "\n{body}");
    let outcome = outcome(&format!("#cloud-config\n{body}"));
    assert!(
        outcome
            .findings
            .iter()
            .all(|f| f.severity == Severity::Warning)
    );
    assert_eq!(outcome.exit(), 0);
    outcome.plan
}

#[test]
fn not_yaml() {
    error(
        "hostname: [a\n",
        "3:1: error: while parsing a flow sequence, expected ',' or ']'",
    );
    error(
        "a: b: c\n",
        "2:5: error: mapping values are not allowed in this context",
    );
    error("hostname: @a\n", "2:11: error: unexpected character: `@'");
    error(
        "\thostname: a\n",
        "2:1: error: a tab cannot indent; use spaces",
    );
    error(
        "a: 'b\n",
        "2:4: error: while scanning a quoted scalar, found unexpected end of stream",
    );
    error(
        "hostname: a\n users: []\n",
        "3:7: error: mapping values are not allowed in this context",
    );
    error(
        "hostname: \"\\q\"\n",
        "2:11: error: while parsing a quoted scalar, found unknown escape character",
    );
    error(
        "hostname: *x\n",
        "2:11: error: while parsing node, found unknown anchor",
    );
    error(
        "hostname: a\u{7}b\n",
        "2:12: error: control characters are not allowed",
    );
    error(
        "users:\n- name: a\n  <<: 3\n",
        "4:7: error: `<<` merges mappings only",
    );
    error(
        "? [a]\n: b\n",
        "2:3: error: a key must be a single value, not a list",
    );
}

#[test]
fn the_wrong_kind_of_value() {
    error(
        "- hostname\n",
        "2:1: error: expected a mapping of keys to values, found a list",
    );
    error(
        "hostname\n",
        "2:1: error: expected a mapping of keys to values, found \"hostname\"",
    );
    error(
        "hostname: [a, b]\n",
        "2:11: error: hostname: expected a single value, found a list",
    );
    error(
        "hostname:\n  name: a\n",
        "3:3: error: hostname: expected a single value, found a mapping",
    );
    error(
        "ssh_authorized_keys: ssh-rsa\n",
        "2:22: error: ssh_authorized_keys: expected a list (lines that start with \"- \"), found \"ssh-rsa\"",
    );
    error(
        "ssh_authorized_keys:\n  - [a]\n",
        "3:5: error: ssh_authorized_keys[0]: expected a single value, found a list",
    );
    error(
        "users: core\n",
        "2:8: error: users: expected a list (lines that start with \"- \"), found \"core\"",
    );
    error(
        "users:\n  - core\n",
        "3:5: error: users[0]: expected a mapping of keys to values, found \"core\"",
    );
    error(
        "users:\n  name: a\n",
        "3:3: error: users: expected a list (lines that start with \"- \"), found a mapping",
    );
    error(
        "write_files: /etc/x\n",
        "2:14: error: write_files: expected a list (lines that start with \"- \"), found \"/etc/x\"",
    );
    error(
        "coreos: stable\n",
        "2:9: error: coreos: expected a mapping of keys to values, found \"stable\"",
    );
    error(
        "coreos:\n  units:\n    name: a.service\n",
        "4:5: error: coreos.units: expected a list (lines that start with \"- \"), found a mapping",
    );
    error(
        "coreos:\n  units:\n  - name: a.service\n    enable: maybe\n",
        "5:13: error: coreos.units[0].enable: expected true or false, found \"maybe\"",
    );
    error(
        "coreos:\n  update: reboot\n",
        "3:11: error: coreos.update: expected a mapping of keys to values, found \"reboot\"",
    );
    error(
        "coreos:\n  etcd2:\n    election-timeout: 1s\n",
        "4:23: error: coreos.etcd2.election-timeout: expected a number, found \"1s\"",
    );
    error(
        "coreos:\n  fleet:\n    metadata: [a]\n",
        "4:15: error: coreos.fleet.metadata: expected a single value, found a list",
    );
}

#[test]
fn values_that_cannot_be() {
    error(
        "hostname: a b\n",
        "2:11: error: hostname: \"a b\" is not a host name",
    );
    error(
        "hostname: a/b\n",
        "2:11: error: hostname: \"a/b\" is not a host name",
    );
    error(
        &format!("hostname: {}\n", "x".repeat(65)),
        "2:11: error: hostname: 65 characters; a host name has at most 64",
    );
    error(
        "hostname: |\n  a\n  b\n",
        "3:3: error: hostname: \"a\\nb\\n\" is not a host name",
    );
    error(
        "manage_etc_hosts: true\n",
        "2:19: error: manage_etc_hosts: \"true\" is not supported (the only value is localhost)",
    );
    error(
        "ssh_authorized_keys:\n- |\n  ssh-rsa a\n  ssh-rsa b\n",
        "4:3: error: ssh_authorized_keys[0]: must be a single line",
    );
    error(
        "users:\n- name: 1a\n",
        "3:9: error: users[0].name: \"1a\" is not a valid name (at most 32 letters, digits, \"_\" and \"-\", starting with a letter)",
    );
    error(
        "users:\n- name: \"a:b\"\n",
        "3:9: error: users[0].name: \"a:b\" is not a valid name (at most 32 letters, digits, \"_\" and \"-\", starting with a letter)",
    );
    error(
        "users:\n- name: a\n  passwd: \"x:y\"\n",
        "4:11: error: users[0].passwd: must not contain a colon",
    );
    error(
        "users:\n- name: a\n  homedir: home\n",
        "4:12: error: users[0].homedir: \"home\" is not an absolute path",
    );
    error(
        "users:\n- name: a\n  shell: ../sh\n",
        "4:10: error: users[0].shell: \"../sh\" is not an absolute path",
    );
    error(
        "users:\n- name: a\n  groups: [\"x y\"]\n",
        "4:12: error: users[0].groups: \"x y\" is not a valid name (at most 32 letters, digits, \"_\" and \"-\", starting with a letter)",
    );
    error(
        "users:\n- name: a\n  primary_group: nobody\n",
        "3:9: error: users[0]: group \"nobody\" does not exist",
    );
    error(
        "coreos:\n  update:\n    reboot-strategy: of\n",
        "4:22: error: coreos.update.reboot-strategy: unknown strategy \"of\" (did you mean off?)",
    );
    error(
        "coreos:\n  update:\n    reboot_strategy: false\n",
        "4:22: error: coreos.update.reboot_strategy: unknown strategy \"false\" (one of best-effort, etcd-lock, off, reboot)",
    );
    error(
        "coreos:\n  update:\n    interval: 0\n",
        "4:15: error: coreos.update.interval: must be at least 1s",
    );
    error(
        "coreos:\n  update:\n    interval: soon\n",
        "4:15: error: coreos.update.interval: \"soon\": use seconds, or a duration like 10s, 5m or 1h30m",
    );
}

#[test]
fn files() {
    error(
        "write_files:\n- content: a\n",
        "3:3: error: write_files[0]: a file without a path",
    );
    error(
        "write_files:\n- path: /etc/../../x\n",
        "3:9: error: write_files[0].path: \"/etc/../../x\" has a \"..\" in it (write the path in full)",
    );
    error(
        "write_files:\n- path: /etc/\n",
        "3:9: error: write_files[0].path: \"/etc/\" does not name a file",
    );
    error(
        "write_files:\n- path: /\n",
        "3:9: error: write_files[0].path: \"/\" does not name a file",
    );
    error(
        "write_files:\n- path: /a\n  permissions: 0888\n",
        "4:16: error: write_files[0].permissions: \"0888\" is not an octal mode (e.g. 0644)",
    );
    error(
        "write_files:\n- path: /a\n  permissions: rw-r--r--\n",
        "4:16: error: write_files[0].permissions: \"rw-r--r--\" is not an octal mode (e.g. 0644)",
    );
    error(
        "write_files:\n- path: /a\n  permissions: 77777\n",
        "4:16: error: write_files[0].permissions: \"77777\" is not an octal mode (e.g. 0644)",
    );
    error(
        "write_files:\n- path: /a\n  encoding: bas64\n",
        "4:13: error: write_files[0].encoding: unknown encoding \"bas64\" (did you mean base64?)",
    );
    error(
        "write_files:\n- path: /a\n  encoding: b64\n  content: \"!!\"\n",
        "5:12: error: write_files[0].content: not base64: Invalid symbol 33, offset 0.",
    );
    error(
        "write_files:\n- path: /a\n  encoding: gz+b64\n  content: aGVsbG8=\n",
        "5:12: error: write_files[0].content: not gzip: unexpected end of file",
    );
    error(
        "write_files:\n- path: /a\n  owner: nobody\n",
        "4:10: error: write_files[0].owner: user \"nobody\" does not exist",
    );
    error(
        "write_files:\n- path: /a\n  owner: core:staff\n",
        "4:10: error: write_files[0].owner: group \"staff\" does not exist",
    );
    error(
        "write_files:\n- path: /a\n  content: !!binary \"*\"\n",
        "4:12: error: write_files[0].content: !!binary is not base64: Invalid symbol 42, offset 0.",
    );
}

#[test]
fn units() {
    error(
        "coreos:\n  units:\n  - name: a/b.service\n",
        "4:11: error: coreos.units[0].name: \"a/b.service\" is not a unit's name",
    );
    error(
        "coreos:\n  units:\n  - name: ..\n",
        "4:11: error: coreos.units[0].name: \"..\" is not a unit's name",
    );
    error(
        "coreos:\n  units:\n  - name: a.service\n    command: strat\n",
        "5:14: error: coreos.units[0].command: unknown command \"strat\" (did you mean start?)",
    );
    error(
        "coreos:\n  units:\n  - name: a.service\n    command: enable\n",
        "5:14: error: coreos.units[0].command: unknown command \"enable\" (one of start, stop, restart, reload, try-restart, reload-or-restart, reload-or-try-restart)",
    );
    error(
        "coreos:\n  units:\n  - name: a.service\n    drop-ins:\n    - name: ../x.conf\n      content: y\n",
        "6:13: error: coreos.units[0].drop-ins[0].name: \"../x.conf\" is not a unit's name",
    );
}

#[test]
fn all_errors_of_a_file_are_found_at_once() {
    let found = findings(
        "hostname: a b\nusers:\n- name: 1\nwrite_files:\n- path: x/../y\n  permissions: 9\ncoreos:\n  units:\n  - name: $private_ipv4.service\n    command: stat\n",
    );
    insta::assert_snapshot!(found, @r#"
    2:11: error: hostname: "a b" is not a host name
    4:9: error: users[0].name: "1" is not a valid name (at most 32 letters, digits, "_" and "-", starting with a letter)
    6:9: error: write_files[0].path: "x/../y" has a ".." in it (write the path in full)
    7:16: error: write_files[0].permissions: "9" is not an octal mode (e.g. 0644)
    10:11: warning: $private_ipv4 is not known here and stays as it is (the datasource gives no such address)
    11:14: error: coreos.units[0].command: unknown command "stat" (did you mean start?)
    "#);
}

#[test]
fn odd_but_usable() {
    warning(
        "hostnme: a\n",
        "2:1: warning: hostnme: unknown key, ignored (did you mean hostname?)",
    );
    warning(
        "packages:\n- vim\n",
        "2:1: warning: packages: not supported, ignored (there is no package manager)",
    );
    warning("my_key: 1\n", "2:1: warning: my_key: unknown key, ignored");
    warning(
        "coreos:\n  units:\n  - name: a.service\n    comand: start\n",
        "5:5: warning: coreos.units[0].comand: unknown key, ignored (did you mean command?)",
    );
    let plan = warning(
        "hostname: a\nhostname: b\n",
        "3:1: warning: hostname: given twice, first in line 2 (the later one counts)",
    );
    assert_eq!(plan.hostname.as_deref(), Some("b"));
    let plan = warning(
        "hostname: a_b\n",
        "2:11: warning: hostname: \"a_b\" is not a valid DNS name (use letters, digits and hyphens)",
    );
    assert_eq!(plan.hostname.as_deref(), Some("a_b"));
    warning(
        "users:\n- groups: [sudo]\n",
        "3:3: warning: users[0]: a user without a name is skipped",
    );
    // Also after a mistake elsewhere; but a bad name is one mistake, not two.
    assert_eq!(
        findings("hostname: [a]\nusers:\n- groups: [sudo]\n- name: [b]\n"),
        "2:11: error: hostname: expected a single value, found a list\n\
         4:3: warning: users[0]: a user without a name is skipped\n\
         5:9: error: users[1].name: expected a single value, found a list"
    );
    warning(
        "users:\n- name: a\n  groups: [docker]\n",
        "4:12: warning: users[0].groups: there is no group \"docker\"; it is created",
    );
    warning(
        "ssh_authorized_keys: [abc]\n",
        "2:23: warning: ssh_authorized_keys[0]: does not look like a public SSH key (expected e.g. \"ssh-ed25519 AAAA… comment\")",
    );
    warning(
        "coreos:\n  units:\n  - name: nginx\n    command: start\n",
        "4:11: warning: coreos.units[0]: \"nginx\" has no unit type (did you mean nginx.service?)",
    );
    warning(
        "coreos:\n  units:\n  - command: start\n",
        "4:5: warning: coreos.units[0]: a unit without a name is skipped",
    );
    warning(
        "coreos:\n  units:\n  - name: a.service\n    drop-ins:\n    - name: x\n      content: y\n",
        "6:13: warning: coreos.units[0].drop-ins[0]: systemd ignores \"x\" (a drop-in's name ends in .conf)",
    );
    warning(
        "coreos:\n  units:\n  - name: a.service\n    drop-ins:\n    - name: x.conf\n",
        "6:7: warning: coreos.units[0].drop-ins[0]: a drop-in without name or content is skipped",
    );
    warning(
        "coreos:\n  locksmith:\n    window-start: Thursday\n    window-length: 1h\n",
        "4:19: warning: coreos.locksmith.window-start: locksmith will not reboot: use \"04:00\" or \"Thu 04:00\"",
    );
    warning(
        "coreos: {locksmith: {window-start: Thu 04:00, window-length: long}}\n",
        "2:62: warning: coreos.locksmith.window-length: locksmith will not reboot: use seconds, or a duration like 10s, 5m or 1h30m",
    );
    warning(
        "write_files:\n- path: etc/x\n",
        "3:9: warning: write_files[0].path: \"etc/x\" is taken from /",
    );
}

#[test]
fn dashes_booleans_and_raw_scalars() {
    let plan = warning(
        "write-files:\n- path: /a\n  permissions: 0644\n- path: /b\n  permissions: \"755\"\n- path: /c\n  permissions: 0o600\n  content: !!binary aGk=\ncoreos:\n  update:\n    reboot-strategy: off\n  units:\n  - name: a.service\n    enable: on\n    mask: no\n    drop_ins:\n    - {name: x.conf, content: y}\n",
        "",
    );
    let writes: Vec<String> = plan.writes().map(|w| format!("{w:?}")).collect();
    insta::assert_snapshot!(writes.join("\n"), @r"
    /a 644 0 bytes
    /b 755 0 bytes
    /c 600 2 bytes
    /etc/coreos/update.conf 644 20 bytes
    /etc/systemd/system/a.service.d/x.conf 644 1 bytes
    ");
    let calls: Vec<String> = plan.calls.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(calls.join("\n"), @r"
    enable a.service
    reload systemd
    stop locksmithd.service
    ");
}

/// `!!binary` may stand for what no text can be: packed content among it.
#[test]
fn binary_values() {
    let packed = "H4sIAAAAAAACA8vIBACsKpPYAgAAAA==";
    let body = format!(
        "write_files:\n- path: /a\n  encoding: gz\n  content: !!binary {packed}\n- path: /b\n  content: !!binary /wA=\n"
    );
    let plan = warning(&body, "");
    let contents: Vec<&[u8]> = plan.writes().map(|w| w.content.as_slice()).collect();
    assert_eq!(contents, [&b"hi"[..], &[255, 0]]);
    error(
        "hostname: !!binary /wA=\n",
        "2:11: error: hostname: !!binary that is not text",
    );
}

#[test]
fn keys_of_cloud_init_that_do_nothing_here() {
    warning(
        "preserve_hostname: true\nssh: {emit_keys_to_console: false}\nca-certs: {}\npuppet: {}\nusers:\n- name: a\n  selinux-user: x\n",
        "2:1: warning: preserve_hostname: not supported, ignored (a host name that nobody sets stays)\n\
         3:1: warning: ssh: not supported, ignored\n\
         4:1: warning: ca-certs: not supported, ignored (write the files with write_files)\n\
         5:1: warning: puppet: not supported, ignored (use a unit in coreos.units that runs it in a container)\n\
         8:3: warning: users[0].selinux-user: not supported, ignored",
    );
}

#[test]
fn hashes_stay_out_of_debug_output() {
    let plan = warning(
        "users:\n- name: a\n  passwd: $6$secret\n- name: core\n  passwd: $6$secret\n",
        "",
    );
    assert!(!format!("{plan:?}").contains("secret"));
}
