//! The static program that is pid 1 of every sandbox.
//!
//! It is started by the launcher as `sandpool-agent python|node|shell|container [freeze|thaw|warm] [turns=SHARE]`, with descriptors from 3 on: its control
//! socket; the file of the pool's zygote, to be written or to be started from; and three files of its control group ([`Files`]). In a container
//! an OCI runtime starts it, with `contained=...` and what [`sandpool_agent::contained`] takes; and outside of that it is what starts the runtime
//! (`shim`, [`sandpool_agent::shim`]).
//!
//! Around a machine it is started as `sandpool-agent keeper MACHINE... [freeze|thaw]`, with its control socket, the image's disk and the
//! file of the template; inside it, the kernel starts it without arguments.

use std::io::Read;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::Mode;
use rustix::process::DumpableBehavior;
use sandpool_agent::agent::{Agent, Config};
use sandpool_agent::contained::Contained;
use sandpool_agent::environment::{DIRECTORY, IMAGE_FILE};
use sandpool_agent::shim;
use sandpool_agent::turn::{Files, Turn};
use sandpool_agent::zygote::Zygote;
use sandpool_sys::workload::{self, Identity};
use sandpool_vm::keeper::{self, Template};
use sandpool_vm::machine::Machine;
use sandpool_wire::agent::Runtime;

/// Where the launcher puts the control socket. What else it gives follows, in the order of the words.
const CONTROL: i32 = 3;

/// Whom everything runs as that a session starts, and who its files belong to.
const WORKLOAD: Identity = Identity { uid: 1000, gid: 1000 };

/// Bytes of the image's own file.
const IMAGE_FILE_LIMIT: u64 = 64 * 1024;

fn main() -> ExitCode {
    if sandpool_vm::guest::is_here() {
        sandpool_vm::guest::run();
        return ExitCode::FAILURE;
    }
    let started = match std::env::args().nth(1).as_deref() {
        Some("shim") => return shim::run(std::env::args_os().skip(2)),
        Some("keeper") => keep(),
        _ => serve(),
    };
    match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandpool-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Keeps a machine, as the first process of the sandbox around it.
fn keep() -> std::io::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let mut words: Vec<String> = std::env::args().skip(2).collect();
    let control = workload::inherited(CONTROL)?;
    let image = workload::inherited(CONTROL + 1)?;
    words.retain(|word| !word.starts_with("turns="));
    let template = match words.last().map(String::as_str) {
        Some("freeze") => Some(Template::Make(workload::inherited(CONTROL + 2)?)),
        Some("thaw") => Some(Template::Use(workload::inherited(CONTROL + 2)?)),
        _ => None,
    };
    words.truncate(words.len() - usize::from(template.is_some()));
    let machine = Machine::parse(words.iter().map(String::as_str))
        .ok_or_else(|| std::io::Error::other(format!("what machine is {}?", words.join(" "))))?;
    workload::set_file_identity(WORKLOAD)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    keeper::run(keeper::Config { machine, control, image, template })
}

fn serve() -> std::io::Result<()> {
    // First of all, so that nothing of the sandbox can look into this process.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let mut words = std::env::args().skip(1);
    let word = words.next().unwrap_or_default();
    let runtime = Runtime::from_word(&word).ok_or_else(|| {
        std::io::Error::other(
            "usage: sandpool-agent python|node|shell|container [freeze|thaw|warm] [turns=SHARE], by its launcher",
        )
    })?;
    let control = workload::inherited(CONTROL)?;
    let mut number = CONTROL;
    let mut next = || {
        number += 1;
        workload::inherited(number)
    };
    let (mut zygote, mut files, mut contained) = (None, None, None);
    for word in words {
        match word.as_str() {
            "freeze" => zygote = Some(Zygote::Freeze(next()?)),
            "thaw" => zygote = Some(Zygote::Thaw(next()?)),
            "warm" => zygote = Some(Zygote::Warm),
            word if word.starts_with("turns=") => {
                let whole = word.trim_start_matches("turns=").as_bytes().to_vec();
                files = Some(Files { usage: next()?, idle: next()?, share: next()?, whole });
            }
            word if word.starts_with("contained=") => {
                let word = word.trim_start_matches("contained=");
                // This program's own file: nobody here needs it any more. And what it shall be filtered by.
                let (program, filters) = (next()?, next()?);
                drop(program);
                contained = Some(Contained::new(word, filters)?);
            }
            word => return Err(std::io::Error::other(format!("what is {word}?"))),
        }
    }
    let passes_on = match contained {
        Some(contained) => contained.settle()?,
        None => false,
    };
    let mut image = String::new();
    if let Ok(file) = std::fs::File::open(IMAGE_FILE) {
        // An image without the file, or with one that is not text, has nothing to add to the environment.
        let _ = file.take(IMAGE_FILE_LIMIT).read_to_string(&mut image);
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if passes_on {
        workload::set_effective_identity(WORKLOAD)?;
    } else {
        workload::set_file_identity(WORKLOAD)?;
    }
    // The kernel sets this to a default of its own when the ids of files change.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    if runtime != Runtime::Shell && !matches!(zygote, Some(Zygote::Freeze(_))) {
        // The launcher makes sandboxes ahead of those who ask for them. An interpreter is dear to keep, so that it waits
        // for the first stream; a shell is not started before a command wants one.
        rustix::event::poll(&mut [PollFd::new(&control, PollFlags::IN)], None)?;
    }
    let (identity, directory, image) = (Some(WORKLOAD), DIRECTORY.into(), Some(image));
    let turn = Turn::new(files);
    Agent::new(Config { runtime, control, identity, directory, image, zygote, turn, passes_on })?.run()
}
