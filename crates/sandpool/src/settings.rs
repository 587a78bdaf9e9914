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

use sandpool_core::ids::PoolName;
use sandpool_node::Bounds;
pub(crate) use sandpool_objects::Size;
use sandpool_objects::pool::default_pools;
use sandpool_objects::{Fault, PoolObject};
use sandpool_process::oci::{OciRuntime, OciSettings};
use sandpool_vm::found::Wanted;
use serde::{Deserialize, Serialize};

use crate::home::Home;

pub(crate) use self::tenants::TenantSettings;

pub(crate) mod egress;
pub(crate) mod secrets;
pub(crate) mod telemetry;
mod tenants;

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
    /// What stands behind the dot in the names of hosts under which ports of sessions are reached.
    #[serde(default = "default_preview_host")]
    pub(crate) preview_host: String,
    /// What one session may use of the egress proxy.
    #[serde(default)]
    pub(crate) egress_limits: egress::EgressLimits,
    /// Who may read what is counted.
    #[serde(default)]
    pub(crate) metrics: MetricsSettings,
    /// What is told to a collector.
    #[serde(default)]
    pub(crate) telemetry: telemetry::TelemetrySettings,
    /// How much sessions may have on disk.
    #[serde(default)]
    pub(crate) snapshots: SnapshotSettings,
    /// The OCI runtimes of pools with `isolation: container`, where they are not in the usual places or need a word.
    #[serde(default)]
    pub(crate) oci_runtimes: BTreeMap<OciRuntime, OciSettings>,
    /// What runs the machines of pools with `isolation: microvm`.
    #[serde(default)]
    pub(crate) machines: Wanted,
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

/// Who may read what is counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MetricsSettings {
    /// Whoever reaches the server, without a token.
    #[serde(default)]
    pub(crate) open: bool,
}

/// How much sessions may have on disk: those that are suspended, and copies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct SnapshotSettings {
    /// All of them together.
    pub(crate) max_bytes: Size,
    /// Those of one tenant; as all of them, if not given.
    pub(crate) max_bytes_per_tenant: Option<Size>,
}

impl Default for SnapshotSettings {
    fn default() -> Self {
        Self { max_bytes: Size(32 << 30), max_bytes_per_tenant: None }
    }
}

impl SnapshotSettings {
    /// As the store takes them.
    pub(crate) fn bounds(&self) -> Bounds {
        let all = self.max_bytes.0;
        Bounds { all, of_tenant: self.max_bytes_per_tenant.map_or(all, |most| most.0) }
    }
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
    /// How people sign in to the console there; they do not, if not given.
    #[serde(default)]
    pub(crate) console: Option<ConsoleSettings>,
}

/// How people sign in to the console at an issuer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ConsoleSettings {
    /// The console's id there: a public client, which comes back to `/console/`.
    pub(crate) client_id: String,
    /// How the button calls the issuer; its address, if not given.
    #[serde(default)]
    pub(crate) name: Option<String>,
    /// What is asked for.
    #[serde(default = "default_scope")]
    pub(crate) scope: String,
    /// Which of its tokens is used.
    #[serde(default)]
    pub(crate) token: TokenName,
}

/// Which of the tokens that an issuer gives is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum TokenName {
    /// The one for calls of an API.
    #[default]
    AccessToken,
    /// The one that says who somebody is. Its audience is the client's id.
    IdToken,
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

fn default_preview_host() -> String {
    "preview.localhost".into()
}

fn default_roles_claim() -> String {
    "roles".into()
}

fn default_scope() -> String {
    "openid profile".into()
}

fn default_role() -> RoleName {
    RoleName::Executor
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
            preview_host: default_preview_host(),
            egress_limits: egress::EgressLimits::default(),
            metrics: MetricsSettings::default(),
            telemetry: telemetry::TelemetrySettings::default(),
            snapshots: SnapshotSettings::default(),
            oci_runtimes: BTreeMap::new(),
            machines: Wanted::default(),
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
        self.telemetry.check().map_err(|(field, why)| value(format!("telemetry.{field}"), why))?;
        let is_label = |label: &str| {
            (1..=63).contains(&label.len()) && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        };
        if self.preview_host.len() > 180 || !self.preview_host.split('.').all(is_label) {
            return Err(value("previewHost", format!("{:?} is not the name of a host", self.preview_host)));
        }
        for (runtime, said) in &self.oci_runtimes {
            for (field, path) in [("path", &said.path), ("files", &said.files)] {
                if let Some(path) = path.as_ref().filter(|path| !path.is_absolute() || *path == Path::new("/")) {
                    let why = format!("{} is no absolute path below /", path.display());
                    return Err(value(format!("ociRuntimes.{}.{field}", runtime.word()), why));
                }
            }
        }
        if let Some(path) = &self.machines.path {
            if !path.is_absolute() {
                return Err(value("machines.path", format!("{} is no absolute path", path.display())));
            }
            if self.machines.vmm.is_none() {
                return Err(value("machines.path", "whose program is it? machines.vmm says so".to_owned()));
            }
        }
        if self.pools.is_empty() {
            return Err(value("pools", "there must be one at least"));
        }
        for (at, pool) in self.pools.iter().enumerate() {
            pool.check().map_err(|Fault { field, why }| value(format!("pools[{at}].{field}"), why))?;
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

    /// Fills in what follows from variables of the environment that everybody's programs know.
    pub(crate) fn fill(&mut self, variable: impl Fn(&str) -> Option<String>) -> Result<(), SettingsError> {
        self.telemetry.fill(variable).map_err(|(key, reason)| value(key, reason))
    }

    /// The same, with secrets replaced by `***`.
    pub(crate) fn without_secrets(&self) -> Self {
        let mut shown = self.clone();
        let of_tenants = shown.tenants.iter_mut().flat_map(|tenant| &mut tenant.api_keys);
        for key in shown.auth.api_keys.iter_mut().chain(of_tenants) {
            key.sha256 = "***".into();
        }
        for header in shown.telemetry.headers.values_mut() {
            *header = "***".into();
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
            if let Some(console) = &issuer.console {
                if console.client_id.is_empty() {
                    return Err(value(key("console.clientId"), "is empty"));
                }
                if !console.scope.split(' ').any(|word| word == "openid") {
                    return Err(value(key("console.scope"), "must have the word openid in it"));
                }
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

#[cfg(test)]
mod tests;
