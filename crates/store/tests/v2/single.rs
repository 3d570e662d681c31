//! The v2 store and its HTTP, without a log around it: what is compared here is the store itself.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use store::v2::{
    Failure, LeaderStats, Member, MemberError, Outcome, Proposer, RaftState, Request, SelfStats,
    Shared, http,
};

struct Single {
    store: Shared,
    address: String,
}

const ID: u64 = 0x0123_4567_89ab_cdef;

impl Proposer for Single {
    fn store(&self) -> &Shared {
        &self.store
    }

    async fn propose(&self, request: Request) -> Result<Outcome, Failure> {
        Ok(self.store.write().apply(&request))
    }

    async fn linearize(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn raft(&self) -> RaftState {
        RaftState { index: 1, term: 1 }
    }

    fn cluster_id(&self) -> u64 {
        ID
    }

    fn members(&self) -> Vec<Member> {
        vec![Member {
            id: ID,
            name: "one".into(),
            peer_urls: vec!["http://127.0.0.1:1".into()],
            client_urls: vec![format!("http://{}", self.address)],
        }]
    }

    fn leader(&self) -> Option<u64> {
        Some(ID)
    }

    async fn add_member(&self, _: Vec<String>) -> Result<Member, MemberError> {
        Err(MemberError::Other("a single member stays alone".into()))
    }

    async fn remove_member(&self, _: u64) -> Result<(), MemberError> {
        Err(MemberError::IdNotFound)
    }

    async fn update_member(&self, _: u64, _: Vec<String>) -> Result<(), MemberError> {
        Err(MemberError::IdNotFound)
    }

    fn self_stats(&self) -> SelfStats {
        SelfStats {
            state: "StateLeader".into(),
            ..SelfStats::default()
        }
    }

    fn leader_stats(&self) -> Option<LeaderStats> {
        Some(LeaderStats::default())
    }

    fn now(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        i64::try_from(since.as_nanos()).unwrap()
    }
}

/// Starts one, and returns its address. It ends with the runtime.
pub(crate) async fn start() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = Arc::new(Single {
        store: Shared::default(),
        address: address.clone(),
    });
    let expiring = server.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = expiring.now();
            if expiring
                .store
                .read()
                .next_expiry()
                .is_some_and(|at| at <= now)
            {
                let _ = expiring.propose(Request::sync(now)).await;
            }
        }
    });
    let app = http::router(server);
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}
