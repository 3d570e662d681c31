//! `orlop serve`

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use vm::cloud_config::WORKSTATION;
use vm::server;

use super::lab;
use crate::exit::Exit;

/// Run the update-server here, until Ctrl-C
#[derive(clap::Args)]
pub struct Args {
    /// Address and port
    #[arg(long, env = "ORLOP_SERVE_LISTEN", default_value = "127.0.0.1:8090")]
    listen: String,
    /// Where it keeps its database and the releases; without it the lab's
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The public keys whose releases it takes; without it the lab's
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// The address under which hosts fetch from it; without it the one that nodes of `up` see
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// More options for the update-server, such as --require-sign-in; `orlop serve -- --help` lists them
    #[arg(last = true, value_name = "OPTION")]
    more: Vec<OsString>,
}

pub fn run(args: &Args) -> Result<Exit> {
    let lab = lab()?;
    let data = args.data.clone().unwrap_or_else(|| lab.server());
    let keys = args.keys.clone().unwrap_or_else(|| lab.keys());
    if args.more.iter().any(|it| it == "--help" || it == "-h") {
        return Err(Command::new(program()?).arg("--help").exec())
            .context("cannot start the update-server");
    }
    if let Some(server) = server::Server::running(&data) {
        bail!(
            "it already runs at {} (./orlop down stops it)",
            server.url()
        );
    }
    image::keys::load_or_create(lab.root(), None).context("cannot make the lab's signing key")?;
    let port = args.listen.rsplit(':').next().unwrap_or_default();
    let public_url = args
        .public_url
        .clone()
        .unwrap_or_else(|| format!("http://{WORKSTATION}:{port}"));
    let mut command = Command::new(program()?);
    command.args(["--listen", &args.listen, "--public-url", &public_url]);
    command.arg("--data").arg(&data).arg("--keys").arg(&keys);
    command.args(&args.more);
    Err(command.exec()).context("cannot start the update-server")
}

/// The program `update-server`.
pub fn program() -> Result<PathBuf> {
    beside_us("update-server")
}

/// A program of the workspace, built beside this one.
pub fn beside_us(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe().context("cannot find this program")?;
    let program = here.with_file_name(name);
    if !program.exists() {
        bail!(
            "{} is missing; cargo build --release -p {name} makes it (./orlop does it by itself)",
            program.display()
        );
    }
    Ok(program)
}
