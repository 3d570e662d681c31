//! What the fuzz targets start from, and what they have found, once more: see `fuzz/cloudinit`.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step is a failed test; clippy only knows test functions, not their helpers"
)]

use std::path::{Path, PathBuf};

use cloudinit::network::{Format, render};
use cloudinit::pipeline::{Input, validate};

/// Behind what a target puts before its input.
fn user_data(before: &str, bytes: &[u8]) {
    let bytes = [before.as_bytes(), bytes].concat();
    // YAML ends a line at a carriage return alone, too.
    let lines = bytes.split(|byte| b"\r\n".contains(byte)).count();
    let input = Input {
        user_data: Some(&bytes),
        ..Input::default()
    };
    for finding in validate(&input) {
        assert!(finding.pos.line <= lines + 1, "{finding}");
    }
}

fn network(format: Format, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(converted) = format.convert(&text) else {
        return;
    };
    for file in render(&converted.network) {
        assert!(!file.name.contains('/'), "{}", file.name);
        for line in file.text.lines() {
            let plain = line.is_empty() || line.starts_with(['[', '#']);
            assert!(plain || line.contains('='), "{line:?}");
        }
    }
}

#[test]
fn every_seed_is_read_or_refused() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/cloudinit/seeds");
    let list = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let mut count = 0;
    for dir in list(&seeds) {
        let target = dir.file_name().unwrap().to_str().unwrap().to_owned();
        for seed in list(&dir) {
            let bytes = std::fs::read(&seed).unwrap();
            count += 1;
            match target.as_str() {
                "user_data" => user_data("", &bytes),
                "yaml" => user_data("#cloud-config\n", &bytes),
                "mime" => user_data("Content-Type: multipart/mixed; boundary=x\n", &bytes),
                name => {
                    let format = name.strip_prefix("network_").and_then(Format::named);
                    network(format.unwrap(), &bytes);
                }
            }
        }
    }
    assert!(count >= 12, "only {count} seeds");
}
