//! The keeper: the first process of the process-level sandbox in which a VMM runs.
//!
//! ```text
//! launcher --streams--> keeper --[port]--> first program inside --> agent
//!                         |  \
//!                         |   disk (a file in the sandbox's memory), the image (a descriptor, for reading)
//!                         VMM, as the workload's user, behind the sandbox's filter and its own
//! ```
//!
//! To the launcher it is what an agent is: it takes streams, and ends with what it keeps. Of the words that come with them, `D` and `P`
//! are for the agent inside; `S` and `s` ask for everything of the machine, which goes on afterwards, or when the stream is closed, which
//! nobody does whose sandbox is to end instead; `W`, before every other, brings what was saved. What it reads comes out of a machine
//! that may be anybody's: [`Mux`](crate::mux::Mux) bounds and judges it. Of the machine's template it is the maker, and says of
//! that what an agent says of a zygote.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{WaitOptions, WaitStatus};
use sandpool_sys::workload::{self, Identity, Workload};
use sandpool_walls::setup::{AUTHORITY, WORKLOAD};
use sandpool_wire::agent::{FromAgent, PROTOCOL};
use sandpool_wire::frame;

use crate::extents;
use crate::machine::Machine;
use crate::mux::{Resume, Side};
use crate::relay::{News, Relay, Source, ready_of};
use crate::saved;
use crate::vmm::{self, Begin, Kind, Parts, Place, Platform, Running, Vmm};

/// The session's disk, where the sandbox has memory for it.
const DISK: &str = "/mnt/data/disk";

/// What makes a file system. No journal: the disk's life is as long as its machine's.
const MAKER: [&str; 9] = [
    "/usr/sbin/mke2fs",
    "-q",
    "-F",
    "-t",
    "ext4",
    "-m0",
    "-O^has_journal,^resize_inode",
    "-Elazy_itable_init=1,nodiscard",
    DISK,
];

/// Bytes kept of what the VMM said last.
const LAST_WORDS: usize = 1024;

/// What to do with the pool's template.
#[derive(Debug)]
pub enum Template {
    /// Make it: this file is empty.
    Make(OwnedFd),
    /// Go on from it.
    Use(OwnedFd),
}

/// What a keeper is started with.
#[derive(Debug)]
pub struct Config {
    /// The machine.
    pub machine: Machine,
    /// Where streams arrive, as at an agent.
    pub control: OwnedFd,
    /// The image, as a block device.
    pub image: OwnedFd,
    /// Without one the machine boots.
    pub template: Option<Template>,
}

/// Keeps a machine until it ends, or its launcher does.
///
/// # Errors
/// Why there is no machine, or not any more.
pub fn run(config: Config) -> io::Result<()> {
    let Config { machine, control, image, template } = config;
    workload::ignore_write_signals();
    let is_maker = matches!(template, Some(Template::Make(_)));
    let children = workload::child_signal()?;
    let mut keeper = Keeper {
        machine,
        control,
        children,
        said: Vec::new(),
        waiting: Vec::new(),
        running: None,
        saving: None,
        identity: String::new(),
    };
    let mut saved = None;
    if !is_maker {
        // Made ahead of those who ask: a machine is dear to keep, and begun when it is first wanted.
        poll(&mut [PollFd::new(&keeper.control, PollFlags::IN)], None)?;
        keeper.take_stream();
        if keeper.waiting.first().is_some_and(|(word, _)| word == b"W") {
            saved = keeper.waiting.pop().map(|(_, fd)| fd);
        }
    }
    let done = keeper.keep(&image, template.as_ref(), saved);
    if let Err(error) = &done {
        // Also those that have come and were not looked at.
        while keeper.take_stream() == Taken::One {}
        keeper.tell(&FromAgent::Broken { reason: keeper.why(error), by_itself: false });
    }
    done
}

struct Keeper {
    machine: Machine,
    control: OwnedFd,
    children: OwnedFd,
    /// What the VMM said last.
    said: Vec<u8>,
    /// Streams of which the machine has not heard: until it is what it is to be.
    waiting: Vec<(Vec<u8>, OwnedFd)>,
    running: Option<Running>,
    /// Who is to have everything of the machine, once it stands still, and whether it goes on.
    saving: Option<(OwnedFd, bool)>,
    /// What the machine said of its kernel: [`crate::identity::Identity`] as JSON.
    identity: String,
}

/// What came from the launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    One,
    None,
    /// It is gone.
    End,
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Control,
    Children,
    Words,
    Relay(Source),
}

impl Keeper {
    fn keep(&mut self, image: &OwnedFd, template: Option<&Template>, saved: Option<OwnedFd>) -> io::Result<()> {
        let machine = self.machine;
        let platform = Platform::read(Path::new("/"))?;
        let size = machine.limits.data >> 12 << 12;
        let (kind, place) = (platform.vmm, Place::inside(platform.vmm));
        let vmm = vmm::of(platform, place);
        let vmm = vmm.as_ref();
        let parts = Parts { machine, image, disk: Path::new(DISK) };
        let running = match (saved, template) {
            (Some(saved), _) => wake((kind, vmm), &parts, saved, size).map_err(|error| about("what was saved", &error)),
            (None, template) => {
                let (begin, disk) = match template {
                    Some(Template::Use(file)) => {
                        (Begin::Restore(file), empty_disk(size).and_then(|disk| extents::restore(file, &disk, size)))
                    }
                    Some(Template::Make(file)) => (Begin::Template(file), make_disk(size)),
                    None => (Begin::Boot, make_disk(size)),
                };
                disk.map_err(|error| about("the disk", &error))?;
                vmm.begin(&parts, &begin).map_err(|error| about("the VMM", &error))
            }
        };
        let running = running?;
        let mut relay = Relay::new(Side::Keeper, running.port.try_clone()?);
        self.running = Some(running);
        let is_maker = matches!(template, Some(Template::Make(_)));
        if machine.leads_out {
            relay.lead_out();
        }
        if is_maker {
            relay.mux.prepare();
        } else {
            relay.mux.resume(&own(machine, false)?);
        }
        // Of a template's maker: whether the file is complete. Of another's: whether its agent takes streams.
        let (mut is_made, mut serves) = (false, false);
        loop {
            while serves && self.saving.is_none() && !self.waiting.is_empty() {
                let (word, fd) = self.waiting.remove(0);
                if matches!(word.as_slice(), b"S" | b"s") {
                    relay.mux.hush();
                    self.saving = Some((fd, word == b"S"));
                } else {
                    relay.open(fd, &word);
                }
            }
            relay.flush().or_else(|error| self.end_of(error))?;
            for (owner, events) in self.wait(&relay)? {
                match owner {
                    Owner::Control => {
                        if self.take_stream() == Taken::End {
                            return Ok(());
                        }
                        if is_made {
                            self.tell_made(machine);
                        }
                    }
                    Owner::Children => self.reap()?,
                    Owner::Words => {
                        self.listen();
                    }
                    Owner::Relay(source) => {
                        let mut news = relay.ready(source, events).or_else(|error| self.end_of(error))?;
                        while let Some(one) = news {
                            match one {
                                News::Broken(why) => return Err(io::Error::other(why)),
                                News::Up(identity) if is_maker && !is_made => {
                                    self.identity = serde_json::to_string(&identity).map_err(io::Error::other)?;
                                    if let (Some(running), Some(Template::Make(file))) = (&mut self.running, template) {
                                        let made = vmm.snapshot(&parts, running, file);
                                        let made = made.and_then(|()| extents::append(Path::new(DISK), file));
                                        made.map_err(|error| about("the template", &error))?;
                                    }
                                    is_made = true;
                                    self.tell_made(machine);
                                }
                                News::Up(_) if self.saving.is_some() => {
                                    if let Some(port) = self.save((kind, vmm), &parts)? {
                                        relay.begin_anew(port);
                                    }
                                    relay.mux.resume(&own(machine, true)?);
                                }
                                News::Serves => serves = true,
                                News::Up(_) | News::Prepare | News::Hush | News::Resume(_) => {}
                            }
                            news = relay.go_on();
                        }
                    }
                }
            }
        }
    }

    /// The machine stands still: gives all of it to whoever wants it. Comes back when it runs again, with its port where that is another.
    fn save(&mut self, (kind, vmm): (Kind, &dyn Vmm), parts: &Parts<'_>) -> io::Result<Option<OwnedFd>> {
        let (Some((to, stays)), Some(running)) = (self.saving.take(), &mut self.running) else { return Ok(None) };
        let mut to = saved::patient(to)?;
        let disk = File::open(parts.disk)?;
        let written = saved::write(&mut to, &of_what(kind, parts), |pipe| vmm.save(parts, running, pipe), &disk);
        // Who had not all of it sees that by its end. Who had keeps the stream until it is safe, and ends this sandbox.
        if written.is_ok() && !stays {
            let mut fds = [PollFd::new(&to, PollFlags::IN), PollFd::new(&self.control, PollFlags::empty())];
            poll(&mut fds, None)?;
        }
        let is_new = vmm.go_on(parts, running)?;
        is_new.then(|| running.port.try_clone()).transpose()
    }

    fn wait(&self, relay: &Relay) -> io::Result<Vec<(Owner, PollFlags)>> {
        let own = [(Owner::Control, self.control.as_fd()), (Owner::Children, self.children.as_fd())];
        let own = own.into_iter().chain(self.running.iter().map(|running| (Owner::Words, running.words.as_fd())));
        let all = own.map(|(owner, fd)| (owner, fd, PollFlags::IN));
        let all = all.chain(relay.descriptors().map(|(source, fd, flags)| (Owner::Relay(source), fd, flags)));
        ready_of(all)
    }

    /// Takes one stream from the launcher.
    fn take_stream(&mut self) -> Taken {
        let mut word = [0; 4];
        match sandpool_sys::packet::receive(&self.control, &mut word) {
            Ok((0, _)) => Taken::End,
            Ok((length, mut fds)) => {
                if let Some(fd) = fds.pop().filter(|fd| rustix::io::ioctl_fionbio(fd, true).is_ok()) {
                    self.waiting.push((word[..length].to_vec(), fd));
                }
                Taken::One
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Taken::None,
            Err(_) => Taken::End,
        }
    }

    /// Says to whoever asked for a template that it is there, as an agent says that a zygote is.
    fn tell_made(&mut self, machine: Machine) {
        // In the place of a runtime's version, of which it has none: whose kernel it runs.
        let (boot_id, version) = ([0; 16], self.identity.clone());
        self.tell(&FromAgent::Hello { protocol: PROTOCOL, boot_id, runtime: machine.runtime, version });
        self.tell(&FromAgent::Ready);
    }

    /// Says something on the streams that the machine has not heard of.
    fn tell(&mut self, message: &FromAgent) {
        let Ok(bytes) = frame::encode(message) else { return };
        for (_, fd) in self.waiting.iter().filter(|(word, _)| word == b"D") {
            // Who has gone need not hear it. A new stream has room for it.
            let _ = fd.try_clone().map(|fd| UnixStream::from(fd).write_all(&bytes));
        }
    }

    /// Keeps what the VMM says last. Whether there may be more.
    fn listen(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match self.running.as_ref().map(|running| rustix::io::read(&running.words, &mut buffer)) {
            Some(Ok(count @ 1..)) => {
                self.said.extend_from_slice(&buffer[..count]);
                let over = self.said.len().saturating_sub(LAST_WORDS);
                self.said.drain(..over);
                true
            }
            // Its end follows.
            _ => false,
        }
    }

    fn reap(&mut self) -> io::Result<()> {
        workload::clear_child_signal(&self.children);
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = u32::try_from(pid.as_raw_nonzero().get()).unwrap_or_default();
            if self.running.as_ref().is_some_and(|running| running.pid == pid) {
                while self.listen() {}
                return Err(io::Error::other(format!("the machine has ended ({})", how(status))));
            }
        }
        Ok(())
    }

    /// The port is of no use any more: mostly since the VMM has ended, which says more.
    fn end_of<T>(&mut self, error: io::Error) -> io::Result<T> {
        let limit = rustix::event::Timespec { tv_sec: 2, tv_nsec: 0 };
        let _ = poll(&mut [PollFd::new(&self.children, PollFlags::IN)], Some(&limit));
        self.reap()?;
        Err(error)
    }

    /// Why there is no machine, with what its VMM said last.
    fn why(&self, error: &io::Error) -> String {
        match String::from_utf8_lossy(&self.said).trim() {
            "" => error.to_string(),
            said => format!("{error}: {said}"),
        }
    }
}

fn about(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn how(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => "unknown".to_owned(),
    }
}

/// What must be the same of a machine that was saved, and of the one that goes on from it.
fn of_what(vmm: Kind, parts: &Parts<'_>) -> String {
    format!("1 {} {}", vmm.word(), parts.machine.words().join(" "))
}

/// Has a machine go on where it was saved.
fn wake((kind, vmm): (Kind, &dyn Vmm), parts: &Parts<'_>, saved: OwnedFd, size: u64) -> io::Result<Running> {
    let disk = empty_disk(size)?;
    let begin = |pipe: &OwnedFd| vmm.begin(parts, &Begin::Wake(pipe));
    let mut running = saved::read(saved::patient(saved)?, &of_what(kind, parts), begin, (&disk, size))?;
    vmm.go_on(parts, &mut running)?;
    Ok(running)
}

/// What makes this machine one of its own, or has the same go on.
fn own(machine: Machine, is_the_same: bool) -> io::Result<Resume> {
    let mut seed = [0; 32];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    // Made for this sandbox by the launcher, and what its programs are to trust.
    let authority =
        if machine.trusts { std::fs::read_to_string(Path::new("/").join(AUTHORITY))? } else { String::new() };
    let epoch_ns = u64::try_from(now.as_nanos()).map_err(io::Error::other)?;
    Ok(Resume { seed, epoch_ns, is_the_same, authority })
}

/// A disk of so many bytes with nothing on it. It takes up what is written to it.
fn empty_disk(size: u64) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(DISK, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::ftruncate(&file, size)?;
    Ok(file.into())
}

/// Makes a disk of so many bytes, with a file system that has no files.
fn make_disk(size: u64) -> io::Result<()> {
    drop(empty_disk(size)?);
    let (read, said) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let pid = workload::spawn(Workload {
        argv: MAKER.map(Into::into).to_vec(),
        file: None,
        env: Vec::new(),
        directory: "/".into(),
        identity: Some(Identity { uid: WORKLOAD, gid: WORKLOAD }),
        stdio: [null.try_clone()?, null, said],
        pass: Vec::new(),
        terminal: false,
    })?;
    let mut words = String::new();
    File::from(read).take(LAST_WORDS as u64).read_to_string(&mut words)?;
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    match rustix::process::waitpid(pid, WaitOptions::empty())? {
        Some((_, status)) if status.exit_status() == Some(0) => Ok(()),
        Some((_, status)) => Err(io::Error::other(format!("{}: {}", how(status), words.trim()))),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}
