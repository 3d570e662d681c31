//! QEMU's control protocol: one JSON object a line, over a socket in the node's directory.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::interrupt;
use crate::plan::QMP_SOCKET;

/// A connection to a running QEMU.
pub struct Qmp {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
}

/// Connects to a socket in a directory whose path may be longer than the 108 bytes of a socket address.
pub fn connect_in(dir: &Path, name: &str) -> Result<UnixStream> {
    let handle = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    let path = format!("/proc/self/fd/{}/{name}", handle.as_raw_fd());
    UnixStream::connect(path)
        .with_context(|| format!("cannot connect to {}", dir.join(name).display()))
}

impl Qmp {
    /// Connects to the QEMU of this directory.
    pub fn connect(dir: &Path) -> Result<Self> {
        let writer = connect_in(dir, QMP_SOCKET)?;
        writer.set_read_timeout(Some(Duration::from_secs(120)))?;
        let reader = BufReader::new(writer.try_clone()?);
        let mut qmp = Self { writer, reader };
        qmp.line()?;
        qmp.call("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// One command and its answer. Events in between do not interest us.
    pub fn call(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.writer, "{request}")
            .with_context(|| format!("QEMU has gone (at {command})"))?;
        loop {
            let mut answer = self
                .line()
                .with_context(|| format!("no answer to {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!(
                    "QEMU refuses {command}: {}",
                    error["desc"].as_str().unwrap_or("no reason")
                );
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU closed its control socket");
        }
        serde_json::from_str(&line).with_context(|| format!("not JSON: {}", line.trim()))
    }

    /// Writes what the screen shows as a PNG.
    pub fn screenshot(&mut self, png: &Path) -> Result<()> {
        self.call("screendump", &json!({"filename": png, "format": "png"}))?;
        Ok(())
    }

    /// Presses the power button.
    pub fn power_button(&mut self) -> Result<()> {
        self.call("system_powerdown", &json!({}))?;
        Ok(())
    }

    /// Ends QEMU as a power cut would end the machine.
    pub fn quit(&mut self) -> Result<()> {
        self.call("quit", &json!({}))?;
        Ok(())
    }

    /// Stops the guest and writes memory and devices to a file. The disk stays as it was at this moment.
    pub fn save(&mut self, file: &Path) -> Result<()> {
        self.call("stop", &json!({}))?;
        self.migration_settings()?;
        self.call(
            "migrate",
            &json!({"uri": format!("file:{}", file.display())}),
        )?;
        self.migrated()
    }

    /// Takes memory and devices from a file and lets the guest run on.
    pub fn restore(&mut self, file: &Path) -> Result<()> {
        self.migration_settings()?;
        self.call(
            "migrate-incoming",
            &json!({"uri": format!("file:{}", file.display())}),
        )?;
        self.migrated()?;
        self.call("cont", &json!({}))?;
        Ok(())
    }

    /// `mapped-ram`: each page at its own place in a sparse file, empty ones not at all.
    fn migration_settings(&mut self) -> Result<()> {
        let capability = json!({"capability": "mapped-ram", "state": true});
        self.call(
            "migrate-set-capabilities",
            &json!({"capabilities": [capability]}),
        )?;
        self.call(
            "migrate-set-parameters",
            &json!({"max-bandwidth": 1u64 << 40}),
        )?;
        Ok(())
    }

    fn migrated(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(180);
        while Instant::now() < end {
            let info = self.call("query-migrate", &json!({}))?;
            match info["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => bail!(
                    "QEMU cannot move the machine's state: {}",
                    info["error-desc"].as_str().unwrap_or("no reason given")
                ),
                _ => interrupt::sleep(Duration::from_millis(10))?,
            }
        }
        bail!("QEMU did not finish moving the machine's state within 180 s")
    }
}
