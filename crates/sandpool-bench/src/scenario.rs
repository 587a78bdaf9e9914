//! What is measured: each scenario's work on a server, and the same work on the floor.
//!
//! A scenario is measured in rounds. In each round ours and the floor take turns, so that what disturbs the machine for a
//! while disturbs both.

mod blocks;
mod egress;
mod floors;
mod noisy;
mod whole;

use crate::load::Schedule;
use crate::report::{Goal, Unit};
use crate::server::Setting;

pub use blocks::Subject;
pub(crate) use egress::SETTING as EGRESS;
pub(crate) use floors::turn as turn_of_floor;
pub(crate) use whole::{Measured, measure_whole};

/// One scenario. See [`Scenario::about`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is described by `about`, for people and readers alike")]
pub enum Scenario {
    Warm,
    Throughput8,
    Throughput16,
    Throughput32,
    NewSession,
    NewSession100,
    Burst,
    Cold,
    Churn,
    Delete,
    Shell,
    Node,
    Upload1,
    Upload128,
    Download1,
    Download128,
    Output,
    Walls,
    Idle,
    Memory,
    MemoryNode,
    Capacity,
    Restart,
    Noisy,
    Egress,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// A look instead of a measurement: seconds instead of minutes.
    pub quick: bool,
    /// Arrivals at random times from this seed, instead of even ones.
    pub random: Option<u64>,
}

/// How a scenario is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounds {
    /// How often ours and the floor take turns.
    pub rounds: usize,
    /// Samples in each; seconds of each for rates.
    pub each: usize,
}

/// What one turn brought.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// One figure a sample, in the scenario's unit. Latencies are counted from when a request was due.
    pub samples: Vec<f64>,
    /// How late the generator itself was with each request of an open loop, in milliseconds.
    pub late_ms: Vec<f64>,
    /// Requests that were refused or failed. They are not among the samples.
    pub refused: Vec<String>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

impl Scenario {
    /// All of them, in the order in which they are run.
    pub const ALL: [Self; 25] = [
        Self::Warm,
        Self::Throughput8,
        Self::Throughput16,
        Self::Throughput32,
        Self::Walls,
        Self::Output,
        Self::Upload1,
        Self::Download1,
        Self::Upload128,
        Self::Download128,
        Self::Shell,
        Self::NewSession,
        Self::NewSession100,
        Self::Burst,
        Self::Node,
        Self::Delete,
        Self::Churn,
        Self::Cold,
        Self::Restart,
        Self::Noisy,
        Self::Egress,
        Self::MemoryNode,
        Self::Idle,
        Self::Memory,
        Self::Capacity,
    ];

    /// Whether it is run only when it is named: it takes all that the machine has.
    #[must_use]
    pub fn is_asked_for(self) -> bool {
        self == Self::Capacity
    }

    /// Whether it is made of turns, so that two programs can be compared by it.
    #[must_use]
    pub fn has_turns(self) -> bool {
        !matches!(
            self,
            Self::Idle | Self::Memory | Self::MemoryNode | Self::Capacity | Self::Restart | Self::Noisy | Self::Egress
        )
    }

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Throughput8 => "throughput-8",
            Self::Throughput16 => "throughput-16",
            Self::Throughput32 => "throughput-32",
            Self::NewSession => "new-session",
            Self::NewSession100 => "new-session-100",
            Self::Burst => "burst",
            Self::Cold => "cold",
            Self::Churn => "churn",
            Self::Delete => "delete",
            Self::Shell => "shell",
            Self::Node => "node",
            Self::Upload1 => "upload-1",
            Self::Upload128 => "upload-128",
            Self::Download1 => "download-1",
            Self::Download128 => "download-128",
            Self::Output => "output",
            Self::Walls => "walls",
            Self::Idle => "idle",
            Self::Memory => "memory",
            Self::MemoryNode => "memory-node",
            Self::Capacity => "capacity",
            Self::Restart => "restart",
            Self::Noisy => "noisy",
            Self::Egress => "egress",
        }
    }

    /// What is measured.
    #[must_use]
    pub fn about(self) -> &'static str {
        match self {
            Self::Warm => "print(1) in a live Python session, one caller",
            Self::Throughput8 => "print(1), 8 callers with a live session each",
            Self::Throughput16 => "print(1), 16 callers with a live session each",
            Self::Throughput32 => "print(1), 32 callers with a live session each",
            Self::NewSession => "new identifier and its first print(1), full reservoir, 20/s",
            Self::NewSession100 => "new identifier and its first print(1), full reservoir, 100/s",
            Self::Burst => "100 new identifiers at once and their first print(1)",
            Self::Cold => "new identifier and its first print(1), empty reservoir",
            Self::Churn => "sessions made, used and deleted, 4 callers",
            Self::Delete => "delete of a session, until its processes and groups are gone",
            Self::Shell => "echo hi in a live shell session, one caller",
            Self::Node => "new identifier and its first 1+1 in Node, full reservoir, 10/s",
            Self::Upload1 => "upload of 1 MiB to a live session",
            Self::Upload128 => "upload of 128 MiB to a live session",
            Self::Download1 => "download of 1 MiB from a live session",
            Self::Download128 => "download of 128 MiB from a live session",
            Self::Output => "an execution that prints 1 MB",
            Self::Walls => "1,000 times a write to a pipe and a read from it, in a live Python session",
            Self::Idle => "print(1) in a live session beside 1,000 idle and 50 active ones",
            Self::Memory => "memory per idle Python session, libraries imported: 1, 100, 500, 1,000 of them",
            Self::MemoryNode => "memory per idle Node session",
            Self::Capacity => "idle Python sessions that fit (only when asked for: it takes the machine's memory)",
            Self::Restart => "a killed server until its pools are ready again",
            Self::Noisy => "print(1) of a quiet tenant beside a noisy one that asks for 20 times its share",
            Self::Egress => "the first byte, and 64 MiB, from a session through the egress proxy",
        }
    }

    /// What the floor is.
    #[must_use]
    pub fn floor(self) -> &'static str {
        match self {
            Self::Warm | Self::Throughput8 | Self::Throughput16 | Self::Throughput32 | Self::Output => {
                "a bare hyper server and bare Python interpreters on sockets: no walls, sessions or records"
            }
            Self::NewSession | Self::NewSession100 | Self::Burst => {
                "a bare hyper server and pre-forked Pythons that have run something, each used once, replaced after the answer"
            }
            Self::Cold => {
                "a bare hyper server, a bare launch of namespaces and mounts, then a bare fork of a Python with the libraries, and the code in it"
            }
            Self::Churn => "the same as for cold, and both ended, 4 callers; no control groups",
            Self::Delete => "the end of a bare forked Python and of a bare set of namespaces, until both are reaped",
            Self::Shell => "a bare hyper server and a bare `bash -c`",
            Self::Node => "a bare hyper server and pre-started Nodes that have run something, each used once",
            Self::Upload1 | Self::Upload128 => "a bare hyper server that writes the body to a file in memory",
            Self::Download1 | Self::Download128 => "a bare hyper server that reads a file in memory",
            Self::Walls => {
                "the same in a bare Python. It is system calls and little else, so that what walls add to it is the most that they can add to a request"
            }
            Self::Idle => "the same beside the active sessions alone, before and after",
            Self::Memory => "a bare fork of a Python with the libraries that has run something: no walls, no agent",
            Self::MemoryNode => "a bare Node that has run something",
            Self::Capacity => "reckoned: bare forks of a Python with the libraries that fit into memory",
            Self::Restart => "the program itself, begun and ended: the least that a new process of it takes",
            Self::Noisy => "the quiet tenant alone, on the same server in the same run",
            Self::Egress => "the same code in a bare Python, to the address itself: no name is looked up",
        }
    }

    /// What the figures count.
    #[must_use]
    pub fn unit(self) -> Unit {
        match self {
            Self::Throughput8 | Self::Throughput16 | Self::Throughput32 | Self::Churn => Unit::PerSecond,
            Self::Memory | Self::MemoryNode => Unit::Mebibytes,
            Self::Capacity => Unit::Count,
            _ => Unit::Milliseconds,
        }
    }

    /// What it shall be, beside the floor.
    #[must_use]
    pub fn goal(self) -> Option<Goal> {
        let goal = |number, p50, p99| Some(Goal { number, p50, p99 });
        match self {
            Self::Warm => goal(1, Some(1.7), Some(2.2)),
            Self::Throughput8 | Self::Throughput16 | Self::Throughput32 => goal(2, Some(0.57), None),
            Self::NewSession => goal(3, Some(1.9), Some(3.0)),
            Self::NewSession100 => goal(4, None, Some(2.4)),
            Self::Cold => goal(5, Some(2.0), Some(3.0)),
            Self::Churn => goal(6, Some(0.64), None),
            Self::Delete => goal(10, Some(2.7), Some(3.8)),
            Self::Shell => goal(11, Some(1.7), None),
            Self::Node => goal(12, Some(3.0), None),
            Self::Walls => goal(14, Some(1.05), None),
            Self::Idle => goal(8, None, Some(1.1)),
            Self::Memory => goal(7, Some(1.5), None),
            Self::MemoryNode => goal(12, Some(1.4), None),
            Self::Capacity => goal(9, Some(0.6), None),
            Self::Noisy => goal(15, None, Some(2.0)),
            Self::Restart
            | Self::Egress
            | Self::Burst
            | Self::Upload1
            | Self::Upload128
            | Self::Download1
            | Self::Download128
            | Self::Output => None,
        }
    }

    /// The server that it needs.
    #[must_use]
    pub fn setting(self, scale: Scale) -> Setting {
        let many = if scale.quick { 8 } else { 100 };
        match self {
            Self::NewSession | Self::NewSession100 | Self::Burst => {
                Setting { python: many, max_sessions: 2_000, ..Setting::PLAIN }
            }
            Self::Node => Setting { node: if scale.quick { 4 } else { 16 }, ..Setting::PLAIN },
            Self::Churn => Setting { python: 16, ..Setting::PLAIN },
            Self::Noisy => Setting { tenant_executions: 1, ..Setting::PLAIN },
            Self::Egress => Setting { has_egress: true, ..Setting::PLAIN },
            Self::Cold => Setting { python: 0, ..Setting::PLAIN },
            Self::Idle | Self::Memory => Setting { max_sessions: 2_000, ..Setting::PLAIN },
            Self::Capacity => Setting { python: many.min(32), max_sessions: 20_000, ..Setting::PLAIN },
            _ => Setting::PLAIN,
        }
    }

    /// How often and how much.
    #[must_use]
    pub fn rounds(self, scale: Scale) -> Rounds {
        let (full, quick) = match self {
            Self::Warm => ((10, 300), (2, 30)),
            Self::Throughput8 | Self::Throughput16 | Self::Throughput32 => ((3, 4), (2, 1)),
            Self::NewSession => ((4, 250), (2, 8)),
            Self::NewSession100 => ((1, 6_000), (1, 20)),
            Self::Burst => ((5, 100), (2, 8)),
            Self::Cold => ((10, 30), (2, 3)),
            Self::Churn => ((1, 60), (1, 2)),
            Self::Delete => ((10, 20), (2, 3)),
            Self::Shell => ((10, 100), (2, 10)),
            Self::Node => ((5, 40), (2, 4)),
            Self::Upload1 | Self::Download1 => ((10, 30), (2, 3)),
            Self::Upload128 | Self::Download128 => ((5, 3), (1, 1)),
            Self::Output | Self::Walls => ((10, 30), (2, 3)),
            Self::Restart => ((1, 5), (1, 1)),
            Self::Egress => ((10, 20), (2, 2)),
            Self::Noisy => ((4, 300), (2, 20)),
            Self::MemoryNode => ((1, 20), (1, 2)),
            // The most of them.
            Self::Idle | Self::Memory => ((1, 1_000), (1, 4)),
            Self::Capacity => ((1, 20_000), (1, 8)),
        };
        let (rounds, each) = if scale.quick { quick } else { full };
        Rounds { rounds, each }
    }

    /// When the requests of an open loop are due.
    fn schedule(self, scale: Scale, count: usize, round: usize) -> Schedule {
        let rate = match self {
            Self::NewSession100 => 100.0,
            Self::Node => 10.0,
            Self::Burst => return Schedule::burst(count),
            _ => 20.0,
        };
        match scale.random {
            Some(seed) => Schedule::random(rate, count, seed.wrapping_add(u64::try_from(round).unwrap_or_default())),
            None => Schedule::even(rate, count),
        }
    }
}

impl std::str::FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|scenario| scenario.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|scenario| scenario.name()).collect();
            format!("there is no scenario {text:?}; there are {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_listed_once_and_found_by_its_name() {
        let names: std::collections::BTreeSet<_> = Scenario::ALL.iter().map(|scenario| scenario.name()).collect();
        assert_eq!(names.len(), Scenario::ALL.len());
        assert!(Scenario::ALL.iter().all(|scenario| scenario.name().parse() == Ok(*scenario)));
        assert!("nothing".parse::<Scenario>().is_err());
    }
}
