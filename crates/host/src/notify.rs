//! sd_notify(3): telling the service manager how we are.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends e.g. `READY=1` or `STATUS=checking for updates`; several lines may go at once. Does
/// nothing where no manager listens (`NOTIFY_SOCKET` is unset).
pub fn notify(state: &str) -> io::Result<()> {
    match env::var("NOTIFY_SOCKET") {
        Ok(address) => send(&address, state),
        Err(_) => Ok(()),
    }
}

pub fn ready(status: &str) -> io::Result<()> {
    notify(&format!("READY=1\nSTATUS={status}"))
}

pub fn status(status: &str) -> io::Result<()> {
    notify(&format!("STATUS={status}"))
}

fn send(address: &str, state: &str) -> io::Result<()> {
    let address = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    UnixDatagram::unbound()?
        .send_to_addr(state.as_bytes(), &address)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reaches_path_and_abstract_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("orlop-notify-test-{}", std::process::id());
        let by_name =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let mut buffer = [0; 64];
        for (address, socket) in [
            (path.to_str().unwrap().to_owned(), by_path),
            (format!("@{name}"), by_name),
        ] {
            send(&address, "READY=1\nSTATUS=up").unwrap();
            let n = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..n], b"READY=1\nSTATUS=up");
        }
    }
}
