//! Which processes an execution started.
//!
//! A process belongs to an execution when its environment says so ([`MARKER`], which children inherit), when it is in
//! the session or the process group of the execution's main process, or when it descends from one that belongs. What
//! an interpreter started without a new program has the interpreter's own environment, which says nothing: then the
//! time it started decides.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use rustix::process::{Pid, Signal};
use sandpool_wire::agent::ExecKey;

/// The variable that names the execution a process belongs to.
pub const MARKER: &str = "SANDPOOL_EXECUTION";

/// Bytes of an environment that are searched for the marker.
const ENVIRONMENT: u64 = 256 * 1024;

/// The most processes that are looked at.
const PROCESSES: usize = 16_384;

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Its session.
    pub session: i32,
    /// When it started, in ticks since boot.
    pub started: u64,
    /// It has ended, and waits to be reaped.
    pub is_zombie: bool,
    /// The value of [`MARKER`] in its environment.
    pub marker: Option<String>,
}

/// How to recognise an execution's processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Belonging {
    /// The marker's value.
    pub marker: String,
    /// The main process, which leads a session; `None` for code in an interpreter.
    pub leader: Option<i32>,
    /// For code: the interpreter, which itself does not belong, and the time at which the run began.
    pub interpreter: Option<(i32, u64)>,
}

/// The execution's name in the marker.
#[must_use]
pub fn name(exec: ExecKey) -> String {
    exec.iter().fold(String::with_capacity(32), |mut text, byte| {
        for half in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(half), 16).unwrap_or('0'));
        }
        text
    })
}

/// Those of `all` that belong.
#[must_use]
pub fn select(all: &[Process], belonging: &Belonging, own: i32) -> Vec<i32> {
    let by_pid: HashMap<i32, &Process> = all.iter().map(|process| (process.pid, process)).collect();
    let mut chosen: HashSet<i32> = HashSet::new();
    let interpreter = belonging.interpreter.map(|(pid, _)| pid);
    let is_other = |pid: i32| pid == own || Some(pid) == interpreter;
    for process in all.iter().filter(|process| !is_other(process.pid)) {
        let belongs = match &process.marker {
            Some(marker) => *marker == belonging.marker,
            None => {
                let in_session =
                    belonging.leader.is_some_and(|leader| [process.session, process.group].contains(&leader));
                let since = belonging.interpreter.is_some_and(|(interpreter, began)| {
                    process.started >= began
                        && (process.session == interpreter || is_orphan_or_under(&by_pid, process, interpreter, own))
                });
                in_session || since
            }
        };
        if belongs || belonging.leader == Some(process.pid) {
            chosen.insert(process.pid);
        }
    }
    // Descendants, whatever they did to their environment or session, unless they are marked as another execution's.
    loop {
        let more: Vec<i32> = all
            .iter()
            .filter(|process| {
                !is_other(process.pid) && !chosen.contains(&process.pid) && chosen.contains(&process.parent)
            })
            .filter(|process| process.marker.as_ref().is_none_or(|marker| *marker == belonging.marker))
            .map(|process| process.pid)
            .collect();
        if more.is_empty() {
            break;
        }
        chosen.extend(more);
    }
    let mut chosen: Vec<i32> =
        chosen.into_iter().filter(|pid| by_pid.get(pid).is_some_and(|process| !process.is_zombie)).collect();
    chosen.sort_unstable();
    chosen
}

/// A process without a marker was started by an interpreter, or cleared its environment: it is under the
/// interpreter, or it was and its parents are gone.
fn is_orphan_or_under(by_pid: &HashMap<i32, &Process>, process: &Process, interpreter: i32, own: i32) -> bool {
    let mut parent = process.parent;
    for _ in 0..by_pid.len() {
        if parent == interpreter || parent == own {
            return true;
        }
        match by_pid.get(&parent) {
            // Under a marked process: that one's execution owns it.
            Some(next) if next.marker.is_none() => parent = next.parent,
            _ => return false,
        }
    }
    false
}

/// Every process that can be seen.
#[must_use]
pub fn all() -> Vec<Process> {
    let Ok(directory) = std::fs::read_dir("/proc") else { return Vec::new() };
    directory
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .take(PROCESSES)
        .filter_map(read)
        .collect()
}

fn read(pid: i32) -> Option<Process> {
    let mut stat = Vec::new();
    std::fs::File::open(format!("/proc/{pid}/stat")).ok()?.take(4096).read_to_end(&mut stat).ok()?;
    let mut process = parse_stat(&stat)?;
    let mut environment = Vec::new();
    if let Ok(file) = std::fs::File::open(format!("/proc/{pid}/environ")) {
        let _ = file.take(ENVIRONMENT).read_to_end(&mut environment);
    }
    process.marker = marker_in(&environment);
    Some(process)
}

fn parse_stat(stat: &[u8]) -> Option<Process> {
    // The name, in brackets, is the process's own choice: it may hold blanks, brackets, and bytes of any kind.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let pid = std::str::from_utf8(stat.split(|byte| *byte == b' ').next()?).ok()?.parse().ok()?;
    let fields: Vec<&str> = std::str::from_utf8(stat.get(end + 1..)?).ok()?.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<i32>().ok();
    Some(Process {
        pid,
        parent: number(1)?,
        group: number(2)?,
        session: number(3)?,
        started: fields.get(19)?.parse().ok()?,
        is_zombie: matches!(*fields.first()?, "Z" | "X"),
        marker: None,
    })
}

fn marker_in(environment: &[u8]) -> Option<String> {
    let value = environment
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(MARKER.as_bytes())?.strip_prefix(b"="))?;
    String::from_utf8(value.to_vec()).ok()
}

/// Sends `signal` to each of them. One that has ended in the meantime is no error.
pub fn signal(pids: &[i32], signal: Signal) {
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Ends all that belongs. What is started while this looks is found by looking again.
pub fn kill(belonging: &Belonging) {
    let own = std::process::id().cast_signed();
    for _ in 0..64 {
        let pids = select(&all(), belonging, own);
        if pids.is_empty() {
            return;
        }
        // Stopped first, so that none can start another while its siblings are ended.
        signal(&pids, Signal::STOP);
        signal(&pids, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn process(pid: i32, parent: i32, session: i32, marker: Option<&str>) -> Process {
        let marker = marker.map(str::to_owned);
        Process { pid, parent, group: session, session, started: 100, is_zombie: false, marker }
    }

    fn shell(leader: i32) -> Belonging {
        Belonging { marker: "mine".to_owned(), leader: Some(leader), interpreter: None }
    }

    #[test]
    fn a_command_owns_its_session_its_marked_ones_and_what_descends_from_them() {
        let all = [
            process(1, 0, 0, None),
            process(10, 1, 10, Some("mine")),
            process(11, 10, 10, None),        // cleared its environment
            process(12, 1, 12, Some("mine")), // a daemon
            process(13, 12, 13, None),        // its child, in a session of its own
            process(20, 1, 20, Some("other")),
            process(21, 20, 20, None),
            process(30, 1, 30, None), // an interpreter
        ];
        assert_eq!(select(&all, &shell(10), 1), [10, 11, 12, 13]);
    }

    #[test]
    fn code_owns_what_the_interpreter_started_since_the_run_began() {
        let mut all = vec![
            process(1, 0, 0, None),
            process(30, 1, 30, None),
            process(31, 30, 30, Some("mine")),    // a program it started
            process(32, 30, 30, None),            // a fork
            process(33, 30, 30, None),            // a fork of an earlier run
            process(34, 1, 34, None),             // a fork that left
            process(35, 30, 30, Some("earlier")), // a server of an earlier run
            process(36, 35, 36, None),
            process(20, 1, 20, Some("other")),
            process(21, 20, 20, None),
        ];
        all[4].started = 49;
        let code = Belonging { marker: "mine".to_owned(), leader: None, interpreter: Some((30, 50)) };
        assert_eq!(select(&all, &code, 1), [31, 32, 34]);
    }

    #[test]
    fn the_dead_are_left_alone() {
        let mut all = vec![process(10, 1, 10, None)];
        all[0].is_zombie = true;
        assert!(select(&all, &shell(10), 1).is_empty());
    }

    #[test]
    fn a_name_of_brackets_and_blanks_changes_nothing() {
        let line = b"7 (a) Z 1 2 3 (b)) R 1 7 6 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        let process = parse_stat(line).unwrap();
        assert_eq!((process.pid, process.parent, process.group, process.session, process.started), (7, 1, 7, 6, 4242));
        assert!(!process.is_zombie);
    }

    #[test]
    fn the_marker_is_a_whole_variable() {
        assert_eq!(marker_in(b"A=1\0SANDPOOL_EXECUTION=ab\0B=2"), Some("ab".to_owned()));
        assert_eq!(marker_in(b"XSANDPOOL_EXECUTION=ab\0SANDPOOL_EXECUTIONS=cd"), None);
        assert_eq!(name([0xab; 16]), "ab".repeat(16));
    }

    #[test]
    fn this_process_is_among_all() {
        let own = std::process::id().cast_signed();
        assert!(all().iter().any(|process| process.pid == own));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_stat(&bytes);
            let _ = marker_in(&bytes);
        }

        #[test]
        fn a_loop_of_parents_ends(parents in proptest::collection::vec(0_i32..10, 1..10)) {
            let all: Vec<_> = (0_i32..).zip(&parents).map(|(pid, parent)| process(pid, *parent, pid, None)).collect();
            let code = Belonging { marker: "mine".to_owned(), leader: Some(3), interpreter: Some((4, 1)) };
            let _ = select(&all, &code, 1);
        }
    }
}
