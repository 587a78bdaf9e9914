//! The agent of a Node sandbox, outside of a sandbox. Needs a `node` of version 20 or later, and says so when there is
//! none.

mod support;

use std::io::Read;
use std::time::Duration;

use sandpool_wire::agent::{Answer, Call, Outcome, Refusal, Runtime, Stop, Work};
use support::{Agent, code, has_node};

const LONG: Duration = Duration::from_secs(60);

fn agent(name: &str) -> Option<Agent> {
    has_node().then(|| Agent::start(Runtime::Node, name, None))
}

#[test]
fn state_is_kept_and_the_last_expression_has_a_value() {
    let Some(agent) = agent("js-state") else { return };
    let mut client = agent.session();
    assert_eq!(client.code("const x = 20").result, None);
    let run = client.code("console.log('said'); console.error('warned'); x + 1");
    assert_eq!((run.stdout.as_str(), run.stderr.as_str(), run.text()), ("said\n", "warned\n", "21"));
    for (source, text, scalar) in [
        ("'a'", "'a'", Some(r#""a""#)),
        ("null", "null", Some("null")),
        ("NaN", "NaN", None),
        ("10n ** 30n", "1000000000000000000000000000000n", Some("1000000000000000000000000000000")),
        ("{ a: 1 }", "{ a: 1 }", None),
        ("await new Promise((resolve) => setTimeout(() => resolve(3), 10))", "3", Some("3")),
        ("process.env.SESSION", "'yes'", Some(r#""yes""#)),
        ("require('path').join('a', 'b')", "'a/b'", Some(r#""a/b""#)),
        ("async function main() { return 4 }\nmain()", "4", Some("4")),
        ("(await import('fs')).existsSync('/')", "true", Some("true")),
        ("import os, { EOL as end } from 'os'\n[typeof os.cpus, end]", "[ 'function', '\\n' ]", None),
    ] {
        let run = client.code(source);
        let result = run.result.unwrap_or_else(|| panic!("{source}: {}", run.stderr));
        assert_eq!((result.text.as_str(), result.scalar.as_deref()), (text, scalar), "{source}");
    }
    for nothing in ["undefined", "let y = 1", "", "console.log(1)"] {
        assert_eq!(client.code(nothing).result, None, "{nothing}");
    }
}

#[test]
fn names_may_be_declared_again_in_any_way() {
    let Some(agent) = agent("js-redeclare") else { return };
    let mut client = agent.session();
    for (index, source) in
        ["const v = 0", "let v = 1", "const v = 2", "const { v } = { v: 3 }", "const [v] = [4]", "var v = 5"]
            .iter()
            .enumerate()
    {
        let run = client.code(&format!("{source}; v"));
        assert_eq!(run.text(), index.to_string(), "{source}: {}", run.stderr);
    }
    for source in
        ["class C { a() { return 1 } }", "class C { a() { return 2 } }", "function f() {}", "const f = () => 3"]
    {
        assert_eq!(client.code(source).outcome(), &Outcome::Succeeded, "{source}");
    }
    assert_eq!(client.code("[new C().a(), f()]").text(), "[ 2, 3 ]");
    // What only looks like a declaration or an import is left alone.
    let run = client
        .code("const s = 'const import(1)', r = /[\"'`/]const/, t = `${{ a: `const` }.a} import x`; [s, r.source, t]");
    assert_eq!(run.text(), "[ 'const import(1)', '[\"\\'`/]const', 'const import x' ]", "{}", run.stderr);
    assert_eq!(client.code("{ const inner = 1; inner = 2 }").error.unwrap().name, "TypeError");
}

#[test]
fn errors_end_a_run_and_no_interpreter() {
    let Some(agent) = agent("js-errors") else { return };
    let mut client = agent.session();
    client.code("const kept = 1");
    let run = client.code("function f() { throw new TypeError('deep') }\nf()");
    let error = run.error.unwrap();
    assert_eq!((error.name.as_str(), error.message.as_str()), ("TypeError", "deep"));
    assert!(error.traceback.contains("at f (") && !error.traceback.contains("sandpool"), "{}", error.traceback);
    assert!(run.stderr.contains("Uncaught TypeError: deep"), "{}", run.stderr);
    for (source, name) in [
        ("x +", "SyntaxError"),
        ("throw 5", "number"),
        ("await Promise.reject(new RangeError('r'))", "RangeError"),
        ("(async () => { throw new Error('lost') })(); 1", "Error"),
        ("setTimeout(() => { throw new EvalError('late') }, 5); await new Promise(() => {})", "EvalError"),
        ("process.exit(3)", "Exit"),
    ] {
        let run = client.code(source);
        assert_eq!(run.outcome(), &Outcome::Raised, "{source}");
        assert_eq!(run.error.unwrap().name, name, "{source}");
    }
    assert_eq!(client.code("process.exit(0)").outcome(), &Outcome::Succeeded);
    assert_eq!(client.code("kept").text(), "1");
}

#[test]
fn an_interrupt_keeps_the_state() {
    let Some(agent) = agent("js-interrupt") else { return };
    let mut client = agent.session();
    client.code("let kept = 1");
    let child = "require('child_process').execSync('echo on; sleep 1008', { stdio: 'inherit' })";
    for wait in ["console.log('on'); while (true) {}", "console.log('on'); await new Promise(() => {})", child] {
        let exec = client.start(code(&format!("kept += 1; {wait}")), LONG);
        client.until_stdout(exec, "on\n");
        assert_eq!(client.call(Call::Stop { exec, how: Stop::Interrupt }), Ok(Answer::Done));
        let run = client.finish(exec);
        assert_eq!((run.outcome(), run.finished.state_lost), (&Outcome::Cancelled, false), "{wait}");
    }
    assert_eq!(client.code("kept").text(), "4");
}

#[test]
fn a_time_out_leaves_the_session_usable() {
    let Some(agent) = agent("js-timeout") else { return };
    let mut client = agent.session();
    client.code("let kept = 1");
    let source = "const child = require('child_process').spawn('sleep', ['1009']); console.log('on'); while (true) {}";
    let exec = client.start(code(source), Duration::from_secs(1));
    let run = client.finish(exec);
    assert_eq!((run.outcome(), run.stdout.as_str(), run.finished.state_lost), (&Outcome::TimedOut, "on\n", false));
    let ended =
        "if (child.signalCode === null) await new Promise((end) => child.on('exit', end)); [kept, child.signalCode]";
    assert_eq!(client.code(ended).text(), "[ 1, 'SIGKILL' ]");
    let run = client.code("process.kill(process.pid, 'SIGKILL'); await new Promise(() => {})");
    assert!(matches!(run.outcome(), Outcome::Died(_)) && run.finished.state_lost, "{run:?}");
    assert_eq!(client.code("typeof kept + process.env.SESSION").text(), "'undefinedyes'");
}

#[test]
fn a_fresh_namespace_is_empty_and_thrown_away() {
    let Some(agent) = agent("js-fresh") else { return };
    let mut client = agent.session();
    client.code("const x = 1; var global1 = 2");
    let fresh = |source: &str| Work::Code { code: source.to_owned(), fresh: true };
    let kinds = "[typeof x, typeof global1, typeof require, typeof fs.readFileSync, typeof fetch, [] instanceof Array]";
    let expected = "'undefined','undefined','function','function','function',true";
    let run = client.run(fresh(kinds));
    assert_eq!(run.text().replace(['\n', ' ', '[', ']'], ""), expected, "{}", run.stderr);
    assert_eq!(client.run(fresh("const x = 5; x")).text(), "5");
    assert_eq!(client.code("x").text(), "1");
}

#[test]
fn what_goes_on_between_runs_goes_on() {
    let Some(agent) = agent("js-between") else { return };
    let mut client = agent.session();
    let serve = "const server = require('http').createServer((_, answer) => answer.end('served')).listen(0, '127.0.0.1'); \
        await new Promise((up) => server.on('listening', up)); server.address().port";
    let port = client.code(serve).text().to_owned();
    let asked = client.code(&format!("await (await fetch('http://127.0.0.1:{port}/')).text()"));
    assert_eq!(asked.text(), "'served'");
    // The loop turns between runs as well: this command comes from outside of the interpreter.
    let run = client
        .shell(&format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; tail -n 1 <&3"));
    assert_eq!(run.stdout, "served");
}

#[test]
fn one_of_several_keeps_its_variables_and_draws_for_itself() {
    let Some(agent) = agent("js-renewed") else { return };
    let mut before = agent.session();
    before.code("kept = 7; require('crypto').randomUUID()");
    agent.renew();
    // Whoever had it has nothing to say any more, and whoever comes must take it first.
    assert!(before.stream.read(&mut [0; 16]).is_ok_and(|count| count == 0));
    let mut client = agent.dial();
    client.until_ready();
    assert!(matches!(client.call(Call::Executions), Err(Refusal::Invalid(_))));
    let mut client = agent.session();
    assert_eq!(client.code("kept").text(), "7");
    // The engine's generator, whose state cannot be had anew, is not there any more, in any context.
    let drawn = "const draws = Array.from({ length: 20000 }, Math.random); const mean = draws.reduce((sum, one) => sum + one) / 20000;
                 [draws.every((one) => one >= 0 && one < 1), new Set(draws).size === 20000, Math.abs(mean - 0.5) < 0.02,
                  /native/.test(Math.random), /native/.test(require('vm').runInNewContext('Math.random')),
                  require('vm').runInNewContext('a + 1', { a: 2 }), Object.keys(Math).length]";
    let said = client.code(drawn).text().replace(['\n', ' ', '[', ']'], "");
    assert_eq!(said, "true,true,true,false,false,3,0");
    let fresh = Work::Code { code: "/native/.test(Math.random)".to_owned(), fresh: true };
    assert_eq!(client.run(fresh).text(), "false");
    agent.renew();
    assert_eq!(agent.session().code("kept").text(), "7");
}
