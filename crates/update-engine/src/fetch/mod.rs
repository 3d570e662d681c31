//! Bytes from a server that may be slow, broken or lying.
//!
//! Everything is bounded: each read, each whole transfer, each size. What arrives is just bytes;
//! whether they are a release is decided by whoever holds the signed manifest.

mod download;
mod ranges;

pub use download::Want;

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ureq::Agent;
use ureq::http::Response;

/// Why there are no bytes. Each message is what `last_error` shows to an operator.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{url}: {}", transport(.source))]
    Transport {
        url: String,
        source: Box<ureq::Error>,
    },
    #[error("{url}: the server answered {status}{}", status_hint(*.status))]
    Status { url: String, status: u16 },
    #[error(
        "{url}: got an HTML page instead of the file (a captive portal or a proxy's error page?)"
    )]
    Html { url: String },
    #[error("{url}: the server has {got} bytes, the signed manifest says {expected}")]
    Length {
        url: String,
        got: u64,
        expected: u64,
    },
    #[error("{url}: the answer is longer than {limit} bytes")]
    TooLong { url: String, limit: u64 },
    #[error(
        "{url}: the connection ended after {got} of {expected} bytes; the next try continues there"
    )]
    Truncated {
        url: String,
        got: u64,
        expected: u64,
    },
    #[error("{url}: {source} after {got} of {expected} bytes; the next try continues there")]
    Interrupted {
        url: String,
        got: u64,
        expected: u64,
        source: io::Error,
    },
    #[error("{url}: the server answered a request for bytes from {asked} with {got:?}")]
    Range {
        url: String,
        asked: u64,
        got: String,
    },
    #[error(
        "{url}: the downloaded file has the SHA-256 {got}, the signed manifest says {expected}; {}",
        what_stays(*.kept)
    )]
    Digest {
        url: String,
        got: release::Sha256,
        expected: release::Sha256,
        /// Bytes from the start that are right all the same, and stay.
        kept: u64,
    },
    #[error("{path}: {free} bytes are free, {need} are needed for the download")]
    Space { path: PathBuf, free: u64, need: u64 },
    #[error("{path}: cannot {what}: {source}")]
    File {
        path: PathBuf,
        what: &'static str,
        source: io::Error,
    },
}

/// How long to wait for what. The defaults suit the internet; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub connect: Duration,
    /// Without a single byte for this long the server counts as stalled.
    pub silence: Duration,
    /// Slower than this on average (bytes per second) is given up, so that a server that drips
    /// cannot hold the engine for ever.
    pub slowest: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            silence: Duration::from_secs(30),
            slowest: 2048,
        }
    }
}

/// The one HTTP client. Proxies come from the environment (`http_proxy`, `https_proxy`,
/// `no_proxy`), as `ureq` reads them.
pub struct Fetcher {
    agent: Agent,
    patience: Patience,
    /// Bytes per second; 0: no limit.
    rate: AtomicU64,
}

impl Patience {
    fn agent(&self, idle_connections: usize) -> Agent {
        let config = Agent::config_builder()
            .user_agent(concat!("orlop-update-engine/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(self.connect))
            .timeout_connect(Some(self.connect))
            .timeout_per_read(Some(self.silence))
            .timeout_per_write(Some(self.silence))
            .timeout_recv_response(Some(self.silence))
            .max_redirects(4)
            .max_idle_connections(idle_connections)
            .input_buffer_size(64 * 1024)
            .max_response_header_size(16 * 1024)
            .http_status_as_error(false)
            .build();
        config.into()
    }
}

impl FetchError {
    /// It is about what the server has, not about how to get there: another file may do.
    pub fn blames_file(&self) -> bool {
        match self {
            // Not those that mean "later" (408, 425, 429), or that are about who asks (401, 407).
            Self::Status { status, .. } => matches!(status, 403 | 404 | 410 | 416),
            Self::Length { .. }
            | Self::TooLong { .. }
            | Self::Range { .. }
            | Self::Digest { .. } => true,
            _ => false,
        }
    }
}

impl Fetcher {
    pub fn new(patience: Patience) -> Self {
        Self {
            // Checks are minutes apart: an idle connection is only memory.
            agent: patience.agent(0),
            patience,
            rate: AtomicU64::new(0),
        }
    }

    /// How many bytes per second large files may take from now on.
    pub fn limit(&self, rate: Option<u64>) {
        self.rate.store(rate.unwrap_or(0), Ordering::Relaxed);
    }

    /// A small file or answer.
    pub fn get(&self, url: &str, limit: u64) -> Result<Vec<u8>, FetchError> {
        let call = self
            .agent
            .get(url)
            .config()
            .timeout_recv_body(Some(self.budget(limit)))
            .build();
        self.small(url, call.call(), limit)
    }

    /// A small question with a small answer.
    pub fn post(
        &self,
        url: &str,
        content_type: &str,
        body: &str,
        limit: u64,
    ) -> Result<Vec<u8>, FetchError> {
        let call = self.agent.post(url).content_type(content_type);
        let call = call
            .config()
            .timeout_recv_body(Some(self.budget(limit)))
            .build();
        self.small(url, call.send(body), limit)
    }

    fn small(
        &self,
        url: &str,
        answer: Result<Response<ureq::Body>, ureq::Error>,
        limit: u64,
    ) -> Result<Vec<u8>, FetchError> {
        let answer = answer.map_err(|source| transport_error(url, source))?;
        if answer.status() != 200 {
            return Err(FetchError::Status {
                url: url.into(),
                status: answer.status().as_u16(),
            });
        }
        refuse_html(url, &answer)?;
        let mut bytes = Vec::new();
        let mut body = answer.into_body().into_reader().take(limit + 1);
        body.read_to_end(&mut bytes)
            .map_err(|e| transport_error(url, ureq::Error::from(e)))?;
        if bytes.len() as u64 > limit {
            return Err(FetchError::TooLong {
                url: url.into(),
                limit,
            });
        }
        Ok(bytes)
    }

    /// A try that brought this much in this time was not slower than we have patience for.
    fn is_worth_it(&self, bytes: u64, time: Duration) -> bool {
        let slowest = match self.rate.load(Ordering::Relaxed) {
            0 => self.patience.slowest,
            rate => self.patience.slowest.min(rate / 2),
        };
        bytes > 0 && bytes as f64 >= time.as_secs_f64() * slowest as f64
    }

    /// The longest a transfer of this size may take.
    fn budget(&self, size: u64) -> Duration {
        let limit = match self.rate.load(Ordering::Relaxed) {
            0 => u64::MAX,
            // Half of it: the limit is not what a server is given up for.
            rate => rate / 2,
        };
        let slowest = self.patience.slowest.min(limit);
        self.patience.silence * 2 + Duration::from_secs(size / slowest.max(1))
    }
}

fn refuse_html(url: &str, answer: &Response<ureq::Body>) -> Result<(), FetchError> {
    let header = answer
        .headers()
        .get("content-type")
        .and_then(|v| v.to_str().ok())
        .unwrap_or("");
    if header
        .trim_start()
        .to_ascii_lowercase()
        .starts_with("text/html")
    {
        return Err(FetchError::Html { url: url.into() });
    }
    Ok(())
}

fn transport_error(url: &str, source: ureq::Error) -> FetchError {
    FetchError::Transport {
        url: url.into(),
        source: Box::new(source),
    }
}

/// `ureq`'s own words name its settings; an operator wants to know what the server did.
fn transport(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(what) => format!("no answer in time ({what})"),
        ureq::Error::HostNotFound => "the host name does not resolve".into(),
        ureq::Error::TooManyRedirects => "redirected more than 4 times".into(),
        ureq::Error::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            "connection refused (is the update server running?)".into()
        }
        other => other.to_string(),
    }
}

fn what_stays(bytes: u64) -> String {
    match bytes {
        0 => "deleted".into(),
        bytes => format!("its first {bytes} bytes are good"),
    }
}

fn status_hint(status: u16) -> &'static str {
    match status {
        404 => " (not published there)",
        407 => " (the proxy wants a password)",
        500..=599 => " (trouble on its side; tried again later)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_wants_to_be_asked_later_has_the_file() {
        let blames = |status| {
            let url = "http://server/usr.delta".into();
            FetchError::Status { url, status }.blames_file()
        };
        for status in [403, 404, 410, 416] {
            assert!(blames(status), "{status}");
        }
        for status in [401, 407, 408, 425, 429, 500, 503] {
            assert!(!blames(status), "{status}");
        }
    }
}
