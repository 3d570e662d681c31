//! Where connections come from: a socket that systemd passed, or one of our own.

use std::fs::Permissions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::server::{Handler, serve_connection};
use super::{VarlinkError, peer_uid};

/// How many connections are served at once. More are closed at once: a user must not fill the
/// daemon's memory with threads.
const MOST: usize = 64;

/// A connection and who made it.
#[derive(Debug)]
pub struct Connection {
    pub stream: UnixStream,
    pub peer_uid: u32,
}

impl Connection {
    fn new(stream: UnixStream) -> Result<Self, VarlinkError> {
        let peer_uid = peer_uid(&stream)?;
        Ok(Self { stream, peer_uid })
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
        serve_connection(self.stream, self.peer_uid, handler)
    }
}

#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
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
                Ok(Self { listener })
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
        Ok(Self { listener })
    }

    pub fn accept(&self) -> Result<Connection, VarlinkError> {
        let (stream, _) = self.listener.accept().map_err(VarlinkError::Io)?;
        Connection::new(stream)
    }

    /// Serves every connection on a thread of its own, with a handler of its own. Does not return.
    pub fn serve<H: Handler + 'static>(
        &self,
        handler: impl Fn() -> H + Send + Sync + 'static,
    ) -> ! {
        let handler = Arc::new(handler);
        let active = Arc::new(AtomicUsize::new(0));
        loop {
            // Out of descriptors, or a peer that is already gone: neither ends the service.
            let Ok(connection) = self.accept() else {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            };
            if active.load(Ordering::Relaxed) >= MOST {
                continue;
            }
            active.fetch_add(1, Ordering::Relaxed);
            let (handler, guard) = (Arc::clone(&handler), Active(Arc::clone(&active)));
            std::thread::spawn(move || {
                let _guard = guard;
                // What a peer does wrong is answered on the wire or ends its connection.
                let _ = connection.serve(&mut handler());
            });
        }
    }
}

struct Active(Arc<AtomicUsize>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
