//! Paths inside a root directory, the way a process chrooted there would see them.

use std::collections::VecDeque;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// As the kernel: more links than this are a loop.
const MAX_LINKS: usize = 40;

/// Where `path` is under `root`. Links on the way are followed but never lead out of `root`; the last
/// part is not followed, because files are replaced, not written through. Parts that are not there
/// yet are taken as they are.
pub(crate) fn resolve(root: &Path, path: &str) -> io::Result<PathBuf> {
    let mut todo: VecDeque<Vec<u8>> = parts(Path::new(path)).collect();
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        if part == b".." {
            done.pop();
            continue;
        }
        let next = done.join(std::ffi::OsStr::from_bytes(&part));
        let target = match todo.is_empty() {
            true => None,
            false => std::fs::read_link(root.join(&next)).ok(),
        };
        match target {
            None => done = next,
            Some(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::from_raw_os_error(
                        rustix::io::Errno::LOOP.raw_os_error(),
                    ));
                }
                if target.is_absolute() {
                    done = PathBuf::new();
                }
                for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                    todo.push_front(part);
                }
            }
        }
    }
    Ok(root.join(done))
}

fn parts(path: &Path) -> impl Iterator<Item = Vec<u8>> {
    path.components().filter_map(|component| match component {
        Component::Normal(part) => Some(part.as_bytes().to_vec()),
        Component::ParentDir => Some(b"..".to_vec()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("usr/lib")).unwrap();
        symlink("/usr/lib", root.join("lib")).unwrap();
        symlink("../../../..", root.join("up")).unwrap();
        symlink("round", root.join("round")).unwrap();
        let check = |path: &str, expect: &str| {
            assert_eq!(resolve(root, path).unwrap(), root.join(expect), "{path}");
        };
        check("/etc/x", "etc/x");
        check("/lib/systemd/x", "usr/lib/systemd/x");
        check("/up/etc/x", "etc/x");
        check("/lib", "lib");
        assert!(resolve(root, "/round/x").is_err());
    }
}
