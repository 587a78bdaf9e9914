//! What pools need, tried: nothing but trying tells what a kernel, a container around us or a security module allows.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::PipeFlags;
use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions};
use rustix::thread::CapabilitySet;
use sandpool_core::limits::Limits;
use sandpool_sys::sandbox::{self as sys, Cloned};

use super::Line;
use crate::cgroup::Groups;
use sandpool_walls::seccomp::Filters;
use sandpool_walls::setup::{self, Blueprint, WayOut};

/// The longest that one child may take. It takes milliseconds.
const LIMIT: Duration = Duration::from_secs(10);

/// Uids of the trial: a range below those of sandboxes.
const FIRST_ID: u32 = 0x1fff_0000;
const IDS: u32 = 65_536;

/// A directory that every host has, as the lower layer of the trial's overlay and as its image.
const LAYER: &str = "/usr";

/// What was tried: what it showed, or why it failed. What is not there was not reached.
type Findings = BTreeMap<String, Result<String, String>>;

/// What a sandbox is built from, one thing after another, each needing the ones before it.
const PARTS: [(&str, &str); 5] = [
    (
        "namespaces",
        "user namespaces must be allowed to root, and not be used up: sysctl user.max_user_namespaces=15000; inside a \
         container, one that allows them (--privileged, or security options that do)",
    ),
    ("mount-api", "a kernel from 5.12 on, and no container around that forbids mounting"),
    ("overlay", "a kernel from 5.11 on, with CONFIG_OVERLAY_FS (modprobe overlay)"),
    (
        "proc",
        "a fully visible /proc is needed to mount a new one: inside a container, one whose /proc is not masked \
         (--security-opt systempaths=unconfined, procMount: Unmasked)",
    ),
    ("way-out", "root must be allowed routes and listeners in a network of its own; only pools with egress need it"),
];

const NOT_REACHED: &str = "not reached: what is before it failed";

/// One line for each thing that pools need.
pub(super) fn needs() -> Vec<Line> {
    let platform = (std::env::consts::OS, std::env::consts::ARCH);
    let is_known = platform == ("linux", "x86_64");
    let text = format!("{} on {}", platform.0, platform.1);
    let platform = if is_known { Ok(text) } else { Err(text) };
    let mut lines = vec![
        Line::needed("platform", platform, "Linux on x86-64: the list of system calls exists for no other machine yet"),
        Line::needed("root", root(), "run it as root, with the capabilities of root"),
        Line::needed("pidfd", pidfd(), "a kernel from 5.4 on"),
        Line::needed("seccomp", seccomp(), "a kernel with CONFIG_SECCOMP_FILTER"),
        Line::needed(
            "landlock",
            landlock(),
            "a kernel from 5.13 on with CONFIG_SECURITY_LANDLOCK, and landlock in its list of security modules (boot \
             parameter lsm=landlock,...)",
        ),
    ];
    if lines[1].verdict != super::Verdict::Pass {
        // Without root nothing can be tried, and what was not tried is not missing.
        return lines;
    }
    lines.push(Line::needed(
        "cgroup",
        cgroup(),
        "mount the controllers memory, pids and cpu (version 2, or 1) where root can make groups",
    ));
    let parts = in_child(parts).unwrap_or_else(|error| BTreeMap::from([("namespaces".to_owned(), Err(why(&error)))]));
    for (id, fix) in PARTS {
        let found = parts.get(id).cloned().unwrap_or_else(|| Err(NOT_REACHED.to_owned()));
        lines.push(Line::needed(id, found, fix));
    }
    // Last, the whole: what launching a sandbox does, up to the point where it would start the agent.
    let whole = in_child(whole).map_err(|error| why(&error));
    let found = whole.and_then(|mut found| found.remove("sandbox").unwrap_or_else(|| Err(NOT_REACHED.to_owned())));
    lines.push(Line::needed("sandbox", found, "what failed is named; the lines before this one may say more"));
    lines
}

fn why(error: &io::Error) -> String {
    let used_up = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"].into_iter().find(|kind| {
        std::fs::read_to_string(format!("/proc/sys/user/max_{kind}_namespaces")).is_ok_and(|text| text.trim() == "0")
    });
    match used_up {
        Some(kind) => format!("{error}; user.max_{kind}_namespaces is 0"),
        None => error.to_string(),
    }
}

fn root() -> Result<String, String> {
    let uid = rustix::process::geteuid();
    if !uid.is_root() {
        return Err(format!("this is user {}", uid.as_raw()));
    }
    let effective = rustix::thread::capabilities(None).map_err(|error| error.to_string())?.effective;
    let needed = [
        ("CAP_SETUID", CapabilitySet::SETUID),
        ("CAP_SETGID", CapabilitySet::SETGID),
        ("CAP_SETPCAP", CapabilitySet::SETPCAP),
        ("CAP_KILL", CapabilitySet::KILL),
        ("CAP_DAC_OVERRIDE", CapabilitySet::DAC_OVERRIDE),
        ("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN),
    ];
    let missing: Vec<_> =
        needed.into_iter().filter(|(_, one)| !effective.contains(*one)).map(|(name, _)| name).collect();
    if missing.is_empty() { Ok("root".to_owned()) } else { Err(format!("root without {}", missing.join(", "))) }
}

fn pidfd() -> Result<String, String> {
    let own = rustix::process::getpid();
    rustix::process::pidfd_open(own, PidfdFlags::empty())
        .map(|_| "processes have descriptors".to_owned())
        .map_err(|error| error.to_string())
}

fn seccomp() -> Result<String, String> {
    let file = "/proc/sys/kernel/seccomp/actions_avail";
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let actions: Vec<&str> = text.split_whitespace().collect();
    match ["errno", "kill_process", "allow"].into_iter().find(|action| !actions.contains(action)) {
        None => Ok(format!("filters; {} system calls are on the list of allowed ones", Filters::allowed())),
        Some(action) => Err(format!("filters cannot {action}")),
    }
}

fn landlock() -> Result<String, String> {
    match sys::landlock_version() {
        Ok(version @ 1..) => Ok(format!("version {version}, of which {} is used", version.min(setup::LANDLOCK))),
        Ok(version) => Err(format!("version {version}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Makes a sandbox's groups with its limits, and takes them away.
fn cgroup() -> Result<String, String> {
    let name = format!("probe-{}", std::process::id());
    let groups = Groups::open(&name).map_err(|error| error.to_string())?;
    let tried = groups.create(0, &Limits::default()).and_then(|group| group.remove());
    groups.close();
    let version = Groups::version().unwrap_or(0);
    tried.map(|()| format!("version {version}: memory, pids, cpu")).map_err(|error| error.to_string())
}

/// Runs `work` in a child that has namespaces of its own, and gathers what it tells.
fn in_child(work: impl FnOnce(&mut dyn FnMut(&str, Result<String, String>))) -> io::Result<Findings> {
    let (go_in, go_out) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (words_in, words_out) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (pid, process) = match sys::clone_into_namespaces(None)? {
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
        Cloned::Child => {
            drop((go_out, words_in));
            // Never back into the parent's code, whatever happens.
            let _ = std::panic::catch_unwind(AssertUnwindSafe(|| {
                if rustix::io::read(&go_in, &mut [0]) != Ok(1) {
                    return;
                }
                work(&mut |id, found| {
                    let (mark, text) = match &found {
                        Ok(text) => ('+', text),
                        Err(text) => ('-', text),
                    };
                    let line = format!("{id}\t{mark}{}\n", text.replace('\n', " "));
                    let _ = rustix::io::write(&words_out, line.as_bytes());
                });
            }));
            sys::exit_now(0);
        }
    };
    drop(words_out);
    let told = release(pid, &go_out).and_then(|()| listen(words_in));
    // Ended or not: it is not there any more when this returns.
    let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
    rustix::process::waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED)?;
    let text = told?;
    let lines = text.lines().filter_map(|line| {
        let (id, found) = line.split_once('\t')?;
        let found = match (found.strip_prefix('+'), found.strip_prefix('-')) {
            (Some(text), _) => Ok(text.to_owned()),
            (_, text) => Err(text?.to_owned()),
        };
        Some((id.to_owned(), found))
    });
    Ok(lines.collect())
}

fn release(pid: rustix::process::Pid, go: &OwnedFd) -> io::Result<()> {
    for file in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{file}", pid.as_raw_nonzero()), format!("0 {FIRST_ID} {IDS}\n"))?;
    }
    Ok(rustix::io::write(go, b"!").map(drop)?)
}

/// Reads until the child is at its end, or its time is up.
fn listen(words: OwnedFd) -> io::Result<String> {
    let until = Instant::now() + LIMIT;
    let mut words = std::fs::File::from(words);
    let mut text = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(0), tv_nsec: left.subsec_nanos().into() };
        if rustix::event::poll(&mut [PollFd::new(&words, PollFlags::IN)], Some(&left))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the trial did not end"));
        }
        let mut buffer = [0; 4096];
        match words.read(&mut buffer)? {
            0 => return String::from_utf8(text).map_err(io::Error::other),
            count => text.extend_from_slice(&buffer[..count]),
        }
    }
}

fn parts(tell: &mut dyn FnMut(&str, Result<String, String>)) {
    for ((id, _), attempt) in PARTS.into_iter().zip([namespaces, mount_api, overlay, proc, way_out]) {
        let found = attempt();
        let is_over = found.is_err();
        tell(id, found.map_err(|error| error.to_string()));
        if is_over {
            return;
        }
    }
}

fn namespaces() -> io::Result<String> {
    setup::enter_namespaces()?;
    Ok(format!("user (with {IDS} ids), pid, mount, network, ipc, uts, cgroup"))
}

fn mount_api() -> io::Result<String> {
    setup::make_site(setup::SITE_SIZE)?;
    Ok("file systems are made with their attributes, and then attached".to_owned())
}

fn overlay() -> io::Result<String> {
    setup::try_overlay(Path::new(LAYER))?;
    Ok("read-only layers, in a user namespace".to_owned())
}

fn proc() -> io::Result<String> {
    setup::try_proc()?;
    Ok("a /proc of a sandbox's own".to_owned())
}

fn way_out() -> io::Result<String> {
    sandpool_sys::network::own_every_address()?;
    let count = sandpool_sys::network::listeners()?.len();
    Ok(format!("every address is a sandbox's own, with {count} listeners; used by pools with egress"))
}

fn whole(tell: &mut dyn FnMut(&str, Result<String, String>)) {
    let attempt = || -> io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        let rootfs = std::fs::canonicalize(LAYER)?;
        let meta = std::fs::metadata(&rootfs)?;
        let filters = Filters::compile()?;
        let blueprint = Blueprint {
            rootfs: &rootfs,
            rootfs_is: (meta.dev(), meta.ino()),
            trust: None,
            words: &["shell".to_owned()],
            disk: None,
            machine_id: None,
            limits: Limits { memory: 64 << 20, data: 1 << 20, tmp: 1 << 20, ..Limits::default() },
            local_servers: true,
            is_container: false,
            filters: &filters,
            way_out: WayOut::None,
            kvm: None,
            lent: None,
        };
        setup::build(&blueprint, None)?;
        filters.install()
    };
    tell("sandbox", attempt().map(|()| "one was built, and taken down".to_owned()).map_err(|error| error.to_string()));
}
