//! On what a run was made.

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// What figures depend on besides the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// The processor, as it calls itself.
    pub processor: String,
    /// Processors.
    pub processors: usize,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// It says itself that it is a virtual machine.
    pub is_virtual: bool,
    /// Processes that wanted to run in the last minute before the run, on average.
    pub load_before: f64,
}

impl Machine {
    /// This one, now.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn now() -> Result<Self> {
        let cpu = std::fs::read_to_string("/proc/cpuinfo")?;
        let memory = std::fs::read_to_string("/proc/meminfo")?;
        let load = std::fs::read_to_string("/proc/loadavg")?;
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        Ok(Self::parse(&cpu, &memory, &load, &release))
    }

    fn parse(cpu: &str, memory: &str, load: &str, release: &str) -> Self {
        let field = |name: &str| {
            let line = cpu.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let kib =
            memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
        Self {
            processor: field("model name").unwrap_or_else(|| "unknown".to_owned()),
            processors: cpu.lines().filter(|line| line.starts_with("processor")).count(),
            memory_mib: kib.unwrap_or(0_u64) / 1024,
            kernel: release.trim().to_owned(),
            is_virtual: field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            load_before: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default(),
        }
    }

    /// A word for the name of a directory.
    #[must_use]
    pub fn name(&self) -> String {
        let words: String =
            self.processor.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { ' ' }).collect();
        let kept = words.split_whitespace().filter(|word| !matches!(*word, "R" | "TM" | "CPU" | "Processor"));
        format!("{}x-{}", self.processors, kept.take(3).collect::<Vec<_>>().join("-").to_lowercase())
    }

    /// One sentence for a report.
    #[must_use]
    pub fn sentence(&self) -> String {
        format!(
            "{} x {}{}, {:.1} GiB, Linux {}; load before: {}.",
            self.processors,
            self.processor,
            if self.is_virtual { " (virtual)" } else { "" },
            crate::stats::float(usize::try_from(self.memory_mib).unwrap_or(usize::MAX)) / 1024.0,
            self.kernel,
            self.load_before
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_told_in_a_sentence() {
        let cpu = "processor\t: 0\nmodel name\t: Some(R) CPU X-5 9000 Processor\nflags\t\t: fpu hypervisor\n\n\
                   processor\t: 1\nmodel name\t: Some(R) CPU X-5 9000 Processor\nflags\t\t: fpu hypervisor\n";
        let machine = Machine::parse(cpu, "MemTotal:       24683724 kB\n", "0.05 0.2 0.9 1/2 3\n", "6.18.1\n");
        expect_test::expect![[
            "2 x Some(R) CPU X-5 9000 Processor (virtual), 23.5 GiB, Linux 6.18.1; load before: 0.05."
        ]]
        .assert_eq(&machine.sentence());
        assert_eq!(machine.name(), "2x-some-x-5");
        assert!(Machine::now().unwrap().processors > 0);
    }
}
