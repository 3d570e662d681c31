//! What worked before an update has to work after it.

use crate::host::{Host, Release, wait_for};
use crate::server::Server;

const ROUTED: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                      eth0\t00000000\t0202000A\t0003\t0\t0\t1024\t00000000\n";

fn has_network(host: &Host) -> bool {
    host.engine(&["check", "network", "--within", "0"])
        .status()
        .unwrap()
        .success()
}

#[test]
fn a_release_on_trial_has_to_do_as_well_as_the_one_before() {
    let (server, one, two) = (Server::start(), Release::new("1"), Release::new("2"));
    let mut host = Host::new(&server, &[&one, &two]);
    std::fs::create_dir_all(host.path("proc/net")).unwrap();
    host.write("proc/net/route", ROUTED);
    two.publish(&server);
    let daemon = host.daemon();
    daemon.good().update().unwrap();
    drop(daemon);
    // Whatever happens to the network now, version 1 is not on trial.
    host.write("proc/net/route", "");
    assert!(has_network(&host));

    host.boot();
    assert!(!has_network(&host));
    host.write("proc/net/route", ROUTED);
    assert!(has_network(&host));
    let daemon = host.daemon();
    daemon.good();
    wait_for(|| !host.path("var/lib/update-engine/before.json").exists());
    // From now on it is good, and a cable that is pulled is no fault of its.
    host.write("proc/net/route", "");
    assert!(has_network(&host));
}
