//! Everything that will be done, as data and in order: hostname, accounts, keys, files, unit files,
//! calls to systemd. Building a plan reads facts but changes nothing; printing it is the dry run.

mod accounts;
mod already;
mod build;
mod corpus;
mod facts;
mod people;
mod settle;
mod table;
#[cfg(test)]
mod tests;
mod text;

use serde::{Deserialize, Serialize};

use crate::config::{Spanned, Verb};
use crate::finding::Place;
use crate::imports::Import;

pub use accounts::Accounts;
pub use already::is_already;
pub(crate) use already::{is_masked, links_to};
pub use build::{Request, SCRIPTS, build};
pub use corpus::sha256;
pub use facts::{Facts, FactsError};

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub hostname: Option<String>,
    /// The user-data gives it, not the platform.
    pub own_hostname: bool,
    /// Account files that change; in this order a crash leaves no half account (`passwd` is last).
    pub accounts: Vec<FileWrite>,
    /// The same as a person would say it; no hashes.
    pub account_changes: Vec<String>,
    pub homes: Vec<Home>,
    pub keys: Vec<Keys>,
    /// Under which name they stand, where it is not ours.
    pub key_name: Option<String>,
    /// Keys that earlier user-data gave stay: this is not all that there was to be.
    pub keep_keys: bool,
    /// What is fetched, keys included.
    pub imports: Vec<Spanned<Import>>,
    pub files: Vec<FileOp>,
    pub calls: Vec<Call>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileOp {
    Write(FileWrite),
    /// A masked unit: a link to `/dev/null`.
    Mask {
        path: String,
        place: Place,
    },
    /// Made, or given this mode and owner.
    Directory {
        path: String,
        mode: u32,
        owner: Owner,
        place: Place,
    },
    /// A symbolic link, in place of whatever file is there.
    Link {
        path: String,
        target: String,
        place: Place,
    },
    /// Takes a mask away, and nothing else.
    Unmask {
        path: String,
    },
}

impl FileOp {
    pub fn path(&self) -> &str {
        match self {
            Self::Write(FileWrite { path, .. })
            | Self::Mask { path, .. }
            | Self::Directory { path, .. }
            | Self::Link { path, .. }
            | Self::Unmask { path } => path,
        }
    }

    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Write(FileWrite { place, .. })
            | Self::Mask { place, .. }
            | Self::Directory { place, .. }
            | Self::Link { place, .. } => Some(place),
            Self::Unmask { .. } => None,
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct FileWrite {
    pub path: String,
    pub content: Vec<u8>,
    pub mode: u32,
    pub owner: Owner,
    pub place: Place,
}

/// The content may be a secret.
impl std::fmt::Debug for FileWrite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {:o} {} bytes",
            self.path,
            self.mode,
            self.content.len()
        )
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
    /// `user:group`, numbers where there is no name.
    pub name: String,
}

impl Owner {
    pub fn root() -> Self {
        Self {
            uid: 0,
            gid: 0,
            name: "root:root".to_owned(),
        }
    }
}

/// A home directory to make if it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    pub path: String,
    pub uid: u32,
    pub gid: u32,
    pub place: Place,
}

/// Keys that a user's `authorized_keys` gets under our name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    pub user: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
    pub keys: Vec<String>,
    pub place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Call {
    Enable { unit: String, runtime: bool },
    Reload,
    Unit { verb: Verb, unit: String },
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Enable {
                unit,
                runtime: false,
            } => write!(f, "enable {unit}"),
            Self::Enable {
                unit,
                runtime: true,
            } => write!(f, "enable {unit} until the next boot"),
            Self::Reload => f.write_str("reload systemd"),
            Self::Unit { verb, unit } => write!(f, "{verb} {unit}"),
        }
    }
}

impl Plan {
    /// Every file that is written with content, in order.
    pub fn writes(&self) -> impl Iterator<Item = &FileWrite> {
        let files = self.files.iter().filter_map(|op| match op {
            FileOp::Write(write) => Some(write),
            _ => None,
        });
        self.accounts.iter().chain(files)
    }
}
