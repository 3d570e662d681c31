//! What a host tells about itself: update-engine's status file and `orlop status -o json`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Channel, Sha256, Slot, Version};

/// `/run/update-engine/status.json`: what update-engine knows. Every change replaces the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineStatus {
    pub update: UpdateStatus,
    /// A release in the passive slot that the next boot tries.
    pub staged: Option<SlotRelease>,
    /// What `orlop rollback` would boot.
    pub rollback: Option<SlotRelease>,
    /// Releases this host tried and left again; never tried twice.
    #[serde(default)]
    pub failed: Vec<FailedRelease>,
    #[serde(default)]
    pub slots: Vec<SlotStatus>,
    pub channel: Channel,
    /// The Omaha URL that is asked; none when updates are off.
    pub server: Option<String>,
    /// Releases of an earlier one are not taken.
    #[serde(default)]
    pub epoch: u64,
}

/// What update-engine is doing.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UpdateStatus {
    pub state: UpdateState,
    /// 0 to 1 while downloading or writing.
    pub progress: Option<f64>,
    /// The release that is being downloaded or written.
    #[serde(default)]
    pub version: Option<Version>,
    /// How many bytes come over the network for it.
    #[serde(default)]
    pub size: Option<u64>,
    pub last_check: Option<Timestamp>,
    pub last_error: Option<String>,
    /// What kind of error it is, as the number that the server is told; not all have one.
    #[serde(default)]
    pub last_error_code: Option<u16>,
}

#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpdateState {
    #[default]
    Idle,
    Checking,
    Downloading,
    Writing,
    /// Waits for a reboot.
    Staged,
    /// The last attempt failed, `last_error` says why; it is repeated later.
    Error,
}

/// A release and where it lies.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRelease {
    pub version: Version,
    pub slot: Slot,
    /// The kernel that runs is its own too: `systemctl soft-reboot` is enough to get there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub soft_reboot: bool,
}

/// A release that did not become healthy here.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedRelease {
    pub version: Version,
    /// SHA-256 of the signed manifest: a rebuilt release of the same version is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Sha256>,
    pub reason: String,
    pub at: Timestamp,
}

/// One slot as found on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotStatus {
    pub slot: Slot,
    pub booted: bool,
    /// None: empty, or not bootable.
    pub version: Option<Version>,
    #[serde(default)]
    pub root_hash: Option<Sha256>,
    /// The boot entry's counters.
    #[serde(default)]
    pub tries_left: Option<u8>,
    #[serde(default)]
    pub tries_done: Option<u8>,
}

/// How this boot is doing.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// boot-complete.target was reached.
    Healthy,
    /// Not yet.
    Starting,
    /// This boot failed: boot-complete.target was not reached.
    Unhealthy,
}

impl Health {
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Healthy, Self::Starting, Self::Unhealthy]
            .into_iter()
            .find(|h| h.as_str() == name)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Starting => "starting",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `orlop status -o json` on a host. Scripts read it: fields are added, never renamed.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    pub version: Version,
    pub slot: Option<Slot>,
    pub channel: Channel,
    pub health: Health,
    pub staged: Option<SlotRelease>,
    pub rollback: Option<SlotRelease>,
    #[serde(default)]
    pub failed: Vec<FailedRelease>,
    pub update: UpdateStatus,
    pub server: Option<String>,
    pub machine_id: String,
    pub hostname: String,
    pub boot_id: String,
    pub kernel: String,
    /// Releases of an earlier epoch are not taken here: of what runs, or the highest that was good.
    #[serde(default)]
    pub epoch: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_scripts_read() {
        let version = |v: &str| v.parse::<Version>().unwrap();
        let status = HostStatus {
            version: version("2"),
            slot: Some(Slot::B),
            channel: Channel::stable(),
            health: Health::Healthy,
            staged: None,
            rollback: Some(SlotRelease {
                soft_reboot: false,
                version: version("1"),
                slot: Slot::A,
            }),
            failed: vec![FailedRelease {
                version: version("3"),
                id: None,
                reason: "sshd.service failed".into(),
                at: Timestamp::UNIX_EPOCH,
            }],
            update: UpdateStatus {
                state: UpdateState::Downloading,
                progress: Some(0.5),
                version: Some(version("4")),
                size: Some(1000),
                last_check: Some(Timestamp::UNIX_EPOCH),
                last_error: None,
                last_error_code: None,
            },
            server: Some("http://10.0.2.2:8090/v1/update/".into()),
            machine_id: "abc".into(),
            hostname: "node1".into(),
            boot_id: "def".into(),
            kernel: "6.12.0".into(),
            epoch: 1,
        };
        let json = serde_json::to_string_pretty(&status).unwrap();
        insta::assert_snapshot!(json, @r#"
            {
              "version": "2",
              "slot": "b",
              "channel": "stable",
              "health": "healthy",
              "staged": null,
              "rollback": {
                "version": "1",
                "slot": "a"
              },
              "failed": [
                {
                  "version": "3",
                  "reason": "sshd.service failed",
                  "at": "1970-01-01T00:00:00Z"
                }
              ],
              "update": {
                "state": "downloading",
                "progress": 0.5,
                "version": "4",
                "size": 1000,
                "last_check": "1970-01-01T00:00:00Z",
                "last_error": null,
                "last_error_code": null
              },
              "server": "http://10.0.2.2:8090/v1/update/",
              "machine_id": "abc",
              "hostname": "node1",
              "boot_id": "def",
              "kernel": "6.12.0",
              "epoch": 1
            }
            "#);
        assert_eq!(serde_json::from_str::<HostStatus>(&json).unwrap(), status);
    }
}
