//! Whether a host's processors run our guests: that one boots says so, and nothing else does. A device that runs guests may be there and
//! not be able to run these (a paravirtual one, one that is nested too deep): that is found out here, and not by a session.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions};
use sandpool_core::limits::Limits;
use sandpool_wire::agent::Runtime;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::mux::Side;
use crate::relay::{News, Relay};
use crate::vmm::{self, Begin, Parts, Place, Platform, Running};

/// How long a guest has to come up. On a processor that runs guests it takes less than a second.
const LIMIT: Duration = Duration::from_secs(15);

/// Bytes kept of what the VMM says.
const WORDS: usize = 600;

/// What came of trials, until the host boots again.
const FILE: &str = "trials.json";

/// What came of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Outcome {
    /// Milliseconds until it was up.
    Up(u64),
    /// Why it was not.
    Failed(String),
}

/// Boots a machine of these parts once in the life of a host's kernel, and remembers what came of it. `of_what` tells its parts from others.
///
/// # Errors
/// Why it does not come up.
pub(crate) fn run(
    directory: &Path,
    of_what: &str,
    platform: &Platform,
    place: Place,
    image: &Path,
) -> Result<(), String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let what = format!("{} {of_what}", boot.trim());
    let mut all: BTreeMap<String, Outcome> =
        fs::read(directory.join(FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    // Those of other boots say nothing any more.
    all.retain(|what, _| what.starts_with(boot.trim()));
    let outcome = all.entry(what).or_insert_with(|| match once(directory, platform, place, image) {
        Ok(took) => Outcome::Up(u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
        Err(error) => Outcome::Failed(error.to_string()),
    });
    let outcome = match outcome {
        Outcome::Up(_) => Ok(()),
        Outcome::Failed(why) => Err(why.clone()),
    };
    // Who cannot write it tries again.
    let _ = serde_json::to_vec_pretty(&all).map(|bytes| fs::write(directory.join(FILE), bytes));
    outcome
}

fn once(directory: &Path, platform: &Platform, mut place: Place, image: &Path) -> io::Result<Duration> {
    let site = directory.join("trial");
    let _ = fs::remove_dir_all(&site);
    fs::create_dir_all(&site)?;
    place.work = site.join("work");
    place.patience.port = LIMIT;
    let disk = site.join("disk");
    fs::File::create_new(&disk)?.set_len(1 << 20)?;
    let limits = Limits { memory: 128 << 20, data: 1 << 20, tmp: 1 << 20, ..Limits::default() };
    let machine = Machine { runtime: Runtime::Shell, limits, local_servers: true, leads_out: false, trusts: true };
    let image = fs::File::open(image)?.into();
    let vmm = vmm::of(platform.clone(), place);
    let began = Instant::now();
    let parts = Parts { machine, image: &image, disk: &disk };
    let tried = vmm.begin(&parts, &Begin::Boot).and_then(|running| {
        let tried = until_up(&running, began + LIMIT);
        let pid = i32::try_from(running.pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
        }
        tried.map_err(|error| match words(&running).as_str() {
            "" => error,
            said => io::Error::new(error.kind(), format!("{error}: {said}")),
        })
    });
    let took = began.elapsed();
    let _ = fs::remove_dir_all(&site);
    tried.map(|()| took)
}

/// Waits for the word of the first program inside.
fn until_up(running: &Running, until: Instant) -> io::Result<()> {
    let late = || {
        let seconds = LIMIT.as_secs();
        io::Error::new(io::ErrorKind::TimedOut, format!("the guests' kernel did not come up in {seconds} s"))
    };
    let mut relay = Relay::new(Side::Keeper, running.port.try_clone()?);
    relay.mux.prepare();
    relay.flush()?;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut port = [PollFd::from_borrowed_fd(running.port.as_fd(), PollFlags::IN)];
        match poll(&mut port, Some(&left)) {
            Ok(0) => return Err(late()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let news = relay.ready(crate::relay::Source::Port, port[0].revents());
        match news.map_err(|_| io::Error::other("the VMM has ended"))? {
            Some(News::Up(_)) => return Ok(()),
            Some(News::Broken(why)) => return Err(io::Error::other(why)),
            _ => {}
        }
    }
}

/// What the VMM has said.
fn words(running: &Running) -> String {
    let mut said = Vec::new();
    let mut piece = [0; 1024];
    while let Ok(count @ 1..) = rustix::io::read(&running.words, &mut piece) {
        said.extend_from_slice(&piece[..count]);
        if said.len() > WORDS {
            break;
        }
    }
    said.truncate(WORDS);
    let said = String::from_utf8_lossy(&said);
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use crate::vmm::Kind;

    use super::*;

    #[test]
    fn what_came_of_a_trial_is_kept_until_the_host_boots_again() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        fs::write(&image, "").unwrap();
        let stale = r#"{"another-boot QEMU": {"up": 300}}"#;
        fs::write(directory.path().join(FILE), stale).unwrap();
        let platform = Platform { vmm: Kind::Qemu, is_emulated: false, tsc_khz: 0 };
        let tried = |of_what: &str, program: &str| {
            let place = Place { program: program.into(), identity: None, ..Place::inside(Kind::Qemu) };
            run(directory.path(), of_what, &platform, place, &image).unwrap_err()
        };
        // One that ends at once, and is not tried again ...
        let why = tried("QEMU 1", "/usr/bin/false");
        assert_eq!(tried("QEMU 1", "/nowhere"), why);
        // ... as long as it is the same.
        assert_ne!(tried("QEMU 2", "/nowhere"), why);
        let kept = fs::read_to_string(directory.path().join(FILE)).unwrap();
        assert!(kept.contains("QEMU 1") && kept.contains("QEMU 2") && !kept.contains("another-boot"), "{kept}");
        assert!(!directory.path().join("trial").exists());
    }
}
