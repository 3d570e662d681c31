//! What is known of the hosts that ask, read for many of them at once: whoever asks while a query
//! runs is in the next one. One host at a time would cost a few round trips to the database each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::database::DatabaseError;
use super::error::ApiError;
use super::records::{self, Known};
use super::sql::{Db, Duty, Place, SqlError};

/// Two, so that one may wait for the disk.
const READERS: usize = 2;
const QUEUE: usize = 1024;
const AT_ONCE: usize = 64;

struct Ask {
    machine_id: String,
    answer: oneshot::Sender<Result<Option<Known>, Arc<SqlError>>>,
}

pub(super) struct Asks {
    queues: [mpsc::Sender<Ask>; READERS],
    next: AtomicUsize,
}

impl Asks {
    /// Blocks.
    pub(super) fn open(place: &Place, runtime: &Handle) -> Result<Self, DatabaseError> {
        let one = || {
            let db = Db::open(place, Duty::Read, runtime)?;
            let (queue, asks) = mpsc::channel(QUEUE);
            std::thread::Builder::new()
                .name("check-ins".into())
                .spawn(move || answer_all(&db, asks))
                .map_err(DatabaseError::Thread)?;
            Ok::<_, DatabaseError>(queue)
        };
        Ok(Self {
            queues: [one()?, one()?],
            next: AtomicUsize::new(0),
        })
    }

    pub(super) async fn known(&self, machine_id: String) -> Result<Option<Known>, ApiError> {
        let failed = |cause: String| ApiError::internal("the server's database failed", cause);
        let (answer, answered) = oneshot::channel();
        let ask = Ask { machine_id, answer };
        let gone = || failed("the thread that reads is gone".into());
        let queue = &self.queues[self.next.fetch_add(1, Ordering::Relaxed) % READERS];
        queue.send(ask).await.map_err(|_| gone())?;
        let known = answered.await.map_err(|_| gone())?;
        known.map_err(|error| failed(error.with_cause()))
    }
}

fn answer_all(db: &Db, mut queue: mpsc::Receiver<Ask>) {
    let mut asks = Vec::with_capacity(AT_ONCE);
    while queue.blocking_recv_many(&mut asks, AT_ONCE) > 0 {
        let ids: Vec<&str> = asks.iter().map(|ask| ask.machine_id.as_str()).collect();
        match read(db, &ids) {
            Ok(known) => {
                for ask in asks.drain(..) {
                    let _ = ask.answer.send(Ok(known.get(&ask.machine_id).cloned()));
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for ask in asks.drain(..) {
                    let _ = ask.answer.send(Err(Arc::clone(&error)));
                }
            }
        }
    }
}

fn read(db: &Db, ids: &[&str]) -> Result<records::KnownHosts, SqlError> {
    db.revive()?;
    records::known(db, ids)
}
