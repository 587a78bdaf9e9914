//! The least that makes an isolated place: namespaces, ids, two mounts, and a program in it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use sandpool_sys::sandbox::{self, Cloned};
use tokio::net::unix::pipe::Receiver;

/// A process in namespaces of its own.
#[derive(Debug)]
pub(super) struct Place {
    pidfd: OwnedFd,
}

impl Place {
    /// Makes one. Returns when its program runs. The calling process has one thread.
    pub(super) fn launch() -> Result<Self> {
        let (wait, go) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (ready, running) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        match sandbox::clone_into_namespaces(None).context("no namespaces")? {
            Cloned::Child => {
                drop((go, ready));
                let error = enter(&wait);
                // Only an error comes back. It is told through the pipe that a program would have closed.
                let _ = rustix::io::write(&running, error.to_string().as_bytes());
                sandbox::exit_now(1);
            }
            Cloned::Parent { pid, pidfd } => {
                let place = Self { pidfd };
                drop((wait, running));
                map_ids(pid)?;
                rustix::io::write(&go, b"g")?;
                let mut words = [0; 256];
                let count = rustix::io::read(&ready, &mut words)?;
                anyhow::ensure!(count == 0, "a bare place: {}", String::from_utf8_lossy(&words[..count]));
                Ok(place)
            }
        }
    }

    /// Ends it, and waits until nothing of it is left.
    pub(super) async fn destroy(self) -> Result<()> {
        rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL)?;
        ended(&self.pidfd).await?;
        rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)?;
        Ok(())
    }
}

/// Waits until the process of a pidfd has ended.
pub(super) async fn ended(pidfd: impl AsFd) -> Result<()> {
    // It is no pipe, but what is wanted of it is the same: to be told when it is readable.
    Ok(Receiver::from_owned_fd_unchecked(pidfd.as_fd().try_clone_to_owned()?)?.readable().await?)
}

fn map_ids(pid: Pid) -> io::Result<()> {
    let directory = format!("/proc/{}", pid.as_raw_nonzero());
    std::fs::write(format!("{directory}/uid_map"), "0 0 1\n")?;
    std::fs::write(format!("{directory}/gid_map"), "0 0 1\n")
}

/// In the new process. Comes back only with an error.
fn enter(wait: &OwnedFd) -> io::Error {
    let mounts = || -> io::Result<()> {
        rustix::io::read(wait, &mut [0; 1])?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        let quiet = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("none", "/tmp", "tmpfs", quiet, Some(c"size=1m"))?;
        rustix::mount::mount("none", "/proc", "proc", quiet | MountFlags::NOEXEC, None)?;
        Ok(())
    };
    match mounts() {
        Ok(()) => Command::new("/bin/sleep").arg("infinity").env_clear().exec(),
        Err(error) => error,
    }
}
