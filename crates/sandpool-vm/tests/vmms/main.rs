//! The drivers of VMMs that take orders over a socket, against fakes of those at the socket: see `fake`. This program is the fakes, too.
//!
//! Neither VMM runs here: what they take is what their makers' descriptions of their APIs say (`firecracker.txt`, `cloud-hypervisor.txt`).

mod fake;
mod schema;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{Pid, Signal, WaitOptions};
use sandpool_core::limits::Limits;
use sandpool_vm::machine::Machine;
use sandpool_vm::vmm::api::{Api, Failure};
use sandpool_vm::vmm::{
    self, Begin, INITRD, KERNEL, Kind, PLAIN_KERNEL, Parts, Patience, Place, Platform, Running, Vmm,
};
use sandpool_wire::agent::Runtime;
use serde_json::json;

const MEMORY: u64 = 96 << 20;

fn main() {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    let arguments: Vec<String> = arguments.collect();
    if arguments.first().is_some_and(|first| first.starts_with("--api-sock")) {
        fake::run(&program, &arguments);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        return;
    }
    type Test = (&'static str, fn(Kind));
    let tests: [Test; 6] = [
        ("fakes_take_nothing_else", fakes_take_nothing_else),
        ("machines_boot", machines_boot),
        ("machines_go_on_from_a_template", machines_go_on_from_a_template),
        ("machines_are_saved_and_wake", machines_are_saved_and_wake),
        ("what_is_no_template_is_refused", what_is_no_template_is_refused),
        ("what_does_wrong_is_told", what_does_wrong_is_told),
    ];
    for (name, test) in tests {
        for vmm in [Kind::Firecracker, Kind::CloudHypervisor] {
            test(vmm);
            println!("test {name} {} ... ok", vmm.word());
        }
    }
}

/// A host's directory with what machines are made of.
struct Host {
    site: tempfile::TempDir,
    kind: Kind,
    image: OwnedFd,
    number: std::cell::Cell<u32>,
}

/// One machine's sandbox.
struct Sandbox {
    vmm: Box<dyn Vmm>,
    work: PathBuf,
    disk: PathBuf,
}

impl Host {
    fn new(kind: Kind) -> Self {
        let site = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(site.path().join(name), bytes).unwrap();
        let mut packed = vec![0; 0x300];
        packed[0x202..0x206].copy_from_slice(b"HdrS");
        // Each finds the kernel that it can read, and not the other's.
        match kind {
            Kind::Firecracker => write(PLAIN_KERNEL, b"\x7fELF and so on"),
            Kind::Qemu | Kind::CloudHypervisor => write(KERNEL, &packed),
        }
        write(INITRD, b"070701");
        write("image", b"an image");
        let image = File::open(site.path().join("image")).unwrap().into();
        Self { site, kind, image, number: 0.into() }
    }

    /// Around a fake that does wrong in this way.
    fn sandbox(&self, wrong: &str, patience: Patience) -> Sandbox {
        self.number.set(self.number.get() + 1);
        let own = self.site.path().join(self.number.get().to_string());
        std::fs::create_dir(&own).unwrap();
        let name = if wrong.is_empty() { String::new() } else { format!("-{wrong}") };
        let program = own.join(format!("{}{name}", self.kind.program()));
        symlink(std::env::current_exe().unwrap(), &program).unwrap();
        let disk = own.join("disk");
        File::create_new(&disk).unwrap().set_len(1 << 20).unwrap();
        let place =
            Place { program, parts: self.site.path().to_owned(), work: own.join("work"), identity: None, patience };
        let platform = Platform { vmm: self.kind, is_emulated: false, tsc_khz: 0 };
        Sandbox { work: place.work.clone(), vmm: vmm::of(platform, place), disk }
    }

    fn parts<'a>(&'a self, sandbox: &'a Sandbox) -> Parts<'a> {
        let limits = Limits { memory: MEMORY, cpu_milli: 2500, ..Limits::default() };
        let machine = Machine { runtime: Runtime::Shell, limits, local_servers: true, leads_out: false, trusts: false };
        Parts { machine, image: &self.image, disk: &sandbox.disk }
    }

    fn begin(&self, how: &Begin<'_>) -> (Sandbox, Live) {
        let sandbox = self.sandbox("", Patience::default());
        let running = sandbox.vmm.begin(&self.parts(&sandbox), how);
        let running = running.unwrap_or_else(|error| panic!("{how:?}: {error}"));
        (sandbox, Live(running))
    }
}

/// A machine that runs, for as long as it is needed.
struct Live(Running);

impl Drop for Live {
    fn drop(&mut self) {
        end(self.0.pid);
    }
}

fn end(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    rustix::process::waitpid(Some(pid), WaitOptions::empty()).unwrap();
}

impl Live {
    /// Says a line to the machine, and hears another.
    fn say(&self, line: &str) -> String {
        let port = UnixStream::from(self.0.port.try_clone().unwrap());
        assert!(rustix::fs::fcntl_getfl(&port).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
        (&port).write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        let mut reader = BufReader::with_capacity(1, &port);
        loop {
            poll(&mut [PollFd::from_borrowed_fd(port.as_fd(), PollFlags::IN)], None).unwrap();
            match reader.read_line(&mut answer) {
                Ok(_) => return answer.trim_end().to_owned(),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
    }
}

/// A template's file, as a launcher makes it.
fn empty_file() -> OwnedFd {
    rustix::fs::memfd_create("template", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap()
}

/// What a fake refuses its driver must not say, or this file would prove nothing.
fn fakes_take_nothing_else(kind: Kind) {
    let host = Host::new(kind);
    let sandbox = host.sandbox("", Patience::default());
    let socket = sandbox.disk.with_file_name("api");
    let program = sandbox.disk.with_file_name(kind.program());
    let mut command = Command::new(program);
    match kind {
        Kind::Firecracker => {
            command.args(["--api-sock".as_ref(), socket.as_os_str()]).args(["--id", "x", "--level", "x"])
        }
        _ => command.arg("--api-socket").arg(format!("path={}", socket.display())).args(["--seccomp", "true"]),
    };
    let mut child = command.spawn().unwrap();
    let limit = Duration::from_secs(10);
    let api = Api::wait(socket, child.id(), limit).unwrap();
    let wrong = match kind {
        Kind::Firecracker => vec![
            ("PUT", "/boot", json!({}), 404, "there is no PUT /boot"),
            ("POST", "/vsock", json!({}), 404, "there is no POST"),
            ("PUT", "/vsock", json!({"guest_cid": 3}), 400, "missing field `uds_path`"),
            ("PUT", "/vsock", json!({"guest_cid": 2, "uds_path": "x"}), 400, "`guest_cid` is no integer"),
            ("PUT", "/vsock", json!({"guest_cid": 3, "uds_path": 7}), 400, "`uds_path` is no string"),
            ("PUT", "/vsock", json!({"guest_cid": 3, "uds_path": "x", "port": 1}), 400, "unknown field `port`"),
            ("PUT", "/machine-config", json!({"vcpu_count": 33, "mem_size_mib": 1}), 400, "1..32"),
            ("PUT", "/snapshot/create", json!({"mem_file_path": "x", "snapshot_path": "x"}), 400, "while it is Before"),
            ("PATCH", "/vm", json!({"state": "Paused"}), 400, "while it is Before"),
            (
                "PUT",
                "/snapshot/load",
                json!({"snapshot_path": "x", "mem_backend": {"backend_type": "File"}}),
                400,
                "backend_path",
            ),
            ("PUT", "/actions", json!({"action_type": "InstanceStart"}), 400, "no boot source"),
        ],
        _ => vec![
            ("PUT", "/api/v1/vm.start", json!({}), 404, "there is no PUT"),
            ("PUT", "/api/v1/vm.create", json!({}), 400, "missing field `payload`"),
            (
                "PUT",
                "/api/v1/vm.create",
                json!({"payload": {}, "cpus": {"boot_vcpus": 1}}),
                400,
                "missing field `cpus.max_vcpus`",
            ),
            (
                "PUT",
                "/api/v1/vm.create",
                json!({"payload": {}, "memory": {"size": 0, "zones": [{"id": "x"}]}}),
                400,
                "missing field `memory.zones.size`",
            ),
            (
                "PUT",
                "/api/v1/vm.create",
                json!({"payload": {}, "disks": [{"path": "x", "readOnly": true}]}),
                400,
                "unknown field `readOnly`",
            ),
            (
                "PUT",
                "/api/v1/vm.create",
                json!({"payload": {}, "serial": {"mode": "off"}}),
                400,
                "`serial.mode` is no string",
            ),
            ("PUT", "/api/v1/vm.snapshot", json!({"destination_url": "file:///x"}), 405, "while it is Before"),
        ],
    };
    for (method, path, body, status, why) in wrong {
        let error = api.ask(method, path, Some(&body), limit).expect_err(why);
        let refused = failure(&error);
        assert!(
            matches!(refused, Failure::Refused { status: said, why: words, .. } if *said == status && words.contains(why)),
            "{refused}, and not {status} {why}"
        );
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

fn machines_boot(kind: Kind) {
    let host = Host::new(kind);
    let (sandbox, live) = host.begin(&Begin::Boot);
    assert_eq!(live.say("get"), "");
    assert_eq!(live.say("set here"), "done");
    assert_eq!(live.say("get"), "here");
    // Nobody else of its user can reach its sockets.
    assert_eq!(std::fs::metadata(&sandbox.work).unwrap().mode() & 0o777, 0o700);
}

fn machines_go_on_from_a_template(kind: Kind) {
    let host = Host::new(kind);
    let file = empty_file();
    let (sandbox, mut maker) = host.begin(&Begin::Template(&file));
    maker.say("set shared");
    sandbox.vmm.snapshot(&host.parts(&sandbox), &mut maker.0, &file).unwrap();
    drop(maker);
    // Others write to its end, and then nobody writes to it any more.
    let whole = File::from(file.try_clone().unwrap());
    whole.write_all_at(b"a disk", whole.metadata().unwrap().len()).unwrap();
    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)
        .unwrap();
    // What has nothing in it takes up no room, though the VMM wrote it.
    assert!(whole.metadata().unwrap().blocks() * 512 < MEMORY / 10, "{:?}", whole.metadata());
    let clones = ["one", "other"].map(|word| {
        let (sandbox, live) = host.begin(&Begin::Restore(&file));
        assert_eq!(live.say("get"), "shared");
        assert_eq!(live.say(&format!("set {word}")), "done");
        (sandbox, live, word)
    });
    for (sandbox, live, word) in &clones {
        assert_eq!(live.say("get"), *word);
        // Nothing that is in memory anyway is left.
        let left: Vec<_> = std::fs::read_dir(&sandbox.work).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == "api" || name == "port"), "{left:?}");
    }
}

fn machines_are_saved_and_wake(kind: Kind) {
    let host = Host::new(kind);
    let template = empty_file();
    let (sandbox, mut maker) = host.begin(&Begin::Template(&template));
    sandbox.vmm.snapshot(&host.parts(&sandbox), &mut maker.0, &template).unwrap();
    drop(maker);
    for how in [Begin::Boot, Begin::Restore(&template)] {
        let (sandbox, mut live) = host.begin(&how);
        live.say("set asleep");
        let file = empty_file();
        for turn in ["asleep", "again"] {
            rustix::fs::ftruncate(&file, 0).unwrap();
            rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).unwrap();
            sandbox.vmm.save(&host.parts(&sandbox), &mut live.0, &file).unwrap();
            // It goes on, on its old port or a new one ...
            let is_new = sandbox.vmm.go_on(&host.parts(&sandbox), &mut live.0).unwrap();
            assert_eq!(is_new, kind == Kind::Firecracker);
            assert_eq!(live.say("get"), turn);
            live.say("set again");
        }
        // ... and so does whoever wakes, who stands still before that.
        for _ in 0..2 {
            rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).unwrap();
            let (sandbox, mut woken) = host.begin(&Begin::Wake(&file));
            assert!(sandbox.vmm.go_on(&host.parts(&sandbox), &mut woken.0).unwrap());
            assert_eq!(woken.say("get"), "again");
            woken.say("set woken");
            // One that woke can be saved as well.
            let again = empty_file();
            sandbox.vmm.save(&host.parts(&sandbox), &mut woken.0, &again).unwrap();
            rustix::fs::seek(&again, rustix::fs::SeekFrom::Start(0)).unwrap();
            let (sandbox, mut third) = host.begin(&Begin::Wake(&again));
            sandbox.vmm.go_on(&host.parts(&sandbox), &mut third.0).unwrap();
            assert_eq!(third.say("get"), "woken");
        }
        // What is not whole does not wake.
        let whole = File::from(file.try_clone().unwrap());
        whole.set_len(whole.metadata().unwrap().len() - 1).unwrap();
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).unwrap();
        let sandbox = host.sandbox("", Patience::default());
        let error = sandbox.vmm.begin(&host.parts(&sandbox), &Begin::Wake(&file)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{error}");
        // Who has stopped taking it is told of, and the machine goes on.
        let (closed, to) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        drop(closed);
        let (sandbox, mut live) = host.begin(&how);
        live.say("set still");
        let error = sandbox.vmm.save(&host.parts(&sandbox), &mut live.0, &to).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "{error}");
        sandbox.vmm.go_on(&host.parts(&sandbox), &mut live.0).unwrap();
        assert_eq!(live.say("get"), "still");
    }
}

fn what_is_no_template_is_refused(kind: Kind) {
    let host = Host::new(kind);
    let file = empty_file();
    for length in [0, MEMORY, 2 * MEMORY] {
        rustix::fs::ftruncate(&file, length).unwrap();
        let sandbox = host.sandbox("", Patience::default());
        let error = sandbox.vmm.begin(&host.parts(&sandbox), &Begin::Restore(&file)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{length}: {error}");
    }
}

fn failure(error: &std::io::Error) -> &Failure {
    let inside = error.get_ref().and_then(|inside| inside.downcast_ref::<Failure>());
    inside.unwrap_or_else(|| panic!("it has no type: {error}"))
}

/// Whatever a VMM does: its driver says what, and is back soon.
fn what_does_wrong_is_told(kind: Kind) {
    let host = Host::new(kind);
    let [short, long] = [400, 60_000].map(Duration::from_millis);
    let patient = Patience { start: long, answer: long, writing: long, port: long };
    let hasty = Patience { answer: short, ..patient };
    for (wrong, patience, expected) in [
        ("dies-early", patient, "its start: the VMM has ended"),
        ("never-listens", Patience { start: short, ..patient }, "its start: no whole answer in 400ms"),
        ("refuses", patient, "it refuses (HTTP 400): "),
        ("silent", hasty, "no whole answer in 400ms"),
        ("half", hasty, "no whole answer in 400ms"),
        ("hangs-up", patient, "the VMM has closed its socket"),
        ("garbled", patient, "what it answers is no HTTP"),
        ("long-body", patient, "its body may have 65536 bytes"),
        ("in-pieces", patient, "its body comes in pieces"),
        ("endless-head", patient, "no HTTP"),
        ("endless-body", patient, "more follows its end"),
        ("dies-later", patient, "the VMM has"),
        ("deaf", Patience { port: short, ..patient }, "its port: no whole answer in 400ms"),
    ] {
        let sandbox = host.sandbox(wrong, patience);
        let error = sandbox.vmm.begin(&host.parts(&sandbox), &Begin::Boot).map(|_| ()).expect_err(wrong);
        let said = failure(&error).to_string();
        assert!(said.contains(expected), "{wrong}: {said}, and not {expected}");
        // It may be printed where people read.
        assert!(!said.contains('\u{1b}'), "{said:?}");
    }
    for wrong in ["rude", "long-line"] {
        let sandbox = host.sandbox(wrong, patient);
        let error = sandbox.vmm.begin(&host.parts(&sandbox), &Begin::Boot).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
        assert!(error.to_string().contains("its port"), "{error}");
    }
    // A keeper ends with its VMM; here nobody else does.
    let children = std::fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap();
    for pid in children.split_whitespace() {
        end(pid.parse().unwrap());
    }
}
