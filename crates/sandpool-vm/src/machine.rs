//! What a machine is, in words: as its keeper is started with, and as its kernel is told.

use sandpool_core::limits::Limits;
use sandpool_wire::agent::Runtime;

use crate::vmm::Kind;

/// Memory that a VMM needs for itself, in bytes: QEMU's own, its translated code where it emulates, and the buffers of streams.
const VMM_MEMORY: u64 = 192 << 20;

/// Processes of a VMM: its threads, and the keeper.
const VMM_PROCESSES: u32 = 64;

/// The least memory in which Debian's kernel starts a session's programs, in bytes.
pub const LEAST_MEMORY: u64 = 96 << 20;

/// The smallest disk that can be formatted, in bytes.
pub const LEAST_DISK: u64 = 1 << 20;

/// What a machine has and does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What answers code in it.
    pub runtime: Runtime,
    /// What is inside: its memory, its disk. Its processors are as many as its share needs.
    pub limits: Limits,
    /// Whether its programs may have servers on loopback.
    pub local_servers: bool,
    /// Whether anything is reached from it, by way of its keeper's network.
    pub leads_out: bool,
    /// Whether its sandbox trusts a certificate of its own. Then nothing of that sandbox is made before the machine is one of its own.
    pub trusts: bool,
}

impl Machine {
    /// Checks that there can be such a machine.
    ///
    /// # Errors
    /// Says which limit is too small.
    pub fn check(&self) -> Result<(), String> {
        let Limits { memory, data, .. } = self.limits;
        for (name, value, least) in [("memory", memory, LEAST_MEMORY), ("data", data, LEAST_DISK)] {
            if value < least {
                return Err(format!("a machine needs at least {least} bytes of {name}; {value} are given"));
            }
        }
        Ok(())
    }

    /// Whether its agent can be there before it is known whose it is. A container's program begins when that is known.
    #[must_use]
    pub fn can_be_warm(&self) -> bool {
        self.runtime != Runtime::Container && !self.trusts
    }

    /// Virtual processors.
    #[must_use]
    pub fn processors(&self) -> u32 {
        self.limits.cpu_milli.div_ceil(1000).clamp(1, 64)
    }

    /// Bytes of memory, in whole mebibytes as VMMs count them.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.limits.memory >> 20 << 20
    }

    /// What the process-level sandbox around it may use: the machine with its disk, which is a file in that one's memory, and
    /// its VMM. One that writes a machine to files alone needs the memory once more while it saves.
    #[must_use]
    pub fn around(&self, vmm: Kind) -> Limits {
        let Limits { memory, cpu_milli, data, .. } = self.limits;
        let saved = match vmm {
            Kind::Qemu => 0,
            Kind::Firecracker | Kind::CloudHypervisor => memory,
        };
        let sum = memory.saturating_add(data).saturating_add(VMM_MEMORY).saturating_add(saved);
        Limits {
            memory: sum,
            pids: VMM_PROCESSES,
            cpu_milli,
            // A template's file holds the memory and what the devices are like (RS5).
            data: data.saturating_add(16 << 20).saturating_add(saved).max(memory.saturating_add(VMM_MEMORY)),
            tmp: 1 << 20,
        }
    }

    /// As words: the first is the runtime's.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let Limits { memory, pids, cpu_milli, data, tmp } = self.limits;
        let mut words = vec![self.runtime.word().to_owned()];
        words.extend([
            format!("memory={memory}"),
            format!("pids={pids}"),
            format!("cpu={cpu_milli}"),
            format!("data={data}"),
            format!("tmp={tmp}"),
        ]);
        if self.local_servers {
            words.push("servers".to_owned());
        }
        if self.leads_out {
            words.push("out".to_owned());
        }
        if self.trusts {
            words.push("trusts".to_owned());
        }
        words
    }

    /// The reverse of [`Machine::words`].
    #[must_use]
    pub fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let runtime = Runtime::from_word(words.next()?)?;
        let mut machine = Self {
            runtime,
            limits: Limits { memory: 0, pids: 0, cpu_milli: 0, data: 0, tmp: 0 },
            local_servers: false,
            leads_out: false,
            trusts: false,
        };
        for word in words {
            match word.split_once('=') {
                Some(("memory", value)) => machine.limits.memory = value.parse().ok()?,
                Some(("pids", value)) => machine.limits.pids = value.parse().ok()?,
                Some(("cpu", value)) => machine.limits.cpu_milli = value.parse().ok()?,
                Some(("data", value)) => machine.limits.data = value.parse().ok()?,
                Some(("tmp", value)) => machine.limits.tmp = value.parse().ok()?,
                None if word == "servers" => machine.local_servers = true,
                None if word == "out" => machine.leads_out = true,
                None if word == "trusts" => machine.trusts = true,
                _ => return None,
            }
        }
        Some(machine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_survives_its_words() {
        for (local_servers, leads_out, trusts) in [(true, false, true), (false, true, false)] {
            let machine =
                Machine { runtime: Runtime::Node, limits: Limits::default(), local_servers, leads_out, trusts };
            let words = machine.words();
            assert_eq!(Machine::parse(words.iter().map(String::as_str)), Some(machine));
        }
        for bad in ["", "pascal", "shell memory=x", "shell colour=1", "shell thaw"] {
            assert_eq!(Machine::parse(bad.split(' ')), None, "{bad}");
        }
    }

    #[test]
    fn what_is_too_small_is_said() {
        let machine = |memory, data| Machine {
            runtime: Runtime::Shell,
            limits: Limits { memory, data, ..Limits::default() },
            local_servers: true,
            leads_out: false,
            trusts: false,
        };
        assert_eq!(machine(LEAST_MEMORY, LEAST_DISK).check(), Ok(()));
        assert!(machine(LEAST_MEMORY - 1, LEAST_DISK).check().is_err_and(|why| why.contains("memory")));
        assert!(machine(LEAST_MEMORY, LEAST_DISK - 1).check().is_err_and(|why| why.contains("data")));
    }
}
