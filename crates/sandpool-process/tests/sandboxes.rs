//! Real sandboxes: this program starts itself as a launcher, which starts it again as the server.
//!
//! Needs root and `mmdebstrap`; says so when it skips. The root file system is made once, below `target`.

#[path = "stage/agent.rs"]
mod agent;
#[path = "stage/bare.rs"]
mod bare;
#[path = "stage/level.rs"]
mod level;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use sandpool_core::ids::{ExecutionId, Identifier, PoolName, SandboxId, SessionKey};
use sandpool_core::limits::{Life, Limits, Scale};
use sandpool_driver::{Change, Driver, DriverError, GoneReason, Isolation, Owner, Start, Template};
use sandpool_node::{Caller, ExecuteRequest, ExecutionState, Node, NodeConfig, NodeError, Open, PoolSpec};
use sandpool_process::ProcessDriver;
use sandpool_process::launcher::{LauncherConfig, ServerProcess, run};
use sandpool_process::oci::OciRuntime;
use sandpool_wire::agent::{Activation, Outcome as Verdict, Runtime, Stdin, Work};

use bare::{Outcome, Real, id, killer, ready, shell};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let word = args.get(1).and_then(|word| word.to_str()).unwrap_or_default();
    let done = match word {
        "launcher" => return launcher(&args),
        "server" => server(&args),
        "killer" => killer(|| Ok(())),
        // What cargo's other tools ask of every test program.
        "--list" => Ok(()),
        _ => start(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandboxes: {error}");
            // The launcher must not start this server again.
            ExitCode::from(78)
        }
    }
}

fn start() -> Outcome<()> {
    if !rustix::process::getuid().is_root() {
        println!("test sandboxes ... SKIPPED: needs root");
        return Ok(());
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let images = std::fs::canonicalize(target)?.join("images");
    std::fs::create_dir_all(&images)?;
    if let Err(why) = agent::image(&images) {
        println!("test sandboxes ... SKIPPED: {why}");
        return Ok(());
    }
    let agent = agent::build(target)?;
    let mut levels = vec![None];
    match level::settings() {
        Some(settings) => levels.extend(settings.into_keys().map(Some)),
        None => {
            println!("test sandboxes of OCI runtimes ... SKIPPED: nobody has got them: e2e/oci-runtimes");
            if std::env::var_os("SANDPOOL_MUST").is_some_and(|must| must == "1") {
                return Err("there are no OCI runtimes".into());
            }
        }
    }
    let wanted = std::env::args().nth(1).filter(|word| !word.starts_with('-'));
    for runtime in levels {
        let word = runtime.map_or("process", OciRuntime::word);
        if wanted.as_ref().is_none_or(|wanted| wanted == word) {
            println!("sandboxes of the level {word}");
            one_level(target, &images, &agent, runtime)?;
        }
    }
    Ok(())
}

fn one_level(target: &Path, images: &Path, agent: &Path, runtime: Option<OciRuntime>) -> Outcome<()> {
    let home = target.join(format!("home-{}", std::process::id()));
    std::fs::create_dir_all(&home)?;
    let mut launcher = Command::new(std::env::current_exe()?);
    launcher
        .arg("launcher")
        .args([&home, images, agent])
        .envs(runtime.map(|runtime| level::variable(Isolation::Container(Some(runtime)))));
    let launcher = launcher.status()?;
    let left = std::fs::read_dir("/sys/fs/cgroup/memory")
        .map(|entries| entries.flatten().any(|entry| entry.path().ends_with("sandpool-left")))
        .unwrap_or(false);
    std::fs::remove_dir_all(&home)?;
    if launcher.success() && !left { Ok(()) } else { Err(format!("the launcher ended with {launcher}").into()) }
}

fn launcher(args: &[OsString]) -> ExitCode {
    let [home, images, agent] = [2, 3, 4].map(|index| PathBuf::from(args.get(index).cloned().unwrap_or_default()));
    let Ok(agent) = std::fs::read(agent) else { return ExitCode::FAILURE };
    tracing_subscriber::fmt().init();
    let Ok(inherit) = inherit(&home) else { return ExitCode::FAILURE };
    run(LauncherConfig {
        runtimes: level::runtimes(),
        trust: BTreeMap::new(),
        egress_memory: 1 << 30,
        agent: Box::leak(agent.into_boxed_slice()),
        home,
        images: images.clone(),
        max_sandboxes: 300,
        memory_reserve: None,
        server: ServerProcess {
            uid: 65_534,
            gid: 65_534,
            args: vec!["server".into(), images.into()],
            env: level::environment(),
            inherit,
        },
        egress: None,
        grace: Duration::from_secs(5),
    })
}

/// What the server gets besides its control socket: the way to the killer, and the file that counts its lives.
fn inherit(home: &Path) -> Outcome<Vec<OwnedFd>> {
    let (ours, killers) = UnixStream::pair()?;
    Command::new(std::env::current_exe()?).arg("killer").stdin(OwnedFd::from(killers)).spawn()?;
    let lives = File::options().create(true).truncate(true).read(true).write(true).open(home.join("lives"))?;
    Ok(vec![ours.into(), lives.into()])
}

fn server(args: &[OsString]) -> Outcome<()> {
    let images = PathBuf::from(args.get(2).cloned().unwrap_or_default());
    // The launcher must not start a server again whose test has failed.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::exit(78);
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tests(&images))
}

async fn tests(images: &Path) -> Outcome<()> {
    let driver =
        ProcessDriver::connect(sandpool_process::take_control()?, sandpool_process::take_hearing()?, images).await?;
    // What `inherit` gives follows what every server has.
    let killer = UnixStream::from(sandpool_sys::workload::inherited(sandpool_process::HEARING_FD + 1)?);
    let lives = File::from(sandpool_sys::workload::inherited(sandpool_process::HEARING_FD + 2)?);
    let pool = PoolName::parse("shell")?;
    let template = Template {
        pool: pool.clone(),
        runtime: Runtime::Shell,
        rootfs: images.join("shell"),
        limits: Limits { memory: 128 << 20, ..Limits::default() },
        boot_limit: Duration::from_secs(60),
        isolation: level::isolation(),
        local_servers: true,
        main: None,
        start: Start::default(),
        egress: None,
    };
    driver.ensure_pool(&template).await?;
    let life = lives.metadata()?.len();
    (&lives).write_all(b"*")?;
    if life > 0 {
        return later_life(life, &driver, &template).await;
    }
    one_life(&driver, &pool).await?;
    println!("test one_life ... ok");
    out_of_memory(&driver, &pool).await?;
    println!("test out_of_memory ... ok");
    many(&driver, &pool).await?;
    println!("test many ... ok");
    wrong_pools(&driver, &template).await?;
    println!("test wrong_pools ... ok");
    changed_pool(&driver, &template).await?;
    println!("test changed_pool ... ok");
    node(&driver, &template).await?;
    println!("test node ... ok");
    let harness = Real { driver: Arc::clone(&driver) as Arc<dyn Driver>, template: template.clone(), killer };
    sandpool_driver::contract::run(&harness).await;
    println!("test contract ... ok");
    // From here on this program goes from life to life.
    later_life(0, &driver, &template).await
}

/// This server dies, as if by accident. Its launcher starts it again.
fn die() -> Outcome<()> {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
    Err("it lives on".into())
}

/// What one life leaves, the next one finds.
async fn later_life(life: u64, driver: &Arc<ProcessDriver>, template: &Template) -> Outcome<()> {
    let (pool, mine) = (&template.pool, Owner { record: b"mine".to_vec() });
    let mut watch = driver.watch();
    let listed = driver.list().await?;
    let only = |number: u8| match listed.as_slice() {
        [one] if one.id == id(number) => Ok(one.clone()),
        other => Err(format!("life {life} finds {other:?}")),
    };
    let (session, caller) = (SessionKey::from(Identifier::parse("mine-1")?), Caller { subject: "me".to_owned() });
    let node = async || {
        let config = NodeConfig { pools: vec![spec(template)], ..NodeConfig::default() };
        Node::start(config, Arc::clone(driver) as Arc<dyn Driver>).await
    };
    match life {
        0 => {
            driver.create(id(200), pool).await?;
            die()
        }
        1 => {
            assert_eq!(only(200)?.owner, None);
            ready(driver.as_ref(), &mut watch, id(200)).await?;
            driver.assign(id(200), &mine).await?;
            die()
        }
        2 => {
            let found = only(200)?;
            assert!(found.owner.as_ref() == Some(&mine) && !found.activated, "{found:?}");
            ready(driver.as_ref(), &mut watch, id(200)).await?;
            let other = driver.assign(id(200), &Owner { record: b"other".to_vec() }).await;
            assert!(matches!(other, Err(DriverError::Conflict(_))), "{other:?}");
            driver.assign(id(200), &mine).await?;
            driver.activate(id(200), &Activation { env: vec![("SAID".into(), "hello".into())], seed: [1; 32] }).await?;
            assert_eq!(shell(driver.as_ref(), id(200), "echo $SAID | tee kept").await?, "hello\n");
            die()
        }
        3 => {
            let found = only(200)?;
            assert!(found.owner.as_ref() == Some(&mine) && found.activated, "{found:?}");
            ready(driver.as_ref(), &mut watch, id(200)).await?;
            let again = driver.activate(id(200), &Activation::default()).await;
            assert!(matches!(again, Err(DriverError::Conflict(_))), "{again:?}");
            driver.destroy(id(200)).await?;
            let back = driver.create(id(200), pool).await;
            assert!(matches!(back, Err(DriverError::Gone(_))), "{back:?}");
            // Calls of which no answer is ever heard.
            for number in 201..217 {
                let (driver, pool) = (Arc::clone(driver), pool.clone());
                tokio::spawn(async move { driver.create(id(number), &pool).await });
            }
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            die()
        }
        4 => {
            println!("of 16 sandboxes that were asked for, {} were begun", listed.len());
            for sandbox in &listed {
                driver.create(sandbox.id, pool).await?;
                ready(driver.as_ref(), &mut watch, sandbox.id).await?;
                driver.destroy(sandbox.id).await?;
            }
            assert_eq!(driver.list().await?, []);
            let node = node().await?;
            node.open(pool, &session, Open::OrCreate, &caller).await?;
            let work = Work::Shell { command: "echo begun; sleep 2; echo ended".to_owned(), stdin: Stdin::Empty };
            let id = Some(ExecutionId([9; 16]));
            let request = ExecuteRequest { id, work, timeout: None, output_limit: None };
            let handle = node.execute(pool, &session, request).await?;
            let mut events = handle.events(0);
            while !matches!(futures::StreamExt::next(&mut events).await, Some(one) if one.seq == 2) {}
            die()
        }
        5 => {
            let node = node().await?;
            let opened = node.open(pool, &session, Open::OrCreate, &caller).await?;
            assert!(!opened.new, "{listed:?}");
            let handle = node.execution(pool, &session, &ExecutionId([9; 16])).await?;
            let seen = handle.wait(Duration::from_secs(30)).await;
            assert_eq!(seen.state, ExecutionState::Ended(Verdict::Exited(0)));
            assert_eq!(String::from_utf8_lossy(&seen.stdout), "begun\nended\n");
            node.delete_session(pool, &session).await?;
            node.shutdown(Duration::from_secs(1)).await;
            assert_eq!(driver.list().await?, []);
            println!("test lives ... ok");
            Ok(())
        }
        _ => Err(format!("there was to be no life {life}").into()),
    }
}

async fn gone(watch: &mut tokio::sync::broadcast::Receiver<Change>, which: SandboxId) -> Outcome<GoneReason> {
    loop {
        match tokio::time::timeout(Duration::from_secs(30), watch.recv()).await?? {
            Change::Gone { id, reason } if id == which => return Ok(reason),
            _ => {}
        }
    }
}

/// The processor shares of all sandboxes of this launcher, as their control groups have them.
fn shares() -> Outcome<Vec<u64>> {
    let launcher = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()).ok_or("no launcher")?;
    let mut shares = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<i32>().ok());
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if parent != Some(launcher) {
            continue;
        }
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let file = match controllers {
                "" => format!("/sys/fs/cgroup{path}/cpu.weight"),
                some if some.split(',').any(|name| name == "cpu") => format!("/sys/fs/cgroup/cpu{path}/cpu.shares"),
                _ => continue,
            };
            let is_sandbox = path.rsplit_once("/s").is_some_and(|(_, slot)| slot.parse::<u32>().is_ok());
            let share = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u64>().ok());
            shares.extend(share.filter(|_| is_sandbox));
        }
    }
    Ok(shares)
}

async fn one_life(driver: &Arc<ProcessDriver>, pool: &PoolName) -> Outcome<()> {
    let mut watch = driver.watch();
    driver.create(id(1), pool).await?;
    driver.create(id(1), pool).await?;
    ready(driver.as_ref(), &mut watch, id(1)).await?;
    let owner = Owner { record: b"me".to_vec() };
    let before = shares()?;
    assert!(!before.is_empty() && before.iter().all(|share| *share < 100), "what is nobody's comes last: {before:?}");
    let (first, second) = (driver.assign(id(1), &owner).await, driver.assign(id(1), &owner).await);
    first?;
    second?;
    let after = shares()?;
    assert_eq!(after.iter().filter(|share| **share >= 100).count(), 1, "what is somebody's comes first: {after:?}");
    let other = driver.assign(id(1), &Owner { record: b"you".to_vec() }).await;
    assert!(matches!(other, Err(DriverError::Conflict(_))), "{other:?}");
    driver.activate(id(1), &Activation { env: vec![("SAID".into(), "hello".into())], seed: [1; 32] }).await?;
    let again = driver.activate(id(1), &Activation::default()).await;
    assert!(matches!(again, Err(DriverError::Conflict(_))), "{again:?}");
    let seen = shell(
        driver.as_ref(),
        id(1),
        "echo $SAID; id -u; id -G; hostname; pwd; cat /proc/self/uid_map; ls /proc | grep -c '^[0-9]'",
    )
    .await?;
    println!("{seen}");
    assert!(seen.starts_with("hello\n1000\n1000\nsandbox\n/mnt/data\n"), "{seen}");
    let usage = driver.usage(id(1)).await?;
    assert!(usage.memory > 0 && usage.pids >= 1, "{usage:?}");
    driver.destroy(id(1)).await?;
    driver.destroy(id(1)).await?;
    assert_eq!(gone(&mut watch, id(1)).await?, GoneReason::Destroyed);
    assert!(matches!(driver.dial(id(1)).await.err(), Some(DriverError::Gone(_))));
    assert!(driver.list().await?.is_empty());
    Ok(())
}

async fn out_of_memory(driver: &Arc<ProcessDriver>, pool: &PoolName) -> Outcome<()> {
    let mut watch = driver.watch();
    driver.create(id(2), pool).await?;
    ready(driver.as_ref(), &mut watch, id(2)).await?;
    driver.assign(id(2), &Owner { record: b"me".to_vec() }).await?;
    driver.activate(id(2), &Activation::default()).await?;
    let bomb = "perl -e '$x = q(x) x 400_000_000; print length $x'; echo after";
    if level::runtime() == Some(OciRuntime::Runsc) {
        // All of it is one process of the host's.
        let seen = shell(driver.as_ref(), id(2), bomb).await;
        assert!(seen.is_err(), "{seen:?}");
        let gone = Change::Gone { id: id(2), reason: GoneReason::OutOfMemory };
        while watch.recv().await? != gone {}
        return Ok(driver.destroy(id(2)).await?);
    }
    // The command is killed, and the sandbox lives on.
    let seen = shell(driver.as_ref(), id(2), bomb).await?;
    assert!(seen.contains("after"), "{seen}");
    let usage = driver.usage(id(2)).await?;
    assert!(usage.oom_kills > Some(0), "{seen} {usage:?}");
    Ok(driver.destroy(id(2)).await?)
}

async fn many(driver: &Arc<ProcessDriver>, pool: &PoolName) -> Outcome<()> {
    let mut watch = driver.watch();
    for number in 10..50 {
        driver.create(id(number), pool).await?;
    }
    for number in 10..50 {
        ready(driver.as_ref(), &mut watch, id(number)).await?;
    }
    assert_eq!(driver.list().await?.len(), 40);
    for number in 10..50 {
        driver.destroy(id(number)).await?;
    }
    assert!(driver.list().await?.is_empty());
    Ok(())
}

/// What was made ahead for a pool is not given out once the pool is another.
async fn changed_pool(driver: &Arc<ProcessDriver>, template: &Template) -> Outcome<()> {
    let mut watch = driver.watch();
    let mut used = Vec::new();
    for (round, data) in [3_u64 << 20, 5 << 20].into_iter().enumerate() {
        let limits = Limits { data, ..template.limits };
        driver.ensure_pool(&Template { limits, ..template.clone() }).await?;
        // More than are made ahead, so that there are also such as are made when they are asked for.
        for number in 0..6 {
            let which = id(70 + u8::try_from(round)? * 10 + number);
            driver.create(which, &template.pool).await?;
            ready(driver.as_ref(), &mut watch, which).await?;
            driver.assign(which, &Owner { record: b"me".to_vec() }).await?;
            driver.activate(which, &Activation::default()).await?;
            let seen = shell(driver.as_ref(), which, "df -B1 --output=size /mnt/data | tail -n 1").await?;
            assert_eq!(seen.trim(), data.to_string(), "{which} {seen}");
            used.push(which);
        }
    }
    for which in used {
        driver.destroy(which).await?;
    }
    Ok(driver.ensure_pool(template).await?)
}

async fn wrong_pools(driver: &Arc<ProcessDriver>, template: &Template) -> Outcome<()> {
    for rootfs in ["/", "/usr", "relative"] {
        let wrong = Template { rootfs: rootfs.into(), ..template.clone() };
        let answer = driver.ensure_pool(&wrong).await;
        assert!(matches!(answer, Err(DriverError::Invalid(_))), "{rootfs}: {answer:?}");
    }
    let unknown = driver.create(id(99), &PoolName::parse("unknown")?).await;
    assert!(matches!(unknown, Err(DriverError::Invalid(_))), "{unknown:?}");
    Ok(())
}

fn spec(template: &Template) -> PoolSpec {
    PoolSpec {
        name: template.pool.clone(),
        runtime: Runtime::Shell,
        rootfs: template.rootfs.clone(),
        scale: Scale { max_sessions: 2, ready: 1, most_ready: 1, boots: 2 },
        life: Life { cooldown: Duration::from_secs(300), max_alive: None },
        limits: template.limits,
        queue: 4,
        output_limit: 1 << 20,
        max_timeout: Duration::from_secs(60),
        env: vec![("SAID".into(), "hello".into())],
        start: template.start,
        egress: None,
        scope: sandpool_node::SessionScope::Tenant,
        container: None,
        session_secrets: false,
        isolation: level::isolation(),
        local_servers: true,
        suspends: sandpool_core::limits::Suspends::default(),
        full_wait: Duration::ZERO,
    }
}

/// The service layer over real sandboxes.
async fn node(driver: &Arc<ProcessDriver>, template: &Template) -> Outcome<()> {
    let pool = &template.pool;
    let spec = spec(template);
    let node =
        Node::start(NodeConfig { pools: vec![spec], ..NodeConfig::default() }, Arc::clone(driver) as Arc<dyn Driver>)
            .await?;
    let (mine, caller) = (SessionKey::from(Identifier::parse("mine-1")?), Caller { subject: "me".to_owned() });
    assert!(matches!(node.open(pool, &mine, Open::Existing, &caller).await, Err(NodeError::NoSession(_))));
    assert!(node.open(pool, &mine, Open::OrCreate, &caller).await?.new);
    assert!(!node.open(pool, &mine, Open::OrCreate, &caller).await?.new);
    let command = |text: &str, timeout: u64| ExecuteRequest {
        id: None,
        work: Work::Shell { command: text.to_owned(), stdin: Stdin::Empty },
        timeout: Some(Duration::from_secs(timeout)),
        output_limit: None,
    };
    let run = async |text: &str, timeout: u64| -> Outcome<sandpool_node::Execution> {
        let handle = node.execute(pool, &mine, command(text, timeout)).await?;
        Ok(handle.wait(Duration::from_secs(60)).await)
    };
    let seen = run("echo $SAID | tee file.txt; echo oops >&2; exit 3", 10).await?;
    assert_eq!(seen.state, ExecutionState::Ended(Verdict::Exited(3)));
    assert_eq!((seen.stdout.as_slice(), seen.stderr.as_slice()), (&b"hello\n"[..], &b"oops\n"[..]));
    let seen = run("sleep 100", 1).await?;
    assert_eq!(seen.state, ExecutionState::Ended(Verdict::TimedOut));
    // Files: both ways, larger than one message.
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let data = futures::stream::iter(bytes.chunks(700_000).map(|piece| Ok(piece.to_vec().into())).collect::<Vec<_>>());
    let entry = node.write_file(pool, &mine, "/mnt/data/sub/big.bin", Box::pin(data)).await?;
    assert_eq!(entry.size, 3_000_000);
    let (size, mut pieces) = node.read_file(pool, &mine, "/mnt/data/sub/big.bin").await?;
    let mut back = Vec::new();
    while let Some(piece) = futures::StreamExt::next(&mut pieces).await {
        back.extend_from_slice(&piece?);
    }
    assert!(size == 3_000_000 && back == bytes);
    let (entries, more) = node.list_files(pool, &mine, "/mnt/data", true, None, 100).await?;
    let paths: Vec<_> = entries.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!((paths, more), (vec!["file.txt", "sub", "sub/big.bin"], false));
    let outside = node.read_file(pool, &mine, "/mnt/data/../../etc/passwd").await.err();
    assert!(matches!(outside, Some(NodeError::Invalid(_))), "{outside:?}");
    // A second session, and no third.
    let other = SessionKey::from(Identifier::parse("other")?);
    node.open(pool, &other, Open::OrCreate, &caller).await?;
    let third = node.open(pool, &SessionKey::from(Identifier::parse("third")?), Open::OrCreate, &caller).await;
    assert!(matches!(third, Err(NodeError::Exhausted { active: 2, limit: 2, .. })), "{third:?}");
    node.delete_session(pool, &mine).await?;
    assert!(node.open(pool, &mine, Open::OrCreate, &caller).await?.new);
    let listing = run("ls | wc -l", 10).await?;
    assert_eq!(listing.stdout, b"0\n", "nothing of the session before is left");
    node.shutdown(Duration::from_secs(1)).await;
    assert!(driver.list().await?.is_empty());
    Ok(())
}
