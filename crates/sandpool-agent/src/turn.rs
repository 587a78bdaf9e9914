//! Who computes for long makes way for those who do not.
//!
//! ```text
//! at once --computed for SPAN--> makes way --its work ended, or it got less than a quarter of a processor--> at once
//! ```
//!
//! Most requests are over in a millisecond or two, of many short steps. Beside somebody who computes, each step may wait for the end of a
//! time slice, which the kernel looks at once in a tick (1 to 10 ms). A group of processes that makes way (`cpu.idle`) is interrupted at
//! once by everybody else, and among its like has the same share as ever. Where the others leave it nothing it comes back, so that
//! nobody starves, and makes way again after the next span.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Work that is over by then is not even looked at.
const FIRST_LOOK: Duration = Duration::from_millis(2);

/// For how long it is looked at whether somebody computes.
const SPAN: Duration = Duration::from_millis(4);

/// How often it is looked whether who makes way should come back.
const LATER: Duration = Duration::from_millis(20);

/// How seldom it is looked whether somebody computes who has not for long: each time after twice the pause, up to this.
const SELDOM: Duration = Duration::from_secs(1);

/// Files of the sandbox's own control group, opened by whoever made it.
#[derive(Debug)]
pub struct Files {
    /// How much processor time has been used (`cpuacct.usage`, or `cpu.stat`).
    pub usage: OwnedFd,
    /// Whether the group makes way (`cpu.idle`).
    pub idle: OwnedFd,
    /// The group's share (`cpu.shares`, or `cpu.weight`), which the kernel forgets when the group makes way.
    pub share: OwnedFd,
    /// What it is for a sandbox that is somebody's, which one that computes is.
    pub whole: Vec<u8>,
}

/// The sandbox's turn.
#[derive(Debug)]
pub struct Turn {
    files: Option<Files>,
    /// While an execution runs.
    watch: Option<Watch>,
    makes_way: bool,
}

/// The last look, and the next.
#[derive(Debug)]
struct Watch {
    at: Instant,
    /// What had been used then; nobody looked when the work began.
    used: Option<Duration>,
    pause: Duration,
}

impl Turn {
    /// Without files it never makes way.
    #[must_use]
    pub fn new(files: Option<Files>) -> Self {
        Self { files, watch: None, makes_way: false }
    }

    /// When [`Turn::tick`] has something to look at.
    #[must_use]
    pub fn wakes(&self) -> Option<Instant> {
        self.watch.as_ref().map(|watch| watch.at + watch.pause)
    }

    /// Looks, if it is time to. `works` is whether an execution runs.
    pub fn tick(&mut self, works: bool, now: Instant) {
        let Some(files) = &self.files else { return };
        if !works {
            self.watch = None;
            return self.come_back();
        }
        let Some(watch) = &self.watch else {
            self.watch = Some(Watch { at: now, used: None, pause: FIRST_LOOK });
            return;
        };
        if watch.at + watch.pause > now {
            return;
        }
        let Some(used) = files.used() else {
            // The kernel does not tell: nobody makes way here.
            (self.files, self.watch) = (None, None);
            return;
        };
        let span = now - watch.at;
        let spent = watch.used.map(|before| used.saturating_sub(before));
        let pause = match (self.makes_way, spent) {
            (_, None) => SPAN,
            (true, Some(spent)) if spent * 4 >= span => LATER,
            (true, Some(_)) => {
                self.come_back();
                SPAN
            }
            (false, Some(spent)) if spent * 2 >= span => {
                self.makes_way = files.make_way();
                LATER
            }
            (false, Some(_)) => (watch.pause * 2).min(SELDOM),
        };
        self.watch = Some(Watch { at: now, used: Some(used), pause });
    }

    fn come_back(&mut self) {
        if let (Some(files), true) = (&self.files, std::mem::take(&mut self.makes_way)) {
            // Both are there, since it could make way.
            let _ = rustix::io::pwrite(&files.idle, b"0", 0);
            let _ = rustix::io::pwrite(&files.share, &files.whole, 0);
        }
    }
}

impl Files {
    /// The processor time that all processes of the sandbox have used.
    fn used(&self) -> Option<Duration> {
        let text = read(&self.usage)?;
        let text = std::str::from_utf8(&text).ok()?;
        match text.strip_prefix("usage_usec ") {
            Some(rest) => rest.lines().next()?.parse().ok().map(Duration::from_micros),
            None => text.trim().parse().ok().map(Duration::from_nanos),
        }
    }

    /// Whether it makes way now.
    fn make_way(&self) -> bool {
        rustix::io::pwrite(&self.idle, b"1", 0).is_ok()
    }
}

/// The beginning of a file.
fn read(file: &OwnedFd) -> Option<Vec<u8>> {
    let mut text = vec![0; 256];
    let length = rustix::io::pread(file, &mut text, 0).ok().filter(|length| *length > 0)?;
    text.truncate(length);
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files as version 1 has them, with 100 ms used.
    struct Group(tempfile::TempDir);

    impl Group {
        fn new() -> Self {
            let group = Self(tempfile::tempdir().unwrap());
            group.write("usage", "100000000\n");
            group.write("idle", "0");
            group.write("share", "2048\n");
            group
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.0.path().join(name), text).unwrap();
        }

        fn used(&self, milliseconds: u64) {
            self.write("usage", &format!("{}\n", milliseconds * 1_000_000));
        }

        fn turn(&self) -> Turn {
            let open = |name: &str| {
                let file = std::fs::File::options().read(true).write(true).open(self.0.path().join(name));
                OwnedFd::from(file.unwrap())
            };
            Turn::new(Some(Files {
                usage: open("usage"),
                idle: open("idle"),
                share: open("share"),
                whole: b"2048".to_vec(),
            }))
        }

        fn idle(&self) -> String {
            std::fs::read_to_string(self.0.path().join("idle")).unwrap()
        }
    }

    /// Goes on to the next look.
    fn look(turn: &mut Turn, now: &mut Instant) {
        *now = turn.wakes().unwrap();
        turn.tick(true, *now);
    }

    #[test]
    fn who_computes_makes_way_and_comes_back_with_its_share() {
        let (group, mut now) = (Group::new(), Instant::now());
        let mut turn = group.turn();
        turn.tick(false, now);
        assert_eq!(turn.wakes(), None, "nothing runs");
        turn.tick(true, now);
        look(&mut turn, &mut now);
        group.used(104);
        look(&mut turn, &mut now);
        assert_eq!(group.idle(), "1");
        group.used(124);
        look(&mut turn, &mut now);
        assert_eq!(group.idle(), "1", "it goes on to compute");
        group.write("share", "1024\n");
        turn.tick(false, now);
        assert_eq!((group.idle().as_str(), turn.wakes()), ("0", None));
        assert!(std::fs::read_to_string(group.0.path().join("share")).unwrap().starts_with("2048"));
    }

    #[test]
    fn who_is_left_nothing_comes_back() {
        let (group, mut now) = (Group::new(), Instant::now());
        let mut turn = group.turn();
        turn.tick(true, now);
        look(&mut turn, &mut now);
        group.used(104);
        look(&mut turn, &mut now);
        look(&mut turn, &mut now);
        assert_eq!(group.idle(), "0", "20 ms, and not one of the processor");
        group.used(108);
        look(&mut turn, &mut now);
        assert_eq!(group.idle(), "1", "and makes way again");
    }

    #[test]
    fn who_waits_is_looked_at_ever_more_seldom() {
        let (group, mut now) = (Group::new(), Instant::now());
        let mut turn = group.turn();
        turn.tick(true, now);
        let began = now;
        for _ in 0..12 {
            look(&mut turn, &mut now);
        }
        assert!(now - began > Duration::from_secs(2), "{:?}", now - began);
        assert_eq!(group.idle(), "0");
    }

    #[test]
    fn where_the_kernel_does_not_tell_nobody_makes_way() {
        let (group, mut now) = (Group::new(), Instant::now());
        group.write("usage", "user_usec 5\n");
        let mut turn = group.turn();
        turn.tick(true, now);
        look(&mut turn, &mut now);
        assert_eq!(turn.wakes(), None);
        turn.tick(true, now);
        assert_eq!(turn.wakes(), None);
    }

    #[test]
    fn version_2_is_read_too() {
        let group = Group::new();
        group.write("usage", "usage_usec 2500\nuser_usec 5\n");
        assert_eq!(group.turn().files.unwrap().used(), Some(Duration::from_micros(2500)));
    }
}
