use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::DbusError;
use super::wire::{self, Arg, ERROR, FIXED, METHOD_RETURN, Message, SIGNAL, Target};

const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Signals that wait to be looked at. systemd sends one per job: at boot there are hundreds.
const MOST_SIGNALS: usize = 4096;

#[derive(Debug)]
pub(in crate::systemd) struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    serial: u32,
    signals: VecDeque<Message>,
}

impl Connection {
    pub(in crate::systemd) fn connect(path: &Path) -> Result<Self, DbusError> {
        Self::authenticate(UnixStream::connect(path).map_err(DbusError::Io)?)
    }

    /// Mechanism EXTERNAL: the kernel has told the other end who we are, we only say the same.
    ///
    /// BEGIN goes with the rest, before the answer, as systemd's own client does it. After the
    /// answer it could reach systemd in one piece with our first call, and systemd then leaves that
    /// call in its buffer until something else arrives.
    pub(in crate::systemd) fn authenticate(stream: UnixStream) -> Result<Self, DbusError> {
        let mut connection = Self {
            stream,
            received: Vec::new(),
            serial: 0,
            signals: VecDeque::new(),
        };
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        connection.write(format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes())?;
        let end = Instant::now() + CALL_TIMEOUT;
        let line = loop {
            if let Some(at) = connection
                .received
                .windows(2)
                .position(|pair| pair == b"\r\n")
            {
                let rest = connection.received.split_off(at + 2);
                break std::mem::replace(&mut connection.received, rest);
            }
            if connection.received.len() > 1024 {
                return Err(DbusError::Malformed("the greeting has no end"));
            }
            connection.fill(end)?;
        };
        let line = String::from_utf8_lossy(&line);
        if !line.starts_with("OK ") {
            return Err(DbusError::Auth(line.trim().to_owned()));
        }
        Ok(connection)
    }

    /// Calls a method and waits for its answer. Signals that come in between are kept.
    pub(in crate::systemd) fn call(
        &mut self,
        target: Target<'_>,
        args: &[Arg<'_>],
    ) -> Result<Message, DbusError> {
        self.serial = self.serial.wrapping_add(1).max(1);
        let serial = self.serial;
        self.write(&wire::method_call(serial, target, args))?;
        let end = Instant::now() + CALL_TIMEOUT;
        loop {
            let message = self.receive(end)?;
            match message.kind {
                METHOD_RETURN if message.reply_serial == Some(serial) => return Ok(message),
                ERROR if message.reply_serial == Some(serial) => {
                    let name = message.error_name.clone().unwrap_or_default();
                    return Err(DbusError::Reply {
                        name,
                        message: message.error_text(),
                    });
                }
                SIGNAL if self.signals.len() < MOST_SIGNALS => self.signals.push_back(message),
                // The answer to a call that we gave up on, or a call to us, who have nothing to offer.
                _ => {}
            }
        }
    }

    pub(in crate::systemd) fn forget_signals(&mut self) {
        self.signals.clear();
    }

    pub(in crate::systemd) fn next_signal(&mut self, end: Instant) -> Result<Message, DbusError> {
        if let Some(signal) = self.signals.pop_front() {
            return Ok(signal);
        }
        loop {
            let message = self.receive(end)?;
            if message.kind == SIGNAL {
                return Ok(message);
            }
        }
    }

    fn receive(&mut self, end: Instant) -> Result<Message, DbusError> {
        loop {
            if self.received.len() >= FIXED {
                let length = wire::message_length(&self.received[..FIXED])?;
                if self.received.len() >= length {
                    let rest = self.received.split_off(length);
                    let bytes = std::mem::replace(&mut self.received, rest);
                    return Message::parse(&bytes);
                }
            }
            self.fill(end)?;
        }
    }

    /// Reads some more. What was read before a timeout stays.
    fn fill(&mut self, end: Instant) -> Result<(), DbusError> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(DbusError::Timeout);
        }
        self.stream
            .set_read_timeout(Some(left))
            .map_err(DbusError::Io)?;
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(DbusError::Closed),
            Ok(n) => {
                self.received.extend_from_slice(&chunk[..n]);
                Ok(())
            }
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => Ok(()),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Err(DbusError::Timeout),
                _ => Err(DbusError::Io(error)),
            },
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DbusError> {
        self.stream.write_all(bytes).map_err(DbusError::Io)
    }
}
