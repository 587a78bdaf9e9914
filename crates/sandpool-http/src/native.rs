//! The native API.

use axum::Router;

use crate::app::App;

/// Its routes.
pub(crate) fn routes(_app: App) -> Router {
    Router::new()
}
