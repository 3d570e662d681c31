//! `com.coreos.update1`: the D-Bus interface that tools for CoreOS's and Flatcar's update_engine
//! speak, in front of update-engine's own.
//!
//! A process of its own, started by the bus: whoever never asks pays nothing, and what has the
//! network does not parse D-Bus. It decides nothing; every call becomes one of `io.orlop.UpdateEngine`.

mod status;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use host::under;
use host::varlink::{Client, VarlinkError};
use rustix::fs::inotify;
use serde_json::{Value, json};
use zbus::fdo;
use zbus::object_server::SignalEmitter;

use status::Status;

const NAME: &str = "com.coreos.update1";
const PATH: &str = "/com/coreos/update1";
const ENGINE: &str = "/run/update-engine/io.orlop.UpdateEngine";
const STATUS: &str = "/run/update-engine/status.json";

/// An update takes as long as it takes; this is for answers that come at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// The D-Bus interface of CoreOS's update_engine, for tools that speak it.
///
/// Exit codes: 1 failed (the reason is on standard error), 2 wrong usage.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// Instead of /, for tests.
    #[arg(long, hide = true, default_value = "/")]
    root: PathBuf,
    /// Another bus than the system's
    #[arg(long, value_name = "ADDRESS")]
    bus: Option<String>,
}

struct Manager {
    root: PathBuf,
}

#[zbus::interface(name = "com.coreos.update1.Manager")]
impl Manager {
    /// When it was last asked, how far it is, what is going on, which version, how many bytes.
    #[zbus(out_args(
        "last_checked_time",
        "progress",
        "current_operation",
        "new_version",
        "new_size"
    ))]
    fn get_status(&self) -> fdo::Result<(i64, f64, String, String, i64)> {
        let status = Status::read(&under(&self.root, STATUS));
        status
            .map(Status::into_arguments)
            .map_err(|e| fdo::Error::Failed(format!("{e:#}")))
    }

    /// Checks, fetches and writes. Returns once it has begun.
    fn attempt_update(&self) -> fdo::Result<()> {
        let mut client = self.engine(Duration::MAX)?;
        let (begun, beginning) = mpsc::channel();
        let update = move || {
            let mut begun = Some(begun);
            let mut say = |result: Result<(), VarlinkError>| match (begun.take(), result) {
                (Some(begun), result) => drop(begun.send(result)),
                (None, Err(e)) => tracing::warn!("the update did not work: {e}"),
                (None, Ok(())) => {}
            };
            match client.call_more("io.orlop.UpdateEngine.Update", json!({})) {
                Err(e) => say(Err(e)),
                Ok(replies) => replies.for_each(|reply| say(reply.map(drop))),
            }
        };
        std::thread::Builder::new()
            .name("update".into())
            .spawn(update)
            .map_err(|e| fdo::Error::Failed(format!("cannot start a thread: {e}")))?;
        match beginning.recv_timeout(PATIENCE) {
            Ok(result) => result.map_err(|e| failed(&e)),
            Err(_) => Err(fdo::Error::Failed("update-engine does not answer".into())),
        }
    }

    /// No reboot is asked for any more, and no error shown.
    fn reset_status(&self) -> fdo::Result<()> {
        let mut client = self.engine(PATIENCE)?;
        client
            .call("io.orlop.UpdateEngine.Reset", json!({}))
            .map(|_: Value| ())
            .map_err(|e| failed(&e))
    }

    /// As GetStatus, each time that something changes.
    #[zbus(signal)]
    async fn status_update(
        emitter: &SignalEmitter<'_>,
        last_checked_time: i64,
        progress: f64,
        current_operation: &str,
        new_version: &str,
        new_size: i64,
    ) -> zbus::Result<()>;
}

impl Manager {
    fn engine(&self, patience: Duration) -> fdo::Result<Client> {
        let client = Client::connect(under(&self.root, ENGINE));
        let client = match patience {
            Duration::MAX => client,
            patience => client.and_then(|client| client.with_timeout(patience)),
        };
        client.map_err(|e| fdo::Error::Failed(format!("update-engine: {e}")))
    }
}

/// What the engine says, in its own words.
fn failed(error: &VarlinkError) -> fdo::Error {
    let message = match error {
        VarlinkError::Reply { parameters, .. } => parameters.get("message"),
        _ => None,
    };
    let message = message.and_then(Value::as_str);
    fdo::Error::Failed(message.map_or_else(|| error.to_string(), str::to_owned))
}

fn main() -> ExitCode {
    host::log::init();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let path = under(&arguments.root, STATUS);
    // Before the first look, so that no change falls in between.
    let changes = watch(&path)?;
    let builder = match &arguments.bus {
        Some(address) => zbus::blocking::connection::Builder::address(address.as_str())?,
        None => zbus::blocking::connection::Builder::system()?,
    };
    let manager = Manager {
        root: arguments.root.clone(),
    };
    let bus = builder
        .serve_at(PATH, manager)?
        .name(NAME)?
        .build()
        .with_context(|| format!("cannot offer {NAME} on the bus"))?;
    let emitter = SignalEmitter::new(bus.inner(), PATH)?;
    let mut last = Status::read(&path).ok();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    loop {
        let mut reader = inotify::Reader::new(&changes, &mut buffer);
        loop {
            reader.next().context("cannot watch update-engine")?;
            if reader.is_buffer_empty() {
                break;
            }
        }
        // Between two it may be gone, while update-engine restarts.
        let Ok(status) = Status::read(&path) else {
            continue;
        };
        if last.as_ref() == Some(&status) {
            continue;
        }
        let told = Manager::status_update(
            &emitter,
            status.last_checked_time,
            status.progress,
            &status.current_operation,
            &status.new_version,
            status.new_size,
        );
        zbus::block_on(told).context("cannot speak on the bus")?;
        last = Some(status);
    }
}

/// The directory, as the file is always replaced.
fn watch(path: &Path) -> anyhow::Result<std::os::fd::OwnedFd> {
    let dir = path.parent().unwrap_or(path);
    let changes = inotify::init(inotify::CreateFlags::CLOEXEC).context("cannot watch files")?;
    inotify::add_watch(&changes, dir, inotify::WatchFlags::MOVED_TO)
        .with_context(|| format!("cannot watch {}", dir.display()))?;
    Ok(changes)
}
