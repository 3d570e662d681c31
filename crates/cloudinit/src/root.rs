//! Paths inside a root directory, the way a process chrooted there would see them.
//!
//! A path is walked part by part, with each directory held open: whoever puts something else in its place meanwhile
//! gains nothing. Links on the way are followed where root has made them, such as `/var/run`. Below a directory of
//! somebody else they are not, nor are links of somebody else: they would have root write, or give away, any file.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat, mkdirat, openat, readlinkat};
use rustix::io::Errno;

/// As the kernel: more links than this are a loop.
const MAX_LINKS: usize = 40;

#[derive(Debug, thiserror::Error)]
pub(crate) enum WalkError {
    #[error("{} is a link that uid {uid} could have made", path.display())]
    Foreign { path: PathBuf, uid: u32 },
    #[error("{} is not a directory", path.display())]
    NotADirectory { path: PathBuf, foreign: bool },
    #[error("cannot open {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl WalkError {
    fn io(path: &Path) -> impl FnOnce(Errno) -> Self {
        let path = path.to_owned();
        move |error| Self::Io {
            path,
            source: error.into(),
        }
    }
}

/// What becomes of a link that is the last part of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    /// It is meant itself: files are replaced, not written through.
    Itself,
    Followed,
}

/// How far one gets on a path.
pub(crate) struct Walk {
    dir: Dir,
    /// What is not there after it, and the last part, which may be.
    rest: VecDeque<OsString>,
}

struct Dir {
    fd: OwnedFd,
    /// For messages.
    path: PathBuf,
    /// Belongs to somebody else than root, or is below such a directory.
    owner: Option<u32>,
}

impl Dir {
    /// `owners` are those who count as root.
    fn open(fd: OwnedFd, path: PathBuf, uid: u32, above: &Self, root: &[u32]) -> Self {
        let foreign = (!root.contains(&uid)).then_some(uid);
        Self {
            fd,
            path,
            owner: above.owner.or(foreign),
        }
    }
}

/// Walks `path` under `root`. The last part need not be there, nor any before it.
pub(crate) fn walk(root: &Path, path: &str, last: Last) -> Result<Walk, WalkError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fd = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty())
        .map_err(WalkError::io(root))?;
    let owner = fstat(&fd).map_err(WalkError::io(root))?.st_uid;
    let ours = [0, owner, rustix::process::geteuid().as_raw()];
    let base = Dir {
        fd,
        path: root.to_owned(),
        owner: None,
    };
    let mut above: Vec<Dir> = Vec::new();
    let mut dir = base;
    let mut todo: VecDeque<OsString> = parts(Path::new(path)).collect();
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        if part == ".." {
            dir = above.pop().unwrap_or(dir);
            continue;
        }
        let path = dir.path.join(&part);
        let is_last = todo.is_empty();
        if is_last && last == Last::Itself {
            todo.push_front(part);
            break;
        }
        let fd = match openat(&dir.fd, &part, flags | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => fd,
            // The kernel does not go up from what is not there.
            Err(Errno::NOENT) if todo.iter().all(|part| part != "..") => {
                todo.push_front(part);
                break;
            }
            Err(error) => return Err(WalkError::io(&path)(error)),
        };
        let stat = fstat(&fd).map_err(WalkError::io(&path))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let foreign = (!ours.contains(&stat.st_uid)).then_some(stat.st_uid);
                if let Some(uid) = dir.owner.or(foreign) {
                    return Err(WalkError::Foreign { path, uid });
                }
                links += 1;
                if links > MAX_LINKS {
                    return Err(WalkError::io(&path)(Errno::LOOP));
                }
                let target = readlinkat(&fd, "", Vec::new()).map_err(WalkError::io(&path))?;
                let target = Path::new(OsStr::from_bytes(target.to_bytes()));
                if target.is_absolute() && !above.is_empty() {
                    dir = above.swap_remove(0);
                    above.clear();
                }
                for part in parts(target).collect::<Vec<_>>().into_iter().rev() {
                    todo.push_front(part);
                }
            }
            _ if is_last => {
                todo.push_front(part);
                break;
            }
            FileType::Directory => {
                let next = Dir::open(fd, path, stat.st_uid, &dir, &ours);
                above.push(std::mem::replace(&mut dir, next));
            }
            _ => {
                let foreign = dir.owner.is_some();
                return Err(WalkError::NotADirectory { path, foreign });
            }
        }
    }
    if todo.is_empty() {
        todo.push_front(".".into());
    }
    Ok(Walk { dir, rest: todo })
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

/// Whether it is somebody else than root who decides what is at `path`: that it cannot be written is that user's doing.
pub(crate) fn is_foreign(root: &Path, path: &str) -> bool {
    match walk(root, path, Last::Itself) {
        Ok(walk) => walk.is_foreign(),
        Err(WalkError::Foreign { .. }) => true,
        Err(WalkError::NotADirectory { foreign, .. }) => foreign,
        Err(WalkError::Io { .. }) => false,
    }
}

impl Walk {
    pub(crate) fn is_foreign(&self) -> bool {
        self.dir.owner.is_some()
    }

    /// The last directory that is there.
    pub(crate) fn nearest(&self) -> (&OwnedFd, &Path) {
        (&self.dir.fd, &self.dir.path)
    }

    /// The last part in its directory; `None` where that is not there.
    pub(crate) fn entry(mut self) -> Option<Entry> {
        let name = self.rest.pop_back()?;
        let dir = self.dir;
        self.rest.is_empty().then_some(Entry { dir, name })
    }

    /// The last part in its directory, which is made where it is not there.
    pub(crate) fn made(mut self) -> Result<Entry, WalkError> {
        let name = self.rest.pop_back().unwrap_or_else(|| ".".into());
        for part in self.rest {
            let path = self.dir.path.join(&part);
            mkdirat(&self.dir.fd, &part, Mode::from(0o755)).map_err(WalkError::io(&path))?;
            let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let fd =
                openat(&self.dir.fd, &part, flags, Mode::empty()).map_err(WalkError::io(&path))?;
            self.dir = Dir {
                fd,
                path,
                owner: self.dir.owner,
            };
        }
        let dir = self.dir;
        Ok(Entry { dir, name })
    }
}

/// A name in a directory that is held open.
pub(crate) struct Entry {
    dir: Dir,
    name: OsString,
}

impl Entry {
    /// By way of the open directory, wherever that is now. Only the last part of it may be a link.
    pub(crate) fn path(&self) -> PathBuf {
        self.beside(&self.name)
    }

    /// The path of another name in the same directory.
    pub(crate) fn beside(&self, name: &OsStr) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.dir.fd.as_raw_fd())).join(name)
    }

    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    /// As a person knows it.
    pub(crate) fn shown(&self) -> PathBuf {
        self.dir.path.join(&self.name)
    }

    pub(crate) fn is_foreign(&self) -> bool {
        self.dir.owner.is_some()
    }

    pub(crate) fn stat(&self) -> io::Result<Metadata> {
        self.path().symlink_metadata()
    }

    pub(crate) fn is_there(&self) -> bool {
        self.stat().is_ok()
    }

    /// The directory of this name, no link.
    pub(crate) fn directory(&self) -> io::Result<File> {
        self.open(OFlags::DIRECTORY)
    }

    /// What is in the file of this name. A link is not read, nor what may block or is no file, nor, in a directory of
    /// somebody else's, what has another name as well: that may be somebody's secret.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        let mut file = self.open(OFlags::NONBLOCK)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        if self.is_foreign() && meta.nlink() > 1 {
            return Err(io::Error::other("the file has another name as well"));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn open(&self, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW;
        File::options()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(self.path())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    fn shown(root: &Path, path: &str) -> Result<PathBuf, WalkError> {
        let walk = walk(root, path, Last::Itself)?;
        let rest = walk.rest.iter().collect::<PathBuf>();
        Ok(walk.dir.path.join(rest))
    }

    #[test]
    fn links_stay_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("usr/lib")).unwrap();
        symlink("/usr/lib", root.join("lib")).unwrap();
        symlink("../../../..", root.join("up")).unwrap();
        symlink("round", root.join("round")).unwrap();
        symlink("/", root.join("usr/lib/all")).unwrap();
        let check = |path: &str, expect: &str| {
            assert_eq!(shown(root, path).unwrap(), root.join(expect), "{path}");
        };
        check("/etc/x", "etc/x");
        check("/lib/systemd/x", "usr/lib/systemd/x");
        check("/up/etc/x", "etc/x");
        check("/lib", "lib");
        check("/lib/all/lib/all/etc/x", "etc/x");
        assert!(shown(root, "/round/x").is_err());
    }

    #[test]
    fn links_of_others_are_not_followed() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not root: not run");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for dir in ["etc", "home/ann/sub", "data"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        chown(root.join("home/ann"), Some(1000), Some(1000)).unwrap();
        let own = |link: &str, target: &str, uid| {
            symlink(target, root.join(link)).unwrap();
            std::os::unix::fs::lchown(root.join(link), Some(uid), None).unwrap();
        };
        own("home/ann/conf", "/etc", 1000);
        own("home/ann/roots", "/etc", 0);
        own("home/ann/sub/roots", "/etc", 0);
        own("data/anns", "/etc", 1000);
        own("work", "home/ann", 0);
        own("back", "home/ann/../../etc", 0);
        let check = |path: &str, expect: &str| {
            let shown = match shown(root, path) {
                Ok(path) => path.display().to_string(),
                Err(error) => error.to_string(),
            };
            assert_eq!(shown.replace(&format!("{}/", root.display()), ""), expect);
        };
        let could = |link: &str| format!("{link} is a link that uid 1000 could have made");
        check("/home/ann/conf/x", &could("home/ann/conf"));
        check("/home/ann/roots/x", &could("home/ann/roots"));
        check("/home/ann/sub/roots/x", &could("home/ann/sub/roots"));
        check("/data/anns/x", &could("data/anns"));
        check("/work/x", "home/ann/x");
        check("/work/conf/x", &could("home/ann/conf"));
        check("/back/x", "etc/x");
        // The link itself may be replaced.
        check("/home/ann/conf", "home/ann/conf");
        assert!(is_foreign(root, "/home/ann/conf") && !is_foreign(root, "/back/x"));
    }
}
