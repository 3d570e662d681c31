//! `orlop fleet`

use anyhow::{Result, anyhow};
use serde::Serialize;
use update_server::api::{ChannelState, Host};
use update_server::client::{ClientError, Server};
use vm::server;

use super::lab;
use crate::exit::Exit;
use crate::output::{self, Output};

/// Look at all hosts that an update-server knows
#[derive(clap::Subcommand)]
pub enum Command {
    /// What each host runs, how it is, and what it will get
    Status {
        #[command(flatten)]
        server: ServerArg,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(clap::Args)]
pub struct ServerArg {
    /// The update-server; without it the lab's
    #[arg(long, env = "ORLOP_SERVER", value_name = "URL")]
    server: Option<String>,
}

impl ServerArg {
    /// The address that is meant.
    pub fn url(&self) -> Result<String> {
        if let Some(url) = &self.server {
            return Ok(url.clone());
        }
        let running = server::Server::running(&lab()?.server());
        Ok(running.map_or_else(
            || format!("http://127.0.0.1:{}", server::DEFAULT_PORT),
            |server| server.url(),
        ))
    }
}

/// The error with what the operator can do about it.
pub fn explain(error: ClientError) -> anyhow::Error {
    let hint = error
        .hint()
        .map(|hint| format!(" ({hint})"))
        .unwrap_or_default();
    let mut text = format!("{error}{hint}");
    // A refused connection has a source worth reading, a refusal by the server none.
    if let Some(source) = std::error::Error::source(&error) {
        text += &format!(": {source}");
    }
    anyhow!(text)
}

#[derive(Serialize)]
struct Fleet {
    server: String,
    hosts: Vec<Host>,
    channels: Vec<ChannelState>,
}

pub fn run(command: &Command) -> Result<Exit> {
    let Command::Status { server, output } = command;
    let url = server.url()?;
    let client = Server::new(&url, None).map_err(explain)?;
    let fleet = Fleet {
        hosts: client.hosts().map_err(explain)?,
        channels: client.channels().map_err(explain)?,
        server: url,
    };
    output::print(output.output, &fleet, text)?;
    Ok(Exit::Ok)
}

fn text(fleet: &Fleet) -> String {
    let mut text = String::new();
    for channel in &fleet.channels {
        let version = channel
            .version
            .as_ref()
            .map_or("no release".into(), ToString::to_string);
        text += &format!(
            "channel {}: {version}, {} host(s)\n",
            channel.name, channel.hosts
        );
    }
    if fleet.hosts.is_empty() {
        return text + &format!("no host has asked {} yet\n", fleet.server);
    }
    let dash = || "-".to_owned();
    let row = |host: &Host| {
        let event = host.last_event.as_ref().map_or_else(dash, |event| {
            let reason = event
                .reason
                .as_ref()
                .map(|reason| format!(": {reason}"))
                .unwrap_or_default();
            format!("{}{reason}", event.event)
        });
        vec![
            host.hostname
                .clone()
                .unwrap_or_else(|| host.machine_id.clone()),
            host.version.clone(),
            host.slot.map_or_else(dash, |slot| slot.to_string()),
            host.channel.clone(),
            host.health.map_or_else(dash, |health| health.to_string()),
            host.available
                .as_ref()
                .map_or_else(dash, ToString::to_string),
            host.last_seen.to_string(),
            event,
        ]
    };
    let rows: Vec<_> = fleet.hosts.iter().map(row).collect();
    text + &output::table(
        &[
            "HOST",
            "VERSION",
            "SLOT",
            "CHANNEL",
            "HEALTH",
            "NEXT",
            "LAST SEEN",
            "LAST EVENT",
        ],
        &rows,
    )
}
