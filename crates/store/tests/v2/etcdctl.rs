//! Debian's `etcdctl`, both APIs, against Debian's etcd and against our program. What it prints and how it ends is
//! compared, after what differs between any two servers has been made alike.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use super::{align, http, peer};

const PATIENCE: Duration = Duration::from_secs(60);

/// Fields of JSON and of `-w fields` that differ between any two servers.
const VOLATILE: [&str; 15] = [
    "cluster_id",
    "member_id",
    "raft_term",
    "ClusterID",
    "MemberID",
    "RaftTerm",
    "version",
    "dbSize",
    "dbSizeInUse",
    "leader",
    "raftIndex",
    "raftTerm",
    "raftAppliedIndex",
    "ID",
    "hash",
];

/// A server, and what runs against it.
struct Side {
    etcdctl: PathBuf,
    server: peer::Peer,
    running: HashMap<String, Running>,
}

struct Running {
    process: Child,
    lines: Receiver<String>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Side {
    fn command(&self, line: &str) -> Command {
        let (api, rest) = line.split_once(' ').unwrap();
        let mut command = Command::new(&self.etcdctl);
        let endpoint = match api {
            "2" => format!("http://{}", self.server.address),
            _ => self.server.address.clone(),
        };
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("ETCDCTL_API", api)
            .arg("--endpoints")
            .arg(endpoint)
            .args(words(&rest.replace("ADDR", &self.server.address)));
        command
    }

    fn run(&self, line: &str, input: &str) -> String {
        let mut child = self
            .command(line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that reads nothing may be gone already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| alike(&String::from_utf8_lossy(bytes), &self.server.address);
        format!(
            "exit {:?}\n{}{}",
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr)
        )
    }

    fn start(&mut self, name: &str, line: &str) {
        let mut process = self
            .command(line)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = follow(process.stdout.take().unwrap());
        if line.starts_with("2 ") {
            // Version 2 does not say when it listens; the server knows.
            let address = &self.server.address;
            let listens = || {
                let stats = http::try_send(address, "GET", "/v2/stats/store", &[], b"").unwrap();
                !stats.body.contains("\"watchers\":0")
            };
            let deadline = std::time::Instant::now() + PATIENCE;
            while !listens() && std::time::Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        self.running.insert(name.into(), Running { process, lines });
    }

    fn lines(&self, name: &str, count: usize) -> String {
        let running = &self.running[name];
        let mut text = String::new();
        for _ in 0..count {
            match running.lines.recv_timeout(PATIENCE) {
                Ok(line) => text += &format!("{line}\n"),
                Err(RecvTimeoutError::Timeout) => return text + "(nothing more in a minute)",
                Err(RecvTimeoutError::Disconnected) => return text + "(ended)",
            }
        }
        alike(&text, &self.server.address)
    }
}

fn follow(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Splits as a shell does.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (' ', None) => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Replaces addresses, identities, times and the values of volatile fields.
fn alike(text: &str, address: &str) -> String {
    let text = text.replace(address, "ADDR");
    let mut parts = text.split("127.0.0.1:");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text += "PEER";
        text += part.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    text.lines()
        // etcdctl's own log has times and addresses in it.
        .filter(|line| !line.starts_with("{\"level\"") && !line.contains("retrying of unary"))
        .map(line_alike)
        .collect()
}

fn line_alike(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        if end == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let (word, after) = rest.split_at(end);
        rest = after;
        let hexadecimal = word.bytes().all(|b| b.is_ascii_hexdigit());
        if hexadecimal && word.len() > 12 && word.len() != 17 {
            out.push_str("ID");
        } else {
            out.push_str(word);
        }
        if VOLATILE.contains(&word) {
            // The value that follows, up to what ends it.
            let value = rest.find([',', '}', ']']).unwrap_or(rest.len());
            if rest.starts_with("\":") || rest.starts_with("\" :") {
                out.push_str("\":…");
                rest = &rest[value..];
            }
        }
    }
    // Durations.
    let out = out
        .split(' ')
        .map(|word| {
            if word.ends_with("ms") || word.ends_with("µs") {
                "TIME"
            } else {
                word
            }
        })
        .collect::<Vec<_>>()
        .join(" ");
    out + "\n"
}

#[test]
fn etcdctl_notices_no_difference() {
    let programs = peer::programs();
    let side = |program: &Path, flags: &[&str]| Side {
        etcdctl: programs.join("etcdctl"),
        server: peer::Peer::start(program, flags),
        running: HashMap::new(),
    };
    let mut sides = [
        side(&programs.join("etcd"), &["--enable-v2"]),
        side(Path::new(env!("CARGO_BIN_EXE_orlop-store")), &[]),
    ];
    align::align(&sides[0].server.address, &sides[1].server.address);
    let mut differences = Vec::new();
    let mut compared = 0;
    let script = include_str!("etcdctl.txt");
    let mut lines = script
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .peekable();
    while let Some(line) = lines.next() {
        let mut input = String::new();
        while let Some(more) = lines.next_if(|line| line.starts_with('-')) {
            input += more[1..].trim_start();
            input += "\n";
        }
        let shown = if let Some((name, command)) = line.split_once("> ")
            && !name.contains(' ')
        {
            for side in &mut sides {
                side.start(name, command);
            }
            continue;
        } else if let Some((name, count)) = line.split_once("< ") {
            let count = count.parse().unwrap();
            sides.each_ref().map(|side| side.lines(name, count))
        } else {
            sides.each_ref().map(|side| side.run(line, &input))
        };
        compared += 1;
        let shown = shown.map(|text| {
            if !line.starts_with("2 ls") || line.contains("--sort") {
                return text;
            }
            // etcd lists in no order.
            let mut lines: Vec<&str> = text.lines().collect();
            lines.sort_unstable();
            lines.join("\n")
        });
        let [etcd, ours] = &shown;
        if etcd != ours {
            differences.push(format!("{line}\n--- etcd\n{etcd}\n--- ours\n{ours}"));
        }
    }
    assert!(
        differences.is_empty(),
        "{} of {compared} commands differ:\n\n{}",
        differences.len(),
        differences.join("\n\n")
    );
    println!("{compared} commands are the same");
}
