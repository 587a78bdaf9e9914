//! The rule by which the launcher refuses a sandbox for want of memory, before the kernel must choose whom to end.
//!
//! ```text
//! available to the host  >=  reserve  +  what the youngest sandboxes have yet to take  +  what this one will take
//! ```
//!
//! What a sandbox will take is what sandboxes of its pool took before, on average over their lives' peaks; never more than
//! its limit. It is no promise that all can have their limits at the same time: memory is given out many times over,
//! and a sandbox that outgrows its limit, or the host, ends alone (RS1).

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::time::{Duration, Instant};

use sandpool_wire::agent::Runtime;

/// How long a new sandbox takes to use the memory that its interpreter needs. Until then the host shows that as available.
const YOUNG: Duration = Duration::from_secs(2);

/// What the kernel needs for a sandbox outside its own account, in bytes: four control groups (of version 1; 0.35 MiB), a
/// network (0.2 MiB), mounts, and the rest.
const KERNEL: u64 = 1 << 20;

/// How much one sandbox's peak moves what is expected of the next: the eighth part of the difference.
const WEIGHT: u64 = 8;

/// What sandboxes of a pool take of the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    bytes: u64,
    limit: u64,
}

impl Expected {
    /// Before one has lived: an interpreter of its own that has run something (measured: shell 1 MiB, Python 20 MiB, Node
    /// 40 MiB), and as much again for the shell's command.
    ///
    /// In a machine a kernel, and a VMM around it, come to that (measured: 50 MiB from a template, 100 MiB booted).
    pub(super) fn new(runtime: Runtime, is_machine: bool, limit: u64) -> Self {
        let kernel = if is_machine { 100 << 20 } else { 0 };
        let bytes = kernel
            + match runtime {
                Runtime::Shell => 4 << 20,
                Runtime::Python | Runtime::Container => 24 << 20,
                Runtime::Node => 48 << 20,
            };
        Self { bytes, limit }
    }

    /// One has lived, and this was the most that it used at a time.
    pub(super) fn learn(&mut self, peak: u64) {
        self.bytes = (self.bytes * (WEIGHT - 1) + peak) / WEIGHT;
    }

    fn total(self) -> u64 {
        self.bytes.min(self.limit) + KERNEL
    }
}

/// Why one more sandbox has no place, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Short {
    available: u64,
    reserve: u64,
    young: u64,
    needed: u64,
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { available, reserve, young, needed } = *self;
        let missing = reserve.saturating_add(young).saturating_add(needed).saturating_sub(available);
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        write!(
            f,
            "the host is {} MiB short of memory for one more: a sandbox of this pool takes {} MiB, {} MiB are available, \
             of which {} MiB stay free and {} MiB are for sandboxes that start",
            mib(missing),
            mib(needed),
            mib(available),
            mib(reserve),
            mib(young),
        )
    }
}

/// What stays free, and what is given out but not yet used.
pub(super) struct Admission {
    reserve: u64,
    /// What the host says of its memory; `None` when it says nothing, which then refuses nobody.
    figures: Option<File>,
    young: VecDeque<(Instant, u64)>,
}

impl Admission {
    /// Keeps so many bytes free, going by this file (`/proc/meminfo`).
    pub(super) fn new(reserve: u64, figures: Option<File>) -> Self {
        Self { reserve, figures, young: VecDeque::new() }
    }

    /// Whether there is memory for one more.
    pub(super) fn check(&mut self, now: Instant, expected: Expected) -> Result<(), Short> {
        let Some(available) = self.figures.as_mut().and_then(|file| available(file).ok().flatten()) else {
            return Ok(());
        };
        while self.young.front().is_some_and(|(made, _)| now.duration_since(*made) >= YOUNG) {
            self.young.pop_front();
        }
        let young = self.young.iter().map(|(_, bytes)| *bytes).sum();
        fits(available, self.reserve, young, expected.total())
    }

    /// One has been made.
    pub(super) fn made(&mut self, now: Instant, expected: Expected) {
        self.young.push_back((now, expected.total()));
    }
}

fn fits(available: u64, reserve: u64, young: u64, needed: u64) -> Result<(), Short> {
    let wanted = reserve.saturating_add(young).saturating_add(needed);
    if available >= wanted { Ok(()) } else { Err(Short { available, reserve, young, needed }) }
}

/// The bytes that programs can have without anything being written to a disk first.
fn available(file: &mut (impl Read + Seek)) -> io::Result<Option<u64>> {
    let mut text = String::new();
    file.rewind()?;
    file.take(16 * 1024).read_to_string(&mut text)?;
    Ok(crate::host::memory(&text, "MemAvailable"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn host(available_mib: u64) -> File {
        let path = std::env::temp_dir().join(format!("sandpool-meminfo-{}-{available_mib}", std::process::id()));
        let mut file = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        write!(file, "MemTotal: 99999999 kB\nMemFree: 1 kB\nMemAvailable: {} kB\n", available_mib * 1024).unwrap();
        file
    }

    #[test]
    fn what_stays_free_is_not_given_out() {
        let shell = Expected::new(Runtime::Shell, false, 256 * MIB);
        let now = Instant::now();
        // 100 MiB free, of which 90 are to stay: two of 5 MiB each, and no third.
        let mut admission = Admission::new(90 * MIB, Some(host(100)));
        for _ in 0..2 {
            admission.check(now, shell).unwrap();
            admission.made(now, shell);
        }
        let short = admission.check(now, shell).unwrap_err();
        assert_eq!(
            short.to_string(),
            "the host is 5 MiB short of memory for one more: a sandbox of this pool takes 5 MiB, 100 MiB are available, \
             of which 90 MiB stay free and 10 MiB are for sandboxes that start"
        );
        // By now they use what they need, and the host, which has as much as before, says so.
        admission.check(now + YOUNG, shell).unwrap();
    }

    #[test]
    fn what_is_expected_follows_what_was_used_up_to_the_limit() {
        let mut expected = Expected::new(Runtime::Python, false, 256 * MIB);
        let before = expected.total();
        expected.learn(16 * MIB);
        assert_eq!(before - expected.total(), MIB);
        for _ in 0..100 {
            expected.learn(4096 * MIB);
        }
        assert_eq!(expected.total(), 257 * MIB);
    }

    #[test]
    fn a_host_that_says_nothing_refuses_nobody() {
        Admission::new(u64::MAX, None).check(Instant::now(), Expected::new(Runtime::Node, false, MIB)).unwrap();
    }
}
