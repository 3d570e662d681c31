//! What worked before an update has to work after it.
//!
//! When a release is about to be written, the daemon notes what works on this host and is started by its boots
//! ([`note`]). In
//! the boots that try this release, one unit for each [`Check`] waits until that works again, or
//! fails; `boot-complete.target` requires them. On all other boots there is no note that concerns
//! the running release, and nothing is asked of it: a cable that somebody pulled takes no host back
//! from a release that was good here.

pub mod generator;
mod probe;
mod starts;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use host::running;
use release::Sha256;
use serde::{Deserialize, Serialize};

use crate::paths::Paths;
use crate::slots::Source;

/// Err: what does not work.
type Works = fn(&std::path::Path) -> Result<(), String>;

/// How often to look again.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Check {
    /// There is a way out, as there was before
    Network,
    /// etcd.service runs and says that it is healthy, as before
    Store,
    /// What containers run on answers: machined, docker
    Containers,
}

/// `/var/lib/update-engine/before.json`: what worked when a release was about to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Before {
    /// The release that has to do as well.
    root_hash: Option<Sha256>,
    network: bool,
    store: bool,
    machined: bool,
    docker: bool,
}

/// Before the release with this root hash is written.
pub(crate) fn note(paths: &Paths, root_hash: Sha256) -> anyhow::Result<()> {
    let root = paths.root();
    // What somebody started by hand is gone after every reboot, whichever release it boots.
    let service = |name: &str| {
        probe::runs(root, &format!("system.slice/{name}")) && starts::by_a_boot(root, name)
    };
    let before = Before {
        root_hash: Some(root_hash),
        network: probe::has_way_out(root),
        store: service("etcd.service"),
        machined: probe::runs_any(root, "machine.slice", "container-"),
        docker: service("docker.service"),
    };
    let mut text = serde_json::to_vec(&before)?;
    text.push(b'\n');
    host::atomic::write(&paths.before(), &text, 0o644, None)?;
    Ok(())
}

/// The release that the note is about has proved itself.
pub(crate) fn forget(paths: &Paths, running: Option<Sha256>) {
    let concerned = read(paths).is_ok_and(|b| b.is_some_and(|b| b.root_hash == running));
    if concerned && let Err(e) = host::atomic::remove(&paths.before()) {
        tracing::warn!("{e}");
    }
}

fn read(paths: &Paths) -> anyhow::Result<Option<Before>> {
    let path = paths.before();
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .with_context(|| format!("{} is damaged", path.display()))
}

/// Waits until it works; an error says what does not.
pub fn check(source: &Source, check: Check, within: Duration) -> anyhow::Result<()> {
    let paths = Paths::new(&source.root);
    // A note that cannot be read is no reason to leave a release.
    let before = read(&paths).unwrap_or_else(|e| {
        tracing::warn!("{e:#}");
        None
    });
    let running = running::root_hash(&source.root)?;
    let running: Option<Sha256> = running.and_then(|hash| hash.parse().ok());
    let Some(before) = before.filter(|b| b.root_hash.is_some() && b.root_hash == running) else {
        tracing::info!("this release is not on trial");
        return Ok(());
    };
    let root = source.root.as_path();
    let mut demands: Vec<(bool, Works)> = Vec::new();
    match check {
        Check::Network => demands.push((before.network, probe::network)),
        Check::Store => demands.push((before.store, probe::store)),
        Check::Containers => {
            demands.push((before.machined, probe::machined));
            demands.push((before.docker, probe::docker));
        }
    }
    let end = Instant::now() + within;
    for (_, works) in demands.into_iter().filter(|(wanted, _)| *wanted) {
        while let Err(reason) = works(root) {
            if Instant::now() >= end {
                bail!("{reason}, and the release before could");
            }
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host(tempfile::TempDir, Source);

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let source = Source {
                root: dir.path().into(),
                disk: None,
            };
            for path in ["proc/net", "sys/class/net/eth0", "var/lib/update-engine"] {
                fs::create_dir_all(dir.path().join(path)).unwrap();
            }
            Self(dir, source)
        }

        fn runs(&self, release: Sha256) -> &Self {
            self.write("proc/cmdline", &format!("rw usrhash={release} quiet"))
        }

        fn write(&self, path: &str, text: &str) -> &Self {
            fs::write(self.0.path().join(path), text).unwrap();
            self
        }

        fn network(&self) -> Result<(), String> {
            check(&self.1, Check::Network, Duration::ZERO).map_err(|e| format!("{e:#}"))
        }
    }

    const ROUTED: &str = "Iface\tDestination\tGateway\tFlags\n\
                          eth0\t00000000\t0202000A\t0003\t0\t0\t1024\t00000000\n";

    #[test]
    fn a_release_that_loses_the_network_fails() {
        let (one, two) = (Sha256::of("1"), Sha256::of("2"));
        let host = Host::new();
        host.runs(one).write("proc/net/route", ROUTED);
        let paths = Paths::new(host.0.path());
        note(&paths, two).unwrap();
        // Nothing is asked of the release that wrote it.
        host.write("proc/net/route", "");
        host.network().unwrap();

        host.runs(two).write("sys/class/net/eth0/carrier", "0\n");
        assert_eq!(
            host.network().unwrap_err(),
            "there is no default route (eth0: no carrier), and the release before could"
        );
        host.write("proc/net/route", ROUTED);
        host.network().unwrap();

        forget(&paths, Some(one));
        assert!(paths.before().exists());
        forget(&paths, Some(two));
        assert!(!paths.before().exists());
        host.write("proc/net/route", "");
        host.network().unwrap();
    }

    #[test]
    fn what_did_not_work_before_is_not_asked_for() {
        let two = Sha256::of("2");
        let host = Host::new();
        let paths = Paths::new(host.0.path());
        note(&paths, two).unwrap();
        host.runs(two);
        for which in [Check::Network, Check::Store, Check::Containers] {
            check(&host.1, which, Duration::ZERO).unwrap();
        }
        // A torn note is none.
        host.write("var/lib/update-engine/before.json", "{\"root_ha");
        host.network().unwrap();
    }
}
