//! The proxy between two networks of this kernel: a sandbox's, where every address is its own, and one with servers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::mpsc;

use sandpool_wire::egress::{self as wire, Mode};
use serde_json::Value;

use super::*;
use crate::sni::tests::{extension, hello, name};
use sandpool_sys::counters::Counters;

const LONG: Duration = Duration::from_secs(20);

/// The servers' addresses; at each of them HTTP at port 80, and an echo at 443 and 9000.
const SERVER: &str = "127.77.0.1";
const OTHER: &str = "127.77.0.2";

fn policy(mode: Mode, allow: &[&str]) -> wire::Policy {
    let text = |text: &&str| (*text).to_owned();
    let host = |(name, address): &(&str, &str)| ((*name).to_owned(), vec![address.parse().unwrap()]);
    wire::Policy {
        mode,
        allow: allow.iter().map(text).collect(),
        deny: vec!["denied.example".to_owned()],
        allow_addresses: vec!["127.77.0.0/24".to_owned()],
        hosts: [
            ("good.example", SERVER),
            ("api.good.example", SERVER),
            ("other.example", OTHER),
            ("denied.example", OTHER),
            ("rebound.example", "127.0.0.1"),
            ("metadata.example", "169.254.169.254"),
            ("mapped.example", "::ffff:10.0.0.1"),
        ]
        .iter()
        .map(host)
        .collect(),
    }
}

fn listed() -> wire::Policy {
    policy(
        Mode::AllowList,
        &[
            "good.example:*",
            "*.good.example",
            "rebound.example:*",
            "metadata.example",
            "mapped.example",
            "denied.example",
        ],
    )
}

fn parsed(pool: &wire::Policy) -> Rules {
    Rules::parse(pool, None).unwrap()
}

/// What the client's side may do beside dialling: change the rules.
struct Outside {
    sandbox: Arc<Sandbox>,
}

fn network() {
    sandpool_sys::sandbox::new_network_and_cgroup_namespaces().unwrap();
    sandpool_sys::sandbox::loopback_up().unwrap();
}

/// Runs `client` in a sandbox's network; answers what was recorded, the DNS of it last.
fn between(rules: wire::Policy, limits: Limits, client: impl FnOnce(Outside) + Send + 'static) -> Vec<Value> {
    if !rustix::process::getuid().is_root() {
        println!("SKIPPED: needs root");
        return Vec::new();
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let (send_listeners, listeners) = mpsc::channel::<Vec<OwnedFd>>();
    let (send_outside, outside) = mpsc::channel::<Outside>();
    let (send_done, done) = tokio::sync::oneshot::channel::<()>();
    let inside = std::thread::spawn(move || {
        network();
        sandpool_sys::network::own_every_address().unwrap();
        send_listeners.send(sandpool_sys::network::listeners().unwrap()).unwrap();
        client(outside.recv().unwrap());
        drop(send_done);
    });
    let proxy = std::thread::spawn(move || {
        network();
        servers();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (audit, writer) = audit::open(&path, None).unwrap();
            let writer = tokio::spawn(writer.run());
            let sandbox = Sandbox::new(
                "s",
                "p",
                parsed(&rules),
                Counters::create(1).unwrap().1.counter(0),
                Common { dialler: Dialler::default(), audit, limits, secrets: Arc::default() },
            );
            sandbox.serve(listeners.recv().unwrap()).unwrap();
            send_outside.send(Outside { sandbox: Arc::clone(&sandbox) }).unwrap();
            let _ = done.await;
            sandbox.end().await;
            drop(sandbox);
            tokio::time::timeout(LONG, writer).await.unwrap().unwrap();
        });
    });
    inside.join().unwrap();
    proxy.join().unwrap();
    let text = std::fs::read_to_string(directory.path().join("egress.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Servers of the network that the calling thread is in.
fn servers() {
    for address in [SERVER, OTHER, "127.0.0.1"] {
        for (port, serve) in [(80, http as fn(TcpStream)), (443, echo), (9000, echo)] {
            let listener = TcpListener::bind((address, port)).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    std::thread::spawn(move || serve(stream));
                }
            });
        }
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 65536];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// Answers each request with its own head.
fn http(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head: Vec<u8> = bytes.drain(..end + 4).collect();
            let answer = format!("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: {}\r\n\r\n", head.len());
            if stream.write_all(&[answer.as_bytes(), &head].concat()).is_err() {
                return;
            }
        }
        match stream.read(&mut buffer) {
            Ok(count @ 1..) => bytes.extend(&buffer[..count]),
            _ => return,
        }
    }
}

fn dial(address: &str, port: u16) -> TcpStream {
    let stream = TcpStream::connect(SocketAddr::new(address.parse().unwrap(), port)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

fn ask(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, u8::try_from(kind).unwrap(), 0, 1]);
    bytes
}

/// The code of an answer, and the address in it.
fn looked_up(server: &str, name: &str, kind: u16) -> (u8, Option<String>) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket.connect((server, 53)).unwrap();
    socket.send(&ask(name, kind)).unwrap();
    let mut buffer = [0; 512];
    let count = socket.recv(&mut buffer).unwrap();
    let tail = |length: usize| &buffer[count - length..count];
    let address = match (buffer[7], kind) {
        (0, _) => None,
        (_, 1) => Some(IpAddr::from(<[u8; 4]>::try_from(tail(4)).unwrap()).to_string()),
        _ => Some(IpAddr::from(<[u8; 16]>::try_from(tail(16)).unwrap()).to_string()),
    };
    (buffer[3] & 0xf, address)
}

fn address(name: &str) -> String {
    looked_up("127.0.0.1", name, 1).1.unwrap()
}

/// Says something, and hears until the end or as much as is wanted.
fn talk(stream: &mut TcpStream, text: &[u8], until: &str) -> String {
    // What was refused may be closed already.
    let _ = stream.write_all(text);
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&heard).contains(until) {
        match stream.read(&mut buffer) {
            Ok(count @ 1..) => heard.extend(&buffer[..count]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&heard).into_owned()
}

fn get(stream: &mut TcpStream, path: &str, host: &str) -> String {
    talk(stream, format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes(), "\r\n\r\n")
}

fn refusals(records: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let refused = records.iter().filter(|record| record["decision"] == "refused");
    refused.map(|record| (text(&record["via"]), text(&record["reason"]))).collect()
}

#[test]
fn names_get_addresses_that_lead_to_them_and_others_get_none() {
    let records = between(listed(), Limits::default(), |_| {
        let first = address("good.example");
        assert!(first.starts_with("198.18."));
        assert_eq!(address("GOOD.example"), first);
        // Whichever resolver is asked, in either version, and over TCP.
        assert_eq!(looked_up("8.8.8.8", "good.example", 1), (0, Some(first.clone())));
        assert!(looked_up("127.0.0.1", "good.example", 28).1.unwrap().starts_with("fd5a:6e64:706f::"));
        let mut stream = dial("1.1.1.1", 53);
        let query = ask("good.example", 1);
        stream.write_all(&[&[0, u8::try_from(query.len()).unwrap()], query.as_slice()].concat()).unwrap();
        let mut answer = [0; 2 + 46];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[44..], first.parse::<std::net::Ipv4Addr>().unwrap().octets());
        for (name, kind, code) in [
            ("evil.example", 1, 3),
            ("denied.example", 1, 3),
            ("c2VjcmV0.evil.example", 28, 3),
            ("good.example", 16, 5),
            ("good.example", 65, 0),
        ] {
            assert_eq!(looked_up("127.0.0.1", name, kind), (code, None), "{name}");
        }
    });
    if !records.is_empty() {
        assert_eq!(refusals(&records).len(), 4);
    }
}

#[test]
fn tunnels_through_questions_for_names_are_slow_at_best() {
    let limits = Limits { names: Rate { per_second: 0, burst: 5 }, ..Limits::default() };
    between(policy(Mode::Open, &[]), limits, |_| {
        let codes: Vec<u8> = (0..8).map(|at| looked_up("127.0.0.1", &format!("s{at}.evil.example"), 1).0).collect();
        assert_eq!(codes, [0, 0, 0, 0, 0, 5, 5, 5]);
        // Those that are known are answered all the same.
        assert_eq!(looked_up("127.0.0.1", "s0.evil.example", 1).0, 0);
    });
}

#[test]
fn http_goes_to_the_host_that_each_request_names() {
    let records = between(listed(), Limits::default(), |_| {
        let mut stream = dial(&address("good.example"), 80);
        let heard = get(&mut stream, "/a?b", "Good.Example");
        assert!(heard.starts_with("HTTP/1.1 200") && heard.contains("GET /a?b HTTP/1.1"), "{heard}");
        assert!(heard.to_lowercase().contains("host: good.example\r\n"), "{heard}");
        // The connection is kept; a request for another host is not passed on.
        for host in [
            "other.example",
            "api.good.example",
            "good.example:81",
            "good.example\0.evil",
            "127.77.0.1",
            "good.example@evil",
            "",
        ] {
            let heard = get(&mut stream, "/", host);
            assert!(heard.starts_with("HTTP/1.1 4"), "{host:?}: {heard}");
            if heard.contains("connection: close") || host.contains('\0') {
                stream = dial(&address("good.example"), 80);
            }
        }
        let heard = get(&mut dial(&address("good.example"), 80), "http://other.example/", "good.example");
        assert!(heard.starts_with("HTTP/1.1 400"), "{heard}");
        let two = talk(
            &mut dial(&address("good.example"), 80),
            b"GET / HTTP/1.1\r\nHost: good.example\r\nHost: other.example\r\n\r\n",
            "\r\n\r\n",
        );
        assert!(two.starts_with("HTTP/1.1 400"), "{two}");
        let none = talk(&mut dial(&address("good.example"), 80), b"GET / HTTP/1.1\r\n\r\n", "\r\n\r\n");
        assert!(none.starts_with("HTTP/1.1 400"), "{none}");
    });
    if !records.is_empty() {
        assert!(
            records.iter().any(|record| record["via"] == "http"
                && record["decision"] == "allowed"
                && record["address"] == SERVER)
        );
    }
}

#[test]
fn one_request_is_never_two_upstream() {
    between(listed(), Limits::default(), |_| {
        let smuggled = b"POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: other.example\r\n\r\n";
        let mut stream = dial(&address("good.example"), 80);
        let heard = talk(&mut stream, smuggled, "/hidden");
        assert!(!heard.contains("/hidden"), "{heard}");
    });
}

#[test]
fn tls_is_passed_on_when_it_asks_for_the_name_it_came_for() {
    let records = between(listed(), Limits::default(), |_| {
        let good = address("good.example");
        let said = hello(&name(b"good.example"));
        let mut stream = dial(&good, 443);
        // In pieces, as a slow client sends it.
        for piece in said.chunks(50) {
            stream.write_all(piece).unwrap();
        }
        let mut heard = vec![0; said.len()];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(heard, said, "what comes out is what was said");
        stream.write_all(b"secret").unwrap();
        let mut heard = [0; 6];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"secret");
        // Also at its address of version 6.
        let six = looked_up("127.0.0.1", "good.example", 28).1.unwrap();
        let mut stream = dial(&six, 443);
        stream.write_all(&said).unwrap();
        let mut heard = vec![0; said.len()];
        stream.read_exact(&mut heard).unwrap();

        let hidden = [name(b"good.example"), extension(0xfe0d, &[0; 20])].concat();
        for said in [
            hello(&name(b"other.example")),
            hello(&name(b"api.good.example")),
            hello(&name(b"good.example\0")),
            hello(&[]),
            hello(&hidden),
            hello(&[name(b"good.example"), name(b"other.example")].concat()),
            b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n".to_vec(),
            b"SSH-2.0-OpenSSH\r\n".to_vec(),
        ] {
            let mut stream = dial(&good, 443);
            stream.write_all(&said).unwrap();
            let mut heard = Vec::new();
            let _ = stream.read_to_end(&mut heard);
            assert_eq!(heard, [21, 3, 3, 0, 2, 2, 49], "{said:?}");
        }
    });
    if !records.is_empty() {
        assert_eq!(refusals(&records).len(), 8, "{records:#?}");
        assert!(
            records
                .iter()
                .any(|record| record["via"] == "tls" && record["decision"] == "allowed" && record["sent"] != 0)
        );
    }
}

#[test]
fn addresses_that_nobody_looked_up_are_refused() {
    let records = between(listed(), Limits::default(), |_| {
        for to in [
            "1.1.1.1",
            "127.77.0.1",
            "169.254.169.254",
            "10.0.0.1",
            "198.18.0.77",
            "::ffff:127.77.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::1",
            "fd00:ec2::254",
            "127.0.0.1",
            "::1",
        ] {
            let mut stream = dial(to, 443);
            let _ = stream.write_all(&hello(&name(b"good.example")));
            let mut heard = Vec::new();
            let _ = stream.read_to_end(&mut heard);
            assert!(heard.is_empty() || heard[0] == 21, "{to} {heard:?}");
            let heard = get(&mut dial(to, 80), "/", "good.example");
            assert!(!heard.contains("200 OK"), "{to} {heard}");
        }
        // What nobody listens at is refused by the sandbox's own network; QUIC among it.
        assert!(TcpStream::connect("1.1.1.1:22").is_err());
        let quic = UdpSocket::bind("0.0.0.0:0").unwrap();
        quic.set_read_timeout(Some(LONG)).unwrap();
        quic.connect(("198.18.0.2", 443)).unwrap();
        quic.send(b"hello").unwrap();
        assert_eq!(quic.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    });
    assert!(records.iter().all(|record| record["decision"] == "refused"));
}

#[test]
fn names_that_lead_inside_are_refused() {
    let records = between(listed(), Limits::default(), |_| {
        for name in ["rebound.example", "metadata.example", "mapped.example"] {
            let heard = get(&mut dial(&address(name), 80), "/", name);
            assert!(heard.starts_with("HTTP/1.1 502") && heard.contains("is not reached"), "{heard}");
        }
        let heard = connect("rebound.example:9000");
        assert!(heard.0.starts_with("HTTP/1.1 502"), "{}", heard.0);
    });
    if !records.is_empty() {
        assert_eq!(refusals(&records).iter().filter(|(_, reason)| reason.contains("is not reached")).count(), 4);
    }
}

/// Asks for a tunnel: the answer's head, and the stream.
fn connect(to: &str) -> (String, TcpStream) {
    let mut stream = dial("127.0.0.1", 3128);
    let head = talk(&mut stream, format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes(), "\r\n\r\n");
    (head, stream)
}

#[test]
fn tunnels_are_made_to_what_is_allowed_and_checked_like_all_else() {
    let records = between(listed(), Limits::default(), |_| {
        let (head, mut stream) = connect("good.example:9000");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(talk(&mut stream, b"ping", "ping"), "ping");
        let (head, mut stream) = connect("Good.Example.:443");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let said = hello(&name(b"good.example"));
        stream.write_all(&said).unwrap();
        let mut heard = vec![0; said.len()];
        stream.read_exact(&mut heard).unwrap();
        let (_, mut stream) = connect("good.example:443");
        stream.write_all(&hello(&name(b"other.example"))).unwrap();
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        assert_eq!(heard[0], 21);
        // HTTP in a tunnel is HTTP.
        let (_, mut stream) = connect("good.example:80");
        assert!(get(&mut stream, "/x", "good.example").contains("GET /x"));
        assert!(get(&mut stream, "/x", "other.example").starts_with("HTTP/1.1 403"));
        // A synthetic address is the name that it stands for.
        let (head, _) = connect(&format!("{}:9000", address("good.example")));
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        for to in [
            "other.example:443",
            "127.77.0.1:9000",
            "127.0.0.1:9000",
            "[::1]:9000",
            "0x7f.1:9000",
            "2130706433:80",
            "good.example:0",
            "198.18.99.99:9000",
            "api.good.example:9000",
        ] {
            let (head, _) = connect(to);
            assert!(head.starts_with("HTTP/1.1 4"), "{to}: {head}");
        }
    });
    if !records.is_empty() {
        assert!(
            records
                .iter()
                .any(|record| record["via"] == "connect" && record["port"] == 9000 && record["received"] == 4)
        );
    }
}

#[test]
fn a_proxy_is_asked_with_whole_addresses() {
    between(listed(), Limits::default(), |_| {
        let mut stream = dial("127.0.0.1", 3128);
        let heard = get(&mut stream, "http://good.example/y", "good.example");
        assert!(heard.contains("GET /y HTTP/1.1"), "{heard}");
        // The next goes elsewhere, on the same connection.
        let heard = get(&mut stream, "http://api.good.example/z", "api.good.example");
        assert!(heard.contains("GET /z") && heard.contains("host: api.good.example"), "{heard}");
        for (path, host) in [
            ("http://other.example/", "other.example"),
            ("http://good.example/", "other.example"),
            ("https://good.example/", "good.example"),
            ("ftp://good.example/", "good.example"),
            ("/", "good.example"),
            ("http://127.77.0.1/", "127.77.0.1"),
            ("http://u@good.example/", "good.example"),
        ] {
            let heard = get(&mut dial("127.0.0.1", 3128), path, host);
            assert!(heard.starts_with("HTTP/1.1 4"), "{path} {heard}");
        }
    });
}

/// Asks a SOCKS proxy: the code of its answer, and the stream.
fn socks(kind: u8, to: &[u8], port: u16) -> (u8, TcpStream) {
    let mut stream = dial("127.0.0.1", 1080);
    stream.write_all(&[5, 1, 0]).unwrap();
    let mut heard = [0; 2];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(heard, [5, 0]);
    stream.write_all(&[&[5, 1, 0, kind], to, &port.to_be_bytes()].concat()).unwrap();
    let mut heard = [0; 10];
    stream.read_exact(&mut heard).unwrap();
    (heard[1], stream)
}

fn socks_name(name: &str, port: u16) -> (u8, TcpStream) {
    socks(3, &[&[u8::try_from(name.len()).unwrap()], name.as_bytes()].concat(), port)
}

#[test]
fn socks_leads_to_what_is_allowed() {
    let records = between(listed(), Limits::default(), |_| {
        let (code, mut stream) = socks_name("good.example", 9000);
        assert_eq!(code, 0);
        assert_eq!(talk(&mut stream, b"ping", "ping"), "ping");
        let synthetic: std::net::Ipv4Addr = address("good.example").parse().unwrap();
        let (code, mut stream) = socks(1, &synthetic.octets(), 443);
        assert_eq!(code, 0);
        let said = hello(&name(b"good.example"));
        stream.write_all(&said).unwrap();
        let mut heard = vec![0; said.len()];
        stream.read_exact(&mut heard).unwrap();
        let (_, mut stream) = socks_name("good.example", 80);
        assert!(get(&mut stream, "/s", "good.example").contains("GET /s"));
        assert_eq!(socks_name("other.example", 443).0, 2);
        assert_eq!(socks(1, &[127, 77, 0, 1], 9000).0, 2);
        assert_eq!(socks(1, &[198, 18, 9, 9], 443).0, 2);
        assert_eq!(socks_name("127.0.0.1", 9000).0, 8);
        assert_eq!(socks_name("good.example\0", 9000).0, 8);
        assert_eq!(socks_name("rebound.example", 9000).0, 4);
    });
    if !records.is_empty() {
        assert_eq!(refusals(&records).len(), 6, "{records:#?}");
    }
}

#[test]
fn in_the_open_all_that_is_public_is_reached_and_what_is_denied_is_not() {
    between(policy(Mode::Open, &[]), Limits::default(), |_| {
        // The server's range was lifted by the pool: as good as public.
        assert!(get(&mut dial(SERVER, 80), "/", "anything.example").contains("200 OK"));
        assert!(get(&mut dial(SERVER, 80), "/", "denied.example").starts_with("HTTP/1.1 403"));
        let said = hello(&name(b"denied.example"));
        let mut stream = dial(SERVER, 443);
        stream.write_all(&said).unwrap();
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        assert_eq!(heard[0], 21);
        // The sandbox's own address is not the host's.
        assert!(get(&mut dial("127.0.0.1", 80), "/", "localhost").starts_with("HTTP/1.1 502"));
        assert!(get(&mut dial("169.254.169.254", 80), "/", "169.254.169.254").starts_with("HTTP/1.1 502"));
    });
}

#[test]
fn rules_that_change_cut_what_they_forbid_and_nothing_else() {
    let records = between(listed(), Limits::default(), |outside| {
        let (_, mut stays) = connect("good.example:9000");
        let (_, mut goes) = socks_name("good.example", 443);
        let said = hello(&name(b"good.example"));
        goes.write_all(&said).unwrap();
        goes.read_exact(&mut vec![0; said.len()]).unwrap();
        outside.sandbox.rule(parsed(&policy(Mode::AllowList, &["good.example:9000"])));
        assert_eq!(goes.read(&mut [0; 8]).unwrap_or(0), 0);
        assert_eq!(talk(&mut stays, b"ping", "ping"), "ping");
        assert_eq!(socks_name("good.example", 443).0, 2);
        outside.sandbox.rule(Rules::default());
        assert_eq!(stays.read(&mut [0; 8]).unwrap_or(0), 0);
        assert_eq!(looked_up("127.0.0.1", "good.example", 1).0, 3);
    });
    if !records.is_empty() {
        assert_eq!(records.iter().filter(|record| record["reason"] == "the rules have changed").count(), 2);
    }
}

#[test]
fn a_sandbox_uses_up_its_own_share() {
    let limits = Limits { connections: 3, bytes: 100_000, ..Limits::default() };
    let records = between(listed(), limits, |_| {
        let mut held: Vec<_> = (0..3).map(|_| connect("good.example:9000").1).collect();
        assert_eq!(dial("127.0.0.1", 3128).read(&mut [0; 8]).unwrap_or(0), 0);
        // One goes, and another may come.
        held.pop();
        let mut stream = loop {
            let (head, stream) = connect("good.example:9000");
            if head.starts_with("HTTP/1.1 200") {
                break stream;
            }
        };
        let heard = talk(&mut stream, &vec![b'x'; 300_000], "never");
        assert!(heard.len() < 200_000, "{}", heard.len());
    });
    if !records.is_empty() {
        assert!(records.iter().any(|record| record["reason"] == "too many connections are open"));
        assert!(
            records.iter().any(|record| record["reason"].as_str().is_some_and(|why| why.contains("used up its bytes")))
        );
    }
}

#[test]
fn clients_that_say_nothing_are_sent_away() {
    let short = Duration::from_millis(100);
    let limits = Limits { handshake: short, idle: short, ..Limits::default() };
    let records = between(listed(), limits, |_| {
        let good = address("good.example");
        let mut half = dial(&good, 443);
        half.write_all(&hello(&name(b"good.example"))[..20]).unwrap();
        let mut silent = dial("127.0.0.1", 1080);
        let (_, mut idle) = connect("good.example:9000");
        for stream in [&mut half, &mut silent, &mut idle] {
            assert_eq!(stream.read(&mut [0; 8]).unwrap_or(0), 0);
        }
    });
    if !records.is_empty() {
        assert!(records.iter().any(|record| record["reason"] == "nothing moved for too long"));
        assert_eq!(refusals(&records).iter().filter(|(_, reason)| reason.contains("in time")).count(), 2);
    }
}
