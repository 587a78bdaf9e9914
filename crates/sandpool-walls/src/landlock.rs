//! The second policy of a sandbox's wall: what Landlock says of it, wherever it is put in force.
//!
//! At the process level the launcher's child applies it before it becomes the agent; in a container that shares the host's kernel the agent
//! does, first of all, since no OCI runtime can.

use std::io;
use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

/// The newest version of Landlock whose rights are used, where the kernel has them.
pub const NEWEST: ABI = ABI::V6;

/// What differs from one sandbox's policy to another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Programs may listen, and connect to each other, on loopback.
    pub local_servers: bool,
    /// Something is reached from it.
    pub leads_out: bool,
    /// It is a custom container: its root can be written to.
    pub is_container: bool,
}

impl Policy {
    /// The policy in one word, for a command line.
    #[must_use]
    pub fn word(self) -> String {
        let Self { local_servers, leads_out, is_container } = self;
        [(local_servers, 's'), (leads_out, 'o'), (is_container, 'c')]
            .into_iter()
            .filter_map(|(is_so, letter)| is_so.then_some(letter))
            .collect()
    }

    /// The reverse of [`Policy::word`].
    #[must_use]
    pub fn from_word(word: &str) -> Self {
        let says = |letter: char| word.contains(letter);
        Self { local_servers: says('s'), leads_out: says('o'), is_container: says('c') }
    }
}

/// Rules that forbid all that a kernel's Landlock can forbid: what is in the first version is required (LL1), the rest is taken where it is
/// there. Signals and abstract sockets reach nobody outside. With `ports`, no TCP port is bound or connected to but those that a rule names:
/// then a kernel before 6.7, which cannot forbid it, is an error.
///
/// # Errors
/// Where the kernel cannot.
pub fn ruleset(ports: bool) -> Result<RulesetCreated, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))?;
    if ports {
        rules = rules.handle_access(AccessNet::from_all(ABI::V4))?;
    }
    rules
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()
}

/// LL1, LL2: puts the calling thread, and all that it starts, under the policy of a sandbox, whose file system is that of the thread.
/// `lent` is a file from elsewhere that may be read.
///
/// # Errors
/// Where the kernel cannot, or a sandbox's directory is not there: then the thread must not go on.
pub fn restrict(policy: Policy, lent: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let other = |error: RulesetError| io::Error::other(error);
    let all = AccessFs::from_all(NEWEST);
    let devices = AccessFs::MakeChar | AccessFs::MakeBlock;
    let read = AccessFs::from_read(NEWEST);
    let open = |path: &str| PathFd::new(path).map_err(io::Error::other);
    let mut rules = ruleset(!policy.local_servers).map_err(other)?;
    if !policy.local_servers && policy.leads_out {
        // What leads out: nothing else of this network is anybody's.
        for port in sandpool_sys::network::PORTS {
            rules = rules.add_rule(NetPort::new(port, AccessNet::ConnectTcp)).map_err(other)?;
        }
    }
    if let Some(lent) = lent {
        rules = rules.add_rule(PathBeneath::new(lent, AccessFs::ReadFile)).map_err(other)?;
    }
    rules
        .add_rule(PathBeneath::new(open("/")?, if policy.is_container { all & !devices } else { read }))
        .map_err(other)?
        .add_rule(PathBeneath::new(open("/mnt/data")?, all & !devices))
        .map_err(other)?
        .add_rule(PathBeneath::new(open("/home/sandbox")?, all & !devices))
        .map_err(other)?
        .add_rule(PathBeneath::new(open("/tmp")?, all & !devices))
        .map_err(other)?
        .add_rule(PathBeneath::new(open("/dev")?, all & !devices))
        .map_err(other)?
        // A process's own files there, such as its name and its place in the kernel's choice when memory is short.
        .add_rule(PathBeneath::new(open("/proc")?, read | AccessFs::WriteFile | AccessFs::Truncate))
        .map_err(other)?
        .restrict_self()
        .map(drop)
        .map_err(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_all_of_a_policy() {
        for bits in 0..8 {
            let policy = Policy { local_servers: bits & 1 != 0, leads_out: bits & 2 != 0, is_container: bits & 4 != 0 };
            assert_eq!(Policy::from_word(&policy.word()), policy);
        }
    }
}
