//! What the agent needs of the kernel to start the programs of a sandbox and to be their reaper.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// The highest descriptor number that [`Workload::pass`] may name.
pub const HIGHEST_PASSED: RawFd = 64;

/// Higher than any descriptor. gVisor takes no greater number for one.
const HIGHEST: libc::c_int = libc::c_int::MAX;

/// Who a workload runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Real, effective and saved user id.
    pub uid: u32,
    /// Real, effective and saved group id; there are no others.
    pub gid: u32,
}

/// A program to start.
#[derive(Debug)]
pub struct Workload {
    /// The program (looked up in the PATH of `env`), then its arguments.
    pub argv: Vec<OsString>,
    /// The file to execute in place of the program, which then only gives its name.
    pub file: Option<PathBuf>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where it starts.
    pub directory: PathBuf,
    /// Whom it becomes, losing every capability for good; `None` keeps what the caller is.
    pub identity: Option<Identity>,
    /// Standard input, output and error.
    pub stdio: [OwnedFd; 3],
    /// Further descriptors, and the number each gets in the program: at least 3, at most [`HIGHEST_PASSED`].
    pub pass: Vec<(OwnedFd, RawFd)>,
    /// Standard input is a terminal, which becomes the controlling one.
    pub terminal: bool,
}

/// Starts a program as the leader of a new session and process group, with no descriptor, signal setting or
/// privilege but those named. Answers its process id; the caller reaps it.
///
/// # Errors
/// Whatever kept the program from being started, also from inside the new process: `ENOENT` when it is not in PATH,
/// `E2BIG` when the arguments are too long.
pub fn spawn(workload: Workload) -> io::Result<u32> {
    let Workload { argv, file, env, directory, identity, stdio: [stdin, stdout, stderr], pass, terminal } = workload;
    let mut words = argv.into_iter();
    let program = words.next().ok_or(io::ErrorKind::InvalidInput)?;
    if pass.iter().any(|(_, number)| !(3..=HIGHEST_PASSED).contains(number)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Each descriptor moves out of the range of the targets first, so that no target overwrites a source.
    let pass = pass
        .into_iter()
        .map(|(fd, number)| Ok((rustix::io::fcntl_dupfd_cloexec(&fd, HIGHEST_PASSED + 1)?, number)))
        .collect::<io::Result<Vec<_>>>()?;
    // The pipe on which `Command` reports a failed exec takes the lowest free numbers. Holding all numbers that may
    // be a target of `dup2` keeps it above them.
    let held = match pass.iter().map(|(_, number)| *number).max() {
        Some(highest) => hold_up_to(highest)?,
        None => Vec::new(),
    };
    let mut command = match file {
        Some(file) => {
            let mut command = Command::new(file);
            command.arg0(program);
            command
        }
        None => Command::new(program),
    };
    command.args(words).env_clear().envs(env).current_dir(directory);
    command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
    // `Command` changes directory before it runs this closure: with the file system ids of the caller, which are
    // the workload's own in the agent.
    let prepare = move || {
        rustix::process::setsid()?;
        // Whatever the caller left open without the close-on-exec flag is closed as well.
        // SAFETY: the call takes integers; the flag closes nothing before exec.
        check_long(unsafe { libc::syscall(libc::SYS_close_range, 3, HIGHEST, libc::CLOSE_RANGE_CLOEXEC) })?;
        if terminal {
            // SAFETY: standard input has been put in place by `Command` and stays open through this call.
            rustix::process::ioctl_tiocsctty(unsafe { BorrowedFd::borrow_raw(0) })?;
        }
        for (fd, number) in &pass {
            // SAFETY: `dup2` takes two integers; what it replaces is no descriptor of this child's Rust code, since
            // the numbers are below those of `pass` and the error pipe of `Command` was moved away (see below).
            check(unsafe { libc::dup2(fd.as_raw_fd(), *number) })?;
        }
        for signal in [libc::SIGXFSZ, libc::SIGPIPE, libc::SIGINT, libc::SIGTERM] {
            // SAFETY: setting a default action installs no handler.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        // The mask is inherited, and callers block what they read from a descriptor: a program would never hear it.
        // SAFETY: the set is initialised by `sigemptyset` before it is read.
        unsafe {
            let mut none = std::mem::zeroed::<libc::sigset_t>();
            check(libc::sigemptyset(&raw mut none))?;
            check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()))?;
        }
        if let Some(identity) = identity {
            become_workload(identity)?;
        }
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: no allocation, no lock. The caller of this
    // function may have threads all the same.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn();
    drop(held);
    Ok(child?.id())
}

/// Opens descriptors until every number up to `highest` is taken.
fn hold_up_to(highest: RawFd) -> io::Result<Vec<OwnedFd>> {
    let mut held = vec![OwnedFd::from(std::fs::File::open("/dev/null")?)];
    while held.last().is_some_and(|last| last.as_raw_fd() < highest) {
        let next = rustix::io::fcntl_dupfd_cloexec(&held[0], 0)?;
        held.push(next);
    }
    Ok(held)
}

/// Whether the kernel is one of the sandbox's own (gVisor's), which has less: see [`in_own_kernel`].
static OWN_KERNEL: AtomicBool = AtomicBool::new(false);

/// From now on programs are started for a kernel that knows no ambient capabilities, and chooses nobody when the host's memory is short:
/// the host's kernel then ends all of it.
pub fn in_own_kernel() {
    OWN_KERNEL.store(true, Ordering::SeqCst);
}

/// When memory is short, a workload goes before the agent. Only the owner of a process may say so, and only a dumpable
/// process belongs to its user: this one is, between fork and here, what the agent is.
fn first_to_go() -> io::Result<()> {
    // SAFETY: the calls take integers. Setting the file system ids to the effective ones needs no privilege.
    unsafe {
        libc::setfsgid(libc::getegid());
        libc::setfsuid(libc::geteuid());
        check(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0))?;
    }
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::open(c"/proc/self/oom_score_adj", flags, rustix::fs::Mode::empty())?;
    rustix::io::write(&file, b"1000")?;
    drop(file);
    // SAFETY: as above.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    Ok(())
}

/// Turns the calling process into the workload: no capability in any set, one uid, one gid, no groups.
fn become_workload(identity: Identity) -> io::Result<()> {
    let own_kernel = OWN_KERNEL.load(Ordering::SeqCst);
    if !own_kernel {
        first_to_go()?;
    }
    for capability in 0..64 {
        // SAFETY: `prctl` with these options takes integers only. A number past the last capability is EINVAL.
        if unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) } == 1 {
            // SAFETY: as above.
            check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) })?;
        }
    }
    // SAFETY: as above.
    match check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) }) {
        // It knows no such set.
        Err(error) if own_kernel && error.raw_os_error() == Some(libc::EINVAL) => {}
        cleared => drop(cleared?),
    }
    // SAFETY: the raw system calls take integers and, for `setgroups`, an empty list that is never read.
    unsafe {
        check_long(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
        check_long(libc::syscall(libc::SYS_setresgid, identity.gid, identity.gid, identity.gid))?;
        check_long(libc::syscall(libc::SYS_setresuid, identity.uid, identity.uid, identity.uid))?;
    }
    let none = rustix::thread::CapabilitySet::empty();
    let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets)?;
    // SAFETY: these calls take no argument and cannot fail.
    let (uid, euid, gid) = unsafe { (libc::getuid(), libc::geteuid(), libc::getgid()) };
    if (uid, euid, gid) == (identity.uid, identity.uid, identity.gid) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

/// Makes the calling thread reach files with the rights of `identity`, and keeps its other ids.
///
/// # Errors
/// `EPERM` when the kernel did not do it.
pub fn set_file_identity(identity: Identity) -> io::Result<()> {
    // SAFETY: both calls take an integer, and answer the previous id instead of an error; an impossible id (-1)
    // changes nothing and so reads the present one.
    let (gid, uid) = unsafe {
        libc::setfsgid(identity.gid);
        libc::setfsuid(identity.uid);
        (libc::setfsgid(libc::gid_t::MAX), libc::setfsuid(libc::uid_t::MAX))
    };
    let (gid, uid) = (gid.cast_unsigned(), uid.cast_unsigned());
    if (uid, gid) == (identity.uid, identity.gid) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

/// The same by the effective ids, which is all that some kernels know: real and saved ids stay, so that whoever is `identity` can neither
/// signal nor trace this process.
///
/// # Errors
/// `EPERM` without the capabilities to.
pub fn set_effective_identity(identity: Identity) -> io::Result<()> {
    const KEPT: u32 = u32::MAX;
    // SAFETY: the raw system calls take integers.
    unsafe {
        check_long(libc::syscall(libc::SYS_setresgid, KEPT, identity.gid, KEPT))?;
        check_long(libc::syscall(libc::SYS_setresuid, KEPT, identity.uid, KEPT))
    }
}

/// Becomes another user for good, with these capabilities and no other, on a kernel that takes them away with the root's user id.
///
/// # Errors
/// `EPERM` without the capabilities to.
pub fn become_with(identity: Identity, kept: rustix::thread::CapabilitySet) -> io::Result<()> {
    // SAFETY: `prctl` takes integers here; the raw system calls take integers and, for `setgroups`, an empty list that is never read.
    unsafe {
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0))?;
        check_long(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
        check_long(libc::syscall(libc::SYS_setresgid, identity.gid, identity.gid, identity.gid))?;
        check_long(libc::syscall(libc::SYS_setresuid, identity.uid, identity.uid, identity.uid))?;
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0))?;
    }
    let none = rustix::thread::CapabilitySet::empty();
    let sets = rustix::thread::CapabilitySets { effective: kept, permitted: kept, inheritable: none };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Puts the calling thread, and all it starts, under system call filters, for good: one after the other, each its length in instructions (two
/// bytes in this machine's order) and the instructions.
///
/// # Errors
/// `InvalidData` for bytes that are no filters; what the kernel answers.
pub fn install_filters(mut bytes: &[u8]) -> io::Result<()> {
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let length = u16::from_ne_bytes(*length);
        let size = usize::from(length) * size_of::<libc::sock_filter>();
        let (program, rest) = rest.split_at_checked(size).ok_or(io::ErrorKind::InvalidData)?;
        let (chunks, _) = program.as_chunks::<8>();
        let mut instructions: Vec<libc::sock_filter> = chunks
            .iter()
            .map(|[a, b, jt, jf, k @ ..]| libc::sock_filter {
                code: u16::from_ne_bytes([*a, *b]),
                jt: *jt,
                jf: *jf,
                k: u32::from_ne_bytes(*k),
            })
            .collect();
        let program = libc::sock_fprog { len: length, filter: instructions.as_mut_ptr() };
        // SAFETY: `program` tells the length of the instructions that it points to; both outlive the call, which copies them.
        check_long(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })?;
        bytes = rest;
    }
    if bytes.is_empty() { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Closes every descriptor from `first` on. Nothing of this process may use or drop the owner of one of them any more.
///
/// # Errors
/// `ENOSYS` on a kernel before 5.9.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the call takes integers; what it closes belongs to owners that the caller has given up.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) })
}

/// Ignores the signals that a write could bring, so that the write answers an error instead.
pub fn ignore_write_signals() {
    for signal in [libc::SIGPIPE, libc::SIGXFSZ] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// A descriptor that becomes readable when a child has ended. SIGCHLD is blocked in the calling thread from now on
/// (programs started by [`spawn`] begin with no signal blocked).
///
/// # Errors
/// `EMFILE` and the like.
pub fn child_signal() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by `sigemptyset` before it is read, and outlives the calls; the descriptor is
    // new and owned by nobody else.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        check(libc::sigemptyset(&raw mut set))?;
        check(libc::sigaddset(&raw mut set, libc::SIGCHLD))?;
        match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        let fd = check(libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Takes what waits on a descriptor of [`child_signal`], so that the next end of a child wakes again.
pub fn clear_child_signal(fd: impl AsFd) {
    let mut buffer = [0_u8; 1024];
    while matches!(rustix::io::read(&fd, &mut buffer), Ok(count) if count > 0) {}
}

/// Takes over a descriptor that this process was started with, and closes it to programs it starts.
/// Each number can be taken once.
///
/// # Errors
/// `EBADF` when it is not open; `AlreadyExists` the second time.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    static TAKEN: [AtomicBool; 16] = [const { AtomicBool::new(false) }; 16];
    let taken = usize::try_from(number).ok().and_then(|index| TAKEN.get(index)).ok_or(io::ErrorKind::InvalidInput)?;
    if taken.swap(true, Ordering::SeqCst) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // SAFETY: `fcntl` takes integers here.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open (the call above succeeded), the caller says that it was inherited, hence no Rust value of
    // this process made it, and the table above gives it out once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The clock that process start times in /proc are in: ticks since boot, and ticks in a second.
#[must_use]
pub fn boot_ticks() -> (u64, u64) {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // SAFETY: the call takes an integer.
    let rate = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100);
    let whole = u64::try_from(now.tv_sec).unwrap_or(0) * rate;
    let part = u64::try_from(now.tv_nsec).unwrap_or(0) * rate / 1_000_000_000;
    (whole + part, rate)
}

fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn check_long(answer: libc::c_long) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap().into()
    }

    fn workload(argv: &[&str], stdout: OwnedFd) -> Workload {
        Workload {
            file: None,
            argv: argv.iter().map(OsString::from).collect(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into()), ("ONLY".into(), "this".into())],
            directory: "/".into(),
            identity: None,
            stdio: [null(), stdout, null()],
            pass: Vec::new(),
            terminal: false,
        }
    }

    fn output_of(mut make: impl FnMut(OwnedFd) -> Workload) -> String {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let pid = spawn(make(write)).unwrap();
        let mut text = String::new();
        io::Read::read_to_string(&mut std::fs::File::from(read), &mut text).unwrap();
        let pid = rustix::process::Pid::from_raw(pid.cast_signed());
        rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap();
        text
    }

    #[test]
    fn a_program_gets_its_environment_and_nothing_else() {
        assert_eq!(output_of(|out| workload(&["env"], out)), "ONLY=this\nPATH=/usr/bin:/bin\n");
    }

    #[test]
    fn a_program_begins_with_no_signal_blocked() {
        let _blocks_one_here = child_signal().unwrap();
        let _blocks_another_here = crate::sandbox::signal_fd(&[libc::SIGTERM]).unwrap();
        let blocked = output_of(|out| workload(&["grep", "SigBlk", "/proc/self/status"], out));
        assert_eq!(blocked, "SigBlk:\t0000000000000000\n");
    }

    #[test]
    fn a_program_gets_the_descriptors_it_was_passed_and_no_other() {
        let listing = output_of(|out| {
            let mut workload = workload(&["sh", "-c", "read x <&5; echo $x; echo /proc/self/fd/*"], out);
            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
            rustix::io::write(&write, b"passed\n").unwrap();
            workload.pass.push((read, 5));
            workload
        });
        let (first, numbers) = listing.split_once('\n').unwrap();
        assert_eq!(first, "passed");
        let numbers: Vec<_> = numbers.split_whitespace().map(|path| path.rsplit('/').next().unwrap()).collect();
        // The shell holds one while it reads the directory, and keeps copies of its own from 10 on.
        assert!(numbers.iter().all(|number| ["0", "1", "2", "3", "5", "10"].contains(number)), "{numbers:?}");
    }

    #[test]
    fn a_program_leads_its_own_session() {
        let ids = output_of(|out| workload(&["sh", "-c", "echo $$; cut -d' ' -f5,6 /proc/$$/stat"], out));
        let mut lines = ids.lines();
        let pid = lines.next().unwrap();
        assert_eq!(lines.next().unwrap(), format!("{pid} {pid}"));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let error = spawn(workload(&["no-such-program"], null())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_descriptor_is_taken_over_once() {
        let fd = rustix::io::fcntl_dupfd_cloexec(null(), 10).unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(fd);
        if number < 16 {
            inherited(number).unwrap();
            assert_eq!(inherited(number).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        }
        assert!(inherited(99).is_err());
    }
}
