//! What was downloaded first and is written later.

use disk::Slot;
use serde_json::json;

use crate::host::{Host, Release};
use crate::server::{Mood, Server};

#[test]
fn what_was_downloaded_is_written_while_no_server_answers() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    two.publish(&server);
    let apply = json!({ "apply": true });

    let daemon = host.daemon();
    let error = daemon.good().call("Update", apply.clone()).unwrap_err();
    assert!(
        error.contains("nothing was downloaded") && error.contains("--download-only"),
        "{error}"
    );
    let answer = daemon.call("Update", json!({ "download_only": true }));
    assert_eq!(answer.unwrap()["available"], "2");
    assert!(!host.is_intact(Slot::B, &two));
    drop(daemon);

    // Not even after a restart is anybody asked.
    server.set(Mood::Status(503));
    let asked = server.with(|s| (s.asked, s.requests.len()));
    let daemon = host.daemon();
    daemon.good().call("Update", apply.clone()).unwrap();
    assert!(host.is_intact(Slot::B, &two));
    assert_eq!(daemon.status()["staged"]["version"], "2");
    assert_eq!(server.with(|s| (s.asked, s.requests.len())), asked);
    assert!(daemon.call("Update", apply).is_err(), "it is staged");
}

#[test]
fn a_download_that_was_deleted_or_spoilt_is_said_so() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let host = Host::new(&server, &[&one, &two]);
    two.publish(&server);
    let daemon = host.daemon();
    let download = json!({ "download_only": true });
    daemon.good().call("Update", download.clone()).unwrap();
    let downloads = std::fs::read_dir(host.path("var/lib/update-engine/download")).unwrap();
    let files: Vec<_> = downloads
        .map(|dir| dir.unwrap().path().join("downloaded.json"))
        .filter(|file| file.exists())
        .collect();
    let [file] = &files[..] else {
        panic!("{files:?}")
    };
    let apply = || daemon.call("Update", json!({ "apply": true }));

    let good = std::fs::read_to_string(file).unwrap();
    std::fs::write(file, good.replacen("eyJ", "eyK", 1)).unwrap();
    let error = apply().unwrap_err();
    assert!(
        error.contains("--download-only fetches it again"),
        "{error}"
    );
    std::fs::remove_file(file).unwrap();
    let error = apply().unwrap_err();
    assert!(error.contains("cannot read"), "{error}");
    assert!(!host.is_intact(Slot::B, &two));

    daemon.call("Update", download).unwrap();
    apply().unwrap();
    assert!(host.is_intact(Slot::B, &two));
}
