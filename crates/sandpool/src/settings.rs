//! Settings: what the program means. Read from YAML or made from defaults, checked, and written for the server.
//!
//! ```text
//! file (serve) or defaults (up) -> Settings -> with flags -> check() -> <home>/run/settings.json -> __server
//! ```
//!
//! Unknown keys are errors that name their path; so is every value out of its range. One type is read and written, so
//! what `config show` prints can be used as a configuration file.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandpool_core::ids::PoolName;
use sandpool_core::limits::{Life, Limits, Scale};
use sandpool_node::{EgressPolicy, PoolSpec, Runtime, SessionScope, Start};
use serde::{Deserialize, Serialize};

use crate::home::Home;

use self::egress::NetworkSettings;
use self::secrets::SecretSettings;
pub(crate) use self::units::Size;

pub(crate) use self::tenants::TenantSettings;

pub(crate) mod egress;
pub(crate) mod secrets;
mod servers;
mod tenants;
mod units;

/// The largest settings file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Everything a server is told. See `docs/cli.md` for the file's form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Settings {
    /// Where plain HTTP is served.
    #[serde(default = "default_listen")]
    pub(crate) listen: SocketAddr,
    /// The TLS listener, if there shall be one.
    #[serde(default)]
    pub(crate) https: Option<Https>,
    /// The state directory.
    #[serde(default)]
    pub(crate) home: Option<PathBuf>,
    /// The image store; `<home>/images` if not given.
    #[serde(default)]
    pub(crate) images: Option<PathBuf>,
    /// Memory of the host that stays free: a sandbox that would need of it is refused. A twentieth, and 256Mi at least,
    /// if not given.
    #[serde(default)]
    pub(crate) memory_reserve: Option<Size>,
    /// Who may call.
    #[serde(default)]
    pub(crate) auth: AuthSettings,
    /// Who shares the pools without seeing each other.
    #[serde(default)]
    pub(crate) tenants: Vec<TenantSettings>,
    /// What one session may use of the egress proxy.
    #[serde(default)]
    pub(crate) egress_limits: egress::EgressLimits,
    /// The pools.
    #[serde(default = "default_pools")]
    pub(crate) pools: Vec<PoolObject>,
}

/// The TLS listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Https {
    /// Its address.
    #[serde(default = "default_https_listen")]
    pub(crate) listen: SocketAddr,
    /// A PEM file with the certificate chain; without it, a local authority makes one.
    #[serde(default)]
    pub(crate) certificate: Option<PathBuf>,
    /// A PEM file with its key.
    #[serde(default)]
    pub(crate) key: Option<PathBuf>,
}

/// Who may call, besides the bearers of our own tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AuthSettings {
    /// Issuers whose tokens are trusted.
    #[serde(default)]
    pub(crate) issuers: Vec<IssuerSettings>,
    /// Keys that are good without a token.
    #[serde(default)]
    pub(crate) api_keys: Vec<ApiKeySettings>,
    /// Answer the virtual machine's form of managed identity, which asks for no secret: every local user then has tokens.
    #[serde(default)]
    pub(crate) open_metadata: bool,
}

/// A trusted OIDC issuer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct IssuerSettings {
    /// The exact `iss` of its tokens.
    pub(crate) issuer: String,
    /// Where its keys are; else asked of its discovery document.
    #[serde(default)]
    pub(crate) jwks_uri: Option<String>,
    /// The audiences that are accepted.
    #[serde(default = "default_audiences")]
    pub(crate) audiences: Vec<String>,
    /// The claim with the roles.
    #[serde(default = "default_roles_claim")]
    pub(crate) roles_claim: String,
    /// Which of its values means which role.
    #[serde(default)]
    pub(crate) roles: BTreeMap<String, RoleName>,
}

/// A key that is good without a token. Only its digest is known here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ApiKeySettings {
    /// Whose it is, for the log.
    pub(crate) name: String,
    /// SHA-256 of the key, in hexadecimal digits.
    pub(crate) sha256: String,
    /// What it may do.
    #[serde(default = "default_role")]
    pub(crate) role: RoleName,
    /// The pools it is good for; all if not given.
    #[serde(default)]
    pub(crate) pools: Option<Vec<String>>,
}

/// A role's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RoleName {
    Reader,
    Executor,
    Admin,
}

/// One pool, as a Kubernetes-shaped object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PoolObject {
    #[serde(default = "api_version")]
    pub(crate) api_version: String,
    #[serde(default = "pool_kind")]
    pub(crate) kind: String,
    pub(crate) metadata: ObjectMetadata,
    pub(crate) spec: PoolObjectSpec,
}

/// An object's name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ObjectMetadata {
    pub(crate) name: String,
}

/// What a pool shall be. Field names are those of the ARM resource where it has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PoolObjectSpec {
    pub(crate) container_type: ContainerType,
    /// An image's name; by default the container type's own.
    #[serde(default)]
    pub(crate) image: Option<String>,
    /// A file with the public key that its image must be signed with.
    #[serde(default)]
    pub(crate) image_key: Option<PathBuf>,
    #[serde(default)]
    pub(crate) scale_configuration: ScaleSettings,
    #[serde(default)]
    pub(crate) dynamic_pool_configuration: DynamicSettings,
    #[serde(default)]
    pub(crate) resources: ResourceSettings,
    #[serde(default)]
    pub(crate) execution: ExecutionSettings,
    /// By default from a zygote, where the container type has one.
    #[serde(default)]
    pub(crate) interpreter_start: Option<InterpreterStart>,
    /// Environment variables of every session.
    #[serde(default)]
    pub(crate) env: Vec<EnvVariable>,
    /// Who shares a session's name.
    #[serde(default)]
    pub(crate) session_scope: SessionScopeName,
    /// What sessions may reach; nothing if not given.
    #[serde(default)]
    pub(crate) egress: Option<EgressPolicy>,
    /// Secrets that sessions use without having them.
    #[serde(default)]
    pub(crate) secrets: Vec<SecretSettings>,
    /// Sessions may bring secrets of their own, when they are made.
    #[serde(default)]
    pub(crate) session_secrets: bool,
    /// Whether sessions may reach anything: with `EgressEnabled` and no `egress`, all that is public.
    #[serde(default)]
    pub(crate) session_network_configuration: Option<NetworkSettings>,
    #[serde(default)]
    pub(crate) mcp_server_settings: McpServerSettings,
    /// Somebody else's MCP servers, that run in its sandboxes, by name.
    #[serde(default)]
    pub(crate) servers: servers::Servers,
}

/// The pool's MCP server for clients of the service whose wire this is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct McpServerSettings {
    /// It answers. Nobody uses it without a key, which only an operator can get, or a token.
    #[serde(rename = "isMCPServerEnabled", alias = "isMcpServerEnabled")]
    pub(crate) is_mcp_server_enabled: bool,
}

impl Default for McpServerSettings {
    fn default() -> Self {
        Self { is_mcp_server_enabled: true }
    }
}

/// Who shares a session's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SessionScopeName {
    /// The callers of one tenant.
    #[default]
    Tenant,
    /// Every caller that may use the pool.
    Pool,
}

/// How interpreters start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum InterpreterStart {
    Zygote,
    Cold,
}

/// What answers code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ContainerType {
    PythonLTS,
    NodeLTS,
    Shell,
}

impl ContainerType {
    /// The name in settings and metadata.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::PythonLTS => "PythonLTS",
            Self::NodeLTS => "NodeLTS",
            Self::Shell => "Shell",
        }
    }

    pub(crate) fn runtime(self) -> Runtime {
        match self {
            Self::PythonLTS => Runtime::Python,
            Self::NodeLTS => Runtime::Node,
            Self::Shell => Runtime::Shell,
        }
    }

    /// The longest time-out a caller may ask for, unless the pool says otherwise. Code interpreters of the service
    /// whose wire this is end after 220 s; shells run builds, and get an hour.
    fn max_timeout_seconds(self) -> u64 {
        match self {
            Self::PythonLTS | Self::NodeLTS => 220,
            Self::Shell => 3_600,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ScaleSettings {
    pub(crate) max_concurrent_sessions: u32,
    /// Sandboxes ready, at least.
    pub(crate) ready_session_instances: u32,
    /// Sandboxes ready when new sessions come fast, at most; [`MOST_READY`] times the least if not given.
    pub(crate) max_ready_session_instances: Option<u32>,
    /// How long a caller waits for a place when every one is taken.
    pub(crate) wait_when_full_in_seconds: u64,
}

/// How many times its least a reservoir may grow to by itself. With the default of 2 that is 32: enough for the random
/// bursts of 40 new sessions a second, and none where a pool was told to keep none.
const MOST_READY: u32 = 16;

impl ScaleSettings {
    /// Sandboxes ready, at most.
    fn most_ready(&self) -> u32 {
        let by_itself = self.ready_session_instances.saturating_mul(MOST_READY);
        self.max_ready_session_instances.unwrap_or(by_itself).min(self.max_concurrent_sessions)
    }
}

impl Default for ScaleSettings {
    fn default() -> Self {
        Self {
            max_concurrent_sessions: 250,
            ready_session_instances: 2,
            max_ready_session_instances: None,
            wait_when_full_in_seconds: 1,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct DynamicSettings {
    pub(crate) lifecycle_configuration: LifecycleSettings,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct LifecycleSettings {
    pub(crate) lifecycle_type: LifecycleType,
    pub(crate) cooldown_period_in_seconds: u64,
    pub(crate) max_alive_period_in_seconds: Option<u64>,
}

impl Default for LifecycleSettings {
    fn default() -> Self {
        Self {
            lifecycle_type: LifecycleType::Timed,
            cooldown_period_in_seconds: 300,
            max_alive_period_in_seconds: None,
        }
    }
}

/// What ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LifecycleType {
    Timed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ResourceSettings {
    /// Processors.
    pub(crate) cpu: f64,
    pub(crate) memory: Size,
    pub(crate) data_disk: Size,
    pub(crate) tmp_disk: Size,
    pub(crate) pids: u32,
}

impl Default for ResourceSettings {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            cpu: f64::from(limits.cpu_milli) / 1000.0,
            memory: Size(limits.memory),
            data_disk: Size(limits.data),
            tmp_disk: Size(limits.tmp),
            pids: limits.pids,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ExecutionSettings {
    pub(crate) max_timeout_in_seconds: Option<u64>,
    /// Bytes of output of one execution that are kept.
    pub(crate) output_limit: Size,
    /// Characters of output that answers of the Azure wire carry unless the caller asks for more.
    pub(crate) output_streams_max_length: u64,
    /// Executions that may wait for one session's interpreter.
    pub(crate) queue: u32,
}

impl Default for ExecutionSettings {
    fn default() -> Self {
        Self { max_timeout_in_seconds: None, output_limit: Size(1 << 20), output_streams_max_length: 4096, queue: 16 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct EnvVariable {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) value: String,
}

impl EnvVariable {
    /// Whether an environment can have it; `place` is where it stands.
    fn check(&self, place: &str) -> Result<(), SettingsError> {
        let Self { name, value: text } = self;
        if name.is_empty() || name.contains(['=', '\0']) || text.contains('\0') {
            return Err(value(place, format!("{name:?} is not the name of an environment variable")));
        }
        Ok(())
    }
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is larger than {MAX_FILE} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{}: {message}", path.display())]
    Syntax { path: PathBuf, message: String },
    #[error("{key}: {reason}")]
    Value { key: String, reason: String },
}

fn value(key: impl Into<String>, reason: impl Into<String>) -> SettingsError {
    SettingsError::Value { key: key.into(), reason: reason.into() }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7300))
}

fn default_https_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7343))
}

fn default_audiences() -> Vec<String> {
    vec!["https://dynamicsessions.io".into(), "https://acasessions.io".into()]
}

fn default_roles_claim() -> String {
    "roles".into()
}

fn default_role() -> RoleName {
    RoleName::Executor
}

fn api_version() -> String {
    "sandpool.dev/v1alpha1".into()
}

fn pool_kind() -> String {
    "SessionPool".into()
}

/// The pools of `up`.
fn default_pools() -> Vec<PoolObject> {
    [ContainerType::PythonLTS, ContainerType::NodeLTS, ContainerType::Shell]
        .into_iter()
        .map(|container_type| PoolObject {
            api_version: api_version(),
            kind: pool_kind(),
            metadata: ObjectMetadata { name: container_type.runtime().word().into() },
            spec: PoolObjectSpec {
                container_type,
                image: None,
                image_key: None,
                scale_configuration: ScaleSettings::default(),
                dynamic_pool_configuration: DynamicSettings::default(),
                resources: ResourceSettings::default(),
                execution: ExecutionSettings::default(),
                interpreter_start: None,
                env: Vec::new(),
                session_scope: SessionScopeName::default(),
                egress: None,
                secrets: Vec::new(),
                session_secrets: false,
                session_network_configuration: None,
                mcp_server_settings: McpServerSettings::default(),
                servers: servers::Servers::new(),
            },
        })
        .collect()
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: default_listen(),
            https: None,
            home: None,
            images: None,
            memory_reserve: None,
            auth: AuthSettings::default(),
            tenants: Vec::new(),
            egress_limits: egress::EgressLimits::default(),
            pools: default_pools(),
        }
    }
}

impl Settings {
    /// Reads and checks a file.
    pub(crate) fn read(path: &Path) -> Result<Self, SettingsError> {
        use std::io::Read;
        let unreadable = |source| SettingsError::Read { path: path.into(), source };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let mut text = String::new();
        file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > MAX_FILE {
            return Err(SettingsError::TooLarge { path: path.into() });
        }
        let settings = Self::parse(&text)
            .map_err(|message| SettingsError::Syntax { path: path.into(), message: message.to_string() })?;
        settings.check()?;
        Ok(settings)
    }

    /// Reads YAML (and so JSON). Nothing is checked but names and types.
    pub(crate) fn parse(text: &str) -> Result<Self, serde_norway::Error> {
        // An empty file is a mapping without keys, as people expect.
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        serde_norway::from_str(text)
    }

    /// Checks every value.
    pub(crate) fn check(&self) -> Result<(), SettingsError> {
        if let Some(https) = &self.https {
            if https.listen == self.listen && https.listen.port() != 0 {
                return Err(value("https.listen", format!("{} is already taken by listen", https.listen)));
            }
            match (&https.certificate, &https.key) {
                (Some(_), None) => return Err(value("https.key", "is missing; certificate and key go together")),
                (None, Some(_)) => {
                    return Err(value("https.certificate", "is missing; certificate and key go together"));
                }
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        self.auth.check()?;
        tenants::check(&self.tenants, &self.auth)?;
        self.egress_limits.check().map_err(|(field, why)| value(format!("egressLimits.{field}"), why))?;
        if self.pools.is_empty() {
            return Err(value("pools", "there must be one at least"));
        }
        for (at, pool) in self.pools.iter().enumerate() {
            pool.check(at)?;
            if let Some(first) = self.pools[..at].iter().position(|other| other.metadata.name == pool.metadata.name) {
                return Err(value(
                    format!("pools[{at}].metadata.name"),
                    format!("{} is already the name of pools[{first}]", pool.metadata.name),
                ));
            }
        }
        Ok(())
    }

    /// Fills in what follows from the state directory: flags win over the file, the file over the defaults.
    pub(crate) fn resolve(&mut self, home: &Home, images: Option<&Path>) {
        self.home = Some(home.path().to_owned());
        let images = images.map(Path::to_owned).or_else(|| self.images.take()).unwrap_or_else(|| home.images());
        self.images = Some(std::path::absolute(&images).unwrap_or(images));
    }

    /// The same, with secrets replaced by `***`.
    pub(crate) fn without_secrets(&self) -> Self {
        let mut shown = self.clone();
        let of_tenants = shown.tenants.iter_mut().flat_map(|tenant| &mut tenant.api_keys);
        for key in shown.auth.api_keys.iter_mut().chain(of_tenants) {
            key.sha256 = "***".into();
        }
        for spec in shown.pools.iter_mut().map(|pool| &mut pool.spec) {
            let of_servers = spec.servers.values_mut().flat_map(|server| &mut server.env);
            for variable in spec.env.iter_mut().chain(of_servers) {
                variable.value = "***".into();
            }
        }
        shown
    }
}

impl AuthSettings {
    fn check(&self) -> Result<(), SettingsError> {
        for (at, issuer) in self.issuers.iter().enumerate() {
            let key = |field: &str| format!("auth.issuers[{at}].{field}");
            let is_url = |text: &str| text.starts_with("https://") || text.starts_with("http://");
            if !is_url(&issuer.issuer) {
                return Err(value(key("issuer"), format!("{:?} is not an http or https URL", issuer.issuer)));
            }
            if let Some(uri) = issuer.jwks_uri.as_deref().filter(|uri| !is_url(uri)) {
                return Err(value(key("jwksUri"), format!("{uri:?} is not an http or https URL")));
            }
            if issuer.audiences.is_empty() {
                return Err(value(key("audiences"), "there must be one at least, or every token would be good"));
            }
        }
        for (at, api_key) in self.api_keys.iter().enumerate() {
            api_key.check(&format!("auth.apiKeys[{at}]"))?;
        }
        Ok(())
    }
}

impl ApiKeySettings {
    fn check(&self, place: &str) -> Result<(), SettingsError> {
        if self.name.is_empty() {
            return Err(value(format!("{place}.name"), "is empty"));
        }
        if self.sha256.len() != 64 || !self.sha256.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(value(
                format!("{place}.sha256"),
                "is not 64 hexadecimal digits; make it with: printf %s \"$KEY\" | sha256sum",
            ));
        }
        for (pool_at, pool) in self.pools.iter().flatten().enumerate() {
            PoolName::parse(pool).map_err(|error| value(format!("{place}.pools[{pool_at}]"), error.to_string()))?;
        }
        Ok(())
    }
}

impl PoolObjectSpec {
    fn egress(&self) -> Result<Option<EgressPolicy>, (String, String)> {
        egress::policy(self.egress.as_ref(), self.session_network_configuration.as_ref())
    }
}

impl PoolObject {
    fn check(&self, at: usize) -> Result<(), SettingsError> {
        let key = |field: &str| format!("pools[{at}].{field}");
        if self.api_version != api_version() {
            return Err(value(key("apiVersion"), format!("is {:?}, must be {:?}", self.api_version, api_version())));
        }
        if self.kind != pool_kind() {
            return Err(value(key("kind"), format!("is {:?}, must be {:?}", self.kind, pool_kind())));
        }
        PoolName::parse(&self.metadata.name).map_err(|error| value(key("metadata.name"), error.to_string()))?;
        let spec = &self.spec;
        let within = |field: &str, number: u64, least: u64, most: u64| {
            if (least..=most).contains(&number) {
                Ok(())
            } else {
                Err(value(key(field), format!("is {number}, must be from {least} to {most}")))
            }
        };
        let size = |field: &str, size: Size, least: u64, most: u64| {
            if (least..=most).contains(&size.0) {
                Ok(())
            } else {
                Err(value(key(field), format!("is {size}, must be from {} to {}", Size(least), Size(most))))
            }
        };
        let scale = &spec.scale_configuration;
        let (sessions, ready) = (scale.max_concurrent_sessions, scale.ready_session_instances);
        within("spec.scaleConfiguration.maxConcurrentSessions", sessions.into(), 1, 100_000)?;
        within("spec.scaleConfiguration.readySessionInstances", ready.into(), 0, sessions.into())?;
        if let Some(most) = scale.max_ready_session_instances {
            within("spec.scaleConfiguration.maxReadySessionInstances", most.into(), ready.into(), sessions.into())?;
        }
        within("spec.scaleConfiguration.waitWhenFullInSeconds", scale.wait_when_full_in_seconds, 0, 60)?;
        let life = &spec.dynamic_pool_configuration.lifecycle_configuration;
        let life_key = "spec.dynamicPoolConfiguration.lifecycleConfiguration";
        within(&format!("{life_key}.cooldownPeriodInSeconds"), life.cooldown_period_in_seconds, 1, 31_536_000)?;
        if let Some(seconds) = life.max_alive_period_in_seconds {
            within(&format!("{life_key}.maxAlivePeriodInSeconds"), seconds, 1, 31_536_000)?;
        }
        let resources = &spec.resources;
        if !(0.01..=1024.0).contains(&resources.cpu) {
            return Err(value(key("spec.resources.cpu"), format!("is {}, must be from 0.01 to 1024", resources.cpu)));
        }
        size("spec.resources.memory", resources.memory, 64 << 20, 16 << 40)?;
        size("spec.resources.dataDisk", resources.data_disk, 1 << 20, 16 << 40)?;
        size("spec.resources.tmpDisk", resources.tmp_disk, 1 << 20, 16 << 40)?;
        within("spec.resources.pids", resources.pids.into(), 16, 1 << 20)?;
        let execution = &spec.execution;
        if let Some(seconds) = execution.max_timeout_in_seconds {
            within("spec.execution.maxTimeoutInSeconds", seconds, 1, 86_400)?;
        }
        size("spec.execution.outputLimit", execution.output_limit, 1 << 10, 64 << 20)?;
        within("spec.execution.outputStreamsMaxLength", execution.output_streams_max_length, 1, 64 << 20)?;
        within("spec.execution.queue", execution.queue.into(), 0, 1_000)?;
        if spec.interpreter_start == Some(InterpreterStart::Zygote) && spec.container_type != ContainerType::PythonLTS {
            let why = format!("is Zygote, which {} has none of: leave it out", spec.container_type.word());
            return Err(value(key("spec.interpreterStart"), why));
        }
        if let Some(image) = spec.image.as_deref().filter(|image| !is_image_name(image)) {
            return Err(value(key("spec.image"), format!("{image:?} is not the name of an image")));
        }
        for (variable_at, variable) in spec.env.iter().enumerate() {
            variable.check(&key(&format!("spec.env[{variable_at}]")))?;
        }
        servers::check(&spec.servers, spec.container_type, &key("spec.servers"))?;
        secrets::check(spec).map_err(|(field, why)| value(key(&format!("spec.{field}")), why))?;
        spec.egress().map(drop).map_err(|(field, why)| value(key(&format!("spec.{field}")), why))
    }

    /// What its servers need in the image.
    pub(crate) fn server_packages(&self) -> Vec<sandpool_image::ServerPackage> {
        self.spec.servers.iter().filter_map(|(name, server)| server.package(name)).collect()
    }

    /// The image it is made from, without its servers.
    pub(crate) fn image(&self) -> &str {
        self.spec.image.as_deref().unwrap_or(self.spec.container_type.runtime().word())
    }

    /// The pool as the service layer takes it. [`Settings::check`] has been called.
    pub(crate) fn to_spec(&self, rootfs: PathBuf) -> Result<PoolSpec, SettingsError> {
        let spec = &self.spec;
        let name = PoolName::parse(&self.metadata.name).map_err(|error| value("metadata.name", error.to_string()))?;
        let life = &spec.dynamic_pool_configuration.lifecycle_configuration;
        let egress = spec.egress().map_err(|(field, why)| value(field, why))?;
        // What a pool says itself comes after these, and wins.
        let variables = egress.as_ref().map(|_| egress::variables()).into_iter().flatten();
        let max_timeout =
            spec.execution.max_timeout_in_seconds.unwrap_or_else(|| spec.container_type.max_timeout_seconds());
        Ok(PoolSpec {
            name,
            runtime: spec.container_type.runtime(),
            rootfs,
            scale: Scale {
                max_sessions: spec.scale_configuration.max_concurrent_sessions,
                ready: spec.scale_configuration.ready_session_instances,
                most_ready: spec.scale_configuration.most_ready(),
                boots: boots_at_once(),
            },
            life: Life {
                cooldown: Duration::from_secs(life.cooldown_period_in_seconds),
                max_alive: life.max_alive_period_in_seconds.map(Duration::from_secs),
            },
            limits: Limits {
                memory: spec.resources.memory.0,
                pids: spec.resources.pids,
                cpu_milli: milli(spec.resources.cpu),
                data: spec.resources.data_disk.0,
                tmp: spec.resources.tmp_disk.0,
            },
            queue: usize::try_from(spec.execution.queue).unwrap_or(usize::MAX),
            output_limit: spec.execution.output_limit.0,
            max_timeout: Duration::from_secs(max_timeout),
            env: variables.chain(spec.env.iter().map(|it| (it.name.clone(), it.value.clone()))).collect(),
            egress,
            start: match (spec.interpreter_start, spec.container_type) {
                (Some(InterpreterStart::Zygote), _) | (None, ContainerType::PythonLTS) => Start::Zygote,
                (Some(InterpreterStart::Cold), _) | (None, ContainerType::NodeLTS | ContainerType::Shell) => {
                    Start::Cold
                }
            },
            session_secrets: spec.session_secrets,
            scope: match spec.session_scope {
                SessionScopeName::Tenant => SessionScope::Tenant,
                SessionScopeName::Pool => SessionScope::Pool,
            },
            full_wait: Duration::from_secs(spec.scale_configuration.wait_when_full_in_seconds),
        })
    }
}

/// Whether an image can be called so: 1 to 63 lower-case letters, digits and hyphens.
pub(crate) fn is_image_name(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// Sandboxes of one pool that are made at the same time. Booting an interpreter is work for a processor, so more than
/// there are processors only makes each of them late.
fn boots_at_once() -> u32 {
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    u32::try_from(processors.clamp(2, 8)).unwrap_or(2)
}

/// Thousandths; `cpu` is within its range.
fn milli(cpu: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be from 0.01 to 1024")]
    let milli = (cpu * 1000.0).round() as u32;
    milli
}

#[cfg(test)]
mod tests;
