//! The verity target's table line (Documentation/admin-guide/device-mapper/verity.rst).

use crate::verity::{BLOCK_SIZE, RootHash, SALT};
use std::fmt::Write;

/// A file system with its hash tree, to be opened read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerityTarget {
    /// A path as the kernel resolves it, or `major:minor`.
    pub data_device: String,
    pub hash_device: String,
    /// From the superblock. A wrong number only makes every read fail.
    pub data_blocks: u64,
    pub root: RootHash,
    pub salt: Vec<u8>,
    /// For example `panic_on_corruption`.
    pub options: Vec<String>,
}

impl VerityTarget {
    /// With our salt. A corrupt block stops the machine, so that it boots again, and after some
    /// times the other slot; a read error alone would leave a half-working system.
    pub fn new(
        data_device: impl Into<String>,
        hash_device: impl Into<String>,
        data_blocks: u64,
        root: RootHash,
    ) -> VerityTarget {
        VerityTarget {
            data_device: data_device.into(),
            hash_device: hash_device.into(),
            data_blocks,
            root,
            salt: SALT.to_vec(),
            options: vec!["panic_on_corruption".to_owned()],
        }
    }

    /// The length of the device in 512-byte sectors.
    pub fn sectors(&self) -> u64 {
        self.data_blocks.saturating_mul(BLOCK_SIZE as u64 / 512)
    }

    /// Version, devices, block sizes, data blocks, the first hash block (behind the superblock),
    /// algorithm, root hash, salt, options.
    pub fn params(&self) -> String {
        let mut salt = String::new();
        for byte in &self.salt {
            // Writing to a String cannot fail.
            let _ = write!(salt, "{byte:02x}");
        }
        if salt.is_empty() {
            salt.push('-');
        }
        let mut line = format!(
            "1 {} {} {BLOCK_SIZE} {BLOCK_SIZE} {} 1 sha256 {} {salt}",
            self.data_device, self.hash_device, self.data_blocks, self.root
        );
        if !self.options.is_empty() {
            let _ = write!(line, " {} {}", self.options.len(), self.options.join(" "));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_dmsetup_would_take() {
        let mut target = VerityTarget::new("/dev/vda3", "254:4", 512, RootHash([0xab; 32]));
        let root = "ab".repeat(32);
        let salt = hex::encode(SALT);
        assert_eq!(
            target.params(),
            format!("1 /dev/vda3 254:4 4096 4096 512 1 sha256 {root} {salt} 1 panic_on_corruption")
        );
        assert_eq!(target.sectors(), 4096);

        target.salt.clear();
        target.options.clear();
        assert_eq!(
            target.params(),
            format!("1 /dev/vda3 254:4 4096 4096 512 1 sha256 {root} -")
        );
    }
}
