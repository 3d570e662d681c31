//! What operators do to a cluster: members come, are promoted, lose their disk and come back.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use store::pb::etcdserverpb as rpc;
use store::pb::etcdserverpb::cluster_client::ClusterClient;
use store::pb::etcdserverpb::watch_client::WatchClient;
use store::pb::etcdserverpb::watch_request::RequestUnion;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::faults;
use crate::members::{Member, Place, cluster};
use crate::{PATIENCE, get, get_patiently, put_patiently};

async fn members_of(place: &Place) -> ClusterClient<Channel> {
    ClusterClient::connect(place.client.clone()).await.unwrap()
}

/// Again until the cluster is ready for the change; what it said last if it never is.
macro_rules! patiently {
    ($place:expr, $call:ident, $request:expr) => {{
        let since = Instant::now();
        loop {
            match members_of($place).await.$call($request).await {
                Ok(answer) => break answer.into_inner(),
                Err(said) => assert!(since.elapsed() < PATIENCE, "{said}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }};
}

fn newcomer(url: &str, is_learner: bool) -> rpc::MemberAddRequest {
    rpc::MemberAddRequest {
        peer_ur_ls: vec![url.to_owned()],
        is_learner,
    }
}

async fn learner_refuses(place: &Place) -> Status {
    let since = Instant::now();
    loop {
        let request = rpc::RangeRequest {
            key: b"a".to_vec(),
            ..Default::default()
        };
        if let Some(mut client) = crate::kv(place).await {
            match client.range(request).await {
                Err(status)
                    if status.code() == Code::Unavailable
                        && !status.message().contains("learner") => {}
                Err(status) => return status,
                Ok(_) => panic!("a learner answered a linearizable read"),
            }
        }
        assert!(since.elapsed() < PATIENCE, "the learner does not start");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const EXISTING: [&str; 2] = ["--initial-cluster-state", "existing"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_catches_up_and_is_promoted() {
    let dir = tempfile::tempdir().unwrap();
    let places = cluster(dir.path(), 2);
    let alone = places[0].clone().among(&places[..1]);
    let second = places[1].clone();
    let leader = Member::start(&alone, &[]);
    put_patiently(&alone, "a", "1").await;
    let added = patiently!(&alone, member_add, newcomer(&second.peer, true));
    let id = added.member.unwrap().id;
    // It has not even started: it cannot vote yet.
    let early = members_of(&alone)
        .await
        .member_promote(rpc::MemberPromoteRequest { id })
        .await
        .unwrap_err();
    assert_eq!(
        early.message(),
        "etcdserver: can only promote a learner member which is in sync with leader"
    );
    let follower = Member::start(&second, &EXISTING);
    let refused = learner_refuses(&second).await;
    assert_eq!(
        refused.message(),
        "etcdserver: rpc not supported for learner"
    );
    // A learner is no voter: without it, writes go on.
    put_patiently(&alone, "b", "2").await;
    patiently!(&alone, member_promote, rpc::MemberPromoteRequest { id });
    let found = get_patiently(&second, "a", "z").await;
    assert_eq!(found.len(), 2, "{found:?}");
    put_patiently(&second, "c", "3").await;
    // Two voters now: alone, neither can write.
    leader.kill();
    assert!(crate::put(&second, "d", "4").await.is_none());
    drop(follower);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_its_disk_is_added_again() {
    let dir = tempfile::tempdir().unwrap();
    let places = cluster(dir.path(), 3);
    let mut members: Vec<Member> = places.iter().map(|p| Member::start(p, &[])).collect();
    put_patiently(&places[0], "a", "1").await;
    assert_eq!(get_patiently(&places[2], "a", "").await["a"], "1");
    members.pop().unwrap().kill();
    std::fs::remove_dir_all(places[2].member_dir().parent().unwrap()).unwrap();
    put_patiently(&places[0], "b", "2").await;

    // Just started again it would vote twice; it says what to do instead.
    let mut hasty = Member::start(&places[2], &EXISTING);
    assert_eq!(hasty.ended(PATIENCE), Some(false));
    let log = std::fs::read_to_string(places[2].log()).unwrap();
    assert!(log.contains("remove the member and add it again"), "{log}");

    let list = rpc::MemberListRequest { linearizable: true };
    let listed = patiently!(&places[0], member_list, list);
    let lost = listed.members.iter().find(|m| m.name == places[2].name);
    let id = lost.unwrap().id;
    patiently!(&places[0], member_remove, rpc::MemberRemoveRequest { id });
    patiently!(&places[0], member_add, newcomer(&places[2].peer, false));
    members.push(Member::start(&places[2], &EXISTING));
    assert_eq!(get_patiently(&places[2], "a", "z").await.len(), 2);
    // It votes: with one of the others gone, the two carry on.
    members.remove(0).kill();
    put_patiently(&places[2], "c", "3").await;
    assert_eq!(get_patiently(&places[1], "a", "z").await.len(), 3);
}

/// The disk of the one who receives fails once, at each step: the leader sends again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_cannot_be_stored_is_sent_again() {
    if !faults::strace_is_there() {
        return;
    }
    for (call, how) in [
        ("openat", "error=ENOSPC:when=1"),
        ("write", "error=ENOSPC:when=1"),
        ("write", "error=EIO:when=2"),
        ("fsync", "error=EIO:when=1"),
        ("rename", "error=EIO:when=1"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let places = cluster(dir.path(), 2);
        let alone = places[0].clone().among(&places[..1]);
        let _leader = Member::start(&alone, &[]);
        let value = "x".repeat(200_000);
        for n in 0..8 {
            put_patiently(&alone, &format!("k/{n}"), &value).await;
        }
        let status = rpc::MemberListRequest::default();
        let listed = patiently!(&alone, member_list, status);
        let sender = listed.members[0].id;
        patiently!(&alone, member_add, newcomer(&places[1].peer, true));
        let part = format!("snap/from-{sender:x}.part");
        let front = faults::traced(&places[1], &part, call, how);
        let mut learner = Member::start_under(&places[1], &EXISTING, &front);
        let since = Instant::now();
        let log = |place: &Place| std::fs::read_to_string(place.log()).unwrap();
        while !log(&places[1]).contains("received a snapshot") {
            let both = || format!("{}\n{}", log(&alone), log(&places[1]));
            assert!(learner.lives(), "{call} {how}: {}", both());
            assert!(since.elapsed() < PATIENCE, "{call} {how}: {}", both());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let said = log(&alone);
        assert!(
            said.contains("cannot send a snapshot"),
            "{call} {how}: {said}"
        );
        assert!(
            said.contains(&part),
            "{call} {how}: no file is named: {said}"
        );
    }
}

/// What a line of the log says, in either form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_json_says_when_it_serves() {
    let dir = tempfile::tempdir().unwrap();
    let place = &cluster(dir.path(), 1)[0];
    let _member = Member::start(place, &["--log-format", "json"]);
    put_patiently(place, "a", "1").await;
    let since = Instant::now();
    loop {
        let log = std::fs::read_to_string(place.log()).unwrap();
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        let lines: Vec<serde_json::Value> = whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let ready = |line: &&serde_json::Value| line["message"] == "ready to serve client requests";
        if let Some(line) = lines.iter().find(ready) {
            assert!(place.client.ends_with(line["address"].as_str().unwrap()));
            return;
        }
        assert!(since.elapsed() < PATIENCE, "{log}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn openssl(dir: &Path, args: &str) {
    let output = Command::new("openssl")
        .args(args.split(' '))
        .current_dir(dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {args}: {said}");
}

fn gateway(place: &Place, path: &str, token: &str, body: &str) -> serde_json::Value {
    let output = Command::new("curl")
        .args(["-sS", "-H", &format!("Authorization: {token}"), "-d", body])
        .arg(format!("{}/v3/{path}", place.client))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {text}"))
}

/// Two members with a pair of keys: what one signs, the other takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_signed_with_keys_of_openssl() {
    for (method, private, public) in [
        ("RS256", "genrsa -out key.pem 2048", "rsa"),
        ("RS512", "genrsa -traditional -out key.pem 2048", "rsa"),
        (
            "ES256",
            "ecparam -name prime256v1 -genkey -noout -out key.pem",
            "ec",
        ),
        (
            "ES256",
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem",
            "ec",
        ),
        ("EdDSA", "genpkey -algorithm ed25519 -out key.pem", "pkey"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        openssl(dir.path(), private);
        openssl(
            dir.path(),
            &format!("{public} -in key.pem -pubout -out pub.pem"),
        );
        let at = |file: &str| dir.path().join(file).display().to_string();
        let token = format!(
            "jwt,priv-key={},pub-key={},sign-method={method},ttl=10m",
            at("key.pem"),
            at("pub.pem")
        );
        let places = cluster(dir.path(), 2);
        let _members: Vec<Member> = places
            .iter()
            .map(|place| Member::start(place, &["--auth-token", &token]))
            .collect();
        put_patiently(&places[0], "a", "1").await;
        let first = |path, body| gateway(&places[0], path, "", body);
        first("auth/user/add", r#"{"name":"root","password":"secret"}"#);
        first("auth/role/add", r#"{"name":"root"}"#);
        first("auth/user/grant", r#"{"user":"root","role":"root"}"#);
        first("auth/enable", "{}");
        let answer = first(
            "auth/authenticate",
            r#"{"name":"root","password":"secret"}"#,
        );
        let token = answer["token"]
            .as_str()
            .unwrap_or_else(|| panic!("{method}: {answer}"));
        assert_eq!(token.matches('.').count(), 2, "{token}");
        // By a read that waits for what the first has, the second knows the users too.
        let since = Instant::now();
        loop {
            let found = gateway(&places[1], "kv/range", token, r#"{"key":"YQ=="}"#);
            if found["kvs"][0]["value"] == "MQ==" {
                break;
            }
            assert!(since.elapsed() < PATIENCE, "{method}: {found}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let forged = format!("{}x", &token[..token.len() - 4]);
        let refused = gateway(&places[1], "kv/range", &forged, r#"{"key":"YQ=="}"#);
        assert_eq!(
            refused["message"], "etcdserver: invalid auth token",
            "{refused}"
        );
        assert!(get(&places[1], "a", "").await.is_none(), "without a token");
    }
}

/// A stream of watches lives for days; what its token is worth may change in a moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_watch_of_a_stream_is_permitted_by_what_holds_when_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let place = &cluster(dir.path(), 1)[0];
    let _member = Member::start(place, &["--bcrypt-cost", "4"]);
    put_patiently(place, "a", "1").await;
    let login = |name: &str| {
        let body = format!(r#"{{"name":"{name}","password":"secret"}}"#);
        let answer = gateway(place, "auth/authenticate", "", &body);
        answer["token"].as_str().unwrap().to_owned()
    };
    for (path, body) in [
        ("auth/user/add", r#"{"name":"root","password":"secret"}"#),
        ("auth/role/add", r#"{"name":"root"}"#),
        ("auth/user/grant", r#"{"user":"root","role":"root"}"#),
        ("auth/user/add", r#"{"name":"reader","password":"secret"}"#),
        ("auth/role/add", r#"{"name":"reading"}"#),
        ("auth/user/grant", r#"{"user":"reader","role":"reading"}"#),
        (
            "auth/role/grant",
            r#"{"name":"reading","perm":{"permType":"READ","key":"YQ=="}}"#,
        ),
        ("auth/enable", "{}"),
    ] {
        gateway(place, path, "", body);
    }
    let (root, reader) = (login("root"), login("reader"));

    let (requests, receiver) = tokio::sync::mpsc::channel(8);
    let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut request = tonic::Request::new(receiver);
    request
        .metadata_mut()
        .insert("token", reader.parse().unwrap());
    let mut client = WatchClient::connect(place.client.clone()).await.unwrap();
    let mut answers = client.watch(request).await.unwrap().into_inner();
    let mut watch = async |key: &str| {
        let create = rpc::WatchCreateRequest {
            key: key.into(),
            ..Default::default()
        };
        let request = rpc::WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        requests.send(request).await.unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        assert!(answer.created, "{answer:?}");
        (answer.canceled, answer.cancel_reason)
    };
    let denied = (
        true,
        "rpc error: code = PermissionDenied desc = etcdserver: permission denied".to_owned(),
    );
    assert_eq!(watch("a").await, (false, String::new()));
    assert_eq!(watch("b").await, denied);
    gateway(
        place,
        "auth/role/grant",
        &root,
        r#"{"name":"reading","perm":{"permType":"READ","key":"Yg=="}}"#,
    );
    assert_eq!(watch("a").await, (false, String::new()));
    assert_eq!(watch("b").await, (false, String::new()));
    gateway(
        place,
        "auth/role/revoke",
        &root,
        r#"{"role":"reading","key":"YQ=="}"#,
    );
    assert_eq!(watch("a").await, denied);
    gateway(place, "auth/user/delete", &root, r#"{"name":"reader"}"#);
    let (canceled, reason) = watch("b").await;
    assert!(
        canceled && reason.contains("invalid auth token"),
        "{reason}"
    );
}

/// The last segment that has anything in it, and where its records end.
fn tail(place: &Place) -> (std::path::PathBuf, Vec<u8>, usize) {
    let mut files: Vec<_> = std::fs::read_dir(place.member_dir().join("wal"))
        .unwrap()
        .map(|f| f.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "wal"))
        .collect();
    files.sort();
    let file = files.pop().unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let end = bytes.iter().rposition(|b| *b != 0).unwrap() + 1;
    (file, bytes, end)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_end_of_the_log_is_cut_off_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let place = &cluster(dir.path(), 1)[0];
    let fill = async |from: usize| {
        let member = Member::start(place, &[]);
        for n in from..from + 20 {
            put_patiently(place, &format!("k/{n:03}"), &"v".repeat(500)).await;
        }
        member.kill();
    };
    fill(0).await;

    // A write that was torn off: half a record, none of which had been acknowledged.
    let (file, sound, end) = tail(place);
    let mut torn = sound.clone();
    let half = sound[end - 400..end - 100].to_vec();
    torn[end..end + half.len()].copy_from_slice(&half);
    std::fs::write(&file, &torn).unwrap();
    fill(20).await;
    let log = std::fs::read_to_string(place.log()).unwrap();
    assert!(
        log.contains("cut off the unfinished end of the log"),
        "{log}"
    );
    // The file ends before its zeros: the disk was full, or a copy was cut.
    let (file, sound, end) = tail(place);
    std::fs::write(&file, &sound[..end]).unwrap();
    fill(40).await;
    let member = Member::start(place, &[]);
    assert_eq!(get_patiently(place, "k/", "k0").await.len(), 60);
    member.kill();

    // A flipped bit in what was acknowledged, and a hole in it: refused, and nothing is changed.
    let (file, sound, end) = tail(place);
    let flipped = |at: usize| {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    let mut hole = sound.clone();
    hole[end / 2..end / 2 + 600].fill(0);
    for damaged in [flipped(end / 2), flipped(end - 3000), hole] {
        std::fs::write(&file, &damaged).unwrap();
        let before = std::fs::read_to_string(place.log()).unwrap().len();
        let mut member = Member::start(place, &[]);
        assert_eq!(member.ended(PATIENCE), Some(false));
        let log = std::fs::read_to_string(place.log()).unwrap()[before..].to_owned();
        let name = file.to_str().unwrap();
        assert!(log.contains(&format!("{name}: damaged at byte ")), "{log}");
        assert_eq!(
            std::fs::read(&file).unwrap(),
            damaged,
            "the evidence is gone"
        );
    }
    // With the bits as they were, everything is there.
    std::fs::write(&file, &sound).unwrap();
    let _member = Member::start(place, &[]);
    assert_eq!(get_patiently(place, "k/", "k0").await.len(), 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let place = &cluster(dir.path(), 1)[0];
    let member = Member::start(place, &[]);
    put_patiently(place, "a", "1").await;
    member.kill();
    let snap = place.member_dir().join("snap");
    let file = std::fs::read_dir(snap)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let sound = std::fs::read(&file).unwrap();
    let mut flipped = sound.clone();
    flipped[20] ^= 1;
    for damaged in [flipped, sound[..18].to_vec()] {
        std::fs::write(&file, damaged).unwrap();
        let before = std::fs::read_to_string(place.log()).unwrap().len();
        let mut member = Member::start(place, &[]);
        assert_eq!(member.ended(PATIENCE), Some(false));
        let log = std::fs::read_to_string(place.log()).unwrap()[before..].to_owned();
        let name = file.to_str().unwrap();
        assert!(log.contains(name) && log.contains("at byte 8"), "{log}");
    }
}

fn put_of(n: usize) -> rpc::RequestOp {
    let put = rpc::PutRequest {
        key: format!("s/{n:05}").into_bytes(),
        value: n.to_string().into_bytes(),
        ..Default::default()
    };
    rpc::RequestOp {
        request: Some(rpc::request_op::Request::RequestPut(put)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_a_range_is_the_range_at_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let place = &cluster(dir.path(), 1)[0];
    let _member = Member::start(place, &[]);
    put_patiently(place, "a", "1").await;
    let mut kv = crate::kv(place).await.unwrap();
    for first in (0..5000).step_by(100) {
        let request = rpc::TxnRequest {
            success: (first..first + 100).map(put_of).collect(),
            ..Default::default()
        };
        kv.txn(request).await.unwrap();
    }
    let range = |limit| rpc::RangeRequest {
        key: b"s/".to_vec(),
        range_end: b"s0".to_vec(),
        limit,
        ..Default::default()
    };
    for limit in [0, 3, 2500] {
        let whole = kv.range(range(limit)).await.unwrap().into_inner();
        let mut pieces = kv.range_stream(range(limit)).await.unwrap().into_inner();
        let mut merged = Vec::new();
        while let Some(piece) = pieces.message().await.unwrap() {
            // What is written meanwhile is of a later revision.
            put_patiently(place, "s/00001x", "late").await;
            merged.push(piece.range_response.unwrap());
        }
        let count = merged.len();
        let kvs: Vec<_> = merged.iter().flat_map(|piece| piece.kvs.clone()).collect();
        let more = merged.iter().any(|piece| piece.more);
        assert!(kvs == whole.kvs, "limit {limit}");
        assert_eq!((more, merged[0].count), (whole.more, whole.count));
        assert!(limit == 3 || count > 1, "limit {limit}: {count} pieces");
        let delete = rpc::DeleteRangeRequest {
            key: b"s/00001x".to_vec(),
            ..Default::default()
        };
        kv.delete_range(delete).await.unwrap();
    }
}
