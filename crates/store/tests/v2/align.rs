//! Brings two servers of v2 to the same index.

use super::http::try_send;

/// Both have an index of their own, and etcd has used some of it for itself: whoever is behind writes.
pub(crate) fn align(etcd: &str, ours: &str) {
    let index = |address: &str| -> u64 {
        let answer = try_send(address, "GET", "/v2/keys/", &[], b"").unwrap();
        answer.headers["x-etcd-index"].parse().unwrap()
    };
    let write = |address: &str| {
        try_send(address, "PUT", "/v2/keys/aligned?value=x", &[], b"").unwrap();
    };
    write(etcd);
    write(ours);
    loop {
        match index(etcd).cmp(&index(ours)) {
            std::cmp::Ordering::Less => write(etcd),
            std::cmp::Ordering::Equal => return,
            std::cmp::Ordering::Greater => write(ours),
        }
    }
}
