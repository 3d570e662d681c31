//! Where everything is, below a root that tests choose.

use std::path::{Path, PathBuf};

use host::under;
use release::Sha256;

#[derive(Clone, Debug)]
pub(crate) struct Paths {
    root: PathBuf,
}

impl Paths {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Public keys whose signatures are believed; part of the verified `/usr`.
    pub(crate) fn keys(&self) -> PathBuf {
        under(&self.root, "/usr/lib/orlop/keys")
    }

    /// TUF's root metadata; also part of it.
    pub(crate) fn tuf_root(&self) -> PathBuf {
        under(&self.root, "/usr/lib/orlop/tuf/root.json")
    }

    /// The metadata that the daemon believed last.
    pub(crate) fn metadata(&self) -> PathBuf {
        under(&self.root, "/var/lib/update-engine/tuf")
    }

    /// The writer's own, which the daemon cannot change.
    pub(crate) fn writer_metadata(&self) -> PathBuf {
        under(&self.root, "/var/lib/update-writer/tuf")
    }

    /// The highest epoch that was good; the daemon cannot change it either.
    pub(crate) fn epoch(&self) -> PathBuf {
        under(&self.root, "/var/lib/update-writer/epoch")
    }

    /// What root allows for a while.
    pub(crate) fn overrides(&self) -> PathBuf {
        under(&self.root, "/run/orlop/update-overrides.json")
    }

    /// Locked by root while it waits for an update that may believe expired metadata.
    pub(crate) fn allow_expired(&self) -> PathBuf {
        under(&self.root, "/run/orlop/update-allow-expired")
    }

    /// Likewise, for an update to an older release.
    pub(crate) fn allow_older(&self) -> PathBuf {
        under(&self.root, "/run/orlop/update-allow-older")
    }

    pub(crate) fn state(&self) -> PathBuf {
        under(&self.root, "/var/lib/update-engine/state.json")
    }

    /// What worked when the staged release was written.
    pub(crate) fn before(&self) -> PathBuf {
        under(&self.root, "/var/lib/update-engine/before.json")
    }

    pub(crate) fn downloads(&self) -> PathBuf {
        under(&self.root, "/var/lib/update-engine/download")
    }

    pub(crate) fn download(&self, id: Sha256) -> PathBuf {
        self.downloads().join(id.to_string())
    }

    /// Extensions that the daemon fetched, by the root hash of the release that they belong to.
    pub(crate) fn fetched_extensions(&self) -> PathBuf {
        under(&self.root, "/var/lib/update-engine/extensions")
    }

    /// Rewritten when there are new ones; `extensions-arrived.path` waits for that.
    pub(crate) fn extensions_arrived(&self) -> PathBuf {
        under(&self.root, "/var/lib/update-engine/extensions/arrived")
    }

    /// Those that root has verified, by the same. The daemon cannot write here.
    pub(crate) fn extensions(&self) -> PathBuf {
        under(&self.root, "/var/lib/orlop/extensions")
    }

    /// Where systemd-sysext looks.
    pub(crate) fn merged_extensions(&self) -> PathBuf {
        under(&self.root, "/run/extensions")
    }

    pub(crate) fn status(&self) -> PathBuf {
        under(&self.root, "/run/update-engine/status.json")
    }

    /// For node_exporter.
    pub(crate) fn metrics(&self) -> PathBuf {
        under(&self.root, "/run/update-engine/update-engine.prom")
    }

    /// Its existence is what starts locksmith.
    pub(crate) fn reboot_needed(&self) -> PathBuf {
        under(&self.root, "/run/update-engine/reboot-needed")
    }

    pub(crate) fn engine_socket(&self) -> PathBuf {
        under(&self.root, "/run/update-engine/io.orlop.UpdateEngine")
    }

    pub(crate) fn writer_socket(&self) -> PathBuf {
        under(&self.root, "/run/update-engine/writer.sock")
    }

    /// Exists once this boot was marked good.
    pub(crate) fn good(&self) -> PathBuf {
        under(&self.root, "/run/orlop/good")
    }

    /// The slots as mark-good left them.
    pub(crate) fn slots(&self) -> PathBuf {
        under(&self.root, "/run/orlop/slots.json")
    }

    /// A line for each boot since the last good one, written by the initrd.
    pub(crate) fn attempts(&self) -> PathBuf {
        under(&self.root, "/var/lib/orlop/boot/attempts")
    }

    pub(crate) fn failure(&self) -> PathBuf {
        under(&self.root, "/var/lib/orlop/boot/failure.json")
    }
}
