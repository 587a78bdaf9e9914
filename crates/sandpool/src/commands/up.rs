//! `sandpool up` and `sandpool serve`: prepare what is missing, then become the launcher.
//!
//! ```text
//! check the host -> directories, lock -> images -> listen -> run/*.json -> launcher::run -> (spawns `__server`)
//! ```
//!
//! With `--detach` the process at the terminal prepares, starts the same program again in a session of its own, and
//! waits for its pools. The launcher has one thread: nothing here may leave one running behind it.

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use sandpool_objects::pool::{ContainerType, IsolationLevel};
use sandpool_process::launcher::{self, LauncherConfig, ServerProcess};

use super::{config, doctor, image};
use crate::args::{self, LogFormat, Serve, Up};
use crate::client::{Context, block_on};
use crate::failure::Failure;
use crate::home::{self, Home, Process, ServerRecord, quoted};
use crate::print;
use crate::settings::{Https, Settings, secrets};

/// The server's uid and gid where there is no user `sandpool`: far above what people and distributions hand out, and
/// below the range from which sandboxes take theirs.
const SERVER_ID: u32 = 0x1FFF_0000;

/// The egress proxy's, where there is no user `sandpool-egress`: another one than the server's, which holds keys.
const EGRESS_ID: u32 = SERVER_ID + 1;

/// Sandboxes of all pools at the same time, at most: each has a range of ids of its own, a few descriptors and, with an
/// interpreter, up to 9 process ids, of which a host has 32,768 unless it was told otherwise.
const MAX_SANDBOXES: u32 = 4096;

/// How long `--detach` waits for the pools, once images are there.
const READY_LIMIT: Duration = Duration::from_secs(180);

/// How long running executions get to end at a shutdown, all told.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// Set for the process that `--detach` leaves behind: its standard output and error are the log.
const DETACHED: &str = "SANDPOOL_DETACHED";

/// What is common to `up` and `serve`.
struct Start {
    settings: Settings,
    home: Home,
    /// The pools are those of a configuration file.
    of_file: bool,
    detach: bool,
    json: bool,
    log_format: LogFormat,
}

pub(crate) fn up(context: &Context, up: &Up, log_format: LogFormat) -> Result<ExitCode, Failure> {
    let mut settings = Settings::default();
    if let Some(listen) = up.listen {
        settings.listen = listen;
    }
    settings.https = up.https.map(|listen| Https { listen, certificate: None, key: None });
    for pool in &mut settings.pools {
        let scale = &mut pool.spec.scale_configuration;
        if let Some(sessions) = up.max_sessions {
            scale.max_concurrent_sessions = sessions;
            scale.ready_session_instances = scale.ready_session_instances.min(sessions);
        }
        if let Some(ready) = up.ready {
            scale.ready_session_instances = ready;
        }
        if let Some(level) = up.isolation {
            pool.spec.isolation = match level {
                args::Isolation::Process => IsolationLevel::Process,
                args::Isolation::Container => IsolationLevel::Container,
                args::Isolation::Microvm => IsolationLevel::Microvm,
            };
        }
        if let Some(seconds) = up.cooldown {
            pool.spec.dynamic_pool_configuration.lifecycle_configuration.cooldown_period_in_seconds = seconds;
        }
    }
    settings.resolve(&context.home, up.images.as_deref());
    settings.fill(|name| std::env::var(name).ok()).map_err(|error| config::unusable(&error))?;
    settings.check().map_err(|error| config::unusable(&error))?;
    let (home, json) = (context.home.clone(), context.json);
    start(&Start { settings, home, of_file: false, detach: up.detach, json, log_format })
}

/// `home_asked`: the state directory was given by a flag or the environment, which win over the file.
pub(crate) fn serve(
    context: &Context,
    serve: &Serve,
    home_asked: bool,
    log_format: LogFormat,
) -> Result<ExitCode, Failure> {
    let mut settings = Settings::read(&serve.config).map_err(|error| config::unusable(&error))?;
    let home = match &settings.home {
        Some(home) if !home_asked => Home::find(Some(home))?,
        _ => context.home.clone(),
    };
    if let Some(listen) = serve.listen {
        settings.listen = listen;
    }
    settings.resolve(&home, serve.images.as_deref());
    settings.fill(|name| std::env::var(name).ok()).map_err(|error| config::unusable(&error))?;
    settings.check().map_err(|error| config::unusable(&error))?;
    let json = context.json;
    start(&Start { settings, home, of_file: true, detach: serve.detach, json, log_format })
}

fn start(start: &Start) -> Result<ExitCode, Failure> {
    let home = &start.home;
    let is_detached = std::env::var_os(DETACHED).is_some();
    if is_detached {
        // The terminal that started us may go away.
        rustix::process::setsid().map_err(|error| Failure::new("cannot leave the terminal").because(error))?;
    }
    refuse_second(home)?;
    if !rustix::process::geteuid().is_root() {
        let words: Vec<_> = std::env::args_os().map(|word| quoted(&word.to_string_lossy())).collect();
        return Err(Failure::new("sandboxes of this level can only be made by root")
            .because("network namespaces, cgroups and uid ranges are set up for each of them; the server itself then runs as nobody in particular")
            .advise(format!("sudo {}", words.join(" "))));
    }
    doctor::check(home)?;
    let server = own_id("sandpool", SERVER_ID);
    let egress = own_id("sandpool-egress", EGRESS_ID);
    make_directories(home, server, egress)?;
    let unlockable = |error| Failure::new(format!("cannot lock {}", home.lock_path().display())).because(error);
    let lock = match home::lock(home).map_err(unlockable)? {
        Some(lock) => lock,
        None => {
            refuse_second(home)?;
            return Err(Failure::new(format!("another process is starting on {}", home.path().display())));
        }
    };
    let store = image::store(&start.settings)?;
    // Open for as long as there are sandboxes.
    let in_use = store.hold().map_err(image::explain)?;
    let images = image::prepare(&store, &start.settings)?;
    let listeners = Listeners::bind(&start.settings)?;
    if start.detach {
        drop((lock, listeners, in_use));
        return detach(start);
    }
    let record = listeners.record()?;
    let mut settings = start.settings.clone();
    let trust = secrets::install(home, &mut settings, egress)?;
    write_run_files(start, settings, &record, &images, server)?;
    crate::puller::start(home, store.directory(), &start.settings.machines, server)?;
    let config = LauncherConfig {
        agent: crate::AGENT,
        home: home.path().to_owned(),
        images: store.directory().to_owned(),
        runtimes: sandpool_process::oci::find(&start.settings.oci_runtimes),
        trust,
        max_sandboxes: MAX_SANDBOXES,
        memory_reserve: start.settings.memory_reserve.map(|size| size.0),
        server: ServerProcess {
            uid: server.0,
            gid: server.1,
            args: server_arguments(start),
            env: server_environment(),
            inherit: listeners.into_fds(&start.settings)?,
        },
        egress: Some(ServerProcess {
            uid: egress.0,
            gid: egress.1,
            args: egress_arguments(start),
            env: environment(&["RUST_LOG", "RUST_BACKTRACE", "LANG", "LC_ALL", "TZ", "NO_COLOR"]),
            inherit: Vec::new(),
        }),
        egress_memory: start.settings.egress_limits.memory.0,
        grace: GRACE + Duration::from_secs(5),
    };
    let code = launcher::run(config);
    // Values stay nowhere longer than they are used. Without any there is no such file.
    let _ = std::fs::remove_file(home.egress().join(sandpool_egress::secrets::FILE));
    // Nobody runs here any more. If this fails, the record names a process that is gone, which says the same.
    let _ = std::fs::remove_file(home.server_record_path());
    drop((lock, in_use));
    Ok(code)
}

/// Says that a server runs already, if one does.
fn refuse_second(home: &Home) -> Result<(), Failure> {
    match home.server() {
        Some(record) => Err(Failure::new(format!("a server is already running on {}", home.path().display()))
            .because(format!("process {} answers at {}", record.launcher.pid, record.endpoint))
            .advise(format!("sandpool down{} to stop it, or --home DIR for a second one", home.flag()))),
        None => Ok(()),
    }
}

/// Whom one of our programs runs as: this user if this machine has it, else a number that belongs to nobody.
fn own_id(name: &str, number: u32) -> (u32, u32) {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    find_user(&users, name).unwrap_or((number, number))
}

/// A user's uid and gid, from the text of `/etc/passwd`. Root is nobody's servant.
fn find_user(users: &str, name: &str) -> Option<(u32, u32)> {
    let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut numbers = line.split(':').skip(2).map(str::parse::<u32>);
    let (uid, gid) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (uid != 0 && gid != 0).then_some((uid, gid))
}

fn make_directories(home: &Home, server: (u32, u32), egress: (u32, u32)) -> Result<(), Failure> {
    let root = Some((0, 0));
    let make = |path: &Path, mode, owner| {
        home::make_directory(path, mode, owner)
            .map_err(|error| Failure::new(format!("cannot make {}", path.display())).because(error))
    };
    make(home.path(), 0o755, root)?;
    make(&home.run(), 0o755, root)?;
    make(&home.keys(), 0o700, Some(server))?;
    make(&home.state(), 0o700, Some(server))?;
    make(&home.tls(), 0o755, Some(server))?;
    make(&home.egress(), 0o750, Some(egress))?;
    if let Some(log) = home.log().parent() {
        make(log, 0o755, root)?;
    }
    Ok(())
}

/// The sockets, bound while we are root, so that any port will do and a taken one is told at once.
struct Listeners {
    plain: TcpListener,
    tls: Option<TcpListener>,
}

impl Listeners {
    fn bind(settings: &Settings) -> Result<Self, Failure> {
        let bind = |flag: &str, address: SocketAddr| {
            TcpListener::bind(address).map_err(|error| {
                let failure = Failure::new(format!("cannot listen on {address}")).because(&error);
                match error.kind() {
                    std::io::ErrorKind::AddrInUse => failure.advise(format!("another port with {flag}")),
                    std::io::ErrorKind::AddrNotAvailable => {
                        failure.advise(format!("an address of this machine with {flag}"))
                    }
                    _ => failure,
                }
            })
        };
        let plain = bind("--listen ADDR:PORT", settings.listen)?;
        let tls = settings.https.as_ref().map(|https| bind("--https=ADDR:PORT", https.listen)).transpose()?;
        Ok(Self { plain, tls })
    }

    /// What is told to those who look for this server.
    fn record(&self) -> Result<ServerRecord, Failure> {
        let failure = |error: std::io::Error| Failure::new("cannot say where this server listens").because(error);
        let address = |listener: &TcpListener| listener.local_addr().map(reachable).map_err(failure);
        Ok(ServerRecord {
            endpoint: format!("http://{}", address(&self.plain)?),
            https_endpoint: match &self.tls {
                Some(tls) => Some(format!("https://{}", address(tls)?)),
                None => None,
            },
            launcher: Process::current().map_err(failure)?,
            version: env!("CARGO_PKG_VERSION").into(),
        })
    }

    /// The descriptors that the server inherits, in the order of `crate::server::Inherited`.
    fn into_fds(self, settings: &Settings) -> Result<Vec<OwnedFd>, Failure> {
        let mut fds = vec![OwnedFd::from(self.plain)];
        fds.extend(self.tls.map(OwnedFd::from));
        // The server may not be able to read the operator's key; it gets the open files.
        if let Some(Https { certificate: Some(certificate), key: Some(key), .. }) = &settings.https {
            for path in [certificate, key] {
                let file = std::fs::File::open(path)
                    .map_err(|error| Failure::usage(format!("cannot read {}", path.display())).because(error))?;
                fds.push(OwnedFd::from(file));
            }
        }
        Ok(fds)
    }
}

/// An address under which a listener is reached from this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// Writes what the server reads, then what clients look for.
fn write_run_files(
    start: &Start,
    settings: Settings,
    record: &ServerRecord,
    images: &crate::server::Images,
    server: (u32, u32),
) -> Result<(), Failure> {
    let (images, of_file) = (images.clone(), start.of_file);
    let plan = crate::server::Plan { settings, of_file, images, record: record.clone() };
    let write = |path: PathBuf, value: serde_json::Result<String>, mode, group| {
        value
            .map_err(std::io::Error::from)
            .and_then(|text| home::write_atomically(&path, &text, mode, group))
            .map_err(|error| Failure::new(format!("cannot write {}", path.display())).because(error))
    };
    // Digests of keys and environment variables are the server's affair alone.
    write(start.home.plan(), serde_json::to_string_pretty(&plan), 0o640, Some(server.1))?;
    write(start.home.server_record_path(), serde_json::to_string_pretty(record), 0o644, None)
}

fn server_arguments(start: &Start) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["--home".into(), start.home.path().into()];
    if start.json {
        arguments.push("--json".into());
    }
    if start.log_format == LogFormat::Json {
        arguments.extend(["--log-format".into(), "json".into()]);
    }
    arguments.extend(["__server".into(), "--plan".into(), start.home.plan().into()]);
    arguments
}

/// What the server may know of our environment: how to log, and how to reach trusted issuers.
fn server_environment() -> Vec<(OsString, OsString)> {
    const PASSED: [&str; 16] = [
        "RUST_LOG",
        "RUST_BACKTRACE",
        "PATH",
        "LANG",
        "LC_ALL",
        "TZ",
        "NO_COLOR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "NO_PROXY",
        "no_proxy",
        "ALL_PROXY",
    ];
    environment(&PASSED)
}

fn environment(names: &[&str]) -> Vec<(OsString, OsString)> {
    names.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?))).collect()
}

fn egress_arguments(start: &Start) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["--home".into(), start.home.path().into()];
    if start.log_format == LogFormat::Json {
        arguments.extend(["--log-format".into(), "json".into()]);
    }
    arguments.extend(["__egress".into(), "--records".into(), start.home.egress().into()]);
    // Plain data in memory: this cannot fail.
    let limits = serde_json::to_string(&start.settings.egress_limits).unwrap_or_default();
    arguments.extend(["--limits".into(), limits.into()]);
    arguments
}

/// Starts this program again, away from the terminal, and waits until its pools are ready.
fn detach(start: &Start) -> Result<ExitCode, Failure> {
    let home = &start.home;
    let log = home.log();
    let unwritable = |error: std::io::Error| Failure::new(format!("cannot write {}", log.display())).because(error);
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
    let file = options.create(true).append(true).open(&log).map_err(unwritable)?;
    let from = file.metadata().map_err(unwritable)?.len();
    let program = std::env::current_exe().map_err(|error| Failure::new("cannot find this program").because(error))?;
    // The same words again, but for the one that brought us here.
    let words = std::env::args_os().skip(1).filter(|word| word != "--detach");
    let mut child = Command::new(program)
        .args(words)
        .env(DETACHED, "1")
        .stdin(Stdio::null())
        .stdout(file.try_clone().map_err(unwritable)?)
        .stderr(file)
        .spawn()
        .map_err(|error| Failure::new("cannot start the server").because(error))?;
    let failed = |what: String| {
        let mut failure = Failure::new(what);
        for line in tail(&log, from) {
            failure = failure.because(line);
        }
        failure.advise(format!("{} has all of it", log.display()))
    };
    let started = std::time::Instant::now();
    let ready = block_on(async {
        loop {
            if let Some(status) = child.try_wait().map_err(|error| Failure::new("cannot wait").because(error))? {
                return Err(failed(format!("the server ended before its pools were ready ({status})")));
            }
            let record = home.server().filter(|record| u32::try_from(record.launcher.pid) == Ok(child.id()));
            let trouble = match &record {
                Some(record) => match readiness(&record.endpoint).await {
                    None => return Ok(record.clone()),
                    Some(trouble) => trouble,
                },
                None => "it does not answer yet".into(),
            };
            if started.elapsed() > READY_LIMIT {
                return Err(
                    failed(format!("the pools are not ready after {} s", READY_LIMIT.as_secs())).because(trouble)
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    match ready {
        Ok(record) => {
            let context = Context { home: home.clone(), server: None, json: start.json };
            let console = super::console::said(&context, &record.endpoint);
            print::out(&banner(&start.settings, &record, &context, console.as_deref(), true))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(failure) => {
            if let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed())
                && child.try_wait().is_ok_and(|status| status.is_none())
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                let _ = child.wait();
            }
            Err(failure)
        }
    }
}

/// `None` when every pool is ready, else what the server says.
async fn readiness(endpoint: &str) -> Option<String> {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build();
    let answer = match client {
        Ok(client) => client.get(format!("{endpoint}/readyz")).send().await,
        Err(error) => return Some(error.to_string()),
    };
    match answer {
        Ok(answer) if answer.status().is_success() => None,
        Ok(answer) => {
            let text = answer.text().await.unwrap_or_default();
            Some(text.chars().take(1_000).collect())
        }
        Err(error) => Some(error.to_string()),
    }
}

/// The last lines that were logged after `from`.
fn tail(log: &Path, from: u64) -> Vec<String> {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(length.saturating_sub(16 << 10))))?;
        let mut bytes = Vec::new();
        file.take(16 << 10).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<_> = text.lines().map(|line| line.trim_start_matches("error: ").to_owned()).collect();
    lines[lines.len().saturating_sub(12)..].to_vec()
}

/// What is printed when the pools are ready: where, what, and something to paste.
pub(crate) fn banner(
    settings: &Settings,
    record: &ServerRecord,
    context: &Context,
    console: Option<&str>,
    detached: bool,
) -> String {
    let home = &context.home;
    if context.json {
        let pools: Vec<_> = settings.pools.iter().map(|pool| &pool.metadata.name).collect();
        let line = serde_json::json!({
            "ready": true, "endpoint": record.endpoint, "httpsEndpoint": record.https_endpoint, "console": console,
            "home": home.path(), "pid": record.launcher.pid, "version": record.version, "pools": pools,
        });
        return format!("{line}\n");
    }
    let program =
        std::env::current_exe().map_or_else(|_| "sandpool".into(), |path| path.to_string_lossy().into_owned());
    let (program, flag) = (quoted(&program), home.flag());
    let mut text = format!("Sandpool {} is ready at {}", record.version, record.endpoint);
    if let Some(https) = &record.https_endpoint {
        text.push_str(&format!(" and {https}"));
    }
    text.push('\n');
    for pool in &settings.pools {
        let scale = &pool.spec.scale_configuration;
        text.push_str(&format!(
            "  pool {:<10} {:<10} {} ready, {} sessions at most\n",
            pool.metadata.name,
            pool.spec.container_type.word(),
            scale.ready_session_instances,
            scale.max_concurrent_sessions
        ));
    }
    if let Some(console) = console {
        text.push_str(&format!("Console: {console}\n"));
        if !console.contains('#') {
            text.push_str(&format!("  `{program} console{flag}` prints an address that signs you in\n"));
        }
    }
    let stop = if detached { format!("{program} down{flag}") } else { "Ctrl-C".into() };
    text.push_str(&format!("State is in {}. Stop it with: {stop}\n", home.path().display()));
    if let Some(pool) = settings.pools.first() {
        let body = match pool.spec.container_type {
            ContainerType::PythonLTS => r#"{"code": "import platform; platform.python_version(), 6 * 7"}"#,
            ContainerType::NodeLTS => r#"{"code": "[process.version, 6 * 7]"}"#,
            ContainerType::Shell | ContainerType::CustomContainer => r#"{"command": "uname -a; echo $((6 * 7))"}"#,
        };
        text.push_str(&format!(
            "\nTry it:\n\n  curl -s {endpoint}{path}/executions \\\n    -H \"Authorization: Bearer $({program} token{flag})\" \\\n    \
             -H 'Content-Type: application/json' -d '{body}'\n\n  {program} run{flag} -p {name} -c '6 * 7'\n",
            endpoint = record.endpoint,
            path = crate::client::session_path(&pool.metadata.name, "hello-1"),
            name = pool.metadata.name,
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_user_is_never_root() {
        let users = "root:x:0:0::/root:/bin/sh\nsandpool:x:973:972::/:/usr/sbin/nologin\nevil:x:0:0::/:\n";
        assert_eq!(find_user(users, "sandpool"), Some((973, 972)));
        assert_eq!(find_user(users, "evil"), None);
        assert_eq!(find_user(users, "sand"), None);
        assert_eq!(find_user("", "sandpool"), None);
    }

    #[test]
    fn a_wildcard_is_reached_over_loopback() {
        let shown = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(shown("0.0.0.0:7300"), "127.0.0.1:7300");
        assert_eq!(shown("[::]:7300"), "[::1]:7300");
        assert_eq!(shown("192.0.2.1:80"), "192.0.2.1:80");
    }

    #[test]
    fn a_taken_port_is_told_with_advice() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = Settings { listen: taken.local_addr().unwrap(), ..Settings::default() };
        let failure = Listeners::bind(&settings).err().unwrap().to_string();
        assert!(failure.contains("cannot listen on 127.0.0.1:") && failure.contains("--listen"), "{failure}");
    }

    #[test]
    fn the_banner_says_where_and_what_to_paste() {
        let record = ServerRecord {
            endpoint: "http://127.0.0.1:7300".into(),
            https_endpoint: None,
            launcher: Process { pid: 1, start_time: 1 },
            version: "0.0.0".into(),
        };
        let home = Home::find(Some(Path::new("/srv/it's"))).unwrap();
        let program = quoted(&std::env::current_exe().unwrap().to_string_lossy());
        let mut context = Context { home, server: None, json: false };
        let console = Some("http://127.0.0.1:7300/console/");
        let text = banner(&Settings::default(), &record, &context, console, true).replace(&program, "PROGRAM");
        expect_test::expect![[r#"
            Sandpool 0.0.0 is ready at http://127.0.0.1:7300
              pool python     PythonLTS  2 ready, 250 sessions at most
              pool node       NodeLTS    2 ready, 250 sessions at most
              pool shell      Shell      2 ready, 250 sessions at most
            Console: http://127.0.0.1:7300/console/
              `PROGRAM console --home '/srv/it'\''s'` prints an address that signs you in
            State is in /srv/it's. Stop it with: PROGRAM down --home '/srv/it'\''s'

            Try it:

              curl -s http://127.0.0.1:7300/pools/python/sessions/hello-1/executions \
                -H "Authorization: Bearer $(PROGRAM token --home '/srv/it'\''s')" \
                -H 'Content-Type: application/json' -d '{"code": "import platform; platform.python_version(), 6 * 7"}'

              PROGRAM run --home '/srv/it'\''s' -p python -c '6 * 7'
        "#]]
        .assert_eq(&text);
        let signed_in =
            banner(&Settings::default(), &record, &context, Some("http://127.0.0.1:7300/console/#token=x"), true);
        assert!(signed_in.contains("/console/#token=x\n") && !signed_in.contains("prints an address"), "{signed_in}");
        context.json = true;
        let line = banner(&Settings::default(), &record, &context, None, true);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["ready"], true);
    }
}
