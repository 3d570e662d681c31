//! What an independent judge thinks of the certificates.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use jiff::Timestamp;
use pki::{Error, Pki, Wanted};

fn wanted<'a>(name: &'a str, hosts: &'a [String]) -> Wanted<'a> {
    Wanted {
        name,
        hosts,
        days: pki::LEAF_DAYS,
        replace: false,
    }
}

fn openssl(dir: &Path, args: &[&str]) -> (bool, String) {
    let output = Command::new("openssl")
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn certificates_are_good_for_what_they_are_for_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let now = Timestamp::now();
    pki::init(dir, "test-ca", pki::AUTHORITY_DAYS, now).unwrap();
    let authority = Pki::open(dir).unwrap();
    let hosts = ["10.0.0.1".to_owned(), "n1.example.org".to_owned()];
    authority.member(&wanted("n1", &hosts), now).unwrap();
    authority.client(&wanted("alice", &[]), now).unwrap();

    let verify = |file: &str, more: &[&str]| {
        let args = [
            &["verify", "-x509_strict", "-CAfile", "ca.crt"],
            more,
            &[file],
        ]
        .concat();
        openssl(dir, &args)
    };
    for file in ["members/n1/server.crt", "members/n1/peer.crt"] {
        for purpose in ["sslserver", "sslclient"] {
            let (good, text) = verify(file, &["-purpose", purpose]);
            assert!(good, "{file} as {purpose}: {text}");
        }
        for (option, host) in [
            ("-verify_ip", "10.0.0.1"),
            ("-verify_ip", "127.0.0.1"),
            ("-verify_ip", "::1"),
            ("-verify_hostname", "n1.example.org"),
            ("-verify_hostname", "localhost"),
        ] {
            let (good, text) = verify(file, &[option, host]);
            assert!(good, "{file} for {host}: {text}");
        }
        let (good, _) = verify(file, &["-verify_ip", "10.0.0.2"]);
        assert!(!good, "{file} is for other addresses too");
    }
    let client = "clients/alice/client.crt";
    assert!(verify(client, &["-purpose", "sslclient"]).0);
    assert!(!verify(client, &["-purpose", "sslserver"]).0);
    let (_, subject) = openssl(dir, &["x509", "-noout", "-subject", "-in", client]);
    assert!(subject.trim_end().ends_with("CN = alice"), "{subject}");
    let (_, end) = openssl(
        dir,
        &["x509", "-noout", "-checkend", "31449600", "-in", client],
    );
    assert!(end.contains("will not expire"), "{end}");
    // What is carried to a member is complete.
    let (good, text) = openssl(
        &dir.join("members/n1"),
        &["verify", "-CAfile", "ca.crt", "server.crt"],
    );
    assert!(good, "{text}");

    // Another authority's signature is worth nothing here.
    let other = tempfile::tempdir().unwrap();
    pki::init(other.path(), "test-ca", 10, now).unwrap();
    fs::copy(other.path().join("ca.crt"), dir.join("other.crt")).unwrap();
    let (good, _) = openssl(dir, &["verify", "-CAfile", "other.crt", client]);
    assert!(!good);
}

#[test]
fn keys_are_for_their_owner_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let now = Timestamp::now();
    assert!(matches!(Pki::open(dir), Err(Error::NoAuthority(_))));
    pki::init(dir, "ca", 100, now).unwrap();
    let before = fs::read(dir.join("ca.key")).unwrap();
    assert!(matches!(
        pki::init(dir, "ca", 100, now),
        Err(Error::Exists(_))
    ));
    assert_eq!(fs::read(dir.join("ca.key")).unwrap(), before);

    let authority = Pki::open(dir).unwrap();
    let hosts = ["n1".to_owned()];
    let short = Wanted {
        days: 30,
        ..wanted("n1", &hosts)
    };
    let made = authority.member(&short, now).unwrap();
    let key = dir.join("members/n1/peer.key");
    for file in made.files.iter().chain([&dir.join("ca.key")]) {
        let mode = fs::metadata(file).unwrap().permissions().mode() & 0o777;
        let private = file.extension().is_some_and(|kind| kind == "key");
        assert_eq!(
            mode,
            if private { 0o600 } else { 0o644 },
            "{}",
            file.display()
        );
    }
    let old = fs::read(&key).unwrap();
    assert!(matches!(
        authority.member(&short, now),
        Err(Error::Exists(_))
    ));
    assert_eq!(fs::read(&key).unwrap(), old);
    let replace = Wanted {
        replace: true,
        ..short.clone()
    };
    authority.member(&replace, now).unwrap();
    assert_ne!(fs::read(&key).unwrap(), old);
    let left: Vec<_> = fs::read_dir(dir.join("members"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["n1"], "nothing is left over");

    let long = Wanted {
        days: 101,
        ..wanted("n2", &hosts)
    };
    let error = authority.member(&long, now).unwrap_err().to_string();
    assert!(error.contains("--days 100"), "{error}");
    assert!(matches!(
        authority.member(&wanted("n2", &[]), now),
        Err(Error::NoHosts(_))
    ));

    // A key of another authority is found out before it signs anything.
    let other = tempfile::tempdir().unwrap();
    pki::init(other.path(), "ca", 100, now).unwrap();
    fs::copy(other.path().join("ca.key"), dir.join("ca.key")).unwrap();
    let error = Pki::open(dir).unwrap_err().to_string();
    assert!(error.contains("not the key of ca.crt"), "{error}");
}

#[test]
fn a_list_tells_what_is_good_and_what_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let now = Timestamp::now();
    pki::init(dir, "ca", 100, now).unwrap();
    let hosts = ["10.1.2.3".to_owned()];
    let short = Wanted {
        days: 10,
        ..wanted("n1", &hosts)
    };
    let authority = Pki::open(dir).unwrap();
    authority.member(&short, now).unwrap();
    let client = Wanted {
        days: 50,
        ..wanted("c", &[])
    };
    authority.client(&client, now).unwrap();
    let entries = pki::list(dir).unwrap();
    let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["ca", "n1", "n1", "c"]);
    assert_eq!(
        entries[1].hosts,
        ["10.1.2.3", "localhost", "127.0.0.1", "::1"]
    );
    assert!(entries.iter().all(|entry| entry.is_good(now)));
    let later = now + jiff::SignedDuration::from_hours(20 * 24);
    let good: Vec<_> = entries.iter().map(|entry| entry.is_good(later)).collect();
    assert_eq!(good, [true, false, false, true]);

    let other = tempfile::tempdir().unwrap();
    pki::init(other.path(), "ca", 100, now).unwrap();
    fs::copy(other.path().join("ca.crt"), dir.join("ca.crt")).unwrap();
    let entries = pki::list(dir).unwrap();
    assert!(!entries[1].trusted, "signed by nobody we know");
}
