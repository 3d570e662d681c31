//! The lab: what this workstation keeps in `.orlop/`, and who may work on it at the moment.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// The directory `.orlop` of a checkout.
#[derive(Debug, Clone)]
pub struct Lab {
    root: PathBuf,
    repo: PathBuf,
}

/// Held while it lives; the kernel gives it back when the process dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lab {
    /// The lab of a checkout: `REPO/.orlop`, made when missing.
    pub fn open(repo: &Path) -> Result<Self> {
        let root = repo.join(".orlop");
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        Ok(Self {
            root: root.canonicalize()?,
            repo: repo.canonicalize()?,
        })
    }

    /// The part of the lab that tests use: releases of their own, so that a test never replaces what a user built, and
    /// the same downloads and keys.
    pub fn for_tests(&self) -> Result<Self> {
        let root = self.root.join("test");
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        for shared in ["cache", "keys", "ssh"] {
            fs::create_dir_all(self.root.join(shared))?;
            let link = root.join(shared);
            if fs::symlink_metadata(&link).is_err() {
                std::os::unix::fs::symlink(Path::new("..").join(shared), &link)
                    .with_context(|| format!("cannot make {}", link.display()))?;
            }
        }
        Ok(Self {
            root,
            repo: self.repo.clone(),
        })
    }

    /// Finds the checkout: `$ORLOP_REPO` (the `orlop` script sets it), else the first parent of `from` that looks like one.
    pub fn find(from: &Path) -> Result<Self> {
        if let Some(repo) = std::env::var_os("ORLOP_REPO") {
            return Self::open(Path::new(&repo));
        }
        for dir in from.ancestors() {
            if dir.join("crates/vm").is_dir() && dir.join("os").is_dir() {
                return Self::open(dir);
            }
        }
        bail!(
            "{} is not inside a checkout of Orlop; run ./orlop from the checkout, or set ORLOP_REPO",
            from.display()
        )
    }

    /// `.orlop` itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The checkout.
    pub fn repo(&self) -> &Path {
        &self.repo
    }

    /// Where releases are.
    pub fn releases(&self) -> PathBuf {
        self.root.join("releases")
    }

    /// Where the nodes of `orlop up` are.
    pub fn nodes(&self) -> PathBuf {
        self.root.join("vm")
    }

    /// The data of the update-server that `orlop serve` and `orlop up` run.
    pub fn server(&self) -> PathBuf {
        self.root.join("server")
    }

    /// What can be made again.
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// The keys that releases are signed with and checked against.
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// A release that `orlop build` made.
    pub fn release(&self, version: &str) -> Release {
        Release {
            version: version.to_owned(),
            dir: self.releases().join(version),
        }
    }

    /// All releases, oldest version first.
    pub fn all_releases(&self) -> Result<Vec<Release>> {
        let mut found = Vec::new();
        let dir = self.releases();
        if !dir.exists() {
            return Ok(found);
        }
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let release = self.release(&name);
            if version_key(&name).is_some() && release.exists() {
                found.push(release);
            }
        }
        found.sort_by_key(|release| version_key(&release.version));
        Ok(found)
    }

    /// Takes the lock `name`, or says who holds it.
    pub fn lock(&self, name: &str, doing: &str) -> Result<Lock> {
        let path = self.root.join("locks").join(name);
        fs::create_dir_all(self.root.join("locks"))?;
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            file.read_to_string(&mut holder)?;
            // It may not have written its name yet.
            let holder = match holder.trim() {
                "" => "just started",
                holder => holder,
            };
            bail!("{name}: another orlop is at work on it ({holder}); wait for it or stop it");
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{doing}, process {}", std::process::id())?;
        Ok(Lock { _file: file })
    }

    /// Takes the lock `name`, waiting for whoever holds it.
    pub fn lock_wait(&self, name: &str) -> Result<Lock> {
        loop {
            match self.lock(name, "preparing") {
                Ok(lock) => return Ok(lock),
                Err(_) => crate::interrupt::sleep(std::time::Duration::from_millis(200))?,
            }
        }
    }
}

/// The directory of one release. What is in it is the image builder's contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Its version, which is also the directory's name.
    pub version: String,
    /// Where it is.
    pub dir: PathBuf,
}

impl Release {
    /// Whether it was built; directories appear complete, by a rename.
    pub fn exists(&self) -> bool {
        self.manifest().is_file()
    }

    /// The signed manifest.
    pub fn manifest(&self) -> PathBuf {
        self.dir.join("manifest.dsse.json")
    }

    /// The disk that a machine starts from.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.qcow2")
    }

    /// The plain image of `/usr`.
    pub fn usr(&self) -> PathBuf {
        self.dir.join("usr.erofs")
    }

    /// The kernel, for a start without firmware.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The initrd, for a start without firmware.
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd.img")
    }

    /// The kernel's command line, for a start without firmware.
    pub fn cmdline(&self) -> Result<String> {
        let path = self.dir.join("cmdline");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// Another name for what a machine boots from, in the machine's directory: it keeps that when the release is built
    /// anew, and its disk's overlay stays one over the same bytes. Hard links take no space.
    pub fn link_into(&self, dir: &Path) -> Result<Self> {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let linked = Self {
            version: self.version.clone(),
            dir: dir.to_owned(),
        };
        let needed = [(self.disk(), linked.disk(), true)];
        let direct = [
            (self.kernel(), linked.kernel(), false),
            (self.initrd(), linked.initrd(), false),
            (self.dir.join("cmdline"), linked.dir.join("cmdline"), false),
        ];
        for (from, to, must) in needed.into_iter().chain(direct) {
            if !must && !from.exists() {
                continue;
            }
            fs::hard_link(&from, &to)
                .or_else(|_| fs::copy(&from, &to).map(drop))
                .with_context(|| {
                    format!("cannot take {} (orlop build makes it)", from.display())
                })?;
        }
        Ok(linked)
    }

    /// Changes whenever the release is built anew, also under the same version.
    pub fn identity(&self) -> Result<String> {
        use std::os::unix::fs::MetadataExt;
        let disk = self.disk();
        let meta = fs::metadata(&disk)
            .with_context(|| format!("cannot read {} (orlop build makes it)", disk.display()))?;
        Ok(format!(
            "{}-{}-{}.{:09}",
            self.version,
            meta.ino(),
            meta.mtime(),
            meta.mtime_nsec()
        ))
    }
}

/// Dotted numbers in numeric order; `None` for what is no version, such as a half-made `2.part`.
fn version_key(version: &str) -> Option<Vec<u64>> {
    version.split('.').map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_sort_as_numbers_and_half_made_ones_do_not_count() {
        let repo = tempfile::tempdir().unwrap();
        let lab = Lab::open(repo.path()).unwrap();
        for version in ["10", "9", "9.1", "11.part"] {
            let dir = lab.releases().join(version);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("manifest.dsse.json"), "").unwrap();
        }
        fs::create_dir_all(lab.releases().join("12")).unwrap();
        let found: Vec<_> = lab
            .all_releases()
            .unwrap()
            .into_iter()
            .map(|r| r.version)
            .collect();
        assert_eq!(found, ["9", "9.1", "10"]);
    }

    #[test]
    fn the_second_one_at_a_lock_learns_who_holds_it() {
        let repo = tempfile::tempdir().unwrap();
        let lab = Lab::open(repo.path()).unwrap();
        let held = lab.lock("n1", "up").unwrap();
        let error = lab.lock("n1", "down").unwrap_err().to_string();
        assert!(
            error.contains(&format!("up, process {}", std::process::id())),
            "{error}"
        );
        drop(held);
        lab.lock("n1", "down").unwrap();
    }
}
