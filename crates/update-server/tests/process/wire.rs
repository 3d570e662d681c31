//! Omaha as other clients speak it: what Flatcar's update_engine and ue-rs send and need, byte for byte on the wire.

use release::omaha::{self, Event};
use release::{Channel, MANIFEST_FILE, Sha256};
use sha2::Digest as _;
use update_server::api::SetGroup;
use update_server::client::{ClientError, FlatcarFiles};
use update_server::rollout::{Cap, Policy};

use crate::support::{Lab, Running, TestHost, version};

fn channel(name: &str) -> Channel {
    name.parse().unwrap()
}

/// What update_engine sends, with `inside` in its app.
fn update_engine(machine: &str, running: &str, board: &str, inside: &str) -> String {
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<request protocol="3.0" version="update_engine-0.4.10" updaterversion="update_engine-0.4.10" installsource="scheduler" ismachine="1">
    <os version="Chateau" platform="CoreOS" sp="{running}_x86_64"></os>
    <app appid="{{{app}}}" version="{running}" track="stable" bootid="{{b00t}}" oem="qemu" oemversion="" alephversion="1" machineid="{machine}" machinealias="web1" lang="en-US" board="{board}" hardware_class="" delta_okay="false" >
        {inside}
    </app>
</request>
"#,
        app = omaha::APP_ID,
    )
}

/// What ue-rs sends: without braces, all on one line.
fn ue_rs(machine: &str, running: &str) -> String {
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?><request protocol="3.0" version="ue-rs-0.1.0" updaterversion="ue-rs-0.1.0" installsource="ondemandupdate" ismachine="1"><os version="lemon" platform="CoreOS" sp="{running}_x86_64"/><app appid="{app}" version="{running}" track="stable" machineid="{machine}"><updatecheck targetversionprefix=""/></app></request>"#,
        app = omaha::APP_ID,
    )
}

const CHECK: &str = r#"<ping active="1"></ping><updatecheck></updatecheck>"#;

fn ask(server: &Running, body: &str) -> String {
    let headers = [("content-type", "text/xml")];
    let (status, answer) = server.request("POST", omaha::PATH, &headers, body.as_bytes());
    let answer = String::from_utf8(answer).unwrap();
    assert_eq!(status, 200, "{answer}");
    answer
}

fn machine(name: &str) -> String {
    Sha256::of(name).to_string()[..32].to_owned()
}

/// The value of an attribute in the first tag that begins so.
fn attribute<'a>(xml: &'a str, tag: &str, name: &str) -> &'a str {
    let start = xml.find(tag).unwrap_or_else(|| panic!("no {tag} in {xml}"));
    let end = start + xml[start..].find('>').unwrap();
    let inside = &xml[start..end];
    let value = inside
        .split_once(&format!(" {name}=\""))
        .unwrap_or_else(|| panic!("no {name} in {inside}"))
        .1;
    value.split_once('"').unwrap().0
}

/// Whatever is in the answer belongs to the protocol: strict clients stop at elements that they do not know.
fn only_known_elements(xml: &str) {
    let known = [
        "response",
        "daystart",
        "app",
        "event",
        "ping",
        "updatecheck",
        "urls",
        "url",
        "manifest",
        "packages",
        "package",
        "actions",
        "action",
    ];
    for tag in xml.split('<').skip(2) {
        let tag = tag.trim_start_matches('/');
        let name = tag
            .split(|c: char| !c.is_ascii_alphanumeric())
            .next()
            .unwrap_or_default();
        assert!(known.contains(&name), "<{name}> in {xml}");
    }
}

#[test]
fn an_offer_has_all_that_other_clients_need() {
    let lab = Lab::new();
    let server = lab.start();
    let dir = lab.release("2");
    server.publish(&dir);
    let envelope = std::fs::read(dir.join(MANIFEST_FILE)).unwrap();
    let digest = Sha256::of(&envelope);
    for request in [
        update_engine(&machine("a"), "1", "amd64-usr", CHECK),
        ue_rs(&machine("b"), "1"),
    ] {
        let answer = ask(&server, &request);
        only_known_elements(&answer);
        // As it was asked, with the braces or without them.
        let app = attribute(&request, "<app ", "appid");
        assert_eq!(attribute(&answer, "<app ", "appid"), app);
        assert_eq!(attribute(&answer, "<response ", "protocol"), "3.0");
        assert_eq!(attribute(&answer, "<app ", "status"), "ok");
        assert_eq!(attribute(&answer, "<updatecheck ", "status"), "ok");
        assert_eq!(attribute(&answer, "<manifest ", "version"), "2");
        let url = attribute(&answer, "<url ", "codebase");
        assert_eq!(url, server.url("/releases/2/"));
        let first = "<package ";
        assert_eq!(attribute(&answer, first, "name"), MANIFEST_FILE);
        assert_eq!(
            attribute(&answer, first, "size"),
            envelope.len().to_string()
        );
        assert_eq!(attribute(&answer, first, "required"), "true");
        assert_eq!(attribute(&answer, first, "hash_sha256"), digest.to_string());
        assert_eq!(attribute(&answer, "<action ", "event"), "postinstall");
        let base64 = attribute(&answer, "<action ", "sha256");
        let mut decoded = String::new();
        for byte in decode(base64) {
            decoded.push_str(&format!("{byte:02x}"));
        }
        assert_eq!(decoded, digest.to_string());
        // What it names can be fetched there.
        let path = format!("/releases/2/{MANIFEST_FILE}");
        assert_eq!(
            server.request("GET", &path, &[], b""),
            (200, envelope.clone())
        );
    }
}

/// Base64 with padding (RFC 4648).
fn decode(text: &str) -> Vec<u8> {
    assert_eq!(text.len() % 4, 0, "{text} is not padded");
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = vec![];
    let mut bits = 0_u32;
    let mut held = 0;
    for letter in text.trim_end_matches('=').chars() {
        let value = alphabet.find(letter).unwrap();
        bits = bits << 6 | u32::try_from(value).unwrap();
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xff) as u8);
        }
    }
    bytes
}

/// `noupdate`, with the manifest of what runs.
fn stays(server: &Running, request: &str, running: &str) {
    let answer = ask(server, request);
    only_known_elements(&answer);
    assert_eq!(attribute(&answer, "<app ", "status"), "ok");
    assert_eq!(attribute(&answer, "<updatecheck ", "status"), "noupdate");
    assert_eq!(attribute(&answer, "<manifest ", "version"), running);
    assert!(!answer.contains("<package "), "{answer}");
}

#[test]
fn whoever_may_not_update_hears_noupdate_with_a_manifest() {
    let lab = Lab::new();
    let server = lab.start();
    let client = server.client();
    let asks =
        |name: &str, running: &str| update_engine(&machine(name), running, "amd64-usr", CHECK);
    // Nothing on the channel.
    stays(&server, &asks("a", "1"), "1");
    server.publish(&lab.release("2"));
    // It runs it already.
    stays(&server, &asks("a", "2"), "2");
    // Another architecture, which only the board tells.
    let arm = update_engine(&machine("a"), "1", "arm64-usr", CHECK);
    stays(&server, &arm, "1");
    // The policy: one host an hour.
    let group = SetGroup {
        channel: channel("stable"),
        description: String::new(),
        policy: Policy {
            cap: Some(Cap {
                hosts: 1,
                minutes: 60,
            }),
            ..Policy::default()
        },
    };
    client.set_group("stable", &group).unwrap();
    let first = ask(&server, &asks("a", "1"));
    assert_eq!(attribute(&first, "<updatecheck ", "status"), "ok");
    stays(&server, &asks("b", "1"), "1");
    stays(&server, &ue_rs(&machine("c"), "1"), "1");
}

#[test]
fn every_event_is_understood() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    let id = machine("a");
    let offered = ask(&server, &update_engine(&id, "1", "amd64-usr", CHECK));
    assert_eq!(attribute(&offered, "<updatecheck ", "status"), "ok");
    let said = [
        ("13", "1", "download started"),
        ("14", "1", "downloaded"),
        ("3", "1", "staged"),
        ("800", "1", "staged"),
        ("3", "9", "deferred"),
        // It still runs what it ran, and whatever did not work was not this release.
        ("3", "2", "other"),
        ("3", "0", "download failed"),
    ];
    for (kind, result, meaning) in said {
        let event = format!(r#"<event eventtype="{kind}" eventresult="{result}"></event>"#);
        let answer = ask(&server, &update_engine(&id, "1", "amd64-usr", &event));
        only_known_elements(&answer);
        assert_eq!(attribute(&answer, "<event ", "status"), "ok");
        assert!(!answer.contains("<updatecheck"), "{answer}");
        let events = server.client().events(Some(&id)).unwrap();
        assert_eq!(events[0].event, meaning, "{kind}/{result}");
    }
}

/// update_engine never says which version an event is about: what runs decides.
#[test]
fn what_update_engine_says_of_itself_is_read_as_it_means_it() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    let client = server.client();
    let event = |kind: &str, result: &str, more: &str| {
        format!(r#"<event eventtype="{kind}" eventresult="{result}" {more}></event>"#)
    };
    // With every check, whatever happened.
    let success =
        |previous: &str| event("3", "2", &format!(r#"previousversion="{previous}""#)) + CHECK;
    let failure = || event("3", "0", r#"errorcode="37""#);
    let tally = || client.rollouts().unwrap()[0].waves[0].tally;
    let counts = || (tally().granted, tally().good, tally().failed);
    let says = |name: &str, running: &str, inside: &str| {
        let answer = ask(
            &server,
            &update_engine(&machine(name), running, "amd64-usr", inside),
        );
        let checks = inside.contains("<updatecheck");
        checks.then(|| attribute(&answer, "<updatecheck ", "status").to_owned())
    };
    let stages = |name: &str| {
        assert_eq!(says(name, "1", &success("0.0.0.0")).as_deref(), Some("ok"));
        for (kind, result) in [("13", "1"), ("14", "1"), ("3", "1")] {
            says(name, "1", &event(kind, result, ""));
        }
    };

    // It asks again before it restarts: no verdict. Then it arrives.
    stages("a");
    says("a", "1", &success(""));
    assert_eq!(counts(), (1, 0, 0));
    assert_eq!(says("a", "2", &success("1")).as_deref(), Some("noupdate"));
    assert_eq!(counts(), (1, 1, 0));

    // A proxy in its way is no failure of the release, which it is offered again.
    stages("b");
    says("b", "1", &failure());
    assert_eq!(counts(), (2, 1, 0));
    assert_eq!(says("b", "1", &success("")).as_deref(), Some("ok"));
    // It never began: there is nothing that it could have left.
    assert_eq!(says("c", "1", &(failure() + CHECK)).as_deref(), Some("ok"));
    assert_eq!(says("c", "1", &success("1")).as_deref(), Some("ok"));
    assert_eq!(counts(), (3, 1, 0));

    // A fallback is said together with the next check. Newer clients say it so, older ones so.
    let fell_back = success("") + &failure();
    assert_eq!(says("b", "1", &fell_back).as_deref(), Some("noupdate"));
    assert_eq!(counts(), (3, 1, 1));
    stages("d");
    assert_eq!(says("d", "1", &success("1")).as_deref(), Some("noupdate"));
    assert_eq!(counts(), (4, 1, 2));
    // It is not tried again, and not counted again.
    for name in ["b", "d"] {
        assert_eq!(says(name, "1", &success("")).as_deref(), Some("noupdate"));
    }
    assert_eq!(counts(), (4, 1, 2));
    let failures = client.overview().unwrap().failures;
    let reasons: Vec<_> = failures.iter().map(|it| it.reason.as_str()).collect();
    assert_eq!(
        reasons,
        ["it runs 1 again", "it runs 1 again (error code 37)"]
    );
}

/// A host that only asks says the same with every check, for years.
#[test]
fn what_a_host_only_says_again_is_not_written_down_again() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    let client = server.client();
    let id = machine("a");
    let says = |running: &str, kind: &str, result: &str, more: &str, inside: &str| {
        let event = format!(r#"<event eventtype="{kind}" eventresult="{result}" {more}></event>"#);
        let request = update_engine(&id, running, "amd64-usr", &(event + inside));
        let answer = ask(&server, &request);
        assert_eq!(attribute(&answer, "<event ", "status"), "ok");
    };
    let checks = |running: &str, previous: &str| {
        let previous = format!(r#"previousversion="{previous}""#);
        says(running, "3", "2", &previous, CHECK);
    };
    let written = || {
        let events = client.events(Some(&id)).unwrap();
        let mut all: Vec<_> = events.into_iter().rev().map(|it| it.event).collect();
        all.retain(|it| it != "download started");
        all
    };
    // The first is kept as it came, and what is said in between.
    checks("1", "0.0.0.0");
    for _ in 0..3 {
        checks("1", "");
    }
    let events = client.events(Some(&id)).unwrap();
    let first = events.last().unwrap();
    let previous = first.previous_version.as_deref();
    assert_eq!((events.len(), previous), (1, Some("0.0.0.0")));
    says("1", "13", "1", "", "");
    for code in ["37", "37", "5"] {
        says("1", "3", "0", &format!(r#"errorcode="{code}""#), "");
    }
    checks("1", "");
    checks("1", "");
    let failed = "download failed";
    assert_eq!(written(), ["other", failed, failed, "other"]);
    // It arrives: this counts, once.
    for previous in ["1", "", ""] {
        checks("2", previous);
    }
    let tally = client.rollouts().unwrap()[0].waves[0].tally;
    assert_eq!((tally.granted, tally.good), (1, 1));
    assert_eq!(written(), ["other", failed, failed, "other", "good"]);
    // Whatever it says of another version is new, though it sounds the same.
    for running in ["7", "7", "8", "8"] {
        checks(running, "");
    }
    assert_eq!(written()[5..], ["other", "other"]);
    let seen = client.find_hosts("web1").unwrap().remove(0);
    assert_eq!(seen.version, "8");
}

#[test]
fn what_update_engine_says_at_a_stop_is_about_the_stop() {
    let lab = Lab::new();
    let server = lab.start();
    server.publish(&lab.release("2"));
    server.publish(&lab.release_above("3", "2"));
    let event = |kind: &str, result: &str| {
        format!(r#"<event eventtype="{kind}" eventresult="{result}"></event>"#)
    };
    let success = || event("3", "2") + CHECK;
    let says = |running: &str, inside: &str| {
        let request = update_engine(&machine("a"), running, "amd64-usr", inside);
        let answer = ask(&server, &request);
        let checks = inside.contains("<updatecheck");
        checks.then(|| attribute(&answer, "<updatecheck ", "status").to_owned())
    };
    let stages = |running: &str| {
        for (kind, result) in [("13", "1"), ("14", "1"), ("3", "1")] {
            says(running, &event(kind, result));
        }
    };
    let counts = |at: &str| {
        let all = server.client().rollouts().unwrap();
        let of = all.iter().find(|it| it.version == version(at)).unwrap();
        let tally = of.waves[0].tally;
        (tally.granted, tally.good, tally.failed)
    };
    assert_eq!(says("1", &success()).as_deref(), Some("ok"));
    stages("1");
    assert_eq!((counts("2"), counts("3")), ((1, 0, 0), (0, 0, 0)));
    // It arrives, takes the next one, and falls back from that.
    assert_eq!(says("2", &success()).as_deref(), Some("ok"));
    assert_eq!((counts("2"), counts("3")), ((1, 1, 0), (1, 0, 0)));
    stages("2");
    let fell_back = success() + &event("3", "0");
    assert_eq!(says("2", &fell_back).as_deref(), Some("noupdate"));
    assert_eq!((counts("2"), counts("3")), ((1, 1, 0), (1, 0, 1)));
}

#[test]
fn stops_on_the_way_are_those_that_hosts_believe() {
    let lab = Lab::new();
    let server = lab.start();
    let client = server.client();
    let publish = |dir: &std::path::Path, track: &str| {
        client
            .publish(dir, &channel(track), &mut |_, _| ())
            .unwrap();
        Sha256::of(std::fs::read(dir.join(MANIFEST_FILE)).unwrap())
    };
    let three = publish(&lab.release("3"), "beta");
    let four = publish(&lab.release("4"), "beta");
    let five = publish(&lab.release_above("5", "3"), "stable");
    let mut host = TestHost::new(&server, "old", "1");
    // Nothing says otherwise.
    assert_eq!(host.offered(), "3");
    let put = |name: &str, signed: &serde_json::Value| {
        let body = serde_json::json!({"signatures": [], "signed": signed}).to_string();
        let headers = [("content-type", "application/json")];
        let path = format!("/api/v1/tuf/{name}");
        let (status, answer) = server.request("PUT", &path, &headers, body.as_bytes());
        assert_eq!(status, 204, "{}", String::from_utf8_lossy(&answer));
    };
    let expires = "2030-01-01T00:00:00Z";
    let sign = |number: u64, beta: &[Sha256], stable: &[Sha256]| {
        let targets = |digests: &[Sha256]| {
            let targets: serde_json::Map<_, _> = digests
                .iter()
                .map(|digest| {
                    let about = serde_json::json!({"length": 1, "hashes": {"sha256": digest}});
                    (format!("{digest}.json"), about)
                })
                .collect();
            serde_json::json!({"_type": "targets", "spec_version": "1.0.0", "version": number,
                "expires": expires, "targets": targets})
        };
        put(&format!("{number}.beta.json"), &targets(beta));
        put(&format!("{number}.stable.json"), &targets(stable));
        let of = |kind: &str, names: &[&str]| {
            let meta: serde_json::Map<_, _> = names
                .iter()
                .map(|name| ((*name).to_owned(), serde_json::json!({"version": number})))
                .collect();
            serde_json::json!({"_type": kind, "spec_version": "1.0.0", "version": number,
                "expires": expires, "meta": meta})
        };
        let names = ["targets.json", "beta.json", "stable.json"];
        put(&format!("{number}.snapshot.json"), &of("snapshot", &names));
        put("timestamp.json", &of("timestamp", &["snapshot.json"]));
    };
    // Of the two that would do, the channel names one.
    sign(1, &[three, four], &[four, five]);
    assert_eq!(host.offered(), "4");
    // Nor is a channel pointed at what its hosts would refuse, whoever asks for it.
    let (beta, stable) = (channel("beta"), channel("stable"));
    let says = |result: Result<_, ClientError>| result.unwrap_err().to_string();
    let refused = says(client.set_channel(&stable, &version("3")));
    assert!(
        refused.contains("channel stable does not name release 3"),
        "{refused}"
    );
    let refused = says(client.promote(&stable, &beta, None));
    assert!(
        refused.contains("channel beta does not name release 5"),
        "{refused}"
    );
    let pointed = |name: &Channel| {
        let channels = client.channels().unwrap();
        let found = channels.into_iter().find(|it| it.name == *name);
        found.unwrap().version.unwrap().to_string()
    };
    assert_eq!((pointed(&beta), pointed(&stable)), ("4".into(), "5".into()));
    client.set_channel(&beta, &version("3")).unwrap();
    client.set_channel(&beta, &version("4")).unwrap();
    host.runs("4");
    host.tell(Event::good(&version("4"), &version("1")));
    assert_eq!(host.offered(), "5");
    // And none.
    sign(2, &[three, four], &[five]);
    let late = TestHost::new(&server, "late", "1");
    assert_eq!(late.offered(), "-");
    assert!(
        client
            .find_hosts("late")
            .unwrap()
            .iter()
            .any(|host| host.waits.as_deref() == Some("it has to run 3 first"))
    );
    // Nor does metadata that names nothing at all let through what nobody signed.
    sign(3, &[], &[]);
    assert_eq!(late.offered(), "-");
}

/// A payload of Flatcar's: for its own hosts as update_engine expects it, under our policy, and not for ours.
#[test]
fn flatcars_own_payload_is_for_flatcars_hosts() {
    let lab = Lab::new();
    let server = lab.start();
    let client = server.client();
    let write = |name: &str, bytes: &[u8]| {
        let path = lab.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let bytes = [&b"CrAU"[..], &[7; 300_000]].concat();
    let mut files = FlatcarFiles {
        version: version("4152.2.0"),
        architecture: "x86-64".into(),
        minimum_source_version: None,
        payload: write("flatcar_production_update.gz", &bytes),
        extensions: vec![write("oem-azure.gz", b"an extension")],
    };
    let publish = |files: &FlatcarFiles| {
        let sent = client.upload_flatcar(files, &channel("flatcar"), &mut |_, _| ())?;
        client.set_channel(&channel("flatcar"), &files.version)?;
        Ok::<_, ClientError>(sent)
    };
    let first = publish(&files).unwrap();
    assert!(first.uploaded && !publish(&files).unwrap().uploaded);
    let policy = Policy {
        cap: Some(Cap {
            hosts: 1,
            minutes: 60,
        }),
        ..Policy::default()
    };
    let group = SetGroup {
        channel: channel("flatcar"),
        description: String::new(),
        policy,
    };
    client.set_group("flatcar", &group).unwrap();
    let on = |request: String| request.replace(r#"track="stable""#, r#"track="flatcar""#);
    let asks =
        |name: &str, board: &str| on(update_engine(&machine(name), "3975.2.1", board, CHECK));

    stays(&server, &asks("arm", "arm64-usr"), "3975.2.1");
    let answer = ask(&server, &asks("a", "amd64-usr"));
    only_known_elements(&answer);
    assert_eq!(attribute(&answer, "<manifest ", "version"), "4152.2.0");
    let base = attribute(&answer, "<url ", "codebase");
    assert_eq!(base, server.url("/releases/4152.2.0/"));
    // The payload is the first package, and the action is about it.
    let of = |name: &str| attribute(&answer, "<package ", name);
    assert_eq!(of("name"), "flatcar_production_update.gz");
    assert_eq!(of("size"), bytes.len().to_string());
    assert_eq!(of("required"), "true");
    let digest = Sha256::of(&bytes);
    assert_eq!(of("hash_sha256"), digest.to_string());
    let sha1: [u8; 20] = sha1::Sha1::digest(&bytes).into();
    assert_eq!(decode(of("hash")), sha1);
    let action = |name: &str| attribute(&answer, "<action ", name);
    assert_eq!(action("event"), "postinstall");
    assert_eq!(decode(action("sha256")), digest.0);
    assert_eq!(action("needsadmin"), "false");
    assert_eq!(action("IsDeltaPayload"), "false");
    assert_eq!(action("DisablePayloadBackoff"), "true");
    let extension = r#"<package name="oem-azure.gz" size="12" required="false""#;
    assert!(answer.contains(extension), "{answer}");
    assert!(!answer.contains(MANIFEST_FILE), "{answer}");
    let path = "/releases/4152.2.0/flatcar_production_update.gz";
    assert_eq!(server.request("GET", path, &[], b""), (200, bytes));
    let description = format!("/releases/4152.2.0/{MANIFEST_FILE}");
    assert_eq!(server.request("GET", &description, &[], b"").0, 404);
    // The policy is that of any release: one host an hour.
    stays(&server, &asks("b", "amd64-usr"), "3975.2.1");
    // What it reports goes to the rollout.
    let event = r#"<event eventtype="13" eventresult="1"></event>"#;
    ask(
        &server,
        &on(update_engine(&machine("a"), "3975.2.1", "amd64-usr", event)),
    );
    let event = r#"<event eventtype="3" eventresult="0" errorcode="37"></event>"#;
    let fell_back = format!("{event}{CHECK}");
    stays(
        &server,
        &on(update_engine(
            &machine("a"),
            "3975.2.1",
            "amd64-usr",
            &fell_back,
        )),
        "3975.2.1",
    );
    let rollout = client
        .rollouts()
        .unwrap()
        .into_iter()
        .find(|it| it.group == "flatcar");
    assert_eq!(rollout.unwrap().waves[0].tally.failed, 1);

    // A host of ours that was put on the channel.
    let mut ours = TestHost::new(&server, "ours", "1");
    ours.app.track = "flatcar".into();
    assert_eq!(ours.offered(), "-");
    let waits = client.find_hosts("ours").unwrap().remove(0).waits;
    assert_eq!(waits.as_deref(), Some("the release is one of Flatcar's"));

    // What update_engine would refuse is refused here, on both ends.
    files.version = version("4152.2.1");
    files.payload = write("other.gz", b"\x1f\x8b something else");
    let refused = publish(&files).unwrap_err().to_string();
    assert!(
        refused.ends_with("other.gz is no payload for update_engine"),
        "{refused}"
    );
    let content = b"\x1f\x8b something else";
    let digest = Sha256::of(content).to_string();
    let sha1: [u8; 20] = sha1::Sha1::digest(content).into();
    let sha1 = release::Sha1(sha1).to_string();
    let described = |sha1: &str, architecture: &str| {
        let payload =
            serde_json::json!({"file": "other.gz", "size": content.len(), "sha256": digest});
        serde_json::json!({"flatcar": {"version": "5", "architecture": architecture,
            "payload": payload, "payload_sha1": sha1}})
        .to_string()
    };
    let manifest = format!("/api/v1/releases/5/{MANIFEST_FILE}");
    let put = |path: &str, body: &[u8]| server.request("PUT", path, &[], body).0;
    assert_eq!(put(&manifest, described(&sha1, "x86").as_bytes()), 422);
    assert_eq!(put(&manifest, b"{\"flatcar\": 5}"), 422);
    assert_eq!(put(&manifest, described(&sha1, "arm64").as_bytes()), 204);
    assert_eq!(put("/api/v1/releases/5/other.gz", content), 204);
    let refused = server.refused("POST", "/api/v1/releases/5", b"");
    assert!(
        refused.contains("is no payload for update_engine"),
        "{refused}"
    );
}
