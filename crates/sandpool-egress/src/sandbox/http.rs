//! HTTP, request by request: each is judged by the host it names, which must be the one it came for (EG4).
//!
//! ```text
//! To::Only(target)   a client that believes it is connected to the target: its Host header must say so
//! To::Anywhere       a client that knows a proxy: whole addresses, and CONNECT
//! ```
//!
//! Requests are read and written anew by one HTTP implementation on both sides, so that nobody upstream can see two
//! requests where one was judged.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::Scheme;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::doors::tunnel;
use super::{Passage, Sandbox, tls};
use crate::audit::Via;
use crate::host::{self, Target};
use crate::relay::{Early, Metered};
use crate::secrets::{self, SandboxSecrets};

/// Where HTTP is expected.
pub(super) const PORT: u16 = 80;

/// How long a client may take over a request's head, and to come with the next request.
const IDLE: Duration = Duration::from_secs(60);

/// Header lines of one request, at most.
const MAX_HEADERS: usize = 100;

/// Headers that are of one connection only, and those that would make it another one.
const HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];

/// Where the requests of a connection may go.
#[derive(Clone, Debug)]
pub(super) enum To {
    /// To what the client believes it is connected to.
    Only(Target, u16),
    /// To whom each of them names.
    Anywhere,
}

type Body = Either<Incoming, Either<Hidden, Full<Bytes>>>;

/// What the requests of one connection have in common.
#[derive(Debug)]
struct Guest {
    sandbox: Arc<Sandbox>,
    via: Via,
    to: To,
    /// The connection that the last request went over.
    upstream: Mutex<Option<Upstream>>,
    /// Of a tunnel that the connection may become.
    place: Option<Arc<OwnedSemaphorePermit>>,
    /// Where TLS was opened for them: what is put in, and how to speak with the host itself.
    secrets: Option<Arc<SandboxSecrets>>,
}

impl Guest {
    /// The port that is meant where none is said.
    fn usual_port(&self) -> u16 {
        if self.secrets.is_some() { tls::PORT } else { PORT }
    }
}

/// A connection to a server, between requests. Its passage is with the task that drives it.
#[derive(Debug)]
struct Upstream {
    target: Target,
    port: u16,
    sender: SendRequest<Incoming>,
}

/// Serves requests of one client.
pub(super) async fn serve(sandbox: Arc<Sandbox>, via: Via, stream: TcpStream, to: To, place: OwnedSemaphorePermit) {
    converse(
        stream,
        Guest { sandbox, via, to, upstream: Mutex::new(None), place: Some(Arc::new(place)), secrets: None },
    )
    .await;
}

/// Serves requests of a client that has come through a tunnel, over a connection that is there already.
async fn through(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    early: Vec<u8>,
    passage: Passage,
    metered: Metered,
    place: Arc<OwnedSemaphorePermit>,
) {
    let (sandbox, via) = (Arc::clone(&passage.sandbox), passage.via);
    let to = To::Only(passage.target.clone(), passage.port);
    let Ok(upstream) = join(passage, metered, None).await else { return };
    let guest = Guest { sandbox, via, to, upstream: Mutex::new(Some(upstream)), place: Some(place), secrets: None };
    converse(Early::new(early, stream), guest).await;
}

/// Opens the TLS of a client that has said hello to a host of a secret, and serves its requests. The connection to the host is there
/// already.
pub(super) async fn opened(
    client: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    early: Vec<u8>,
    passage: Passage,
    metered: Metered,
) {
    let (sandbox, via) = (Arc::clone(&passage.sandbox), passage.via);
    let (target, port) = (passage.target.clone(), passage.port);
    let (Some(secrets), Target::Host(host)) = (sandbox.secrets(&target, port), &target) else { return };
    let acceptor = match secrets.acceptor(host) {
        Ok(acceptor) => acceptor,
        Err(reason) => return passage.refused(&reason),
    };
    let accepted = tokio::select! {
        biased;
        () = passage.cut.cancelled() => return passage.refused("the rules have changed"),
        accepted = timeout(sandbox.common.limits.handshake, acceptor.accept(Early::new(early, client))) => accepted,
    };
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return passage.refused(&format!("the client does not speak TLS with us: {error}")),
        Err(_) => return passage.refused("the client did not speak TLS in time"),
    };
    // A host that cannot be spoken with is told of in answer to a request, which tries it once more.
    let upstream = join(passage, metered, Some(&secrets)).await.ok();
    let to = To::Only(target, port);
    converse(stream, Guest { sandbox, via, to, upstream: Mutex::new(upstream), place: None, secrets: Some(secrets) })
        .await;
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, guest: Guest) {
    let head = guest.sandbox.common.limits.head;
    let guest = Arc::new(guest);
    let service = service_fn(|request| {
        let guest = Arc::clone(&guest);
        async move { Ok::<_, std::convert::Infallible>(answer(&guest, request).await) }
    });
    // What a client does wrong is its own affair: there is nobody to tell.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(head.max(8192))
        .max_headers(MAX_HEADERS)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

async fn answer(guest: &Arc<Guest>, request: Request<Incoming>) -> Response<Body> {
    let wanted = match wanted(guest, &request) {
        Ok(wanted) => wanted,
        Err((destination, status, reason)) => {
            let destination = destination.as_ref().map(|(target, port)| (target, *port));
            guest.sandbox.refuse(guest.via, destination, &reason);
            return say(status, &reason);
        }
    };
    if request.method() == Method::CONNECT {
        connect(guest, request, wanted).await
    } else {
        forward(guest, request, wanted).await
    }
}

type Refusal = (Option<(Target, u16)>, StatusCode, String);

/// Where a request goes, if it may come by this door.
fn wanted(guest: &Guest, request: &Request<Incoming>) -> Result<(Target, u16), Refusal> {
    let bad = |reason: &str| (None, StatusCode::BAD_REQUEST, reason.to_owned());
    let parse = |text: &str, usual: Option<u16>| match host::authority(text) {
        Ok((target, port)) => match port.or(usual) {
            Some(port) => Ok((target, port)),
            None => Err(bad("the port is missing")),
        },
        Err(error) => Err(bad(&format!("the host cannot be understood: {error}"))),
    };
    let is_connect = request.method() == Method::CONNECT;
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return Err(bad("there are two Host headers")),
        (Some(host), None) => Some(host.to_str().map_err(|_| bad("the Host header is no text"))?),
        (None, _) => None,
    };
    // A tunnel's Host header tells nothing that its address does not, and some leave the port out.
    let usual = guest.usual_port();
    let host = host.filter(|_| !is_connect).map(|host| parse(host, Some(usual))).transpose()?;
    let whole = match (request.uri().scheme(), request.uri().authority()) {
        (_, None) => None,
        (Some(scheme), Some(_)) if *scheme != Scheme::HTTP => {
            return Err(bad("only http can be asked of a proxy; for https it makes a tunnel"));
        }
        (_, Some(authority)) => Some(parse(authority.as_str(), (!is_connect).then_some(usual))?),
    };
    if let (Some(host), Some(whole)) = (&host, &whole)
        && host != whole
    {
        return Err(bad("the Host header names another host than the address"));
    }
    match &guest.to {
        To::Anywhere => {
            let (target, port) = whole.ok_or_else(|| bad("a proxy is asked with whole addresses"))?;
            let named = guest.sandbox.named(target.clone());
            named.map(|named| (named, port)).map_err(|why| (Some((target, port)), StatusCode::FORBIDDEN, why))
        }
        To::Only(..) if is_connect => Err(bad("tunnels are made at the proxy's port")),
        To::Only(target, port) => {
            let forbidden = |why: String| (Some((target.clone(), *port)), StatusCode::FORBIDDEN, why);
            let (named, at) = whole.or(host).ok_or_else(|| bad("the Host header is missing"))?;
            let agrees = match (&named, target) {
                _ if at != *port => false,
                (named, target) if named == target => true,
                // A name at an address that was dialled as such: the name is judged as well.
                (Target::Host(_), Target::Address(_)) => {
                    let judged = guest.sandbox.rules().judge(&named, at);
                    judged.map_err(|reason| forbidden(format!("the request is for {named}: {reason}")))?;
                    true
                }
                (Target::Host(_) | Target::Address(_), _) => false,
            };
            if agrees {
                Ok((target.clone(), *port))
            } else {
                Err(forbidden(format!("the request is for {named}:{at} at the address of {target}:{port}")))
            }
        }
    }
}

/// Makes a tunnel.
async fn connect(guest: &Arc<Guest>, mut request: Request<Incoming>, wanted: (Target, u16)) -> Response<Body> {
    let (target, port) = wanted;
    let passage = match guest.sandbox.enter(Via::Connect, &target, port) {
        Ok(passage) => passage,
        Err(reason) => return say(StatusCode::FORBIDDEN, &reason),
    };
    let (passage, metered) = match passage.dial().await {
        Ok(dialled) => dialled,
        Err(reason) => return say(StatusCode::BAD_GATEWAY, &reason),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let Some(place) = guest.place.clone() else {
        return say(StatusCode::BAD_REQUEST, "there is no tunnel in a tunnel");
    };
    let over = guest.sandbox.over.clone();
    guest.sandbox.tasks.spawn(async move {
        let upgraded = tokio::select! {
            biased;
            () = over.cancelled() => return,
            upgraded = upgrade => upgraded,
        };
        let Ok(parts) = upgraded.map(Upgraded::downcast::<TokioIo<TcpStream>>) else { return };
        // Only such connections come to the door where tunnels are made.
        let Ok(parts) = parts else { return };
        tunnelled(parts.io.into_inner(), parts.read_buf.into(), passage, metered, place).await;
    });
    own(Bytes::new())
}

/// What goes through a tunnel. (Boxed, because HTTP in it is served by what serves the tunnel's request.)
pub(super) fn tunnelled(
    mut stream: TcpStream,
    early: Vec<u8>,
    mut passage: Passage,
    mut metered: Metered,
    place: Arc<OwnedSemaphorePermit>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        match passage.port {
            tls::PORT => tls::through(stream, early, passage, metered).await,
            PORT => through(stream, early, passage, metered, place).await,
            port if passage.sandbox.secrets(&passage.target, port).is_some() => {
                tls::through(stream, early, passage, metered).await;
            }
            _ => passage.during(tunnel(&mut stream, &early, &mut metered)).await,
        }
    })
}

/// Passes a request on, and brings back the answer.
async fn forward(guest: &Guest, request: Request<Incoming>, wanted: (Target, u16)) -> Response<Body> {
    let (target, port) = wanted;
    let mut request = match tidied(request, &target, port, guest.usual_port()) {
        Ok(request) => request,
        Err(reason) => return say(StatusCode::BAD_REQUEST, &reason),
    };
    let mut used = Vec::new();
    if let Some(secrets) = &guest.secrets {
        // What comes back is looked through, and so not compressed.
        request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        match filled(secrets, &mut request, &target, port) {
            Ok(names) => used = names,
            Err(reason) => return say(StatusCode::BAD_REQUEST, &reason),
        }
    }
    let mut kept = guest.upstream.lock().unwrap_or_else(PoisonError::into_inner).take();
    loop {
        let reused = kept.take().filter(|kept| kept.target == target && kept.port == port && !kept.sender.is_closed());
        let was_used = reused.is_some();
        let upstream = match reused {
            Some(upstream) => match guest.sandbox.rules().judge(&target, port) {
                Ok(()) => Ok(upstream),
                Err(reason) => {
                    guest.sandbox.refuse(guest.via, Some((&target, port)), &reason.to_string());
                    Err(say(StatusCode::FORBIDDEN, &reason.to_string()))
                }
            },
            None => match guest.sandbox.enter(guest.via, &target, port) {
                Ok(passage) => match passage.dial().await {
                    Ok((passage, metered)) => join(passage, metered, guest.secrets.as_deref())
                        .await
                        .map_err(|reason| say(StatusCode::BAD_GATEWAY, &reason)),
                    Err(reason) => Err(say(StatusCode::BAD_GATEWAY, &reason)),
                },
                Err(reason) => Err(say(StatusCode::FORBIDDEN, &reason)),
            },
        };
        let mut upstream = match upstream {
            Ok(upstream) => upstream,
            Err(answer) => return answer,
        };
        if upstream.sender.ready().await.is_err() && was_used {
            continue;
        }
        match upstream.sender.try_send_request(request).await {
            Ok(response) => {
                for name in used {
                    guest.sandbox.used(guest.via, &target, port, name);
                }
                *guest.upstream.lock().unwrap_or_else(PoisonError::into_inner) = Some(upstream);
                return brought(response, guest.secrets.as_ref());
            }
            // The server closed what was kept just now, and has seen nothing of the request.
            Err(mut error) => match error.take_message() {
                Some(unsent) if was_used => request = unsent,
                _ => {
                    return say(StatusCode::BAD_GATEWAY, &format!("the server did not answer: {}", error.into_error()));
                }
            },
        }
    }
}

/// Speaks HTTP on a connection to a server. The task that drives it has the passage, which ends with it.
async fn join(mut passage: Passage, metered: Metered, secrets: Option<&SandboxSecrets>) -> Result<Upstream, String> {
    let (target, port) = (passage.target.clone(), passage.port);
    let stream = match (secrets, &target) {
        (Some(secrets), Target::Host(host)) => {
            let limit = passage.sandbox.common.limits.handshake;
            let connected = async {
                let name = secrets::server_name(host)?;
                let connected = timeout(limit, secrets.connector().connect(name, metered)).await;
                let connected = connected.map_err(|_| "the host did not speak TLS in time".to_owned())?;
                connected.map_err(|error| format!("the host's TLS is not good: {error}"))
            };
            match connected.await {
                Ok(stream) => Io::Right(Box::new(stream)),
                Err(reason) => {
                    passage.ended = Some((crate::audit::Decision::Failed, reason.clone()));
                    return Err(reason);
                }
            }
        }
        (Some(_), Target::Address(_)) | (None, _) => Io::Left(metered),
    };
    match hyper::client::conn::http1::handshake(TokioIo::new(stream)).await {
        Ok((sender, connection)) => {
            let tasks = passage.sandbox.tasks.clone();
            tasks.spawn(async move {
                passage.during(async { connection.await.map_err(|error| error.to_string()) }).await;
            });
            Ok(Upstream { target, port, sender })
        }
        Err(error) => {
            passage.ended = Some((crate::audit::Decision::Failed, error.to_string()));
            Err(error.to_string())
        }
    }
}

/// The request as it goes on: to the path, with one Host header that is the judged name, and without what was meant for us.
fn tidied(mut request: Request<Incoming>, target: &Target, port: u16, usual: u16) -> Result<Request<Incoming>, String> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let path = if path.is_empty() { "/" } else { path };
    *request.uri_mut() = path.parse::<Uri>().map_err(|error| error.to_string())?;
    *request.version_mut() = Version::HTTP_11;
    let name = match target {
        Target::Address(std::net::IpAddr::V6(address)) => format!("[{address}]"),
        Target::Host(_) | Target::Address(_) => target.to_string(),
    };
    let host = if port == usual { name } else { format!("{name}:{port}") };
    let host = HeaderValue::from_str(&host).map_err(|error| error.to_string())?;
    strip(request.headers_mut());
    request.headers_mut().insert(header::HOST, host);
    Ok(request)
}

fn brought(response: Response<Incoming>, secrets: Option<&Arc<SandboxSecrets>>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    head.version = Version::HTTP_11;
    strip(&mut head.headers);
    let body = match secrets {
        None => Either::Left(body),
        Some(secrets) => {
            secrets.hide(&mut head.headers);
            // It may become longer or shorter; where none comes (HEAD, 204, 304) nothing does.
            if !body.is_end_stream() {
                head.headers.remove(header::CONTENT_LENGTH);
            }
            Either::Right(Either::Left(Hidden { body, rest: Vec::new(), secrets: Arc::clone(secrets), is_over: false }))
        }
    };
    Response::from_parts(head, body)
}

/// Puts a pool's secrets into a request. Answers which.
fn filled<'a>(
    secrets: &'a SandboxSecrets,
    request: &mut Request<Incoming>,
    target: &Target,
    port: u16,
) -> Result<Vec<&'a str>, String> {
    let mut uri = request.uri().clone();
    let used = secrets.fill(target, port, request.headers_mut(), &mut uri)?;
    *request.uri_mut() = uri;
    Ok(used)
}

/// A connection to a server: as it is, or with TLS that we speak ourselves.
type Io = tokio_util::either::Either<Metered, Box<tokio_rustls::client::TlsStream<Metered>>>;

/// An answer's body in which values are placeholders again. (One that is compressed although we asked for no such thing is passed on
/// as it is.)
#[derive(Debug)]
struct Hidden {
    body: Incoming,
    rest: Vec<u8>,
    secrets: Arc<SandboxSecrets>,
    is_over: bool,
}

impl hyper::body::Body for Hidden {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        while !this.is_over {
            let piece = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                // Trailers are nobody's.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.secrets.hide_piece(&mut this.rest, &data, false),
                    Err(_trailers) => continue,
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    this.is_over = true;
                    this.secrets.hide_piece(&mut this.rest, &[], true)
                }
            };
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(piece.into()))));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.rest.is_empty() && self.body.is_end_stream()
    }
}

/// Takes away what is of one connection only. Whoever says how long a message is in two ways has said it in none.
fn strip(headers: &mut HeaderMap) {
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<HeaderName> =
        named.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect();
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    // A length is not of the connection, whoever says so.
    for name in named.iter().filter(|name| **name != header::CONTENT_LENGTH && **name != header::HOST).chain(&HOP) {
        headers.remove(name);
    }
    for name in ["proxy-connection", "keep-alive"] {
        headers.remove(name);
    }
}

/// An answer with a body of our own.
fn own(body: Bytes) -> Response<Body> {
    Response::new(Either::Right(Either::Right(Full::new(body))))
}

/// A refusal.
fn say(status: StatusCode, reason: &str) -> Response<Body> {
    let mut response = own(format!("sandpool: no way out: {reason}\n").into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
