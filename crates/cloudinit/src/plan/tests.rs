use std::time::{Duration, SystemTime};

use super::*;
use crate::metadata::Metadata;
use crate::pipeline::{self, Input};

const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash
core:x:500:500::/home/core:/bin/bash
+nis
etcd:x:998:998::/:/usr/sbin/nologin
";
const SHADOW: &str = "core:*:1:0:99999:7:::\n";
const GROUP: &str = "root:x:0:\nsudo:x:27:core\nusers:x:100:\ncore:x:500:\netcd:x:998:\n";

/// Facts of a host with these files beside passwd and group.
fn facts(files: &[(&str, &str)]) -> Facts {
    let dir = tempfile::tempdir().unwrap();
    let shadow = ("etc/shadow", SHADOW);
    for (path, text) in [("etc/passwd", PASSWD), ("etc/group", GROUP), shadow]
        .iter()
        .chain(files)
    {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    Facts::read(
        dir.path(),
        SystemTime::UNIX_EPOCH + Duration::from_secs(7 * 86_400),
    )
    .unwrap()
}

fn plan(body: &str, facts: &Facts) -> Plan {
    let text = format!("#cloud-config\n{body}");
    let input = Input {
        user_data: Some(text.as_bytes()),
        metadata: Metadata::default(),
        ..Input::default()
    };
    let outcome = pipeline::plan(&input, facts);
    assert!(!outcome.has_errors(), "{:?}", outcome.findings);
    outcome.plan
}

/// The lines that `users` adds to the account files, as `file: line`.
fn added(users: &str, files: &[(&str, &str)]) -> String {
    let facts = facts(files);
    let before: Vec<&str> = [PASSWD, GROUP, SHADOW]
        .into_iter()
        .chain(files.iter().map(|(_, text)| *text))
        .flat_map(str::lines)
        .collect();
    let mut lines = Vec::new();
    for write in plan(&format!("users:\n{users}"), &facts).accounts {
        let name = write.path.rsplit('/').next().unwrap().to_owned();
        let text = String::from_utf8(write.content).unwrap();
        let new = text.lines().filter(|line| !before.contains(line));
        lines.extend(new.map(|line| format!("{name}: {line}")));
    }
    lines.join("\n")
}

#[test]
fn users_are_made_as_useradd_makes_them() {
    insta::assert_snapshot!(added("- {name: a}\n- {name: b, passwd: $6$x, gecos: B, homedir: /srv/b, shell: /bin/sh}", &[]), @r"
    group: a:x:1000:
    group: b:x:1001:
    shadow: a:*:7:0:99999:7:::
    shadow: b:$6$x:7:0:99999:7:::
    passwd: a:x:1000:1000::/home/a:/bin/bash
    passwd: b:x:1001:1001:B:/srv/b:/bin/sh
    ");
    insta::assert_snapshot!(added("- {name: a, system: true}\n- {name: b, system: true}", &[]), @r"
    group: a:x:499:
    group: b:x:498:
    shadow: a:*:7::::::
    shadow: b:*:7::::::
    passwd: a:x:499:499::/home/a:/bin/bash
    passwd: b:x:498:498::/home/b:/bin/bash
    ");
    insta::assert_snapshot!(added("- {name: a, no_user_group: true}\n- {name: b, primary_group: sudo, groups: [users, sudo]}", &[]), @r"
    group: sudo:x:27:core,b
    group: users:x:100:b
    shadow: a:*:7:0:99999:7:::
    shadow: b:*:7:0:99999:7:::
    passwd: a:x:1000:100::/home/a:/bin/bash
    passwd: b:x:1001:27::/home/b:/bin/bash
    ");
    insta::assert_snapshot!(added("- {name: a}", &[("etc/subuid", "x:100000:65536\n"), ("etc/subgid", ""), ("etc/gshadow", "sudo:*::core\n")]), @r"
    group: a:x:1000:
    gshadow: a:!::
    subgid: a:100000:65536
    subuid: a:165536:65536
    shadow: a:*:7:0:99999:7:::
    passwd: a:x:1000:1000::/home/a:/bin/bash
    ");
    insta::assert_snapshot!(added("- {name: a}", &[("etc/default/useradd", "# x\nSHELL=/bin/zsh\nHOME=/users\n"), ("etc/login.defs", "UID_MIN\t2000\nUID_MAX 3000\n")]), @r"
    group: a:x:2000:
    shadow: a:*:7:0:99999:7:::
    passwd: a:x:2000:2000::/users/a:/bin/zsh
    ");
}

#[test]
fn an_existing_user_keeps_everything_but_the_password() {
    insta::assert_snapshot!(added("- {name: core, passwd: $6$new, shell: /bin/sh, groups: [users]}", &[]), @"shadow: core:$6$new:7:0:99999:7:::");
    assert_eq!(added("- {name: core, passwd: \"*\"}", &[]), "");
    assert_eq!(added("- {name: core}", &[]), "");
}

#[test]
fn numbers_of_people_are_not_given_away() {
    let passwd = format!("{PASSWD}old:x:1004:1004::/:\nhigh:x:59999:59999::/:\n");
    let facts = facts(&[("etc/passwd", &passwd)]);
    let changes = plan("users: [{name: a}, {name: b}]", &facts).account_changes;
    // Behind the highest, and when that is used up, the lowest free one.
    assert_eq!(changes, ["create user a (60000)", "create user b (1000)"]);
}

#[test]
fn owners_as_chown_takes_them() {
    let accounts = facts(&[]).accounts;
    let check = |text: &str, expect: Result<(u32, u32, &str), &str>| {
        let owner = accounts.owner(text);
        let shown = owner.as_ref().map(|o| (o.uid, o.gid, o.name.as_str()));
        assert_eq!(shown.map_err(String::as_str), expect, "{text}");
    };
    check("root", Ok((0, 0, "root:root")));
    check("core", Ok((500, 0, "core:root")));
    check("core:core", Ok((500, 500, "core:core")));
    check("core:", Ok((500, 500, "core:core")));
    check(":sudo", Ok((0, 27, "root:sudo")));
    check("core.sudo", Ok((500, 27, "core:sudo")));
    check("500:7", Ok((500, 7, "core:7")));
    check("1234", Ok((1234, 0, "1234:root")));
    check("nobody", Err("user \"nobody\""));
    check("core:staff", Err("group \"staff\""));
}

#[test]
fn update_conf_keeps_the_lines_of_the_host() {
    let check = |old: &str, update: &str, expect: &str| {
        let facts = facts(&[("etc/coreos/update.conf", old)]);
        let plan = plan(&format!("coreos:\n  update: {{{update}}}\n"), &facts);
        let write = plan
            .writes()
            .find(|w| w.path == "/etc/coreos/update.conf")
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&write.content), expect);
    };
    check(
        "# mine\nGROUP=stable\nX=1\n",
        "group: beta, interval: 10s",
        "# mine\nGROUP=beta\nX=1\nPOLL_INTERVAL=10s\n",
    );
    check("GROUPS=1", "group: beta", "GROUPS=1\nGROUP=beta\n");
    check(
        "",
        "reboot-strategy: off, server: \"http://a/\"",
        "REBOOT_STRATEGY=off\nSERVER=http://a/\n",
    );
}

#[test]
fn a_file_is_written_once_with_all_that_is_said_about_it() {
    let facts = facts(&[("etc/coreos/update.conf", "ON_DISK=1\n")]);
    let check = |body: &str, path: &str, expect: &str| {
        let plan = plan(body, &facts);
        let writes: Vec<String> = plan
            .writes()
            .filter(|write| write.path == path)
            .map(|write| {
                let text = String::from_utf8_lossy(&write.content);
                format!("{:o} {text}", write.mode)
            })
            .collect();
        assert_eq!(writes, [expect]);
    };
    let conf = "/etc/coreos/update.conf";
    check(
        "write_files:\n- path: /etc/coreos/update.conf\n  permissions: '0600'\n  content: |\n    GROUP=alpha\n    REBOOT_WINDOW_START=04:00\ncoreos: {update: {group: beta, reboot-strategy: off}}\n",
        conf,
        "600 GROUP=beta\nREBOOT_WINDOW_START=04:00\nREBOOT_STRATEGY=off\n",
    );
    check(
        "coreos: {update: {group: beta}}\n",
        conf,
        "644 ON_DISK=1\nGROUP=beta\n",
    );
    check(
        "write_files: [{path: /a, content: one}, {path: //a, content: two}]\n",
        "/a",
        "644 two",
    );
}

#[test]
fn metadata_is_below_user_data() {
    let facts = facts(&[]);
    let metadata = Metadata {
        hostname: Some("from-platform".to_owned()),
        ssh_keys: vec!["ssh-rsa AAAA platform".to_owned()],
        ..Metadata::default()
    };
    let check = |user_data: &str, hostname: &str, keys: &str| {
        let input = Input {
            user_data: Some(user_data.as_bytes()),
            metadata: metadata.clone(),
            ..Input::default()
        };
        let plan = pipeline::plan(&input, &facts).plan;
        assert_eq!(plan.hostname.as_deref(), Some(hostname));
        assert_eq!(plan.keys[0].keys.join(", "), keys);
    };
    check("", "from-platform", "ssh-rsa AAAA platform");
    check(
        "#cloud-config\nhostname: mine\nssh_authorized_keys: [ssh-rsa AAAA mine]\n",
        "mine",
        "ssh-rsa AAAA mine, ssh-rsa AAAA platform",
    );
    // A bad file: the host can still be reached.
    check(
        "#cloud-config\nhostname: a b\n",
        "from-platform",
        "ssh-rsa AAAA platform",
    );
    check("#cloud-config\n{", "from-platform", "ssh-rsa AAAA platform");
}

#[test]
fn the_json_form_shows_what_would_change() {
    let facts = facts(&[]);
    let plan = plan(
        "hostname: h\nssh_authorized_keys: [ssh-rsa AAAA x]\nwrite_files: [{path: /a, content: hi}, {path: /b, encoding: b64, content: /w==}]\ncoreos: {units: [{name: x.service, mask: true, runtime: true}, {name: y.service, enable: true, command: try-restart}]}",
        &facts,
    );
    let dir = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(plan.to_json(0, dir.path()), @r#"
    {"calls":[["exec","hostnamectl",["set-hostname","h"]],["exec","update-ssh-keys",["-u","core","-a","coreos-cloudinit"],{"stdin":"ssh-rsa AAAA x"}],["EnableUnitFiles",["y.service"],false,true],["TryRestartUnit","y.service","replace"]],"exit":0,"files":{"/a":{"mode":"644","owner":"root:root","sha256":"8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4","size":2,"text":"hi"},"/b":{"mode":"644","owner":"root:root","sha256":"a8100ae6aa1940d0b663bb31cd466142ebbdbd5187131b92d93818987832eb89","size":1},"/run/systemd/system/x.service":{"link":"/dev/null"}}}
    "#);
}
