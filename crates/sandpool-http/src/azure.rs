//! Azure's data plane.

use axum::Router;

use crate::app::App;

/// All that is no other dialect's.
pub(crate) fn service(_app: App) -> Router {
    Router::new()
}
