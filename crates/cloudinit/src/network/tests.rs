use super::*;

fn show(format: Format, text: &str) -> String {
    match format.convert(text) {
        Err(finding) => finding.to_string(),
        Ok(converted) => {
            let notes = converted.notes.iter().map(|note| format!("{note}\n"));
            let files = render(&converted.network).into_iter();
            notes
                .chain(files.map(|file| format!("# {}\n{}", file.name, file.text)))
                .collect()
        }
    }
}

const OPENSTACK: &str = r#"{
  "links": [
    {"id": "eth0", "type": "phy", "ethernet_mac_address": "a0:36:9f:2c:e8:80", "mtu": 1500},
    {"id": "eth1", "type": "phy", "ethernet_mac_address": "a0:36:9f:2c:e8:81"},
    {"id": "bond0", "type": "bond", "bond_links": ["eth0", "eth1"], "ethernet_mac_address": "a0:36:9f:2c:e8:80",
     "bond_mode": "802.3ad", "bond_miimon": 100, "bond_xmit_hash_policy": "layer3+4"},
    {"id": "vlan2", "type": "vlan", "vlan_link": "bond0", "vlan_id": 101, "vlan_mac_address": "fa:16:3e:1c:9e:a9"}
  ],
  "networks": [
    {"id": "n0", "type": "ipv4_dhcp", "link": "bond0"},
    {"id": "n1", "type": "ipv4", "link": "vlan2", "ip_address": "10.184.0.244", "netmask": "255.255.240.0",
     "routes": [{"network": "10.0.0.0", "netmask": "255.0.0.0", "gateway": "11.0.0.1"},
                {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.184.0.1"}]},
    {"id": "n2", "type": "ipv6", "link": "vlan2", "ip_address": "2001:cdba::3257:9652/24", "gateway": "fd00::1"}
  ],
  "services": [{"type": "dns", "address": "8.8.8.8"}]
}"#;

const DEBIAN: &str = "# from the host
auto lo
iface lo inet loopback
auto eth0
iface eth0 inet static
    address 203.0.113.5
    netmask 255.255.255.0
    gateway 203.0.113.1
    dns-nameservers 69.20.0.164 69.20.0.196
    hwaddress ether bc:76:4e:20:d7:2f
    wpa-ssid x
iface eth0 inet6 static
    address 2001:db8::5
    netmask 64
    gateway fe80::1
auto eth1
iface eth1 inet static
    address 10.180.0.2
    netmask 255.255.224.0
    post-up route add -net 10.208.0.0 netmask 255.240.0.0 gw 10.180.0.1
    post-down route del -net 10.208.0.0 netmask 255.240.0.0 gw 10.180.0.1
    up ip route add 10.176.0.0/12 via 10.180.0.1 metric 5
auto bond0
iface bond0 inet dhcp
    bond-slaves eth2 \\
        eth3
    bond-mode active-backup
    bond-miimon 100
iface eth2 inet manual
    bond-master bond0
iface bond0.42 inet manual
iface vlan43 inet dhcp
    vlan-raw-device eth1
";

const NOCLOUD_1: &str = "version: 1
config:
- type: physical
  name: eth0
  mac_address: 'C0:D6:9F:2C:E8:80'
  mtu: 1450
  subnets:
  - {type: dhcp4}
  - {type: static, address: 192.0.2.3/24, gateway: 192.0.2.1, dns_nameservers: [192.0.2.2], dns_search: [example.org]}
- {type: physical, name: eth1}
- type: bond
  name: bond0
  bond_interfaces: [eth1, eth2]
  params: {bond-mode: active-backup, bond-miimon: 100}
  subnets: [{type: static, address: 10.0.0.2, netmask: 255.255.0.0, routes: [{network: 10.9.0.0, netmask: 255.255.0.0, gateway: 10.0.0.1}]}]
- {type: bridge, name: br0, bridge_interfaces: [eth3]}
- {type: vlan, name: eth0.7, vlan_link: eth0, vlan_id: 7, subnets: [{type: manual}]}
- {type: nameserver, address: [8.8.8.8], search: [a.example]}
";

const NOCLOUD_2: &str = "network:
  version: 2
  renderer: networkd
  ethernets:
    nic:
      match: {macaddress: '00:11:22:33:44:55'}
      set-name: lan0
      dhcp4: true
      nameservers: {addresses: [192.0.2.2], search: [example.org]}
      wakeonlan: true
    all:
      match: {name: en*}
      addresses: [192.0.2.9/24, '2001:db8::9/64']
      gateway4: 192.0.2.1
      routes: [{to: 10.0.0.0/8, via: 192.0.2.254, metric: 7}, {to: default, via: '2001:db8::1'}]
      mtu: 9000
    eth5: {}
  bonds:
    bond0: {interfaces: [eth5], parameters: {mode: balance-rr, mii-monitor-interval: 1}, dhcp6: yes}
  vlans:
    v9: {id: 9, link: bond0, dhcp4: no}
  wifis: {}
";

const VMWARE: &str = "guestinfo.interface.0.mac = 00:50:56:00:00:01
interface.0.ip.0.address = \"10.0.0.2/24\"
interface.0.route.0.gateway = 10.0.0.1
interface.0.route.0.destination = 0.0.0.0/0
interface.1.name = eth*
dns.server.0 = 10.0.0.3
";

#[test]
fn every_format() {
    insta::assert_snapshot!("openstack", show(Format::OpenStack, OPENSTACK));
    insta::assert_snapshot!("debian", show(Format::Debian, DEBIAN));
    insta::assert_snapshot!("nocloud-1", show(Format::NoCloud, NOCLOUD_1));
    insta::assert_snapshot!("nocloud-2", show(Format::NoCloud, NOCLOUD_2));
    let vmware = VMWARE.replace("eth*", "eth1");
    insta::assert_snapshot!("vmware", show(Format::VMware, &vmware));
}

#[test]
fn mistakes_have_their_place() {
    let check = |format: Format, text: &str, expect: &str| {
        assert_eq!(show(format, text), expect, "{text}");
    };
    for (text, expect) in [
        (
            "{\"links\": 1}",
            "1:11: error: links: expected a list, found a single value",
        ),
        ("{\"links\": []}", "1:1: error: no links in it"),
        (
            "[",
            "2:1: error: while parsing a node, did not find expected node content",
        ),
        (
            "{\"links\": [{\"id\": \"a\",\n \"ethernet_mac_address\": \"x\"}]}",
            "2:26: error: ethernet_mac_address: \"x\" is not a MAC address",
        ),
        (
            "{\"links\": [{\"id\": \"v\", \"type\": \"vlan\", \"vlan_id\": 4095}]}",
            "1:51: error: vlan_id: 4095 is not a VLAN id (1 to 4094)",
        ),
        (
            "{\"links\": [{\"id\": \"a\", \"ethernet_mac_address\": \"00:00:00:00:00:01\"}],\n\"networks\": [{\"link\": \"b\"}]}",
            "2:23: error: link: there is no link \"b\" before this",
        ),
    ] {
        check(Format::OpenStack, text, expect);
    }
    for (text, expect) in [
        (
            "address 1.2.3.4\n",
            "1:1: error: address: outside of an iface",
        ),
        (
            "\niface eth0\n",
            "2:1: error: iface: expected: iface NAME FAMILY METHOD",
        ),
        (
            "iface ../x inet dhcp\n",
            "1:1: error: iface: \"../x\" is not the name of a link",
        ),
        (
            "iface a inet static\n address 1.2.3\n",
            "2:1: error: address: \"1.2.3\" is not an address",
        ),
        (
            "iface a inet static\n gateway\n",
            "2:1: error: gateway: a value is missing",
        ),
        (
            "iface a inet static\n address 1.2.3.4\n netmask 64\n",
            "1:1: error: netmask: \"64\" does not fit 1.2.3.4",
        ),
        (
            "iface a inet ppp\n",
            "1:1: error: iface: inet ppp is not supported",
        ),
    ] {
        check(Format::Debian, text, expect);
    }
    for (text, expect) in [
        ("a: 1\n", "1:1: error: version is missing"),
        (
            "version: 3\n",
            "1:10: error: version: version \"3\" is not supported",
        ),
        (
            "version: 1\nconfig:\n- {name: a}\n",
            "3:3: error: config: type is missing",
        ),
        (
            "version: 1\nconfig:\n- {type: physical, name: a/b}\n",
            "3:26: error: name: \"a/b\" is not the name of a link",
        ),
        (
            "version: 2\nethernets:\n  eth0: {dhcp4: maybe}\n",
            "3:17: error: dhcp4: expected true or false",
        ),
        (
            "version: 2\nethernets:\n  eth0: {addresses: [x]}\n",
            "3:22: error: addresses: \"x\" is not an IP address with a prefix",
        ),
        (
            "version: 2\nvlans:\n  v: {id: 1}\n",
            "3:6: error: v: link is missing",
        ),
        (
            "version: 2\nethernets:\n  a: {match: {name: \"a\\nb\"}}\n",
            "3:21: error: name: \"a\\nb\" does not match the name of a link",
        ),
    ] {
        check(Format::NoCloud, text, expect);
    }
    check(Format::VMware, "a\n", "1:1: error: expected KEY = VALUE");
    check(
        Format::VMware,
        VMWARE,
        "5:1: error: \"eth*\" is not the name of a link",
    );
    check(
        Format::VMware,
        "\ninterface.0.dhcp = yes",
        "2:1: error: interface 0 has neither mac nor name",
    );
    check(
        Format::Packet,
        "{\"interfaces\": []}",
        "1:1: error: no interfaces in it",
    );
    check(
        Format::Packet,
        "{\"bonding\": {\"mode\": 9}}",
        "1:22: error: mode: there is no bond mode 9 (one of balance-rr, active-backup, balance-xor, broadcast, 802.3ad, balance-tlb, balance-alb)",
    );
    check(
        Format::Debian,
        "iface bond0 inet dhcp\n bond-mode fast\n",
        "2:1: error: bond-mode: \"fast\" is not a bond mode",
    );
}

const IDS: &str = "version: 2
ethernets:
  first: {match: {macaddress: '00:11:22:33:44:01'}, set-name: lan0}
  second: {match: {name: enp*}}
  the-third-has-a-long-id: {match: {macaddress: '00:11:22:33:44:03', driver: virtio*}}
  lan0: {match: {name: eth0}, set-name: wan0, macaddress: '00:11:22:33:44:07'}
  rest: {match: {driver: [e1000, r8*]}}
bonds:
  bond0: {interfaces: [first, second]}
bridges:
  br0: {interfaces: [the-third-has-a-long-id, bond0, eth9]}
vlans:
  v9: {id: 9, link: lan0}
  v8: {id: 8, link: bond0}
  v7: {id: 7, link: eth8}
";

/// What others call a link is its id; what it is called itself is another thing.
#[test]
fn ids_of_netplan_are_not_names() {
    insta::assert_snapshot!("netplan-ids", show(Format::NoCloud, IDS));
    for (text, expect) in [
        (
            "version: 2\nethernets:\n  a: {match: {name: x}, set-name: eth0}\n  eth0: {}\n",
            "4:9: error: eth0: there is another link \"eth0\"",
        ),
        (
            "version: 2\nethernets:\n  a b: {}\n",
            "3:8: error: a b: \"a b\" is not the name of a link",
        ),
        (
            "version: 2\nvlans:\n  v: {id: 1, link: \"a\\nb\"}\n",
            "3:20: error: link: \"a\\nb\" is not the name of a link",
        ),
        (
            "version: 2\nbonds:\n  b: {interfaces: [\"a b\"]}\n",
            "3:20: error: interfaces: \"a b\" is not the name of a link",
        ),
    ] {
        assert_eq!(show(Format::NoCloud, text), expect);
    }
}

/// networkd takes names only.
#[test]
fn numbers_of_the_kernel_become_names() {
    let check = |format: Format, text: &str| {
        let files = render(&format.convert(text).unwrap().network);
        let netdev = files.iter().find(|f| f.name.ends_with("bond0.netdev"));
        let text = &netdev.unwrap().text;
        assert!(
            text.contains("\nMode=802.3ad\nTransmitHashPolicy=layer3+4\n"),
            "{text}"
        );
    };
    check(
        Format::Debian,
        "iface bond0 inet dhcp\n bond-mode 4\n bond-xmit-hash-policy 1\n",
    );
    check(
        Format::NoCloud,
        "version: 1\nconfig:\n- {type: bond, name: bond0, bond_interfaces: [a], params: {bond-mode: 4, bond-xmit-hash-policy: 1}}\n",
    );
    check(
        Format::OpenStack,
        "{\"links\": [{\"id\": \"b\", \"type\": \"bond\", \"bond_mode\": \"4\", \"bond_xmit_hash_policy\": \"1\"}]}",
    );
}

#[test]
fn a_route_of_the_host_goes_to_the_link_that_reaches_its_gateway() {
    let text = "version: 1\nconfig:\n- {type: physical, name: a, subnets: [{type: static, address: 192.0.2.4/24}]}\n- {type: physical, name: b}\n- {type: route, destination: 203.0.113.0/24, gateway: 192.0.2.8}\n- {type: route, destination: 198.51.100.0/24, gateway: 10.0.0.1}\n";
    let network = Format::NoCloud.convert(text).unwrap().network;
    let routes = network.links.iter().map(|link| {
        let to = link.routes.iter().filter_map(|route| route.destination);
        format!(
            "{}: {}",
            link.name,
            to.map(|to| to.to_string()).collect::<String>()
        )
    });
    assert_eq!(
        routes.collect::<Vec<_>>(),
        ["a: 203.0.113.0/24", "b: 198.51.100.0/24"]
    );
}

#[test]
fn masks() {
    let check = |mask: &str, expect: Option<u8>| {
        let cidr = Cidr::with_mask("10.0.0.1".parse().unwrap(), mask);
        assert_eq!(cidr.map(|cidr| cidr.prefix), expect, "{mask}");
    };
    check("255.255.255.0", Some(24));
    check("0.0.0.0", Some(0));
    check("255.255.255.255", Some(32));
    check("/8", Some(8));
    check("255.0.255.0", None);
    check("33", None);
    let net: Cidr = "10.1.0.0/16".parse().unwrap();
    assert!(net.contains("10.1.2.3".parse().unwrap()));
    assert!(!net.contains("10.2.2.3".parse().unwrap()));
    assert!(!net.contains("::1".parse().unwrap()));
}

/// Whatever text comes in, what goes out are sections, keys and values, each on a line of its own.
fn is_ini(text: &str) -> bool {
    text.lines().all(|line| {
        line.is_empty()
            || (line.starts_with('[') && line.ends_with(']'))
            || line.split_once('=').is_some_and(|(key, value)| {
                key.chars().all(|c| c.is_ascii_alphanumeric()) && !value.contains(['[', '\r'])
            })
    })
}

/// Pieces of the real examples, in any order, with anything between them.
fn mangled(text: &'static str) -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;
    let length = text.len();
    proptest::collection::vec(
        (0..length, 0..40_usize, "[-a-z0-9:/.{}\\[\\], \n\"]{0,3}"),
        0..4,
    )
    .prop_map(move |cuts| {
        let mut text = text.to_owned();
        for (at, remove, insert) in cuts {
            let at = at.min(text.len());
            let end = (at + remove).min(text.len());
            text.replace_range(at..end, &insert);
        }
        text
    })
}

proptest::proptest! {
    #[test]
    fn any_network_data_is_read_or_refused(text in mangled(OPENSTACK)) {
        check_any(Format::OpenStack, &text);
    }

    #[test]
    fn any_interfaces_are_read_or_refused(text in mangled(DEBIAN)) {
        check_any(Format::Debian, &text);
    }

    #[test]
    fn any_network_config_is_read_or_refused(one in mangled(NOCLOUD_1), two in mangled(NOCLOUD_2)) {
        check_any(Format::NoCloud, &one);
        check_any(Format::NoCloud, &two);
    }

    #[test]
    fn any_guestinfo_is_read_or_refused(text in mangled(VMWARE)) {
        check_any(Format::VMware, &text);
    }

    #[test]
    fn any_packet_is_read_or_refused(text in mangled("{\"bonding\": {\"mode\": 4}, \"interfaces\": [{\"name\": \"eth0\", \"mac\": \"00:00:00:00:00:01\"}], \"addresses\": [{\"address\": \"10.0.0.1\", \"cidr\": 31, \"gateway\": \"10.0.0.0\", \"public\": false}]}")) {
        check_any(Format::Packet, &text);
    }
}

fn check_any(format: Format, text: &str) {
    if let Ok(converted) = format.convert(text) {
        for file in render(&converted.network) {
            assert!(is_ini(&file.text), "{text}\n{}", file.text);
            assert!(!file.name.contains('/'), "{}", file.name);
        }
    }
}
