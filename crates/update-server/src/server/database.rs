//! The database behind two doors: reads on a few connections, writes through one thread.
//!
//! The thread commits whatever has queued up while the disk was busy with the commit before, so
//! a rush of check-ins costs one sync per batch and not one per host. An answer is sent only
//! after its commit: what a host was told is on disk. The thread also owns the [`Plan`], which goes
//! back together with the transaction when a change fails.
//!
//! On PostgreSQL several servers do this at the same time. Each of their batches takes the same
//! lock first, and looks whether another server changed the plan since; so there is one order of
//! changes, whoever makes them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use jiff::Timestamp;
use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::asks::Asks;
use super::error::ApiError;
use super::plan::Plan;
use super::records::Known;
use super::sql::{Db, Duty, Place, SqlError};

/// One file per step, for both kinds of database.
const MIGRATIONS: [(&str, &str); 2] = [
    ("tables", include_str!("migrations/1.sql")),
    ("signed", include_str!("migrations/2.sql")),
];

/// SQLite files of before: their `user_version` is 1 or 2, and 3 while they are taken over.
const OLD_STEP: &str = include_str!("migrations/sqlite-before-sqlx/2.sql");
const OLD_AWAY: &str = include_str!("migrations/sqlite-before-sqlx/away.sql");
const OLD_BACK: &str = include_str!("migrations/sqlite-before-sqlx/back.sql");

const QUEUE: usize = 1024;
const BATCH: usize = 256;
const READERS: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error("it was made by a newer update-server: use that one")]
    TooNew,
    #[error(
        "another update-server, or somebody else on its PostgreSQL, keeps the lock that changes need"
    )]
    Locked,
    #[error("the change was not committed")]
    NotCommitted,
    #[error("{0}")]
    Plan(String),
    #[error("cannot start the thread that writes")]
    Thread(#[source] std::io::Error),
}

/// Runs inside the batch's transaction and gives what is to be done after the commit.
type Job = Box<dyn FnOnce(&Db, &mut Arc<Plan>) -> Box<dyn FnOnce() + Send> + Send>;

pub(super) struct Database {
    jobs: mpsc::Sender<Job>,
    readers: Arc<[Mutex<Db>; READERS]>,
    next_reader: AtomicUsize,
    /// As of the last commit.
    plan: Arc<RwLock<Arc<Plan>>>,
    shared: bool,
    asks: Asks,
}

impl Database {
    /// Blocks.
    pub(super) fn open(
        place: &Place,
        now: Timestamp,
        runtime: &Handle,
    ) -> Result<Self, DatabaseError> {
        let writer = Db::open(place, Duty::Write, runtime)?;
        prepare(&writer)?;
        let plan = first_plan(&writer, now)?;
        let mut readers = vec![];
        for _ in 0..READERS {
            readers.push(Mutex::new(Db::open(place, Duty::Read, runtime)?));
        }
        let readers: [_; READERS] = readers
            .try_into()
            .map_err(|_| DatabaseError::Plan("too few connections".into()))?;
        let asks = Asks::open(place, runtime)?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let published = Arc::new(RwLock::new(Arc::new(plan)));
        let plan = Arc::clone(&published);
        let shared = writer.is_shared();
        std::thread::Builder::new()
            .name("database".into())
            .spawn(move || write_batches(&writer, &published, queue))
            .map_err(DatabaseError::Thread)?;
        Ok(Self {
            jobs,
            readers: Arc::new(readers),
            next_reader: AtomicUsize::new(0),
            plan,
            shared,
            asks,
        })
    }

    /// What is known of a host, as of the last commit.
    pub(super) async fn known(&self, machine_id: String) -> Result<Option<Known>, ApiError> {
        self.asks.known(machine_id).await
    }

    /// As of the last commit.
    pub(super) fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Other servers may have changed the plan: then it is read again.
    pub(super) async fn refresh(&self) -> Result<(), ApiError> {
        if !self.shared {
            return Ok(());
        }
        let newest = self.read(|db| Ok(Plan::newest(db)?)).await?;
        if newest == self.plan().number {
            return Ok(());
        }
        // Every batch begins with looking at it.
        self.write(|_| Ok(())).await
    }

    /// Runs `change` in a transaction; an error undoes it.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Db) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.write_plan(|db, _| change(db)).await
    }

    /// Runs `change` in a transaction, and lets it change the plan; an error undoes both.
    pub(super) async fn write_plan<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Db, &mut Plan) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |db, plan| {
            let before = Arc::clone(plan);
            let result = in_savepoint(db, |db| change(db, Arc::make_mut(plan)));
            if result.is_err() {
                *plan = before;
            }
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
        query: impl FnOnce(&Db) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let readers = Arc::clone(&self.readers);
        let first = self.next_reader.fetch_add(1, Ordering::Relaxed);
        let run = move || {
            // A page that lists the fleet keeps its reader for a while.
            let free = (0..READERS).find_map(|n| readers[(first + n) % READERS].try_lock().ok());
            let reader = free.unwrap_or_else(|| {
                readers[first % READERS]
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
            });
            reader.revive()?;
            query(&reader)
        };
        match tokio::task::spawn_blocking(run).await {
            Ok(result) => result,
            Err(error) => Err(ApiError::internal("the server's database failed", error)),
        }
    }
}

/// Begins a transaction that changes something.
fn begin(db: &Db) -> Result<(), DatabaseError> {
    if !db.is_shared() {
        return Ok(db.batch("BEGIN IMMEDIATE")?);
    }
    // Any number, the same for all servers; the lock goes with the transaction. At any other level, which may be
    // the default there, the transaction would see the tables as they were before it waited for the lock.
    let begun =
        db.batch("BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock(7308055)");
    begun.map_err(|error| {
        if error.is_locked() {
            DatabaseError::Locked
        } else {
            error.into()
        }
    })
}

/// What the database says, with a rollout wherever a channel points at something.
fn first_plan(writer: &Db, now: Timestamp) -> Result<Plan, DatabaseError> {
    let failed = |error: ApiError| DatabaseError::Plan(error.to_string());
    begin(writer)?;
    let mut plan = Plan::load(writer).map_err(failed)?;
    plan.reconcile(writer, now).map_err(failed)?;
    plan.save(writer, None).map_err(failed)?;
    writer.batch("COMMIT")?;
    Ok(plan)
}

/// Brings the tables up to date.
pub(crate) fn prepare(db: &Db) -> Result<(), DatabaseError> {
    let old = take_over(db)?;
    let migration = |(number, (name, sql)): (usize, &(&'static str, &'static str))| {
        let sql = if db.is_shared() {
            sqlx::AssertSqlSafe(sql.replace(" TEXT", " TEXT COLLATE \"C\"")).into_sql_str()
        } else {
            sql.into_sql_str()
        };
        let number = i64::try_from(number + 1).unwrap_or(i64::MAX);
        Migration::new(number, (*name).into(), MigrationType::Simple, sql, false)
    };
    let migrations = MIGRATIONS.iter().enumerate().map(migration).collect();
    match db.migrate(&Migrator::with_migrations(migrations)) {
        Err(SqlError::Migrate(sqlx::migrate::MigrateError::VersionMissing(_))) => {
            return Err(DatabaseError::TooNew);
        }
        result => result?,
    }
    if old {
        tracing::info!("takes over what an older update-server wrote");
        db.batch(&format!("BEGIN IMMEDIATE; {OLD_BACK}; COMMIT"))?;
    }
    Ok(())
}

/// Makes room where an older server wrote its tables; gives whether there are any.
fn take_over(db: &Db) -> Result<bool, DatabaseError> {
    if db.is_shared() {
        return Ok(false);
    }
    let step: i64 = db.value("PRAGMA user_version", &[])?;
    let before = match step {
        0 => return Ok(false),
        1 => OLD_STEP,
        2 => "",
        3 => return Ok(true),
        _ => return Err(DatabaseError::TooNew),
    };
    db.batch(&format!("BEGIN IMMEDIATE; {before}; {OLD_AWAY}; COMMIT"))?;
    Ok(true)
}

fn write_batches(db: &Db, published: &RwLock<Arc<Plan>>, mut queue: mpsc::Receiver<Job>) {
    let mut plan = Arc::clone(&published.read().unwrap_or_else(PoisonError::into_inner));
    while let Some(first) = queue.blocking_recv() {
        let before = Arc::clone(&plan);
        match write_batch(db, &mut plan, first, &mut queue) {
            Ok(answers) => {
                *published.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&plan);
                answers.into_iter().for_each(|answer| answer());
            }
            // Dropping the answers tells everyone who waits for one.
            Err(error) => {
                tracing::error!("cannot commit: {error}");
                if !db.is_lost() {
                    let _ = db.batch("ROLLBACK");
                }
                plan = before;
            }
        }
    }
}

fn write_batch(
    db: &Db,
    plan: &mut Arc<Plan>,
    first: Job,
    queue: &mut mpsc::Receiver<Job>,
) -> Result<Vec<Box<dyn FnOnce() + Send>>, ApiError> {
    if let Err(error) = begin(db) {
        if !db.is_lost() {
            return Err(error.into());
        }
        // Nothing was begun, so it can be tried on a new connection.
        db.reconnect()?;
        begin(db)?;
    }
    if db.is_shared() && Plan::newest(db)? != plan.number {
        *plan = Arc::new(Plan::load(db)?);
    }
    let before = Arc::clone(plan);
    let mut answers = vec![first(db, plan)];
    while answers.len() < BATCH {
        let Ok(job) = queue.try_recv() else { break };
        answers.push(job(db, plan));
    }
    if db.is_lost() {
        return Err(DatabaseError::NotCommitted.into());
    }
    if !Arc::ptr_eq(&before, plan) {
        Arc::make_mut(plan).save(db, Some(&before))?;
    }
    db.batch("COMMIT")?;
    Ok(answers)
}

/// A job that fails must not take its batch along.
fn in_savepoint<T>(
    db: &Db,
    change: impl FnOnce(&Db) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    // On a new connection there is no transaction to be part of.
    if db.is_lost() {
        return Err(DatabaseError::NotCommitted.into());
    }
    db.batch("SAVEPOINT job")?;
    let result = change(db);
    if db.is_lost() {
        return result.and(Err(DatabaseError::NotCommitted.into()));
    }
    db.batch(if result.is_ok() {
        "RELEASE SAVEPOINT job"
    } else {
        "ROLLBACK TO SAVEPOINT job; RELEASE SAVEPOINT job"
    })?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::sql::params;
    use axum::http::StatusCode;

    fn channels(db: &Db) -> Result<i64, ApiError> {
        Ok(db.value("SELECT count(*) FROM channels", &[])?)
    }

    fn add(db: &Db, name: &str) -> Result<(), ApiError> {
        db.execute("INSERT INTO channels (name) VALUES ($1)", params![name])?;
        Ok(())
    }

    async fn open(path: &std::path::Path) -> Result<Database, DatabaseError> {
        let (place, runtime) = (Place::File(path.into()), Handle::current());
        tokio::task::spawn_blocking(move || Database::open(&place, Timestamp::UNIX_EPOCH, &runtime))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_failing_change_is_undone_alone() {
        let dir = tempfile::tempdir().unwrap();
        let database = open(&dir.path().join("server.db")).await.unwrap();
        let before = database.read(channels).await.unwrap();
        let (good, bad, also_good) = tokio::join!(
            database.write(|db| add(db, "one")),
            database.write(|db| {
                add(db, "two")?;
                Err::<(), _>(ApiError::new(StatusCode::CONFLICT, "changed my mind"))
            }),
            database.write(|db| add(db, "three")),
        );
        assert!(good.is_ok() && bad.is_err() && also_good.is_ok());
        assert_eq!(database.read(channels).await.unwrap(), before + 2);
    }

    #[tokio::test]
    async fn what_was_answered_survives_and_newer_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.db");
        open(&path)
            .await
            .unwrap()
            .write(|db| add(db, "one"))
            .await
            .unwrap();
        let database = open(&path).await.unwrap();
        assert_eq!(database.read(channels).await.unwrap(), 4);
        let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                     VALUES (99, 'of tomorrow', TRUE, x'00', 0)";
        database.write(|db| Ok(db.batch(newer)?)).await.unwrap();
        let error = open(&path).await.err().unwrap();
        assert!(error.to_string().contains("newer update-server"), "{error}");
    }

    #[tokio::test]
    async fn files_of_before_are_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        for (name, steps) in [("1.db", 1), ("2.db", 2)] {
            let path = dir.path().join(name);
            let (place, runtime) = (Place::File(path.clone()), Handle::current());
            tokio::task::spawn_blocking(move || {
                let db = Db::open(&place, Duty::Write, &runtime).unwrap();
                db.batch(include_str!("migrations/sqlite-before-sqlx/1.sql"))
                    .unwrap();
                db.batch(
                    "INSERT INTO hosts VALUES ('4f2a', 'web1', '1', 'a', 'stable', 'healthy', NULL, NULL, 1, 2)",
                )
                .unwrap();
                db.batch("INSERT INTO failures VALUES ('4f2a', '', '2', 'no network\nat all', 5)")
                    .unwrap();
                if steps == 2 {
                    db.batch(OLD_STEP).unwrap();
                }
                db.batch(&format!("PRAGMA user_version = {steps}")).unwrap();
            })
            .await
            .unwrap();
            // The second time there is nothing to take over.
            for _ in 0..2 {
                let database = open(&path).await.unwrap();
                let found = database.read(|db| {
                    let host = "SELECT machine_id || ' ' || grp || ' ' || last_seen FROM hosts";
                    let counted =
                        "SELECT channel || ' ' || sum(hosts) FROM census GROUP BY channel";
                    Ok((
                        db.value::<String>(host, &[])?,
                        db.value::<String>(counted, &[])?,
                        db.value::<String>("SELECT headline FROM failures", &[])?,
                        channels(db)?,
                    ))
                });
                assert_eq!(
                    found.await.unwrap(),
                    (
                        "4f2a stable 2".into(),
                        "stable 1".into(),
                        "no network".into(),
                        3
                    )
                );
            }
        }
    }
}
