//! Hundreds of bad inputs: each is an error with line and column, and changes nothing.
//!
//! In a text, `§` stands where the error is to be found.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step is a failed test; clippy only knows test functions, not their helpers"
)]

use std::path::Path;
use std::time::SystemTime;

use cloudinit::config::schema;
use cloudinit::finding::Pos;
use cloudinit::metadata::Metadata;
use cloudinit::pipeline::{self, Input};
use cloudinit::plan::{Facts, Plan};
use cloudinit::service::{self, Origin};
use serde_json::Value;

/// Keys, and where in a file they stand: the text before them, with `@` for the key and its value.
const PLACES: &[(&str, &str)] = &[
    ("", "@"),
    ("/properties/users/items/anyOf/1", "users:\n- {@}\n"),
    ("/properties/write_files/items", "write_files:\n- @\n"),
    (
        "/properties/write_files/items/properties/source",
        "write_files:\n- {path: /a, source: {@}}\n",
    ),
    (
        "/properties/coreos/properties/units/items",
        "coreos:\n  units:\n  - {@}\n",
    ),
    (
        "/properties/coreos/properties/units/items/properties/drop_ins/items",
        "coreos:\n  units:\n  - name: a.service\n    drop_ins: [{@}]\n",
    ),
    (
        "/properties/coreos/properties/etcd",
        "coreos:\n  etcd:\n    @\n",
    ),
    (
        "/properties/coreos/properties/etcd2",
        "coreos:\n  etcd2: {@}\n",
    ),
    (
        "/properties/coreos/properties/fleet",
        "coreos: {fleet: {@}}\n",
    ),
    (
        "/properties/coreos/properties/flannel",
        "coreos:\n  flannel:\n    @\n",
    ),
    (
        "/properties/coreos/properties/locksmith",
        "coreos:\n  locksmith: {@}\n",
    ),
    (
        "/properties/coreos/properties/update",
        "coreos:\n  update:\n    @\n",
    ),
    ("/properties/coreos/properties/oem", "coreos: {oem: {@}}\n"),
];

/// Every key of the schema, with values of kinds that it does not take.
fn generated() -> Vec<String> {
    let schema = schema();
    let mut cases = Vec::new();
    for (pointer, around) in PLACES {
        let properties = schema.pointer(&format!("{pointer}/properties")).unwrap();
        for (key, value) in properties.as_object().unwrap() {
            let takes = |kind: &str| match &value["type"] {
                Value::Array(kinds) => kinds.iter().any(|k| k == kind),
                other => other == kind,
            };
            let boolean = takes("boolean") && !takes("number") && !takes("array");
            for (kind, text) in [
                ("array", "[x, y]"),
                ("object", "{a: b}"),
                ("string", "so so"),
            ] {
                if takes(kind) && !(boolean && kind == "string") {
                    continue;
                }
                let entry = format!("{key}: §{text}");
                cases.push(format!("#cloud-config\n{}\n", around.replace('@', &entry)));
            }
        }
    }
    cases
}

/// What no table says.
const MADE: &[&str] = &[
    // Not user-data.
    "§hostname: a\n",
    "§#cloud-confg\n",
    "§# cloud-config\n",
    "§{\"a\": 1}",
    "#include\n§/etc/x\n",
    "#include §ftp://x/\n",
    "§## template: jinja\n#cloud-config\n",
    "§#cloud-boothook\n",
    "§#part-handler\n",
    // Not YAML.
    "#cloud-config\na: §'b\n",
    "#cloud-config\nhostname: §\"\\q\"\n",
    "#cloud-config\nhostname: §@x\n",
    "#cloud-config\nhostname: §`x\n",
    "#cloud-config\nhostname: §%x\n",
    "#cloud-config\n§\thostname: x\n",
    "#cloud-config\nusers:\n\t§- name: x\n",
    "#cloud-config\nhostname: §*x\n",
    "#cloud-config\na: b§: c\n",
    "#cloud-config\n? §[a]\n: b\n",
    "#cloud-config\n<<: §3\n",
    "#cloud-config\nhostname: a§\u{7}\n",
    "#cloud-config\nhostname: a§\u{0}\n",
    "#cloud-config\n§- hostname\n",
    "#cloud-config\n§hostname\n",
    // Host names.
    "#cloud-config\nhostname: §a b\n",
    "#cloud-config\nhostname: §a/b\n",
    "#cloud-config\nhostname: §aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n",
    "#cloud-config\nmanage_etc_hosts: §true\n",
    // Keys and accounts.
    "#cloud-config\nssh_authorized_keys:\n- §\"ssh-rsa A\\nssh-rsa B\"\n",
    "#cloud-config\nssh_authorized_keys:\n- §[ssh-rsa]\n",
    "#cloud-config\nssh_import_id: §x:me\n",
    "#cloud-config\nssh_import_id: §\"gh:../x\"\n",
    "#cloud-config\nusers:\n- name: §1a\n",
    "#cloud-config\nusers:\n- name: §a:b\n",
    "#cloud-config\nusers:\n- name: §../a\n",
    "#cloud-config\nusers:\n- name: §\"a b\"\n",
    "#cloud-config\nusers:\n- {name: a, passwd: §\"x:y\"}\n",
    "#cloud-config\nusers:\n- {name: a, passwd: §\"x\\ny\"}\n",
    "#cloud-config\nusers:\n- {name: a, gecos: §\"x:y\"}\n",
    "#cloud-config\nusers:\n- {name: a, homedir: §home/a}\n",
    "#cloud-config\nusers:\n- {name: a, homedir: §/home/../etc}\n",
    "#cloud-config\nusers:\n- {name: a, shell: §bash}\n",
    "#cloud-config\nusers:\n- {name: a, uid: §-1}\n",
    "#cloud-config\nusers:\n- {name: a, uid: §x}\n",
    "#cloud-config\nusers:\n- {name: §a, uid: 500}\n",
    "#cloud-config\nusers:\n- {name: a, primary_group: §a b}\n",
    "#cloud-config\nusers:\n- {name: §a, primary_group: nobody-has-it}\n",
    "#cloud-config\nusers:\n- {name: a, groups: [§a b]}\n",
    "#cloud-config\nusers:\n- {name: a, coreos-ssh-import-url: §ftp://x}\n",
    "#cloud-config\nusers:\n- {name: a, coreos-ssh-import-github: §a/b}\n",
    "#cloud-config\nusers:\n- {name: a, sudo: §\"ALL\\nb ALL\"}\n",
    "#cloud-config\ngroups: [§a b]\n",
    // Files.
    "#cloud-config\nwrite_files:\n- §content: a\n",
    "#cloud-config\nwrite_files:\n- {path: §/etc/../x}\n",
    "#cloud-config\nwrite_files:\n- {path: §../../etc/x}\n",
    "#cloud-config\nwrite_files:\n- {path: §/}\n",
    "#cloud-config\nwrite_files:\n- {path: §/etc/}\n",
    "#cloud-config\nwrite_files:\n- {path: §\"/a\\nb\"}\n",
    "#cloud-config\nwrite_files:\n- {path: §/etc}\n",
    "#cloud-config\nwrite_files:\n- {path: §/etc/passwd/x}\n",
    "#cloud-config\nwrite_files:\n- {path: /a, permissions: §rw}\n",
    "#cloud-config\nwrite_files:\n- {path: /a, permissions: §0888}\n",
    "#cloud-config\nwrite_files:\n- {path: /a, permissions: §\"17777\"}\n",
    "#cloud-config\nwrite_files:\n- {path: /a, permissions: §+644}\n",
    "#cloud-config\nwrite_files:\n- {path: /a, encoding: §rot13}\n",
    "#cloud-config\nwrite_files:\n- {path: /a, encoding: b64, content: §\"*\"}\n",
    "#cloud-config\nwrite_files:\n- {path: /a, encoding: gz, content: §x}\n",
    "#cloud-config\nwrite_files:\n- {path: /a, encoding: gz+b64, content: §YQ==}\n",
    "#cloud-config\nwrite_files:\n- {path: /a, content: §!!binary \"*\"}\n",
    "#cloud-config\nwrite_files:\n- {path: /a, owner: §nobody-has-it}\n",
    "#cloud-config\nwrite_files:\n- {path: /a, owner: §\"core:nobody-has-it\"}\n",
    "#cloud-config\nwrite_files:\n- {path: /a}\n- {path: /b, permissions: §x}\n",
    // Units.
    "#cloud-config\ncoreos:\n  units:\n  - name: §a/b.service\n",
    "#cloud-config\ncoreos:\n  units:\n  - name: §.service\n",
    "#cloud-config\ncoreos:\n  units:\n  - name: §a b.service\n",
    "#cloud-config\ncoreos:\n  units:\n  - {name: a.service, command: §strat}\n",
    "#cloud-config\ncoreos:\n  units:\n  - {name: a.service, command: §\"start \"}\n",
    "#cloud-config\ncoreos:\n  units:\n  - {name: a.service, enable: §2}\n",
    "#cloud-config\ncoreos:\n  units:\n  - {name: a.service, drop-ins: [{name: §../x.conf, content: a}]}\n",
    // Updates.
    "#cloud-config\ncoreos: {update: {reboot-strategy: §now}}\n",
    "#cloud-config\ncoreos: {update: {interval: §soon}}\n",
    "#cloud-config\ncoreos: {update: {interval: §0s}}\n",
    "#cloud-config\ncoreos: {update: {server: §\"http://a\\nb\"}}\n",
    "#cloud-config\ncoreos: {etcd2: {election-timeout: §soon}}\n",
    "#cloud-config\ncoreos: {fleet: {etcd-request-timeout: §1s}}\n",
    "#cloud-config\ncoreos: {etcd2: {name: §\"a\\nb\"}}\n",
    // Other keys.
    "#cloud-config\ntimezone: §../x\n",
    "#cloud-config\ntimezone: §/etc/passwd\n",
    "#cloud-config\nruncmd: §ls\n",
    "#cloud-config\nntp: {servers: §a}\n",
    // Archives.
    "§Content-Type: multipart/mixed\n\n--x--\n",
    "§Content-Type: multipart/mixed; boundary=x\n\n",
    "MIME-Version: 1.0\n§Content-Type: multipart/mixed; boundary=x\n\n",
    "Content-Type: multipart/mixed; boundary=x\n\n§--x\n\n#!/bin/sh\n",
    "Content-Type: multipart/mixed; boundary=x\n\n--x\n§what\n\n--x--\n",
    "Content-Type: multipart/mixed; boundary=x\n\n--x\n§Content-Transfer-Encoding: rot13\n\n--x--\n",
    "Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Transfer-Encoding: base64\n\n§*\n--x--\n",
    "Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Transfer-Encoding: quoted-printable\n\na\n§=ZZ\n--x--\n",
    "Content-Type: multipart/mixed; boundary=x\n\n--x\n\n#cloud-config\nhostname: §[a]\n--x--\n",
    "Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Transfer-Encoding: base64\n\n§I2Nsb3VkLWNvbmZpZwpob3N0bmFtZTogW2FdCg==\n--x--\n",
    // Ignition.
    "§{\"ignition\": {}}",
    "{\"ignition\": {\"version\": §\"2.3.0\"}}",
    "{\"ignition\": {\"version\": §\"3.9.0\"}}",
    "{\"ignition\": {\"version\": §\"x\"}}",
    "{\"ignition\": {\"version\": \"3.0.0\"}, \"storage\": {\"files\": [{\"path\": §\"etc/x\"}]}}",
    "#cloud-config\nhostname: §!!binary /wA=\n",
    "{\"ignition\": {\"version\": \"3.0.0\", \"config\": §{\"merge\": [{\"source\": \"http://x\"}]}}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"storage\": {\"disks\": §[{\"device\": \"/dev/vda\"}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"storage\": {\"raid\": §[{\"name\": \"a\"}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"storage\": {\"luks\": §[{\"name\": \"a\"}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"storage\": {\"filesystems\": §[{\"device\": \"a\"}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"kernelArguments\": §{\"shouldExist\": [\"a\"]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"storage\": {\"files\": [§{\"mode\": 420}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"storage\": {\"files\": [{\"path\": §\"/a/../b\"}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"storage\": {\"files\": [{\"path\": \"/a\", \"mode\": §4096}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"storage\": {\"files\": [{\"path\": \"/a\", \"contents\": {\"source\": §\"s3://x\"}}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"storage\": {\"files\": [{\"path\": \"/a\", \"contents\": {\"source\": §\"data:;base64,*\"}}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"storage\": {\"files\": [{\"path\": \"/a\", \"contents\": {\"source\": §\"data:,%zz\"}}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"storage\": {\"files\": [{\"path\": \"/a\", \"contents\": {\"compression\": §\"xz\", \"source\": \"data:,\"}}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"storage\": {\"files\": [{\"path\": \"/a\", \"contents\": {\"source\": \"data:,\", \"verification\": {\"hash\": §\"md5-1\"}}}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"storage\": {\"links\": [§{\"path\": \"/a\"}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"storage\": {\"links\": [{\"path\": \"/a\", \"target\": \"b\", \"hard\": §true}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"passwd\": {\"users\": [§{\"uid\": 1}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"passwd\": {\"users\": [{\"name\": \"a\", \"shouldExist\": §false}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"passwd\": {\"groups\": [{\"name\": §\"a b\"}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"systemd\": {\"units\": [§{\"enabled\": true}]}}",
    "{\"ignition\": {\"version\": \"3.0.0\"},\n\"systemd\": {\"units\": [{\"name\": §\"../a.service\"}]}}",
];

fn place(template: &str) -> (String, Pos) {
    let (before, after) = template
        .split_once('§')
        .unwrap_or_else(|| panic!("{template}"));
    let line_start = before.rfind('\n').map_or(0, |index| index + 1);
    let pos = Pos {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    };
    (format!("{before}{after}"), pos)
}

fn host() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let etc = root.path().join("etc");
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::write(etc.join("passwd"), "core:x:500:500::/home/core:/bin/bash\n").unwrap();
    std::fs::write(etc.join("group"), "core:x:500:\n").unwrap();
    root
}

/// Every file and directory but what cloudinit tells of itself.
fn tree(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let text = path.display().to_string();
            let own = ["cloudinit", ".pwd.lock", "run", "var", "lib"];
            if own.iter().any(|name| path.ends_with(name)) {
                continue;
            }
            if path.is_dir() {
                todo.push(path);
                all.push(text);
            } else {
                let content = std::fs::read_to_string(&path).unwrap();
                all.push(format!("{text} {content:?}"));
            }
        }
    }
    all.sort();
    all
}

#[test]
fn every_bad_input_has_its_place_and_changes_nothing() {
    let mut cases = generated();
    let of_tables = cases.len();
    cases.extend(MADE.iter().map(|text| (*text).to_owned()));
    let root = host();
    let before = tree(root.path());
    let facts = Facts::read(root.path(), SystemTime::UNIX_EPOCH).unwrap();
    let mut wrong = Vec::new();
    for template in &cases {
        let (text, pos) = place(template);
        let input = Input {
            user_data: Some(text.as_bytes()),
            metadata: Metadata::default(),
            ..Input::default()
        };
        let mut outcome = pipeline::plan(&input, &facts);
        let objections = cloudinit::apply::check(&outcome.plan, root.path());
        outcome.object(objections, &input, &facts);
        let at_place = outcome
            .findings
            .iter()
            .any(|f| f.is_error() && f.pos == pos);
        let nothing = Plan {
            keep_keys: true,
            ..Plan::default()
        };
        if !at_place || outcome.plan != nothing {
            let found: Vec<String> = outcome.findings.iter().map(ToString::to_string).collect();
            wrong.push(format!(
                "{template}  expected an error at {pos}, found {found:?}"
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    assert!(
        cases.len() >= 300 && MADE.len() >= 100,
        "only {} cases",
        cases.len()
    );
    eprintln!("{} bad inputs, {of_tables} of them generated", cases.len());
    // A part of them goes all the way to the disk.
    for template in MADE {
        let seed = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(seed.path(), place(template).0).unwrap();
        let now = SystemTime::UNIX_EPOCH;
        let status = service::run(root.path(), Origin::File(seed.path()), now, None).unwrap();
        assert_eq!(status.changed, [] as [&str; 0], "{template}");
    }
    assert_eq!(tree(root.path()), before);
}
