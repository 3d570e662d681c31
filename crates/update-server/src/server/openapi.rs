//! `/api/v1/openapi.json`: the API, for programs that write programs.

use axum::Json;
use utoipa::openapi::path::PathItem;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::{groups, metrics, rest, tokens, tuf, upload};
use crate::api::ErrorBody;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Orlop update-server",
        description = "Reading is open unless the server was started with --require-sign-in; writing needs a token with the role operator. Errors are `{\"error\", \"hint\"}`."
    ),
    modifiers(&Tokens, &Errors),
    components(schemas(ErrorBody)),
    paths(
        rest::hosts, groups::host, groups::assign, groups::forget, rest::events,
        rest::releases, upload::put_file, upload::finish, tuf::put, rest::withdraw, rest::restore,
        rest::channels, rest::set_channel, rest::promote, rest::check_promotion,
        groups::pause_channel, groups::resume_channel,
        groups::list, groups::set, groups::remove,
        groups::rollouts, groups::pause, groups::resume,
        tokens::list, tokens::make, tokens::remove,
        rest::overview, rest::activity, rest::health, metrics::get,
    )
)]
struct Api;

struct Tokens;

/// Whatever else is answered says what is wrong.
struct Errors;

impl Modify for Tokens {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("token", scheme);
    }
}

impl Modify for Errors {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let body = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name("ErrorBody")))
            .build();
        let response = ResponseBuilder::new()
            .description("What is wrong, and what to do about it")
            .content("application/json", body)
            .build();
        for path in api.paths.paths.values_mut() {
            let PathItem {
                get,
                put,
                post,
                delete,
                ..
            } = path;
            for operation in [get, put, post, delete].into_iter().flatten() {
                let responses = &mut operation.responses.responses;
                responses.insert("default".into(), response.clone().into());
            }
        }
    }
}

pub(super) async fn get() -> Json<utoipa::openapi::OpenApi> {
    Json(Api::openapi())
}
