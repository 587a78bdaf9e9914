//! Attackers as data: what each tries inside a sandbox, and what it must see there when the walls hold.
//!
//! ```text
//! QUIET       Python; harmless where the wall holds                      quiet.rs
//! CONTAINED   what of QUIET is otherwise in an OCI container             contained.rs
//! IN_MACHINES what of it is otherwise in a machine                   machines.rs
//! LOUD        Python; does harm, to its own session only                 loud.rs
//! SCENES      Python in two sessions: what one could see of the other    scenes.rs
//! COMMANDS    the shell                                                  commands.rs
//! JAVASCRIPT  Node                                                       javascript.rs
//! EGRESS      Python, in a pool with a way out that leads nowhere        egress.rs
//! ```
//!
//! An attacker's id begins with the line of the isolation specification that it tries, and a word of what it tries; its class
//! and severity follow from that line ([`class`]). Who runs them: the tests of the process level, through the service
//! layer, and `sandpool doctor --attack`, through the HTTP API of a server of its own.

mod commands;
mod contained;
mod egress;
mod javascript;
mod loud;
mod machines;
mod quiet;
mod scenes;

pub use commands::COMMANDS;
pub use contained::CONTAINED;
pub use egress::{ALLOWED, EGRESS};
pub use javascript::JAVASCRIPT;
pub use loud::{Keeps, LOUD, Loud};
pub use machines::{IN_MACHINES, SCENES_IN_MACHINES};
pub use quiet::QUIET;
pub use scenes::{SCENES, Scene};

/// What Python attackers have at hand: run once in their session before them.
pub const TOOLS: &str = include_str!("tools.py");

/// Bytes of memory that the pool's sandboxes must have: what the loud ones use up.
pub const MEMORY: u64 = 384 << 20;

/// Processes that they may have: attackers look for this limit.
pub const PIDS: u32 = 96;

/// Bytes that they may write in `/mnt/data`, and in `/tmp` and their home.
pub const WRITABLE: u64 = 64 << 20;

/// One attacker: code, or a command.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Its line of the specification, and what it tries.
    pub id: &'static str,
    /// What it runs.
    pub code: &'static str,
    /// Its whole standard output, but for space at its end, when the wall holds.
    pub safe: &'static str,
}

const fn probe(id: &'static str, code: &'static str, safe: &'static str) -> Probe {
    Probe { id, code, safe }
}

/// How bad it is when an attacker gets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something is told that need not be.
    Low,
    /// A second wall is down, with the first still there.
    Medium,
    /// A neighbour or the host suffers.
    High,
    /// The way out of the sandbox is open, or one into another.
    Critical,
}

impl Severity {
    /// Its name.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// The lines of the specification: how an id begins, what the line is about, and how bad a breach of it is.
const CLASSES: [(&str, &str, Severity); 20] = [
    ("ID", "identity", Severity::Critical),
    ("NS1", "namespaces", Severity::Critical),
    ("NS2", "namespaces", Severity::Critical),
    ("NS3", "namespaces", Severity::Critical),
    ("NS4", "namespaces", Severity::High),
    ("NS", "namespaces", Severity::Low),
    ("FS1", "files", Severity::Critical),
    ("FS2", "files", Severity::Critical),
    ("FS3", "files", Severity::High),
    ("FS4", "files", Severity::High),
    ("FS5", "files", Severity::Critical),
    ("FS", "files", Severity::High),
    ("SC9-ordinary", "system calls", Severity::Low),
    ("SC", "system calls", Severity::Critical),
    ("LL", "Landlock", Severity::Medium),
    ("RS", "resources", Severity::High),
    ("ZG1", "zygote and agent", Severity::Critical),
    ("ZG", "zygote and agent", Severity::High),
    ("EG", "egress", Severity::Critical),
    ("", "other", Severity::High),
];

/// What an attacker's line is about, and how bad it is when it gets through.
#[must_use]
pub fn class(id: &str) -> (&'static str, Severity) {
    let found = CLASSES.iter().filter(|(prefix, ..)| id.starts_with(prefix)).max_by_key(|(prefix, ..)| prefix.len());
    found.map_or(("other", Severity::High), |(_, class, severity)| (class, *severity))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_attacker_has_an_id_of_its_own_and_a_line_that_is_known() {
        let mut seen = BTreeSet::new();
        let quiet = QUIET.iter().chain(COMMANDS).chain(JAVASCRIPT).chain(EGRESS).map(|probe| probe.id);
        for id in quiet.chain(LOUD.iter().map(|loud| loud.id)).chain(SCENES.iter().map(|scene| scene.id)) {
            assert!(seen.insert(id), "{id} is there twice");
            assert_ne!(class(id).0, "other", "{id} begins with no line of the specification");
        }
        assert!(seen.len() >= 110, "{}", seen.len());
    }

    #[test]
    fn the_longest_beginning_counts() {
        assert_eq!(class("NS1-abstract"), ("namespaces", Severity::Critical));
        assert_eq!(class("NS6-constant-name"), ("namespaces", Severity::Low));
        assert_eq!(class("SC9-ordinary-programs-work").1, Severity::Low);
    }
}
