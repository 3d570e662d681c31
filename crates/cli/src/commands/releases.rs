//! `orlop release`

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use release::{Channel, Version};
use serde::Serialize;
use update_server::client::{FlatcarFiles, Publication, Server};
use vm::lab::{Lab, Release};

use super::fleet::{self, ServerArg};
use super::tuf::TufArg;
use super::{lab, rollout};
use crate::exit::Exit;
use crate::output::{self, Format, Output};
use crate::progress::Step;

/// Look at releases that `orlop build` made, and publish them
#[derive(clap::Subcommand)]
pub enum Command {
    /// List them
    List {
        /// Those that an update-server has, with their channels, instead of those built here
        #[arg(long)]
        published: bool,
        #[command(flatten)]
        server: ServerArg,
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
    /// Give a channel the release that another one has
    Promote(rollout::PromoteArgs),
    /// Stop handing out a release; hosts that have begun finish
    Pause(rollout::ScopeArgs),
    /// Go on after a pause or a halt; the failures so far are accepted then
    Resume(rollout::ScopeArgs),
    /// Take a release back: it is offered to nobody any more, and its rollouts halt
    Withdraw(rollout::WithdrawArgs),
    /// Allow a withdrawn release again
    Restore(rollout::RestoreArgs),
    /// Write one with its metadata into a directory, for hosts without a network
    Export(super::tuf::ExportArgs),
    Delta(super::delta::DeltaArgs),
    Patch(super::delta::PatchArgs),
}

#[derive(clap::Args)]
pub struct PublishArgs {
    /// Its version; without it the newest
    version: Option<String>,
    /// Publish this payload of Flatcar's as it is, for Flatcar's own hosts, instead of a release built here
    #[arg(long, value_name = "FILE", requires = "version")]
    flatcar: Option<PathBuf>,
    /// A system extension that goes with it; may be given several times
    #[arg(long, value_name = "FILE", requires = "flatcar")]
    extension: Vec<PathBuf>,
    /// What the payload runs on
    #[arg(long, requires = "flatcar", default_value = "x86-64", value_parser = ["x86-64", "arm64"])]
    arch: String,
    /// Hosts of Flatcar's have to run this version, or a later one, first
    #[arg(long, value_name = "VERSION", requires = "flatcar")]
    minimum_source_version: Option<Version>,
    /// The channel whose hosts get it
    #[arg(long, default_value = "stable")]
    channel: Channel,
    /// Say what would be done; nothing is made, signed or sent
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    server: ServerArg,
    /// Make deltas from this many earlier releases of the server, as far as their files are here
    #[arg(long, default_value_t = 3, value_name = "N")]
    deltas: usize,
    /// Sign the manifest with the deltas with this key (PEM) instead of the lab's own
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(flatten)]
    tuf: TufArg,
    #[command(flatten)]
    output: Output,
}

pub fn run(command: &Command) -> Result<Exit> {
    match command {
        Command::List {
            published: true,
            server,
            output,
        } => rollout::list(server, output.output),
        Command::List { output, .. } => list(output.output),
        Command::Show { version, output } => show(version.as_deref(), output.output),
        Command::Publish(args) => publish(args),
        Command::Promote(args) => rollout::promote(args),
        Command::Pause(args) => rollout::pause_or_resume(args, true),
        Command::Resume(args) => rollout::pause_or_resume(args, false),
        Command::Withdraw(args) => rollout::withdraw(args),
        Command::Restore(args) => rollout::restore(args),
        Command::Export(args) => super::tuf::export(args),
        Command::Delta(args) => super::delta::run(args),
        Command::Patch(args) => super::delta::patch(args),
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
    epoch: u64,
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
            epoch: image::summary(&release.dir).map_or(0, |summary| summary.epoch),
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
            let names = vec![entry.version.clone(), entry.epoch.to_string()];
            [names, sizes.to_vec()].concat()
        };
        output::table(
            &["VERSION", "EPOCH", "/USR", "DOWNLOAD", "UKI"],
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
    if let Some(payload) = &args.flatcar {
        return publish_flatcar(args, payload);
    }
    let release = find(&lab, args.version.as_deref())?;
    let url = args.server.url()?;
    if args.dry_run {
        let server = args.server.reader()?;
        let plan = server.plan(&release.dir, &args.channel);
        return foretell(args, &server, plan.map_err(fleet::explain)?);
    }
    let token = args.server.token_path()?;
    if args.deltas > 0 {
        let server = args.server.operator()?;
        let published = server.releases().map_err(fleet::explain)?;
        let is_there = |it: &update_server::api::Release| it.version.to_string() == release.version;
        // A published release never changes: it keeps the deltas that it came with.
        if !published.iter().any(is_there) {
            let key = args.key.as_deref();
            super::delta::add_deltas(&lab, &release, &published, args.deltas, key)?;
        }
    }
    let step = Step::begin(&format!("publish {}", release.version));
    let sign = |server: &Server| args.tuf.publish(server, &args.channel, &release.dir);
    let publication = publish_to(
        &release,
        &args.channel,
        &url,
        &token,
        &sign,
        &|sent, total| {
            step.detail(&format!(
                "{} of {}",
                output::megabytes(sent),
                output::megabytes(total)
            ));
        },
    )?;
    step.done(&url);
    tell(args, &publication)
}

/// No metadata of ours is signed for it: Flatcar's hosts would not look at it.
fn publish_flatcar(args: &PublishArgs, payload: &Path) -> Result<Exit> {
    let version = args.version.as_deref().unwrap_or_default();
    let files = FlatcarFiles {
        version: version.parse()?,
        architecture: args.arch.clone(),
        minimum_source_version: args.minimum_source_version.clone(),
        payload: payload.to_owned(),
        extensions: args.extension.clone(),
    };
    let url = args.server.url()?;
    if args.dry_run {
        let server = args.server.reader()?;
        let plan = server.plan_flatcar(&files, &args.channel);
        return foretell(args, &server, plan.map_err(fleet::explain)?);
    }
    let server = args.server.operator()?;
    let step = Step::begin(&format!("publish Flatcar {version}"));
    let publication = server
        .upload_flatcar(&files, &args.channel, &mut |sent, total| {
            step.detail(&format!(
                "{} of {}",
                output::megabytes(sent),
                output::megabytes(total)
            ));
        })
        .map_err(fleet::explain)?;
    server
        .set_channel(&args.channel, &publication.version)
        .map_err(fleet::explain)?;
    step.done(&url);
    tell(args, &publication)
}

fn tell(args: &PublishArgs, publication: &Publication) -> Result<Exit> {
    output::print(args.output.output, publication, |it| {
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

#[derive(Serialize)]
struct Foretold {
    #[serde(flatten)]
    publication: Publication,
    before: Option<Version>,
    dry_run: bool,
}

fn foretell(args: &PublishArgs, server: &Server, publication: Publication) -> Result<Exit> {
    let channels = server.channels().map_err(fleet::explain)?;
    let channel = channels.into_iter().find(|it| it.name == args.channel);
    let foretold = Foretold {
        publication,
        before: channel.and_then(|channel| channel.version),
        dry_run: true,
    };
    output::print(args.output.output, &foretold, |it| {
        let before = it
            .before
            .as_ref()
            .map_or("nothing".into(), Version::to_string);
        let publication = &it.publication;
        let sent = if publication.uploaded {
            format!(
                "{} to send, without deltas that are still to be made",
                output::megabytes(publication.bytes)
            )
        } else {
            "it is there already".into()
        };
        format!(
            "channel {} would have release {} ({sent}); before: {before}\n",
            publication.channel, publication.version
        )
    })?;
    Ok(Exit::Ok)
}

/// Publishes a release: its files, then its place in the metadata (`sign`), then the channel's
/// pointer, so that no host hears of what it would refuse. `progress` hears of bytes sent and bytes in all.
pub fn publish_to(
    release: &Release,
    channel: &Channel,
    url: &str,
    token_file: &Path,
    sign: &dyn Fn(&Server) -> Result<()>,
    progress: &dyn Fn(u64, u64),
) -> Result<Publication> {
    let token = fleet::read_token(token_file)?;
    let server = Server::new(url, Some(&token)).map_err(fleet::explain)?;
    let publication = server
        .upload(&release.dir, channel, &mut |sent, total| {
            progress(sent, total)
        })
        .map_err(fleet::explain)?;
    sign(&server)?;
    server
        .set_channel(channel, &publication.version)
        .map_err(fleet::explain)?;
    Ok(publication)
}
