use std::io;
use std::path::{Path, PathBuf};

/// A file of the host that should be readable and is not.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct ReadError {
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

impl ReadError {
    pub fn not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// `path` seen from `root`. `Path::join` alone would drop the root, because `path` is absolute.
pub fn under(root: &Path, path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    root.join(path.strip_prefix("/").unwrap_or(path))
}

pub(crate) fn read(root: &Path, path: &str) -> Result<String, ReadError> {
    let path = under(root, path);
    std::fs::read_to_string(&path).map_err(|source| ReadError { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_never_dropped() {
        let check = |root: &str, path: &str, expect: &str| {
            assert_eq!(under(Path::new(root), path), Path::new(expect));
        };
        check("/", "/etc/hostname", "/etc/hostname");
        check("/tmp/x", "/etc/hostname", "/tmp/x/etc/hostname");
        check("/tmp/x", "etc/hostname", "/tmp/x/etc/hostname");
    }

    #[test]
    fn the_error_names_the_path_and_keeps_the_source_out() {
        let error = read(Path::new("/nonexistent"), "/etc/x").unwrap_err();
        assert!(error.not_found());
        assert_eq!(error.to_string(), "cannot read /nonexistent/etc/x");
    }
}
