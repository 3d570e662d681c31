//! A machine's life: made, started, waited for, stopped.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::accel::Accel;
use crate::image::{self, Firmware};
use crate::interrupt;
use crate::lab::Release;
use crate::node::{BootMode, Node};
use crate::plan::{CONSOLE_LOG, CONSOLE_SOCKET, DISK, Plan, QMP_SOCKET, VARS};
use crate::process::{self, ProcessId};
use crate::qmp::Qmp;
use crate::seed::{Datasource, Seed};
use crate::ssh::{Key, Ssh};

/// What a new node shall be.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// What it boots first.
    pub release: Release,
    /// How it starts.
    pub boot: BootMode,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// How it gets its user-data.
    pub datasource: Datasource,
    /// The disk's size, of which only what is written takes space.
    pub disk_gib: u32,
    /// More QEMU arguments.
    pub extra: Vec<String>,
}

/// What the node was made from, in its directory.
pub const RELEASE: &str = "release";

/// Makes a node's directory anew: an empty overlay over the release's disk, fresh firmware variables.
pub fn create(dir: &Path, spec: &Spec) -> Result<Node> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for old in [DISK, VARS, CONSOLE_LOG, "node.json"] {
        let _ = fs::remove_file(dir.join(old));
    }
    spec.release.link_into(&dir.join(RELEASE))?;
    // Relative to the overlay: a saved machine's directory moves.
    let base = Path::new(RELEASE).join("disk.qcow2");
    image::overlay(&base, &dir.join(DISK), Some(spec.disk_gib))?;
    fs::copy(Firmware::find()?.vars, dir.join(VARS))
        .context("cannot copy the firmware's variables")?;
    let made = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let node = Node {
        name: spec.name.clone(),
        version: spec.release.version.clone(),
        boot: spec.boot,
        memory_mib: spec.memory_mib,
        ssh_port: ports::free()?,
        instance: format!("{}-{}", spec.name, made.as_millis()),
        datasource: spec.datasource,
        extra: spec.extra.clone(),
        cmdline: Vec::new(),
        process: None,
    };
    node.save(dir)?;
    Ok(node)
}

/// Writes what the node's datasource says.
pub fn provision(dir: &Path, node: &Node, key: &Key, user_data: &str) -> Result<()> {
    let seed = Seed {
        instance: node.instance.clone(),
        hostname: node.name.clone(),
        public_key: key.public.clone(),
        user_data: user_data.to_owned(),
    };
    seed.write(node.datasource, dir)
}

/// What happens to the machine when nobody holds its [`Machine`] any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tie {
    /// It ends: as the value is dropped, and by the kernel's hand should our process (or thread) die.
    Ours,
    /// It ends with the value, until [`Machine::leave_running`].
    UntilReady,
}

/// A started machine.
pub struct Machine {
    /// Its directory.
    pub dir: PathBuf,
    /// Its record.
    pub node: Node,
    /// When QEMU was started.
    pub started: Instant,
    /// How much of the console's log is from before that, in bytes.
    console_start: u64,
    child: Child,
    key: Key,
    leave: bool,
}

impl Machine {
    /// Starts a node. When another program was quicker to take its SSH port, the node gets a new one.
    pub fn start(
        dir: &Path,
        node: Node,
        release: &Release,
        accel: Accel,
        key: &Key,
        tie: Tie,
    ) -> Result<Self> {
        let plan = node.plan(dir, release, accel)?;
        Self::start_plan(plan, node, key, tie)
    }

    /// As [`Machine::start`], for a plan that the caller made.
    pub fn start_plan(mut plan: Plan, mut node: Node, key: &Key, tie: Tie) -> Result<Self> {
        let mut attempts = 0;
        loop {
            if !ports::is_free(plan.ssh_port) {
                plan.ssh_port = ports::free()?;
            }
            node.ssh_port = plan.ssh_port;
            match Self::try_start(&plan, &node, key, tie) {
                Err(error)
                    if attempts < 5 && error.to_string().contains("host forwarding rule") =>
                {
                    attempts += 1
                }
                result => return result,
            }
        }
    }

    fn try_start(plan: &Plan, node: &Node, key: &Key, tie: Tie) -> Result<Self> {
        let dir = plan.dir.clone();
        for stale in [CONSOLE_SOCKET, QMP_SOCKET, "ssh.sock", "qemu.pid"] {
            let _ = fs::remove_file(dir.join(stale));
        }
        let log_path = dir.join("qemu.log");
        let log = File::create(&log_path)
            .with_context(|| format!("cannot write {}", log_path.display()))?;
        let mut command = match tie {
            Tie::UntilReady => Command::new("qemu-system-x86_64"),
            Tie::Ours => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
                command
            }
        };
        // Its own process group: Ctrl-C in the terminal is for us, and we decide what becomes of the machine.
        command.args(plan.argv()).current_dir(&dir).process_group(0);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let console_start = fs::metadata(dir.join(CONSOLE_LOG)).map_or(0, |meta| meta.len());
        let child = process::spawn(&mut command)?;
        let mut machine = Self {
            node: Node {
                process: Some(ProcessId::of(child.id())?),
                ..node.clone()
            },
            started: Instant::now(),
            console_start,
            child,
            key: key.clone(),
            leave: false,
            dir,
        };
        machine.wait_qemu()?;
        machine.node.save(&machine.dir)?;
        Ok(machine)
    }

    fn wait_qemu(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        // The socket is there before the disks are opened; the answer comes when all is.
        let ready = |dir: &Path| {
            Qmp::connect(dir).and_then(|mut qmp| qmp.call("query-status", &serde_json::json!({})))
        };
        while ready(&self.dir).is_err() {
            self.check_alive()?;
            if Instant::now() > end {
                bail!(
                    "QEMU did not open its control socket within 60 s, see {}",
                    self.dir.join("qemu.log").display()
                );
            }
            interrupt::sleep(Duration::from_millis(10))?;
        }
        Ok(())
    }

    /// An error with QEMU's last words when it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = fs::read_to_string(self.dir.join("qemu.log")).unwrap_or_default();
            bail!("QEMU ended ({status}): {}", process::tail(&log, 5));
        }
        Ok(())
    }

    /// Whether its kernel hangs because a timer of one of its processors never fired, by what it says on the console.
    ///
    /// QEMU's emulation may lose one, as it did once in some hundred starts of guests with two processors. Such a guest
    /// waits forever, and tells nothing about the release that it was starting.
    pub fn lost_timer(&self) -> bool {
        let mut log = Vec::new();
        let read = File::open(self.dir.join(CONSOLE_LOG)).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.console_start))?;
            file.read_to_end(&mut log)
        });
        read.is_ok() && says_lost_timer(&String::from_utf8_lossy(&log))
    }

    /// A shell in it, as `core`.
    pub fn ssh(&self) -> Ssh {
        Ssh::new(&self.dir, &self.key, self.node.ssh_port)
    }

    /// A connection to its QEMU.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.dir)
    }

    /// Waits for the guest's SSH server. `tick` hears the console's last line now and then.
    pub fn wait_ssh(&mut self, limit: Duration, tick: &dyn Fn(&str)) -> Result<()> {
        let ssh = self.ssh();
        self.wait("its SSH server answers", limit, tick, || {
            ssh.answers().then_some(())
        })
    }

    /// Waits until the guest says that it is healthy, and gives back its status.
    pub fn wait_healthy(&mut self, limit: Duration, tick: &dyn Fn(&str)) -> Result<Value> {
        let end = Instant::now() + limit;
        self.wait_ssh(limit, tick)?;
        let ssh = self.ssh();
        let mut last = anyhow!("no answer from `orlop status`");
        let left = end.saturating_duration_since(Instant::now());
        let status = self.wait("it is healthy", left, tick, || match status(&ssh, 10) {
            Ok(status) if status["health"] == "healthy" => Some(status),
            Ok(status) => {
                last = anyhow!("its status is {status}");
                None
            }
            Err(error) => {
                last = error;
                ssh.close();
                None
            }
        });
        status.map_err(|error| {
            if interrupt::requested() {
                error
            } else {
                last.context(error)
            }
        })
    }

    fn wait<T>(
        &mut self,
        what: &str,
        limit: Duration,
        tick: &dyn Fn(&str),
        mut probe: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + limit;
        loop {
            if let Some(value) = probe() {
                return Ok(value);
            }
            self.check_alive()?;
            if self.lost_timer() {
                bail!(
                    "{}: waited until {what}; its kernel hangs, as a timer of a processor never fired",
                    self.node.name
                );
            }
            if Instant::now() > end {
                bail!(
                    "{}: waited {} s until {what}",
                    self.node.name,
                    limit.as_secs()
                );
            }
            tick(&console_tail(&self.dir, 1));
            interrupt::sleep(Duration::from_millis(100))?;
        }
    }

    /// Lets the machine run on without us.
    pub fn leave_running(mut self) -> Node {
        self.leave = true;
        self.node.clone()
    }

    /// A power cut.
    pub fn kill(mut self) -> Result<Node> {
        self.end();
        self.node.process = None;
        self.node.save(&self.dir)?;
        Ok(self.node.clone())
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.ssh().close();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !self.leave {
            self.end();
        }
    }
}

/// The guest's own view of itself; waits up to `wait` seconds while it is still starting.
pub fn status(ssh: &Ssh, wait: u32) -> Result<Value> {
    let script = format!("orlop status --wait {wait} -o json");
    let output = ssh.run(&script, Duration::from_secs(u64::from(wait) + 40))?;
    serde_json::from_str(&output.stdout).with_context(|| {
        format!(
            "`orlop status` in the guest (exit code {}): {}",
            output.exit,
            process::tail(&output.stderr, 3)
        )
    })
}

/// Stops a machine that another process started: by its power button, or at once.
pub fn stop(dir: &Path, node: &Node, key: &Key, patience: Duration) -> Result<bool> {
    Ssh::new(dir, key, node.ssh_port).close();
    let Some(process) = node.running(dir) else {
        return Ok(false);
    };
    let asked = patience > Duration::ZERO
        && Qmp::connect(dir)
            .and_then(|mut qmp| qmp.power_button())
            .is_ok();
    if !(asked && process.wait_gone(patience)) {
        process.stop(Duration::from_secs(5));
    }
    if process.is_alive() {
        bail!("{}: QEMU (process {}) does not end", node.name, process.pid);
    }
    Ok(true)
}

/// A host that is merely busy makes the kernel say it once, and it goes on: once in a boot.
fn says_lost_timer(console: &str) -> bool {
    let boot = console.rfind("BdsDxe: starting").unwrap_or(0);
    console[boot..]
        .matches("kthread timer wakeup didn't happen for")
        .count()
        >= 2
}

/// The last lines of the serial console that say something, without terminal control.
pub fn console_tail(dir: &Path, lines: usize) -> String {
    let bytes = fs::read(dir.join(CONSOLE_LOG)).unwrap_or_default();
    let start = bytes.len().saturating_sub(16 * 1024);
    let text = plain_text(&String::from_utf8_lossy(&bytes[start..]));
    let full: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    full[full.len().saturating_sub(lines)..].join("\n")
}

/// Text without escape sequences (ECMA-48, section 5.4) and other control characters.
pub fn plain_text(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                if chars.next() == Some('[') {
                    // Parameters, then one final character.
                    let _ = chars.by_ref().find(|c| ('@'..='~').contains(c));
                }
            }
            '\n' | '\t' => plain.push(c),
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_waits_for_a_timer_forever_is_known_by_its_second_complaint() {
        let complaint = "[   23.098687] rcu: rcu_preempt kthread timer wakeup didn't happen for 5251 jiffies! g-1151 f0x0\r\n";
        let other =
            "[   23.076891] rcu: \t(detected by 0, t=5252 jiffies, g=-1151, q=2400 ncpus=2)\r\n";
        assert!(!says_lost_timer(&format!("{other}{complaint}{other}")));
        assert!(says_lost_timer(&format!("{complaint}{other}{complaint}")));
        // It has rebooted in between.
        let firmware =
            "BdsDxe: starting Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x3,0x0)\r\n";
        assert!(!says_lost_timer(&format!(
            "{firmware}{complaint}{firmware}{complaint}"
        )));
        assert!(says_lost_timer(&format!(
            "{firmware}{firmware}{complaint}{complaint}"
        )));
    }

    #[test]
    fn a_console_is_readable_without_its_escapes() {
        let text = "\u{1b}[2J\u{1b}[01;01H[\u{1b}[0;32m  OK  \u{1b}[0m] Started \u{1b}[0;1;39msshd\u{1b}[0m.\r\n\r\n";
        assert_eq!(plain_text(text), "[  OK  ] Started sshd.\n\n");
    }
}
