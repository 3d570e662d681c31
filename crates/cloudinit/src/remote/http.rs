//! HTTP for metadata services: bounded in time and size, patient with a network that is coming up.
//! There is one deadline for all: no attempt begins after it, and none lasts longer than the time that is left.
//!
//! `http://` goes through `ureq` without TLS, which these services do without. `https://` goes through
//! the `curl` of the host: a second copy of a TLS library would be more than all the rest of this program.

use std::cell::Cell;
use std::io::Read;
use std::process::Command;
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::TcpConnector;

use super::shown;

/// User-data has at most 64 KiB on most platforms; nothing that is asked for is larger than this.
const MAX_BODY: u64 = 16 << 20;
const CONNECT: Duration = Duration::from_secs(3);
const ATTEMPT: Duration = Duration::from_secs(10);
/// `https://` is the internet, which is farther away.
const CURL: Duration = Duration::from_secs(30);
/// For `curl` to notice by itself that its time is over.
const CURL_ENDS: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("{url}: HTTP status {status}")]
    Status { url: String, status: u16 },
    #[error("{url}: larger than {} MiB", MAX_BODY >> 20)]
    TooLarge { url: String },
    #[error("{url}: {problem} ({attempts} attempts)")]
    Unreachable {
        url: String,
        problem: String,
        attempts: u32,
    },
}

impl HttpError {
    pub(super) fn unreachable(url: &str, problem: String, attempts: u32) -> Self {
        Self::Unreachable {
            url: shown(url),
            problem,
            attempts,
        }
    }
}

pub(super) const OVER: &str = "no time was left for it";

/// How one attempt went.
enum Attempt {
    Answer(u16, Vec<u8>),
    TooLarge,
    Problem(String),
}

/// Why an attempt brought nothing.
pub(super) enum Failure {
    /// It would be the same again.
    Final(HttpError),
    /// It may be better in a moment: no route yet, no answer, a server that is overloaded.
    Passing(String),
}

#[derive(Debug)]
pub struct Http {
    agent: Agent,
    deadline: Instant,
    /// Requests so far, for the log.
    requests: Cell<u32>,
}

pub(super) type Headers<'a> = &'a [(&'a str, &'a str)];

impl Http {
    pub fn until(deadline: Instant) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A proxy is for the internet, not for addresses on the link.
            .proxy(None)
            .max_redirects(4)
            .timeout_connect(Some(CONNECT))
            .user_agent("cloudinit")
            .build();
        Self {
            agent: Agent::with_parts(config, TcpConnector::default(), DefaultResolver::default()),
            deadline,
            requests: Cell::new(0),
        }
    }

    /// `None`: not found.
    pub fn get(&self, url: &str, headers: Headers<'_>) -> Result<Option<Vec<u8>>, HttpError> {
        self.found(self.ask("GET", url, headers, None))
    }

    /// Text without blanks around it; `None` where it is not there or empty.
    pub(super) fn text(
        &self,
        url: &str,
        headers: Headers<'_>,
    ) -> Result<Option<String>, HttpError> {
        let bytes = self.get(url, headers)?;
        let text = bytes.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
        Ok(text.filter(|text| !text.is_empty()))
    }

    pub(super) fn put(&self, url: &str, headers: Headers<'_>) -> Result<Vec<u8>, HttpError> {
        self.ask("PUT", url, headers, Some(b""))
    }

    pub(super) fn post(
        &self,
        url: &str,
        headers: Headers<'_>,
        body: &[u8],
    ) -> Result<Vec<u8>, HttpError> {
        self.ask("POST", url, headers, Some(body))
    }

    /// From a port below 1024, by which some services tell root from others.
    pub(super) fn get_as_root(&self, url: &str) -> Result<Option<Vec<u8>>, HttpError> {
        let attempt = |within| self.curl(url, &[], &["--local-port", "1-1023"], within);
        self.found(self.patiently(url, attempt))
    }

    /// The first of several addresses of the same service that answers at all.
    pub(super) fn alive<'a>(&self, bases: &[&'a str], path: &str) -> Result<&'a str, HttpError> {
        let mut last = OVER.to_owned();
        let mut attempts = 0;
        loop {
            for base in bases {
                let Some(left) = self.left() else { break };
                attempts += 1;
                match self.once("GET", &format!("{base}{path}"), &[], None, left) {
                    Attempt::Problem(problem) => last = problem,
                    _ => return Ok(base),
                }
            }
            if !self.pause(attempts) {
                return Err(HttpError::Unreachable {
                    url: bases.join(", "),
                    problem: last,
                    attempts,
                });
            }
        }
    }

    fn found(&self, result: Result<Vec<u8>, HttpError>) -> Result<Option<Vec<u8>>, HttpError> {
        match result {
            Ok(bytes) => Ok(Some(bytes)),
            Err(HttpError::Status {
                status: 404 | 410, ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn ask(
        &self,
        method: &str,
        url: &str,
        headers: Headers<'_>,
        body: Option<&[u8]>,
    ) -> Result<Vec<u8>, HttpError> {
        self.patiently(url, |within| {
            self.attempt(method, url, headers, body, within)
        })
    }

    fn attempt(
        &self,
        method: &str,
        url: &str,
        headers: Headers<'_>,
        body: Option<&[u8]>,
        within: Duration,
    ) -> Attempt {
        match url.starts_with("https://") {
            true => self.curl(url, headers, &["--request", method], within),
            false => self.once(method, url, headers, body, within),
        }
    }

    /// One attempt, for whoever has more to do than to try again at once. `None`: not found.
    pub(super) fn get_once(
        &self,
        url: &str,
        headers: Headers<'_>,
        within: Duration,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let attempt = self.attempt("GET", url, headers, None, within);
        match judge(url, attempt) {
            Ok(bytes) => self.found(Ok(bytes)).map_err(Failure::Final),
            Err(Failure::Final(error)) => self.found(Err(error)).map_err(Failure::Final),
            Err(passing) => Err(passing),
        }
    }

    /// Tries again what may be better in a moment.
    fn patiently(
        &self,
        url: &str,
        attempt: impl Fn(Duration) -> Attempt,
    ) -> Result<Vec<u8>, HttpError> {
        let mut attempts = 0;
        let mut problem = OVER.to_owned();
        while let Some(left) = self.left() {
            attempts += 1;
            problem = match judge(url, attempt(left)) {
                Ok(bytes) => return Ok(bytes),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(problem)) => problem,
            };
            tracing::debug!("{}: {problem}, attempt {attempts}", shown(url));
            if !self.pause(attempts) {
                break;
            }
        }
        Err(HttpError::unreachable(url, problem, attempts))
    }

    /// `None`: it is over.
    pub(super) fn left(&self) -> Option<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Waits a little longer each time. `false`: there is no time left.
    pub(super) fn pause(&self, attempts: u32) -> bool {
        let factor = 1_u32
            .checked_shl(attempts.saturating_sub(1))
            .unwrap_or(u32::MAX);
        let pause = FIRST_PAUSE.saturating_mul(factor).min(LONGEST_PAUSE);
        if self.left().is_none_or(|left| left <= pause) {
            return false;
        }
        std::thread::sleep(pause);
        true
    }

    fn once(
        &self,
        method: &str,
        url: &str,
        headers: Headers<'_>,
        body: Option<&[u8]>,
        within: Duration,
    ) -> Attempt {
        self.requests.set(self.requests.get() + 1);
        let mut request = ureq::http::Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = match body {
            Some(body) => request
                .body(body.to_vec())
                .map(|request| self.send(request, within)),
            None => request.body(()).map(|request| self.send(request, within)),
        };
        let mut answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Attempt::Problem(error.to_string()),
            Err(error) => return Attempt::Problem(error.to_string()),
        };
        let mut bytes = Vec::new();
        let body = answer.body_mut().as_reader();
        match body.take(MAX_BODY + 1).read_to_end(&mut bytes) {
            Err(error) => Attempt::Problem(error.to_string()),
            Ok(_) if bytes.len() as u64 > MAX_BODY => Attempt::TooLarge,
            Ok(_) => Attempt::Answer(answer.status().as_u16(), bytes),
        }
    }

    fn send<S: ureq::AsSendBody>(
        &self,
        request: ureq::http::Request<S>,
        within: Duration,
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let config = self.agent.configure_request(request);
        let limited = config.timeout_global(Some(within.min(ATTEMPT)));
        self.agent.run(limited.build())
    }

    fn curl(&self, url: &str, headers: Headers<'_>, more: &[&str], within: Duration) -> Attempt {
        self.requests.set(self.requests.get() + 1);
        let within = within.min(CURL);
        let limit = format!("{:.3}", within.as_secs_f32().max(0.001));
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--location",
            "--max-redirs",
            "4",
        ])
        .args(["--proto", "=http,https", "--max-filesize", "16777216"])
        .args(["--connect-timeout", "5", "--max-time", &limit])
        .args(["--write-out", "%{stderr}\n%{http_code}"])
        .args(more);
        for (name, value) in headers {
            curl.arg("--header").arg(format!("{name}: {value}"));
        }
        curl.arg("--").arg(url);
        match host::child::run_within(&mut curl, within + CURL_ENDS) {
            Ok(output) => {
                let status = output
                    .stderr_tail
                    .trim()
                    .rsplit('\n')
                    .next()
                    .map(str::parse);
                match status {
                    Some(Ok(status)) => Attempt::Answer(status, output.stdout),
                    _ => Attempt::Problem("curl gave no status".to_owned()),
                }
            }
            // CURLE_FILESIZE_EXCEEDED
            Err(error) if error.code() == Some(63) => Attempt::TooLarge,
            Err(error) => {
                let text = error.to_string();
                let line = text.lines().rfind(|line| line.starts_with("curl: ("));
                Attempt::Problem(line.unwrap_or(&text).to_owned())
            }
        }
    }
}

fn judge(url: &str, attempt: Attempt) -> Result<Vec<u8>, Failure> {
    match attempt {
        Attempt::Answer(200..=299, bytes) => Ok(bytes),
        Attempt::Answer(status @ (408 | 425 | 429 | 500..=599), _) => {
            Err(Failure::Passing(format!("HTTP status {status}")))
        }
        Attempt::Answer(status, _) => {
            let url = shown(url);
            Err(Failure::Final(HttpError::Status { url, status }))
        }
        Attempt::TooLarge => {
            let url = shown(url);
            Err(Failure::Final(HttpError::TooLarge { url }))
        }
        Attempt::Problem(problem) => Err(Failure::Passing(problem)),
    }
}
