//! What others than root have made of the directories on the way.

use std::os::unix::fs::{chown, lchown};

use super::*;

/// Of core's, who is the one user of these hosts.
fn link(host: &Host, target: &str, path: &str) {
    symlink(target, host.path(path)).unwrap();
    lchown(host.path(path), Some(500), Some(500)).unwrap();
}

fn host() -> Host {
    let host = Host::new();
    host.put("etc/secret", "a secret\n");
    host.put("home/core/file", "");
    chown(host.path("home/core"), Some(500), Some(500)).unwrap();
    host
}

#[test]
fn nobody_leads_write_files_elsewhere() {
    if !is_root() {
        return;
    }
    let host = host();
    link(&host, "../../etc", "home/core/.config");
    link(&host, "../../etc/secret", "home/core/.profile");
    link(&host, "../../etc/secret", "home/core/.plain");
    std::fs::hard_link(host.path("etc/secret"), host.path("home/core/.hard")).unwrap();
    std::fs::create_dir(host.path("home/core/.bashrc")).unwrap();
    // Such links are root's, and work.
    host.put("run/x", "");
    std::fs::create_dir(host.path("var")).unwrap();
    symlink("/run", host.path("var/run")).unwrap();
    let config = "#cloud-config
write_files:
- {path: /home/core/.config/conf, content: x}
- {path: /home/core/.profile, content: more, append: true}
- {path: /home/core/.hard, content: more, append: true}
- {path: /home/core/.bashrc, content: x}
- {path: /home/core/file/x, content: x}
- {path: /home/core/.plain, content: plain}
- {path: /home/core/new/x, content: new}
- {path: /var/run/app/z, content: z}
";
    let status = host.run(config);
    assert_eq!(status.state, State::Applied, "{status:?}");
    let root = host.dir.path().to_str().unwrap();
    let findings: Vec<String> = status.findings.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(findings.join("\n").replace(root, ""), @r"
    4:10: warning: write_files[1].path: /home/core/.profile is not written: /home/core/.profile is a link that uid 500 could have made
    5:10: warning: write_files[2].path: /home/core/.hard is not written: the file has another name as well
    3:10: warning: write_files[0].path: /home/core/.config/conf is not written: /home/core/.config is a link that uid 500 could have made
    6:10: warning: write_files[3].path: /home/core/.bashrc is not written: cannot replace /home/core/.bashrc: Is a directory (os error 21)
    7:10: warning: write_files[4].path: /home/core/file/x is not written: /home/core/file is not a directory
    ");
    let etc: Vec<_> = std::fs::read_dir(host.path("etc")).unwrap().collect();
    assert!(
        etc.iter()
            .all(|it| it.as_ref().unwrap().file_name() != "conf")
    );
    assert_eq!(host.text("etc/secret"), "a secret\n");
    let target = std::fs::read_link(host.path("home/core/.profile")).unwrap();
    assert_eq!(target, Path::new("../../etc/secret"));
    // A link in the place of a file is replaced, as everywhere.
    assert_eq!(host.text("home/core/.plain"), "plain");
    assert_eq!(host.text("home/core/new/x"), "new");
    assert_eq!(host.text("run/app/z"), "z");
}

/// What is at the end of a link of root's is what more is put to.
#[test]
fn links_of_root_are_read_through() {
    if !is_root() {
        return;
    }
    let host = host();
    symlink("secret", host.path("etc/link")).unwrap();
    link(&host, "../../etc/secret", "home/core/.more");
    symlink("../home/core/.more", host.path("etc/round")).unwrap();
    let status = host.run(
        "#cloud-config\nwrite_files:\n- {path: /etc/link, content: more, append: true}\n- {path: /etc/round, content: x, append: true}\n",
    );
    assert_eq!(host.text("etc/link"), "a secret\nmore");
    assert!(host.path("etc/round").is_symlink());
    let finding = status.findings[0].to_string();
    assert!(
        finding.contains("is a link that uid 500 could have made"),
        "{finding}"
    );
}

#[test]
fn no_home_is_made_in_the_directory_of_another() {
    if !is_root() {
        return;
    }
    let host = host();
    link(&host, "../../etc", "home/core/up");
    let keys = "ssh_authorized_keys: [ssh-ed25519 AAAA x]";
    let config = format!(
        "#cloud-config\nusers:\n- {{name: app, homedir: /home/core/app, {keys}}}\n- {{name: up, homedir: /home/core/up/a, {keys}}}\n- {{name: ann, {keys}}}\n"
    );
    let status = host.run(&config);
    assert_eq!(status.state, State::Applied, "{status:?}");
    let findings: Vec<String> = status.findings.iter().map(ToString::to_string).collect();
    let root = host.dir.path().to_str().unwrap();
    insta::assert_snapshot!(findings.join("\n").replace(root, ""), @r"
    3:10: warning: users[0].name: /home/core/app is not made: it is below a directory that is not root's
    4:10: warning: users[1].name: /home/core/up/a is not made: /home/core/up is a link that uid 500 could have made
    3:10: warning: users[0]: /home/core/app/.ssh/authorized_keys is not written: there is no /home/core/app
    4:10: warning: users[1]: /home/core/up/a/.ssh/authorized_keys is not written: /home/core/up is a link that uid 500 could have made
    ");
    assert!(!host.path("home/core/app").exists() && !host.path("etc/a").exists());
    assert!(host.path("home/ann/.ssh/authorized_keys").exists());
}
