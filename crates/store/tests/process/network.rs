//! Members in network namespaces, cut off from one another while clients still reach them all.

use std::process::Command;

use crate::load::Load;
use crate::members::{Member, apart};
use crate::put_patiently;

/// Set in the process that has a network of its own.
const INSIDE: &str = "ORLOP_TEST_OWN_NETWORK";
const NAME: &str =
    "network::a_member_cut_off_from_the_others_reads_nothing_stale_and_nothing_is_lost";

pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A bridge for clients (10.1.0.0/24) and one for members (10.2.0.0/24). The link `pN` is what is cut.
fn networks(count: usize) {
    ip("link set lo up");
    for (bridge, address) in [("clients", "10.1.0.1/24"), ("peers", "10.2.0.1/24")] {
        ip(&format!("link add {bridge} type bridge"));
        ip(&format!("addr add {address} dev {bridge}"));
        ip(&format!("link set {bridge} up"));
    }
    for i in 0..count {
        ip(&format!("netns add n{i}"));
        ip(&format!("-n n{i} link set lo up"));
        for (bridge, kind, net) in [("clients", "c", 1), ("peers", "p", 2)] {
            ip(&format!(
                "link add {kind}{i} type veth peer name {kind} netns n{i}"
            ));
            ip(&format!("link set {kind}{i} master {bridge} up"));
            ip(&format!(
                "-n n{i} addr add 10.{net}.0.{}/24 dev {kind}",
                i + 10
            ));
            ip(&format!("-n n{i} link set {kind} up"));
        }
    }
}

/// Whether this process has a network and mounts of its own. If not, the test runs once more in a process that has; `script`
/// is what happens there first.
pub(crate) fn inside(name: &str, script: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root may make network namespaces");
        return false;
    }
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["sh", "-ec", &format!("{script}\nexec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "yes")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_cut_off_from_the_others_reads_nothing_stale_and_nothing_is_lost() {
    // Names of namespaces lie in /run, which must not be the machine's.
    if !inside(NAME, "mount -t tmpfs tmpfs /run") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    networks(3);
    let places = apart(dir.path(), 3);
    let _members: Vec<Member> = places
        .iter()
        .map(|place| Member::start(place, &[]))
        .collect();
    put_patiently(&places[0], "w/begin", "begin").await;
    let load = Load::start(&places);
    for victim in [0, 1, 2] {
        ip(&format!("link set p{victim} down"));
        load.goes_on().await;
        ip(&format!("link set p{victim} up"));
        load.goes_on().await;
    }
    load.finish(&places).await;
}
