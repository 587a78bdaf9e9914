//! What machines are made of: made once on a host, by root, of what the host's distribution has.
//!
//! ```text
//! <directory>/kernel/           Debian's package of a kernel for clouds, unpacked; never installed
//! <directory>/vmm-<of what>/    the VMM's root: its program and libraries, copied; the kernel; the first root file system
//! <directory>/trials.json      whether this host's processors run the guests' kernel
//! <directory>/prepared.json    which of these are to be used
//! <image's root>.erofs         the image as a block device
//! ```
//!
//! Each is made beside its place and then moved there: what is there is whole.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::found::{self, Choice, Vmm, Wanted};
use crate::guest::MODULES;
use crate::identity::Identity;
use crate::prepared::Prepared;
use crate::vmm::{INITRD, KERNEL, Kind, PARTS, PLAIN_KERNEL, PLATFORM, Place, Platform};
use crate::{trial, unpack};

/// The package that stands for the newest kernel for clouds.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// What the first program loads, in this order. Kernels that have one built in need no module for it. By a machine's VMM its devices are on
/// one transport or another, and its port is a serial one or a socket.
fn order(vmm: Kind) -> Vec<&'static str> {
    let (transport, port): (&[_], &[_]) = match vmm {
        Kind::Qemu => (&["virtio_mmio"], &["virtio_console"]),
        Kind::Firecracker => (&["virtio_mmio"], VSOCK),
        Kind::CloudHypervisor => (&["virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"], VSOCK),
    };
    let parts = [&["virtio_ring", "virtio"], transport, &["virtio_blk"], port, &["libcrc32c", "erofs", "overlay"]];
    parts.concat()
}

const VSOCK: &[&str] = &["vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"];

/// What makes the sessions' disks, inside the VMM's root.
const MAKER: &str = "/usr/sbin/mke2fs";

/// What QEMU's machine type `microvm` starts with.
const FIRMWARE: [&str; 4] = ["bios-microvm.bin", "qboot.rom", "linuxboot_dma.bin", "pvh.bin"];
const FIRMWARE_PLACE: &str = "/usr/share/qemu";

/// Where Debian's QEMU has its emulator, which it loads when it is asked for.
const EMULATOR: &str = "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so";

/// What is missing, and how to get it.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {remedy}")]
pub struct Missing {
    /// What is missing.
    pub what: String,
    /// How to get it.
    pub remedy: String,
}

fn missing(what: impl Into<String>, remedy: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, Missing { what: what.into(), remedy: remedy.into() })
}

/// Runs a program of the host to its end.
fn run(command: &mut Command, package: &str) -> io::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let done = command.stdin(Stdio::null()).output();
    let done =
        done.map_err(|error| missing(format!("{name} cannot be run ({error})"), format!("apt-get install {package}")))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let last: Vec<&str> = said.lines().rev().take(3).collect();
    Err(io::Error::other(format!("{name}: {} {}", done.status, last.into_iter().rev().collect::<Vec<_>>().join(" "))))
}

/// A kernel that was unpacked.
#[derive(Clone, Debug)]
struct Kernel {
    /// Its release, such as `6.1.0-56-cloud-amd64`.
    release: String,
    directory: PathBuf,
}

impl Kernel {
    fn find(directory: &Path) -> Option<Self> {
        let entries = fs::read_dir(directory.join("boot")).ok()?.flatten();
        let names = entries.filter_map(|entry| entry.file_name().to_str().map(str::to_owned));
        let release = names.filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned)).max()?;
        Some(Self { release, directory: directory.to_owned() })
    }

    fn image(&self) -> PathBuf {
        self.directory.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// Below `lib`, or where everything is in `usr`.
    fn modules(&self) -> PathBuf {
        let places = ["lib/modules", "usr/lib/modules"].map(|place| self.directory.join(place).join(&self.release));
        let [first, second] = places;
        if first.is_dir() { first } else { second }
    }
}

/// The kernel that is there, or else is fetched by the host's package manager: about 27 MB, which is unpacked and not installed.
///
/// # Errors
/// [`Missing`] on a host that is no Debian; those of the package manager.
fn kernel(directory: &Path) -> io::Result<Kernel> {
    let place = directory.join("kernel");
    if let Some(kernel) = Kernel::find(&place) {
        return Ok(kernel);
    }
    let partial = fresh(&directory.join("kernel.partial"))?;
    let depends = run(Command::new("apt-cache").args(["depends", "--important", PACKAGE]), "apt")?;
    let package = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"));
    let package =
        package.ok_or_else(|| missing(format!("no package {PACKAGE}"), "apt-get update, on Debian 12 or newer"))?;
    run(Command::new("apt-get").args(["--quiet", "download", package]).current_dir(&partial), "apt")?;
    let archive = fs::read_dir(&partial)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "deb"));
    let archive = archive.ok_or_else(|| io::Error::other(format!("{package} was downloaded and is not there")))?;
    run(Command::new("dpkg-deb").arg("-x").args([&archive, &partial]), "dpkg")?;
    fs::remove_file(archive)?;
    let _ = fs::remove_dir_all(&place);
    fs::rename(&partial, &place)?;
    Kernel::find(&place).ok_or_else(|| io::Error::other(format!("{package} has no kernel in it")))
}

/// An empty directory for what is not whole yet.
fn fresh(partial: &Path) -> io::Result<PathBuf> {
    let _ = fs::remove_dir_all(partial);
    fs::create_dir_all(partial)?;
    fs::canonicalize(partial)
}

/// The first root file system: an archive in the form that kernels unpack (cpio, "newc").
fn first_root(vmm: Kind, kernel: &Kernel, agent: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.add("init", 0o100_755, agent);
    archive.add(MODULES.trim_start_matches('/'), 0o040_755, &[]);
    // Where there is no console a program starts without standard streams, and opens this in their place.
    archive.add("dev", 0o040_755, &[]);
    archive.add_device("dev/null", (1, 3));
    let built_in = fs::read_to_string(kernel.modules().join("modules.builtin")).unwrap_or_default();
    let mut all = Vec::new();
    files_below(&kernel.modules().join("kernel"), &mut all)?;
    for (number, name) in order(vmm).iter().enumerate() {
        // Kernels call it by either.
        let is_it = |path: &Path, end: &str| {
            path.file_name()
                .and_then(|file| file.to_str())
                .and_then(|file| file.strip_suffix(end))
                .is_some_and(|stem| stem.replace('-', "_") == *name)
        };
        let bytes = if let Some(plain) = all.iter().find(|path| is_it(path, ".ko")) {
            fs::read(plain)?
        } else if let Some(packed) = all.iter().find(|path| is_it(path, ".ko.xz")) {
            let done = Command::new("xz").arg("-dc").arg(packed).stdin(Stdio::null()).output();
            done.map_err(|error| missing(format!("xz cannot be run ({error})"), "apt-get install xz-utils"))?.stdout
        } else if built_in.lines().any(|line| is_it(Path::new(line), ".ko")) {
            continue;
        } else {
            return Err(io::Error::other(format!("the kernel {} has no {name}", kernel.release)));
        };
        archive.add(&format!("{}/{number:02}-{name}.ko", MODULES.trim_start_matches('/')), 0o100_644, &bytes);
    }
    Ok(archive.end())
}

fn files_below(directory: &Path, all: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { files_below(&entry.path(), all)? } else { all.push(entry.path()) }
    }
    Ok(())
}

/// A cpio archive of the kind "newc": all numbers are eight hexadecimal digits, and each part ends at a multiple of four.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    count: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.record(name, mode, data, (0, 0));
    }

    fn add_device(&mut self, name: &str, number: (u32, u32)) {
        self.record(name, 0o020_666, &[], number);
    }

    fn record(&mut self, name: &str, mode: u32, data: &[u8], (major, minor): (u32, u32)) {
        self.count += 1;
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let numbers = [self.count, mode, 0, 0, 1, 0, length, 0, 0, major, minor];
        let mut header = "070701".to_owned();
        for number in numbers.into_iter().chain([u32::try_from(name.len() + 1).unwrap_or(u32::MAX), 0]) {
            // Writing to a string cannot fail.
            let _ = write!(header, "{number:08x}");
        }
        self.bytes.extend([header.as_bytes(), name.as_bytes(), &[0]].concat());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.bytes.extend(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// The root that VMMs of this host run in, made anew where what it is made of has changed. Copies, so that no machine ever sees a
/// file that the host executes.
///
/// # Errors
/// [`Missing`], and those of the host's disk.
fn root(directory: &Path, vmm: &Vmm, is_emulated: bool, kernel: &Kernel, agent: &[u8]) -> io::Result<PathBuf> {
    let first = first_root(vmm.kind, kernel, agent)?;
    let of_what = format!("{} {is_emulated}", of_what(vmm, kernel)?);
    let place = directory.join(format!("vmm-{:016x}", digest(&[of_what.as_bytes(), &first])));
    if place.is_dir() {
        return fs::canonicalize(place);
    }
    let partial = fresh(&directory.join("vmm.partial"))?;
    for place in
        ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "machine", "proc", "dev", "tmp", "mnt", "home", "etc", "var"]
    {
        fs::create_dir_all(partial.join(place))?;
    }
    for (name, target) in [("lib", "usr/lib"), ("lib64", "usr/lib64"), ("bin", "usr/bin"), ("sbin", "usr/sbin")] {
        symlink(target, partial.join(name))?;
    }
    let mut files: BTreeSet<PathBuf> = [PathBuf::from(MAKER)].into();
    if vmm.kind == Kind::Qemu && Path::new(EMULATOR).exists() {
        files.insert(EMULATOR.into());
    }
    for program in files.clone().iter().chain([&vmm.path]) {
        files.extend(libraries(program)?);
    }
    if vmm.kind == Kind::Qemu {
        files.extend(FIRMWARE.map(|name| Path::new(FIRMWARE_PLACE).join(name)));
    }
    let program = partial.join("usr/bin").join(vmm.kind.program());
    fs::copy(&vmm.path, &program).map_err(|error| about(&vmm.path, &error))?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o755))?;
    for file in files {
        // Also on hosts where `/lib` is a directory of its own.
        let inside = file.strip_prefix("/").unwrap_or(&file);
        let inside = if inside.starts_with("usr") { inside.to_owned() } else { Path::new("usr").join(inside) };
        let to = partial.join(inside);
        fs::create_dir_all(to.parent().unwrap_or(&partial))?;
        fs::copy(&file, &to).map_err(|error| about(&file, &error))?;
    }
    let parts = partial.join(PARTS);
    // All that a VMM may need of the kernel, and nothing else: Firecracker takes it unpacked alone.
    let (name, file) = match vmm.kind {
        Kind::Qemu | Kind::CloudHypervisor => (KERNEL, fs::read(kernel.image())?),
        Kind::Firecracker => (PLAIN_KERNEL, unpack::kernel(&fs::read(kernel.image())?)?),
    };
    let platform = Platform { vmm: vmm.kind, is_emulated, tsc_khz: sandpool_sys::machine::tsc_khz() };
    let platform = serde_json::to_vec(&platform).map_err(io::Error::other)?;
    for (name, bytes) in [(name, file), (INITRD, first), (PLATFORM, platform)] {
        fs::write(parts.join(name), bytes)?;
        fs::set_permissions(parts.join(name), fs::Permissions::from_mode(0o644))?;
    }
    fs::rename(&partial, &place)?;
    fs::canonicalize(place)
}

/// What tells a VMM's root from others, besides what is in its first root file system.
fn of_what(vmm: &Vmm, kernel: &Kernel) -> io::Result<String> {
    let meta = fs::metadata(&vmm.path).map_err(|error| about(&vmm.path, &error))?;
    Ok(format!("{} {} {} {}", vmm.name(), meta.len(), meta.mtime(), kernel.release))
}

fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The files that a program loads when it starts.
fn libraries(program: &Path) -> io::Result<Vec<PathBuf>> {
    match run(Command::new("ldd").arg(program), "libc-bin") {
        // `libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x...)`, and the loader's path alone.
        Ok(said) => Ok(said.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()),
        Err(error) if error.to_string().contains("not a dynamic executable") => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// An image as a block device for reading, made once of its root file system: not packed, so that reading it costs no computing.
///
/// # Errors
/// [`Missing`], and those of the host's disk.
fn disk(rootfs: &Path) -> io::Result<()> {
    let place = Prepared::disk(rootfs);
    if place.exists() {
        return Ok(());
    }
    let partial = place.with_extension("partial");
    let _ = fs::remove_file(&partial);
    run(Command::new("mkfs.erofs").arg("-T0").arg(&partial).arg(rootfs), "erofs-utils")?;
    fs::rename(&partial, &place)
}

/// Prepares all that machines of these images need and that is not there yet, and says so to those who declare pools. `agent` is
/// the first program inside. Of several at one time, one does it.
///
/// Where the host's processors are to run machines, one is booted to see that they can, once until the host boots again: at most 15 s. Where
/// they cannot, and nobody has said that they must, a processor is emulated, and the reason kept.
///
/// # Errors
/// [`Missing`], and those of the host's disk and of its package manager.
pub fn prepare(images: &Path, rootfs: &[&Path], agent: &[u8], wanted: &Wanted) -> io::Result<Prepared> {
    let directory = Prepared::directory(images);
    fs::create_dir_all(&directory)?;
    let lock = fs::File::create(directory.join("lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    let unusable = |why: String| missing(format!("{} cannot be used", wanted.vmm().word()), why);
    let vmm = found::choose(wanted).map_err(unusable)?;
    let kernel = kernel(&directory)?;
    let (root, no_kvm) = match wanted.vmm {
        Some(Choice::QemuEmulated) => (root(&directory, &vmm, true, &kernel, agent)?, None),
        Some(Choice::Qemu | Choice::Firecracker | Choice::CloudHypervisor) => {
            let tried = on_kvm(&directory, &vmm, &kernel, agent)?;
            let remedy = "set the VMM to qemu-emulated to have machines all the same, which are no boundary then";
            let tried = tried.map_err(|why| missing(format!("no machine runs on {}: {why}", found::KVM), remedy))?;
            (tried, None)
        }
        None => match on_kvm(&directory, &vmm, &kernel, agent)? {
            Ok(root) => (root, None),
            Err(why) => (root(&directory, &vmm, true, &kernel, agent)?, Some(why)),
        },
    };
    for rootfs in rootfs {
        disk(rootfs)?;
    }
    let is_emulated = Platform::read(&root)?.is_emulated;
    let (kernel, host) = (kernel.release, Identity::here()?);
    let prepared = Prepared { root, vmm: vmm.name(), kind: vmm.kind, kernel, is_emulated, no_kvm, host };
    if Prepared::read(images).ok().as_ref() != Some(&prepared) {
        prepared.write(images)?;
    }
    Ok(prepared)
}

/// The root for machines on the host's processors, or why these do not run them.
fn on_kvm(directory: &Path, vmm: &Vmm, kernel: &Kernel, agent: &[u8]) -> io::Result<Result<PathBuf, String>> {
    if let Err(why) = found::kvm() {
        return Ok(Err(why));
    }
    let root = root(directory, vmm, false, kernel, agent)?;
    let empty = directory.join("empty");
    fs::create_dir_all(&empty)?;
    disk(&empty)?;
    let place = Place { program: vmm.path.clone(), parts: root.join(PARTS), ..Place::inside(vmm.kind) };
    let place = Place { identity: None, ..place };
    let tried = trial::run(directory, &of_what(vmm, kernel)?, &Platform::read(&root)?, place, &Prepared::disk(&empty));
    Ok(tried.map(|()| root))
}

/// Tells versions of what is ours apart (FNV-1a, 64 bits): nobody gains by a collision.
fn digest(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vmm_has_its_devices_in_the_guest() {
        assert_eq!(
            order(Kind::Qemu),
            ["virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "virtio_console", "libcrc32c", "erofs", "overlay"]
        );
        for vmm in [Kind::Firecracker, Kind::CloudHypervisor] {
            let order = order(vmm);
            let at = |name: &str| order.iter().position(|one| *one == name);
            assert!(at("virtio_ring") < at("virtio") && at("vsock") < at("vmw_vsock_virtio_transport_common"));
            assert_eq!(at("vmw_vsock_virtio_transport"), at("vmw_vsock_virtio_transport_common").map(|at| at + 1));
            assert_eq!(at("virtio_console"), None);
        }
    }

    #[test]
    fn an_archive_is_as_kernels_expect_it() {
        let mut archive = Archive::default();
        archive.add("init", 0o100_755, b"hello");
        let bytes = archive.end();
        let header = "07070100000001000081ed00000000000000000000000100000000000000050000000000000000000000000000000000000005\
                      00000000";
        assert_eq!(&bytes[..110], header.as_bytes());
        assert_eq!(&bytes[110..124], b"init\0\0hello\0\0\0");
        assert!(bytes.len() % 4 == 0 && bytes[124..].starts_with(b"070701"));
    }
}
