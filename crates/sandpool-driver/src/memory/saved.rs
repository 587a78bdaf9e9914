//! A sandbox in memory as bytes: its variables, its files, and what is kept of its executions that have ended.
//!
//! Frames of the agent's protocol, one item in each, the last of which says how many there were. A script is not a process: what runs is
//! not in it.

use std::io;

use sandpool_wire::agent::{Event, ExecKey, MAX_CHUNK, Outcome};
use sandpool_wire::frame;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use super::agent::Agent;
use crate::Stream;

/// One part of a sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Item {
    /// The interpreter keeps this.
    Variable(String, String),
    /// A directory; a file, if there is data, of which there may be more in the items after it.
    Node { path: String, data: Option<Vec<u8>>, modified_ns: i64 },
    /// More of the file before.
    More(Vec<u8>),
    /// An execution that has ended.
    Ended { exec: ExecKey, events: Vec<Event>, dropped: (u64, u64), outcome: Outcome },
    /// There were so many.
    Whole(u64),
}

/// Items on their way out.
#[derive(Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    count: u64,
}

impl Writer {
    pub(super) fn push(&mut self, item: &Item) {
        // None is larger than a frame: files go in pieces, and of an execution the agent keeps less.
        if let Ok(frame) = frame::encode(item) {
            self.bytes.extend(frame);
            self.count += 1;
        }
    }

    pub(super) fn node(&mut self, path: &str, data: Option<&[u8]>, modified_ns: i64) {
        let mut pieces = data.into_iter().flat_map(|data| data.chunks(MAX_CHUNK));
        let first = data.map(|_| pieces.next().unwrap_or_default().to_vec());
        self.push(&Item::Node { path: path.to_owned(), data: first, modified_ns });
        pieces.for_each(|piece| self.push(&Item::More(piece.to_vec())));
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        let count = self.count;
        self.push(&Item::Whole(count));
        self.bytes
    }
}

/// All items of what was saved.
pub(super) fn items(mut bytes: &[u8]) -> io::Result<Vec<Item>> {
    let mut items = Vec::new();
    while let Some((item, used)) = frame::take(bytes).map_err(io::Error::other)? {
        bytes = &bytes[used..];
        match item {
            Item::Whole(count) if usize::try_from(count) == Ok(items.len()) && bytes.is_empty() => return Ok(items),
            Item::Whole(_) => return Err(io::ErrorKind::InvalidData.into()),
            item => items.push(item),
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

impl Agent {
    /// Becomes what was saved.
    pub(super) async fn load(&self, saved: &mut Stream) -> io::Result<()> {
        let mut bytes = Vec::new();
        saved.read_to_end(&mut bytes).await?;
        self.become_saved(items(&bytes)?);
        Ok(())
    }
}
