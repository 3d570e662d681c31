use std::io;
use std::path::PathBuf;

use serde_json::{Value, json};

/// What can go wrong in a call, on either end.
#[derive(Debug, thiserror::Error)]
pub enum VarlinkError {
    #[error("cannot connect to {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen on {}", path.display())]
    Listen {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the connection failed")]
    Io(#[source] io::Error),
    #[error("no answer in time")]
    Timeout,
    #[error("the other end closed the connection before it answered")]
    Closed,
    #[error("a message of more than {limit} bytes was refused")]
    TooLarge { limit: usize },
    #[error("a message is not what varlink prescribes: {problem}")]
    Malformed { problem: String },
    /// The error reply of a service: the name is part of its interface.
    #[error("{}", describe(name, parameters))]
    Reply { name: String, parameters: Value },
}

/// A `message` or `reason` parameter is for people and comes first.
fn describe(name: &str, parameters: &Value) -> String {
    let text = ["message", "reason"]
        .iter()
        .find_map(|key| parameters.get(key).and_then(Value::as_str));
    match (text, parameters) {
        (Some(text), _) => format!("{text} ({name})"),
        (None, Value::Object(map)) if !map.is_empty() => format!("{name} {parameters}"),
        _ => name.to_owned(),
    }
}

impl VarlinkError {
    pub fn reply(name: &str, parameters: Value) -> Self {
        Self::Reply {
            name: name.to_owned(),
            parameters,
        }
    }

    /// An error of an interface with a text for people, e.g. `("io.orlop.UpdateEngine.Busy", "a download runs")`.
    pub fn message(name: &str, message: impl Into<String>) -> Self {
        Self::reply(name, json!({ "message": message.into() }))
    }

    pub fn method_not_found(method: &str) -> Self {
        Self::reply(
            "org.varlink.service.MethodNotFound",
            json!({ "method": method }),
        )
    }

    pub fn invalid_parameter(parameter: &str) -> Self {
        Self::reply(
            "org.varlink.service.InvalidParameter",
            json!({ "parameter": parameter }),
        )
    }

    pub fn permission_denied() -> Self {
        Self::reply("org.varlink.service.PermissionDenied", json!({}))
    }

    pub fn expected_more() -> Self {
        Self::reply("org.varlink.service.ExpectedMore", json!({}))
    }

    /// The name of the service's error, if it is one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Reply { name, .. } => Some(name),
            _ => None,
        }
    }

    /// Whether nobody listens: the daemon does not run.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Connect { source, .. }
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
    }

    pub(super) fn from_io(source: io::Error) -> Self {
        match source.kind() {
            // A read timeout of a Unix socket shows as EAGAIN.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(source),
        }
    }
}
