//! As much of D-Bus as it takes to ask systemd for something.
//!
//! The general libraries do not get along with systemd's own socket: it names itself
//! `org.freedesktop.systemd1` as the sender of its messages, where the specification wants a unique
//! name, and they refuse the message. And they bring an async runtime, which a program that makes
//! three calls has no use for. The specification is at
//! <https://dbus.freedesktop.org/doc/dbus-specification.html>.

mod connection;
mod wire;

use std::io;

pub(super) use connection::Connection;
pub(super) use wire::{Arg, Message, Target};

#[derive(Debug, thiserror::Error)]
pub enum DbusError {
    #[error("the connection failed")]
    Io(#[source] io::Error),
    #[error("the other end closed the connection")]
    Closed,
    #[error("no answer in time")]
    Timeout,
    #[error("the other end did not let us in: {0}")]
    Auth(String),
    #[error("a message is not what D-Bus prescribes: {0}")]
    Malformed(&'static str),
    /// An error reply.
    #[error("{message} ({name})")]
    Reply { name: String, message: String },
}
