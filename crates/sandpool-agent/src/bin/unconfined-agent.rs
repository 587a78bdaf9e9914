//! The agent for tests: outside of a sandbox, with no change of user. It is no part of what is delivered.
//!
//! Started as `unconfined-agent RUNTIME DIRECTORY IMAGE-JSON`, with the control socket on descriptor 3.

use std::io::Error;

use sandpool_agent::agent::{Agent, Config};
use sandpool_agent::turn::Turn;
use sandpool_sys::workload;
use sandpool_wire::agent::Runtime;

fn main() -> Result<(), Error> {
    let mut words = std::env::args().skip(1);
    let usage = || Error::other("usage: unconfined-agent RUNTIME DIRECTORY IMAGE-JSON");
    let runtime = words.next().and_then(|word| Runtime::from_word(&word)).ok_or_else(usage)?;
    let directory = words.next().ok_or_else(usage)?.into();
    let control = workload::inherited(3)?;
    // What pid 1 of a sandbox is to orphans without asking.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let (image, turn) = (words.next(), Turn::new(None));
    Agent::new(Config { runtime, control, identity: None, directory, image, zygote: None, turn, passes_on: false })?
        .run()
}
