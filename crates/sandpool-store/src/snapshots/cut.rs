//! A disk in memory whose power can be cut: after any operation, and in the middle of a write.
//!
//! What a disk promises is only what was synced: the bytes of a file by its own sync, names by the sync of their directory. Of the rest
//! nothing, all, or any part may be there afterwards ([`After`]); a rename has happened or it has not. Operations that only look are not
//! counted.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use super::disk::{Disk, Written};

/// What is there, after a cut, of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    Lost,
    /// All: only the process was killed.
    Kept,
    /// Something, which depends on this number.
    Mixed(u64),
}

/// The disk. Its clones are one.
#[derive(Clone, Debug, Default)]
pub struct CutDisk(Arc<Mutex<State>>);

#[derive(Clone, Debug, Default)]
struct State {
    nodes: Vec<Node>,
    /// Operations so far.
    done: usize,
    /// The power is cut at this one, and this many bytes of a write are done.
    cut: Option<(usize, usize)>,
    /// Bytes there is room for.
    room: Option<usize>,
    /// Told when the power goes off.
    told: Told,
}

#[derive(Clone, Default)]
struct Told(Option<Arc<dyn Fn() + Send + Sync>>);

impl std::fmt::Debug for Told {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Told")
    }
}

#[derive(Clone, Debug)]
enum Node {
    File { data: Vec<u8>, synced: Vec<u8> },
    Directory { names: BTreeMap<String, usize>, synced: BTreeMap<String, usize>, pending: Vec<Change> },
}

#[derive(Clone, Debug)]
enum Change {
    Add(String, usize),
    Remove(String),
    Rename(String, String),
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Add(name, node) => drop(names.insert(name.clone(), *node)),
            Self::Remove(name) => drop(names.remove(name)),
            Self::Rename(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
        }
    }
}

fn directory() -> Node {
    Node::Directory { names: BTreeMap::new(), synced: BTreeMap::new(), pending: Vec::new() }
}

fn off() -> io::Error {
    io::Error::other("the power is off")
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// Numbers that look random, of a seed (splitmix64).
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *seed;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl CutDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power is cut at the operation of this number, counted from 0 and from the disk's beginning; of a write, this many bytes are done.
    pub fn cut_at(&self, operation: usize, bytes: usize) {
        self.state().cut = Some((operation, bytes));
    }

    /// Who is told when the power goes off: nothing of theirs happens afterwards either.
    pub fn when_cut(&self, tell: impl Fn() + Send + Sync + 'static) {
        self.state().told = Told(Some(Arc::new(tell)));
    }

    /// There is room for so many bytes of files.
    pub fn has_room_for(&self, bytes: usize) {
        self.state().room = Some(bytes);
    }

    /// Operations so far.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.state().done
    }

    /// The power has been cut.
    #[must_use]
    pub fn is_off(&self) -> bool {
        let state = self.state();
        state.cut.is_some_and(|(at, _)| state.done > at)
    }

    /// Changes a file behind everybody's back, as a disk that decays does.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn spoil(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let node = state.find(path).expect("it is there");
        match &mut state.nodes[node] {
            Node::File { data, synced } => {
                change(data);
                synced.clone_from(data);
            }
            Node::Directory { .. } => panic!("it is a directory"),
        }
    }

    /// The disk as it is found when the power is there again.
    #[must_use]
    pub fn after(&self, after: After) -> Self {
        let mut state = self.state().clone();
        let mut seed = if let After::Mixed(seed) = after { seed } else { 0 };
        for node in &mut state.nodes {
            match node {
                Node::File { data, synced } => match after {
                    After::Lost => data.clone_from(synced),
                    After::Kept => {}
                    After::Mixed(_) => {
                        let more = data.len().saturating_sub(synced.len());
                        let some = usize::try_from(next(&mut seed)).unwrap_or(usize::MAX) % (more + 1);
                        data.truncate(synced.len() + some);
                        // Room that was given to a file, and never written.
                        if next(&mut seed).is_multiple_of(2) {
                            let from = data.len() - some;
                            data[from..].fill(0);
                        }
                    }
                },
                Node::Directory { names, synced, pending } => {
                    for change in pending.drain(..) {
                        let happens = match after {
                            After::Lost => false,
                            After::Kept => true,
                            After::Mixed(_) => next(&mut seed).is_multiple_of(2),
                        };
                        if happens {
                            change.apply(synced);
                        }
                    }
                    names.clone_from(synced);
                }
            }
            if let Node::File { data, synced } = node {
                synced.clone_from(data);
            }
        }
        (state.done, state.cut, state.told) = (0, None, Told::default());
        Self(Arc::new(Mutex::new(state)))
    }
}

impl State {
    /// Begins an operation. An error when the power is off, and how many bytes are still done when it goes off in this one.
    fn begin(&mut self) -> Result<Option<usize>, io::Error> {
        if self.nodes.is_empty() {
            self.nodes.push(directory());
        }
        let at = self.done;
        self.done += 1;
        match self.cut {
            Some((cut, _)) if at > cut => Err(off()),
            Some((cut, bytes)) if at == cut => {
                if let Told(Some(tell)) = &self.told {
                    tell();
                }
                Ok(Some(bytes))
            }
            _ => Ok(None),
        }
    }

    /// An operation that happens or does not: it does not, when the power goes off.
    fn whole(&mut self) -> io::Result<()> {
        match self.begin()? {
            Some(_) => Err(off()),
            None => Ok(()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let mut node = 0;
        for name in path.components().filter_map(|part| part.as_os_str().to_str()).filter(|name| *name != "/") {
            match self.nodes.get(node) {
                Some(Node::Directory { names, .. }) => node = *names.get(name).ok_or_else(missing)?,
                _ => return Err(missing()),
            }
        }
        if self.nodes.is_empty() { Err(missing()) } else { Ok(node) }
    }

    fn split(&self, path: &Path) -> io::Result<(usize, String)> {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(missing)?;
        Ok((self.find(path.parent().ok_or_else(missing)?)?, name.to_owned()))
    }

    fn change(&mut self, parent: usize, change: Change) -> io::Result<()> {
        match self.nodes.get_mut(parent) {
            Some(Node::Directory { names, pending, .. }) => {
                change.apply(names);
                pending.push(change);
                Ok(())
            }
            _ => Err(missing()),
        }
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<usize> {
        let (parent, name) = self.split(path)?;
        if self.find(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.nodes.push(node);
        let number = self.nodes.len() - 1;
        self.change(parent, Change::Add(name, number))?;
        Ok(number)
    }

    fn bytes(&self) -> usize {
        let sizes = self.nodes.iter().map(|node| if let Node::File { data, .. } = node { data.len() } else { 0 });
        sizes.sum()
    }
}

impl Disk for CutDisk {
    fn make_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.whole()?;
        state.add(path, directory()).map(drop)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Written>> {
        let mut state = self.state();
        state.whole()?;
        let node = state.add(path, Node::File { data: Vec::new(), synced: Vec::new() })?;
        Ok(Box::new(CutFile { disk: self.clone(), node }))
    }

    fn open(&self, path: &Path) -> io::Result<(Box<dyn Read + Send>, u64)> {
        let state = self.state();
        match &state.nodes[state.find(path)?] {
            Node::File { data, .. } => {
                let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
                Ok((Box::new(io::Cursor::new(data.clone())), length))
            }
            Node::Directory { .. } => Err(io::Error::other("it is no file")),
        }
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        match &state.nodes[state.find(directory)?] {
            Node::Directory { names, .. } => Ok(names.keys().cloned().collect()),
            Node::File { .. } => Err(missing()),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.whole()?;
        let ((parent, from), (other, to)) = (state.split(from)?, state.split(to)?);
        if parent != other {
            return Err(io::Error::other("not within one directory"));
        }
        state.change(parent, Change::Rename(from, to))
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.whole()?;
        let node = state.find(path)?;
        if let Node::Directory { names, synced, pending } = &mut state.nodes[node] {
            synced.clone_from(names);
            pending.clear();
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.whole()?;
        state.find(path)?;
        let (parent, name) = state.split(path)?;
        state.change(parent, Change::Remove(name))
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.whole()?;
        let node = state.find(path)?;
        if matches!(&state.nodes[node], Node::Directory { names, .. } if !names.is_empty()) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let (parent, name) = state.split(path)?;
        state.change(parent, Change::Remove(name))
    }
}

#[derive(Debug)]
struct CutFile {
    disk: CutDisk,
    node: usize,
}

impl Written for CutFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let cut = state.begin()?;
        let full = state.room.is_some_and(|room| state.bytes() + bytes.len() > room);
        if let Node::File { data, .. } = &mut state.nodes[self.node] {
            data.extend_from_slice(&bytes[..cut.unwrap_or(bytes.len()).min(bytes.len())]);
        }
        match (cut, full) {
            (Some(_), _) => Err(off()),
            (None, true) => Err(io::ErrorKind::StorageFull.into()),
            (None, false) => Ok(()),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.whole()?;
        if let Node::File { data, synced } = &mut state.nodes[self.node] {
            synced.clone_from(data);
        }
        Ok(())
    }
}
