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
    store.compact(store.revision()).expect("in range");
    while store.reclaim(7, None) {}
    assert_eq!(
        (store.bytes(), store.live_keys(), store.keys.len()),
        (0, 0, 0)
    );
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
