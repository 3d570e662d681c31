//! Hosts through their life, and what the operator sees of it.

use release::omaha::{Event, UpdateCheck};
use release::status::Health;
use release::{MANIFEST_FILE, Sha256, Slot};

use crate::support::{Lab, TestHost, version};

#[test]
fn a_host_takes_a_release_and_leaves_the_next() {
    let lab = Lab::new();
    let server = lab.start();
    let mut host = TestHost::new(&server, "node1", "1");
    assert_eq!(host.offered(), "-", "nothing is published");
    let built = lab.release("2");
    server.publish(&built);

    // The offer leads to exactly the published bytes.
    let UpdateCheck::Offer(offer) = host.check() else {
        panic!("no offer")
    };
    assert_eq!(offer.version, version("2"));
    let names: Vec<_> = offer
        .packages
        .iter()
        .map(|p| (p.name.as_str(), p.required))
        .collect();
    assert_eq!(
        names,
        [
            (MANIFEST_FILE, true),
            ("usr.erofs.zst", true),
            ("uki.efi", true),
            ("sbom.spdx.json", false)
        ]
    );
    let base = offer.codebases[0].strip_prefix(&server.url("")).unwrap();
    for package in &offer.packages {
        let (status, bytes) = server.request("GET", &format!("{base}{}", package.name), &[], b"");
        assert_eq!((status, bytes.len() as u64), (200, package.size));
        assert_eq!(Some(Sha256::of(&bytes)), package.sha256);
        assert_eq!(bytes, std::fs::read(built.join(&package.name)).unwrap());
    }

    host.tell(Event::download_started(&version("2")));
    host.tell(Event::downloaded(&version("2")));
    host.tell(Event::staged(&version("2")));
    assert_eq!(
        server.client().hosts().unwrap()[0].available,
        Some(version("2"))
    );
    host.runs("2");
    host.tell(Event::good(&version("2"), &version("1")));
    assert_eq!(host.offered(), "-", "it runs the newest");

    let shown = server.client().hosts().unwrap().remove(0);
    assert_eq!(shown.machine_id, host.app.machine_id);
    assert_eq!(
        (shown.hostname.as_deref(), shown.version.as_str()),
        (Some("node1"), "2")
    );
    assert_eq!(
        (shown.slot, shown.health),
        (Some(Slot::B), Some(Health::Healthy))
    );
    assert_eq!((shown.channel.as_str(), shown.available), ("stable", None));
    assert_eq!(shown.last_event.unwrap().event, "good");

    // A broken release: told once, never offered to this host again, but to others.
    let id = server.client().publish(
        &lab.release("3"),
        &release::Channel::stable(),
        &mut |_, _| (),
    );
    let id = id.unwrap().id;
    assert_eq!(host.offered(), "3");
    host.tell(Event::download_failed(&version("3"), 1, "connection reset"));
    assert_eq!(host.offered(), "3", "a failed download is no verdict");
    host.tell(Event::failed(
        &version("3"),
        Some(id),
        1,
        "sshd.service failed\nin its third try",
    ));
    assert_eq!(host.offered(), "-");
    assert_eq!(TestHost::new(&server, "node2", "2").offered(), "3");

    let shown = server.client().hosts().unwrap().remove(0);
    assert_eq!(shown.failed[0].version, version("3"));
    assert_eq!(
        shown.failed[0].reason,
        "sshd.service failed\nin its third try"
    );
    assert_eq!((shown.failed[0].id, shown.available), (Some(id), None));
    let events = server.client().events(Some(&host.app.machine_id)).unwrap();
    let told: Vec<_> = events.iter().rev().map(|e| e.event.as_str()).collect();
    assert_eq!(
        told,
        [
            "download started",
            "downloaded",
            "staged",
            "good",
            "download failed",
            "failed"
        ]
    );
    assert!(server.client().events(Some("nobody")).unwrap().is_empty());

    // The next release is another matter, and so is a cleared failure.
    host.tell(Event::failures_cleared());
    assert_eq!(host.offered(), "3");
    host.tell(Event::failed(
        &version("3"),
        None,
        1,
        "again, and nobody told the id",
    ));
    assert_eq!(host.offered(), "-");

    // Forced by the operator, it is; once it is good, it failed no more.
    host.app.force = true;
    assert_eq!(host.offered(), "3");
    host.runs("3");
    assert_eq!(host.offered(), "-", "it runs");
    host.tell(Event::good(&version("3"), &version("2")));
    host.app.force = false;
    assert_eq!(server.client().hosts().unwrap()[0].failed, []);

    server.publish(&lab.release("4"));
    assert_eq!(host.offered(), "4");
}

#[test]
fn channels_are_followed_and_older_is_never_offered() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    let mut host = TestHost::new(&server, "node1", "1");
    host.app.track = "beta".into();
    assert_eq!(host.offered(), "-");
    server
        .client()
        .set_channel(&"beta".parse().unwrap(), &version("2"))
        .unwrap();
    assert_eq!(host.offered(), "2");
    host.app.track = "nightly".into();
    assert_eq!(host.offered(), "-");
    let state = server
        .client()
        .set_channel(&"nightly".parse().unwrap(), &version("2"))
        .unwrap();
    assert_eq!((state.version, state.hosts), (Some(version("2")), 1));
    assert_eq!(host.offered(), "2");
    for newer in ["2", "3", "2.1"] {
        host.app.version = newer.into();
        assert_eq!(host.offered(), "-", "at {newer}");
    }
    // A channel may go back; hosts then stay.
    server.publish(&lab.release("5"));
    server
        .client()
        .set_channel(&"stable".parse().unwrap(), &version("2"))
        .unwrap();
    host.app.track = "stable".into();
    host.app.version = "5".into();
    assert_eq!(host.offered(), "-");
    host.app.force = true;
    assert_eq!(host.offered(), "2", "unless the operator says so");
}

#[test]
fn strangers_are_answered_but_not_believed() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    let post = |xml: &str| {
        let (status, body) = server.request("POST", "/v1/update/", &[], xml.as_bytes());
        format!("{status} {}", String::from_utf8(body).unwrap())
    };
    let answer = post("<request protocol='3.0'>\n<app appid='x'/></request>");
    assert!(
        answer.starts_with("400") && answer.contains("line 2, column 1"),
        "{answer}"
    );
    assert!(post("\u{1}nonsense").starts_with("400"));
    assert!(post(&"<a>".repeat(200_000)).starts_with("413"));
    let other = post(
        "<request protocol='3.0'><app appid='{other}' version='1'><updatecheck/></app></request>",
    );
    assert!(
        other.contains(r#"appid="{other}" status="error-unknownApplication""#),
        "{other}"
    );

    // As Flatcar's own client writes it: braces, no machine id of ours, an event in between.
    let flatcar = post(
        "<request protocol='3.0' version='ue' ismachine='1'><os platform='CoreOS' version='Chateau' sp='1_x86_64'/>\
         <app appid='{e96281a6-d1af-4bde-9a0a-97b76e56dc57}' version='1.0.0' track='stable' machineid='abc' board='amd64-usr' oem='qemu'>\
         <ping active='1'/><updatecheck/><event eventtype='3' eventresult='0' errorcode='4'/></app></request>",
    );
    assert!(
        flatcar.contains(r#"<updatecheck status="ok">"#),
        "{flatcar}"
    );
    assert!(
        flatcar.contains(r#"<action event="postinstall" sha256="#),
        "{flatcar}"
    );

    // What a host calls itself stays text.
    let mut evil = TestHost::new(&server, "<script>alert(1)</script>", "1");
    evil.app.track = "\"><script>alert(2)</script>".into();
    evil.tell(Event::failed(
        &version("2"),
        None,
        1,
        "<img src=x onerror=alert(3)>",
    ));
    let (status, headers, page) = server.request_all("GET", "/", &[], b"");
    let page = String::from_utf8(page).unwrap();
    assert_eq!(status, 200);
    assert!(
        page.matches("<script").count() == 1 && !page.contains("<img"),
        "{page}"
    );
    assert!(
        page.contains("<script src=\"/dashboard.js\" defer>"),
        "{page}"
    );
    assert!(page.contains("&#60;script&#62;alert(1)"), "{page}");
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(
        policy.starts_with("default-src 'none'; style-src 'self'; script-src 'self';"),
        "{policy}"
    );

    // An id that cannot be one is answered and forgotten.
    let before = server.client().hosts().unwrap().len();
    let mut nameless = TestHost::new(&server, "x", "1");
    nameless.app.machine_id = "../../etc/passwd".into();
    assert_eq!(nameless.offered(), "2");
    assert_eq!(server.client().hosts().unwrap().len(), before);
}

#[test]
fn a_crowd_is_recorded_one_by_one() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    std::thread::scope(|scope| {
        for crowd in 0..8 {
            let server = &server;
            scope.spawn(move || {
                for number in 0..10 {
                    let host = TestHost::new(server, &format!("node-{crowd}-{number}"), "1");
                    assert_eq!(host.offered(), "2");
                    host.tell(Event::staged(&version("2")));
                }
            });
        }
    });
    let hosts = server.client().hosts().unwrap();
    assert_eq!(hosts.len(), 80);
    assert!(
        hosts
            .iter()
            .all(|h| h.last_event.as_ref().is_some_and(|e| e.event == "staged"))
    );
    assert_eq!(server.client().health().unwrap().hosts, 80);
}

#[test]
fn a_host_that_is_no_more_is_forgotten() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    let gone = TestHost::new(&server, "gone", "1");
    assert_eq!(gone.offered(), "2");
    gone.tell(Event::failed(&version("2"), None, 1, "no network"));
    TestHost::new(&server, "stays", "1").offered();
    // Its turn goes with a host, whether it had begun or not.
    let waiting = || {
        server.client().rollouts().unwrap()[0].waves[0]
            .tally
            .waiting()
    };
    for name in ["asked", "began"] {
        let host = TestHost::new(&server, name, "1");
        assert_eq!(host.offered(), "2");
        if name == "began" {
            host.tell(Event::staged(&version("2")));
        }
        assert_eq!(waiting(), 2);
        server.client().forget_host(&host.app.machine_id).unwrap();
        assert_eq!(waiting(), 1);
    }
    server.client().forget_host(&gone.app.machine_id).unwrap();
    let left: Vec<_> = server.client().hosts().unwrap();
    let names: Vec<_> = left
        .iter()
        .filter_map(|host| host.hostname.clone())
        .collect();
    assert_eq!(names, ["stays"]);
    assert_eq!(server.client().health().unwrap().hosts, 1);
    let again = server.client().forget_host(&gone.app.machine_id);
    assert!(again.unwrap_err().to_string().contains("is known"));
    // It is not dead after all, and a new host: what it left before is not held against it.
    assert_eq!(gone.offered(), "2");
}
