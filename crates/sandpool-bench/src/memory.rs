//! Memory and processes, as the kernel shows them.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

/// Memory that could be had without swapping, in MiB.
///
/// # Errors
/// When /proc does not say.
pub fn available_mib() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    kib(&text, "MemAvailable:").map(|kib| kib / 1024.0).context("/proc/meminfo does not say what is available")
}

/// A process's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Held {
    /// Its share of all pages it maps (PSS), in MiB.
    pub share_mib: f64,
    /// Pages that nobody else maps, in MiB.
    pub private_mib: f64,
}

/// The memory of a process; nothing of one that is gone.
#[must_use]
pub fn held(pid: i32) -> Held {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let mib = |name| kib(&text, name).unwrap_or_default() / 1024.0;
    Held { share_mib: mib("Pss:"), private_mib: mib("Private_Clean:") + mib("Private_Dirty:") }
}

fn kib(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// The processes in a pid namespace, given as the text of a link in /proc: `pid:[4026531836]`.
#[must_use]
pub fn processes_of(place: &str) -> BTreeSet<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_there =
        |pid: &i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link.as_os_str() == place);
    pids.filter(is_there).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let me = i32::try_from(std::process::id()).unwrap();
        let held = held(me);
        assert!(held.private_mib > 0.0 && held.share_mib >= held.private_mib / 2.0, "{held:?}");
        assert!(available_mib().unwrap() > 0.0);
        let place = std::fs::read_link("/proc/self/ns/pid").unwrap();
        assert!(processes_of(&place.to_string_lossy()).contains(&me));
    }
}
