//! Which extensions this host wants: `/etc/orlop/extensions`, a name a line, `#` begins a comment.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use release::{ExtensionName, ExtensionNameError};

use crate::under;

pub const LIST: &str = "/etc/orlop/extensions";

/// Those that the running release has: a name a line, a tab, what it is for.
pub const KNOWN: &str = "/usr/lib/orlop/extensions";

#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}:{line}", path.display())]
    Name {
        path: PathBuf,
        line: usize,
        #[source]
        source: ExtensionNameError,
    },
}

/// In their order, each once. Without the file, none.
pub fn wanted(root: &Path) -> Result<Vec<ExtensionName>, ListError> {
    let path = under(root, LIST);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ListError::Read { path, source }),
    };
    parse(&text).map_err(|(line, source)| ListError::Name { path, line, source })
}

/// The error has the number of the line.
pub fn parse(text: &str) -> Result<Vec<ExtensionName>, (usize, ExtensionNameError)> {
    let mut names = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let name = line.split('#').next().unwrap_or_default().trim();
        if name.is_empty() {
            continue;
        }
        let name: ExtensionName = name.parse().map_err(|e| (number + 1, e))?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// The text with the name in it, or without it; comments stay. None: it is so already.
pub fn changed(text: &str, name: &ExtensionName, want: bool) -> Option<String> {
    let is_it = |line: &str| line.split('#').next().unwrap_or_default().trim() == name.as_str();
    if text.lines().any(is_it) == want {
        return None;
    }
    let mut lines: Vec<&str> = text.lines().filter(|line| want || !is_it(line)).collect();
    if want {
        lines.push(name.as_str());
    }
    Some(lines.iter().map(|line| format!("{line}\n")).collect())
}

/// Whether it is laid over `/usr` now.
pub fn is_merged(root: &Path, name: &ExtensionName) -> bool {
    let release = format!("/usr/lib/extension-release.d/extension-release.{name}");
    under(root, release).exists()
}

/// Names, and what they are for.
pub fn known(root: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(under(root, KNOWN)).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    lines
        .map(|(name, what)| (name.to_owned(), what.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ExtensionName {
        text.parse().unwrap()
    }

    #[test]
    fn a_list_with_comments() {
        let text = "# for the night shift\ndebug  # strace\n\n docker\ndebug\n";
        assert_eq!(parse(text).unwrap(), [name("debug"), name("docker")]);
        assert_eq!(parse("debug\nNo good\n").unwrap_err().0, 2);

        let dir = tempfile::tempdir().unwrap();
        assert!(wanted(dir.path()).unwrap().is_empty());
        fs::create_dir_all(dir.path().join("etc/orlop")).unwrap();
        fs::write(dir.path().join("etc/orlop/extensions"), "a/b\n").unwrap();
        let error = wanted(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("/etc/orlop/extensions:1"), "{error}");
    }

    #[test]
    fn changing_it_keeps_the_rest() {
        let text = "# mine\ndebug # strace\ndocker";
        assert_eq!(changed(text, &name("docker"), true), None);
        assert_eq!(changed(text, &name("other"), false), None);
        assert_eq!(
            changed(text, &name("other"), true).unwrap(),
            "# mine\ndebug # strace\ndocker\nother\n"
        );
        assert_eq!(
            changed(text, &name("debug"), false).unwrap(),
            "# mine\ndocker\n"
        );
    }
}
