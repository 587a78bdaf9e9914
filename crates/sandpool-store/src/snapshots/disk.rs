//! What is done to a disk, as few operations as there can be: so that a test can cut the power after each of them ([`super::cut`]).

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// A disk. All of it waits for the disk: not for the threads that serve.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Makes a directory for nobody else.
    ///
    /// # Errors
    /// Those of the file system, here and below.
    fn make_directory(&self, path: &Path) -> io::Result<()>;

    /// Makes a file that is not there yet, for nobody else.
    ///
    /// # Errors
    /// As above.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Written>>;

    /// A file to read, and its length.
    ///
    /// # Errors
    /// As above.
    fn open(&self, path: &Path) -> io::Result<(Box<dyn Read + Send>, u64)>;

    /// The names in a directory.
    ///
    /// # Errors
    /// As above.
    fn names(&self, directory: &Path) -> io::Result<Vec<String>>;

    /// Gives a directory another name, at once or not at all.
    ///
    /// # Errors
    /// As above.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Returns when what was done to the names in a directory outlives the power.
    ///
    /// # Errors
    /// As above.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// As above.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory in which nothing is.
    ///
    /// # Errors
    /// As above.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;
}

/// A file that is written.
pub trait Written: Send {
    /// Appends all of it.
    ///
    /// # Errors
    /// Those of the file system: then a part of it may be there.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Returns when what was written outlives the power.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync(&mut self) -> io::Result<()>;
}

/// The host's own.
#[derive(Debug)]
pub struct HostDisk;

impl Disk for HostDisk {
    fn make_directory(&self, path: &Path) -> io::Result<()> {
        std::fs::DirBuilder::new().mode(0o700).create(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Written>> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<(Box<dyn Read + Send>, u64)> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        Ok((Box::new(file), metadata.len()))
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(directory)?;
        names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }
}

impl Written for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}
