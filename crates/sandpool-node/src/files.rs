//! Files of a session: asked of its agent, in pieces, with the sandbox's own rights.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use sandpool_core::ids::{PoolName, SessionKey};
use sandpool_wire::agent::{Answer, Call, MAX_CHUNK, Refusal};

use crate::api::*;
use crate::node::Node;
use crate::session::Session;

/// The longest path, in bytes (`PATH_MAX` of Linux).
const MAX_PATH: usize = 4096;

/// The longest component of a path, in bytes (`NAME_MAX` of Linux).
const MAX_NAME: usize = 255;

/// Bytes of a file that travel in one message.
const PIECE: u32 = 256 * 1024;

/// Bytes of an upload that travel in one message.
const MESSAGE: usize = MAX_CHUNK / 2;

impl Node {
    /// One file's or directory's record. Paths are absolute and normal in all file calls.
    ///
    /// # Errors
    /// `NoFile`, `Denied`, `Invalid` for a path that is not absolute and normal.
    pub async fn stat_file(&self, pool: &PoolName, key: &SessionKey, path: &str) -> Result<Entry, NodeError> {
        let (_, session, _in_use) = self.session_in_use(pool, key).await?;
        match ask(&session, Call::Stat { path: checked(path)? }, path).await? {
            Answer::Entry(entry) => Ok(entry),
            _ => Err(nonsense()),
        }
    }

    /// Up to `limit` entries of a directory, after the path `after`, and whether there are more.
    ///
    /// # Errors
    /// As [`Node::stat_file`], and `WrongKind` for a file.
    pub async fn list_files(
        &self,
        pool: &PoolName,
        key: &SessionKey,
        path: &str,
        recursive: bool,
        after: Option<String>,
        limit: u32,
    ) -> Result<(Vec<Entry>, bool), NodeError> {
        let (_, session, _in_use) = self.session_in_use(pool, key).await?;
        match ask(&session, Call::List { path: checked(path)?, recursive, after, limit }, path).await? {
            Answer::Entries { entries, more } => Ok((entries, more)),
            _ => Err(nonsense()),
        }
    }

    /// A file's size and its bytes. The stream ends early, with an error, if the file shrinks under it.
    ///
    /// # Errors
    /// As [`Node::stat_file`], and `WrongKind` for what is not a file.
    pub async fn read_file(
        &self,
        pool: &PoolName,
        key: &SessionKey,
        path: &str,
    ) -> Result<(u64, BoxStream<'static, Result<Bytes, NodeError>>), NodeError> {
        let (_, session, in_use) = self.session_in_use(pool, key).await?;
        let path = checked(path)?;
        let (first, size) = read(&session, &path, 0).await?;
        let state = Some((in_use, session, path, first, 0_u64));
        let pieces = futures::stream::unfold(state, move |state| async move {
            let (in_use, session, path, data, before) = state?;
            if before >= size {
                return None;
            }
            if data.is_empty() {
                return Some((Err(NodeError::Unavailable(format!("{path} became shorter while it was read"))), None));
            }
            let rest = usize::try_from(size - before).unwrap_or(usize::MAX);
            let data = if data.len() > rest { data.slice(..rest) } else { data };
            let read_to = before + u64::try_from(data.len()).unwrap_or(u64::MAX);
            let next = if read_to < size { read(&session, &path, read_to).await } else { Ok((Bytes::new(), size)) };
            Some(match next {
                Ok((next, _)) => (Ok(data), Some((in_use, session, path, next, read_to))),
                Err(error) => (Err(error), None),
            })
        });
        Ok((size, pieces.boxed()))
    }

    /// Writes a file whole or not at all: it appears under its name when `data` has ended without an error.
    ///
    /// # Errors
    /// `NoSpace`, `Denied`, `OverQuota`, `WrongKind` when a directory has the name, and the errors of `data`.
    pub async fn write_file(
        &self,
        pool: &PoolName,
        key: &SessionKey,
        path: &str,
        mut data: BoxStream<'_, Result<Bytes, NodeError>>,
    ) -> Result<Entry, NodeError> {
        let (_, session, _in_use) = self.session_in_use(pool, key).await?;
        session.tenant.may_store()?;
        let Answer::Upload(upload) = ask(&session, Call::WriteOpen { path: checked(path)? }, path).await? else {
            return Err(nonsense());
        };
        let abort = Abort { session: Some(Arc::clone(&session)), upload };
        // Clients' pieces are often small, and each message to the agent is a way there and back.
        let mut gathered = Vec::new();
        loop {
            let piece = data.next().await.transpose()?;
            let is_last = piece.is_none();
            gathered.extend_from_slice(&piece.unwrap_or_default());
            while gathered.len() >= MESSAGE || (is_last && !gathered.is_empty()) {
                let rest = gathered.split_off(gathered.len().min(MESSAGE));
                let data = std::mem::replace(&mut gathered, rest);
                ask(&session, Call::Write { upload, data }, path).await?;
            }
            if is_last {
                break;
            }
        }
        let committed = ask(&session, Call::WriteCommit { upload }, path).await?;
        abort.done();
        match committed {
            Answer::Entry(entry) => Ok(entry),
            _ => Err(nonsense()),
        }
    }

    /// Removes a file, or a directory with all in it.
    ///
    /// # Errors
    /// As [`Node::stat_file`].
    pub async fn remove_file(&self, pool: &PoolName, key: &SessionKey, path: &str) -> Result<(), NodeError> {
        let (_, session, _in_use) = self.session_in_use(pool, key).await?;
        ask(&session, Call::Remove { path: checked(path)? }, path).await.map(drop)
    }
}

/// Takes an upload back when it was not finished: also when its caller has gone.
struct Abort {
    session: Option<Arc<Session>>,
    upload: u32,
}

impl Abort {
    fn done(mut self) {
        self.session = None;
    }
}

impl Drop for Abort {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            let upload = self.upload;
            tokio::spawn(async move { session.link.call(Call::WriteAbort { upload }).await.map(drop) });
        }
    }
}

async fn read(session: &Session, path: &str, offset: u64) -> Result<(Bytes, u64), NodeError> {
    match ask(session, Call::Read { path: path.to_owned(), offset, length: PIECE }, path).await? {
        Answer::Data { data, size } => Ok((data.into(), size)),
        _ => Err(nonsense()),
    }
}

/// FI1: one check, before the agent makes its own.
fn checked(path: &str) -> Result<String, NodeError> {
    let bad = |why: &str| Err(NodeError::Invalid(format!("the path is not acceptable: {why}")));
    let Some(rest) = path.strip_prefix('/') else { return bad("it must begin with /") };
    if path.len() > MAX_PATH {
        return bad("it is longer than 4,096 bytes");
    }
    if path.contains('\0') {
        return bad("it has a NUL in it");
    }
    if rest.is_empty() {
        return Ok(path.to_owned());
    }
    for name in rest.split('/') {
        match name {
            "" => return bad("it has an empty component"),
            "." | ".." => return bad("it has a component . or .."),
            name if name.len() > MAX_NAME => return bad("a component is longer than 255 bytes"),
            _ => {}
        }
    }
    Ok(path.to_owned())
}

async fn ask(session: &Session, call: Call, path: &str) -> Result<Answer, NodeError> {
    let shown: String = path.chars().filter(|character| !character.is_control()).take(300).collect();
    session.link.call(call).await?.map_err(|refusal| match refusal {
        Refusal::NotFound => NodeError::NoFile(shown),
        Refusal::WrongKind(wanted) => NodeError::WrongKind(format!("{shown} is not a {wanted}")),
        Refusal::Denied => NodeError::Denied(shown),
        Refusal::NoSpace => NodeError::NoSpace,
        Refusal::Invalid(why) => NodeError::Invalid(why),
        Refusal::Busy => NodeError::Unavailable("the session is busy".to_owned()),
        other @ (Refusal::Failed(_) | Refusal::Full(_)) => NodeError::Unavailable(other.to_string()),
    })
}

fn nonsense() -> NodeError {
    NodeError::Unavailable("the agent answered something else".to_owned())
}
