//! `orlop keys`

use std::path::PathBuf;

use anyhow::{Result, ensure};
use image::repository::{Holder, Lifetimes, Repository};
use jiff::{Timestamp, ToSpan as _};
use release::{Channel, Version};
use serde::Serialize;
use vm::lab::Lab;

use super::lab;
use super::rollout::OperatorArgs;
use crate::exit::Exit;
use crate::output::{self, Output};

/// Keys and TUF metadata: who may publish on which channel, and until when
///
/// offline/ holds the keys of root (2 of 3), targets and each channel; online/ the one that renews
/// snapshot and timestamp; repository/ what hosts are to see.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make keys, and metadata without releases
    Init {
        /// The channels there will be
        #[arg(long, default_values = ["alpha", "beta", "stable"])]
        channel: Vec<Channel>,
        #[command(flatten)]
        place: Place,
    },
    /// Put a release on a channel, or only renew what is short-lived
    Sign {
        /// Its version; without it, snapshot and timestamp are renewed with the online key alone
        version: Option<String>,
        /// The channel it goes to
        #[arg(long, default_value = "stable")]
        channel: Channel,
        #[command(flatten)]
        place: Place,
    },
    /// Take a release out of a channel
    Withdraw {
        version: Version,
        #[arg(long, default_value = "stable")]
        channel: Channel,
        #[command(flatten)]
        place: Place,
    },
    /// Replace a key: root-1, root-2, root-3, targets, channel-NAME or online
    Rotate {
        holder: Holder,
        /// The old one is gone for good; without this it has to be there
        #[arg(long)]
        lost: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Hand the metadata to an update-server, as publishing does by itself
    Push {
        #[command(flatten)]
        operator: OperatorArgs,
        #[command(flatten)]
        place: Place,
    },
    /// Show who holds what, and what expires when
    Show {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(clap::Args)]
pub struct Place {
    /// Where they are; without it the lab's own
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where the private keys are, if they are on a medium of their own
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Days for which a timestamp is valid
    #[arg(long, default_value_t = 3, value_name = "DAYS", value_parser = clap::value_parser!(i64).range(1..=365))]
    timestamp_days: i64,
}

impl Place {
    fn dir(&self) -> Result<PathBuf> {
        match &self.dir {
            Some(dir) => Ok(dir.clone()),
            None => Ok(lab()?.root().join("tuf")),
        }
    }

    fn lifetimes(&self) -> Lifetimes {
        Lifetimes {
            timestamp: (self.timestamp_days * 24).hours(),
            ..Lifetimes::default()
        }
    }

    fn open(&self) -> Result<Repository> {
        Repository::open(&self.dir()?, self.keys.as_deref(), self.lifetimes())
    }
}

#[derive(Serialize)]
struct Row {
    role: String,
    version: u64,
    expires: Timestamp,
    keys: Vec<String>,
    threshold: u32,
    targets: Vec<String>,
}

pub fn run(command: &Command) -> Result<Exit> {
    let now = Timestamp::now();
    match command {
        Command::Init { channel, place } => {
            ensure!(
                place.keys.is_none(),
                "init writes all keys below --dir: leave --keys out, and move offline/ to its medium afterwards"
            );
            let dir = place.dir()?;
            let made = Repository::init(&dir, channel, place.lifetimes(), now)?;
            println!(
                "Keys are in {0}/offline and {0}/online; hosts are to have {1}.\nMove {0}/offline to media that are not connected: two of the three root keys are needed to replace any key.",
                dir.display(),
                made.root_file()?.display()
            );
        }
        Command::Sign {
            version: None,
            place,
            ..
        } => {
            place.open()?.refresh(now)?;
            println!("snapshot and timestamp are renewed");
        }
        Command::Sign {
            version: Some(version),
            channel,
            place,
        } => {
            let dir = release_dir(version)?;
            let target = place.open()?.add(channel, &dir, now)?;
            println!("channel {channel} has {target}");
        }
        Command::Withdraw {
            version,
            channel,
            place,
        } => {
            place.open()?.withdraw(channel, version, now)?;
            println!("channel {channel} no longer has version {version}");
        }
        Command::Rotate {
            holder,
            lost,
            place,
        } => {
            let repository = place.open()?;
            repository.rotate(holder, *lost, now)?;
            println!(
                "the key is replaced; hosts follow by {}",
                repository.root_file()?.display()
            );
        }
        Command::Push { operator, place } => {
            let server = operator.connect()?;
            super::tuf::send(&place.open()?, &server)?;
            println!("{} has the metadata", server.url());
        }
        Command::Show { place, output } => show(&place.open()?, output)?,
    }
    Ok(Exit::Ok)
}

/// A version of the lab, or a release's directory.
fn release_dir(name: &str) -> Result<PathBuf> {
    let path = PathBuf::from(name);
    if path.join(release::MANIFEST_FILE).exists() {
        return Ok(path);
    }
    let lab: Lab = lab()?;
    Ok(super::releases::find(&lab, Some(name))?.dir)
}

fn show(repository: &Repository, output: &Output) -> Result<()> {
    let rows: Vec<Row> = repository
        .roles()?
        .into_iter()
        .map(|role| Row {
            role: role.name,
            version: role.version,
            expires: role.expires,
            keys: role.keys,
            threshold: role.threshold,
            targets: role.targets,
        })
        .collect();
    output::print(output.output, &rows, |rows| {
        let cells = |row: &Row| {
            let keys: Vec<&str> = row
                .keys
                .iter()
                .map(|key| &key[..key.len().min(12)])
                .collect();
            vec![
                row.role.clone(),
                row.version.to_string(),
                row.expires.to_string(),
                format!("{} of {}", row.threshold, keys.join(" ")),
                row.targets.join(" "),
            ]
        };
        output::table(
            &["ROLE", "VERSION", "EXPIRES", "KEYS", "TARGETS"],
            &rows.iter().map(cells).collect::<Vec<_>>(),
        )
    })
}
