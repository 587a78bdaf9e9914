//! A tree of files as bytes: what an agent packs of its session, and another unpacks.
//!
//! ```text
//! frame(Root 0) frame(File a) frame(Data)* frame(Enter d) frame(Link l) frame(Leave) frame(Leave) ... frame(End)
//! ```
//!
//! Each item is a frame ([`crate::frame`]). Names are one component, and are only ever looked up in the directory that is entered, so that
//! there is no path in it that could lead anywhere. The last item says how many there were: what ends before it is not whole.

use serde::{Deserialize, Serialize};

use crate::frame::{self, FrameError};

/// The deepest that directories are nested, below a root.
pub const MAX_DEPTH: usize = 200;

/// The most bytes of a file in one item.
pub const MAX_DATA: usize = 256 * 1024;

/// The most bytes of paths of files with several names: those over it are files of their own.
pub const MAX_SAME: usize = 8 * 1024 * 1024;

/// The largest frame of an item: its bytes, and a name and numbers.
const MAX_ITEM: usize = MAX_DATA + 8 * 1024;

/// One part of a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    /// What follows up to its `Leave` is in this one of the roots that both sides know.
    Root(u8),
    /// What follows up to its `Leave` is in a directory of this name.
    Enter(#[serde(with = "serde_bytes")] Vec<u8>),
    /// All of a directory was said, and it is this.
    Leave(Kept),
    /// A regular file, whose bytes follow.
    File {
        /// Its name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        /// What is kept of it.
        kept: Kept,
        /// Its length: what is not said of it is zeros.
        size: u64,
        /// It has more than one name, and is called so where the others come.
        number: Option<u32>,
    },
    /// Bytes of the file before, from this one on.
    Data {
        /// Where they begin.
        offset: u64,
        /// At most [`MAX_DATA`].
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// A symbolic link.
    Link {
        /// Its name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        /// What it says, which nobody follows.
        #[serde(with = "serde_bytes")]
        target: Vec<u8>,
    },
    /// Another name of a file before.
    Same {
        /// This name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        /// The file's number.
        number: u32,
    },
    /// There is no more, and there were so many.
    End(u64),
}

/// What is kept of a file or directory besides its name and what is in it. It belongs to its session's user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Permissions, and the sticky bit: 0o1777 at most.
    pub mode: u32,
    /// Nanoseconds since 1970.
    pub modified_ns: i64,
}

/// Why bytes are not a tree.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A frame is longer than an item, or is none.
    #[error("the tree of files is malformed")]
    Malformed,
    /// A name is no single component.
    #[error("the tree of files has a name that is no name")]
    Name,
    /// Directories are nested deeper than [`MAX_DEPTH`], or left before they were entered.
    #[error("the tree of files is nested wrongly")]
    Nesting,
    /// Something comes where it may not.
    #[error("the tree of files is in no order")]
    Order,
    /// It ended before its end.
    #[error("the tree of files is not whole")]
    NotWhole,
}

/// Bytes that become items, each checked for itself and for its place.
#[derive(Debug, Default)]
pub struct Items {
    waiting: Vec<u8>,
    depth: usize,
    count: u64,
    is_in_file: bool,
    has_ended: bool,
}

impl Items {
    /// Takes in more bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// The next item, if there is a whole one.
    ///
    /// # Errors
    /// [`TreeError`]: it is of no more use then.
    pub fn take(&mut self) -> Result<Option<Item>, TreeError> {
        let Some((header, rest)) = self.waiting.split_first_chunk::<{ frame::HEADER }>() else { return Ok(None) };
        if self.has_ended {
            return Err(TreeError::Order);
        }
        let length = frame::body_length(*header).map_err(malformed)?;
        if length > MAX_ITEM {
            return Err(TreeError::Malformed);
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let item = frame::decode(body).map_err(malformed)?;
        self.waiting.drain(..frame::HEADER + length);
        self.check(&item)?;
        self.count += 1;
        Ok(Some(item))
    }

    /// Nothing comes any more.
    ///
    /// # Errors
    /// `NotWhole` when something is missing, or too much.
    pub fn finish(&self) -> Result<(), TreeError> {
        if self.has_ended && self.waiting.is_empty() { Ok(()) } else { Err(TreeError::NotWhole) }
    }

    fn check(&mut self, item: &Item) -> Result<(), TreeError> {
        let is_data = matches!(item, Item::Data { .. });
        match item {
            Item::Root(_) if self.depth == 0 => self.depth = 1,
            Item::End(count) if self.depth == 0 => {
                self.has_ended = true;
                if *count != self.count {
                    return Err(TreeError::NotWhole);
                }
            }
            Item::Root(_) | Item::End(_) => return Err(TreeError::Nesting),
            _ if self.depth == 0 => return Err(TreeError::Nesting),
            Item::Enter(name) => {
                is_name(name)?;
                self.depth += 1;
                if self.depth > MAX_DEPTH + 1 {
                    return Err(TreeError::Nesting);
                }
            }
            Item::Leave(_) => self.depth -= 1,
            Item::File { name, .. } | Item::Link { name, .. } | Item::Same { name, .. } => is_name(name)?,
            Item::Data { bytes, .. } if self.is_in_file && bytes.len() <= MAX_DATA => {}
            Item::Data { .. } => return Err(TreeError::Order),
        }
        self.is_in_file = matches!(item, Item::File { .. }) || (is_data && self.is_in_file);
        Ok(())
    }
}

fn is_name(name: &[u8]) -> Result<(), TreeError> {
    let is_one = !name.is_empty() && name.len() <= 255 && !name.contains(&b'/') && !name.contains(&0);
    if is_one && name != b"." && name != b".." { Ok(()) } else { Err(TreeError::Name) }
}

fn malformed(_: FrameError) -> TreeError {
    TreeError::Malformed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(items: &[Item]) -> Result<Vec<Item>, TreeError> {
        let mut reader = Items::default();
        let mut found = Vec::new();
        for item in items {
            // In pieces, as streams bring it.
            for piece in frame::encode(item).unwrap().chunks(3) {
                reader.push(piece);
                found.extend(reader.take()?);
            }
        }
        reader.finish().map(|()| found)
    }

    fn file(name: &str) -> Item {
        Item::File { name: name.into(), kept: Kept::default(), size: 3, number: None }
    }

    #[test]
    fn a_tree_is_read_as_it_was_written() {
        let data = Item::Data { offset: 0, bytes: b"abc".to_vec() };
        let link = Item::Link { name: b"l\xff".to_vec(), target: b"/etc/passwd".to_vec() };
        let leave = || Item::Leave(Kept { mode: 0o755, modified_ns: -1 });
        let items = [Item::Root(0), file("a"), data, Item::Enter(b"d".to_vec()), link, leave(), leave(), Item::End(7)];
        assert_eq!(read(&items).unwrap(), items);
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        let leave = || Item::Leave(Kept::default());
        let data = || Item::Data { offset: 0, bytes: Vec::new() };
        for (items, why) in [
            (vec![], TreeError::NotWhole),
            (vec![Item::Root(0), leave()], TreeError::NotWhole),
            (vec![Item::Root(0), leave(), Item::End(3)], TreeError::NotWhole),
            (vec![Item::Root(0), leave(), Item::End(2), Item::Root(0)], TreeError::Order),
            (vec![Item::Root(0), Item::End(1)], TreeError::Nesting),
            (vec![Item::Root(0), Item::Root(0)], TreeError::Nesting),
            (vec![file("a")], TreeError::Nesting),
            (vec![Item::Root(0), leave(), leave()], TreeError::Nesting),
            (vec![Item::Root(0), data()], TreeError::Order),
            (vec![Item::Root(0), file("a"), Item::Enter(b"d".to_vec()), data()], TreeError::Order),
            (vec![Item::Root(0), file("")], TreeError::Name),
            (vec![Item::Root(0), file("a/b")], TreeError::Name),
            (vec![Item::Root(0), Item::Enter(b"..".to_vec())], TreeError::Name),
            (vec![Item::Root(0), file(&"x".repeat(256))], TreeError::Name),
        ] {
            assert_eq!(read(&items), Err(why), "{items:?}");
        }
        let mut deep = vec![Item::Root(0)];
        deep.extend((0..=MAX_DEPTH).map(|_| Item::Enter(b"d".to_vec())));
        assert_eq!(read(&deep), Err(TreeError::Nesting));
        let mut reader = Items::default();
        reader.push(&u32::MAX.to_le_bytes());
        assert_eq!(reader.take(), Err(TreeError::Malformed));
    }
}
