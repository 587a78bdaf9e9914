//! What was prepared of machines on a host, as those find it who declare pools.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The level's name where the processor is emulated.
pub const EMULATED: &str = "microvm-emulated (not a boundary)";

/// What tells of it, in the directory of what machines are made of.
const FILE: &str = "prepared.json";

/// What machines of this host are made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// The VMM's root, below the images.
    pub root: PathBuf,
    /// The VMM, as it names itself.
    pub vmm: String,
    /// The guests' kernel: its release.
    pub kernel: String,
    /// The processor is emulated: then a machine is no boundary.
    pub is_emulated: bool,
}

impl Prepared {
    /// The directory of what machines are made of, on a host with these images.
    #[must_use]
    pub fn directory(images: &Path) -> PathBuf {
        images.join("machines")
    }

    /// What was prepared last.
    ///
    /// # Errors
    /// `NotFound` where nothing was.
    pub fn read(images: &Path) -> io::Result<Self> {
        let bytes = fs::read(Self::directory(images).join(FILE))?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    /// Says it to those who read it.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn write(&self, images: &Path) -> io::Result<()> {
        let directory = Self::directory(images);
        let partial = directory.join(format!("{FILE}.partial"));
        fs::write(&partial, serde_json::to_vec_pretty(self).map_err(io::Error::other)?)?;
        fs::rename(partial, directory.join(FILE))
    }

    /// Where an image is as a block device: beside its root file system, so that it goes with it.
    #[must_use]
    pub fn disk(rootfs: &Path) -> PathBuf {
        let mut path = rootfs.as_os_str().to_owned();
        path.push(".erofs");
        path.into()
    }

    /// The level, as it is told to those whose code runs there.
    #[must_use]
    pub fn level(&self) -> String {
        if self.is_emulated { EMULATED.to_owned() } else { format!("microvm ({})", self.vmm) }
    }
}
