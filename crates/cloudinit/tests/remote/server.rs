//! A web server of a few lines, and a network namespace to have it in.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;

const MARK: &str = "CLOUDINIT_TEST_NAMESPACE";

/// `true` inside of a namespace that has these addresses. Outside, runs the test `name` in one and passes
/// its result on. Needs root, or a kernel that lets users make namespaces.
pub(crate) fn inside(name: &str, addresses: &[&str]) -> bool {
    if std::env::var_os(MARK).is_some() {
        let ip = |arguments: &[&str]| {
            let status = Command::new("ip").args(arguments).status();
            let status = status.expect("ip, of the Debian package iproute2");
            assert!(status.success(), "ip {}", arguments.join(" "));
        };
        ip(&["link", "set", "lo", "up"]);
        for address in addresses {
            let (length, dad): (_, &[&str]) = match address.contains(':') {
                true => ("128", &["nodad"]),
                false => ("32", &[]),
            };
            let address = format!("{address}/{length}");
            ip(&[&["address", "add", &address, "dev", "lo"], dad].concat());
        }
        return true;
    }
    let root = rustix::process::geteuid().is_root();
    let unshare = || {
        let mut command = Command::new("unshare");
        if !root {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--net", "--mount", "--"]);
        command
    };
    if !root && !unshare().arg("true").status().is_ok_and(|s| s.success()) {
        eprintln!("{name}: not root and no user namespaces here: not run");
        return false;
    }
    let status = unshare()
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(MARK, "1")
        .status()
        .expect("unshare, of the Debian package util-linux");
    assert!(status.success(), "{name} failed in its namespace");
    false
}

pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    headers: &'a [(String, String)],
    pub(crate) body: &'a str,
    /// The port that the client speaks from.
    pub(crate) port: u16,
}

impl Request<'_> {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// Lives until the process ends.
pub(crate) struct Server;

impl Server {
    pub(crate) fn start(
        address: &str,
        answer: impl Fn(&Request<'_>) -> (u16, String) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let answer = Arc::clone(&answer);
                std::thread::spawn(move || serve(&stream.unwrap(), &*answer));
            }
        });
        Self
    }
}

/// One request a connection; a client that hangs up is its own business.
fn serve(stream: &TcpStream, answer: &dyn Fn(&Request<'_>) -> (u16, String)) {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    if reader.read_line(&mut first).is_err() {
        return;
    }
    let mut words = first.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return;
    };
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(_) if line.trim().is_empty() => break,
            Ok(_) => {}
            Err(_) => return,
        }
        if let Some((name, value)) = line.trim().split_once(':') {
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    let mut request = Request {
        method,
        path,
        headers: &headers,
        body: "",
        port: stream.peer_addr().map_or(0, |address| address.port()),
    };
    let length = request.header("content-length");
    let length = length.and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    request.body = &body;
    let (status, text) = answer(&request);
    let length = text.len();
    let mut out = stream;
    let _ = write!(
        out,
        "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
    );
}
