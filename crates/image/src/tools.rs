//! Build tools from the same Debian suite as the image, run from an unpacked tree with that tree's
//! own dynamic loader: the host may be older, and nothing has to be installed or chrooted into.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

pub(crate) struct Tools {
    root: PathBuf,
}

impl Tools {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A command that runs `program` (a path below the tools tree).
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.root.join("usr/lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(self.root.join("usr/lib/x86_64-linux-gnu"))
            .arg(self.root.join(program))
            .env("LC_ALL", "C");
        command
    }

    pub(crate) fn run(&self, program: &str, configure: impl FnOnce(&mut Command)) -> Result<()> {
        let mut command = self.command(program);
        configure(&mut command);
        run(&mut command, program)
    }
}

/// Runs a child and keeps its last words for the error.
pub(crate) fn run(command: &mut Command, name: &str) -> Result<()> {
    let out = command
        .output()
        .with_context(|| format!("cannot run {name}; is it installed?"))?;
    if out.status.success() {
        return Ok(());
    }
    let text = [out.stdout, out.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    bail!(
        "{name} failed ({}):\n{}",
        out.status,
        lines[lines.len().saturating_sub(20)..].join("\n")
    )
}

/// Builds an erofs image of `tree`: uncompressed (so that deltas stay small), fixed UUID, one
/// timestamp for all inodes.
pub(crate) fn mkfs_erofs(
    tools: &Tools,
    tree: &crate::tree::Tree,
    uuid: &uuid::Uuid,
    mtime: u64,
    work: &Path,
    out: &Path,
) -> Result<()> {
    let tar = work.join("usr.tar");
    let file =
        std::fs::File::create(&tar).with_context(|| format!("cannot create {}", tar.display()))?;
    tree.write_tar(std::io::BufWriter::new(file), mtime)?;
    tools.run("usr/bin/mkfs.erofs", |c| {
        c.arg("--quiet")
            .arg("--tar=f")
            .arg(format!("-T{mtime}"))
            .arg("--all-root")
            .arg("-U")
            .arg(uuid.to_string())
            .arg("-b4096")
            .arg("-x-1")
            .arg(out)
            .arg(&tar);
    })?;
    std::fs::remove_file(&tar)?;
    let file = std::fs::OpenOptions::new().write(true).open(out)?;
    let size = file.metadata()?.len();
    // Verity hashes whole blocks.
    file.set_len(size.div_ceil(4096) * 4096)?;
    Ok(())
}
