//! The way to the server: several addresses, a limit, a proxy.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use update_engine::fetch::{Fetcher, Patience, Want};

use crate::host::{Host, Release, noise};
use crate::server::{Mood, Server};

#[test]
fn when_one_address_dies_the_next_goes_on_where_it_was() {
    let (first, second) = (Server::start(), Server::start());
    let (one, two) = (Release::new("1"), Release::new("2"));
    let host = Host::new(&first, &[&one, &two]);
    two.publish(&first);
    two.publish(&second);
    first.with(|s| s.more = vec![second.file_url("2/")]);
    first.set(Mood::Dies(100_000));
    let daemon = host.daemon();
    daemon.good().update().unwrap();
    assert_eq!(daemon.status()["staged"]["version"], "2");
    // Each file begins at the first, and ends at the second.
    assert_eq!(first.with(|s| s.sent), 200_000);
    let all = two.uki.len() + two.payload.len();
    assert_eq!(second.with(|s| s.sent), all - 200_000, "not a byte twice");
    let asked = second.with(|s| s.requests.clone());
    assert_eq!(
        asked,
        ["GET 2/uki.efi 100000-", "GET 2/usr.erofs.zst 100000-"]
    );
}

#[test]
fn an_address_without_the_release_is_passed_over() {
    let (first, second) = (Server::start(), Server::start());
    let (one, two) = (Release::new("1"), Release::new("2"));
    let host = Host::new(&first, &[&one, &two]);
    two.publish(&second);
    first.with(|s| {
        s.offer = Some("2".into());
        s.more = vec![second.file_url("2/")];
    });
    let daemon = host.daemon();
    daemon.good().update().unwrap();
    assert_eq!(daemon.status()["staged"]["version"], "2");
    assert_eq!(first.with(|s| s.sent), 0);
}

#[test]
fn a_limit_is_kept() {
    const RATE: u64 = 200_000;
    let (server, content) = (Server::start(), noise("slow", 300_000));
    server.with(|s| drop(s.files.insert("file".into(), content.clone())));
    let want = Want {
        size: content.len() as u64,
        sha256: release::Sha256::of(&content),
    };
    let dir = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(Patience::default());
    fetcher.limit(Some(RATE));
    let (start, mut fastest) = (Instant::now(), 0.0_f64);
    let target = dir.path().join("file");
    fetcher
        .download(&server.file_url("file"), &target, want, &mut |done| {
            if done > 0 {
                fastest = fastest.max(done as f64 / start.elapsed().as_secs_f64());
            }
        })
        .unwrap();
    assert!(start.elapsed() >= Duration::from_millis(1_490));
    // All the while, not only on the whole.
    assert!(fastest <= RATE as f64 * 1.01, "{fastest} bytes/s");

    // Without it there is nothing that takes this time.
    std::fs::remove_file(&target).unwrap();
    fetcher.limit(None);
    let mut slept = true;
    for _ in 0..5 {
        let start = Instant::now();
        let _ = std::fs::remove_file(&target);
        fetcher
            .download(&server.file_url("file"), &target, want, &mut |_| ())
            .unwrap();
        slept &= start.elapsed() >= Duration::from_millis(1_490);
    }
    assert!(!slept);
}

#[test]
fn download_rate_is_read_from_update_conf() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    two.publish(&server);
    let bytes = two.uki.len() + two.payload.len();
    // Two seconds for all of it.
    let rate = (bytes / 2).max(4096);
    host.write("etc/coreos/update.conf", &format!("DOWNLOAD_RATE={rate}\n"));
    let daemon = host.daemon();
    daemon.good();
    let start = Instant::now();
    daemon
        .call("Update", json!({ "download_only": true }))
        .unwrap();
    let least = Duration::from_secs_f64(bytes as f64 / rate as f64 * 0.99);
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());
}

/// A proxy that resolves every name to one port, and notes what it was asked for.
struct Proxy {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn to(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, there) = (Arc::clone(&asked), server.port);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let log = Arc::clone(&log);
                std::thread::spawn(move || drop(forward(&stream, there, &log)));
            }
        });
        Self { port, asked }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

fn forward(client: &TcpStream, port: u16, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut input = BufReader::new(client.try_clone()?);
    let mut first = String::new();
    input.read_line(&mut first)?;
    log.lock().unwrap().push(first.trim().to_owned());
    let mut server = TcpStream::connect(("127.0.0.1", port))?;
    if first.starts_with("CONNECT ") {
        let mut line = String::new();
        while input.read_line(&mut line)? > 0 && !line.trim().is_empty() {
            line.clear();
        }
        (&mut &*client).write_all(b"HTTP/1.1 200 connected\r\n\r\n")?;
    } else {
        // The absolute form of RFC 9112, 3.2.2.
        let mut words = first.split(' ');
        let (method, url) = (words.next().unwrap(), words.next().unwrap());
        let path = url.splitn(4, '/').nth(3).unwrap();
        write!(server, "{method} /{path} HTTP/1.1\r\n")?;
    }
    let (mut back, mut to) = (server.try_clone()?, client.try_clone()?);
    let answers = std::thread::spawn(move || {
        let _ = std::io::copy(&mut back, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let _ = std::io::copy(&mut input, &mut server);
    let _ = server.shutdown(Shutdown::Write);
    let _ = answers.join();
    Ok(())
}

#[test]
fn a_proxy_of_the_environment_is_used() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    two.publish(&server);
    server.with(|s| s.instead = Some("http://updates.invalid/2/".into()));
    // Nobody can resolve this but the proxy.
    host.write(
        "etc/coreos/update.conf",
        "SERVER=http://updates.invalid/v1/update/\n",
    );
    let proxy = Proxy::to(&server);
    let url = proxy.url();
    let daemon = host.daemon_with(&[("http_proxy", url.as_str())]);
    daemon.good().update().unwrap();
    assert_eq!(daemon.status()["staged"]["version"], "2");
    let asked = proxy.asked.lock().unwrap().clone();
    assert!(asked.len() >= 4, "{asked:?}");
    assert!(
        asked.iter().all(|line| line.contains("updates.invalid")),
        "{asked:?}"
    );
    drop(daemon);

    // Not for this one.
    proxy.asked.lock().unwrap().clear();
    let daemon = host.daemon_with(&[
        ("http_proxy", url.as_str()),
        ("no_proxy", "updates.invalid"),
    ]);
    daemon.call("Check", json!({})).unwrap_err();
    assert_eq!(proxy.asked.lock().unwrap().len(), 0);
}
