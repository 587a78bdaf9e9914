//! The agent of a shell, outside of a sandbox: streams, programs, files.

mod support;

use std::io::Write;
use std::time::Duration;

use sandpool_wire::agent::{
    Activation, Answer, Call, EntryKind, Event, FromAgent, Outcome, PROTOCOL, Refusal, Runtime, Stdin, Stop, ToAgent,
    Work,
};
use support::{Agent, execute, new_key, shell};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn every_stream_is_greeted_and_only_an_activated_agent_works() {
    let agent = Agent::start(Runtime::Shell, "greeting", None);
    let (mut first, mut second) = (agent.dial(), agent.dial());
    let mut greetings = Vec::new();
    for client in [&mut first, &mut second] {
        let Some(FromAgent::Hello { protocol, boot_id, runtime, version }) = client.hear() else { panic!() };
        assert_eq!((protocol, runtime), (PROTOCOL, Runtime::Shell));
        assert!(version.starts_with(|first: char| first.is_ascii_digit()), "{version}");
        assert_eq!(client.hear(), Some(FromAgent::Ready));
        greetings.push(boot_id);
    }
    assert_eq!(greetings[0], greetings[1]);
    assert_eq!(first.call(Call::Ping), Ok(Answer::Done));
    assert!(matches!(first.call(Call::Executions), Err(Refusal::Invalid(_))));
    assert_eq!(first.call(Call::Activate(Activation::default())), Ok(Answer::Done));
    assert!(matches!(second.call(Call::Activate(Activation::default())), Err(Refusal::Invalid(_))));
    assert_eq!(second.call(Call::Executions), Ok(Answer::Executions(Vec::new())));
}

#[test]
fn commands_have_true_exit_codes_and_separate_streams() {
    let agent = Agent::start(Runtime::Shell, "codes", None);
    let mut client = agent.session();
    let run = client.shell("echo out; echo err >&2; echo $SESSION; pwd; exit 7");
    assert_eq!(run.stdout, format!("out\nyes\n{}\n", agent.directory.display()));
    assert_eq!((run.stderr.as_str(), run.outcome()), ("err\n", &Outcome::Exited(7)));
    assert_eq!(client.shell("kill -TERM $$").outcome(), &Outcome::Exited(143));
    let argv = Work::Argv { argv: vec!["no-such-program".to_owned()], stdin: Stdin::Empty };
    assert!(matches!(client.run(argv).outcome(), Outcome::NotStarted(_)));
    let argv =
        Work::Argv { argv: vec!["printf".to_owned(), "%s".to_owned(), "$HOME *".to_owned()], stdin: Stdin::Empty };
    assert_eq!(client.run(argv).stdout, "$HOME *");
    // Longer than the kernel takes in one argument.
    let long = format!(": '{}'; echo $0 done; false", "x".repeat(300_000));
    let run = client.shell(&long);
    assert_eq!((run.stdout.as_str(), run.outcome()), ("/bin/bash done\n", &Outcome::Exited(1)));
    for bad in [Work::Argv { argv: Vec::new(), stdin: Stdin::Empty }, shell("a\0b"), support::code("1")] {
        let answer = client.call(Call::Execute(execute(new_key(), bad, LONG)));
        assert!(matches!(answer, Err(Refusal::Invalid(_))), "{answer:?}");
    }
}

#[test]
fn input_comes_whole_or_as_it_is_typed() {
    let agent = Agent::start(Runtime::Shell, "input", None);
    let mut client = agent.session();
    let bytes = vec![b'x'; 2_000_000];
    let run = client.run(Work::Shell { command: "wc -c".to_owned(), stdin: Stdin::Bytes(bytes) });
    assert_eq!(run.stdout.trim(), "2000000");
    let exec = client.start(Work::Shell { command: "cat; echo end".to_owned(), stdin: Stdin::Stream }, LONG);
    client.say(&ToAgent::Input { exec, data: b"one\n".to_vec() });
    client.until_stdout(exec, "one\n");
    client.say(&ToAgent::Input { exec, data: b"two\n".to_vec() });
    client.say(&ToAgent::Input { exec, data: Vec::new() });
    let run = client.finish(exec);
    assert_eq!((run.stdout.as_str(), run.outcome()), ("two\nend\n", &Outcome::Exited(0)));
    // More than any pipe holds, while the program has yet to read.
    let command = "read line; wc -c".to_owned();
    let exec = client.start(Work::Shell { command, stdin: Stdin::Stream }, LONG);
    for _ in 0..8 {
        client.say(&ToAgent::Input { exec, data: vec![b'y'; 1 << 20] });
    }
    client.say(&ToAgent::Input { exec, data: b"\n12345".to_vec() });
    client.say(&ToAgent::Input { exec, data: Vec::new() });
    assert_eq!(client.finish(exec).stdout.trim(), "5");
}

#[test]
fn a_time_out_ends_all_that_was_started_and_nothing_else() {
    let agent = Agent::start(Runtime::Shell, "timeout", None);
    let mut client = agent.session();
    let other = client.start(shell("echo other; exec sleep 1000"), LONG);
    client.until_stdout(other, "other\n");
    let command = "sleep 1001 & echo $! > pids; (setsid sleep 1002 & echo $! >> pids); echo on; sleep 1003";
    let exec = client.start(shell(command), Duration::from_millis(700));
    let run = client.finish(exec);
    assert_eq!((run.outcome(), run.stdout.as_str()), (&Outcome::TimedOut, "on\n"));
    let run =
        client.shell("for pid in $(cat pids); do while kill -0 $pid 2>/dev/null; do sleep 0.01; done; done; echo gone");
    assert_eq!(run.stdout, "gone\n");
    assert_eq!(client.call(Call::Stop { exec: other, how: Stop::Kill }), Ok(Answer::Done));
    assert_eq!(client.finish(other).outcome(), &Outcome::Cancelled);
}

#[test]
fn an_interrupt_reaches_the_command() {
    let agent = Agent::start(Runtime::Shell, "interrupt", None);
    let mut client = agent.session();
    let command = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done";
    let exec = client.start(shell(command), LONG);
    client.until_stdout(exec, "ready\n");
    assert_eq!(client.call(Call::Stop { exec, how: Stop::Interrupt }), Ok(Answer::Done));
    let run = client.finish(exec);
    assert_eq!((run.stdout.as_str(), run.outcome()), ("caught\n", &Outcome::Cancelled));
    assert_eq!(client.call(Call::Stop { exec: new_key(), how: Stop::Kill }), Err(Refusal::NotFound));
}

#[test]
fn background_processes_live_on_and_may_write() {
    let agent = Agent::start(Runtime::Shell, "background", None);
    let mut client = agent.session();
    let run = client.shell("(until [ -e go ]; do sleep 0.02; done; echo late; echo $? > result) & echo started");
    assert_eq!((run.stdout.as_str(), run.outcome()), ("started\n", &Outcome::Exited(0)));
    let run = client.shell("touch go; until [ -s result ]; do sleep 0.02; done; cat result");
    assert_eq!(run.stdout, "0\n");
}

#[test]
fn output_over_the_limit_is_counted() {
    let agent = Agent::start(Runtime::Shell, "limit", None);
    let mut client = agent.session();
    let run = client.shell("head -c 3000000 /dev/zero | tr '\\0' a; echo b >&2");
    assert_eq!(run.stdout.len(), 1 << 20);
    assert_eq!(run.finished.dropped, (3_000_000 - (1 << 20), 2));
}

#[test]
fn executions_outlive_streams_and_keys_start_once() {
    let agent = Agent::start(Runtime::Shell, "attach", None);
    let mut first = agent.session();
    let exec = new_key();
    let start = Call::Execute(execute(
        exec,
        shell("echo x >> runs; echo begun; until [ -e go ]; do sleep 0.02; done; cat runs"),
        LONG,
    ));
    assert_eq!(first.call(start.clone()), Ok(Answer::Done));
    assert_eq!(first.call(start), Ok(Answer::Done));
    first.until_stdout(exec, "begun\n");
    drop(first);
    let mut second = agent.dial();
    second.until_ready();
    assert_eq!(second.call(Call::Executions), Ok(Answer::Executions(vec![(exec, None)])));
    assert_eq!(second.call(Call::Attach { exec, after_seq: 0 }), Ok(Answer::Done));
    second.until_stdout(exec, "begun\n");
    std::fs::write(agent.directory.join("go"), "").unwrap();
    assert_eq!(second.finish(exec).stdout, "x\n");
    assert_eq!(second.call(Call::Attach { exec, after_seq: 2 }), Ok(Answer::Done));
    let (seq, event) = second.event(exec);
    assert_eq!((seq, event), (3, Event::Stdout(b"x\n".to_vec())));
    assert_eq!(second.call(Call::Attach { exec: new_key(), after_seq: 0 }), Err(Refusal::NotFound));
}

#[test]
fn a_terminal_is_one() {
    let agent = Agent::start(Runtime::Shell, "terminal", None);
    let mut client = agent.session();
    let argv = ["bash", "-c", "stty -echo; echo $TERM; stty size; read line; stty size; echo got $line; exit 3"];
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    let exec = client.start(Work::Terminal { argv, rows: 24, columns: 80, term: "dumb".to_owned() }, LONG);
    client.until_stdout(exec, "dumb\r\n24 80\r\n");
    client.say(&ToAgent::Resize { exec, rows: 30, columns: 100 });
    client.say(&ToAgent::Input { exec, data: b"typed\n".to_vec() });
    let run = client.finish(exec);
    assert_eq!((run.stdout.as_str(), run.outcome()), ("30 100\r\ngot typed\r\n", &Outcome::Exited(3)));
}

#[test]
fn files_are_written_listed_read_and_removed() {
    let agent = Agent::start(Runtime::Shell, "files", None);
    let mut client = agent.session();
    let path = agent.path("new/deep.bin");
    let Ok(Answer::Upload(upload)) = client.call(Call::WriteOpen { path: path.clone() }) else { panic!() };
    assert_eq!(client.call(Call::Write { upload, data: b"12345".to_vec() }), Ok(Answer::Done));
    assert_eq!(client.call(Call::Stat { path: path.clone() }), Err(Refusal::NotFound));
    assert!(matches!(client.call(Call::WriteCommit { upload }), Ok(Answer::Entry(entry)) if entry.size == 5));
    let answer = client.call(Call::Read { path, offset: 1, length: 3 });
    assert_eq!(answer, Ok(Answer::Data { data: b"234".to_vec(), size: 5 }));
    let list = Call::List { path: agent.path("new"), recursive: true, after: None, limit: 10 };
    let Ok(Answer::Entries { entries, more: false }) = client.call(list) else { panic!() };
    assert_eq!((entries[0].path.as_str(), entries[0].kind), ("deep.bin", EntryKind::File));
    assert_eq!(client.call(Call::Remove { path: agent.path("new") }), Ok(Answer::Done));
    assert_eq!(client.call(Call::Stat { path: agent.path("new") }), Err(Refusal::NotFound));
}

#[test]
fn a_stream_of_nonsense_is_closed_and_harms_no_other() {
    let mut agent = Agent::start(Runtime::Shell, "nonsense", None);
    let mut good = agent.session();
    let mut bad = agent.dial();
    bad.until_ready();
    bad.stream.write_all(&[0xff; 64]).unwrap();
    assert_eq!(bad.hear(), None);
    assert_eq!(good.shell("echo fine").stdout, "fine\n");
    agent.end();
    assert_eq!(good.hear(), None);
}

fn service(script: &str) -> Work {
    let argv = ["bash", "-c", script].map(str::to_owned).to_vec();
    Work::Service { argv, env: vec![("OWN".to_owned(), "of it".to_owned())] }
}

#[test]
fn a_service_says_more_than_is_ever_kept() {
    let agent = Agent::start(Runtime::Shell, "service", None);
    let mut client = agent.session();
    let exec = client.start(service("echo $OWN $SESSION; exec cat"), LONG);
    client.until_stdout(exec, "of it yes\n");
    let piece = vec![b'x'; 60_000];
    for _ in 0..200 {
        client.say(&ToAgent::Input { exec, data: piece.clone() });
        let mut left = piece.len();
        while left > 0 {
            let (_, Event::Stdout(data)) = client.event(exec) else { panic!() };
            left -= data.len();
        }
    }
    // What was sent is not kept: who comes later hears what comes later.
    let mut other = agent.dial();
    other.until_ready();
    assert_eq!(other.call(Call::Attach { exec, after_seq: 0 }), Ok(Answer::Done));
    client.say(&ToAgent::Input { exec, data: b"last".to_vec() });
    let (seq, event) = other.event(exec);
    assert!(seq > 200 && event == Event::Stdout(b"last".to_vec()), "{seq} {event:?}");
    client.say(&ToAgent::Input { exec, data: Vec::new() });
    let run = client.finish(exec);
    assert_eq!((run.outcome(), run.finished.dropped), (&Outcome::Exited(0), (0, 0)));
}

#[test]
fn a_service_waits_for_its_listener_and_ends_with_it() {
    let agent = Agent::start(Runtime::Shell, "listener", None);
    let mut client = agent.session();
    let mut listener = agent.dial();
    listener.until_ready();
    let exec = listener.start(service("sleep 86397 & echo $! > child; touch begun; exec yes"), LONG);
    assert_eq!(client.shell("until [ -s child ]; do sleep 0.02; done; echo ok").stdout, "ok\n");
    // It has far more to say than fits anywhere; all that it says arrives, in order.
    let mut heard = 0;
    while heard < 5_000_000 {
        if let (_, Event::Stdout(data)) = listener.event(exec) {
            let begins_with_y = heard % 2 == 0;
            assert_eq!(data[0] == b'y', begins_with_y);
            heard += data.len();
        }
    }
    drop(listener);
    let gone = client.shell("until ! kill -0 $(cat child) 2>/dev/null; do sleep 0.02; done; echo gone");
    assert_eq!(gone.stdout, "gone\n");
    let ended = (exec, Some(Outcome::Cancelled));
    loop {
        let Ok(Answer::Executions(known)) = client.call(Call::Executions) else { panic!() };
        if known.contains(&ended) {
            break;
        }
    }
}
