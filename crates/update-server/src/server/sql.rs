//! One connection to SQLite or PostgreSQL, for code that waits for its answers.
//!
//! The same statements run on both: only whole numbers and text, parameters written `$1`, and sums
//! cast to BIGINT. Whoever calls is on a thread that may block.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Column as _, ConnectOptions as _, Row as _, TypeInfo as _};
use sqlx::{Postgres, Sqlite, ValueRef as _};
use tokio::runtime::Handle;

/// Where the data are.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    File(PathBuf),
    /// PostgreSQL's address, and how to name it without its password.
    Shared(Box<PgConnectOptions>, String),
}

impl Place {
    /// Of `postgres://USER@HOST/DATABASE`.
    pub(crate) fn shared(url: &str) -> Result<Self, SqlError> {
        let options = PgConnectOptions::from_str(url)?
            .application_name("update-server")
            .disable_statement_logging();
        let user = options.get_username();
        let database = options.get_database().unwrap_or(user);
        let host = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        let name = format!("PostgreSQL {database} at {host}, user {user}");
        Ok(Self::Shared(Box::new(options), name))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Shared(_, name) => f.write_str(name),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    #[error("the database cannot be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("column {column} of the database: {what}")]
    Column { column: usize, what: String },
}

impl SqlError {
    /// Another connection kept a lock for too long.
    pub(crate) fn is_locked(&self) -> bool {
        let Self::Database(sqlx::Error::Database(error)) = self else {
            return false;
        };
        error.code().is_some_and(|code| code == "55P03")
    }

    pub(crate) fn with_cause(&self) -> String {
        let cause = std::error::Error::source(self).map(|cause| format!(": {cause}"));
        format!("{self}{}", cause.unwrap_or_default())
    }
}

/// What a statement is given, and what it gives.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Number(Option<i64>),
    Text(Option<String>),
}

macro_rules! numbers {
    ($($kind:ty),*) => {$(
        impl From<$kind> for Value {
            fn from(value: $kind) -> Self {
                Self::Number(i64::try_from(value).ok())
            }
        }
        impl From<Option<$kind>> for Value {
            fn from(value: Option<$kind>) -> Self {
                Self::Number(value.and_then(|value| i64::try_from(value).ok()))
            }
        }
        impl FromValue for $kind {
            fn from_value(value: &Value) -> Option<Self> {
                match value {
                    Value::Number(Some(value)) => (*value).try_into().ok(),
                    _ => None,
                }
            }
        }
    )*};
}

numbers!(i64, u64, u32, usize);

macro_rules! texts {
    ($($kind:ty),*) => {$(
        impl From<$kind> for Value {
            fn from(value: $kind) -> Self {
                Self::Text(Some(value.to_string()))
            }
        }
        impl From<Option<$kind>> for Value {
            fn from(value: Option<$kind>) -> Self {
                Self::Text(value.map(|value| value.to_string()))
            }
        }
    )*};
}

texts!(&str, String, &String);

impl From<Timestamp> for Value {
    fn from(value: Timestamp) -> Self {
        Self::Number(Some(value.as_second()))
    }
}

pub(crate) trait FromValue: Sized {
    fn from_value(value: &Value) -> Option<Self>;
}

impl FromValue for String {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) => text.clone(),
            Value::Number(_) => None,
        }
    }
}

impl FromValue for bool {
    fn from_value(value: &Value) -> Option<Self> {
        i64::from_value(value).map(|number| number != 0)
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Number(None) | Value::Text(None) => Some(None),
            value => T::from_value(value).map(Some),
        }
    }
}

macro_rules! params {
    ($($value:expr),* $(,)?) => {
        &[$($crate::server::sql::Value::from($value)),*]
    };
}
pub(crate) use params;

/// One row of an answer.
#[derive(Debug)]
pub(crate) struct Row(Vec<Value>);

impl Row {
    pub(crate) fn get<T: FromValue>(&self, column: usize) -> Result<T, SqlError> {
        let value = self.0.get(column);
        value
            .and_then(T::from_value)
            .ok_or_else(|| SqlError::Column {
                column,
                what: format!("{value:?} is not a {}", std::any::type_name::<T>()),
            })
    }
}

enum Connection {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

/// See the module's words.
pub(crate) struct Db {
    runtime: Handle,
    connection: RefCell<Connection>,
    lost: Cell<bool>,
    used: Cell<Instant>,
    reopen: Reopen,
}

#[derive(Clone)]
enum Reopen {
    Sqlite(Box<SqliteConnectOptions>),
    Postgres(Box<PgConnectOptions>, Duty),
}

impl Reopen {
    async fn connect(&self) -> Result<Connection, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(options) => Connection::Sqlite(options.connect().await?),
            Self::Postgres(options, duty) => {
                let mut connection = options.connect().await?;
                let limits = match duty {
                    Duty::Write => [ALIVE, WRITER_LIMITS].concat(),
                    Duty::Read => ALIVE.to_owned(),
                };
                let limits = sqlx::raw_sql(AssertSqlSafe(limits));
                limits.execute(&mut connection).await?;
                Connection::Postgres(connection)
            }
        })
    }
}

/// A connection that was not used for so long is tried before it is relied on.
const IDLE: Duration = Duration::from_secs(1);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    Write,
    Read,
}

/// PostgreSQL notices within half a minute that a server of ours is gone without a word.
pub(super) const ALIVE: &str =
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 4;";

/// All servers wait for the one whose turn it is to write: one that hangs loses its turn before the others give up.
const WRITER_LIMITS: &str =
    "SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '20s';";

/// In KiB, for the connection that writes and for each that reads.
const WRITER_CACHE: i64 = 64 << 10;
const READER_CACHE: i64 = 8 << 10;

fn sqlite(path: &PathBuf, duty: Duty) -> SqliteConnectOptions {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(Duration::from_secs(5))
        .statement_cache_capacity(64)
        .disable_statement_logging();
    match duty {
        Duty::Write => options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .pragma("cache_size", (-WRITER_CACHE).to_string()),
        Duty::Read => options
            .read_only(true)
            .pragma("cache_size", (-READER_CACHE).to_string()),
    }
}

/// Whether the connection is of no use any more.
fn is_loss(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => true,
        sqlx::Error::WorkerCrashed | sqlx::Error::PoolClosed => true,
        // Shut down, crashed, or not up yet; or thrown out for being idle in a transaction.
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| code.starts_with("57P") || code == "25P03"),
        _ => false,
    }
}

impl Db {
    pub(crate) fn open(place: &Place, duty: Duty, runtime: &Handle) -> Result<Self, SqlError> {
        let reopen = match place {
            Place::File(path) => Reopen::Sqlite(Box::new(sqlite(path, duty))),
            Place::Shared(options, _) => Reopen::Postgres(options.clone(), duty),
        };
        Ok(Self {
            runtime: runtime.clone(),
            connection: RefCell::new(runtime.block_on(reopen.connect())?),
            lost: Cell::new(false),
            used: Cell::new(Instant::now()),
            reopen,
        })
    }

    /// Others write to the same database.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.reopen, Reopen::Postgres(..))
    }

    /// After a loss: what was begun on the old connection is gone.
    pub(crate) fn reconnect(&self) -> Result<(), SqlError> {
        let new = self.runtime.block_on(self.reopen.connect())?;
        self.connection.replace(new);
        self.lost.set(false);
        Ok(())
    }

    /// Makes sure, as far as that is possible, that what comes next finds a connection: a server that was restarted
    /// meanwhile would be noticed only by what fails.
    pub(crate) fn revive(&self) -> Result<(), SqlError> {
        if self.is_shared() && self.used.get().elapsed() > IDLE {
            let _ = self.batch("SELECT 1");
        }
        if self.is_lost() {
            self.reconnect()?;
        }
        Ok(())
    }

    /// A lost connection stays lost, so that nothing runs outside of the transaction that it was
    /// meant for.
    fn run<T>(
        &self,
        work: impl AsyncFnOnce(&mut Connection) -> Result<T, sqlx::Error>,
    ) -> Result<T, SqlError> {
        if self.lost.get() {
            let error = std::io::Error::from(std::io::ErrorKind::NotConnected);
            return Err(sqlx::Error::Io(error).into());
        }
        let mut connection = self.connection.borrow_mut();
        let result = self.runtime.block_on(work(&mut connection));
        if result.as_ref().is_err_and(is_loss) {
            self.lost.set(true);
        }
        self.used.set(Instant::now());
        Ok(result?)
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get()
    }

    /// Statements without parameters, separated by semicolons.
    pub(crate) fn batch(&self, sql: &str) -> Result<(), SqlError> {
        let query = sqlx::raw_sql(AssertSqlSafe(sql));
        self.run(async |connection| match connection {
            Connection::Sqlite(connection) => query.execute(connection).await.map(|_| ()),
            Connection::Postgres(connection) => query.execute(connection).await.map(|_| ()),
        })
    }

    /// Gives how many rows changed.
    pub(crate) fn execute(&self, sql: &str, values: &[Value]) -> Result<u64, SqlError> {
        self.run(async |connection| match connection {
            Connection::Sqlite(connection) => {
                let mut query = sqlx::query::<Sqlite>(AssertSqlSafe(sql));
                for value in values {
                    query = match value {
                        Value::Number(number) => query.bind(*number),
                        Value::Text(text) => query.bind(text.as_deref()),
                    };
                }
                Ok(query.execute(connection).await?.rows_affected())
            }
            Connection::Postgres(connection) => {
                let mut query = sqlx::query::<Postgres>(AssertSqlSafe(sql));
                for value in values {
                    query = match value {
                        Value::Number(number) => query.bind(*number),
                        Value::Text(text) => query.bind(text.as_deref()),
                    };
                }
                Ok(query.execute(connection).await?.rows_affected())
            }
        })
    }

    fn fetch(&self, sql: &str, values: &[Value]) -> Result<Vec<Row>, SqlError> {
        let query = async |connection: &mut Connection| match connection {
            Connection::Sqlite(connection) => {
                let mut query = sqlx::query::<Sqlite>(AssertSqlSafe(sql));
                for value in values {
                    query = match value {
                        Value::Number(number) => query.bind(*number),
                        Value::Text(text) => query.bind(text.as_deref()),
                    };
                }
                let rows = query.fetch_all(connection).await?;
                rows.iter().map(from_sqlite).collect()
            }
            Connection::Postgres(connection) => {
                let mut query = sqlx::query::<Postgres>(AssertSqlSafe(sql));
                for value in values {
                    query = match value {
                        Value::Number(number) => query.bind(*number),
                        Value::Text(text) => query.bind(text.as_deref()),
                    };
                }
                let rows = query.fetch_all(connection).await?;
                rows.iter().map(from_postgres).collect()
            }
        };
        self.run(query)
    }

    /// Every row, made into something.
    pub(crate) fn rows<T>(
        &self,
        sql: &str,
        values: &[Value],
        make: impl FnMut(&Row) -> Result<T, SqlError>,
    ) -> Result<Vec<T>, SqlError> {
        self.fetch(sql, values)?.iter().map(make).collect()
    }

    /// The first row, if there is one.
    pub(crate) fn row<T>(
        &self,
        sql: &str,
        values: &[Value],
        make: impl FnOnce(&Row) -> Result<T, SqlError>,
    ) -> Result<Option<T>, SqlError> {
        self.fetch(sql, values)?.first().map(make).transpose()
    }

    /// The one value of the one row.
    pub(crate) fn value<T: FromValue>(&self, sql: &str, values: &[Value]) -> Result<T, SqlError> {
        let nothing = || SqlError::Database(sqlx::Error::RowNotFound);
        self.row(sql, values, |row| row.get(0))?.ok_or_else(nothing)
    }

    /// Brings the tables up to date.
    pub(crate) fn migrate(&self, migrator: &sqlx::migrate::Migrator) -> Result<(), SqlError> {
        let mut connection = self.connection.borrow_mut();
        let result = self.runtime.block_on(async {
            match &mut *connection {
                Connection::Sqlite(connection) => {
                    migrator.run_direct(None, connection, false).await
                }
                Connection::Postgres(connection) => {
                    migrator.run_direct(None, connection, false).await
                }
            }
        });
        Ok(result?)
    }
}

fn from_sqlite(row: &SqliteRow) -> Result<Row, sqlx::Error> {
    let value = |column| {
        let value = row.try_get_raw(column)?;
        Ok(match value.type_info().name() {
            _ if value.is_null() => Value::Text(None),
            "TEXT" => Value::Text(Some(row.try_get_unchecked(column)?)),
            _ => Value::Number(Some(row.try_get_unchecked(column)?)),
        })
    };
    Ok(Row((0..row.len())
        .map(value)
        .collect::<Result<_, sqlx::Error>>()?))
}

fn from_postgres(row: &PgRow) -> Result<Row, sqlx::Error> {
    let value = |column: usize| {
        Ok(match row.column(column).type_info().name() {
            "INT8" => Value::Number(row.try_get(column)?),
            "INT4" => Value::Number(row.try_get::<Option<i32>, _>(column)?.map(i64::from)),
            "BOOL" => Value::Number(row.try_get::<Option<bool>, _>(column)?.map(i64::from)),
            _ => Value::Text(row.try_get(column)?),
        })
    };
    Ok(Row((0..row.len())
        .map(value)
        .collect::<Result<_, sqlx::Error>>()?))
}
