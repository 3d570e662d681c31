//! The release key of the lab: made on first use, never part of the repository.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use release::keys;

pub fn load_or_create(lab: &Path, given: Option<&Path>) -> Result<keys::SigningKey> {
    if let Some(path) = given {
        let pem = fs::read_to_string(path)
            .with_context(|| format!("cannot read the signing key {}", path.display()))?;
        return keys::from_pem(&pem).with_context(|| format!("the signing key {}", path.display()));
    }
    let dir = lab.join("keys");
    let path = dir.join("release.pem");
    if !path.exists() {
        use std::os::unix::fs::OpenOptionsExt;
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let key = keys::generate()?;
        let part = dir.join("release.pem.part");
        let _ = fs::remove_file(&part);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)?;
        std::io::Write::write_all(&mut file, keys::to_pem(&key)?.as_bytes())?;
        file.sync_all()?;
        fs::write(
            dir.join("release.pub"),
            keys::public_to_text(&key.verifying_key(), "release"),
        )?;
        fs::rename(&part, &path)?;
    }
    load_or_create(lab, Some(&path))
}
