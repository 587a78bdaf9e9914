//! The native API: pools, sessions, executions with streamed events, and files.
//!
//! ```text
//! asked      who asks, and where: the token, and the names in the path
//! body       what they sent, bounded before it is parsed
//! pools      /readyz, /pools, /pools/{pool}
//! sessions   /pools/{pool}/sessions[/{session}]
//! egress     .../sessions/{session}/egress[/decisions]
//! samples    .../sessions/{session}/samples
//! executions .../executions[/{execution}[/stop|/input|/resize]]     request: what may be in a POST
//! events     .../executions/{execution}/events                      shown: how an execution looks as JSON
//! files      .../files[/{path}]
//! terminals  .../terminals[/{terminal}]
//! suspend    .../suspend, .../resume, .../snapshots[/{snapshot}], .../fork
//! ports      .../ports/{port}/{path}, .../previews, /preview/{word}/{path}, .../logs
//! ```

mod asked;
mod body;
mod egress;
mod events;
mod executions;
pub(crate) mod files;
mod pools;
pub(crate) mod ports;
mod request;
mod samples;
mod sessions;
pub(crate) mod shown;
mod suspend;
pub(crate) mod terminals;

use axum::Router;
use axum::handler::Handler;
use axum::http::StatusCode;
use axum::routing::{delete, get, post, put};

use crate::app::App;
use crate::problem::Problem;

/// Its routes.
pub(crate) fn routes(app: App) -> Router {
    let router = table().into_iter().fold(Router::new(), |router, route| router.route(route.path, route.service));
    // Every method is the program's to answer.
    let passed = axum::routing::any(ports::with_token);
    let previewed = || axum::routing::any(ports::by_address);
    router
        .route("/pools/{pool}/sessions/{session}/ports/{port}", passed.clone())
        .route("/pools/{pool}/sessions/{session}/ports/{port}/", passed.clone())
        .route("/pools/{pool}/sessions/{session}/ports/{port}/{*path}", passed)
        .route("/preview/{word}", previewed())
        .route("/preview/{word}/", previewed())
        .route("/preview/{word}/{*path}", previewed())
        .with_state(app)
}

/// One method of one path.
struct Route {
    /// As the OpenAPI document writes it; what compares the two is a test.
    #[cfg_attr(not(test), allow(dead_code, reason = "only the test of the document reads it"))]
    method: &'static str,
    path: &'static str,
    service: axum::routing::MethodRouter<App>,
}

/// Makes a constructor for one method, so that a route's word and its service cannot differ.
macro_rules! method {
    ($name:ident, $service:ident) => {
        fn $name<H: Handler<T, App>, T: 'static>(path: &'static str, handler: H) -> Route {
            Route { method: stringify!($service), path, service: $service(handler) }
        }
    };
}

method!(on_get, get);
method!(on_put, put);
method!(on_post, post);
method!(on_delete, delete);

/// Every native route: the router and the test of the OpenAPI document are made from this.
fn table() -> Vec<Route> {
    const SESSION: &str = "/pools/{pool}/sessions/{session}";
    const EGRESS: &str = "/pools/{pool}/sessions/{session}/egress";
    const EXECUTIONS: &str = "/pools/{pool}/sessions/{session}/executions";
    const EXECUTION: &str = "/pools/{pool}/sessions/{session}/executions/{execution}";
    const FILE: &str = "/pools/{pool}/sessions/{session}/files/{*path}";
    const TERMINAL: &str = "/pools/{pool}/sessions/{session}/terminals/{terminal}";
    vec![
        on_get("/readyz", pools::readiness),
        on_get("/pools", pools::list),
        on_get("/pools/{pool}", pools::one),
        on_put("/pools/{pool}", pools::apply),
        on_delete("/pools/{pool}", pools::remove),
        on_get("/pools/{pool}/object", pools::object),
        on_post("/pools/{pool}/mcp/credentials", pools::mcp_credentials),
        on_get("/pools/{pool}/sessions", sessions::list),
        on_get(SESSION, sessions::one),
        on_put(SESSION, sessions::open),
        on_delete(SESSION, sessions::end),
        on_post("/pools/{pool}/sessions/{session}/suspend", suspend::suspend),
        on_post("/pools/{pool}/sessions/{session}/resume", suspend::resume),
        on_get("/pools/{pool}/sessions/{session}/snapshots", suspend::list),
        on_post("/pools/{pool}/sessions/{session}/snapshots", suspend::copy),
        on_delete("/pools/{pool}/sessions/{session}/snapshots/{snapshot}", suspend::remove),
        on_post("/pools/{pool}/sessions/{session}/fork", suspend::fork),
        on_get(EGRESS, egress::one),
        on_put(EGRESS, egress::narrow),
        on_delete(EGRESS, egress::widen),
        on_get("/pools/{pool}/sessions/{session}/egress/decisions", egress::decisions),
        on_get("/pools/{pool}/sessions/{session}/samples", samples::follow),
        on_get(EXECUTIONS, executions::list),
        on_post(EXECUTIONS, executions::start),
        on_get(EXECUTION, executions::one),
        on_get("/pools/{pool}/sessions/{session}/executions/{execution}/events", events::follow),
        on_post("/pools/{pool}/sessions/{session}/executions/{execution}/stop", executions::stop),
        on_post("/pools/{pool}/sessions/{session}/executions/{execution}/input", executions::input),
        on_post("/pools/{pool}/sessions/{session}/executions/{execution}/resize", executions::resize),
        on_post("/pools/{pool}/sessions/{session}/previews", ports::make),
        on_get("/pools/{pool}/sessions/{session}/logs", ports::logs),
        on_get("/pools/{pool}/sessions/{session}/terminals", terminals::list),
        on_get(TERMINAL, terminals::attach),
        on_delete(TERMINAL, terminals::end),
        on_get("/pools/{pool}/sessions/{session}/files", files::list),
        on_get(FILE, files::read),
        on_put(FILE, files::write),
        on_delete(FILE, files::remove),
    ]
}

/// What is answered to a method that a path does not have. The header `Allow` says which it has.
pub(crate) async fn wrong_method(method: axum::http::Method) -> Problem {
    let text = format!("This path does not take {method}; the header Allow says what it takes.");
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", text)
}

#[cfg(test)]
pub(crate) fn documented() -> Vec<(&'static str, String)> {
    table().iter().map(|route| (route.method, route.path.replace("{*", "{"))).collect()
}

#[cfg(test)]
mod tests;
