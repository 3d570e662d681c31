//! Who this machine is, and which boot this is.

use std::path::Path;

use crate::file::{self, ReadError};

/// machine-id(5): 32 hex digits.
pub fn machine_id(root: &Path) -> Result<String, ReadError> {
    file::read(root, "/etc/machine-id").map(|text| text.trim().to_owned())
}

/// The id of this boot as 32 hex digits, the form systemd and its journal use.
pub fn boot_id(root: &Path) -> Result<String, ReadError> {
    file::read(root, "/proc/sys/kernel/random/boot_id").map(|text| text.trim().replace('-', ""))
}

/// The kernel's idea of the host name, which is what programs see now.
pub fn hostname() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// The running kernel's release, e.g. `6.12.57+deb13-cloud-amd64`.
pub fn kernel() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_32_hex_digits() {
        let id = boot_id(Path::new("/")).unwrap();
        assert!(
            id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()),
            "{id}"
        );
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(
            dir.path().join("etc/machine-id"),
            "0123456789abcdef0123456789abcdef\n",
        )
        .unwrap();
        assert_eq!(
            machine_id(dir.path()).unwrap(),
            "0123456789abcdef0123456789abcdef"
        );
    }
}
