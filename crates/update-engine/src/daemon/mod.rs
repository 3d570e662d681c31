//! The driver: turns the world into events, and actions into deeds.
//!
//! One thread owns the engine and never waits for anything but the next input. A second one does
//! what takes time ([`work`]), one more accepts callers ([`ipc`]).

mod evidence;
mod ipc;
mod metrics;
mod work;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use host::UpdateConf;
use host::cmdline::Cmdline;
use host::os_release::OsRelease;
use host::running;
use jiff::Timestamp;
use release::status::EngineStatus;
use release::{Channel, Version};
use serde_json::json;

use crate::engine::{Action, Busy, Engine, Event, Host, Phase, Settings, Why, step};
use crate::fetch::{Fetcher, Patience};
use crate::memory::Memory;
use crate::paths::Paths;
use crate::trust::Follow;
use crate::{epoch, health, wire};
use work::{Task, Worker};

/// How often the configuration is looked at while nothing else happens.
const CONFIGURATION: Duration = Duration::from_secs(30);

pub(crate) enum Input {
    Event(Event),
    /// A caller's wish; it hears the outcome.
    Wish(Event, Sender<Answer>),
}

pub(crate) enum Answer {
    Refused(Busy),
    Progress(Box<EngineStatus>),
    Done {
        status: Box<EngineStatus>,
        available: Option<Version>,
        error: Option<String>,
    },
}

/// What callers that only look are shown.
pub(crate) type Shown = Arc<Mutex<EngineStatus>>;

struct Driver {
    paths: Paths,
    engine: Engine,
    shown: Shown,
    tasks: Sender<Task>,
    /// Events that the driver itself found.
    found: VecDeque<Event>,
    /// This boot was good before we started: what mark-good saw may be old.
    restarted: bool,
    callers: Vec<Sender<Answer>>,
    /// Wishes from before it was known what is in the slots.
    early: Vec<(Event, Sender<Answer>)>,
    conf_changed: Option<SystemTime>,
    deadline: Option<Instant>,
    ready: bool,
    /// Metrics are there, and say whether this boot is good.
    counted: Option<bool>,
    /// The memory could not be saved; tried again with each event.
    unsaved: bool,
}

/// Runs until the process is killed: there is no state that a crash could harm.
pub fn run(root: &Path) -> anyhow::Result<()> {
    let paths = Paths::new(root);
    let host = facts(root)?;
    tracing::info!("version {} runs", host.version);
    for dir in paths
        .state()
        .parent()
        .into_iter()
        .chain([&*paths.metadata()])
    {
        host::atomic::sweep(dir);
    }
    let mut memory = Memory::load(&paths.state());
    let mut unsaved = false;
    // Before READY=1: mark-good, which forgets it, is ordered after us.
    let evidence = evidence::read(&paths).of_others(host.root_hash);
    if !evidence.is_empty() {
        memory.evidence = evidence;
        // A disk that is full must not fail the boots of the release that this host fell back to.
        if let Err(e) = memory.save(&paths.state()) {
            tracing::error!("what failed boots left is not saved: {e:#}");
            unsaved = true;
        }
    }
    let engine = Engine::new(host.clone(), settings(root), memory);

    let (events, inputs) = mpsc::channel();
    let (tasks, todo) = mpsc::channel();
    let worker = Worker {
        machine_id: host::machine::machine_id(root).unwrap_or_default(),
        fetcher: Fetcher::new(Patience::default()),
        paths: paths.clone(),
        host,
        events: events.clone(),
    };
    spawn("worker", move || worker.run(&todo))?;

    let shown = Arc::new(Mutex::new(engine.status()));
    ipc::listen(&paths.engine_socket(), &shown, events)?;

    let driver = Driver {
        engine,
        shown,
        tasks,
        found: VecDeque::new(),
        restarted: paths.good().exists(),
        callers: Vec::new(),
        early: Vec::new(),
        conf_changed: conf_changed(root),
        deadline: None,
        ready: false,
        counted: None,
        unsaved,
        paths,
    };
    driver.run(&inputs)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let thread = std::thread::Builder::new()
        .name(name.into())
        .stack_size(256 * 1024);
    thread.spawn(body).context("cannot start a thread")?;
    Ok(())
}

impl Driver {
    fn run(mut self, inputs: &Receiver<Input>) -> anyhow::Result<()> {
        self.publish();
        match self.restarted {
            true => self.act(vec![Action::ReadSlots])?,
            false => self.found.push_back(Event::NotGoodYet),
        }
        loop {
            self.take_found()?;
            if self.engine.phase != Phase::Starting {
                for (event, caller) in std::mem::take(&mut self.early) {
                    self.wish(event, caller)?;
                }
            }
            match inputs.recv_timeout(self.patience()) {
                Ok(Input::Event(event)) => self.take(event)?,
                Ok(Input::Wish(event, caller)) if self.engine.phase == Phase::Starting => {
                    self.early.push((event, caller));
                }
                Ok(Input::Wish(event, caller)) => self.wish(event, caller)?,
                Err(RecvTimeoutError::Timeout) => {
                    self.reread_configuration();
                    if self.deadline.is_some_and(|at| at <= Instant::now()) {
                        self.take(Event::Timer)?;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("all other threads ended"),
            }
        }
    }

    fn take_found(&mut self) -> anyhow::Result<()> {
        while let Some(event) = self.found.pop_front() {
            self.take(event)?;
        }
        Ok(())
    }

    fn patience(&self) -> Duration {
        let left = self
            .deadline
            .map(|at| at.saturating_duration_since(Instant::now()));
        left.map_or(CONFIGURATION, |left| left.min(CONFIGURATION))
    }

    fn wish(&mut self, event: Event, caller: Sender<Answer>) -> anyhow::Result<()> {
        self.reread_configuration();
        if self.engine.phase == Phase::Proving {
            // Whoever saw that the boot is good need not wait until we look the next time.
            self.look_for_good();
            self.take_found()?;
        }
        if let Err(busy) = self.engine.admits(&event) {
            let _ = caller.send(Answer::Refused(busy));
            return Ok(());
        }
        let immediate = matches!(event, Event::ClearFailed | Event::Reset);
        if !immediate {
            if !self.engine.is_settled() {
                // Nothing may change for a while, and whoever joins is to know that it did.
                let status = Box::new(self.engine.status());
                let _ = caller.send(Answer::Progress(status));
            }
            self.callers.push(caller.clone());
        }
        self.take(event)?;
        if immediate {
            let _ = caller.send(self.outcome());
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> anyhow::Result<()> {
        let before = self.engine.clone();
        let (engine, actions) = step(before.clone(), event, Timestamp::now());
        self.engine = engine;
        if std::mem::discriminant(&before.phase) != std::mem::discriminant(&self.engine.phase)
            || self.deadline_passed()
        {
            self.deadline = self
                .engine
                .delay(luck())
                .map(|delay| Instant::now() + delay);
        }
        // Memory first: an action that cannot be undone must be remembered.
        if before.memory != self.engine.memory || self.unsaved {
            self.remember(&actions)?;
        }
        self.act(actions)?;
        self.publish();
        if before.phase == Phase::Proving && self.engine.good {
            health::forget(&self.paths, self.engine.host.root_hash);
        }
        if before.phase == Phase::Starting && self.engine.phase != Phase::Starting {
            self.become_ready();
        }
        Ok(())
    }

    fn remember(&mut self, actions: &[Action]) -> anyhow::Result<()> {
        let cannot_be_undone = |a: &Action| matches!(a, Action::Stage(..) | Action::RollBack);
        match self.engine.memory.save(&self.paths.state()) {
            Ok(()) => self.unsaved = false,
            Err(e) if actions.iter().any(cannot_be_undone) => return Err(e),
            Err(e) => {
                if !std::mem::replace(&mut self.unsaved, true) {
                    tracing::error!("going on with what cannot be saved: {e:#}");
                }
            }
        }
        Ok(())
    }

    fn deadline_passed(&self) -> bool {
        self.deadline.is_none_or(|at| at <= Instant::now())
    }

    fn become_ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            let status = format!("version {}", self.engine.host.version);
            if let Err(e) = host::notify::ready(&status) {
                tracing::warn!("cannot tell the service manager that we are ready: {e}");
            }
        }
    }

    fn act(&mut self, actions: Vec<Action>) -> anyhow::Result<()> {
        for action in actions {
            let (settings, slot) = (self.engine.settings.clone(), self.booted_slot());
            let task = match action {
                Action::LookForGood => {
                    self.look_for_good();
                    continue;
                }
                Action::AskReboot { version, reason } => {
                    self.ask_reboot(&version, reason);
                    continue;
                }
                Action::WithdrawReboot => {
                    if let Err(e) = host::atomic::remove(&self.paths.reboot_needed()) {
                        tracing::error!("{e}");
                    }
                    continue;
                }
                Action::ReadSlots => Task::ReadSlots,
                Action::Check(ask) => Task::Check(settings, slot, ask),
                Action::Reopen(id, allow_expired) => Task::Reopen(id, allow_expired),
                Action::Download(offer) => Task::Download(offer, settings.rate),
                Action::Discard(offer, closed) => Task::Discard(offer, closed),
                Action::Stage(offer, after) => Task::Stage(offer, after),
                Action::RollBack => Task::RollBack,
                Action::Tell(reports) => Task::Tell(settings, slot, reports),
                Action::LookForExtensions => Task::LookForExtensions(settings),
                Action::Clean { keep } => Task::Clean(keep),
            };
            self.tasks.send(task).context("the worker ended")?;
        }
        Ok(())
    }

    /// mark-good looked at the slots a moment ago. To ask the writer too would cost each boot the
    /// start of another sandboxed process.
    fn look_for_good(&mut self) {
        if !self.paths.good().exists() {
            return;
        }
        if !self.restarted {
            let slots = std::fs::read(self.paths.slots()).ok();
            let slots = slots.and_then(|text| serde_json::from_slice::<wire::Slots>(&text).ok());
            self.found.extend(slots.map(|s| Event::Found(Ok(s.slots))));
        }
        self.found.push_back(Event::Good);
    }

    /// A failure to ask is not worth dying for: the release is staged and boots whenever.
    fn ask_reboot(&self, version: &Version, reason: Why) {
        let soft = self.engine.soft_reboot_is_enough();
        let text = json!({ "version": version, "reason": reason, "soft": soft });
        let text = format!("{text}\n");
        if let Err(e) =
            host::atomic::write(&self.paths.reboot_needed(), text.as_bytes(), 0o644, None)
        {
            tracing::error!("version {version} waits for a reboot, but nobody will know: {e}");
        }
    }

    fn publish(&mut self) {
        let status = self.engine.status();
        let changed = {
            let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = *shown != status || !self.paths.status().exists();
            shown.clone_from(&status);
            changed
        };
        if changed && let Err(e) = write_status(&self.paths, &status) {
            tracing::error!("cannot publish the status: {e:#}");
        }
        let good = self.engine.good;
        if changed || self.counted != Some(good) {
            let text = metrics::text(&self.engine.host.version, good, &status);
            match host::atomic::write(&self.paths.metrics(), text.as_bytes(), 0o644, None) {
                Ok(()) => self.counted = Some(good),
                Err(e) => tracing::error!("cannot publish metrics: {e}"),
            }
        }
        if self.engine.is_settled() {
            for caller in std::mem::take(&mut self.callers) {
                let _ = caller.send(self.outcome());
            }
        } else if changed {
            self.callers.retain(|caller| {
                caller
                    .send(Answer::Progress(Box::new(status.clone())))
                    .is_ok()
            });
        }
    }

    fn outcome(&self) -> Answer {
        Answer::Done {
            status: Box::new(self.engine.status()),
            available: self.engine.available.clone(),
            error: self.engine.last_error.as_ref().map(|it| it.message.clone()),
        }
    }

    fn booted_slot(&self) -> Option<release::Slot> {
        self.engine.slots.iter().find(|s| s.booted).map(|s| s.slot)
    }

    /// cloud-config or a person may change `update.conf` at any time; it counts from then on.
    fn reread_configuration(&mut self) {
        let changed = conf_changed(self.paths.root());
        if changed == self.conf_changed {
            return;
        }
        self.conf_changed = changed;
        let new = settings(self.paths.root());
        if new != self.engine.settings {
            if new.problem.is_none() {
                tracing::info!(
                    "update.conf changed: channel {}, server {}",
                    new.channel,
                    new.server.as_deref().unwrap_or("none")
                );
            }
            self.engine.settings = new;
            self.deadline = self
                .engine
                .delay(luck())
                .map(|delay| Instant::now() + delay);
        }
        self.publish();
    }
}

fn facts(root: &Path) -> anyhow::Result<Host> {
    let os = OsRelease::read(root)?;
    let version = os.version().context("os-release has no IMAGE_VERSION")?;
    let version = version
        .parse()
        .with_context(|| format!("os-release: IMAGE_VERSION={version}"))?;
    let cmdline = Cmdline::read(root)?;
    let root_hash = running::root_hash(root)?
        .map(|hash| hash.parse())
        .transpose()
        .context("usrhash= on the kernel command line")?;
    Ok(Host {
        version,
        root_hash,
        boot_id: running::boot(root)?,
        kernel: running::kernel(root).and_then(|kernel| kernel.parse().ok()),
        architecture: match std::env::consts::ARCH {
            "x86_64" => "x86-64",
            "aarch64" => "arm64",
            other => other,
        },
        epoch: epoch::highest(&Paths::new(root))?,
        volatile: cmdline.get("state") == Some("volatile"),
    })
}

/// A broken `update.conf` is no reason to fail the boot: updates are off until it is repaired.
fn settings(root: &Path) -> Settings {
    let read = UpdateConf::read(root)
        .map_err(|e| e.to_string())
        .and_then(|conf| match conf.group.parse() {
            Ok(channel) => Ok((conf, channel)),
            Err(e) => Err(format!("update.conf: GROUP: {e}")),
        });
    let (conf, channel, problem) = match read {
        Ok((conf, channel)) => (conf, channel, None),
        Err(e) => {
            let problem = Some(format!("updates are off: {e}"));
            (UpdateConf::default(), Channel::stable(), problem)
        }
    };
    let follow = Follow {
        channel: conf.channel.clone(),
        group: channel.clone(),
    };
    for warning in &conf.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(problem) = &problem {
        tracing::error!("{problem}");
    }
    Settings {
        channel,
        follow,
        server: conf.server,
        interval: conf.poll_interval,
        rate: conf.download_rate,
        problem,
    }
}

fn conf_changed(root: &Path) -> Option<SystemTime> {
    let changed = |path| {
        std::fs::metadata(host::under(root, path))
            .and_then(|m| m.modified())
            .ok()
    };
    host::conf::FILES.iter().filter_map(changed).max()
}

fn write_status(paths: &Paths, status: &EngineStatus) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(status)?;
    text.push(b'\n');
    host::atomic::write(&paths.status(), &text, 0o644, None)?;
    Ok(())
}

/// 0 to 1. Hosts that get no randomness all wait the same time, which is fine.
fn luck() -> f64 {
    let mut bytes = [0; 2];
    let _ = getrandom::fill(&mut bytes);
    f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX)
}
