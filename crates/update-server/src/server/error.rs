use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::database::DatabaseError;
use crate::api::ErrorBody;

/// An answer that is not a success: `{"error", "hint"}`.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
    /// For the log, where the client need not know.
    cause: Option<String>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            body: ErrorBody {
                error: error.into(),
                hint: None,
            },
            cause: None,
        }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }

    pub(super) fn internal(error: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        let cause = Some(cause.to_string());
        Self {
            cause,
            ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, error)
        }
        .hint("the server's log says why")
    }
}

impl From<rusqlite::Error> for ApiError {
    fn from(error: rusqlite::Error) -> Self {
        Self::internal("the server's database failed", error)
    }
}

impl From<DatabaseError> for ApiError {
    fn from(error: DatabaseError) -> Self {
        Self::internal("the server's database failed", error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Some(cause) = &self.cause {
            tracing::error!(cause, "{}", self.body.error);
        } else if self.status != StatusCode::NOT_FOUND {
            tracing::info!(
                status = self.status.as_u16(),
                "refused: {}",
                self.body.error
            );
        }
        let mut response = (self.status, Json(self.body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
