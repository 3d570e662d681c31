//! The errors of the v2 API. Clients match on the numbers, people read the texts: both are etcd's.

use std::fmt;

use axum::http::StatusCode;
use serde::Serialize;

macro_rules! codes {
    ($($name:ident = $number:literal $text:literal,)*) => {
        /// What went wrong, as a number that clients know.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $($name = $number,)* }

        impl Code {
            /// The number in the answer.
            pub fn number(self) -> u16 {
                match self { $(Code::$name => $number,)* }
            }

            /// The text in the answer.
            pub fn text(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            /// The code with this number.
            pub fn from_number(number: u16) -> Option<Code> {
                match number { $($number => Some(Code::$name),)* _ => None }
            }
        }
    };
}

codes! {
    KeyNotFound = 100 "Key not found",
    TestFailed = 101 "Compare failed",
    NotFile = 102 "Not a file",
    NoMorePeer = 103 "Reached the max number of peers in the cluster",
    NotDir = 104 "Not a directory",
    NodeExist = 105 "Key already exists",
    KeyIsPreserved = 106 "The prefix of given key is a keyword in etcd",
    RootReadOnly = 107 "Root is read only",
    DirNotEmpty = 108 "Directory not empty",
    ExistingPeerAddr = 109 "Peer address has existed",
    Unauthorized = 110 "The request requires user authentication",
    ValueRequired = 200 "Value is Required in POST form",
    PrevValueRequired = 201 "PrevValue is Required in POST form",
    TtlNotANumber = 202 "The given TTL in POST form is not a number",
    IndexNotANumber = 203 "The given index in POST form is not a number",
    ValueOrTtlRequired = 204 "Value or TTL is required in POST form",
    TimeoutNotANumber = 205 "The given timeout in POST form is not a number",
    NameRequired = 206 "Name is required in POST form",
    IndexOrValueRequired = 207 "Index or value is required",
    IndexValueMutex = 208 "Index and value cannot both be specified",
    InvalidField = 209 "Invalid field",
    InvalidForm = 210 "Invalid POST form",
    RefreshValue = 211 "Value provided on refresh",
    RefreshTtlRequired = 212 "A TTL must be provided on refresh",
    RaftInternal = 300 "Raft Internal Error",
    LeaderElect = 301 "During Leader Election",
    WatcherCleared = 400 "watcher is cleared due to etcd recovery",
    EventIndexCleared = 401 "The event in requested index is outdated and cleared",
}

impl Code {
    /// The status of an answer with this error.
    pub fn status(self) -> StatusCode {
        match self {
            Code::KeyNotFound => StatusCode::NOT_FOUND,
            Code::NotFile | Code::DirNotEmpty => StatusCode::FORBIDDEN,
            Code::Unauthorized => StatusCode::UNAUTHORIZED,
            Code::TestFailed | Code::NodeExist => StatusCode::PRECONDITION_FAILED,
            Code::RaftInternal | Code::LeaderElect => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// An error as it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub code: Code,
    /// The path, the failed comparison, or what was wrong with the request.
    pub cause: String,
    /// The store's index; 0 when the request did not get as far as the store.
    pub index: u64,
}

impl Error {
    pub fn new(code: Code, cause: impl Into<String>, index: u64) -> Error {
        Error {
            code,
            cause: cause.into(),
            index,
        }
    }

    /// An error in the request itself.
    pub fn request(code: Code, cause: impl Into<String>) -> Error {
        Error::new(code, cause, 0)
    }

    /// The body of the answer.
    pub fn body(&self) -> String {
        #[derive(Serialize)]
        struct Body<'a> {
            #[serde(rename = "errorCode")]
            code: u16,
            message: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            cause: &'a str,
            index: u64,
        }
        super::gojson::line(&Body {
            code: self.code.number(),
            message: self.code.text(),
            cause: &self.cause,
            index: self.index,
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} ({}) [{}]",
            self.code.number(),
            self.code.text(),
            self.cause,
            self.index
        )
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_written_as_etcd_writes_it() {
        let error = Error::new(Code::KeyNotFound, "/a<b", 7);
        assert_eq!(
            error.body(),
            "{\"errorCode\":100,\"message\":\"Key not found\",\"cause\":\"/a\\u003cb\",\"index\":7}\n"
        );
        assert_eq!(Code::from_number(401), Some(Code::EventIndexCleared));
        assert_eq!(Code::from_number(999), None);
    }
}
