//! The managed-identity endpoint of a sandbox: App Service's protocol of 2019-08-01, on the sandbox's loopback.
//!
//! ```text
//! program --GET /msi/token?api-version=2019-08-01&resource=AUDIENCE, X-IDENTITY-HEADER--> agent: one of the tokens that the server has sent
//! ```
//!
//! Nothing of a sandbox reaches whoever signs: tokens for each audience of the pool are sent in when a session takes the sandbox, and again
//! before they expire. Before that there is none. The header's secret keeps out who can make a program fetch an address, but not set a
//! header; it is made here, and known to the program alone.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, accept_with, bind, listen, send, socket_with, sockopt,
};
use sandpool_wire::agent::{IDENTITY_PORT, IdentityToken};
use serde_json::json;

/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 8 << 10;

/// Connections at the same time; further ones wait.
const CLIENTS: usize = 16;

/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The endpoint.
#[derive(Debug)]
pub struct Endpoint {
    listener: OwnedFd,
    secret: String,
    tokens: Vec<IdentityToken>,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    connection: OwnedFd,
    heard: Vec<u8>,
    answer: Option<Vec<u8>>,
    until: Instant,
}

impl Endpoint {
    /// Listens.
    ///
    /// # Errors
    /// Where the port is taken, or may not be had.
    pub fn open(secret: String) -> Result<Self, Errno> {
        Self::at(IDENTITY_PORT, secret)
    }

    fn at(port: u16, secret: String) -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&listener, true)?;
        bind(&listener, &SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        listen(&listener, 64)?;
        Ok(Self { listener, secret, tokens: Vec::new(), clients: Vec::new() })
    }

    /// What a program finds it by.
    #[must_use]
    pub fn variables(&self) -> [(&'static str, String); 2] {
        let address = format!("http://127.0.0.1:{IDENTITY_PORT}/msi/token");
        [("IDENTITY_ENDPOINT", address), ("IDENTITY_HEADER", self.secret.clone())]
    }

    /// From now on these are given out.
    pub fn give(&mut self, tokens: Vec<IdentityToken>) {
        self.tokens = tokens;
    }

    /// What to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let listener = (self.clients.len() < CLIENTS).then_some((self.listener.as_fd(), PollFlags::IN));
        listener.into_iter().chain(self.clients.iter().map(|client| {
            let flags = if client.answer.is_some() { PollFlags::OUT } else { PollFlags::IN };
            (client.connection.as_fd(), flags)
        }))
    }

    /// When [`Endpoint::go`] has something to do, whatever comes.
    #[must_use]
    pub fn wakes(&self) -> Option<Instant> {
        self.clients.iter().map(|client| client.until).min()
    }

    /// Does what can be done without waiting.
    pub fn go(&mut self, now: Instant) {
        while self.clients.len() < CLIENTS {
            let Ok(connection) = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else {
                break;
            };
            let until = now + PATIENCE;
            self.clients.push(Client { connection, heard: Vec::new(), answer: None, until });
        }
        let Self { secret, tokens, clients, .. } = self;
        clients.retain_mut(|client| now < client.until && client.goes_on(|head| answered(head, secret, tokens)));
    }
}

impl Client {
    /// Whether there is more to do.
    fn goes_on(&mut self, answer: impl FnOnce(&[u8]) -> Vec<u8>) -> bool {
        if self.answer.is_none() {
            let mut piece = [0; 1024];
            let end = loop {
                if let Some(end) = self.heard.windows(4).position(|four| four == b"\r\n\r\n") {
                    break end;
                }
                let room = (MAX_HEAD - self.heard.len()).min(piece.len());
                match rustix::io::read(&self.connection, &mut piece[..room]) {
                    Ok(0) => return false,
                    Ok(count) => self.heard.extend_from_slice(&piece[..count]),
                    Err(Errno::AGAIN | Errno::INTR) => return true,
                    Err(_) => return false,
                }
            };
            self.answer = Some(answer(&self.heard[..end]));
        }
        let Some(rest) = &mut self.answer else { return false };
        while !rest.is_empty() {
            match send(&self.connection, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => drop(rest.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => return true,
                Err(_) => return false,
            }
        }
        false
    }
}

/// The answer to a request with this head.
fn answered(head: &[u8], secret: &str, tokens: &[IdentityToken]) -> Vec<u8> {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let said =
        lines.filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("x-identity-header"));
    let parameter = |wanted: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(name, _)| *name == wanted).map(|(_, value)| decoded(value))
    };
    if said.is_none_or(|(_, value)| !is_same(value.trim().as_bytes(), secret.as_bytes())) {
        return refusal(401, "Unauthorized", "X-IDENTITY-HEADER is not that of IDENTITY_HEADER");
    }
    if path != "/msi/token" {
        return refusal(404, "Not Found", "tokens are at /msi/token");
    }
    if method != "GET" {
        return refusal(405, "Method Not Allowed", "tokens are asked for by GET");
    }
    if parameter("api-version").as_deref() != Some("2019-08-01") {
        return refusal(400, "Bad Request", "api-version must be 2019-08-01");
    }
    let Some(resource) = parameter("resource") else {
        return refusal(400, "Bad Request", "resource is missing: whom is the token for?");
    };
    if tokens.is_empty() {
        return refusal(503, "Service Unavailable", "no session has taken this sandbox yet");
    }
    let is_it = |token: &&IdentityToken| token.audience.trim_end_matches('/') == resource.trim_end_matches('/');
    let Some(token) = tokens.iter().find(is_it) else {
        let known: Vec<_> = tokens.iter().map(|token| token.audience.as_str()).collect();
        return refusal(
            400,
            "Bad Request",
            &format!("resource must be one of the pool's audiences: {}", known.join(", ")),
        );
    };
    let body = json!({
        "access_token": token.token,
        "expires_on": token.expires_at.to_string(),
        "resource": resource,
        "token_type": "Bearer",
        "client_id": token.client_id,
    });
    response(200, "OK", &body)
}

fn refusal(status: u16, reason: &str, why: &str) -> Vec<u8> {
    response(status, reason, &json!({ "statusCode": status, "message": why }))
}

fn response(status: u16, reason: &str, body: &serde_json::Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// In a time that tells only how long they are.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |seen, (one, other)| seen | (one ^ other)) == 0
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = [rest.next().unwrap_or_default(), rest.next().unwrap_or_default()];
                let digits = std::str::from_utf8(&digits).ok();
                // What is none decodes to nothing that is asked for.
                bytes.push(digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).unwrap_or(0));
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(head: &str, tokens: &[IdentityToken]) -> String {
        String::from_utf8(answered(head.as_bytes(), "word", tokens)).unwrap()
    }

    #[test]
    fn tokens_are_given_to_who_has_the_header_and_for_what_the_pool_says() {
        let audience = "api://one/two".to_owned();
        let token = IdentityToken { audience, token: "t".to_owned(), expires_at: 7, client_id: "pool".to_owned() };
        let tokens = [token];
        let get = |query: &str, header: &str| {
            asked(&format!("GET /msi/token?{query} HTTP/1.1\r\nHost: x\r\n{header}"), &tokens)
        };
        let good = "api-version=2019-08-01&resource=api%3A%2F%2Fone%2Ftwo";
        let told = get(good, "X-Identity-Header: word");
        assert!(told.starts_with("HTTP/1.1 200 OK\r\n") && told.contains(r#""access_token":"t""#), "{told}");
        assert!(told.contains(r#""expires_on":"7""#) && told.contains(r#""client_id":"pool""#), "{told}");
        for (query, header, status) in [
            (good, "", "401"),
            (good, "X-Identity-Header: worse", "401"),
            (good, "X-Identity-Header: wore", "401"),
            ("resource=api://one/two", "X-Identity-Header: word", "400"),
            ("api-version=2019-08-01", "X-Identity-Header: word", "400"),
            ("api-version=2019-08-01&resource=api://other", "X-Identity-Header: word", "400"),
            ("api-version=2019-08-01&resource=%zz%", "X-Identity-Header: word", "400"),
        ] {
            let told = get(query, header);
            assert!(
                told.starts_with(&format!("HTTP/1.1 {status} ")) && !told.contains("access_token"),
                "{query} {told}"
            );
        }
        let early = asked(&format!("GET /msi/token?{good} HTTP/1.1\r\nx-identity-header: word"), &[]);
        assert!(early.starts_with("HTTP/1.1 503 "), "{early}");
        assert!(asked("", &tokens).starts_with("HTTP/1.1 401 "));
        assert!(asked("POST /msi/token HTTP/1.1\r\nx-identity-header: word", &tokens).starts_with("HTTP/1.1 405 "));
    }

    #[test]
    fn a_client_that_says_too_much_or_nothing_is_let_go() {
        use std::io::{Read, Write};
        let mut endpoint = Endpoint::at(0, "word".to_owned()).unwrap();
        let address: SocketAddr = rustix::net::getsockname(&endpoint.listener).unwrap().try_into().unwrap();
        let now = Instant::now();
        let mut loud = std::net::TcpStream::connect(address).unwrap();
        loud.write_all(&[b'x'; 2 * MAX_HEAD]).unwrap();
        let _silent = std::net::TcpStream::connect(address).unwrap();
        while endpoint.clients.len() != 1 {
            endpoint.go(now);
        }
        endpoint.go(now + PATIENCE);
        assert!(endpoint.clients.is_empty());
        let mut polite = std::net::TcpStream::connect(address).unwrap();
        polite.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut heard = String::new();
        loop {
            endpoint.go(now);
            polite.set_nonblocking(true).unwrap();
            match polite.read_to_string(&mut heard) {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
        assert!(heard.starts_with("HTTP/1.1 401 "), "{heard}");
    }
}
