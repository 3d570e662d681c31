//! What is wrong, or odd, with a user's file: where it is, how bad, and what to do about it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A place in the file as an editor shows it: both count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pos {
    pub line: usize,
    pub column: usize,
}

impl Pos {
    pub const START: Self = Self { line: 1, column: 1 };
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Where the user's file asks for something: for findings that only show once the host is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub pos: Pos,
    /// e.g. `write_files[1].path`; empty for what no key stands for.
    pub key: String,
}

impl Place {
    pub fn new(pos: Pos, key: impl Into<String>) -> Self {
        let key = key.into();
        Self { pos, key }
    }

    /// The file as a whole, or the platform.
    pub fn whole() -> Self {
        Self::new(Pos::START, "")
    }

    pub fn error(&self, message: impl Into<String>) -> Finding {
        Finding::error(self.pos, self.key.as_str(), message)
    }

    pub fn warning(&self, message: impl Into<String>) -> Finding {
        Finding::warning(self.pos, self.key.as_str(), message)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Odd, and worth a look; the rest of the file is applied.
    Warning,
    /// Nothing of the file is applied.
    Error,
}

/// One remark about the user's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    #[serde(flatten)]
    pub pos: Pos,
    /// The key it is about, e.g. `coreos.units[1].command`; empty for the file as a whole.
    pub path: String,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
}

impl Finding {
    pub fn error(pos: Pos, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, pos, path.into(), message.into())
    }

    pub fn warning(pos: Pos, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, pos, path.into(), message.into())
    }

    fn new(severity: Severity, pos: Pos, path: String, message: String) -> Self {
        Self {
            severity,
            pos,
            path,
            message,
            hint: None,
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// `12:5: error: coreos.units[0].command: …; did you mean …`, the part after the file's name.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{}: {severity}: ", self.pos)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

pub fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(Finding::is_error)
}
