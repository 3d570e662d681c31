//! What can be published, and what is refused.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use release::omaha::UpdateCheck;
use release::tuf::sign::{SignError, seal};
use release::{Channel, MANIFEST_FILE, Sha256, keys, tuf};
use update_server::client::{ClientError, Server};

use crate::support::{Lab, TestHost, version};

fn error(result: Result<impl std::fmt::Debug, ClientError>) -> String {
    let error = result.unwrap_err();
    assert!(error.hint().is_some(), "{error:?} has no hint");
    error.to_string()
}

#[test]
fn publishing_tells_its_progress_and_can_be_repeated() {
    let lab = Lab::new();
    let server = lab.start();
    let built = lab.release("2");
    let mut seen = vec![];
    let first = server
        .client()
        .publish(&built, &Channel::stable(), &mut |sent, total| {
            seen.push((sent, total))
        })
        .unwrap();
    let (sent, total) = *seen.last().unwrap();
    assert_eq!((sent, first.bytes, first.uploaded), (total, total, true));
    assert!(
        seen.windows(2).all(|pair| pair[0].0 <= pair[1].0),
        "progress goes forward"
    );

    let again = server
        .client()
        .publish(&built, &"beta".parse().unwrap(), &mut |_, _| ())
        .unwrap();
    assert_eq!((again.uploaded, again.id), (false, first.id));
    let releases = server.client().releases().unwrap();
    assert_eq!((releases.len(), &releases[0].version), (1, &version("2")));
    let channels: Vec<_> = releases[0].channels.iter().map(Channel::as_str).collect();
    assert_eq!(channels, ["beta", "stable"]);
    assert_eq!(
        (releases[0].id, releases[0].usr_size),
        (first.id, 4096 * 50)
    );

    // A published release never changes.
    let other = lab.release_with("2", "as built later", &lab.key);
    let refused = error(
        server
            .client()
            .publish(&other, &Channel::stable(), &mut |_, _| ()),
    );
    assert_eq!(refused, "the server has another build of release 2 already");
    let path = format!("/api/v1/releases/2/{MANIFEST_FILE}");
    assert_eq!(
        server.refused(
            "PUT",
            &path,
            &std::fs::read(other.join(MANIFEST_FILE)).unwrap()
        ),
        "409 release 2 is finished and never changes"
    );
}

#[test]
fn a_wrong_signature_stops_at_the_manifest() {
    let lab = Lab::new();
    let server = lab.start();
    let foreign = lab.release_with("2", "by a stranger", &keys::generate().unwrap());
    let refused = error(
        server
            .client()
            .publish(&foreign, &Channel::stable(), &mut |_, _| ()),
    );
    assert!(
        refused
            .starts_with("manifest.dsse.json is refused: the manifest has valid signatures of 0"),
        "{refused}"
    );
    assert!(
        !lab.path("data/releases/2").exists(),
        "something was written"
    );
    assert!(server.client().releases().unwrap().is_empty());
    // A key that is added later counts without a restart.
    let added = keys::generate().unwrap();
    let line = keys::public_to_text(&added.verifying_key(), "added");
    std::fs::write(lab.path("keys/added.pub"), line).unwrap();
    server.publish(&lab.release_with("2", "by a colleague", &added));
}

#[test]
fn without_the_token_nothing_is_written() {
    let lab = Lab::new();
    let server = lab.start();
    let built = lab.release("2");
    for token in [None, Some("guess")] {
        let client = Server::new(&server.url(""), token).unwrap();
        let refused = error(client.publish(&built, &Channel::stable(), &mut |_, _| ()));
        assert!(refused.contains("admin token"), "{refused}");
        error(client.set_channel(&Channel::stable(), &version("2")));
        assert_eq!(client.hosts().unwrap(), [], "reading is open");
    }
    let guess = [("authorization", "Bearer guess")];
    assert_eq!(
        server.request("POST", "/api/v1/releases/2", &guess, b"").0,
        401
    );
    assert_eq!(
        std::fs::read_dir(lab.path("data/releases"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn only_files_of_the_manifest_and_only_as_it_says() {
    let lab = Lab::new();
    let server = lab.start();
    let built = lab.release("2");
    let put = |file: &str, body: &[u8]| {
        server.refused("PUT", &format!("/api/v1/releases/2/{file}"), body)
    };

    assert_eq!(
        put("uki.efi", b"x"),
        "409 release 2 has no manifest.dsse.json yet"
    );
    assert_eq!(
        server.refused("POST", "/api/v1/releases/2", b""),
        "409 release 2 has no manifest.dsse.json yet"
    );
    let manifest = std::fs::read(built.join(MANIFEST_FILE)).unwrap();
    assert_eq!(
        server.refused(
            "PUT",
            &format!("/api/v1/releases/3/{MANIFEST_FILE}"),
            &manifest
        ),
        "422 manifest.dsse.json is for release 2, but was sent as release 3"
    );
    let path = format!("/api/v1/releases/2/{MANIFEST_FILE}");
    assert_eq!(server.request("PUT", &path, &[], &manifest).0, 204);
    assert!(put(MANIFEST_FILE, &vec![b' '; (1 << 20) + 1]).starts_with("413"));

    assert_eq!(
        put("disk.raw", b"x"),
        "422 the manifest of release 2 has no file disk.raw"
    );
    for name in ["..%2f..%2ftoken", "%2e%2e", ".uki.efi.0.part", "a%00b"] {
        assert!(put(name, b"x").starts_with("400"), "{name}");
    }
    assert_eq!(
        put("uki.efi", b"short"),
        "422 uki.efi has 5 bytes, the manifest says 8"
    );
    assert_eq!(
        put("uki.efi", b"much too long"),
        "422 uki.efi has more than 8 bytes, the manifest says 8"
    );
    let right = Sha256::of("uki of 2");
    let wrong = Sha256::of("uki of 9");
    assert_eq!(
        put("uki.efi", b"uki of 9"),
        format!("422 uki.efi has the SHA-256 {wrong}, the manifest says {right}")
    );
    assert_eq!(
        server
            .request("PUT", "/api/v1/releases/2/uki.efi", &[], b"uki of 2")
            .0,
        204
    );
    assert_eq!(
        server.refused("POST", "/api/v1/releases/2", b""),
        "422 release 2 is not complete: usr.erofs.zst is missing"
    );
    assert_eq!(
        server.refused("PUT", "/api/v1/channels/stable", br#"{"version":"2"}"#),
        "409 there is no finished release 2, so channel stable stays as it is"
    );
    assert!(
        server
            .refused("PUT", "/api/v1/channels/Stable", br#"{"version":"2"}"#)
            .starts_with("400")
    );
    assert!(
        server
            .refused("PUT", "/api/v1/channels/stable", b"{}")
            .starts_with("400")
    );
    // Not finished, not served.
    assert!(
        server
            .refused("GET", "/releases/2/uki.efi", b"")
            .starts_with("404")
    );
    assert!(
        server
            .refused("GET", "/releases/..%2f/token", b"")
            .starts_with("404")
    );
    // What was sent stays good for the publication that completes it.
    server.publish(&built);
    assert_eq!(
        server.request("GET", "/releases/2/uki.efi", &[], b"").0,
        200
    );
    // Once finished, still only what the manifest names.
    std::fs::write(lab.path("data/releases/2/notes"), "private").unwrap();
    assert!(
        server
            .refused("GET", "/releases/2/notes", b"")
            .starts_with("404")
    );
}

#[test]
fn a_truncated_upload_leaves_nothing() {
    let lab = Lab::new();
    let server = lab.start();
    let built = lab.release("2");
    let manifest = std::fs::read(built.join(MANIFEST_FILE)).unwrap();
    server.request(
        "PUT",
        &format!("/api/v1/releases/2/{MANIFEST_FILE}"),
        &[],
        &manifest,
    );
    let mut stream = TcpStream::connect(&server.address).unwrap();
    write!(
        stream,
        "PUT /api/v1/releases/2/uki.efi HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 8\r\n\r\nuki",
        server.token
    )
    .unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
    let names = || {
        let entries = std::fs::read_dir(lab.path("data/releases/2")).unwrap();
        entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect::<Vec<_>>()
    };
    for _ in 0..3000 {
        if names() == [MANIFEST_FILE] {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(names(), [MANIFEST_FILE]);
    assert!(
        server
            .refused("POST", "/api/v1/releases/2", b"")
            .contains("is missing")
    );
}

#[test]
fn the_client_notices_what_is_wrong_here() {
    let lab = Lab::new();
    let server = lab.start();
    let publish = |dir: &std::path::Path| {
        error(
            server
                .client()
                .publish(dir, &Channel::stable(), &mut |_, _| ()),
        )
    };
    assert!(publish(&lab.path("nothing")).starts_with("cannot read /"));
    let built = lab.release("2");
    std::fs::write(built.join("uki.efi"), "uk").unwrap();
    assert!(publish(&built).ends_with("/uki.efi has 2 bytes, its manifest says 8"));
    std::fs::write(built.join("uki.efi"), "uki of 9").unwrap();
    assert!(publish(&built).starts_with("uki.efi has the SHA-256 "));
    std::fs::write(built.join(MANIFEST_FILE), "{").unwrap();
    assert!(publish(&built).ends_with("is no signed manifest"));

    assert!(error(Server::new("127.0.0.1:8090", None)).contains("is not the address of a server"));
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let away = Server::new(&format!("http://{closed}"), None).unwrap();
    assert_eq!(
        error(away.hosts()),
        format!("the update server at http://{closed} does not answer")
    );
}

#[test]
fn two_who_finish_at_once_get_one_release() {
    let lab = Lab::new();
    let server = lab.start();
    let built = lab.release("2");
    for file in [MANIFEST_FILE, "usr.erofs.zst", "uki.efi", "sbom.spdx.json"] {
        let body = std::fs::read(built.join(file)).unwrap();
        assert_eq!(
            server
                .request("PUT", &format!("/api/v1/releases/2/{file}"), &[], &body)
                .0,
            204
        );
    }
    let mut answers: Vec<u16> = std::thread::scope(|scope| {
        let finish = || server.request("POST", "/api/v1/releases/2", &[], b"").0;
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(finish)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    answers.sort_unstable();
    assert_eq!(answers, [201, 409, 409, 409]);
}

#[test]
fn hosts_download_from_the_public_url() {
    let lab = Lab::new();
    let server = lab.start_with(&["--public-url", "https://releases.example/orlop/"]);
    server.publish(&lab.release("2"));
    let UpdateCheck::Offer(offer) = TestHost::new(&server, "node1", "1").check() else {
        panic!("no offer")
    };
    assert_eq!(
        offer.codebases,
        ["https://releases.example/orlop/releases/2/"]
    );
}

#[test]
fn mirrors_are_named_before_the_server_itself() {
    let lab = Lab::new();
    let server = lab.start_with(&[
        "--mirror",
        "https://cdn.example/",
        "--mirror",
        "http://near.example:80/orlop,http://far.example",
    ]);
    server.publish(&lab.release("2"));
    let UpdateCheck::Offer(offer) = TestHost::new(&server, "node1", "1").check() else {
        panic!("no offer")
    };
    assert_eq!(
        offer.codebases,
        [
            "https://cdn.example/releases/2/".to_owned(),
            "http://near.example:80/orlop/releases/2/".to_owned(),
            "http://far.example/releases/2/".to_owned(),
            server.url("/releases/2/"),
        ]
    );
}

/// Metadata is served as it was sent, and never goes back or over to another publisher.
#[test]
fn tuf_metadata_only_goes_forward() {
    let lab = Lab::new();
    let server = lab.start();
    let client = server.client();
    assert!(!client.has_tuf().unwrap());
    let file = |name: &str, version: u64| {
        let bytes = format!("{{\"signed\":{{\"version\":{version}}}}}").into_bytes();
        vec![(name.to_owned(), bytes)]
    };
    client.send_tuf(&file("1.root.json", 1)).unwrap();
    client
        .send_tuf(&file("stable/2.manifest.dsse.json", 9))
        .unwrap();
    client.send_tuf(&file("timestamp.json", 2)).unwrap();
    assert!(client.has_tuf().unwrap());
    client.send_tuf(&file("timestamp.json", 2)).unwrap();
    let refused = error(client.send_tuf(&file("timestamp.json", 1)));
    assert!(refused.contains("newer metadata"), "{refused}");
    let refused = error(client.send_tuf(&file("1.root.json", 7)));
    assert!(refused.contains("another TUF repository"), "{refused}");
    for name in [
        "a/b/c.json",
        "x.txt",
        "..%2f..%2ftoken.json",
        ".hidden.json",
    ] {
        let refused = error(client.send_tuf(&file(name, 1)));
        assert!(refused.contains("no name in a TUF repository"), "{refused}");
    }
    let stranger = Server::new(client.url(), None).unwrap();
    error(stranger.send_tuf(&file("timestamp.json", 3)));

    let mut answer = ureq::get(format!("{}/releases/tuf/timestamp.json", client.url()))
        .call()
        .unwrap();
    let body = answer.body_mut().read_to_string().unwrap();
    assert_eq!(body, "{\"signed\":{\"version\":2}}");
}

/// The file came first and the server died: who sends it again is not told that all is well when it is not.
#[test]
fn a_timestamp_that_was_only_kept_counts_when_it_is_sent_again() {
    let lab = Lab::new();
    let server = lab.start();
    let client = server.client();
    for (dir, track) in [
        (lab.release("3"), "beta"),
        (lab.release_above("5", "3"), "stable"),
    ] {
        let track: Channel = track.parse().unwrap();
        client.publish(&dir, &track, &mut |_, _| ()).unwrap();
    }
    let host = TestHost::new(&server, "old", "1");
    assert_eq!(host.offered(), "3", "the stop on the way");

    // Metadata in which beta names something, and stable not that stop.
    let expires = jiff::Timestamp::MAX;
    let sealed = |signed: Result<tuf::Signed, SignError>| signed.unwrap().to_bytes().unwrap();
    let channel = |targets| sealed(seal(&tuf::Targets::of(1, expires, targets), &[&lab.key]));
    let one = ("3".to_owned(), tuf::TargetMeta::of(b"its manifest", None));
    let (beta, stable) = (channel([one].into()), channel(BTreeMap::new()));
    let meta = BTreeMap::from([
        ("beta.json".to_owned(), tuf::FileMeta::of(1, &beta)),
        ("stable.json".to_owned(), tuf::FileMeta::of(1, &stable)),
    ]);
    let snapshot = sealed(seal(&tuf::Snapshot::of(1, expires, meta), &[&lab.key]));
    let meta = tuf::FileMeta::of(1, &snapshot);
    let timestamp = sealed(seal(&tuf::Timestamp::of(1, expires, meta), &[&lab.key]));
    let file = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
    let others = [
        file("1.beta.json", &beta),
        file("1.stable.json", &stable),
        file("1.snapshot.json", &snapshot),
    ];
    client.send_tuf(&others).unwrap();
    let kept = lab.path("data/releases/tuf/timestamp.json");
    std::fs::write(kept, &timestamp).unwrap();
    assert_eq!(host.offered(), "3");
    client
        .send_tuf(&[file("timestamp.json", &timestamp)])
        .unwrap();
    assert_eq!(host.offered(), "-");

    let (_, metrics) = server.request("GET", "/metrics", &[], b"");
    let metrics = String::from_utf8(metrics).unwrap();
    for role in ["timestamp", "snapshot", "beta", "stable"] {
        let at = expires.as_second();
        let line = format!("orlop_metadata_expires_timestamp_seconds{{role=\"{role}\"}} {at}\n");
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
}
