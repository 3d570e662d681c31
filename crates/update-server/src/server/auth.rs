use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use release::Sha256;

use super::error::ApiError;
use super::startup::ServeError;

/// The admin token's digest: comparing digests takes the same time wherever two tokens differ.
pub(super) struct Token(Sha256);

impl Token {
    /// Reads the token's file, or makes it with mode 0600 at the first start.
    pub(super) fn read_or_make(path: &Path) -> Result<Self, ServeError> {
        let io = |source| ServeError::Io {
            path: path.into(),
            source,
        };
        match std::fs::read_to_string(path) {
            Ok(text) if !text.trim().is_empty() => Ok(Self(Sha256::of(text.trim()))),
            Ok(_) => Err(io(std::io::Error::other(
                "the file is empty: remove it to get a new token",
            ))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut bytes = [0; 32];
                getrandom::fill(&mut bytes).map_err(|_| ServeError::NoRandomness)?;
                let token = hex::encode(bytes);
                // A crash in between must not leave an empty token behind.
                let part = path.with_extension("part");
                let _ = std::fs::remove_file(&part);
                let mut file = std::fs::File::options()
                    .create_new(true)
                    .write(true)
                    .mode(0o600)
                    .open(&part)
                    .map_err(io)?;
                writeln!(file, "{token}").map_err(io)?;
                file.sync_all().map_err(io)?;
                std::fs::rename(&part, path).map_err(io)?;
                tracing::info!(path = %path.display(), "made an admin token");
                Ok(Self(Sha256::of(token)))
            }
            Err(error) => Err(io(error)),
        }
    }

    /// Lets the operator through.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let given = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        match given.and_then(|value| value.strip_prefix("Bearer ")) {
            Some(token) if Sha256::of(token.trim()) == self.0 => Ok(()),
            Some(_) => Err(ApiError::new(StatusCode::UNAUTHORIZED, "the admin token is wrong")
                .hint("it is in the file `token` of this server's data directory")),
            None => Err(ApiError::new(StatusCode::UNAUTHORIZED, "this needs the admin token")
                .hint("send the header `Authorization: Bearer TOKEN`; the token is in the file `token` of this server's data directory")),
        }
    }
}
