//! Files, as the sandbox's own user sees them.
//!
//! Every path is resolved by `openat2` (or, where the kernel has none, name by name) without following a symbolic link, with the file system ids of the workload.
//! Only regular files are read, and nothing here waits for a pipe or a device.

use std::collections::{BTreeMap, BinaryHeap};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;
use sandpool_wire::agent::{Answer, Entry, EntryKind, MAX_CHUNK, Refusal};

/// The most entries of one listing.
pub const MAX_ENTRIES: usize = 1000;

/// Directories deeper than this below the listed or removed one are not entered.
const MAX_DEPTH: usize = 200;

/// What the names of unfinished uploads begin with. They are not listed.
const UNFINISHED: &str = ".sandpool-upload-";

/// The most uploads that one stream may have open.
pub const MAX_UPLOADS: usize = 16;

/// One file's or directory's record.
///
/// # Errors
/// As [`Refusal`] says.
pub fn stat(path: &str) -> Result<Answer, Refusal> {
    let fd = open(path, OFlags::PATH | OFlags::NOFOLLOW)?;
    let stat = rustix::fs::fstat(&fd).map_err(refusal)?;
    Ok(Answer::Entry(entry(base_name(path).to_owned(), &stat)))
}

/// Bytes of a regular file.
///
/// # Errors
/// `WrongKind` for everything else than a regular file.
pub fn read(path: &str, offset: u64, length: u32) -> Result<Answer, Refusal> {
    // Looked at before it is opened for reading: opening a pipe or a device can have effects.
    regular(&open(path, OFlags::PATH | OFlags::NOFOLLOW)?)?;
    let file = open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY)?;
    let size = regular(&file)?;
    if rustix::fs::fstatfs(&file).map_err(refusal)?.f_type == rustix::fs::PROC_SUPER_MAGIC {
        return Err(Refusal::Denied);
    }
    let wanted = usize::try_from(length).unwrap_or(MAX_CHUNK).min(MAX_CHUNK);
    let present = usize::try_from(size.saturating_sub(offset)).unwrap_or(MAX_CHUNK);
    let mut data = vec![0; wanted.min(present)];
    let mut filled = 0;
    while filled < data.len() {
        match rustix::io::pread(&file, &mut data[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(refusal(error)),
        }
    }
    data.truncate(filled);
    Ok(Answer::Data { data, size })
}

/// A directory's entries after `after`, in the order of their paths' bytes.
///
/// # Errors
/// `WrongKind` when it is no directory.
pub fn list(path: &str, recursive: bool, after: Option<&str>, limit: u32) -> Result<Answer, Refusal> {
    let directory = open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK)?;
    let limit = usize::try_from(limit).unwrap_or(MAX_ENTRIES).clamp(1, MAX_ENTRIES);
    let mut listing = Listing { after: after.unwrap_or_default(), recursive, limit: limit + 1, entries: Vec::new() };
    listing.walk(&directory, "", 0).map_err(refusal)?;
    let mut entries = listing.entries;
    let more = entries.len() > limit;
    entries.truncate(limit);
    Ok(Answer::Entries { entries, more })
}

/// Removes a file, or a directory with all in it.
///
/// # Errors
/// As [`Refusal`] says. What could be removed until then is gone.
pub fn remove(path: &str) -> Result<Answer, Refusal> {
    let (parent, name) = parent_and_name(path)?;
    let parent = open(parent, OFlags::PATH | OFlags::DIRECTORY)?;
    let name = CString::new(name).map_err(|_| Refusal::NotFound)?;
    remove_at(parent.as_fd(), &name, 0)?;
    Ok(Answer::Done)
}

/// A file on its way in: unseen under a name of its own until it is complete.
#[derive(Debug)]
pub struct Upload {
    parent: OwnedFd,
    unfinished: String,
    target: String,
    file: OwnedFd,
}

impl Upload {
    /// Begins; makes missing directories.
    ///
    /// # Errors
    /// As [`Refusal`] says.
    pub fn open(path: &str, name: u64) -> Result<Self, Refusal> {
        let (parent, target) = parent_and_name(path)?;
        let parent = make_directories(parent)?;
        match rustix::fs::statat(&parent, target, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => return Err(wrong("file")),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(refusal(error)),
        }
        let unfinished = format!("{UNFINISHED}{name:016x}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent, unfinished.as_str(), flags, Mode::from(0o666)).map_err(refusal)?;
        Ok(Self { parent, unfinished, target: target.to_owned(), file })
    }

    /// Appends.
    ///
    /// # Errors
    /// `NoSpace`, and the like.
    pub fn write(&self, mut data: &[u8]) -> Result<Answer, Refusal> {
        while !data.is_empty() {
            match rustix::io::write(&self.file, data) {
                Ok(count) => data = &data[count..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(refusal(error)),
            }
        }
        Ok(Answer::Done)
    }

    /// Puts it in place.
    ///
    /// # Errors
    /// `WrongKind` when a directory has taken the place.
    pub fn commit(self) -> Result<Answer, Refusal> {
        rustix::fs::renameat(&self.parent, self.unfinished.as_str(), &self.parent, self.target.as_str())
            .map_err(refusal)?;
        let stat = rustix::fs::fstat(&self.file).map_err(refusal)?;
        Ok(Answer::Entry(entry(self.target.clone(), &stat)))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // After `commit` the name is not there any more.
        let _ = rustix::fs::unlinkat(&self.parent, self.unfinished.as_str(), AtFlags::empty());
    }
}

struct Listing<'a> {
    after: &'a str,
    recursive: bool,
    limit: usize,
    entries: Vec<Entry>,
}

impl Listing<'_> {
    /// Takes in the entries of one directory. In the order of paths, what is in a directory `a` comes where `a/`
    /// would: after `a-b`, which comes after `a`. So a directory stands twice among its siblings, and the listing is
    /// in order without ever being held as a whole.
    fn walk(&mut self, directory: &OwnedFd, prefix: &str, depth: usize) -> Result<(), Errno> {
        let mut floor = String::new();
        loop {
            let batch = self.batch(directory, prefix, &floor)?;
            let is_last = batch.len() < self.limit;
            for (path, (name, is_inside)) in batch {
                if self.entries.len() >= self.limit {
                    return Ok(());
                }
                if is_inside {
                    if depth < MAX_DEPTH {
                        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                        // Not readable, or gone in the meantime: its own entry says that it is there.
                        if let Ok(inner) =
                            rustix::fs::openat(directory, name.as_c_str(), flags | OFlags::NONBLOCK, Mode::empty())
                        {
                            self.walk(&inner, &path, depth + 1)?;
                        }
                    }
                } else if let Ok(stat) = rustix::fs::statat(directory, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
                    self.entries.push(entry(path.clone(), &stat));
                }
                floor = path;
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// The first names of a directory after `floor` that may bring entries, each with its path, and whether it
    /// stands for what is inside. Never holds more than it answers.
    fn batch(
        &self,
        directory: &OwnedFd,
        prefix: &str,
        floor: &str,
    ) -> Result<BTreeMap<String, (CString, bool)>, Errno> {
        let mut first: BinaryHeap<(String, CString, bool)> = BinaryHeap::new();
        let mut offer = |path: String, name: &CStr, is_inside: bool| {
            let may_follow = path.as_str() > self.after || (is_inside && self.after.starts_with(path.as_str()));
            let is_new = floor.is_empty() || path.as_str() > floor;
            if may_follow && is_new {
                first.push((path, name.to_owned(), is_inside));
                if first.len() > self.limit {
                    first.pop();
                }
            }
        };
        for item in Dir::read_from(directory)? {
            let item = item?;
            let name = item.file_name();
            if [c".", c".."].contains(&name) || name.to_bytes().starts_with(UNFINISHED.as_bytes()) {
                continue;
            }
            let path = format!("{prefix}{}", name.to_string_lossy());
            let is_directory = match item.file_type() {
                FileType::Unknown => rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
                kind => kind == FileType::Directory,
            };
            if is_directory && self.recursive {
                offer(format!("{path}/"), name, true);
            }
            offer(path, name, false);
        }
        Ok(first.into_iter().map(|(path, name, is_inside)| (path, (name, is_inside))).collect())
    }
}

fn remove_at(parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<(), Refusal> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) => return Ok(()),
        // Linux says EISDIR for a directory; other errors may hide one as well, and then opening it says so.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(refusal(error)),
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        done => return done.map_err(refusal),
    }
    if depth >= MAX_DEPTH {
        return Err(Refusal::Failed(format!("directories are nested deeper than {MAX_DEPTH}")));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(refusal)?;
    // Removing what a directory stream has yet to yield is unspecified, so names are gathered in batches.
    loop {
        let names = some_names(&directory).map_err(refusal)?;
        if names.is_empty() {
            break;
        }
        for inner in names {
            match remove_at(directory.as_fd(), &inner, depth + 1) {
                Ok(()) | Err(Refusal::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(refusal)
}

fn some_names(directory: &OwnedFd) -> Result<Vec<CString>, Errno> {
    rustix::fs::seek(directory, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = Vec::with_capacity(8192);
    let mut names = Vec::new();
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if ![c".", c".."].contains(&entry.file_name()) {
            names.push(entry.file_name().to_owned());
        }
        if names.len() >= 512 {
            break;
        }
    }
    Ok(names)
}

/// Opens (making what is missing) the directory at an absolute path.
fn make_directories(path: &str) -> Result<OwnedFd, Refusal> {
    let mut directory = open("/", OFlags::PATH | OFlags::DIRECTORY)?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat(&directory, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&directory, name, Mode::from(0o777)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(refusal(error)),
                }
                rustix::fs::openat(&directory, name, flags, Mode::empty())
            }
            opened => opened,
        };
        directory = opened.map_err(refusal)?;
    }
    Ok(directory)
}

/// Opens an absolute, normal path from the root, without following any link.
pub(crate) fn open(path: &str, flags: OFlags) -> Result<OwnedFd, Refusal> {
    check(path)?;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..8 {
        match rustix::fs::openat2(CWD, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename raced with the resolution.
            Err(Errno::AGAIN | Errno::INTR) => {}
            // gVisor's kernel does not know it.
            Err(Errno::NOSYS) => return step_by_step(path, flags).map_err(refusal),
            opened => return opened.map_err(refusal),
        }
    }
    Err(Refusal::Failed("the path changes while it is looked up".to_owned()))
}

/// The same, one name after the other, each in the directory that the one before it has opened.
fn step_by_step(path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let way = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    let Some(last) = names.pop() else { return rustix::fs::open("/", flags | OFlags::CLOEXEC, Mode::empty()) };
    let mut directory = rustix::fs::open("/", way, Mode::empty())?;
    for name in names {
        directory = rustix::fs::openat(&directory, name, way, Mode::empty())?;
    }
    let found = rustix::fs::openat(&directory, last, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    // A link itself can be held, where that was not asked for.
    let is_link = !flags.contains(OFlags::NOFOLLOW)
        && FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == FileType::Symlink;
    if is_link { Err(Errno::LOOP) } else { Ok(found) }
}

/// Whether `path` is a [`sandpool_wire::agent::FilePath`].
fn check(path: &str) -> Result<(), Refusal> {
    let invalid = |why: &str| Err(Refusal::Invalid(format!("not an absolute, normal path: {why}")));
    let Some(inner) = path.strip_prefix('/') else { return invalid("it does not begin with /") };
    if path.len() > 4095 {
        return invalid("it is longer than 4,095 bytes");
    }
    if path.contains('\0') {
        return invalid("it has a NUL");
    }
    if !inner.is_empty() && inner.split('/').any(|name| ["", ".", ".."].contains(&name)) {
        return invalid("a component is empty, . or ..");
    }
    if inner.split('/').any(|name| name.len() > 255) {
        return invalid("a component is longer than 255 bytes");
    }
    Ok(())
}

fn parent_and_name(path: &str) -> Result<(&str, &str), Refusal> {
    check(path)?;
    match path.rsplit_once('/') {
        Some((_, "")) | None => Err(wrong("file")),
        Some(("", name)) => Ok(("/", name)),
        Some((parent, name)) => Ok((parent, name)),
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn regular(fd: &OwnedFd) -> Result<u64, Refusal> {
    let stat = rustix::fs::fstat(fd).map_err(refusal)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    } else {
        Err(wrong("file"))
    }
}

fn entry(path: String, stat: &Stat) -> Entry {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Directory,
        _ => EntryKind::Other,
    };
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let modified_ns = stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
    Entry { path, kind, size: u64::try_from(stat.st_size).unwrap_or(0), modified_ns }
}

fn wrong(kind: &str) -> Refusal {
    Refusal::WrongKind(kind.to_owned())
}

pub(crate) fn refusal(error: Errno) -> Refusal {
    match error {
        Errno::NOENT => Refusal::NotFound,
        Errno::NOTDIR => wrong("directory"),
        Errno::ISDIR => wrong("file"),
        // A symbolic link, or a socket or device without anyone behind it.
        Errno::LOOP | Errno::NXIO => wrong("file"),
        Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::BUSY | Errno::XDEV => Refusal::Denied,
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Refusal::NoSpace,
        Errno::NAMETOOLONG | Errno::INVAL => Refusal::Invalid("the file system does not take this name".to_owned()),
        other => Refusal::Failed(std::io::Error::from(other).to_string()),
    }
}

#[cfg(test)]
mod tests;
