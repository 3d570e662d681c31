//! `os/packages.lock`: what exactly a release was built from.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Locked {
    pub name: String,
    pub version: String,
    pub sha256: String,
}

pub fn parse(text: &str, file: &str) -> Result<Vec<Locked>> {
    let mut locked = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, version, sha256] = words[..] else {
            bail!(
                "{file}:{}: expected `name version sha256`, found `{line}`",
                number + 1
            );
        };
        if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
            bail!(
                "{file}:{}: `{sha256}` is not a SHA-256 in hexadecimal",
                number + 1
            );
        }
        locked.push(Locked {
            name: name.to_owned(),
            version: version.to_owned(),
            sha256: sha256.to_owned(),
        });
    }
    Ok(locked)
}

/// The lock, unless there is none or it was made from another list.
pub fn read(path: &Path, names: &[String]) -> Result<Option<Vec<Locked>>> {
    match std::fs::read_to_string(path) {
        Ok(text) if !is_of(&text, names) => Ok(None),
        Ok(text) => parse(&text, &path.display().to_string()).map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Whether the lock was made from this list of package names.
pub fn is_of(text: &str, names: &[String]) -> bool {
    text.lines().any(|line| line == list_mark(names))
}

fn list_mark(names: &[String]) -> String {
    format!("# list {}", release::Sha256::of(names.join("\n")).short())
}

pub fn write(path: &Path, suite: &str, names: &[String], locked: &[Locked]) -> Result<()> {
    let mut text = format!(
        "# Debian {suite} packages of this release: name, version, SHA-256 of the .deb.\n\
         # Made by `orlop build --update-lock`.\n{}\n",
        list_mark(names)
    );
    for l in locked {
        writeln!(text, "{} {} {}", l.name, l.version, l.sha256)?;
    }
    let part = path.with_extension("lock.part");
    std::fs::write(&part, text).with_context(|| format!("cannot write {}", part.display()))?;
    std::fs::rename(&part, path).with_context(|| format!("cannot write {}", path.display()))
}

pub fn wanted(locked: &[Locked]) -> BTreeSet<(String, String)> {
    locked
        .iter()
        .map(|l| (l.name.clone(), l.version.clone()))
        .collect()
}

pub fn sha256_file(path: &Path) -> Result<String> {
    let mut file =
        std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex::encode(hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_list_makes_the_lock_stale() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("packages.lock");
        let names = ["bash".to_owned()];
        let locked = [Locked {
            name: "bash".into(),
            version: "5".into(),
            sha256: "a".repeat(64),
        }];
        write(&path, "trixie", &names, &locked).unwrap();
        assert_eq!(read(&path, &names).unwrap().unwrap(), locked);
        assert_eq!(read(&path, &["dash".to_owned()]).unwrap(), None);
    }

    #[test]
    fn a_damaged_line_is_named() {
        let err = parse("# x\nbash 5.2\n", "packages.lock")
            .unwrap_err()
            .to_string();
        assert_eq!(
            err,
            "packages.lock:2: expected `name version sha256`, found `bash 5.2`"
        );
        assert!(parse("bash 5 zz\n", "f").is_err());
    }
}
