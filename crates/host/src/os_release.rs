//! os-release(5): which release is running.

use std::collections::BTreeMap;
use std::path::Path;

use crate::file::{self, ReadError};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OsRelease(BTreeMap<String, String>);

impl OsRelease {
    /// Reads `/etc/os-release`, else `/usr/lib/os-release`, as os-release(5) orders them.
    pub fn read(root: &Path) -> Result<Self, ReadError> {
        match file::read(root, "/etc/os-release") {
            Err(error) if error.not_found() => file::read(root, "/usr/lib/os-release"),
            other => other,
        }
        .map(|text| Self::parse(&text))
    }

    /// What the release says of itself: `/etc` is the host's to change, `/usr` is verified.
    pub fn of_usr(root: &Path) -> Result<Self, ReadError> {
        file::read(root, "/usr/lib/os-release").map(|text| Self::parse(&text))
    }

    pub fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| {
            let line = line.trim();
            if line.starts_with('#') {
                return None;
            }
            let (key, value) = line.split_once('=')?;
            Some((key.trim().to_owned(), unquote(value.trim())))
        });
        Self(pairs.collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    pub fn id(&self) -> &str {
        self.get("ID").unwrap_or("linux")
    }

    /// Whether this is an Orlop host at all: the commands that act on one ask first.
    pub fn is_orlop(&self) -> bool {
        self.id() == "orlop"
    }

    /// The version of the release, e.g. `2`.
    pub fn version(&self) -> Option<&str> {
        self.get("IMAGE_VERSION").or_else(|| self.get("VERSION_ID"))
    }

    /// The epoch of the release. Those that do not say it are of the first, which is 0.
    pub fn epoch(&self) -> Result<u64, std::num::ParseIntError> {
        self.get("ORLOP_EPOCH").map_or(Ok(0), str::parse)
    }

    pub fn pretty_name(&self) -> &str {
        self.get("PRETTY_NAME").unwrap_or("Linux")
    }
}

/// Shell quoting as os-release(5) allows it: single or double quotes, a backslash before `"$\``.
fn unquote(value: &str) -> String {
    if let Some(inner) = value.strip_prefix('\'').and_then(|v| v.strip_suffix('\'')) {
        return inner.to_owned();
    }
    let inner = value
        .strip_prefix('"')
        .and_then(|v| v.strip_suffix('"'))
        .unwrap_or(value);
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_quotes_comments_and_escapes() {
        let os = OsRelease::parse(
            "# comment\nID=orlop\nPRETTY_NAME=\"Orlop \\\"2\\\" \\$x\"\nIMAGE_VERSION='2'\nbroken\nVERSION_ID=1\n",
        );
        assert!(os.is_orlop());
        assert_eq!(os.pretty_name(), "Orlop \"2\" $x");
        assert_eq!(os.version(), Some("2"));
        assert_eq!(os.get("broken"), None);
        assert_eq!(os.epoch(), Ok(0));
        assert_eq!(OsRelease::parse("ORLOP_EPOCH=3\n").epoch(), Ok(3));
        assert!(OsRelease::parse("ORLOP_EPOCH=x\n").epoch().is_err());
    }

    #[test]
    fn etc_wins_over_usr_and_absence_names_usr() {
        let dir = tempfile::tempdir().unwrap();
        let error = OsRelease::read(dir.path()).unwrap_err();
        assert!(error.path.ends_with("usr/lib/os-release"));
        std::fs::create_dir_all(dir.path().join("usr/lib")).unwrap();
        std::fs::write(dir.path().join("usr/lib/os-release"), "ID=orlop\n").unwrap();
        assert_eq!(OsRelease::read(dir.path()).unwrap().id(), "orlop");
        std::fs::create_dir_all(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/os-release"), "ID=other\n").unwrap();
        assert_eq!(OsRelease::read(dir.path()).unwrap().id(), "other");
        assert_eq!(OsRelease::of_usr(dir.path()).unwrap().id(), "orlop");
    }
}
