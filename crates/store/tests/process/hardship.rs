//! What the world does to a server: full disks, nonsense, clients that begin and never end, crowds.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};

use crate::members::{Member, cluster};
use crate::{PATIENCE, get_patiently, put, put_patiently};

fn address(url: &str) -> String {
    url.split_once("://").unwrap().1.to_owned()
}

/// Sends bytes as they are; what came back until the server hung up or said nothing more.
fn raw(url: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address(url)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    // The server may hang up before it has read everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn post(url: &str, path: &str, kind: &str, body: &[u8]) -> String {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    raw(url, &[head.as_bytes(), body].concat())
}

struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn new(dir: &'a Path, size: &str) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        mount(dir, &format!("size={size}"));
        Self(dir)
    }
}

fn mount(dir: &Path, options: &str) {
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", options, "tmpfs"]);
    assert!(command.arg(dir).status().unwrap().success());
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_the_member_and_loses_nothing() {
    if !geteuid().is_root() {
        eprintln!("left out: only root may mount");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    let mounted = Mount::new(&disk, "56m");
    let place = cluster(dir.path(), 1)
        .remove(0)
        .with_data(disk.join("data"));
    let mut member = Member::start(&place, &[]);
    put_patiently(&place, "first", "1").await;
    let value = "x".repeat(1 << 20);
    let mut acknowledged = Vec::new();
    while member.lives() {
        let key = format!("k/{:04}", acknowledged.len());
        match put(&place, &key, &value).await {
            Some(_) => acknowledged.push(key),
            None => break,
        }
        assert!(acknowledged.len() < 200, "the disk never fills");
    }
    assert!(!acknowledged.is_empty());
    assert_eq!(member.ended(PATIENCE), Some(false), "it must not go on");
    let log = std::fs::read_to_string(place.log()).unwrap();
    assert!(log.contains("No space left on device"), "{log}");
    mount(&disk, "remount,size=400m");
    let member = Member::start(&place, &[]);
    for key in &acknowledged {
        // One by one: together they are more than a client takes.
        let found = get_patiently(&place, key, "").await;
        assert!(found.get(key) == Some(&value), "{key} is lost");
    }
    put_patiently(&place, "after", "1").await;
    member.kill();
    drop(mounted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_is_refused_and_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let place = &cluster(dir.path(), 1)[0];
    let mut member = Member::start(place, &[]);
    put_patiently(place, "a", "1").await;
    let url = &place.client;
    let json = "application/json";
    for body in [
        "{",
        "[]",
        "{\"key\":5}",
        "{\"key\":\"%%%\"}",
        "nul\0",
        "{\"lease\":\"x\"}",
    ] {
        let said = post(url, "/v3/kv/put", json, body.as_bytes());
        assert!(said.starts_with("HTTP/1.1 400"), "{body}: {said}");
        assert!(said.contains("\"code\":3"), "{body}: {said}");
    }
    // A tower of brackets must not bring the stack down.
    let deep = "[".repeat(1 << 20);
    assert!(post(url, "/v3/kv/txn", json, deep.as_bytes()).starts_with("HTTP/1.1 400"));
    let form = "application/x-www-form-urlencoded";
    let said = post(url, "/v2/keys/x", form, b"value=%zz");
    assert!(said.contains("\"errorCode\":210"), "{said}");
    // Frames of gRPC: no protobuf, a length that lies, cut off.
    for body in [
        &b"\0\0\0\0\x03\xff\xff\xff"[..],
        b"\0\xff\xff\xff\xff",
        b"\x07",
        b"\0\0\0\0\x02\x0a\xff",
    ] {
        let said = post(url, "/etcdserverpb.KV/Put", "application/grpc", body);
        assert!(!said.contains("grpc-status: 0"), "{said}");
    }
    raw(url, b"\x16\x03\x01\x02\x00\x01");
    raw(url, &[0xff; 4096]);
    raw(
        url,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x08\x63\0\0\0\0\0",
    );
    let said = put(place, "big", &"x".repeat(2 << 20)).await;
    assert_eq!(said, None, "more than --max-request-bytes was taken");
    assert_eq!(get_patiently(place, "big", "").await.len(), 0);
    assert_eq!(get_patiently(place, "a", "").await["a"], "1");
    assert!(member.lives());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_handshakes_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut place = cluster(dir.path(), 1).remove(0);
    place.client = place.client.replace("http://", "https://");
    let mut member = Member::start(&place, &["--auto-tls"]);
    let health = || {
        let url = format!("{}/health", place.client);
        let mut curl = Command::new("curl");
        curl.args(["-ksS", "--max-time", "30", &url]);
        String::from_utf8_lossy(&curl.output().unwrap().stdout).into_owned()
    };
    let since = Instant::now();
    while !health().contains("true") {
        assert!(since.elapsed() < PATIENCE && member.lives());
        std::thread::sleep(Duration::from_millis(50));
    }
    let half: Vec<TcpStream> = (0..500)
        .map(|i| {
            let mut stream = TcpStream::connect(address(&place.client)).unwrap();
            // Nothing at all, or the begin of a greeting.
            if i % 2 == 0 {
                stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00").unwrap();
            }
            stream
        })
        .collect();
    assert!(health().contains("true"));
    drop(half);
    assert!(health().contains("true") && member.lives());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_are_carried() {
    const CROWD: u64 = 10_000;
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < CROWD + 500) {
        eprintln!("left out: too few file descriptors are allowed here: {limit:?}");
        return;
    }
    let raised = Rlimit {
        current: Some(CROWD + 500),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let place = &cluster(dir.path(), 1)[0];
    let mut member = Member::start(place, &[]);
    put_patiently(place, "a", "1").await;
    let crowd: Vec<TcpStream> = (0..CROWD)
        .map(|_| TcpStream::connect(address(&place.client)).unwrap())
        .collect();
    put_patiently(place, "b", "2").await;
    assert_eq!(get_patiently(place, "a", "c").await.len(), 2);
    // Still connected, all of them: there is nothing to read yet, and no end either.
    for mut stream in crowd {
        stream.set_nonblocking(true).unwrap();
        let end = stream.read(&mut [0; 1]);
        assert!(
            end.as_ref()
                .is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock),
            "{end:?}"
        );
    }
    assert!(member.lives());
}
