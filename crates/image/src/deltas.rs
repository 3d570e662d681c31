//! Deltas between finished releases, and how they get into a release's manifest.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use delta::make::{Made, Names, Options, make};
use release::dsse::Envelope;
use release::keys::SigningKey;
use release::{Delta, MANIFEST_FILE, Manifest, Sha256, UkiDelta};

/// A delta of a kernel that saves less than this share is not worth a second file.
const WORTH: f64 = 0.95;

/// The manifest of a release directory, as it claims. For choosing and showing.
pub fn manifest(dir: &Path) -> Result<Manifest> {
    let path = dir.join(MANIFEST_FILE);
    let bytes = fs::read(&path).with_context(|| {
        format!(
            "{} is no finished release; build one with `orlop build`",
            dir.display()
        )
    })?;
    let read = || Envelope::parse(&bytes)?.unverified_manifest();
    read().with_context(|| format!("{} is damaged", path.display()))
}

/// Makes one delta between two files.
pub fn between(
    old: &Path,
    new: &Path,
    names: Names,
    out: &Path,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Made> {
    let open =
        |path: &Path| File::open(path).with_context(|| format!("cannot read {}", path.display()));
    let mut file = File::create(out).with_context(|| format!("cannot create {}", out.display()))?;
    let made = make(
        &open(old)?,
        &open(new)?,
        names,
        &mut file,
        Options::default(),
        progress,
    )
    .with_context(|| format!("the delta from {} to {}", old.display(), new.display()))?;
    file.sync_all()?;
    Ok(made)
}

/// Makes the deltas from one release to another, into the directory of the latter. They are no part
/// of it before [`add`].
pub fn from_release(old: &Path, new: &Path, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Delta> {
    let (from, to) = (manifest(old)?, manifest(new)?);
    ensure!(
        from.usr.root_hash != to.usr.root_hash,
        "{} and {} have the same /usr",
        old.display(),
        new.display()
    );
    let usr_name = format!("usr-from-{}.delta", from.version);
    between(
        &old.join("usr.erofs"),
        &new.join("usr.erofs"),
        Names {
            source: from.usr.root_hash.0,
            target: to.usr.root_hash.0,
        },
        &new.join(&usr_name),
        progress,
    )?;
    let uki_name = format!("uki-from-{}.delta", from.version);
    let uki_path = new.join(&uki_name);
    let uki = between(
        &old.join("uki.efi"),
        &new.join("uki.efi"),
        Names {
            source: from.uki.sha256.0,
            target: to.uki.sha256.0,
        },
        &uki_path,
        &|_, _| (),
    )?;
    let uki = if uki.size as f64 <= to.uki.size as f64 * WORTH {
        Some(UkiDelta {
            file: crate::build::published(new, &uki_name)?,
            from_sha256: from.uki.sha256,
        })
    } else {
        fs::remove_file(&uki_path)?;
        None
    };
    Ok(Delta {
        from_version: from.version,
        from_root_hash: from.usr.root_hash,
        usr: crate::build::published(new, &usr_name)?,
        uki,
    })
}

/// Puts deltas into a release's manifest, in the place of those from the same releases, and signs it
/// again. The release's identity is the digest of its manifest, so this comes before publishing.
pub fn add(dir: &Path, deltas: &[Delta], key: &SigningKey) -> Result<Sha256> {
    let mut manifest = manifest(dir)?;
    manifest.deltas.retain(|old| {
        deltas
            .iter()
            .all(|new| new.from_root_hash != old.from_root_hash)
    });
    manifest.deltas.extend_from_slice(deltas);
    manifest
        .deltas
        .sort_by(|a, b| b.from_version.cmp(&a.from_version));
    let envelope = Envelope::sign(&manifest, key)?;
    let path = dir.join(MANIFEST_FILE);
    let part = dir.join(format!("{MANIFEST_FILE}.part"));
    fs::write(&part, envelope.to_json()?)
        .and_then(|()| fs::rename(&part, &path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(envelope.digest()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use release::keys::generate;
    use std::io::Read as _;

    /// A release of a few blocks, as the builder leaves it.
    fn release(dir: &Path, version: &str, usr: &[u8], uki: &[u8], key: &SigningKey) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("usr.erofs"), usr).unwrap();
        fs::write(dir.join("usr.erofs.zst"), b"packed").unwrap();
        fs::write(dir.join("uki.efi"), uki).unwrap();
        let manifest = Manifest {
            format: Manifest::FORMAT,
            version: version.parse().unwrap(),
            epoch: 0,
            minimum_source_version: None,
            architecture: "x86-64".into(),
            created: 0,
            usr: release::Usr {
                root_hash: Sha256::of(usr),
                size: usr.len() as u64,
                payload: release::Payload {
                    file: crate::build::published(dir, "usr.erofs.zst").unwrap(),
                    compression: release::Compression::Zstd,
                },
                index: None,
            },
            uki: crate::build::published(dir, "uki.efi").unwrap(),
            kernel: None,
            deltas: Vec::new(),
            extensions: Vec::new(),
            sbom: None,
        };
        let envelope = Envelope::sign(&manifest, key).unwrap();
        fs::write(dir.join(MANIFEST_FILE), envelope.to_json().unwrap()).unwrap();
    }

    fn noise(seed: u8, len: usize) -> Vec<u8> {
        let mut block = Sha256::of([seed]);
        let mut out = Vec::new();
        while out.len() < len {
            out.extend(block.0);
            block = Sha256::of(block.0);
        }
        out.truncate(len);
        out
    }

    #[test]
    fn a_release_gets_deltas_and_a_new_signature() {
        let tmp = tempfile::tempdir().unwrap();
        let (one, two) = (tmp.path().join("1"), tmp.path().join("2"));
        let key = generate().unwrap();
        let usr = noise(1, 40 * 4096);
        let mut newer = usr.clone();
        newer[30_000..30_050].copy_from_slice(&noise(2, 50));
        release(&one, "1", &usr, &noise(3, 50_000), &key);
        release(&two, "2", &newer, &noise(4, 50_000), &key);

        let delta = from_release(&one, &two, &|_, _| ()).unwrap();
        assert!(delta.usr.size < 2000, "{delta:?}");
        // Nothing in common: the kernel is fetched as a whole.
        assert_eq!(delta.uki, None);
        assert!(!two.join("uki-from-1.delta").exists());
        let before = manifest(&two).unwrap();
        assert!(before.deltas.is_empty(), "nothing is added by making it");

        let id = add(&two, std::slice::from_ref(&delta), &key).unwrap();
        // Twice is as good as once.
        assert_eq!(add(&two, std::slice::from_ref(&delta), &key).unwrap(), id);
        let bytes = fs::read(two.join(MANIFEST_FILE)).unwrap();
        let verified = Envelope::verify(&bytes, &[key.verifying_key()]).unwrap();
        assert_eq!(verified.id(), id);
        assert_eq!(verified.deltas, [delta]);
        assert_eq!(
            Manifest {
                deltas: Vec::new(),
                extensions: Vec::new(),
                ..(*verified).clone()
            },
            before
        );

        let patch = File::open(two.join("usr-from-1.delta")).unwrap();
        let mut reader = delta::Patch::open(patch)
            .unwrap()
            .apply(File::open(one.join("usr.erofs")).unwrap())
            .unwrap();
        let mut made = Vec::new();
        reader.read_to_end(&mut made).unwrap();
        assert!(made == newer);

        let same = from_release(&one, &one, &|_, _| ()).unwrap_err();
        assert!(same.to_string().contains("have the same /usr"), "{same}");
    }
}
