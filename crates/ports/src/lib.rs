//! Free ports of 127.0.0.1, for programs that others start with a port they were told.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

/// Where the kernel takes the local ports of outgoing connections from; its default where `/proc` does not say.
const EPHEMERAL: RangeInclusive<u16> = 32768..=60999;
/// Below it are the ports that programs are known by.
const LOWEST: u16 = 10240;
/// Ports that this process gave away.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port of 127.0.0.1 that is free now, and that was not given before.
///
/// The kernel's own choice (port 0) is not good enough where the port is bound a moment later: it comes from the range
/// of outgoing connections, and any connection that a guest or a test makes meanwhile may be given the same one. This
/// one is from outside of that range. Another listener can still take it: whoever binds it says so then, and the
/// caller tries again with another one.
pub fn free() -> io::Result<u16> {
    let ephemeral = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| range(&text))
        .unwrap_or(EPHEMERAL);
    let candidates: Vec<u16> = (LOWEST..=u16::MAX)
        .filter(|port| !ephemeral.contains(port))
        .collect();
    if candidates.is_empty() {
        return Err(io::Error::other(
            "net.ipv4.ip_local_port_range leaves no port that nothing else is given by itself",
        ));
    }
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let random = RandomState::new();
    for attempt in 0..1000u32 {
        let at = random.hash_one(attempt) % candidates.len() as u64;
        let Some(&port) = usize::try_from(at).ok().and_then(|at| candidates.get(at)) else {
            continue;
        };
        if !given.contains(&port) && is_free(port) {
            given.insert(port);
            return Ok(port);
        }
    }
    Err(io::Error::other(
        "no free port on 127.0.0.1 outside of net.ipv4.ip_local_port_range",
    ))
}

/// Whether nobody listens on this port of 127.0.0.1.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// The two numbers of `ip_local_port_range`.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Some(first..=last),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once_and_outgoing_connections_do_not_get_it() {
        let ephemeral = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let ephemeral = range(&ephemeral).unwrap();
        let ports: Vec<u16> = (0..50).map(|_| free().unwrap()).collect();
        let different: BTreeSet<_> = ports.iter().collect();
        assert_eq!(different.len(), 50);
        for port in &ports {
            assert!(!ephemeral.contains(port), "{port}");
        }
    }

    #[test]
    fn a_range_is_two_numbers() {
        assert_eq!(range("32768\t60999\n"), Some(32768..=60999));
        assert_eq!(range("32768"), None);
    }
}
