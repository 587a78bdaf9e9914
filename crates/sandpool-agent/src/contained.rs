//! The agent in a container that an OCI runtime has made: it puts itself behind what no runtime can, and looks whether what the runtime was
//! asked for is there. Where the wall is weaker than it must be, there is no sandbox.
//!
//! ```text
//! runtime starts us: namespaces, root, masks, system call list, no new privileges, four capabilities
//!   shared kernel -> securebits -> Landlock -> our own filters over the runtime's -> look
//!   gVisor's      -> another user, with the four capabilities                      -> look
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet};
use sandpool_sys::workload::{self, Identity};
use sandpool_walls::landlock::Policy;

/// Whom the agent is (ID2).
const AGENT: Identity = Identity { uid: 998, gid: 998 };

/// Bytes of the filters that are to be installed.
const MAX_FILTERS: usize = 1 << 18;

/// Bytes of each text that is looked at.
const MAX_TEXT: u64 = 1 << 16;

/// The first id that a sandbox can have of the host's: those below belong to people and services.
const FIRST_OWN: u64 = 0x2000_0000;

/// What is looked at whether it is masked, besides that it may not be there at all: one file, and one directory.
const MASKED: [&str; 4] = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi"];

/// The container that this process is to be the first one of.
#[derive(Debug)]
pub struct Contained {
    /// The release of the host's kernel, where the container is to have one of its own.
    foreign_to: Option<String>,
    policy: Policy,
    filters: OwnedFd,
}

impl Contained {
    /// Reads `shared:POLICY`, or `own:RELEASE` for a kernel of its own, in front of that release of the host's.
    ///
    /// # Errors
    /// `InvalidInput` for anything else.
    pub fn new(word: &str, filters: OwnedFd) -> io::Result<Self> {
        match word.split_once(':') {
            Some(("shared", policy)) => Ok(Self { foreign_to: None, policy: Policy::from_word(policy), filters }),
            Some(("own", release)) => {
                let policy = Policy::from_word("");
                Ok(Self { foreign_to: Some(release.to_owned()), policy, filters })
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Puts this process behind its walls and looks at them. Whether descriptors can be received here and not be handed over.
    ///
    /// # Errors
    /// What could not be done, or is weaker than it must be: then this process must not go on.
    pub fn settle(self) -> io::Result<bool> {
        let step = |what: &'static str| move |error: io::Error| io::Error::other(format!("{what}: {error}"));
        let is_own = self.foreign_to.is_some();
        if is_own {
            workload::in_own_kernel();
            workload::become_with(AGENT, kept()).map_err(step("another user"))?;
        } else {
            secure().map_err(step("its capabilities"))?;
            sandpool_walls::landlock::restrict(self.policy, None).map_err(step("Landlock"))?;
            let filters = whole(&self.filters).map_err(step("the system call filters"))?;
            workload::install_filters(&filters).map_err(step("the system call filters"))?;
        }
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        let found = look(self.foreign_to.as_deref())?;
        if let Some(weaker) = judge(&found, self.policy.is_container) {
            return Err(io::Error::other(format!("the wall is weaker than it must be: {weaker}")));
        }
        // What is said from here on is nobody's to hear.
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        for dup in [rustix::stdio::dup2_stdin, rustix::stdio::dup2_stdout, rustix::stdio::dup2_stderr] {
            dup(&null)?;
        }
        Ok(is_own)
    }
}

/// A file from its beginning, wherever others who share the descriptor have read to.
fn whole(file: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; MAX_FILTERS];
    let mut length = 0;
    loop {
        match rustix::io::pread(file, &mut bytes[length..], u64::try_from(length).map_err(io::Error::other)?)? {
            0 => break,
            count => length += count,
        }
    }
    bytes.truncate(length);
    if 0 < length && length < MAX_FILTERS { Ok(bytes) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// What the agent needs to start, stop and serve its workloads; a program that it starts keeps none.
fn kept() -> CapabilitySet {
    CapabilitySet::KILL | CapabilitySet::SETGID | CapabilitySet::SETUID | CapabilitySet::SETPCAP
}

/// ID4: no set of capabilities can grow any more, whoever one becomes.
fn secure() -> io::Result<()> {
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    Ok(rustix::thread::set_capabilities_secure_bits(bits)?)
}

/// What the container is seen to be, from inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    /// `/proc/self/status`.
    status: String,
    /// `/proc/self/uid_map`; empty where the kernel does not tell.
    ids: String,
    /// The network's interfaces, `/proc/net/dev`.
    interfaces: String,
    /// The kernel's release, and that of the host where it must be another.
    release: String,
    foreign_to: Option<String>,
    root_is_read_only: bool,
    /// What tells something in /proc and must not.
    unmasked: Option<&'static str>,
}

fn look(foreign_to: Option<&str>) -> io::Result<Found> {
    let text = |path: &str| -> io::Result<String> {
        let mut text = String::new();
        File::open(path)?.take(MAX_TEXT).read_to_string(&mut text)?;
        Ok(text)
    };
    let flags = rustix::fs::statvfs("/")?.f_flag;
    let tells = |path: &&'static str| match std::fs::metadata(*path) {
        Ok(meta) if meta.is_dir() => std::fs::read_dir(*path).is_ok_and(|mut entries| entries.next().is_some()),
        Ok(_) => File::open(*path).is_ok_and(|mut file| !matches!(file.read(&mut [0; 1]), Ok(0) | Err(_))),
        Err(_) => false,
    };
    Ok(Found {
        status: text("/proc/self/status")?,
        ids: text("/proc/self/uid_map")?,
        interfaces: text("/proc/net/dev").unwrap_or_default(),
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        foreign_to: foreign_to.map(str::to_owned),
        root_is_read_only: flags.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        unmasked: MASKED.iter().find(|path| tells(path)).copied(),
    })
}

/// What is weaker than it must be, in words; `None` when the wall is as it was promised.
fn judge(found: &Found, is_container: bool) -> Option<String> {
    let field = |name: &str| -> Vec<&str> {
        let line = found.status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|line| line.split_whitespace().collect()).unwrap_or_default()
    };
    let says = |name: &str, wanted: &str| {
        let got = field(name).join(" ");
        (got != wanted).then(|| format!("{name} is {got:?} and not {wanted:?}"))
    };
    let capabilities = format!("{:016x}", kept().bits());
    let mut weaker = vec![
        says("Uid", "998 998 998 998"),
        says("Gid", "998 998 998 998"),
        says("Groups", ""),
        says("CapBnd", &capabilities),
        says("CapPrm", &capabilities),
    ];
    match &found.foreign_to {
        Some(host) => weaker.push((found.release == *host).then(|| format!("its kernel is the host's, {host}"))),
        None => {
            weaker.push(says("NoNewPrivs", "1"));
            weaker.push(says("Seccomp", "2"));
            let filters = field("Seccomp_filters").first().and_then(|count| count.parse().ok()).unwrap_or(0);
            // Ours are seven; at least one is the runtime's.
            weaker.push((filters < 8).then(|| format!("{filters} system call filters are in force, and not 8")));
            let own: Vec<u64> = found.ids.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let is_own = matches!(own[..], [0, first, 65_536] if first >= FIRST_OWN);
            weaker.push((!is_own).then(|| format!("its ids are {:?}, and no range of its own", found.ids.trim())));
        }
    }
    let others = found.interfaces.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
    weaker.push(others.clone().find(|name| *name != "lo").map(|name| format!("its network has {name}")));
    if !is_container {
        weaker.push((!found.root_is_read_only).then(|| "its root can be written to".to_owned()));
    }
    weaker.push(found.unmasked.map(|path| format!("{path} tells something")));
    weaker.into_iter().flatten().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Found {
        let status = "Name:\tx\nUid:\t998\t998\t998\t998\nGid:\t998\t998\t998\t998\nGroups:\t \n\
            CapPrm:\t00000000000001e0\nCapBnd:\t00000000000001e0\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t8\n";
        Found {
            status: status.to_owned(),
            ids: "         0  536870912      65536\n".to_owned(),
            interfaces: "Inter-| Receive\n face |bytes\n    lo: 0 0\n".to_owned(),
            release: "6.1.0".to_owned(),
            foreign_to: None,
            root_is_read_only: true,
            unmasked: None,
        }
    }

    #[test]
    fn a_wall_as_promised_is_good() {
        assert_eq!(judge(&good(), false), None);
        let writable = Found { root_is_read_only: false, ..good() };
        assert_eq!(judge(&writable, true), None);
    }

    #[test]
    fn each_weakness_is_told() {
        let status = |from: &str, to: &str| Found { status: good().status.replace(from, to), ..good() };
        let weak = [
            ("Uid", status("Uid:\t998", "Uid:\t0")),
            ("Groups", status("Groups:\t ", "Groups:\t0 ")),
            ("CapBnd", status("CapBnd:\t00000000000001e0", "CapBnd:\t000001ffffffffff")),
            ("NoNewPrivs", status("NoNewPrivs:\t1", "NoNewPrivs:\t0")),
            ("Seccomp", status("Seccomp:\t2", "Seccomp:\t0")),
            ("filters", status("Seccomp_filters:\t8", "Seccomp_filters:\t7")),
            ("ids", Found { ids: "0 0 4294967295".to_owned(), ..good() }),
            ("ids", Found { ids: "0 100000 65536".to_owned(), ..good() }),
            ("eth0", Found { interfaces: "lo: 0\n eth0: 0\n".to_owned(), ..good() }),
            ("root", Found { root_is_read_only: false, ..good() }),
            ("/proc/keys", Found { unmasked: Some("/proc/keys"), ..good() }),
        ];
        for (word, found) in weak {
            let why = judge(&found, false).unwrap_or_else(|| panic!("{word} was taken for good"));
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    fn a_kernel_of_its_own_is_not_the_hosts() {
        let own = |release: &str| Found {
            foreign_to: Some("6.1.0".to_owned()),
            release: release.to_owned(),
            status: good().status.replace("Seccomp:\t2", "Seccomp:\t0"),
            ..good()
        };
        assert_eq!(judge(&own("4.4.0"), false), None);
        assert!(judge(&own("6.1.0"), false).unwrap().contains("the host's"));
    }
}
