//! Whose turn it is to publish: what is checked has to be what is served, and a file in the store of the
//! releases cannot be replaced on a condition.

use std::time::Duration;

use axum::http::StatusCode;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _};
use tokio::sync::{Mutex, MutexGuard};

use super::error::ApiError;
use super::sql::{ALIVE, Place, SqlError};

/// Any number, the same for all servers and another one than that of changes.
const LOCK: &str = "SELECT pg_advisory_lock(7308056)";

/// Checking a release means reading all of it.
const PATIENCE: Duration = Duration::from_secs(300);

pub(super) struct Turns {
    here: Mutex<()>,
    /// Other servers may publish into the same place.
    shared: Option<Box<PgConnectOptions>>,
}

/// Goes with its connection, however that ends.
pub(super) struct Turn<'a> {
    _here: MutexGuard<'a, ()>,
    _everywhere: Option<PgConnection>,
}

impl Turns {
    pub(super) fn new(place: &Place) -> Self {
        let shared = match place {
            Place::File(_) => None,
            Place::Shared(options, _) => Some(options.clone()),
        };
        Self {
            here: Mutex::new(()),
            shared,
        }
    }

    pub(super) async fn take(&self) -> Result<Turn<'_>, ApiError> {
        let here = self.here.lock().await;
        let everywhere = match &self.shared {
            Some(options) => Some(lock(options).await?),
            None => None,
        };
        Ok(Turn {
            _here: here,
            _everywhere: everywhere,
        })
    }
}

async fn lock(options: &PgConnectOptions) -> Result<PgConnection, ApiError> {
    let mut connection = options.connect().await.map_err(SqlError::from)?;
    let wait = format!("SET lock_timeout = '{}s';", PATIENCE.as_secs());
    let sql = [ALIVE, &wait, LOCK].concat();
    let locked = sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut connection)
        .await;
    match locked.map_err(SqlError::from) {
        Ok(_) => Ok(connection),
        Err(error) if error.is_locked() => Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "another server of this fleet has been publishing all the time",
        )
        .hint("try again; what was sent is kept")),
        Err(error) => Err(error.into()),
    }
}
