//! Sends a script to two servers and compares what comes back, field by field.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::http::{self, Answer, Open};
use super::script::{self, Call, Step};

/// How an answer is put on the wire is the server's affair.
const FRAMING: [&str; 7] = [
    "connection",
    "content-length",
    "date",
    "grpc-metadata-content-type",
    "grpc-trailer-content-type",
    "trailer",
    "transfer-encoding",
];

/// What may differ. That it is there is compared, and of what kind it is.
pub(crate) struct Volatile<'a> {
    pub(crate) headers: &'a [&'a str],
    pub(crate) fields: &'a [&'a str],
    /// Makes alike what two versions of etcd answer differently, too.
    pub(crate) versions: fn(&mut Answer),
}

/// How many answers were compared, and those that differ.
pub(crate) fn compare(
    etcd: &str,
    ours: &str,
    text: &str,
    volatile: &Volatile<'_>,
) -> (usize, Vec<String>) {
    let mut open: HashMap<String, [Open; 2]> = HashMap::new();
    let mut differences = Vec::new();
    let mut compared = 0;
    for (line, step) in script::parse(text) {
        let sorted = line.contains("sorted=true");
        let answers = match step {
            Step::Send(call) => [etcd, ours].map(|to| send(to, &call)),
            Step::Repeat(count, call) => {
                [etcd, ours].map(|to| (1..count).fold(send(to, &call), |_, _| send(to, &call)))
            }
            Step::Until(status, call) => [etcd, ours].map(|to| until(to, status, &call)),
            Step::Open(name, call) => {
                let pair = [etcd, ours].map(|to| start(to, &call));
                let heads = [pair[0].head.clone(), pair[1].head.clone()];
                open.insert(name, pair);
                heads
            }
            Step::Lines(name, count) => {
                let pair = open.get_mut(&name).unwrap();
                pair.each_mut().map(|open| {
                    let lines = (0..count).map(|_| open.line().unwrap());
                    Answer {
                        body: lines.collect(),
                        ..open.head.clone()
                    }
                })
            }
            Step::Finish(name) => open.remove(&name).unwrap().map(|open| {
                let head = open.head.clone();
                open.finish().unwrap_or_else(|error| Answer {
                    body: format!("does not end: {error}"),
                    ..head
                })
            }),
        };
        compared += 1;
        let mut answers = answers;
        answers.iter_mut().for_each(volatile.versions);
        if line.contains(": ? ") {
            for answer in &mut answers {
                // Whose fault it is matters, in which words does not.
                answer.body.clear();
            }
        }
        let shown = answers
            .each_ref()
            .map(|answer| show(answer, sorted, volatile));
        if shown[0] != shown[1] {
            differences.push(format!(
                "{line}\n--- etcd\n{}\n--- ours\n{}",
                shown[0], shown[1]
            ));
        }
    }
    (compared, differences)
}

fn start(address: &str, call: &Call) -> Open {
    http::open(
        address,
        &call.method,
        &call.target,
        &call.headers,
        call.body.as_bytes(),
    )
    .unwrap_or_else(|error| panic!("{call:?}: {error}"))
}

pub(crate) fn send(address: &str, call: &Call) -> Answer {
    start(address, call)
        .finish()
        .unwrap_or_else(|error| panic!("{call:?}: {error}"))
}

fn until(address: &str, status: u16, call: &Call) -> Answer {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = send(address, call);
        if answer.status == status {
            return answer;
        }
        assert!(Instant::now() < deadline, "{call:?}: still {answer:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What has to be equal, as text.
fn show(answer: &Answer, sorted: bool, volatile: &Volatile<'_>) -> String {
    let mut out = format!("{}\n", answer.status);
    for (name, value) in &answer.headers {
        if FRAMING.contains(&name.as_str()) {
            continue;
        }
        if volatile.headers.contains(&name.as_str()) {
            out.push_str(&format!("{name}: some\n"));
        } else {
            out.push_str(&format!("{name}: {value}\n"));
        }
    }
    for line in answer.body.split_inclusive('\n') {
        let Ok(mut value) = serde_json::from_str::<Value>(line) else {
            out.push_str(line);
            continue;
        };
        if steady(&mut value, sorted, volatile) {
            // Nothing was touched: then every byte counts, escapes and the order of fields included.
            out.push_str(line);
        } else {
            out.push_str(&format!("{value:#}"));
        }
    }
    out
}

/// Replaces what is volatile, and sorts what has no order. Was there nothing to do?
fn steady(value: &mut Value, sorted: bool, volatile: &Volatile<'_>) -> bool {
    match value {
        Value::Object(fields) => {
            let mut same = true;
            for (name, field) in fields {
                if volatile.fields.contains(&name.as_str()) && !field.is_object() {
                    let kind = match field {
                        Value::Array(items) => format!("{} items", items.len()),
                        Value::Number(_) => "a number".into(),
                        _ => "text".into(),
                    };
                    *field = Value::String(kind);
                    same = false;
                    continue;
                }
                same &= steady(field, sorted, volatile);
                if name == "nodes"
                    && !sorted
                    && let Value::Array(nodes) = field
                {
                    nodes.sort_by_key(|node| node["key"].as_str().unwrap_or_default().to_owned());
                    same = false;
                }
            }
            same
        }
        Value::Array(items) => {
            let mut same = true;
            for item in items {
                same &= steady(item, sorted, volatile);
            }
            same
        }
        _ => true,
    }
}
