//! `orlop release`

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use release::Channel;
use serde::Serialize;
use update_server::client::{Publication, Server};
use vm::lab::{Lab, Release};

use super::fleet::{self, ServerArg};
use super::lab;
use crate::exit::Exit;
use crate::output::{self, Format, Output};
use crate::progress::Step;

/// Look at releases that `orlop build` made, and publish them
#[derive(clap::Subcommand)]
pub enum Command {
    /// List them
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Show one: the sizes of /usr, of the download and of the UKI
    Show {
        /// Its version; without it the newest
        version: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Put one on an update-server and point a channel at it
    Publish(PublishArgs),
}

#[derive(clap::Args)]
pub struct PublishArgs {
    /// Its version; without it the newest
    version: Option<String>,
    /// The channel whose hosts get it
    #[arg(long, default_value = "stable")]
    channel: Channel,
    #[command(flatten)]
    server: ServerArg,
    /// The file with the server's admin token; without it the lab's
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

pub fn run(command: &Command) -> Result<Exit> {
    match command {
        Command::List { output } => list(output.output),
        Command::Show { version, output } => show(version.as_deref(), output.output),
        Command::Publish(args) => publish(args),
    }
}

/// The release of a version, or the newest.
pub fn find(lab: &Lab, version: Option<&str>) -> Result<Release> {
    match version {
        Some(version) => {
            let release = lab.release(version);
            if !release.exists() {
                bail!("there is no release {version}; ./orlop build --version {version} makes it");
            }
            Ok(release)
        }
        None => match lab.all_releases()?.pop() {
            Some(release) => Ok(release),
            None => bail!("there is no release yet; ./orlop build makes one"),
        },
    }
}

#[derive(Serialize)]
struct Entry {
    version: String,
    usr_bytes: u64,
    download_bytes: u64,
    uki_bytes: u64,
    dir: String,
}

fn list(format: Format) -> Result<Exit> {
    let size = |path| fs::metadata(path).map_or(0, |meta| meta.len());
    let entries: Vec<Entry> = lab()?
        .all_releases()?
        .into_iter()
        .map(|release| (size(release.dir.join("uki.efi")), release))
        .map(|(uki_bytes, release)| Entry {
            usr_bytes: size(release.usr()),
            download_bytes: size(release.dir.join("usr.erofs.zst")) + uki_bytes,
            uki_bytes,
            dir: release.dir.display().to_string(),
            version: release.version,
        })
        .collect();
    output::print(format, &entries, |entries| {
        if entries.is_empty() {
            return "no releases; ./orlop build makes one\n".into();
        }
        let cells = |entry: &Entry| {
            let sizes =
                [entry.usr_bytes, entry.download_bytes, entry.uki_bytes].map(output::megabytes);
            [vec![entry.version.clone()], sizes.to_vec()].concat()
        };
        output::table(
            &["VERSION", "/USR", "DOWNLOAD", "UKI"],
            &entries.iter().map(cells).collect::<Vec<_>>(),
        )
    })?;
    Ok(Exit::Ok)
}

fn show(version: Option<&str>, format: Format) -> Result<Exit> {
    let release = find(&lab()?, version)?;
    let summary = image::summary(&release.dir)?;
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&summary)?),
        Format::Text => image::cli::print_summary(&summary),
    }
    Ok(Exit::Ok)
}

fn publish(args: &PublishArgs) -> Result<Exit> {
    let lab = lab()?;
    let release = find(&lab, args.version.as_deref())?;
    let url = args.server.url()?;
    let token = args
        .token_file
        .clone()
        .unwrap_or_else(|| lab.server().join("token"));
    let step = Step::begin(&format!("publish {}", release.version));
    let publication = publish_to(&release, &args.channel, &url, &token, &|sent, total| {
        step.detail(&format!(
            "{} of {}",
            output::megabytes(sent),
            output::megabytes(total)
        ));
    })?;
    step.done(&url);
    output::print(args.output.output, &publication, |it| {
        let sent = if it.uploaded {
            format!("{} sent", output::megabytes(it.bytes))
        } else {
            "it was there already".into()
        };
        format!(
            "channel {} has release {} ({sent}); hosts take it when they ask next\n",
            it.channel, it.version
        )
    })?;
    Ok(Exit::Ok)
}

/// Publishes a release; `progress` hears of bytes sent and bytes in all.
pub fn publish_to(
    release: &Release,
    channel: &Channel,
    url: &str,
    token_file: &Path,
    progress: &dyn Fn(u64, u64),
) -> Result<Publication> {
    let token = fs::read_to_string(token_file).with_context(|| {
        format!("cannot read the server's token {}; is it the server of this lab? --token-file names another", token_file.display())
    })?;
    let server = Server::new(url, Some(&token)).map_err(fleet::explain)?;
    server
        .publish(&release.dir, channel, &mut |sent, total| {
            progress(sent, total)
        })
        .map_err(fleet::explain)
}
