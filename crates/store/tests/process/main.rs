//! Real members as real processes: killed, stopped, brought back, while clients write.

#![allow(clippy::unwrap_used, reason = "a test")]

mod dns;
mod faults;
mod hardship;
mod life;
mod load;
mod members;
mod network;
mod waldir;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use load::Load;
use members::{Member, PROGRAM, Place, cluster};
use rustix::process::Signal;
use store::mvcc::view;
use store::pb::etcdserverpb as rpc;
use store::pb::etcdserverpb::kv_client::KvClient;
use tonic::transport::Channel;

const PATIENCE: Duration = Duration::from_secs(120);

async fn kv(place: &Place) -> Option<KvClient<Channel>> {
    let endpoint = tonic::transport::Endpoint::from_shared(place.client.clone()).ok()?;
    let endpoint = endpoint
        .timeout(Duration::from_secs(15))
        .connect_timeout(Duration::from_secs(10));
    Some(KvClient::new(endpoint.connect().await.ok()?))
}

async fn put(place: &Place, key: &str, value: &str) -> Option<i64> {
    let request = rpc::PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    };
    let answer = kv(place).await?.put(request).await.ok()?;
    answer.into_inner().header.map(|h| h.revision)
}

async fn put_patiently(place: &Place, key: &str, value: &str) -> i64 {
    let since = Instant::now();
    loop {
        if let Some(revision) = put(place, key, value).await {
            return revision;
        }
        assert!(
            since.elapsed() < PATIENCE,
            "{key} cannot be put at {}",
            place.client
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn get(place: &Place, key: &str, end: &str) -> Option<BTreeMap<String, String>> {
    let request = rpc::RangeRequest {
        key: key.into(),
        range_end: end.into(),
        ..Default::default()
    };
    let answer = kv(place).await?.range(request).await.ok()?.into_inner();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let pairs = answer.kvs.iter().map(|pair| view(pair));
    Some(
        pairs
            .map(|pair| (text(pair.key), text(pair.value)))
            .collect(),
    )
}

async fn get_patiently(place: &Place, key: &str, end: &str) -> BTreeMap<String, String> {
    let since = Instant::now();
    loop {
        if let Some(found) = get(place, key, end).await {
            return found;
        }
        assert!(
            since.elapsed() < PATIENCE,
            "{key} cannot be read at {}",
            place.client
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn revision_of(place: &Place, key: &str) -> Option<i64> {
    let request = rpc::RangeRequest {
        key: key.into(),
        ..Default::default()
    };
    let answer = kv(place).await?.range(request).await.ok()?.into_inner();
    Some(answer.kvs.first().map_or(0, |pair| view(pair).mod_revision))
}

/// Writes until told to stop; remembers what was acknowledged.
fn writer(
    places: Vec<Place>,
    name: usize,
    end: Arc<AtomicBool>,
) -> tokio::task::JoinHandle<Vec<String>> {
    tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        let mut n = 0;
        while !end.load(Ordering::Relaxed) {
            n += 1;
            let key = format!("w/{name}/{n:06}");
            if put(&places[(n + name) % places.len()], &key, &key)
                .await
                .is_some()
            {
                acknowledged.push(key);
            } else {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        acknowledged
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let places = cluster(dir.path(), 1);
    let place = &places[0];
    let mut expected = 0;
    for round in 0..5 {
        let member = Member::start(place, &[]);
        put_patiently(place, &format!("round/{round}"), "begun").await;
        let end = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..4)
            .map(|i| writer(places.clone(), round * 10 + i, end.clone()))
            .collect();
        let since = Instant::now();
        while get_patiently(place, "w/", "w0").await.len() < expected + 20 {
            assert!(since.elapsed() < PATIENCE);
        }
        member.kill();
        end.store(true, Ordering::Relaxed);
        let mut acknowledged = Vec::new();
        for writer in writers {
            acknowledged.extend(writer.await.unwrap());
        }
        let member = Member::start(place, &[]);
        let found = get_patiently(place, "w/", "w0").await;
        for key in &acknowledged {
            assert!(
                found.contains_key(key),
                "{key} was acknowledged and is lost"
            );
        }
        expected = found.len();
        member.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_killed_and_stopped_lose_nothing_and_read_nothing_stale() {
    let dir = tempfile::tempdir().unwrap();
    let places = cluster(dir.path(), 3);
    let mut members: Vec<Member> = places
        .iter()
        .map(|place| Member::start(place, &[]))
        .collect();
    put_patiently(&places[0], "w/begin", "begin").await;
    let load = Load::start(&places);
    for round in 0..6 {
        let victim = round % 3;
        if round % 2 == 0 {
            members.remove(victim).kill();
            load.goes_on().await;
            members.insert(victim, Member::start(&places[victim], &[]));
        } else {
            members[victim].signal(Signal::STOP);
            load.goes_on().await;
            members[victim].signal(Signal::CONT);
        }
        load.goes_on().await;
    }
    load.finish(&places).await;
}

/// Waits until the counter has come so far: the cluster works.
async fn progress(counted: &AtomicU64, to: u64) {
    let since = Instant::now();
    while counted.load(Ordering::SeqCst) < to {
        assert!(
            since.elapsed() < PATIENCE,
            "nothing is acknowledged any more"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_survivor_goes_on_alone_with_all_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let places = cluster(dir.path(), 3);
    let mut members: Vec<Member> = places
        .iter()
        .map(|place| Member::start(place, &[]))
        .collect();
    put_patiently(&places[2], "kept", "value").await;
    // The survivor has it too.
    assert_eq!(get_patiently(&places[0], "kept", "").await["kept"], "value");
    while let Some(member) = members.pop() {
        member.kill();
    }
    let alone = Member::start(&places[0], &["--force-new-cluster"]);
    assert_eq!(get_patiently(&places[0], "kept", "").await["kept"], "value");
    put_patiently(&places[0], "more", "value").await;
    alone.kill();
    // The flag is needed once; nothing of the old cluster comes back.
    let _alone = Member::start(&places[0], &[]);
    assert_eq!(get_patiently(&places[0], "more", "").await["more"], "value");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_becomes_a_new_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let places = cluster(dir.path(), 1);
    let file = dir.path().join("saved.db");
    let member = Member::start(&places[0], &[]);
    put_patiently(&places[0], "a", "1").await;
    let revision = put_patiently(&places[0], "b", "2").await;
    let tool = |args: &[&str]| {
        let output = Command::new(PROGRAM)
            .arg("snapshot")
            .args(args)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &said,
        )
    };
    let path = file.to_str().unwrap();
    let (saved, said) = tool(&["save", path, "--endpoint", &places[0].client]);
    assert!(saved, "{said}");
    member.kill();
    let (ok, said) = tool(&["status", path, "-o", "json"]);
    assert!(
        ok && said.contains(&format!("\"revision\":{revision}")) && said.contains("\"totalKey\":2"),
        "{said}"
    );

    let fresh = &cluster(&dir.path().join("fresh"), 1)[0];
    let flags = fresh.flags();
    let args: Vec<&str> = ["restore", path]
        .into_iter()
        .chain(flags.iter().map(String::as_str))
        .collect();
    let (restored, said) = tool(&args);
    assert!(restored, "{said}");
    let (again, said) = tool(&args);
    assert!(!again && said.contains("there is data already"), "{said}");
    let _member = Member::start(fresh, &[]);
    let found = get_patiently(fresh, "a", "z").await;
    assert_eq!(found.len(), 2);
    assert_eq!(put_patiently(fresh, "c", "3").await, revision + 1);

    // A flipped bit is seen.
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (ok, said) = tool(&["status", path]);
    assert!(!ok, "{said}");
}

#[test]
fn mistakes_are_explained() {
    let said = |args: &[&str]| {
        let output = Command::new(PROGRAM).args(args).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    // Variables without a value count as if they were not there, whatever they are for.
    let output = Command::new(PROGRAM)
        .args(["--listen-client-urls", "nothing"])
        .envs(["ETCD_WAL_DIR", "ETCD_DATA_DIR", "ETCD_SNAPSHOT_COUNT"].map(|name| (name, "")))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("is no URL"), "{text}");
    assert!(said(&["--listen-clinet-urls=http://a:1"]).contains("--listen-client-urls"));
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let refused = said(&[
        "--data-dir",
        data,
        "-discovery-srv",
        "example.org",
        "-initial-cluster",
        "default=http://localhost:2380",
    ]);
    assert!(
        refused.contains("multiple discovery or bootstrap flags are set"),
        "{refused}"
    );
    let refused = said(&[
        "--data-dir",
        data,
        "--listen-client-urls",
        "https://127.0.0.1:0",
    ]);
    assert!(refused.contains("--cert-file"), "{refused}");
    let refused = said(&[
        "--data-dir",
        data,
        "--name",
        "x",
        "--initial-cluster",
        "y=http://127.0.0.1:1",
    ]);
    assert!(refused.contains("no member called \"x\""), "{refused}");
}
