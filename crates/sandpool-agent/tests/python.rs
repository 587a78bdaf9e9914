//! The agent of a Python sandbox, outside of a sandbox. Needs a `python3` with IPython, and says so when there is none.

mod support;

use std::time::Duration;

use sandpool_wire::agent::{Answer, Call, FromAgent, Outcome, Refusal, Runtime, Stop, Work};
use support::{Agent, code, execute, new_key, python, shell};

const LONG: Duration = Duration::from_secs(60);

fn agent(name: &str) -> Option<Agent> {
    Some(Agent::start(Runtime::Python, name, Some(&python()?)))
}

#[test]
fn state_is_kept_and_the_last_expression_has_a_value() {
    let Some(agent) = agent("py-state") else { return };
    let mut client = agent.session();
    assert_eq!(client.code("x = 20").result, None);
    let run = client.code("print('said'); x + 1");
    assert_eq!((run.stdout.as_str(), run.text(), run.outcome()), ("said\n", "21", &Outcome::Succeeded));
    assert_eq!(run.result.unwrap().scalar.as_deref(), Some("21"));
    for (source, text, scalar) in [
        ("'a\\u00e9'", "'aé'", Some(r#""a\u00e9""#)),
        ("None", "None", Some("null")),
        ("10**30", "1000000000000000000000000000000", Some("1000000000000000000000000000000")),
        ("float('nan')", "nan", None),
        ("{'k': [1]}", "{'k': [1]}", None),
        ("__name__", "'__main__'", Some(r#""__main__""#)),
        ("import os; os.environ['SESSION']", "'yes'", Some(r#""yes""#)),
        ("import asyncio; await asyncio.sleep(0, 5)", "5", Some("5")),
    ] {
        let result = client.code(source).result.unwrap();
        assert_eq!((result.text.as_str(), result.scalar.as_deref()), (text, scalar), "{source}");
    }
    for nothing in ["print('x')", "5;", "y = 1", ""] {
        assert_eq!(client.code(nothing).result, None, "{nothing}");
    }
}

#[test]
fn exceptions_have_a_name_a_message_and_a_traceback_without_colours() {
    let Some(agent) = agent("py-errors") else { return };
    let mut client = agent.session();
    let run = client.code("def f():\n    return 1 / 0\nf()");
    let error = run.error.unwrap();
    assert_eq!((error.name.as_str(), error.message.as_str()), ("ZeroDivisionError", "division by zero"));
    assert_eq!(run.finished.outcome, Outcome::Raised);
    assert!(error.traceback.contains("return 1 / 0") && !error.traceback.contains('\x1b'), "{}", error.traceback);
    assert!(run.stderr.contains("ZeroDivisionError: division by zero"), "{}", run.stderr);
    assert_eq!(client.code("x +").error.unwrap().name, "SyntaxError");
    assert_eq!(client.code("exit()").outcome(), &Outcome::Succeeded);
    assert_eq!(client.code("import sys; sys.exit(3)").error.unwrap().name, "SystemExit");
}

#[test]
fn magics_and_commands_work() {
    let Some(agent) = agent("py-magics") else { return };
    let mut client = agent.session();
    assert_eq!(client.code("!echo from $SESSION; exit 3").stdout, "from yes\n");
    assert_eq!(client.code("_exit_code").text(), "3");
    assert_eq!(client.code("%%bash\necho cell").stdout, "cell\n");
    assert_eq!(client.code("%cd -q /\n%pwd").text(), "'/'");
    assert_eq!(client.code("names = !printf 'a\\nb\\n'\nnames").text(), "['a', 'b']");
}

#[test]
fn every_figure_of_a_run_is_displayed() {
    let Some(agent) = agent("py-figures") else { return };
    let mut client = agent.session();
    if client.code("import matplotlib").error.is_some() {
        eprintln!("SKIPPED: this python3 has no matplotlib");
        return;
    }
    let run = client.code("import matplotlib.pyplot as plt\nfor i in range(3):\n    plt.figure(); plt.plot([0, i])");
    assert_eq!(run.displays.len(), 3, "{}", run.stderr);
    for display in &run.displays {
        let (kind, bytes) = &display.forms[0];
        assert!(kind == "image/png" && bytes.starts_with(b"\x89PNG"), "{kind}");
    }
    assert_eq!(client.code("plt.plot([1, 2]); plt.show()").displays.len(), 1);
    let quiet = "import matplotlib; matplotlib.use('Agg'); plt.plot([1]); plt.savefig('f.png'); plt.close('all')";
    assert_eq!(client.code(quiet).outcome(), &Outcome::Succeeded);
    assert!(std::fs::read(agent.directory.join("f.png")).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn rich_forms_are_raw_bytes() {
    let Some(agent) = agent("py-rich") else { return };
    let mut client = agent.session();
    let run = client.code("from IPython.display import *\ndisplay(HTML('<b>x</b>'))\nJSON({'a': [1]})");
    assert_eq!(run.displays[0].forms, [("text/html".to_owned(), b"<b>x</b>".to_vec())]);
    let forms = run.result.unwrap().forms;
    assert_eq!(forms, [("application/json".to_owned(), br#"{"a": [1]}"#.to_vec())]);
    let svg = client.code("SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"></svg>')").result.unwrap();
    assert!(svg.forms.iter().any(|(kind, bytes)| kind == "image/svg+xml" && bytes.starts_with(b"<svg")), "{svg:?}");
    let large = client.code("display({'text/plain': 't', 'image/png': b'0' * 4_000_000}, raw=True)");
    assert_eq!(large.displays[0].dropped, [("image/png".to_owned(), 4_000_000)]);
}

#[test]
fn an_interrupt_keeps_the_state() {
    let Some(agent) = agent("py-interrupt") else { return };
    let mut client = agent.session();
    client.code("import asyncio, time; kept = 1");
    for wait in ["time.sleep(1000)", "\nwhile True: pass", "await asyncio.sleep(1000)", "\n!sleep 1000"] {
        let exec = client.start(code(&format!("kept += 1; print('on'); {wait}")), LONG);
        client.until_stdout(exec, "on\n");
        let busy = client.call(Call::Execute(execute(new_key(), code("1"), LONG)));
        assert_eq!(busy, Err(Refusal::Busy));
        assert_eq!(client.shell("echo beside").stdout, "beside\n");
        assert_eq!(client.call(Call::Stop { exec, how: Stop::Interrupt }), Ok(Answer::Done));
        let run = client.finish(exec);
        assert_eq!((run.outcome(), run.finished.state_lost), (&Outcome::Cancelled, false), "{wait}");
    }
    assert_eq!(client.code("kept").text(), "5");
}

#[test]
fn a_time_out_ends_what_the_code_started_and_leaves_the_session_usable() {
    let Some(agent) = agent("py-timeout") else { return };
    let mut client = agent.session();
    client.code("import os, subprocess, time; kept = 1; old = subprocess.Popen(['sleep', '1004'])");
    let source = "new = subprocess.Popen(['setsid', 'sleep', '1005'])\nfork = os.fork()\nif fork == 0: time.sleep(1006)\nprint('on')\ntime.sleep(1007)";
    let exec = client.start(code(source), Duration::from_secs(2));
    let run = client.finish(exec);
    assert_eq!((run.outcome(), run.stdout.as_str(), run.finished.state_lost), (&Outcome::TimedOut, "on\n", false));
    let run = client.code("kept, new.wait() != 0, os.waitpid(fork, 0)[1] != 0, old.poll()");
    assert_eq!(run.text(), "(1, True, True, None)", "{}", run.stderr);
    // Code that will not end is ended with its interpreter, and the session goes on with a new one.
    let stubborn = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass";
    let exec = client.start(code(stubborn), Duration::from_millis(300));
    let run = client.finish(exec);
    assert_eq!((run.outcome(), run.finished.state_lost), (&Outcome::TimedOut, true));
    let run = client.code("try:\n    kept\nexcept NameError:\n    print('fresh', __import__('os').environ['SESSION'])");
    assert_eq!(run.stdout, "fresh yes\n");
    client.shell("pkill -P $PPID sleep");
}

#[test]
fn an_interpreter_that_goes_away_is_replaced_and_says_so() {
    let Some(agent) = agent("py-died") else { return };
    let mut client = agent.session();
    let run = client.code("print('last words'); import os; os._exit(3)");
    assert!(matches!(run.outcome(), Outcome::Died(how) if how.contains("code 3")), "{run:?}");
    assert_eq!((run.finished.state_lost, run.stdout.as_str()), (true, "last words\n"));
    let run = client.code("1 + 1");
    assert_eq!((run.text(), run.finished.state_lost), ("2", false));
    // A message of its own making ends the interpreter, and nothing else.
    for forged in [
        r#"body = b'{"t":"end","n":"0-1","ok":true}'; os.write(5, len(body).to_bytes(4, 'little') + bytes(4) + body)"#,
        "os.write(5, b'\\xff' * 100)",
        "os.close(5)",
        "os.closerange(3, 100)",
    ] {
        let run = client.code(&format!("import os, time\n{forged}\ntime.sleep(1000)"));
        assert!(matches!(run.outcome(), Outcome::Died(_)), "{forged}: {run:?}");
    }
    assert_eq!(client.code("2 + 2").text(), "4");
    assert_eq!(client.shell("echo well").stdout, "well\n");
}

#[test]
fn a_fresh_namespace_is_empty_and_thrown_away() {
    let Some(agent) = agent("py-fresh") else { return };
    let mut client = agent.session();
    client.code("x = 1");
    let fresh = |source: &str| Work::Code { code: source.to_owned(), fresh: true };
    assert_eq!(client.run(fresh("x")).error.unwrap().name, "NameError");
    assert_eq!(client.run(fresh("y = 2\n(y, __name__, _ if '_' in dir() else '')")).text(), "(2, '__main__', '')");
    assert_eq!(client.code("y").error.unwrap().name, "NameError");
    assert_eq!(client.code("x").text(), "1");
}

#[test]
fn output_comes_as_it_is_written_and_before_what_follows_it() {
    let Some(agent) = agent("py-output") else { return };
    let mut client = agent.session();
    let exec = client
        .start(code("import os, time\nprint('part', end='')\nwhile not os.path.exists('go'): time.sleep(0.02)"), LONG);
    client.until_stdout(exec, "part");
    std::fs::write(agent.directory.join("go"), "").unwrap();
    assert_eq!(client.finish(exec).outcome(), &Outcome::Succeeded);
    let run = client.code("for i in range(5000): print(i)\nos.system('echo child')\n'v'");
    let lines: Vec<_> = run.stdout.lines().collect();
    assert_eq!((lines.len(), lines[4999], lines[5000], run.text()), (5001, "4999", "child", "'v'"));
    // A copy of the interpreter that runs to the end of the code says nothing to the agent.
    let run = client.code("pid = os.fork()\nif pid: os.waitpid(pid, 0)\n'once'");
    assert_eq!((run.text(), run.outcome()), ("'once'", &Outcome::Succeeded));
}

#[test]
fn a_sandbox_without_python_says_that_it_is_broken() {
    let agent = Agent::start(Runtime::Python, "py-broken", Some(&broken_python()));
    let mut client = agent.dial();
    let reason = loop {
        match client.hear().unwrap() {
            FromAgent::Hello { version, .. } => assert_eq!(version, ""),
            FromAgent::Broken { reason, .. } => break reason,
            other => panic!("{other:?}"),
        }
    };
    assert!(reason.contains("no python today"), "{reason}");
    assert_eq!(client.call(Call::Activate(Default::default())), Ok(Answer::Done));
    let answer = client.call(Call::Execute(execute(new_key(), code("1"), LONG)));
    assert!(matches!(answer, Err(Refusal::Failed(_))));
    assert_eq!(client.run(shell("echo shell")).stdout, "shell\n");
}

fn broken_python() -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("broken-python");
    std::fs::create_dir_all(&directory).unwrap();
    let program = directory.join("python3");
    std::fs::write(&program, "#!/bin/sh\necho no python today >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}
