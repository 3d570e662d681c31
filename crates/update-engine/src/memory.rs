//! What update-engine remembers over reboots: `/var/lib/update-engine/state.json`.

use std::path::Path;

use jiff::Timestamp;
use release::status::FailedRelease;
use release::{Sha256, Slot, Version};
use serde::{Deserialize, Serialize};

use crate::engine::Evidence;
use crate::way::WayName;

/// Old failures and releases give way to new ones: the file stays small for ever.
const MOST_FAILED: usize = 32;
const MOST_KNOWN: usize = 8;
const MOST_REPORTS: usize = 32;
const MOST_CLOSED: usize = 8;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The release that was, or is about to be, written and has not proved itself yet.
    pub staging: Option<Staging>,
    /// The operator went back to the other slot; over with the next boot.
    pub rollback: Option<Rollback>,
    pub failed: Vec<FailedRelease>,
    /// Releases this host wrote or ran: what a root hash on the disk stands for.
    pub known: Vec<Known>,
    /// What failed boots left behind, until it is known which release they were of. Kept here
    /// because marking a boot good forgets it.
    #[serde(skip_serializing_if = "Evidence::is_empty")]
    pub evidence: Evidence,
    /// The root hash of a slot whose exhausted boot entry is no news: we exhausted it ourselves for
    /// an older release, or the operator cleared the failed list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excused: Option<Sha256>,
    /// What the server has not been told yet.
    pub reports: Vec<Report>,
    /// The release whose download the server knows of, and the last failure it heard of: once
    /// per release is news, once per retry is noise.
    pub announced: Option<Sha256>,
    pub complained: Option<(Version, Code)>,
    /// The release that was downloaded to be written when somebody says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downloaded: Option<Sha256>,
    /// The version that was last marked good.
    pub good: Option<Version>,
    /// The highest epoch of a release that was good here; lower ones are refused.
    pub epoch: u64,
    pub last_check: Option<Timestamp>,
    /// Ways that the writer found to lead nowhere. To try one again would cost its download and the other slot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub closed: Vec<ClosedWay>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedWay {
    pub id: Sha256,
    /// The root hash of what ran: the way began there.
    pub from: Option<Sha256>,
    pub way: WayName,
}

/// Noted before the first byte is written, so that no crash leaves a release in a slot that
/// nobody remembers having put there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staging {
    pub version: Version,
    pub id: Sha256,
    pub root_hash: Sha256,
    pub epoch: u64,
    /// Names its kernel part, if its manifest does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Sha256>,
    pub slot: Slot,
    /// The version that ran meanwhile.
    pub from: Version,
    /// The boot in which it was written.
    pub boot_id: String,
    /// The writer said that it is done.
    pub committed: bool,
    /// Somebody wants no reboot for it. It boots all the same, whenever there is one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// What is staged in the same slot as long as nothing of this one is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<Box<Staging>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    pub to: Version,
    pub boot_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    pub version: Version,
    /// None: it came with the disk.
    pub id: Option<Sha256>,
    pub root_hash: Sha256,
}

/// Something the server should hear of; sent when it can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum Report {
    DownloadStarted {
        version: Version,
    },
    Downloaded {
        version: Version,
    },
    Staged {
        version: Version,
    },
    Running {
        version: Version,
        previous: Option<Version>,
    },
    Failed {
        version: Version,
        release: Option<Sha256>,
        code: Code,
        reason: String,
    },
    /// The operator had the failed list cleared.
    FailuresCleared,
}

/// What went wrong, as the number that goes to the server in `errorcode`. What an operator does about
/// it differs from one to the next.
///
/// Codes that came later are written under the name of the one that they were split from: the release
/// that this host falls back to may be older, and has to be able to read the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The server cannot be reached or its answer makes no sense.
    Server = 10,
    /// The manifest is not signed by a trusted key.
    Signature = 20,
    /// A signed release that is older than what runs or is staged.
    #[serde(rename = "unsuitable")]
    Older = 21,
    /// One for another architecture.
    #[serde(rename(serialize = "unsuitable"))]
    Architecture = 22,
    /// One that needs another release first.
    #[serde(rename(serialize = "unsuitable"))]
    MinimumSource = 23,
    /// One of an earlier epoch.
    #[serde(rename(serialize = "unsuitable"))]
    Epoch = 24,
    Download = 30,
    /// The writer failed, or nothing is known of it.
    Write = 40,
    /// The writer refused, and wrote nothing.
    #[serde(rename(serialize = "write"))]
    Refused = 41,
    /// It was booted and did not become healthy, or did not boot.
    FellBack = 50,
    /// The operator went back from it.
    RolledBack = 51,
    /// What TUF's metadata is refused for; see [`release::tuf::Code`].
    MetadataMalformed = 60,
    MetadataBelowThreshold = 61,
    MetadataWrongRole = 62,
    MetadataRollback = 63,
    MetadataExpired = 64,
    MetadataMixAndMatch = 65,
    MetadataEndless = 66,
    WrongTarget = 67,
    NoTarget = 68,
    #[serde(rename(serialize = "metadata_rollback"))]
    MetadataTakenBack = 69,
}

impl From<release::tuf::Code> for Code {
    fn from(code: release::tuf::Code) -> Self {
        use release::tuf::Code as Tuf;
        match code {
            Tuf::Malformed => Self::MetadataMalformed,
            Tuf::BelowThreshold => Self::MetadataBelowThreshold,
            Tuf::WrongRole => Self::MetadataWrongRole,
            Tuf::Rollback => Self::MetadataRollback,
            Tuf::Expired => Self::MetadataExpired,
            Tuf::MixAndMatch => Self::MetadataMixAndMatch,
            Tuf::Endless => Self::MetadataEndless,
            Tuf::WrongTarget => Self::WrongTarget,
            Tuf::NoTarget => Self::NoTarget,
            Tuf::TakenBack => Self::MetadataTakenBack,
        }
    }
}

impl Code {
    const ALL: [Self; 21] = [
        Self::Server,
        Self::Signature,
        Self::Older,
        Self::Architecture,
        Self::MinimumSource,
        Self::Epoch,
        Self::Download,
        Self::Write,
        Self::Refused,
        Self::FellBack,
        Self::RolledBack,
        Self::MetadataMalformed,
        Self::MetadataBelowThreshold,
        Self::MetadataWrongRole,
        Self::MetadataRollback,
        Self::MetadataExpired,
        Self::MetadataMixAndMatch,
        Self::MetadataEndless,
        Self::WrongTarget,
        Self::NoTarget,
        Self::MetadataTakenBack,
    ];

    pub fn number(self) -> u16 {
        self as u16
    }

    pub fn from_number(number: u64) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|code| u64::from(code.number()) == number)
    }

    /// Whether the release ran and was left again, so that no server should offer it to this host
    /// any more. All else may be better at the next try.
    pub fn is_verdict(self) -> bool {
        matches!(self, Self::FellBack | Self::RolledBack)
    }
}

impl Memory {
    /// A missing file is a new host. An unreadable one is put aside: what it knew about failed
    /// releases is lost, but a host that never updates again would be worse.
    pub fn load(path: &Path) -> Self {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Self::default(),
            Err(e) => {
                tracing::error!("{}: {e}; starting without memory", path.display());
                return Self::default();
            }
        };
        serde_json::from_slice(&text).unwrap_or_else(|e| {
            let aside = path.with_extension("json.unreadable");
            tracing::error!(
                "{}: {e}; moved to {}, starting without memory",
                path.display(),
                aside.display()
            );
            let _ = std::fs::rename(path, aside);
            Self::default()
        })
    }

    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        host::atomic::write(path, &text, 0o644, None)?;
        Ok(())
    }

    /// The failure that forbids a release. Without an id (the release came with the disk, not
    /// from us) the version has to do.
    pub fn failure_of(&self, version: &Version, id: Sha256) -> Option<&FailedRelease> {
        self.failed.iter().find(|f| match f.id {
            Some(failed) => failed == id,
            None => f.version == *version,
        })
    }

    pub fn remember_failure(&mut self, failure: FailedRelease) {
        self.failed
            .retain(|f| f.id != failure.id || (f.id.is_none() && f.version != failure.version));
        self.failed.push(failure);
        keep_last(&mut self.failed, MOST_FAILED);
    }

    pub fn remember_release(&mut self, known: Known) {
        self.known.retain(|k| k.root_hash != known.root_hash);
        self.known.push(known);
        keep_last(&mut self.known, MOST_KNOWN);
    }

    pub fn known(&self, root_hash: Sha256) -> Option<&Known> {
        self.known.iter().find(|k| k.root_hash == root_hash)
    }

    pub fn remember_closed(&mut self, way: ClosedWay) {
        self.closed.retain(|w| *w != way);
        self.closed.push(way);
        keep_last(&mut self.closed, MOST_CLOSED);
    }

    pub fn report(&mut self, report: Report) {
        self.reports.push(report);
        keep_last(&mut self.reports, MOST_REPORTS);
    }
}

fn keep_last<T>(list: &mut Vec<T>, most: usize) {
    if list.len() > most {
        list.drain(..list.len() - most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_read_by_older_releases() {
        let old = [
            "server",
            "signature",
            "unsuitable",
            "download",
            "write",
            "fell_back",
            "rolled_back",
            "metadata_malformed",
            "metadata_below_threshold",
            "metadata_wrong_role",
            "metadata_rollback",
            "metadata_expired",
            "metadata_mix_and_match",
            "metadata_endless",
            "wrong_target",
            "no_target",
        ];
        for code in Code::ALL {
            let text = serde_json::to_string(&code).unwrap();
            assert!(old.contains(&text.trim_matches('"')), "{text}");
            serde_json::from_str::<Code>(&text).unwrap();
            assert_eq!(Code::from_number(code.number().into()), Some(code));
        }
        assert_eq!(Code::from_number(99), None);
    }
}
