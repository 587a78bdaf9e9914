//! A machine as bytes: what a keeper writes of one that stands still, and goes on from.
//!
//! ```text
//! pieces:  u8 kind | u32 length | so many bytes, at most MAX_PIECE                          (little endian)
//! H: version, the VMM, the machine, as text   S: what the VMM wrote, one or more   D: u64 offset, what the disk has there   E: the end
//! ```
//!
//! In this order. Without its end it is not whole, and nothing goes on from it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::extents;

/// The longest payload of a piece, in bytes.
pub const MAX_PIECE: usize = (1 << 20) + 8;

/// Bytes before a payload.
pub const HEADER: usize = 5;

/// The kind of the last piece.
pub const END: u8 = b'E';

const HEAD: u8 = b'H';
const STATE: u8 = b'S';
const DISK: u8 = b'D';

/// How long whoever takes a machine, or brings one, may do nothing.
const PATIENCE: Duration = Duration::from_secs(120);

/// The longest text at the beginning, in bytes.
const MAX_TEXT: usize = 4096;

/// Reads a piece's header: its kind, and the length of its payload.
///
/// # Errors
/// `InvalidData` for one that no piece has.
pub fn piece([kind, length @ ..]: [u8; HEADER]) -> io::Result<(u8, usize)> {
    let length = u32::from_le_bytes(length) as usize;
    let most = match kind {
        HEAD => MAX_TEXT,
        STATE | DISK => MAX_PIECE,
        END => 0,
        _ => return Err(wrong("this is no saved machine")),
    };
    if length > most { Err(wrong("a piece of a saved machine is too long")) } else { Ok((kind, length)) }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A stream that waits for its other end, and not for ever.
pub(crate) fn patient(fd: OwnedFd) -> io::Result<UnixStream> {
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A pipe that holds much, where that is allowed: each time that it is full or empty somebody is woken.
fn wide_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (out, into) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let _ = rustix::pipe::fcntl_setpipe_size(&into, 1 << 20);
    Ok((out, into))
}

fn put(to: &mut UnixStream, kind: u8, parts: &[&[u8]]) -> io::Result<()> {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    let length = u32::try_from(length).map_err(io::Error::other)?;
    to.write_all(&[[kind].as_slice(), &length.to_le_bytes()].concat())?;
    parts.iter().try_for_each(|part| to.write_all(part))
}

/// Writes a machine: `text` says what it is, `save` writes to the pipe what the VMM has of it, and then its disk stands still.
pub(crate) fn write(
    to: &mut UnixStream,
    text: &str,
    save: impl FnOnce(&OwnedFd) -> io::Result<()>,
    disk: &File,
) -> io::Result<()> {
    put(to, HEAD, &[text.as_bytes()])?;
    let (from, pipe) = wide_pipe()?;
    let mut out = to.try_clone()?;
    // Where it fails the pipe is closed, and so the other end of it fails too.
    let passing = std::thread::spawn(move || -> io::Result<()> {
        let (mut from, mut buffer) = (File::from(from), vec![0; 1 << 18]);
        loop {
            match from.read(&mut buffer)? {
                0 => return Ok(()),
                count => put(&mut out, STATE, &[&buffer[..count]])?,
            }
        }
    });
    let saved = save(&pipe);
    drop(pipe);
    let passed = passing.join().map_err(|_| io::Error::other("what was saved could not be passed on"))?;
    passed.and(saved)?;
    let mut buffer = vec![0; MAX_PIECE - 8];
    for (begins, length) in extents::of(disk)? {
        let mut done = 0;
        while done < length {
            let count = buffer.len().min(usize::try_from(length - done).unwrap_or(buffer.len()));
            disk.read_exact_at(&mut buffer[..count], begins + done)?;
            put(to, DISK, &[&(begins + done).to_le_bytes(), &buffer[..count]])?;
            done += count as u64;
        }
    }
    put(to, END, &[])
}

/// Reads a machine that says `text` of itself: `begin` has what the VMM wrote of it come out of a pipe, and its disk's bytes are written to
/// an empty one of so many.
pub(crate) fn read<T>(
    from: UnixStream,
    text: &str,
    begin: impl FnOnce(&OwnedFd) -> io::Result<T>,
    (disk, size): (&File, u64),
) -> io::Result<T> {
    let mut from = Pieces { from, payload: Vec::new() };
    if from.next()? != HEAD {
        return Err(wrong("this is no saved machine"));
    }
    if from.payload != text.as_bytes() {
        let said = String::from_utf8_lossy(&from.payload).into_owned();
        return Err(wrong(&format!("what was saved is another machine than this one: {said:?} is not {text:?}")));
    }
    let (out, pipe) = wide_pipe()?;
    let passing = std::thread::spawn(move || -> io::Result<(u8, Pieces)> {
        let mut pipe = File::from(pipe);
        loop {
            match from.next()? {
                STATE => pipe.write_all(&from.payload)?,
                other => return Ok((other, from)),
            }
        }
    });
    let begun = begin(&out);
    drop(out);
    let passed = passing.join().map_err(|_| io::Error::other("what was saved could not be passed on"))?;
    // Of the two reasons, the VMM's own.
    let begun = begun?;
    let (mut kind, mut from) = passed?;
    loop {
        match kind {
            END => return Ok(begun),
            DISK => {
                let (offset, bytes) =
                    from.payload.split_first_chunk().ok_or_else(|| wrong("half a piece of a disk"))?;
                let offset = u64::from_le_bytes(*offset);
                if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > size) {
                    return Err(wrong("what was saved has more on its disk than there is room for"));
                }
                disk.write_all_at(bytes, offset)?;
            }
            _ => return Err(wrong("the pieces of a saved machine are in disorder")),
        }
        kind = from.next()?;
    }
}

/// Pieces, one after the other.
struct Pieces {
    from: UnixStream,
    payload: Vec<u8>,
}

impl Pieces {
    /// The kind of the next one, whose payload is kept.
    fn next(&mut self) -> io::Result<u8> {
        let mut header = [0; HEADER];
        let whole = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "the saved machine is not whole"),
            _ => error,
        };
        self.from.read_exact(&mut header).map_err(whole)?;
        let (kind, length) = piece(header)?;
        self.payload.resize(length, 0);
        self.from.read_exact(&mut self.payload).map_err(whole)?;
        Ok(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 8 << 20;

    fn disk() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        file
    }

    fn written() -> Vec<u8> {
        let disk = disk();
        disk.write_all_at(&[7; 5000], 4 << 20).unwrap();
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            there.read_to_end(&mut all).map(|_| all)
        });
        let save = |pipe: &OwnedFd| File::from(pipe.try_clone()?).write_all(&[3; 300_000]);
        write(&mut here, "a machine", save, &disk).unwrap();
        drop(here);
        reader.join().unwrap().unwrap()
    }

    fn read_back(bytes: Vec<u8>, text: &str) -> io::Result<(Vec<u8>, File)> {
        let (here, mut there) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || there.write_all(&bytes));
        let disk = disk();
        let begin = |pipe: &OwnedFd| {
            let mut all = Vec::new();
            File::from(pipe.try_clone()?).read_to_end(&mut all).map(|_| all)
        };
        let state = read(here, text, begin, (&disk, SIZE));
        let _ = writer.join();
        Ok((state?, disk))
    }

    #[test]
    fn what_was_written_comes_back() {
        let (state, disk) = read_back(written(), "a machine").unwrap();
        assert!(state == [3; 300_000]);
        let mut bytes = [0; 5001];
        disk.read_exact_at(&mut bytes, 4 << 20).unwrap();
        assert!(bytes[..5000] == [7; 5000] && bytes[5000] == 0);
    }

    #[test]
    fn what_is_not_whole_or_of_another_machine_is_an_error() {
        let all = written();
        for length in [0, 3, 100, all.len() / 2, all.len() - HEADER, all.len() - 1] {
            let error = read_back(all[..length].to_vec(), "a machine").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{length}: {error}");
        }
        let error = read_back(all.clone(), "another").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut longer = all;
        longer[HEADER + 9 + 4] = 0xff;
        assert_eq!(read_back(longer, "a machine").unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_disk_is_not_written_to_behind_its_end() {
        let mut bytes = Vec::new();
        for (kind, payload) in [(HEAD, b"m".to_vec()), (DISK, [&SIZE.to_le_bytes()[..], b"x"].concat()), (END, vec![])]
        {
            bytes.push(kind);
            bytes.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
            bytes.extend(payload);
        }
        assert_eq!(read_back(bytes, "m").unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
