//! The whole router over pools in memory, for tests of dialects and for fuzzing (the feature `served`).

#![cfg_attr(not(test), allow(dead_code))]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
#[cfg(test)]
use axum::http::Method;
#[cfg(test)]
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::Response;
use http_body_util::BodyExt;
use sandpool_core::ids::{PoolName, TenantName};
use sandpool_core::limits::{Life, Limits, Scale};
use sandpool_driver::memory::{Memory, MemoryConfig};
use sandpool_node::cut::CutDisk;
use sandpool_node::{Bounds, Node, NodeConfig, PoolSpec, Quota, Runtime, Snapshots, Tenant};
use sandpool_objects::pool::default_pools;
use sandpool_objects::{Found, HostedServer, ImageConfig, Images, Metadata, Origin, PoolFace, Prepared};
use serde_json::Value;
use tower::ServiceExt;

use crate::app::{App, router};
use crate::auth::{Auth, AuthConfig, Mint, Role, Scope, TenantTokens};
#[cfg(test)]
use crate::openapi::check;

/// The tenants besides the default one; `small` may have one session, and one execution.
const TENANTS: [&str; 3] = ["acme", "globex", "small"];

fn tenant(name: &str) -> TenantName {
    TenantName::parse(name).unwrap()
}

/// Bytes of output that an execution keeps here.
pub(crate) const OUTPUT_LIMIT: u64 = 10_000;

/// A router, what is behind it, and a token for it.
pub struct Served {
    pub(crate) memory: Memory,
    /// Where its snapshots are, below `/snapshots`.
    pub(crate) disk: Arc<CutDisk>,
    pub(crate) node: Node,
    router: Router,
    auth: Arc<Auth>,
    token: String,
    _keys: tempfile::TempDir,
}

/// Images of sandboxes in memory: those that recipes make, and one of a stranger.
pub(crate) struct InMemory;

impl Images for InMemory {
    fn find(&self, name: &str, runtime: &str, _: Option<&str>) -> Result<Found, String> {
        let has = if name == "stranger" { "shell" } else { name };
        let config = ImageConfig { entrypoint: vec!["serve".to_owned()], ..ImageConfig::default() };
        match has == runtime || name == "stranger" && runtime == "container" {
            true => Ok(Found { rootfs: PathBuf::from("/nowhere").join(name), metadata: metadata(), config }),
            false => Err(format!("is {name:?}, which is not here")),
        }
    }

    fn check_key(&self, _: &str) -> Result<(), String> {
        Ok(())
    }

    fn pull(&self, _: &str, _: Option<(String, String)>, _: Option<&str>, _: &dyn Fn(u64, u64)) -> Result<(), String> {
        Err("there is no registry".to_owned())
    }
}

fn metadata() -> Metadata {
    Metadata {
        runtime: "Memory".to_owned(),
        version: "1".to_owned(),
        packages: vec![("numpy".to_owned(), "2.0".to_owned())],
        created: SystemTime::UNIX_EPOCH,
    }
}

/// What was answered, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// A refusal: its status, code and target.
    pub(crate) fn refusal(&self) -> (u16, String, Value) {
        let body = self.json();
        assert_eq!(body["code"], body["error"]["code"], "{body}");
        assert_eq!(self.header("x-ms-error-code"), body["code"], "{body}");
        assert!(body["message"].as_str().is_some_and(|message| message.ends_with('.')), "{body}");
        (self.status.as_u16(), body["code"].as_str().unwrap().to_owned(), body["error"]["target"].clone())
    }
}

/// Servers as they are in memory. The first says again what it is told, which is an answer only for a client that knows it, and
/// so for tests only: fuzzing expects an answer to everything. The others end at once.
fn servers() -> BTreeMap<String, HostedServer> {
    let server = |words: &str| HostedServer { argv: vec![words.to_owned()], env: Vec::new() };
    [("echo", "cat"), ("broken", "err no such luck\nexit 3"), ("loud", "flood 9000000")]
        .into_iter()
        .filter(|(name, _)| cfg!(test) || *name != "echo")
        .map(|(name, words)| (name.to_owned(), server(words)))
        .collect()
}

/// Three sessions at most, and two executions that wait.
fn spec(name: &str, runtime: Runtime) -> PoolSpec {
    PoolSpec {
        name: PoolName::parse(name).unwrap(),
        runtime,
        rootfs: "/nowhere".into(),
        scale: Scale { max_sessions: 3, ready: 1, most_ready: 1, boots: 4 },
        life: Life { cooldown: Duration::from_secs(300), max_alive: None },
        limits: Limits::default(),
        queue: 2,
        output_limit: OUTPUT_LIMIT,
        max_timeout: Duration::from_secs(220),
        env: Vec::new(),
        start: sandpool_node::Start::Cold,
        egress: (name == "python")
            .then(|| sandpool_node::EgressPolicy { mode: sandpool_node::EgressMode::Open, ..Default::default() }),
        scope: sandpool_node::SessionScope::Tenant,
        container: None,
        session_secrets: name == "python",
        isolation: sandpool_node::Isolation::default(),
        local_servers: true,
        suspends: sandpool_core::limits::Suspends::default(),
        full_wait: Duration::ZERO,
    }
}

impl Served {
    /// The pools `python`, `node` and `shell`.
    ///
    /// # Panics
    ///
    /// When the machine gives no temporary directory or no randomness.
    pub async fn start() -> Self {
        Self::over(Memory::new(MemoryConfig::default())).await
    }

    pub(crate) async fn over(memory: Memory) -> Self {
        let kinds = [
            ("python", Runtime::Python, "PythonLTS"),
            ("node", Runtime::Node, "NodeLTS"),
            ("shell", Runtime::Shell, "Shell"),
        ];
        let face = |kind: &str| PoolFace {
            container_type: kind.to_owned(),
            metadata: metadata(),
            default_output_limit: 4_096,
            is_mcp_enabled: kind != "NodeLTS",
            servers: servers(),
        };
        let mut prepared = Prepared::default();
        for ((name, runtime, kind), object) in kinds.into_iter().zip(default_pools()) {
            prepared.declare(object, spec(name, runtime), face(kind), Origin::Default);
        }
        let pools = prepared.declared.clone();
        let quota = Quota { sessions: Some(1), executions: Some(1), ..Quota::default() };
        let tenants = vec![Tenant { name: tenant("small"), weight: 1, quota }];
        let bounds = Bounds { all: 1 << 30, of_tenant: 1 << 30 };
        let disk = Arc::new(CutDisk::default());
        let snapshots = Snapshots::open(std::path::Path::new("/snapshots"), disk.clone(), bounds).ok();
        let config = NodeConfig { pools, tenants, snapshots, ..NodeConfig::default() };
        let node = Node::start(config, memory.driver()).await.unwrap();
        let keys = tempfile::tempdir().unwrap();
        let config = AuthConfig {
            keys_dir: keys.path().to_owned(),
            issuer: "https://sandpool.local".to_owned(),
            trusted: Vec::new(),
            api_keys: Vec::new(),
            tenants: TENANTS.map(tenant).map(|tenant| TenantTokens { tenant, claims: Vec::new() }).to_vec(),
            identity_header: "secret".to_owned(),
            open_metadata: false,
            token_ttl: Duration::from_secs(600),
        };
        let auth = Arc::new(Auth::open(config).unwrap());
        let pools = prepared.with(node.clone(), None, Arc::new(InMemory));
        let app = App {
            node: node.clone(),
            auth: Arc::clone(&auth),
            pools,
            preview_host: "preview.localhost".into(),
            open_metrics: false,
            version: "0.0.0",
        };
        #[cfg(feature = "conformance-fixtures")]
        let router = router(app.clone()).merge(crate::mcp::native::fixtures(app));
        #[cfg(not(feature = "conformance-fixtures"))]
        let router = router(app);
        let mut served = Self { memory, disk, node, router, auth, token: String::new(), _keys: keys };
        served.token = served.token_for(Role::Executor, None, None);
        served
    }

    pub(crate) fn token_of(&self, name: &str, role: Role) -> String {
        self.minted(&Mint { tenant: tenant(name), ..Mint::new(format!("{name}-person"), role) })
    }

    pub(crate) fn token_with(&self, scopes: &[Scope]) -> String {
        self.minted(&Mint { scopes: Some(scopes.to_vec()), ..Mint::new("limited", Role::Admin) })
    }

    pub(crate) fn token_for(&self, role: Role, pool: Option<&str>, session: Option<&str>) -> String {
        let pools = pool.map(|pool| vec![PoolName::parse(pool).unwrap()]);
        let session = session.map(str::to_owned);
        self.minted(&Mint { pools, session, ..Mint::new("tester", role) })
    }

    pub(crate) fn minted(&self, mint: &Mint) -> String {
        self.auth.mint(mint).unwrap().token
    }

    /// Sends a request as it is.
    pub async fn send(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.unwrap_or_else(|never| match never {})
    }

    /// All routes.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// The token of an executor.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }
}

#[cfg(test)]
impl Served {
    /// Sends a request with this token, reads the answer, and holds it against the OpenAPI document.
    pub(crate) async fn as_(&self, token: &str, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(path)
            .header(AUTHORIZATION, format!("Bearer {token}"))
            .header(CONTENT_TYPE, "application/json")
            .body(body.into())
            .unwrap();
        let answer = read(self.send(request).await).await;
        check::answer(method, path, answer.status.as_u16(), answer.header("content-type"), &answer.body);
        answer
    }

    /// Sends a request as an executor, and reads the answer.
    pub(crate) async fn call(&self, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        self.as_(&self.token, method, path, body).await
    }

    /// Asks for a stream of events, and answers what comes.
    pub(crate) async fn stream(&self, method: &str, path: &str, header: (&str, &str), body: &str) -> Response {
        let request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(path)
            .header(AUTHORIZATION, format!("Bearer {}", self.token))
            .header("accept", "text/event-stream")
            .header(header.0, header.1)
            .body(Body::from(body.to_owned()))
            .unwrap();
        self.send(request).await
    }
}

pub(crate) async fn read(response: Response) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status, headers: parts.headers, body }
}
