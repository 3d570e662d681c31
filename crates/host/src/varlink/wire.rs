//! Framing and the two kinds of messages.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::VarlinkError;

/// The longest message either end takes: a peer must not make us allocate without end.
pub const MAX_MESSAGE: usize = 1 << 20;

/// The user at the other end, as the kernel noted it when the connection was made.
pub fn peer_uid(stream: &UnixStream) -> Result<u32, VarlinkError> {
    rustix::net::sockopt::socket_peercred(stream)
        .map(|cred| cred.uid.as_raw())
        .map_err(|errno| VarlinkError::Io(errno.into()))
}

fn is_false(b: &bool) -> bool {
    !*b
}

fn empty() -> Value {
    Value::Object(Map::new())
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) method: String,
    #[serde(default = "empty", deserialize_with = "object_or_null")]
    pub(super) parameters: Value,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) more: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) oneway: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) upgrade: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Response {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    #[serde(default = "empty", deserialize_with = "object_or_null")]
    pub(super) parameters: Value,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) continues: bool,
}

/// Parameters are an object or nothing; `null` counts as nothing.
fn object_or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(empty()),
        value @ Value::Object(_) => Ok(value),
        other => Err(serde::de::Error::custom(format!(
            "parameters must be an object, not {other}"
        ))),
    }
}

/// A stream cut into messages at the NUL bytes.
#[derive(Debug)]
pub(super) struct Framed {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// Up to where `buffer` is known to hold no NUL, so that a long message is not scanned twice.
    scanned: usize,
    /// The longest message that is taken.
    limit: usize,
}

impl Framed {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            scanned: 0,
            limit: MAX_MESSAGE,
        }
    }

    pub(super) fn with_limit(stream: UnixStream, limit: usize) -> Self {
        Self {
            limit,
            ..Self::new(stream)
        }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn write(&mut self, message: &impl Serialize) -> Result<(), VarlinkError> {
        let malformed = |error: serde_json::Error| VarlinkError::Malformed {
            problem: error.to_string(),
        };
        let mut bytes = serde_json::to_vec(message).map_err(malformed)?;
        if bytes.len() > MAX_MESSAGE {
            return Err(VarlinkError::TooLarge { limit: MAX_MESSAGE });
        }
        bytes.push(0);
        self.stream.write_all(&bytes).map_err(VarlinkError::from_io)
    }

    /// The next message; `None` when the other end has hung up between two messages.
    pub(super) fn read<T: DeserializeOwned>(&mut self) -> Result<Option<T>, VarlinkError> {
        let mut chunk = [0; 4096];
        let end = loop {
            let found = self.buffer[self.scanned..].iter().position(|b| *b == 0);
            self.scanned = found.map_or(self.buffer.len(), |at| self.scanned + at);
            if self.scanned > self.limit {
                return Err(VarlinkError::TooLarge { limit: self.limit });
            }
            if found.is_some() {
                break self.scanned;
            }
            match self.stream.read(&mut chunk) {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => return Err(VarlinkError::Closed),
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(VarlinkError::from_io(error)),
            }
        };
        let message = serde_json::from_slice(&self.buffer[..end]);
        self.buffer.drain(..=end);
        self.scanned = 0;
        message.map(Some).map_err(|error| VarlinkError::Malformed {
            problem: error.to_string(),
        })
    }
}
