//! The system calls that a sandbox may make (SC1 to SC9 of the isolation specification).
//!
//! The rule is an allow list: a call that is not on it does not exist (`ENOSYS`, the one error that libraries take as
//! "fall back"). Further filters, stacked on top, look at arguments, and give the well-known privileged calls the
//! error that tools know how to print (`EPERM`). A program of another instruction set is killed.
//!
//! Of two filters that answer with an error the one installed last wins, so the order of [`Filters::compile`] matters.

mod tree;

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use tree::Verdict;

/// The filters, compiled: once for a launcher, not once for a sandbox.
#[derive(Clone, Debug)]
pub struct Filters {
    programs: Vec<BpfProgram>,
}

/// One call and what its arguments must be for a filter to act: any of these, each a conjunction.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// A system call's name and number.
type Call = (&'static str, i64);

macro_rules! calls {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), libc::$name)),*] };
}

impl Filters {
    /// Compiles the filters for this machine.
    ///
    /// # Errors
    /// `Unsupported` on an instruction set that has no list yet.
    pub fn compile() -> io::Result<Self> {
        Self::compile_with(&[libc::SYS_seccomp])
    }

    /// Compiles those for VMMs, which put a narrower filter of their own over them.
    ///
    /// # Errors
    /// As [`Filters::compile`].
    pub fn compile_for_vmm() -> io::Result<Self> {
        Self::compile_with(&[])
    }

    /// With these calls refused besides the privileged ones.
    fn compile_with(refused: &[i64]) -> io::Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "no system call list for this instruction set"));
        }
        let refuse = |rules: Rules, errno: i32| -> io::Result<BpfProgram> {
            let action = SeccompAction::Errno(errno.unsigned_abs());
            let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, TargetArch::x86_64);
            BpfProgram::try_from(filter.map_err(io::Error::other)?).map_err(io::Error::other)
        };
        let whole = |calls: &[i64], verdict: Verdict, otherwise: Verdict| -> io::Result<BpfProgram> {
            let number = |call: &i64| u32::try_from(*call).map_err(io::Error::other);
            let verdicts = calls.iter().map(|call| Ok((number(call)?, verdict)));
            Ok(tree::compile(&verdicts.collect::<io::Result<_>>()?, otherwise))
        };
        let numbers = |calls: &[Call]| -> Vec<i64> { calls.iter().map(|(_, number)| *number).collect() };
        let known = numbers(&[ALLOWED, CONDITIONAL, BY_NUMBER].concat());
        let privileged = [numbers(PRIVILEGED), refused.to_vec()].concat();
        let programs = vec![
            whole(&known, Verdict::Allow, Verdict::Errno(libc::ENOSYS))?,
            // `sync` would flush the disks of the whole host: it has "worked".
            whole(&[libc::SYS_sync], Verdict::Errno(0), Verdict::Allow)?,
            refuse(families()?, libc::EAFNOSUPPORT)?,
            refuse(protocols()?, libc::EPROTONOSUPPORT)?,
            refuse(socket_options()?, libc::ENOPROTOOPT)?,
            refuse(arguments()?, libc::EPERM)?,
            // The last: it forbids `seccomp` itself.
            whole(&privileged, Verdict::Errno(libc::EPERM), Verdict::Allow)?,
        ];
        Ok(Self { programs })
    }

    /// Puts the calling thread, and all it starts, under the filters, for good.
    ///
    /// # Errors
    /// What the kernel answers; then the thread must not go on.
    pub fn install(&self) -> io::Result<()> {
        self.programs.iter().try_for_each(|program| seccompiler::apply_filter(program).map_err(io::Error::other))
    }

    /// The filters for somebody else to install, in this order: each its length in instructions, in two bytes of this machine's order, and
    /// the instructions as the kernel takes them ([`sandpool_sys::workload::install_filters`]).
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for program in &self.programs {
            // The kernel takes no longer ones.
            bytes.extend(u16::try_from(program.len()).unwrap_or(u16::MAX).to_ne_bytes());
            for instruction in program {
                bytes.extend(instruction.code.to_ne_bytes());
                bytes.extend([instruction.jt, instruction.jf]);
                bytes.extend(instruction.k.to_ne_bytes());
            }
        }
        bytes
    }

    /// The names of the calls that are on the allow list.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let all = [ALLOWED, CONDITIONAL, BY_NUMBER].into_iter().flatten();
        all.map(|(name, _)| name.trim_start_matches("SYS_"))
    }

    /// How many system calls are on the allow list, conditional ones included.
    #[must_use]
    pub fn allowed() -> usize {
        ALLOWED.len() + CONDITIONAL.len() + BY_NUMBER.len() - 1
    }
}

/// A condition on the lower 32 bits of an argument: all the kernel looks at, for each argument that is tested here.
/// A comparison of 64 bits could be passed by setting one of the others.
fn when(argument: u8, operator: SeccompCmpOp, value: u64) -> io::Result<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).map_err(io::Error::other)
}

fn all(conditions: Vec<SeccompCondition>) -> io::Result<SeccompRule> {
    SeccompRule::new(conditions).map_err(io::Error::other)
}

fn number(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}

/// SC5: address families other than UNIX, INET, INET6 and NETLINK.
fn families() -> io::Result<Rules> {
    let not = |family: i32| when(0, SeccompCmpOp::Ne, number(family));
    let socket = vec![not(libc::AF_UNIX)?, not(libc::AF_INET)?, not(libc::AF_INET6)?, not(libc::AF_NETLINK)?];
    Ok(BTreeMap::from([
        (libc::SYS_socket, vec![all(socket)?]),
        (libc::SYS_socketpair, vec![all(vec![not(libc::AF_UNIX)?])?]),
    ]))
}

/// SC5: what is neither a stream nor datagrams of TCP, UDP or UNIX, nor netlink's ROUTE.
fn protocols() -> io::Result<Rules> {
    let is = |argument: u8, value: i32| when(argument, SeccompCmpOp::Eq, number(value));
    let not = |argument: u8, value: i32| when(argument, SeccompCmpOp::Ne, number(value));
    // The flags of a type lie above its lower four bits.
    let kind = |value: i32| when(1, SeccompCmpOp::MaskedEq(0xf), number(value));
    let mut socket = vec![all(vec![is(0, libc::AF_NETLINK)?, not(2, libc::NETLINK_ROUTE)?])?];
    for family in [libc::AF_INET, libc::AF_INET6] {
        let no_protocol = vec![not(2, 0)?, not(2, libc::IPPROTO_TCP)?, not(2, libc::IPPROTO_UDP)?];
        socket.push(all([vec![is(0, family)?], no_protocol].concat())?);
        for other in (0..16).filter(|kind| ![libc::SOCK_STREAM, libc::SOCK_DGRAM].contains(kind)) {
            socket.push(all(vec![is(0, family)?, kind(other)?])?);
        }
    }
    let plain = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET];
    for other in (0..16).filter(|kind| !plain.contains(kind)) {
        socket.push(all(vec![is(0, libc::AF_UNIX)?, kind(other)?])?);
    }
    Ok(BTreeMap::from([(libc::SYS_socket, socket)]))
}

/// SC6: options that load programs, change a socket's protocol or reach the packet filter.
fn socket_options() -> io::Result<Rules> {
    const XFRM_V4: i32 = 17;
    const IPSEC_V4: i32 = 16;
    const IPSEC_V6: i32 = 34;
    const XFRM_V6: i32 = 35;
    // IPT_, IP6T_ and ARPT_SO_SET_REPLACE and _ADD_COUNTERS, EBT_SO_SET_ENTRIES and _COUNTERS.
    const TABLES: [i32; 6] = [64, 65, 96, 97, 128, 129];
    let mut refused = vec![
        (libc::SOL_SOCKET, libc::SO_ZEROCOPY),
        (libc::SOL_SOCKET, libc::SO_ATTACH_BPF),
        (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_EBPF),
        (libc::IPPROTO_TCP, libc::TCP_ULP),
        (libc::IPPROTO_TCP, libc::TCP_REPAIR),
        (libc::IPPROTO_UDP, libc::UDP_ENCAP),
        (libc::IPPROTO_IP, IPSEC_V4),
        (libc::IPPROTO_IP, XFRM_V4),
        (libc::IPPROTO_IPV6, IPSEC_V6),
        (libc::IPPROTO_IPV6, XFRM_V6),
    ];
    for level in [libc::IPPROTO_IP, libc::IPPROTO_IPV6] {
        refused.extend(TABLES.map(|table| (level, table)));
    }
    let rule = |(level, option): (i32, i32)| {
        all(vec![when(1, SeccompCmpOp::Eq, number(level))?, when(2, SeccompCmpOp::Eq, number(option))?])
    };
    let rules = refused.into_iter().map(rule).collect::<io::Result<_>>()?;
    Ok(BTreeMap::from([(libc::SYS_setsockopt, rules)]))
}

/// SC2, SC7 and FS5: namespaces, typing into a terminal, changing the filter, device nodes.
fn arguments() -> io::Result<Rules> {
    const IOC_WATCH_QUEUE_SET_SIZE: u64 = 0x5760;
    const IOC_WATCH_QUEUE_SET_FILTER: u64 = 0x5761;
    const PR_SET_MEMORY_MERGE: u64 = 67;
    const PR_SCHED_CORE: u64 = 62;
    const QUERY: u64 = 0xffff_ffff;
    let flag = |flag: i32| all(vec![when(0, SeccompCmpOp::MaskedEq(number(flag)), number(flag))?]);
    let namespaces = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ];
    let is = |argument: u8, value: u64| when(argument, SeccompCmpOp::Eq, value);
    let requests = [libc::TIOCSTI, libc::TIOCLINUX, IOC_WATCH_QUEUE_SET_SIZE, IOC_WATCH_QUEUE_SET_FILTER];
    let node = |argument: u8| -> io::Result<Vec<SeccompRule>> {
        let file_type = SeccompCmpOp::MaskedEq(u64::from(libc::S_IFMT));
        [libc::S_IFCHR, libc::S_IFBLK]
            .into_iter()
            .map(|kind| all(vec![when(argument, file_type.clone(), u64::from(kind))?]))
            .collect()
    };
    Ok(BTreeMap::from([
        (libc::SYS_clone, namespaces.into_iter().map(flag).collect::<io::Result<_>>()?),
        (libc::SYS_ioctl, requests.into_iter().map(|it| all(vec![is(1, it)?])).collect::<io::Result<_>>()?),
        (
            libc::SYS_prctl,
            vec![
                all(vec![is(0, number(libc::PR_SET_SECCOMP))?])?,
                all(vec![is(0, number(libc::PR_SET_MM))?])?,
                all(vec![is(0, PR_SET_MEMORY_MERGE)?])?,
                all(vec![is(0, PR_SCHED_CORE)?, when(1, SeccompCmpOp::Ne, 0)?])?,
            ],
        ),
        (libc::SYS_personality, vec![all(vec![when(0, SeccompCmpOp::Ne, 0)?, when(0, SeccompCmpOp::Ne, QUERY)?])?]),
        (libc::SYS_mknod, node(1)?),
        (libc::SYS_mknodat, node(2)?),
    ]))
}

/// Allowed whatever their arguments.
#[rustfmt::skip]
const ALLOWED: &[Call] = calls![
    SYS_accept, SYS_accept4, SYS_access, SYS_alarm, SYS_arch_prctl, SYS_bind,
    SYS_brk, SYS_capget, SYS_capset, SYS_chdir, SYS_chmod, SYS_chown,
    SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep, SYS_close,
    SYS_close_range, SYS_connect, SYS_copy_file_range, SYS_creat, SYS_dup,
    SYS_dup2, SYS_dup3, SYS_epoll_create, SYS_epoll_create1, SYS_epoll_ctl,
    SYS_epoll_pwait, SYS_epoll_pwait2, SYS_epoll_wait, SYS_eventfd, SYS_eventfd2,
    SYS_execve, SYS_execveat, SYS_exit, SYS_exit_group, SYS_faccessat,
    SYS_faccessat2, SYS_fadvise64, SYS_fallocate, SYS_fchdir, SYS_fchmod,
    SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_fcntl, SYS_fdatasync,
    SYS_fgetxattr, SYS_flistxattr, SYS_flock, SYS_fork, SYS_fremovexattr,
    SYS_fsetxattr, SYS_fstat, SYS_fstatfs, SYS_fsync, SYS_ftruncate, SYS_futex,
    SYS_futex_waitv, SYS_futimesat, SYS_get_robust_list, SYS_getcpu, SYS_getcwd,
    SYS_getdents, SYS_getdents64, SYS_getegid, SYS_geteuid, SYS_getgid,
    SYS_getgroups, SYS_getitimer, SYS_getpeername, SYS_getpgid, SYS_getpgrp,
    SYS_getpid, SYS_getppid, SYS_getpriority, SYS_getrandom, SYS_getresgid,
    SYS_getresuid, SYS_getrlimit, SYS_getrusage, SYS_getsid, SYS_getsockname,
    SYS_getsockopt, SYS_gettid, SYS_gettimeofday, SYS_getuid, SYS_getxattr,
    SYS_inotify_add_watch, SYS_inotify_init, SYS_inotify_init1, SYS_inotify_rm_watch,
    SYS_ioprio_get, SYS_kill, SYS_landlock_add_rule, SYS_landlock_create_ruleset,
    SYS_landlock_restrict_self, SYS_lchown, SYS_lgetxattr, SYS_link, SYS_linkat,
    SYS_listen, SYS_listxattr, SYS_llistxattr, SYS_lremovexattr, SYS_lseek,
    SYS_lsetxattr, SYS_lstat, SYS_madvise, SYS_membarrier, SYS_memfd_create,
    SYS_mincore, SYS_mkdir, SYS_mkdirat, SYS_mlock, SYS_mlock2, SYS_mlockall,
    SYS_mmap, SYS_mprotect, SYS_mremap, SYS_msgctl, SYS_msgget, SYS_msgrcv,
    SYS_msgsnd, SYS_msync, SYS_munlock, SYS_munlockall, SYS_munmap,
    SYS_nanosleep, SYS_newfstatat, SYS_open, SYS_openat, SYS_openat2, SYS_pause,
    SYS_pidfd_open, SYS_pidfd_send_signal, SYS_pipe, SYS_pipe2, SYS_pkey_alloc,
    SYS_pkey_free, SYS_pkey_mprotect, SYS_poll, SYS_ppoll, SYS_pread64,
    SYS_preadv, SYS_preadv2, SYS_prlimit64, SYS_pselect6, SYS_pwrite64,
    SYS_pwritev, SYS_pwritev2, SYS_read, SYS_readahead, SYS_readlink,
    SYS_readlinkat, SYS_readv, SYS_recvfrom, SYS_recvmmsg, SYS_recvmsg,
    SYS_removexattr, SYS_rename, SYS_renameat, SYS_renameat2, SYS_restart_syscall,
    SYS_rmdir, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigpending, SYS_rt_sigprocmask,
    SYS_rt_sigqueueinfo, SYS_rt_sigreturn, SYS_rt_sigsuspend, SYS_rt_sigtimedwait,
    SYS_rt_tgsigqueueinfo, SYS_sched_get_priority_max, SYS_sched_get_priority_min,
    SYS_sched_getaffinity, SYS_sched_getattr, SYS_sched_getparam, SYS_sched_getscheduler,
    SYS_sched_rr_get_interval, SYS_sched_setaffinity, SYS_sched_setparam,
    SYS_sched_setscheduler, SYS_sched_yield, SYS_select, SYS_semctl, SYS_semget,
    SYS_semop, SYS_semtimedop, SYS_sendfile, SYS_sendmmsg, SYS_sendmsg,
    SYS_sendto, SYS_set_robust_list, SYS_set_tid_address, SYS_setfsgid, SYS_setfsuid,
    SYS_setgid, SYS_setgroups, SYS_setitimer, SYS_setpgid, SYS_setpriority,
    SYS_setregid, SYS_setresgid, SYS_setresuid, SYS_setreuid, SYS_setrlimit,
    SYS_setsid, SYS_setuid, SYS_setxattr, SYS_shmat, SYS_shmctl, SYS_shmdt,
    SYS_shmget, SYS_shutdown, SYS_sigaltstack, SYS_signalfd, SYS_signalfd4,
    SYS_stat, SYS_statfs, SYS_statx, SYS_symlink, SYS_symlinkat,
    SYS_sync_file_range, SYS_sysinfo, SYS_tgkill, SYS_time, SYS_timer_create,
    SYS_timer_delete, SYS_timer_getoverrun, SYS_timer_gettime, SYS_timer_settime,
    SYS_timerfd_create, SYS_timerfd_gettime, SYS_timerfd_settime, SYS_times,
    SYS_tkill, SYS_truncate, SYS_umask, SYS_uname, SYS_unlink, SYS_unlinkat,
    SYS_utime, SYS_utimensat, SYS_utimes, SYS_vfork, SYS_wait4, SYS_waitid,
    SYS_write, SYS_writev,
];

/// Allowed, but for the arguments that another filter refuses.
#[rustfmt::skip]
const CONDITIONAL: &[Call] = calls![
    SYS_clone, SYS_ioctl, SYS_prctl, SYS_personality, SYS_mknod, SYS_mknodat,
    SYS_socket, SYS_socketpair, SYS_setsockopt, SYS_seccomp,
];

/// Allowed; newer than the C library's names.
const BY_NUMBER: &[Call] = &[
    ("fchmodat2", 452),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
];

/// SC3: known as privileged, and answered so.
#[rustfmt::skip]
const PRIVILEGED: &[Call] = calls![
    SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_open_tree,
    SYS_move_mount, SYS_fsopen, SYS_fsconfig, SYS_fsmount, SYS_fspick,
    SYS_mount_setattr, SYS_bpf, SYS_perf_event_open, SYS_userfaultfd, SYS_keyctl,
    SYS_add_key, SYS_request_key, SYS_init_module, SYS_finit_module,
    SYS_delete_module, SYS_kexec_load, SYS_kexec_file_load, SYS_reboot, SYS_swapon,
    SYS_swapoff, SYS_acct, SYS_quotactl, SYS_quotactl_fd, SYS_open_by_handle_at,
    SYS_name_to_handle_at, SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev,
    SYS_process_madvise, SYS_pidfd_getfd, SYS_kcmp, SYS_iopl, SYS_ioperm,
    SYS_syslog, SYS_settimeofday, SYS_clock_settime, SYS_adjtimex, SYS_clock_adjtime,
    SYS_sethostname, SYS_setdomainname, SYS_vhangup, SYS_lookup_dcookie,
    SYS_fanotify_init, SYS_fanotify_mark, SYS_move_pages, SYS_migrate_pages,
    SYS_mbind, SYS_set_mempolicy, SYS_modify_ldt, SYS_nfsservctl, SYS_ustat,
    // Its time slice is not its own to say.
    SYS_sysfs, SYS_unshare, SYS_setns, SYS_sched_setattr,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_do_not_contradict_each_other() {
        let allowed = [ALLOWED, CONDITIONAL, BY_NUMBER].concat();
        let distinct: std::collections::BTreeSet<_> = allowed.iter().map(|(_, number)| number).collect();
        assert_eq!(distinct.len(), allowed.len());
        assert!(PRIVILEGED.iter().all(|call| !allowed.contains(call)));
        assert!(allowed.iter().all(|(_, number)| *number != libc::SYS_clone3), "its flags lie behind a pointer");
        Filters::compile().unwrap();
    }

    #[test]
    fn a_thread_under_the_filters_can_work_and_no_more() {
        let filters = Filters::compile().unwrap();
        let answers = std::thread::spawn(move || {
            filters.install().unwrap();
            let family = rustix::net::AddressFamily::from_raw(38);
            [
                rustix::net::socket(family, rustix::net::SocketType::SEQPACKET, None).err(),
                rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::RAW, None).err(),
                rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).err(),
                rustix::process::chroot("/").err(),
                rustix::pipe::pipe().err(),
            ]
        });
        let expected = [
            Some(rustix::io::Errno::AFNOSUPPORT),
            Some(rustix::io::Errno::PROTONOSUPPORT),
            None,
            Some(rustix::io::Errno::PERM),
            None,
        ];
        assert_eq!(answers.join().unwrap(), expected);
    }
}
