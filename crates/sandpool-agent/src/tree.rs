//! The files of a session as one tree of bytes ([`sandpool_wire::tree`]): out of one sandbox, and into another.
//!
//! As with single files ([`crate::files`]) all is done with the rights of the workload, and no symbolic link is followed: every name is looked
//! up in the directory that was opened before it. Kept are directories, regular files with their holes and names, and symbolic links; modes
//! but for set-user-id and set-group-id, and times of modification. Sockets, pipes and devices are left out. Of a file that is written to
//! meanwhile it is kept what reading it gives.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use sandpool_wire::agent::{Answer, Refusal};
use sandpool_wire::frame;
use sandpool_wire::tree::{Item, Items, Kept, MAX_DATA, MAX_DEPTH, MAX_SAME, TreeError};

use crate::files::{open, refusal};

/// Bytes that are given at a time, and one item more at most.
const PIECE: usize = 512 * 1024;

/// The most directories of one tree.
const MAX_ROOTS: usize = 8;

/// Permissions that are kept, and the sticky bit.
const MODE: u32 = 0o1777;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// A tree on its way out.
#[derive(Debug)]
pub struct Pack {
    roots: VecDeque<(u8, String)>,
    levels: Vec<Level>,
    file: Option<Reading>,
    /// Files with several names that were met: their numbers.
    numbers: BTreeMap<(u64, u64), u32>,
    /// Bytes of their paths.
    same: usize,
    count: u64,
    has_ended: bool,
}

/// A directory that is read.
#[derive(Debug)]
struct Level {
    name: Vec<u8>,
    directory: OwnedFd,
    entries: Dir,
}

/// A file that is read.
#[derive(Debug)]
struct Reading {
    file: OwnedFd,
    offset: u64,
    size: u64,
}

impl Pack {
    /// Begins with the directories in this order.
    ///
    /// # Errors
    /// `Invalid` for too many.
    pub fn begin(roots: Vec<String>) -> Result<Self, Refusal> {
        let roots = numbered(roots)?.into();
        let (levels, numbers) = (Vec::new(), BTreeMap::new());
        Ok(Self { roots, levels, file: None, numbers, same: 0, count: 0, has_ended: false })
    }

    /// The next bytes, and whether they are the last.
    ///
    /// # Errors
    /// What could not be read, by its path.
    pub fn take(&mut self) -> Result<(Vec<u8>, bool), Refusal> {
        let mut out = Vec::with_capacity(PIECE + MAX_DATA);
        while out.len() < PIECE && !self.has_ended {
            let item = self.next()?;
            self.count += 1;
            out.extend(frame::encode(&item).map_err(|error| Refusal::Failed(error.to_string()))?);
        }
        Ok((out, self.has_ended))
    }

    fn next(&mut self) -> Result<Item, Refusal> {
        if let Some(reading) = &mut self.file {
            match reading.next() {
                Ok(Some(item)) => return Ok(item),
                Ok(None) => self.file = None,
                Err(error) => return Err(self.unreadable(b"a file", error)),
            }
        }
        loop {
            let Some(level) = self.levels.last_mut() else {
                let Some((number, root)) = self.roots.pop_front() else {
                    self.has_ended = true;
                    return Ok(Item::End(self.count));
                };
                match open(&root, DIRECTORY) {
                    Ok(directory) => {
                        self.enter(root.into_bytes(), directory)?;
                        return Ok(Item::Root(number));
                    }
                    Err(Refusal::NotFound) => continue,
                    Err(error) => return Err(error),
                }
            };
            let entry = match level.entries.next() {
                None => {
                    let kept = rustix::fs::fstat(&level.directory).map(|stat| kept(&stat));
                    self.levels.pop();
                    return kept.map(Item::Leave).map_err(refusal);
                }
                Some(Err(error)) => return Err(self.unreadable(b"", error)),
                Some(Ok(entry)) => entry,
            };
            let name = entry.file_name().to_owned();
            if [c".", c".."].contains(&name.as_c_str()) {
                continue;
            }
            match self.entry(name.clone()) {
                Ok(Some(item)) => return Ok(item),
                // Gone in the meantime, or nothing to keep.
                Ok(None) | Err(Errno::NOENT) => {}
                Err(error) => return Err(self.unreadable(name.as_bytes(), error)),
            }
        }
    }

    fn entry(&mut self, name: CString) -> Result<Option<Item>, Errno> {
        let depth = self.levels.len();
        let path: usize = self.levels.iter().map(|level| level.name.len() + 1).sum();
        let Some(Level { directory, .. }) = self.levels.last() else { return Ok(None) };
        let stat = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        let bytes = name.as_bytes().to_vec();
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if depth > MAX_DEPTH => Err(Errno::NAMETOOLONG),
            FileType::Directory => {
                let inner = readable(directory, &name, &stat, DIRECTORY)?;
                let entries = Dir::read_from(&inner)?;
                self.levels.push(Level { name: bytes.clone(), directory: inner, entries });
                Ok(Some(Item::Enter(bytes)))
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, &name, Vec::new())?.into_bytes();
                Ok(Some(Item::Link { name: bytes, target }))
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let file = readable(directory, &name, &stat, flags)?;
                // What is open is what counts; but its mode may be for us.
                let kept = Kept { mode: stat.st_mode & MODE, ..kept(&rustix::fs::fstat(&file)?) };
                let stat = rustix::fs::fstat(&file)?;
                let mut number = None;
                if stat.st_nlink > 1 {
                    let place = (stat.st_dev, stat.st_ino);
                    if let Some(number) = self.numbers.get(&place) {
                        return Ok(Some(Item::Same { name: bytes, number: *number }));
                    }
                    if self.same + path + bytes.len() <= MAX_SAME {
                        self.same += path + bytes.len();
                        let next = u32::try_from(self.numbers.len()).map_err(|_| Errno::NOMEM)?;
                        self.numbers.insert(place, next);
                        number = Some(next);
                    }
                }
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                self.file = Some(Reading { file, offset: 0, size });
                Ok(Some(Item::File { name: bytes, kept, size, number }))
            }
            _ => Ok(None),
        }
    }

    fn enter(&mut self, name: Vec<u8>, directory: OwnedFd) -> Result<(), Refusal> {
        let entries = Dir::read_from(&directory).map_err(refusal)?;
        self.levels.push(Level { name, directory, entries });
        Ok(())
    }

    fn unreadable(&self, name: &[u8], error: Errno) -> Refusal {
        let names = self.levels.iter().map(|level| level.name.as_slice()).chain([name]);
        let path = names.map(String::from_utf8_lossy).collect::<Vec<_>>().join("/");
        let path: String = path.chars().filter(|letter| !letter.is_control()).take(300).collect();
        Refusal::Failed(format!("{path} cannot be read: {}", std::io::Error::from(error)))
    }
}

impl Reading {
    /// The next bytes that are no hole.
    fn next(&mut self) -> Result<Option<Item>, Errno> {
        if self.offset >= self.size {
            return Ok(None);
        }
        match rustix::fs::seek(&self.file, SeekFrom::Data(self.offset)) {
            Ok(data) => self.offset = data,
            // All that follows is a hole.
            Err(Errno::NXIO) => return Ok(None),
            // A file system without holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
        let rest = usize::try_from(self.size.saturating_sub(self.offset)).unwrap_or(MAX_DATA);
        let mut bytes = vec![0; rest.min(MAX_DATA)];
        let count = loop {
            match rustix::io::pread(&self.file, &mut bytes, self.offset) {
                Err(Errno::INTR) => {}
                read => break read?,
            }
        };
        bytes.truncate(count);
        let offset = self.offset;
        self.offset += u64::try_from(count).unwrap_or(u64::MAX);
        // It has become shorter meanwhile, if there is nothing.
        Ok((count > 0).then_some(Item::Data { offset, bytes }))
    }
}

/// Opens what its owner has kept from itself too.
fn readable(directory: &OwnedFd, name: &CString, stat: &Stat, flags: OFlags) -> Result<OwnedFd, Errno> {
    match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            let before = Mode::from_raw_mode(stat.st_mode & 0o7777);
            rustix::fs::chmodat(directory, name, before | Mode::RUSR | Mode::XUSR, AtFlags::empty())?;
            let opened = rustix::fs::openat(directory, name, flags, Mode::empty());
            rustix::fs::chmodat(directory, name, before, AtFlags::empty())?;
            opened
        }
        opened => opened,
    }
}

fn kept(stat: &Stat) -> Kept {
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let modified_ns = stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
    Kept { mode: stat.st_mode & MODE, modified_ns }
}

fn numbered(roots: Vec<String>) -> Result<Vec<(u8, String)>, Refusal> {
    if roots.len() > MAX_ROOTS {
        return Err(Refusal::Invalid(format!("more than {MAX_ROOTS} directories")));
    }
    Ok((0..).zip(roots).collect())
}

/// A tree on its way in.
#[derive(Debug)]
pub struct Unpack {
    roots: Vec<(u8, String)>,
    items: Items,
    levels: Vec<(Vec<u8>, OwnedFd)>,
    file: Option<Writing>,
    /// Where files are that may have other names: below which root, and their path there.
    numbered: BTreeMap<u32, (usize, Vec<u8>)>,
    same: usize,
}

/// A file that is written.
#[derive(Debug)]
struct Writing {
    file: OwnedFd,
    size: u64,
    kept: Kept,
}

impl Unpack {
    /// Begins; what belongs into these directories goes there.
    ///
    /// # Errors
    /// `Invalid` for too many.
    pub fn begin(roots: Vec<String>) -> Result<Self, Refusal> {
        let roots = numbered(roots)?;
        let (items, levels, numbered) = (Items::default(), Vec::new(), BTreeMap::new());
        Ok(Self { roots, items, levels, file: None, numbered, same: 0 })
    }

    /// Takes in more of it.
    ///
    /// # Errors
    /// `Invalid` for what is no tree, and what cannot be written, by its name.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.items.push(bytes);
        while let Some(item) = self.items.take().map_err(|error| wrong(&error))? {
            let name = match &item {
                Item::Enter(name) | Item::File { name, .. } | Item::Link { name, .. } | Item::Same { name, .. } => {
                    String::from_utf8_lossy(name).chars().filter(|letter| !letter.is_control()).collect()
                }
                Item::Root(_) | Item::Leave(_) | Item::Data { .. } | Item::End(_) => String::new(),
            };
            self.place(item).map_err(|refused| match refused {
                Refusal::NoSpace => Refusal::NoSpace,
                other => Refusal::Failed(format!("{name} cannot be put back: {other}")),
            })?;
        }
        Ok(())
    }

    /// It was all.
    ///
    /// # Errors
    /// `Invalid` when it is not whole.
    pub fn end(self) -> Result<Answer, Refusal> {
        self.items.finish().map_err(|error| wrong(&error))?;
        Ok(Answer::Done)
    }

    fn place(&mut self, item: Item) -> Result<(), Refusal> {
        if !matches!(item, Item::Data { .. })
            && let Some(written) = self.file.take()
        {
            written.finish().map_err(refusal)?;
        }
        match item {
            Item::Root(number) => {
                let found = self.roots.iter().find(|(known, _)| *known == number);
                let (_, root) = found.ok_or_else(|| Refusal::Invalid("a directory that was not named".to_owned()))?;
                self.levels.push((root.clone().into_bytes(), open(root, DIRECTORY)?));
                Ok(())
            }
            Item::Leave(kept) => {
                // It cannot be left without having been entered: the items are checked.
                let Some((_, directory)) = self.levels.pop() else { return Ok(()) };
                become_kept(&directory, kept).map_err(refusal)
            }
            Item::Data { offset, bytes } => self.file.as_ref().map_or(Ok(()), |file| file.put(offset, &bytes)),
            Item::End(_) => Ok(()),
            item => self.place_in(item),
        }
    }

    fn place_in(&mut self, item: Item) -> Result<(), Refusal> {
        let Some((_, directory)) = self.levels.last() else { return Ok(()) };
        match item {
            Item::Enter(name) => {
                let entered = enter(directory, &name).map_err(refusal)?;
                self.levels.push((name, entered));
            }
            Item::File { name, kept, size, number } => {
                clear(directory, &name).map_err(refusal)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(directory, OsStr::from_bytes(&name), flags, Mode::from(0o600));
                self.file = Some(Writing { file: file.map_err(refusal)?, size, kept });
                if let Some(number) = number {
                    let inner = self.levels.iter().skip(1).flat_map(|(name, _)| [name.as_slice(), b"/"]);
                    let path: Vec<u8> = inner.chain([name.as_slice()]).flatten().copied().collect();
                    self.same += path.len();
                    if self.same > MAX_SAME {
                        return Err(Refusal::Invalid("files with too many names".to_owned()));
                    }
                    self.numbered.insert(number, (self.root(), path));
                }
            }
            Item::Link { name, target } => {
                clear(directory, &name).map_err(refusal)?;
                let target = OsStr::from_bytes(&target);
                rustix::fs::symlinkat(target, directory, OsStr::from_bytes(&name)).map_err(refusal)?;
            }
            Item::Same { name, number } => {
                let unknown = || Refusal::Invalid("a name of a file that was not there".to_owned());
                let (root, path) = self.numbered.get(&number).ok_or_else(unknown)?;
                if *root != self.root() {
                    return Err(unknown());
                }
                clear(directory, &name).map_err(refusal)?;
                let (_, from) = self.levels.first().ok_or_else(unknown)?;
                let (parent, file) = self.walk(from, path)?;
                let parent = parent.as_ref().unwrap_or(from);
                let file = OsStr::from_bytes(file);
                rustix::fs::linkat(parent, file, directory, OsStr::from_bytes(&name), AtFlags::empty())
                    .map_err(refusal)?;
            }
            Item::Root(_) | Item::Leave(_) | Item::Data { .. } | Item::End(_) => {}
        }
        Ok(())
    }

    /// Which root is entered.
    fn root(&self) -> usize {
        let entered = self.levels.first().map(|(name, _)| name.as_slice());
        self.roots.iter().position(|(_, root)| Some(root.as_bytes()) == entered).unwrap_or(usize::MAX)
    }

    /// The directory of a path below a root (`None` for the root), and the name there.
    fn walk<'a>(&self, root: &OwnedFd, path: &'a [u8]) -> Result<(Option<OwnedFd>, &'a [u8]), Refusal> {
        let mut names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let last = names.pop().unwrap_or_default();
        let mut directory: Option<OwnedFd> = None;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for name in names {
            let at = directory.as_ref().unwrap_or(root);
            let next = rustix::fs::openat(at, OsStr::from_bytes(name), flags, Mode::empty()).map_err(refusal)?;
            directory = Some(next);
        }
        Ok((directory, last))
    }
}

impl Writing {
    fn put(&self, mut offset: u64, mut bytes: &[u8]) -> Result<(), Refusal> {
        let fits = offset.checked_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX)).is_some_and(|to| to <= self.size);
        if !fits {
            return Err(Refusal::Invalid("bytes that are not in their file".to_owned()));
        }
        while !bytes.is_empty() {
            match rustix::io::pwrite(&self.file, bytes, offset) {
                Ok(0) => return Err(Refusal::NoSpace),
                Ok(count) => {
                    bytes = &bytes[count..];
                    offset += u64::try_from(count).unwrap_or(u64::MAX);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(refusal(error)),
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(), Errno> {
        rustix::fs::ftruncate(&self.file, self.size)?;
        become_kept(&self.file, self.kept)
    }
}

fn become_kept(fd: &OwnedFd, kept: Kept) -> Result<(), Errno> {
    rustix::fs::fchmod(fd, Mode::from_raw_mode(kept.mode & MODE))?;
    let modified = Timespec {
        tv_sec: kept.modified_ns.div_euclid(1_000_000_000),
        tv_nsec: kept.modified_ns.rem_euclid(1_000_000_000),
    };
    let as_it_is = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    rustix::fs::futimens(fd, &Timestamps { last_access: as_it_is, last_modification: modified })
}

/// A directory, made where there is none.
fn enter(directory: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let name = OsStr::from_bytes(name);
    match rustix::fs::mkdirat(directory, name, Mode::from(0o700)) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                rustix::fs::chmodat(directory, name, Mode::from(0o700), AtFlags::empty())?;
            } else {
                rustix::fs::unlinkat(directory, name, AtFlags::empty())?;
                rustix::fs::mkdirat(directory, name, Mode::from(0o700))?;
            }
        }
        Err(error) => return Err(error),
    }
    rustix::fs::openat(directory, name, DIRECTORY, Mode::empty())
}

/// Removes what has this name, unless it is a directory.
fn clear(directory: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(directory, OsStr::from_bytes(name), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

fn wrong(error: &TreeError) -> Refusal {
    Refusal::Invalid(error.to_string())
}

#[cfg(test)]
mod tests;
