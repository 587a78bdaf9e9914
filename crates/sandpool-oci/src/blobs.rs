//! Blobs: files under the digest of what is in them.
//!
//! ```text
//! <directory>/sha256/<64 digits>            whole, and what its name says
//! <directory>/sha256/<64 digits>.partial    as far as it has come
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::OciError;

/// Bytes that are read at once.
const PIECE: usize = 256 * 1024;

/// A directory of blobs.
#[derive(Clone, Debug)]
pub struct Blobs {
    directory: PathBuf,
}

impl Blobs {
    /// Opens it; makes it when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(directory: &Path) -> Result<Self, OciError> {
        let directory = directory.join("sha256");
        fs::create_dir_all(&directory).map_err(OciError::io(directory.display()))?;
        Ok(Self { directory })
    }

    /// Waits until nobody else changes what is here. Whoever adds or removes blobs holds it meanwhile, of all processes.
    ///
    /// # Errors
    /// When the directory cannot be written to.
    pub fn lock(&self) -> Result<File, OciError> {
        let file = File::options().create(true).append(true).open(self.directory.join("lock"));
        let file = file.map_err(OciError::io(self.directory.display()))?;
        let locked = rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive);
        locked.map_err(|error| OciError::io(self.directory.display())(error.into()))?;
        Ok(file)
    }

    /// Where a blob is, or will be.
    ///
    /// # Errors
    /// `Malformed` for a digest of another kind than SHA-256, or none.
    pub fn path(&self, digest: &str) -> Result<PathBuf, OciError> {
        Ok(self.directory.join(digits(digest)?))
    }

    /// Whether a blob is here.
    ///
    /// # Errors
    /// As [`Blobs::path`].
    pub fn has(&self, digest: &str) -> Result<bool, OciError> {
        Ok(self.path(digest)?.is_file())
    }

    /// Opens a blob.
    ///
    /// # Errors
    /// When it is not here.
    pub fn read(&self, digest: &str) -> Result<File, OciError> {
        let path = self.path(digest)?;
        File::open(&path).map_err(OciError::io(path.display()))
    }

    /// A small blob, whole.
    ///
    /// # Errors
    /// When it is not here, or has more than `most` bytes.
    pub fn read_small(&self, digest: &str, most: u64) -> Result<Vec<u8>, OciError> {
        let mut bytes = Vec::new();
        let path = self.path(digest)?;
        self.read(digest)?.take(most + 1).read_to_end(&mut bytes).map_err(OciError::io(path.display()))?;
        if bytes.len() as u64 > most {
            return Err(OciError::TooLarge(format!("{digest} has more than {most} bytes")));
        }
        Ok(bytes)
    }

    /// Goes on with a blob that is coming, from where it stopped. The first bytes that are here already are hashed again.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn resume(&self, digest: &str) -> Result<Coming, OciError> {
        let whole = self.path(digest)?;
        let partial = whole.with_extension("partial");
        let failed = |error| OciError::io(partial.display())(error);
        let mut file = File::options().create(true).read(true).append(true).open(&partial).map_err(failed)?;
        let (mut hash, mut length) = (Sha256::new(), 0);
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => {
                    hash.update(&piece[..count]);
                    length += count as u64;
                }
                Err(error) => return Err(OciError::io(partial.display())(error)),
            }
        }
        Ok(Coming { digest: digest.to_owned(), whole, partial, file, hash, length })
    }

    /// Takes in all of `source`, whatever its digest turns out to be, if it has at most `most` bytes.
    ///
    /// # Errors
    /// When it cannot be read or written, or is longer.
    pub fn take_in(&self, source: &mut impl Read, most: u64) -> Result<String, OciError> {
        let partial = self.directory.join(format!("in-{}.partial", std::process::id()));
        let failed = |error| OciError::io(partial.display())(error);
        let mut file = File::create(&partial).map_err(failed)?;
        let (mut hash, mut length) = (Sha256::new(), 0_u64);
        let mut piece = vec![0; PIECE];
        loop {
            let count = source.read(&mut piece).map_err(OciError::io("the archive"))?;
            if count == 0 {
                break;
            }
            length += count as u64;
            if length > most {
                drop(file);
                // It is in nobody's way.
                let _ = fs::remove_file(&partial);
                return Err(OciError::TooLarge(format!("a part of it has more than {most} bytes")));
            }
            hash.update(&piece[..count]);
            file.write_all(&piece[..count]).map_err(OciError::io(partial.display()))?;
        }
        let digest = format!("sha256:{}", hex::encode(hash.finalize()));
        fs::rename(&partial, self.path(&digest)?).map_err(OciError::io(partial.display()))?;
        Ok(digest)
    }

    /// Removes all but these. Answers how many bytes that were.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn keep_only(&self, digests: &BTreeSet<String>) -> Result<u64, OciError> {
        let failed = |error| OciError::io(self.directory.display())(error);
        let mut freed = 0;
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let entry = entry.map_err(OciError::io(self.directory.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "lock" || digests.contains(&format!("sha256:{name}")) {
                continue;
            }
            freed += entry.metadata().map_or(0, |meta| meta.len());
            fs::remove_file(entry.path()).map_err(OciError::io(entry.path().display()))?;
        }
        Ok(freed)
    }
}

/// A blob that is coming.
#[derive(Debug)]
pub struct Coming {
    digest: String,
    whole: PathBuf,
    partial: PathBuf,
    file: File,
    hash: Sha256,
    length: u64,
}

impl Coming {
    /// How much of it is here.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// More of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), OciError> {
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        self.file.write_all(bytes).map_err(OciError::io(self.partial.display()))
    }

    /// Begins anew.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn clear(&mut self) -> Result<(), OciError> {
        (self.hash, self.length) = (Sha256::new(), 0);
        self.file.set_len(0).map_err(OciError::io(self.partial.display()))
    }

    /// It is whole: it gets its name, if it is what that says. If it is not, nothing of it is left.
    ///
    /// # Errors
    /// `Malformed` when it is something else.
    pub fn finish(self) -> Result<(), OciError> {
        let found = format!("sha256:{}", hex::encode(self.hash.finalize()));
        if found != self.digest {
            // What is wrong is no beginning of what is right.
            let _ = fs::remove_file(&self.partial);
            return Err(OciError::Malformed(format!("{} came as {found}", self.digest)));
        }
        self.file.sync_all().map_err(OciError::io(self.partial.display()))?;
        fs::rename(&self.partial, &self.whole).map_err(OciError::io(self.partial.display()))
    }
}

/// The digits of a digest.
fn digits(digest: &str) -> Result<&str, OciError> {
    let digits = digest.strip_prefix("sha256:").filter(|digits| {
        digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    });
    digits.ok_or_else(|| OciError::Malformed(format!("{digest:?} is no digest of SHA-256")))
}

/// Reads, and knows the digest of what it has read.
pub(crate) struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashed<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    pub(crate) fn digest(self) -> String {
        format!("sha256:{}", hex::encode(self.hash.finalize()))
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        self.hash.update(&out[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_comes_in_pieces_and_is_what_its_name_says() {
        let directory = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(directory.path()).unwrap();
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(b"one and two")));
        let mut coming = blobs.resume(&digest).unwrap();
        coming.add(b"one and ").unwrap();
        drop(coming);
        let mut coming = blobs.resume(&digest).unwrap();
        assert_eq!((coming.length(), blobs.has(&digest).unwrap()), (8, false));
        coming.add(b"two").unwrap();
        coming.finish().unwrap();
        assert_eq!(blobs.read_small(&digest, 100).unwrap(), b"one and two");
        assert!(matches!(blobs.read_small(&digest, 5), Err(OciError::TooLarge(_))));
        // Something else under its name is nothing, and leaves nothing.
        let other = format!("sha256:{}", "0".repeat(64));
        let mut coming = blobs.resume(&other).unwrap();
        coming.add(b"lie").unwrap();
        assert!(matches!(coming.finish(), Err(OciError::Malformed(_))));
        assert_eq!(blobs.resume(&other).unwrap().length(), 0);
        assert_eq!(blobs.keep_only(&BTreeSet::from([digest.clone()])).unwrap(), 0);
        assert!(blobs.has(&digest).unwrap());
        assert_eq!(blobs.keep_only(&BTreeSet::new()).unwrap(), 11);
    }

    #[test]
    fn digests_are_no_paths() {
        let blobs = Blobs::open(tempfile::tempdir().unwrap().path()).unwrap();
        for bad in ["", "sha256:", "sha256:../../etc/passwd", "sha512:00", &format!("sha256:{}", "G".repeat(64))] {
            assert!(matches!(blobs.path(bad), Err(OciError::Malformed(_))), "{bad}");
        }
    }
}
