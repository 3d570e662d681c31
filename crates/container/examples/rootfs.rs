//! `cargo run -p container --example rootfs -- OUT.tar`: the test image, for trying containers by
//! hand and for the scenarios.

#[path = "../tests/rootfs/mod.rs"]
mod rootfs;

use std::fs::File;
use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let out: PathBuf = std::env::args_os()
        .nth(1)
        .map(PathBuf::from)
        .ok_or_else(|| anyhow::anyhow!("usage: rootfs OUT.tar"))?;
    let program = out.with_extension("program");
    rootfs::build_program(&program)?;
    let bytes = std::fs::read(&program)?;
    std::fs::remove_file(&program)?;
    rootfs::write_tar(&bytes, File::create(&out)?)?;
    println!("{}", out.display());
    Ok(())
}
