//! A machine that was saved, as one stream, for VMMs that write files and not streams.
//!
//! ```text
//! MAGIC | length, bytes of each small file | length of the memory | offset, length, bytes of each piece of it ... | END, 0
//! ```
//!
//! All numbers are u64, little endian. Pieces of memory with nothing in them are left out. The last pair is the end: what stops before it is
//! not whole.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::event::{PollFd, PollFlags, poll};

use super::template::{MAX_STATE, PIECE, each_piece};

const MAGIC: u64 = u64::from_le_bytes(*b"sandpsv1");
const END: u64 = u64::MAX;

/// Writes it: small files, and so many bytes of memory.
pub(super) fn write(to: &OwnedFd, files: &[&[u8]], memory: &File, length: u64) -> io::Result<()> {
    let mut to = Patient(File::from(to.try_clone()?));
    to.write_all(&MAGIC.to_le_bytes())?;
    for file in files {
        to.write_all(&(file.len() as u64).to_le_bytes())?;
        to.write_all(file)?;
    }
    to.write_all(&length.to_le_bytes())?;
    each_piece(memory, length, |offset, piece| {
        if piece.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        to.write_all(&offset.to_le_bytes())?;
        to.write_all(&(piece.len() as u64).to_le_bytes())?;
        to.write_all(piece)
    })?;
    to.write_all(&[END.to_le_bytes(), [0; 8]].concat())
}

/// Reads it: as many small files, and at most so many bytes of memory into an empty file. Answers the files and how long the memory is.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for what is no such stream; [`io::ErrorKind::UnexpectedEof`] for one that is not whole.
pub(super) fn read(from: &OwnedFd, count: usize, memory: &OwnedFd, limit: u64) -> io::Result<(Vec<Vec<u8>>, u64)> {
    let is_none = || io::Error::new(io::ErrorKind::InvalidData, "this is no machine that was saved");
    let mut from = Patient(File::from(from.try_clone()?));
    let memory = File::from(memory.try_clone()?);
    if from.number()? != MAGIC {
        return Err(is_none());
    }
    let mut files = Vec::new();
    for _ in 0..count {
        let length = usize::try_from(from.number()?).ok().filter(|length| *length <= MAX_STATE).ok_or_else(is_none)?;
        let mut file = vec![0; length];
        from.read_exact(&mut file)?;
        files.push(file);
    }
    let length = from.number()?;
    if length > limit {
        return Err(is_none());
    }
    memory.set_len(length)?;
    let mut piece = vec![0; PIECE];
    loop {
        let (offset, count) = (from.number()?, from.number()?);
        if offset == END && count == 0 {
            return Ok((files, length));
        }
        let count = usize::try_from(count).ok().filter(|count| (1..=PIECE).contains(count)).ok_or_else(is_none)?;
        if offset.checked_add(count as u64).is_none_or(|end| end > length) {
            return Err(is_none());
        }
        from.read_exact(&mut piece[..count])?;
        memory.write_all_at(&piece[..count], offset)?;
    }
}

/// A file or pipe that is waited for, also where it does not block.
struct Patient(File);

impl Patient {
    fn number(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn wait<T>(&mut self, flags: PollFlags, mut once: impl FnMut(&mut File) -> io::Result<T>) -> io::Result<T> {
        loop {
            match once(&mut self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, flags)], None)?;
                }
                done => return done,
            }
        }
    }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait(PollFlags::IN, |file| file.read(buffer))
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(PollFlags::OUT, |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;
    use crate::vmm::template::memory_file;

    fn saved() -> Vec<u8> {
        let memory = File::from(memory_file("memory", 10 * PIECE as u64).unwrap());
        memory.write_all_at(b"somewhere", 7 * PIECE as u64 - 4).unwrap();
        // Through a pipe that does not block, and is too small for it.
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let writer = std::thread::spawn(move || super::write(&write, &[b"one", b""], &memory, 10 * PIECE as u64));
        let mut bytes = Vec::new();
        Patient(File::from(read)).read_to_end(&mut bytes).unwrap();
        writer.join().unwrap().unwrap();
        bytes
    }

    fn again(bytes: &[u8], limit: u64) -> io::Result<(Vec<Vec<u8>>, File)> {
        let from = memory_file("saved", 0)?;
        File::from(from.try_clone()?).write_all_at(bytes, 0)?;
        let memory = memory_file("memory", 0)?;
        read(&from, 2, &memory, limit).map(|(files, _)| (files, File::from(memory)))
    }

    #[test]
    fn what_was_saved_is_read_again() {
        let bytes = saved();
        assert!(bytes.len() < 3 * PIECE, "{}", bytes.len());
        let (files, memory) = again(&bytes, 10 * PIECE as u64).unwrap();
        assert_eq!(files, [b"one".to_vec(), Vec::new()]);
        let mut found = [0; 9];
        memory.read_exact_at(&mut found, 7 * PIECE as u64 - 4).unwrap();
        assert_eq!(&found, b"somewhere");
        assert_eq!(memory.metadata().unwrap().len(), 10 * PIECE as u64);
    }

    #[test]
    fn what_is_not_whole_or_too_much_is_refused() {
        let bytes = saved();
        for cut in [0, 8, 12, 30, PIECE, bytes.len() - 1] {
            let error = again(&bytes[..cut], u64::MAX).err().map(|error| error.kind());
            assert_eq!(error, Some(io::ErrorKind::UnexpectedEof), "{cut}");
        }
        let kind = |bytes: &[u8], limit| again(bytes, limit).err().map(|error| error.kind());
        assert_eq!(kind(&bytes, 9 * PIECE as u64), Some(io::ErrorKind::InvalidData));
        for (place, value) in [(0, 1), (15, 0xff), (42, 0xff), (43, 0xff)] {
            let mut wrong = bytes.clone();
            wrong[place] = value;
            assert_eq!(kind(&wrong, u64::MAX >> 1), Some(io::ErrorKind::InvalidData), "{place}");
        }
    }
}
