//! The unit files are as tight as they claim, by systemd's own measure.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::Command;

#[test]
fn the_service_is_well_sandboxed() {
    let unit = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../os/rootfs/usr/lib/systemd/system/locksmith.service"
    );
    // 20 stands for 2.0.
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=yes", "--threshold=20", unit])
        .output()
        .expect("systemd-analyze is part of Debian's systemd package");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
