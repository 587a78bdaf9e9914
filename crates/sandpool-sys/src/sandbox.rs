//! What the launcher needs of the kernel to build a sandbox: a process in namespaces of its own, and what that
//! process needs to become the sandbox's first one.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// Which of the two processes [`clone_into_namespaces`] returned in.
#[derive(Debug)]
pub enum Cloned {
    /// In the caller.
    Parent {
        /// The new process, as the caller's pid namespace numbers it.
        pid: Pid,
        /// A descriptor of it, which becomes readable when it has ended.
        pidfd: OwnedFd,
    },
    /// In the new process: pid 1 of new namespaces. It has every capability in them and no other.
    Child,
}

/// Forks into new user, pid, mount, IPC and UTS namespaces. The dear one, the network's, is for the new process to make
/// ([`new_network_and_cgroup_namespaces`]), so that the caller does not wait for it. The new process is in `group`, a
/// directory of control groups of version 2, or else where the caller is.
///
/// # Errors
/// What `clone3` answers; `Unsupported` when the calling process has more than one thread, since only a copy of
/// all threads could go on safely.
pub fn clone_into_namespaces(group: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    // CLONE_INTO_CGROUP of linux/sched.h, which is above the 32 bits that the C library's names have.
    const INTO_GROUP: u64 = 0x2_0000_0000;
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the launcher must have one thread"));
    }
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_PIDFD
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    let mut arguments = CloneArguments {
        flags: u64::from(flags.cast_unsigned()) | if group.is_some() { INTO_GROUP } else { 0 },
        cgroup: group.map_or(0, |group| u64::from(group.as_raw_fd().cast_unsigned())),
        pidfd: &raw mut pidfd as u64,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        ..CloneArguments::default()
    };
    // SAFETY: this is `fork` with namespaces: no shared memory, no new stack. The one thread of this process is the
    // calling one, so no lock of the allocator or of anybody else is held in the copy. The kernel writes the new
    // descriptor to `pidfd`, which outlives the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArguments>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
            // SAFETY: the kernel made this descriptor for us just now.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid, pidfd })
        }
    }
}

/// `struct clone_args` of clone3(2), its version of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// The version of Landlock that the kernel has.
///
/// # Errors
/// `EOPNOTSUPP` when it is not enabled, `ENOSYS` when it is not there.
pub fn landlock_version() -> io::Result<i32> {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call reads no memory, and makes no descriptor.
    let answer =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, LANDLOCK_CREATE_RULESET_VERSION) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(answer).map_err(io::Error::other) }
}

/// Gives the calling process an empty network of its own, and makes its place in the cgroup trees look like their root.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN` in the user namespace.
pub fn new_network_and_cgroup_namespaces() -> io::Result<()> {
    // SAFETY: the call takes an integer, and with these flags shares or closes nothing.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWCGROUP) }).map(drop)
}

/// A counter that another part of the kernel can add to, as its descriptor: readable when it is not 0. Does not block.
///
/// # Errors
/// `EMFILE` and the like.
pub fn counter() -> io::Result<OwnedFd> {
    let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
    Ok(rustix::event::eventfd(0, flags)?)
}

/// Brings up the loopback interface of the calling process's network namespace.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` in it.
pub fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: an interface request of zeros is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }).map(drop)
}

/// Adds attributes (`MOUNT_ATTR_*` of mount_setattr(2)) to a mount that nobody can reach yet.
///
/// # Errors
/// What `mount_setattr` answers.
pub fn set_mount_attributes(mount: impl AsFd, attributes: u64) -> io::Result<()> {
    change_mount(mount, &libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 })
}

/// A copy of what is mounted at `place`, for reading alone, in which files belong to those whom a user namespace means by their owners'
/// numbers (an id-mapped mount, Linux 5.12; below an overlay, 5.19).
///
/// # Errors
/// `EINVAL` where its file system cannot, `EPERM` without rights over it.
pub fn mapped_tree(place: &std::path::Path, namespace: impl AsFd) -> io::Result<OwnedFd> {
    use rustix::mount::OpenTreeFlags;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, place, flags)?;
    let attributes =
        libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let userns_fd = u64::try_from(namespace.as_fd().as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    change_mount(&tree, &libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd })?;
    Ok(tree)
}

fn change_mount(mount: impl AsFd, change: &libc::mount_attr) -> io::Result<()> {
    let fd = mount.as_fd().as_raw_fd();
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: the path is an empty C string and `change` is of the size that is told; both outlive the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(change),
            size_of::<libc::mount_attr>(),
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets for how long the calling thread, and all that it starts from now on, computes at a stretch while others wait (sched(7), Linux
/// 6.12 and newer; 0.1 to 100 ms). The shorter, the sooner it is let in beside those with longer ones; its share is the same. Older kernels
/// take the call and heed nothing.
///
/// # Errors
/// `EINVAL` and `EPERM` of `sched_setattr`.
pub fn set_time_slice(slice: std::time::Duration) -> io::Result<()> {
    // SAFETY: scheduling attributes of zeros are valid ones.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = u32::try_from(size_of::<libc::sched_attr>()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the calling thread is 0; the kernel writes at most `size` bytes into `attributes`, which outlives the call.
    let read = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if read < 0 {
        return Err(io::Error::last_os_error());
    }
    attributes.size = size;
    attributes.sched_runtime = u64::try_from(slice.as_nanos()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the calling thread is 0; the kernel reads `size` bytes of `attributes`, which outlives the call.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Unblocks every signal and gives each its default action.
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: a default action installs no handler. Those that cannot be set (KILL, STOP, those of the C library)
        // are at their default already.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: the set is initialised by `sigemptyset` before it is read.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Blocks `signals` in the calling thread; the answered descriptor, which does not block, becomes readable when one
/// has come.
///
/// # Errors
/// `EMFILE` and the like.
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by `sigemptyset` before it is read; the descriptor is new and nobody else's.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        check(libc::sigemptyset(&raw mut set))?;
        for signal in signals {
            check(libc::sigaddset(&raw mut set, *signal))?;
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The numbers of the signals that wait on a descriptor of [`signal_fd`].
#[must_use]
pub fn pending_signals(fd: BorrowedFd<'_>) -> Vec<i32> {
    let mut numbers = Vec::new();
    let mut buffer = [0_u8; size_of::<libc::signalfd_siginfo>() * 8];
    while let Ok(count @ 1..) = rustix::io::read(fd, &mut buffer) {
        for record in buffer[..count].chunks_exact(size_of::<libc::signalfd_siginfo>()) {
            if let Some(number) = record.first_chunk::<4>() {
                numbers.push(i32::from_ne_bytes(*number));
            }
        }
    }
    numbers
}

/// Closes every descriptor but standard input, output and error and these. Meant for a process that has just been cloned:
/// nothing of it may use or drop the owner of any other descriptor any more.
///
/// # Errors
/// `ENOSYS` on a kernel before 5.9.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<libc::c_uint> = keep.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let mut first: libc::c_uint = 3;
    for number in kept.into_iter().chain([libc::c_uint::MAX]) {
        if first < number {
            // SAFETY: the call takes integers. What it closes belongs to owners that the caller has given up.
            let answer = unsafe { libc::syscall(libc::SYS_close_range, first, number - 1, 0) };
            if answer < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        first = first.max(number.saturating_add(1));
    }
    Ok(())
}

/// Becomes the program in `program` (an executable's descriptor, such as a sealed memfd). The descriptors of `keep`
/// get the numbers from 3 on, in their order; standard input, output and error stay; all others are closed.
/// Runs `last` when all of that is in place: nothing but `execveat` is called after it.
/// Comes back only with an error. Meant for a process that has just been cloned.
pub fn become_program(
    program: OwnedFd,
    keep: Vec<OwnedFd>,
    argv: &[CString],
    env: &[CString],
    last: impl FnOnce() -> io::Result<()>,
) -> io::Error {
    let attempt = || -> io::Result<()> {
        // Everything moves above the range of the targets, so that no target overwrites a source.
        let first_free = 3 + i32::try_from(keep.len()).unwrap_or(i32::MAX - 3);
        let above = |fd: OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, first_free + 1);
        let moved = keep.into_iter().map(above).collect::<Result<Vec<_>, _>>()?;
        let program = above(program)?;
        for (fd, number) in moved.iter().zip(3..) {
            // SAFETY: `dup2` takes integers. What it replaces is a leftover of the process this one was cloned from;
            // this function never returns to code that owns it, except to report an error and exit.
            check(unsafe { libc::dup2(fd.as_raw_fd(), number) })?;
        }
        // SAFETY: as above.
        check(unsafe { libc::dup2(program.as_raw_fd(), first_free) })?;
        // The program's own descriptor closes itself at exec, and all above it close now or at exec: the one that
        // reports errors is among them.
        // SAFETY: the calls take integers; the flag closes nothing before exec.
        unsafe {
            check(libc::fcntl(first_free, libc::F_SETFD, libc::FD_CLOEXEC))?;
            let flag = libc::CLOSE_RANGE_CLOEXEC;
            if libc::syscall(libc::SYS_close_range, first_free, libc::c_uint::MAX, flag) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
            texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (argv, env) = (pointers(argv), pointers(env));
        last()?;
        // SAFETY: both lists end in a null pointer, and their strings live in the caller.
        unsafe {
            let empty = c"".as_ptr();
            libc::syscall(libc::SYS_execveat, first_free, empty, argv.as_ptr(), env.as_ptr(), libc::AT_EMPTY_PATH);
        }
        Err(io::Error::last_os_error())
    };
    match attempt() {
        Ok(()) => io::ErrorKind::Other.into(),
        Err(error) => error,
    }
}

/// Ends the calling process at once, without running anything of Rust's or of the C library's.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Puts `fd` in the place of standard input, output and error.
///
/// # Errors
/// `EMFILE` and the like.
pub fn redirect_standard_streams(fd: OwnedFd) -> io::Result<()> {
    let number = fd.into_raw_fd();
    for target in 0..=2 {
        // SAFETY: `dup2` takes integers; the standard streams belong to nobody.
        check(unsafe { libc::dup2(number, target) })?;
    }
    if number > 2 {
        // SAFETY: the number was taken out of its owner above.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
    }
    Ok(())
}

fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Lets no other task than this one, and those that it starts, run on the same core at the same time (core scheduling, Linux 5.14).
///
/// # Errors
/// `ENODEV` where no core has two threads, `EINVAL` where the kernel was built without it.
pub fn keep_core() -> io::Result<()> {
    const PR_SCHED_CORE: libc::c_int = 62;
    const CREATE: libc::c_ulong = 1;
    // SAFETY: the call takes integers: this thread (0), and itself alone (`PIDTYPE_PID`, 0).
    check(unsafe { libc::prctl(PR_SCHED_CORE, CREATE, 0_u64, 0_u64, 0_u64) }).map(drop)
}

/// Whether [`keep_core`] would work.
#[must_use]
pub fn can_keep_core() -> bool {
    std::thread::spawn(keep_core).join().is_ok_and(|kept| kept.is_ok())
}

/// Keeps what other tasks have taught the processor's branch predictor from this task and those that it starts, for good, where the kernel
/// lets a task choose. Whether it does.
pub fn keep_branches() -> bool {
    const PR_GET_SPECULATION_CTRL: libc::c_int = 52;
    const PR_SET_SPECULATION_CTRL: libc::c_int = 53;
    const INDIRECT_BRANCH: libc::c_ulong = 1;
    const CHOSEN_BY_TASKS: libc::c_int = 1;
    const FORCE_DISABLE: libc::c_ulong = 8;
    // SAFETY: both calls take integers and are about the calling thread alone.
    unsafe {
        let state = libc::prctl(PR_GET_SPECULATION_CTRL, INDIRECT_BRANCH, 0_u64, 0_u64, 0_u64);
        state >= 0
            && state & CHOSEN_BY_TASKS != 0
            && libc::prctl(PR_SET_SPECULATION_CTRL, INDIRECT_BRANCH, FORCE_DISABLE, 0_u64, 0_u64) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_slice_is_taken_and_nothing_else_changes() {
        std::thread::spawn(|| {
            let nice = || rustix::process::getpriority_process(None).unwrap();
            let before = nice();
            set_time_slice(std::time::Duration::from_micros(300)).unwrap();
            assert_eq!(nice(), before);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_process_with_threads_is_not_cloned() {
        let error = std::thread::spawn(|| clone_into_namespaces(None)).join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }
}
