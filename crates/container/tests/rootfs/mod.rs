//! Makes the test image: a tar archive of a root file system with one static program in it.

use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use tar::{Builder, EntryType, Header};

const APPLETS: [&str; 11] = [
    "cat",
    "eat",
    "echo",
    "exit",
    "hostname",
    "id",
    "interfaces",
    "sleep",
    "spin",
    "threads",
    "write",
];
const OS_RELEASE: &str = "ID=tiny\nPRETTY_NAME=\"Tiny test image\"\n";

/// Compiles `tiny.rs` for this machine's architecture, statically.
pub(crate) fn build_program(out: &Path) -> io::Result<()> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rootfs/tiny.rs");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let status = Command::new(rustc)
        .args([
            "--edition=2024",
            "-Copt-level=s",
            "-Cpanic=abort",
            "-Cstrip=symbols",
        ])
        .args([
            "-Ctarget-feature=+crt-static",
            "-Crelocation-model=static",
            "-o",
        ])
        .args([out.as_os_str(), source.as_ref()])
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("rustc: {status}"))),
    }
}

/// Writes the archive: the same bytes for the same program.
pub(crate) fn write_tar(program: &[u8], out: impl Write) -> io::Result<()> {
    let mut tar = Builder::new(out);
    for dir in [
        "", "bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "var",
    ] {
        let mode = if dir == "tmp" { 0o1777 } else { 0o755 };
        tar.append_data(
            &mut header(EntryType::Directory, mode, 0),
            format!("./{dir}"),
            io::empty(),
        )?;
    }
    append(&mut tar, "./bin/tiny", 0o755, program)?;
    for applet in APPLETS {
        tar.append_link(
            &mut header(EntryType::Symlink, 0o777, 0),
            format!("./bin/{applet}"),
            "tiny",
        )?;
    }
    append(&mut tar, "./etc/os-release", 0o644, OS_RELEASE.as_bytes())?;
    append(
        &mut tar,
        "./etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/tiny\n",
    )?;
    append(&mut tar, "./etc/group", 0o644, b"root:x:0:\n")?;
    tar.into_inner()?.flush()
}

fn append(tar: &mut Builder<impl Write>, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    tar.append_data(
        &mut header(EntryType::Regular, mode, bytes.len() as u64),
        path,
        bytes,
    )
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header
}
