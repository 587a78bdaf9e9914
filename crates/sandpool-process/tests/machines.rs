//! Real machines: this program starts itself as a launcher, which starts it again as the server, as `sandboxes` does.
//!
//! Needs root, QEMU, `mkfs.erofs` and a kernel from Debian's archive; says so when it skips. Where there is no processor that
//! runs guests, QEMU emulates one. `SANDPOOL_TEST_ONLY` names those of shell, python, node and contract that are wanted;
//! `SANDPOOL_TEST_CLONES` and `SANDPOOL_TEST_FIGURES` ask for more (`machines/clones.rs`, `machines/figures.rs`).

#[path = "stage/agent.rs"]
mod agent;
#[path = "stage/bare.rs"]
mod bare;
#[path = "machines/clones.rs"]
mod clones;
#[path = "machines/figures.rs"]
mod figures;
#[path = "machines/looker.rs"]
mod looker;
#[path = "machines/saved.rs"]
mod saved;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandpool_core::ids::{PoolName, SandboxId};
use sandpool_core::limits::Limits;
use sandpool_driver::{Driver, DriverError, Isolation, Owner, Start, Template};
use sandpool_process::ProcessDriver;
use sandpool_process::launcher::{LauncherConfig, ServerProcess, run};
use sandpool_process::oci::Runtimes;
use sandpool_vm::build;
use sandpool_vm::found::{Choice, Wanted};
use sandpool_vm::prepared::Prepared;
use sandpool_wire::agent::{Activation, Runtime};

use tokio::io::AsyncReadExt;

use bare::{Outcome, Real, id, killer, ready, shell};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let word = args.get(1).and_then(|word| word.to_str()).unwrap_or_default();
    let done = match word {
        "launcher" => return launcher(&args),
        "server" => server(&args),
        "killer" => killer(figures::look),
        "--api-sock" => looker::run(&args[2].to_string_lossy()),
        "--version" => {
            println!("{}", looker::VERSION);
            Ok(())
        }
        // What cargo's other tools ask of every test program.
        "--list" => Ok(()),
        _ => start(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("machines: {error}");
            // The launcher must not start this server again.
            ExitCode::from(78)
        }
    }
}

/// Images that have more in them than a shell: of the image store.
const OF_STORE: [&str; 2] = ["python", "node"];

/// Those that are there. Machines take nothing of an image but its block device, which is made once and lies beside it.
fn of_store() -> Vec<(&'static str, PathBuf)> {
    let store = std::env::var_os("SANDPOOL_IMAGES").map_or_else(|| "/var/lib/sandpool/images".into(), PathBuf::from);
    let rootfs = |name| {
        let digest = std::fs::read_to_string(store.join("names").join(name)).unwrap_or_default();
        std::fs::canonicalize(store.join(digest.trim()).join("rootfs")).ok().filter(|_| !digest.is_empty())
    };
    let found = OF_STORE.map(|name| {
        let found = rootfs(name);
        if found.is_none() {
            println!(
                "test machines of {name} ... SKIPPED: no image {name} in {}: sandpool image build",
                store.display()
            );
            assert!(std::env::var("SANDPOOL_MUST").as_deref() != Ok("1"), "there must be an image {name}");
        }
        found.map(|rootfs| (name, rootfs))
    });
    found.into_iter().flatten().collect()
}

fn start() -> Outcome<()> {
    if !rustix::process::getuid().is_root() {
        println!("test machines ... SKIPPED: needs root");
        return Ok(());
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let images = std::fs::canonicalize(target)?.join("images");
    std::fs::create_dir_all(&images)?;
    let rootfs = match agent::image(&images) {
        Ok(rootfs) => rootfs,
        Err(why) => {
            println!("test machines ... SKIPPED: {why}");
            return Ok(());
        }
    };
    let agent = agent::build(target)?;
    let of_store = of_store();
    let rootfs: Vec<&Path> = of_store.iter().map(|(_, rootfs)| rootfs.as_path()).chain([rootfs.as_path()]).collect();
    let run = |which: &str| -> Outcome<()> {
        let home = target.join(format!("home-{}", std::process::id()));
        std::fs::create_dir_all(&home)?;
        let mut launcher = Command::new(std::env::current_exe()?);
        let launcher = launcher.arg("launcher").args([&home, &images, &agent]).arg(which).status()?;
        std::fs::remove_dir_all(&home)?;
        if launcher.success() { Ok(()) } else { Err(format!("the launcher ended with {launcher}").into()) }
    };
    match looker_is_prepared(&images, &agent) {
        Ok(()) => run(LOOKER)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            println!("test what_a_vmm_sees ... SKIPPED: {error}");
        }
        Err(error) => return Err(error.into()),
    }
    let wanted = agent::vmm()?;
    let made = std::fs::read(&agent).and_then(|agent| build::prepare(&images, &rootfs, &agent, &wanted));
    match made {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            println!("test machines ... SKIPPED: {error}");
            return Ok(());
        }
        made => drop(made?),
    }
    for (name, rootfs) in of_store {
        let (made, here) = (Prepared::disk(&rootfs), Prepared::disk(&images.join(name)));
        let _ = std::fs::remove_file(&here);
        std::fs::hard_link(&made, &here).or_else(|_| std::fs::copy(&made, &here).map(drop))?;
    }
    run("all")
}

/// The word for the test with a VMM that is none.
const LOOKER: &str = "looker";

/// Prepares for the VMM that is none: this program, where one is looked for that root has put there.
fn looker_is_prepared(images: &Path, agent: &Path) -> io::Result<()> {
    let place = images.join("looker");
    std::fs::create_dir_all(&place)?;
    let path = place.join(looker::NAME);
    std::fs::copy(std::env::current_exe()?, &path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    let wanted = Wanted { vmm: Some(Choice::Firecracker), path: Some(path.clone()), ..Wanted::default() };
    let rootfs = images.join("shell");
    let made = build::prepare(images, &[&rootfs], &std::fs::read(agent)?, &wanted);
    std::fs::remove_file(path)?;
    made.map(drop)
}

fn launcher(args: &[OsString]) -> ExitCode {
    let [home, images, agent] = [2, 3, 4].map(|index| PathBuf::from(args.get(index).cloned().unwrap_or_default()));
    let Ok(agent) = std::fs::read(agent) else { return ExitCode::FAILURE };
    tracing_subscriber::fmt().init();
    let Ok(inherit) = inherit() else { return ExitCode::FAILURE };
    run(LauncherConfig {
        trust: BTreeMap::new(),
        egress_memory: 1 << 30,
        agent: Box::leak(agent.into_boxed_slice()),
        home,
        images,
        runtimes: Runtimes::default(),
        max_sandboxes: 300,
        memory_reserve: None,
        server: ServerProcess {
            uid: 65_534,
            gid: 65_534,
            args: [vec!["server".into()], args[3..].to_vec()].concat(),
            env: std::env::vars_os()
                .filter(|(name, _)| name.as_encoded_bytes().starts_with(b"SANDPOOL_TEST_"))
                .collect(),
            inherit,
        },
        egress: None,
        grace: Duration::from_secs(5),
    })
}

/// The way to the killer.
fn inherit() -> Outcome<Vec<OwnedFd>> {
    let (ours, killers) = UnixStream::pair()?;
    Command::new(std::env::current_exe()?).arg("killer").stdin(OwnedFd::from(killers)).spawn()?;
    Ok(vec![ours.into()])
}

fn server(args: &[OsString]) -> Outcome<()> {
    // The launcher must not start a server again whose test has failed.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::exit(78);
    }));
    let path = |index: usize| PathBuf::from(args.get(index).cloned().unwrap_or_default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if args.last().is_some_and(|which| which == LOOKER) {
        return runtime.block_on(what_a_vmm_sees(&path(2)));
    }
    runtime.block_on(tests(&path(2)))
}

async fn connect(images: &Path) -> Outcome<Arc<dyn Driver>> {
    Ok(ProcessDriver::connect(sandpool_process::take_control()?, sandpool_process::take_hearing()?, images).await?)
}

fn template(images: &Path) -> Outcome<Template> {
    Ok(Template {
        pool: PoolName::parse("shell")?,
        runtime: Runtime::Shell,
        rootfs: images.join("shell"),
        isolation: Isolation::Microvm,
        limits: Limits { memory: 128 << 20, data: 32 << 20, tmp: 8 << 20, ..Limits::default() },
        boot_limit: Duration::from_secs(120),
        local_servers: true,
        main: None,
        start: Start::Cold,
        egress: None,
    })
}

/// A VMM on the host's processors finds what it needs inside the walls around it, and no more.
async fn what_a_vmm_sees(images: &Path) -> Outcome<()> {
    let driver = connect(images).await?;
    // It runs no guest, so that there is no pool; it says why.
    let said = driver.ensure_pool(&template(images)?).await.err().map(|error| error.to_string()).unwrap_or_default();
    let expected = "looker: uid=1000 kvm=open (600 of 1000) image=erofs image-to-write=PermissionDenied disk=open kernel=ELF api=open \
                    dev=fd,full,kvm,null,ptmx,pts,random,shm,stderr,stdin,stdout,urandom,zero";
    assert!(said.contains(expected), "{said}");
    println!("test what_a_vmm_sees ... ok");
    Ok(())
}

async fn tests(images: &Path) -> Outcome<()> {
    let driver = connect(images).await?;
    let killer = UnixStream::from(sandpool_sys::workload::inherited(5)?);
    let template = template(images)?;
    let only = std::env::var("SANDPOOL_TEST_ONLY").ok();
    let is_wanted = |name: &str| only.as_ref().is_none_or(|only| only.split(',').any(|one| one == name));
    let warm = Template { start: Start::Zygote, ..template.clone() };
    if is_wanted("shell") {
        let booted = one_machine(&driver, &template).await?;
        println!("test one_machine ... ok");
        // Its template is made here, which no machine waits for.
        driver.ensure_pool(&warm).await?;
        let restored = one_machine(&driver, &warm).await?;
        println!("test one_machine_from_a_template ... ok: ready after {restored:?}, and {booted:?} when it booted");
    }
    let big = Limits { memory: 512 << 20, data: 64 << 20, tmp: 16 << 20, ..Limits::default() };
    for (runtime, limits) in [(Runtime::Shell, template.limits), (Runtime::Python, big), (Runtime::Node, big)] {
        let name = runtime.word();
        if !is_wanted(name) || !Prepared::disk(&images.join(name)).exists() {
            continue;
        }
        let (pool, rootfs) = (PoolName::parse(name)?, images.join(name));
        let template = Template { pool, runtime, rootfs, limits, boot_limit: Duration::from_secs(300), ..warm.clone() };
        let began = Instant::now();
        driver.ensure_pool(&template).await?;
        println!("test template of {name} ... ok: there after {:?}", began.elapsed());
        if std::env::var_os("SANDPOOL_TEST_FIGURES").is_some() {
            figures::figures(&driver, &template, &killer).await?;
        }
        saved::what_was_saved_goes_on(&driver, &template).await?;
        println!("test saved machines of {name} ... ok");
        println!("test clones of {name} ... ok: {}", clones::nothing_is_drawn_twice(&driver, &template).await?);
    }
    if is_wanted("contract") {
        wrong_machines(&driver, &warm).await?;
        println!("test wrong_machines ... ok");
        driver.ensure_pool(&warm).await?;
        sandpool_driver::contract::run(&Real { driver, template: warm, killer }).await;
        println!("test contract ... ok");
    }
    Ok(())
}

/// A machine that is somebody's.
async fn given(driver: &Arc<dyn Driver>, template: &Template, which: SandboxId) -> Outcome<()> {
    let mut watch = driver.watch();
    driver.create(which, &template.pool).await?;
    ready(driver.as_ref(), &mut watch, which).await?;
    driver.assign(which, &Owner { record: b"me".to_vec() }).await?;
    let mut seed = [0; 32];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
    driver.activate(which, &Activation { env: vec![("SAID".into(), "hello".into())], seed }).await?;
    Ok(())
}

/// What a session sees of its machine. Answers how long that took to be ready.
async fn one_machine(driver: &Arc<dyn Driver>, template: &Template) -> Outcome<Duration> {
    driver.ensure_pool(template).await?;
    let which = id(if template.start == Start::Cold { 1 } else { 2 });
    let began = Instant::now();
    given(driver, template, which).await?;
    let took = began.elapsed();
    let run = async |command: &str| shell(driver.as_ref(), which, command).await;
    // The same sandbox as at the process level ...
    let inside =
        run("echo $SAID; id -u; id -G; hostname; pwd; grep -c . /proc/net/dev; ls /dev | grep -cE 'vd|vport|kvm'")
            .await?;
    assert_eq!(inside, "hello\n1000\n1000\nsandbox\n/mnt/data\n3\n0\n");
    let walls = run("grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'").await?;
    assert_eq!(walls, "CapEff:0000000000000000\nNoNewPrivs:1\nSeccomp:2\n");
    // ... on another kernel than ours ...
    let ours = rustix::system::uname().release().to_string_lossy().into_owned();
    let theirs = run("uname -r; cat /proc/version").await?;
    assert!(theirs.contains("cloud") && !theirs.contains(&ours), "{theirs}");
    // ... at our time ...
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let clock: u64 = run("date +%s").await?.trim().parse()?;
    assert!(clock.abs_diff(now) < 120, "{clock} {now}");
    // ... with a disk that ends where its limit is.
    let full = run("dd if=/dev/zero of=big bs=1M count=100 2>&1 | grep -c 'No space'; stat -c %s big; rm big; touch after && echo more").await?;
    let words: Vec<&str> = full.split_whitespace().collect();
    assert!(matches!(words.as_slice(), ["1", _, "more"]), "{full}");
    let size: u64 = words[1].parse()?;
    assert!(size > template.limits.data / 2 && size < template.limits.data, "{full}");
    // Connections to its ports are made inside, and passed on.
    let server = "perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(Listen => 1, LocalAddr => \"127.0.0.1:8123\"); \
                  $c = $s->accept; print $c \"from inside\"' > /dev/null 2>&1 & \
                  until grep -q ':1FBB' /proc/net/tcp; do sleep 0.05; done";
    run(server).await?;
    let mut said = String::new();
    driver.connect(which, 8123).await?.read_to_string(&mut said).await?;
    assert_eq!(said, "from inside");
    let nobody = driver.connect(which, 8124).await.err();
    assert!(matches!(nobody, Some(DriverError::Refused(_))), "{nobody:?}");
    let usage = driver.usage(which).await?;
    assert!(usage.pids >= 2 && usage.memory > 0, "{usage:?}");
    driver.destroy(which).await?;
    Ok(took)
}

/// What cannot be a machine is refused, and says why.
async fn wrong_machines(driver: &Arc<dyn Driver>, template: &Template) -> Outcome<()> {
    let small = Limits { memory: 32 << 20, ..template.limits };
    let wrong = [
        (Template { limits: small, ..template.clone() }, "memory"),
        (Template { local_servers: false, ..template.clone() }, "localServers: false"),
        (Template { rootfs: "/nowhere/else".into(), ..template.clone() }, "else.erofs"),
    ];
    for (wrong, why) in wrong {
        let answer = driver.ensure_pool(&wrong).await;
        let says = |error: &DriverError| matches!(error, DriverError::Invalid(_)) && error.to_string().contains(why);
        assert!(answer.as_ref().is_err_and(says), "{why}: {answer:?}");
    }
    Ok(())
}
