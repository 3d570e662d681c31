//! From the lists under `os/` to .deb files in the cache, by way of the lock.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use release::ExtensionName;

use crate::apt::{Apt, Mirror};
use crate::lock::{self, Locked};
use crate::{extension, lists};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Use the lock; resolve anew only where there is none or the mirror lost a version.
    Prefer,
    /// Anything but the lock is an error.
    Locked,
    /// Resolve anew and write the lock.
    Update,
}

pub struct Fetched {
    pub image: Vec<PathBuf>,
    pub tools: Vec<PathBuf>,
    pub image_lock: Vec<Locked>,
    /// Names the unpacked tools tree.
    pub tools_digest: String,
    pub extensions: Vec<Extension>,
}

/// What an extension has beyond the base.
pub struct Extension {
    pub name: ExtensionName,
    pub packages: Vec<PathBuf>,
}

/// Packages that are there already, with what they were chosen for.
#[derive(Default)]
struct Base {
    names: Vec<String>,
    locked: Vec<Locked>,
}

pub fn fetch(os: &Path, cache: &Path, policy: Policy, say: &dyn Fn(&str)) -> Result<Fetched> {
    let suite = std::fs::read_to_string(os.join("suite"))
        .with_context(|| format!("cannot read {}", os.join("suite").display()))?;
    let suite = suite.trim();
    let mirror = Mirror::find(Path::new("/"))?;
    let apt = Apt::new(cache, &mirror, suite)?;
    let session = Session {
        os,
        suite,
        apt: &apt,
        policy,
        say,
    };
    let none = Base::default();
    let (image, image_lock) = session.set("packages", &none)?;
    let (tools, tools_lock) = session.set("tools", &none)?;
    let base = Base {
        names: session.names("packages")?,
        locked: image_lock.clone(),
    };
    let mut extensions = Vec::new();
    for name in extension::names(os)? {
        let (packages, _) = session.set(&format!("extensions/{name}/packages"), &base)?;
        extensions.push(Extension { name, packages });
    }
    let text: String = tools_lock.iter().map(|l| l.sha256.as_str()).collect();
    let tools_digest = release::Sha256::of(text).short();
    Ok(Fetched {
        image,
        tools,
        image_lock,
        tools_digest,
        extensions,
    })
}

struct Session<'a> {
    os: &'a Path,
    suite: &'a str,
    apt: &'a Apt,
    policy: Policy,
    say: &'a dyn Fn(&str),
}

impl Session<'_> {
    fn names(&self, list: &str) -> Result<Vec<String>> {
        let items = lists::read(&self.os.join(list))?;
        Ok(items.into_iter().map(|item| item.name).collect())
    }

    /// The packages of `os/LIST`, and what they depend on, without the base's.
    fn set(&self, list: &str, base: &Base) -> Result<(Vec<PathBuf>, Vec<Locked>)> {
        let lock_name = format!("{list}.lock");
        let lock_path = self.os.join(&lock_name);
        let names = [base.names.clone(), self.names(list)?].concat();
        let locked = lock::read(&lock_path, &names)?;
        if self.policy != Policy::Update {
            if let Some(locked) = &locked {
                if let Some(paths) = self.cached(locked)? {
                    return Ok((paths, locked.clone()));
                }
            } else if self.policy == Policy::Locked {
                bail!(
                    "{} is missing or older than the list; make it with `orlop build --update-lock`",
                    lock_path.display()
                );
            }
        }
        (self.say)("reading the package lists");
        self.apt.update()?;
        if let (Some(locked), true) = (&locked, self.policy != Policy::Update) {
            (self.say)("downloading the locked packages");
            match self.apt.download(&lock::wanted(locked)) {
                Ok(got) => {
                    for (want, got) in locked.iter().zip(&got) {
                        if want.sha256 != got.sha256 {
                            bail!(
                                "{} {} has SHA-256 {}, but {} says {}: not the file that was locked",
                                want.name,
                                want.version,
                                got.sha256,
                                lock_path.display(),
                                want.sha256
                            );
                        }
                    }
                    return Ok((self.paths(locked)?, locked.clone()));
                }
                Err(e) if self.policy == Policy::Locked => {
                    return Err(e.context(format!(
                        "the mirror does not have every version of {}; \
                         `orlop build --update-lock` takes today's",
                        lock_path.display()
                    )));
                }
                Err(_) => (self.say)(&format!(
                    "the mirror no longer has every version of {lock_name}: taking today's, \
                     and writing them to the lock"
                )),
            }
        }
        (self.say)("resolving and downloading packages");
        let mut chosen = self.apt.resolve(&names, &[])?;
        chosen.retain(|(name, _)| base.locked.iter().all(|there| there.name != *name));
        let locked = self.apt.download(&chosen)?;
        lock::write(&lock_path, self.suite, &names, &locked)?;
        Ok((self.paths(&locked)?, locked))
    }

    /// The cached files of the lock, if all are there and none has changed.
    fn cached(&self, locked: &[Locked]) -> Result<Option<Vec<PathBuf>>> {
        let mut paths = Vec::new();
        for l in locked {
            let Some(path) = self.apt.cached(&l.name, &l.version) else {
                return Ok(None);
            };
            if lock::sha256_file(&path)? != l.sha256 {
                // A damaged download; apt fetches it again.
                std::fs::remove_file(&path)?;
                return Ok(None);
            }
            paths.push(path);
        }
        Ok(Some(paths))
    }

    fn paths(&self, locked: &[Locked]) -> Result<Vec<PathBuf>> {
        locked
            .iter()
            .map(|l| {
                self.apt
                    .cached(&l.name, &l.version)
                    .with_context(|| format!("{} {} is not in the cache", l.name, l.version))
            })
            .collect()
    }
}
