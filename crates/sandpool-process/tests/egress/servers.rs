//! The servers that sessions reach, or must not: this host's, at loopback addresses of this test's own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use rustls::pki_types::PrivateKeyDer;

use crate::stage::Outcome;

/// Where they are: in a range that differs between tests that run at the same time.
pub(crate) fn address(last: u8) -> String {
    let pid = std::env::var("SANDPOOL_TEST_NET").ok().and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    format!("127.{}.{}.{last}", 64 + pid / 250 % 64, pid % 250)
}

/// Starts them, in threads that live as long as this process: at address 1 those that are allowed, at 2 those that are not.
/// Each answers with its address and what it was asked.
pub(crate) fn start() -> Outcome<()> {
    for last in [1, 2] {
        let made = rcgen::generate_simple_self_signed(["good.example".to_owned(), "other.example".to_owned()])?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        let tls = Arc::new(tls);
        serve(last, 80, move |stream| answer(stream, last))?;
        serve(last, 9000, move |stream| answer(stream, last))?;
        serve(last, 443, move |stream| {
            let Ok(connection) = rustls::ServerConnection::new(Arc::clone(&tls)) else { return };
            answer(rustls::StreamOwned::new(connection, stream), last);
        })?;
    }
    Ok(())
}

fn serve(last: u8, port: u16, with: impl Fn(TcpStream) + Send + Sync + 'static) -> Outcome<()> {
    let listener = TcpListener::bind((address(last).as_str(), port))?;
    let with = Arc::new(with);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let with = Arc::clone(&with);
            std::thread::spawn(move || with(stream));
        }
    });
    Ok(())
}

/// Answers one request with where it came to, and its first line.
fn answer(mut stream: impl Read + Write, last: u8) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let text = String::from_utf8_lossy(&head);
    let said = format!("server {last} was asked {}\n", text.lines().next().unwrap_or_default());
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{said}", said.len());
    // Whoever asked may have gone.
    let _ = stream.write_all(answer.as_bytes());
    let _ = stream.flush();
}
