#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a directory for the log");
    store::fuzz::wal(dir.path(), bytes).expect("a disk to write to");
});
