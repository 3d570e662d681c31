//! Compiles the protocol descriptions with a compiler in Rust, so that no `protoc` is needed.

use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "rpc.proto",
        "lock.proto",
        "election.proto",
        "health.proto",
        "log.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), set.encode_to_vec())?;
    tonic_prost_build::configure()
        // Kept as they were written or as they will be sent: see `wire.rs`.
        .extern_path(".etcdserverpb.RangeResponse", "crate::wire::RangeResponse")
        .extern_path(".etcdserverpb.WatchResponse", "crate::wire::WatchResponse")
        .bytes(".etcdserverpb.SnapshotResponse")
        .bytes(".orlop.store.RaftMessages")
        .compile_fds(set)?;
    Ok(())
}
