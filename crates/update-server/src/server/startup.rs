use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::FlockOperation;
use tokio::net::TcpListener;
use tokio::runtime::Handle;

use super::artifacts::{Artifacts, ArtifactsError, remove_unfinished};
use super::auth::Token;
use super::database::{Database, DatabaseError};
use super::oidc::{Oidc, OidcError};
use super::sql::Place;
use super::turn::Turns;
use super::upload::read_keys;
use super::{Options, Server};

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the address {address} is in use by another program")]
    AddressInUse { address: String },
    #[error("cannot listen on {address}")]
    Listen { address: String, source: io::Error },
    #[error("another update-server uses the data directory {}", .0.display())]
    DataInUse(PathBuf),
    #[error("cannot use {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the key directory {} cannot be read", path.display())]
    Keys { path: PathBuf, source: io::Error },
    #[error("cannot use {place} for the releases")]
    Releases {
        place: String,
        source: ArtifactsError,
    },
    #[error("cannot use the database {place}")]
    Database {
        place: String,
        source: DatabaseError,
    },
    #[error("--database is no address of PostgreSQL")]
    DatabaseUrl(#[source] super::sql::SqlError),
    #[error("nobody can sign in with the issuer")]
    Oidc(#[source] OidcError),
    #[error("no random bytes for the admin token")]
    NoRandomness,
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    #[error("the server stopped")]
    Serve(#[source] io::Error),
}

impl ServeError {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::AddressInUse { .. } => 3,
            Self::DataInUse(_) => 4,
            _ => 1,
        }
    }

    /// What the operator can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::AddressInUse { .. } => {
                Some("stop the other program, or choose a port with --listen 127.0.0.1:8091")
            }
            Self::Listen { .. } => Some("--listen takes ADDRESS:PORT, such as 127.0.0.1:8090"),
            Self::DataInUse(_) => Some("stop it, or choose another directory with --data"),
            Self::Releases { place, .. } if place.starts_with("s3://") => Some(
                "write it as s3://BUCKET/PREFIX; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION say who asks, AWS_ENDPOINT_URL where if it is not Amazon",
            ),
            Self::DatabaseUrl(_) => Some("write it as postgres://USER@HOST/DATABASE"),
            Self::Keys { .. } => {
                Some("--keys takes a directory with the public keys (*.pub) that sign releases")
            }
            _ => None,
        }
    }
}

pub(super) async fn listen(address: &str) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => ServeError::AddressInUse {
                address: address.into(),
            },
            _ => ServeError::Listen {
                address: address.into(),
                source,
            },
        })
}

/// Held as long as the server runs: two servers on one directory would undo each other's work.
pub(super) struct DataLock(
    #[expect(dead_code, reason = "closing it releases the lock")] std::fs::File,
);

/// Opens the data directory, making what is missing.
pub(super) fn open(options: &Options, runtime: &Handle) -> Result<(Server, DataLock), ServeError> {
    make_directory(&options.data)?;
    let lock = lock(&options.data)?;
    let artifacts = artifacts(options, runtime)?;
    let keys = read_keys(&options.keys).map_err(|source| ServeError::Keys {
        path: options.keys.clone(),
        source,
    })?;
    for (path, error) in &keys.unreadable {
        tracing::warn!(path = %path.display(), "{error}");
    }
    if keys.trusted.is_empty() {
        tracing::warn!(
            keys = %options.keys.display(),
            "no public key here yet: releases are refused until one is"
        );
    }
    let place = match &options.database {
        Some(url) => Place::shared(url).map_err(ServeError::DatabaseUrl)?,
        None => Place::File(options.data.join("server.db")),
    };
    let database = Database::open(&place, Timestamp::now(), runtime).map_err(|source| {
        ServeError::Database {
            place: place.to_string(),
            source,
        }
    })?;
    let oidc = Oidc::new(&options.oidc).map_err(ServeError::Oidc)?;
    let token = Token::read_or_make(&options.data.join("token"))?;
    let server = Server {
        database,
        artifacts,
        keys: options.keys.clone(),
        token,
        oidc,
        closed: options.require_sign_in,
        pings: Default::default(),
        counters: Default::default(),
        forget_after: options.forget_after,
        public_url: options.public_url.clone(),
        mirrors: options.mirror.clone(),
        publishing: Turns::new(&place),
        clock: Timestamp::now,
    };
    Ok((server, DataLock(lock)))
}

fn make_directory(path: &Path) -> Result<(), ServeError> {
    std::fs::create_dir_all(path).map_err(|source| ServeError::Io {
        path: path.into(),
        source,
    })
}

fn lock(data: &Path) -> Result<std::fs::File, ServeError> {
    let path = data.join("lock");
    let io = |source| ServeError::Io {
        path: path.clone(),
        source,
    };
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ServeError::DataInUse(data.into())),
        Err(errno) => Err(io(errno.into())),
    }
}

/// Opens the place of the releases, making it if it is a directory.
fn artifacts(options: &Options, runtime: &Handle) -> Result<Artifacts, ServeError> {
    let own = || options.data.join("releases").display().to_string();
    let place = options.releases.clone().unwrap_or_else(own);
    if let Some(directory) = Artifacts::directory(&place) {
        make_directory(&directory)?;
        remove_unfinished(&directory, options.releases.is_some()).map_err(|source| {
            ServeError::Io {
                path: directory,
                source,
            }
        })?;
    }
    let opened = Artifacts::open(&place).and_then(|artifacts| {
        runtime.block_on(artifacts.try_it())?;
        Ok(artifacts)
    });
    opened.map_err(|source| ServeError::Releases { place, source })
}
