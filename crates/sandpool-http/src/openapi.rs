//! The OpenAPI document.

use axum::Router;

/// Its route.
pub(crate) fn routes() -> Router {
    Router::new()
}
