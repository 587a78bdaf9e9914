//! The device that runs guests, for sandboxes around machines.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::mount::MountAttrFlags;
use rustix::process::{Gid, Uid};
use sandpool_walls::setup::new_mount;

/// The host's.
const DEVICE: &str = "/dev/kvm";

/// A file system with nothing but a node of it, `kvm`, which this user alone may open. Whom the host lets open its own does not matter:
/// a VMM is nobody there.
///
/// # Errors
/// Where the host has none, or does not let us make a node.
pub(super) fn node(owner: u32) -> io::Result<OwnedFd> {
    let about = |what: &str, error: rustix::io::Errno| io::Error::other(format!("{what}: {error}"));
    let there = rustix::fs::stat(DEVICE).map_err(|error| about(DEVICE, error))?;
    if FileType::from_raw_mode(there.st_mode) != FileType::CharacterDevice {
        return Err(io::Error::other(format!("{DEVICE} is no device")));
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let site = new_mount("tmpfs", &[("size", "4096"), ("nr_inodes", "4"), ("mode", "755")], attributes)?;
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(&site, "kvm", FileType::CharacterDevice, mode, there.st_rdev)
        .map_err(|error| about("a node of /dev/kvm", error))?;
    let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
    rustix::fs::chownat(&site, "kvm", Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| about("the owner of a node of /dev/kvm", error))?;
    Ok(site)
}
