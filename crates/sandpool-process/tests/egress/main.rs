//! The way out of real sandboxes: through the egress proxy, to servers of this test, by the programs of the real images.
//!
//! Needs root and the images `shell` and `python`; says so when it skips. What is tried is data: a command, and what must be
//! seen.

#[path = "../stage/mod.rs"]
mod stage;

mod servers;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandpool_core::limits::{Limits, Scale};
use sandpool_node::{EgressMode, EgressPolicy, Node, Start};
use stage::{Outcome, Session, Stage, seen, succeeded};

const LIMITS: Limits = Limits { memory: 512 << 20, pids: 128, cpu_milli: 2_000, data: 64 << 20, tmp: 64 << 20 };

/// How long a command may take. This is for a machine that has much else to do.
const PATIENCE: u64 = 40;

fn main() -> ExitCode {
    if std::env::args().len() == 1 {
        // Inherited by all that this process starts.
        if std::env::var_os("SANDPOOL_TEST_NET").is_none() {
            return again();
        }
        if rustix::process::getuid().is_root()
            && let Err(error) = servers::start()
        {
            eprintln!("egress: no servers: {error}");
            return ExitCode::FAILURE;
        }
    }
    stage::play("egress", &["shell", "python"], tests, |_| Ok(()))
}

/// Starts this test again, with a range of addresses of its own.
fn again() -> ExitCode {
    let started = std::env::current_exe().and_then(|program| {
        std::process::Command::new(program).env("SANDPOOL_TEST_NET", std::process::id().to_string()).status()
    });
    match started {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) | Err(_) => ExitCode::FAILURE,
    }
}

fn policy(mode: EgressMode, allow: &[&str]) -> EgressPolicy {
    let host = |(name, address): (&str, String)| Some((name.to_owned(), vec![address.parse().ok()?]));
    let hosts = [
        ("good.example", servers::address(1)),
        ("other.example", servers::address(2)),
        ("inside.example", "127.0.0.1".to_owned()),
        ("metadata.example", "169.254.169.254".to_owned()),
    ];
    EgressPolicy {
        mode,
        allow: allow.iter().map(|text| (*text).to_owned()).collect(),
        deny: Vec::new(),
        allow_addresses: vec![servers::address(1), servers::address(2)],
        hosts: hosts.into_iter().filter_map(host).collect(),
    }
}

/// What is allowed in most of what follows.
fn listed() -> EgressPolicy {
    policy(EgressMode::AllowList, &["good.example", "good.example:9000", "inside.example", "metadata.example"])
}

/// A command that must succeed, with a part of its output.
const REACHED: &[(&str, &str, &str)] = &[
    ("http", "curl -sS http://good.example/a", "server 1 was asked GET /a"),
    ("https", "curl -sSk https://good.example/b", "server 1 was asked GET /b"),
    ("http, version 6", "curl -sS6 http://good.example/c", "server 1 was asked GET /c"),
    ("connect", "curl -sS -p -x http://127.0.0.1:3128 http://good.example:9000/d", "server 1 was asked GET /d"),
    ("connect, https", "curl -sSk -x http://127.0.0.1:3128 https://good.example/e", "server 1 was asked GET /e"),
    ("proxy", "curl -sS -x http://127.0.0.1:3128 http://good.example/f", "server 1 was asked GET /f"),
    (
        "socks, names",
        "curl -sS --socks5-hostname 127.0.0.1:1080 http://good.example:9000/g",
        "server 1 was asked GET /g",
    ),
    ("socks, addresses", "curl -sSk --socks5 127.0.0.1 https://good.example/h", "server 1 was asked GET /h"),
    ("wget", "wget -q -O - http://good.example/i", "server 1 was asked GET /i"),
    ("dig", "dig +short good.example", "198.18.0."),
    ("dig, over TCP, at any resolver", "dig +tcp +short @9.9.9.9 good.example", "198.18.0."),
    (
        "python, http",
        "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://good.example/j\").read())'",
        "server 1 was asked GET /j",
    ),
    (
        "python, https",
        "python3 -c 'import ssl, urllib.request as u; print(u.urlopen(\"https://good.example/k\", \
         context=ssl._create_unverified_context()).read())'",
        "server 1 was asked GET /k",
    ),
    (
        "python, asking for one version as resolvers do",
        "python3 -c 'import socket as s; print(s.getaddrinfo(\"good.example\", 80, s.AF_INET, s.SOCK_STREAM, 0, s.AI_ADDRCONFIG))'",
        "198.18.0.",
    ),
];

/// A command that must fail, and not show what a server says.
const REFUSED: &[(&str, &str)] = &[
    ("another host", "curl -sSfm9 http://other.example/"),
    ("another host, https", "curl -sSfkm9 https://other.example/"),
    ("another host, by the proxy", "curl -sSfkm9 -x http://127.0.0.1:3128 https://other.example/"),
    ("another host, by socks", "curl -sSfkm9 --socks5-hostname 127.0.0.1:1080 https://other.example/"),
    ("another Host header", "curl -sSfm9 -H 'Host: other.example' http://good.example/"),
    ("another SNI", "curl -sSfkm9 --connect-to other.example:443:good.example:443 https://other.example/"),
    (
        "no SNI",
        "python3 -c 'import ssl, socket; c = ssl._create_unverified_context(); c.check_hostname = False; \
         s = c.wrap_socket(socket.create_connection((\"good.example\", 443))); s.sendall(b\"GET / HTTP/1.1\\r\\n\\r\\n\"); print(s.recv(99))'",
    ),
    ("the server's address", "curl -sSfm9 http://$GOOD/"),
    ("the server's address, another port", "curl -sSfm9 http://$GOOD:9000/"),
    ("the server's address, by the proxy", "curl -sSfpm9 -x http://127.0.0.1:3128 http://$GOOD:9000/"),
    ("the server's address, with the right name", "curl -sSfm9 --resolve good.example:80:$GOOD http://good.example/"),
    ("the server's address, with the right SNI", "curl -sSfkm9 --resolve good.example:443:$GOOD https://good.example/"),
    ("a name that leads to the host itself", "curl -sSfm9 http://inside.example/"),
    ("a name that leads to metadata", "curl -sSfm9 http://metadata.example/latest/meta-data/"),
    ("metadata", "curl -sSfm9 http://169.254.169.254/latest/meta-data/"),
    ("metadata, in hexadecimal", "curl -sSfm9 -x http://127.0.0.1:3128 http://0xa9fea9fe/"),
    ("metadata, mapped", "curl -sSfm9 -g 'http://[::ffff:169.254.169.254]/'"),
    ("metadata, through NAT64", "curl -sSfm9 -g 'http://[64:ff9b::a9fe:a9fe]/'"),
    ("a port that is not on the list", "curl -sSfpm9 -x http://127.0.0.1:3128 http://good.example:22/"),
    ("a port that nobody listens at", "curl -sSfm9 http://good.example:8080/"),
    (
        "a NUL in a name",
        "printf 'CONNECT good.example\\0.other.example:443 HTTP/1.1\\r\\n\\r\\n' | nc -q 2 127.0.0.1 3128 | grep -a ' 200 '",
    ),
    ("QUIC", "echo hello | nc -u -w 1 good.example 443 | grep ."),
    ("a tunnel of questions", "dig +short TXT c2VjcmV0.other.example | grep ."),
    ("a tunnel of questions below an allowed name", "dig +short TXT good.example | grep ."),
    ("a packet", "ping -c 1 -W 1 198.18.0.2"),
];

async fn tests(mut stage: Stage) -> Outcome<()> {
    let mut pools = Vec::new();
    for (name, image, egress) in [
        ("shell", "shell", Some(listed())),
        ("python", "python", Some(listed())),
        ("open", "shell", Some(policy(EgressMode::Open, &[]))),
        ("none", "shell", None),
    ] {
        let mut pool = stage.pool(name, image, LIMITS, 24)?;
        (pool.scale, pool.egress) = (Scale { ready: 1, most_ready: 1, ..pool.scale }, egress);
        pool.env = vec![("GOOD".to_owned(), servers::address(1))];
        if image == "python" {
            pool.start = Start::Zygote;
        }
        pools.push(pool);
    }
    let node = stage.node(pools).await?;
    let session = Session::open(&node, "shell", "session").await?;
    what_is_allowed_is_reached(&mut stage, &session).await?;
    what_is_not_allowed_is_refused(&mut stage, &session).await?;
    let found = python_reaches_what_is_allowed_from_a_zygote(&node).await?;
    stage.judge("python_reaches_what_is_allowed_from_a_zygote", found);
    let found = a_pool_without_egress_has_an_empty_network(&node).await?;
    stage.judge("a_pool_without_egress_has_an_empty_network", found);
    let found = a_session_is_narrowed_while_it_lives(&node).await?;
    stage.judge("a_session_is_narrowed_while_it_lives", found);
    let found = a_proxy_that_is_killed_comes_back_with_all_it_had(&stage, &session).await?;
    stage.judge("a_proxy_that_is_killed_comes_back_with_all_it_had", found);
    let found = every_decision_is_recorded(&stage);
    stage.judge("every_decision_is_recorded", found);
    session.close().await?;
    node.shutdown(Duration::from_secs(5)).await;
    stage.end()
}

async fn what_is_allowed_is_reached(stage: &mut Stage, session: &Session) -> Outcome<()> {
    for (name, command, part) in REACHED {
        let ran = session.shell(command, PATIENCE).await?;
        let well = succeeded(&ran) && String::from_utf8_lossy(&ran.stdout).contains(part);
        stage.judge(&format!("reached::{name}"), (!well).then(|| seen(&ran)));
    }
    Ok(())
}

async fn what_is_not_allowed_is_refused(stage: &mut Stage, session: &Session) -> Outcome<()> {
    for (name, command) in REFUSED {
        let ran = session.shell(command, PATIENCE).await?;
        let well = !succeeded(&ran) && !String::from_utf8_lossy(&ran.stdout).contains("was asked");
        stage.judge(&format!("refused::{name}"), (!well).then(|| seen(&ran)));
    }
    Ok(())
}

async fn python_reaches_what_is_allowed_from_a_zygote(node: &Arc<Node>) -> Outcome<Option<String>> {
    let session = Session::open(node, "python", "session").await?;
    let ran = session
        .code("import requests\nprint(requests.get('http://good.example/z').text, requests.get('https://good.example/y', verify=False).text)", PATIENCE)
        .await?;
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    let well = text.contains("server 1 was asked GET /z") && text.contains("server 1 was asked GET /y");
    session.close().await?;
    Ok((!well).then(|| seen(&ran)))
}

async fn a_pool_without_egress_has_an_empty_network(node: &Arc<Node>) -> Outcome<Option<String>> {
    let session = Session::open(node, "none", "session").await?;
    let ran = session
        .shell("cat /etc/resolv.conf; curl -sSm9 http://1.1.1.1/; cat /proc/net/route; grep -v '^ *sl' /proc/net/tcp /proc/net/tcp6 /proc/net/udp", PATIENCE)
        .await?;
    let well = String::from_utf8_lossy(&ran.stdout).lines().count() <= 1
        && !String::from_utf8_lossy(&ran.stderr).contains("refused");
    let narrowed = session.node.narrow(&session.pool, &session.name, Some(&listed())).await;
    session.close().await?;
    if narrowed.is_ok() {
        return Ok(Some("what reaches nothing was narrowed".to_owned()));
    }
    Ok((!well).then(|| seen(&ran)))
}

async fn a_session_is_narrowed_while_it_lives(node: &Arc<Node>) -> Outcome<Option<String>> {
    let session = Session::open(node, "open", "session").await?;
    let both = "curl -sSm9 http://good.example/1; curl -sSm9 http://other.example/2";
    let mut problems = Vec::new();
    for (policy, good, other) in [
        (None, true, true),
        (Some(policy(EgressMode::AllowList, &["other.example"])), false, true),
        (Some(policy(EgressMode::None, &[])), false, false),
        (None, true, true),
    ] {
        session.node.narrow(&session.pool, &session.name, policy.as_ref()).await?;
        let ran = session.shell(both, PATIENCE).await?;
        let text = String::from_utf8_lossy(&ran.stdout).into_owned();
        if (text.contains("GET /1"), text.contains("GET /2")) != (good, other) {
            problems.push(format!("{policy:?}\n{}", seen(&ran)));
        }
    }
    // A session cannot lift what its pool does not.
    let mut lifted = policy(EgressMode::Open, &[]);
    lifted.allow_addresses.push("127.0.0.1".to_owned());
    session.node.narrow(&session.pool, &session.name, Some(&lifted)).await?;
    let ran = session.shell("curl -sSm9 http://inside.example/", PATIENCE).await?;
    if !String::from_utf8_lossy(&ran.stdout).contains("is not reached") {
        problems.push(seen(&ran));
    }
    // What cannot be used closes the way; the session's own mistake is told.
    let wrong = policy(EgressMode::AllowList, &["*"]);
    if session.node.narrow(&session.pool, &session.name, Some(&wrong)).await.is_ok() {
        problems.push("a policy that makes no sense was taken".to_owned());
    }
    session.close().await?;
    Ok((!problems.is_empty()).then(|| problems.join("\n")))
}

async fn a_proxy_that_is_killed_comes_back_with_all_it_had(
    stage: &Stage,
    session: &Session,
) -> Outcome<Option<String>> {
    session
        .node
        .narrow(&session.pool, &session.name, Some(&policy(EgressMode::AllowList, &["good.example:9000"])))
        .await?;
    stage.ask("kill-egress").await?;
    let until = Instant::now() + Duration::from_secs(PATIENCE);
    loop {
        let ran =
            session.shell("curl -sSpm9 -x http://127.0.0.1:3128 http://good.example:9000/again", PATIENCE).await?;
        if String::from_utf8_lossy(&ran.stdout).contains("server 1 was asked GET /again") {
            break;
        }
        if Instant::now() >= until {
            return Ok(Some(seen(&ran)));
        }
    }
    // What the session was narrowed to is known to the new one too.
    let ran = session.shell("curl -sSm9 http://good.example/never", PATIENCE).await?;
    let well = !String::from_utf8_lossy(&ran.stdout).contains("was asked");
    session.node.narrow(&session.pool, &session.name, None).await?;
    Ok((!well).then(|| seen(&ran)))
}

/// The record has a line for what was reached, and one for what was refused.
fn every_decision_is_recorded(stage: &Stage) -> Option<String> {
    let text = stage.egress_record();
    let lines: Vec<serde_json::Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let has = |via: &str, destination: &str, decision: &str| {
        lines
            .iter()
            .any(|line| line["via"] == via && line["destination"] == destination && line["decision"] == decision)
    };
    let missing: Vec<_> = [
        ("http", "good.example", "allowed"),
        ("tls", "good.example", "allowed"),
        ("proxy", "good.example", "allowed"),
        ("connect", "good.example", "allowed"),
        ("socks", "good.example", "allowed"),
        ("dns", "good.example", "allowed"),
        ("dns", "other.example", "refused"),
        ("connect", "other.example", "refused"),
        ("socks", "other.example", "refused"),
        ("http", "169.254.169.254", "refused"),
        ("http", "metadata.example", "refused"),
        ("tls", "good.example", "refused"),
    ]
    .into_iter()
    .filter(|(via, destination, decision)| !has(via, destination, decision))
    .collect();
    (!missing.is_empty()).then(|| format!("no line for {missing:?} in {} lines", lines.len()))
}
