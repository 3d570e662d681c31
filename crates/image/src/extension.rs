//! System extensions: what most hosts do not want in `/usr`, built with the release from `os/extensions/NAME`.
//!
//! `packages` lists Debian packages as `os/packages` does, `rootfs`, if it is there, is laid over them. What the
//! base has already is left out, and whatever is not below `/usr`: an extension is nothing but a part of `/usr`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use disk::verity;
use release::{Compression, Extension, ExtensionName, Payload, Sha256};

use crate::build::published;
use crate::compose;
use crate::deb::Control;
use crate::fetch;
use crate::tools::{self, Tools};
use crate::tree::{Node, Origin, Tree};

/// The extensions that `os` has, by name.
pub(crate) fn names(os: &Path) -> Result<Vec<ExtensionName>> {
    let dir = os.join("extensions");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", dir.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", dir.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let name = name
            .parse()
            .with_context(|| format!("{}", entry.path().display()))?;
        names.push(name);
    }
    names.sort();
    Ok(names)
}

/// For `/usr/lib/orlop/extensions`: a name, a tab, and what it is for, which is the first line of its list.
pub(crate) fn about(os: &Path) -> Result<String> {
    let mut text = String::new();
    for name in names(os)? {
        let path = os.join("extensions").join(name.as_str()).join("packages");
        let list =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let what = list.lines().next().and_then(|line| line.strip_prefix("# "));
        let what = what.with_context(|| {
            format!(
                "{}:1: says what the extension is for, behind `# `",
                path.display()
            )
        })?;
        text.push_str(&format!("{name}\t{}\n", what.trim()));
    }
    Ok(text)
}

/// What all extensions of a release have in common.
pub(crate) struct Release<'a> {
    pub os: &'a Path,
    pub tools: &'a Tools,
    pub version: &'a str,
    /// Seconds since 1970 that all files carry.
    pub created: u64,
    /// As it goes into the image.
    pub base: &'a Tree,
    /// zstd's.
    pub level: i32,
    /// Where the files of the release are made.
    pub dir: &'a Path,
}

/// With the packages in it.
pub(crate) fn build(
    release: &Release<'_>,
    fetched: &fetch::Extension,
) -> Result<(Extension, Vec<Control>)> {
    let name = &fetched.name;
    let (tree, controls) =
        compose(release, fetched).with_context(|| format!("the extension {name}"))?;
    let image = release.dir.join(format!("{name}.sysext"));
    let seed = format!("orlop-sysext-{name}-{}", release.version);
    let uuid = uuid::Uuid::from_bytes(Sha256::of(seed).0[..16].try_into()?);
    tools::mkfs_erofs(
        release.tools,
        &tree,
        &uuid,
        release.created,
        release.dir,
        &image,
    )?;
    let mut file = fs::File::open(&image)?;
    let hashes = verity::build(&mut std::io::BufReader::with_capacity(1 << 20, &file))?;

    let packed = format!("{name}.sysext.zst");
    let out = fs::File::create(release.dir.join(&packed))?;
    let mut encoder = zstd::Encoder::new(out, release.level)?;
    std::io::Seek::rewind(&mut file)?;
    std::io::copy(&mut file, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    let extension = Extension {
        name: name.clone(),
        root_hash: Sha256(hashes.root.0),
        size: file.metadata()?.len(),
        payload: Payload {
            file: published(release.dir, &packed)?,
            compression: Compression::Zstd,
        },
    };
    Ok((extension, controls))
}

fn compose(release: &Release<'_>, fetched: &fetch::Extension) -> Result<(Tree, Vec<Control>)> {
    let packages = compose::read_packages(release.os, &fetched.packages)?;
    let mut tree = packages.tree;
    compose::remove_unwanted(release.os, &mut tree)?;
    compose::strip_setuid(release.os, &mut tree)?;
    let rootfs = release
        .os
        .join("extensions")
        .join(fetched.name.as_str())
        .join("rootfs");
    if rootfs.exists() {
        compose::overlay(&mut tree, &rootfs)?;
    }
    // The base's own files stay its own: laid over it, another build of them would take their place.
    tree.retain(|path, entry| {
        let is_new = match entry.node {
            Node::Dir { .. } => true,
            _ => release.base.get(path).is_none(),
        };
        path.starts_with("usr/") && !path.starts_with(compose::ETC) && is_new
    });
    tree.prune_empty_dirs(|_| false);
    anyhow::ensure!(
        tree.iter().next().is_some(),
        "there is nothing in it that the base does not have"
    );
    let name = &fetched.name;
    tree.file(
        &format!("usr/lib/extension-release.d/extension-release.{name}"),
        0o644,
        // No SYSEXT_LEVEL: it was built against this release's libraries, and is laid over no other.
        format!(
            "ID=orlop\nVERSION_ID={}\nARCHITECTURE=x86-64\n",
            release.version
        ),
        Origin::Generated,
    );
    Ok((tree, packages.controls))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_names_an_extension() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(names(dir.path()).expect("none").is_empty());
        for name in ["tools", "debug"] {
            fs::create_dir_all(dir.path().join("extensions").join(name)).expect("made");
        }
        let found = names(dir.path()).expect("two");
        let list = |name: &str| dir.path().join("extensions").join(name).join("packages");
        fs::write(list("tools"), "# For all\nx # y\n").expect("written");
        fs::write(list("debug"), "# For some\n").expect("written");
        assert_eq!(
            about(dir.path()).expect("both"),
            "debug\tFor some\ntools\tFor all\n"
        );
        fs::write(list("debug"), "strace # y\n").expect("written");
        let error = about(dir.path()).expect_err("no word").to_string();
        assert!(error.contains("debug/packages:1: says what"), "{error}");
        assert_eq!(
            found.iter().map(ExtensionName::as_str).collect::<Vec<_>>(),
            ["debug", "tools"]
        );
        fs::create_dir(dir.path().join("extensions/No good")).expect("made");
        let error = format!("{:#}", names(dir.path()).expect_err("a bad name"));
        assert!(error.contains("cannot name an extension"), "{error}");
    }
}
