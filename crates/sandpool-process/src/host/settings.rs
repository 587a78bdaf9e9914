//! What the host could do better: read from /proc and /sys, and judged. No sandbox depends on it.

use std::path::{Path, PathBuf};

use rustix::thread::CapabilitySet;

use super::Line;
use crate::cgroup::Groups;

/// Where /proc, /sys, /etc and /lib are: the host's, or a test's.
pub(super) struct Host {
    root: PathBuf,
    release: String,
    groups: Option<u8>,
    has_sys_resource: bool,
}

/// A number of the kernel's, and whether it is good.
type Setting = (&'static str, &'static str, fn(i64) -> bool, &'static str);

const SETTINGS: [Setting; 6] = [
    ("bpf", "kernel/unprivileged_bpf_disabled", |value| value >= 1, "sysctl kernel.unprivileged_bpf_disabled=1"),
    ("perf", "kernel/perf_event_paranoid", |value| value >= 2, "sysctl kernel.perf_event_paranoid=2"),
    ("dmesg", "kernel/dmesg_restrict", |value| value >= 1, "sysctl kernel.dmesg_restrict=1"),
    ("kptr", "kernel/kptr_restrict", |value| value >= 1, "sysctl kernel.kptr_restrict=1"),
    ("tiocsti", "dev/tty/legacy_tiocsti", |value| value == 0, "sysctl dev.tty.legacy_tiocsti=0"),
    ("io-uring", "kernel/io_uring_disabled", |value| value >= 1, "sysctl kernel.io_uring_disabled=2"),
];

/// Less memory than that to give out is no room for a handful of sessions, in bytes.
const LITTLE: u64 = 256 << 20;

/// Ids that a sandbox takes, by the dearest interpreter: Node's threads, and the agent.
const IDS_EACH: i64 = 9;

/// The kernel's own choice, on a host with few processors.
const MANY_IDS: i64 = 32_768;

/// Links and files in directories that everybody may write to.
const PROTECTED: [&str; 4] = ["symlinks", "hardlinks", "fifos", "regular"];

/// Branches of Linux whose page-cache bugs of 2026 (CVE-2026-31431, -43284, -43500, -46300) are all fixed, and from
/// which patch level on. Every later branch began with the fixes.
const FIXED: [((u32, u32), u32); 2] = [((6, 12), 91), ((6, 18), 33)];
const FIXED_SINCE: (u32, u32) = (7, 1);

/// Modules through which those bugs were reached.
const MODULES: [&str; 7] = ["esp4", "esp6", "rxrpc", "algif_aead", "algif_hash", "algif_skcipher", "algif_rng"];

/// The protocols of those that are in the kernel itself, as /proc/net/protocols names them.
const PROTOCOLS: [&str; 3] = ["ALG", "RXRPC", "KEY"];

impl Host {
    pub(super) fn real() -> Self {
        let capabilities = rustix::thread::capabilities(None);
        Self {
            root: "/".into(),
            release: rustix::system::uname().release().to_string_lossy().into_owned(),
            groups: Groups::version(),
            has_sys_resource: capabilities.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE)),
        }
    }

    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(path)).ok().map(|text| text.trim().to_owned())
    }

    fn number(&self, path: &str) -> Option<i64> {
        self.read(path)?.parse().ok()
    }

    fn is_there(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }
}

/// Every line, in the order in which they are printed.
pub(super) fn all(host: &Host) -> Vec<Line> {
    let mut lines = vec![kernel(host)];
    lines.extend(SETTINGS.iter().map(|setting| sysctl(host, *setting)));
    lines.extend([
        protected(host),
        ksm(host),
        swap(host),
        modules(host),
        smt(host),
        vulnerabilities(host),
        security_modules(host),
        core_pattern(host),
        sys_resource(host),
        cgroup_mode(host),
        memory(host),
        process_ids(host),
    ]);
    lines
}

fn kernel(host: &Host) -> Line {
    let release = host.release.as_str();
    let numbers: Vec<u32> =
        release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok()).take(3).collect();
    let (branch, patch) = match numbers[..] {
        [major, minor, patch] => ((major, minor), patch),
        [major, minor] => ((major, minor), 0),
        _ => ((0, 0), 0),
    };
    let known = FIXED.iter().find(|(known, _)| *known == branch);
    let is_good = branch >= FIXED_SINCE || known.is_some_and(|(_, fixed)| patch >= *fixed);
    let found = match known {
        _ if is_good => release.to_owned(),
        Some(((major, minor), fixed)) => {
            format!("{release}: before {major}.{minor}.{fixed}, which fixes the page-cache bugs of 2026")
        }
        None => format!("{release}: of a branch that is not known to have the fixes of 2026"),
    };
    let fix = "update the kernel to 6.12.91, 6.18.33, 7.1 or later, or ask its distribution whether it has the fixes \
               of CVE-2026-31431, CVE-2026-43284, CVE-2026-43500 and CVE-2026-46300";
    Line::wanted("kernel", is_good, found, fix)
}

fn sysctl(host: &Host, (id, file, is_good, fix): Setting) -> Line {
    let name = file.replace('/', ".");
    match host.number(&format!("proc/sys/{file}")) {
        Some(value) => Line::wanted(id, is_good(value), format!("{name} is {value}"), fix),
        // A kernel without the switch: without the feature, or from before the switch.
        None => {
            let is_absent = match id {
                "bpf" | "perf" => true,
                "io-uring" => !host.is_there("proc/sys/kernel/io_uring_group"),
                _ => false,
            };
            Line::wanted(id, is_absent, format!("{name} does not exist here"), "a newer kernel has the switch")
        }
    }
}

fn protected(host: &Host) -> Line {
    let off: Vec<_> = PROTECTED
        .into_iter()
        .filter(|name| host.number(&format!("proc/sys/fs/protected_{name}")).is_none_or(|value| value < 1))
        .collect();
    let found = if off.is_empty() { "all on".to_owned() } else { format!("off: {}", off.join(", ")) };
    let fix: Vec<_> = off.iter().map(|name| format!("fs.protected_{name}=1")).collect();
    Line::wanted("fs-protected", off.is_empty(), found, &format!("sysctl {}", fix.join(" ")))
}

fn ksm(host: &Host) -> Line {
    let is_on = host.number("sys/kernel/mm/ksm/run").is_some_and(|value| value == 1);
    let found = if is_on { "the kernel merges equal pages, which tells who has what" } else { "off" };
    Line::wanted("ksm", !is_on, found, "echo 2 > /sys/kernel/mm/ksm/run")
}

fn swap(host: &Host) -> Line {
    let text = host.read("proc/swaps").unwrap_or_default();
    let areas: Vec<_> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    // What is encrypted or lies in memory is written to no disk in the clear.
    let plain: Vec<_> =
        areas.iter().copied().filter(|area| !area.contains("/zram") && !area.contains("/dm-")).collect();
    let found = match (areas.is_empty(), plain.is_empty()) {
        (true, _) => "off".to_owned(),
        (_, true) => format!("{}: in memory, or mapped", areas.join(", ")),
        _ => format!("on {}: memory may be written there as it is", plain.join(", ")),
    };
    Line::wanted("swap", plain.is_empty(), found, "swapoff -a, or an encrypted swap area")
}

fn modules(host: &Host) -> Line {
    let loaded = host.read("proc/modules").unwrap_or_default();
    let loaded: Vec<_> = loaded.lines().filter_map(|line| line.split(' ').next()).collect();
    let directory = format!("lib/modules/{}", host.release);
    let files = ["modules.dep", "modules.builtin"].map(|file| host.read(&format!("{directory}/{file}")));
    let [loadable, builtin] = files.map(Option::unwrap_or_default);
    let is_closed = host.number("proc/sys/kernel/modules_disabled") == Some(1) || !host.is_there("proc/modules");
    let blocked = blocked_modules(&host.root.join("etc/modprobe.d"));
    let has = |list: &str, module: &str| {
        list.lines().any(|line| line.split(['.', ':']).next().is_some_and(|path| path.ends_with(&format!("/{module}"))))
    };
    let mut reachable: Vec<String> = MODULES
        .into_iter()
        .filter(|module| {
            loaded.contains(module)
                || has(&builtin, module)
                || has(&loadable, module) && !is_closed && !blocked.iter().any(|name| name == module)
        })
        .map(str::to_owned)
        .collect();
    let protocols = host.read("proc/net/protocols").unwrap_or_default();
    let protocols: Vec<_> = protocols.lines().filter_map(|line| line.split_whitespace().next()).collect();
    reachable.extend(PROTOCOLS.into_iter().filter(|name| protocols.contains(name)).map(|name| format!("AF_{name}")));
    let found = match reachable.is_empty() {
        true => "none of the modules of the bugs of 2026 can be reached".to_owned(),
        false => format!("reachable on the host: {} (a sandbox's filter refuses them)", reachable.join(", ")),
    };
    let fix = "in /etc/modprobe.d: install NAME /bin/false, for each; or sysctl kernel.modules_disabled=1 after boot";
    Line::wanted("modules", reachable.is_empty(), found, fix)
}

/// Names that modprobe was told not to load.
fn blocked_modules(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let texts: Vec<_> = entries.filter_map(|entry| std::fs::read_to_string(entry.path()).ok()).collect();
    let lines = texts.iter().flat_map(|text| text.lines());
    lines
        .filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                ["install", name, command] if ["/bin/false", "/bin/true", "false"].contains(&command) => Some(name),
                ["install", name, command, ..] if command.ends_with("/false") => Some(name),
                _ => None,
            }
        })
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// How much the rule that refuses sandboxes for want of memory has to give out.
fn memory(host: &Host) -> Line {
    let text = host.read("proc/meminfo").unwrap_or_default();
    let [total, available] = ["MemTotal", "MemAvailable"].map(|name| super::memory(&text, name).unwrap_or(0));
    let reserve = crate::launcher::default_reserve(total);
    let found = format!(
        "{} of {} MiB are available; {} MiB stay free unless the setting memoryReserve says otherwise, and a sandbox that \
         would need of them is refused",
        available >> 20,
        total >> 20,
        reserve >> 20
    );
    Line::wanted("memory", available > reserve + LITTLE, found, "stop what takes the memory, or give the host more")
}

fn process_ids(host: &Host) -> Line {
    let most = host.number("proc/sys/kernel/pid_max").unwrap_or(0);
    let found = format!("{most} process ids: for some {} sandboxes with an interpreter", most / IDS_EACH);
    Line::wanted("pid-max", most >= MANY_IDS, found, "sysctl kernel.pid_max=4194304")
}

fn smt(host: &Host) -> Line {
    let is_on = host.number("sys/devices/system/cpu/smt/active") == Some(1);
    let found = if is_on { "on: neighbours may share a core at the same time" } else { "off, or not there" };
    Line::wanted("smt", !is_on, found, "echo off > /sys/devices/system/cpu/smt/control (boot parameter nosmt)")
}

fn vulnerabilities(host: &Host) -> Line {
    let directory = host.root.join("sys/devices/system/cpu/vulnerabilities");
    let mut bad: Vec<String> = std::fs::read_dir(&directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| std::fs::read_to_string(entry.path()).is_ok_and(|text| text.starts_with("Vulnerable")))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    bad.sort();
    let found = match bad.is_empty() {
        _ if !directory.exists() => "the kernel does not tell".to_owned(),
        true => "none without its mitigation".to_owned(),
        false => format!("without mitigation: {}", bad.join(", ")),
    };
    let fix = "microcode and kernel updates; no boot parameter mitigations=off";
    Line::wanted("vulnerabilities", bad.is_empty() && directory.exists(), found, fix)
}

fn security_modules(host: &Host) -> Line {
    let fix = "mount -t securityfs securityfs /sys/kernel/security";
    match host.read("sys/kernel/security/lsm") {
        Some(list) => Line::wanted("lsm", true, list, fix),
        None => Line::wanted("lsm", false, "the list cannot be read", fix),
    }
}

fn core_pattern(host: &Host) -> Line {
    let pattern = host.read("proc/sys/kernel/core_pattern").unwrap_or_default();
    let is_pipe = pattern.starts_with('|');
    let found = match is_pipe {
        true => format!("{pattern}: a program that runs as root of the host when anything crashes"),
        false => format!("{pattern:?}, no program"),
    };
    Line::wanted("core-pattern", !is_pipe, found, "sysctl kernel.core_pattern=core")
}

fn sys_resource(host: &Host) -> Line {
    let found = match host.has_sys_resource {
        true => "there",
        false => "missing: no limit of this process can be raised, so the number of sandboxes is bounded by it",
    };
    Line::wanted("cap-sys-resource", host.has_sys_resource, found, "give CAP_SYS_RESOURCE to the service")
}

fn cgroup_mode(host: &Host) -> Line {
    let found = match host.groups {
        Some(2) => "version 2",
        Some(_) => {
            "version 1: disk bandwidth is not limited, and the kernel ends one process of a full sandbox, not all"
        }
        None => "no control groups",
    };
    Line::wanted("cgroup-mode", host.groups == Some(2), found, "boot parameter systemd.unified_cgroup_hierarchy=1")
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    /// A host out of files; removed with the value.
    struct Fake {
        host: Host,
    }

    impl Fake {
        fn new(name: &str, release: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("sandpool-host-{}-{name}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Self { host: Host { root, release: release.to_owned(), groups: Some(2), has_sys_resource: true } }
        }

        fn verdicts(&self) -> Vec<(&'static str, Verdict)> {
            all(&self.host).into_iter().map(|line| (line.id, line.verdict)).collect()
        }

        fn weak(&self) -> Vec<&'static str> {
            let weak = self.verdicts().into_iter().filter(|(_, verdict)| *verdict == Verdict::Warn);
            weak.map(|(id, _)| id).collect()
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.host.root);
        }
    }

    const GOOD: &[(&str, &str)] = &[
        ("proc/sys/kernel/unprivileged_bpf_disabled", "2\n"),
        ("proc/sys/kernel/perf_event_paranoid", "3\n"),
        ("proc/sys/kernel/dmesg_restrict", "1\n"),
        ("proc/sys/kernel/kptr_restrict", "1\n"),
        ("proc/sys/dev/tty/legacy_tiocsti", "0\n"),
        ("proc/sys/kernel/io_uring_disabled", "2\n"),
        ("proc/sys/fs/protected_symlinks", "1\n"),
        ("proc/sys/fs/protected_hardlinks", "1\n"),
        ("proc/sys/fs/protected_fifos", "1\n"),
        ("proc/sys/fs/protected_regular", "2\n"),
        ("proc/sys/kernel/core_pattern", "core\n"),
        ("proc/swaps", "Filename Type Size Used Priority\n"),
        ("proc/modules", "overlay 1 0 - Live 0x0\n"),
        ("proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\n"),
        ("proc/sys/kernel/pid_max", "32768\n"),
        ("sys/devices/system/cpu/vulnerabilities/meltdown", "Mitigation: PTI\n"),
        ("sys/kernel/security/lsm", "lockdown,capability,landlock,yama,apparmor\n"),
    ];

    #[test]
    fn a_good_host_has_no_warning() {
        let fake = Fake::new("good", "6.18.40-cloud", GOOD);
        assert_eq!(fake.weak(), Vec::<&str>::new());
    }

    #[test]
    fn each_weakness_has_its_line() {
        let weaknesses: [(&str, &str, &str); 18] = [
            ("proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 500000 kB\n", "memory"),
            ("proc/sys/kernel/pid_max", "4096", "pid-max"),
            ("proc/sys/kernel/unprivileged_bpf_disabled", "0", "bpf"),
            ("proc/sys/kernel/perf_event_paranoid", "1", "perf"),
            ("proc/sys/kernel/dmesg_restrict", "0", "dmesg"),
            ("proc/sys/kernel/kptr_restrict", "0", "kptr"),
            ("proc/sys/dev/tty/legacy_tiocsti", "1", "tiocsti"),
            ("proc/sys/kernel/io_uring_disabled", "0", "io-uring"),
            ("proc/sys/fs/protected_fifos", "0", "fs-protected"),
            ("sys/kernel/mm/ksm/run", "1", "ksm"),
            ("proc/swaps", "Filename Type\n/dev/sda2 partition 8 0 -2\n", "swap"),
            ("proc/modules", "esp4 1 0 - Live 0x0\n", "modules"),
            ("lib/modules/6.18.40-cloud/modules.dep", "kernel/net/rxrpc/rxrpc.ko.xz: kernel/a.ko\n", "modules"),
            ("lib/modules/6.18.40-cloud/modules.builtin", "kernel/crypto/algif_aead.ko\n", "modules"),
            ("proc/net/protocols", "protocol size\nALG 1000 0\n", "modules"),
            ("sys/devices/system/cpu/smt/active", "1", "smt"),
            ("sys/devices/system/cpu/vulnerabilities/retbleed", "Vulnerable\n", "vulnerabilities"),
            ("proc/sys/kernel/core_pattern", "|/usr/share/apport/apport %p\n", "core-pattern"),
        ];
        for (number, (path, text, id)) in weaknesses.into_iter().enumerate() {
            let files = [GOOD, &[(path, text)]].concat();
            let fake = Fake::new(&format!("weak-{number}"), "6.18.40-cloud", &files);
            assert_eq!(fake.weak(), [id], "{path}");
        }
    }

    #[test]
    fn a_module_that_modprobe_does_not_load_is_out_of_reach() {
        let dep = ("lib/modules/6.18.40/modules.dep", "kernel/net/rxrpc/rxrpc.ko: \nkernel/crypto/algif_hash.ko:\n");
        let block = ("etc/modprobe.d/x.conf", "install rxrpc /bin/false\ninstall algif-hash /bin/false\n");
        assert_eq!(Fake::new("blocked", "6.18.40", &[GOOD, &[dep, block]].concat()).weak(), Vec::<&str>::new());
        assert_eq!(Fake::new("open", "6.18.40", &[GOOD, &[dep]].concat()).weak(), ["modules"]);
    }

    #[test]
    fn kernels_are_judged_by_branch_and_patch_level() {
        for (release, is_good) in [
            ("6.18.33", true),
            ("6.18.32-generic", false),
            ("6.12.91+deb13-amd64", true),
            ("6.12.9", false),
            ("7.1.0-rc3", true),
            ("7.0.4", false),
            ("8.2", true),
            ("5.10.0-35-amd64", false),
            ("nonsense", false),
        ] {
            let fake = Fake::new(&format!("kernel-{release}"), release, GOOD);
            assert_eq!(fake.weak().contains(&"kernel"), !is_good, "{release}");
        }
    }

    #[test]
    fn swap_that_cannot_leak_is_no_weakness() {
        let file = ("proc/swaps", "Filename Type\n/dev/zram0 partition 8 0 -2\n/dev/dm-1 partition 8 0 -2\n");
        assert_eq!(Fake::new("swap", "6.18.40", &[GOOD, &[file]].concat()).weak(), Vec::<&str>::new());
    }
}
