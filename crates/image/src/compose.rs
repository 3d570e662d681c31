//! From packages to the tree of `/usr`: what dpkg's maintainer scripts would have done, and our own
//! files over it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::deb::{self, Control};
use crate::lists;
use crate::tree::{Node, Origin, Tree};

/// Where the release's defaults of /etc live; the host mounts them as the lower layer of its /etc.
pub(crate) const ETC: &str = "usr/share/orlop/etc";

pub(crate) struct Packages {
    pub tree: Tree,
    pub controls: Vec<Control>,
}

/// Reads the packages and leaves out what `os/dropped` and `os/removed` name.
pub(crate) fn read_packages(os: &Path, debs: &[std::path::PathBuf]) -> Result<Packages> {
    let dropped = lists::read(&os.join("dropped"))?;
    let mut tree = Tree::default();
    let mut controls = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for path in debs {
        let mut files = Tree::default();
        let control = deb::read(path, &mut files)?;
        seen.insert(control.package.clone());
        if dropped.iter().any(|d| d.name == control.package) {
            continue;
        }
        for (path, entry) in files.iter() {
            tree.insert(path, entry.node.clone(), entry.origin.clone());
        }
        controls.push(control);
    }
    Ok(Packages { tree, controls })
}

pub(crate) fn remove_unwanted(os: &Path, tree: &mut Tree) -> Result<()> {
    let removed = lists::globs(&lists::read(&os.join("removed"))?)?;
    tree.retain(|path, _| !removed.is_match(path));
    Ok(())
}

/// Only files on the list `os/setuid` keep set-user-id; nothing keeps set-group-id.
pub(crate) fn strip_setuid(os: &Path, tree: &mut Tree) -> Result<()> {
    let allowed = lists::read(&os.join("setuid"))?;
    for (path, entry) in tree.iter_mut() {
        if let Node::File { mode, .. } | Node::Dir { mode } = &mut entry.node {
            let keeps = allowed.iter().any(|a| a.name == path);
            *mode &= if keeps { 0o4755 } else { 0o1777 };
        }
    }
    Ok(())
}

/// One file with all certificate authorities, as update-ca-certificates makes it.
pub(crate) fn merge_certificates(tree: &mut Tree) -> Result<()> {
    let mut bundle = Vec::new();
    for (path, entry) in tree.iter() {
        if path.starts_with("usr/share/ca-certificates/")
            && path.ends_with(".crt")
            && let Node::File { data, .. } = &entry.node
        {
            bundle.extend_from_slice(data);
            if !data.ends_with(b"\n") {
                bundle.push(b'\n');
            }
        }
    }
    anyhow::ensure!(
        !bundle.is_empty(),
        "the packages contain no certificate authorities"
    );
    tree.file(
        "etc/ssl/certs/ca-certificates.crt",
        0o644,
        bundle,
        Origin::Generated,
    );
    Ok(())
}

/// Debian's alternatives are links through /etc that a maintainer script makes; here the link points
/// straight at the only candidate.
pub(crate) fn alternatives(tree: &mut Tree) {
    for (name, target) in [
        ("awk", "mawk"),
        ("vi", "vim.tiny"),
        ("vim", "vim.tiny"),
        ("pager", "less"),
        ("editor", "vim.tiny"),
    ] {
        if tree.get(&format!("usr/bin/{target}")).is_some() {
            tree.symlink(&format!("usr/bin/{name}"), target, Origin::Generated);
        }
    }
}

/// Lays `dir` (as on the host) over the tree; overlays win over packages.
pub(crate) fn overlay(tree: &mut Tree, dir: &Path) -> Result<()> {
    let mut files = Tree::default();
    files
        .add_dir(dir, &Origin::Overlay)
        .with_context(|| format!("the overlay {}", dir.display()))?;
    links_are_links(&files, dir)?;
    // What people write into etc/ of an overlay belongs to the release's defaults.
    files.relocate("etc", ETC);
    for (path, entry) in files.iter() {
        // A file may take the place of a directory's symlink and the other way round.
        if let (Some(old), Node::Dir { .. }) = (tree.get(path), &entry.node)
            && !matches!(old.node, Node::Dir { .. })
        {
            tree.remove(path);
        }
        tree.insert(path, entry.node.clone(), entry.origin.clone());
    }
    Ok(())
}

/// A copy through something that has no symbolic links leaves files with a path in them. The image would
/// build, and start nothing.
fn links_are_links(files: &Tree, dir: &Path) -> Result<()> {
    let plain = files.iter().find(|(path, entry)| {
        let parent = path.rsplit('/').nth(1).unwrap_or_default();
        (parent.ends_with(".wants") || parent.ends_with(".requires"))
            && matches!(entry.node, Node::File { .. })
    });
    if let Some((path, _)) = plain {
        anyhow::bail!(
            "{}: must be a symbolic link and is a file. Was the checkout copied without its links? \
             `git checkout -- {}` brings them back",
            dir.join(path).display(),
            dir.display()
        );
    }
    Ok(())
}

/// systemd's "mask" in an overlay is a link to /dev/null; nothing to do. An empty file named
/// `NAME.removed` takes NAME out, for overlays that need less than the base.
pub(crate) fn apply_removals(tree: &mut Tree) {
    let marks: Vec<String> = tree
        .iter()
        .filter(|(p, _)| p.ends_with(".removed"))
        .map(|(p, _)| p.to_owned())
        .collect();
    for mark in marks {
        tree.remove(&mark);
        tree.remove_tree(mark.trim_end_matches(".removed"));
    }
}

pub(crate) fn os_release(version: &str, epoch: u64) -> String {
    format!(
        "NAME=\"Orlop\"\nID=orlop\nID_LIKE=debian\nPRETTY_NAME=\"Orlop {version}\"\n\
         VERSION=\"{version}\"\nVERSION_ID={version}\nIMAGE_ID=orlop\nIMAGE_VERSION={version}\n\
         ORLOP_EPOCH={epoch}\nSYSEXT_LEVEL=1\nANSI_COLOR=\"1;36\"\n"
    )
}

/// Puts a file of ours where the host looks for it and says which crate it is.
pub(crate) fn add_binary(tree: &mut Tree, path: &str, crate_name: &str, from: &Path) -> Result<()> {
    let data = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    tree.file(path, 0o755, data, Origin::Crate(Arc::from(crate_name)));
    Ok(())
}

/// Only /usr goes into the image. /etc becomes the defaults; what packages put below /var, /run …
/// is made on the host by tmpfiles.
pub(crate) fn only_usr(tree: &mut Tree) {
    tree.relocate("etc", ETC);
    tree.retain(|path, _| path == "usr" || path.starts_with("usr/"));
    tree.prune_empty_dirs(|dir| {
        // Mount points and directories that programs expect to exist.
        ["usr/local", "usr/src"].contains(&dir) || dir.starts_with(ETC)
    });
    for dir in ["usr/local", "usr/lib/modules"] {
        tree.insert(dir, Node::Dir { mode: 0o755 }, Origin::Generated);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host asks the running release itself, before it has updated even once.
    #[test]
    fn a_release_says_its_epoch() {
        let text = os_release("2", 3);
        assert!(
            text.lines().any(|line| line == "ORLOP_EPOCH=3") && text.ends_with('\n'),
            "{text}"
        );
    }

    #[test]
    fn an_overlay_that_lost_its_links_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let wants = dir.path().join("usr/lib/systemd/system/a.target.wants");
        std::fs::create_dir_all(&wants).expect("a directory");
        std::fs::write(wants.join("b.service"), "../b.service").expect("a file");
        let error = overlay(&mut Tree::default(), dir.path()).expect_err("no link");
        assert!(
            error
                .to_string()
                .contains("a.target.wants/b.service: must be a symbolic link"),
            "{error}"
        );
        std::fs::remove_file(wants.join("b.service")).expect("removed");
        std::os::unix::fs::symlink("../b.service", wants.join("b.service")).expect("a link");
        overlay(&mut Tree::default(), dir.path()).expect("a link is fine");
    }
}
