//! [`Node`]: one machine's pools and sessions.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use sandpool_core::ids::{ExecutionId, Identifier, PoolName};
use sandpool_driver::{Driver, Usage};

use crate::api::*;

/// One machine's pools and sessions. Cheap to clone; all clones are the same node.
#[derive(Clone)]
pub struct Node {}

/// What a node is built from.
pub struct NodeConfig {
    /// The pools.
    pub pools: Vec<PoolSpec>,
}

/// A handle on one execution. Dropping it changes nothing.
#[derive(Clone)]
pub struct ExecutionHandle {}

impl Node {
    /// Takes over what the driver already has, and begins to fill the reservoirs.
    pub async fn start(_config: NodeConfig, _driver: Arc<dyn Driver>) -> Result<Self, NodeError> {
        todo!()
    }

    /// Stops in order: no new work, running executions get `grace` to end, then every sandbox is destroyed.
    pub async fn shutdown(&self, _grace: Duration) {
        todo!()
    }

    /// Every pool has as many ready sandboxes as it was asked to keep (or sessions that use them).
    pub fn is_ready(&self) -> bool {
        todo!()
    }

    /// The pools, by name.
    pub fn pools(&self) -> Vec<PoolStatus> {
        todo!()
    }

    /// One pool.
    pub fn pool(&self, _pool: &PoolName) -> Result<PoolStatus, NodeError> {
        todo!()
    }

    /// The session of that name: found, or made from a ready sandbox (waiting for one to boot if none is ready and
    /// the pool may have more, for at most its boot limit). Counts as use.
    pub async fn open(&self, _: &PoolName, _: &Identifier, _: Open, _: &Caller) -> Result<Opened, NodeError> {
        todo!()
    }

    /// A session, without counting as use.
    pub fn session(&self, _: &PoolName, _: &Identifier) -> Result<SessionInfo, NodeError> {
        todo!()
    }

    /// The sessions of a pool, oldest first.
    pub fn sessions(&self, _: &PoolName) -> Result<Vec<SessionInfo>, NodeError> {
        todo!()
    }

    /// What a session's sandbox uses.
    pub async fn usage(&self, _: &PoolName, _: &Identifier) -> Result<Usage, NodeError> {
        todo!()
    }

    /// Ends a session. Answers once its slot is free; its sandbox is gone soon after.
    pub async fn delete_session(&self, _: &PoolName, _: &Identifier) -> Result<(), NodeError> {
        todo!()
    }

    /// Accepts an execution in an existing session (see [`Node::open`]): code waits its turn in the session's queue,
    /// commands run beside it.
    pub async fn execute(&self, _: &PoolName, _: &Identifier, _: ExecuteRequest) -> Result<ExecutionHandle, NodeError> {
        todo!()
    }

    /// An execution that was accepted earlier. The last 64 finished ones of a session are kept.
    pub fn execution(&self, _: &PoolName, _: &Identifier, _: &ExecutionId) -> Result<ExecutionHandle, NodeError> {
        todo!()
    }

    /// The executions of a session that are still known, oldest first.
    pub fn executions(&self, _: &PoolName, _: &Identifier) -> Result<Vec<ExecutionHandle>, NodeError> {
        todo!()
    }

    /// One file's or directory's record. Paths are absolute and normal in all file calls.
    pub async fn stat_file(&self, _: &PoolName, _: &Identifier, _path: &str) -> Result<Entry, NodeError> {
        todo!()
    }

    /// Up to `limit` entries of a directory, after the path `after`, and whether there are more.
    pub async fn list_files(
        &self,
        _: &PoolName,
        _: &Identifier,
        _path: &str,
        _recursive: bool,
        _after: Option<String>,
        _limit: u32,
    ) -> Result<(Vec<Entry>, bool), NodeError> {
        todo!()
    }

    /// A file's size and its bytes. The stream ends early, with an error, if the file shrinks under it.
    pub async fn read_file(
        &self,
        _: &PoolName,
        _: &Identifier,
        _path: &str,
    ) -> Result<(u64, BoxStream<'static, Result<Bytes, NodeError>>), NodeError> {
        todo!()
    }

    /// Writes a file whole or not at all: it appears under its name when `data` has ended without an error.
    pub async fn write_file(
        &self,
        _: &PoolName,
        _: &Identifier,
        _path: &str,
        _data: BoxStream<'_, Result<Bytes, NodeError>>,
    ) -> Result<Entry, NodeError> {
        todo!()
    }

    /// Removes a file, or a directory with all in it.
    pub async fn remove_file(&self, _: &PoolName, _: &Identifier, _path: &str) -> Result<(), NodeError> {
        todo!()
    }
}

impl ExecutionHandle {
    /// Its id.
    pub fn id(&self) -> ExecutionId {
        todo!()
    }

    /// As it is now.
    pub fn snapshot(&self) -> Execution {
        todo!()
    }

    /// Waits until it has ended, or for `limit`.
    pub async fn wait(&self, _limit: Duration) -> Execution {
        todo!()
    }

    /// Its events after `after_seq`, those kept and those to come, until it has ended. When output events have been
    /// dropped because a reader is very slow, the next kept ones follow with a gap in `seq`.
    pub fn events(&self, _after_seq: u64) -> BoxStream<'static, Sequenced> {
        todo!()
    }

    /// Stops it. Nothing happens if it has ended.
    pub async fn stop(&self, _how: Stop) -> Result<(), NodeError> {
        todo!()
    }

    /// Sends input to it (empty: end of input). Only for work with `Stdin::Stream` and terminals.
    pub async fn input(&self, _data: Vec<u8>) -> Result<(), NodeError> {
        todo!()
    }

    /// Tells its terminal a new size.
    pub async fn resize(&self, _rows: u16, _columns: u16) -> Result<(), NodeError> {
        todo!()
    }
}
