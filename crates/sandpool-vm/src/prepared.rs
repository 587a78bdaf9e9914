//! What was prepared of machines on a host, as those find it who declare pools.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::identity::Identity;
use crate::vmm::Kind;

/// The level's name where the processor is emulated.
pub const EMULATED: &str = "microvm-emulated (not a boundary)";

/// What tells of it, in the directory of what machines are made of.
const FILE: &str = "prepared.json";

/// What machines of this host are made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// The VMM's root, below the images.
    pub root: PathBuf,
    /// The VMM with its version, for people.
    pub vmm: String,
    /// Which that is.
    pub kind: Kind,
    /// The guests' kernel: its release.
    pub kernel: String,
    /// The processor is emulated: then a machine is no boundary.
    pub is_emulated: bool,
    /// Why the host's processors are not used, where nobody wanted that.
    pub no_kvm: Option<String>,
    /// Whose kernel the host runs, as root sees it.
    pub host: Identity,
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

    /// Whether the guests' kernel can forbid ports: Linux 6.7 was the first (Landlock's fourth version).
    #[must_use]
    pub fn forbids_ports(&self) -> bool {
        let mut numbers = self.kernel.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 7))
    }

    /// The level, as it is told to those whose code runs there.
    #[must_use]
    pub fn level(&self) -> String {
        if self.is_emulated { EMULATED.to_owned() } else { format!("microvm ({})", self.vmm) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart_by_their_numbers() {
        let forbids = |kernel: &str| {
            let kernel = kernel.to_owned();
            let (vmm, kind, host) = (String::new(), Kind::Qemu, Identity::here().unwrap());
            Prepared { root: "/".into(), vmm, kind, kernel, is_emulated: true, no_kvm: None, host }.forbids_ports()
        };
        assert!(!forbids("6.1.0-56-cloud-amd64") && !forbids("5.10.0") && !forbids("") && !forbids("6"));
        assert!(forbids("6.12.9+deb13-cloud-amd64") && forbids("6.7.0") && forbids("7.0"));
    }
}
