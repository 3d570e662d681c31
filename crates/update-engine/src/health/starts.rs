//! What starts a unit: the next boot, or somebody who did so by hand.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use host::{child, under};

const PATIENCE: Duration = Duration::from_secs(10);

/// What a unit hangs from, by systemd's names for it.
const PULLS: [&str; 6] = [
    "WantedBy",
    "RequiredBy",
    "UpheldBy",
    "BoundBy",
    "ConsistsOf",
    "TriggeredBy",
];

/// What cloudinit did in this boot, and does in the next.
const CLOUDINIT: &str = "/run/cloudinit/status.json";

/// Whether a boot starts this unit that runs now: a target pulls it in, be it by way of other units, or the
/// user-data has it started. Where systemd cannot be asked, it counts as if one did.
pub(super) fn by_a_boot(root: &Path, unit: &str) -> bool {
    match is_pulled(unit, &user_data_starts(root), show) {
        Ok(found) => found,
        Err(e) => {
            tracing::warn!("cannot tell whether a boot starts {unit}: {e}");
            true
        }
    }
}

fn show(units: &BTreeSet<String>) -> Result<String, child::ChildError> {
    let mut systemctl = Command::new("systemctl");
    systemctl.arg("show").arg("--property=Names");
    for property in PULLS {
        systemctl.arg(format!("--property={property}"));
    }
    let output = child::run_within(systemctl.arg("--").args(units), PATIENCE)?;
    Ok(output.text())
}

/// From the unit upwards, one question for each step.
fn is_pulled<E>(
    unit: &str,
    user_data: &BTreeSet<String>,
    show: impl Fn(&BTreeSet<String>) -> Result<String, E>,
) -> Result<bool, E> {
    let mut seen = BTreeSet::new();
    let mut next = BTreeSet::from([unit.to_owned()]);
    while !next.is_empty() {
        let text = show(&next)?;
        seen.append(&mut next);
        for line in text.lines() {
            let Some((property, names)) = line.split_once('=') else {
                continue;
            };
            let mut names = names.split_ascii_whitespace();
            if property == "Names" {
                if names.any(|name| user_data.contains(name)) {
                    return Ok(true);
                }
                continue;
            }
            for name in names {
                if name.ends_with(".target") {
                    return Ok(true);
                }
                if !seen.contains(name) {
                    next.insert(name.to_owned());
                }
            }
        }
    }
    Ok(false)
}

/// The units that the user-data has started, by the names it uses.
fn user_data_starts(root: &Path) -> BTreeSet<String> {
    #[derive(serde::Deserialize)]
    struct Status {
        calls: Vec<Called>,
    }
    #[derive(serde::Deserialize)]
    struct Called {
        call: serde_json::Value,
    }
    #[derive(serde::Deserialize)]
    struct Unit {
        verb: String,
        unit: String,
    }
    let Ok(text) = fs::read(under(root, CLOUDINIT)) else {
        return BTreeSet::new();
    };
    let status: Status = serde_json::from_slice(&text).unwrap_or(Status { calls: Vec::new() });
    let calls = status.calls.into_iter().filter_map(|called| {
        let unit = called.call.get("unit")?.clone();
        serde_json::from_value::<Unit>(unit).ok()
    });
    calls
        // Those that try restart what runs only.
        .filter(|call| call.verb.contains("start") && !call.verb.contains("try"))
        .map(|call| call.unit)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulled(answers: &[(&str, &str)], user_data: &[&str]) -> bool {
        let user_data = user_data.iter().map(ToString::to_string).collect();
        let show = |units: &BTreeSet<String>| -> Result<String, ()> {
            let answer = |unit: &String| answers.iter().find(|(name, _)| name == unit);
            let texts = units.iter().map(|unit| answer(unit).map_or("", |(_, a)| a));
            Ok(texts.collect::<Vec<_>>().join("\n\n"))
        };
        is_pulled("etcd.service", &user_data, show).unwrap()
    }

    #[test]
    fn what_a_target_wants_starts_at_boot() {
        let alone = "Names=etcd.service etcd2.service\nWantedBy=\nRequiredBy=";
        assert!(!pulled(&[("etcd.service", alone)], &[]));
        let enabled = "Names=etcd.service\nWantedBy=multi-user.target\nRequiredBy=";
        assert!(pulled(&[("etcd.service", enabled)], &[]));
    }

    #[test]
    fn by_way_of_others() {
        let needed = "Names=etcd.service\nWantedBy=a.service\nRequiredBy=b.service";
        let back = "Names=a.service\nWantedBy=etcd.service";
        let socket = "Names=b.service\nTriggeredBy=b.socket";
        let up = "Names=b.socket\nWantedBy=sockets.target";
        let mut all = vec![
            ("etcd.service", needed),
            ("a.service", back),
            ("b.service", socket),
        ];
        assert!(!pulled(&all, &[]));
        all.push(("b.socket", up));
        assert!(pulled(&all, &[]));
    }

    #[test]
    fn user_data_names_it_as_it_likes() {
        let alone = "Names=etcd.service etcd2.service\nWantedBy=";
        assert!(pulled(&[("etcd.service", alone)], &["etcd2.service"]));
        assert!(!pulled(&[("etcd.service", alone)], &["docker.service"]));
    }

    #[test]
    fn what_cloudinit_says() {
        let dir = tempfile::tempdir().unwrap();
        assert!(user_data_starts(dir.path()).is_empty());
        fs::create_dir_all(dir.path().join("run/cloudinit")).unwrap();
        let text = r#"{"state": "applied", "calls": [
            {"call": "reload", "digest": "", "state": "unneeded"},
            {"call": {"enable": {"unit": "a.service", "runtime": false}}, "digest": "", "state": "done"},
            {"call": {"unit": {"verb": "try-restart", "unit": "b.service"}}, "digest": "", "state": "done"},
            {"call": {"unit": {"verb": "start", "unit": "etcd2.service"}}, "digest": "", "state": "done"}]}"#;
        fs::write(dir.path().join("run/cloudinit/status.json"), text).unwrap();
        let expect = BTreeSet::from(["etcd2.service".to_owned()]);
        assert_eq!(user_data_starts(dir.path()), expect);
    }
}
