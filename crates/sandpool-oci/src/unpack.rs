//! Layers, oldest first, into one root file system.
//!
//! Names in a layer are resolved by the kernel below the root (`openat2` with `RESOLVE_IN_ROOT`): links that lead out, be they absolute or
//! by `..`, lead to the root's own. What is there already is never opened for writing, but removed first. Only files, directories and
//! links are made; all belong to whoever unpacks, without rights but those of reading, executing, and the owner's to write. Whoever calls
//! this should be confined all the same: it reads archives of strangers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::EntryType;

use crate::blobs::{Blobs, Hashed};
use crate::{Layer, OciError, Packing};

/// What an image may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Bytes of all files together, as they are unpacked, holes included.
    pub bytes: u64,
    /// Entries of all layers together.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 16 << 30, entries: 2_000_000 }
    }
}

/// Components of a path, at most.
const MAX_DEPTH: usize = 128;

/// Bytes of a path, at most (`PATH_MAX` of Linux).
const MAX_PATH: usize = 4096;

/// Bytes that are copied at once.
const PIECE: usize = 256 * 1024;

/// What a layer's entry of this name begins with removes the file of the rest (OCI image specification, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// Removes all that older layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names that begin so are a union file system's own, and nobody's files.
const RESERVED: &[u8] = b".wh..wh.";

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Unpacked {
    /// Bytes of files.
    pub bytes: u64,
    /// Entries of layers.
    pub entries: u64,
    /// Entries that were left out: devices, pipes and sockets, which a sandbox brings itself.
    pub left_out: u64,
}

/// Unpacks layers into an empty directory. `begins` is told of each layer.
///
/// # Errors
/// [`OciError`]; what has been unpacked until then is to be removed.
pub fn unpack(
    blobs: &Blobs,
    layers: &[Layer],
    root: &Path,
    limits: Limits,
    mut begins: impl FnMut(usize),
) -> Result<Unpacked, OciError> {
    let root = open_root(root).map_err(OciError::io(root.display()))?;
    let mut done = Unpacked::default();
    let mut directories = BTreeMap::new();
    for (number, layer) in (1..).zip(layers) {
        begins(number);
        let file = blobs.read(&layer.digest)?;
        let no_zstd =
            |error: &dyn std::fmt::Display| OciError::Malformed(format!("layer {number} is no zstd: {error}"));
        let reader: Box<dyn Read> = match layer.packing {
            Packing::Plain => Box::new(file),
            Packing::Gzip => Box::new(flate2::read::MultiGzDecoder::new(file)),
            Packing::Zstd => Box::new(ruzstd::decoding::StreamingDecoder::new(file).map_err(|error| no_zstd(&error))?),
        };
        let found = whole(reader, number, &root, limits, &mut done, &mut directories)?;
        if found != layer.diff_id {
            return Err(OciError::Malformed(format!("layer {number} is {found}, and should be {}", layer.diff_id)));
        }
    }
    date(&root, &directories);
    Ok(done)
}

/// Writes a file below a root that has been unpacked, and whatever directories it needs; no link of the image leads out.
///
/// # Errors
/// When something of the image is in the way.
pub fn write_inside(root: &Path, path: &str, bytes: &[u8]) -> Result<(), OciError> {
    let write = || -> io::Result<()> {
        let root = open_root(root)?;
        let mut directories = Dates::new();
        let this = Applied { root: &root, made: BTreeSet::new(), directories: &mut directories };
        let path = checked(path.as_bytes())?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let at = this.parent(path.parent().unwrap_or(Path::new("")))?;
        clear(&at, name.as_bytes())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&at, name, flags, Mode::from_raw_mode(0o644))?;
        File::from(file).write_all(bytes)
    };
    write().map_err(OciError::io(path))
}

/// Makes a directory below a root that has been unpacked, if it is not there.
///
/// # Errors
/// When something of the image is in the way.
pub fn make_inside(root: &Path, path: &str) -> Result<(), OciError> {
    let make = || -> io::Result<()> {
        let root = open_root(root)?;
        let mut directories = Dates::new();
        let this = Applied { root: &root, made: BTreeSet::new(), directories: &mut directories };
        this.parent(&checked(path.as_bytes())?).map(drop)
    };
    make().map_err(OciError::io(path))
}

/// Whether a root that has been unpacked has a file that can be executed there.
#[must_use]
pub fn has_program(root: &Path, path: &str) -> bool {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = open_root(root).and_then(|root| {
        let file = rustix::fs::openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
        Ok(rustix::fs::fstat(&file)?)
    });
    found.is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_mode & 0o111 != 0)
}

fn open_root(root: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Directories, and when they are to have been changed last: said at the end, since each file in them changes it.
type Dates = BTreeMap<PathBuf, i64>;

/// One layer. Answers the digest of all of it.
fn whole(
    reader: impl Read,
    number: usize,
    root: &OwnedFd,
    limits: Limits,
    done: &mut Unpacked,
    directories: &mut Dates,
) -> Result<String, OciError> {
    // Also what is between and behind the entries counts: else it would be read without end.
    let most = limits.bytes.saturating_mul(2).saturating_add(1 << 20);
    let mut reader = Hashed::new(Bounded { inner: reader, left: most });
    let mut archive = tar::Archive::new(&mut reader);
    let broken = |error: io::Error| OciError::Malformed(format!("layer {number} cannot be read: {error}"));
    let mut this = Applied { root, made: BTreeSet::new(), directories };
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        done.entries += 1;
        if done.entries > limits.entries {
            return Err(OciError::TooLarge(format!("it has more than {} entries", limits.entries)));
        }
        let name = entry.path_bytes().into_owned();
        let wrong = |why: String| {
            let entry = String::from_utf8_lossy(&name).chars().take(200).collect();
            OciError::Entry { layer: number, entry, why }
        };
        done.bytes = done.bytes.saturating_add(entry.size());
        if done.bytes > limits.bytes {
            return Err(OciError::TooLarge(format!("its files have more than {} bytes", limits.bytes)));
        }
        match this.apply(&name, &mut entry) {
            Ok(true) => {}
            Ok(false) => done.left_out += 1,
            Err(error) => return Err(wrong(error.to_string())),
        }
    }
    // What is behind the archive's end is part of what was named.
    io::copy(&mut reader, &mut io::sink()).map_err(broken)?;
    Ok(reader.digest())
}

/// An error once more than so many bytes have come.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| io::Error::other("it does not end"))?;
        Ok(count)
    }
}

/// A layer that is being applied.
struct Applied<'a> {
    root: &'a OwnedFd,
    /// What this layer has made: its own whiteouts do not concern it.
    made: BTreeSet<PathBuf>,
    directories: &'a mut Dates,
}

impl Applied<'_> {
    /// Applies one entry. Whether it is of a kind that an image has here.
    fn apply<R: Read>(&mut self, name: &[u8], entry: &mut tar::Entry<'_, R>) -> io::Result<bool> {
        let path = checked(name)?;
        let kind = entry.header().entry_type();
        let Some(last) = path.file_name().map(|name| name.as_bytes().to_owned()) else {
            // The root itself is there, and is what it is.
            return Ok(true);
        };
        let parent = path.parent().unwrap_or(Path::new("")).to_owned();
        if last.starts_with(WHITEOUT) {
            return self.whiteout(&parent, &last).map(|()| true);
        }
        let mode = entry.header().mode().unwrap_or(0o644);
        let changed = i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0);
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let at = self.parent(&parent)?;
                clear(&at, &last)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&at, last.as_slice(), flags, Mode::from_raw_mode(readable(mode, false)))?;
                let mut file = File::from(file);
                copy(entry, &mut file)?;
                // The mode that it was made with has lost what the umask takes.
                rustix::fs::fchmod(&file, Mode::from_raw_mode(readable(mode, false)))?;
                rustix::fs::futimens(&file, &times(changed))?;
            }
            EntryType::Directory => {
                let at = self.parent(&parent)?;
                let mode = Mode::from_raw_mode(readable(mode, true));
                match rustix::fs::mkdirat(&at, last.as_slice(), mode) {
                    Ok(()) => {}
                    Err(Errno::EXIST) if is_directory(&at, &last)? => {}
                    Err(Errno::EXIST) => {
                        clear(&at, &last)?;
                        rustix::fs::mkdirat(&at, last.as_slice(), mode)?;
                    }
                    Err(error) => return Err(error.into()),
                }
                rustix::fs::chmodat(&at, last.as_slice(), mode, AtFlags::empty())?;
                self.directories.insert(path.clone(), changed);
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| other("the link leads nowhere"))?.into_owned();
                if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
                    return Err(other("the link leads nowhere"));
                }
                let at = self.parent(&parent)?;
                clear(&at, &last)?;
                rustix::fs::symlinkat(target.as_slice(), &at, last.as_slice())?;
                // A link's own time is of no use to anybody; where it cannot be set it is now.
                let _ = rustix::fs::utimensat(&at, last.as_slice(), &times(changed), AtFlags::SYMLINK_NOFOLLOW);
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().ok_or_else(|| other("the link leads nowhere"))?.into_owned();
                let target = checked(&target)?;
                let (Some(from), to) = (target.file_name(), target.parent().unwrap_or(Path::new(""))) else {
                    return Err(other("the link leads to the root"));
                };
                if target == path {
                    return Err(other("the link leads to itself"));
                }
                let source = self.parent(to)?;
                if is_directory(&source, from.as_bytes()).map_err(|_| other("the link's target is not there"))? {
                    return Err(other("the link leads to a directory"));
                }
                let at = self.parent(&parent)?;
                clear(&at, &last)?;
                rustix::fs::linkat(&source, from.as_bytes(), &at, last.as_slice(), AtFlags::empty())
                    .map_err(|error| other(&format!("the link's target: {error}")))?;
            }
            // Devices, pipes, and what is not known.
            _ => return Ok(false),
        }
        self.made.insert(path);
        Ok(true)
    }

    /// The directory of this path below the root, made where it is not there.
    fn parent(&self, path: &Path) -> io::Result<OwnedFd> {
        match open(self.root, path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let above = self.parent(path.parent().ok_or(io::ErrorKind::NotFound)?)?;
                let name = path.file_name().ok_or(io::ErrorKind::NotFound)?;
                match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
                    // A link that leads nowhere is in the way: it is not followed to a place that would have to be made.
                    Err(Errno::EXIST) => Err(other("a link that leads nowhere is in the way")),
                    made => {
                        made?;
                        open(self.root, path)
                    }
                }
            }
            opened => opened,
        }
    }

    /// Removes what an older layer has of this name, or all that it has in this directory.
    fn whiteout(&self, parent: &Path, last: &[u8]) -> io::Result<()> {
        let at = match open(self.root, parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        if last == OPAQUE {
            let listed =
                rustix::fs::openat(&at, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let mut names = Vec::new();
            for entry in rustix::fs::Dir::new(listed)? {
                let name = entry?.file_name().to_bytes().to_owned();
                if name != b"." && name != b".." {
                    names.push(name);
                }
            }
            for name in names {
                let path = parent.join(std::ffi::OsStr::from_bytes(&name));
                if !self.has_made(&path) {
                    clear(&at, &name)?;
                }
            }
            return Ok(());
        }
        if last.starts_with(RESERVED) {
            return Ok(());
        }
        let name = &last[WHITEOUT.len()..];
        if name.is_empty() || name == b"." || name == b".." {
            return Err(other("it removes what has no name"));
        }
        if self.has_made(&parent.join(std::ffi::OsStr::from_bytes(name))) {
            return Ok(());
        }
        clear(&at, name)
    }

    /// Whether this layer has made it, or something below it.
    fn has_made(&self, path: &Path) -> bool {
        self.made.range(path.to_owned()..).next().is_some_and(|made| made.starts_with(path))
    }
}

fn date(root: &OwnedFd, directories: &Dates) {
    for (path, changed) in directories {
        // One that a later entry has replaced needs none.
        if let Ok(directory) = open(root, path) {
            let at = format!("/proc/self/fd/{}", directory.as_raw_fd());
            let _ = rustix::fs::utimensat(rustix::fs::CWD, at, &times(*changed), AtFlags::empty());
        }
    }
}

fn other(why: &str) -> io::Error {
    io::Error::other(why.to_owned())
}

/// A path of a layer: relative, and of names alone.
fn checked(name: &[u8]) -> io::Result<PathBuf> {
    if name.len() > MAX_PATH || name.contains(&0) {
        return Err(other("the name is too long, or has a NUL in it"));
    }
    let mut path = PathBuf::new();
    for component in Path::new(std::ffi::OsStr::from_bytes(name)).components() {
        match component {
            // As an absolute one is meant: below the root of the image.
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            Component::ParentDir | Component::Prefix(_) => return Err(other("the name leads out of the image")),
        }
    }
    if path.components().count() > MAX_DEPTH {
        return Err(other("it lies too deep"));
    }
    Ok(path)
}

/// Opens a directory below the root. Links on the way lead where they would lead inside.
fn open(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    Ok(rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?)
}

fn is_directory(at: &OwnedFd, name: &[u8]) -> io::Result<bool> {
    let stat = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// Removes what has this name in a directory, whatever it is, and no more than that: no link is followed.
fn clear(at: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {
            // Its own walk opens every directory without following links.
            let place = Path::new("/proc/self/fd").join(at.as_fd().as_raw_fd().to_string());
            std::fs::remove_dir_all(place.join(std::ffi::OsStr::from_bytes(name)))
        }
        Err(error) => Err(error.into()),
    }
}

/// The rights that a file has in an image: whoever reads it there is not its owner, so that all may what the owner may, except to write.
fn readable(mode: u32, is_directory: bool) -> u32 {
    let executable = if is_directory || mode & 0o111 != 0 { 0o111 } else { 0 };
    0o644 | executable
}

fn times(seconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// Copies a file's bytes; long runs of zeros become holes.
fn copy(from: &mut impl Read, to: &mut File) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut length = 0_u64;
    loop {
        let mut filled = 0;
        while filled < piece.len() {
            match from.read(&mut piece[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            break;
        }
        length += filled as u64;
        if piece[..filled].iter().all(|byte| *byte == 0) {
            rustix::fs::seek(&*to, rustix::fs::SeekFrom::Start(length))?;
        } else {
            to.write_all(&piece[..filled])?;
        }
        if filled < piece.len() {
            break;
        }
    }
    to.set_len(length)
}

#[cfg(test)]
mod tests;
