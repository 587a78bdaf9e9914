//! `sandpool down`: stops the server of a state directory.

use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::json;

use super::Outcome;
use crate::args::Down;
use crate::client::Context;
use crate::failure::Failure;
use crate::home::{Home, Process, wait_until};
use crate::print;

pub(crate) fn run(context: &Context, down: &Down) -> Outcome {
    let home = &context.home;
    let Some(launcher) = home.server().map(|record| record.launcher) else {
        // Nothing to do is what was wanted: `down` twice is fine.
        if context.json {
            print::json(&json!({ "stopped": false }))?;
        } else {
            print::note(&format!("no server runs on {}", home.path().display()));
        }
        return Ok(0);
    };
    signal(launcher, Signal::TERM, home)?;
    if !wait_until(Duration::from_secs(down.timeout), || launcher.is_gone()) {
        print::note(&format!("sandpool: not ended within {} s, killing it", down.timeout));
        // The kernel ends every sandbox with the launcher.
        signal(launcher, Signal::KILL, home)?;
        if !wait_until(Duration::from_secs(10), || launcher.is_gone()) {
            return Err(Failure::new(format!("process {} does not end", launcher.pid)));
        }
    }
    if context.json {
        print::json(&json!({ "stopped": true, "pid": launcher.pid }))?;
    } else {
        print::out("stopped\n")?;
    }
    Ok(0)
}

/// Signals exactly the process of the record: a pidfd names one process, and the start time is compared after it was
/// opened, so that a pid that was used again is never hit.
fn signal(launcher: Process, signal: Signal, home: &Home) -> Result<(), Failure> {
    let failure = |error: rustix::io::Errno| {
        let failure = Failure::new(format!("cannot stop process {}", launcher.pid)).because(error);
        if error == rustix::io::Errno::PERM {
            failure.advise(format!("sudo sandpool down{}", home.flag()))
        } else {
            failure
        }
    };
    let pid = Pid::from_raw(launcher.pid).ok_or_else(|| failure(rustix::io::Errno::SRCH))?;
    let process = match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other.map_err(failure)?,
    };
    if launcher.is_gone() {
        return Ok(());
    }
    match rustix::process::pidfd_send_signal(process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(failure(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::{ServerRecord, start_time, write_atomically};

    #[test]
    fn the_recorded_process_is_stopped_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::find(Some(directory.path())).unwrap();
        let context = Context { home: home.clone(), server: None, json: true };
        std::fs::create_dir(home.run()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let write = |launcher| {
            let record =
                ServerRecord { endpoint: "http://x".into(), https_endpoint: None, launcher, version: "1".into() };
            let text = serde_json::to_string(&record).unwrap();
            write_atomically(&home.server_record_path(), &text, 0o644, None).unwrap();
        };

        write(Process { pid, start_time: 1 });
        assert_eq!(run(&context, &Down { timeout: 1 }).unwrap(), 0);
        assert!(child.try_wait().unwrap().is_none(), "another process with that pid lives on");

        write(Process { pid, start_time: start_time(pid).unwrap() });
        assert_eq!(run(&context, &Down { timeout: 30 }).unwrap(), 0);
        assert!(!child.wait().unwrap().success());
        assert_eq!(run(&context, &Down { timeout: 1 }).unwrap(), 0, "twice is fine");
    }
}
