//! What the interpreters promise, tried as users do: Python, Node and the shell in real sandboxes of the real images,
//! through the service layer.
//!
//! Needs root and the images `python`, `node` and `shell`; says so when it skips. The cases are data, in one file for each
//! pool; what a step does and what must then be seen is below.

#[path = "../stage/mod.rs"]
mod stage;

mod node;
mod python;
mod shell;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use sandpool_core::limits::{Limits, Scale};
use sandpool_node::{ExecuteRequest, Execution, ExecutionHandle, ExecutionState, Node, Outcome as Verdict, Start};
use sandpool_wire::agent::{Event, Rich, Stdin, Stop, Work};
use stage::{Outcome, Session, Stage, seen};

/// Enough for pandas, scipy and scikit-learn in one session; little enough to be used up soon.
const LIMITS: Limits = Limits { memory: 768 << 20, pids: 128, cpu_milli: 2_000, data: 64 << 20, tmp: 64 << 20 };

/// How long a step may take that has no time of its own. This is for a machine that has much else to do.
const PATIENCE: u64 = 40;

/// A story in one session: steps, one after another.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// In which session: cases with the same word share one, in their order, and see what the one before left.
    pub(crate) session: &'static str,
    pub(crate) steps: &'static [Step],
}

/// What is done, and what must then be seen.
pub(crate) struct Step(pub(crate) Act, pub(crate) &'static [Sees]);

pub(crate) enum Act {
    /// Code for the interpreter.
    Code(&'static str),
    /// Code in a namespace that is thrown away.
    Fresh(&'static str),
    /// Code whose time is up after so many seconds.
    Timed(&'static str, u64),
    /// Code that is interrupted once it has printed this.
    Interrupted(&'static str, &'static str),
    /// A command.
    Shell(&'static str),
    /// A command whose time is up after so many seconds.
    ShellTimed(&'static str, u64),
    /// A command that is interrupted once it has printed this.
    ShellInterrupted(&'static str, &'static str),
    /// A command with bytes to read.
    ShellReads(&'static str, &'static [u8]),
    /// A command after as many bytes of comment.
    ShellLong(usize, &'static str),
    /// A program without a shell.
    Argv(&'static [&'static str]),
    /// A command on a terminal of 30 rows and 100 columns; each line is typed once the text before it has been seen.
    Typed(&'static str, &'static [(&'static str, Key)]),
}

pub(crate) enum Key {
    Text(&'static str),
    Size(u16, u16),
}

/// One thing to be seen in what a step gave.
pub(crate) enum Sees {
    /// How it ended: `Succeeded`, `Raised`, `Exited(3)`, `TimedOut`, `Cancelled`, `Died`. Without this, it must have ended
    /// well.
    Ends(&'static str),
    /// Standard output, all of it.
    Says(&'static str),
    /// Standard output, a part of it.
    Part(&'static str),
    /// A part of the error output.
    Errs(&'static str),
    /// Nothing on the error output.
    Quiet,
    /// The value's text and, for a plain one, its JSON.
    Value(&'static str, Option<&'static str>),
    /// The value's text alone.
    Text(&'static str),
    /// No value.
    NoValue,
    /// The value has this form.
    Form(&'static str),
    /// So many images were displayed.
    Images(usize),
    /// The exception's name and a part of its message.
    Raised(&'static str, &'static str),
    /// Variables were lost.
    Lost,
    /// Anything else: what is wrong.
    Is(fn(&Execution) -> Result<(), String>),
}

fn main() -> ExitCode {
    stage::play("interpreters", &["python", "node", "shell"], tests, |_| Ok(()))
}

async fn tests(mut stage: Stage) -> Outcome<()> {
    let mut pools = Vec::new();
    for name in ["python", "node", "shell"] {
        let mut pool = stage.pool(name, name, LIMITS, 24)?;
        pool.scale = Scale { ready: 2, ..pool.scale };
        pools.push(pool);
    }
    let mut zygote = stage.pool("zygote", "python", LIMITS, 24)?;
    zygote.scale = Scale { ready: 2, ..zygote.scale };
    zygote.start = Start::Zygote;
    pools.push(zygote);
    let node = stage.node(pools).await?;
    // One lane for each pool, side by side.
    let lanes =
        [("python", python::cases()), ("zygote", python::cases()), ("node", node::cases()), ("shell", shell::cases())];
    let judged = futures::future::join_all(lanes.iter().map(|(pool, cases)| lane(&node, pool, cases))).await;
    for (name, problem) in judged.into_iter().flatten() {
        stage.judge(&format!("interpreters::{name}"), problem);
    }
    for (name, problem) in [
        ("python::no_two_sessions_draw_the_same", apart(&node, "python", python::DRAWS).await),
        ("zygote::no_two_sessions_draw_the_same", apart(&node, "zygote", python::DRAWS).await),
        ("python::what_runs_lean_is_what_ipython_runs", alike(&node, "python").await),
        ("node::no_two_sessions_draw_the_same", apart(&node, "node", node::DRAWS).await),
    ] {
        stage.judge(&format!("interpreters::{name}"), problem.err().map(|error| error.to_string()));
    }
    node.shutdown(Duration::from_secs(2)).await;
    stage.end()
}

/// Plays the cases of one pool. Answers the name of each, and what is wrong with it.
async fn lane(node: &Arc<Node>, pool: &str, cases: &[Case]) -> Vec<(String, Option<String>)> {
    let mut judged = Vec::new();
    let mut open: Option<(&str, Session)> = None;
    for case in cases {
        let name = format!("{pool}::{}", case.name);
        if open.as_ref().is_none_or(|(session, _)| *session != case.session) {
            if let Some((_, session)) = open.take() {
                // One that was lost is no longer there to be closed.
                let _ = session.close().await;
            }
            match Session::open(node, pool, case.session).await {
                Ok(session) => open = Some((case.session, session)),
                Err(error) => {
                    judged.push((name, Some(error.to_string())));
                    continue;
                }
            }
        }
        let Some((_, session)) = &open else { continue };
        judged.push((name, story(session, case.steps).await.err().map(|error| error.to_string())));
    }
    if let Some((_, session)) = open {
        let _ = session.close().await;
    }
    judged
}

async fn story(session: &Session, steps: &[Step]) -> Outcome<()> {
    for (number, Step(act, sees)) in steps.iter().enumerate() {
        let run = perform(session, act).await.map_err(|error| format!("step {}: {error}", number + 1))?;
        let mut wrong: Vec<String> = sees.iter().filter_map(|one| judge(one, &run).err()).collect();
        let is_any_end = sees.iter().any(|one| matches!(one, Sees::Ends(_)));
        if !is_any_end && !stage::succeeded(&run) {
            wrong.push("it did not end well".to_owned());
        }
        if run.state_lost && !sees.iter().any(|one| matches!(one, Sees::Lost)) {
            wrong.push("variables were lost".to_owned());
        }
        if !wrong.is_empty() {
            let value = run.result.as_ref().map(outline);
            let shown = seen(&run);
            return Err(format!(
                "step {}: {}\nseen: {shown}\nvalue: {value:?}\nerror: {:?}",
                number + 1,
                wrong.join("\n"),
                run.error
            )
            .into());
        }
    }
    Ok(())
}

fn outline(rich: &Rich) -> String {
    let forms: Vec<_> = rich.forms.iter().map(|(media, bytes)| (media, bytes.len())).collect();
    format!("{:.300} = {:?} {forms:?}", rich.text, rich.scalar)
}

async fn perform(session: &Session, act: &Act) -> Outcome<Execution> {
    let code = |code: &str, fresh| Work::Code { code: code.to_owned(), fresh };
    let shell = |command: &str| Work::Shell { command: command.to_owned(), stdin: Stdin::Empty };
    let (work, seconds) = match act {
        Act::Code(text) | Act::Interrupted(text, _) => (code(text, false), PATIENCE),
        Act::Fresh(text) => (code(text, true), PATIENCE),
        Act::Timed(text, seconds) => (code(text, false), *seconds),
        Act::Shell(command) | Act::ShellInterrupted(command, _) => (shell(command), PATIENCE),
        Act::ShellTimed(command, seconds) => (shell(command), *seconds),
        Act::ShellReads(command, bytes) => {
            (Work::Shell { command: (*command).to_owned(), stdin: Stdin::Bytes(bytes.to_vec()) }, PATIENCE)
        }
        Act::ShellLong(length, command) => (shell(&format!("# {}\n{command}", "x".repeat(*length))), PATIENCE),
        Act::Argv(argv) => {
            let argv = argv.iter().map(|word| (*word).to_owned()).collect();
            (Work::Argv { argv, stdin: Stdin::Empty }, PATIENCE)
        }
        Act::Typed(command, _) => {
            let argv = ["/bin/bash", "-c", command].map(str::to_owned).to_vec();
            (Work::Terminal { argv, rows: 30, columns: 100, term: "xterm".to_owned() }, PATIENCE)
        }
    };
    let request = ExecuteRequest { id: None, work, timeout: Some(Duration::from_secs(seconds)), output_limit: None };
    let handle = session.node.execute(&session.pool, &session.name, request).await?;
    match act {
        Act::Interrupted(_, word) | Act::ShellInterrupted(_, word) => {
            until_said(&handle, word).await?;
            handle.stop(Stop::Interrupt).await?;
        }
        Act::Typed(_, keys) => {
            for (word, key) in *keys {
                until_said(&handle, word).await?;
                match key {
                    Key::Text(text) => handle.input(text.as_bytes().to_vec()).await?,
                    Key::Size(rows, columns) => handle.resize(*rows, *columns).await?,
                }
            }
        }
        _ => {}
    }
    let run = handle.wait(Duration::from_secs(seconds + 20)).await;
    match run.state {
        ExecutionState::Ended(_) => Ok(run),
        _ => Err(format!("it has not ended: {}", seen(&run)).into()),
    }
}

/// Waits until standard output has this in it.
async fn until_said(handle: &ExecutionHandle, word: &str) -> Outcome<()> {
    let mut events = handle.events(0);
    let mut said = Vec::new();
    while let Some(next) = events.next().await {
        match next.event {
            Event::Stdout(bytes) => said.extend_from_slice(&bytes),
            Event::Finished(finished) => return Err(format!("it ended before it said {word}: {finished:?}").into()),
            _ => {}
        }
        if String::from_utf8_lossy(&said).contains(word) {
            return Ok(());
        }
    }
    Err(format!("no events after {:?}", String::from_utf8_lossy(&said)).into())
}

fn judge(sees: &Sees, run: &Execution) -> Result<(), String> {
    let stdout = String::from_utf8_lossy(&run.stdout);
    let stderr = String::from_utf8_lossy(&run.stderr);
    let text = run.result.as_ref().map(|rich| rich.text.as_str());
    let is_so = match sees {
        Sees::Ends(how) => match &run.state {
            ExecutionState::Ended(Verdict::Died(_)) => *how == "Died",
            ExecutionState::Ended(verdict) => format!("{verdict:?}").starts_with(how),
            _ => false,
        },
        Sees::Says(all) => stdout == *all,
        Sees::Part(part) => stdout.contains(part),
        Sees::Errs(part) => stderr.contains(part),
        Sees::Quiet => stderr.is_empty(),
        Sees::Value(expected, json) => {
            text == Some(expected) && run.result.as_ref().is_some_and(|rich| rich.scalar.as_deref() == *json)
        }
        Sees::Text(expected) => text == Some(expected),
        Sees::NoValue => run.result.is_none(),
        Sees::Form(media) => run.result.as_ref().is_some_and(|rich| rich.forms.iter().any(|(kind, _)| kind == media)),
        Sees::Images(count) => images(run) == *count,
        Sees::Raised(name, part) => {
            run.error.as_ref().is_some_and(|error| error.name == *name && error.message.contains(part))
        }
        Sees::Lost => run.state_lost,
        Sees::Is(check) => return check(run),
    };
    if is_so { Ok(()) } else { Err(format!("not so: {}", describe(sees))) }
}

fn describe(sees: &Sees) -> String {
    match sees {
        Sees::Ends(how) => format!("ends {how}"),
        Sees::Says(all) => format!("says {all:?}"),
        Sees::Part(part) => format!("says {part:?} among others"),
        Sees::Errs(part) => format!("says {part:?} as an error"),
        Sees::Quiet => "says nothing as an error".to_owned(),
        Sees::Value(text, json) => format!("is {text:?}, as JSON {json:?}"),
        Sees::Text(text) => format!("is {text:?}"),
        Sees::NoValue => "has no value".to_owned(),
        Sees::Form(media) => format!("has the form {media}"),
        Sees::Images(count) => format!("shows {count} images"),
        Sees::Raised(name, part) => format!("raises {name} with {part:?}"),
        Sees::Lost => "has lost its variables".to_owned(),
        Sees::Is(_) => "as is said".to_owned(),
    }
}

/// Images that were displayed, each one that it says it is.
fn images(run: &Execution) -> usize {
    let forms = run.displays.iter().flat_map(|rich| &rich.forms);
    forms.filter(|(media, bytes)| media == "image/png" && bytes.starts_with(b"\x89PNG")).count()
}

/// What two sessions of a pool draw at random: a line for each generator, and no two alike.
/// The same cells in two sessions, one of which leaves all of them to IPython's `run_cell`: nobody can tell which.
async fn alike(node: &Arc<Node>, pool: &str) -> Outcome<()> {
    let lean = Session::open(node, pool, "alike-lean").await?;
    let whole = Session::open(node, pool, "alike-whole").await?;
    let first = lean.code("assert get_ipython().lean.usual is not None", PATIENCE).await?;
    let other = whole.code("get_ipython().lean.usual = None", PATIENCE).await?;
    if !stage::succeeded(&first) || !stage::succeeded(&other) {
        return Err(format!("{}\n{}", seen(&first), seen(&other)).into());
    }
    let mut different = Vec::new();
    for cell in python::ALIKE {
        let (one, two) = (lean.code(cell, PATIENCE).await?, whole.code(cell, PATIENCE).await?);
        let said = |run: &Execution| {
            (run.stdout.clone(), run.stderr.clone(), run.result.clone(), run.displays.clone(), run.error.clone())
        };
        if format!("{:?}", one.state) != format!("{:?}", two.state) || said(&one) != said(&two) {
            let value = |run: &Execution| run.result.as_ref().map(outline);
            different.push(format!(
                "{cell:?}\nlean: {} {:?}\nwhole: {} {:?}",
                seen(&one),
                value(&one),
                seen(&two),
                value(&two)
            ));
        }
    }
    lean.close().await?;
    whole.close().await?;
    if different.is_empty() { Ok(()) } else { Err(different.join("\n").into()) }
}

async fn apart(node: &Arc<Node>, pool: &str, code: &str) -> Outcome<()> {
    let mut drawn = Vec::new();
    for name in ["one", "two"] {
        let session = Session::open(node, pool, &format!("draw-{name}")).await?;
        let run = session.code(code, PATIENCE).await?;
        let lines: Vec<String> = String::from_utf8_lossy(&run.stdout).lines().map(str::to_owned).collect();
        if lines.len() < 3 {
            return Err(seen(&run).into());
        }
        drawn.push(lines);
        session.close().await?;
    }
    let common: Vec<_> = drawn[0].iter().zip(&drawn[1]).filter(|(one, two)| one == two).collect();
    if common.is_empty() { Ok(()) } else { Err(format!("drawn twice: {common:?}").into()) }
}
