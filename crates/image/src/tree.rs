//! A file tree in memory, with the origin of every file.
//!
//! Nothing is unpacked to disk on the way from package to image, so building needs neither
//! root nor a fakeroot: owner is always root, and the mode is what the tree says.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

/// Where a file came from; the SBOM is made of these.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// A Debian binary package, by name.
    Package(Arc<str>),
    /// One of our crates, by name.
    Crate(Arc<str>),
    /// A file under `os/rootfs` or a user's overlay.
    Overlay,
    /// Made by the builder (os-release, merged certificates, module index …).
    Generated,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Dir { mode: u32 },
    File { mode: u32, data: Arc<[u8]> },
    Symlink { target: String },
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub node: Node,
    pub origin: Origin,
}

/// Paths are relative to the root and have no leading slash: `usr/bin/bash`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    pub(crate) fn insert(&mut self, path: &str, node: Node, origin: Origin) {
        let path = path.trim_matches('/');
        let mut at = 0;
        while let Some(slash) = path[at..].find('/') {
            let parent = &path[..at + slash];
            self.entries
                .entry(parent.to_owned())
                .or_insert_with(|| Entry {
                    node: Node::Dir { mode: 0o755 },
                    origin: Origin::Generated,
                });
            at += slash + 1;
        }
        // A directory that two packages ship keeps its first owner.
        if matches!(node, Node::Dir { .. })
            && matches!(self.entries.get(path), Some(e) if matches!(e.node, Node::Dir { .. }))
        {
            return;
        }
        self.entries.insert(path.to_owned(), Entry { node, origin });
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, data: impl Into<Vec<u8>>, origin: Origin) {
        let data: Vec<u8> = data.into();
        self.insert(
            path,
            Node::File {
                mode,
                data: data.into(),
            },
            origin,
        );
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str, origin: Origin) {
        self.insert(
            path,
            Node::Symlink {
                target: target.to_owned(),
            },
            origin,
        );
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// The bytes of a regular file; symlinks are not followed.
    pub(crate) fn read(&self, path: &str) -> Result<Arc<[u8]>> {
        match self.entries.get(path).map(|e| &e.node) {
            Some(Node::File { data, .. }) => Ok(data.clone()),
            Some(_) => bail!("{path} in the image is not a regular file"),
            None => bail!("{path} is not in the image"),
        }
    }

    pub(crate) fn remove(&mut self, path: &str) -> Option<Entry> {
        self.entries.remove(path)
    }

    /// Removes a path and everything below it.
    pub(crate) fn remove_tree(&mut self, path: &str) -> usize {
        let below = format!("{path}/");
        let doomed: Vec<String> = self
            .entries
            .keys()
            .filter(|p| *p == path || p.starts_with(&below))
            .cloned()
            .collect();
        for p in &doomed {
            self.entries.remove(p);
        }
        doomed.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(p, e)| (p.as_str(), e))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Entry)> {
        self.entries.iter_mut().map(|(p, e)| (p.as_str(), e))
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&str, &Entry) -> bool) {
        self.entries.retain(|p, e| keep(p, e));
    }

    /// The part below `prefix`, with the prefix taken off.
    pub(crate) fn subtree(&self, prefix: &str) -> Tree {
        let below = format!("{prefix}/");
        let entries = self
            .entries
            .iter()
            .filter_map(|(p, e)| Some((p.strip_prefix(&below)?.to_owned(), e.clone())))
            .collect();
        Tree { entries }
    }

    /// Moves everything below `from` to below `to`; what is already there wins.
    pub(crate) fn relocate(&mut self, from: &str, to: &str) {
        let below = format!("{from}/");
        let moved: Vec<String> = self
            .entries
            .keys()
            .filter(|p| p.starts_with(&below))
            .cloned()
            .collect();
        for old in moved {
            if let Some(entry) = self.entries.remove(&old) {
                let new = format!("{to}/{}", &old[below.len()..]);
                if self.entries.contains_key(&new) {
                    continue;
                }
                self.insert(&new, entry.node, entry.origin);
            }
        }
        self.entries.remove(from);
    }

    /// Directories that no longer hold anything, left over from removals.
    pub(crate) fn prune_empty_dirs(&mut self, keep: impl Fn(&str) -> bool) {
        loop {
            let mut used = std::collections::BTreeSet::new();
            for path in self.entries.keys() {
                if let Some((parent, _)) = path.rsplit_once('/') {
                    used.insert(parent.to_owned());
                }
            }
            let before = self.entries.len();
            self.entries
                .retain(|p, e| !matches!(e.node, Node::Dir { .. }) || used.contains(p) || keep(p));
            if self.entries.len() == before {
                return;
            }
        }
    }

    /// Copies a directory of the machine into the tree. Modes are reduced to 0644/0755 so that
    /// the umask of whoever cloned the repository does not change the image.
    pub(crate) fn add_dir(&mut self, dir: &Path, origin: &Origin) -> Result<()> {
        let mut stack = vec![(dir.to_path_buf(), String::new())];
        while let Some((path, rel)) = stack.pop() {
            let entries = std::fs::read_dir(&path)
                .with_context(|| format!("cannot list {}", path.display()))?;
            for entry in entries {
                let entry = entry.with_context(|| format!("cannot list {}", path.display()))?;
                let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                    bail!("{}: file names must be UTF-8", entry.path().display());
                };
                let rel = if rel.is_empty() {
                    name
                } else {
                    format!("{rel}/{name}")
                };
                let meta = entry.path().symlink_metadata()?;
                if meta.is_symlink() {
                    let target = std::fs::read_link(entry.path())?;
                    self.symlink(&rel, &target.to_string_lossy(), origin.clone());
                } else if meta.is_dir() {
                    self.insert(&rel, Node::Dir { mode: 0o755 }, origin.clone());
                    stack.push((entry.path(), rel));
                } else {
                    use std::os::unix::fs::PermissionsExt;
                    let mode = if meta.permissions().mode() & 0o111 != 0 {
                        0o755
                    } else {
                        0o644
                    };
                    let data = std::fs::read(entry.path())
                        .with_context(|| format!("cannot read {}", entry.path().display()))?;
                    self.file(&rel, mode, data, origin.clone());
                }
            }
        }
        Ok(())
    }

    /// Writes the tree as a tar archive in path order, everything owned by root.
    pub(crate) fn write_tar(&self, out: impl std::io::Write, mtime: u64) -> Result<()> {
        let mut tar = tar::Builder::new(out);
        for (path, entry) in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(mtime);
            match &entry.node {
                Node::Dir { mode } => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(*mode);
                    header.set_size(0);
                    tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
                }
                Node::File { mode, data } => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_mode(*mode);
                    header.set_size(data.len() as u64);
                    tar.append_data(&mut header, path, &data[..])?;
                }
                Node::Symlink { target } => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    tar.append_link(&mut header, path, target)?;
                }
            }
        }
        tar.finish()?;
        Ok(())
    }

    /// Unpacks the tree below `dir`, for tools that only read directories.
    pub(crate) fn unpack(&self, dir: &Path) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        for (path, entry) in &self.entries {
            let to = dir.join(path);
            match &entry.node {
                Node::Dir { .. } => std::fs::create_dir_all(&to)?,
                Node::File { mode, data } => {
                    std::fs::write(&to, data)
                        .with_context(|| format!("cannot write {}", to.display()))?;
                    std::fs::set_permissions(&to, std::fs::Permissions::from_mode(*mode))?;
                }
                Node::Symlink { target } => {
                    let _ = std::fs::remove_file(&to);
                    std::os::unix::fs::symlink(target, &to)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relocating_keeps_what_is_already_at_the_target() {
        let mut t = Tree::default();
        t.file("etc/a", 0o644, "package", Origin::Generated);
        t.file("etc/b", 0o644, "package", Origin::Generated);
        t.file("usr/share/etc/a", 0o644, "ours", Origin::Overlay);
        t.relocate("etc", "usr/share/etc");
        assert_eq!(&*t.read("usr/share/etc/a").unwrap(), b"ours");
        assert_eq!(&*t.read("usr/share/etc/b").unwrap(), b"package");
        assert!(t.get("etc").is_none());
    }

    #[test]
    fn empty_directories_go_and_their_parents_with_them() {
        let mut t = Tree::default();
        t.file("usr/share/doc/x/y", 0o644, "", Origin::Generated);
        t.remove("usr/share/doc/x/y");
        t.file("usr/bin/z", 0o755, "", Origin::Generated);
        t.prune_empty_dirs(|_| false);
        let paths: Vec<_> = t.iter().map(|(p, _)| p).collect();
        assert_eq!(paths, ["usr", "usr/bin", "usr/bin/z"]);
    }
}
