//! The unprivileged half of a running server: joins driver, node, auth and HTTP, and stops them in order.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sandpool_driver::levels::Levels;
use sandpool_http::{App, Listener};
use sandpool_node::{Deed, HostDisk, Node, NodeConfig, Snapshots};
use sandpool_objects::{Found, ImageConfig, Metadata, Origin, Prepared};
use sandpool_oci::signature::Key;
use sandpool_process::ProcessDriver;
use sandpool_telemetry::{Exporter, LogLayer};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::client::Context;
use crate::commands::up::{GRACE, banner};
use crate::credentials;
use crate::failure::Failure;
use crate::home::ServerRecord;
use crate::print;
use crate::settings::Settings;

/// One image, as far as a server needs it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Image {
    /// Its root file system.
    pub(crate) rootfs: PathBuf,
    /// What answers code in it: `python`, `node` or `shell`.
    pub(crate) runtime: String,
    /// The runtime's version.
    pub(crate) version: String,
    /// Names and versions of the runtime's packages.
    pub(crate) packages: Vec<(String, String)>,
    /// When it was built.
    pub(crate) created: SystemTime,
    /// What it says about how it is run.
    pub(crate) config: ImageConfig,
}

impl Image {
    /// What clients are told about it.
    fn metadata(&self) -> Metadata {
        let runtime = match self.runtime.as_str() {
            "python" => "Python",
            "node" => "Node.js",
            "shell" => "Bash",
            "none" => "Container",
            other => other,
        };
        Metadata {
            runtime: runtime.to_owned(),
            version: self.version.clone(),
            packages: self.packages.clone(),
            created: self.created,
        }
    }
}

/// The images of a server's pools, by the pools' names.
pub(crate) type Images = BTreeMap<String, Image>;

/// What the launcher's side prepared, as the server reads it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The effective settings.
    pub(crate) settings: Settings,
    /// Their pools are those of a configuration file, which is where they are changed.
    pub(crate) of_file: bool,
    /// The images of its pools.
    pub(crate) images: Images,
    /// What is told to clients.
    pub(crate) record: ServerRecord,
}

impl Plan {
    /// Reads what `up` wrote.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let failure = || Failure::new(format!("cannot read {}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| {
            failure().because(error).advise("the user that started the server may read it: root, with sudo")
        })?;
        serde_json::from_str(&text).map_err(|error| failure().because(error))
    }
}

/// Runs until the launcher, a signal or a failure ends it.
pub(crate) fn run(context: &Context, plan: &Path, log: &LogLayer) -> ExitCode {
    let served = Plan::read(plan).and_then(|plan| {
        let inherited = Inherited::take(&plan.settings)?;
        let runtime = runtime().map_err(|error| Failure::new("cannot start").because(error))?;
        runtime.block_on(serve(context, plan, inherited, log))
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!(%failure, "the server ends");
            ExitCode::from(u8::try_from(sandpool_process::launcher::SERVER_GIVES_UP).unwrap_or(1))
        }
    }
}

/// Serves on half of the cores: interpreters need at least as much processor as the server. On a small machine that is
/// one thread, and then a request is never handed from one core to another, which costs more than all the rest that is
/// done for it here.
pub(crate) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut builder = match cores / 2 {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    builder.enable_all().build()
}

/// What the launcher's side opened for us, in the order of the descriptors.
struct Inherited {
    control: OwnedFd,
    hears: OwnedFd,
    plain: std::net::TcpListener,
    tls: Option<std::net::TcpListener>,
    /// The operator's certificate and key.
    files: Option<(std::fs::File, std::fs::File)>,
}

impl Inherited {
    /// Takes the descriptors after the control socket. Once per process, before anything else opens one.
    fn take(settings: &Settings) -> Result<Self, Failure> {
        let missing = |what: &str, error: io::Error| {
            Failure::new(format!("{what} was not inherited"))
                .because(error)
                .advise("`__server` is started by the launcher only; use `sandpool up`")
        };
        let control = sandpool_process::take_control().map_err(|error| missing("the control socket", error))?;
        let hears = sandpool_process::take_hearing().map_err(|error| missing("the egress proxy's socket", error))?;
        let mut next = sandpool_process::HEARING_FD;
        let mut take = |what: &str| {
            next += 1;
            sandpool_sys::workload::inherited(next).map_err(|error| missing(what, error))
        };
        let plain = std::net::TcpListener::from(take("the listener")?);
        let tls = match &settings.https {
            Some(_) => Some(std::net::TcpListener::from(take("the TLS listener")?)),
            None => None,
        };
        let files = match &settings.https {
            Some(https) if https.certificate.is_some() => {
                Some((take("the certificate")?.into(), take("the certificate's key")?.into()))
            }
            _ => None,
        };
        Ok(Self { control, hears, plain, tls, files })
    }
}

/// A file from its beginning: a server before us may have read the same descriptor.
fn reread(mut file: std::fs::File) -> io::Result<Vec<u8>> {
    use std::io::{Read, Seek};
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(1 << 20).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn to_tokio(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn serve(context: &Context, plan: Plan, inherited: Inherited, log: &LogLayer) -> Result<(), Failure> {
    let Plan { settings, of_file, images, record } = plan;
    let signal_failure = |error: io::Error| Failure::new("cannot hear signals").because(error);
    let mut terminate = signal(SignalKind::terminate()).map_err(signal_failure)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signal_failure)?;

    let exporter = settings.telemetry.to_config().map(Exporter::new).transpose();
    let (exporter, workers) = exporter.map_err(|why| Failure::new("nothing can be exported").because(why))?.unzip();
    if let Some(exporter) = &exporter {
        log.connect(exporter);
    }
    let state = context.home.state().join("sandpool.db");
    let store = sandpool_node::Store::open(&state).map_err(|error| Failure::new(error.to_string()))?;
    store.audit(Deed { what: "server.started", detail: env!("CARGO_PKG_VERSION").to_owned(), ..Deed::default() });
    let auth = Arc::new(credentials::open_auth(&context.home, &settings)?);
    let mut listeners =
        vec![Listener::Plain(to_tokio(inherited.plain).map_err(|error| Failure::new("cannot listen").because(error))?)];
    if let Some(tls) = inherited.tls {
        let config = tls_config(context, &settings, inherited.files)?;
        let tls = to_tokio(tls).map_err(|error| Failure::new("cannot listen for TLS").because(error))?;
        listeners.push(Listener::Tls(tls, config));
    }

    let driver = ProcessDriver::connect(
        inherited.control,
        inherited.hears,
        settings.images.as_deref().unwrap_or(Path::new("/")),
    )
    .await
    .map_err(|error| Failure::new("the launcher does not answer").because(error))?;
    let run = context.home.run();
    driver.prepare_machines_with(Box::new(move |rootfs| crate::puller::prepare_machines(&run, rootfs)));
    let mut pools = declared(&settings, &images, of_file)?;
    let of_images = ImageStore { directory: settings.images.clone(), run: context.home.run() };
    let store_of_images: Arc<dyn sandpool_objects::Images> = Arc::new(of_images);
    pools.read(&store, &*store_of_images).await;
    let tenants = settings.tenants.iter().map(crate::settings::TenantSettings::to_tenant).collect::<Result<_, _>>();
    let tenants = tenants.map_err(|error| Failure::new(error.to_string()))?;
    let directory = context.home.state().join("snapshots");
    let snapshots = Snapshots::open(&directory, Arc::new(HostDisk), settings.snapshots.bounds())
        .map_err(|error| Failure::new(format!("{} cannot be used", directory.display())).because(error))?;
    let config = NodeConfig {
        pools: std::mem::take(&mut pools.declared),
        applied: std::mem::take(&mut pools.applied),
        tenants,
        monotonic: sandpool_process::monotonic(),
        store: Some(store.clone()),
        snapshots: Some(snapshots),
        identities: Some(auth.clone()),
    };
    // Every level's driver has its place here.
    let levels = Levels::new(vec![(vec!["process", "container", "microvm"], driver.clone())]);
    let node = Node::start(config, Arc::new(levels))
        .await
        .map_err(|error| Failure::new("the pools do not start").caused_by(&error))?;
    let pools = pools.with(node.clone(), Some(store), store_of_images);

    let stop = CancellationToken::new();
    let app = App {
        node: node.clone(),
        auth,
        pools,
        preview_host: settings.preview_host.as_str().into(),
        open_metrics: settings.metrics.open,
        version: env!("CARGO_PKG_VERSION"),
    };
    let (router, counted) = sandpool_http::router_telling(app, exporter);
    let mut http = tokio::spawn(sandpool_http::serve(listeners, router, stop.clone()));
    let told = CancellationToken::new();
    let telling = workers.map(|workers| tokio::spawn(workers.run(Box::new(move || counted.series()), told.clone())));
    info!(endpoint = record.endpoint, "listening");

    let mut announced = false;
    let ended_early = loop {
        tokio::select! {
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            () = driver.closed() => {
                error!("the launcher is gone, and with it every sandbox");
                break None;
            }
            ended = &mut http => break Some(ended),
            () = tokio::time::sleep(Duration::from_millis(25)), if !announced => {
                if node.is_ready() {
                    announced = true;
                    info!(endpoint = record.endpoint, "pools are ready");
                    let console = crate::commands::console::said(context, &record.endpoint);
                    print::out(&banner(&settings, &record, context, console.as_deref(), false))?;
                }
            }
        }
    };
    info!("stopping");
    // In order: take no more, let what runs end, destroy the sandboxes.
    stop.cancel();
    node.shutdown(GRACE).await;
    told.cancel();
    if let Some(telling) = telling {
        // It has a limit of its own. A panic in it has been told.
        let _ = telling.await;
    }
    let ended = match ended_early {
        Some(ended) => ended,
        None => match tokio::time::timeout(Duration::from_secs(3), &mut http).await {
            Ok(ended) => ended,
            // Connections that outlive the sandboxes have nothing left to wait for.
            Err(_) => {
                http.abort();
                return Ok(());
            }
        },
    };
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::new("serving HTTP failed").because(error)),
        Err(error) => Err(Failure::new("serving HTTP failed").because(error)),
    }
}

/// The pools of the configuration, for the service layer and for clients.
fn declared(settings: &Settings, images: &Images, of_file: bool) -> Result<Prepared, Failure> {
    let mut prepared = Prepared::default();
    let origin = if of_file { Origin::File } else { Origin::Default };
    for pool in &settings.pools {
        let image = images
            .get(&pool.metadata.name)
            .ok_or_else(|| Failure::new(format!("image {} was not prepared", pool.image())))?;
        let spec =
            pool.to_spec(image.rootfs.clone(), &image.config).map_err(|error| Failure::new(error.to_string()))?;
        prepared.declare(pool.clone(), spec, pool.to_face(image.metadata()), origin);
    }
    Ok(prepared)
}

/// The images that pools can be applied with: those that are there, and those that registries have.
struct ImageStore {
    directory: Option<PathBuf>,
    /// Where the puller listens.
    run: PathBuf,
}

impl sandpool_objects::Images for ImageStore {
    fn find(&self, name: &str, runtime: &str, key: Option<&str>) -> Result<Found, String> {
        let key = key.map(parsed).transpose()?;
        let directory = self.directory.as_deref().ok_or("names an image, and no directory of images is set")?;
        let unreadable = |error: &dyn std::fmt::Display| format!("names an image that the server cannot read: {error}");
        let store = sandpool_image::Store::open(directory).map_err(|error| unreadable(&error))?;
        let found = store.meant(name).map_err(|error| unreadable(&error))?;
        let image = found.ok_or_else(|| {
            let known = store.list().unwrap_or_default();
            let known: Vec<_> = known.iter().map(|image| image.name.as_str()).collect();
            format!(
                "is {name:?}, which is not here; there are: {}. Get it first: sandpool image build, pull or import",
                known.join(", ")
            )
        })?;
        if runtime != "container" && image.manifest.runtime != runtime {
            return Err(format!("is {name:?}, which has {}, and this pool needs {runtime}", image.manifest.runtime));
        }
        if let Some(key) = key
            && !image.is_signed_by(key.id())
        {
            return Err(format!("is {name:?}, which is not known to be signed with the pool's imageKey"));
        }
        let image = Image::from(image);
        Ok(Found { rootfs: image.rootfs.clone(), metadata: image.metadata(), config: image.config })
    }

    fn check_key(&self, key: &str) -> Result<(), String> {
        parsed(key).map(drop)
    }

    fn pull(
        &self,
        reference: &str,
        credentials: Option<(String, String)>,
        key: Option<&str>,
        progress: &dyn Fn(u64, u64),
    ) -> Result<(), String> {
        crate::puller::pull(&self.run, reference, credentials, key, progress)
    }
}

fn parsed(key: &str) -> Result<Key, String> {
    Key::parse(key).map_err(|error| format!("is no key that images are signed with: {error}"))
}

fn tls_config(
    context: &Context,
    _settings: &Settings,
    files: Option<(std::fs::File, std::fs::File)>,
) -> Result<Arc<rustls::ServerConfig>, Failure> {
    match files {
        Some((certificate, key)) => {
            let unreadable = |error: io::Error| Failure::new("cannot read the certificate").because(error);
            let certificate = reread(certificate).map_err(unreadable)?;
            let key = reread(key).map_err(unreadable)?;
            sandpool_http::tls::given(&certificate, &key)
        }
        None => sandpool_http::tls::local(&context.home.tls()),
    }
    .map_err(|error| Failure::new("TLS cannot be served").caused_by(&error))
}
