//! Ports of this workstation.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result};

/// A port of 127.0.0.1 that is free now. It may be taken before QEMU binds it; QEMU's error then says so, and the caller
/// tries again with another one.
pub fn free() -> Result<u16> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}

/// Whether nobody listens on this port of 127.0.0.1.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
