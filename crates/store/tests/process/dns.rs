//! Members that find each other by DNS: a server in a network of its own, which `/etc/resolv.conf` names there.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, SRV};
use hickory_proto::rr::{Name, RData, Record};

use crate::members::{Member, Place};
use crate::network::{inside, ip};
use crate::{PATIENCE, get_patiently, put_patiently};

const NAME: &str = "dns::members_find_each_other_by_dns";
/// The machine's own file stays as it is, wherever it lies.
const RESOLVER: &str = "mount -t tmpfs tmpfs /run
echo nameserver 127.0.0.1 >/run/of-the-test
conf=$(readlink -m /etc/resolv.conf)
mkdir -p \"$(dirname \"$conf\")\"
[ -e \"$conf\" ] || : >\"$conf\"
mount --bind /run/of-the-test \"$conf\"";

type Zone = BTreeMap<(String, u16), Vec<RData>>;

const A_RECORD: u16 = 1;
const SRV_RECORD: u16 = 33;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn add_service(zone: &mut Zone, service: &str, hosts: &[&str]) {
    let records = hosts
        .iter()
        .map(|host| RData::SRV(SRV::new(0, 0, 2380, name(host))));
    zone.insert((service.to_owned(), SRV_RECORD), records.collect());
}

fn zone() -> Zone {
    let mut zone = Zone::new();
    for i in 0..3_u8 {
        let address = RData::A(A(Ipv4Addr::new(127, 0, 0, 10 + i)));
        zone.insert((format!("n{i}.cluster.test."), A_RECORD), vec![address]);
    }
    let hosts = ["n0.cluster.test.", "n1.cluster.test.", "n2.cluster.test."];
    add_service(&mut zone, "_etcd-server._tcp.cluster.test.", &hosts);
    add_service(
        &mut zone,
        "_etcd-server-blue._tcp.cluster.test.",
        &hosts[..1],
    );
    add_service(&mut zone, "_etcd-server-ssl._tcp.secure.test.", &hosts[..1]);
    zone
}

/// Answers until the process ends.
fn serve(zone: Zone) {
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let Ok(mut message) = Message::from_vec(&buffer[..length]) else {
                continue;
            };
            let Some(query) = message.queries.first().cloned() else {
                continue;
            };
            let asked = query.name.to_ascii().to_lowercase();
            let known = zone.keys().any(|(name, _)| *name == asked);
            let records = zone.get(&(asked, query.query_type.into()));
            message.additionals.clear();
            let mut message = message.into_response();
            message.metadata.recursion_available = true;
            if !known {
                message.metadata.response_code = ResponseCode::NXDomain;
            }
            for data in records.into_iter().flatten() {
                message.add_answer(Record::from_rdata(query.name.clone(), 60, data.clone()));
            }
            let _ = socket.send_to(&message.to_vec().unwrap(), from);
        }
    });
}

fn place(dir: &Path, i: usize) -> Place {
    let url = |port: u16| format!("http://127.0.0.{}:{port}", 10 + i);
    Place::at(
        &format!("m{i}"),
        dir.join(format!("m{i}")),
        url(2379),
        url(2380),
    )
}

fn refused(place: &Place, flags: &[&str]) -> String {
    let mut member = Member::start(place, flags);
    assert_eq!(member.ended(PATIENCE), Some(false), "it serves");
    std::fs::read_to_string(place.log()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_find_each_other_by_dns() {
    if !inside(NAME, RESOLVER) {
        return;
    }
    ip("link set lo up");
    serve(zone());
    let dir = tempfile::tempdir().unwrap();

    let places: Vec<Place> = (0..3).map(|i| place(dir.path(), i)).collect();
    let flags = ["--discovery-srv", "cluster.test"];
    let mut members: Vec<Member> = places.iter().map(|p| Member::start(p, &flags)).collect();
    put_patiently(&places[0], "found", "by DNS").await;
    for place in &places {
        assert_eq!(get_patiently(place, "found", "").await["found"], "by DNS");
    }
    let since = Instant::now();
    let expected = (0..3).map(|i| (format!("m{i}"), format!("http://n{i}.cluster.test:2380")));
    let expected: Vec<(String, String)> = expected.collect();
    loop {
        let found = members_of(&places[2]).await;
        if found == expected {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "{found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // Who has data asks nobody.
    members.remove(1).kill();
    members.push(Member::start(
        &places[1],
        &["--discovery-srv", "nowhere.test"],
    ));
    put_patiently(&places[1], "again", "1").await;
    drop(members);

    let other = place(&dir.path().join("other"), 0);
    std::fs::create_dir_all(dir.path().join("other")).unwrap();
    let said = refused(&other, &["--discovery-srv", "nowhere.test"]);
    assert!(
        said.contains("error querying DNS SRV records for _etcd-server lookup _etcd-server._tcp.nowhere.test: no such host"),
        "{said}"
    );
    let said = refused(&place(&dir.path().join("other"), 7), &flags);
    assert!(
        said.contains("cannot find local etcd member \"m7\" in SRV records"),
        "{said}"
    );
    let said = refused(&other, &["--discovery-srv", "secure.test"]);
    assert!(
        said.contains("bootstrap at https://n0.cluster.test:2380 from DNS for etcd-server-ssl has scheme mismatch with expected peer http://127.0.0.10:2380"),
        "{said}"
    );
    let both = [
        "--discovery-srv",
        "cluster.test",
        "--initial-cluster",
        "m0=http://127.0.0.10:2380",
    ];
    let said = refused(&other, &both);
    assert!(
        said.contains("multiple discovery or bootstrap flags are set"),
        "{said}"
    );

    // Another cluster of the same domain, of one member.
    let named = [
        "--discovery-srv",
        "cluster.test",
        "--discovery-srv-name",
        "blue",
    ];
    let _member = Member::start(&other, &named);
    put_patiently(&other, "blue", "1").await;
    assert_eq!(members_of(&other).await.len(), 1);
}

/// Names and peer URLs.
async fn members_of(place: &Place) -> Vec<(String, String)> {
    use store::pb::etcdserverpb::MemberListRequest;
    use store::pb::etcdserverpb::cluster_client::ClusterClient;
    let mut client = ClusterClient::connect(place.client.clone()).await.unwrap();
    let answer = client
        .member_list(MemberListRequest::default())
        .await
        .unwrap();
    let mut members: Vec<(String, String)> = answer
        .into_inner()
        .members
        .into_iter()
        .map(|member| (member.name, member.peer_ur_ls.join(",")))
        .collect();
    members.sort();
    members
}
