//! Connections to what a session's programs serve.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use sandpool_core::ids::{PoolName, SandboxId, SessionKey};
use sandpool_driver::{DriverError, Stream};
use sandpool_wire::agent::{Answer, Call, IDENTITY_PORT};
use sandpool_wire::egress::PORTS;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::api::NodeError;
use crate::node::{Node, of_session};
use crate::session::InUse;

/// A connection to a port of a session. While there is one, the session is in use.
pub struct Connection {
    stream: Stream,
    _in_use: InUse,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Node {
    /// A new connection to what listens at this TCP port of a session's loopback. Counts as use for as long as it is there.
    ///
    /// # Errors
    /// `NoPool`, `NoSession`, `SessionLost`; `Refused` when nobody listens there, `NotReady` when its program does not want to be asked, `Invalid` for a port that leads out of the session.
    pub async fn connect(&self, pool: &PoolName, key: &SessionKey, port: u16) -> Result<Connection, NodeError> {
        let (pool, session, in_use) = self.session_in_use(pool, key).await?;
        let spec = pool.spec();
        let has_identity = spec.container.as_ref().is_some_and(|container| container.main.has_identity);
        let is_ours = spec.egress.is_some() && PORTS.contains(&port) || has_identity && port == IDENTITY_PORT;
        if port == 0 || is_ours {
            return Err(NodeError::Invalid(format!(
                "port {port} of this session is not one that its programs can have"
            )));
        }
        if spec.container.is_some() && !session.is_heard.load(Ordering::Relaxed) {
            // What it was given is on its way. Its program may have to start again with it, and connections wait for that only when its
            // agent has heard so.
            session.link.call(Call::Ping).await?.map_err(|refusal| NodeError::Unavailable(refusal.to_string()))?;
            session.is_heard.store(true, Ordering::Relaxed);
        }
        let stream = self.driver().connect(session.sandbox, port).await.map_err(|error| match error {
            DriverError::Refused(why) => NodeError::Refused(why),
            DriverError::NotReady => NodeError::NotReady(key.identifier.clone()),
            error => of_session(key, error),
        })?;
        Ok(Connection { stream, _in_use: in_use })
    }

    /// What the program of a container session has written from this byte on, at most a mebibyte: the bytes, the first that is still
    /// there, and how many there were in all.
    ///
    /// # Errors
    /// `NoPool`, `NoSession`, `SessionLost`; `Unsupported` for a pool whose sessions have no program of their own.
    pub async fn logs(&self, pool: &PoolName, key: &SessionKey, offset: u64) -> Result<(Vec<u8>, u64, u64), NodeError> {
        if self.spec(pool)?.container.is_none() {
            return Err(NodeError::Unsupported(format!("sessions of {pool} have no program of their own")));
        }
        let (_, session, _kept) = self.session_kept(pool, key).await?;
        let length = u32::try_from(sandpool_wire::agent::MAX_CHUNK).unwrap_or(u32::MAX);
        match session.link.call(Call::Logs { offset, length }).await? {
            Ok(Answer::Logs { data, first, end }) => Ok((data, first, end)),
            Ok(_) => Err(NodeError::Unavailable("the agent answered something else".to_owned())),
            Err(refusal) => Err(NodeError::Unavailable(refusal.to_string())),
        }
    }

    /// The session that has this sandbox.
    #[must_use]
    pub fn of_sandbox(&self, sandbox: SandboxId) -> Option<(PoolName, SessionKey)> {
        self.all().into_iter().find_map(|pool| Some((pool.name.clone(), pool.owner(sandbox)?)))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, out)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
