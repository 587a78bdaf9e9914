//! The file of a pool's template: a machine as it stood, from which others go on.
//!
//! ```text
//! memory of the machine | MAGIC, length of what follows | state of its devices     (u64 each, little endian)
//! ```
//!
//! Machines that go on from it map the memory, each privately. Others may write to its end, so that nothing is known by where it ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, SeekFrom};

use super::Kind;

/// The longest state of devices, in bytes. QEMU's has been 60 KiB.
pub(super) const MAX_STATE: usize = 32 << 20;

/// Bytes before a state of devices.
const HEADER: u64 = 16;

/// Memory is looked through in such pieces, of which those with nothing in them take up no room.
pub(super) const PIECE: usize = 64 << 10;

fn magic(vmm: Kind) -> u64 {
    u64::from_le_bytes(match vmm {
        Kind::Qemu => *b"sandpvm2",
        Kind::Firecracker => *b"sandpvf1",
        Kind::CloudHypervisor => *b"sandpvc1",
    })
}

/// Writes the state of devices behind the memory.
pub(super) fn complete(vmm: Kind, file: &OwnedFd, memory: u64, state: &[u8]) -> io::Result<()> {
    if state.len() > MAX_STATE {
        return Err(io::Error::other("the state of the devices is too long"));
    }
    let file = File::from(file.try_clone()?);
    let header = [magic(vmm).to_le_bytes(), (state.len() as u64).to_le_bytes()].concat();
    file.write_all_at(&header, memory)?;
    file.write_all_at(state, memory + HEADER)
}

/// The state of devices: the file, open anew where that begins, and how long it is.
pub(super) fn state_of(vmm: Kind, file: &OwnedFd, memory: u64) -> io::Result<(File, usize)> {
    let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let mut header = [0; 16];
    let is_none = || io::Error::new(io::ErrorKind::InvalidData, "this is no template of such a machine");
    file.read_exact_at(&mut header, memory).map_err(|_| is_none())?;
    let (said, length) = header.split_at(8);
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
    let (begins, length) = (memory + HEADER, number(length));
    if number(said) != magic(vmm) || length > MAX_STATE as u64 || begins + length > file.metadata()?.len() {
        return Err(is_none());
    }
    rustix::fs::seek(&file, SeekFrom::Start(begins))?;
    Ok((file, usize::try_from(length).map_err(io::Error::other)?))
}

/// The state of devices, read.
pub(super) fn read_state(vmm: Kind, file: &OwnedFd, memory: u64) -> io::Result<Vec<u8>> {
    let (mut file, length) = state_of(vmm, file, memory)?;
    let mut state = vec![0; length];
    io::Read::read_exact(&mut file, &mut state)?;
    Ok(state)
}

/// Gives back what a file has for pieces of it, within its first `length` bytes, that nothing is in.
pub(super) fn make_sparse(file: &OwnedFd, length: u64) -> io::Result<()> {
    let reader = File::from(file.try_clone()?);
    each_piece(&reader, length, |offset, piece| {
        if piece.iter().any(|byte| *byte != 0) {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(file, flags, offset, piece.len() as u64)?)
    })
}

/// Copies the first `length` bytes of a file into another that is empty.
pub(super) fn copy(from: &File, length: u64, to: &OwnedFd) -> io::Result<()> {
    let to = File::from(to.try_clone()?);
    to.set_len(length)?;
    each_piece(
        from,
        length,
        |offset, piece| {
            if piece.iter().all(|byte| *byte == 0) { Ok(()) } else { to.write_all_at(piece, offset) }
        },
    )
}

/// Reads a file piece by piece.
pub(super) fn each_piece(
    file: &File,
    length: u64,
    mut each: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    while offset < length {
        let count = usize::try_from(length - offset).map_or(PIECE, |left| left.min(PIECE));
        file.read_exact_at(&mut piece[..count], offset)?;
        each(offset, &piece[..count])?;
        offset += count as u64;
    }
    Ok(())
}

/// A file in memory, of the user that the caller has files as.
pub(super) fn memory_file(name: &str, length: u64) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, length)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_template_is_of_one_vmm_and_one_size() {
        let file = memory_file("template", 1 << 20).unwrap();
        complete(Kind::Firecracker, &file, 1 << 20, b"state").unwrap();
        assert_eq!(read_state(Kind::Firecracker, &file, 1 << 20).unwrap(), b"state");
        // What others add behind it does not matter.
        let end = File::from(file.try_clone().unwrap());
        end.write_all_at(b"more", end.metadata().unwrap().len()).unwrap();
        assert_eq!(read_state(Kind::Firecracker, &file, 1 << 20).unwrap(), b"state");
        for (vmm, memory) in
            [(Kind::CloudHypervisor, 1 << 20), (Kind::Firecracker, 1 << 19), (Kind::Firecracker, 1 << 21)]
        {
            let error = read_state(vmm, &file, memory).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{vmm:?} {memory}");
        }
        // Cut short.
        end.set_len((1 << 20) + 18).unwrap();
        assert!(read_state(Kind::Firecracker, &file, 1 << 20).is_err());
    }

    #[test]
    fn nothing_takes_up_no_room() {
        let file = File::from(memory_file("memory", 0).unwrap());
        file.write_all_at(&vec![0; 8 * PIECE], 0).unwrap();
        file.write_all_at(b"x", 3 * PIECE as u64 + 5).unwrap();
        let length = file.metadata().unwrap().len();
        let copied = memory_file("copy", 0).unwrap();
        copy(&file, length, &copied).unwrap();
        let file = OwnedFd::from(file);
        make_sparse(&file, length).unwrap();
        for file in [File::from(file), File::from(copied)] {
            assert_eq!(file.metadata().unwrap().len(), length);
            assert!(file.metadata().unwrap().blocks() * 512 <= 2 * PIECE as u64, "{:?}", file.metadata());
            let mut byte = [0];
            file.read_exact_at(&mut byte, 3 * PIECE as u64 + 5).unwrap();
            assert_eq!(byte, *b"x");
        }
    }
}
