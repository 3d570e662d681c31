//! `/run/update-engine/update-engine.prom`: the status as Prometheus' text, for the textfile
//! collector of node_exporter. A file, so that the engine listens nowhere.

use std::fmt::Write as _;

use release::Version;
use release::status::{EngineStatus, UpdateState};

const STATES: [(UpdateState, &str); 6] = [
    (UpdateState::Idle, "idle"),
    (UpdateState::Checking, "checking"),
    (UpdateState::Downloading, "downloading"),
    (UpdateState::Writing, "writing"),
    (UpdateState::Staged, "staged"),
    (UpdateState::Error, "error"),
];

pub(super) fn text(version: &Version, good: bool, status: &EngineStatus) -> String {
    let mut out = Metrics(String::new());
    let info = format!("version=\"{version}\",channel=\"{}\"", status.channel);
    out.begin("info", "What runs here, and whose releases are taken.");
    out.value("info", &info, 1.0);
    out.begin("boot_good", "1: this boot reached boot-complete.target.");
    out.value("boot_good", "", f64::from(u8::from(good)));
    out.begin("state", "1 at what update-engine is doing.");
    for (state, name) in STATES {
        let is = status.update.state == state;
        out.value(
            "state",
            &format!("state=\"{name}\""),
            f64::from(u8::from(is)),
        );
    }
    out.begin("progress_ratio", "How far the download or the writing is.");
    out.value("progress_ratio", "", status.update.progress.unwrap_or(0.0));
    let at = status.update.last_check.map_or(0, |at| at.as_second());
    out.begin(
        "last_check_timestamp_seconds",
        "When the server was last asked; 0: never.",
    );
    out.value("last_check_timestamp_seconds", "", at as f64);
    if let Some(staged) = &status.staged {
        out.begin("staged_info", "The release that the next boot takes.");
        let labels = format!("version=\"{}\",slot=\"{}\"", staged.version, staged.slot);
        out.value("staged_info", &labels, 1.0);
    }
    out.begin("failed_releases", "Releases that this host left.");
    out.value("failed_releases", "", status.failed.len() as f64);
    if status.slots.iter().any(|slot| slot.tries_left.is_some()) {
        out.begin(
            "slot_tries_left",
            "How often the boot loader will still try a slot.",
        );
    }
    for slot in &status.slots {
        if let Some(left) = slot.tries_left {
            let labels = format!("slot=\"{}\",booted=\"{}\"", slot.slot, slot.booted);
            out.value("slot_tries_left", &labels, f64::from(left));
        }
    }
    out.0
}

/// All are gauges. Versions, channels and slots have no character that a label would have to escape.
struct Metrics(String);

impl Metrics {
    fn begin(&mut self, name: &str, help: &str) {
        let _ = writeln!(
            self.0,
            "# HELP orlop_update_{name} {help}\n# TYPE orlop_update_{name} gauge"
        );
    }

    fn value(&mut self, name: &str, labels: &str, value: f64) {
        let _ = match labels {
            "" => writeln!(self.0, "orlop_update_{name} {value}"),
            labels => writeln!(self.0, "orlop_update_{name}{{{labels}}} {value}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use release::status::{SlotRelease, SlotStatus, UpdateStatus};
    use release::{Channel, Slot};

    #[test]
    fn what_prometheus_reads() {
        let status = EngineStatus {
            update: UpdateStatus {
                state: UpdateState::Staged,
                last_check: Some("2026-11-25T12:00:00Z".parse().unwrap()),
                ..UpdateStatus::default()
            },
            staged: Some(SlotRelease {
                soft_reboot: false,
                version: "3".parse().unwrap(),
                slot: Slot::B,
            }),
            rollback: None,
            failed: Vec::new(),
            slots: vec![SlotStatus {
                slot: Slot::A,
                booted: true,
                version: None,
                root_hash: None,
                tries_left: Some(3),
                tries_done: Some(0),
            }],
            channel: Channel::stable(),
            server: None,
            epoch: 0,
        };
        insta::assert_snapshot!(text(&"2".parse().unwrap(), true, &status), @r#"
        # HELP orlop_update_info What runs here, and whose releases are taken.
        # TYPE orlop_update_info gauge
        orlop_update_info{version="2",channel="stable"} 1
        # HELP orlop_update_boot_good 1: this boot reached boot-complete.target.
        # TYPE orlop_update_boot_good gauge
        orlop_update_boot_good 1
        # HELP orlop_update_state 1 at what update-engine is doing.
        # TYPE orlop_update_state gauge
        orlop_update_state{state="idle"} 0
        orlop_update_state{state="checking"} 0
        orlop_update_state{state="downloading"} 0
        orlop_update_state{state="writing"} 0
        orlop_update_state{state="staged"} 1
        orlop_update_state{state="error"} 0
        # HELP orlop_update_progress_ratio How far the download or the writing is.
        # TYPE orlop_update_progress_ratio gauge
        orlop_update_progress_ratio 0
        # HELP orlop_update_last_check_timestamp_seconds When the server was last asked; 0: never.
        # TYPE orlop_update_last_check_timestamp_seconds gauge
        orlop_update_last_check_timestamp_seconds 1795608000
        # HELP orlop_update_staged_info The release that the next boot takes.
        # TYPE orlop_update_staged_info gauge
        orlop_update_staged_info{version="3",slot="b"} 1
        # HELP orlop_update_failed_releases Releases that this host left.
        # TYPE orlop_update_failed_releases gauge
        orlop_update_failed_releases 0
        # HELP orlop_update_slot_tries_left How often the boot loader will still try a slot.
        # TYPE orlop_update_slot_tries_left gauge
        orlop_update_slot_tries_left{slot="a",booted="true"} 3
        "#);
    }
}
