//! `orlop fleet`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use release::Channel;
use serde::Serialize;
use update_server::api::{
    ChannelState, Event, GroupState, Host, Role, RolloutState, SetGroup, TokenState,
};
use update_server::client::{ClientError, Server};
use vm::server;

use super::lab;
use super::rollout::{self, OperatorArgs};
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
    /// One host: how it is, what it waits for, what happened to it
    Show {
        /// Its name or machine id, or the beginning of either
        host: String,
        #[command(flatten)]
        server: ServerArg,
        #[command(flatten)]
        output: Output,
    },
    /// How far each group's rollout is
    Rollouts {
        #[command(flatten)]
        server: ServerArg,
        #[command(flatten)]
        output: Output,
    },
    /// Groups and how they take releases
    Groups {
        #[command(flatten)]
        server: ServerArg,
        #[command(flatten)]
        output: Output,
    },
    /// Make or change a group
    SetGroup(SetGroupArgs),
    /// Remove a group; its hosts go back to what they say themselves
    RemoveGroup {
        name: String,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Put a host into a group
    Assign {
        /// Its machine id
        host: String,
        /// Without it: the group that the host names itself
        #[arg(long)]
        group: Option<String>,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Forget a host that is no more; should it ask again, it is a new one
    Forget {
        /// Its machine id
        host: String,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Tokens for people and programs
    #[command(subcommand)]
    Token(TokenCommand),
}

#[derive(clap::Args)]
pub struct SetGroupArgs {
    name: String,
    /// The channel that it follows; without it, the channel of its name
    #[arg(long)]
    channel: Option<Channel>,
    #[arg(long, default_value = "")]
    description: String,
    /// Spread over this many days in the usual waves of 1, 5, 15, 40, 60, 90 and 100 %
    #[arg(long, value_name = "DAYS", conflicts_with = "policy")]
    staged: Option<f64>,
    /// A file with the whole policy as JSON; - reads it from standard input
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The group that goes first
    #[arg(long, value_name = "GROUP")]
    canary: Option<String>,
    /// Say what would be set
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Subcommand)]
pub enum TokenCommand {
    /// Make one and print it; it is not shown again
    Make {
        name: String,
        /// viewer sees, operator changes
        #[arg(long, default_value = "viewer", value_parser = role)]
        role: Role,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Those that were made
    List {
        #[command(flatten)]
        operator: OperatorArgs,
        #[command(flatten)]
        output: Output,
    },
    /// Remove one, and end its sessions
    Remove {
        name: String,
        #[command(flatten)]
        operator: OperatorArgs,
    },
}

fn role(text: &str) -> Result<Role, &'static str> {
    Role::from_name(text).ok_or("viewer or operator")
}

#[derive(clap::Args)]
pub struct ServerArg {
    /// The update-server; without it the lab's
    #[arg(long, env = "ORLOP_SERVER", value_name = "URL")]
    server: Option<String>,
    /// The file with a token of the server; without it the lab's admin token, where something is changed
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl ServerArg {
    /// To look at it: some servers let only those look who have a token.
    pub fn reader(&self) -> Result<Server> {
        let token = self.token_file.as_deref().map(read_token).transpose()?;
        Server::new(&self.url()?, token.as_deref()).map_err(explain)
    }

    /// To change something on it.
    pub fn operator(&self) -> Result<Server> {
        let token = read_token(&self.token_path()?)?;
        Server::new(&self.url()?, Some(&token)).map_err(explain)
    }

    /// Where the token is that one changes something with.
    pub fn token_path(&self) -> Result<PathBuf> {
        match &self.token_file {
            Some(path) => Ok(path.clone()),
            None => Ok(lab()?.server().join("token")),
        }
    }

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

pub fn read_token(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read the server's token {}; is it the server of this lab? --token-file names another",
            path.display()
        )
    })
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
    rollouts: Vec<RolloutState>,
}

pub fn run(command: &Command) -> Result<Exit> {
    match command {
        Command::Status { server, output } => {
            let client = server.reader()?;
            let fleet = Fleet {
                hosts: client.hosts().map_err(explain)?,
                channels: client.channels().map_err(explain)?,
                rollouts: client.rollouts().map_err(explain)?,
                server: client.url().to_owned(),
            };
            output::print(output.output, &fleet, text)?;
        }
        Command::Show {
            host,
            server,
            output,
        } => show(&server.reader()?, host, output)?,
        Command::Rollouts { server, output } => {
            let rollouts = server.reader()?.rollouts().map_err(explain)?;
            output::print(output.output, &rollouts, |rollouts| {
                rollout::table(rollouts)
            })?;
        }
        Command::Groups { server, output } => {
            let groups = server.reader()?.groups().map_err(explain)?;
            output::print(output.output, &groups, |groups| groups_table(groups))?;
        }
        Command::SetGroup(args) => set_group(args)?,
        Command::RemoveGroup { name, operator } => {
            operator.connect()?.remove_group(name).map_err(explain)?;
            println!("group {name} is removed");
        }
        Command::Forget { host, operator } => {
            operator.connect()?.forget_host(host).map_err(explain)?;
            println!("{host} is forgotten");
        }
        Command::Assign {
            host,
            group,
            operator,
        } => {
            let host = operator
                .connect()?
                .assign_host(host, group.as_deref())
                .map_err(explain)?;
            let name = host.hostname.unwrap_or(host.machine_id);
            println!(
                "{name} is in group {}",
                host.group.as_deref().unwrap_or("-")
            );
        }
        Command::Token(command) => token(command)?,
    }
    Ok(Exit::Ok)
}

/// One host and its history.
#[derive(Serialize)]
struct Shown {
    host: Host,
    events: Vec<Event>,
}

fn show(client: &Server, wanted: &str, output: &Output) -> Result<()> {
    let mut found = client.find_hosts(wanted).map_err(explain)?;
    let exact = |host: &Host| host.machine_id == wanted || host.hostname.as_deref() == Some(wanted);
    if let Some(index) = found.iter().position(exact) {
        found = vec![found.swap_remove(index)];
    }
    let host = match found.len() {
        0 => bail!("no host begins with {wanted:?}; ./orlop fleet status lists them"),
        1 => found.remove(0),
        _ => {
            let names: Vec<_> = found
                .iter()
                .take(8)
                .map(|host| host.hostname.as_deref().unwrap_or(&host.machine_id))
                .collect();
            bail!(
                "{wanted:?} is the beginning of several hosts: {}",
                names.join(", ")
            );
        }
    };
    let events = client.events(Some(&host.machine_id)).map_err(explain)?;
    output::print(output.output, &Shown { host, events }, |shown| {
        let Shown { host, events } = shown;
        let next = match (&host.available, &host.waits) {
            (Some(version), _) => version.to_string(),
            (None, Some(why)) => format!("nothing: {why}"),
            (None, None) => "nothing".into(),
        };
        let mut text = format!(
            "host      {} ({})\nversion   {}\nhealth    {}\ngroup     {}, follows {}\nnext      {next}\nseen      {}\n",
            host.hostname.as_deref().unwrap_or("-"),
            host.machine_id,
            host.version,
            host.health
                .map_or_else(|| "-".into(), |health| health.to_string()),
            host.group.as_deref().unwrap_or("-"),
            host.channel,
            host.last_seen,
        );
        for failed in &host.failed {
            text += &format!(
                "failed    {}: {} ({})\n",
                failed.version, failed.reason, failed.at
            );
        }
        let row = |event: &Event| {
            vec![
                event.at.to_string(),
                event.event.clone(),
                event.version.clone().unwrap_or_else(|| "-".into()),
                event.reason.clone().unwrap_or_else(|| "-".into()),
            ]
        };
        let rows: Vec<_> = events.iter().map(row).collect();
        text + &output::table(&["WHEN", "EVENT", "VERSION", "REASON"], &rows)
    })
}

fn groups_table(groups: &[GroupState]) -> String {
    let row = |group: &GroupState| {
        let policy = &group.policy;
        let waves = match policy.waves.len() {
            0 | 1 => "at once".into(),
            _ => {
                let shares: Vec<_> = policy.waves.iter().map(ToString::to_string).collect();
                format!("{} % in {} d", shares.join("/"), policy.days)
            }
        };
        let dash = || "-".to_owned();
        vec![
            group.name.clone(),
            group.channel.to_string(),
            group.hosts.to_string(),
            waves,
            policy
                .cap
                .map_or_else(dash, |cap| format!("{} in {} min", cap.hosts, cap.minutes)),
            policy
                .window
                .as_ref()
                .map_or_else(dash, ToString::to_string),
            policy.canary.clone().unwrap_or_else(dash),
            group
                .rollout
                .as_ref()
                .map_or_else(dash, |r| format!("{}: {}", r.version, r.status)),
        ]
    };
    let rows: Vec<_> = groups.iter().map(row).collect();
    let heads = [
        "GROUP", "CHANNEL", "HOSTS", "WAVES", "CAP", "WINDOW", "AFTER", "ROLLOUT",
    ];
    output::table(&heads, &rows)
}

fn set_group(args: &SetGroupArgs) -> Result<()> {
    use update_server::rollout::Policy;
    let mut policy = match (&args.policy, args.staged) {
        (Some(path), _) => {
            let text = match path.to_str() {
                Some("-") => std::io::read_to_string(std::io::stdin())
                    .context("cannot read standard input")?,
                _ => std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?,
            };
            serde_json::from_str(&text)
                .with_context(|| format!("{} is no policy", path.display()))?
        }
        (None, Some(days)) => Policy::staged(days),
        (None, None) => Policy::default(),
    };
    policy.canary = args.canary.clone().or(policy.canary);
    policy.check(&args.name)?;
    let channel = match &args.channel {
        Some(channel) => channel.clone(),
        None => args.name.parse()?,
    };
    let group = SetGroup {
        channel,
        description: args.description.clone(),
        policy,
    };
    if args.dry_run {
        println!("{}", serde_json::to_string_pretty(&group)?);
        return Ok(());
    }
    let set = args
        .operator
        .connect()?
        .set_group(&args.name, &group)
        .map_err(explain)?;
    output::print(args.output.output, &set, |group| {
        groups_table(std::slice::from_ref(group))
    })
}

fn token(command: &TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Make {
            name,
            role,
            operator,
        } => {
            let made = operator
                .connect()?
                .make_token(name, *role)
                .map_err(explain)?;
            println!("{}", made.token);
        }
        TokenCommand::List { operator, output } => {
            let tokens = operator.connect()?.tokens().map_err(explain)?;
            output::print(output.output, &tokens, |tokens| {
                let row = |token: &TokenState| {
                    vec![
                        token.name.clone(),
                        token.role.as_str().into(),
                        token.made.to_string(),
                    ]
                };
                let rows: Vec<_> = tokens.iter().map(row).collect();
                output::table(&["NAME", "ROLE", "MADE"], &rows)
            })?;
        }
        TokenCommand::Remove { name, operator } => {
            operator.connect()?.remove_token(name).map_err(explain)?;
            println!("token {name} is removed");
        }
    }
    Ok(())
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
    // What goes on as it should needs no words here.
    for rollout in &fleet.rollouts {
        if matches!(
            rollout.status.as_str(),
            "halted" | "paused" | "awaiting_canary"
        ) {
            text += &format!(
                "release {} in group {} {}: {}\n",
                rollout.version,
                rollout.group,
                rollout.status.replace('_', " "),
                rollout.reason.as_deref().unwrap_or("-")
            );
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Words {
        #[command(subcommand)]
        command: Command,
    }

    /// What a server hears of who looks at it.
    #[test]
    fn whoever_looks_shows_the_token_that_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, "s3cret\n").unwrap();
        let server = tiny_http::Server::http("127.0.0.1:0").unwrap();
        let url = format!("http://{}", server.server_addr().to_ip().unwrap());
        let heard = std::thread::spawn(move || {
            let request = server.recv().unwrap();
            let header = request
                .headers()
                .iter()
                .find(|header| header.field.equiv("Authorization"));
            let heard = header.map(|header| header.value.to_string());
            request
                .respond(tiny_http::Response::from_string("[]"))
                .unwrap();
            heard
        });
        let token = token.to_str().unwrap();
        let words = [
            "fleet",
            "groups",
            "--server",
            &url,
            "--token-file",
            token,
            "--output",
            "json",
        ];
        let words = Words::try_parse_from(words).unwrap_or_else(|e| panic!("{e}"));
        run(&words.command).unwrap();
        assert_eq!(heard.join().unwrap().as_deref(), Some("Bearer s3cret"));
    }
}
