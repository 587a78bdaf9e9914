//! What stands around an OCI runtime: pid 1 of the namespaces that the launcher has made for a sandbox. It starts the runtime, which starts
//! the sandbox's container in namespaces of its own, and ends when that does; and with it ends whatever is left.
//!
//! ```text
//! launcher --(clone, exec)--> shim (pid 1 there) --(fork, exec)--> OCI runtime --> container: the agent (pid 1 of its own)
//! ```
//!
//! What the runtime prints goes where standard error leads: to the launcher, as the reason of a start that failed. Nothing of it is read
//! here, and nothing of the sandbox ever: this process waits.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::process::{Command, ExitCode, Stdio};

use rustix::process::{Pid, WaitOptions, WaitStatus};
use sandpool_sys::workload;

/// Where the runtime writes the process id of the container's first process, which is then a child of this one.
pub const PID_FILE: &str = "/run/pid";

/// The longest process id in such a file.
const MAX_PID_FILE: u64 = 16;

/// Starts the runtime with these words, its program first, and waits for the end of what it has started.
#[must_use]
pub fn run(words: impl Iterator<Item = OsString>) -> ExitCode {
    match start(words).and_then(|first| wait(first).map_err(|error| format!("waiting: {error}"))) {
        Ok(code) => ExitCode::from(code),
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the container, and answers its first process.
fn start(mut words: impl Iterator<Item = OsString>) -> Result<Pid, String> {
    let program = words.next().ok_or("no runtime is named")?;
    let name = program.to_string_lossy().into_owned();
    let mut command = Command::new(&program);
    command.args(words).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    let status = command.status().map_err(|error| format!("{name}: {error}"))?;
    if !status.success() {
        return Err(format!("{name} made no container ({status})"));
    }
    let mut text = String::new();
    let read = std::fs::File::open(PID_FILE)
        .and_then(|file| std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_PID_FILE), &mut text));
    read.map_err(|error| format!("{name} did not say which process it has started: {error}"))?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| format!("{name} did not say which process it has started"))?;
    // From now on nobody here has anything to say, or holds anything of the sandbox's.
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(|error| error.to_string())?;
    for dup in [rustix::stdio::dup2_stdin, rustix::stdio::dup2_stdout, rustix::stdio::dup2_stderr] {
        dup(&null).map_err(|error| error.to_string())?;
    }
    drop(null);
    workload::close_from(3).map_err(|error| error.to_string())?;
    Ok(pid)
}

/// Reaps whatever ends until this one does: its exit code, as a shell would give it.
fn wait(first: Pid) -> rustix::io::Result<u8> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == first => return Ok(code(status)),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn code(status: WaitStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}
