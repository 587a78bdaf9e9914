//! An agent outside of a sandbox, and a client of it.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::collections::BTreeMap;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg, socketpair,
};
use sandpool_sys::workload::{Workload, spawn};
use sandpool_wire::agent::{
    Activation, Answer, Call, Event, ExecKey, Execute, Finished, FromAgent, Outcome, Raised, Refusal, Rich, Runtime,
    Stdin, ToAgent, Work,
};
use sandpool_wire::frame;

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Agent {
    control: Option<OwnedFd>,
    pid: u32,
    pub(crate) directory: PathBuf,
}

impl Agent {
    /// Starts one, whose programs find `more` before everything else in PATH.
    pub(crate) fn start(runtime: Runtime, name: &str, more: Option<&Path>) -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        let path = std::env::var("PATH").unwrap();
        let path = more.map_or_else(|| path.clone(), |more| format!("{}:{path}", more.display()));
        let home = directory.to_str().unwrap();
        let env =
            BTreeMap::from([("PATH", path.as_str()), ("HOME", home), ("MPLCONFIGDIR", home), ("IPYTHONDIR", home)]);
        let image = serde_json::to_string(&BTreeMap::from([("env", env)])).unwrap();
        let (control, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let null = || OwnedFd::from(std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap());
        let stderr = OwnedFd::from(std::fs::File::create(directory.join(".agent.log")).unwrap());
        let program = env!("CARGO_BIN_EXE_unconfined-agent");
        let pid = spawn(Workload {
            file: None,
            argv: [program, runtime.word(), home, &image].iter().map(Into::into).collect(),
            env: Vec::new(),
            directory: "/".into(),
            identity: None,
            stdio: [null(), null(), stderr],
            pass: vec![(theirs, 3)],
            terminal: false,
        })
        .unwrap();
        Self { control: Some(control), pid, directory }
    }

    /// A new stream, with no message read.
    pub(crate) fn dial(&self) -> Client {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [theirs.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(self.control.as_ref().unwrap(), &[IoSlice::new(b"D")], &mut ancillary, SendFlags::empty()).unwrap();
        Client { stream: ours, buffer: Vec::new(), events: Vec::new(), requests: 0 }
    }

    /// Makes it another one, as the first program of a machine does that goes on from where one stood. Comes back when the interpreter has
    /// been renewed.
    pub(crate) fn renew(&self) {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        sandpool_sys::packet::send(self.control.as_ref().unwrap(), b"R", &[theirs.as_fd()]).unwrap();
        let mut pid = [0; 4];
        ours.read_exact(&mut pid).unwrap();
        assert!(i32::from_le_bytes(pid) > 0);
        ours.read_exact(&mut [0]).unwrap();
    }

    /// A stream that has seen the agent ready and a session take the sandbox.
    pub(crate) fn session(&self) -> Client {
        let mut client = self.dial();
        client.until_ready();
        let env = vec![("SESSION".to_owned(), "yes".to_owned())];
        assert_eq!(client.call(Call::Activate(Activation { env, seed: [7; 32] })), Ok(Answer::Done));
        client
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    /// Closes the control socket and waits for the agent's end.
    pub(crate) fn end(&mut self) {
        if self.control.take().is_some() {
            let pid = rustix::process::Pid::from_raw(self.pid.cast_signed());
            let (_, status) = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap().unwrap();
            assert_eq!(status.exit_status(), Some(0), "see {}", self.path(".agent.log"));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.end();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    buffer: Vec<u8>,
    events: Vec<(ExecKey, u64, Event)>,
    requests: u32,
}

/// What an execution brought.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) displays: Vec<Rich>,
    pub(crate) result: Option<Rich>,
    pub(crate) error: Option<Raised>,
    pub(crate) finished: Finished,
}

impl Run {
    pub(crate) fn outcome(&self) -> &Outcome {
        &self.finished.outcome
    }

    pub(crate) fn text(&self) -> &str {
        self.result.as_ref().map_or("", |rich| rich.text.as_str())
    }
}

impl Client {
    pub(crate) fn say(&mut self, message: &ToAgent) {
        self.stream.write_all(&frame::encode(message).unwrap()).unwrap();
    }

    /// The next message; `None` when the agent has closed the stream.
    pub(crate) fn hear(&mut self) -> Option<FromAgent> {
        loop {
            if let Some((message, used)) = frame::take(&self.buffer).unwrap() {
                self.buffer.drain(..used);
                return Some(message);
            }
            let mut piece = [0; 64 * 1024];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(count) => self.buffer.extend_from_slice(&piece[..count]),
                // A read with a time limit is broken off when the machine is stopped for a moment.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("no answer in time: {error}"),
            }
        }
    }

    pub(crate) fn until_ready(&mut self) {
        loop {
            match self.hear().unwrap() {
                FromAgent::Hello { .. } => {}
                FromAgent::Ready => return,
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn call(&mut self, call: Call) -> Result<Answer, Refusal> {
        self.requests += 1;
        let sent = self.requests;
        self.say(&ToAgent::Call { request: sent, call });
        loop {
            match self.hear().unwrap() {
                FromAgent::Reply { request, result } => {
                    assert_eq!(request, sent);
                    return result;
                }
                FromAgent::Event { exec, seq, event } => self.events.push((exec, seq, event)),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next event of `exec`.
    pub(crate) fn event(&mut self, exec: ExecKey) -> (u64, Event) {
        loop {
            if let Some(index) = self.events.iter().position(|(known, ..)| *known == exec) {
                let (_, seq, event) = self.events.remove(index);
                return (seq, event);
            }
            match self.hear().unwrap() {
                FromAgent::Event { exec, seq, event } => self.events.push((exec, seq, event)),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Starts `work`.
    pub(crate) fn start(&mut self, work: Work, timeout: Duration) -> ExecKey {
        let exec = new_key();
        assert_eq!(self.call(Call::Execute(execute(exec, work, timeout))), Ok(Answer::Done));
        exec
    }

    /// Reads until standard output so far is `text`.
    pub(crate) fn until_stdout(&mut self, exec: ExecKey, text: &str) {
        let mut stdout = Vec::new();
        while stdout != text.as_bytes() {
            match self.event(exec).1 {
                Event::Started => {}
                Event::Stdout(bytes) => stdout.extend(bytes),
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&stdout)),
            }
        }
    }

    /// Reads to the end of `exec`.
    pub(crate) fn finish(&mut self, exec: ExecKey) -> Run {
        let (mut stdout, mut stderr, mut displays, mut result, mut error) =
            (Vec::new(), Vec::new(), Vec::new(), None, None);
        let mut last = None;
        loop {
            let (seq, event) = self.event(exec);
            assert!(last.is_none_or(|last| seq == last + 1), "events have no gaps");
            last = Some(seq);
            match event {
                Event::Started => {}
                Event::Stdout(bytes) => stdout.extend(bytes),
                Event::Stderr(bytes) => stderr.extend(bytes),
                Event::Display(rich) => displays.push(rich),
                Event::Result(rich) => result = Some(rich),
                Event::Error(raised) => error = Some(raised),
                Event::Finished(finished) => {
                    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
                    return Run { stdout: text(stdout), stderr: text(stderr), displays, result, error, finished };
                }
            }
        }
    }

    pub(crate) fn run(&mut self, work: Work) -> Run {
        let exec = self.start(work, PATIENCE);
        self.finish(exec)
    }

    pub(crate) fn shell(&mut self, command: &str) -> Run {
        self.run(shell(command))
    }

    pub(crate) fn code(&mut self, code: &str) -> Run {
        self.run(self::code(code))
    }
}

pub(crate) fn execute(exec: ExecKey, work: Work, timeout: Duration) -> Execute {
    Execute { exec, work, timeout_ms: u64::try_from(timeout.as_millis()).unwrap(), output_limit: 1 << 20 }
}

pub(crate) fn shell(command: &str) -> Work {
    Work::Shell { command: command.to_owned(), stdin: Stdin::Empty }
}

pub(crate) fn code(code: &str) -> Work {
    Work::Code { code: code.to_owned(), fresh: false }
}

pub(crate) fn new_key() -> ExecKey {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let mut key = [0; 16];
    key[..4].copy_from_slice(&std::process::id().to_le_bytes());
    key[15] = NEXT.fetch_add(1, Ordering::SeqCst);
    key
}

/// Where Python with IPython is to be found: in a venv of the target directory, or in PATH.
pub(crate) fn python() -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("agent-venv/bin");
    let has = |program: &Path| {
        Command::new(program).args(["-c", "import IPython"]).output().is_ok_and(|output| output.status.success())
    };
    if has(&venv.join("python3")) {
        return Some(venv);
    }
    if has(Path::new("python3")) {
        return Some(PathBuf::from("/"));
    }
    eprintln!("SKIPPED: no python3 with IPython, neither in {} nor in PATH", venv.display());
    None
}

/// Whether there is a Node that is new enough.
pub(crate) fn has_node() -> bool {
    let version = Command::new("node").arg("--version").output().ok();
    let version = version.and_then(|output| String::from_utf8(output.stdout).ok());
    let major = version.as_deref().and_then(|text| text.strip_prefix('v')?.split('.').next()?.parse::<u32>().ok());
    let is_there = major.is_some_and(|major| major >= 20);
    if !is_there {
        eprintln!("SKIPPED: no node of version 20 or later in PATH (found: {version:?})");
    }
    is_there
}
