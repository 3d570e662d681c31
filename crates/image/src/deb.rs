//! Reading a Debian binary package (deb(5)) into a [`Tree`] without dpkg.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::tree::{Node, Origin, Tree};

/// What `control` says of the package, as far as the SBOM needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Control {
    pub package: String,
    pub version: String,
    pub architecture: String,
    /// The source package, where it differs from the binary one.
    pub source: Option<String>,
}

impl Control {
    fn parse(text: &str) -> Self {
        let mut control = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim().to_owned();
            match key {
                "Package" => control.package = value,
                "Version" => control.version = value,
                "Architecture" => control.architecture = value,
                "Source" => control.source = Some(value),
                _ => {}
            }
        }
        control
    }
}

/// Adds the package's files to `tree`.
pub(crate) fn read(path: &Path, tree: &mut Tree) -> Result<Control> {
    let in_file = || format!("in package {}", path.display());
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut archive = ar::Archive::new(std::io::BufReader::new(file));
    let mut control = None;
    while let Some(member) = archive.next_entry() {
        let member = member.with_context(in_file)?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        if let Some(compression) = name.strip_prefix("control.tar") {
            let mut tar = tar::Archive::new(decompress(compression, member)?);
            for entry in tar.entries().with_context(in_file)? {
                let mut entry = entry.with_context(in_file)?;
                if entry.path()?.file_name().is_some_and(|n| n == "control") {
                    let mut text = String::new();
                    entry.read_to_string(&mut text).with_context(in_file)?;
                    control = Some(Control::parse(&text));
                }
            }
        } else if let Some(compression) = name.strip_prefix("data.tar") {
            let control = control
                .clone()
                .context("the control member must precede data");
            let control = control.with_context(in_file)?;
            let origin = Origin::Package(control.package.as_str().into());
            unpack(decompress(compression, member)?, &origin, tree).with_context(in_file)?;
        }
    }
    control.with_context(in_file)
}

fn decompress<'a>(suffix: &str, from: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    Ok(match suffix {
        ".xz" => Box::new(liblzma::read::XzDecoder::new(from)),
        ".zst" => Box::new(zstd::Decoder::new(from)?),
        ".gz" => Box::new(flate2::read::GzDecoder::new(from)),
        "" => Box::new(from),
        other => bail!("packed with {other}, which is unknown to deb(5)"),
    })
}

fn unpack(from: impl Read, origin: &Origin, tree: &mut Tree) -> Result<()> {
    let mut hard_links = HashMap::<String, String>::new();
    let mut tar = tar::Archive::new(from);
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = merged_usr(&entry.path()?.to_string_lossy());
        if path.is_empty() {
            continue;
        }
        let mode = entry.header().mode()? & 0o7777;
        match entry.header().entry_type() {
            tar::EntryType::Directory => {
                tree.insert(&path, Node::Dir { mode }, origin.clone());
            }
            tar::EntryType::Regular => {
                let mut data = Vec::new();
                entry.read_to_end(&mut data)?;
                let data: Arc<[u8]> = data.into();
                tree.insert(&path, Node::File { mode, data }, origin.clone());
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name()?.context("symlink without target")?;
                tree.symlink(&path, &target.to_string_lossy(), origin.clone());
            }
            tar::EntryType::Link => {
                let target = entry.link_name()?.context("hard link without target")?;
                hard_links.insert(path, merged_usr(&target.to_string_lossy()));
            }
            other => bail!("{path}: a {other:?} has no place in an image"),
        }
    }
    for (path, target) in hard_links {
        let node = tree
            .get(&target)
            .context("hard link to nowhere")?
            .node
            .clone();
        tree.insert(&path, node, origin.clone());
    }
    Ok(())
}

/// Debian's packages live in /usr, but some still name /lib or /bin in their archives.
fn merged_usr(path: &str) -> String {
    let path = path.trim_start_matches("./").trim_matches('/');
    let top = path.split('/').next().unwrap_or_default();
    if matches!(top, "bin" | "sbin" | "lib" | "lib64") {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_outside_usr_are_merged() {
        assert_eq!(merged_usr("./lib/systemd/x"), "usr/lib/systemd/x");
        assert_eq!(merged_usr("./usr/lib/y"), "usr/lib/y");
        assert_eq!(merged_usr("./"), "");
        assert_eq!(merged_usr("./etc/passwd"), "etc/passwd");
    }

    #[test]
    fn control_names_what_the_sbom_needs() {
        let c =
            Control::parse("Package: a\nSource: b (1.0)\nVersion: 1:2-3\nArchitecture: amd64\n");
        assert_eq!(c.package, "a");
        assert_eq!(c.version, "1:2-3");
        assert_eq!(c.source.as_deref(), Some("b (1.0)"));
    }
}
