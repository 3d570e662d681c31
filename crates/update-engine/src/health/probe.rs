//! Looking at what runs, by what the kernel shows and by asking it.

use std::fs;
use std::io::Read as _;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use host::{child, under};

const PATIENCE: Duration = Duration::from_secs(10);

/// Where a store listens unless it was told otherwise.
const STORE: &str = "127.0.0.1:2379";
const DOCKER: &str = "/run/docker.sock";

/// There is a default route, for IPv4 or IPv6.
pub(super) fn has_way_out(root: &Path) -> bool {
    let read = |path| fs::read_to_string(under(root, path)).unwrap_or_default();
    let four = read("/proc/net/route");
    let six = read("/proc/net/ipv6_route");
    // Interface, destination, gateway, flags, …, mask (proc(5)).
    let four = four.lines().skip(1).any(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        matches!(words[..], [_, "00000000", _, _, _, _, _, "00000000", ..])
    });
    // Destination, its length, source, its length, next hop, …, interface. The kernel itself has an unreachable
    // default route on lo.
    let six = six.lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        let all = words.next().is_some_and(|d| d.bytes().all(|b| b == b'0'));
        all && words.next() == Some("00") && words.last() != Some("lo")
    });
    four || six
}

/// A unit with processes.
pub(super) fn runs(root: &Path, cgroup: &str) -> bool {
    let procs = under(root, format!("/sys/fs/cgroup/{cgroup}/cgroup.events"));
    fs::read_to_string(procs).is_ok_and(|text| text.contains("populated 1"))
}

pub(super) fn runs_any(root: &Path, slice: &str, prefix: &str) -> bool {
    let Ok(entries) = fs::read_dir(under(root, format!("/sys/fs/cgroup/{slice}"))) else {
        return false;
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .any(|name| name.starts_with(prefix) && runs(root, &format!("{slice}/{name}")))
}

pub(super) fn network(root: &Path) -> Result<(), String> {
    match has_way_out(root) {
        true => Ok(()),
        false => Err(format!("there is no default route ({})", links(root))),
    }
}

/// `eth0: no carrier, eth1: carrier`
fn links(root: &Path) -> String {
    let dir = under(root, "/sys/class/net");
    let mut links: Vec<String> = fs::read_dir(&dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name != "lo")
        .map(|name| {
            let carrier = fs::read_to_string(dir.join(&name).join("carrier"));
            match carrier.as_deref().map(str::trim) {
                Ok("1") => format!("{name}: carrier"),
                Ok(_) => format!("{name}: no carrier"),
                Err(_) => format!("{name}: down"),
            }
        })
        .collect();
    links.sort();
    match links.is_empty() {
        true => "there is no interface".into(),
        false => links.join(", "),
    }
}

pub(super) fn store(_root: &Path) -> Result<(), String> {
    if let Err(e) = child::run_within(
        Command::new("systemctl").args(["is-active", "--quiet", "etcd.service"]),
        PATIENCE,
    ) {
        let code = e.code();
        return Err(match code {
            Some(_) => "etcd.service is not active".into(),
            None => e.to_string(),
        });
    }
    // It may listen elsewhere, or want a certificate: then that it runs has to do.
    match ask_store(STORE) {
        Ok(answer) if answer.starts_with("HTTP/") && !says_healthy(&answer) => Err(format!(
            "the store says that it is not healthy: {}",
            answer.lines().last().unwrap_or_default().trim()
        )),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn says_healthy(answer: &str) -> bool {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let value: Result<serde_json::Value, _> = serde_json::from_str(body.trim());
    value.is_ok_and(|v| v["health"] == "true" || v["health"] == true)
}

fn ask_store(address: &str) -> std::io::Result<String> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    ask(stream, "/health")
}

fn ask(mut stream: impl std::io::Read + std::io::Write, path: &str) -> std::io::Result<String> {
    // 1.0: no chunks, and the end is the end.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(16 * 1024).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

pub(super) fn machined(_root: &Path) -> Result<(), String> {
    child::run_within(
        Command::new("machinectl").args(["list", "--no-legend", "--no-pager"]),
        PATIENCE,
    )
    .map(drop)
    .map_err(|e| format!("machined does not answer: {e}"))
}

pub(super) fn docker(root: &Path) -> Result<(), String> {
    let ping = || -> std::io::Result<String> {
        let stream = UnixStream::connect(under(root, DOCKER))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        ask(stream, "/_ping")
    };
    match ping() {
        Ok(answer) if answer.lines().next().is_some_and(|l| l.contains(" 200 ")) => Ok(()),
        Ok(answer) => Err(format!(
            "docker does not answer: {}",
            answer.lines().next().unwrap_or_default()
        )),
        Err(e) => Err(format!("docker does not answer: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixListener;

    fn at(path: &str, text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        dir
    }

    #[test]
    fn default_routes() {
        let check = |path: &str, text: &str, expect: bool| {
            assert_eq!(has_way_out(at(path, text).path()), expect, "{text}");
        };
        let four = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n";
        let net = "eth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let out = "eth0\t00000000\t0202000A\t0003\t0\t0\t1024\t00000000\t0\t0\t0\n";
        check("proc/net/route", &format!("{four}{net}"), false);
        check("proc/net/route", &format!("{four}{net}{out}"), true);
        let zero = "0".repeat(32);
        let line = |hop: &str, interface: &str| {
            format!(
                "{zero} 00 {zero} 00 {hop} 00000400 00000001 00000000 00000003     {interface}\n"
            )
        };
        check("proc/net/ipv6_route", &line(&zero, "lo"), false);
        check(
            "proc/net/ipv6_route",
            &line("fe800000000000000000000000000001", "eth0"),
            true,
        );
    }

    #[test]
    fn what_has_processes() {
        let events = "sys/fs/cgroup/machine.slice/container-web.service/cgroup.events";
        let dir = at(events, "populated 1\nfrozen 0\n");
        assert!(runs_any(dir.path(), "machine.slice", "container-"));
        assert!(!runs_any(dir.path(), "machine.slice", "other-"));
        assert!(!runs(dir.path(), "system.slice/etcd.service"));
        fs::write(dir.path().join(events), "populated 0\nfrozen 0\n").unwrap();
        assert!(!runs_any(dir.path(), "machine.slice", "container-"));
    }

    #[test]
    fn a_store_that_is_not_healthy_says_so() {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n";
        assert!(says_healthy(&format!("{head}{{\"health\":\"true\"}}")));
        assert!(says_healthy(&format!("{head}{{\"health\":true}}\n")));
        assert!(!says_healthy(&format!("{head}{{\"health\":\"false\"}}")));
        assert!(!says_healthy("HTTP/1.1 503 no\r\n\r\n"));
    }

    #[test]
    fn docker_has_to_answer() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("run")).unwrap();
        assert!(
            docker(dir.path())
                .unwrap_err()
                .starts_with("docker does not answer")
        );
        let listener = UnixListener::bind(dir.path().join("run/docker.sock")).unwrap();
        let server = std::thread::spawn(move || {
            for answer in ["HTTP/1.0 200 OK\r\n\r\nOK", "HTTP/1.0 500 no\r\n\r\n"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                assert_eq!(lines.next().unwrap().unwrap(), "GET /_ping HTTP/1.0");
                while !lines.next().unwrap().unwrap().is_empty() {}
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        docker(dir.path()).unwrap();
        assert_eq!(
            docker(dir.path()).unwrap_err(),
            "docker does not answer: HTTP/1.0 500 no"
        );
        server.join().unwrap();
    }
}
