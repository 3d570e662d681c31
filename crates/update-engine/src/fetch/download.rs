//! One large file, resumed wherever the last try ended.
//!
//! Next to the finished `usr.erofs.zst` lives, while it is incomplete, `usr.erofs.zst.part`. The next
//! request asks for the rest with `Range`. Where the address named the content, that name is kept in
//! `usr.erofs.zst.etag` and goes along as `If-Range`, so a file that changed there starts over at once
//! instead of becoming a mixture. Without it a mixture is possible, and costs a second download: size
//! and digest of the whole are signed, and looked at in the end in any case.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use release::Sha256;
use sha2::Digest as _;
use ureq::http::Response;

use super::{FetchError, Fetcher, refuse_html, transport_error};

/// What the signed manifest says about a file.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    pub size: u64,
    pub sha256: Sha256,
}

/// Left free on the state partition: an update must not be what fills it.
const SPARE: u64 = 16 << 20;

pub(super) struct Partial {
    pub(super) part: PathBuf,
    pub(super) etag: PathBuf,
}

impl Partial {
    pub(super) fn of(target: &Path) -> Self {
        let with = |suffix: &str| {
            let mut name = target.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Self {
            part: with(".part"),
            etag: with(".etag"),
        }
    }

    pub(super) fn len(&self) -> u64 {
        fs::metadata(&self.part).map_or(0, |m| m.len())
    }

    pub(super) fn discard(&self) {
        let _ = fs::remove_file(&self.part);
        let _ = fs::remove_file(&self.etag);
    }

    /// The server's name for the content that begins to arrive. If it cannot be kept, the rest is
    /// asked for without it.
    pub(super) fn remember(&self, url: &str, answer: &Response<ureq::Body>) {
        // Weak validators promise no equal bytes (RFC 9110, 13.1.5): not for `If-Range`.
        let tag = header(answer, "etag").filter(|tag| !tag.starts_with("W/"));
        let kept = tag.is_some_and(|tag| fs::write(&self.etag, format!("{url}\n{tag}")).is_ok());
        if !kept {
            let _ = fs::remove_file(&self.etag);
        }
    }

    /// What this address called the content that is here. Others may call the same something else.
    pub(super) fn validator(&self, url: &str) -> Option<String> {
        let text = fs::read_to_string(&self.etag).ok()?;
        let (of, tag) = text.split_once('\n')?;
        (of == url).then(|| tag.to_owned())
    }

    /// Leaves only what is right for sure: of a delta, which has digests of its segments, those
    /// before the first wrong one; of anything else nothing. How many bytes that is.
    fn keep_intact(&self, want: Want) -> Result<u64, FetchError> {
        let failed = |what| move |e| file_error(&self.part, what, e);
        let file = File::open(&self.part).map_err(failed("open"))?;
        let intact = delta::Patch::open(file).and_then(|mut patch| patch.intact());
        // Where every segment is right and the whole is not, it is another delta.
        match intact.ok().filter(|&intact| intact < want.size) {
            Some(intact) => {
                let file = OpenOptions::new().write(true).open(&self.part);
                file.and_then(|file| file.set_len(intact))
                    .map_err(failed("truncate"))?;
                Ok(intact)
            }
            None => {
                self.discard();
                Ok(0)
            }
        }
    }
}

impl Fetcher {
    /// Leaves the verified file at `target`. `progress` is told how many bytes are there.
    ///
    /// An interrupted transfer is continued at once for as long as each try brings enough;
    /// after that the partial file stays for the next call. So does what is intact of a file whose
    /// digest is wrong.
    pub fn download(
        &self,
        url: &str,
        target: &Path,
        want: Want,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), FetchError> {
        if target.exists() {
            if digest(target)? == want.sha256 {
                progress(want.size);
                return Ok(());
            }
            fs::remove_file(target).map_err(|e| file_error(target, "delete", e))?;
        }
        let partial = Partial::of(target);
        discard_unless(&partial, |len| len <= want.size);
        room_for(target, want.size - partial.len())?;

        loop {
            let (had, start) = (partial.len(), Instant::now());
            match self.transfer(url, &partial, want.size, progress) {
                Ok(()) => break,
                Err(error @ (FetchError::Truncated { .. } | FetchError::Interrupted { .. }))
                    if self.is_worth_it(partial.len().saturating_sub(had), start.elapsed()) =>
                {
                    tracing::info!("{error}");
                }
                // It serves whole files at most; what was here is discarded, so none is asked for.
                Err(error @ FetchError::Range { .. }) if had > 0 => tracing::info!("{error}"),
                Err(error) => return Err(error),
            }
        }

        let got = digest(&partial.part)?;
        if got != want.sha256 {
            let kept = partial.keep_intact(want)?;
            return Err(FetchError::Digest {
                url: url.into(),
                got,
                expected: want.sha256,
                kept,
            });
        }
        fs::rename(&partial.part, target)
            .map_err(|e| file_error(target, "rename the finished file to", e))?;
        partial.discard();
        Ok(())
    }

    /// One request: from the end of the partial file to wherever the server stops.
    fn transfer(
        &self,
        url: &str,
        partial: &Partial,
        size: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), FetchError> {
        let start = partial.len();
        if start == size {
            return Ok(());
        }
        let mut request = self.agent.get(url);
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
            if let Some(etag) = partial.validator(url) {
                request = request.header("If-Range", etag);
            }
        }
        let request = request
            .config()
            .timeout_recv_body(Some(self.budget(size - start)))
            .build();
        let answer = request.call().map_err(|e| transport_error(url, e))?;
        refuse_html(url, &answer)?;

        let start = match answer.status().as_u16() {
            200 => {
                let length = header(&answer, "content-length").and_then(|v| v.parse().ok());
                if let Some(got) = length.filter(|&got| got != size) {
                    return Err(FetchError::Length {
                        url: url.into(),
                        got,
                        expected: size,
                    });
                }
                0
            }
            206 => {
                let range = header(&answer, "content-range").unwrap_or_default();
                if range != format!("bytes {start}-{}/{size}", size - 1) {
                    partial.discard();
                    return Err(FetchError::Range {
                        url: url.into(),
                        asked: start,
                        got: range.into(),
                    });
                }
                start
            }
            416 => {
                // The server's file is shorter than what is here: not the same file.
                partial.discard();
                let got = header(&answer, "content-range").unwrap_or_default().into();
                return Err(FetchError::Range {
                    url: url.into(),
                    asked: start,
                    got,
                });
            }
            status => {
                return Err(FetchError::Status {
                    url: url.into(),
                    status,
                });
            }
        };
        if start == 0 {
            partial.remember(url, &answer);
        }
        self.receive(url, answer, partial, start, size, progress)
    }
}

/// Keeps a transfer to so many bytes per second, over all of it.
struct Pace {
    rate: u64,
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn hold(&mut self, bytes: u64) {
        if self.rate == 0 {
            return;
        }
        self.bytes += bytes;
        let due = Duration::from_secs_f64(self.bytes as f64 / self.rate as f64);
        std::thread::sleep(due.saturating_sub(self.since.elapsed()));
    }
}

impl Fetcher {
    pub(super) fn receive(
        &self,
        url: &str,
        answer: Response<ureq::Body>,
        partial: &Partial,
        start: u64,
        size: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), FetchError> {
        // Readable by the writer, which is root without the capability to read others' files.
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o644)
            .open(&partial.part)
            .map_err(|e| file_error(&partial.part, "open", e))?;
        file.set_len(start)
            .map_err(|e| file_error(&partial.part, "truncate", e))?;
        let mut body = answer.into_body().into_reader();
        let mut buffer = vec![0; 64 * 1024];
        let mut got = start;
        let mut pace = Pace {
            rate: self.rate.load(Ordering::Relaxed),
            since: Instant::now(),
            bytes: 0,
        };
        progress(got);
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(source) => {
                    return Err(FetchError::Interrupted {
                        url: url.into(),
                        got,
                        expected: size,
                        source,
                    });
                }
            };
            if got + n as u64 > size {
                partial.discard();
                return Err(FetchError::TooLong {
                    url: url.into(),
                    limit: size,
                });
            }
            if let Err(e) = file.write_all(&buffer[..n]) {
                // On a full disk the partial file is part of the problem.
                partial.discard();
                return Err(file_error(&partial.part, "write", e));
            }
            got += n as u64;
            pace.hold(n as u64);
            progress(got);
        }
        if got < size {
            return Err(FetchError::Truncated {
                url: url.into(),
                got,
                expected: size,
            });
        }
        Ok(())
    }
}

pub(super) fn header<'a>(answer: &'a Response<ureq::Body>, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}

pub(super) fn discard_unless(partial: &Partial, good: impl Fn(u64) -> bool) {
    if !good(partial.len()) {
        partial.discard();
    }
}

fn digest(path: &Path) -> Result<Sha256, FetchError> {
    let mut file = File::open(path).map_err(|e| file_error(path, "open", e))?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match file
            .read(&mut buffer)
            .map_err(|e| file_error(path, "read", e))?
        {
            0 => return Ok(Sha256(hasher.finalize().into())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

pub(super) fn room_for(target: &Path, need: u64) -> Result<(), FetchError> {
    let dir = target.parent().unwrap_or(target);
    let stat = rustix::fs::statvfs(dir)
        .map_err(|e| file_error(dir, "ask for the free space of", e.into()))?;
    let free = stat.f_bavail * stat.f_frsize;
    let need = need + SPARE;
    if free < need {
        return Err(FetchError::Space {
            path: dir.into(),
            free,
            need,
        });
    }
    Ok(())
}

pub(super) fn file_error(path: &Path, what: &'static str, source: io::Error) -> FetchError {
    FetchError::File {
        path: path.into(),
        what,
        source,
    }
}
