//! networkd itself reads what the converters make, and has nothing to complain about.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step is a failed test; clippy only knows test functions, not their helpers"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use cloudinit::network::{Format, render};

const NETWORKD: &str = "/lib/systemd/systemd-networkd";

/// A network and a `/run` of its own, where networkd can do no harm.
const INSIDE: &str = "mount -t tmpfs none /run && mkdir -p /run/systemd/network \
    && cp \"$0\"/* /run/systemd/network/ && exec \"$1\"";

/// What networkd says until it has read everything.
fn complaints(dir: &Path) -> Vec<String> {
    let mut child = Command::new("unshare")
        .args(["--net", "--mount", "--", "sh", "-c", INSIDE])
        .arg(dir)
        .arg(NETWORKD)
        .env("SYSTEMD_LOG_LEVEL", "info")
        .env("SYSTEMD_LOG_TARGET", "console")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    let mut done = false;
    for line in lines {
        let line = line.unwrap();
        done |= line.contains("Enumeration completed");
        if done {
            break;
        }
        if line.contains("/run/systemd/network/") {
            said.push(line);
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(done, "networkd ended too early: {said:?}");
    said
}

#[test]
fn networkd_takes_every_key() {
    if !rustix::process::geteuid().is_root() || !Path::new(NETWORKD).exists() {
        eprintln!("not root, or no networkd here: not run");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let formats = [
        (
            Format::Debian,
            "iface eth0 inet static\n address 192.0.2.1/24\n gateway 198.51.100.1\n mtu 1400\n dns-nameservers 192.0.2.2\n dns-search a.example\n up ip route add 10.0.0.0/8 via 192.0.2.9 metric 3\niface eth0.5 inet dhcp\niface bond3 inet dhcp\n bond-slaves eth8\n bond-mode 4\n bond-xmit-hash-policy 1\n bond-miimon 100\n",
        ),
        (
            Format::NoCloud,
            "version: 2\nethernets:\n  nic: {match: {macaddress: '00:11:22:33:44:55'}, set-name: lan0, dhcp4: true, dhcp6: true}\n  all: {match: {name: en*}, addresses: ['2001:db8::9/64']}\nbridges: {br0: {interfaces: [eth9], dhcp4: true}}\n",
        ),
        (
            Format::NoCloud,
            "version: 2\nethernets:\n  a: {match: {name: eth0}, set-name: wan0, macaddress: '00:11:22:33:44:07'}\n  b: {match: {driver: [e1000, r8*]}}\nvlans: {v9: {id: 9, link: a}}\n",
        ),
        (
            Format::Packet,
            "{\"bonding\": {\"mode\": 4}, \"interfaces\": [{\"name\": \"eth1\", \"mac\": \"00:00:00:00:00:01\"}], \"addresses\": [{\"address\": \"10.0.0.1\", \"cidr\": 31, \"gateway\": \"10.0.0.0\", \"public\": false}]}",
        ),
        (
            Format::OpenStack,
            "{\"links\": [{\"id\": \"a\", \"type\": \"phy\", \"ethernet_mac_address\": \"00:00:00:00:00:02\", \"mtu\": 1450}, {\"id\": \"b\", \"type\": \"vlan\", \"vlan_link\": \"a\", \"vlan_id\": 9, \"vlan_mac_address\": \"00:00:00:00:00:03\"}], \"networks\": [{\"link\": \"b\", \"type\": \"ipv4_dhcp\"}]}",
        ),
    ];
    for (format, text) in formats {
        for file in render(&format.convert(text).unwrap().network) {
            std::fs::write(dir.path().join(file.name), file.text).unwrap();
        }
    }
    assert_eq!(complaints(dir.path()), [] as [&str; 0]);
    // The judge is awake.
    std::fs::write(
        dir.path().join("99-x.network"),
        "[Match]\nName=x\n[Network]\nBogus=1\n",
    )
    .unwrap();
    let said = complaints(dir.path());
    assert!(said.len() == 1 && said[0].contains("Bogus"), "{said:?}");
}
