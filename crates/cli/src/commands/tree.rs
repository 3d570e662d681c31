//! A published tree in a directory, as on a USB stick, handed to update-engine.
//!
//! The engine has the network and no disk, so it gets the files the way it gets all others: over
//! HTTP, from a server on the loopback interface that lives as long as the update does.

use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use tiny_http::{Header, Method, Request, Response, Server};

/// The engine asks one thing at a time, and keeps a connection or two.
const THREADS: usize = 4;

pub struct Tree {
    server: Arc<Server>,
    port: u16,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Tree {
    pub fn serve(dir: &Path) -> Result<Self> {
        let sign = dir.join("tuf/timestamp.json");
        if !sign.exists() {
            bail!(
                "{} is no published tree: {} is missing; orlop release export makes one",
                dir.display(),
                sign.display()
            );
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(dir, flags, Mode::empty())
            .with_context(|| format!("cannot open {}", dir.display()))?;
        let root = Arc::new(root);
        let server = Server::http((Ipv4Addr::LOCALHOST, 0))
            .map_err(|e| anyhow!("cannot listen on the loopback interface: {e}"))?;
        let port = server.server_addr().to_ip().context("no port")?.port();
        let server = Arc::new(server);
        let threads = (0..THREADS)
            .map(|_| {
                let (server, root) = (Arc::clone(&server), Arc::clone(&root));
                std::thread::spawn(move || {
                    while let Ok(request) = server.recv() {
                        // Whoever asked has gone: that is for it to know.
                        let _ = answer(&root, request);
                    }
                })
            })
            .collect();
        Ok(Self {
            server,
            port,
            threads,
        })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        for _ in &self.threads {
            self.server.unblock();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn answer(root: &OwnedFd, request: Request) -> std::io::Result<()> {
    if !matches!(request.method(), Method::Get | Method::Head) {
        return request.respond(Response::empty(405));
    }
    let name = request.url().trim_start_matches('/').to_owned();
    let Ok((mut file, size, tag)) = open(root, &name) else {
        return request.respond(Response::empty(404));
    };
    let header = |name: &'static str| {
        let found = request.headers().iter().find(|h| h.field.equiv(name));
        found.map(|h| h.value.as_str().to_owned())
    };
    // RFC 9110, 13.1.5: a range of another file than the one that was begun is of no use.
    let same = header("If-Range").is_none_or(|known| known == tag);
    let range = header("Range").filter(|_| same);
    let (status, start, end) = match range.map(|text| range_of(&text, size)) {
        None => (200, 0, size),
        Some(Some((start, end))) => (206, start, end),
        Some(None) => {
            let whole = named("Content-Range", &format!("bytes */{size}"));
            return request.respond(Response::empty(416).with_header(whole));
        }
    };
    file.seek(SeekFrom::Start(start))?;
    let length = usize::try_from(end - start).unwrap_or(usize::MAX);
    let mut headers = vec![named("ETag", &tag), named("Accept-Ranges", "bytes")];
    if status == 206 {
        let part = format!("bytes {start}-{}/{size}", end - 1);
        headers.push(named("Content-Range", &part));
    }
    let body = file.take(end - start);
    let response = Response::new(status.into(), headers, body, Some(length), None);
    request.respond(response.with_chunked_threshold(usize::MAX))
}

/// Below the tree and nowhere else: this may run as root, and the tree may be somebody else's.
fn open(root: &OwnedFd, name: &str) -> std::io::Result<(File, u64, String)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(rustix::fs::openat2(
        root,
        name,
        flags,
        Mode::empty(),
        within,
    )?);
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    let tag = format!("\"{}-{}-{}\"", meta.ino(), meta.mtime(), meta.len());
    Ok((file, meta.len(), tag))
}

/// `bytes=A-` and `bytes=A-B`, the forms that update-engine uses, as start and end.
fn range_of(text: &str, size: u64) -> Option<(u64, u64)> {
    let (start, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let start: u64 = start.parse().ok()?;
    let end = match last {
        "" => size,
        last => last.parse::<u64>().ok()?.checked_add(1)?.min(size),
    };
    (start < end).then_some((start, end))
}

fn named(name: &str, value: &str) -> Header {
    // Both are ours and ASCII.
    Header::from_bytes(name.as_bytes(), value.as_bytes())
        .unwrap_or_else(|()| unreachable!("{name}: {value} is a header"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// The status line, the headers and the body.
    fn get(tree: &Tree, path: &str, headers: &str) -> (String, String, String) {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", tree.port)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let (status, headers) = head.split_once("\r\n").unwrap();
        (status.to_owned(), headers.to_lowercase(), body.to_owned())
    }

    fn tree() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("tree/tuf")).unwrap();
        std::fs::write(dir.path().join("tree/tuf/timestamp.json"), "0123456789").unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("../secret", dir.path().join("tree/link")).unwrap();
        let tree = Tree::serve(&dir.path().join("tree")).unwrap();
        (dir, tree)
    }

    #[test]
    fn files_come_whole_and_in_parts() {
        let (_dir, tree) = tree();
        let (status, headers, body) = get(&tree, "/tuf/timestamp.json", "");
        assert_eq!(
            (status.as_str(), body.as_str()),
            ("HTTP/1.1 200 OK", "0123456789")
        );
        assert!(headers.contains("content-length: 10"), "{headers}");
        let tag = headers
            .split("etag: ")
            .nth(1)
            .unwrap()
            .lines()
            .next()
            .unwrap()
            .to_owned();
        let part = |headers: &str| get(&tree, "/tuf/timestamp.json", headers);
        let (status, headers, body) = part(&format!("Range: bytes=4-\r\nIf-Range: {tag}\r\n"));
        assert_eq!(
            (status.as_str(), body.as_str()),
            ("HTTP/1.1 206 Partial Content", "456789")
        );
        assert!(headers.contains("content-range: bytes 4-9/10"), "{headers}");
        assert_eq!(part("Range: bytes=2-3\r\n").2, "23");
        assert_eq!(
            part("Range: bytes=4-\r\nIf-Range: \"other\"\r\n").2,
            "0123456789"
        );
        assert!(part("Range: bytes=10-\r\n").0.contains("416"));
    }

    #[test]
    fn nothing_outside_the_tree_is_handed_out() {
        let (_dir, tree) = tree();
        for path in [
            "/../secret",
            "/link",
            "/tuf/../../secret",
            "/tuf",
            "//etc/passwd",
            "/",
        ] {
            assert!(get(&tree, path, "").0.contains("404"), "{path}");
        }
    }

    #[test]
    fn what_is_no_tree_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Tree::serve(dir.path()).err().unwrap().to_string();
        assert!(error.contains("tuf/timestamp.json is missing"), "{error}");
    }
}
