//! Omaha v3, the update protocol of ChromeOS, CoreOS and Flatcar: XML over POST.
//!
//! Orlop's own facts ride along as attributes with the prefix `orlop_`, so other speakers of the
//! protocol understand the rest. Nothing here is trusted: an offer says where a signed manifest
//! may be found, a request says what a host claims about itself.
//!
//! Readers skip attributes and elements they do not know; writers always produce the whole form
//! that strict clients want.

mod request;
mod response;
mod xml;

pub use request::{AppRequest, Event, EventMeaning, Os, Request};
pub use response::{AppResponse, Offer, Package, Response, UpdateCheck, holds_back};

/// The application that Flatcar's servers know, so that they can serve Orlop too.
pub const APP_ID: &str = "e96281a6-d1af-4bde-9a0a-97b76e56dc57";

/// Where a server answers.
pub const PATH: &str = "/v1/update/";

/// No honest message comes near it.
pub const MAX_MESSAGE: usize = 256 * 1024;

/// Why a message is not Omaha.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OmahaError {
    #[error("the message has {0} bytes, more than the {MAX_MESSAGE} that one can have")]
    TooLarge(usize),
    #[error("line {line}, column {column}: {what}")]
    Xml {
        line: usize,
        column: usize,
        what: String,
    },
    #[error("line {line}, column {column}: <{element}> has no attribute {attribute:?}")]
    Missing {
        line: usize,
        column: usize,
        element: String,
        attribute: &'static str,
    },
    #[error("line {line}, column {column}: {attribute}={value:?} in <{element}>: {what}")]
    BadValue {
        line: usize,
        column: usize,
        element: String,
        attribute: &'static str,
        value: String,
        what: String,
    },
}
