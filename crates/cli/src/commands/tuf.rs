//! The TUF repository that publishing signs into.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use image::repository::{Lifetimes, Repository};
use jiff::Timestamp;
use release::{Channel, Version};
use update_server::client::Server;
use vm::lab::Lab;

use super::{fleet, lab};
use crate::exit::Exit;
use crate::output;
use crate::progress::Step;

#[derive(clap::Args)]
pub struct TufArg {
    /// The TUF repository to sign with; without it the lab's, made at first need
    #[arg(long, env = "ORLOP_TUF", value_name = "DIR")]
    tuf: Option<PathBuf>,
    /// Where its private keys are, if they are on a medium of their own
    #[arg(long, value_name = "DIR")]
    tuf_keys: Option<PathBuf>,
}

impl TufArg {
    pub fn dir(&self) -> Result<PathBuf> {
        match &self.tuf {
            Some(dir) => Ok(dir.clone()),
            None => Ok(lab()?.root().join("tuf")),
        }
    }

    fn open(&self) -> Result<Repository> {
        let dir = self.dir()?;
        let keys = self.tuf_keys.as_deref();
        // Keys of a directory that somebody named are never made on the way.
        match self.tuf {
            Some(_) => Repository::open(&dir, keys, Lifetimes::default()),
            None => Repository::open_or_init(&dir, keys, Lifetimes::default(), Timestamp::now()),
        }
    }

    /// Signs a release into the channel, and hands the metadata to the server.
    pub fn publish(&self, server: &Server, channel: &Channel, release: &Path) -> Result<()> {
        if !Repository::exists(&self.dir()?) {
            self.refuse_strangers(server)?;
        }
        publish(&self.open()?, server, channel, release)
    }

    pub fn promote(
        &self,
        server: &Server,
        from: &Channel,
        to: &Channel,
        version: &Version,
    ) -> Result<()> {
        if is_flatcar(server, version)? {
            return Ok(());
        }
        let Some(repository) = self.known(server)? else {
            return Ok(());
        };
        repository.promote(from, to, version, Timestamp::now())?;
        send(&repository, server)
    }

    /// Takes a release out of all channels, or puts it back on them.
    pub fn withdraw(&self, server: &Server, version: &Version, back: bool) -> Result<()> {
        if is_flatcar(server, version)? {
            return Ok(());
        }
        let Some(repository) = self.known(server)? else {
            return Ok(());
        };
        let now = Timestamp::now();
        if back {
            repository.restore(version, now)?;
        } else {
            repository.withdraw_all(version, now)?;
        }
        send(&repository, server)
    }

    /// None: nothing on this server was ever signed so.
    fn known(&self, server: &Server) -> Result<Option<Repository>> {
        if !server.has_tuf().map_err(fleet::explain)? {
            return Ok(None);
        }
        if !Repository::exists(&self.dir()?) {
            self.refuse_strangers(server)?;
        }
        self.open().map(Some)
    }

    fn refuse_strangers(&self, server: &Server) -> Result<()> {
        if server.has_tuf().map_err(fleet::explain)? {
            bail!(
                "{} has TUF metadata, and {} is no repository that could sign the next: name the right one with --tuf",
                server.url(),
                self.dir()?.display()
            );
        }
        Ok(())
    }
}

/// Flatcar's hosts do not know our metadata, and ours are not offered its releases.
fn is_flatcar(server: &Server, version: &Version) -> Result<bool> {
    let releases = server.releases().map_err(fleet::explain)?;
    let mut it = releases.iter().filter(|it| it.version == *version);
    Ok(it.any(|release| release.flatcar))
}

/// Signs a release into the channel, and hands the metadata to the server.
pub fn publish(
    repository: &Repository,
    server: &Server,
    channel: &Channel,
    release: &Path,
) -> Result<()> {
    let now = Timestamp::now();
    repository.renew(now)?;
    repository.publish(channel, release, now)?;
    send(repository, server)
}

/// Sends all that hosts are to see.
pub fn send(repository: &Repository, server: &Server) -> Result<()> {
    server
        .send_tuf(&repository.files()?)
        .map_err(fleet::explain)
}

/// Keeps a lab's metadata from growing old while nothing is published.
pub fn renew(lab: &Lab, url: &str) -> Result<()> {
    let dir = lab.root().join("tuf");
    let public = Server::new(url, None).map_err(fleet::explain)?;
    if !Repository::exists(&dir) || !public.has_tuf().map_err(fleet::explain)? {
        return Ok(());
    }
    let repository = Repository::open(&dir, None, Lifetimes::default())?;
    repository.renew(Timestamp::now())?;
    send(&repository, &admin(lab, url)?)
}

fn admin(lab: &Lab, url: &str) -> Result<Server> {
    let path = lab.server().join("token");
    let token = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read the server's token {}", path.display()))?;
    Server::new(url, Some(&token)).map_err(fleet::explain)
}

#[derive(clap::Args)]
pub struct ExportArgs {
    /// Its version; without it the newest
    version: Option<String>,
    /// Where the releases are; without it the lab's
    #[arg(long, value_name = "DIR")]
    releases: Option<PathBuf>,
    /// The directory that gets tuf/ and a directory named after the version
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Sign the release into this channel first; without it, it has to be in the metadata already
    #[arg(long)]
    channel: Option<Channel>,
    #[command(flatten)]
    tuf: TufArg,
}

/// A tree for hosts without a network: what `orlop update --from DIR` takes.
pub fn export(args: &ExportArgs) -> Result<Exit> {
    let release = match (&args.releases, &args.version) {
        (Some(dir), Some(version)) => dir.join(version),
        (Some(dir), None) => bail!("which release of {}? name its version", dir.display()),
        (None, version) => super::releases::find(&lab()?, version.as_deref())?.dir,
    };
    let version = image::summary(&release)?.version;
    let repository = args.tuf.open()?;
    let now = Timestamp::now();
    repository.renew(now)?;
    if let Some(channel) = &args.channel {
        repository.publish(channel, &release, now)?;
    }
    let step = Step::begin(&format!("export {}", version));
    let (channels, bytes) = repository.export(&release, &args.to)?;
    step.done(&args.to.display().to_string());
    println!(
        "{} holds release {} ({}) as signed for {}; on a host: orlop update --from {}",
        args.to.display(),
        version,
        output::megabytes(bytes),
        channels.join(", "),
        args.to.display()
    );
    Ok(Exit::Ok)
}
