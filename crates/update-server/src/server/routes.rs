use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::{map_request, map_response};
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use release::omaha;

use super::error::in_our_form;
use super::{
    Shared, checkin, dashboard, files, groups, linger, metrics, openapi, rest, tokens, tuf, upload,
};

pub(super) fn router(server: Shared) -> Router {
    // Uploads are streamed to disk and stop at the size the manifest names.
    let uploads = Router::new()
        .route("/api/v1/releases/{version}/{file}", put(upload::put_file))
        .layer(DefaultBodyLimit::disable());
    let metadata = Router::new()
        .route("/api/v1/tuf/{*file}", put(tuf::put))
        .layer(DefaultBodyLimit::max(tuf::LIMIT));
    Router::new()
        .route("/health", get(rest::health))
        .route("/metrics", get(metrics::get))
        .route(omaha::PATH, post(checkin::checkin))
        .route(omaha::PATH.trim_end_matches('/'), post(checkin::checkin))
        .route("/releases/{version}/{file}", get(files::get))
        .route("/releases/tuf/{*file}", get(tuf::get))
        .merge(api().layer(map_response(in_our_form)))
        .merge(pages())
        .layer(DefaultBodyLimit::max(omaha::MAX_MESSAGE))
        .merge(uploads.layer(map_response(in_our_form)))
        .merge(metadata.layer(map_response(in_our_form)))
        .fallback(rest::not_found)
        .layer(map_response(harden))
        .layer(map_request(async |request| linger::linger(request)))
        .with_state(server)
}

fn api() -> Router<Shared> {
    Router::new()
        .route("/api/v1/openapi.json", get(openapi::get))
        .route("/api/v1/overview", get(rest::overview))
        .route("/api/v1/activity", get(rest::activity))
        .route("/api/v1/events", get(rest::events))
        .route("/api/v1/hosts", get(rest::hosts))
        .route(
            "/api/v1/hosts/{id}",
            get(groups::host).put(groups::assign).delete(groups::forget),
        )
        .route("/api/v1/releases", get(rest::releases))
        .route("/api/v1/releases/{version}", post(upload::finish))
        .route("/api/v1/releases/{version}/withdraw", post(rest::withdraw))
        .route("/api/v1/releases/{version}/restore", post(rest::restore))
        .route("/api/v1/channels", get(rest::channels))
        .route("/api/v1/channels/{name}", put(rest::set_channel))
        .route("/api/v1/channels/{name}/promote", post(rest::promote))
        .route(
            "/api/v1/channels/{name}/promote/check",
            post(rest::check_promotion),
        )
        .route("/api/v1/channels/{name}/pause", post(groups::pause_channel))
        .route(
            "/api/v1/channels/{name}/resume",
            post(groups::resume_channel),
        )
        .route("/api/v1/groups", get(groups::list))
        .route(
            "/api/v1/groups/{name}",
            put(groups::set).delete(groups::remove),
        )
        .route("/api/v1/rollouts", get(groups::rollouts))
        .route("/api/v1/rollouts/{group}/pause", post(groups::pause))
        .route("/api/v1/rollouts/{group}/resume", post(groups::resume))
        .route("/api/v1/tokens", get(tokens::list).post(tokens::make))
        .route("/api/v1/tokens/{name}", delete(tokens::remove))
}

fn pages() -> Router<Shared> {
    Router::new()
        .route("/", get(dashboard::overview::page))
        .route("/hosts", get(dashboard::hosts::list))
        .route("/hosts/{id}", get(dashboard::hosts::one))
        .route("/releases", get(dashboard::releases::page))
        .route("/groups", get(dashboard::groups::page))
        .route("/activity", get(dashboard::activity))
        .route(
            "/sign-in",
            get(dashboard::forms::sign_in_page).post(dashboard::forms::sign_in),
        )
        .route("/sign-in/oidc", get(dashboard::oidc::leave))
        .route(dashboard::oidc::BACK, get(dashboard::oidc::back))
        .route("/sign-out", post(dashboard::forms::sign_out))
        .route("/do", post(dashboard::forms::act))
        .route("/dashboard.css", get(dashboard::style))
        .route("/dashboard.js", get(dashboard::script))
}

/// The pages show what strangers claim: should escaping ever fail, the browser still runs nothing
/// but our own script.
async fn harden(mut response: Response) -> Response {
    let headers: [(HeaderName, &'static str); 4] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
             form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ];
    for (name, value) in headers {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}
