//! Where tests of real sandboxes play: this program starts itself as a launcher, which starts it again as the server.
//!
//! ```text
//! watcher (root)  looks at the host for the server, which cannot: processes, mounts, groups, descriptors
//!   launcher      the real one
//!     server      the tests
//!     egress      the real proxy, when a pool has a way out
//! ```

#![allow(dead_code, reason = "each test program uses its own part")]

mod agent;
pub(crate) mod level;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::ffi::OsString;
use std::future::Future;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandpool_core::ids::{Identifier, PoolName, SessionKey};
use sandpool_core::limits::{Life, Limits, Scale};
use sandpool_driver::{Driver, Start};
use sandpool_node::{Caller, ExecuteRequest, Execution, Node, NodeConfig, Open, Outcome as Verdict, PoolSpec};
use sandpool_process::ProcessDriver;
use sandpool_process::launcher::{LauncherConfig, ServerProcess, run};
use sandpool_wire::agent::{Runtime, Stdin, Work};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What the server's side is given.
pub(crate) struct Stage {
    pub(crate) driver: Arc<ProcessDriver>,
    images: BTreeMap<String, PathBuf>,
    post: PathBuf,
    began: Instant,
    passed: u32,
    failed: u32,
}

/// Plays the part that the arguments name. `images` are what the tests need.
pub(crate) fn play<F: Future<Output = Outcome<()>>>(
    name: &str,
    images: &[&str],
    tests: impl FnOnce(Stage) -> F,
    after: impl FnOnce(&Watcher) -> Outcome<()>,
) -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let word = args.get(1).and_then(|word| word.to_str()).unwrap_or_default();
    let done = match word {
        "launcher" => return launcher(&args),
        "server" => server(&args, tests),
        "egress" => egress(&args),
        // What cargo's other tools ask of every test program.
        _ if args.iter().any(|arg| arg == "--list") => {
            if !args.iter().any(|arg| arg == "--ignored") {
                println!("{name}: test");
            }
            Ok(())
        }
        _ => start(name, images, after),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            // The launcher must not start this server again.
            ExitCode::from(78)
        }
    }
}

fn skip(name: &str, why: &str) -> Outcome<()> {
    println!("test {name} ... SKIPPED: {why}");
    if std::env::var_os("SANDPOOL_MUST").is_some_and(|must| must == "1") { Err(why.into()) } else { Ok(()) }
}

fn start(name: &str, images: &[&str], after: impl FnOnce(&Watcher) -> Outcome<()>) -> Outcome<()> {
    if !rustix::process::getuid().is_root() {
        return skip(name, "needs root");
    }
    let store = std::env::var_os("SANDPOOL_IMAGES").map_or_else(|| "/var/lib/sandpool/images".into(), PathBuf::from);
    let mut found = Vec::new();
    for image in images {
        let digest = std::fs::read_to_string(store.join("names").join(image)).unwrap_or_default();
        match std::fs::canonicalize(store.join(digest.trim()).join("rootfs")) {
            Ok(rootfs) if !digest.is_empty() => found.extend([(*image).into(), rootfs.into_os_string()]),
            _ => return skip(name, &format!("no image {image} in {}: sandpool image build", store.display())),
        }
    }
    let watcher = Watcher::new(name, found)?;
    if level::are_machines() {
        let roots: Vec<_> = watcher.images.iter().skip(1).step_by(2).map(Path::new).collect();
        let store = roots.first().map_or(Path::new("/"), |rootfs| store_of(rootfs));
        let program = std::fs::read(&watcher.agent)?;
        if let Err(error) = sandpool_vm::build::prepare(store, &roots, &program, &agent::vmm()?) {
            return skip(name, &error.to_string());
        }
    }
    let status = watcher.run()?;
    let after = after(&watcher);
    std::fs::remove_dir_all(&watcher.home)?;
    after?;
    if status.success() { Ok(()) } else { Err(format!("the launcher ended with {status}").into()) }
}

/// Root's side of the tests.
pub(crate) struct Watcher {
    pub(crate) home: PathBuf,
    agent: PathBuf,
    images: Vec<OsString>,
}

impl Watcher {
    fn new(name: &str, images: Vec<OsString>) -> Outcome<Self> {
        let target = std::fs::canonicalize(env!("CARGO_TARGET_TMPDIR"))?;
        let agent = agent::build(&target)?;
        let home = target.join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(home.join("post"))?;
        std::fs::create_dir_all(home.join("egress"))?;
        for open in ["post", "egress"] {
            std::fs::set_permissions(home.join(open), std::fs::Permissions::from_mode(0o777))?;
        }
        let meta = std::fs::metadata(&home)?;
        OWN.get_or_init(|| format!("sandpool-{:x}-{:x}", meta.dev(), meta.ino()));
        Ok(Self { home, agent, images })
    }

    /// Starts a launcher.
    pub(crate) fn launch(&self) -> Outcome<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        Ok(command.arg("launcher").args([&self.home, &self.agent]).args(&self.images).spawn()?)
    }

    /// Leaves a word for the server.
    pub(crate) fn write(&self, name: &str, text: &str) -> Outcome<()> {
        Ok(std::fs::write(self.home.join("post").join(name), text)?)
    }

    /// Whether the server has left this word.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.home.join("post").join(name).exists()
    }

    fn run(&self) -> Outcome<std::process::ExitStatus> {
        let mut launcher = self.launch()?;
        self.watch(&mut launcher)
    }

    /// Answers what the server asks until the launcher ends.
    pub(crate) fn watch(&self, launcher: &mut Child) -> Outcome<std::process::ExitStatus> {
        let (ask, answer) = (self.home.join("post/ask"), self.home.join("post/answer"));
        loop {
            if let Some(status) = launcher.try_wait()? {
                return Ok(status);
            }
            if ask.exists() {
                let asked = std::fs::read_to_string(&ask)?;
                std::fs::remove_file(&ask)?;
                if asked == "kill-egress" {
                    kill_egress(launcher.id());
                }
                let text = serde_json::to_string(&look(launcher.id()))?;
                std::fs::write(self.home.join("post/partial"), text)?;
                std::fs::rename(self.home.join("post/partial"), &answer)?;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What there is on the host that sandboxes could leave behind.
pub(crate) fn look(launcher: u32) -> BTreeMap<String, u64> {
    let mut seen = BTreeMap::new();
    let (mut networks, mut memory) = (BTreeSet::new(), 0);
    // Other launchers may run on this host: what belongs to this one descends from it.
    let family = family(launcher);
    for pid in &family {
        memory += proportional(*pid);
        if let Ok(link) = std::fs::read_link(format!("/proc/{pid}/ns/net")) {
            networks.insert(link);
        }
    }
    seen.insert("processes".to_owned(), family.len() as u64);
    seen.insert("networks".to_owned(), networks.len() as u64);
    seen.insert("memory".to_owned(), memory);
    let count = |path: &str| std::fs::read_dir(path).map_or(0, |entries| entries.count() as u64);
    seen.insert("descriptors".to_owned(), count(&format!("/proc/{launcher}/fd")));
    let mounts = std::fs::read_to_string(format!("/proc/{launcher}/mountinfo")).unwrap_or_default();
    seen.insert("mounts".to_owned(), mounts.lines().count() as u64);
    seen.insert("groups".to_owned(), groups());
    seen
}

/// Ends the egress proxy of a launcher, as a fault would.
fn kill_egress(launcher: u32) {
    for pid in family(launcher) {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).nth(1) == Some(b"egress")
            && let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed())
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Every process that descends from this one.
pub(crate) fn family(from: u32) -> BTreeSet<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let parents: BTreeMap<u32, u32> = entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((pid, stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?))
        })
        .collect();
    let mut family = BTreeSet::from([from]);
    loop {
        let more: Vec<u32> = parents
            .iter()
            .filter(|(pid, parent)| family.contains(*parent) && !family.contains(*pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            break;
        }
        family.extend(more);
    }
    family.remove(&from);
    family
}

/// Bytes of its own and its share of what it has in common with others.
fn proportional(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Groups of this launcher's sandboxes, in every hierarchy.
pub(crate) fn groups() -> u64 {
    let Some(own) = OWN.get() else { return 0 };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let hierarchies =
        mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    hierarchies.map(|hierarchy| groups_below(Path::new(hierarchy), own, 6)).sum()
}

fn groups_below(directory: &Path, own: &str, depth: u32) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories
        .map(|entry| match entry.file_name().to_str() {
            Some(name) if name == own => 1 + groups_below(&entry.path(), "", 1),
            _ if own.is_empty() => 1,
            _ if depth > 0 => groups_below(&entry.path(), own, depth - 1),
            _ => 0,
        })
        .sum()
}

/// The name of the launcher's groups, which comes from its home.
static OWN: std::sync::OnceLock<String> = std::sync::OnceLock::new();

fn launcher(args: &[OsString]) -> ExitCode {
    let [home, agent] = [2, 3].map(|index| PathBuf::from(args.get(index).cloned().unwrap_or_default()));
    let Ok(agent) = std::fs::read(agent) else { return ExitCode::FAILURE };
    tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::WARN).init();
    let rootfs = PathBuf::from(args.get(5).cloned().unwrap_or_default());
    // The store: the image's directory is below it, and its root file system below that.
    let images = store_of(&rootfs).to_owned();
    let records = home.join("egress");
    let server = [OsString::from("server"), home.join("post").into_os_string()];
    run(LauncherConfig {
        runtimes: level::runtimes(),
        trust: BTreeMap::new(),
        egress_memory: 1 << 30,
        agent: Box::leak(agent.into_boxed_slice()),
        home,
        images,
        max_sandboxes: 4_096,
        memory_reserve: None,
        server: ServerProcess {
            uid: 65_534,
            gid: 65_534,
            args: server.into_iter().chain(args[4..].iter().cloned()).collect(),
            // What differs between tests that run at the same time.
            env: std::env::var_os("SANDPOOL_TEST_NET")
                .map(|net| ("SANDPOOL_TEST_NET".into(), net))
                .into_iter()
                .chain(level::environment())
                .collect(),
            inherit: Vec::new(),
        },
        egress: Some(ServerProcess {
            uid: 65_533,
            gid: 65_533,
            args: vec!["egress".into(), records.into_os_string()],
            env: Vec::new(),
            inherit: Vec::new(),
        }),
        grace: Duration::from_secs(5),
    })
}

fn egress(args: &[OsString]) -> Outcome<()> {
    let records = PathBuf::from(args.get(2).cloned().unwrap_or_default());
    tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::WARN).init();
    let control = sandpool_process::take_control()?;
    let counters = sandpool_sys::workload::inherited(sandpool_process::COUNTERS_FD)?;
    let counters = sandpool_sys::counters::Counters::open(&counters)?;
    let tells = sandpool_sys::workload::inherited(sandpool_process::TELLING_FD)?;
    sandpool_process::confine_proxy(&records)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(sandpool_egress::serve::serve(
        control,
        counters,
        Some(tells),
        &records,
        sandpool_egress::sandbox::Limits::default(),
    ))?)
}

/// The directory of all images, by one's root file system.
fn store_of(rootfs: &Path) -> &Path {
    rootfs.ancestors().nth(2).unwrap_or(Path::new("/"))
}

fn server<F: Future<Output = Outcome<()>>>(args: &[OsString], tests: impl FnOnce(Stage) -> F) -> Outcome<()> {
    let post = PathBuf::from(args.get(2).cloned().unwrap_or_default());
    let images = args[3..].chunks_exact(2);
    let images: BTreeMap<String, PathBuf> =
        images.map(|pair| (pair[0].to_string_lossy().into_owned(), pair[1].clone().into())).collect();
    let store = images.values().next().map_or(Path::new("/"), |rootfs| store_of(rootfs)).to_owned();
    tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::WARN).init();
    // The launcher must not start a server again whose test has failed.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::exit(78);
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let driver =
            ProcessDriver::connect(sandpool_process::take_control()?, sandpool_process::take_hearing()?, &store)
                .await?;
        tests(Stage { driver, images, post, began: Instant::now(), passed: 0, failed: 0 }).await
    })
}

impl Stage {
    /// A pool of this image, whose interpreters start cold: the runtime is the image's name.
    pub(crate) fn pool(&self, name: &str, image: &str, limits: Limits, max_sessions: u32) -> Outcome<PoolSpec> {
        Ok(PoolSpec {
            name: PoolName::parse(name)?,
            runtime: Runtime::from_word(image).ok_or("an image without a runtime")?,
            rootfs: self.image(image)?,
            scale: Scale { max_sessions, ready: 0, most_ready: 0, boots: 4 },
            life: Life { cooldown: Duration::from_secs(600), max_alive: None },
            limits,
            queue: 4,
            output_limit: 1 << 20,
            max_timeout: Duration::from_secs(120),
            env: Vec::new(),
            // A machine that boots is dear under emulation.
            start: if level::are_machines() { Start::Zygote } else { Start::Cold },
            egress: None,
            scope: sandpool_node::SessionScope::Tenant,
            container: None,
            session_secrets: false,
            isolation: level::isolation(),
            local_servers: true,
            suspends: sandpool_core::limits::Suspends::default(),
            full_wait: Duration::ZERO,
        })
    }

    /// An image's root file system.
    pub(crate) fn image(&self, name: &str) -> Outcome<PathBuf> {
        Ok(self.images.get(name).ok_or("an image that was not asked for")?.clone())
    }

    pub(crate) async fn node(&self, pools: Vec<PoolSpec>) -> Outcome<Arc<Node>> {
        let driver = Arc::clone(&self.driver) as Arc<dyn Driver>;
        Ok(Arc::new(Node::start(NodeConfig { pools, ..NodeConfig::default() }, driver).await?))
    }

    /// What root wrote as the part that this server plays; nothing at first.
    pub(crate) fn phase(&self) -> String {
        std::fs::read_to_string(self.post.join("phase")).unwrap_or_default()
    }

    /// Leaves a word for root.
    pub(crate) fn write(&self, name: &str) -> Outcome<()> {
        Ok(std::fs::write(self.post.join(name), "")?)
    }

    /// What the egress proxy has written.
    pub(crate) fn egress_record(&self) -> String {
        std::fs::read_to_string(self.post.with_file_name("egress").join("egress.jsonl")).unwrap_or_default()
    }

    /// What root sees on the host.
    pub(crate) async fn look(&self) -> Outcome<BTreeMap<String, u64>> {
        self.ask("").await
    }

    /// Has root do something, and then look.
    pub(crate) async fn ask(&self, what: &str) -> Outcome<BTreeMap<String, u64>> {
        std::fs::write(self.post.join("partial-ask"), what)?;
        std::fs::rename(self.post.join("partial-ask"), self.post.join("ask"))?;
        let answer = self.post.join("answer");
        let until = Instant::now() + Duration::from_secs(30);
        while !answer.exists() {
            if Instant::now() >= until {
                return Err("root does not answer".into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let text = std::fs::read_to_string(&answer)?;
        std::fs::remove_file(&answer)?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Counts and prints one test.
    pub(crate) fn judge(&mut self, name: &str, problem: Option<String>) {
        match problem {
            None => {
                self.passed += 1;
                println!("test {name} ... ok");
            }
            Some(problem) => {
                self.failed += 1;
                println!("test {name} ... FAILED\n{problem}");
            }
        }
    }

    /// The closing line, as libtest prints it.
    pub(crate) fn end(self) -> Outcome<()> {
        let (word, took) = (if self.failed == 0 { "ok" } else { "FAILED" }, self.began.elapsed().as_secs_f64());
        let Self { passed, failed, .. } = self;
        println!(
            "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; finished in \
             {took:.2}s\n"
        );
        if failed == 0 { Ok(()) } else { Err(format!("{failed} failed").into()) }
    }
}

/// One session of a pool.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) node: Arc<Node>,
    pub(crate) pool: PoolName,
    pub(crate) name: SessionKey,
}

impl Session {
    pub(crate) async fn open(node: &Arc<Node>, pool: &str, name: &str) -> Outcome<Self> {
        let (pool, name) = (PoolName::parse(pool)?, SessionKey::from(Identifier::parse(name)?));
        let caller = Caller { subject: "attacker".to_owned() };
        node.open(&pool, &name, Open::OrCreate, &caller).await?;
        Ok(Self { node: Arc::clone(node), pool, name })
    }

    pub(crate) async fn code(&self, code: &str, seconds: u64) -> Outcome<Execution> {
        self.run(Work::Code { code: code.to_owned(), fresh: false }, seconds).await
    }

    pub(crate) async fn shell(&self, command: &str, seconds: u64) -> Outcome<Execution> {
        self.run(Work::Shell { command: command.to_owned(), stdin: Stdin::Empty }, seconds).await
    }

    async fn run(&self, work: Work, seconds: u64) -> Outcome<Execution> {
        let timeout = Some(Duration::from_secs(seconds));
        let request = ExecuteRequest { id: None, work, timeout, output_limit: None };
        let handle = self.node.execute(&self.pool, &self.name, request).await?;
        Ok(handle.wait(Duration::from_secs(seconds + 20)).await)
    }

    pub(crate) async fn close(self) -> Outcome<()> {
        Ok(self.node.delete_session(&self.pool, &self.name).await?)
    }
}

/// What was seen, in a few lines.
pub(crate) fn seen(execution: &Execution) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
    format!("{:?}\n{}{}", execution.state, text(&execution.stdout), text(&execution.stderr))
}

/// Whether code ran to its end.
pub(crate) fn succeeded(execution: &Execution) -> bool {
    use sandpool_node::ExecutionState::Ended;
    matches!(execution.state, Ended(Verdict::Succeeded | Verdict::Exited(0)))
}
