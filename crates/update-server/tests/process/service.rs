//! Starting, stopping, coming back, and serving files.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use release::omaha::Event;
use release::{Channel, Sha256};
use rustix::process::Signal;

use crate::support::{Lab, TestHost, version};

#[test]
fn a_restart_keeps_everything() {
    let lab = Lab::new();
    let mut server = lab.start();
    let token = server.token.clone();
    let mode = std::fs::metadata(lab.path("data/token"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!((token.len(), mode & 0o777), (64, 0o600));
    server.publish(&lab.release("2"));
    let host = TestHost::new(&server, "node1", "1");
    host.tell(Event::failed(&version("2"), None, 1, "no network"));
    let before = (
        server.client().hosts(),
        server.client().releases(),
        server.client().channels(),
    );
    std::fs::write(lab.path("data/releases/2/.uki.efi.7.part"), "half").unwrap();
    let started = Instant::now();
    assert_eq!(server.signal(Signal::TERM), Some(0));
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "it waited for nobody"
    );

    // The second time without asking nicely: what was answered is on disk.
    let mut server = lab.start();
    assert_eq!(server.token, token);
    let after = (
        server.client().hosts(),
        server.client().releases(),
        server.client().channels(),
    );
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
    assert!(
        !lab.path("data/releases/2/.uki.efi.7.part").exists(),
        "an interrupted upload is left"
    );
    TestHost::new(&server, "node2", "1").tell(Event::staged(&version("2")));
    assert_eq!(server.signal(Signal::KILL), None);

    let mut server = lab.start();
    let names: Vec<_> = server
        .client()
        .hosts()
        .unwrap()
        .into_iter()
        .filter_map(|host| host.hostname)
        .collect();
    assert_eq!(names, ["node1", "node2"]);
    assert_eq!(
        TestHost::new(&server, "node1", "1").offered(),
        "-",
        "it forgot the failure"
    );
    assert_eq!(server.signal(Signal::INT), Some(0));
}

fn failing(command: &mut Command) -> (Option<i32>, String) {
    let output = command.env("RUST_LOG", "off").output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_start_that_fails_says_why() {
    let lab = Lab::new();
    let server = lab.start();
    let elsewhere = Lab::new();
    let start =
        |data: &str, keys: &str, listen: &str| failing(&mut elsewhere.command(listen, data, keys));
    let (code, message) = start("data", "keys", &server.address);
    assert_eq!(code, Some(3));
    assert_eq!(
        message,
        format!(
            "update-server: the address {} is in use by another program\n\
             hint: stop the other program, or choose a port with --listen 127.0.0.1:8091\n",
            server.address
        )
    );
    let (code, message) = start("data", "nokeys", "127.0.0.1:0");
    assert_eq!(code, Some(1));
    assert!(
        message.contains("the key directory") && message.contains("hint: --keys"),
        "{message}"
    );
    let (code, message) = start("data", "keys", "nowhere");
    assert_eq!(code, Some(1));
    assert!(
        message.starts_with("update-server: cannot listen on nowhere: "),
        "{message}"
    );

    let (code, message) = failing(&mut lab.command("127.0.0.1:0", "data", "keys"));
    assert_eq!(code, Some(4));
    assert!(
        message.contains("another update-server uses the data directory"),
        "{message}"
    );

    std::fs::create_dir_all(elsewhere.path("data")).unwrap();
    std::fs::write(
        elsewhere.path("data/server.db"),
        "this is no database, but long enough",
    )
    .unwrap();
    let (code, message) = start("data", "keys", "127.0.0.1:0");
    assert_eq!(code, Some(1));
    assert!(
        message.contains("cannot use the database") && message.contains("not a database"),
        "{message}"
    );
}

#[test]
fn downloads_resume_where_they_stopped() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    let path = "/releases/2/usr.erofs.zst";
    let get = |headers: &[(&str, &str)]| server.request_all("GET", path, headers, b"");
    let (status, headers, whole) = get(&[]);
    let digest = Sha256::of(&whole);
    let etag = format!("\"{digest}\"");
    assert_eq!(
        (status, headers["etag"].to_str().unwrap()),
        (200, etag.as_str())
    );
    assert_eq!(
        headers["repr-digest"].to_str().unwrap(),
        format!("sha-256=:{}:", digest.to_base64())
    );
    assert_eq!(headers["accept-ranges"], "bytes");

    let (status, headers, rest) = get(&[("range", "bytes=1000-"), ("if-range", &etag)]);
    assert_eq!((status, &rest[..]), (206, &whole[1000..]));
    assert_eq!(
        headers["content-range"].to_str().unwrap(),
        format!("bytes 1000-{}/{}", whole.len() - 1, whole.len())
    );
    assert_eq!(get(&[("range", "bytes=5-9")]).2, whole[5..10]);
    // Another file's rest is of no use.
    let (status, _, all) = get(&[("range", "bytes=1000-"), ("if-range", "\"other\"")]);
    assert_eq!((status, all.len()), (200, whole.len()));
    assert_eq!(get(&[("range", "bytes=99999999-")]).0, 416);
    assert_eq!(get(&[("if-none-match", &etag)]).0, 304);
    let (status, headers, body) = server.request_all("HEAD", path, &[], b"");
    assert_eq!((status, body.len()), (200, 0));
    assert_eq!(
        headers["content-length"].to_str().unwrap(),
        whole.len().to_string()
    );

    // A file that went missing on the server's disk is the server's fault, and says so.
    std::fs::remove_file(lab.path("data/releases/2/usr.erofs.zst")).unwrap();
    assert!(
        server
            .refused("GET", path, b"")
            .starts_with("500 usr.erofs.zst of release 2 cannot be read from")
    );
}

#[test]
fn a_slow_download_does_not_keep_the_server_from_stopping() {
    use std::io::{Read as _, Write as _};
    let lab = Lab::new();
    let mut server = lab.start();
    server.publish(&lab.release_with("2", &"much of it ".repeat(100), &lab.key));
    let mut stream = std::net::TcpStream::connect(&server.address).unwrap();
    write!(
        stream,
        "GET /releases/2/usr.erofs.zst HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    .unwrap();
    let mut some = [0; 100];
    stream.read_exact(&mut some).unwrap();
    let started = Instant::now();
    assert_eq!(server.signal(Signal::TERM), Some(0));
    assert!(
        started.elapsed() < Duration::from_secs(25),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn small_things() {
    let lab = Lab::new();
    let server = lab.start();
    assert_eq!(server.client().health().unwrap().status, "ok");
    assert!(
        server
            .refused("GET", "/nothing/here", b"")
            .starts_with("404 there is nothing at this")
    );
    let channels = server.client().channels().unwrap();
    let names: Vec<_> = channels.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, Channel::WELL_KNOWN);
    let (status, headers, css) = server.request_all("GET", "/dashboard.css", &[], b"");
    assert_eq!(
        (status, headers["content-type"].to_str().unwrap()),
        (200, "text/css; charset=utf-8")
    );
    assert!(
        String::from_utf8(css)
            .unwrap()
            .contains("prefers-color-scheme: dark")
    );
    let (_, page) = server.request("GET", "/", &[], b"");
    let page = String::from_utf8(page).unwrap();
    assert!(page.contains("orlop release publish") && page.contains(&server.url("/v1/update/")));
}
