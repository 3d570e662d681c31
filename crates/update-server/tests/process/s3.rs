//! Releases in a bucket, with a server of S3 that others wrote. `./orlop test` fetches it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use release::Sha256;

use crate::postgres::{Cluster, pair_at};
use crate::support::{Lab, TestHost};

/// moto, on a port of its own.
struct Bucket {
    child: Child,
    url: String,
}

impl Bucket {
    /// Nothing, where there is no moto; but if `ORLOP_JUDGES=required`, there has to be.
    fn new() -> Option<Self> {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.orlop/tools/moto");
        let mut python = Command::new("python3");
        if tools.is_dir() {
            python.env("PYTHONPATH", &tools);
        }
        let child = python
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            return Self::left_out(&tools);
        };
        let mut lines = BufReader::new(child.stderr.take()?).lines();
        let said = lines.find_map(|line| {
            let line = line.ok()?;
            let (_, url) = line.split_once("Running on ")?;
            Some(url.trim().to_owned())
        });
        // It writes a line for each request, and stops if nobody reads them.
        std::thread::spawn(move || lines.for_each(drop));
        let Some(url) = said else {
            let _ = child.wait();
            return Self::left_out(&tools);
        };
        let bucket = Self { child, url };
        ureq::put(bucket.at("artifacts")).send_empty().unwrap();
        Some(bucket)
    }

    fn left_out(tools: &Path) -> Option<Self> {
        let message = format!("there is no moto in {}: not tried", tools.display());
        let required = std::env::var_os("ORLOP_JUDGES").is_some_and(|it| it == "required");
        assert!(!required, "{message}");
        eprintln!("{message}");
        None
    }

    fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }

    fn get(&self, path: &str) -> String {
        let mut text = String::new();
        let mut answer = ureq::get(self.at(path)).call().unwrap();
        answer
            .body_mut()
            .as_reader()
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.url.clone()),
            ("AWS_REGION", "eu-central-1".into()),
            ("AWS_ACCESS_KEY_ID", "orlop".into()),
            ("AWS_SECRET_ACCESS_KEY", "secret".into()),
        ]
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn two_servers_share_a_bucket() {
    let Some(bucket) = Bucket::new() else { return };
    let cluster = Cluster::new();
    let mut lab = Lab::new();
    lab.environment = bucket.environment();
    let [one, two] = pair_at(&lab, &cluster, "s3://artifacts/of/ours");
    // Large enough for several parts.
    let built = lab.release_with("2", &"much of it ".repeat(42), &lab.key);
    let usr = std::fs::read(built.join("usr.erofs.zst")).unwrap();
    assert!(usr.len() > 9_001_000, "{}", usr.len());

    // What is damaged on the way stays nowhere, not even in parts.
    let manifest = std::fs::read(built.join("manifest.dsse.json")).unwrap();
    let path = |file: &str| format!("/api/v1/releases/2/{file}");
    assert_eq!(
        one.request("PUT", &path("manifest.dsse.json"), &[], &manifest)
            .0,
        204
    );
    let mut damaged = usr.clone();
    damaged[usr.len() - 1] ^= 1;
    let refused = one.refused("PUT", &path("usr.erofs.zst"), &damaged);
    assert!(
        refused.starts_with("422 usr.erofs.zst has the SHA-256"),
        "{refused}"
    );
    let listed = bucket.get("artifacts?list-type=2");
    assert!(
        listed.contains("<Key>of/ours/2/manifest.dsse.json</Key>"),
        "{listed}"
    );
    assert!(!listed.contains("usr.erofs.zst"), "{listed}");
    let mut left = String::new();
    for _ in 0..600 {
        left = bucket.get("artifacts?uploads");
        if !left.contains("<Upload>") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(!left.contains("<Upload>"), "{left}");

    one.publish(&built);
    assert!(!lab.path("one/releases").exists());
    // The other one serves it, whole and in part.
    let host = TestHost::new(&two, "node1", "1");
    assert_eq!(host.offered(), "2");
    let get = |headers: &[(&str, &str)]| {
        two.request_all("GET", "/releases/2/usr.erofs.zst", headers, b"")
    };
    let (status, headers, whole) = get(&[]);
    assert_eq!((status, whole.len()), (200, usr.len()));
    assert!(whole == usr);
    let etag = format!("\"{}\"", Sha256::of(&usr));
    assert_eq!(headers["etag"], etag.as_str());
    let (status, headers, part) = get(&[("range", "bytes=9000000-9000099"), ("if-range", &etag)]);
    assert_eq!((status, &part[..]), (206, &usr[9_000_000..9_000_100]));
    let range = format!("bytes 9000000-9000099/{}", usr.len());
    assert_eq!(headers["content-range"], range.as_str());
    assert_eq!(get(&[("range", "bytes=99999999-")]).0, 416);

    // Gone from the bucket: the server's fault, and it says so.
    ureq::delete(bucket.at("artifacts/of/ours/2/uki.efi"))
        .call()
        .unwrap();
    let gone = two.refused("GET", "/releases/2/uki.efi", b"");
    assert_eq!(
        gone,
        "500 uki.efi of release 2 cannot be read from the server's store"
    );
}

#[test]
fn a_bucket_that_is_not_there_is_told_of_at_once() {
    let Some(bucket) = Bucket::new() else { return };
    let mut lab = Lab::new();
    lab.environment = bucket.environment();
    for (place, what) in [
        ("s3://nobodys/x", "NoSuchBucket"),
        ("s3://", "is no address of a bucket"),
    ] {
        let mut command = lab.command("127.0.0.1:0", "data", "keys");
        let output = command.args(["--releases", place]).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(
            message.contains(&format!("cannot use {place} for the releases")),
            "{message}"
        );
        assert!(message.contains(what), "{message}");
        assert!(
            message.contains("hint: write it as s3://BUCKET/PREFIX"),
            "{message}"
        );
    }
}
