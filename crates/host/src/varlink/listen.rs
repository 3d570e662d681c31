//! Where connections come from: a socket that systemd passed, or one of our own.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::server::{Handler, serve_connection};
use super::wire::MAX_MESSAGE;
use super::{VarlinkError, peer_uid};

/// How many connections are served at once. More are closed at once: a user must not fill the
/// daemon's memory with threads.
const MOST: usize = 64;
/// Of these, those that only root gets: whatever users do, an operator gets through.
const FOR_ROOT: usize = 16;
/// For each user but root.
const MOST_OF_USER: usize = 8;

/// A connection and who made it.
#[derive(Debug)]
pub struct Connection {
    pub stream: UnixStream,
    pub peer_uid: u32,
    /// The longest call that is taken, in bytes.
    limit: usize,
}

impl Connection {
    fn new(stream: UnixStream) -> Result<Self, VarlinkError> {
        let peer_uid = peer_uid(&stream)?;
        Ok(Self {
            stream,
            peer_uid,
            limit: MAX_MESSAGE,
        })
    }

    /// The connection on standard input, as a unit with `Accept=yes` and `StandardInput=socket` gets it.
    pub fn from_stdin() -> Result<Self, VarlinkError> {
        let fd = io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map_err(VarlinkError::Io)?;
        Self::new(UnixStream::from(fd))
    }

    pub fn serve(self, handler: &mut dyn Handler) -> Result<(), VarlinkError> {
        serve_connection(self.stream, self.peer_uid, self.limit, handler)
    }
}

#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    limit: usize,
}

impl Listener {
    /// The socket systemd passed (sd_listen_fds(3)), if it passed one; else binds `path`.
    pub fn activated_or_bind(path: &Path, mode: u32) -> Result<Self, VarlinkError> {
        let at = |source| VarlinkError::Listen {
            path: path.to_owned(),
            source,
        };
        match listenfd::ListenFd::from_env()
            .take_unix_listener(0)
            .map_err(at)?
        {
            Some(listener) => {
                listener.set_nonblocking(false).map_err(at)?;
                Ok(Self::new(listener))
            }
            None => Self::bind(path, mode),
        }
    }

    /// Binds `path`, in place of a socket that an earlier process left there.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, VarlinkError> {
        let at = |source| VarlinkError::Listen {
            path: PathBuf::from(path),
            source,
        };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(at)?;
        std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(at)?;
        Ok(Self::new(listener))
    }

    fn new(listener: UnixListener) -> Self {
        Self {
            listener,
            limit: MAX_MESSAGE,
        }
    }

    /// Takes no longer calls than this. Parsed, one takes many times as much memory: a socket that everybody may connect
    /// to needs a limit that fits what its methods take.
    pub fn with_limit(self, bytes: usize) -> Self {
        Self {
            limit: bytes,
            ..self
        }
    }

    pub fn accept(&self) -> Result<Connection, VarlinkError> {
        let (stream, _) = self.listener.accept().map_err(VarlinkError::Io)?;
        Ok(Connection {
            limit: self.limit,
            ..Connection::new(stream)?
        })
    }

    /// Serves every connection on a thread of its own, with a handler of its own. Does not return.
    pub fn serve<H: Handler + 'static>(
        &self,
        handler: impl Fn() -> H + Send + Sync + 'static,
    ) -> ! {
        let handler = Arc::new(handler);
        let seats = Arc::new(Seats::default());
        loop {
            // Out of descriptors, or a peer that is already gone: neither ends the service.
            let Ok(connection) = self.accept() else {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            };
            let Some(seat) = Seats::take(&seats, connection.peer_uid) else {
                continue;
            };
            let handler = Arc::clone(&handler);
            // Without a thread for it, it is closed like one too many.
            let _ = std::thread::Builder::new().spawn(move || {
                let _seat = seat;
                // What a peer does wrong is answered on the wire or ends its connection.
                let _ = connection.serve(&mut handler());
            });
        }
    }
}

/// How many connections each user has.
#[derive(Debug, Default)]
pub(super) struct Seats(Mutex<BTreeMap<u32, usize>>);

/// One connection's, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    uid: u32,
}

impl Seats {
    /// None: there are too many.
    pub(super) fn take(seats: &Arc<Self>, uid: u32) -> Option<Seat> {
        let mut taken = seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.get(&uid).copied().unwrap_or(0);
        let room = match uid {
            0 => all < MOST,
            _ => own < MOST_OF_USER && all < MOST - FOR_ROOT,
        };
        if !room {
            return None;
        }
        taken.insert(uid, own + 1);
        drop(taken);
        let seats = Arc::clone(seats);
        Some(Seat { seats, uid })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.uid) {
            *own -= 1;
        }
        taken.retain(|_, own| *own > 0);
    }
}
