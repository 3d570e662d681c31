//! The ways by which an image can come here, from the smallest download up.

use release::{Delta, File, Manifest, Sha256};
use serde::{Deserialize, Serialize};

/// A way, with what the signed manifest says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// The differences to the running release.
    Delta(Box<Delta>),
    /// Only what has blocks that the running release does not have; this file says which.
    Blocks(File),
    /// All of it.
    Whole,
}

/// The same, as daemon and writer call it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WayName {
    Delta,
    Blocks,
    #[default]
    Whole,
}

impl Way {
    /// The ways to a release for a host that runs the image with this root hash, best first.
    /// There is always one.
    pub fn all(manifest: &Manifest, running: Option<Sha256>) -> Vec<Self> {
        let whole = manifest.usr.payload.file.size;
        let delta = running
            .and_then(|hash| manifest.delta_from(hash))
            .filter(|delta| delta.usr.size < whole);
        let blocks = manifest.usr.index.as_ref().filter(|_| running.is_some());
        let delta = delta.cloned().map(|delta| Self::Delta(Box::new(delta)));
        let blocks = blocks.cloned().map(Self::Blocks);
        delta
            .into_iter()
            .chain(blocks)
            .chain([Self::Whole])
            .collect()
    }

    pub fn name(&self) -> WayName {
        match self {
            Self::Delta(_) => WayName::Delta,
            Self::Blocks(_) => WayName::Blocks,
            Self::Whole => WayName::Whole,
        }
    }

    /// The file for the kernel's side, and that for `/usr` as far as it is fetched as a whole.
    pub fn files<'a>(&'a self, manifest: &'a Manifest) -> [&'a File; 2] {
        match self {
            Self::Delta(delta) => {
                let uki = delta.uki.as_ref().map_or(&manifest.uki, |uki| &uki.file);
                [uki, &delta.usr]
            }
            Self::Blocks(index) => [&manifest.uki, index],
            Self::Whole => [&manifest.uki, &manifest.usr.payload.file],
        }
    }

    /// What is known beforehand of the bytes to download.
    pub fn download_size(&self, manifest: &Manifest) -> u64 {
        self.files(manifest)
            .iter()
            .fold(0, |sum, file| sum.saturating_add(file.size))
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Delta(delta) => write!(f, "the delta from version {}", delta.from_version),
            Self::Blocks(_) => write!(f, "the blocks that are not here"),
            Self::Whole => write!(f, "the whole image"),
        }
    }
}
