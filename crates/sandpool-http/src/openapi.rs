//! The OpenAPI document: `docs/openapi.json`, committed, served, and held against the routes and their answers by tests.
//!
//! It is written by `openapi/write.rs`: `UPDATE_EXPECT=1 cargo test -p sandpool-http openapi`.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;

/// The document.
const DOCUMENT: &str = include_str!("../../../docs/openapi.json");

/// Its route.
pub(crate) fn routes() -> Router {
    Router::new().route("/openapi.json", get(async || ([(CONTENT_TYPE, "application/json")], DOCUMENT)))
}

#[cfg(test)]
pub(crate) mod check;
#[cfg(test)]
mod schemas;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod write;
