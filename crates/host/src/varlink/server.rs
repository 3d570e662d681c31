use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::VarlinkError;
use super::wire::{Framed, Request, Response};

/// How long a connection may say nothing. A client that wants to stay calls again.
const IDLE: Duration = Duration::from_secs(120);

/// The description every service has; from the varlink documentation, with systemd's two errors.
const SERVICE: Interface = Interface {
    name: "org.varlink.service",
    description: "\
interface org.varlink.service

method GetInfo() -> (
  vendor: string,
  product: string,
  version: string,
  url: string,
  interfaces: []string
)

method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)

error MethodNotFound (method: string)

error MethodNotImplemented (method: string)

error InvalidParameter (parameter: string)

error PermissionDenied ()

error ExpectedMore ()
",
};

/// An interface and its description in varlink's definition language.
#[derive(Debug, Clone, Copy)]
pub struct Interface {
    pub name: &'static str,
    pub description: &'static str,
}

/// What `org.varlink.service.GetInfo` says.
#[derive(Debug, Clone)]
pub struct Info {
    pub vendor: String,
    pub product: String,
    pub version: String,
    pub url: String,
}

impl Info {
    /// One of our own daemons.
    pub fn orlop(product: &str) -> Self {
        Self {
            vendor: "Orlop".to_owned(),
            product: product.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            url: String::new(),
        }
    }
}

/// One call as it came in.
#[derive(Debug)]
pub struct Call {
    /// The whole name, e.g. `io.orlop.UpdateEngine.GetStatus`.
    pub method: String,
    pub parameters: Value,
    /// Whether the caller takes several answers.
    pub more: bool,
    pub peer_uid: u32,
}

impl Call {
    /// The parameters as a type. serde says which field is wrong; the reply passes that on.
    pub fn params<T: DeserializeOwned>(&self) -> Result<T, VarlinkError> {
        T::deserialize(&self.parameters)
            .map_err(|error| VarlinkError::invalid_parameter(&error.to_string()))
    }

    /// For methods that change something: only root may.
    pub fn require_root(&self) -> Result<(), VarlinkError> {
        match self.peer_uid {
            0 => Ok(()),
            _ => Err(VarlinkError::permission_denied()),
        }
    }
}

/// The service behind a connection.
pub trait Handler {
    fn info(&self) -> Info;
    fn interfaces(&self) -> &[Interface];
    /// Answers one call. Answers before the last one go through `replier`.
    fn call(&mut self, call: &Call, replier: &mut Replier<'_>) -> Result<Value, VarlinkError>;
}

/// Sends the answers that come before the last one.
#[derive(Debug)]
pub struct Replier<'a> {
    framed: &'a mut Framed,
    more: bool,
}

impl Replier<'_> {
    /// Sends one of several answers; dropped where the caller wants only the last. An error means
    /// that the caller has gone, which a handler may ignore.
    pub fn progress(&mut self, parameters: impl Serialize) -> Result<(), VarlinkError> {
        if !self.more {
            return Ok(());
        }
        let parameters =
            serde_json::to_value(parameters).map_err(|error| VarlinkError::Malformed {
                problem: error.to_string(),
            })?;
        self.framed.write(&Response {
            error: None,
            parameters,
            continues: true,
        })
    }
}

/// Serves calls of up to `limit` bytes until the other end hangs up, breaks the protocol, or is silent for two minutes.
pub fn serve_connection(
    stream: UnixStream,
    peer_uid: u32,
    limit: usize,
    handler: &mut dyn Handler,
) -> Result<(), VarlinkError> {
    stream
        .set_read_timeout(Some(IDLE))
        .map_err(VarlinkError::Io)?;
    stream
        .set_write_timeout(Some(IDLE))
        .map_err(VarlinkError::Io)?;
    serve(Framed::with_limit(stream, limit), peer_uid, handler)
}

pub(super) fn serve(
    mut framed: Framed,
    peer_uid: u32,
    handler: &mut dyn Handler,
) -> Result<(), VarlinkError> {
    loop {
        let request: Request = match framed.read() {
            Ok(Some(request)) => request,
            Ok(None) | Err(VarlinkError::Timeout) => return Ok(()),
            Err(error) => return Err(error),
        };
        let (oneway, upgrade) = (request.oneway, request.upgrade);
        let call = Call {
            method: request.method,
            parameters: request.parameters,
            more: request.more && !oneway,
            peer_uid,
        };
        let result = match upgrade {
            true => Err(VarlinkError::invalid_parameter("upgrade")),
            false => dispatch(&call, &mut framed, handler),
        };
        if oneway {
            continue;
        }
        let response = match result {
            Ok(parameters) => Response {
                parameters,
                ..Response::default()
            },
            Err(VarlinkError::Reply { name, parameters }) => Response {
                error: Some(name),
                parameters,
                continues: false,
            },
            // A handler passed on the error of another connection: that is its trouble, not the caller's.
            Err(other) => Response {
                error: Some("io.orlop.Internal".to_owned()),
                parameters: json!({ "message": other.to_string() }),
                continues: false,
            },
        };
        framed.write(&response)?;
    }
}

fn dispatch(
    call: &Call,
    framed: &mut Framed,
    handler: &mut dyn Handler,
) -> Result<Value, VarlinkError> {
    match call.method.as_str() {
        "org.varlink.service.GetInfo" => {
            let Info {
                vendor,
                product,
                version,
                url,
            } = handler.info();
            let names: Vec<_> = std::iter::once(SERVICE.name)
                .chain(handler.interfaces().iter().map(|i| i.name))
                .collect();
            Ok(
                json!({ "vendor": vendor, "product": product, "version": version, "url": url, "interfaces": names }),
            )
        }
        "org.varlink.service.GetInterfaceDescription" => {
            let Some(name) = call.parameters.get("interface").and_then(Value::as_str) else {
                return Err(VarlinkError::invalid_parameter("interface"));
            };
            match std::iter::once(&SERVICE)
                .chain(handler.interfaces())
                .find(|i| i.name == name)
            {
                Some(interface) => Ok(json!({ "description": interface.description })),
                None => Err(VarlinkError::reply(
                    "org.varlink.service.InterfaceNotFound",
                    json!({ "interface": name }),
                )),
            }
        }
        method => {
            let interface = method
                .rsplit_once('.')
                .map_or("", |(interface, _)| interface);
            match handler.interfaces().iter().any(|i| i.name == interface) {
                true => handler.call(
                    call,
                    &mut Replier {
                        more: call.more,
                        framed,
                    },
                ),
                false => Err(VarlinkError::reply(
                    "org.varlink.service.InterfaceNotFound",
                    json!({ "interface": interface }),
                )),
            }
        }
    }
}
