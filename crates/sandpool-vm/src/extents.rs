//! What is on a disk that is mostly empty: the pieces of it that hold data.
//!
//! ```text
//! template file: what the VMM wrote | data of all pieces | offset, length of each | where that begins, their count, MAGIC   (u64 each,
//! ```                                                                                                           little endian)

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

const MAGIC: u64 = u64::from_le_bytes(*b"sanddsk1");

/// The most pieces of one disk. A new file system of 1 GiB has 40.
const MOST: usize = 1 << 20;

/// Bytes that are copied at once.
const PIECE: usize = 1 << 20;

/// The pieces of a file that hold data: offset and length of each.
///
/// # Errors
/// Those of the file.
pub(crate) fn of(file: impl AsFd) -> io::Result<Vec<(u64, u64)>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    loop {
        let begins = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(begins) => begins,
            // Nothing but a hole follows.
            Err(Errno::NXIO) => return Ok(pieces),
            Err(error) => return Err(error.into()),
        };
        at = rustix::fs::seek(&file, SeekFrom::Hole(begins))?;
        pieces.push((begins, at - begins));
        if pieces.len() > MOST {
            return Err(io::Error::other("the disk is in too many pieces"));
        }
    }
}

/// Writes what is on a disk to the end of a template's file.
///
/// # Errors
/// Those of the files.
pub(crate) fn append(disk: &Path, template: &OwnedFd) -> io::Result<()> {
    let (disk, template) = (File::open(disk)?, File::from(template.try_clone()?));
    let pieces = of(&disk)?;
    let mut end = template.metadata()?.len();
    for (offset, length) in &pieces {
        copy((&disk, *offset), (&template, end), *length)?;
        end += length;
    }
    let table = pieces.iter().flat_map(|(offset, length)| [*offset, *length]);
    let last = [end, pieces.len() as u64, MAGIC];
    let bytes: Vec<u8> = table.chain(last).flat_map(u64::to_le_bytes).collect();
    template.write_all_at(&bytes, end)
}

/// Writes what a template's file has at its end to an empty disk of so many bytes.
///
/// # Errors
/// `InvalidData` where the file has none for such a disk; those of the files.
pub(crate) fn restore(template: &OwnedFd, disk: &File, size: u64) -> io::Result<()> {
    let template = File::from(template.try_clone()?);
    let is_none = || io::Error::new(io::ErrorKind::InvalidData, "there is no disk in this template");
    let length = template.metadata()?.len();
    let read = |offset: u64, count: usize| -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; count * 8];
        template.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.chunks_exact(8).filter_map(|eight| eight.try_into().ok().map(u64::from_le_bytes)).collect())
    };
    let last = read(length.checked_sub(24).ok_or_else(is_none)?, 3)?;
    let [table, count, MAGIC] = last[..] else { return Err(is_none()) };
    let count = usize::try_from(count).ok().filter(|count| *count <= MOST).ok_or_else(is_none)?;
    if table.checked_add(16 * count as u64 + 24) != Some(length) {
        return Err(is_none());
    }
    let pieces = read(table, 2 * count)?;
    let all = pieces.chunks_exact(2).map(|pair| pair[1]).try_fold(0_u64, u64::checked_add).ok_or_else(is_none)?;
    let mut from = table.checked_sub(all).ok_or_else(is_none)?;
    for pair in pieces.chunks_exact(2) {
        let (offset, length) = (pair[0], pair[1]);
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(is_none());
        }
        copy((&template, from), (disk, offset), length)?;
        from += length;
    }
    Ok(())
}

fn copy((from, mut read_at): (&File, u64), (to, mut write_at): (&File, u64), length: u64) -> io::Result<()> {
    let mut buffer = vec![0; PIECE.min(usize::try_from(length).unwrap_or(PIECE))];
    let mut left = length;
    while left > 0 {
        let count = buffer.len().min(usize::try_from(left).unwrap_or(PIECE));
        from.read_exact_at(&mut buffer[..count], read_at)?;
        to.write_all_at(&buffer[..count], write_at)?;
        (read_at, write_at, left) = (read_at + count as u64, write_at + count as u64, left - count as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_comes_back_out_of_a_template_and_out_of_nothing_else() {
        let size = 64 << 20;
        let place = tempfile::tempdir().unwrap();
        let new = |name: &str| {
            let path = place.path().join(name);
            File::options().create_new(true).read(true).write(true).open(path).unwrap()
        };
        let disk = new("disk");
        disk.set_len(size).unwrap();
        for (offset, byte) in [(0, 1_u8), (5 << 20, 2), (size - 4096, 3)] {
            disk.write_all_at(&[byte; 4096], offset).unwrap();
        }
        let template = new("template");
        template.write_all_at(b"of the VMM", 0).unwrap();
        let template = OwnedFd::from(template);
        append(&place.path().join("disk"), &template).unwrap();
        let again = new("again");
        again.set_len(size).unwrap();
        restore(&template, &again, size).unwrap();
        let all = |name: &str| std::fs::read(place.path().join(name)).unwrap();
        assert!(all("disk") == all("again"));
        // Not to a smaller one, and not from a file that is not whole.
        assert_eq!(restore(&template, &again, size - 4096).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let template = File::from(template);
        template.set_len(template.metadata().unwrap().len() - 1).unwrap();
        assert_eq!(restore(&template.into(), &again, size).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
