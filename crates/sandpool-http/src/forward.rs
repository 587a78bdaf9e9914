//! Requests that are passed on to a program of a session, and its answers: HTTP/1.1, HTTP/2 where the pool says so, WebSockets, streams of events, bodies of any length.
//!
//! ```text
//! client --request--> without what is ours (tokens, cookies) --> a connection to the port --> program
//! client <--answer--- without what would be the server's word (cookies, transport security), in a room of its own <--
//! ```
//!
//! What answers is hostile. Its head is bounded, its body is passed on as it comes and as it is taken, and in a browser it is
//! nobody: an answer under our own address has an origin of its own (`Content-Security-Policy: sandbox`), so that its scripts can ask
//! nothing of us in somebody's name.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LOCATION, CONTENT_SECURITY_POLICY, COOKIE, HOST, HeaderName, HeaderValue,
    LOCATION, SEC_WEBSOCKET_PROTOCOL, SET_COOKIE, STRICT_TRANSPORT_SECURITY, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, Request, StatusCode, Uri, Version};
use axum::response::Response;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sandpool_core::ids::{PoolName, SessionKey};
use sandpool_node::Connection;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::app::App;
use crate::auth::API_KEY;
use crate::problem::Problem;
use crate::serve::Peer;

/// How long a program may take for the head of its answer.
const PATIENCE: Duration = Duration::from_secs(600);

/// The longest head of an answer, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Headers of one answer, at most.
const MAX_HEADERS: usize = 256;

/// What is about one connection, and is never passed on.
const OF_CONNECTION: [HeaderName; 6] = [
    CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// What would hold for all that our address serves, and is not a program's to say.
const OF_ORIGIN: [HeaderName; 7] = [
    STRICT_TRANSPORT_SECURITY,
    HeaderName::from_static("alt-svc"),
    HeaderName::from_static("clear-site-data"),
    HeaderName::from_static("nel"),
    HeaderName::from_static("report-to"),
    HeaderName::from_static("reporting-endpoints"),
    HeaderName::from_static("service-worker-allowed"),
];

/// Under whose name a program answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// Below a pool of containers, for clients with a token, which are no browsers: its cookies are its own.
    Data,
    /// Below an address of ours.
    Ours,
    /// Under a host of its own.
    Its,
}

/// Where a request goes.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) pool: &'a PoolName,
    pub(crate) key: &'a SessionKey,
    pub(crate) port: u16,
    /// What stands before the path in the address that the client knows.
    pub(crate) prefix: String,
    pub(crate) room: Room,
}

/// Stands in the extensions of an answer that is a program's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passed;

/// Passes a request on, with this path and query, and answers what the program does.
///
/// # Errors
/// 404 and 410 as for every session, 502 when nothing listens there or what answers is not HTTP, 504 when it does not in time.
pub(crate) async fn pass(
    app: &App,
    place: Place<'_>,
    target: &str,
    mut request: Request<Body>,
) -> Result<Response, Problem> {
    let connection = app.node.connect(place.pool, place.key, place.port).await?;
    let left = Arc::new(AtomicUsize::new(MOST_BEFORE));
    let connection = Bounded { connection, left: Arc::clone(&left) };
    let told = |error: hyper::Error| bad(format!("Port {} does not answer as HTTP: {error}.", place.port));
    let wants = upgrade(request.headers());
    let client = wants.is_some().then(|| hyper::upgrade::on(&mut request));
    let answering = async {
        if is_http2(app, &place) {
            let request = over_http2(request, &place, target, wants.is_some())?;
            let handshake = http2::Builder::new(TokioExecutor::new())
                .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
                .handshake::<_, Body>(TokioIo::new(connection));
            let (mut sender, driving) = handshake.await.map_err(told)?;
            // What goes wrong is told to whoever waits for the answer, or its body.
            tokio::spawn(async move { drop(driving.await) });
            return sender.send_request(request).await.map_err(told);
        }
        let request = rewritten(request, &place, target, wants)?;
        let handshake = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .preserve_header_case(true)
            .handshake::<_, Body>(TokioIo::new(connection));
        let (mut sender, driving) = handshake.await.map_err(told)?;
        tokio::spawn(async move { drop(driving.with_upgrades().await) });
        sender.send_request(request).await.map_err(told)
    };
    let mut answer = match tokio::time::timeout(PATIENCE, answering).await {
        Ok(answer) => answer?,
        Err(_) => {
            let text = format!("Port {} has not answered in {} s.", place.port, PATIENCE.as_secs());
            return Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "SessionPortSilent", text));
        }
    };
    left.store(usize::MAX, Ordering::Relaxed);
    let is_upgraded = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
    if is_upgraded {
        let Some(client) = client else {
            return Err(bad(format!("Port {} changes the protocol, and nobody asked it to.", place.port)));
        };
        tokio::spawn(join(client, hyper::upgrade::on(&mut answer)));
    }
    let (mut head, body) = answer.into_parts();
    head.version = Version::HTTP_11;
    let kept = head.headers.get(UPGRADE).filter(|_| is_upgraded).cloned();
    clean(&mut head.headers);
    if let Some(protocol) = kept {
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, protocol);
    }
    keep_to_itself(&mut head.headers, &place);
    if place.room != Room::Its {
        OF_ORIGIN.into_iter().for_each(|name| drop(head.headers.remove(name)));
    }
    if place.room == Room::Ours {
        // Whatever it says, in a browser it is not us.
        head.headers.remove(SET_COOKIE);
        head.headers.append(CONTENT_SECURITY_POLICY, ALONE);
    }
    for name in [LOCATION, CONTENT_LOCATION] {
        let moved =
            head.headers.get(&name).and_then(|value| value.to_str().ok()).and_then(|to| moved(to, &place, target));
        if let Some(moved) = moved.and_then(|to| HeaderValue::from_str(&to).ok()) {
            head.headers.insert(name, moved);
        }
    }
    head.extensions.insert(Passed);
    Ok(Response::from_parts(head, if is_upgraded { Body::empty() } else { Body::new(body) }))
}

/// Whether the pool says that its program speaks HTTP/2 there.
fn is_http2(app: &App, place: &Place<'_>) -> bool {
    let spec = app.node.spec(place.pool);
    spec.is_ok_and(|spec| spec.container.as_ref().is_some_and(|one| one.is_http2 && one.main.port == place.port))
}

/// The request as a program gets it that speaks HTTP/2 without TLS (RFC 9113, section 3.3: by prior knowledge).
fn over_http2(
    request: Request<Body>,
    place: &Place<'_>,
    target: &str,
    wants_upgrade: bool,
) -> Result<Request<Body>, Problem> {
    if wants_upgrade {
        let text = "The pool's program speaks HTTP/2, in which no protocol is changed to another (Upgrade).";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "SessionRequestNotSupported", text));
    }
    let takes_trailers = request.headers().get_all(TE).iter().any(|value| {
        value.to_str().is_ok_and(|text| text.split(',').any(|word| word.trim().eq_ignore_ascii_case("trailers")))
    });
    let (mut head, body) = rewritten(request, place, target, None)?.into_parts();
    head.version = Version::HTTP_2;
    head.headers.remove(HOST);
    if takes_trailers {
        head.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    let whole = format!("http://localhost:{}{target}", place.port);
    head.uri = whole.parse().map_err(|_| Problem::invalid("path", "The path cannot be passed on."))?;
    Ok(Request::from_parts(head, body))
}

/// What lets a document run its scripts, and gives it an origin of its own.
const ALONE: HeaderValue =
    HeaderValue::from_static("sandbox allow-scripts allow-forms allow-modals allow-popups allow-downloads");

/// Where a program's own address leads, as its client knows it; `None` where nothing is to be changed. Programs know their addresses from
/// `Host`, or begin them with `/`, and may have been told the prefix.
fn moved(to: &str, place: &Place<'_>, asked: &str) -> Option<String> {
    let own = ["http://", "https://"].iter().find_map(|scheme| {
        let rest = to.strip_prefix(scheme)?.strip_prefix(&format!("localhost:{}", place.port))?;
        (rest.is_empty() || rest.starts_with(['/', '?', '#'])).then_some(rest)
    });
    let path = match own {
        Some(rest) if rest.starts_with('/') => rest.to_owned(),
        Some(rest) => format!("/{rest}"),
        // Two slashes begin the name of another host.
        None if to.starts_with('/') && !to.starts_with("//") => to.to_owned(),
        None => return None,
    };
    let rest = path.strip_prefix(&place.prefix).filter(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']));
    let moved = if rest.is_some() { path } else { format!("{}{path}", place.prefix) };
    if place.room != Room::Data {
        return Some(moved);
    }
    // The session is named by the query, which a program need not know.
    let names = |query: &str| query.split('&').find(|pair| pair.starts_with("identifier=")).map(str::to_owned);
    let (before, fragment) = moved.split_once('#').map_or((&*moved, None), |(before, after)| (before, Some(after)));
    let pair = asked.split_once('?').and_then(|(_, query)| names(query));
    let named = before.split_once('?').is_some_and(|(_, query)| names(query).is_some());
    let mut whole = before.to_owned();
    if let Some(pair) = pair.filter(|_| !named) {
        whole.push(if before.contains('?') { '&' } else { '?' });
        whole.push_str(&pair);
    }
    if let Some(fragment) = fragment {
        whole.push('#');
        whole.push_str(fragment);
    }
    Some(whole)
}

/// Cookies are those of its own host, and not of all that end alike; below ours, of its own path.
fn keep_to_itself(headers: &mut HeaderMap, place: &Place<'_>) {
    let cookies: Vec<_> = headers.get_all(SET_COOKIE).iter().cloned().collect();
    headers.remove(SET_COOKIE);
    for cookie in cookies {
        let is = |part: &[u8], name: &[u8]| {
            let said = part.split(|byte| *byte == b'=').next().unwrap_or_default();
            said.trim_ascii().eq_ignore_ascii_case(name)
        };
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for (at, part) in cookie.as_bytes().split(|byte| *byte == b';').enumerate() {
            // The first is the cookie itself, whatever it is called.
            if at > 0 && is(part, b"domain") {
                continue;
            }
            let path = part.splitn(2, |byte| *byte == b'=').nth(1).map(<[u8]>::trim_ascii);
            parts.push(match path.filter(|path| at > 0 && is(part, b"path") && path.starts_with(b"/")) {
                Some(path) if !path.starts_with(place.prefix.as_bytes()) => {
                    [b" Path=", place.prefix.as_bytes(), path].concat()
                }
                _ => part.to_vec(),
            });
        }
        if let Ok(cookie) = HeaderValue::from_bytes(&parts.join(b";".as_slice())) {
            headers.append(SET_COOKIE, cookie);
        }
    }
}

/// Bytes that are read of an answer before its head is there, at most: heads that announce it without end are among them.
const MOST_BEFORE: usize = 4 * MAX_HEAD;

/// A connection of which so many bytes are read, and then no more.
struct Bounded {
    connection: Connection,
    left: Arc<AtomicUsize>,
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.connection).poll_read(context, out))?;
        let left = self.left.load(Ordering::Relaxed);
        if left != usize::MAX {
            let Some(left) = left.checked_sub(out.filled().len() - before) else {
                return Poll::Ready(Err(std::io::Error::other("the answer's head has no end")));
            };
            self.left.store(left, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

fn bad(text: String) -> Problem {
    Problem::new(StatusCode::BAD_GATEWAY, "SessionPortUnusable", text)
}

/// The protocol that a request wants to change to.
fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let says = |value: &HeaderValue| {
        value.to_str().is_ok_and(|text| text.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade")))
    };
    headers.get_all(CONNECTION).iter().any(says).then(|| headers.get(UPGRADE).cloned()).flatten()
}

/// Takes out what is about one connection, also by the names that it gives itself.
fn clean(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .filter_map(|word| word.trim().parse().ok())
        .collect();
    for name in named.into_iter().chain(OF_CONNECTION).chain([UPGRADE]) {
        headers.remove(name);
    }
}

/// The protocols that a WebSocket's client offers, without those that are our tokens.
fn without_tokens(headers: &HeaderMap) -> Option<HeaderValue> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let words = values.flat_map(|text| text.split(',')).map(str::trim);
    let others: Vec<_> =
        words.filter(|word| !word.is_empty() && !word.starts_with(crate::native::terminals::BEARER)).collect();
    HeaderValue::try_from(others.join(", ")).ok().filter(|value| !value.is_empty())
}

/// The request as the program gets it.
fn rewritten(
    request: Request<Body>,
    place: &Place<'_>,
    target: &str,
    upgrade: Option<HeaderValue>,
) -> Result<Request<Body>, Problem> {
    let (mut head, body) = request.into_parts();
    let host = head.headers.get(HOST).cloned().or_else(|| {
        let authority = head.uri.authority()?;
        HeaderValue::from_str(authority.as_str()).ok()
    });
    let wrong = |what: &str| Problem::invalid("path", format!("The {what} cannot be passed on."));
    let path: PathAndQuery = target.parse().map_err(|_| wrong("path"))?;
    head.uri = Uri::from(path);
    head.version = Version::HTTP_11;
    clean(&mut head.headers);
    // What opens doors here is nothing for a session's programs.
    head.headers.remove(AUTHORIZATION);
    head.headers.remove(API_KEY);
    if place.room == Room::Ours {
        head.headers.remove(COOKIE);
    }
    let protocols = without_tokens(&head.headers);
    head.headers.remove(SEC_WEBSOCKET_PROTOCOL);
    if let Some(protocols) = protocols {
        head.headers.insert(SEC_WEBSOCKET_PROTOCOL, protocols);
    }
    // Over HTTP/2 they may come in pieces; over HTTP/1.1 there is one.
    let pieces: Vec<_> = head.headers.get_all(COOKIE).iter().map(|piece| piece.as_bytes().to_vec()).collect();
    if pieces.len() > 1
        && let Ok(whole) = HeaderValue::from_bytes(&pieces.join(b"; ".as_slice()))
    {
        head.headers.insert(COOKIE, whole);
    }
    let set = |headers: &mut HeaderMap, name: HeaderName, value: &str| match HeaderValue::from_str(value) {
        Ok(value) => drop(headers.insert(name, value)),
        Err(_) => drop(headers.remove(name)),
    };
    // As development servers want it, which answer to nobody else.
    set(&mut head.headers, HOST, &format!("localhost:{}", place.port));
    let forwarded_host = HeaderName::from_static("x-forwarded-host");
    head.headers.remove(&forwarded_host);
    if let Some(host) = host {
        head.headers.insert(forwarded_host, host);
    }
    let prefix = HeaderName::from_static("x-forwarded-prefix");
    if place.prefix.is_empty() {
        head.headers.remove(prefix);
    } else {
        set(&mut head.headers, prefix, &place.prefix);
    }
    forwarded_for(&mut head.headers, head.extensions.get::<Peer>().map(|peer| peer.0));
    let proto = if head.extensions.get::<crate::serve::Secure>().is_some() { "https" } else { "http" };
    let said = head.headers.get("x-forwarded-proto");
    if !said.is_some_and(|said| said == "http" || said == "https") || proto == "https" {
        set(&mut head.headers, HeaderName::from_static("x-forwarded-proto"), proto);
    }
    if let Some(protocol) = upgrade {
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, protocol);
    }
    Ok(Request::from_parts(head, body))
}

/// Who asks. What is said of others is believed of a reverse proxy on this machine, and of nobody else.
fn forwarded_for(headers: &mut HeaderMap, peer: Option<IpAddr>) {
    const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    let before: Vec<String> =
        headers.get_all(FOR).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect();
    let is_proxy = peer.is_some_and(|peer| peer.is_loopback());
    for name in [FOR, HeaderName::from_static("forwarded"), HeaderName::from_static("x-real-ip")] {
        headers.remove(name);
    }
    let chain = before.into_iter().filter(|_| is_proxy).chain(peer.map(|peer| peer.to_string()));
    if let Ok(chain) = HeaderValue::from_str(&chain.collect::<Vec<_>>().join(", "))
        && !chain.is_empty()
    {
        headers.insert(FOR, chain);
    }
}

/// Passes on what either says, until both have ended.
async fn join(client: hyper::upgrade::OnUpgrade, program: hyper::upgrade::OnUpgrade) {
    let (Ok(client), Ok(program)) = tokio::join!(client, program) else { return };
    let (mut client, mut program) = (TokioIo::new(client), TokioIo::new(program));
    // Either may break off; then both end.
    let _ = tokio::io::copy_bidirectional(&mut client, &mut program).await;
    let _ = client.shutdown().await;
}

#[cfg(test)]
mod tests;
