//! A systemd generator: `/etc/orlop/health.d/*.service` become requirements of
//! `boot-complete.target`, so that a host's own checks decide whether a release is good.
//!
//! Called by systemd before any unit is loaded, and at each reload.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Context as _;
use host::under;

const CHECKS: &str = "/etc/orlop/health.d";
const TARGET: &str = "boot-complete.target";

/// Whose units a check must not take the place of.
const TAKEN: [&str; 2] = ["/etc/systemd/system", "/usr/lib/systemd/system"];

/// Fills systemd's directory. What cannot be used is named in the result; the others count all the
/// same.
pub fn generate(root: &Path, units: &Path) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    let dir = under(root, CHECKS);
    let Ok(entries) = fs::read_dir(&dir) else {
        return Ok(problems);
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    for name in names {
        let path = format!("{CHECKS}/{name}");
        match usable(root, &name) {
            Ok(text) => require(units, &name, &path, &text)
                .with_context(|| format!("{path}: cannot make it a check"))?,
            Err(why) => problems.push(format!("{path} is no check of this host's health: {why}")),
        }
    }
    Ok(problems)
}

/// The unit's text.
fn usable(root: &Path, name: &str) -> Result<String, String> {
    let known = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    match name.strip_suffix(".service") {
        None | Some("") => return Err("its name has to end in .service".into()),
        Some(stem) if !stem.bytes().all(known) => {
            return Err("use letters, digits and : - _ . @ in its name".into());
        }
        Some(stem) if stem.ends_with('@') => {
            return Err("it is a template, and of which instance?".into());
        }
        Some(_) => {}
    }
    for dir in TAKEN {
        if under(root, dir).join(name).symlink_metadata().is_ok() {
            return Err(format!("{dir}/{name} has the same name; take another one"));
        }
    }
    fs::read_to_string(under(root, CHECKS).join(name)).map_err(|e| format!("cannot read it: {e}"))
}

fn require(units: &Path, name: &str, path: &str, text: &str) -> std::io::Result<()> {
    let requires = units.join(format!("{TARGET}.requires"));
    let more = units.join(format!("{name}.d"));
    fs::create_dir_all(&requires)?;
    fs::create_dir_all(&more)?;
    symlink(path, units.join(name))?;
    symlink(format!("../{name}"), requires.join(name))?;
    // Without its end being waited for, a check could not fail.
    let kind = match has_type(text) {
        true => "",
        false => "[Service]\nType=oneshot\n",
    };
    fs::write(
        more.join("10-health.conf"),
        format!("[Unit]\nBefore={TARGET}\n{kind}"),
    )
}

fn has_type(text: &str) -> bool {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .any(|(key, _)| key.trim() == "Type")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_become_requirements() {
        let (root, units) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(generate(root.path(), units.path()).unwrap(), [""; 0]);
        write("usr/lib/systemd/system/sshd.service", "");
        for (name, text) in [
            ("app.service", "[Service]\nExecStart=/usr/bin/true\n"),
            (
                "daemon.service",
                "[Service]\nType=notify\nExecStart=/usr/bin/true\n",
            ),
            ("sshd.service", ""),
            ("many@.service", ""),
            ("README", "What is checked here"),
            (".swap.service", ""),
        ] {
            write(&format!("etc/orlop/health.d/{name}"), text);
        }
        insta::assert_snapshot!(generate(root.path(), units.path()).unwrap().join("\n"), @r"
        /etc/orlop/health.d/README is no check of this host's health: its name has to end in .service
        /etc/orlop/health.d/many@.service is no check of this host's health: it is a template, and of which instance?
        /etc/orlop/health.d/sshd.service is no check of this host's health: /usr/lib/systemd/system/sshd.service has the same name; take another one
        ");
        let link = |path: &str| fs::read_link(units.path().join(path)).unwrap();
        assert_eq!(
            link("app.service"),
            Path::new("/etc/orlop/health.d/app.service")
        );
        let requires = fs::read_dir(units.path().join("boot-complete.target.requires")).unwrap();
        assert_eq!(requires.count(), 2);
        assert_eq!(
            link("boot-complete.target.requires/app.service"),
            Path::new("../app.service")
        );
        let more = |name: &str| {
            fs::read_to_string(units.path().join(format!("{name}.d/10-health.conf"))).unwrap()
        };
        assert_eq!(
            more("app.service"),
            "[Unit]\nBefore=boot-complete.target\n[Service]\nType=oneshot\n"
        );
        assert_eq!(
            more("daemon.service"),
            "[Unit]\nBefore=boot-complete.target\n"
        );
    }
}
