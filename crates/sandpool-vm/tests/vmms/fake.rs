//! VMMs that are none: each listens at its API socket as the real one does, takes what that takes and nothing else, has its states, and
//! writes and reads the files that it would. The machine in it is its memory, and answers on its port what is in that:
//!
//! ```text
//! set <word>   write the word to the memory: "done"        get   what is there: the word
//! ```
//!
//! By the name that it is started as it does wrong in one way, which its name ends with.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::schema::{Request, check, read};

/// Where in a machine's memory its word is.
const WORD: u64 = 5 << 20;
const LONGEST: usize = 32;

/// How often the first program inside is not there yet.
const YOUNG: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Before,
    Created,
    Running,
    Paused,
}

struct Fake {
    /// In which way it does wrong.
    wrong: String,
    requests: Vec<Request>,
    is_firecracker: bool,
    state: State,
    /// What was said of the machine: by Firecracker's paths, or Cloud Hypervisor's configuration.
    said: Value,
    memory: Option<File>,
    /// Memory that is shared with a file of a name is not written apart.
    is_shared: bool,
    /// Where its port is, and the connections there.
    port: Option<PathBuf>,
    connections: Vec<UnixStream>,
    young: u32,
    /// What would be the root of its sandbox: paths in that of another one mean the same ones here.
    root: PathBuf,
}

/// Runs as the VMM that it was started as.
pub(crate) fn run(program: &str, arguments: &[String]) -> ! {
    let name = Path::new(program).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_firecracker = name.starts_with("firecracker");
    let wrong = name.trim_start_matches("firecracker").trim_start_matches("cloud-hypervisor");
    let wrong = wrong.trim_start_matches('-').to_owned();
    let socket = match arguments {
        [option, socket, id, _, level, _]
            if is_firecracker && option == "--api-sock" && id == "--id" && level == "--level" =>
        {
            socket.clone()
        }
        [option, path, filter, on]
            if !is_firecracker && option == "--api-socket" && filter == "--seccomp" && on == "true" =>
        {
            path.strip_prefix("path=").expect("a path").to_owned()
        }
        _ => fail(&format!("it was started with {arguments:?}")),
    };
    match wrong.as_str() {
        "dies-early" => fail("there is nothing to run on"),
        "never-listens" => loop {
            std::thread::park();
        },
        _ => {}
    }
    let table = if is_firecracker { include_str!("firecracker.txt") } else { include_str!("cloud-hypervisor.txt") };
    let fake = Fake {
        wrong,
        requests: read(table),
        is_firecracker,
        state: State::Before,
        said: json!({}),
        memory: None,
        is_shared: false,
        port: None,
        connections: Vec::new(),
        young: YOUNG,
        root: Path::new(&socket).ancestors().nth(2).expect("it is in its sandbox").to_owned(),
    };
    let fake = Arc::new(Mutex::new(fake));
    let listener = UnixListener::bind(&socket).unwrap_or_else(|error| fail(&format!("{socket}: {error}")));
    for stream in listener.incoming().flatten() {
        serve(&fake, &stream);
    }
    exit(0)
}

fn fail(why: &str) -> ! {
    eprintln!("fake VMM: {why}");
    exit(9)
}

/// One connection to the API.
fn serve(fake: &Arc<Mutex<Fake>>, stream: &UnixStream) {
    let mut stream = stream;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let [method, path, "HTTP/1.1"] = words.as_slice() else { fail(&format!("it was asked {line:?}")) };
    let (mut length, mut host) = (0, false);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap_or(0);
        let Some((name, value)) = header.trim().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().expect("a length"),
            "host" => host = true,
            _ => {}
        }
    }
    assert!(host, "HTTP/1.1 wants a host");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a whole body");
    let body = (length > 0).then(|| serde_json::from_slice(&body).expect("JSON"));
    let mut fake_now = fake.lock().expect("nobody has failed");
    let answered = fake_now.answer(method, path, body.as_ref());
    let (status, said) = match answered {
        Ok(None) => (204, String::new()),
        Ok(Some(value)) => (200, value.to_string()),
        Err((status, why)) if fake_now.is_firecracker => (status, json!({"fault_message": why}).to_string()),
        Err((status, why)) => (status, json!(["Error from API", why]).to_string()),
    };
    let misbehaves = fake_now.misbehave(stream);
    let begins = fake_now.port.take();
    drop(fake_now);
    if let Some(port) = begins {
        listen(fake, &port);
    }
    if !misbehaves {
        let length = if status == 204 { String::new() } else { format!("Content-Length: {}\r\n", said.len()) };
        // As micro_http does: no reason behind the status.
        let head = format!("HTTP/1.1 {status} \r\nServer: fake\r\nConnection: keep-alive\r\n{length}\r\n");
        let _ = stream.write_all(format!("{head}{said}").as_bytes());
        // It is the client that closes.
        let _ = stream.read(&mut [0]);
    }
}

impl Fake {
    /// Whether it has answered in its own way.
    fn misbehave(&self, mut stream: &UnixStream) -> bool {
        let mut say = |text: &str| {
            let _ = stream.write_all(text.as_bytes());
        };
        match self.wrong.as_str() {
            "silent" => {
                let _ = stream.read(&mut [0]);
            }
            "hangs-up" => {}
            "garbled" => say("SSH-2.0-OpenSSH_9.2p1\r\n"),
            "half" => {
                say("HTTP/1.1 200 \r\nContent-Length: 10\r\n\r\n{");
                let _ = stream.read(&mut [0]);
            }
            "long-body" => say("HTTP/1.1 200 \r\nContent-Length: 99999999\r\n\r\n{"),
            "in-pieces" => say("HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n"),
            "endless-head" => {
                say("HTTP/1.1 200 \r\n");
                while stream.write_all(b"X-More: and more\r\n").is_ok() {}
            }
            "endless-body" => {
                say("HTTP/1.1 200 \r\nContent-Length: 65000\r\n\r\n");
                while stream.write_all(&[b' '; 4096]).is_ok() {}
            }
            "dies-later" if self.state == State::Running => fail("the guest could not be started"),
            _ => return false,
        }
        true
    }

    fn answer(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Option<Value>, (u16, String)> {
        if self.wrong == "refuses" {
            return Err((400, "it is \u{1b}[31mnot to be".to_owned()));
        }
        let request = check(&self.requests, (method, path), body)?;
        let allowed = match request.when {
            "any" => true,
            "before" => self.state == State::Before,
            "created" => self.state == State::Created,
            "running" => self.state == State::Running,
            "paused" => self.state == State::Paused,
            "after" => matches!(self.state, State::Running | State::Paused),
            when => fail(&format!("when is {when}?")),
        };
        if !allowed {
            let status = if self.is_firecracker { 400 } else { 405 };
            return Err((status, format!("not supported while it is {:?}", self.state)));
        }
        let bad = |error: io::Error| (400, error.to_string());
        if self.is_firecracker {
            self.firecracker(path, body.unwrap_or(&Value::Null)).map_err(bad)?;
        } else {
            self.cloud_hypervisor(path, body.unwrap_or(&Value::Null)).map_err(bad)?;
        }
        Ok(None)
    }

    fn firecracker(&mut self, path: &str, body: &Value) -> io::Result<()> {
        match path {
            "/actions" if body["action_type"] == "InstanceStart" => {
                if self.state != State::Before {
                    return Err(io::Error::other("it has started"));
                }
                let boot = self.said.get("/boot-source").ok_or_else(|| io::Error::other("there is no boot source"))?;
                let kernel = fs::read(text(&boot["kernel_image_path"]))?;
                if !kernel.starts_with(b"\x7fELF") {
                    return Err(io::Error::other("the kernel is no ELF file"));
                }
                File::open(text(&boot["initrd_path"]))?;
                for drive in ["/drives/image", "/drives/disk"] {
                    let drive = self.said.get(drive).ok_or_else(|| io::Error::other("there is no such drive"))?;
                    self.open_disk(&drive["path_on_host"], &drive["is_read_only"])?;
                }
                let processors = self.said["/machine-config"]["vcpu_count"].as_u64().unwrap_or(1);
                if processors != 1 && !processors.is_multiple_of(2) {
                    return Err(io::Error::other("the processors are neither one nor even"));
                }
                let size = self.said["/machine-config"]["mem_size_mib"].as_u64().unwrap_or(128) << 20;
                self.memory = Some(anonymous(size)?);
                self.starts(self.own(text(&self.said["/vsock"]["uds_path"])));
            }
            "/vm" => match (text(&body["state"]), self.state) {
                ("Paused", State::Running) => self.state = State::Paused,
                ("Resumed", State::Paused) => self.state = State::Running,
                (wanted, state) => return Err(io::Error::other(format!("{wanted} while it is {state:?}"))),
            },
            "/snapshot/create" => {
                let state = json!({"said": self.said}).to_string();
                fs::write(text(&body["snapshot_path"]), state)?;
                let memory = self.memory.as_ref().expect("a machine has memory");
                let file =
                    File::options().write(true).create(true).truncate(false).open(text(&body["mem_file_path"]))?;
                let mut all = vec![0; usize::try_from(memory.metadata()?.len()).expect("it fits")];
                memory.read_exact_at(&mut all, 0)?;
                if file.metadata()?.len() != all.len() as u64 {
                    file.set_len(0)?;
                    file.set_len(all.len() as u64)?;
                }
                // All of it, also where nothing is.
                file.write_all_at(&all, 0)?;
                file.sync_all()?;
                // The guest's driver hears of it, and closes what is open.
                for connection in self.connections.drain(..) {
                    let _ = connection.shutdown(std::net::Shutdown::Both);
                }
            }
            "/snapshot/load" => {
                if !self.said.as_object().is_some_and(serde_json::Map::is_empty) {
                    return Err(io::Error::other("something was said of the machine before"));
                }
                let state: Value = serde_json::from_slice(&fs::read(text(&body["snapshot_path"]))?)?;
                self.said = state["said"].clone();
                let size = self.said["/machine-config"]["mem_size_mib"].as_u64().unwrap_or(128) << 20;
                self.memory = Some(private(&text(&body["mem_backend"]["backend_path"]).into(), size)?);
                for drive in ["/drives/image", "/drives/disk"] {
                    self.open_disk(&self.said[drive]["path_on_host"], &self.said[drive]["is_read_only"])?;
                }
                self.starts(self.own(text(&self.said["/vsock"]["uds_path"])));
                if body["resume_vm"] != true {
                    self.state = State::Paused;
                }
            }
            path => self.said[path] = body.clone(),
        }
        Ok(())
    }

    fn cloud_hypervisor(&mut self, path: &str, body: &Value) -> io::Result<()> {
        match path {
            "/api/v1/vm.create" => {
                (self.said, self.state) = (body.clone(), State::Created);
            }
            "/api/v1/vm.boot" => {
                let kernel = fs::read(text(&self.said["payload"]["kernel"]))?;
                if kernel.get(0x202..0x206) != Some(b"HdrS") {
                    return Err(io::Error::other("the kernel is no bzImage"));
                }
                File::open(text(&self.said["payload"]["initramfs"]))?;
                self.builds(None)?;
                self.starts(self.own(text(&self.said["vsock"]["socket"])));
            }
            "/api/v1/vm.pause" => self.state = State::Paused,
            "/api/v1/vm.resume" => self.state = State::Running,
            "/api/v1/vm.snapshot" => {
                let directory =
                    PathBuf::from(text(&body["destination_url"]).strip_prefix("file://").expect("a file's"));
                let memory = self.memory.as_ref().expect("a machine has memory");
                if !self.is_shared {
                    let ranges = File::create_new(directory.join("memory-ranges"))?;
                    let mut all = vec![0; usize::try_from(memory.metadata()?.len()).expect("it fits")];
                    memory.read_exact_at(&mut all, 0)?;
                    (&ranges).write_all(&all)?;
                }
                fs::write(directory.join("config.json"), self.said.to_string())?;
                fs::write(directory.join("state.json"), json!({"ranges": !self.is_shared}).to_string())?;
            }
            "/api/v1/vm.restore" => {
                let directory = PathBuf::from(text(&body["source_url"]).strip_prefix("file://").expect("a file's"));
                let read =
                    |name: &str| -> io::Result<Value> { Ok(serde_json::from_slice(&fs::read(directory.join(name))?)?) };
                self.said = read("config.json")?;
                let ranges = (read("state.json")?["ranges"] == true).then(|| directory.join("memory-ranges"));
                self.builds(ranges.as_deref())?;
                self.starts(self.own(text(&self.said["vsock"]["socket"])));
                self.state = State::Paused;
            }
            path => fail(&format!("nobody knows {path}")),
        }
        Ok(())
    }

    /// Cloud Hypervisor's memory and disks, by its configuration; what was written apart is read again.
    fn builds(&mut self, ranges: Option<&Path>) -> io::Result<()> {
        let memory = &self.said["memory"];
        self.memory = Some(match memory["zones"].as_array().map(Vec::as_slice) {
            None => anonymous(memory["size"].as_u64().expect("checked"))?,
            Some([zone]) => {
                assert_eq!(memory["size"], 0, "memory in zones has its size there");
                let size = zone["size"].as_u64().expect("checked");
                self.is_shared = zone["shared"] == true;
                match zone["file"].as_str().map(PathBuf::from) {
                    None => anonymous(size)?,
                    Some(file) if self.is_shared => {
                        let file = File::options().read(true).write(true).open(file)?;
                        self.is_shared = file.metadata()?.nlink() > 0;
                        assert_eq!(file.metadata()?.len(), size, "the file is as long as the memory");
                        file
                    }
                    Some(file) => private(&file, size)?,
                }
            }
            Some(zones) => fail(&format!("it has {} zones", zones.len())),
        });
        if let (Some(ranges), Some(memory)) = (ranges, &self.memory) {
            memory.write_all_at(&fs::read(ranges)?, 0)?;
        }
        let disks = self.said["disks"].as_array().expect("it has disks");
        disks.iter().try_for_each(|disk| self.open_disk(&disk["path"], &disk["readonly"]))
    }

    /// A path as it is in its own sandbox.
    fn own(&self, path: &str) -> PathBuf {
        let site = self.root.parent().expect("it is somewhere");
        match Path::new(path).strip_prefix(site) {
            Ok(inside) => self.root.join(inside.components().skip(1).collect::<PathBuf>()),
            Err(_) => path.into(),
        }
    }

    fn open_disk(&self, path: &Value, is_read_only: &Value) -> io::Result<()> {
        let opened = File::options().read(true).write(*is_read_only != true).open(self.own(text(path)));
        opened.map(drop).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
    }

    fn starts(&mut self, port: PathBuf) {
        (self.port, self.state) = (Some(port), State::Running);
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn anonymous(size: u64) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create("fake", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.set_len(size)?;
    Ok(file)
}

/// What a private mapping of a file would be.
fn private(path: &PathBuf, size: u64) -> io::Result<File> {
    let (file, memory) = (File::open(path)?, anonymous(size)?);
    if file.metadata()?.len() < size {
        return Err(io::Error::other("the file is shorter than the memory"));
    }
    let mut all = vec![0; usize::try_from(size).expect("it fits")];
    file.read_exact_at(&mut all, 0)?;
    memory.write_all_at(&all, 0)?;
    Ok(memory)
}

/// The socket of its vsock.
fn listen(fake: &Arc<Mutex<Fake>>, path: &Path) {
    let listener = UnixListener::bind(path).unwrap_or_else(|error| fail(&format!("{}: {error}", path.display())));
    let fake = fake.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let fake = fake.clone();
            std::thread::spawn(move || guest(&fake, &stream));
        }
    });
}

/// The machine at one connection.
fn guest(fake: &Mutex<Fake>, stream: &UnixStream) {
    let mut lines = BufReader::new(stream);
    let mut next = || {
        let mut line = String::new();
        let count = lines.read_line(&mut line).unwrap_or(0);
        (count > 0).then(|| line.trim_end_matches('\n').to_owned())
    };
    let say = |text: &str| {
        let _ = (&mut &*stream).write_all(text.as_bytes());
    };
    let Some(first) = next() else { return };
    assert_eq!(first, "CONNECT 1024");
    {
        let mut fake = fake.lock().expect("nobody has failed");
        match fake.wrong.as_str() {
            "deaf" => {
                drop(fake);
                let _ = (&mut &*stream).read(&mut [0]);
                return;
            }
            "rude" => return say("HELLO 1024\n"),
            "long-line" => return say(&"x".repeat(1000)),
            _ => {}
        }
        if fake.young > 0 {
            // Nobody listens inside yet.
            fake.young -= 1;
            return;
        }
        fake.connections.push(stream.try_clone().expect("a descriptor"));
    }
    let number = 1_073_741_824 + u32::try_from(stream.as_raw_fd()).unwrap_or_default();
    say(&format!("OK {number}\n"));
    while let Some(line) = next() {
        let fake = fake.lock().expect("nobody has failed");
        if fake.state != State::Running || !fake.connections.iter().any(|open| is_same(open, stream)) {
            return;
        }
        let memory = fake.memory.as_ref().expect("a machine has memory");
        let mut word = [0; LONGEST];
        match line.split_once(' ') {
            Some(("set", new)) => {
                word[..new.len()].copy_from_slice(new.as_bytes());
                memory.write_all_at(&word, WORD).expect("memory can be written to");
                say("done\n");
            }
            _ => {
                memory.read_exact_at(&mut word, WORD).expect("memory can be read");
                let word = String::from_utf8_lossy(&word);
                say(&format!("{}\n", word.trim_end_matches('\0')));
            }
        }
    }
}

/// Whether two descriptors are of one socket.
fn is_same(one: &UnixStream, other: &UnixStream) -> bool {
    let number = |stream: &UnixStream| rustix::fs::fstat(stream).map(|stat| stat.st_ino).unwrap_or_default();
    number(one) == number(other)
}
