//! Reading what earlier boots left behind. Half-written lines are normal after a crash.

use std::io::Read as _;
use std::path::Path;

use crate::engine::Evidence;
use crate::paths::Paths;

/// Three tries per slot make a handful of lines; anything longer is not ours.
const MOST: u64 = 64 * 1024;

pub(super) fn read(paths: &Paths) -> Evidence {
    let attempts = bounded(&paths.attempts()).unwrap_or_default();
    Evidence {
        attempts: attempts
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect(),
        failure: bounded(&paths.failure()).and_then(|text| match serde_json::from_str(&text) {
            Ok(failure) => Some(failure),
            Err(e) => {
                tracing::warn!("{}: {e}; ignored", paths.failure().display());
                None
            }
        }),
    }
}

fn bounded(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .ok()?
        .take(MOST)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_files_leave_what_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        assert_eq!(read(&paths), Evidence::default());
        std::fs::create_dir_all(paths.attempts().parent().unwrap()).unwrap();
        let hash = "ab".repeat(32);
        let line = format!(r#"{{"version":"2","usrhash":"{hash}","boot_id":"x"}}"#);
        std::fs::write(
            paths.attempts(),
            format!("{line}\n\0\0\0\n{line}\n{}", &line[..30]),
        )
        .unwrap();
        std::fs::write(paths.failure(), &line[..40]).unwrap();
        let evidence = read(&paths);
        assert_eq!((evidence.attempts.len(), evidence.failure), (2, None));
    }
}
