//! What the egress proxy costs: the first byte of an answer, and many, through it and past it.
//!
//! The same code runs in a session, whose pool may reach one name, and in the floor's bare Python, which connects to the address of
//! that name. The server that both reach is a thread of this program.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use super::blocks::printed;
use super::whole::Measured;
use super::{Scale, Scenario, Subject};
use crate::floor::Floor;
use crate::report::Unit;

/// Where the server listens: at the port of HTTP, since that is where a session's connections are taken without being told so.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 66, 13, 80);

/// What a pool's settings say for this scenario.
pub(crate) const SETTING: &str = "egress: { mode: allow-list, allow: [bench.test], allowAddresses: [127.66.13.80/32], \
    hosts: { bench.test: [127.66.13.80] } }";

/// A cell that makes a connection to a host, asks for so many bytes, reads as many of the answer, and tells how long all of it took, in
/// milliseconds.
macro_rules! cell {
    ($host:literal, $bytes:literal) => {
        concat!(
            r#"{"code": "def measure():\n import socket, time\n begun = time.perf_counter()\n with socket.create_connection(('"#,
            $host,
            r#"', 80)) as line:\n  line.sendall(b'GET /"#,
            $bytes,
            r#" HTTP/1.1\\r\\nHost: bench.test\\r\\n\\r\\n')\n  left = "#,
            $bytes,
            r#"\n  while left > 0:\n   piece = line.recv(min(left, 262144))\n   assert piece\n   left -= len(piece)\n  return (time.perf_counter() - begun) * 1e3\nprint(measure())"}"#
        )
    };
}

/// What is asked for, and the cells that ask for it in a session and in a bare Python.
const WORK: [(&str, &str, &str); 2] = [
    (
        "first byte of an answer over a new connection to a name, from a session through the egress proxy",
        cell!("bench.test", "1"),
        cell!("127.66.13.80", "1"),
    ),
    (
        "64 MiB over a new connection to a name, from a session through the egress proxy",
        cell!("bench.test", "67108864"),
        cell!("127.66.13.80", "67108864"),
    ),
];

pub(super) async fn measure(subject: &Subject, floor: &Floor, scale: Scale) -> Result<Vec<Measured>> {
    let rounds = Scenario::Egress.rounds(scale);
    let server = subject.shared();
    let _target = Target::start()?;
    let mut rows = Vec::new();
    for (measure, ours, bare) in WORK {
        let (mut through, mut past) = (Vec::new(), Vec::new());
        for _ in 0..rounds.rounds {
            let mut samples = Vec::new();
            for _ in 0..rounds.each {
                let answer = server.execute("python", "bench-egress", ours).await?;
                samples.push(printed(&answer.body).context("through the proxy")?);
            }
            through.push(samples);
            let mut samples = Vec::new();
            for _ in 0..rounds.each {
                samples.push(printed(&floor.ask("/run/0", bare).await?.body)?);
            }
            past.push(samples);
        }
        rows.push(Measured {
            measure: measure.to_owned(),
            unit: Unit::Milliseconds,
            ours: through,
            floor: past,
            goal: Scenario::Egress.goal(),
            notes: Vec::new(),
            spoilt: false,
        });
    }
    Ok(rows)
}

/// The server that is reached. Each connection has a thread, and one request.
struct Target {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Target {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind((ADDRESS, 80)).with_context(|| format!("cannot listen at {ADDRESS}:80"))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if seen.load(Ordering::Acquire) {
                    return;
                }
                if let Ok(stream) = stream {
                    // A client that goes away in the middle has what it wanted.
                    std::thread::spawn(move || answer(stream).unwrap_or_default());
                }
            }
        });
        Ok(Self { is_over, thread: Some(thread) })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        if TcpStream::connect(SocketAddr::from((ADDRESS, 80))).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Answers `GET /BYTES` with that many bytes.
fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::new();
    let mut piece = [0; 4096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut piece)?;
        if count == 0 {
            return Ok(());
        }
        head.extend_from_slice(&piece[..count]);
    }
    let head = String::from_utf8_lossy(&head);
    let asked = head.strip_prefix("GET /").and_then(|rest| rest.split(' ').next());
    let mut left = asked.and_then(|asked| asked.parse::<usize>().ok()).unwrap_or(0);
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {left}\r\nConnection: close\r\n\r\n")?;
    let zeros = vec![0; 256 * 1024];
    while left > 0 {
        let count = left.min(zeros.len());
        stream.write_all(&zeros[..count])?;
        left -= count;
    }
    Ok(())
}
