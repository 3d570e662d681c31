//! The commands: arguments in, exit code out.

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use cloudinit::apply::CallState;
use cloudinit::datasource::Found;
use cloudinit::finding::{Finding, Pos, Severity, has_errors};
use cloudinit::forget;
use cloudinit::metadata::Metadata;
use cloudinit::network;
use cloudinit::pipeline;
use cloudinit::plan::Facts;
use cloudinit::remote::{self, Request};
use cloudinit::service::{self, Origin};
use cloudinit::status::{self, State, Status};
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

pub(crate) fn run(patience: f32, fetched: bool) -> anyhow::Result<Exit> {
    host::log::init();
    let patience = Duration::try_from_secs_f32(patience).context("--patience")?;
    let services = Live::default();
    let now = SystemTime::now();
    let origin = match fetched {
        true => Origin::Fetched,
        false => Origin::Machine(patience),
    };
    let status = service::run(Path::new("/"), origin, now, Some(&services))?;
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
    out(&show::summary(&status))?;
    Ok(code(&status))
}

/// The network phase: asks what the first phase noted down, changes nothing.
pub(crate) fn fetch(budget: u64) -> anyhow::Result<Exit> {
    host::log::init();
    let fetched = remote::run(Path::new("/"), Duration::from_secs(budget))?;
    for line in fetched.into_iter().flat_map(|fetched| fetched.tried) {
        tracing::info!("{line}");
    }
    Ok(Exit::Fine)
}

pub(crate) fn code(status: &Status) -> Exit {
    let failed = status
        .calls
        .iter()
        .any(|call| call.state == CallState::Failed);
    match status.state {
        State::Invalid => Exit::Invalid,
        State::Failed => Exit::Failed,
        _ if failed => Exit::Failed,
        State::NoData | State::Waiting | State::Applied => Exit::Fine,
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

/// Whether it worked also stands in the status, which is where people look.
pub(crate) fn forget(root: &Path) -> anyhow::Result<Exit> {
    host::log::init();
    let result = forget::run(root);
    if let Err(error) = &result
        && let Some(mut status) = Status::read(root)
    {
        let finding = Finding::warning(Pos::START, "guestinfo", format!("{error:#}"));
        status.findings.retain(|f| f.path != "guestinfo");
        status.findings.push(finding);
        status.write(root)?;
    }
    match result? {
        Some(keys) => out(&format!("deleted: {}\n", keys.join(", ")))?,
        None => out("nothing to delete\n")?,
    }
    Ok(Exit::Fine)
}

pub(crate) fn schema() -> anyhow::Result<Exit> {
    print_json(&cloudinit::config::schema())?;
    Ok(Exit::Fine)
}

pub(crate) fn convert(
    format: &str,
    file: &Path,
    output: Format,
    dir: Option<&Path>,
) -> anyhow::Result<Exit> {
    let Some(known) = network::Format::named(format) else {
        let names = network::Format::ALL.map(|(name, _)| name).join(", ");
        bail!("unknown format {format:?} (one of {names})");
    };
    let text = String::from_utf8(read(file)?).with_context(|| file.display().to_string())?;
    let converted = match known.convert(&text) {
        Ok(converted) => converted,
        Err(finding) => {
            eprint!("{}", show::findings(file, &[finding]));
            return Ok(Exit::Invalid);
        }
    };
    eprint!("{}", show::findings(file, &converted.notes));
    let files = network::render(&converted.network);
    if let Some(dir) = dir {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for file in &files {
            host::atomic::write(&dir.join(&file.name), file.text.as_bytes(), 0o644, None)?;
        }
        return Ok(Exit::Fine);
    }
    match output {
        Format::Json => {
            let files: serde_json::Map<_, _> = files
                .into_iter()
                .map(|file| (file.name, file.text.into()))
                .collect();
            print_json(&files.into())?;
        }
        Format::Text => {
            let files = files
                .iter()
                .map(|file| format!("# {}\n{}\n", file.name, file.text));
            out(&files.collect::<String>())?;
        }
    }
    Ok(Exit::Fine)
}

/// With `--strict` there is no such thing as a warning.
fn harden(findings: &mut [Finding], strict: bool) {
    if strict {
        for finding in findings {
            finding.severity = Severity::Error;
            finding.message = finding.message.replace(", ignored", "");
        }
    }
}

pub(crate) fn validate(input: &Input) -> anyhow::Result<Exit> {
    let bytes = read(name(input))?;
    let mut findings = pipeline::validate(&pipeline::Input {
        user_data: Some(&bytes),
        metadata: Metadata {
            addresses: addresses(input),
            ..Metadata::default()
        },
        ..pipeline::Input::default()
    });
    harden(&mut findings, input.strict);
    match input.output {
        Format::Json => print_json(&json!({ "file": name(input), "findings": findings }))?,
        Format::Text => out(&show::findings(name(input), &findings))?,
    }
    Ok(if has_errors(&findings) {
        Exit::Invalid
    } else {
        Exit::Fine
    })
}

pub(crate) fn plan(input: &Input, root: &Path) -> anyhow::Result<Exit> {
    if !root.is_dir() {
        bail!("--root {}: not a directory", root.display());
    }
    let (bytes, mut metadata) = match &input.file {
        Some(file) => (read(file)?, service::kept_metadata(root)),
        None => {
            let found = service::kept(root).context("nothing was applied here; name a FILE")?;
            (found.user_data.unwrap_or_default(), found.metadata)
        }
    };
    metadata.addresses.extend(addresses(input));
    let facts = Facts::read(root, SystemTime::now())?;
    let name_before = service::last_name(root, &metadata);
    let data = pipeline::Input {
        user_data: Some(&bytes),
        metadata,
        name_before,
    };
    let mut outcome = pipeline::plan(&data, &facts);
    let objections = cloudinit::apply::check(&outcome.plan, root);
    outcome.object(objections, &data, &facts);
    harden(&mut outcome.findings, input.strict);
    if outcome.has_errors() && input.strict {
        outcome.object(outcome.findings.clone(), &data, &facts);
        outcome.findings.dedup();
    }
    match input.output {
        Format::Json => {
            for finding in &outcome.findings {
                eprintln!("{}:{finding}", name(input).display());
            }
            print_json(&outcome.plan.to_json(outcome.exit(), root))?;
        }
        Format::Text => {
            eprint!("{}", show::findings(name(input), &outcome.findings));
            let known = &data.metadata.imported;
            out(&show::plan(&outcome.plan, root, known))?;
        }
    }
    Ok(match outcome.has_errors() {
        true => Exit::Invalid,
        false => Exit::Fine,
    })
}

/// Both phases at once: nothing of the boot is waiting for us. Without a file, what was applied last.
pub(crate) fn apply(from: Option<&Path>, root: &Path, strict: bool) -> anyhow::Result<Exit> {
    host::log::init();
    let mut found = match from {
        Some(file) => Found {
            origin: format!("file {}", file.display()),
            user_data: Some(read(file)?),
            metadata: service::kept_metadata(root),
            ..Found::default()
        },
        None => service::kept(root).context("nothing was applied here; name a file with --from")?,
    };
    let name = from.unwrap_or(Path::new(status::USER_DATA));
    let mut findings = pipeline::validate(&pipeline::Input {
        user_data: found.user_data.as_deref(),
        metadata: found.metadata.clone(),
        ..pipeline::Input::default()
    });
    harden(&mut findings, strict);
    if strict && has_errors(&findings) {
        eprint!("{}", show::findings(name, &findings));
        return Ok(Exit::Invalid);
    }
    import(&mut found, root);
    let live = Live::default();
    let running = root == Path::new("/");
    let services: Option<&dyn cloudinit::apply::Services> = running.then_some(&live);
    let origin = Origin::Given(&found);
    let mut status = service::run(root, origin, SystemTime::now(), services)?;
    if let Some(services) = services
        && let Some(finished) = service::finish(root, services)?
    {
        status = finished;
    }
    eprint!("{}", show::findings(name, &status.findings));
    let changed = status.changed.iter().map(|line| format!("{line}\n"));
    out(&(changed.collect::<String>() + &show::summary(&status)))?;
    Ok(code(&status))
}

/// Fetches what the user-data has elsewhere; whoever calls us by hand has a network.
pub(crate) fn import(found: &mut Found, root: &Path) {
    let request = Request {
        imports: pipeline::imports(&pipeline::Input {
            user_data: found.user_data.as_deref(),
            metadata: found.metadata.clone(),
            ..pipeline::Input::default()
        }),
        ..Request::default()
    };
    if !request.is_empty() {
        let fetched = remote::fetch(&request, root, Duration::from_secs(20));
        for line in fetched.tried {
            eprintln!("cloudinit: {line}");
        }
        found.metadata.imported.extend(fetched.imported);
    }
}

pub(crate) fn status(output: Format) -> anyhow::Result<Exit> {
    let Some(status) = Status::read(Path::new("/")) else {
        bail!("cloudinit has not run in this boot; see `systemctl status cloudinit.service`");
    };
    match output {
        Format::Json => print_json(&serde_json::to_value(&status)?)?,
        Format::Text => out(&show::status(&status))?,
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

/// Without a file, the last one that was applied.
fn name(input: &Input) -> &Path {
    input
        .file
        .as_deref()
        .unwrap_or(Path::new(status::USER_DATA))
}

fn addresses(input: &Input) -> Variables {
    let given = [
        ("public_ipv4", &input.public_ipv4),
        ("private_ipv4", &input.private_ipv4),
        ("public_ipv6", &input.public_ipv6),
        ("private_ipv6", &input.private_ipv6),
    ];
    given
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.clone()?)))
        .collect()
}

fn print_json(value: &serde_json::Value) -> anyhow::Result<()> {
    out(&format!("{value:#}\n"))
}

/// To standard output. Whoever has read enough, as `head` has, is no error.
pub(crate) fn out(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("standard output")
        }
        _ => Ok(()),
    }
}
