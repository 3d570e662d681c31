//! The platforms. What the services answer is what their documentation shows.

use std::sync::{Arc, Mutex};

use cloudinit::remote::Remote;

use super::server::{Request, Server, inside};
use super::{fetch, fetch_from, show};

const LINK_LOCAL: &str = "169.254.169.254";

/// Answers by path.
fn table(
    entries: &'static [(&'static str, &'static str)],
) -> impl Fn(&Request<'_>) -> (u16, String) {
    |request| match entries.iter().find(|(path, _)| *path == request.path) {
        Some((_, text)) => (200, (*text).to_owned()),
        None => (404, "not found".to_owned()),
    }
}

const EC2: &[(&str, &str)] = &[
    ("/", "latest"),
    ("/latest/meta-data/instance-id", "i-1234"),
    ("/latest/meta-data/hostname", "ip-10-0-0-4.ec2.internal"),
    (
        "/latest/meta-data/local-hostname",
        "ip-10-0-0-4.ec2.internal",
    ),
    ("/latest/meta-data/local-ipv4", "10.0.0.4"),
    ("/latest/meta-data/public-ipv4", "203.0.113.4"),
    ("/latest/meta-data/public-keys", "0=mine\n1=other"),
    (
        "/latest/meta-data/public-keys/0/openssh-key",
        "ssh-ed25519 A mine\n",
    ),
    (
        "/latest/meta-data/public-keys/1/openssh-key",
        "ssh-ed25519 B other",
    ),
    ("/latest/user-data", "#cloud-config\nhostname: e\n"),
];

#[test]
fn ec2_with_a_token() {
    if !inside("clouds::ec2_with_a_token", &[LINK_LOCAL]) {
        return;
    }
    let _server = Server::start("169.254.169.254:80", |request| {
        let lifetime = request.header("X-aws-ec2-metadata-token-ttl-seconds");
        match (request.method, request.path) {
            ("PUT", "/latest/api/token") if lifetime.is_some() => (200, "secret".to_owned()),
            (_, "/") => (401, String::new()),
            _ if request.header("X-aws-ec2-metadata-token") == Some("secret") => {
                table(EC2)(request)
            }
            _ => (401, String::new()),
        }
    });
    insta::assert_snapshot!(show(fetch(Remote::Ec2)));
}

#[test]
fn ec2_without_tokens() {
    if !inside("clouds::ec2_without_tokens", &[LINK_LOCAL]) {
        return;
    }
    let _server = Server::start("169.254.169.254:80", table(EC2));
    let shown = show(fetch(Remote::Ec2));
    assert!(shown.contains("id \"i-1234\""), "{shown}");
}

#[test]
fn ec2_by_ipv6() {
    if !std::path::Path::new("/proc/net/if_inet6").exists() {
        eprintln!("no IPv6 here: not run");
        return;
    }
    if !inside("clouds::ec2_by_ipv6", &["fd00:ec2::254"]) {
        return;
    }
    let _server = Server::start("[fd00:ec2::254]:80", table(EC2));
    let shown = show(fetch(Remote::Ec2));
    assert!(
        shown.starts_with("ec2 http://[fd00:ec2::254]/latest"),
        "{shown}"
    );
}

#[test]
fn those_with_the_same_tree() {
    let addresses = [LINK_LOCAL, "100.100.100.200", "10.1.1.1"];
    if !inside("clouds::those_with_the_same_tree", &addresses) {
        return;
    }
    let _alibaba = Server::start("100.100.100.200:80", table(EC2));
    let _router = Server::start("10.1.1.1:80", table(EC2));
    let _exoscale = Server::start(
        "169.254.169.254:80",
        table(&[
            ("/1.0/meta-data/instance-id", "x-1"),
            ("/1.0/meta-data/local-hostname", "exo"),
            ("/1.0/meta-data/public-keys", "ssh-ed25519 A mine\n"),
            ("/1.0/user-data", "#!/bin/sh\n"),
        ]),
    );
    let lease = tempfile::tempdir().unwrap();
    let dir = lease.path().join("run/systemd/netif/leases");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("2"), "ADDRESS=10.1.1.9\nSERVER_ADDRESS=10.1.1.1\n").unwrap();
    let shown = [
        show(fetch(Remote::Alibaba)),
        show(fetch(Remote::Exoscale)),
        show(fetch_from(Remote::CloudStack, lease.path(), super::BUDGET)),
    ];
    insta::assert_snapshot!(shown.join("\n\n"));
}

#[test]
fn gce() {
    if !inside("clouds::gce", &[LINK_LOCAL]) {
        return;
    }
    let _server = Server::start("169.254.169.254:80", |request| {
        if request.header("Metadata-Flavor") != Some("Google") {
            return (403, String::new());
        }
        table(&[
            (
                "/computeMetadata/v1/instance/?recursive=true&alt=json",
                r#"{"id": 42, "hostname": "g.c.project.internal", "attributes": {"ssh-keys": "ann:ssh-ed25519 A ann\nx:ssh-rsa G google-ssh {}", "user-data": "I2Nsb3VkLWNvbmZpZwo=", "user-data-encoding": "base64"},
                "networkInterfaces": [{"ip": "10.128.0.2", "accessConfigs": [{"externalIp": "203.0.113.7"}]}]}"#,
            ),
            (
                "/computeMetadata/v1/project/attributes/ssh-keys",
                "bob:ssh-ed25519 B bob",
            ),
        ])(request)
    });
    insta::assert_snapshot!(show(fetch(Remote::Gce)));
}

#[test]
fn openstack() {
    if !inside("clouds::openstack", &[LINK_LOCAL]) {
        return;
    }
    let _server = Server::start(
        "169.254.169.254:80",
        table(&[
            ("/", "latest"),
            (
                "/openstack/latest/meta_data.json",
                r#"{"uuid": "u-1", "hostname": "os.novalocal", "public_keys": {"mine": "ssh-ed25519 A\n"}}"#,
            ),
            ("/openstack/latest/user_data", "#cloud-config\n"),
            (
                "/openstack/latest/network_data.json",
                r#"{"links": [{"id": "tap1", "type": "ovs", "ethernet_mac_address": "fa:16:3e:00:00:01", "mtu": 1450}],
                "networks": [{"id": "n0", "link": "tap1", "type": "ipv4", "ip_address": "10.0.0.5", "netmask": "255.255.255.0",
                "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.0.1"}]}],
                "services": [{"type": "dns", "address": "10.0.0.2"}]}"#,
            ),
            ("/latest/meta-data/local-ipv4", "10.0.0.5"),
        ]),
    );
    insta::assert_snapshot!(show(fetch(Remote::OpenStack)));
}

#[test]
fn digitalocean() {
    if !inside("clouds::digitalocean", &[LINK_LOCAL]) {
        return;
    }
    let _server = Server::start(
        "169.254.169.254:80",
        table(&[(
            "/metadata/v1.json",
            r##"{"droplet_id": 7, "hostname": "do", "user_data": "#cloud-config\n", "public_keys": ["ssh-ed25519 A"],
            "dns": {"nameservers": ["8.8.8.8"]},
            "interfaces": {"public": [{"mac": "04:01:00:00:00:01", "ipv4": {"ip_address": "203.0.113.20", "netmask": "255.255.240.0", "gateway": "203.0.112.1"},
              "ipv6": {"ip_address": "2001:db8::2", "cidr": 64, "gateway": "2001:db8::1"}, "anchor_ipv4": {"ip_address": "10.17.0.5", "netmask": "255.255.0.0", "gateway": "10.17.0.1"}}],
             "private": [{"mac": "04:01:00:00:00:02", "ipv4": {"ip_address": "10.110.0.2", "netmask": "255.255.240.0", "gateway": "10.110.0.1"}}]}}"##,
        )]),
    );
    insta::assert_snapshot!(show(fetch(Remote::DigitalOcean)));
}

#[test]
fn azure() {
    if !inside("clouds::azure", &[LINK_LOCAL, "168.63.129.16"]) {
        return;
    }
    let _service = Server::start("169.254.169.254:80", |request| {
        if request.header("Metadata") != Some("true") {
            return (400, String::new());
        }
        table(&[(
            "/metadata/instance?api-version=2021-02-01",
            r#"{"compute": {"vmId": "v-1", "name": "az", "osProfile": {"computerName": "az1"}, "userData": "I2Nsb3VkLWNvbmZpZwo=",
              "publicKeys": [{"keyData": "ssh-rsa A azure\r\n", "path": "/home/core/.ssh/authorized_keys"}]},
              "network": {"interface": [{"ipv4": {"ipAddress": [{"privateIpAddress": "10.1.0.4", "publicIpAddress": "203.0.113.30"}]}, "ipv6": {"ipAddress": []}}]}}"#,
        )])(request)
    });
    let reports = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&reports);
    let _wire = Server::start("168.63.129.16:80", move |request| {
        match (request.method, request.path, request.header("x-ms-version")) {
            ("GET", "/machine/?comp=goalstate", Some(_)) => (
                200,
                "<GoalState><Incarnation>1</Incarnation><Container><ContainerId>c-1</ContainerId><RoleInstanceList><RoleInstance><InstanceId>r-1</InstanceId></RoleInstance></RoleInstanceList></Container></GoalState>".to_owned(),
            ),
            ("POST", "/machine/?comp=health", Some(_)) => {
                seen.lock().unwrap().push(request.body.to_owned());
                (200, String::new())
            }
            _ => (400, String::new()),
        }
    });
    insta::assert_snapshot!(show(fetch(Remote::Azure)));
    let reports = reports.lock().unwrap();
    assert_eq!(reports.len(), 1);
    let parts = ["<ContainerId>c-1<", "<InstanceId>r-1<", "<State>Ready<"];
    assert!(
        parts.iter().all(|part| reports[0].contains(part)),
        "{reports:?}"
    );
}

#[test]
fn hetzner() {
    if !inside("clouds::hetzner", &[LINK_LOCAL]) {
        return;
    }
    let _server = Server::start(
        "169.254.169.254:80",
        table(&[
            (
                "/hetzner/v1/metadata",
                "instance-id: 99\nhostname: hz\npublic-keys:\n- ssh-ed25519 A\n- |\n  ssh-ed25519 B\n",
            ),
            ("/hetzner/v1/metadata/public-ipv4", "203.0.113.40"),
            (
                "/hetzner/v1/metadata/private-networks",
                "- ip: 10.0.0.2\n  alias_ips: []\n",
            ),
            ("/hetzner/v1/userdata", "#cloud-config\n"),
        ]),
    );
    insta::assert_snapshot!(show(fetch(Remote::Hetzner)));
}

#[test]
fn vultr() {
    if !inside("clouds::vultr", &[LINK_LOCAL]) {
        return;
    }
    let _server = Server::start(
        "169.254.169.254:80",
        table(&[
            (
                "/v1.json",
                r#"{"instance-v2-id": "v-2", "hostname": "vu", "public-keys": "ssh-ed25519 A\n", "interfaces": [
                {"mac": "56:00:00:00:00:01", "network-type": "public", "ipv4": {"address": "203.0.113.50", "netmask": "255.255.254.0", "gateway": "203.0.112.1"}, "ipv6": {"address": "2001:db8:5::1"}},
                {"mac": "5a:00:00:00:00:02", "network-type": "private", "ipv4": {"address": "10.1.96.3", "netmask": "255.255.240.0", "gateway": ""}}]}"#,
            ),
            ("/latest/user-data", "#cloud-config\n"),
        ]),
    );
    insta::assert_snapshot!(show(fetch(Remote::Vultr)));
}

#[test]
fn akamai() {
    if !inside("clouds::akamai", &[LINK_LOCAL]) {
        return;
    }
    let _server = Server::start("169.254.169.254:80", |request| {
        let lifetime = request.header("Metadata-Token-Expiry-Seconds");
        match (request.method, request.path) {
            ("PUT", "/v1/token") if lifetime.is_some() => (200, "tok".to_owned()),
            (_, "/") => (404, String::new()),
            _ if request.header("Metadata-Token") == Some("tok") => table(&[
                (
                    "/v1/instance",
                    r#"{"id": 5, "label": "lin", "region": "x"}"#,
                ),
                (
                    "/v1/network",
                    r#"{"ipv4": {"public": ["203.0.113.60/32"], "private": ["192.168.1.2/17"]}, "ipv6": {"slaac": "2001:db8:6::1/128"}}"#,
                ),
                ("/v1/ssh-keys", r#"{"users": {"root": ["ssh-ed25519 A"]}}"#),
                ("/v1/user-data", "I2Nsb3VkLWNvbmZpZwo="),
            ])(request),
            _ => (401, String::new()),
        }
    });
    insta::assert_snapshot!(show(fetch(Remote::Akamai)));
}

#[test]
fn scaleway() {
    if !inside("clouds::scaleway", &["169.254.42.42"]) {
        return;
    }
    let _server = Server::start("169.254.42.42:80", |request| {
        match request.path {
        "/conf?format=json" => (
            200,
            r#"{"id": "s-1", "hostname": "scw", "ssh_public_keys": [{"key": "ssh-ed25519 A"}], "public_ip": {"address": "203.0.113.70"}, "private_ip": null}"#.to_owned(),
        ),
        "/user_data/cloud-init" if request.port < 1024 => (200, "#cloud-config\n".to_owned()),
        _ => (403, String::new()),
    }
    });
    insta::assert_snapshot!(show(fetch(Remote::Scaleway)));
}

#[test]
fn oracle() {
    if !inside("clouds::oracle", &[LINK_LOCAL]) {
        return;
    }
    let _server = Server::start("169.254.169.254:80", |request| {
        if request.header("Authorization") != Some("Bearer Oracle") {
            return (403, String::new());
        }
        table(&[
            (
                "/opc/v2/instance/",
                r#"{"id": "ocid1", "displayName": "or", "hostname": "or1", "metadata": {"ssh_authorized_keys": "ssh-ed25519 A\nssh-ed25519 B", "user_data": "I2Nsb3VkLWNvbmZpZwo="}}"#,
            ),
            ("/opc/v2/vnics/", r#"[{"privateIp": "10.0.0.80"}]"#),
        ])(request)
    });
    insta::assert_snapshot!(show(fetch(Remote::Oracle)));
}

#[test]
fn packet() {
    if !inside("clouds::packet", &["192.0.2.90"]) {
        return;
    }
    // The namespace has a mount table of its own: the name is for this test alone.
    let hosts = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(hosts.path(), "192.0.2.90 metadata.packet.net\n").unwrap();
    let bound = std::process::Command::new("mount")
        .arg("--bind")
        .arg(hosts.path())
        .arg("/etc/hosts")
        .status();
    assert!(bound.unwrap().success());
    let _server = Server::start(
        "192.0.2.90:80",
        table(&[
            (
                "/metadata",
                r#"{"id": "p-1", "hostname": "pk", "ssh_keys": ["ssh-ed25519 A"], "network": {"bonding": {"mode": 4},
                "interfaces": [{"name": "eth0", "mac": "0c:c4:7a:00:00:01", "bond": "bond0"}, {"name": "eth1", "mac": "0c:c4:7a:00:00:02", "bond": "bond0"}],
                "addresses": [{"address": "203.0.113.90", "cidr": 31, "gateway": "203.0.113.91", "public": true, "address_family": 4, "enabled": true},
                 {"address": "2001:db8:9::3", "cidr": 127, "gateway": "2001:db8:9::2", "public": true, "address_family": 6},
                 {"address": "10.99.0.3", "netmask": "255.255.255.254", "gateway": "10.99.0.2", "public": false, "address_family": 4}]}}"#,
            ),
            ("/userdata", "#cloud-config\n"),
        ]),
    );
    insta::assert_snapshot!(show(fetch(Remote::Packet)));
}
