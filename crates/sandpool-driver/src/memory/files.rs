//! The files of one sandbox in memory: enough of a file system to be asked everything that the agent's protocol asks.

use std::collections::BTreeMap;

use sandpool_wire::agent::{Answer, Entry, EntryKind, MAX_CHUNK, Refusal};

use super::saved::Writer;

/// The most entries in one answer, as in the agent's protocol.
const MAX_ENTRIES: usize = 1000;

/// What the session may change; everything else is the image's.
const WRITABLE: [&str; 2] = ["/mnt/data", "/tmp"];

/// A tree of files, by absolute path.
#[derive(Debug)]
pub(super) struct Files {
    nodes: BTreeMap<String, Node>,
    room: u64,
}

#[derive(Debug)]
struct Node {
    /// `None` is a directory.
    data: Option<Vec<u8>>,
    modified_ns: i64,
}

impl Files {
    /// The directories of a fresh sandbox, with `room` bytes for files.
    pub(super) fn new(room: u64, now_ns: i64) -> Self {
        let directories = ["/", "/mnt", "/mnt/data", "/tmp"];
        let node = |path: &str| (path.to_owned(), Node { data: None, modified_ns: now_ns });
        Self { nodes: directories.into_iter().map(node).collect(), room }
    }

    /// What is below these directories.
    pub(super) fn save(&self, roots: &[String], out: &mut Writer) {
        let is_below = |path: &str| {
            roots.iter().any(|root| root == "/" || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/')))
        };
        for (path, node) in self.nodes.iter().filter(|(path, _)| is_below(path)) {
            out.node(path, node.data.as_deref(), node.modified_ns);
        }
    }

    pub(super) fn load(&mut self, path: String, data: Option<Vec<u8>>, modified_ns: i64) {
        self.nodes.insert(path, Node { data, modified_ns });
    }

    pub(super) fn extend(&mut self, path: &str, more: &[u8]) {
        if let Some(data) = self.nodes.get_mut(path).and_then(|node| node.data.as_mut()) {
            data.extend_from_slice(more);
        }
    }

    /// Bytes in all files.
    pub(super) fn bytes(&self) -> u64 {
        self.nodes.values().filter_map(|node| node.data.as_ref()).map(|data| length(data.len())).sum()
    }

    pub(super) fn stat(&self, path: &str) -> Result<Answer, Refusal> {
        check(path)?;
        let node = self.nodes.get(path).ok_or(Refusal::NotFound)?;
        Ok(Answer::Entry(node.entry(path.rsplit('/').next().unwrap_or_default())))
    }

    pub(super) fn read(&self, path: &str, offset: u64, limit: u32) -> Result<Answer, Refusal> {
        check(path)?;
        let node = self.nodes.get(path).ok_or(Refusal::NotFound)?;
        let data = node.data.as_ref().ok_or_else(|| wrong("file"))?;
        let begin = usize::try_from(offset).map_or(data.len(), |offset| offset.min(data.len()));
        let wanted = usize::try_from(limit).unwrap_or(MAX_CHUNK).min(MAX_CHUNK);
        let end = data.len().min(begin + wanted);
        Ok(Answer::Data { data: data[begin..end].to_vec(), size: length(data.len()) })
    }

    pub(super) fn list(&self, path: &str, recursive: bool, after: Option<&str>, limit: u32) -> Result<Answer, Refusal> {
        check(path)?;
        if self.nodes.get(path).ok_or(Refusal::NotFound)?.data.is_some() {
            return Err(wrong("directory"));
        }
        let limit = usize::try_from(limit).unwrap_or(MAX_ENTRIES).clamp(1, MAX_ENTRIES);
        let below = if path == "/" { "/".to_owned() } else { format!("{path}/") };
        let mut entries: Vec<Entry> = self
            .nodes
            .range(below.clone()..)
            .take_while(|(other, _)| other.starts_with(&below))
            .filter_map(|(other, node)| Some(node.entry(other.strip_prefix(&below)?)))
            .filter(|entry| !entry.path.is_empty() && (recursive || !entry.path.contains('/')))
            .filter(|entry| after.is_none_or(|after| entry.path.as_str() > after))
            .take(limit + 1)
            .collect();
        let more = entries.len() > limit;
        entries.truncate(limit);
        Ok(Answer::Entries { entries, more })
    }

    /// Whether a file may be put at `path`; makes the directories above it.
    pub(super) fn prepare(&mut self, path: &str, now_ns: i64) -> Result<(), Refusal> {
        check(path)?;
        if !WRITABLE.iter().any(|place| path.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'))) {
            return Err(Refusal::Denied);
        }
        if self.nodes.get(path).is_some_and(|node| node.data.is_none()) {
            return Err(wrong("file"));
        }
        let above: Vec<&str> = path.match_indices('/').skip(1).map(|(at, _)| &path[..at]).collect();
        if above.iter().any(|directory| self.nodes.get(*directory).is_some_and(|node| node.data.is_some())) {
            return Err(wrong("directory"));
        }
        for directory in above {
            self.nodes.entry(directory.to_owned()).or_insert(Node { data: None, modified_ns: now_ns });
        }
        Ok(())
    }

    /// Whether `more` bytes still fit beside what is there and what is on its way in.
    pub(super) fn fits(&self, unfinished: u64, more: u64) -> Result<(), Refusal> {
        let all = self.bytes().saturating_add(unfinished).saturating_add(more);
        if all > self.room { Err(Refusal::NoSpace) } else { Ok(()) }
    }

    pub(super) fn put(&mut self, path: &str, data: Vec<u8>, now_ns: i64) -> Result<Answer, Refusal> {
        self.prepare(path, now_ns)?;
        self.nodes.insert(path.to_owned(), Node { data: Some(data), modified_ns: now_ns });
        self.stat(path)
    }

    pub(super) fn remove(&mut self, path: &str) -> Result<Answer, Refusal> {
        check(path)?;
        if !self.nodes.contains_key(path) {
            return Err(Refusal::NotFound);
        }
        if !WRITABLE.iter().any(|place| path.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'))) {
            return Err(Refusal::Denied);
        }
        let below = format!("{path}/");
        self.nodes.retain(|other, _| other != path && !other.starts_with(&below));
        Ok(Answer::Done)
    }
}

impl Node {
    fn entry(&self, path: &str) -> Entry {
        Entry {
            path: path.to_owned(),
            kind: if self.data.is_some() { EntryKind::File } else { EntryKind::Directory },
            size: self.data.as_ref().map_or(0, |data| length(data.len())),
            modified_ns: self.modified_ns,
        }
    }
}

/// Whether `path` is a [`sandpool_wire::agent::FilePath`].
fn check(path: &str) -> Result<(), Refusal> {
    let is_normal = path == "/"
        || path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|name| !["", ".", ".."].contains(&name) && !name.contains('\0') && name.len() <= 255)
        });
    if is_normal { Ok(()) } else { Err(Refusal::Invalid("not an absolute, normal path".to_owned())) }
}

fn wrong(kind: &str) -> Refusal {
    Refusal::WrongKind(kind.to_owned())
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
