use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::VarlinkError;
use super::wire::{Framed, Request, Response};

/// One connection to a service; calls on it go one after the other.
#[derive(Debug)]
pub struct Client {
    framed: Framed,
}

impl Client {
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, VarlinkError> {
        let path = path.as_ref();
        UnixStream::connect(path)
            .map(Self::from_stream)
            .map_err(|source| VarlinkError::Connect {
                path: path.to_owned(),
                source,
            })
    }

    pub fn from_stream(stream: UnixStream) -> Self {
        Self {
            framed: Framed::new(stream),
        }
    }

    /// How long to wait for each message, and for each call to be taken; without it, for ever.
    pub fn with_timeout(self, timeout: Duration) -> Result<Self, VarlinkError> {
        let stream = self.framed.stream();
        stream
            .set_read_timeout(Some(timeout))
            .and_then(|()| stream.set_write_timeout(Some(timeout)))
            .map_err(VarlinkError::Io)?;
        Ok(self)
    }

    /// Calls `method`, e.g. `io.orlop.UpdateEngine.GetStatus`, and waits for its one answer.
    pub fn call(
        &mut self,
        method: &str,
        parameters: impl Serialize,
    ) -> Result<Value, VarlinkError> {
        self.send(method, parameters, false)?;
        self.receive().map(|(parameters, _)| parameters)
    }

    /// As [`Self::call`], with the answer as a type.
    pub fn call_as<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: impl Serialize,
    ) -> Result<T, VarlinkError> {
        let value = self.call(method, parameters)?;
        serde_json::from_value(value).map_err(|error| VarlinkError::Malformed {
            problem: error.to_string(),
        })
    }

    /// Calls `method` with `more`: the iterator yields every answer and ends behind the last one,
    /// or with the first error.
    pub fn call_more(
        &mut self,
        method: &str,
        parameters: impl Serialize,
    ) -> Result<Replies<'_>, VarlinkError> {
        self.send(method, parameters, true)?;
        Ok(Replies {
            client: self,
            done: false,
        })
    }

    fn send(
        &mut self,
        method: &str,
        parameters: impl Serialize,
        more: bool,
    ) -> Result<(), VarlinkError> {
        let malformed = |error: serde_json::Error| VarlinkError::Malformed {
            problem: error.to_string(),
        };
        let parameters = match serde_json::to_value(parameters).map_err(malformed)? {
            Value::Null => Value::Object(serde_json::Map::new()),
            value => value,
        };
        self.framed.write(&Request {
            method: method.to_owned(),
            parameters,
            more,
            oneway: false,
            upgrade: false,
        })
    }

    fn receive(&mut self) -> Result<(Value, bool), VarlinkError> {
        let response: Response = self.framed.read()?.ok_or(VarlinkError::Closed)?;
        match response.error {
            Some(name) => Err(VarlinkError::Reply {
                name,
                parameters: response.parameters,
            }),
            None => Ok((response.parameters, response.continues)),
        }
    }
}

/// The answers to one call; see [`Client::call_more`].
#[derive(Debug)]
pub struct Replies<'a> {
    client: &'a mut Client,
    done: bool,
}

impl Iterator for Replies<'_> {
    type Item = Result<Value, VarlinkError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.client.receive() {
            Ok((value, continues)) => {
                self.done = !continues;
                Some(Ok(value))
            }
            Err(error) => {
                self.done = true;
                Some(Err(error))
            }
        }
    }
}
