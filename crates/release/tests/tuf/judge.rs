//! python-tuf, the reference implementation, on the same files. `./orlop test` puts it into
//! `.orlop/tools/python`; without it there is no judge, and this says so, or fails if
//! `ORLOP_JUDGES=required`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::repository::{Files, Repository, TARGET, attacks};

fn python() -> Option<Command> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.orlop/tools/python");
    if !tools.join("tuf").is_dir() {
        let left_out = format!("python-tuf is not in {}: not judged", tools.display());
        let required = std::env::var_os("ORLOP_JUDGES").is_some_and(|it| it == "required");
        assert!(!required, "{left_out}");
        eprintln!("{left_out}");
        return None;
    }
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", tools);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/judge-tuf.py"));
    Some(command)
}

fn write(dir: &Path, files: &Files) {
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// What it thinks of `files`, after it has seen `seen`.
fn judged(files: &Files, seen: Option<&Files>) -> Option<String> {
    let mut command = python()?;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    for name in ["now", "before", "cache/targets"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    write(&path("now"), files);
    fs::write(path("root.json"), &Repository::new().build()["1.root.json"]).unwrap();
    let before = seen.map_or(String::new(), |seen| {
        write(&path("before"), seen);
        format!("{}/", path("before").display())
    });
    let output = command
        .arg(format!("{}/", path("now").display()))
        .args([path("root.json"), path("cache")])
        .arg(TARGET)
        .arg(before)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}\n{problem}");
    Some(text)
}

#[test]
fn python_tuf_accepts_what_we_sign() {
    let first = Repository::new().build();
    if let Some(verdict) = judged(&first, None) {
        assert_eq!(verdict, "accepted");
        let newer = Repository {
            version: 2,
            ..Repository::new()
        }
        .build();
        assert_eq!(judged(&newer, Some(&first)).unwrap(), "accepted");
    }
}

#[test]
fn python_tuf_refuses_what_we_refuse() {
    let seen = Repository {
        version: 2,
        ..Repository::new()
    }
    .build();
    for attack in attacks() {
        // Not any exception: one of its own, or of its libraries, would prove nothing.
        if let Some(verdict) = judged(&attack.files, Some(&seen)) {
            assert_eq!(verdict, attack.exception, "{}", attack.name);
        }
    }
}
