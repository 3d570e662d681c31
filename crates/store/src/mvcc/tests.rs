use super::*;
use crate::pb::etcdserverpb as rpc;

fn put(store: &mut Store, key: &str, value: &str) -> i64 {
    let mut write = store.write();
    write.put(key.as_bytes(), value.as_bytes(), 0);
    write.finish();
    store.revision()
}

fn values(store: &Store, revision: i64) -> String {
    let found: Vec<_> = store
        .alive(b"\0", b"\0", revision)
        .map(|(key, version)| {
            let value = view(&version.pair).value;
            format!(
                "{}={}",
                String::from_utf8_lossy(key),
                String::from_utf8_lossy(value)
            )
        })
        .collect();
    found.join(" ")
}

#[test]
fn every_revision_can_be_read_until_it_is_compacted() {
    let mut store = Store::default();
    put(&mut store, "a", "1");
    put(&mut store, "b", "1");
    put(&mut store, "a", "2");
    let mut write = store.write();
    assert_eq!(write.delete(b"a", b"").len(), 1);
    write.finish();
    put(&mut store, "a", "3");
    let seen: Vec<_> = (2..=6).map(|r| values(&store, r)).collect();
    assert_eq!(seen, ["a=1", "a=1 b=1", "a=2 b=1", "b=1", "a=3 b=1"]);
    assert_eq!(
        view(&store.get(b"a").expect("alive").pair).create_revision,
        6
    );

    store.compact(5).expect("in range");
    while store.reclaim(1, None) {}
    assert_eq!(values(&store, 5), "b=1");
    assert_eq!(values(&store, 6), "a=3 b=1");
    assert_eq!(store.compact(5), Err(error::COMPACTED));
    assert_eq!(store.compact(7), Err(error::FUTURE_REVISION));
    assert_eq!(store.live_keys(), 2);
}

#[test]
fn compaction_gives_all_space_back() {
    let mut store = Store::default();
    for round in 0..10 {
        for key in 0..50 {
            put(&mut store, &format!("k{key}"), &format!("{round}"));
        }
    }
    let mut write = store.write();
    write.delete(b"k", b"l");
    write.finish();
    store.bump(1);
    store.compact(store.revision()).expect("in range");
    while store.reclaim(7, None) {}
    assert_eq!(
        (store.bytes(), store.live_keys(), store.keys.len()),
        (0, 0, 0)
    );
}

fn told(store: &Store, from: i64) -> Vec<(i64, bool)> {
    let changes = store.changes(b"\0", b"\0", from, i64::MAX);
    let told = |change: &Change| (change.version.main, change.version.dead);
    changes.iter().map(told).collect()
}

#[test]
fn who_watches_from_a_compaction_on_hears_of_what_was_deleted_just_then() {
    for steps in [1, 100] {
        let mut store = Store::default();
        put(&mut store, "a", "1");
        put(&mut store, "a", "2");
        put(&mut store, "b", "1");
        let mut write = store.write();
        write.delete(b"a", b"c");
        write.finish();
        let deleted = store.revision();
        put(&mut store, "b", "2");
        let hash = |store: &Store| store.hash(store.revision());

        store.compact(deleted).expect("in range");
        let before = hash(&store);
        while store.reclaim(steps, None) {}
        assert!(!store.wants_reclaim());
        let expected = [(deleted, true), (deleted, true), (deleted + 1, false)];
        assert_eq!(told(&store, deleted), expected);
        assert_eq!(values(&store, deleted), "");
        assert_eq!((store.live_keys(), hash(&store)), (1, before));

        // A member that starts now, from a checkpoint.
        let mut copy = loaded(store.page(None, i64::MAX, 10), store.revision());
        copy.compact(deleted).expect("in range");
        while copy.reclaim(steps, None) {}
        assert_eq!(told(&copy, deleted), expected);

        for store in [&mut store, &mut copy] {
            store.compact(deleted + 1).expect("in range");
            while store.reclaim(steps, None) {}
            assert_eq!(told(store, 0), [(deleted + 1, false)]);
            assert_eq!((store.keys.len(), store.tombstones.len()), (1, 0));
        }
    }
}

#[test]
fn the_hash_does_not_depend_on_when_space_is_reclaimed() {
    let mut store = Store::default();
    for i in 0..20 {
        put(&mut store, &format!("k{}", i % 3), &i.to_string());
    }
    let mut write = store.write();
    write.delete(b"k0", b"");
    write.finish();
    store.compact(store.revision()).expect("in range");
    let before = store.hash(store.revision());
    while store.reclaim(1, None) {}
    assert_eq!(store.hash(store.revision()), before);
}

fn loaded(page: Vec<(Key, Vec<Unread>)>, revision: i64) -> Store {
    let mut loading = Loading::new(revision, -1, None);
    for version in page.into_iter().flat_map(|(_, versions)| versions) {
        let version = version.read();
        assert!(loading.take(Loaded {
            main: version.main,
            sub: version.sub,
            dead: version.dead,
            pair: &version.pair.0,
        }));
    }
    loading.done().0
}

#[test]
fn a_page_holds_what_there_was() {
    let mut store = Store::default();
    put(&mut store, "a", "1");
    let then = put(&mut store, "b", "1");
    put(&mut store, "a", "2");
    put(&mut store, "c", "1");
    let page = store.page(None, then, 10);
    let counts: Vec<_> = page.iter().map(|(k, v)| (k[0], v.len())).collect();
    assert_eq!(counts, [(b'a', 1), (b'b', 1), (b'c', 0)]);

    let copy = loaded(page, then);
    assert_eq!(values(&copy, then), values(&store, then));
    assert_eq!(copy.hash(then), store.hash(then));
}

#[test]
fn a_key_is_written_once_per_transaction() {
    let put = |key: &str| rpc::RequestOp {
        request: Some(rpc::request_op::Request::RequestPut(rpc::PutRequest {
            key: key.into(),
            ..Default::default()
        })),
    };
    let delete = |key: &str, end: &str| rpc::RequestOp {
        request: Some(rpc::request_op::Request::RequestDeleteRange(
            rpc::DeleteRangeRequest {
                key: key.into(),
                range_end: end.into(),
                ..Default::default()
            },
        )),
    };
    let nested = |success, failure| rpc::RequestOp {
        request: Some(rpc::request_op::Request::RequestTxn(rpc::TxnRequest {
            compare: vec![],
            success,
            failure,
        })),
    };
    let cases = [
        (vec![put("a"), put("b")], Ok(())),
        (vec![put("a"), put("a")], Err(error::DUPLICATE_KEY)),
        (vec![delete("a", "c"), put("b")], Err(error::DUPLICATE_KEY)),
        (vec![delete("a", "c"), delete("b", "d")], Ok(())),
        (vec![nested(vec![put("a")], vec![put("a")])], Ok(())),
        (
            vec![nested(vec![put("a")], vec![]), put("a")],
            Err(error::DUPLICATE_KEY),
        ),
        (vec![put(""); 1], Err(error::EMPTY_KEY)),
        (vec![put("a"); 4], Err(error::TOO_MANY_OPS)),
    ];
    for (success, expected) in cases {
        let request = rpc::TxnRequest {
            success,
            ..Default::default()
        };
        assert_eq!(check_txn(&request, 3), expected);
    }
}

#[test]
fn the_past_is_found_in_pieces_as_it_is_as_a_whole() {
    let mut store = Store::default();
    for i in 0..300 {
        match i % 10 {
            // One revision that is longer than what is looked for at once.
            5 => {
                let mut write = store.write();
                for key in 0..(i % 40) {
                    write.put(format!("many{key:02}").as_bytes(), b"v", 0);
                }
                write.finish();
            }
            7 => {
                let mut write = store.write();
                write.delete(b"many", b"many9");
                write.finish();
            }
            _ => {
                put(&mut store, &format!("k{}", i % 7), "v");
            }
        }
    }
    let place = |change: &Change| {
        let version = &change.version;
        (version.main, version.sub, version.dead, change.key.clone())
    };
    for (key, end) in [
        (&b"\0"[..], &b"\0"[..]),
        (b"k3", b""),
        (b"m", b"n"),
        (b"z", b"a"),
    ] {
        let whole = store.changes(key, end, 10, 250);
        for (limit, keys) in [(1, 1), (5, 3), (20, 100), (1000, 2)] {
            let mut pieces = Vec::new();
            let mut from = 10;
            while from <= 250 {
                let mut search = Search::new(key, end, (from, 250), limit);
                while search.step(&store, keys) {}
                let (found, to) = search.done();
                assert!(found.iter().all(|past| (from..=to).contains(&past.main())));
                let one = found.first().map(Past::main) == found.last().map(Past::main);
                assert!(found.len() < 2 * limit || one, "{} found", found.len());
                pieces.extend(found.into_iter().map(|past| place(&past.read())));
                from = to + 1;
            }
            let whole: Vec<_> = whole.iter().map(place).collect();
            assert!(pieces == whole, "{limit} {keys}");
        }
    }
}
