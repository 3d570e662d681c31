//! `orlop pki`

use std::path::PathBuf;

use anyhow::Result;
use jiff::Timestamp;
use pki::{Entry, Kind, Made, Pki, Wanted};
use serde::Serialize;

use crate::exit::Exit;
use crate::output::{self, Output};

/// Make the certificates of a cluster: an authority, members, clients
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make the authority that signs all others; its key stays in the directory
    Init {
        /// What the authority is called
        #[arg(long, default_value = "orlop-ca")]
        name: String,
        /// How many days it lasts
        #[arg(long, default_value_t = pki::AUTHORITY_DAYS)]
        days: u32,
        #[command(flatten)]
        common: Common,
    },
    /// Make the certificates of a member: for its clients, and for other members
    Member {
        /// The member's name
        name: String,
        /// An address or DNS name that others reach it at; once for each. This machine's own are added
        #[arg(long, required = true)]
        host: Vec<String>,
        #[command(flatten)]
        leaf: Leaf,
        #[command(flatten)]
        common: Common,
    },
    /// Make the certificate of a client
    Client {
        /// The user that it logs in as
        name: String,
        #[command(flatten)]
        leaf: Leaf,
        #[command(flatten)]
        common: Common,
    },
    /// Show what is there, and until when it is good
    Show {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(clap::Args)]
pub struct Common {
    /// Where authority and certificates are
    #[arg(long, default_value = "pki", env = "ORLOP_PKI")]
    dir: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
pub struct Leaf {
    /// How many days it is good
    #[arg(long, default_value_t = pki::LEAF_DAYS)]
    days: u32,
    /// Make a new one in place of the one that is there
    #[arg(long)]
    replace: bool,
}

pub fn run(command: &Command) -> Result<Exit> {
    let now = Timestamp::now();
    match command {
        Command::Init { name, days, common } => {
            made(common, pki::init(&common.dir, name, *days, now)?)
        }
        Command::Member {
            name,
            host,
            leaf,
            common,
        } => {
            let wanted = wanted(name, host, leaf);
            made(common, Pki::open(&common.dir)?.member(&wanted, now)?)
        }
        Command::Client { name, leaf, common } => {
            let wanted = wanted(name, &[], leaf);
            made(common, Pki::open(&common.dir)?.client(&wanted, now)?)
        }
        Command::Show { common } => show(common, now),
    }
}

fn wanted<'a>(name: &'a str, hosts: &'a [String], leaf: &Leaf) -> Wanted<'a> {
    Wanted {
        name,
        hosts,
        days: leaf.days,
        replace: leaf.replace,
    }
}

fn made(common: &Common, made: Made) -> Result<Exit> {
    output::print(common.output.output, &made, explain)?;
    Ok(Exit::Ok)
}

/// What to do with it.
fn explain(made: &Made) -> String {
    let mut text = String::new();
    for file in &made.files {
        text += &format!("{}\n", file.display());
    }
    text += &format!("good until {}\n", made.not_after);
    let dir = made.dir.display();
    match made.kind {
        Kind::Authority => {
            text += "next: orlop pki member NAME --host ADDRESS, once for each member\n"
        }
        Kind::Member => {
            text += &format!(
                "carry {dir} to the member, and give the store these, with the paths there:\n  \
                 --client-cert-auth --trusted-ca-file ca.crt --cert-file server.crt --key-file server.key \\\n  \
                 --peer-client-cert-auth --peer-trusted-ca-file ca.crt --peer-cert-file peer.crt --peer-key-file peer.key\n"
            );
        }
        Kind::Client => {
            text += &format!(
                "use it: etcdctl --cacert {dir}/ca.crt --cert {dir}/client.crt --key {dir}/client.key …\n"
            );
        }
    }
    text
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    entry: Entry,
    good: bool,
}

fn show(common: &Common, now: Timestamp) -> Result<Exit> {
    let shown: Vec<Shown> = pki::list(&common.dir)?
        .into_iter()
        .map(|entry| Shown {
            good: entry.is_good(now),
            entry,
        })
        .collect();
    let all_good = shown.iter().all(|shown| shown.good);
    output::print(common.output.output, &shown, |shown| table(shown, now))?;
    Ok(if all_good { Exit::Ok } else { Exit::NotHealthy })
}

fn table(shown: &[Shown], now: Timestamp) -> String {
    let rows: Vec<Vec<String>> = shown
        .iter()
        .map(|Shown { entry, good }| {
            let kind = match entry.kind {
                Kind::Authority => "authority",
                Kind::Member => "member",
                Kind::Client => "client",
            };
            let days = entry.not_after.duration_since(now).as_hours() / 24;
            let state = match (good, entry.trusted) {
                (true, _) => format!("{days} days"),
                (false, true) if days > 0 => "not yet good".into(),
                (false, true) => "expired".into(),
                (false, false) => "of another authority".into(),
            };
            vec![
                kind.into(),
                entry.name.clone(),
                state,
                entry.file.display().to_string(),
                entry.hosts.join(" "),
            ]
        })
        .collect();
    output::table(&["KIND", "NAME", "GOOD FOR", "FILE", "HOSTS"], &rows)
}
