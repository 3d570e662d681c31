use axum::Json;
use axum::body::to_bytes;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::database::DatabaseError;
use super::sql::SqlError;
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

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// What went wrong, and what to do about it.
    pub(super) fn words(&self) -> (&str, Option<&str>) {
        (&self.body.error, self.body.hint.as_deref())
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

/// Refusals that come from the framework, as plain text or without a word, in the form of all others.
pub(super) async fn in_our_form(response: Response) -> Response {
    const MOST: usize = 16 << 10;
    let kind = response.headers().get(header::CONTENT_TYPE);
    let ours = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if ours || !response.status().is_client_error() {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = to_bytes(body, MOST).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let words = match text.trim() {
        "" => parts.status.canonical_reason().unwrap_or("refused"),
        text => text,
    };
    let mut answer = ApiError::new(parts.status, words).into_response();
    for (name, value) in &parts.headers {
        if ![header::CONTENT_TYPE, header::CONTENT_LENGTH].contains(name) {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    answer
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.body.error)?;
        self.cause
            .iter()
            .try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl From<SqlError> for ApiError {
    fn from(error: SqlError) -> Self {
        Self::internal("the server's database failed", error.with_cause())
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
