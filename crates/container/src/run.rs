//! Carrying a plan out, and what is known about the containers that run.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use host::child::ChildError;
use host::signals::{SIGHUP, SIGINT, SIGTERM, Signals};
use host::systemd::{Systemd, SystemdError};
use serde::Serialize;

use crate::cgroup::{self, Applied, Usage};
use crate::plan::Plan;
use crate::spec::{Console, RunSpec};
use crate::{Name, Store};

/// What was asked for, kept while the container may run.
fn record_path(root: &Path, name: &Name) -> PathBuf {
    host::under(root, format!("/run/orlop/containers/{name}.json"))
}

fn record(root: &Path, name: &Name) -> Option<RunSpec> {
    serde_json::from_slice(&std::fs::read(record_path(root, name)).ok()?).ok()
}

/// What would only fail later, and less clearly.
pub fn check(store: &Store, spec: &RunSpec) -> Result<()> {
    let image = store.get(&spec.image)?;
    if cgroup::running(store.root()).contains(&spec.name) {
        bail!(
            "container {0} runs already; `orlop container stop {0}`, or choose another --name",
            spec.name
        );
    }
    if !spec.ephemeral && store.in_use(&spec.image)? {
        bail!(
            "image {} is in use by a container; stop that one, or run on a snapshot with --ephemeral",
            spec.image
        );
    }
    if spec.boot && image.os.is_none() {
        bail!(
            "image {} has no os-release, so there is no system to boot; run a command instead",
            spec.image
        );
    }
    for bind in &spec.binds {
        let source = host::under(store.root(), &bind.source);
        if !source.exists() {
            bail!(
                "bind {}: there is no such file or directory on this host",
                bind.source.display()
            );
        }
    }
    Ok(())
}

/// Runs the plan. The exit code is the command's, where this waits for it.
pub fn execute(root: &Path, spec: &RunSpec, plan: &Plan) -> Result<ExitCode> {
    let path = record_path(root, &spec.name);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    host::atomic::write(&path, &serde_json::to_vec(spec)?, 0o600, None)?;
    let argv = plan.argv();
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]);
    match spec.console {
        Console::Detached => match host::child::run(&mut command) {
            Ok(_) => Ok(ExitCode::SUCCESS),
            Err(ChildError::Failed { .. }) => {
                host::atomic::remove(&path)?;
                bail!(
                    "container {} did not start; it said:\n{}",
                    spec.name,
                    last_words(&spec.name)
                );
            }
            Err(error) => Err(error.into()),
        },
        Console::Terminal | Console::Pipe => {
            let code = attached(&mut command, &plan.unit);
            host::atomic::remove(&path)?;
            code
        }
    }
}

fn last_words(name: &Name) -> String {
    match host::child::run(&mut logs_command(name, false, Some(5))) {
        Ok(output) if !output.stdout.is_empty() => output.text().trim_end().to_owned(),
        _ => "nothing".to_owned(),
    }
}

/// Waits for the command. A signal to us stops the whole unit: nothing is left behind.
fn attached(command: &mut Command, unit: &str) -> Result<ExitCode> {
    stop_on_signal(unit.to_owned())?;
    let mut child = command
        .stdin(Stdio::inherit())
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    let status = child.wait().context("lost systemd-run")?;
    if status.signal().is_some() {
        // systemd-run got the terminal's signal as well as we did; the unit did not.
        match Systemd::connect()?.stop(unit) {
            Ok(()) | Err(SystemdError::NoSuchUnit { .. }) => {}
            Err(error) => return Err(error).context("the container may still run"),
        }
    }
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn stop_on_signal(unit: String) -> Result<()> {
    let mut signals =
        Signals::watch(&[SIGINT, SIGTERM, SIGHUP]).context("cannot watch for signals")?;
    std::thread::spawn(move || {
        while let Ok(signal) = signals.wait(Duration::from_secs(3600)) {
            if signal.is_none() {
                continue;
            }
            if let Err(error) = Systemd::connect().and_then(|systemd| systemd.stop_no_wait(&unit)) {
                eprintln!("{:#}", anyhow::Error::new(error));
            }
        }
    });
    Ok(())
}

/// Stops a running container.
pub fn stop(root: &Path, name: &Name) -> Result<()> {
    let not_running = || {
        let running = cgroup::running(root);
        let names: Vec<_> = running.iter().map(Name::as_str).collect();
        match names.as_slice() {
            [] => anyhow::anyhow!("container {name} does not run; none does"),
            names => anyhow::anyhow!(
                "container {name} does not run; these do: {}",
                names.join(", ")
            ),
        }
    };
    if !cgroup::running(root).contains(name) {
        return Err(not_running());
    }
    match Systemd::connect()?.stop(&name.unit()) {
        Err(SystemdError::NoSuchUnit { .. }) => return Err(not_running()),
        other => other?,
    }
    host::atomic::remove(&record_path(root, name)).map_err(Into::into)
}

/// A running container, as it is rather than as it was asked for.
#[derive(Debug, Serialize)]
pub struct Inspect {
    pub name: Name,
    pub unit: String,
    /// What was asked for; null when something else started it.
    pub requested: Option<RunSpec>,
    pub applied: Applied,
    pub usage: Usage,
}

pub fn inspect(root: &Path, name: &Name) -> Result<Inspect> {
    let Some((applied, usage)) = cgroup::read(root, name) else {
        bail!("container {name} does not run; `orlop container list` shows those that do");
    };
    Ok(Inspect {
        name: name.clone(),
        unit: name.unit(),
        requested: record(root, name),
        applied,
        usage,
    })
}

/// The running containers of every image.
pub fn running(root: &Path) -> Vec<(Name, Option<Name>)> {
    cgroup::running(root)
        .into_iter()
        .map(|name| (name.clone(), record(root, &name).map(|spec| spec.image)))
        .collect()
}

/// `journalctl` for a container, running or not.
pub fn logs_command(name: &Name, follow: bool, lines: Option<u32>) -> Command {
    let mut command = Command::new("journalctl");
    // The field rather than --unit: only what the container said, not what systemd says about it.
    command
        .args(["--quiet", "--output=cat", "--no-pager"])
        .arg(format!("_SYSTEMD_UNIT={}", name.unit()));
    if follow {
        command.arg("--follow");
    }
    match lines {
        Some(lines) => command.arg(format!("--lines={lines}")),
        None if follow => command.arg("--lines=10"),
        None => &mut command,
    };
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_come_before_anything_is_done() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        let mut spec: RunSpec = serde_json::from_str(
            r#"{"name":"web","image":"tiny","limits":{"memory":null,"cpus":null,"pids":null},"ephemeral":false,
                "binds":[{"source":"/srv","target":"/srv","read_only":false,"map_owner":true}],
                "network":"host","users":"pick","boot":true,"command":[],"console":"pipe"}"#,
        )
        .unwrap();
        let error = |spec: &RunSpec| check(&store, spec).unwrap_err().to_string();
        assert_eq!(
            error(&spec),
            "there is no image tiny; none is imported yet: `orlop container import NAME FILE`"
        );
        std::fs::create_dir_all(store.path(&spec.image)).unwrap();
        assert!(error(&spec).contains("has no os-release"));
        spec.boot = false;
        assert_eq!(
            error(&spec),
            "bind /srv: there is no such file or directory on this host"
        );
        std::fs::create_dir_all(root.path().join("srv")).unwrap();
        check(&store, &spec).unwrap();
        std::fs::create_dir_all(
            root.path()
                .join("sys/fs/cgroup/machine.slice/container-web.service"),
        )
        .unwrap();
        assert!(error(&spec).starts_with("container web runs already"));
        assert_eq!(
            inspect(root.path(), &spec.name).unwrap().unit,
            "container-web.service"
        );
        assert!(inspect(root.path(), &spec.image).is_err());
    }

    #[test]
    fn logs() {
        let line = |follow, lines| {
            let command = logs_command(&"web".parse().unwrap(), follow, lines);
            command
                .get_args()
                .map(|arg| arg.to_string_lossy().into_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let always = "--quiet --output=cat --no-pager _SYSTEMD_UNIT=container-web.service";
        assert_eq!(line(false, None), always);
        assert_eq!(line(true, None), format!("{always} --follow --lines=10"));
        assert_eq!(line(false, Some(3)), format!("{always} --lines=3"));
    }
}
