//! Clients that write and read while something happens to the members, and what they may expect.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use store::pb::etcdserverpb as rpc;
use store::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use tokio::task::JoinHandle;

use crate::members::Place;
use crate::{get_patiently, progress, put, put_patiently, revision_of, writer};

pub(crate) struct Load {
    end: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Vec<String>>>,
    counter: JoinHandle<()>,
    readers: Vec<JoinHandle<u32>>,
    counted: Arc<AtomicU64>,
}

impl Load {
    pub(crate) fn start(places: &[Place]) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..3)
            .map(|i| writer(places.to_vec(), i, end.clone()))
            .collect();

        // One puts again and again; others must never read an older revision than what was acknowledged before they
        // asked. (Values may go back: a put that timed out can still take effect later.)
        let counted = Arc::new(AtomicU64::new(0));
        let newest = Arc::new(AtomicI64::new(0));
        let counter = {
            let (places, end) = (places.to_vec(), end.clone());
            let (counted, newest) = (counted.clone(), newest.clone());
            tokio::spawn(async move {
                let mut n = 0_u64;
                while !end.load(Ordering::Relaxed) {
                    n += 1;
                    let place = &places[usize::try_from(n).unwrap() % 3];
                    if let Some(revision) = put(place, "counter", &n.to_string()).await {
                        newest.store(revision, Ordering::SeqCst);
                        counted.fetch_add(1, Ordering::SeqCst);
                    }
                }
            })
        };
        let readers: Vec<_> = (0..3)
            .map(|i| {
                let (place, end, newest) = (places[i].clone(), end.clone(), newest.clone());
                tokio::spawn(async move {
                    let mut reads = 0_u32;
                    while !end.load(Ordering::Relaxed) {
                        let before = newest.load(Ordering::SeqCst);
                        if let Some(revision) = revision_of(&place, "counter").await {
                            assert!(
                                revision >= before,
                                "read revision {revision} at {} after {before} had been acknowledged",
                                place.client
                            );
                            reads += 1;
                        }
                    }
                    reads
                })
            })
            .collect();
        Self {
            end,
            writers,
            counter,
            readers,
            counted,
        }
    }

    /// Waits until more writes have been acknowledged: the cluster works.
    pub(crate) async fn goes_on(&self) {
        let before = self.counted.load(Ordering::SeqCst);
        progress(&self.counted, before + 3).await;
    }

    /// Nothing acknowledged is lost anywhere, and all members have the same.
    pub(crate) async fn finish(self, places: &[Place]) {
        self.end.store(true, Ordering::Relaxed);
        self.counter.await.unwrap();
        let mut reads = 0;
        for reader in self.readers {
            reads += reader.await.unwrap();
        }
        assert!(reads > 20, "{reads}");
        let mut acknowledged = Vec::new();
        for writer in self.writers {
            acknowledged.extend(writer.await.unwrap());
        }
        assert!(acknowledged.len() > 20, "{}", acknowledged.len());
        for place in places {
            let found = get_patiently(place, "w/", "w0").await;
            for key in &acknowledged {
                assert!(
                    found.contains_key(key),
                    "{key} was acknowledged and is lost at {}",
                    place.client
                );
            }
        }
        let revision = put_patiently(&places[0], "last", "one").await;
        let mut hashes = Vec::new();
        for place in places {
            get_patiently(place, "last", "").await;
            let channel = tonic::transport::Endpoint::from_shared(place.client.clone())
                .unwrap()
                .connect()
                .await
                .unwrap();
            let request = rpc::HashKvRequest { revision };
            hashes.push(
                MaintenanceClient::new(channel)
                    .hash_kv(request)
                    .await
                    .unwrap()
                    .into_inner()
                    .hash,
            );
        }
        assert!(hashes.windows(2).all(|w| w[0] == w[1]), "{hashes:?}");
    }
}
