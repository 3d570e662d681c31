//! Every source on the network against a service on its real address, in a network namespace of its own.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step is a failed test; clippy only knows test functions, not their helpers"
)]

mod clouds;
mod server;

use std::path::Path;
use std::time::{Duration, Instant};

use cloudinit::datasource::Found;
use cloudinit::imports::{Import, Purpose};
use cloudinit::network::render;
use cloudinit::remote::{self, Fetched, Remote, Request};
use server::{Server, inside};

/// Long enough for a busy machine; nothing waits for it to pass but the tests of what is dead.
const BUDGET: Duration = Duration::from_secs(60);

fn fetch(source: Remote) -> Fetched {
    fetch_from(source, Path::new("/nonexistent"), BUDGET)
}

fn fetch_from(source: Remote, root: &Path, budget: Duration) -> Fetched {
    let request = Request {
        sources: vec![source],
        ..Request::default()
    };
    remote::fetch(&request, root, budget)
}

/// What was found, a line for each part.
fn show(fetched: Fetched) -> String {
    let Some(found) = fetched.found else {
        return fetched.tried.join("\n");
    };
    let Found {
        origin,
        user_data,
        metadata,
        findings,
        forget: _,
        silent: _,
    } = found;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let mut lines = vec![
        origin,
        format!("user-data {:?}", user_data.map(text)),
        format!("id {:?}", metadata.instance_id.unwrap_or_default()),
        format!("host name {:?}", metadata.hostname.unwrap_or_default()),
    ];
    lines.extend(metadata.ssh_keys.iter().map(|key| format!("key {key}")));
    let addresses = metadata.addresses.iter();
    lines.extend(addresses.map(|(name, value)| format!("{name} {value}")));
    lines.extend(findings.iter().map(ToString::to_string));
    for file in metadata.network.iter().flat_map(render) {
        let text = file.text.trim_end().replace('\n', "\n  ");
        lines.push(format!("{}\n  {text}", file.name));
    }
    lines.join("\n")
}

const IGNITION: &str = r#"{"ignition": {"version": "3.4.0"}, "storage": {"files": [{"path": "/etc/x", "contents": {
  "source": "http://192.0.2.1/more", "httpHeaders": [{"name": "x-key", "value": "k"}]}}]}}"#;

#[test]
fn a_file_at_a_url() {
    if !inside("a_file_at_a_url", &["192.0.2.1"]) {
        return;
    }
    let _server = Server::start("192.0.2.1:80", |request| match request.path {
        "/config" => (200, "#cloud-config\n".to_owned()),
        "/keys" => (200, "# mine\nssh-ed25519 A me\n".to_owned()),
        "/more" if request.header("x-key") == Some("k") => (200, "more".to_owned()),
        "/include" => (
            200,
            "#include\nhttp://192.0.2.1/ignition\nhttp://192.0.2.1/include\n".to_owned(),
        ),
        "/ignition" => (200, IGNITION.to_owned()),
        "/api" => (200, r#"[{"id": 1, "key": "ssh-rsa B"}]"#.to_owned()),
        "/seed/meta-data" => (200, "instance-id: i\nlocal-hostname: h\n".to_owned()),
        "/seed/user-data" => (200, "#!/bin/sh\n".to_owned()),
        "/seed/network-config" => (200, "version: 1\nconfig: []\n".to_owned()),
        _ => (404, String::new()),
    });
    let url = |path: &str, sha256: Option<&str>| Remote::Url {
        url: format!("http://192.0.2.1/{path}"),
        sha256: sha256.map(str::to_owned),
    };
    let good = "d2fa3d1d42a1ac0b2bb7ec49a77e2b67a1ee8d5e8c2e1d9e4e9a9b9f4b8e5a6f";
    let right = cloudinit::plan::sha256(b"#cloud-config\n");
    let check = |source: Remote, expect: &str| {
        let shown = show(fetch(source));
        assert!(shown.starts_with(expect), "{shown}\ninstead of {expect}");
    };
    let found = "url http://192.0.2.1/config\nuser-data Some(\"#cloud-config\\n\")";
    check(url("config", None), found);
    check(url("config", Some(&right)), found);
    check(url(&format!("config#sha256={right}"), None), found);
    let wrong =
        format!("http://192.0.2.1/config: its SHA-256 is {right}, but {good} was asked for");
    check(url("config", Some(good)), &wrong);
    check(
        url(&format!("config#sha256={good}"), None),
        &format!("http://192.0.2.1/config#sha256={good}: its SHA-256 is {right}"),
    );
    check(url("none", None), "http://192.0.2.1/none: not found");
    check(
        Remote::NoCloud {
            seed: "http://192.0.2.1/seed/".to_owned(),
        },
        "nocloud http://192.0.2.1/seed/\nuser-data Some(\"#!/bin/sh\\n\")\nid \"i\"\nhost name \"h\"",
    );
    let request = Request {
        imports: vec![
            Import::new("http://192.0.2.1/keys", Purpose::Keys),
            Import::new("http://192.0.2.1/api", Purpose::Keys),
            Import::new("http://192.0.2.1/none", Purpose::Keys),
        ],
        ..Request::default()
    };
    let fetched = remote::fetch(&request, Path::new("/nonexistent"), BUDGET);
    assert_eq!(
        fetched.imported.keys["http://192.0.2.1/keys"],
        ["ssh-ed25519 A me"]
    );
    assert_eq!(fetched.imported.keys["http://192.0.2.1/api"], ["ssh-rsa B"]);
    assert_eq!(fetched.tried, ["http://192.0.2.1/none: not found"]);
    // What is named in what is named, once each, and with the headers that were asked for.
    let fetched = fetch(url("include", None));
    let contents: Vec<&str> = fetched
        .imported
        .contents
        .keys()
        .map(String::as_str)
        .collect();
    let expect = [
        "http://192.0.2.1/ignition",
        "http://192.0.2.1/include",
        "http://192.0.2.1/more",
    ];
    assert_eq!(contents, expect);
    assert_eq!(
        fetched.imported.contents["http://192.0.2.1/more"].bytes(),
        b"more"
    );
}

#[test]
fn a_service_that_is_slow_to_start_is_waited_for() {
    if !inside(
        "a_service_that_is_slow_to_start_is_waited_for",
        &["192.0.2.1"],
    ) {
        return;
    }
    let count = std::sync::atomic::AtomicU32::new(0);
    let _server = Server::start("192.0.2.1:80", move |_| {
        match count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => (503, String::new()),
            1 => (429, String::new()),
            _ => (200, "#!/bin/sh\n".to_owned()),
        }
    });
    let source = Remote::Url {
        url: "http://192.0.2.1/".to_owned(),
        sha256: None,
    };
    assert!(fetch(source).found.is_some());
}

/// The budget is for all of it, and what was tried is told.
#[test]
fn a_dead_service_ends() {
    if !inside("a_dead_service_ends", &["169.254.169.254"]) {
        return;
    }
    let budget = Duration::from_secs(5);
    let shown = show(fetch_from(Remote::OpenStack, Path::new("/"), budget));
    assert!(
        shown.starts_with("openstack: http://169.254.169.254: "),
        "{shown}"
    );
    assert!(shown.contains("refused"), "{shown}");
    let _server = Server::start("169.254.169.254:80", |_| (500, String::new()));
    let shown = show(fetch_from(Remote::Hetzner, Path::new("/"), budget));
    let expect = "hetzner: http://169.254.169.254/hetzner/v1/metadata: HTTP status 500 (";
    assert!(shown.starts_with(expect), "{shown}");
    let shown = show(fetch_from(Remote::Gce, Path::new("/"), Duration::ZERO));
    assert!(
        shown.ends_with("no time was left for it (0 attempts)"),
        "{shown}"
    );
}

/// Takes every question and answers it when nobody waits any more.
fn hang() -> (u16, String) {
    std::thread::sleep(Duration::from_secs(60));
    (200, "too late".to_owned())
}

/// Neither does what hangs last longer than the budget, all of it together, nor does it take the time of what answers.
#[test]
fn imports_that_hang_end_with_the_budget() {
    if !inside("imports_that_hang_end_with_the_budget", &["192.0.2.1"]) {
        return;
    }
    let _server = Server::start("192.0.2.1:80", |request| match request.path {
        "/keys" => (200, "ssh-ed25519 A me\n".to_owned()),
        _ => hang(),
    });
    let import = |name: &str| Import::new(format!("http://192.0.2.1/{name}"), Purpose::Keys);
    let request = Request {
        imports: ["a", "b", "c", "keys", "d"].map(import).to_vec(),
        ..Request::default()
    };
    let start = Instant::now();
    let fetched = remote::fetch(&request, Path::new("/"), Duration::from_secs(6));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    let keys: Vec<&str> = fetched.imported.keys.keys().map(String::as_str).collect();
    assert_eq!(keys, ["http://192.0.2.1/keys"]);
    assert_eq!(fetched.tried.len(), 4, "{:?}", fetched.tried);
}

#[test]
fn what_a_source_gave_is_there_before_its_imports() {
    if !inside(
        "what_a_source_gave_is_there_before_its_imports",
        &["192.0.2.1"],
    ) {
        return;
    }
    let _server = Server::start("192.0.2.1:80", |request| match request.path {
        "/seed/meta-data" => (200, "instance-id: i\n".to_owned()),
        "/seed/user-data" => (200, "#include\nhttp://192.0.2.1/more\n".to_owned()),
        "/seed/network-config" => (404, String::new()),
        _ => hang(),
    });
    let dir = tempfile::tempdir().unwrap();
    let url = "http://192.0.2.1/config".to_owned();
    let seed = "http://192.0.2.1/seed/".to_owned();
    let request = Request {
        // What hangs before it leaves it some time, too.
        sources: vec![Remote::Url { url, sha256: None }, Remote::NoCloud { seed }],
        ..Request::default()
    };
    request.write(dir.path()).unwrap();
    let root = dir.path().to_owned();
    let budget = Duration::from_secs(10);
    let phase = std::thread::spawn(move || remote::run(&root, budget).unwrap().unwrap());
    let found = loop {
        let over = phase.is_finished();
        if let Some(found) = Fetched::read(dir.path()).and_then(|fetched| fetched.found) {
            assert!(!over, "it is there only now");
            break found;
        }
        assert!(!over, "nothing came: {:?}", phase.join().unwrap().tried);
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(found.metadata.instance_id.as_deref(), Some("i"));
    let tried = phase.join().unwrap().tried;
    assert!(
        tried
            .iter()
            .any(|it| it.starts_with("http://192.0.2.1/more: ")),
        "{tried:?}"
    );
}

#[test]
fn https_goes_through_curl() {
    if !inside("https_goes_through_curl", &["192.0.2.1"]) {
        return;
    }
    // No certificate, so it must fail; that it fails in curl is what is looked at.
    let _server = Server::start("192.0.2.1:443", |_| (200, String::new()));
    let source = Remote::Url {
        url: "https://192.0.2.1/".to_owned(),
        sha256: None,
    };
    let shown = show(fetch_from(source, Path::new("/"), Duration::from_secs(20)));
    assert!(
        shown.starts_with("https://192.0.2.1/: https://192.0.2.1/: curl: ("),
        "{shown}"
    );
}
