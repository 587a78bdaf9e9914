//! A VMM that is none: it takes what Firecracker takes, and instead of running a guest says what it sees of the sandbox around it. So what
//! a real one has to reach there is shown to be there, and what it must not is shown not to be, on hosts that run no guests as well.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::exit;

use sandpool_vm::identity::Identity;
use sandpool_vm::mux::Side;
use sandpool_vm::relay::{News, Relay, Source};

use rustix::event::{PollFd, PollFlags, poll};

/// What it calls itself, as a file.
pub(crate) const NAME: &str = "firecracker";

/// What it says when it is asked.
pub(crate) const VERSION: &str = "Firecracker v1.16.1";

/// Runs as the VMM at this API socket.
pub(crate) fn run(socket: &str) -> ! {
    let done = serve(socket);
    eprintln!("looker: {:?}", done.err());
    exit(9)
}

fn serve(socket: &str) -> io::Result<()> {
    let mut port = None;
    for stream in UnixListener::bind(socket)?.incoming() {
        let stream = stream?;
        let mut reader = BufReader::new(&stream);
        let (mut request, mut length) = (String::new(), 0);
        reader.read_line(&mut request)?;
        if request.is_empty() {
            continue;
        }
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            match header.trim().split_once(": ") {
                Some(("Content-Length", value)) => length = value.parse().map_err(io::Error::other)?,
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body: serde_json::Value = serde_json::from_slice(&body)?;
        if request.starts_with("PUT /vsock ") {
            port = body["uds_path"].as_str().map(str::to_owned);
        }
        let begins = request.starts_with("PUT /actions ").then(|| port.take()).flatten().map(UnixListener::bind);
        (&stream).write_all(b"HTTP/1.1 204 \r\n\r\n")?;
        if let Some(listener) = begins {
            machine(&listener?)?;
        }
    }
    Ok(())
}

/// The machine at its port: outside of a sandbox, which is where a trial is made, it comes up.
fn machine(listener: &UnixListener) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut word = [0; 13];
    stream.read_exact(&mut word)?;
    assert_eq!(&word, b"CONNECT 1024\n");
    stream.write_all(b"OK 1073741824\n")?;
    stream.set_nonblocking(true)?;
    let mut relay = Relay::new(Side::Machine, stream.try_clone()?.into());
    loop {
        poll(&mut [PollFd::new(&stream, PollFlags::IN)], None)?;
        if let Some(News::Prepare) = relay.ready(Source::Port, PollFlags::IN)? {
            if !rustix::process::getuid().is_root() {
                eprintln!("looker: {}", look());
                exit(3);
            }
            relay.mux.up(&Identity::here()?);
            relay.flush()?;
        }
    }
}

/// What is there.
fn look() -> String {
    let said = |done: io::Result<String>| done.unwrap_or_else(|error| format!("{:?}", error.kind()));
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").map(|_| "open".to_owned());
    let image = || {
        let mut begin = vec![0; 1028];
        File::open("/proc/self/fd/3")?.read_exact(&mut begin)?;
        // EROFS' magic number.
        Ok(if begin[1024..] == [0xe2, 0xe1, 0xf5, 0xe0] { "erofs" } else { "something else" }.to_owned())
    };
    let written = OpenOptions::new().write(true).open("/proc/self/fd/3").map(|_| "open".to_owned());
    let devices = std::fs::read_dir("/dev").map(|entries| {
        let mut names: Vec<_> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names.join(",")
    });
    let node = std::fs::metadata("/dev/kvm").map(|meta| {
        use std::os::unix::fs::MetadataExt;
        format!("{:o} of {}", meta.mode() & 0o777, meta.uid())
    });
    let disk = OpenOptions::new().read(true).write(true).open("/mnt/data/disk").map(|_| "open".to_owned());
    let kernel = File::open("/machine/vmlinux").and_then(|mut file| {
        let mut begin = [0; 4];
        file.read_exact(&mut begin)?;
        Ok(if begin == *b"\x7fELF" { "ELF" } else { "something else" }.to_owned())
    });
    let reached = UnixStream::connect("/mnt/data/vmm/api").map(|_| "open".to_owned());
    format!(
        "uid={} kvm={} ({}) image={} image-to-write={} disk={} kernel={} api={} dev={}",
        rustix::process::getuid().as_raw(),
        said(kvm),
        said(node),
        said(image()),
        said(written),
        said(disk),
        said(kernel),
        said(reached),
        said(devices),
    )
}
