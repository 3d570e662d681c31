//! The service manager, over D-Bus (org.freedesktop.systemd1(5)).
//!
//! Root speaks to systemd directly on `/run/systemd/private`, as `systemctl` does: that works from
//! the first unit on, without the bus daemon. Others go over the system bus.

mod dbus;
mod error;
mod job;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dbus::{Arg, Connection, Message, Target};

pub use dbus::DbusError;
pub use error::SystemdError;
pub use job::JobResult;

const PRIVATE: &str = "/run/systemd/private";
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
const SERVICE: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";

/// As long as systemd's own default for a unit to start, and then some.
const JOB_TIMEOUT: Duration = Duration::from_secs(120);

/// A connection to the manager. Blocking.
#[derive(Debug)]
pub struct Systemd {
    connection: Mutex<Connection>,
    job_timeout: Duration,
}

impl Systemd {
    pub fn connect() -> Result<Self, SystemdError> {
        let root = rustix::process::geteuid().is_root();
        match root && Path::new(PRIVATE).exists() {
            true => Self::open(PRIVATE),
            false => Self::open(SYSTEM_BUS).and_then(Self::join_bus),
        }
    }

    fn open(path: &str) -> Result<Self, SystemdError> {
        let connection =
            Connection::connect(Path::new(path)).map_err(|source| SystemdError::Connect {
                address: path.to_owned(),
                source,
            })?;
        Ok(Self {
            connection: Mutex::new(connection),
            job_timeout: JOB_TIMEOUT,
        })
    }

    /// Speaks to a manager at the other end of `stream`.
    pub fn from_stream(stream: UnixStream) -> Result<Self, SystemdError> {
        let connection =
            Connection::authenticate(stream).map_err(|source| SystemdError::Connect {
                address: "a socket".to_owned(),
                source,
            })?;
        Ok(Self {
            connection: Mutex::new(connection),
            job_timeout: JOB_TIMEOUT,
        })
    }

    /// What the bus, unlike systemd itself, wants before it passes anything on.
    fn join_bus(self) -> Result<Self, SystemdError> {
        let failed = |source| SystemdError::Connect {
            address: SYSTEM_BUS.to_owned(),
            source,
        };
        let bus = |member| Target {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member,
        };
        let jobs =
            format!("type='signal',sender='{SERVICE}',interface='{MANAGER}',member='JobRemoved'");
        self.lock().call(bus("Hello"), &[]).map_err(failed)?;
        self.lock()
            .call(bus("AddMatch"), &[Arg::Str(&jobs)])
            .map_err(failed)?;
        Ok(self)
    }

    /// A panic in another thread's call leaves at worst an answer that nobody waits for.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a job may take before [`SystemdError::JobTimeout`]; the job itself goes on.
    #[must_use]
    pub fn with_job_timeout(self, job_timeout: Duration) -> Self {
        Self {
            job_timeout,
            ..self
        }
    }

    /// Starts `unit` and waits until it has started.
    pub fn start(&self, unit: &str) -> Result<(), SystemdError> {
        self.job("StartUnit", "start", unit, "replace")
    }

    pub fn stop(&self, unit: &str) -> Result<(), SystemdError> {
        self.job("StopUnit", "stop", unit, "replace")
    }

    pub fn restart(&self, unit: &str) -> Result<(), SystemdError> {
        self.job("RestartUnit", "restart", unit, "replace")
    }

    /// Restarts `unit` if it runs.
    pub fn try_restart(&self, unit: &str) -> Result<(), SystemdError> {
        self.job("TryRestartUnit", "try-restart", unit, "replace")
    }

    pub fn reload(&self, unit: &str) -> Result<(), SystemdError> {
        self.job("ReloadUnit", "reload", unit, "replace")
    }

    pub fn reload_or_restart(&self, unit: &str) -> Result<(), SystemdError> {
        self.job("ReloadOrRestartUnit", "reload-or-restart", unit, "replace")
    }

    pub fn reload_or_try_restart(&self, unit: &str) -> Result<(), SystemdError> {
        self.job(
            "ReloadOrTryRestartUnit",
            "reload-or-try-restart",
            unit,
            "replace",
        )
    }

    /// Queues the restart of `unit` and returns at once: for units ordered behind the caller.
    pub fn restart_no_wait(&self, unit: &str) -> Result<(), SystemdError> {
        self.queue("RestartUnit", "restart", unit, "replace")
    }

    pub fn stop_no_wait(&self, unit: &str) -> Result<(), SystemdError> {
        self.queue("StopUnit", "stop", unit, "replace")
    }

    /// Reboots as `systemctl reboot` does: services are stopped in order, and nothing can turn it back.
    pub fn reboot(&self) -> Result<(), SystemdError> {
        self.queue(
            "StartUnit",
            "start",
            "reboot.target",
            "replace-irreversibly",
        )
    }

    /// Starts userspace anew under the same kernel, as `systemctl soft-reboot` does.
    pub fn soft_reboot(&self) -> Result<(), SystemdError> {
        self.queue(
            "StartUnit",
            "start",
            "soft-reboot.target",
            "replace-irreversibly",
        )
    }

    /// Makes systemd read its unit files again.
    pub fn daemon_reload(&self) -> Result<(), SystemdError> {
        self.call("Reload", &[], "reload", "systemd").map(drop)
    }

    /// `runtime`: until the next boot only. Links that are in the way are replaced.
    pub fn enable(&self, units: &[&str], runtime: bool) -> Result<(), SystemdError> {
        let args = [Arg::Strs(units), Arg::Bool(runtime), Arg::Bool(true)];
        self.call("EnableUnitFiles", &args, "enable", &units.join(" "))
            .map(drop)
    }

    /// `active`, `inactive`, `failed`, `activating`, `deactivating` …; a unit nobody knows is `inactive`.
    pub fn active_state(&self, unit: &str) -> Result<String, SystemdError> {
        let reply = self.call("LoadUnit", &[Arg::Str(unit)], "load", unit)?;
        let path = reply.body("o").and_then(|mut body| body.string());
        let path = path.map_err(|source| SystemdError::from_call("load", unit, source))?;
        self.string_property(&path, "ActiveState", unit)
    }

    fn string_property(&self, path: &str, name: &str, unit: &str) -> Result<String, SystemdError> {
        let target = Target {
            destination: SERVICE,
            path,
            interface: "org.freedesktop.DBus.Properties",
            member: "Get",
        };
        let reply = self.lock().call(target, &[Arg::Str(UNIT), Arg::Str(name)]);
        reply
            .and_then(|reply| {
                let mut body = reply.body("v")?;
                match body.signature()?.as_str() {
                    "s" => body.string(),
                    _ => Err(DbusError::Malformed("the property is no string")),
                }
            })
            .map_err(|source| SystemdError::from_call("ask for the state of", unit, source))
    }

    fn call(
        &self,
        member: &str,
        args: &[Arg<'_>],
        verb: &'static str,
        unit: &str,
    ) -> Result<Message, SystemdError> {
        self.lock()
            .call(manager(member), args)
            .map_err(|source| SystemdError::from_call(verb, unit, source))
    }

    fn queue(
        &self,
        member: &str,
        verb: &'static str,
        unit: &str,
        mode: &str,
    ) -> Result<(), SystemdError> {
        self.call(member, &[Arg::Str(unit), Arg::Str(mode)], verb, unit)
            .map(drop)
    }

    /// Queues a job and waits for its JobRemoved signal.
    fn job(
        &self,
        member: &str,
        verb: &'static str,
        unit: &str,
        mode: &str,
    ) -> Result<(), SystemdError> {
        let failed = |source| SystemdError::from_call(verb, unit, source);
        let end = Instant::now() + self.job_timeout;
        let mut connection = self.lock();
        connection.forget_signals();
        // On the bus systemd sends these signals to subscribers only.
        connection
            .call(manager("Subscribe"), &[])
            .or_else(already_subscribed)
            .map_err(failed)?;
        let reply = connection
            .call(manager(member), &[Arg::Str(unit), Arg::Str(mode)])
            .map_err(failed)?;
        let ours = reply
            .body("o")
            .and_then(|mut body| body.string())
            .map_err(failed)?;
        loop {
            let signal = match connection.next_signal(end) {
                Ok(signal) => signal,
                Err(DbusError::Timeout) => {
                    return Err(SystemdError::JobTimeout {
                        verb,
                        unit: unit.to_owned(),
                        limit: self.job_timeout,
                    });
                }
                Err(source) => return Err(failed(source)),
            };
            if signal.member.as_deref() != Some("JobRemoved") {
                continue;
            }
            let (path, result) = job_removed(&signal).map_err(failed)?;
            if path == ours {
                return JobResult::from(result.as_str()).check(verb, unit);
            }
        }
    }
}

fn manager(member: &str) -> Target<'_> {
    Target {
        destination: SERVICE,
        path: MANAGER_PATH,
        interface: MANAGER,
        member,
    }
}

/// JobRemoved(id, job, unit, result).
fn job_removed(signal: &Message) -> Result<(String, String), DbusError> {
    let mut body = signal.body("uoss")?;
    body.u32()?;
    let path = body.string()?;
    body.string()?;
    Ok((path, body.string()?))
}

fn already_subscribed(error: DbusError) -> Result<Message, DbusError> {
    match error {
        DbusError::Reply { name, .. } if name == "org.freedesktop.systemd1.AlreadySubscribed" => {
            Ok(Message::default())
        }
        other => Err(other),
    }
}

#[cfg(test)]
mod tests;
