//! Carrying out a plan: check everything that can be known to fail, then change, and skip what is so
//! already. A second run changes nothing and restarts nothing.

mod calls;
mod check;
mod files;
mod keys;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::finding::Place;
use crate::plan::Plan;
use crate::root::{WalkError, is_foreign};

pub use calls::{CallState, CallStatus, Services, carry_out_early, carry_out_late, planned};
pub use check::check;
pub use files::{is_for_systemd, is_named};
pub use keys::{KEY_NAME, authorized_keys, unauthorized};

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("cannot {step} {}", path.display())]
    Io {
        path: PathBuf,
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Write(#[from] host::atomic::WriteError),
    #[error("{path}: {problem}")]
    Refused { path: String, problem: String },
}

impl ApplyError {
    fn io(path: &Path, step: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, step, source }
    }

    fn way(path: &str) -> impl FnOnce(WalkError) -> Self {
        let path = path.to_owned();
        move |error| match error {
            WalkError::Io { path, source } => Self::io(&path, "open")(source),
            other => Self::refused(&path, other.to_string()),
        }
    }

    fn refused(path: &str, problem: impl Into<String>) -> Self {
        Self::Refused {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}

/// What was changed, as a person would say it. Empty: everything was so already.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    pub done: Vec<String>,
    /// A unit file is new or different: systemd has to read them again.
    pub units: bool,
    /// What was not written because of what a user made of a directory of theirs; the rest was.
    pub refused: Vec<(Place, String)>,
}

impl Changes {
    fn refuse(&mut self, place: &Place, what: &str, error: ApplyError) {
        let problem = match error {
            ApplyError::Refused { problem, .. } => problem,
            error => format!("{:#}", anyhow::Error::new(error)),
        };
        self.refused
            .push((place.clone(), format!("{what}: {problem}")));
    }
}

/// Everything but the calls. [`check()`] first: it finds what would fail half-way.
pub fn apply(plan: &Plan, root: &Path) -> Result<Changes, ApplyError> {
    let mut changes = Changes::default();
    if let Some(name) = &plan.hostname {
        files::hostname(root, name, &mut changes)?;
    }
    // A home before its account: an account that exists is never completed later.
    for home in &plan.homes {
        match files::home(root, home, &mut changes) {
            Err(error) if is_foreign(root, &home.path) => {
                let what = format!("{} is not made", home.path);
                changes.refuse(&home.place, &what, error);
            }
            done => done?,
        }
    }
    for write in &plan.accounts {
        files::write(root, write, &mut changes)?;
    }
    let name = plan.key_name.as_deref().unwrap_or(keys::KEY_NAME);
    keys::authorize(root, &plan.keys, name, plan.keep_keys, &mut changes)?;
    for op in &plan.files {
        match files::run(root, op, &mut changes) {
            // What one user has made of a directory is no reason to leave out what comes after it.
            Err(error) if is_foreign(root, op.path()) => {
                let place = op.place().cloned().unwrap_or_else(Place::whole);
                changes.refuse(&place, &format!("{} is not written", op.path()), error);
            }
            done => done?,
        }
    }
    Ok(changes)
}

/// Keeps other editors of passwd(5) and its relatives out, as lckpwdf(3) does. Taken before the facts
/// are read and held until the plan is applied.
#[derive(Debug)]
pub struct AccountsLock(#[expect(dead_code, reason = "held, not read")] File);

impl AccountsLock {
    pub fn take(root: &Path) -> Result<Self, ApplyError> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = host::under(root, "/etc/.pwd.lock");
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(ApplyError::io(dir, "make"))?;
        }
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(ApplyError::io(&path, "open"))?;
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|error| ApplyError::io(&path, "lock")(error.into()))?;
        Ok(Self(file))
    }
}
