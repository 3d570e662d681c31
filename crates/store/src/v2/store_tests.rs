use super::*;

const SECOND: i64 = 1_000_000_000;
/// Some time this century: earlier expiries mean "never".
const NOW: i64 = 1_700_000_000 * SECOND;

fn request(method: &str, path: &str, change: impl FnOnce(&mut Request)) -> Request {
    let mut request = Request {
        method: method.into(),
        path: format!("{KEYS}{path}"),
        time: NOW,
        ..Request::default()
    };
    change(&mut request);
    request
}

fn put(path: &str, value: &str) -> Request {
    request("PUT", path, |r| r.val = value.into())
}

fn expiring(path: &str, seconds: i64) -> Request {
    request("PUT", path, |r| r.expiration = NOW + seconds * SECOND)
}

fn applied(requests: &[Request]) -> Store {
    let mut store = Store::default();
    for request in requests {
        store.apply(request).unwrap();
    }
    store
}

/// The error as `code cause`, with the user's names.
fn refused(store: &mut Store, request: &Request) -> String {
    let error = store.apply(request).unwrap_err();
    let cause = error.cause.strip_prefix(KEYS).unwrap_or(&error.cause);
    format!("{} {cause}", error.code.number())
}

#[test]
fn refusals_name_the_first_component_in_the_way() {
    let mut store = applied(&[put("/file", "x"), put("/dir/a", "y")]);
    for (request, expected) in [
        (put("/file/below", ""), "104 /file"),
        (put("/dir", ""), "102 /dir"),
        (put("", ""), "107 /"),
        (request("DELETE", "/dir", |_| {}), "102 /dir"),
        (request("DELETE", "/dir", |r| r.dir = true), "108 /dir"),
        (request("DELETE", "/no/such", |_| {}), "100 /no"),
        (
            request("PUT", "/no", |r| r.prev_exist = Some(true)),
            "100 /no",
        ),
        (
            request("PUT", "/file", |r| r.prev_exist = Some(false)),
            "105 /file",
        ),
        (
            request("PUT", "/file", |r| r.prev_value = "z".into()),
            "101 [z != x]",
        ),
        (
            request("DELETE", "/file", |r| r.prev_index = 9),
            "101 [9 != 1]",
        ),
        (
            request("PUT", "/file", |r| {
                r.prev_index = 9;
                r.prev_value = "z".into();
            }),
            "101 [z != x] [9 != 1]",
        ),
    ] {
        assert_eq!(refused(&mut store, &request), expected);
    }
    assert_eq!(store.index(), 2, "a refusal leaves the index alone");
}

#[test]
fn a_path_of_many_components_is_refused_before_it_ends_the_stack() {
    let mut store = Store::default();
    let deep = "/a".repeat(30_000);
    assert!(refused(&mut store, &put(&deep, "")).starts_with("209 "));
    let nearly = "/a".repeat(MAX_DEPTH - 1);
    store.apply(&put(&nearly, "")).unwrap();
    store.get(KEYS, true, NOW).unwrap();
    Store::default().restore(&store.snapshot()).unwrap();
}

#[test]
fn keys_expire_when_the_log_says_so_and_directories_take_their_children() {
    let mut store = applied(&[
        request("PUT", "/dir", |r| {
            r.dir = true;
            r.expiration = NOW + 2 * SECOND;
        }),
        put("/dir/child", ""),
        expiring("/dir/own", 9),
        expiring("/later", 5),
    ]);
    assert_eq!(store.next_expiry(), Some(NOW + 2 * SECOND));
    store.apply(&Request::sync(NOW + SECOND)).unwrap();
    assert_eq!(store.index(), 4);
    store.apply(&Request::sync(NOW + 2 * SECOND)).unwrap();
    assert_eq!(store.index(), 5);
    assert!(store.get("/1/dir/own", false, NOW).is_err());
    assert_eq!(store.next_expiry(), Some(NOW + 5 * SECOND));
    // Setting without a time to live makes it stay.
    store.apply(&put("/later", "")).unwrap();
    assert_eq!(store.next_expiry(), None);
}

#[test]
fn a_refresh_keeps_the_value_and_tells_nobody() {
    let mut store = applied(&[put("/a", "kept")]);
    let mut watch = store.watch("/1/a", false, false, 0).unwrap();
    let refresh = request("PUT", "/a", |r| {
        r.refresh = Some(true);
        r.prev_exist = Some(true);
        r.expiration = NOW + SECOND;
    });
    let event = store.apply(&refresh).unwrap().unwrap();
    assert_eq!(event.node.as_ref().unwrap().value.as_deref(), Some("kept"));
    store.apply(&put("/a", "new")).unwrap();
    let seen = futures(watch.next()).unwrap();
    assert_eq!(seen.node.as_ref().unwrap().value.as_deref(), Some("new"));
}

/// The result of a future that needs no waiting.
fn futures<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

#[test]
fn watchers_get_what_they_asked_for_once() {
    let mut store = applied(&[put("/dir/a", "1")]);
    let mut exact = store.watch("/1/dir/a", false, false, 0).unwrap();
    let mut below = store.watch("/1/dir", true, true, 0).unwrap();
    let mut not_below = store.watch("/1/dir", false, false, 0).unwrap();
    store.apply(&put("/dir/_hidden", "")).unwrap();
    store.apply(&put("/dir/a", "2")).unwrap();
    store
        .apply(&request("DELETE", "/dir", |r| r.recursive = true))
        .unwrap();

    assert_eq!(futures(exact.next()).unwrap().index(), 3);
    assert!(futures(exact.next()).is_none());
    assert_eq!(
        futures(below.next()).unwrap().index(),
        3,
        "hidden keys stay hidden"
    );
    assert_eq!(futures(below.next()).unwrap().action, Action::Delete);
    assert_eq!(futures(not_below.next()).unwrap().index(), 4);
    let missed = store.watch("/1/dir/a", false, false, 2).unwrap();
    assert_eq!(missed.start_index, 4);
    drop((exact, below, not_below, missed));
    assert!(
        store.stats().contains("\"watchers\":0"),
        "{}",
        store.stats()
    );
}

#[test]
fn a_stream_begins_in_the_past_and_goes_on() {
    let mut store = applied(&[put("/a", "1"), put("/b", ""), put("/a", "2")]);
    let mut stream = store.watch("/1/a", false, true, 1).unwrap();
    store.apply(&put("/a", "3")).unwrap();
    for index in [1, 3, 4] {
        assert_eq!(futures(stream.next()).unwrap().index(), index);
    }
}

#[test]
fn a_slow_watcher_is_sent_away() {
    let mut store = Store::default();
    let mut slow = store.watch("/1/a", false, true, 0).unwrap();
    for _ in 0..102 {
        store.apply(&put("/a", "")).unwrap();
    }
    let mut seen = 0;
    while futures(slow.next()).is_some() {
        seen += 1;
    }
    assert_eq!(seen, 100);
}

#[test]
fn history_ends_after_a_thousand_events() {
    let mut store = Store::default();
    for _ in 0..1002 {
        store.apply(&put("/a", "")).unwrap();
    }
    let error = store.watch("/1/a", false, false, 2).unwrap_err();
    assert_eq!(error.code, Code::EventIndexCleared);
    assert_eq!(error.cause, "the requested history has been cleared [3/2]");
    assert_eq!(error.index, 1002);
    assert!(store.watch("/1/a", false, false, 3).is_ok());
}

#[test]
fn a_snapshot_is_the_whole_state() {
    let mut store = applied(&[
        put("/a/b", "1"),
        request("PUT", "/empty", |r| r.dir = true),
        expiring("/e", 5),
        request("POST", "/queue", |r| r.val = "x".into()),
        request("DELETE", "/a/b", |_| {}),
    ]);
    let mut copy = Store::default();
    let mut watch = copy.watch("/1", true, true, 0).unwrap();
    copy.restore(&store.snapshot()).unwrap();
    assert!(futures(watch.next()).is_none(), "watchers start anew");
    assert_eq!(copy.root, store.root);
    assert_eq!(copy.expiring, store.expiring);
    // And what follows is the same.
    for request in [
        Request::sync(NOW + 6 * SECOND),
        request("POST", "/queue", |_| {}),
        put("/a/b", "2"),
    ] {
        assert_eq!(copy.apply(&request), store.apply(&request));
    }
    assert_eq!(copy.snapshot(), store.snapshot());
    assert!(copy.restore(b"{").is_err());
    assert_eq!(
        copy.index(),
        store.index(),
        "a bad snapshot changes nothing"
    );
}

mod any_requests {
    use super::*;
    use proptest::prelude::*;

    fn requests() -> impl Strategy<Value = Vec<Request>> {
        let method = prop::sample::select(vec!["PUT", "PUT", "POST", "DELETE", "SYNC", "QGET"]);
        let path = prop::collection::vec(prop::sample::select(vec!["a", "b", "_h", ".."]), 0..4);
        let request = (
            (method, path, "[xy]?", any::<bool>(), any::<bool>()),
            (0u64..6, "[xy]?", any::<Option<bool>>(), 0i64..4, 0i64..4),
            any::<Option<bool>>(),
        );
        let request = request.prop_map(
            |(
                (method, path, val, dir, recursive),
                (prev_index, prev_value, prev_exist, ttl, time),
                refresh,
            )| Request {
                method: method.into(),
                path: format!("{KEYS}/{}", path.join("/")),
                val,
                dir,
                recursive,
                prev_index,
                prev_value,
                prev_exist,
                refresh,
                expiration: if ttl == 0 { 0 } else { NOW + ttl * SECOND },
                time: NOW + time * SECOND,
                ..Request::default()
            },
        );
        prop::collection::vec(request, 0..40)
    }

    proptest! {
        /// The index counts the events, the list of expiries fits the tree, and a copy by snapshot goes on the same way.
        #[test]
        fn keep_the_store_in_order(requests in requests(), cut in 0usize..40) {
            let mut store = Store::default();
            let mut copy = None;
            for (at, request) in requests.iter().enumerate() {
                if at == cut {
                    let mut twin = Store::default();
                    twin.restore(&store.snapshot()).unwrap();
                    copy = Some(twin);
                }
                let before = store.index();
                let outcome = store.apply(request);
                if let Some(twin) = &mut copy {
                    prop_assert_eq!(&twin.apply(request), &outcome);
                }
                if outcome.is_err() {
                    prop_assert_eq!(store.index(), before);
                }
                let mut expected = BTreeSet::new();
                store.root.visit("/", &mut |path, node| {
                    if let Some(at) = node.expires {
                        expected.insert((at, path.to_owned()));
                    }
                });
                prop_assert_eq!(&store.expiring, &expected);
                let indices: Vec<u64> = store.history.events().map(|event| event.index()).collect();
                prop_assert_eq!(indices, (1..=store.index()).collect::<Vec<_>>());
            }
        }
    }
}
