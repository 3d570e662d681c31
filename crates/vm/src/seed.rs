//! How a machine is told its user-data: a disk by one of two conventions, or a file handed over by QEMU.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use serde::{Deserialize, Serialize};

/// How a machine gets its user-data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Datasource {
    /// A FAT volume labelled `CIDATA`.
    #[default]
    Nocloud,
    /// OpenStack's: a FAT volume labelled `config-2`.
    ConfigDrive,
    /// QEMU's firmware configuration device: the user-data alone, no metadata.
    FwCfg,
    /// Not from us: it asks a service, or has nothing.
    None,
}

impl Datasource {
    const ALL: [Self; 4] = [Self::Nocloud, Self::ConfigDrive, Self::FwCfg, Self::None];

    /// The file that QEMU is given, in the node's directory.
    pub fn file(self) -> &'static str {
        match self {
            Self::Nocloud => "cidata.img",
            Self::ConfigDrive => "config-2.img",
            Self::FwCfg | Self::None => "user-data",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Nocloud => "nocloud",
            Self::ConfigDrive => "config-drive",
            Self::FwCfg => "fw-cfg",
            Self::None => "none",
        }
    }
}

impl std::fmt::Display for Datasource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Datasource {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|source| source.name() == text)
            .ok_or_else(|| {
                anyhow!(
                    "{text:?} is no datasource; there are nocloud, config-drive, fw-cfg and none"
                )
            })
    }
}

/// What a machine is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seed {
    /// Stays the same as long as the machine keeps its disk.
    pub instance: String,
    /// The machine's name, where the user-data does not say another.
    pub hostname: String,
    /// The lab's key; the user-data stays as the user wrote it.
    pub public_key: String,
    /// The user-data, byte for byte.
    pub user_data: String,
}

impl Seed {
    /// NoCloud's `meta-data`: YAML, of which JSON's strings are a part.
    fn nocloud(&self) -> String {
        let text = |value: &str| serde_json::Value::from(value).to_string();
        format!(
            "instance-id: {}\nlocal-hostname: {}\npublic-keys:\n  - {}\n",
            text(&self.instance),
            text(&self.hostname),
            text(&self.public_key)
        )
    }

    /// OpenStack's `meta_data.json`.
    fn openstack(&self) -> String {
        serde_json::json!({
            "uuid": self.instance,
            "hostname": self.hostname,
            "public_keys": { "lab": self.public_key },
        })
        .to_string()
    }

    /// Writes what the datasource needs into a node's directory.
    pub fn write(&self, source: Datasource, dir: &Path) -> Result<()> {
        let path = dir.join(source.file());
        let written = match source {
            Datasource::Nocloud => volume(
                &path,
                *b"CIDATA     ",
                &[
                    ("meta-data", &self.nocloud()),
                    ("user-data", &self.user_data),
                ],
            ),
            Datasource::ConfigDrive => volume(
                &path,
                *b"config-2   ",
                &[
                    ("openstack/latest/meta_data.json", &self.openstack()),
                    ("openstack/latest/user_data", &self.user_data),
                ],
            ),
            // Nobody reads it there, but whoever looks for it finds it.
            Datasource::FwCfg | Datasource::None => {
                std::fs::write(&path, &self.user_data).map_err(Into::into)
            }
        };
        written.with_context(|| format!("cannot write the user-data to {}", path.display()))
    }
}

/// A FAT image with these files.
fn volume(path: &Path, label: [u8; 11], files: &[(&str, &str)]) -> Result<()> {
    let content: usize = files.iter().map(|(_, text)| text.len()).sum();
    let size = (content as u64 * 2).next_multiple_of(1 << 20).max(1 << 20);
    // A new file, not the old one again: a machine that still reads the old disk keeps what it sees.
    let _ = std::fs::remove_file(path);
    let image = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    image.set_len(size)?;
    let options = FormatVolumeOptions::new()
        .volume_label(label)
        .volume_id(0x0c1d_a7a0);
    fatfs::format_volume(&image, options)?;
    let volume = FileSystem::new(&image, FsOptions::new())?;
    for (path, text) in files {
        let (dirs, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut dir = volume.root_dir();
        for part in dirs.split('/').filter(|part| !part.is_empty()) {
            dir = dir.create_dir(part)?;
        }
        dir.create_file(name)?.write_all(text.as_bytes())?;
    }
    volume.unmount()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_guest_reads_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let seed = Seed {
            instance: "n1-1".into(),
            hostname: "n1".into(),
            public_key: "ssh-ed25519 AAAA \"lab\"".into(),
            user_data: "#cloud-config\n".repeat(100_000),
        };
        let read = |source: Datasource, label: &str, name: &str| {
            seed.write(source, dir.path()).unwrap();
            let image = File::open(dir.path().join(source.file())).unwrap();
            let volume = FileSystem::new(image, FsOptions::new()).unwrap();
            assert_eq!(volume.volume_label(), label);
            let mut text = String::new();
            let mut file = volume.root_dir().open_file(name).unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        };
        let nocloud = |name| read(Datasource::Nocloud, "CIDATA", name);
        assert_eq!(nocloud("user-data"), seed.user_data);
        insta::assert_snapshot!(nocloud("meta-data"), @r#"
        instance-id: "n1-1"
        local-hostname: "n1"
        public-keys:
          - "ssh-ed25519 AAAA \"lab\""
        "#);
        let drive = |name| read(Datasource::ConfigDrive, "config-2", name);
        assert_eq!(drive("openstack/latest/user_data"), seed.user_data);
        insta::assert_snapshot!(drive("openstack/latest/meta_data.json"), @r#"{"hostname":"n1","public_keys":{"lab":"ssh-ed25519 AAAA \"lab\""},"uuid":"n1-1"}"#);
    }

    #[test]
    fn datasources_are_read_as_they_are_written() {
        for source in Datasource::ALL {
            assert_eq!(source.to_string().parse::<Datasource>().unwrap(), source);
        }
        assert!("ec2".parse::<Datasource>().is_err());
    }
}
