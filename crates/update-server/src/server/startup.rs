use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::FlockOperation;
use tokio::net::TcpListener;

use super::auth::Token;
use super::database::{Database, DatabaseError};
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
    #[error("cannot use the database {}", path.display())]
    Database {
        path: PathBuf,
        source: DatabaseError,
    },
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
pub(super) fn open(options: &Options) -> Result<(Server, DataLock), ServeError> {
    let releases = options.data.join("releases");
    make_directory(&releases)?;
    let lock = lock(&options.data)?;
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
    remove_unfinished(&releases)?;
    let path = options.data.join("server.db");
    let database = Database::open(&path).map_err(|source| ServeError::Database {
        path: path.clone(),
        source,
    })?;
    let token = Token::read_or_make(&options.data.join("token"))?;
    let server = Server {
        database,
        releases,
        keys: options.keys.clone(),
        token,
        public_url: options.public_url.clone(),
        publishing: tokio::sync::Mutex::new(()),
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

/// Uploads that a crash interrupted.
fn remove_unfinished(releases: &Path) -> Result<(), ServeError> {
    let io = |source| ServeError::Io {
        path: releases.into(),
        source,
    };
    for release in std::fs::read_dir(releases).map_err(io)? {
        let release = release.map_err(io)?;
        if !release.file_type().map_err(io)?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(release.path()).map_err(io)? {
            let file = file.map_err(io)?;
            if file.file_name().to_string_lossy().ends_with(".part") {
                tracing::info!(path = %file.path().display(), "removing an interrupted upload");
                std::fs::remove_file(file.path()).map_err(io)?;
            }
        }
    }
    Ok(())
}
