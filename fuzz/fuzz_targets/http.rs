//! What a client says to the server: a request's method, target, headers and body, to the whole router over the memory
//! driver. Whatever it is, an answer comes, and it is no 500.
//!
//! An input is text as on the wire: `METHOD TARGET`, then headers, an empty line, and the body. Requests have an executor's
//! token unless they bring another.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use axum::http::{Method, Request, StatusCode, Uri};
use http_body_util::BodyExt;
use libfuzzer_sys::fuzz_target;
use sandpool_http::served::Served;
use tokio::runtime::{Builder, Runtime};

static SERVED: LazyLock<(Runtime, Served)> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let served = runtime.block_on(Served::start());
    (runtime, served)
});

/// Longer than any request may wait here, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(20);

fn request(bytes: &[u8], token: &str) -> Option<Request<Body>> {
    let end = bytes.windows(2).position(|pair| pair == b"\n\n").unwrap_or(bytes.len());
    let (head, body) = bytes.split_at(end);
    let mut lines = head.split(|byte| *byte == b'\n');
    let mut first = lines.next()?.splitn(2, |byte| *byte == b' ');
    let method = Method::from_bytes(first.next()?).ok()?;
    let target = Uri::try_from(first.next()?).ok()?;
    let mut request = Request::builder().method(method).uri(target);
    let headers = request.headers_mut()?;
    headers.insert(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {token}")).ok()?);
    for line in lines.take(32) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        headers.insert(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
    }
    request.body(Body::from(body.get(2..).unwrap_or_default().to_vec())).ok()
}

fuzz_target!(|bytes: &[u8]| {
    let (runtime, served) = &*SERVED;
    let Some(request) = request(bytes, served.token()) else { return };
    runtime.block_on(async {
        // Streams may last: their head is an answer.
        let answered = tokio::time::timeout(PATIENCE, served.send(request)).await;
        let response = answered.expect("an answer in time");
        assert_ne!(response.status(), StatusCode::INTERNAL_SERVER_ERROR, "{response:?}");
        let _ = tokio::time::timeout(Duration::from_millis(1), response.into_body().collect()).await;
    });
});
