//! Custom containers, as a pool's object describes them: the fields of the ARM resource.

use std::collections::BTreeMap;

use sandpool_node::Container;
use sandpool_node::Main;
use sandpool_wire::agent::{Check, IDENTITY_PORT, Probe};
use sandpool_wire::egress::PORTS;
use serde::{Deserialize, Serialize};

use crate::pool::{EnvVariable, LifecycleType, PoolObjectSpec, is_image_name};
use crate::units::Size;
use crate::{Fault, fault};

/// Words of a command, at most, and their bytes.
const MOST_WORDS: usize = 256;
const MAX_WORDS: usize = 64 * 1024;

/// What an image says about how it is run (OCI image specification, "image configuration").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    /// The program, and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments, or the program where there is no entry point.
    pub cmd: Vec<String>,
    /// Where it starts.
    pub working_dir: String,
    /// As whom.
    pub user: String,
    /// Variables, `NAME=value`.
    pub env: Vec<String>,
    /// Ports it listens at, such as `8080/tcp`.
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
}

/// The container that each session of a pool has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerTemplate {
    /// Exactly one.
    pub containers: Vec<ContainerSettings>,
    /// Where requests go.
    pub ingress: IngressSettings,
    /// As whom its image is got from its registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_credentials: Option<RegistryCredentials>,
}

/// As whom an image is got.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistryCredentials {
    /// The registry, such as `registry.example.com`.
    pub server: String,
    /// The user.
    pub username: String,
    /// The name of the secret that is the password.
    pub password_secret_ref: String,
}

impl RegistryCredentials {
    fn check(&self, image: &str, spec: &PoolObjectSpec, place: &str) -> Result<(), Fault> {
        let key = |field: &str| format!("{place}.registryCredentials.{field}");
        let server = self.server.trim_start_matches("https://").trim_end_matches('/');
        match registry(image) {
            None => {
                return Err(fault(key("server"), format!("is for a registry, and {image} is an image by its name")));
            }
            Some(known) if known != server => {
                return Err(fault(key("server"), format!("is {server:?}, and the image is of {known}")));
            }
            Some(_) => {}
        }
        if self.username.is_empty() || self.username.len() > 1024 || self.username.contains(':') {
            return Err(fault(key("username"), "must have 1 to 1024 characters, and no colon"));
        }
        if spec.container_secrets.iter().all(|secret| secret.name != self.password_secret_ref) {
            let why = format!("names the secret {}, which containerSecrets has not", self.password_secret_ref);
            return Err(fault(key("passwordSecretRef"), why));
        }
        Ok(())
    }
}

/// That programs of a pool's sessions get tokens of our issuer's, which say which pool and session they are of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManagedIdentity {
    /// For whom they get them.
    #[serde(default = "exchange")]
    pub audiences: Vec<String>,
}

/// Audiences of one pool, at most.
const MOST_AUDIENCES: usize = 16;

/// Whom Azure's federated credentials want a foreign token to be for.
fn exchange() -> Vec<String> {
    vec!["api://AzureADTokenExchange".to_owned()]
}

impl Default for ManagedIdentity {
    fn default() -> Self {
        Self { audiences: exchange() }
    }
}

impl ManagedIdentity {
    fn check(&self) -> Result<(), Fault> {
        const PLACE: &str = "spec.managedIdentity.audiences";
        if self.audiences.is_empty() || self.audiences.len() > MOST_AUDIENCES {
            return Err(fault(PLACE, format!("are {}, must be 1 to {MOST_AUDIENCES}", self.audiences.len())));
        }
        for (at, audience) in self.audiences.iter().enumerate() {
            let is_plain = (1..=256).contains(&audience.len()) && audience.bytes().all(|byte| byte.is_ascii_graphic());
            if !is_plain {
                return Err(fault(format!("{PLACE}[{at}]"), "must have 1 to 256 printable characters"));
            }
            // A session's program is nobody here.
            let own = audience.trim_end_matches('/').to_ascii_lowercase();
            if own.ends_with("://dynamicsessions.io") || own.ends_with("://acasessions.io") {
                return Err(fault(
                    format!("{PLACE}[{at}]"),
                    format!("is {audience}, which is this server: it takes no sessions' tokens"),
                ));
            }
        }
        Ok(())
    }
}

/// The registry of a reference; `None` for what is an image's name here.
pub(crate) fn registry(image: &str) -> Option<&str> {
    if is_image_name(image) {
        return None;
    }
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => Some(host),
        _ => Some("docker.io"),
    }
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressSettings {
    /// The port that its program listens at.
    pub target_port: u16,
    /// What it speaks there.
    #[serde(default, skip_serializing_if = "Transport::is_http")]
    pub transport: Transport,
}

/// What a program speaks: the words of container apps' ingress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// HTTP/1.1.
    #[default]
    Http,
    /// HTTP/2 without TLS, by prior knowledge.
    Http2,
}

impl Transport {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
    fn is_http(&self) -> bool {
        *self == Self::Http
    }
}

/// One container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerSettings {
    /// What it is called; nothing depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// An image that is here, by its name or by the reference that it was pulled with.
    pub image: String,
    /// Instead of the image's entry point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Instead of the image's arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its variables, over the image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<ContainerVariable>,
    /// What it may use; those of the pool if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ContainerResources>,
    /// How it is asked how it is: one of each type at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ContainerProbe>,
}

/// One variable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerVariable {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Or the name of the secret whose value it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<String>,
}

/// What a container may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerResources {
    /// Processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Bytes of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
}

/// What a probe decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeType {
    /// Whether it has started, instead of its port.
    Startup,
    /// Whether it is alive.
    Liveness,
    /// Whether it takes requests.
    Readiness,
}

/// A probe, with the fields of the ARM resource, and what they are by default there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerProbe {
    /// What it decides.
    #[serde(rename = "type")]
    pub kind: ProbeType,
    /// A request to make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpGet>,
    /// Or a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_socket: Option<TcpSocket>,
    /// Seconds until the first attempt.
    #[serde(default)]
    pub initial_delay_seconds: u16,
    /// Seconds from attempt to attempt.
    #[serde(default = "ten")]
    pub period_seconds: u16,
    /// Seconds that an attempt may take.
    #[serde(default = "one")]
    pub timeout_seconds: u16,
    /// Attempts that fail, in a row.
    #[serde(default = "three")]
    pub failure_threshold: u16,
    /// Attempts that succeed, in a row.
    #[serde(default = "one")]
    pub success_threshold: u16,
}

fn ten() -> u16 {
    10
}

fn three() -> u16 {
    3
}

fn one() -> u16 {
    1
}

/// A request of a probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpGet {
    /// Its path; `/` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Where.
    pub port: u16,
    /// `HTTP`, which is what there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// Headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http_headers: Vec<EnvVariable>,
}

/// A connection of a probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpSocket {
    /// Where.
    pub port: u16,
}

impl ContainerProbe {
    /// Whether it can be done; `place` is the key that it stands under.
    fn check(&self, place: &str) -> Result<(), Fault> {
        let key = |field: &str| format!("{place}.{field}");
        let port = match (&self.http_get, &self.tcp_socket) {
            (Some(http), None) => {
                http.check(&key("httpGet"))?;
                ("httpGet.port", http.port)
            }
            (None, Some(tcp)) => ("tcpSocket.port", tcp.port),
            _ => return Err(fault(place, "has exactly one of httpGet and tcpSocket")),
        };
        let most_successes = if self.kind == ProbeType::Readiness { 10 } else { 1 };
        for (field, value, least, most) in [
            (port.0, port.1, 1, u16::MAX),
            ("initialDelaySeconds", self.initial_delay_seconds, 0, 60),
            ("periodSeconds", self.period_seconds, 1, 240),
            ("timeoutSeconds", self.timeout_seconds, 1, 240),
            ("failureThreshold", self.failure_threshold, 1, 10),
            ("successThreshold", self.success_threshold, 1, most_successes),
        ] {
            if !(least..=most).contains(&value) {
                return Err(fault(key(field), format!("is {value}, must be from {least} to {most}")));
            }
        }
        Ok(())
    }

    fn to_probe(&self) -> Probe {
        let check = match (&self.http_get, &self.tcp_socket) {
            (Some(http), _) => Check::Http {
                port: http.port,
                path: http.path.clone().unwrap_or_else(|| "/".to_owned()),
                headers: http.http_headers.iter().map(|it| (it.name.clone(), it.value.clone())).collect(),
            },
            (None, tcp) => Check::Tcp { port: tcp.as_ref().map_or(0, |tcp| tcp.port) },
        };
        Probe {
            check,
            initial_delay_s: self.initial_delay_seconds,
            period_s: self.period_seconds,
            timeout_s: self.timeout_seconds,
            failures: self.failure_threshold,
            successes: self.success_threshold,
        }
    }
}

impl HttpGet {
    fn check(&self, place: &str) -> Result<(), Fault> {
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        let path = self.path.as_deref().unwrap_or("/");
        if !path.starts_with('/') || !is_plain(path) || path.len() > 2048 {
            return Err(fault(format!("{place}.path"), "must begin with /, and be of printable ASCII without blanks"));
        }
        if self.scheme.as_ref().is_some_and(|scheme| !scheme.eq_ignore_ascii_case("HTTP")) {
            return Err(fault(format!("{place}.scheme"), "must be HTTP: it goes over the sandbox's loopback"));
        }
        if self.http_headers.len() > 32 {
            return Err(fault(format!("{place}.httpHeaders"), "are more than 32"));
        }
        for (at, header) in self.http_headers.iter().enumerate() {
            let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            let is_name = !header.name.is_empty() && header.name.bytes().all(is_token);
            let is_text = header.value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
            if !is_name || !is_text || header.name.len() + header.value.len() > 4096 {
                return Err(fault(format!("{place}.httpHeaders[{at}]"), "is no header of printable ASCII"));
            }
            let framing = ["connection", "content-length", "transfer-encoding", "upgrade"];
            if framing.iter().any(|name| header.name.eq_ignore_ascii_case(name)) {
                return Err(fault(format!("{place}.httpHeaders[{at}]"), "is about the connection, which is ours"));
            }
        }
        Ok(())
    }
}

impl ContainerTemplate {
    /// The one container.
    pub(crate) fn one(&self) -> Option<&ContainerSettings> {
        self.containers.first()
    }
}

/// Checks what a pool says of its container; `place` is the key that it stands under.
pub(crate) fn check(template: &ContainerTemplate, spec: &PoolObjectSpec, place: &str) -> Result<(), Fault> {
    let key = |field: &str| format!("{place}.{field}");
    let [container] = &template.containers[..] else {
        return Err(fault(
            key("containers"),
            format!("are {}, and a session has exactly one", template.containers.len()),
        ));
    };
    let key = |field: &str| format!("{place}.containers[0].{field}");
    if container.image.is_empty() || container.image.len() > 512 || container.image.chars().any(char::is_whitespace) {
        return Err(fault(
            key("image"),
            format!("{:?} is no image", container.image.chars().take(80).collect::<String>()),
        ));
    }
    if let Some(credentials) = &template.registry_credentials {
        credentials.check(&container.image, spec, place)?;
    }
    for (field, words) in [("command", &container.command), ("args", &container.args)] {
        let bytes: usize = words.iter().map(String::len).sum();
        if words.len() > MOST_WORDS || bytes > MAX_WORDS || words.iter().any(|word| word.contains('\0')) {
            return Err(fault(
                key(field),
                format!("has a NUL, or is longer than {MOST_WORDS} words or {MAX_WORDS} bytes"),
            ));
        }
    }
    for (at, variable) in container.env.iter().enumerate() {
        let place = key(&format!("env[{at}]"));
        let value = match (&variable.value, &variable.secret_ref) {
            (Some(_), Some(_)) => return Err(fault(place, "has both value and secretRef")),
            (None, Some(secret)) => match spec.container_secrets.iter().find(|known| known.name == *secret) {
                Some(known) => known.value.clone().unwrap_or_default(),
                None => return Err(fault(place, format!("names the secret {secret}, which containerSecrets has not"))),
            },
            (value, None) => value.clone().unwrap_or_default(),
        };
        EnvVariable { name: variable.name.clone(), value }.check(&place)?;
    }
    if let Some(resources) = &container.resources {
        if let Some(cpu) = resources.cpu.filter(|cpu| !(0.01..=1024.0).contains(cpu)) {
            return Err(fault(key("resources.cpu"), format!("is {cpu}, must be from 0.01 to 1024")));
        }
        let (least, most) = (Size(64 << 20), Size(16 << 40));
        if let Some(memory) = resources.memory.filter(|memory| !(least..=most).contains(memory)) {
            return Err(fault(key("resources.memory"), format!("is {memory}, must be from {least} to {most}")));
        }
    }
    for (at, probe) in container.probes.iter().enumerate() {
        let place = key(&format!("probes[{at}]"));
        probe.check(&place)?;
        if container.probes[..at].iter().any(|other| other.kind == probe.kind) {
            return Err(fault(place, format!("is a second one of type {:?}", probe.kind)));
        }
    }
    let port = template.ingress.target_port;
    let place = format!("{place}.ingress.targetPort");
    let has_egress = spec.egress().is_ok_and(|egress| egress.is_some());
    if let Some(identity) = &spec.managed_identity {
        identity.check()?;
        if port == IDENTITY_PORT {
            return Err(fault(
                place,
                format!("is {port}, where the identity endpoint of a pool with managedIdentity listens"),
            ));
        }
    }
    match port {
        0 => Err(fault(place, "is 0, must be from 1 to 65535")),
        port if has_egress && PORTS.contains(&port) => {
            let why = format!("is {port}, which leads out of a session of a pool with egress: choose another");
            Err(fault(place, why))
        }
        _ => Ok(()),
    }
}

/// What the service layer starts: the pool's words over the image's.
pub(crate) fn to_container(spec: &PoolObjectSpec, image: &ImageConfig) -> Result<Option<Container>, Fault> {
    let Some(template) = &spec.custom_container_template else { return Ok(None) };
    let place = "spec.customContainerTemplate.containers[0]";
    let container = template.one().ok_or_else(|| fault(place, "is missing"))?;
    // As every runtime of containers does it: a command of one's own is not followed by the image's arguments.
    let (entry, args) = match (container.command.is_empty(), container.args.is_empty()) {
        (true, true) => (&image.entrypoint, &image.cmd),
        (true, false) => (&image.entrypoint, &container.args),
        (false, _) => (&container.command, &container.args),
    };
    let argv: Vec<String> = entry.iter().chain(args).cloned().collect();
    if argv.is_empty() {
        let why = format!("is missing, and the image {} has no entry point", container.image);
        return Err(fault(format!("{place}.command"), why));
    }
    let secret = |name: &str| spec.container_secrets.iter().find(|known| known.name == name)?.value.clone();
    let of_image = image.env.iter().filter_map(|pair| pair.split_once('='));
    let mut env: BTreeMap<String, String> = of_image
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .filter(|(name, _)| !name.is_empty())
        .collect();
    env.extend(spec.env.iter().map(|variable| (variable.name.clone(), variable.value.clone())));
    for variable in &container.env {
        let value = match &variable.secret_ref {
            Some(name) => secret(name),
            None => variable.value.clone(),
        };
        env.insert(variable.name.clone(), value.unwrap_or_default());
    }
    let probe =
        |kind: ProbeType| container.probes.iter().find(|probe| probe.kind == kind).map(ContainerProbe::to_probe);
    let main = Main {
        argv,
        env: env.into_iter().collect(),
        directory: image.working_dir.clone(),
        user: image.user.clone(),
        port: template.ingress.target_port,
        has_identity: spec.managed_identity.is_some(),
        startup: probe(ProbeType::Startup),
        liveness: probe(ProbeType::Liveness),
        readiness: probe(ProbeType::Readiness),
    };
    let life = &spec.dynamic_pool_configuration.lifecycle_configuration;
    Ok(Some(Container {
        main,
        ends_with_program: life.lifecycle_type == LifecycleType::OnContainerExit,
        is_http2: template.ingress.transport == Transport::Http2,
        audiences: spec.managed_identity.as_ref().map(|identity| identity.audiences.clone()).unwrap_or_default(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PoolObject;

    fn object(spec: &str) -> PoolObject {
        let text = format!("metadata: {{ name: web }}\nspec:\n  containerType: CustomContainer\n{spec}");
        serde_norway::from_str(&text).unwrap()
    }

    fn said(spec: &str) -> String {
        object(spec).check().map_or_else(|fault| fault.to_string(), |()| "fine".to_owned())
    }

    const GOOD: &str =
        "  customContainerTemplate: { containers: [{ image: 'reg.test/a/b:1' }], ingress: { targetPort: 8080 } }\n";

    #[test]
    fn what_is_wrong_with_a_container_is_said_with_its_field() {
        assert_eq!(said(GOOD), "fine");
        let template = |container: &str, port: u16| {
            format!(
                "  customContainerTemplate: {{ containers: [{{ {container} }}], ingress: {{ targetPort: {port} }} }}\n"
            )
        };
        for (spec, part) in [
            ("  env: []\n".to_owned(), "spec.customContainerTemplate: is missing"),
            (template("image: ''", 80), "spec.customContainerTemplate.containers[0].image: \"\""),
            (template("image: a", 0), "spec.customContainerTemplate.ingress.targetPort: is 0"),
            (
                template("image: a, env: [{ name: 'A=B' }]", 80),
                "spec.customContainerTemplate.containers[0].env[0]: \"A=B\"",
            ),
            (
                template("image: a, env: [{ name: A, secretRef: s }]", 80),
                "spec.customContainerTemplate.containers[0].env[0]: names the secret s",
            ),
            (
                template("image: a, env: [{ name: A, value: b, secretRef: s }]", 80),
                "spec.customContainerTemplate.containers[0].env[0]: has both",
            ),
            (
                template("image: a, resources: { cpu: 0 }", 80),
                "spec.customContainerTemplate.containers[0].resources.cpu: is 0",
            ),
            (
                template("image: a, resources: { memory: 1 }", 80),
                "spec.customContainerTemplate.containers[0].resources.memory: is 1",
            ),
            (
                template("image: a, probes: [{ type: Liveness }]", 80),
                "spec.customContainerTemplate.containers[0].probes[0]: has exactly one",
            ),
            (
                template("image: a, probes: [{ type: Startup, tcpSocket: { port: 80 }, failureThreshold: 11 }]", 80),
                "spec.customContainerTemplate.containers[0].probes[0].failureThreshold: is 11",
            ),
            (
                template("image: a, probes: [{ type: Liveness, tcpSocket: { port: 80 }, successThreshold: 2 }]", 80),
                "spec.customContainerTemplate.containers[0].probes[0].successThreshold: is 2",
            ),
            (
                template("image: a, probes: [{ type: Startup, httpGet: { port: 80, path: up } }]", 80),
                "spec.customContainerTemplate.containers[0].probes[0].httpGet.path: must begin",
            ),
            (
                template("image: a, probes: [{ type: Startup, httpGet: { port: 80, scheme: HTTPS } }]", 80),
                "spec.customContainerTemplate.containers[0].probes[0].httpGet.scheme: must be HTTP",
            ),
            (
                template(
                    "image: a, probes: [{ type: Startup, httpGet: { port: 80, httpHeaders: [{ name: 'a b', value: c }] } }]",
                    80,
                ),
                "spec.customContainerTemplate.containers[0].probes[0].httpGet.httpHeaders[0]: is no header",
            ),
            (
                template(
                    "image: a, probes: [{ type: Startup, tcpSocket: { port: 1 } }, { type: Startup, tcpSocket: { port: 2 } }]",
                    80,
                ),
                "spec.customContainerTemplate.containers[0].probes[1]: is a second one",
            ),
            (format!("{GOOD}  image: a\n"), "spec.image: is said"),
            (format!("{GOOD}  localServers: false\n"), "spec.localServers: is false"),
            (
                format!("{}  egress: {{ mode: open }}\n", template("image: a", 80)),
                "spec.customContainerTemplate.ingress.targetPort: is 80, which leads out",
            ),
        ] {
            let error = said(&spec);
            assert!(error.starts_with(part), "{error}");
        }
        let two =
            "  customContainerTemplate: { containers: [{ image: a }, { image: b }], ingress: { targetPort: 1 } }\n";
        assert!(said(two).contains("containers: are 2"), "{}", said(two));
    }

    #[test]
    fn a_program_is_the_pools_words_over_the_images() {
        let image = ImageConfig {
            entrypoint: vec!["serve".to_owned()],
            cmd: vec!["--all".to_owned()],
            working_dir: "/srv".to_owned(),
            user: "web".to_owned(),
            env: vec!["A=image".to_owned(), "B=image".to_owned(), "=bad".to_owned()],
            ..ImageConfig::default()
        };
        let main = |container: &str| {
            let spec = format!(
                "  customContainerTemplate: {{ containers: [{{ image: a, {container} }}], ingress: {{ targetPort: 80 }} }}\n  \
                 containerSecrets: [{{ name: s, value: hush }}]\n  env: [{{ name: B, value: pool }}]\n"
            );
            to_container(&object(&spec).spec, &image).unwrap().unwrap().main
        };
        let (of, of_probes) = (|container: &str| main(container).argv.join(" "), &main);
        assert_eq!(of(""), "serve --all");
        assert_eq!(of("args: [--one]"), "serve --one");
        assert_eq!(of("command: [other]"), "other", "the image's arguments are its entry point's");
        assert_eq!(of("command: [other], args: [x]"), "other x");
        let main = &main("env: [{ name: C, secretRef: s }, { name: A, value: container }]");
        let pairs: Vec<_> = main.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(pairs, ["A=container", "B=pool", "C=hush"]);
        assert_eq!((main.directory.as_str(), main.user.as_str(), main.port), ("/srv", "web", 80));
        let probed = "probes: [{ type: Readiness, httpGet: { port: 8080 }, successThreshold: 2 }]";
        let Main { startup, liveness, readiness, .. } = of_probes(probed);
        assert_eq!((startup, liveness), (None, None));
        let readiness = readiness.unwrap();
        assert_eq!(readiness.check, Check::Http { port: 8080, path: "/".to_owned(), headers: Vec::new() });
        assert_eq!((readiness.initial_delay_s, readiness.period_s, readiness.timeout_s), (0, 10, 1));
        assert_eq!((readiness.failures, readiness.successes), (3, 2));
        let nothing = to_container(&object(GOOD).spec, &ImageConfig::default()).unwrap_err();
        assert!(nothing.to_string().contains("no entry point"), "{nothing}");
    }
}
