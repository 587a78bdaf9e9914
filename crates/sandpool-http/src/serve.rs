//! Connections: accepted, plain or TLS, served by HTTP/1.1 and HTTP/2, and let go in order.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// Connections at the same time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 4_096;

/// How long a client may take for a request's head, and for a TLS handshake.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest head of a request, in bytes: tokens of 16 KiB fit.
const MAX_HEAD: usize = 64 * 1024;

/// Streams of one HTTP/2 connection at the same time.
const MAX_STREAMS: u32 = 256;

/// Stands in the extensions of a request that came over TLS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Secure;

/// Stands in the extensions of a request: who sent it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// How often the log hears that connections cannot be accepted.
const COMPLAINT: Duration = Duration::from_secs(5);

/// Where connections come from.
pub enum Listener {
    /// Plain HTTP.
    Plain(TcpListener),
    /// HTTPS.
    Tls(TcpListener, Arc<rustls::ServerConfig>),
}

/// Serves `router` on every listener until `stop`; then lets what is under way finish.
///
/// # Errors
/// When a listener cannot accept any more.
pub async fn serve(listeners: Vec<Listener>, router: Router, stop: CancellationToken) -> io::Result<()> {
    let tracker = TaskTracker::new();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let accepting = listeners.into_iter().map(|listener| accept(listener, &router, &stop, &tracker, &room));
    let ended = futures::future::try_join_all(accepting).await;
    tracker.close();
    tracker.wait().await;
    ended.map(drop)
}

async fn accept(
    listener: Listener,
    router: &Router,
    stop: &CancellationToken,
    tracker: &TaskTracker,
    room: &Arc<Semaphore>,
) -> io::Result<()> {
    let (socket, tls) = match listener {
        Listener::Plain(socket) => (socket, None),
        Listener::Tls(socket, config) => (socket, Some(TlsAcceptor::from(config))),
    };
    let mut complained = None::<Instant>;
    loop {
        let permit = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            permit = Arc::clone(room).acquire_owned() => permit.map_err(io::Error::other)?,
        };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            accepted = socket.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // The client was gone again, or this process has no descriptor left for it: neither ends the others.
            Err(error) => {
                if complained.is_none_or(|at| at.elapsed() >= COMPLAINT) {
                    tracing::warn!("a connection could not be accepted: {error}");
                    complained = Some(Instant::now());
                }
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(Duration::from_millis(50)) => continue,
                }
            }
        };
        let (router, stop, tls) = (router.clone(), stop.clone(), tls.clone());
        tracker.spawn(async move {
            if let Err(error) = connection(stream, tls, router, stop).await {
                tracing::debug!("a connection ended: {error}");
            }
            drop(permit);
        });
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // Answers are written whole; waiting for more to send only costs time.
    stream.set_nodelay(true)?;
    let peer = Peer(stream.peer_addr()?.ip().to_canonical());
    match tls {
        None => talk(TokioIo::new(stream), (false, peer), router, stop).await,
        Some(acceptor) => {
            let stream = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await??;
            talk(TokioIo::new(stream), (true, peer), router, stop).await
        }
    }
}

async fn talk<I>(
    io: I,
    (is_secure, peer): (bool, Peer),
    router: Router,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(MAX_HEAD * 2).half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(PATIENCE);
    let router = router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        if is_secure {
            request.extensions_mut().insert(Secure);
        }
        request
    });
    let connection = builder.serve_connection_with_upgrades(io, TowerToHyperService::new(router));
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
