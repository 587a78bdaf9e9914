//! The console below `/console`: files that are in this program, with what a browser must be told about them.
//!
//! They are open, as they hold nothing: whatever they show comes from the API, with the token of who looks. Paths that are no file are
//! pages of the console, and so its one document.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use sandpool_console::Asset;
use serde_json::{Value, json};

use crate::app::App;
use crate::problem::Problem;

/// The document of every page.
const PAGE: &str = "index.html";

/// The documents that show HTML which came out of a sandbox: without its scripts (which the document itself forbids, by a policy of its own
/// besides this one), and with them, for who has asked for that.
const OUTPUTS: [&str; 2] = ["output.html", "output-scripts.html"];

/// What the console's document may do: its own scripts and styles, the API of its own server, images that it has, and the frame for
/// HTML of sandboxes. Nothing inline, and no text becomes markup or a script (trusted types).
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; \
     frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
     trusted-types 'none'; connect-src 'self'";

/// What HTML of a sandbox may do: be drawn, with its own scripts, in an origin of its own that is nobody's. It loads nothing, and sends
/// nothing. That it leads itself elsewhere is forbidden by `frame-src` of the document around it.
const OUTPUT_POLICY: &str = "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
     img-src data: blob:; font-src data:; media-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; \
     webrtc 'block'";

/// Its routes.
pub(crate) fn routes(app: App) -> Router {
    Router::new()
        .route("/console", get(answer))
        .route("/console/", get(answer))
        .route("/console/sign-in.json", get(doors))
        .route("/console/{*path}", get(answer))
        .with_state(app)
}

/// Where people may sign in.
async fn doors(State(app): State<App>) -> ([(HeaderName, &'static str); 1], Json<Value>) {
    ([(CACHE_CONTROL, "no-store")], Json(json!({ "issuers": app.auth.doors().await })))
}

async fn answer(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let path = request.uri().path();
    let path = path.strip_prefix("/console").unwrap_or(path).trim_start_matches('/');
    let (asset, policy) = match sandpool_console::find(path) {
        Some(asset) if OUTPUTS.contains(&path) => (asset, HeaderValue::from_static(OUTPUT_POLICY)),
        Some(asset) if path.starts_with("assets/") => (asset, HeaderValue::from_static(PAGE_POLICY)),
        // A name with a hash in it that is not here is of another version of this program.
        None if path.starts_with("assets/") => {
            return Err(Problem::new(
                StatusCode::NOT_FOUND,
                "NotFound",
                "The console has no such file; load it again.",
            ));
        }
        _ => match sandpool_console::find(PAGE) {
            Some(asset) => (asset, page_policy(&app).await),
            None => return Err(Problem::new(StatusCode::NOT_FOUND, "NotFound", "This build has no console.")),
        },
    };
    Ok(file(asset, policy, request.headers()))
}

/// Besides the server itself, the console reaches where its users sign in.
async fn page_policy(app: &App) -> HeaderValue {
    let origins: String = app.auth.doors().await.iter().map(|door| format!(" {}", door.origin)).collect();
    // An origin is of ASCII without blanks: this does not fail.
    HeaderValue::try_from(format!("{PAGE_POLICY}{origins}")).unwrap_or(HeaderValue::from_static(PAGE_POLICY))
}

fn file(asset: &'static Asset, policy: HeaderValue, asked: &HeaderMap) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_SECURITY_POLICY, policy);
    let mut say = |name: HeaderName, value: &'static str| headers.insert(name, HeaderValue::from_static(value));
    say(CONTENT_TYPE, asset.kind);
    say(X_CONTENT_TYPE_OPTIONS, "nosniff");
    say(REFERRER_POLICY, "no-referrer");
    say(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    say(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    say(HeaderName::from_static("permissions-policy"), "camera=(), microphone=(), geolocation=(), payment=(), usb=()");
    say(HeaderName::from_static("x-dns-prefetch-control"), "off");
    say(VARY, "accept-encoding");
    let is_named_by_content = asset.path.starts_with("assets/");
    say(CACHE_CONTROL, if is_named_by_content { "public, max-age=31536000, immutable" } else { "no-cache" });
    let (bytes, packed) = match (asset.brotli, asset.gzip) {
        (Some(bytes), _) if accepts(asked, "br") => (bytes, Some("br")),
        (_, Some(bytes)) if accepts(asked, "gzip") => (bytes, Some("gzip")),
        _ => (asset.plain, None),
    };
    let tag = format!("\"{}{}\"", asset.tag, packed.unwrap_or_default());
    let is_known = asked
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|one| one.trim().trim_start_matches("W/") == tag));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, tag);
    }
    if is_known {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    if let Some(packed) = packed {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(packed));
    }
    (headers, Body::from(bytes)).into_response()
}

/// Whether an encoding is accepted by name (RFC 9110, section 12.5.3), and not with the weight 0.
fn accepts(asked: &HeaderMap, encoding: &str) -> bool {
    let values = asked.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| {
        let (name, weight) = one.split_once(';').unwrap_or((one, ""));
        let weight = weight.trim().strip_prefix("q=").map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
        name.trim().eq_ignore_ascii_case(encoding) && weight > 0.0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::served::{Answer, Served, read};

    fn accepting(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(value))])
    }

    #[test]
    fn an_encoding_is_accepted_by_name_and_weight() {
        for (value, is_accepted) in [
            ("gzip, deflate, br, zstd", true),
            ("BR;q=0.5", true),
            ("gzip", false),
            ("br;q=0, gzip", false),
            ("*", false),
            ("", false),
        ] {
            assert_eq!(accepts(&accepting(value), "br"), is_accepted, "{value}");
        }
    }

    /// One file as a browser gets it.
    async fn got(served: &Served, path: &str, header: (&str, &str)) -> Answer {
        let request = Request::get(path).header(header.0, header.1).body(Body::empty()).unwrap();
        read(served.send(request).await).await
    }

    #[tokio::test]
    async fn the_console_is_served_with_what_a_browser_must_know() {
        let served = Served::start().await;
        for path in ["/console", "/console/", "/console/sessions", "/console/index.html"] {
            let page = got(&served, path, ("accept", "text/html")).await;
            assert_eq!(
                (page.status.as_u16(), page.header("content-type")),
                (200, "text/html; charset=utf-8"),
                "{path}"
            );
            assert!(page.text().contains("<title>Sandpool"), "{path}");
            let policy = page.header("content-security-policy");
            assert!(
                policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"),
                "{policy}"
            );
            assert!(policy.contains("frame-ancestors 'none'") && policy.contains("base-uri 'none'"), "{policy}");
            for (name, value) in [
                ("x-content-type-options", "nosniff"),
                ("referrer-policy", "no-referrer"),
                ("cross-origin-opener-policy", "same-origin"),
                ("cache-control", "no-cache"),
            ] {
                assert_eq!(page.header(name), value, "{path} {name}");
            }
            let again = got(&served, path, ("if-none-match", page.header("etag"))).await;
            assert_eq!((again.status.as_u16(), again.body.len()), (304, 0), "{path}");
        }
        assert_eq!(got(&served, "/console/assets/main-OLD.js", ("accept", "*/*")).await.status, 404);
        assert_eq!(served.call("POST", "/console/", "").await.status, 405);
    }

    #[tokio::test]
    async fn files_are_kept_by_browsers_and_come_packed() {
        let served = Served::start().await;
        // A build without npm has no other file than its page.
        for asset in sandpool_console::ASSETS.iter().filter(|asset| asset.path.starts_with("assets/")) {
            let path = format!("/console/{}", asset.path);
            let plain = got(&served, &path, ("accept-encoding", "identity")).await;
            assert_eq!((plain.header("content-encoding"), &plain.body[..]), ("", asset.plain), "{path}");
            assert!(plain.header("cache-control").ends_with("immutable"), "{path}");
            let packed = got(&served, &path, ("accept-encoding", "gzip, br")).await;
            let encoding = if asset.brotli.is_some() { "br" } else { "" };
            assert_eq!(packed.header("content-encoding"), encoding, "{path}");
            assert_eq!(packed.header("vary"), "accept-encoding");
            assert_eq!(encoding.is_empty(), packed.header("etag") == plain.header("etag"), "{path}");
        }
    }

    #[tokio::test]
    async fn html_of_sandboxes_has_a_document_of_its_own() {
        let served = Served::start().await;
        for (path, has_own) in [("output.html", true), ("output-scripts.html", false)] {
            let page = got(&served, &format!("/console/{path}"), ("accept", "text/html")).await;
            let policy = page.header("content-security-policy");
            if sandpool_console::IS_BUILT {
                assert!(policy.starts_with("sandbox allow-scripts; default-src 'none';"), "{policy}");
                assert!(!policy.contains("allow-same-origin") && !policy.contains("connect-src"), "{policy}");
                assert_eq!(page.text().contains("script-src 'sha256-"), has_own, "{path}");
            } else {
                assert_eq!(policy, PAGE_POLICY);
            }
        }
    }
}
