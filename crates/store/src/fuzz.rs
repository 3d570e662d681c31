//! What takes bytes from outside, each callable by itself: for the fuzzers in `fuzz/store` and the tests of their corpus.
//! All of them panic when a promise is broken, and only then.

use std::path::Path;

use raft::prelude::Entry;

use crate::wal::{Batch, Wal};

/// A segment of the log, in an empty directory. What can be opened stays as it is, and takes more.
pub fn wal(dir: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::write(dir.join("0000000000000001.wal"), bytes)?;
    let Ok((wal, first)) = Wal::open(dir, None) else {
        return Ok(());
    };
    drop(wal);
    let again = Wal::open(dir, None);
    assert!(again.is_ok(), "readable once only: {:?}", again.err());
    let Ok((mut wal, second)) = again else {
        return Ok(());
    };
    assert_eq!(first.entries, second.entries, "reading changes the log");
    assert_eq!(second.torn, 0, "a torn tail stays");
    let index = second.entries.last().map_or(1, |e| e.index.wrapping_add(1));
    let entry = Entry {
        index,
        term: 1,
        data: vec![7; 20].into(),
        ..Entry::default()
    };
    let batch = Batch {
        entries: vec![entry.clone()],
        ..Batch::default()
    };
    if wal.append(&batch).and_then(|()| wal.sync()).is_err() {
        return Ok(());
    }
    drop(wal);
    let third = Wal::open(dir, None).map(|(_, replay)| replay);
    assert_eq!(
        third.ok().and_then(|r| r.entries.last().cloned()),
        Some(entry),
        "what was written and synced is not there"
    );
    Ok(())
}

/// A request of v2: `METHOD PATH?QUERY`, a line break, the body. What it asks for is done, to an empty tree.
pub fn v2(bytes: &[u8]) {
    crate::v2::http::probe(bytes);
}

/// A body for the gateway, for each of its methods. What it makes of it is a message that can be shown again.
pub fn gateway(bytes: &[u8]) {
    crate::http::probe_gateway(bytes);
}
