use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::machine::{Machine, Shared};
use crate::mvcc::{Change, view};
use crate::watch::{Hub, Notice, Outbox, Request};

const PATIENCE: Duration = Duration::from_secs(60);

fn put(machine: &Shared, n: i64) -> Vec<Change> {
    let mut machine = machine.write();
    let mut write = machine.kv.write();
    write.put(format!("k{}", n % 100).as_bytes(), &[b'v'; 100], 0);
    write.finish()
}

fn all() -> Request {
    Request {
        key: vec![0],
        range_end: vec![0],
        start: 1,
        ..Request::default()
    }
}

fn outbox() -> (Outbox, UnboundedReceiver<Notice>) {
    let (notices, receiver) = unbounded_channel();
    let backlog = Arc::new(AtomicUsize::new(0));
    (Outbox { notices, backlog }, receiver)
}

/// What a stream does with a notice: the revisions in it, in order, and how far it says that this is all.
fn hear(hub: &Hub, out: &Outbox, notice: Notice, heard: &mut Vec<i64>) -> i64 {
    let Notice::Events {
        events, revision, ..
    } = notice
    else {
        return 0;
    };
    heard.extend(events.iter().map(|event| {
        let pair = event.event().kv.expect("a pair");
        pair.mod_revision
    }));
    if out.sent(&events) {
        hub.resume();
    }
    revision
}

#[test]
fn who_does_not_read_is_not_told_of_all_the_past_at_once() {
    let machine: Shared = Arc::new(RwLock::new(Machine::default()));
    let count = 40_000;
    for n in 0..count {
        put(&machine, n);
    }
    let hub = Hub::start(machine.clone(), PATIENCE);
    let (out, mut notices) = outbox();
    hub.create(0, 0, all(), out.clone());
    let since = Instant::now();
    while out.backlog.load(Ordering::Relaxed) < 5000 {
        assert!(since.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    let waiting = out.backlog.load(Ordering::Relaxed);
    assert!(waiting < 10_000, "{waiting} events wait");
    assert_eq!(hub.counts(), (1, 1));

    // What is written meanwhile comes behind the rest.
    let mut heard = Vec::new();
    let (mut told, mut written) = (0, count);
    while told < count + 1001 {
        assert!(since.elapsed() < PATIENCE, "told up to {told}");
        if written < count + 1000 {
            let changes = put(&machine, written);
            hub.publish(changes, written + 2);
            written += 1;
        }
        match notices.try_recv() {
            Ok(notice) => told = told.max(hear(&hub, &out, notice, &mut heard)),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    assert!(heard.iter().copied().eq(2..=count + 1001), "in order, once");
    assert_eq!(hub.counts(), (1, 0));
}

#[test]
fn what_a_watch_from_the_past_says_is_what_was_there() {
    let machine: Shared = Arc::new(RwLock::new(Machine::default()));
    for n in 0..10 {
        put(&machine, n % 2);
    }
    let deleted = {
        let mut machine = machine.write();
        let mut write = machine.kv.write();
        write.delete(b"k0", b"");
        write.finish();
        let revision = machine.kv.revision();
        machine.kv.compact(revision).expect("in range");
        while machine.kv.reclaim(1, None) {}
        revision
    };
    let hub = Hub::start(machine.clone(), PATIENCE);
    let next =
        |notices: &mut UnboundedReceiver<Notice>| notices.blocking_recv().expect("the hub lives");
    let (out, mut notices) = outbox();
    let from = |start| Request { start, ..all() };
    hub.create(0, 1, from(deleted), out.clone());
    assert!(matches!(next(&mut notices), Notice::Created { .. }));
    let Notice::Events {
        events, revision, ..
    } = next(&mut notices)
    else {
        panic!("no events");
    };
    assert_eq!((events.len(), revision), (1, deleted));
    let event = events[0].event();
    assert_eq!(event.r#type, 1);
    assert_eq!(event.kv.map(|pair| pair.key), Some(b"k0".to_vec()));

    hub.create(0, 2, from(deleted - 1), out);
    assert!(matches!(next(&mut notices), Notice::Created { .. }));
    let gone = Notice::Compacted {
        watch: 2,
        revision: deleted,
        compact: deleted,
    };
    assert_eq!(next(&mut notices), gone);
    let change = put(&machine, 5);
    assert_eq!(view(&change[0].version.pair).mod_revision, deleted + 1);
}
