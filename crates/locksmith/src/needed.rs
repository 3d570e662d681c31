//! `/run/update-engine/reboot-needed`: `{"version":"2","soft":true}`, there only while a staged release waits.

use std::path::Path;

pub const PATH: &str = "/run/update-engine/reboot-needed";

/// The version that waits for a reboot, if one does.
///
/// The file's presence is the message: one that cannot be understood still asks for a reboot, only
/// the version in the log suffers.
pub fn read(root: &Path) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Needed {
        version: String,
    }
    match std::fs::read(host::under(root, PATH)) {
        Ok(bytes) => Some(
            serde_json::from_slice(&bytes)
                .map_or_else(|_| "an unnamed version".to_owned(), |n: Needed| n.version),
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::error!("cannot read {PATH}: {error}; taken as no reboot needed");
            None
        }
    }
}

/// Whether starting userspace anew is enough to get there.
pub fn soft_is_enough(root: &Path) -> bool {
    #[derive(serde::Deserialize)]
    struct Needed {
        #[serde(default)]
        soft: bool,
    }
    let text = std::fs::read(host::under(root, PATH)).unwrap_or_default();
    serde_json::from_slice(&text).is_ok_and(|n: Needed| n.soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presence_is_the_message() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), None);
        let path = host::under(dir.path(), PATH);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, r#"{"version":"2","later":1}"#).unwrap();
        assert_eq!(read(dir.path()).as_deref(), Some("2"));
        assert!(!soft_is_enough(dir.path()));
        std::fs::write(&path, r#"{"version":"2","soft":true}"#).unwrap();
        assert_eq!(read(dir.path()).as_deref(), Some("2"));
        assert!(soft_is_enough(dir.path()));
        std::fs::write(&path, "").unwrap();
        assert_eq!(read(dir.path()).as_deref(), Some("an unnamed version"));
    }
}
