//! One pool as an object: its form, what may be in it, and what it means to the service layer.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use sandpool_core::ids::PoolName;
use sandpool_core::limits::{Life, Limits, Scale, Suspends};
use sandpool_node::{EgressPolicy, Isolation, OciRuntime, PoolSpec, Runtime, SessionScope, Start};
use serde::{Deserialize, Serialize};

use crate::container::{ContainerTemplate, ImageConfig, ManagedIdentity};
use crate::network::NetworkSettings;
use crate::secrets::SecretSettings;
use crate::units::Size;
use crate::{Fault, Metadata, PoolFace, container, fault, network, secrets, servers};

/// One pool, as a Kubernetes-shaped object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolObject {
    /// `sandpool.dev/v1alpha1`.
    #[serde(default = "api_version")]
    pub api_version: String,
    /// `SessionPool`.
    #[serde(default = "pool_kind")]
    pub kind: String,
    /// Its name, and what people say about it.
    pub metadata: ObjectMetadata,
    /// What it shall be.
    pub spec: PoolObjectSpec,
}

/// An object's name, and what people say about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectMetadata {
    /// Its name: 1 to 63 lower-case letters, digits and hyphens, a letter first.
    pub name: String,
    /// What it is found by: ARM's tags. They change nothing here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What other programs keep with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// How a key's text begins.
const PEM: &str = "-----BEGIN ";

/// Bytes of a key's text, or of its file's path, at most.
const MAX_KEY: usize = 4096;

/// Labels of one object, and annotations, at most.
const MOST_NOTES: usize = 64;

/// Bytes of a label's name, and of its value.
const NOTE: (usize, usize) = (512, 4096);

/// What a pool shall be. Field names are those of the ARM resource where it has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolObjectSpec {
    /// What answers code.
    pub container_type: ContainerType,
    /// An image's name; by default the container type's own.
    #[serde(default)]
    pub image: Option<String>,
    /// The public key that its image must be signed with: its text (PEM), or in the configuration file also a file with it.
    #[serde(default)]
    pub image_key: Option<String>,
    /// Which wall stands around its sandboxes.
    #[serde(default)]
    pub isolation: IsolationLevel,
    /// Of `isolation: container`: the program that makes them; if not given, the first that is good enough here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci_runtime: Option<OciRuntime>,
    /// Sandboxes at once.
    #[serde(default)]
    pub scale_configuration: ScaleSettings,
    /// When sessions end.
    #[serde(default)]
    pub dynamic_pool_configuration: DynamicSettings,
    /// What each sandbox may use.
    #[serde(default)]
    pub resources: ResourceSettings,
    /// What executions may take.
    #[serde(default)]
    pub execution: ExecutionSettings,
    /// By default from a zygote, where the container type has one.
    #[serde(default)]
    pub interpreter_start: Option<InterpreterStart>,
    /// Environment variables of every session.
    #[serde(default)]
    pub env: Vec<EnvVariable>,
    /// Who shares a session's name.
    #[serde(default)]
    pub session_scope: SessionScopeName,
    /// What sessions may reach; nothing if not given.
    #[serde(default)]
    pub egress: Option<EgressPolicy>,
    /// Of `CustomContainer`: what each session has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_container_template: Option<ContainerTemplate>,
    /// Values for the variables of custom containers, and passwords for registries. The former are in the container, as the service has it
    /// whose wire this is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub container_secrets: Vec<ContainerSecret>,
    /// Of `CustomContainer`: who its program is to others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_identity: Option<ManagedIdentity>,
    /// Secrets that sessions use without having them.
    #[serde(default)]
    pub secrets: Vec<SecretSettings>,
    /// Sessions may bring secrets of their own, when they are made.
    #[serde(default)]
    pub session_secrets: bool,
    /// Sessions may have servers of their own, on loopback.
    #[serde(default = "yes")]
    pub local_servers: bool,
    /// Whether sessions may reach anything: with `EgressEnabled` and no `egress`, all that is public.
    #[serde(default)]
    pub session_network_configuration: Option<NetworkSettings>,
    /// Azure's MCP server.
    #[serde(default)]
    pub mcp_server_settings: McpServerSettings,
    /// Somebody else's MCP servers, that run in its sandboxes, by name.
    #[serde(default)]
    pub servers: servers::Servers,
}

/// The pool's MCP server for clients of the service whose wire this is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct McpServerSettings {
    /// It answers. Nobody uses it without a key, which only an operator can get, or a token.
    #[serde(rename = "isMCPServerEnabled", alias = "isMcpServerEnabled")]
    pub is_mcp_server_enabled: bool,
}

impl Default for McpServerSettings {
    fn default() -> Self {
        Self { is_mcp_server_enabled: true }
    }
}

/// Who shares a session's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionScopeName {
    /// The callers of one tenant.
    #[default]
    Tenant,
    /// Every caller that may use the pool.
    Pool,
}

/// Which wall stands around a pool's sandboxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolationLevel {
    /// Namespaces, filters and limits of the host's kernel, made by us.
    #[default]
    Process,
    /// The same sandboxes through an OCI runtime.
    Container,
    /// A machine for each: a kernel of its own behind a VMM.
    Microvm,
}

/// How interpreters start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InterpreterStart {
    /// From the pool's zygote.
    Zygote,
    /// Each from its own beginning.
    Cold,
}

/// What answers code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerType {
    /// Python.
    PythonLTS,
    /// Node.js.
    NodeLTS,
    /// A shell.
    Shell,
    /// A program of the pool's own image.
    CustomContainer,
}

impl ContainerType {
    /// The name in settings and metadata.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::PythonLTS => "PythonLTS",
            Self::NodeLTS => "NodeLTS",
            Self::Shell => "Shell",
            Self::CustomContainer => "CustomContainer",
        }
    }

    /// What answers code in it.
    #[must_use]
    pub fn runtime(self) -> Runtime {
        match self {
            Self::PythonLTS => Runtime::Python,
            Self::NodeLTS => Runtime::Node,
            Self::Shell => Runtime::Shell,
            Self::CustomContainer => Runtime::Container,
        }
    }

    /// The longest time-out a caller may ask for, unless the pool says otherwise. Code interpreters of the service
    /// whose wire this is end after 220 s; shells run builds, and get an hour.
    fn max_timeout_seconds(self) -> u64 {
        match self {
            Self::PythonLTS | Self::NodeLTS => 220,
            Self::Shell | Self::CustomContainer => 3_600,
        }
    }
}

/// Sandboxes at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ScaleSettings {
    /// Sessions at the same time, at most.
    pub max_concurrent_sessions: u32,
    /// Sandboxes ready, at least.
    pub ready_session_instances: u32,
    /// Sandboxes ready when new sessions come fast, at most; [`MOST_READY`] times the least if not given.
    pub max_ready_session_instances: Option<u32>,
    /// How long a caller waits for a place when every one is taken.
    pub wait_when_full_in_seconds: u64,
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

/// When sessions end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DynamicSettings {
    /// When sessions end.
    pub lifecycle_configuration: LifecycleSettings,
}

/// When sessions end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LifecycleSettings {
    /// What ends them.
    pub lifecycle_type: LifecycleType,
    /// How long a session is kept that nobody uses.
    pub cooldown_period_in_seconds: u64,
    /// How long a session is kept at most, used or not. The time that it is suspended does not count.
    pub max_alive_period_in_seconds: Option<u64>,
    /// After how long a session that nobody uses is suspended; never, if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend_after_in_seconds: Option<u64>,
    /// How long a suspended session is kept; a week, if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspended_for_in_seconds: Option<u64>,
}

impl Default for LifecycleSettings {
    fn default() -> Self {
        Self {
            lifecycle_type: LifecycleType::Timed,
            cooldown_period_in_seconds: 300,
            max_alive_period_in_seconds: None,
            suspend_after_in_seconds: None,
            suspended_for_in_seconds: None,
        }
    }
}

/// What ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LifecycleType {
    /// Nobody uses it.
    Timed,
    /// Its program ends. For custom containers only.
    OnContainerExit,
}

/// What each sandbox may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ResourceSettings {
    /// Processors.
    pub cpu: f64,
    /// Bytes of memory.
    pub memory: Size,
    /// Bytes on `/mnt/data`.
    pub data_disk: Size,
    /// Bytes on `/tmp`.
    pub tmp_disk: Size,
    /// Processes and threads.
    pub pids: u32,
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

/// What executions may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExecutionSettings {
    /// The longest time-out of an execution.
    pub max_timeout_in_seconds: Option<u64>,
    /// Bytes of output of one execution that are kept.
    pub output_limit: Size,
    /// Characters of output that answers of the Azure wire carry unless the caller asks for more.
    pub output_streams_max_length: u64,
    /// Executions that may wait for one session's interpreter.
    pub queue: u32,
}

impl Default for ExecutionSettings {
    fn default() -> Self {
        Self { max_timeout_in_seconds: None, output_limit: Size(1 << 20), output_streams_max_length: 4096, queue: 16 }
    }
}

/// A value that nobody reads again.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerSecret {
    /// Its name.
    pub name: String,
    /// Its value. In an apply, one that is not said stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// Never the value.
impl std::fmt::Debug for ContainerSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContainerSecret").field("name", &self.name).finish_non_exhaustive()
    }
}

/// An environment variable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVariable {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
}

impl EnvVariable {
    /// Whether an environment can have it; `place` is where it stands.
    pub(crate) fn check(&self, place: &str) -> Result<(), Fault> {
        let Self { name, value: text } = self;
        if name.is_empty() || name.contains(['=', '\0']) || text.contains('\0') {
            return Err(fault(place, format!("{name:?} is not the name of an environment variable")));
        }
        Ok(())
    }
}

fn api_version() -> String {
    "sandpool.dev/v1alpha1".into()
}

fn yes() -> bool {
    true
}

fn pool_kind() -> String {
    "SessionPool".into()
}

/// The pools of a server that nobody told which.
#[must_use]
pub fn default_pools() -> Vec<PoolObject> {
    [ContainerType::PythonLTS, ContainerType::NodeLTS, ContainerType::Shell]
        .into_iter()
        .map(|container_type| PoolObject {
            api_version: api_version(),
            kind: pool_kind(),
            metadata: ObjectMetadata {
                name: container_type.runtime().word().into(),
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
            },
            spec: PoolObjectSpec {
                container_type,
                image: None,
                image_key: None,
                isolation: IsolationLevel::default(),
                oci_runtime: None,
                scale_configuration: ScaleSettings::default(),
                dynamic_pool_configuration: DynamicSettings::default(),
                resources: ResourceSettings::default(),
                execution: ExecutionSettings::default(),
                interpreter_start: None,
                env: Vec::new(),
                session_scope: SessionScopeName::default(),
                egress: None,
                secrets: Vec::new(),
                custom_container_template: None,
                container_secrets: Vec::new(),
                managed_identity: None,
                session_secrets: false,
                local_servers: true,
                session_network_configuration: None,
                mcp_server_settings: McpServerSettings::default(),
                servers: servers::Servers::new(),
            },
        })
        .collect()
}

impl PoolObjectSpec {
    /// What its sessions may reach, in the one way of saying it; `None` for nothing.
    ///
    /// # Errors
    /// The key below `spec`, and what is wrong with it.
    pub fn egress(&self) -> Result<Option<EgressPolicy>, (String, String)> {
        network::policy(self.egress.as_ref(), self.session_network_configuration.as_ref())
    }

    /// Which wall stands around its sandboxes.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        match self.isolation {
            IsolationLevel::Process => Isolation::Process,
            IsolationLevel::Container => Isolation::Container(self.oci_runtime),
            IsolationLevel::Microvm => Isolation::Microvm,
        }
    }
}

impl PoolObject {
    /// Whether every value is one that a pool can have.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), Fault> {
        let key = str::to_owned;
        if self.api_version != api_version() {
            return Err(fault(key("apiVersion"), format!("is {:?}, must be {:?}", self.api_version, api_version())));
        }
        if self.kind != pool_kind() {
            return Err(fault(key("kind"), format!("is {:?}, must be {:?}", self.kind, pool_kind())));
        }
        PoolName::parse(&self.metadata.name).map_err(|error| fault(key("metadata.name"), error.to_string()))?;
        for (field, notes) in [("labels", &self.metadata.labels), ("annotations", &self.metadata.annotations)] {
            let place = format!("metadata.{field}");
            if notes.len() > MOST_NOTES {
                return Err(fault(place, format!("are {}, {MOST_NOTES} at most", notes.len())));
            }
            if let Some((name, _)) = notes.iter().find(|(name, text)| name.len() > NOTE.0 || text.len() > NOTE.1) {
                let name: String = name.chars().take(40).collect();
                return Err(fault(place, format!("{name:?} is too long: {} bytes, and {} of text", NOTE.0, NOTE.1)));
            }
        }
        let spec = &self.spec;
        let within = |field: &str, number: u64, least: u64, most: u64| {
            if (least..=most).contains(&number) {
                Ok(())
            } else {
                Err(fault(key(field), format!("is {number}, must be from {least} to {most}")))
            }
        };
        let size = |field: &str, size: Size, least: u64, most: u64| {
            if (least..=most).contains(&size.0) {
                Ok(())
            } else {
                Err(fault(key(field), format!("is {size}, must be from {} to {}", Size(least), Size(most))))
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
        if let Some(seconds) = life.suspend_after_in_seconds {
            let field = format!("{life_key}.suspendAfterInSeconds");
            within(&field, seconds, 1, 31_536_000)?;
            let cooldown = life.cooldown_period_in_seconds;
            if life.lifecycle_type == LifecycleType::Timed && seconds >= cooldown {
                let why = format!("is {seconds}, must be below the {cooldown} s after which a session ends");
                return Err(fault(key(&field), why));
            }
        }
        if let Some(seconds) = life.suspended_for_in_seconds {
            within(&format!("{life_key}.suspendedForInSeconds"), seconds, 1, 31_536_000)?;
        }
        let resources = &spec.resources;
        if !(0.01..=1024.0).contains(&resources.cpu) {
            return Err(fault(key("spec.resources.cpu"), format!("is {}, must be from 0.01 to 1024", resources.cpu)));
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
            return Err(fault(key("spec.interpreterStart"), why));
        }
        self.check_isolation()?;
        if let Some(image) = spec.image.as_deref().filter(|image| !is_image_name(image)) {
            return Err(fault(key("spec.image"), format!("{image:?} is not the name of an image")));
        }
        for (variable_at, variable) in spec.env.iter().enumerate() {
            variable.check(&key(&format!("spec.env[{variable_at}]")))?;
        }
        self.check_container()?;
        servers::check(&spec.servers, spec.container_type, &key("spec.servers"))?;
        if let Some(name) = spec.servers.iter().find(|(_, server)| server.http.is_some()).map(|(name, _)| name)
            && !spec.local_servers
        {
            let why = "speaks over HTTP on loopback, and localServers is false";
            return Err(fault(format!("spec.servers.{name}.http"), why));
        }
        self.check_key()?;
        secrets::check(spec).map_err(|(field, why)| fault(key(&format!("spec.{field}")), why))?;
        spec.egress().map(drop).map_err(|(field, why)| fault(key(&format!("spec.{field}")), why))
    }

    /// Whether its key can be one: a text that is one, or a path.
    fn check_key(&self) -> Result<(), Fault> {
        match &self.spec.image_key {
            Some(key) if key.len() > MAX_KEY => Err(fault("spec.imageKey", format!("has more than {MAX_KEY} bytes"))),
            Some(key) if key.is_empty() => {
                Err(fault("spec.imageKey", "is empty: leave it out, or give the key's text"))
            }
            _ => Ok(()),
        }
    }

    /// Whether it can be applied while a server runs: whatever root must do for it at the start cannot be done any more.
    ///
    /// # Errors
    /// The field that asks for it.
    pub fn check_applied(&self) -> Result<(), Fault> {
        let spec = &self.spec;
        let of_file = "needs what is read or made at the start: declare this pool in the configuration file";
        for (field, is_said) in [
            ("secrets", !spec.secrets.is_empty()),
            ("sessionSecrets", spec.session_secrets),
            ("imageKey", spec.image_key.is_some() && self.image_key().is_none()),
        ] {
            if is_said {
                return Err(fault(format!("spec.{field}"), of_file));
            }
        }
        match self.spec.servers.iter().find(|(name, server)| server.package(name).is_some()) {
            Some((name, _)) => Err(fault(format!("spec.servers.{name}"), of_file)),
            None => Ok(()),
        }
    }

    /// How it looks to clients, with what is in its image.
    #[must_use]
    pub fn to_face(&self, metadata: Metadata) -> PoolFace {
        let spec = &self.spec;
        PoolFace {
            container_type: spec.container_type.word().to_owned(),
            metadata,
            default_output_limit: spec.execution.output_streams_max_length,
            is_mcp_enabled: spec.mcp_server_settings.is_mcp_server_enabled,
            servers: spec.servers.iter().map(|(name, server)| (name.clone(), server.to_hosted(name))).collect(),
        }
    }

    /// What its servers need in the image.
    pub fn server_packages(&self) -> Vec<sandpool_image::ServerPackage> {
        self.spec.servers.iter().filter_map(|(name, server)| server.package(name)).collect()
    }

    fn check_isolation(&self) -> Result<(), Fault> {
        let spec = &self.spec;
        match spec.isolation {
            IsolationLevel::Process | IsolationLevel::Microvm => match spec.oci_runtime {
                Some(_) => Err(fault("spec.ociRuntime", "is for isolation: container only")),
                None => Ok(()),
            },
            IsolationLevel::Container if spec.interpreter_start == Some(InterpreterStart::Zygote) => {
                let why = "is Zygote, which isolation: container has none of: leave it out";
                Err(fault("spec.interpreterStart", why))
            }
            IsolationLevel::Container if spec.oci_runtime == Some(OciRuntime::Runsc) && !spec.local_servers => {
                let why =
                    "is false, which needs Landlock, and gVisor's kernel has none: another ociRuntime, or leave it out";
                Err(fault("spec.localServers", why))
            }
            IsolationLevel::Container => Ok(()),
        }
    }

    fn check_container(&self) -> Result<(), Fault> {
        let spec = &self.spec;
        let life = &spec.dynamic_pool_configuration.lifecycle_configuration;
        let is_custom = spec.container_type == ContainerType::CustomContainer;
        if !is_custom && life.lifecycle_type == LifecycleType::OnContainerExit {
            let why = "is OnContainerExit, which is for CustomContainer only";
            return Err(fault("spec.dynamicPoolConfiguration.lifecycleConfiguration.lifecycleType", why));
        }
        const TEMPLATE: &str = "spec.customContainerTemplate";
        for (at, secret) in spec.container_secrets.iter().enumerate() {
            let place = format!("spec.containerSecrets[{at}]");
            let Some(value) = &secret.value else {
                return Err(fault(place, format!("{} has no value, and the pool has none of this name", secret.name)));
            };
            EnvVariable { name: secret.name.clone(), value: value.clone() }.check(&place)?;
        }
        if spec.managed_identity.is_some() && !is_custom {
            return Err(fault("spec.managedIdentity", "is for CustomContainer only"));
        }
        match (&spec.custom_container_template, is_custom) {
            (None, true) => return Err(fault(TEMPLATE, "is missing: what is a session of a CustomContainer?")),
            (Some(_), false) => return Err(fault(TEMPLATE, "is for CustomContainer only")),
            (None, false) if !spec.container_secrets.is_empty() => {
                return Err(fault("spec.containerSecrets", "is for CustomContainer only"));
            }
            (None, false) => return Ok(()),
            (Some(template), true) => container::check(template, spec, TEMPLATE)?,
        }
        if spec.image.is_some() {
            return Err(fault("spec.image", "is said in customContainerTemplate for a CustomContainer"));
        }
        if !spec.local_servers {
            return Err(fault("spec.localServers", "is false, and a container listens"));
        }
        Ok(())
    }

    /// The image it is made from, without its servers.
    pub fn image(&self) -> &str {
        let own = self.spec.custom_container_template.as_ref().and_then(ContainerTemplate::one);
        let own = own.map(|container| container.image.as_str()).or(self.spec.image.as_deref());
        own.unwrap_or(self.spec.container_type.runtime().word())
    }

    /// The reference by which its image is got from a registry, if it is made of such a one.
    #[must_use]
    pub fn reference(&self) -> Option<&str> {
        self.spec.custom_container_template.as_ref()?;
        Some(self.image()).filter(|image| container::registry(image).is_some())
    }

    /// The text of the key that its image must be signed with, where it is not in a file.
    #[must_use]
    pub fn image_key(&self) -> Option<&str> {
        self.spec.image_key.as_deref().filter(|key| key.trim_start().starts_with(PEM))
    }

    /// As whom: user and password.
    #[must_use]
    pub fn registry_credentials(&self) -> Option<(String, String)> {
        let said = self.spec.custom_container_template.as_ref()?.registry_credentials.as_ref()?;
        let secret = self.spec.container_secrets.iter().find(|secret| secret.name == said.password_secret_ref)?;
        Some((said.username.clone(), secret.value.clone()?))
    }

    /// The same without values of secrets: as it is shown.
    #[must_use]
    pub fn without_values(&self) -> Self {
        let mut shown = self.clone();
        shown.spec.container_secrets.iter_mut().for_each(|secret| secret.value = None);
        shown
    }

    /// Values of secrets that are not said stay as they are in this one.
    pub(crate) fn keep_values(&mut self, before: &Self) {
        for secret in self.spec.container_secrets.iter_mut().filter(|secret| secret.value.is_none()) {
            let known = before.spec.container_secrets.iter().find(|known| known.name == secret.name);
            secret.value = known.and_then(|known| known.value.clone());
        }
    }

    /// The pool as the service layer takes it. [`PoolObject::check`] has been called.
    ///
    /// # Errors
    /// What that would have said.
    pub fn to_spec(&self, rootfs: PathBuf, image: &ImageConfig) -> Result<PoolSpec, Fault> {
        let spec = &self.spec;
        let name = PoolName::parse(&self.metadata.name).map_err(|error| fault("metadata.name", error.to_string()))?;
        let life = &spec.dynamic_pool_configuration.lifecycle_configuration;
        let egress = spec.egress().map_err(|(field, why)| fault(field, why))?;
        // What a pool says itself comes after these, and wins.
        let variables = egress.as_ref().map(|_| network::variables()).into_iter().flatten();
        let max_timeout =
            spec.execution.max_timeout_in_seconds.unwrap_or_else(|| spec.container_type.max_timeout_seconds());
        let own = spec.custom_container_template.as_ref().and_then(ContainerTemplate::one);
        let own = own.and_then(|container| container.resources.as_ref());
        let cpu = own.and_then(|own| own.cpu).unwrap_or(spec.resources.cpu);
        let memory = own.and_then(|own| own.memory).unwrap_or(spec.resources.memory);
        let cooldown = match life.lifecycle_type {
            LifecycleType::Timed => life.cooldown_period_in_seconds,
            // Its program says when it is over.
            LifecycleType::OnContainerExit => 31_536_000,
        };
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
                cooldown: Duration::from_secs(cooldown),
                max_alive: life.max_alive_period_in_seconds.map(Duration::from_secs),
            },
            isolation: spec.isolation(),
            limits: Limits {
                memory: memory.0,
                pids: spec.resources.pids,
                cpu_milli: milli(cpu),
                data: spec.resources.data_disk.0,
                tmp: spec.resources.tmp_disk.0,
            },
            queue: usize::try_from(spec.execution.queue).unwrap_or(usize::MAX),
            output_limit: spec.execution.output_limit.0,
            max_timeout: Duration::from_secs(max_timeout),
            env: variables.chain(spec.env.iter().map(|it| (it.name.clone(), it.value.clone()))).collect(),
            egress,
            start: match (spec.interpreter_start, spec.container_type) {
                _ if spec.isolation == IsolationLevel::Container => Start::Cold,
                // A machine that is frozen whole goes on whatever runs in it.
                (None, _) if spec.isolation == IsolationLevel::Microvm => Start::Zygote,
                (Some(InterpreterStart::Zygote), _) | (None, ContainerType::PythonLTS) => Start::Zygote,
                (Some(InterpreterStart::Cold), _)
                | (None, ContainerType::NodeLTS | ContainerType::Shell | ContainerType::CustomContainer) => Start::Cold,
            },
            container: container::to_container(spec, image)?,
            session_secrets: spec.session_secrets,
            local_servers: spec.local_servers,
            scope: match spec.session_scope {
                SessionScopeName::Tenant => SessionScope::Tenant,
                SessionScopeName::Pool => SessionScope::Pool,
            },
            full_wait: Duration::from_secs(spec.scale_configuration.wait_when_full_in_seconds),
            suspends: Suspends {
                after: life.suspend_after_in_seconds.map(Duration::from_secs),
                kept_for: life.suspended_for_in_seconds.map_or(Suspends::default().kept_for, Duration::from_secs),
            },
        })
    }
}

/// Whether an image can be called so: 1 to 63 lower-case letters, digits and hyphens.
pub fn is_image_name(name: &str) -> bool {
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
