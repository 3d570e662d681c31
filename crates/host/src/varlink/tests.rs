use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::wire::Framed;
use super::*;

struct Counter(u64);

const COUNTER: Interface = Interface {
    name: "io.orlop.Counter",
    description: "interface io.orlop.Counter\n\nmethod Add(by: int) -> (sum: int)\n\nerror TooMuch (message: string)\n",
};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Add {
    by: u64,
}

impl Handler for Counter {
    fn info(&self) -> Info {
        Info::orlop("counter")
    }

    fn interfaces(&self) -> &[Interface] {
        &[COUNTER]
    }

    fn call(&mut self, call: &Call, replier: &mut Replier<'_>) -> Result<Value, VarlinkError> {
        match call.method.as_str() {
            "io.orlop.Counter.Add" => {
                let Add { by } = call.params()?;
                if by > 5 {
                    return Err(VarlinkError::message(
                        "io.orlop.Counter.TooMuch",
                        "at most 5 at a time",
                    ));
                }
                for _ in 0..by {
                    self.0 += 1;
                    replier.progress(json!({ "sum": self.0 }))?;
                }
                Ok(json!({ "sum": self.0, "peer": call.peer_uid }))
            }
            "io.orlop.Counter.Root" => call.require_root().map(|()| json!({})),
            other => Err(VarlinkError::method_not_found(other)),
        }
    }
}

/// A server on its own thread and the other end of its connection.
fn served(
    limit: usize,
) -> (
    UnixStream,
    std::thread::JoinHandle<Result<(), VarlinkError>>,
) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        server::serve(Framed::with_limit(theirs, limit), 1000, &mut Counter(0))
    });
    (ours, thread)
}

fn client() -> Client {
    Client::from_stream(served(MAX_MESSAGE).0)
        .with_timeout(Duration::from_secs(10))
        .unwrap()
}

#[test]
fn calls_answer_and_keep_state_along_a_connection() {
    let mut client = client();
    assert_eq!(
        client
            .call("io.orlop.Counter.Add", json!({"by": 2}))
            .unwrap(),
        json!({"sum": 2, "peer": 1000})
    );
    let sum: Value = client
        .call_as("io.orlop.Counter.Add", json!({"by": 3}))
        .unwrap();
    assert_eq!(sum["sum"], 5);
}

#[test]
fn more_streams_and_ends() {
    let mut client = client();
    let sums: Vec<_> = client
        .call_more("io.orlop.Counter.Add", json!({"by": 3}))
        .unwrap()
        .map(|reply| reply.unwrap()["sum"].as_u64().unwrap())
        .collect();
    assert_eq!(sums, [1, 2, 3, 3]);
    let mut errors = client
        .call_more("io.orlop.Counter.Add", json!({"by": 6}))
        .unwrap();
    assert_eq!(
        errors.next().unwrap().unwrap_err().name(),
        Some("io.orlop.Counter.TooMuch")
    );
    assert!(errors.next().is_none());
}

#[test]
fn errors_have_names_and_texts() {
    let mut client = client();
    let mut check = |method: &str, parameters: Value, expect: &str| {
        assert_eq!(
            client.call(method, parameters).unwrap_err().to_string(),
            expect
        );
    };
    check(
        "io.orlop.Counter.Add",
        json!({"by": 6}),
        "at most 5 at a time (io.orlop.Counter.TooMuch)",
    );
    check(
        "io.orlop.Counter.Sub",
        json!({}),
        r#"org.varlink.service.MethodNotFound {"method":"io.orlop.Counter.Sub"}"#,
    );
    check(
        "io.orlop.Other.X",
        json!({}),
        r#"org.varlink.service.InterfaceNotFound {"interface":"io.orlop.Other"}"#,
    );
    check(
        "io.orlop.Counter.Add",
        json!({"bye": 1}),
        r#"org.varlink.service.InvalidParameter {"parameter":"unknown field `bye`, expected `by`"}"#,
    );
    check(
        "io.orlop.Counter.Root",
        json!({}),
        "org.varlink.service.PermissionDenied",
    );
}

#[test]
fn introspection() {
    let mut client = client();
    let info = client
        .call("org.varlink.service.GetInfo", json!({}))
        .unwrap();
    assert_eq!(
        info["interfaces"],
        json!(["org.varlink.service", "io.orlop.Counter"])
    );
    assert_eq!(info["product"], "counter");
    for name in ["org.varlink.service", "io.orlop.Counter"] {
        let text = client
            .call(
                "org.varlink.service.GetInterfaceDescription",
                json!({"interface": name}),
            )
            .unwrap();
        assert!(
            text["description"]
                .as_str()
                .unwrap()
                .starts_with(&format!("interface {name}\n"))
        );
    }
}

#[test]
fn the_bytes_are_varlinks() {
    let (mut raw, _) = served(MAX_MESSAGE);
    // Two calls in one write, split at odd places, null parameters, a oneway in between.
    let calls = concat!(
        r#"{"method":"io.orlop.Counter.Add","parameters":{"by":1},"oneway":true}"#,
        "\0",
        r#"{"method":"io.orlop.Counter.Add","parameters":{"by":1},"more":true}"#,
        "\0",
        r#"{"method":"io.orlop.Counter.Nope","parameters":null}"#,
        "\0",
    );
    let (first, second) = calls.as_bytes().split_at(30);
    raw.write_all(first).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    raw.write_all(second).unwrap();
    raw.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    raw.read_to_string(&mut answer).unwrap();
    insta::assert_snapshot!(answer.replace('\0', "␀\n"), @r#"
    {"parameters":{"sum":2},"continues":true}␀
    {"parameters":{"peer":1000,"sum":2}}␀
    {"error":"org.varlink.service.MethodNotFound","parameters":{"method":"io.orlop.Counter.Nope"}}␀
    "#);
}

#[test]
fn bad_peers_lose_their_connection_only() {
    let check = |bytes: &[u8], limit: usize, expect: fn(&VarlinkError) -> bool| {
        let (mut raw, thread) = served(limit);
        raw.write_all(bytes).unwrap();
        raw.shutdown(std::net::Shutdown::Write).unwrap();
        let error = thread.join().unwrap().unwrap_err();
        assert!(expect(&error), "{error}");
    };
    check(b"nonsense\0", 100, |e| {
        matches!(e, VarlinkError::Malformed { .. })
    });
    check(b"{\"method\":\"a.b\",\"parameters\":[1]}\0", 100, |e| {
        matches!(e, VarlinkError::Malformed { .. })
    });
    check(b"{\"method\":", 100, |e| matches!(e, VarlinkError::Closed));
    check(&[b'x'; 5000], 100, |e| {
        matches!(e, VarlinkError::TooLarge { limit: 100 })
    });
}

#[test]
fn a_real_socket_with_peer_and_mode() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("io.orlop.Counter");
    assert!(Client::connect(&path).unwrap_err().is_absent());
    std::fs::write(&path, "stale").unwrap();
    let listener = Listener::bind(&path, 0o660).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
    std::thread::spawn(move || listener.serve(|| Counter(0)));
    let uid = u64::from(rustix::process::getuid().as_raw());
    for _ in 0..2 {
        let reply = Client::connect(&path)
            .unwrap()
            .call("io.orlop.Counter.Add", json!({"by": 1}))
            .unwrap();
        assert_eq!(reply, json!({"sum": 1, "peer": uid}));
    }
}

#[test]
fn a_listener_takes_short_calls_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("io.orlop.Counter");
    let listener = Listener::bind(&path, 0o600).unwrap().with_limit(200);
    std::thread::spawn(move || listener.serve(|| Counter(0)));
    let call = |parameters: Value| {
        let client = Client::connect(&path).unwrap();
        let mut client = client.with_timeout(Duration::from_secs(10)).unwrap();
        client.call("org.varlink.service.GetInterfaceDescription", parameters)
    };
    // Answers may be longer.
    let text = call(json!({"interface": "org.varlink.service"})).unwrap();
    assert!(text.to_string().len() > 200);
    assert!(call(json!({"interface": "org.varlink.service", "x": "x".repeat(200)})).is_err());
}

#[test]
fn no_user_takes_the_room_of_others() {
    use super::listen::Seats;
    let seats = std::sync::Arc::default();
    let take = |uid| Seats::take(&seats, uid);
    let mut first: Vec<_> = std::iter::from_fn(|| take(1000)).take(100).collect();
    assert_eq!(first.len(), 8);
    let mut others = Vec::new();
    for uid in 1001..1100 {
        others.extend(std::iter::from_fn(|| take(uid)).take(100));
    }
    assert_eq!(first.len() + others.len(), 48);
    let root: Vec<_> = std::iter::from_fn(|| take(0)).take(100).collect();
    assert_eq!(root.len(), 16);
    // Whoever leaves makes room.
    drop((root, others));
    assert!(take(1000).is_none() && take(1001).is_some());
    first.clear();
    assert!(take(1000).is_some());
}

#[test]
fn a_silent_service_times_out() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut client = Client::from_stream(ours)
        .with_timeout(Duration::from_millis(50))
        .unwrap();
    assert!(matches!(
        client.call("a.b.C", ()).unwrap_err(),
        VarlinkError::Timeout
    ));
}

#[test]
fn a_peer_that_does_not_read_is_given_up() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let (sender, outcome) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let client = Client::from_stream(ours).with_timeout(Duration::from_millis(100));
        // More than the socket takes.
        let long = json!({ "text": "x".repeat(MAX_MESSAGE / 2) });
        sender.send(client.unwrap().call("io.orlop.Counter.Add", long))
    });
    let outcome = outcome.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(matches!(outcome, Err(VarlinkError::Timeout)), "{outcome:?}");
}
