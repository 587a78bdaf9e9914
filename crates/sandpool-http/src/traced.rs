//! A request's span: what came, and what was answered; never its path, its parameters or anything in it.
//!
//! Names and attributes are those of OpenTelemetry's semantic conventions for HTTP servers. A span is over when its answer begins, as with
//! `/metrics`: a stream may go on for as long as it likes.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use sandpool_telemetry::{Exporter, Kind, Parent, Span, Trace, TraceParent, current, scope};
use serde_json::Value;

use crate::metrics::{Code, Dialect, GONE_AWAY};

/// W3C's word for the caller's place in a trace; also in `_meta` of MCP.
pub(crate) const TRACEPARENT: &str = "traceparent";

/// What the caller is told of ours (W3C Trace Context, level 2).
const TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// What stands before a route of Azure's dialect, in either form.
const POOLS_BASE: &str = "/pools/{pool}";
const AZURE_BASE: &str = "/subscriptions/{subscription}/resourceGroups/{resourceGroup}/sessionPools/{pool}";

/// A request whose answer has not begun.
struct Ending {
    span: Option<Span>,
    status: u16,
    code: Option<&'static str>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let Some(mut span) = self.span.take() else { return };
        span.set("http.response.status_code", i64::from(self.status));
        if let Some(code) = self.code {
            span.set("error.type", code);
        }
        // What a client did wrong is no error of a server (semantic conventions, HTTP spans, "Status").
        let error = (self.status >= 500).then_some(self.code.unwrap_or("error"));
        span.end(error);
    }
}

/// Makes the span, and lets all that is done for the request find it.
pub(crate) async fn request(State(exporter): State<Exporter>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let Some(span) = Trace::begin(&exporter, parent(request.headers()), "request", Kind::Server) else {
        return next.run(request).await;
    };
    let (method, dialect) = (word(request.method()), Dialect::of(request.uri().path()));
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let base = if request.uri().path().starts_with("/pools/") { POOLS_BASE } else { AZURE_BASE };
    let trace = span.trace().clone();
    request.extensions_mut().insert(trace.clone());
    let mut span = span.since(began);
    span.set("http.request.method", method);
    span.set("sandpool.dialect", dialect.word());
    let mut ending = Ending { span: Some(span), status: GONE_AWAY, code: None };
    let place = trace.place();
    let mut response = scope(Some(trace.clone()), next.run(request)).await;
    if let Some(span) = &mut ending.span {
        let own = trace
            .route()
            .map(|route| if route.starts_with('/') { route.to_owned() } else { format!("{base}/{route}") });
        if let Some(route) = own.or_else(|| Some(matched.as_ref()?.as_str().to_owned())) {
            span.rename(format!("{method} {route}"));
            span.set("http.route", route);
        } else {
            span.rename(method.to_owned());
        }
    }
    ending.status = response.status().as_u16();
    ending.code = response.extensions().get::<Code>().map(|Code(code)| *code);
    if let Ok(value) = HeaderValue::from_str(&place.to_string()) {
        response.headers_mut().insert(TRACERESPONSE, value);
    }
    response
}

/// The caller's place; of several headers none, since they contradict each other.
fn parent(headers: &HeaderMap) -> Parent {
    let mut all = headers.get_all(TRACEPARENT).iter();
    match (all.next(), all.next()) {
        (one, None) => Parent::parse(one.map(HeaderValue::as_bytes)),
        _ => Parent::None,
    }
}

/// A method's word; of strangers' words, one for all.
fn word(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => "_OTHER",
    }
}

/// The route of a request that no router has matched.
pub(crate) fn is_route(route: &'static str) {
    if let Some(trace) = current() {
        trace.is_route(route);
    }
}

/// The span of a call of a tool, below what `_meta` says, if it does.
pub(crate) fn tool(trace: Option<&Trace>, meta: Option<&Value>, name: &'static str) -> Option<Span> {
    let said = meta.and_then(Value::as_str).map(str::as_bytes);
    let mut span = trace?.child_of(Parent::parse(said), "mcp.tool")?;
    span.set("gen_ai.tool.name", name);
    Some(span)
}

/// For people: under what a refusal is found again.
pub(crate) fn place() -> Option<TraceParent> {
    current().map(|trace| trace.place())
}
