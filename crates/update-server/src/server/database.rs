//! SQLite behind two doors: reads on one connection, writes through one thread.
//!
//! The thread commits whatever has queued up while the disk was busy with the commit before, so
//! a rush of check-ins costs one sync per batch and not one per host. An answer is sent only
//! after its commit: what a host was told is on disk.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot};

use super::error::ApiError;

/// One file per step; the database's `user_version` counts those it has seen.
const MIGRATIONS: [&str; 1] = [include_str!("migrations/1.sql")];

const QUEUE: usize = 1024;
const BATCH: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("SQLite failed")]
    Sqlite(#[from] rusqlite::Error),
    #[error(
        "it was made by a newer update-server (schema {found}, this one knows {known}): use that one"
    )]
    TooNew { found: usize, known: usize },
    #[error("the change was not committed")]
    NotCommitted,
    #[error("cannot start the thread that writes")]
    Thread(#[source] std::io::Error),
}

/// Runs inside the batch's transaction and gives what is to be done after the commit.
type Job = Box<dyn FnOnce(&Connection) -> Box<dyn FnOnce() + Send> + Send>;

pub(super) struct Database {
    jobs: mpsc::Sender<Job>,
    reader: Arc<Mutex<Connection>>,
}

impl Database {
    pub(super) fn open(path: &Path) -> Result<Self, DatabaseError> {
        let mut writer = Connection::open(path)?;
        prepare(&mut writer)?;
        let reader = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("database".into())
            .spawn(move || write_batches(&writer, queue))
            .map_err(DatabaseError::Thread)?;
        Ok(Self {
            jobs,
            reader: Arc::new(Mutex::new(reader)),
        })
    }

    /// Runs `change` in a transaction; an error undoes it.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let result = in_savepoint(connection, change);
            Box::new(move || drop(answer.send(result)))
        });
        self.jobs
            .send(job)
            .await
            .map_err(|_| DatabaseError::NotCommitted)?;
        answered.await.map_err(|_| DatabaseError::NotCommitted)?
    }

    pub(super) async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let reader = Arc::clone(&self.reader);
        let run = move || query(&reader.lock().unwrap_or_else(PoisonError::into_inner));
        match tokio::task::spawn_blocking(run).await {
            Ok(result) => result,
            Err(error) => Err(ApiError::internal("the server's database failed", error)),
        }
    }
}

/// Settings and migrations.
pub(super) fn prepare(connection: &mut Connection) -> Result<(), DatabaseError> {
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    let seen: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if seen > MIGRATIONS.len() {
        return Err(DatabaseError::TooNew {
            found: seen,
            known: MIGRATIONS.len(),
        });
    }
    for (step, sql) in MIGRATIONS.iter().enumerate().skip(seen) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", step + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

fn write_batches(connection: &Connection, mut queue: mpsc::Receiver<Job>) {
    while let Some(first) = queue.blocking_recv() {
        match write_batch(connection, first, &mut queue) {
            Ok(answers) => answers.into_iter().for_each(|answer| answer()),
            // Dropping the answers tells everyone who waits for one.
            Err(error) => {
                tracing::error!("cannot commit: {error}");
                let _ = connection.execute_batch("ROLLBACK");
            }
        }
    }
}

fn write_batch(
    connection: &Connection,
    first: Job,
    queue: &mut mpsc::Receiver<Job>,
) -> rusqlite::Result<Vec<Box<dyn FnOnce() + Send>>> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let mut answers = vec![first(connection)];
    while answers.len() < BATCH {
        let Ok(job) = queue.try_recv() else { break };
        answers.push(job(connection));
    }
    connection.execute_batch("COMMIT")?;
    Ok(answers)
}

/// A job that fails must not take its batch along.
fn in_savepoint<T>(
    connection: &Connection,
    change: impl FnOnce(&Connection) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    connection.execute_batch("SAVEPOINT job")?;
    let result = change(connection);
    let end = if result.is_ok() {
        "RELEASE job"
    } else {
        "ROLLBACK TO job; RELEASE job"
    };
    connection.execute_batch(end)?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;

    fn channels(connection: &Connection) -> Result<i64, ApiError> {
        Ok(connection.query_row("SELECT count(*) FROM channels", [], |row| row.get(0))?)
    }

    fn add(connection: &Connection, name: &str) -> Result<(), ApiError> {
        connection.execute("INSERT INTO channels (name) VALUES (?1)", [name])?;
        Ok(())
    }

    #[tokio::test]
    async fn a_failing_change_is_undone_alone() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("server.db")).unwrap();
        let before = database.read(channels).await.unwrap();
        let (good, bad, also_good) = tokio::join!(
            database.write(|c| add(c, "one")),
            database.write(|c| {
                add(c, "two")?;
                Err::<(), _>(ApiError::new(StatusCode::CONFLICT, "changed my mind"))
            }),
            database.write(|c| add(c, "three")),
        );
        assert!(good.is_ok() && bad.is_err() && also_good.is_ok());
        assert_eq!(database.read(channels).await.unwrap(), before + 2);
    }

    #[tokio::test]
    async fn what_was_answered_survives_and_newer_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.db");
        Database::open(&path)
            .unwrap()
            .write(|c| add(c, "one"))
            .await
            .unwrap();
        let database = Database::open(&path).unwrap();
        assert_eq!(database.read(channels).await.unwrap(), 4);
        database
            .write(|c| Ok(c.pragma_update(None, "user_version", 99)?))
            .await
            .unwrap();
        let error = Database::open(&path).err().unwrap();
        assert!(
            error.to_string().contains("newer update-server (schema 99"),
            "{error}"
        );
    }
}
