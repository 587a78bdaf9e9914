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
        let known: Vec<i64> = [ALLOWED, CONDITIONAL, BY_NUMBER].concat();
        let privileged: Vec<i64> = [PRIVILEGED, refused].concat();
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
const ALLOWED: &[i64] = &[
    libc::SYS_accept, libc::SYS_accept4, libc::SYS_access, libc::SYS_alarm, libc::SYS_arch_prctl, libc::SYS_bind,
    libc::SYS_brk, libc::SYS_capget, libc::SYS_capset, libc::SYS_chdir, libc::SYS_chmod, libc::SYS_chown,
    libc::SYS_clock_getres, libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_close,
    libc::SYS_close_range, libc::SYS_connect, libc::SYS_copy_file_range, libc::SYS_creat, libc::SYS_dup,
    libc::SYS_dup2, libc::SYS_dup3, libc::SYS_epoll_create, libc::SYS_epoll_create1, libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_epoll_wait, libc::SYS_eventfd, libc::SYS_eventfd2,
    libc::SYS_execve, libc::SYS_execveat, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_faccessat,
    libc::SYS_faccessat2, libc::SYS_fadvise64, libc::SYS_fallocate, libc::SYS_fchdir, libc::SYS_fchmod,
    libc::SYS_fchmodat, libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_fcntl, libc::SYS_fdatasync,
    libc::SYS_fgetxattr, libc::SYS_flistxattr, libc::SYS_flock, libc::SYS_fork, libc::SYS_fremovexattr,
    libc::SYS_fsetxattr, libc::SYS_fstat, libc::SYS_fstatfs, libc::SYS_fsync, libc::SYS_ftruncate, libc::SYS_futex,
    libc::SYS_futex_waitv, libc::SYS_futimesat, libc::SYS_get_robust_list, libc::SYS_getcpu, libc::SYS_getcwd,
    libc::SYS_getdents, libc::SYS_getdents64, libc::SYS_getegid, libc::SYS_geteuid, libc::SYS_getgid,
    libc::SYS_getgroups, libc::SYS_getitimer, libc::SYS_getpeername, libc::SYS_getpgid, libc::SYS_getpgrp,
    libc::SYS_getpid, libc::SYS_getppid, libc::SYS_getpriority, libc::SYS_getrandom, libc::SYS_getresgid,
    libc::SYS_getresuid, libc::SYS_getrlimit, libc::SYS_getrusage, libc::SYS_getsid, libc::SYS_getsockname,
    libc::SYS_getsockopt, libc::SYS_gettid, libc::SYS_gettimeofday, libc::SYS_getuid, libc::SYS_getxattr,
    libc::SYS_inotify_add_watch, libc::SYS_inotify_init, libc::SYS_inotify_init1, libc::SYS_inotify_rm_watch,
    libc::SYS_ioprio_get, libc::SYS_kill, libc::SYS_landlock_add_rule, libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self, libc::SYS_lchown, libc::SYS_lgetxattr, libc::SYS_link, libc::SYS_linkat,
    libc::SYS_listen, libc::SYS_listxattr, libc::SYS_llistxattr, libc::SYS_lremovexattr, libc::SYS_lseek,
    libc::SYS_lsetxattr, libc::SYS_lstat, libc::SYS_madvise, libc::SYS_membarrier, libc::SYS_memfd_create,
    libc::SYS_mincore, libc::SYS_mkdir, libc::SYS_mkdirat, libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_mlockall,
    libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_mremap, libc::SYS_msgctl, libc::SYS_msgget, libc::SYS_msgrcv,
    libc::SYS_msgsnd, libc::SYS_msync, libc::SYS_munlock, libc::SYS_munlockall, libc::SYS_munmap,
    libc::SYS_nanosleep, libc::SYS_newfstatat, libc::SYS_open, libc::SYS_openat, libc::SYS_openat2, libc::SYS_pause,
    libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal, libc::SYS_pipe, libc::SYS_pipe2, libc::SYS_pkey_alloc,
    libc::SYS_pkey_free, libc::SYS_pkey_mprotect, libc::SYS_poll, libc::SYS_ppoll, libc::SYS_pread64,
    libc::SYS_preadv, libc::SYS_preadv2, libc::SYS_prlimit64, libc::SYS_pselect6, libc::SYS_pwrite64,
    libc::SYS_pwritev, libc::SYS_pwritev2, libc::SYS_read, libc::SYS_readahead, libc::SYS_readlink,
    libc::SYS_readlinkat, libc::SYS_readv, libc::SYS_recvfrom, libc::SYS_recvmmsg, libc::SYS_recvmsg,
    libc::SYS_removexattr, libc::SYS_rename, libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_restart_syscall,
    libc::SYS_rmdir, libc::SYS_rseq, libc::SYS_rt_sigaction, libc::SYS_rt_sigpending, libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigqueueinfo, libc::SYS_rt_sigreturn, libc::SYS_rt_sigsuspend, libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_tgsigqueueinfo, libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getaffinity, libc::SYS_sched_getattr, libc::SYS_sched_getparam, libc::SYS_sched_getscheduler,
    libc::SYS_sched_rr_get_interval, libc::SYS_sched_setaffinity, libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler, libc::SYS_sched_yield, libc::SYS_select, libc::SYS_semctl, libc::SYS_semget,
    libc::SYS_semop, libc::SYS_semtimedop, libc::SYS_sendfile, libc::SYS_sendmmsg, libc::SYS_sendmsg,
    libc::SYS_sendto, libc::SYS_set_robust_list, libc::SYS_set_tid_address, libc::SYS_setfsgid, libc::SYS_setfsuid,
    libc::SYS_setgid, libc::SYS_setgroups, libc::SYS_setitimer, libc::SYS_setpgid, libc::SYS_setpriority,
    libc::SYS_setregid, libc::SYS_setresgid, libc::SYS_setresuid, libc::SYS_setreuid, libc::SYS_setrlimit,
    libc::SYS_setsid, libc::SYS_setuid, libc::SYS_setxattr, libc::SYS_shmat, libc::SYS_shmctl, libc::SYS_shmdt,
    libc::SYS_shmget, libc::SYS_shutdown, libc::SYS_sigaltstack, libc::SYS_signalfd, libc::SYS_signalfd4,
    libc::SYS_stat, libc::SYS_statfs, libc::SYS_statx, libc::SYS_symlink, libc::SYS_symlinkat,
    libc::SYS_sync_file_range, libc::SYS_sysinfo, libc::SYS_tgkill, libc::SYS_time, libc::SYS_timer_create,
    libc::SYS_timer_delete, libc::SYS_timer_getoverrun, libc::SYS_timer_gettime, libc::SYS_timer_settime,
    libc::SYS_timerfd_create, libc::SYS_timerfd_gettime, libc::SYS_timerfd_settime, libc::SYS_times,
    libc::SYS_tkill, libc::SYS_truncate, libc::SYS_umask, libc::SYS_uname, libc::SYS_unlink, libc::SYS_unlinkat,
    libc::SYS_utime, libc::SYS_utimensat, libc::SYS_utimes, libc::SYS_vfork, libc::SYS_wait4, libc::SYS_waitid,
    libc::SYS_write, libc::SYS_writev,
];

/// Allowed, but for the arguments that another filter refuses.
#[rustfmt::skip]
const CONDITIONAL: &[i64] = &[
    libc::SYS_clone, libc::SYS_ioctl, libc::SYS_prctl, libc::SYS_personality, libc::SYS_mknod, libc::SYS_mknodat,
    libc::SYS_socket, libc::SYS_socketpair, libc::SYS_setsockopt, libc::SYS_seccomp,
];

/// Allowed; newer than the C library's names: fchmodat2, futex_wake, futex_wait, futex_requeue, setxattrat, getxattrat,
/// listxattrat, removexattrat.
const BY_NUMBER: &[i64] = &[452, 454, 455, 456, 463, 464, 465, 466];

/// SC3: known as privileged, and answered so.
#[rustfmt::skip]
const PRIVILEGED: &[i64] = &[
    libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_chroot, libc::SYS_open_tree,
    libc::SYS_move_mount, libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fspick,
    libc::SYS_mount_setattr, libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_userfaultfd, libc::SYS_keyctl,
    libc::SYS_add_key, libc::SYS_request_key, libc::SYS_init_module, libc::SYS_finit_module,
    libc::SYS_delete_module, libc::SYS_kexec_load, libc::SYS_kexec_file_load, libc::SYS_reboot, libc::SYS_swapon,
    libc::SYS_swapoff, libc::SYS_acct, libc::SYS_quotactl, libc::SYS_quotactl_fd, libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at, libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev,
    libc::SYS_process_madvise, libc::SYS_pidfd_getfd, libc::SYS_kcmp, libc::SYS_iopl, libc::SYS_ioperm,
    libc::SYS_syslog, libc::SYS_settimeofday, libc::SYS_clock_settime, libc::SYS_adjtimex, libc::SYS_clock_adjtime,
    libc::SYS_sethostname, libc::SYS_setdomainname, libc::SYS_vhangup, libc::SYS_lookup_dcookie,
    libc::SYS_fanotify_init, libc::SYS_fanotify_mark, libc::SYS_move_pages, libc::SYS_migrate_pages,
    libc::SYS_mbind, libc::SYS_set_mempolicy, libc::SYS_modify_ldt, libc::SYS_nfsservctl, libc::SYS_ustat,
    // Its time slice is not its own to say.
    libc::SYS_sysfs, libc::SYS_unshare, libc::SYS_setns, libc::SYS_sched_setattr,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_do_not_contradict_each_other() {
        let allowed = [ALLOWED, CONDITIONAL, BY_NUMBER].concat();
        let distinct: std::collections::BTreeSet<_> = allowed.iter().collect();
        assert_eq!(distinct.len(), allowed.len());
        assert!(PRIVILEGED.iter().all(|call| !allowed.contains(call)));
        assert!(!allowed.contains(&libc::SYS_clone3), "its flags lie behind a pointer");
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
