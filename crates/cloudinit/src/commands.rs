//! The commands: arguments in, exit code out.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use cloudinit::apply::CallState;
use cloudinit::finding::{Severity, has_errors};
use cloudinit::metadata::Metadata;
use cloudinit::pipeline;
use cloudinit::plan::Facts;
use cloudinit::service::{self, Origin};
use cloudinit::status::{State, Status};
use cloudinit::substitute::Variables;
use cloudinit::systemd::Live;
use serde_json::json;

use crate::{Format, Input, show};

/// How the process ends; 2 is clap's, for wrong usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done; there may be warnings.
    Fine = 0,
    /// The user-data has errors; nothing of it is applied.
    Invalid = 1,
    /// Something of ours failed: files, systemd, a datasource.
    Failed = 3,
}

pub(crate) fn run(patience: f32) -> anyhow::Result<Exit> {
    host::log::init();
    let patience = Duration::try_from_secs_f32(patience).context("--patience")?;
    let services = Live::default();
    let now = SystemTime::now();
    let status = service::run(
        Path::new("/"),
        Origin::Machine(patience),
        now,
        Some(&services),
    )?;
    for line in &status.changed {
        tracing::info!("{line}");
    }
    for finding in &status.findings {
        match finding.severity {
            Severity::Error => tracing::error!("user-data:{finding}"),
            Severity::Warning => tracing::warn!("user-data:{finding}"),
        }
    }
    // Standard output is the console: whoever looks at it wants a line, not a journal.
    print!("{}", show::summary(&status));
    Ok(code(&status))
}

fn code(status: &Status) -> Exit {
    let failed = status
        .calls
        .iter()
        .any(|call| call.state == CallState::Failed);
    match status.state {
        State::Invalid => Exit::Invalid,
        State::Failed => Exit::Failed,
        State::NoData | State::Applied if failed => Exit::Failed,
        State::NoData | State::Applied => Exit::Fine,
    }
}

pub(crate) fn units() -> anyhow::Result<Exit> {
    host::log::init();
    let status = service::finish(Path::new("/"), &Live::default())?;
    let failed = |status: &Status| status.calls.iter().any(|c| c.state == CallState::Failed);
    Ok(if status.is_some_and(|s| failed(&s)) {
        Exit::Failed
    } else {
        Exit::Fine
    })
}

pub(crate) fn validate(input: &Input, strict: bool) -> anyhow::Result<Exit> {
    let bytes = read(&input.file)?;
    let mut findings = pipeline::validate(&pipeline::Input {
        user_data: Some(&bytes),
        metadata: metadata(input),
    });
    if strict {
        for finding in &mut findings {
            finding.severity = Severity::Error;
        }
    }
    match input.output {
        Format::Json => print_json(&json!({ "file": input.file, "findings": findings })),
        Format::Text => print!("{}", show::findings(&input.file, &findings)),
    }
    Ok(if has_errors(&findings) {
        Exit::Invalid
    } else {
        Exit::Fine
    })
}

pub(crate) fn plan(input: &Input, root: &Path) -> anyhow::Result<Exit> {
    let bytes = read(&input.file)?;
    if !root.is_dir() {
        bail!("--root {}: not a directory", root.display());
    }
    let facts = Facts::read(root, SystemTime::now())?;
    let data = pipeline::Input {
        user_data: Some(&bytes),
        metadata: metadata(input),
    };
    let mut outcome = pipeline::plan(&data, &facts);
    let objections = cloudinit::apply::check(&outcome.plan, root);
    outcome.object(objections, &data, &facts);
    match input.output {
        Format::Json => {
            for finding in &outcome.findings {
                eprintln!("{}:{finding}", input.file.display());
            }
            print_json(&outcome.plan.to_json(outcome.exit(), root));
        }
        Format::Text => {
            eprint!("{}", show::findings(&input.file, &outcome.findings));
            print!("{}", show::plan(&outcome.plan, root));
        }
    }
    Ok(match outcome.has_errors() {
        true => Exit::Invalid,
        false => Exit::Fine,
    })
}

/// Both phases at once: nothing of the boot is waiting for us.
pub(crate) fn apply(from: &Path, root: &Path) -> anyhow::Result<Exit> {
    host::log::init();
    let live = Live::default();
    let running = root == Path::new("/");
    let services: Option<&dyn cloudinit::apply::Services> = running.then_some(&live);
    let mut status = service::run(root, Origin::File(from), SystemTime::now(), services)?;
    if let Some(services) = services
        && let Some(finished) = service::finish(root, services)?
    {
        status = finished;
    }
    eprint!("{}", show::findings(from, &status.findings));
    for line in &status.changed {
        println!("{line}");
    }
    print!("{}", show::summary(&status));
    Ok(code(&status))
}

pub(crate) fn status(output: Format) -> anyhow::Result<Exit> {
    let Some(status) = Status::read(Path::new("/")) else {
        bail!("cloudinit has not run in this boot; see `systemctl status cloudinit.service`");
    };
    match output {
        Format::Json => print_json(&serde_json::to_value(&status)?),
        Format::Text => print!("{}", show::status(&status)),
    }
    Ok(Exit::Fine)
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin()
            .read_to_end(&mut bytes)
            .context("standard input")?;
        return Ok(bytes);
    }
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

fn metadata(input: &Input) -> Metadata {
    let given = [
        ("public_ipv4", &input.public_ipv4),
        ("private_ipv4", &input.private_ipv4),
        ("public_ipv6", &input.public_ipv6),
        ("private_ipv6", &input.private_ipv6),
    ];
    let addresses: Variables = given
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.clone()?)))
        .collect();
    Metadata {
        addresses,
        ..Metadata::default()
    }
}

fn print_json(value: &serde_json::Value) {
    println!("{value:#}");
}
