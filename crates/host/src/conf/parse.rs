//! Lines to fragments to one value per key; every value keeps the place it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What other systems' files say and we understand under our name.
const ALIASES: [(&str, &str); 3] = [
    ("LOCKSMITHD_REBOOT_WINDOW_START", "REBOOT_WINDOW_START"),
    ("LOCKSMITHD_REBOOT_WINDOW_LENGTH", "REBOOT_WINDOW_LENGTH"),
    ("LOCKSMITHD_REBOOT_STRATEGY", "REBOOT_STRATEGY"),
];

#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        path: PathBuf,
        line: usize,
        problem: String,
    },
    #[error("{problem}")]
    Incomplete { problem: String },
}

/// A line without effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    pub path: PathBuf,
    pub line: usize,
    pub problem: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.problem)
    }
}

#[derive(Debug, Clone)]
pub(super) struct Origin {
    path: PathBuf,
    line: usize,
    value: String,
}

impl Origin {
    pub(super) fn error(&self, key: &str, problem: String) -> ConfError {
        ConfError::Line {
            path: self.path.clone(),
            line: self.line,
            problem: format!("{key}={}: {problem}", self.value),
        }
    }
}

pub(super) type Fragment = Vec<(String, Origin)>;

pub(super) fn fragment(path: &Path, text: &str) -> Result<Fragment, ConfError> {
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let at = |problem| ConfError::Line {
            path: path.to_owned(),
            line: index + 1,
            problem,
        };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // The file is also sourced by shells elsewhere, so `export` is found in the wild.
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((key, value)) = line.split_once('=') else {
            return Err(at(format!("not KEY=VALUE: {line}")));
        };
        let key = key.trim();
        let value =
            unquote(value.trim()).ok_or_else(|| at(format!("{key}: the quote is not closed")))?;
        lines.push((canonical(key).to_owned(), origin(path, index + 1, value)));
    }
    Ok(lines)
}

/// Our name of `key`.
pub(super) fn canonical(key: &str) -> &str {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == key);
    alias.map_or(key, |(_, ours)| ours)
}

pub(super) fn origin(path: &Path, line: usize, value: &str) -> Origin {
    Origin {
        path: path.to_owned(),
        line,
        value: value.to_owned(),
    }
}

fn unquote(value: &str) -> Option<&str> {
    match value.chars().next() {
        Some(quote @ ('"' | '\'')) => value[1..].strip_suffix(quote),
        _ => Some(value),
    }
}

#[derive(Debug, Default)]
pub(super) struct Merged(BTreeMap<String, Origin>);

impl Merged {
    pub(super) fn add(&mut self, fragment: Fragment) {
        self.0.extend(fragment);
    }

    pub(super) fn origin(&self, key: &str) -> Option<Origin> {
        self.0.get(key).cloned()
    }

    /// Takes the value of `key` out and validates it.
    pub(super) fn take<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfError> {
        match self.0.remove(key) {
            None => Ok(None),
            Some(origin) => parse(&origin.value)
                .map(Some)
                .map_err(|problem| origin.error(key, problem)),
        }
    }

    /// What nobody took.
    pub(super) fn leftovers(self) -> Vec<Warning> {
        let warn = |(key, origin): (String, Origin)| Warning {
            path: origin.path,
            line: origin.line,
            problem: format!("unknown key {key} is ignored"),
        };
        self.0.into_iter().map(warn).collect()
    }
}
