//! Programs of a hypervisor's guest tools. The release has none of them; whoever brings them puts them where
//! images of this kind have them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use host::child::{self, ChildError};

pub(crate) const PLACES: [&str; 6] = [
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/opt/bin",
    "/oem/bin",
    "/usr/share/oem/bin",
];

/// They ask the hypervisor, which answers at once or never.
const LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn find(root: &Path, name: &str) -> Option<PathBuf> {
    let paths = PLACES.map(|place| host::under(root, format!("{place}/{name}")));
    paths.into_iter().find(|path| {
        let meta = std::fs::metadata(path);
        meta.is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

/// What the program prints.
pub(crate) fn ask(program: &Path, arguments: &[&str]) -> Result<Vec<u8>, ChildError> {
    let mut command = Command::new(program);
    // What it says is read by us.
    command.args(arguments).env("LC_ALL", "C");
    Ok(child::run_within(&mut command, LIMIT)?.stdout)
}
