//! The keys this host trusts.

use std::path::Path;

use anyhow::Context as _;
use release::keys::{VerifyingKey, public_from_text};

/// Every `*.pub` below `dir`. A key that cannot be read is an error, not a smaller set: keys are
/// part of `/usr`, so this means that the release is broken.
pub(crate) fn trusted(dir: &Path) -> anyhow::Result<Vec<VerifyingKey>> {
    let entries = std::fs::read_dir(dir)
        .with_context(|| format!("cannot read the keys in {}", dir.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("cannot list {}", dir.display()))?
            .path();
        if path.extension().is_some_and(|e| e == "pub") {
            paths.push(path);
        }
    }
    paths.sort();
    let read = |path: &Path| -> anyhow::Result<VerifyingKey> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        public_from_text(&text).with_context(|| format!("{}", path.display()))
    };
    paths.iter().map(|path| read(path)).collect()
}
