//! Real configs and what the original did with them, where that collection lies beside the repository.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step is a failed test; clippy only knows test functions, not their helpers"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cloudinit::metadata::Metadata;
use cloudinit::pipeline::{self, Input};
use cloudinit::plan::Facts;
use serde_json::Value;

/// `CLOUD_CONFIG_CORPUS` names another collection of the same form.
fn corpus() -> Option<PathBuf> {
    let beside = "../../../shared/conformance/cloud-config";
    let dir = match std::env::var_os("CLOUD_CONFIG_CORPUS") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join(beside),
    };
    dir.is_dir().then_some(dir)
}

/// Where we differ on purpose: sample, and why.
const DIFFERENCES: &[(&str, &str)] = &[(
    "206-",
    "bootcmd, a key of cloud-init, is run; the original passes over it",
)];

#[test]
fn plans_match_the_recorded_runs() {
    let Some(dir) = corpus() else {
        eprintln!("no recorded runs here");
        return;
    };
    let root = tempfile::tempdir().unwrap();
    base_system(&dir, root.path());
    let mut names: Vec<_> = std::fs::read_dir(dir.join("samples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    let mut different = Vec::new();
    for sample in &names {
        let stem = sample.file_stem().unwrap().to_str().unwrap();
        let expected = std::fs::read_to_string(dir.join(format!("expected/{stem}.json"))).unwrap();
        let expected: Value = serde_json::from_str(&expected).unwrap();
        let ours = plan(&std::fs::read(sample).unwrap(), root.path());
        let mut report = String::new();
        for key in ["exit", "calls"] {
            if ours[key] != expected[key] {
                report += &format!("  {key}: {}\n  instead of {}\n", ours[key], expected[key]);
            }
        }
        compare_files(&ours["files"], &expected["files"], &mut report);
        let excuse = DIFFERENCES.iter().find(|(name, _)| stem.starts_with(name));
        match excuse {
            Some((_, why)) if !report.is_empty() => {
                eprintln!("{stem} differs as written: {why}\n{report}");
            }
            None if report.is_empty() => {}
            _ => different.push(format!("{stem}\n{report}")),
        }
    }
    eprintln!("{} of {} match", names.len() - different.len(), names.len());
    assert!(different.is_empty(), "{}", different.join("\n"));
}

fn plan(bytes: &[u8], root: &Path) -> Value {
    let metadata = Metadata {
        addresses: BTreeMap::from([
            ("public_ipv4", "203.0.113.9".to_owned()),
            ("private_ipv4", "10.0.0.9".to_owned()),
        ]),
        ..Metadata::default()
    };
    // The day is in shadow; the runs were recorded on this one.
    let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(20_780 * 86_400);
    let facts = Facts::read(root, now).unwrap();
    let outcome = pipeline::plan(
        &Input {
            user_data: Some(bytes),
            metadata,
            ..Input::default()
        },
        &facts,
    );
    outcome.plan.to_json(outcome.exit(), root)
}

/// The recorder could not name users; such an owner says nothing.
fn compare_files(ours: &Value, expected: &Value, report: &mut String) {
    let (ours, expected) = (ours.as_object().unwrap(), expected.as_object().unwrap());
    for (path, want) in expected {
        let Some(have) = ours.get(path) else {
            *report += &format!("  {path}: missing\n");
            continue;
        };
        let mut want = want.clone();
        if want["owner"]
            .as_str()
            .is_some_and(|owner| owner.contains("UNKNOWN"))
        {
            want["owner"] = have["owner"].clone();
        }
        if *have != want {
            *report += &format!("  {path}: {have}\n  instead of {want}\n");
        }
    }
    for path in ours.keys().filter(|path| !expected.contains_key(*path)) {
        *report += &format!("  {path}: not expected\n");
    }
}

/// The system that the runs were recorded on: that of a recorded run which added the user elroy,
/// without elroy.
fn base_system(dir: &Path, root: &Path) {
    let run = std::fs::read_dir(dir.join("expected"))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .find(|text| text.contains("elroy:x:1000"))
        .unwrap();
    let run: Value = serde_json::from_str(&run).unwrap();
    std::fs::create_dir_all(root.join("etc/default")).unwrap();
    std::fs::create_dir_all(root.join("usr/share/coreos")).unwrap();
    for name in ["passwd", "group", "shadow", "gshadow", "subuid", "subgid"] {
        let text = run["files"][format!("/etc/{name}")]["text"]
            .as_str()
            .unwrap();
        let base: String = text
            .lines()
            .filter(|line| !line.starts_with("elroy"))
            .map(|line| line.replace(",elroy", "") + "\n")
            .collect();
        std::fs::write(root.join("etc").join(name), base).unwrap();
    }
    std::fs::write(root.join("etc/default/useradd"), "SHELL=/bin/sh\n").unwrap();
    let conf = "GROUP=stable\nSERVER=https://example/v1/update/\n";
    std::fs::write(root.join("usr/share/coreos/update.conf"), conf).unwrap();
}
