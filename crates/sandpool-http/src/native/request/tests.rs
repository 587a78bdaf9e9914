use sandpool_core::ids::PoolName;
use sandpool_core::limits::{Life, Limits, Scale};
use sandpool_node::Runtime;

use super::*;
use crate::native::body;

fn spec() -> PoolSpec {
    PoolSpec {
        name: PoolName::parse("python").unwrap(),
        runtime: Runtime::Python,
        rootfs: "/".into(),
        scale: Scale { max_sessions: 1, ready: 0, most_ready: 0, boots: 1 },
        life: Life { cooldown: Duration::from_secs(1), max_alive: None },
        limits: Limits::default(),
        queue: 1,
        output_limit: 1_000,
        max_timeout: Duration::from_secs(220),
        env: Vec::new(),
        start: sandpool_node::Start::Cold,
        egress: None,
        scope: sandpool_node::SessionScope::Tenant,
        container: None,
        session_secrets: false,
        isolation: sandpool_node::Isolation::default(),
        local_servers: true,
        suspends: sandpool_core::limits::Suspends::default(),
        full_wait: Duration::ZERO,
    }
}

fn read(text: &str) -> Result<Start, Problem> {
    body::json::<Asking>(text.as_bytes())?.check(&spec())
}

#[test]
fn what_may_be_asked() {
    let work = |text: &str| read(text).unwrap().request.work;
    let streamed =
        |argv: &[&str]| Work::Argv { argv: argv.iter().map(ToString::to_string).collect(), stdin: Stdin::Stream };
    assert_eq!(work(r#"{"code": "1", "fresh": true}"#), Work::Code { code: "1".into(), fresh: true });
    assert_eq!(work(r#"{"argv": ["cat"], "stdin": true}"#), streamed(&["cat"]));
    assert_eq!(
        work(r#"{"command": "cat", "stdin": "a"}"#),
        Work::Shell { command: "cat".into(), stdin: Stdin::Bytes(b"a".into()) }
    );
    assert_eq!(
        work(r#"{"command": "cat", "stdin": {"base64": "/w=="}}"#),
        Work::Shell { command: "cat".into(), stdin: Stdin::Bytes(vec![0xff]) }
    );
    let Work::Terminal { argv, rows: 24, columns: 80, term } =
        work(r#"{"command": "top", "terminal": {"rows": 24, "columns": 80}, "code": null, "argv": null}"#)
    else {
        panic!("not a terminal")
    };
    assert_eq!((argv.join(" ").as_str(), term.as_str()), ("/bin/bash -lc top", "xterm-256color"));
    let start = read(r#"{"code": "", "timeoutSeconds": 1.5, "waitSeconds": 0, "outputLimitBytes": 0}"#).unwrap();
    assert_eq!(start.request.timeout, Some(Duration::from_millis(1_500)));
    assert_eq!((start.wait, start.request.output_limit), (Duration::ZERO, Some(0)));
}

/// Each refusal names the field, and says where the JSON itself is wrong.
#[test]
fn what_may_not_be_asked() {
    let table = [
        ("", "body", "EOF while parsing a value at line 1 column 0"),
        ("[]", "body", "not an object"),
        ("null", "body", "invalid type: null"),
        (r#"{"code": "1""#, "body", "line 1 column 12"),
        (r#"{"code": "1"} x"#, "body", "line 1 column 15"),
        (r#"{}"#, "code", "Exactly one"),
        (r#"{"code": "1", "command": "2"}"#, "command", "Exactly one"),
        (r#"{"code": 1}"#, "code", "expected a string at line 1"),
        (r#"{"code": "1", "timeout": 3}"#, "timeout", "unknown field `timeout`"),
        (r#"{"code": "1", "code": "2"}"#, "body", "duplicate field `code`"),
        (r#"{"argv": []}"#, "argv", "begins with"),
        (r#"{"argv": [""]}"#, "argv", "begins with"),
        (r#"{"argv": ["a", 1]}"#, "argv[1]", "expected a string"),
        (r#"{"argv": "ls"}"#, "argv", "a list of texts"),
        (r#"{"argv": ["a\u0000"]}"#, "argv", "NUL"),
        (r#"{"command": "a\u0000"}"#, "command", "NUL"),
        (r#"{"code": "1", "id": "7"}"#, "id", "UUID"),
        (r#"{"code": "1", "stdin": true}"#, "stdin", "does not go with code"),
        (r#"{"code": "1", "terminal": {"rows": 1, "columns": 1}}"#, "terminal", "does not go with code"),
        (r#"{"command": "1", "fresh": false}"#, "fresh", "does not go with command"),
        (r#"{"command": "1", "stdin": 7}"#, "stdin", "true, false, a text or"),
        (r#"{"command": "1", "stdin": {"base64": "?"}}"#, "stdin", "not base64"),
        (
            r#"{"command": "1", "stdin": "", "terminal": {"rows": 1, "columns": 1}}"#,
            "stdin",
            "does not go with terminal",
        ),
        (r#"{"command": "1", "terminal": {"rows": 0, "columns": 1}}"#, "terminal.rows", "1 to 65535"),
        (r#"{"command": "1", "terminal": {"rows": 70000, "columns": 1}}"#, "terminal.rows", "u16"),
        (r#"{"command": "1", "terminal": {"rows": 1}}"#, "terminal", "missing field `columns`"),
        (r#"{"command": "1", "terminal": {"rows": 1, "columns": 1, "x": 1}}"#, "x", "unknown field `x`"),
        (r#"{"command": "1", "terminal": {"rows": 1, "columns": 1, "term": ""}}"#, "terminal.term", "1 to 128"),
        (r#"{"code": "1", "timeoutSeconds": 0}"#, "timeoutSeconds", "at least 0.001"),
        (r#"{"code": "1", "timeoutSeconds": -1}"#, "timeoutSeconds", "from 0 to 220, not -1"),
        (r#"{"code": "1", "timeoutSeconds": 221}"#, "timeoutSeconds", "from 0 to 220, not 221"),
        (r#"{"code": "1", "timeoutSeconds": "1"}"#, "timeoutSeconds", "expected f64"),
        (r#"{"code": "1", "waitSeconds": 601}"#, "waitSeconds", "from 0 to 600"),
        (r#"{"code": "1", "outputLimitBytes": 1001}"#, "outputLimitBytes", "at most 1000"),
        (r#"{"code": "1", "outputLimitBytes": -1}"#, "outputLimitBytes", "u64"),
    ];
    for (body, target, says) in table {
        let problem = read(body).unwrap_err();
        assert_eq!(problem.status, 400, "{body}");
        let said = (problem.target.as_deref(), problem.message.contains(says));
        assert_eq!(said, (Some(target), true), "{body}: {}", problem.message);
    }
}

#[test]
fn what_is_too_long_is_named() {
    let long = "x".repeat(MAX_CODE + 1);
    let half = "x".repeat(MAX_CODE / 2 + 1);
    let table = [
        (serde_json::json!({ "code": long }), "code"),
        (serde_json::json!({ "command": long }), "command"),
        (serde_json::json!({ "argv": ["echo", long] }), "argv"),
        (serde_json::json!({ "command": half, "stdin": half }), "stdin"),
    ];
    for (body, target) in table {
        let problem = read(&body.to_string()).unwrap_err();
        assert_eq!((problem.status.as_u16(), problem.target.as_deref()), (413, Some(target)));
    }
    let many = format!(r#"{{"argv": [{}"x"]}}"#, r#""","#.repeat(MAX_ARGUMENTS));
    assert!(read(&many).unwrap_err().message.contains("more than 16384"));
    assert!(read(&serde_json::json!({ "code": "x".repeat(MAX_CODE) }).to_string()).is_ok());
}
