//! TLS, passed on unopened once the name it asks for is the one that was judged (EG4); opened for the hosts of secrets (EG6).

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::doors::{close, tunnel};
use super::{Passage, Sandbox, http};
use crate::audit::Via;
use crate::host::Target;
use crate::policy::Rules;
use crate::relay::Metered;
use crate::sni::{self, Hello, Read};

/// Where TLS is expected.
pub(super) const PORT: u16 = 443;

/// Alerts of RFC 8446.
const ACCESS_DENIED: u8 = 49;
const INTERNAL_ERROR: u8 = 80;

/// Serves a client that believes it is connected to `target`.
pub(super) async fn serve(sandbox: &Arc<Sandbox>, mut stream: TcpStream, target: Target, port: u16) {
    let entered = match sandbox.enter(Via::Tls, &target, port) {
        Err(_) => Err(ACCESS_DENIED),
        Ok(passage) => passage.dial().await.map_err(|_| INTERNAL_ERROR),
    };
    match entered {
        Ok((passage, upstream)) => through(stream, Vec::new(), passage, upstream).await,
        Err(alert) => {
            // An alert is heard where a first message was said.
            let mut hello = Vec::new();
            let heard = timeout(sandbox.common.limits.handshake, hear(&mut stream, &mut hello)).await;
            if matches!(heard, Ok(Read::Hello(_))) {
                warn(stream, alert).await;
            }
        }
    }
}

/// Passes a client's TLS on, with what it has said so far.
pub(super) async fn through(
    mut client: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    mut early: Vec<u8>,
    mut passage: Passage,
    mut upstream: Metered,
) {
    let sandbox = Arc::clone(&passage.sandbox);
    let heard = tokio::select! {
        biased;
        () = passage.cut.cancelled() => return passage.refused("the rules have changed"),
        heard = timeout(sandbox.common.limits.handshake, hear(&mut client, &mut early)) => heard,
    };
    let Ok(heard) = heard else {
        return passage.refused("the client did not say what it asks for in time");
    };
    match agree(&sandbox.rules(), &passage.target, passage.port, &heard) {
        Ok(()) if matches!(heard, Read::Hello(_)) && sandbox.secrets(&passage.target, passage.port).is_some() => {
            http::opened(client, early, passage, upstream).await;
        }
        Ok(()) => passage.during(tunnel(&mut client, &early, &mut upstream)).await,
        Err(reason) => {
            passage.refused(&reason);
            warn(client, ACCESS_DENIED).await;
        }
    }
}

/// Reads until the first message is whole, or known to be none.
async fn hear(client: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> Read {
    loop {
        match sni::read(bytes) {
            Read::More => {}
            other => return other,
        }
        if bytes.len() > sni::MAX_HELLO {
            return Read::Bad;
        }
        bytes.reserve(4096);
        match client.read_buf(bytes).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Read::NotTls,
        }
    }
}

/// Whether what a client asks for is what it was let through for.
fn agree(rules: &Rules, target: &Target, port: u16, heard: &Read) -> Result<(), String> {
    let hello = match heard {
        Read::Hello(hello) => hello,
        Read::NotTls if rules.is_open() => return Ok(()),
        Read::NotTls => return Err("at this port only TLS is spoken".to_owned()),
        Read::More | Read::Bad => return Err("the client's first message cannot be understood".to_owned()),
    };
    match (hello, target) {
        (Hello { is_encrypted: true, .. }, _) if !rules.is_open() => {
            Err("what the client asks for is encrypted".to_owned())
        }
        (Hello { name: Some(name), .. }, Target::Host(host)) if name != host => {
            Err(format!("the client asks for {name} at the address of {host}"))
        }
        (Hello { name: Some(_), .. }, Target::Host(_)) => Ok(()),
        (Hello { name: Some(name), .. }, Target::Address(_)) => rules
            .judge(&Target::Host(name.clone()), port)
            .map_err(|reason| format!("the client asks for {name}: {reason}")),
        // No client names an address, and in the open nothing must be named.
        (Hello { name: None, .. }, Target::Address(_)) => Ok(()),
        (Hello { name: None, .. }, Target::Host(_)) if rules.is_open() => Ok(()),
        (Hello { name: None, .. }, Target::Host(_)) => Err("the client does not say what it asks for".to_owned()),
    }
}

/// Tells the client, and closes.
async fn warn(mut client: impl AsyncRead + AsyncWrite + Unpin, alert: u8) {
    // Whether it is heard or not, the connection is at its end.
    let _ = client.write_all(&[21, 3, 3, 0, 2, 2, alert]).await;
    close(client).await;
}
