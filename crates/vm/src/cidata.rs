//! The disk that carries cloud-config: NoCloud's convention, a FAT volume labelled CIDATA.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

/// What the disk says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cidata {
    /// Stays the same as long as the machine keeps its disk.
    pub instance: String,
    /// The machine's name, where the user-data does not say another.
    pub hostname: String,
    /// The lab's key; the user-data stays as the user wrote it.
    pub public_key: String,
    /// `user-data`, byte for byte.
    pub user_data: String,
}

impl Cidata {
    /// NoCloud's `meta-data`: YAML, of which JSON's strings are a part.
    fn meta_data(&self) -> String {
        let text = |value: &str| serde_json::Value::from(value).to_string();
        format!(
            "instance-id: {}\nlocal-hostname: {}\npublic-keys:\n  - {}\n",
            text(&self.instance),
            text(&self.hostname),
            text(&self.public_key)
        )
    }

    /// Writes the disk's image.
    pub fn write(&self, path: &Path) -> Result<()> {
        self.try_write(path)
            .with_context(|| format!("cannot make the cloud-config disk {}", path.display()))
    }

    fn try_write(&self, path: &Path) -> Result<()> {
        let files = [
            ("meta-data", self.meta_data()),
            ("user-data", self.user_data.clone()),
        ];
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
            .volume_label(*b"CIDATA     ")
            .volume_id(0x0c1d_a7a0);
        fatfs::format_volume(&image, options)?;
        let volume = FileSystem::new(&image, FsOptions::new())?;
        for (name, text) in files {
            volume
                .root_dir()
                .create_file(name)?
                .write_all(text.as_bytes())?;
        }
        volume.unmount()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_guest_reads_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cidata.img");
        let cidata = Cidata {
            instance: "n1-1".into(),
            hostname: "n1".into(),
            public_key: "ssh-ed25519 AAAA \"lab\"".into(),
            user_data: "#cloud-config\n".repeat(100_000),
        };
        cidata.write(&path).unwrap();
        let volume = FileSystem::new(File::open(&path).unwrap(), FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label(), "CIDATA");
        let read = |name: &str| {
            let mut text = String::new();
            volume
                .root_dir()
                .open_file(name)
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            text
        };
        assert_eq!(read("user-data"), cidata.user_data);
        insta::assert_snapshot!(read("meta-data"), @r#"
        instance-id: "n1-1"
        local-hostname: "n1"
        public-keys:
          - "ssh-ed25519 AAAA \"lab\""
        "#);
    }
}
