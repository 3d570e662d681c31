//! varlink (<https://varlink.org>): JSON objects with a NUL behind each, over a Unix stream socket.
//!
//! Our daemons meet on it: small, typed, and `varlinkctl` can talk to them. Both ends are blocking.
//!
//! ```text
//! → {"method":"io.orlop.UpdateEngine.GetStatus"}␀
//! ← {"parameters":{"version":"2", …}}␀
//! → {"method":"io.orlop.UpdateEngine.Update","more":true}␀
//! ← {"parameters":{"progress":0.5},"continues":true}␀ … {"parameters":{}}␀
//! ```

mod client;
mod error;
mod listen;
mod server;
mod wire;

pub use client::{Client, Replies};
pub use error::VarlinkError;
pub use listen::{Connection, Listener};
pub use server::{Call, Handler, Info, Interface, Replier, serve_connection};
pub use wire::{MAX_MESSAGE, peer_uid};

#[cfg(test)]
mod tests;
