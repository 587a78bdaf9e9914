//! The generator's own HTTP/1.1 client: kept connections, no delay of small packets, and nothing else, so that what
//! it costs is little beside what it measures.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// What of an answer is quoted in an error, in bytes.
const QUOTED: usize = 400;

/// A client of one server. Its copies share the connections. Lives on one thread, in a `LocalSet`.
#[derive(Clone, Debug)]
pub struct Client(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    address: SocketAddr,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
    /// Connections on which nothing is under way.
    idle: RefCell<Vec<SendRequest<Full<Bytes>>>>,
}

/// An answer whose body is whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// Whether `text` is somewhere in the body.
    #[must_use]
    pub fn says(&self, text: &str) -> bool {
        self.body.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

impl Client {
    /// A client of the server at `address`; nothing is sent yet. `token` goes out as a bearer token.
    ///
    /// # Errors
    /// When the token cannot be in a header.
    pub fn new(address: SocketAddr, token: Option<&str>) -> Result<Self> {
        let header = |text: String| HeaderValue::from_str(&text).context("not for a header");
        let authorization = token.map(|token| header(format!("Bearer {token}"))).transpose()?;
        let host = header(address.to_string())?;
        Ok(Self(Rc::new(Inner { address, host, authorization, idle: RefCell::default() })))
    }

    /// The server.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Sends a request and waits for the whole answer, whatever its status.
    ///
    /// # Errors
    /// When there is no connection to be had, or it breaks.
    pub async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Answer> {
        let Inner { host, authorization, .. } = &*self.0;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().with_context(|| format!("no path: {path}"))?;
        let headers = request.headers_mut();
        headers.insert(HOST, host.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let mut connection = self.connection().await?;
        let failed = || format!("{path}: the connection broke");
        let answer = connection.send_request(request).await.with_context(failed)?;
        let status = answer.status();
        let body = answer.into_body().collect().await.with_context(failed)?.to_bytes();
        self.0.idle.borrow_mut().push(connection);
        Ok(Answer { status, body })
    }

    /// The same, and an error unless the status is one of success.
    ///
    /// # Errors
    /// As [`Self::send`], and with the answer's own words when it is a refusal.
    pub async fn ask(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Answer> {
        let shown = method.clone();
        let answer = self.send(method, path, body.into()).await?;
        if !answer.status.is_success() {
            let words = String::from_utf8_lossy(&answer.body[..answer.body.len().min(QUOTED)]).into_owned();
            bail!("{shown} {path}: {} {words}", answer.status);
        }
        Ok(answer)
    }

    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>> {
        loop {
            let Some(mut kept) = self.0.idle.borrow_mut().pop() else { break };
            // One that was closed meanwhile is dropped.
            if kept.ready().await.is_ok() {
                return Ok(kept);
            }
        }
        let address = self.0.address;
        let failed = || format!("cannot connect to {address}");
        let stream = TcpStream::connect(address).await.with_context(failed)?;
        stream.set_nodelay(true).with_context(failed)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.with_context(failed)?;
        // Its errors are those of the requests on it.
        tokio::task::spawn_local(async move { drop(connection.await) });
        Ok(sender)
    }

    /// Opens connections until `count` are idle, so that no request pays for it.
    ///
    /// # Errors
    /// When the server takes no more.
    pub async fn connect(&self, count: usize) -> Result<()> {
        let mut taken = Vec::new();
        for _ in 0..count {
            taken.push(self.connection().await?);
        }
        self.0.idle.borrow_mut().append(&mut taken);
        Ok(())
    }
}
