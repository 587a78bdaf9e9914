//! The walls of the process level, tried from inside: attackers run as code in real sandboxes, through the service layer.
//!
//! Needs root and the images `python` and `shell`; says so when it skips. What each attacker tries, and what it must see,
//! is data, in the crate `sandpool-attack`, which `sandpool doctor --attack` runs as well, over HTTP.

#[path = "../stage/mod.rs"]
mod stage;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use sandpool_attack::{
    COMMANDS, CONTAINED, IN_MACHINES, Keeps, LOUD, Loud, Probe, QUIET, SCENES, SCENES_IN_MACHINES, Scene, TOOLS,
};
use sandpool_core::ids::PoolName;
use sandpool_core::limits::Limits;
use sandpool_node::{Isolation, Node, NodeError, OciRuntime, PoolSpec, Start};
use stage::{Outcome, Session, Stage, seen, succeeded};

const LIMITS: Limits = Limits {
    memory: sandpool_attack::MEMORY,
    pids: sandpool_attack::PIDS,
    cpu_milli: 1_000,
    data: sandpool_attack::WRITABLE,
    tmp: sandpool_attack::WRITABLE,
};

fn main() -> ExitCode {
    let is_first =
        !["launcher", "server", "egress", "--list"].iter().any(|word| std::env::args().any(|arg| arg == *word));
    if is_first && stage::level::isolation() == Isolation::Process && !(contained() && in_machines()) {
        return ExitCode::FAILURE;
    }
    stage::play("walls", &["python", "shell"], tests, |_| Ok(()))
}

/// The same around containers that runc has made. Whether they hold there.
fn contained() -> bool {
    if stage::level::settings().is_none() {
        println!("test walls of containers ... SKIPPED: nobody has got an OCI runtime: e2e/oci-runtimes");
        return std::env::var_os("SANDPOOL_MUST").is_none_or(|must| must != "1");
    }
    let again = std::env::current_exe().map(std::process::Command::new);
    let again = again.and_then(|mut again| {
        again.envs([stage::level::variable(Isolation::Container(Some(OciRuntime::Runc)))]).status()
    });
    again.is_ok_and(|status| status.success())
}

/// The same in machines. Whether they hold there.
fn in_machines() -> bool {
    let again = std::env::current_exe().map(std::process::Command::new);
    let again = again.and_then(|mut again| again.envs([stage::level::variable(Isolation::Microvm)]).status());
    again.is_ok_and(|status| status.success())
}

async fn tests(mut stage: Stage) -> Outcome<()> {
    let mut pools = vec![stage.pool("python", "python", LIMITS, 8)?, stage.pool("shell", "shell", LIMITS, 4)?];
    if stage::level::isolation() == Isolation::Process {
        pools.push(PoolSpec { start: Start::Zygote, ..stage.pool("zygote", "python", LIMITS, 8)? });
    }
    let node = stage.node(pools).await?;
    // The same attackers in interpreters that started from a zygote, while that is new, and in some that started cold.
    let all = [("zygote", "walls::zygote"), ("python", "walls")];
    let level = stage::level::isolation();
    // Through an OCI runtime all start cold, and machines alike.
    for (pool, group) in &all[usize::from(level != Isolation::Process)..] {
        let neighbour = Session::open(&node, pool, "neighbour").await?;
        let started = neighbour.code(&format!("{TOOLS}\nsecret = 'neighbours'"), 30).await?;
        assert!(succeeded(&started), "{}", seen(&started));
        quiet(&mut stage, &node, pool, group).await?;
        between(&mut stage, &node, &neighbour, pool, group).await?;
        for attack in LOUD {
            let problem = one_loud(&node, attack, &neighbour, pool).await.err().map(|error| error.to_string());
            stage.judge(&format!("{group}::{}", attack.id), problem);
        }
        neighbour.close().await?;
    }
    if level == Isolation::Process {
        let problem = renewed(&stage, &node).await.err().map(|error| error.to_string());
        stage.judge("walls::zygote::ZG1-a-layout-is-not-for-ever", problem);
    }
    shell(&mut stage, &node).await?;
    node.shutdown(Duration::from_secs(2)).await;
    stage.end()
}

/// Compares what was said with what should have been.
fn same(expected: &str, execution: &sandpool_node::Execution) -> Option<String> {
    let said = String::from_utf8_lossy(&execution.stdout).into_owned();
    let is_same = said.trim_end() == expected.trim_end() && succeeded(execution);
    (!is_same).then(|| format!("expected:\n{expected}\nseen: {}", seen(execution)))
}

async fn quiet(stage: &mut Stage, node: &Arc<Node>, pool: &str, group: &str) -> Outcome<()> {
    let session = Session::open(node, pool, "quiet").await?;
    let tools = session.code(TOOLS, 30).await?;
    assert!(succeeded(&tools), "{}", seen(&tools));
    let instead: &[Probe] = match stage::level::isolation() {
        Isolation::Process => &[],
        Isolation::Container(_) => CONTAINED,
        Isolation::Microvm => IN_MACHINES,
    };
    for probe in QUIET {
        let probe = instead.iter().find(|other| other.id == probe.id).unwrap_or(probe);
        let execution = session.code(probe.code, 30).await?;
        stage.judge(&format!("{group}::{}", probe.id), same(probe.safe, &execution));
    }
    session.close().await
}

/// What one session could see of, or do to, another.
async fn between(stage: &mut Stage, node: &Arc<Node>, neighbour: &Session, pool: &str, group: &str) -> Outcome<()> {
    let session = Session::open(node, pool, "other").await?;
    let tools = session.code(TOOLS, 30).await?;
    assert!(succeeded(&tools), "{}", seen(&tools));
    // What the neighbour does first, and what the attacker must see of it.
    let instead = if stage::level::are_machines() { SCENES_IN_MACHINES } else { &[] };
    for Scene { id, theirs, ours, safe } in SCENES {
        let safe = instead.iter().find(|(other, _)| other == id).map_or(*safe, |(_, safe)| safe);
        let first = neighbour.code(theirs, 30).await?;
        let said = String::from_utf8_lossy(&first.stdout).trim().to_owned();
        let second = session.code(&format!("NEIGHBOUR = {said:?}\n{ours}"), 30).await?;
        let problem = if succeeded(&first) { same(safe, &second) } else { Some(seen(&first)) };
        stage.judge(&format!("{group}::{id}"), problem);
    }
    // The watch of before must not have heard what the neighbour opens.
    neighbour.code("for _ in range(10): open('/etc/passwd').read()", 30).await?;
    let heard = session.code("tell(attempt(os.read, watch, 4096))", 30).await?;
    stage.judge(&format!("{group}::FS2-nobody-hears-what-a-neighbour-opens"), same("EAGAIN", &heard));
    // Generators of two sessions of one pool have nothing in common.
    let draw = "import random, secrets, ssl, tempfile, uuid, numpy\n\
                tell(random.random(), numpy.random.rand(), numpy.random.default_rng().random(), ssl.RAND_bytes(8), \
                os.urandom(8), secrets.token_hex(8), uuid.uuid1(), uuid.uuid4(), tempfile.mktemp())";
    let (one, two) = (neighbour.code(draw, 30).await?, session.code(draw, 30).await?);
    let words = |run: &sandpool_node::Execution| -> Vec<String> {
        String::from_utf8_lossy(&run.stdout).lines().map(str::to_owned).collect()
    };
    let common: Vec<_> = words(&one).into_iter().zip(words(&two)).filter(|(one, two)| one == two).collect();
    let is_apart = common.is_empty() && words(&one).len() == 9;
    stage
        .judge(&format!("{group}::ZG1-nothing-drawn-twice"), (!is_apart).then(|| format!("{common:?} {}", seen(&one))));
    // Nor have addresses and hashes, unless both started from one zygote, or went on from one machine.
    let lie = "tell(hash('x'), id(libc), \
               [line for line in text('/proc/self/maps').splitlines() if 'libc.so' in line or 'zygote' in line][0])";
    let (one, two) = (neighbour.code(lie, 30).await?, session.code(lie, 30).await?);
    let common = words(&one).into_iter().zip(words(&two)).filter(|(one, two)| one == two).count();
    if pool == "python" && !stage::level::are_machines() {
        let problem = (common > 0 || words(&one).len() != 3).then(|| format!("{} {}", seen(&one), seen(&two)));
        stage.judge(&format!("{group}::ZG1-no-address-and-no-hash-in-common"), problem);
    } else {
        // That this pool's sessions do share them shows that they did start from a zygote: the other tests mean it.
        let problem = (common == 0).then(|| format!("{} {}", seen(&one), seen(&two)));
        stage.judge(&format!("{group}::ZG1-one-layout"), problem);
    }
    session.close().await?;
    // ZG5: the same name again is another sandbox.
    let session = Session::open(node, pool, "other").await?;
    let again = session
        .code("import os\nprint(os.listdir('/mnt/data'), os.listdir('/dev/shm'), 'attempt' in globals())", 30)
        .await?;
    stage.judge(&format!("{group}::ZG5-never-used-twice"), same("[] [] False", &again));
    session.close().await
}

/// After the zygote was made anew, sessions start from the new one, once those that were ready are used up.
async fn renewed(stage: &Stage, node: &Arc<Node>) -> Outcome<()> {
    let layout = "print(hash('x'), id(print), 'numpy' in __import__('sys').modules)";
    let session = Session::open(node, "zygote", "layout-before").await?;
    let before = session.code(layout, 30).await?.stdout;
    session.close().await?;
    stage.driver.renew_zygote(&PoolName::parse("zygote")?).await?;
    let mut new = Vec::new();
    for number in 0..20 {
        let session = Session::open(node, "zygote", &format!("layout-{number}")).await?;
        let seen = session.code(layout, 30).await?.stdout;
        session.close().await?;
        if seen != before {
            new.push(String::from_utf8(seen)?);
        }
        if new.len() == 2 {
            let is_thawed = new[0] == new[1] && new[0].trim_end().ends_with("True");
            return if is_thawed { Ok(()) } else { Err(format!("{new:?}").into()) };
        }
    }
    Err(format!("all of 20 sessions had the old layout, or one another's not: {new:?}").into())
}

/// How long an attack may take: an emulated processor is slower.
fn patience(attack: &Loud) -> u64 {
    attack.seconds * if stage::level::are_machines() { 4 } else { 1 }
}

async fn one_loud(node: &Arc<Node>, attack: &Loud, neighbour: &Session, pool: &str) -> Outcome<()> {
    let session = Session::open(node, pool, "loud").await?;
    let tools = session.code(&format!("{TOOLS}\nkept = 7"), 30).await?;
    if !succeeded(&tools) {
        return Err(format!("before the attack: {}", seen(&tools)).into());
    }
    // The neighbour is asked while the attack goes on, and after it.
    let during = async {
        let answer = neighbour.code("tell(6 * 7)", 20).await?;
        same("42", &answer).map_or(Ok(()), |problem| Err(format!("the neighbour: {problem}").into()))
    };
    let (attacked, during): (_, Outcome<()>) = tokio::join!(session.code(attack.code, patience(attack)), during);
    during?;
    let was_told = attacked.as_ref().is_ok_and(|run| run.state_lost);
    match attacked {
        Ok(run) => {
            let state = format!("{:?}", run.state);
            let said = String::from_utf8_lossy(&run.stdout);
            if !attack.ends.iter().any(|end| state.contains(end)) || !said.contains(attack.says) {
                return Err(
                    format!("expected one of {:?} and {:?}; seen: {}", attack.ends, attack.says, seen(&run)).into()
                );
            }
            if run.stdout.len() as u64 > 1 << 20 {
                return Err(format!("{} bytes of output were kept", run.stdout.len()).into());
            }
        }
        Err(error) if is_lost(error.as_ref()) && attack.keeps != Keeps::State => {}
        Err(error) => return Err(error),
    }
    let answer = neighbour.code("tell(secret)", 20).await?;
    if let Some(problem) = same("neighbours", &answer) {
        return Err(format!("the neighbour afterwards: {problem}").into());
    }
    let after = session.code("print(kept)", 40).await;
    let keeps = match &after {
        Ok(run) if run.stdout == b"7\n" => Keeps::State,
        Ok(run) if String::from_utf8_lossy(&run.stderr).contains("NameError") && (was_told || run.state_lost) => {
            Keeps::Nothing
        }
        Err(error) if is_lost(error.as_ref()) => Keeps::Nothing,
        Ok(run) => return Err(format!("the session afterwards: {} (lost: {})", seen(run), run.state_lost).into()),
        Err(error) => return Err(format!("the session afterwards: {error}").into()),
    };
    if attack.keeps != Keeps::Either && attack.keeps != keeps {
        let is_kept = keeps == Keeps::State;
        return Err(format!("its variables were {}kept", if is_kept { "" } else { "not " }).into());
    }
    match session.close().await {
        Err(error) if !is_lost(error.as_ref()) && !error.to_string().contains("there is no session") => Err(error),
        _ => Ok(()),
    }
}

fn is_lost(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    matches!(error.downcast_ref::<NodeError>(), Some(NodeError::SessionLost { .. }))
}

/// The same wall around commands.
async fn shell(stage: &mut Stage, node: &Arc<Node>) -> Outcome<()> {
    let session = Session::open(node, "shell", "shell").await?;
    for Probe { id, code, safe } in COMMANDS {
        let run = session.shell(code, 20).await?;
        let said = String::from_utf8_lossy(&run.stdout).trim().to_owned();
        stage.judge(
            &format!("walls::{id}"),
            (said != *safe).then(|| format!("expected {safe:?}; seen: {}", seen(&run))),
        );
    }
    session.close().await
}
