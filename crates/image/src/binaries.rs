//! Our own programs for the image: built by cargo from the workspace that this builder is part of.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Where each program goes in the image: (crate, binary, path).
pub const HOST: &[(&str, &str, &str)] = &[
    // The lab and the image builder stay on the workstation.
    ("cli", "orlop-host", "usr/bin/orlop"),
    ("cloudinit", "cloudinit", "usr/bin/cloudinit"),
    ("update-engine", "update-engine", "usr/bin/update-engine"),
    ("update-engine", "update1", "usr/bin/update1"),
    ("locksmith", "locksmith", "usr/bin/locksmith"),
    ("store", "orlop-store", "usr/bin/orlop-store"),
];

pub struct Binaries {
    pub dir: PathBuf,
    pub init: PathBuf,
}

pub fn build(repo: &Path) -> Result<Binaries> {
    let mut host = cargo(repo);
    host.arg("build").arg("--release").arg("--locked");
    for (package, binary, _) in HOST {
        host.args(["-p", package, "--bin", binary]);
    }
    crate::tools::run(&mut host, "cargo build")?;
    // The initrd has no libraries, so its init is static.
    let target = "x86_64-unknown-linux-gnu";
    let mut init = cargo(repo);
    init.args(["build", "--release", "-p", "init", "--target", target])
        .env(
            // Replaces the configured flags: mold 1.10 (Debian 12) links static programs that crash.
            "RUSTFLAGS",
            "-Ctarget-feature=+crt-static -Crelocation-model=static -Clink-arg=-Wl,--gc-sections",
        );
    init.env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s");
    crate::tools::run(&mut init, "cargo build (init)")?;
    let dir = repo.join("target");
    Ok(Binaries {
        init: dir.join(target).join("release/init"),
        dir: dir.join("release"),
    })
}

fn cargo(repo: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repo);
    command
}

/// The repository: `$ORLOP_REPO`, or the nearest directory above `from` that has `os/packages` and a Cargo.toml.
pub fn find_repo(from: &Path) -> Result<PathBuf> {
    // The script `orlop` says which one it belongs to, wherever it is called.
    if let Some(repo) = std::env::var_os("ORLOP_REPO") {
        return Ok(repo.into());
    }
    let from = std::path::absolute(from)?;
    from.ancestors()
        .find(|d| d.join("os/packages").exists() && d.join("Cargo.toml").exists())
        .map(Path::to_path_buf)
        .with_context(|| {
            format!(
                "{} is not inside an Orlop repository; run this from your clone",
                from.display()
            )
        })
}
