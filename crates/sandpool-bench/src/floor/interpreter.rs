//! Bare interpreters: the images' own Python and Node, with a loop of a few lines on a socket.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use super::launch::ended;

/// Nothing of the image store is written to: the image is read-only, and what Python wants to keep goes to a tmpfs.
const ENTER: &str = r#"set -e
mount --bind "$0" "$0"
mount -o remount,bind,ro "$0"
mount -t tmpfs none "$0/tmp"
mount -t proc none "$0/proc"
mount --rbind /dev "$0/dev"
exec chroot "$0" /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/tmp LANG=C.UTF-8 MPLCONFIGDIR=/tmp \
    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 "$@""#;

fn start(rootfs: &Path, words: &[&str]) -> Result<(Child, UnixStream)> {
    let (here, there) = std::os::unix::net::UnixStream::pair()?;
    here.set_nonblocking(true)?;
    let child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--", "sh", "-c", ENTER])
        .arg(rootfs)
        .args(words)
        .stdin(Stdio::from(OwnedFd::from(there)))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("unshare, of the package util-linux, does not start")?;
    Ok((child, UnixStream::from_std(here)?))
}

/// A Python with its libraries imported, which forks.
pub(super) struct Python {
    /// Ends with us.
    _process: Child,
    socket: Mutex<UnixStream>,
}

impl Python {
    /// Starts it and waits for its imports.
    pub(super) async fn start(rootfs: &Path) -> Result<Self> {
        let (process, mut socket) = start(rootfs, &["python3", "-I", "-c", include_str!("interpreter.py")])?;
        let mut ready = [0; 6];
        socket.read_exact(&mut ready).await.context("the floor's Python does not start; what it said is above")?;
        ensure!(&ready == b"ready\n", "the floor's Python says {ready:?}");
        Ok(Self { _process: process, socket: Mutex::new(socket) })
    }

    /// A copy of it that waits for code.
    pub(super) async fn fork(&self) -> Result<Interpreter> {
        let (here, there) = std::os::unix::net::UnixStream::pair()?;
        here.set_nonblocking(true)?;
        let mut socket = self.socket.lock().await;
        socket.writable().await?;
        socket.try_io(Interest::WRITABLE, || {
            let fds = [there.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            Ok(rustix::net::sendmsg(&*socket, &[IoSlice::new(b"f")], &mut ancillary, SendFlags::NOSIGNAL)?)
        })?;
        let mut pid = [0; 4];
        socket.read_exact(&mut pid).await?;
        let pid = Pid::from_raw(i32::from_le_bytes(pid)).context("the floor's Python cannot fork")?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Interpreter { stream: BufReader::new(UnixStream::from_std(here)?), life: Life::Forked { pid, pidfd } })
    }
}

/// One interpreter that runs what it is sent.
pub(super) struct Interpreter {
    stream: BufReader<UnixStream>,
    life: Life,
}

enum Life {
    /// Its parent lets the kernel reap it.
    Forked {
        pid: Pid,
        pidfd: OwnedFd,
    },
    Started(Child),
}

impl Interpreter {
    /// Starts a Node.
    pub(super) fn node(rootfs: &Path) -> Result<Self> {
        let (child, stream) = start(rootfs, &["node", "-e", include_str!("interpreter.js")])?;
        Ok(Self { stream: BufReader::new(stream), life: Life::Started(child) })
    }

    pub(super) fn pid(&self) -> Option<i32> {
        match &self.life {
            Life::Forked { pid, .. } => Some(pid.as_raw_nonzero().get()),
            Life::Started(child) => child.id().and_then(|pid| i32::try_from(pid).ok()),
        }
    }

    /// Sends one line and answers with the line that comes back.
    pub(super) async fn run(&mut self, line: &[u8]) -> Result<Vec<u8>> {
        self.stream.get_mut().write_all(line).await?;
        let mut answer = Vec::new();
        self.stream.read_until(b'\n', &mut answer).await?;
        if answer.last() != Some(&b'\n') {
            bail!("a bare interpreter ended");
        }
        Ok(answer)
    }

    /// Kills it and waits until it is gone.
    pub(super) async fn kill(self) -> Result<()> {
        match self.life {
            Life::Forked { pidfd, .. } => {
                rustix::process::pidfd_send_signal(&pidfd, Signal::KILL)?;
                ended(&pidfd).await
            }
            Life::Started(mut child) => Ok(child.kill().await?),
        }
    }
}
