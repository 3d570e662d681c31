//! The load generator works, in miniature.

use std::process::Command;

use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;

#[test]
fn hosts_in_a_hurry_are_all_answered() {
    let data = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_update-server"))
        .args([
            "bench",
            "--hosts",
            "3000",
            "--rate",
            "200",
            "--seconds",
            "2",
            "--connections",
            "8",
        ])
        .args(["--json", "--data"])
        .arg(data.path())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&figures["failed"], &figures["answered"]),
        (&0.into(), &400.into()),
        "{figures}"
    );
    let value = |sql: &'static str| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let options = SqliteConnectOptions::new().filename(data.path().join("server.db"));
        runtime.block_on(async {
            let mut database = options.connect().await.unwrap();
            let value = sqlx::query_scalar(sql).fetch_one(&mut database);
            let value: i64 = value.await.unwrap();
            value
        })
    };
    let rollouts = "SELECT count(*) FROM rollouts WHERE grp = 'stable' AND version = '1'";
    assert_eq!(value(rollouts), 1, "they were held against nothing");
    // Who was here is on record, although nothing else was written.
    let seen = "SELECT count(*) FROM hosts WHERE last_seen > 1";
    assert_eq!(value(seen), 400);
}
