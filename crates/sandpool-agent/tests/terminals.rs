//! Terminals of an agent outside of a sandbox.

mod support;

use sandpool_wire::agent::{Answer, Call, ExecKey, FromAgent, Outcome, Refusal, Runtime, ToAgent};
use sandpool_wire::terminal::{Attach, Attached, Make, News, SCROLLBACK, Signal, Size, TERMINALS, Terminal};
use support::{Agent, Client, new_key};

/// One who looks at a terminal.
struct View {
    client: Client,
    attached: Attached,
    exec: ExecKey,
    shown: Vec<u8>,
}

fn wanted(name: &str, script: Option<&str>, after: u64) -> Attach {
    let argv = script.map(|script| ["bash", "-c", script].map(str::to_owned).to_vec());
    let make = argv.map(|argv| Make { exec: new_key(), argv, term: "dumb".to_owned() });
    Attach { name: name.to_owned(), only: None, size: None, make, after }
}

fn attach(agent: &Agent, attach: Attach) -> Result<View, Refusal> {
    let mut client = agent.dial();
    client.until_ready();
    match client.call(Call::Terminal(attach))? {
        Answer::Attached(attached) => {
            let exec = attached.terminal.exec;
            Ok(View { client, attached, exec, shown: Vec::new() })
        }
        other => panic!("{other:?}"),
    }
}

fn terminals(client: &mut Client) -> Vec<Terminal> {
    match client.call(Call::Terminals) {
        Ok(Answer::Terminals(terminals)) => terminals,
        other => panic!("{other:?}"),
    }
}

impl View {
    /// Reads until this was shown; `None` when the terminal has ended before.
    fn until(&mut self, text: &str) -> Option<()> {
        while !String::from_utf8_lossy(&self.shown).contains(text) {
            self.next()?;
        }
        Some(())
    }

    /// Reads once. `None` at the end.
    fn next(&mut self) -> Option<Outcome> {
        match self.client.hear().unwrap() {
            FromAgent::Terminal { exec, news } => {
                assert_eq!(exec, self.exec);
                match news {
                    News::Output { offset, data } => {
                        assert_eq!(offset, self.attached.offset + self.shown.len() as u64, "no byte is missing");
                        self.shown.extend(data);
                        Some(Outcome::Succeeded)
                    }
                    News::Ended(finished) => {
                        self.attached.terminal.outcome = Some(finished.outcome);
                        None
                    }
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn ended(&mut self) -> Outcome {
        while self.next().is_some() {}
        self.attached.terminal.outcome.clone().unwrap()
    }

    fn input(&mut self, data: &str) {
        self.client.say(&ToAgent::Input { exec: self.exec, data: data.into() });
    }
}

#[test]
fn a_terminal_outlives_its_streams_and_goes_on_where_it_was() {
    let agent = Agent::start(Runtime::Shell, "terminal-streams", None);
    let mut control = agent.session();
    assert!(matches!(attach(&agent, wanted("main", None, 0)), Err(Refusal::NotFound)));
    let script = "stty -echo; stty size; while read line; do echo got $line; stty size; done; echo over; exit 3";
    let mut first = attach(&agent, wanted("main", Some(script), 0)).unwrap();
    assert!(first.attached.is_new);
    first.until("24 80\r\n").unwrap();
    first.client.say(&ToAgent::Resize { exec: first.exec, rows: 30, columns: 100 });
    first.input("one\n");
    first.until("got one\r\n30 100\r\n").unwrap();
    let shown = first.shown.len() as u64;
    drop(first);
    let exec = terminals(&mut control)[0].exec;
    control.say(&ToAgent::Input { exec, data: b"two\n".to_vec() });
    let mut second = attach(&agent, wanted("main", Some("echo another"), shown)).unwrap();
    assert!(!second.attached.is_new && second.attached.offset == shown);
    second.until("got two\r\n30 100\r\n").unwrap();
    let mut third =
        attach(&agent, Attach { size: Some(Size { rows: 5, columns: 6 }), ..wanted("main", None, 0) }).unwrap();
    third.until("got one").unwrap();
    assert_eq!(terminals(&mut control)[0].attached, 2);
    second.input("three\n\u{4}");
    for view in [&mut second, &mut third] {
        view.until("got three\r\n5 6\r\nover\r\n").unwrap();
        assert_eq!(view.ended(), Outcome::Exited(3));
    }
    // Its end is known until another takes its name.
    let mut late = attach(&agent, wanted("main", None, 0)).unwrap();
    assert_eq!(late.ended(), Outcome::Exited(3));
    assert_eq!(late.shown, third.shown);
    let only = Attach { only: Some(late.exec), ..wanted("main", None, 0) };
    assert!(attach(&agent, only.clone()).is_ok());
    assert!(attach(&agent, wanted("main", Some("read line"), 0)).unwrap().attached.is_new);
    assert!(matches!(attach(&agent, only), Err(Refusal::NotFound)));
    // It is no execution.
    assert_eq!(control.call(Call::Executions), Ok(Answer::Executions(Vec::new())));
}

#[test]
fn signals_go_to_the_foreground_and_a_hang_up_ends_everything() {
    let agent = Agent::start(Runtime::Shell, "terminal-signals", None);
    let mut control = agent.session();
    let script = "set -m; (trap 'echo heard; exit' INT; echo runs; while :; do sleep 0.05; done); echo after; \
                  set +m; setsid sleep 1004 & trap '' HUP; echo $! > pid; echo deaf; sleep 1005";
    let mut view = attach(&agent, wanted("main", Some(script), 0)).unwrap();
    view.until("runs").unwrap();
    view.client.say(&ToAgent::Signal { exec: view.exec, signal: Signal::Int });
    view.until("heard").unwrap();
    view.until("after").unwrap();
    view.until("deaf").unwrap();
    assert_eq!(control.call(Call::HangUp { name: "other".to_owned() }), Err(Refusal::NotFound));
    assert_eq!(control.call(Call::HangUp { name: "main".to_owned() }), Ok(Answer::Done));
    assert_eq!(terminals(&mut control), []);
    // Its name is free at once.
    assert!(attach(&agent, wanted("main", Some("read line"), 0)).unwrap().attached.is_new);
    assert_eq!(view.ended(), Outcome::Cancelled);
    let run = control.shell("while kill -0 $(cat pid) 2>/dev/null; do sleep 0.01; done; echo gone");
    assert_eq!(run.stdout, "gone\n");
}

#[test]
fn a_flood_is_kept_to_its_end_and_its_program_is_not_held_up() {
    let agent = Agent::start(Runtime::Shell, "terminal-flood", None);
    let mut control = agent.session();
    let script = "stty -onlcr; head -c 3000000 /dev/zero | tr '\\0' x; echo; touch done; read line";
    let view = attach(&agent, wanted("main", Some(script), 0)).unwrap();
    // Somebody looks at it, and does not read.
    let run = control.shell("until [ -e done ]; do sleep 0.01; done; echo yes");
    assert_eq!(run.stdout, "yes\n");
    let mut other = attach(&agent, wanted("main", None, 5)).unwrap();
    assert_eq!(other.attached.offset, 3_000_001 - SCROLLBACK as u64);
    assert_eq!(other.attached.missed, other.attached.offset - 5);
    other.until("x\n").unwrap();
    assert_eq!(other.shown.len(), SCROLLBACK);
    drop(view);
}

#[test]
fn there_are_only_so_many_and_those_that_have_ended_make_room() {
    let agent = Agent::start(Runtime::Shell, "terminal-many", None);
    let mut control = agent.session();
    let mut views = Vec::new();
    for number in 0..TERMINALS {
        views.push(attach(&agent, wanted(&format!("t{number}"), Some("read line"), 0)).unwrap());
    }
    let full = Err(Refusal::Full(u32::try_from(TERMINALS).unwrap()));
    assert_eq!(attach(&agent, wanted("more", Some("read line"), 0)).map(|_| ()), full);
    views[3].input("\n");
    assert_eq!(views[3].ended(), Outcome::Exited(0));
    assert!(attach(&agent, wanted("more", Some("read line"), 0)).unwrap().attached.is_new);
    assert!(terminals(&mut control).iter().all(|terminal| terminal.name != "t3"));
    let missing = Make { exec: new_key(), argv: vec!["no-such-program".to_owned()], term: "dumb".to_owned() };
    views[4].input("\n");
    views[4].ended();
    let mut view = attach(&agent, Attach { make: Some(missing), ..wanted("missing", None, 0) }).unwrap();
    assert!(matches!(view.ended(), Outcome::NotStarted(_)));
}
