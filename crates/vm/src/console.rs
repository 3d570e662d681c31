//! The serial console of a running node in the user's terminal.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::plan::CONSOLE_SOCKET;
use crate::qmp::connect_in;

/// Ctrl-], as in telnet: the one key that the guest does not get.
const ESCAPE: u8 = 0x1d;

struct RawTerminal(Termios);

impl RawTerminal {
    /// `None` when stdin is no terminal.
    fn enter() -> Result<Option<Self>> {
        let stdin = std::io::stdin();
        let Ok(before) = tcgetattr(&stdin) else {
            return Ok(None);
        };
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Connects terminal and console until Ctrl-] or the machine's end.
pub fn attach(dir: &Path) -> Result<()> {
    let console = connect_in(dir, CONSOLE_SOCKET)
        .context("the node has no console; is it running? (orlop ps)")?;
    let mut from_guest = console.try_clone()?;
    let mut to_guest = console.try_clone()?;
    let raw = RawTerminal::enter()?;
    let input = std::thread::spawn(move || {
        let mut buffer = [0u8; 1024];
        let mut stdin = std::io::stdin().lock();
        while let Ok(read @ 1..) = stdin.read(&mut buffer) {
            let escape = buffer[..read].iter().position(|byte| *byte == ESCAPE);
            let typed = &buffer[..escape.unwrap_or(read)];
            if to_guest.write_all(typed).is_err() || escape.is_some() {
                break;
            }
        }
        let _ = console.shutdown(Shutdown::Both);
    });
    let mut stdout = std::io::stdout().lock();
    let mut buffer = [0u8; 4096];
    while let Ok(read @ 1..) = from_guest.read(&mut buffer) {
        stdout.write_all(&buffer[..read])?;
        stdout.flush()?;
    }
    drop(raw);
    // When the machine ended, the thread still waits for a key; it ends with the process.
    if input.is_finished() {
        let _ = input.join();
    }
    Ok(())
}
