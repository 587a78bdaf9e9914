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
    check(
        &["frobnicate"],
        &expect![[r#"
        exit code 2
        err| error: unrecognized subcommand 'frobnicate'
        err|
        err| Usage: sandpool [OPTIONS] <COMMAND>
        err|
        err| For more information, try '--help'.
    "#]],
    );
    check(
        &["up", "--listen", "here"],
        &expect![[r#"
        exit code 2
        err| error: invalid value 'here' for '--listen <ADDR:PORT>': invalid socket address syntax
        err|
        err| For more information, try '--help'.
    "#]],
    );
    check(
        &["up", "--max-sessions", "0"],
        &expect![[r#"
        exit code 2
        err| error: invalid value '0' for '--max-sessions <N>': 0 is not in 1..=100000
        err|
        err| For more information, try '--help'.
    "#]],
    );
    check(
        &["run", "-c", "1", "file.py"],
        &expect![[r#"
        exit code 2
        err| error: the argument '-c <CODE>' cannot be used with '[FILE]'
        err|
        err| Usage: sandpool run -c <CODE> --home <DIR> [FILE] [-- <COMMAND>...]
        err|
        err| For more information, try '--help'.
    "#]],
    );
    check(
        &["run", "-c", "1", "--", "ls"],
        &expect![[r#"
        exit code 2
        err| error: the argument '-c <CODE>' cannot be used with '[COMMAND]...'
        err|
        err| Usage: sandpool run -c <CODE> --home <DIR> [FILE] [-- <COMMAND>...]
        err|
        err| For more information, try '--help'.
    "#]],
    );
    check(
        &["token", "--ttl", "soon"],
        &expect![[r#"
        exit code 2
        err| error: invalid value 'soon' for '--ttl <TIME>': "soon" is not a time; write seconds, or a number with s, m, h or d, such as 90s or 12h
        err|
        err| For more information, try '--help'.
    "#]],
    );
    check(
        &["token", "--role", "king"],
        &expect![[r#"
        exit code 2
        err| error: invalid value 'king' for '--role <ROLE>'
        err|   [possible values: reader, executor, admin]
        err|
        err| For more information, try '--help'.
    "#]],
    );
    check(
        &["token", "--pool", "No Such"],
        &expect![[r#"
        exit code 2
        err| error: --pool No Such: not the name of a pool
        err|   because: a pool's name has 1 to 63 characters, begins with a letter a-z and goes on with a-z, 0-9 and '-'; this one is "No Such"
    "#]],
    );
    check(
        &["files", "put", "-s", "abcd"],
        &expect![[r#"
        exit code 2
        err| error: the following required arguments were not provided:
        err|   <FILE>...
        err|
        err| Usage: sandpool files put --session <SESSION> --home <DIR> <FILE>...
        err|
        err| For more information, try '--help'.
    "#]],
    );
    check(
        &["shell"],
        &expect![[r#"
        exit code 2
        err| error: `sandpool shell` needs a terminal
        err|   try: sandpool run -- COMMAND
    "#]],
    );
    check(
        &["run", "/no/such/file.py"],
        &expect![[r#"
        exit code 2
        err| error: cannot read /no/such/file.py
        err|   because: No such file or directory (os error 2)
    "#]],
    );
    check(
        &["--server", "ftp://x", "pool", "ls"],
        &expect![[r#"
        exit code 2
        err| error: "ftp://x" is not the address of a server
        err|   try: an http or https URL, such as http://127.0.0.1:7300
    "#]],
    );
}

#[test]
fn without_a_server_commands_say_how_to_start_one() {
    check(
        &["pool", "ls"],
        &expect![[r#"
        exit code 1
        err| error: no server runs here
        err|   because: HOME/run/server.json names no living process
        err|   try: sandpool up --detach --home HOME, or give --server URL
    "#]],
    );
    check(
        &["run", "-c", "1"],
        &expect![[r#"
        exit code 1
        err| error: no server runs here
        err|   because: HOME/run/server.json names no living process
        err|   try: sandpool up --detach --home HOME, or give --server URL
    "#]],
    );
    check(
        &["env"],
        &expect![[r#"
        exit code 1
        err| error: no server runs here
        err|   because: HOME/run/server.json names no living process
        err|   try: sandpool up --detach --home HOME
    "#]],
    );
    check(
        &["--json", "session", "ls"],
        &expect![[r#"
        exit code 1
        err| {"error":{"advice":"sandpool up --detach --home HOME, or give --server URL","message":"no server runs here","why":["HOME/run/server.json names no living process"]}}
    "#]],
    );
    check(
        &["down"],
        &expect![[r#"
        exit code 0
        err| no server runs on HOME
    "#]],
    );
    check(
        &["down", "--json"],
        &expect![[r#"
        exit code 0
        out| {
        out|   "stopped": false
        out| }
    "#]],
    );
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
    expect![[r#"
        error: the settings cannot be used
          because: HOME/settings.yaml: pools[0].spec: unknown field `memroy`, expected one of `containerType`, `image`, `imageKey`, `scaleConfiguration`, `dynamicPoolConfiguration`, `resources`, `execution`, `interpreterStart`, `env`, `sessionScope`, `egress`, `customContainerTemplate`, `containerSecrets`, `managedIdentity`, `secrets`, `sessionSecrets`, `localServers`, `sessionNetworkConfiguration`, `mcpServerSettings`, `servers` at line 1 column 65
          try: docs/cli.md lists the keys; `sandpool config show` prints the defaults
    "#]].assert_eq(&run("pools: [ { metadata: { name: p }, spec: { containerType: Shell, memroy: 2Gi } } ]"));
    expect![[r#"
        error: the settings cannot be used
          because: https.certificate: is missing; certificate and key go together
          try: docs/cli.md lists the keys; `sandpool config show` prints the defaults
    "#]]
    .assert_eq(&run("listen: 127.0.0.1:7300\nhttps: { key: /k.pem }\n"));
    check(
        &["serve", "--config", "/no/such/file.yaml"],
        &expect![[r#"
        exit code 2
        err| error: the settings cannot be used
        err|   because: cannot read /no/such/file.yaml
        err|   because: No such file or directory (os error 2)
    "#]],
    );
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
    let address =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
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
