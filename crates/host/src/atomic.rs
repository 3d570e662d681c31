//! Replacing a file so that a reader, or a power cut, sees the old content or the new, never a part.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// How the names of temporary files begin.
const PART: &str = ".part-";

#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {}", path.display())]
pub struct WriteError {
    pub path: PathBuf,
    pub step: &'static str,
    #[source]
    pub source: io::Error,
}

/// Writes `bytes` to `path` by way of a temporary file in the same directory. The directory must exist.
///
/// The order matters: the content is on disk before the name points to it, and the name is on disk
/// before this returns.
pub fn write(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    owner: Option<(u32, u32)>,
) -> Result<(), WriteError> {
    let at = |step| {
        move |source| WriteError {
            path: path.to_owned(),
            step,
            source,
        }
    };
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut temp = tempfile::Builder::new()
        .prefix(PART)
        .tempfile_in(dir)
        .map_err(at("make a temporary file beside"))?;
    temp.write_all(bytes).map_err(at("write"))?;
    // The owner first: chown clears set-id bits.
    if let Some((uid, gid)) = owner {
        fchown(temp.as_file(), Some(uid), Some(gid)).map_err(at("change the owner of"))?;
    }
    temp.as_file()
        .set_permissions(Permissions::from_mode(mode))
        .map_err(at("change the mode of"))?;
    temp.as_file().sync_all().map_err(at("flush"))?;
    temp.persist(path)
        .map_err(|error| at("replace")(error.error))?;
    sync_dir(dir).map_err(at("flush the directory of"))
}

/// Removes `path` for good. That it was not there is fine.
pub fn remove(path: &Path) -> Result<(), WriteError> {
    let at = |step| {
        move |source| WriteError {
            path: path.to_owned(),
            step,
            source,
        }
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(at("remove"))?,
    }
    match path.parent() {
        Some(dir) => sync_dir(dir).map_err(at("flush the directory of")),
        None => Ok(()),
    }
}

/// Removes what a power cut left of writes into a directory. Only for its one writer, before it writes.
pub fn sweep(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_part = entry.file_name().to_string_lossy().starts_with(PART);
        if is_part && entry.file_type().is_ok_and(|it| it.is_file()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Makes the names in `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn replaces_content_and_mode_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.json");
        write(&path, b"old", 0o600, None).unwrap();
        write(&path, b"new", 0o644, None).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_failed_write_keeps_the_old_file_and_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        let error = write(&path, b"new", 0o644, None).unwrap_err();
        assert_eq!(error.step, "replace");
        assert!(error.to_string().contains("taken"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_what_was_left_of_writes_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".part-x1y2z3", "state.json", "usr.part"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        std::fs::create_dir(dir.path().join(".part-dir")).unwrap();
        sweep(dir.path());
        sweep(&dir.path().join("missing"));
        let names = std::fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<_> = names.map(|it| it.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".part-dir", "state.json", "usr.part"]);
    }

    #[test]
    fn a_symlink_is_replaced_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::write(&target, "kept").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write(&link, b"new", 0o644, None).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"kept");
        assert!(std::fs::symlink_metadata(&link).unwrap().is_file());
    }
}
