//! What this host can do, and what a wall made on it consists of.
//!
//! ```text
//! probe     tries what pools need, for real: a child in namespaces of its own builds what a sandbox is built from
//! settings  reads what the host could do better, of which no sandbox depends
//! ```
//!
//! What is missing for a wall refuses every pool (there is no weaker wall under the same name); what makes the host
//! behind the wall weaker is a warning.

mod settings;
mod trial;

use sandpool_driver::Description;
use serde::Serialize;

use crate::cgroup::Groups;
use sandpool_walls::seccomp::Filters;
use sandpool_walls::setup;

/// What one line of a report says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// The host is weaker than it could be; sandboxes have their walls all the same.
    Warn,
    /// No sandbox can be made here.
    Refuse,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// What was looked at: stable, for programs.
    pub id: &'static str,
    /// Whether that is good.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What would make it good.
    pub fix: Option<String>,
}

/// What was found on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The refusing lines' subjects first, each subject once.
    pub lines: Vec<Line>,
}

impl Report {
    /// Whether sandboxes can be made here.
    #[must_use]
    pub fn is_fit(&self) -> bool {
        self.refusals().next().is_none()
    }

    /// What keeps sandboxes from being made.
    pub fn refusals(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| line.verdict == Verdict::Refuse)
    }
}

impl Line {
    /// A line that passes, or else refuses with this way out.
    fn needed(id: &'static str, found: Result<String, String>, fix: &str) -> Self {
        match found {
            Ok(found) => Self { id, verdict: Verdict::Pass, found, fix: None },
            Err(found) => Self { id, verdict: Verdict::Refuse, found, fix: Some(fix.to_owned()) },
        }
    }

    /// A line that passes, or else warns with this way out.
    fn wanted(id: &'static str, is_good: bool, found: impl Into<String>, fix: &str) -> Self {
        let (verdict, fix) = if is_good { (Verdict::Pass, None) } else { (Verdict::Warn, Some(fix.to_owned())) };
        Self { id, verdict, found: found.into(), fix }
    }
}

/// Looks at this host. Tries for real what only trying shows, in children that are gone when this returns, which is
/// within half a minute whatever the kernel does. Needs root to try anything, and a process of one thread.
#[must_use]
pub fn probe() -> Report {
    let mut lines = trial::needs();
    lines.extend(settings::all(&settings::Host::real()));
    Report { lines }
}

/// Bytes of memory that this host has; 0 where it does not tell.
pub(crate) fn memory_total() -> u64 {
    memory(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal").unwrap_or(0)
}

/// A figure out of the text of `/proc/meminfo`, in bytes.
pub(crate) fn memory(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map(|kib| kib * 1024)
}

/// The process level, as sessions report it: the walls that sandboxes made here have.
#[must_use]
pub fn describe() -> Description {
    let landlock = sandpool_sys::sandbox::landlock_version().unwrap_or(0);
    let mut weaker = Vec::new();
    if landlock < 6 {
        weaker
            .push(format!("Landlock has version {landlock} here: it does not scope signals and abstract sockets (6)"));
    }
    let groups = match Groups::version() {
        Some(1) => {
            weaker.push("control groups have version 1 here: disk bandwidth is not limited".to_owned());
            "1"
        }
        Some(_) => "2",
        None => "none that this process can see",
    };
    let has_threads =
        std::fs::read_to_string("/sys/devices/system/cpu/smt/active").is_ok_and(|active| active.trim() == "1");
    let processor = match (has_threads, sandpool_sys::sandbox::can_keep_core()) {
        (false, _) => "no core has two threads that sandboxes could share",
        (true, true) => "no core is shared with another sandbox at the same time",
        (true, false) => {
            let why =
                "cores have two threads here, and the kernel cannot keep sandboxes from sharing one: turn SMT off";
            weaker.push(why.to_owned());
            "shared, threads of one core too"
        }
    };
    Description {
        level: "process".to_owned(),
        wall: vec![
            "namespaces: user, pid, mount, network, ipc, uts, cgroup".to_owned(),
            "ids: a range of 65,536 for each sandbox; no capability, no new privileges".to_owned(),
            format!(
                "files: the image below an overlay, read-only but for a custom container, whose writes are its own; /proc with {} entries masked",
                setup::MASKED.len()
            ),
            format!("seccomp: {} system calls allowed, foreign instruction sets killed", Filters::allowed()),
            format!("landlock: version {} in force", landlock.min(setup::LANDLOCK)),
            format!("limits: memory without swap, processes, processor time (control groups {groups})"),
            format!("processor: {processor}"),
            "network: loopback only".to_owned(),
        ],
        weaker,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_refusal_makes_a_host_unfit() {
        let line = |verdict| Line { id: "x", verdict, found: "y".to_owned(), fix: None };
        let mut report = Report { lines: vec![line(Verdict::Pass), line(Verdict::Warn)] };
        assert!(report.is_fit());
        report.lines.push(line(Verdict::Refuse));
        assert!(!report.is_fit());
        assert_eq!(report.refusals().count(), 1);
    }

    #[test]
    fn the_wall_is_described_with_what_is_in_force() {
        let description = describe();
        assert_eq!(description.level, "process");
        assert!(description.wall.iter().any(|line| line.starts_with("seccomp: ")), "{description:?}");
    }

    #[test]
    fn a_process_with_threads_tries_nothing_and_says_so() {
        let report = probe();
        assert!(!report.is_fit());
        let ids: std::collections::BTreeSet<_> = report.lines.iter().map(|line| line.id).collect();
        assert_eq!(ids.len(), report.lines.len(), "each subject once");
    }
}
