//! Control groups that were still busy when their sandbox had ended: the kernel lets go of them a moment later.

use std::time::{Duration, Instant};

use super::slots::Slots;
use crate::cgroup::Group;

/// When a busy group is tried again; twice as long after each attempt that did not empty the list, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How long the launcher, at its own end, tries.
const AT_LAST: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(super) struct Lingering {
    groups: Vec<(u32, Group)>,
    pause: Duration,
    at: Option<Instant>,
}

impl Lingering {
    /// Takes one in, with its slot, which nobody else can have as long as it is there.
    pub(super) fn add(&mut self, slot: u32, group: Group) {
        self.groups.push((slot, group));
        self.pause = FIRST_PAUSE;
        self.at = Some(Instant::now() + FIRST_PAUSE);
    }

    /// When the next attempt is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.at
    }

    /// Tries, when it is time to.
    pub(super) fn sweep(&mut self, now: Instant, slots: &mut Slots) {
        if self.at.is_some_and(|at| now >= at) {
            self.attempt(slots);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            self.at = (!self.groups.is_empty()).then(|| now + self.pause);
        }
    }

    /// Tries until nothing is left, for a moment: the launcher ends.
    pub(super) fn sweep_at_last(&mut self, slots: &mut Slots) {
        let until = Instant::now() + AT_LAST;
        loop {
            self.attempt(slots);
            if self.groups.is_empty() || Instant::now() >= until {
                return;
            }
            std::thread::sleep(FIRST_PAUSE);
        }
    }

    fn attempt(&mut self, slots: &mut Slots) {
        self.groups.retain(|(slot, group)| {
            let busy = group.remove().is_err();
            if !busy {
                slots.free(*slot);
            }
            busy
        });
    }
}
