//! Members that find each other through a directory of keys, on our own store.

use super::{http, single};
use store::v2::discovery::{self, Error};

fn put(address: &str, path: &str, value: &str) {
    let target = format!("/v2/keys/_etcd/registry/{path}?value={value}");
    let answer = http::try_send(address, "PUT", &target, &[], b"").unwrap();
    assert_eq!(answer.status, 201, "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_find_each_other_and_a_fourth_is_turned_away() {
    let address = single::start().await;
    let url = format!("http://{address}/v2/keys/_etcd/registry/token");
    tokio::task::spawn_blocking(move || {
        put(&address, "token/_config/size", "3");
        let join = |id: u64| {
            let url = url.clone();
            let config = format!("m{id}=http://10.0.0.{id}:2380");
            std::thread::spawn(move || discovery::join(&url, None, id, &config))
        };
        let members = [1, 2, 3].map(join);
        let clusters = members.map(|member| member.join().unwrap().unwrap());
        assert_eq!(clusters[0], clusters[1]);
        assert_eq!(clusters[1], clusters[2]);
        for id in 1..=3 {
            let part = format!("m{id}=http://10.0.0.{id}:2380");
            assert!(
                clusters[0].split(',').any(|member| member == part),
                "{}",
                clusters[0]
            );
        }
        assert_eq!(discovery::cluster(&url, None).as_ref(), Ok(&clusters[0]));
        assert_eq!(join(4).join().unwrap(), Err(Error::Full(3)));
        assert_eq!(
            join(1).join().unwrap(),
            Err(Error::DuplicateId("1".into())),
            "who has lost its data must not come back as if nothing had happened"
        );
        let unknown = url.replace("token", "unknown");
        assert_eq!(
            discovery::cluster(&unknown, None),
            Err(Error::SizeNotFound(unknown))
        );
        put(&address, "odd/_config/size", "many");
        let odd = url.replace("token", "odd");
        assert_eq!(
            discovery::cluster(&odd, None),
            Err(Error::BadSize("many".into()))
        );
    })
    .await
    .unwrap();
}
