//! What tells one running kernel from another: whether a machine has one of its own is proved before a pool is offered, and not
//! believed.
//!
//! ```text
//! first program inside: Identity::here() --Up--> keeper --Hello of the template--> driver: Identity::judge(host's, prepared)
//! ```
//!
//! The check that is often shown, `ls /proc/1/root/etc/kubernetes`, is none of these: it answers "No such file or directory" in every
//! container whose first process is the container's own, on a shared kernel as well.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// The longest [`Identity`], written down, in bytes.
pub const MAX_IDENTITY: usize = 2048;

/// Names that are told of the first process's root, at most.
const NAMES: usize = 32;

/// What a program in the first namespaces of a kernel sees of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `/proc/sys/kernel/random/boot_id`: drawn anew by each kernel when it boots.
    pub boot_id: String,
    /// Its release, as `uname -r` tells it.
    pub release: String,
    /// Whether the processor says that a hypervisor runs it (CPUID leaf 1, ECX bit 31; `hypervisor` in `/proc/cpuinfo`).
    pub has_hypervisor: bool,
    /// What is in `/proc/1/root`, the root of the first process, in order.
    pub first_root: Vec<String>,
}

/// One probe, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What is asked.
    pub name: &'static str,
    /// What the machine says.
    pub inside: String,
    /// What it is compared with.
    pub outside: String,
    /// Whether that shows another kernel than the host's.
    pub holds: bool,
}

impl Identity {
    /// That of the kernel which runs this process.
    ///
    /// # Errors
    /// Where `/proc` does not tell.
    pub fn here() -> io::Result<Self> {
        let text = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
        let flags = text("/proc/cpuinfo")?;
        let first_root = fs::read_dir("/proc/1/root").map(|entries| {
            let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().chars().take(32).collect());
            let mut names: Vec<String> = names.collect();
            names.sort();
            names.truncate(NAMES);
            names
        });
        Ok(Self {
            boot_id: text("/proc/sys/kernel/random/boot_id")?,
            release: text("/proc/sys/kernel/osrelease")?,
            has_hypervisor: flags
                .lines()
                .find(|line| line.starts_with("flags"))
                .is_some_and(|line| line.split_whitespace().any(|flag| flag == "hypervisor")),
            // Where this is a container itself it may not even be looked at.
            first_root: first_root.unwrap_or_default(),
        })
    }

    /// Compares what a machine says with what its host is, and with the kernel that was prepared for it. It is proved when all hold:
    /// a program that shares the host's kernel fails the first, whatever else it sees.
    #[must_use]
    pub fn judge(&self, host: &Self, prepared: &str) -> Vec<Probe> {
        let probe = |name, inside: &str, outside: &str, holds| Probe {
            name,
            inside: inside.to_owned(),
            outside: outside.to_owned(),
            holds,
        };
        let root = |identity: &Self| identity.first_root.join(" ");
        let is_id = self.boot_id.len() == 36 && self.boot_id.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
        let bit = |has: bool| if has { "set" } else { "not set" };
        vec![
            probe("boot id", &self.boot_id, &host.boot_id, is_id && self.boot_id != host.boot_id),
            probe("kernel release", &self.release, prepared, self.release == prepared),
            probe("hypervisor bit", bit(self.has_hypervisor), "set", self.has_hypervisor),
            probe("/proc/1/root", &root(self), &root(host), !self.first_root.is_empty() && root(self) != root(host)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Identity {
        Identity {
            boot_id: "6b5f0d1e-2c55-4f0e-9d43-0d9a0b1c2d3e".to_owned(),
            release: "6.1.0-56-cloud-amd64".to_owned(),
            has_hypervisor: true,
            first_root: ["dev", "image", "proc"].map(str::to_owned).to_vec(),
        }
    }

    fn failed(probes: &[Probe]) -> Vec<&'static str> {
        probes.iter().filter(|probe| !probe.holds).map(|probe| probe.name).collect()
    }

    #[test]
    fn a_kernel_of_its_own_is_told_from_the_hosts() {
        let host = Identity::here().unwrap();
        assert!(failed(&machine().judge(&host, "6.1.0-56-cloud-amd64")).is_empty());
    }

    #[test]
    fn who_shares_the_hosts_kernel_fails() {
        // The control: this very process.
        let host = Identity::here().unwrap();
        let failed = failed(&host.judge(&host, "6.1.0-56-cloud-amd64"));
        assert!(["boot id", "kernel release", "/proc/1/root"].iter().all(|name| failed.contains(name)), "{failed:?}");
    }

    #[test]
    fn each_probe_can_fail_alone() {
        let host = Identity { boot_id: "00000000-0000-4000-8000-000000000000".to_owned(), ..machine() };
        let host = Identity { first_root: vec!["etc".to_owned()], ..host };
        let release = machine().release;
        let wrong = [
            (Identity { boot_id: host.boot_id.clone(), ..machine() }, "boot id"),
            (Identity { boot_id: String::new(), ..machine() }, "boot id"),
            (Identity { release: "6.1.1".to_owned(), ..machine() }, "kernel release"),
            (Identity { has_hypervisor: false, ..machine() }, "hypervisor bit"),
            (Identity { first_root: host.first_root.clone(), ..machine() }, "/proc/1/root"),
            (Identity { first_root: Vec::new(), ..machine() }, "/proc/1/root"),
        ];
        for (identity, name) in wrong {
            assert_eq!(failed(&identity.judge(&host, &release)), [name]);
        }
        assert!(failed(&machine().judge(&host, &release)).is_empty());
    }
}
