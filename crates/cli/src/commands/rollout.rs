//! What an update-server does with its releases: `orlop release promote`, `pause`, `resume`,
//! `withdraw`, `restore`, `list --published`.

use anyhow::{Result, bail};
use release::{Channel, Version};
use serde::Serialize;
use update_server::api::{Release, RolloutState};
use update_server::client::{Rollouts, Server};

use super::fleet::{ServerArg, explain};
use super::tuf::TufArg;
use crate::exit::Exit;
use crate::output::{self, Format, Output};

/// A server that one may change things on.
#[derive(clap::Args)]
pub struct OperatorArgs {
    #[command(flatten)]
    server: ServerArg,
}

impl OperatorArgs {
    pub fn connect(&self) -> Result<Server> {
        self.server.operator()
    }
}

#[derive(clap::Args)]
pub struct PromoteArgs {
    /// The channel whose release is taken over
    #[arg(long)]
    from: Channel,
    /// The channel that gets it
    #[arg(long)]
    to: Channel,
    /// Say what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    tuf: TufArg,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Promotion {
    from: Channel,
    to: Channel,
    version: Version,
    before: Option<Version>,
    dry_run: bool,
}

pub fn promote(args: &PromoteArgs) -> Result<Exit> {
    let server = args.operator.connect()?;
    let channels = server.channels().map_err(explain)?;
    let version = |name: &Channel| {
        let channel = channels.iter().find(|channel| channel.name == *name);
        channel.and_then(|channel| channel.version.clone())
    };
    let Some(promoted) = version(&args.from) else {
        bail!("channel {} has no release to promote", args.from);
    };
    // Before anything is signed: metadata that hosts already have is not taken back by a refusal.
    server
        .check_promotion(&args.from, &args.to, Some(&promoted))
        .map_err(explain)?;
    if !args.dry_run {
        args.tuf.promote(&server, &args.from, &args.to, &promoted)?;
        server
            .promote(&args.from, &args.to, Some(&promoted))
            .map_err(explain)?;
    }
    let promotion = Promotion {
        before: version(&args.to),
        from: args.from.clone(),
        to: args.to.clone(),
        version: promoted,
        dry_run: args.dry_run,
    };
    output::print(args.output.output, &promotion, |it| {
        let before = it
            .before
            .as_ref()
            .map_or("nothing".into(), ToString::to_string);
        let has = if it.dry_run { "would have" } else { "has" };
        format!(
            "channel {} {has} release {} of {}; before: {before}\n",
            it.to, it.version, it.from
        )
    })?;
    Ok(Exit::Ok)
}

#[derive(clap::Args)]
pub struct ScopeArgs {
    /// All groups on this channel
    #[arg(long, required_unless_present = "group", conflicts_with = "group")]
    channel: Option<Channel>,
    /// One group
    #[arg(long)]
    group: Option<String>,
    /// Only its rollout of this release; all of them unless told
    #[arg(long, value_name = "VERSION", requires = "group")]
    release: Option<Version>,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    output: Output,
}

pub fn pause_or_resume(args: &ScopeArgs, pause: bool) -> Result<Exit> {
    let of = match (&args.group, &args.release, &args.channel) {
        (Some(group), Some(version), _) => Rollouts::Release(group, version),
        (Some(group), None, _) => Rollouts::Group(group),
        (None, _, Some(channel)) => Rollouts::Channel(channel.as_str()),
        (None, _, None) => bail!("say which: --channel or --group"),
    };
    let rollouts = args
        .operator
        .connect()?
        .pause_or_resume(of, pause)
        .map_err(explain)?;
    output::print(args.output.output, &rollouts, |rollouts| table(rollouts))?;
    Ok(Exit::Ok)
}

/// Rollouts as `fleet rollouts` shows them.
pub fn table(rollouts: &[RolloutState]) -> String {
    if rollouts.is_empty() {
        return "no channel points at a release; ./orlop release publish does that\n".into();
    }
    let row = |rollout: &RolloutState| {
        let sum = |of: fn(&update_server::rollout::Tally) -> u64| -> u64 {
            rollout.waves.iter().map(|wave| of(&wave.tally)).sum()
        };
        let share = rollout
            .waves
            .get(rollout.wave.saturating_sub(1))
            .map_or(100, |wave| wave.share);
        vec![
            rollout.group.clone(),
            match rollout.stop {
                true => format!("{} (on the way)", rollout.version),
                false => rollout.version.to_string(),
            },
            rollout.status.replace('_', " "),
            format!("{} of {} ({share} %)", rollout.wave, rollout.waves.len()),
            sum(|tally| tally.granted).to_string(),
            sum(|tally| tally.good).to_string(),
            sum(update_server::rollout::Tally::bad).to_string(),
            sum(update_server::rollout::Tally::waiting).to_string(),
            rollout.reason.clone().unwrap_or_else(|| "-".into()),
        ]
    };
    let rows: Vec<_> = rollouts.iter().map(row).collect();
    let heads = [
        "GROUP", "VERSION", "STATUS", "WAVE", "GIVEN", "GOOD", "BAD", "WAITING", "REASON",
    ];
    output::table(&heads, &rows)
}

#[derive(clap::Args)]
pub struct WithdrawArgs {
    version: Version,
    /// Why; it is shown with the release
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    tuf: TufArg,
}

pub fn withdraw(args: &WithdrawArgs) -> Result<Exit> {
    let server = args.operator.connect()?;
    server
        .withdraw(&args.version, Some(&args.reason))
        .map_err(explain)?;
    args.tuf.withdraw(&server, &args.version, false)?;
    println!(
        "release {} is offered to nobody any more; hosts that run it stay on it",
        args.version
    );
    Ok(Exit::Ok)
}

#[derive(clap::Args)]
pub struct RestoreArgs {
    version: Version,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    tuf: TufArg,
}

pub fn restore(args: &RestoreArgs) -> Result<Exit> {
    let server = args.operator.connect()?;
    args.tuf.withdraw(&server, &args.version, true)?;
    server.withdraw(&args.version, None).map_err(explain)?;
    println!(
        "release {} may be offered again; halted rollouts go on with ./orlop release resume",
        args.version
    );
    Ok(Exit::Ok)
}

/// `orlop release list --published`
pub fn list(server: &ServerArg, format: Format) -> Result<Exit> {
    let server = server.reader()?;
    let releases = server.releases().map_err(explain)?;
    output::print(format, &releases, |releases| {
        if releases.is_empty() {
            return "nothing is published; ./orlop release publish does that\n".into();
        }
        let row = |release: &Release| {
            let channels: Vec<_> = release.channels.iter().map(ToString::to_string).collect();
            let state = match &release.withdrawn_reason {
                Some(reason) => format!("withdrawn: {reason}"),
                None => "offered".into(),
            };
            vec![
                release.version.to_string(),
                if channels.is_empty() {
                    "-".into()
                } else {
                    channels.join(" ")
                },
                output::megabytes(release.download_size),
                release.published.to_string(),
                state,
            ]
        };
        let rows: Vec<_> = releases.iter().map(row).collect();
        output::table(
            &["VERSION", "CHANNELS", "DOWNLOAD", "PUBLISHED", "STATE"],
            &rows,
        )
    })?;
    Ok(Exit::Ok)
}
