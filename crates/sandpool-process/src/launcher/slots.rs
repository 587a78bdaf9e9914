//! The uid ranges of sandboxes (ID1): one each, that nobody else on the host has.

use std::collections::VecDeque;
use std::ops::Range;

/// The first uid and gid of the first range: far above what hosts give to people and services.
const FIRST_ID: u32 = 0x2000_0000;

/// Uids and gids of one sandbox.
pub(super) const IDS: u32 = 65_536;

/// Who may have ids of their own: ranges given to users for their containers, and users and groups themselves.
const SUBORDINATE: [&str; 2] = ["/etc/subuid", "/etc/subgid"];
const NAMED: [&str; 2] = ["/etc/passwd", "/etc/group"];

/// Slots, each with its range: the longest unused comes first, so that a range rests before it is used again.
pub(super) struct Slots {
    free: VecDeque<u32>,
    next: u32,
    left: u32,
    taken: Vec<Range<u64>>,
}

/// The first id of a slot's range.
pub(super) fn first_id(slot: u32) -> u32 {
    FIRST_ID + slot * IDS
}

impl Slots {
    /// So many of them, around what this host has given to others.
    pub(super) fn new(limit: u32) -> Self {
        let read = |file: &&str| std::fs::read_to_string(file).unwrap_or_default();
        let subordinate: String = SUBORDINATE.iter().map(read).collect();
        let named: String = NAMED.iter().map(read).collect();
        Self { free: VecDeque::new(), next: 0, left: limit, taken: taken(&subordinate, &named) }
    }

    /// `None` when all are in use.
    pub(super) fn take(&mut self) -> Option<u32> {
        while self.left > 0 && self.next < (u32::MAX - FIRST_ID) / IDS - 1 {
            let slot = self.next;
            self.next += 1;
            let first = u64::from(first_id(slot));
            let own = first..first + u64::from(IDS);
            if !self.taken.iter().any(|other| other.start < own.end && own.start < other.end) {
                self.left -= 1;
                return Some(slot);
            }
        }
        self.free.pop_front()
    }

    /// Gives one back, when nothing with an id of its range is left.
    pub(super) fn free(&mut self, slot: u32) {
        self.free.push_back(slot);
    }
}

/// The ids that others have, out of the texts of subuid and subgid (`name:first:count`), and passwd and group
/// (`name:x:id:...`).
fn taken(subordinate: &str, named: &str) -> Vec<Range<u64>> {
    let field = |line: &str, index: usize| line.split(':').nth(index)?.trim().parse::<u64>().ok();
    let ranges = subordinate.lines().filter_map(|line| {
        let first = field(line, 1)?;
        Some(first..first.saturating_add(field(line, 2)?))
    });
    let ids = named.lines().filter_map(|line| field(line, 2)).map(|id| id..id + 1);
    ranges.chain(ids).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(limit: u32, taken: Vec<Range<u64>>) -> Slots {
        Slots { free: VecDeque::new(), next: 0, left: limit, taken }
    }

    #[test]
    fn ids_of_others_are_left_out() {
        // 0x20000000 is 536870912; the second slot begins at 536936448, the fourth at 537067520.
        let others = taken("a:100000:65536\nb:536870000:1000\nbad\n", "root:x:0:0::/:\nx:x:537067521:1::/:\n");
        assert_eq!(others.len(), 4);
        let mut slots = slots(3, others);
        assert_eq!([slots.take(), slots.take(), slots.take(), slots.take()], [Some(1), Some(2), Some(4), None]);
    }

    #[test]
    fn the_longest_unused_comes_first() {
        let mut slots = slots(3, Vec::new());
        assert_eq!(slots.take(), Some(0));
        slots.free(0);
        assert_eq!([slots.take(), slots.take(), slots.take(), slots.take()], [Some(1), Some(2), Some(0), None]);
    }

    #[test]
    fn the_last_range_is_below_the_last_id() {
        let mut slots = slots(u32::MAX, Vec::new());
        let last = std::iter::from_fn(|| slots.take()).last().unwrap();
        assert!(u64::from(first_id(last)) + u64::from(IDS) < u64::from(u32::MAX));
    }
}
