//! The container level: the same namespaces, and in them an OCI runtime that makes the sandbox as its bundle says.
//!
//! ```text
//! namespaces, ids, network, image's layers as for a process --> a root for the runtime --> shim --> runtime --> agent
//! ```
//!
//! The runtime is root of the sandbox's user namespace, and nobody outside: what it could do if it were taken over is what any process of the
//! sandbox's own ids could. It sees the host's `/usr`, read-only, its own files, and the bundle. Nothing of it is kept by it: its state is in
//! memory, in the sandbox's own mount namespace, and goes with it.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;
use rustix::process::Resource;
use sandpool_sys::sandbox;
use serde_json::{Value, json};

use sandpool_walls::seccomp::Filters;
use sandpool_walls::setup::{
    AGENT, Blueprint, MASKED, PLAIN, PROGRAM, READ_ONLY, SHM, WORKLOAD, WayOut, attach, bind, enter, failed, layers,
    make_directory, new_mount, of_processes, pivot, proc, tie,
};

use crate::oci::{OciRuntime, Program};

/// Where the runtime finds what it is told, in its own root.
const BUNDLE: &str = "/bundle";

/// What the agent needs to start, stop and serve its workloads.
const KEPT: [&str; 4] = ["CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP"];

/// What a sandbox of this level is made with, besides its blueprint.
pub(crate) struct Contained<'a> {
    pub(crate) program: &'a Program,
    /// The release of the host's kernel, which is not to be that of a kernel of its own.
    pub(crate) release: &'a str,
    /// The agent, and the filters that it puts over the runtime's.
    pub(crate) agent: OwnedFd,
    pub(crate) filters: OwnedFd,
}

/// Builds what an OCI runtime needs around the calling process, and becomes the runtime's parent. Comes back only with what went wrong.
pub(crate) fn become_container(
    blueprint: &Blueprint<'_>,
    contained: Contained<'_>,
    tree: Option<OwnedFd>,
    control: OwnedFd,
    turns: Option<([OwnedFd; 3], String)>,
    words: &OwnedFd,
) -> String {
    let step = |what: &'static str| move |error: io::Error| failed(what, &error);
    let begin = || -> io::Result<()> {
        let Contained { program, release, agent, filters } = contained;
        let image = enter(blueprint)?;
        let by_name = program.runtime == OciRuntime::Runsc;
        // A program that is executed by a descriptor has no name there, without which the C library does not begin: it gets a copy of its own.
        let copy = if by_name { Some(fs::read(format!("/proc/self/fd/{}", agent.as_raw_fd()))?) } else { None };
        layers(blueprint, &image, tree, copy.as_deref()).map_err(step("the image"))?;
        drop(copy);
        drop(image);
        // The agent's descriptors, from 3 on, in the order of its words; the last is what is executed.
        let mut keep = vec![control, agent.try_clone()?, filters];
        let mut argv = [&["sandpool-agent".to_owned()], blueprint.words].concat();
        let policy = blueprint.policy().word();
        argv.push(match program.runtime {
            OciRuntime::Runsc => format!("contained=own:{release}"),
            OciRuntime::Runc | OciRuntime::Crun | OciRuntime::Youki => format!("contained=shared:{policy}"),
        });
        if let Some((files, share)) = turns {
            argv.push(format!("turns={share}"));
            keep.extend(files);
        }
        keep.push(agent.try_clone()?);
        let bundle = bundle(blueprint, program.runtime, &argv, 2 + keep.len());
        fs::create_dir("bundle").and_then(|()| fs::write("bundle/config.json", bundle.to_string()))?;
        root(program).map_err(step("the runtime's root"))?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        sandbox::redirect_standard_streams(null)?;
        // What the runtime says when it fails is why the start failed.
        rustix::stdio::dup2_stdout(words)?;
        rustix::stdio::dup2_stderr(words)?;
        tie()?;
        let leads_out = matches!(blueprint.way_out, WayOut::Listeners(_));
        let line = program.words(BUNDLE, keep.len(), leads_out);
        let shim = ["sandpool-agent", "shim"].map(str::to_owned).into_iter().chain(line);
        let argv = shim.map(|word| CString::new(word).map_err(io::Error::from)).collect::<io::Result<Vec<_>>>()?;
        Err(failed("starting the runtime", &sandbox::become_program(agent, keep, &argv, &[], || Ok(()))))
    };
    match begin() {
        Ok(()) => "nothing went wrong".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Makes the site into a root in which the runtime can run, and goes there: the image's layers are at `/root` of it.
fn root(program: &Program) -> io::Result<()> {
    let read_only = PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY;
    for directory in ["usr", "etc", "proc", "dev", "run", "tmp", "sys", "sys/fs", "sys/fs/cgroup"] {
        make_directory(directory)?;
    }
    bind("/usr", "usr", read_only)?;
    for name in ["bin", "sbin", "lib", "lib32", "lib64"] {
        let host = Path::new("/").join(name);
        match fs::read_link(&host) {
            Ok(target) => symlink(target, name)?,
            Err(_) if host.is_dir() => {
                make_directory(name)?;
                bind(&host.to_string_lossy(), name, read_only)?;
            }
            Err(_) => {}
        }
    }
    if Path::new("/etc/ld.so.cache").is_file() {
        fs::write("etc/ld.so.cache", "")?;
        bind("/etc/ld.so.cache", "etc/ld.so.cache", read_only)?;
    }
    if let Some(files) = &program.files {
        let place = files.strip_prefix("/").map_err(io::Error::other)?;
        fs::create_dir_all(place)?;
        bind(&files.to_string_lossy(), &place.to_string_lossy(), read_only)?;
    }
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    for device in ["null", "zero", "full", "random", "urandom", "tty"] {
        fs::write(format!("dev/{device}"), "")?;
        bind(&format!("/dev/{device}"), &format!("dev/{device}"), quiet)?;
    }
    attach(&proc()?, "proc")?;
    // Runtimes look which control groups there are. They are in the sandbox's already, and can make no others; where there is no such file
    // system they say so.
    let groups = new_mount("cgroup2", &[], read_only | MountAttrFlags::MOUNT_ATTR_NOEXEC);
    let _ = groups.and_then(|groups| attach(&groups, "sys/fs/cgroup"));
    symlink("/proc/self/fd", "dev/fd")?;
    pivot(".")
}

/// What the runtime is told. Nothing of it comes from an image or a client.
fn bundle(blueprint: &Blueprint<'_>, runtime: OciRuntime, argv: &[String], program: usize) -> Value {
    let is_own = runtime == OciRuntime::Runsc;
    let limits = &blueprint.limits;
    // gVisor's kernel keeps no capability of one who is not root: there the agent becomes another user itself.
    let user = if is_own { 0 } else { AGENT };
    let mut args = argv.to_vec();
    args[0] = if is_own { PROGRAM.to_owned() } else { format!("/proc/self/fd/{program}") };
    let tmpfs = |place: &str, size: u64, mode: &str, owner: u32, more: &[&str]| {
        let mut options = vec!["nosuid".to_owned(), "nodev".to_owned(), format!("mode={mode}"), format!("size={size}")];
        options.extend([format!("uid={owner}"), format!("gid={owner}")]);
        if !is_own {
            options.push(format!("nr_inodes={}", (size / 4096).clamp(64, 1 << 18)));
        }
        options.extend(more.iter().map(|option| (*option).to_owned()));
        json!({ "destination": place, "type": "tmpfs", "source": "sandpool", "options": options })
    };
    let quiet = ["nosuid", "nodev", "noexec"];
    let whose = if blueprint.is_container { "1777" } else { "755" };
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "sandpool", "options": quiet }),
        // FS5. Read-only once all of it is there; gVisor's has nothing of the host's.
        tmpfs("/dev", 64 << 10, "755", 0, if is_own { &["noexec"] } else { &["noexec", "ro"] }),
        json!({
            "destination": "/dev/pts", "type": "devpts", "source": "sandpool",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        }),
        tmpfs("/dev/shm", SHM.min(limits.memory / 2), "1777", WORKLOAD, &["noexec"]),
        tmpfs("/mnt/data", limits.data, whose, WORKLOAD, &[]),
        tmpfs("/tmp", limits.tmp, "1777", WORKLOAD, &[]),
        tmpfs("/home/sandbox", limits.tmp, "755", WORKLOAD, &[]),
    ];
    if is_own {
        mounts.remove(2);
    }
    let rlimits: Vec<_> = of_processes(limits)
        .into_iter()
        .filter_map(|(resource, soft, hard)| {
            // A hard limit is never raised.
            let hard = hard.min(rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX));
            Some(json!({ "type": name(resource)?, "soft": soft.min(hard), "hard": hard }))
        })
        .collect();
    let in_proc = |names: &[&str]| -> Vec<String> { names.iter().map(|name| format!("/proc/{name}")).collect() };
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": user, "gid": user },
            "args": args,
            // ID6: nothing of the launcher's environment.
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/home/sandbox", "LANG=C.UTF-8", "TMPDIR=/tmp",
            ],
            "cwd": "/",
            "noNewPrivileges": true,
            "oomScoreAdj": 500,
            "capabilities": {
                "bounding": KEPT, "effective": KEPT, "permitted": KEPT, "inheritable": KEPT, "ambient": KEPT,
            },
            "rlimits": rlimits,
        },
        // What it sees of its image is mounted for reading alone already, with attributes that runc, told so, would drop, and crun else.
        "root": { "path": "/root", "readonly": runtime != OciRuntime::Runc && !blueprint.is_container },
        "hostname": "sandbox",
        "mounts": mounts,
        "linux": {
            // The user, network and control group namespaces are those that the runtime is in.
            "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }],
            "maskedPaths": in_proc(&MASKED),
            "readonlyPaths": in_proc(&READ_ONLY),
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrnoRet": 38,
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{ "names": Filters::names().collect::<Vec<_>>(), "action": "SCMP_ACT_ALLOW" }],
            },
        },
    })
}

/// A limit's name in a bundle.
fn name(resource: Resource) -> Option<&'static str> {
    Some(match resource {
        Resource::Core => "RLIMIT_CORE",
        Resource::Nofile => "RLIMIT_NOFILE",
        Resource::Memlock => "RLIMIT_MEMLOCK",
        Resource::Msgqueue => "RLIMIT_MSGQUEUE",
        Resource::Sigpending => "RLIMIT_SIGPENDING",
        Resource::Fsize => "RLIMIT_FSIZE",
        Resource::Rtprio => "RLIMIT_RTPRIO",
        Resource::Nice => "RLIMIT_NICE",
        Resource::Nproc => "RLIMIT_NPROC",
        Resource::Stack => "RLIMIT_STACK",
        _ => return None,
    })
}
