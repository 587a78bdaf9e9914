//! The program as people call it: what it prints, where, and its exit codes. No server and no root needed.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use expect_test::{Expect, expect};

/// Runs the program on an empty state directory; the directory's path is replaced in what it says.
fn sandpool(home: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sandpool"))
        .args(words)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("SANDPOOL_HOME", home)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs")
}

/// Exit code, standard output and standard error, as one text.
fn check(words: &[&str], expected: &Expect) {
    let home = tempfile::tempdir().expect("a directory");
    let output = sandpool(home.path(), words);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&*home.path().to_string_lossy(), "HOME");
    let mut said = format!("exit code {}\n", output.status.code().unwrap_or(-1));
    for (stream, bytes) in [("out", &output.stdout), ("err", &output.stderr)] {
        for line in text(bytes).lines() {
            said.push_str(format!("{stream}| {line}").trim_end());
            said.push('\n');
        }
    }
    expected.assert_eq(&said);
}

#[test]
fn wrong_use_is_exit_code_2_and_says_what_is_right() {
    check(&["frobnicate"], &expect![]);
    check(&["up", "--listen", "here"], &expect![]);
    check(&["up", "--max-sessions", "0"], &expect![]);
    check(&["run", "-c", "1", "file.py"], &expect![]);
    check(&["run", "-c", "1", "--", "ls"], &expect![]);
    check(&["token", "--ttl", "soon"], &expect![]);
    check(&["token", "--role", "king"], &expect![]);
    check(&["token", "--pool", "No Such"], &expect![]);
    check(&["files", "put", "-s", "abcd"], &expect![]);
    check(&["shell"], &expect![]);
    check(&["run", "/no/such/file.py"], &expect![]);
    check(&["--server", "ftp://x", "pool", "ls"], &expect![]);
}

#[test]
fn without_a_server_commands_say_how_to_start_one() {
    check(&["pool", "ls"], &expect![]);
    check(&["run", "-c", "1"], &expect![]);
    check(&["env"], &expect![]);
    check(&["--json", "session", "ls"], &expect![]);
    check(&["down"], &expect![]);
    check(&["down", "--json"], &expect![]);
}

#[test]
fn a_settings_file_that_cannot_be_used_is_told_by_key() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = |yaml: &str| {
        let file = directory.path().join("settings.yaml");
        std::fs::write(&file, yaml).expect("a file");
        let output = sandpool(directory.path(), &["serve", "--config", file.to_str().expect("UTF-8")]);
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).replace(&*directory.path().to_string_lossy(), "HOME")
    };
    expect![].assert_eq(&run("pools: [ { metadata: { name: p }, spec: { containerType: Shell, memroy: 2Gi } } ]"));
    expect![].assert_eq(&run("listen: 127.0.0.1:7300\nhttps: { key: /k.pem }\n"));
    check(&["serve", "--config", "/no/such/file.yaml"], &expect![]);
}

#[test]
fn config_show_prints_settings_that_can_be_used() {
    let home = tempfile::tempdir().expect("a directory");
    let shown = sandpool(home.path(), &["config", "show"]);
    assert_eq!(shown.status.code(), Some(0));
    let file = home.path().join("shown.yaml");
    std::fs::write(&file, &shown.stdout).expect("a file");
    let again = sandpool(home.path(), &["config", "show", "--config", file.to_str().expect("UTF-8")]);
    let settings = |output: &Output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_once('\n').map(|(_, settings)| settings.to_owned())
    };
    assert_eq!(settings(&shown), settings(&again));
    let json = sandpool(home.path(), &["config", "show", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["settings"]["listen"], "127.0.0.1:7300");
    assert_eq!(json["settings"]["pools"][2]["spec"]["containerType"], "Shell");
}

#[test]
fn a_server_that_is_not_there_is_told_with_its_address() {
    // A port that was free a moment ago and that nobody listens on.
    let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let home = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_sandpool"))
        .args(["--server", &format!("http://{address}"), "pool", "ls"])
        .env("SANDPOOL_HOME", home.path())
        .env("SANDPOOL_TOKEN", "x")
        .output()
        .expect("the program runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.starts_with(&format!("error: cannot reach a server at http://{address}")), "{said}");
    assert!(said.contains("Connection refused") && said.contains("sandpool up --detach"), "{said}");
}

#[test]
fn doctor_judges_this_host_one_way_or_the_other() {
    let home = tempfile::tempdir().expect("a directory");
    let output = sandpool(home.path(), &["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let lines = report["lines"].as_array().expect("lines");
    let refused = lines.iter().any(|line| line["verdict"] == "refuse");
    assert!(!lines.is_empty());
    assert_eq!(output.status.code(), Some(i32::from(refused)));
}
