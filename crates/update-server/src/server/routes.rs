use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::{get, post, put};
use release::omaha;

use super::{Shared, checkin, dashboard, files, rest, upload};

pub(super) fn router(server: Shared) -> Router {
    // Uploads are streamed to disk and stop at the size the manifest names.
    let uploads = Router::new()
        .route("/api/v1/releases/{version}/{file}", put(upload::put_file))
        .layer(DefaultBodyLimit::disable());
    Router::new()
        .route("/", get(dashboard::page))
        .route("/dashboard.css", get(dashboard::style))
        .route("/health", get(rest::health))
        .route(omaha::PATH, post(checkin::checkin))
        .route(omaha::PATH.trim_end_matches('/'), post(checkin::checkin))
        .route("/releases/{version}/{file}", get(files::get))
        .route("/api/v1/hosts", get(rest::hosts))
        .route("/api/v1/events", get(rest::events))
        .route("/api/v1/releases", get(rest::releases))
        .route("/api/v1/releases/{version}", post(upload::finish))
        .route("/api/v1/channels", get(rest::channels))
        .route("/api/v1/channels/{name}", put(rest::set_channel))
        .layer(DefaultBodyLimit::max(omaha::MAX_MESSAGE))
        .merge(uploads)
        .fallback(rest::not_found)
        .layer(map_response(harden))
        .with_state(server)
}

/// The page shows what strangers claim: should escaping ever fail, the browser still runs nothing.
async fn harden(mut response: Response) -> Response {
    let headers: [(HeaderName, &'static str); 4] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ];
    for (name, value) in headers {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}
