//! What goes wrong, and what to do.

use std::path::PathBuf;

use jiff::Timestamp;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{0} is there already; --replace makes a new one in its place (an authority is never replaced)"
    )]
    Exists(PathBuf),
    #[error("{0} has no authority; `orlop pki init` makes one")]
    NoAuthority(PathBuf),
    #[error("{0} cannot be used: {1}")]
    Unusable(PathBuf, String),
    #[error("{path}: cannot {what}")]
    Io {
        path: PathBuf,
        what: &'static str,
        source: std::io::Error,
    },
    #[error(
        "{0:?} is no name: 1 to 64 letters, digits, dots, dashes and underscores, not beginning with a dot or dash"
    )]
    Name(String),
    #[error("{0:?} is neither an address nor a DNS name{1}")]
    Host(String, &'static str),
    #[error("{0} needs at least one --host: the address or DNS name that others reach it at")]
    NoHosts(String),
    #[error("{0} days are no lifetime")]
    Days(u32),
    #[error(
        "the authority ends on {authority}, before this certificate would; --days {days} is the most"
    )]
    Outlives { authority: Timestamp, days: i64 },
    #[error("cannot make the certificate")]
    Making(#[source] rcgen::Error),
}
