//! An image's files in memory before its first sandbox, on the launcher's account.
//!
//! Page cache is charged to whoever reads a page first. A sandbox that were charged for its interpreter's own code would,
//! when its memory is full, throw that out and read it again for ever instead of being ended (RS1).

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, Mode, OFlags};

/// Where an image's programs and libraries are.
const PLACES: [&str; 4] = ["usr/bin", "usr/local/bin", "usr/lib", "usr/local/lib"];

/// Bytes and files that are read, at most.
const MAX_BYTES: u64 = 1 << 30;
const MAX_FILES: u32 = 100_000;

/// Asks the kernel to read an image's programs and libraries. Does not wait for the disk longer than the kernel makes it.
pub(super) fn keep(rootfs: &Path) {
    let mut directories: Vec<PathBuf> = PLACES.iter().rev().map(|place| rootfs.join(place)).collect();
    let (mut bytes, mut files) = (0, 0);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            // Of the entry itself: no link is followed out of the image.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                directories.push(entry.path());
            } else if meta.is_file() {
                (bytes, files) = (bytes + meta.len(), files + 1);
                if bytes > MAX_BYTES || files > MAX_FILES {
                    return;
                }
                read_ahead(&entry.path(), meta.len());
            }
        }
    }
}

fn read_ahead(path: &Path, bytes: u64) {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // A file that cannot be read ahead is read when it is needed.
    if let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) {
        let _ = rustix::fs::fadvise(&file, 0, std::num::NonZeroU64::new(bytes), Advice::WillNeed);
    }
}
