//! The doors of a sandbox: what is accepted where, and what is done with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::{Sandbox, http, tls};
use crate::audit::Via;
use crate::dns;
use crate::host::Target;
use crate::relay::{Metered, relay};
use crate::socks::{self, Read, Refusal};

/// Questions on one connection, at most.
const QUESTIONS: usize = 64;

/// How long the doors rest when the sandbox has made too many connections, or this process has too many.
const REST: Duration = Duration::from_millis(20);

/// Which door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    Http,
    Tls,
    Proxy,
    Socks,
    Dns,
}

impl Door {
    fn via(self) -> Via {
        match self {
            Self::Http => Via::Http,
            Self::Tls => Via::Tls,
            Self::Proxy => Via::Proxy,
            Self::Socks => Via::Socks,
            Self::Dns => Via::Dns,
        }
    }
}

/// Accepts at one door until the sandbox is over.
pub(super) async fn keep(sandbox: Arc<Sandbox>, listener: TcpListener, door: Door) {
    loop {
        while !sandbox.state().new.take(Instant::now()) {
            tokio::select! {
                () = sandbox.over.cancelled() => return,
                () = tokio::time::sleep(REST) => {}
            }
        }
        let accepted = tokio::select! {
            biased;
            () = sandbox.over.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // This process may have too many descriptors, for a moment.
            tokio::time::sleep(REST).await;
            continue;
        };
        let Some(place) = sandbox.admit() else {
            sandbox.refuse(door.via(), None, "too many connections are open");
            continue;
        };
        let guest = Arc::clone(&sandbox);
        sandbox.tasks.spawn(async move {
            let over = guest.over.clone();
            tokio::select! {
                biased;
                () = over.cancelled() => {}
                () = open(guest, stream, door, place) => {}
            }
        });
    }
}

async fn open(sandbox: Arc<Sandbox>, stream: TcpStream, door: Door, place: OwnedSemaphorePermit) {
    // Answers are small, and somebody waits for them.
    let _ = stream.set_nodelay(true);
    let Ok(to) = stream.local_addr() else { return };
    match door {
        Door::Dns => questions(&sandbox, stream).await,
        Door::Socks => socks(sandbox, stream, place).await,
        Door::Proxy => http::serve(sandbox, Via::Proxy, stream, http::To::Anywhere, place).await,
        Door::Http | Door::Tls => {
            let target = sandbox.target(to.ip());
            match (target, door) {
                (Ok(target), Door::Http) => {
                    http::serve(sandbox, Via::Http, stream, http::To::Only(target, to.port()), place).await;
                }
                (Ok(target), _) => tls::serve(&sandbox, stream, target, to.port()).await,
                (Err(target), _) => {
                    sandbox.refuse(
                        door.via(),
                        Some((&target, to.port())),
                        "the address stands for no name that was looked up",
                    );
                }
            }
        }
    }
}

/// Questions for names over TCP.
async fn questions(sandbox: &Sandbox, mut stream: TcpStream) {
    let limit = sandbox.common.limits.handshake;
    for _ in 0..QUESTIONS {
        let mut bytes = [0; dns::MAX_QUERY];
        let one = async {
            let length = usize::from(stream.read_u16().await.ok()?);
            let query = bytes.get_mut(..length)?;
            stream.read_exact(query).await.ok()?;
            let answer = sandbox.answer(query)?;
            let length = u16::try_from(answer.len()).ok()?.to_be_bytes();
            stream.write_all(&[length.as_slice(), &answer].concat()).await.ok()
        };
        if !matches!(timeout(limit, one).await, Ok(Some(()))) {
            return;
        }
    }
}

async fn socks(sandbox: Arc<Sandbox>, mut stream: TcpStream, place: OwnedSemaphorePermit) {
    let limit = sandbox.common.limits.handshake;
    let Ok(asked) = timeout(limit, ask(&sandbox, &mut stream)).await else {
        return sandbox.refuse(Via::Socks, None, "the client did not say where to in time");
    };
    let Some((target, port, early)) = asked else { return };
    let entered = async {
        sandbox
            .enter(Via::Socks, &target, port)
            .map_err(|_| Refusal::NotAllowed)?
            .dial()
            .await
            .map_err(|_| Refusal::Unreachable)
    };
    let (passage, upstream) = match entered.await {
        Ok(entered) => entered,
        Err(refusal) => {
            // Whether it is heard or not, the connection is at its end.
            let _ = stream.write_all(&socks::answered(Err(refusal))).await;
            return close(stream).await;
        }
    };
    if stream.write_all(&socks::answered(Ok(()))).await.is_err() {
        return;
    }
    http::tunnelled(stream, early, passage, upstream, Arc::new(place)).await;
}

/// Says what was sent early, then all else.
pub(super) async fn tunnel(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    early: &[u8],
    upstream: &mut Metered,
) -> Result<(), String> {
    upstream.write_all(early).await.map_err(|error| error.to_string())?;
    relay(client, upstream).await
}

/// Hears the greeting and the request; answers where to, and what was sent after that.
async fn ask(sandbox: &Sandbox, stream: &mut TcpStream) -> Option<(Target, u16, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(socks::MAX_HANDSHAKE);
    let mut is_greeted = false;
    loop {
        let refusal = if is_greeted {
            match socks::request(&bytes) {
                Read::Whole((target, port), length) => match sandbox.named(target.clone()) {
                    Ok(target) => return Some((target, port, bytes.split_off(length))),
                    Err(reason) => {
                        sandbox.refuse(Via::Socks, Some((&target, port)), &reason);
                        Some(Refusal::NotAllowed)
                    }
                },
                Read::Bad(refusal) => {
                    sandbox.refuse(Via::Socks, None, "the request cannot be understood, or is not offered");
                    Some(refusal)
                }
                Read::More => None,
            }
        } else {
            match socks::greeting(&bytes) {
                Read::Whole(without, length) => {
                    stream.write_all(&socks::greeted(without)).await.ok()?;
                    if !without {
                        sandbox.refuse(Via::Socks, None, "the client wants to authenticate");
                        return None;
                    }
                    bytes.drain(..length);
                    is_greeted = true;
                    continue;
                }
                Read::Bad(_) => {
                    sandbox.refuse(Via::Socks, None, "this is not SOCKS 5");
                    return None;
                }
                Read::More => None,
            }
        };
        if let Some(refusal) = refusal {
            // As above.
            let _ = stream.write_all(&socks::answered(Err(refusal))).await;
            return None;
        }
        // More than a handshake has would have been whole.
        if bytes.len() > socks::MAX_HANDSHAKE || stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// Closes so that what was said last is heard: what the client still sends is read, for a moment, and dropped.
pub(super) async fn close(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let farewell = async {
        let _ = stream.shutdown().await;
        let mut rest = [0; 4096];
        while matches!(stream.read(&mut rest).await, Ok(1..)) {}
    };
    // In any case it is over then.
    let _ = timeout(Duration::from_millis(500), farewell).await;
}
