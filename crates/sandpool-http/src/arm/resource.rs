//! A pool as the ARM resource, and back.
//!
//! Property names come in any case and leave in the specification's. What this resource cannot say of a pool (its memory, its
//! variables, its allow-list) is kept as it is; what it says and nothing here can do is refused, never dropped. (What the
//! specification does not know has no effect, as in the service.)

use axum::http::StatusCode;
use sandpool_objects::network::{NetworkSettings, NetworkStatus};
use sandpool_objects::pool::{
    ContainerSecret, ContainerType, LifecycleType, PoolObject, PoolObjectSpec, default_pools,
};
use sandpool_objects::{Kept, PoolsError};
use serde_json::{Map, Value, json};

use super::invalid;
use super::operation::State;
use super::path::Group;
use crate::problem::Problem;

/// Annotations in which is kept what only this face knows.
pub(super) const SUBSCRIPTION: &str = "azure/subscription";
pub(super) const GROUP: &str = "azure/resourceGroup";
const LOCATION: &str = "azure/location";

/// The versions that have session pools.
pub(super) const VERSIONS: [&str; 12] = [
    "2026-07-01",
    "2026-03-02-preview",
    "2026-01-01",
    "2025-10-02-preview",
    "2025-07-01",
    "2025-02-02-preview",
    "2025-01-01",
    "2024-10-02-preview",
    "2024-08-02-preview",
    "2024-02-02-preview",
    "2023-11-02-preview",
    "2023-08-01-preview",
];

/// The version that links name when their caller named none.
pub(super) const NEWEST: &str = "2026-07-01";

/// Versions whose `dynamicPoolConfiguration` is flat.
const FLAT: [&str; 4] = ["2023-08-01-preview", "2023-11-02-preview", "2024-02-02-preview", "2024-08-02-preview"];

/// Versions that know nothing of `mcpServerSettings`.
const WITHOUT_MCP: [&str; 2] = ["2026-01-01", "2026-07-01"];

/// Every property's name, as the specification writes it.
const NAMES: [&str; 63] = [
    "id",
    "name",
    "type",
    "location",
    "tags",
    "identity",
    "properties",
    "environmentId",
    "containerType",
    "poolManagementType",
    "nodeCount",
    "scaleConfiguration",
    "maxConcurrentSessions",
    "readySessionInstances",
    "secrets",
    "dynamicPoolConfiguration",
    "lifecycleConfiguration",
    "lifecycleType",
    "executionType",
    "cooldownPeriodInSeconds",
    "maxAlivePeriodInSeconds",
    "customContainerTemplate",
    "containers",
    "registryCredentials",
    "ingress",
    "targetPort",
    "sessionNetworkConfiguration",
    "status",
    "managedIdentitySettings",
    "lifecycle",
    "mcpServerSettings",
    "isMcpServerEnabled",
    "isMcpServerApiKeyDisabled",
    "mcpServerEndpoint",
    "poolManagementEndpoint",
    "provisioningState",
    "image",
    "command",
    "args",
    "env",
    "value",
    "secretRef",
    "resources",
    "cpu",
    "memory",
    "probes",
    "httpGet",
    "tcpSocket",
    "httpHeaders",
    "path",
    "port",
    "scheme",
    "host",
    "initialDelaySeconds",
    "periodSeconds",
    "timeoutSeconds",
    "failureThreshold",
    "successThreshold",
    "terminationGracePeriodSeconds",
    "server",
    "username",
    "passwordSecretRef",
    "transport",
];

/// The same with every property's name as the specification writes it. Tags have the names that people give them.
pub(super) fn canonical(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| {
                let known = NAMES.iter().find(|known| known.eq_ignore_ascii_case(&name));
                match known {
                    Some(&"tags") => ("tags".to_owned(), value),
                    Some(known) => ((*known).to_owned(), canonical(value)),
                    None => (name, canonical(value)),
                }
            })
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(values) => values.into_iter().map(canonical).collect(),
        value => value,
    }
}

/// JSON merge patch (RFC 7396).
pub(super) fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(fields) = target.as_object_mut() else { return };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(&name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// A refusal in the words of this resource.
pub(super) fn refused(error: PoolsError) -> Problem {
    named(Problem::from(error))
}

/// The same with this resource's names of fields.
pub(super) fn named(mut problem: Problem) -> Problem {
    if let Some(field) = problem.target.as_deref().and_then(|target| target.strip_prefix("spec.")) {
        problem.message = problem.message.replacen("spec.", "properties.", 1);
        problem.target = Some(format!("properties.{field}"));
    }
    problem
}

/// Below `properties`.
struct Properties<'a>(&'a Value);

impl<'a> Properties<'a> {
    /// What is there and not null.
    fn get(&self, path: &str) -> Option<&'a Value> {
        let mut value = self.0;
        for name in path.split('.') {
            value = value.get(name)?;
        }
        Some(value).filter(|value| !value.is_null())
    }

    fn number<N: TryFrom<u64>>(&self, path: &str) -> Result<Option<N>, Problem> {
        let Some(value) = self.get(path) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| N::try_from(number).ok());
        number.map(Some).ok_or_else(|| wrong(path, "is no number that can be meant"))
    }

    fn word(&self, path: &str) -> Result<Option<&'a str>, Problem> {
        let Some(value) = self.get(path) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| wrong(path, "is no text"))
    }

    fn flag(&self, path: &str) -> Result<Option<bool>, Problem> {
        let Some(value) = self.get(path) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| wrong(path, "is neither true nor false"))
    }

    /// Refuses what is said and cannot be done.
    fn has_no(&self, path: &str, why: &str) -> Result<(), Problem> {
        let is_empty = |value: &Value| match value {
            Value::Array(values) => values.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        match self.get(path).filter(|value| !is_empty(value)) {
            Some(_) => Err(wrong(path, why)),
            None => Ok(()),
        }
    }
}

fn wrong(path: &str, why: &str) -> Problem {
    let path = format!("properties.{path}");
    invalid(&path, format!("{path}: {why}."))
}

/// The container types there are, as the resource writes them.
const TYPES: [(&str, ContainerType); 4] = [
    ("PythonLTS", ContainerType::PythonLTS),
    ("NodeLTS", ContainerType::NodeLTS),
    ("Shell", ContainerType::Shell),
    ("CustomContainer", ContainerType::CustomContainer),
];

/// The object that a resource means, with [`canonical`] names. `before` is the pool as it is.
pub(super) fn read(resource: &Value, group: &Group, name: &str, before: Option<&Kept>) -> Result<PoolObject, Problem> {
    let empty = Value::Object(Map::new());
    let properties = Properties(resource.get("properties").filter(|value| value.is_object()).unwrap_or(&empty));
    let asked = properties.word("containerType")?;
    let kind = match (asked, before) {
        (None, Some(kept)) => kept.object.spec.container_type,
        (None, None) => ContainerType::PythonLTS,
        (Some(word), _) => match TYPES.iter().find(|(known, _)| known.eq_ignore_ascii_case(word)) {
            Some((_, kind)) => *kind,
            None => {
                let known = TYPES.map(|(known, _)| known).join(", ");
                let text = format!(
                    "properties.containerType: {:?} is none of {known}.",
                    word.chars().take(40).collect::<String>()
                );
                let problem = Problem::new(StatusCode::BAD_REQUEST, "SessionTypeNotSupported", text);
                return Err(problem.about("properties.containerType"));
            }
        },
    };
    let mut object = match before {
        Some(kept) => kept.object.clone(),
        None => {
            let mut object = default_pools().remove(0);
            object.metadata.name = name.to_owned();
            object
        }
    };
    object.spec.container_type = kind;
    notes(&mut object, resource, group)?;
    match properties.word("poolManagementType")? {
        Some(word) if !word.eq_ignore_ascii_case("Dynamic") => {
            return Err(wrong("poolManagementType", "is not Dynamic, and there is no other"));
        }
        _ => {}
    }
    if kind == ContainerType::CustomContainer {
        custom(&properties, &mut object.spec)?;
    } else {
        properties.has_no("customContainerTemplate", "is for custom containers only")?;
        properties.has_no("secrets", "are for custom containers only")?;
    }
    identity(&properties, resource, &mut object.spec)?;
    let (defaults, spec) = (default_pools().remove(0).spec, &mut object.spec);
    let scale = &mut spec.scale_configuration;
    let most = properties.number("scaleConfiguration.maxConcurrentSessions")?;
    scale.max_concurrent_sessions = most.unwrap_or(defaults.scale_configuration.max_concurrent_sessions);
    let ready = properties.number("scaleConfiguration.readySessionInstances")?;
    let usual = defaults.scale_configuration.ready_session_instances.min(scale.max_concurrent_sessions);
    scale.ready_session_instances = ready.unwrap_or(usual);
    life(&properties, spec)?;
    match properties.word("sessionNetworkConfiguration.status")? {
        None if before.is_some_and(|kept| kept.object.spec.session_network_configuration.is_none()) => {}
        None => spec.session_network_configuration = None,
        Some(word) if word.eq_ignore_ascii_case("EgressEnabled") => {
            // An allow-list that is there says what is meant by it.
            let has_own = spec.egress.is_some() && spec.egress().is_ok_and(|egress| egress.is_some());
            if !has_own {
                spec.egress = None;
                spec.session_network_configuration = Some(NetworkSettings { status: NetworkStatus::EgressEnabled });
            }
        }
        Some(word) if word.eq_ignore_ascii_case("EgressDisabled") => {
            spec.egress = None;
            spec.session_network_configuration = Some(NetworkSettings { status: NetworkStatus::EgressDisabled });
        }
        Some(_) => {
            return Err(wrong("sessionNetworkConfiguration.status", "is neither EgressEnabled nor EgressDisabled"));
        }
    }
    if properties.flag("mcpServerSettings.isMcpServerApiKeyDisabled")? == Some(true) {
        return Err(wrong("mcpServerSettings.isMcpServerApiKeyDisabled", "cannot be: the key is what lets clients in"));
    }
    if let Some(is_enabled) = properties.flag("mcpServerSettings.isMcpServerEnabled")? {
        spec.mcp_server_settings.is_mcp_server_enabled = is_enabled;
    }
    Ok(object)
}

/// Who its program is to others. Of Azure's identities there is the pool's own, and only its program can have it.
fn identity(properties: &Properties<'_>, resource: &Value, spec: &mut PoolObjectSpec) -> Result<(), Problem> {
    const SETTINGS: &str = "managedIdentitySettings";
    let kind = resource.get("identity").and_then(|identity| identity.get("type")).and_then(Value::as_str);
    let is_known = |word: &&str| ["None", "SystemAssigned"].iter().any(|known| known.eq_ignore_ascii_case(word));
    if kind.is_some_and(|word| !is_known(&word)) {
        let why = "identity.type: is neither None nor SystemAssigned: a pool has its own identity, or none.";
        return Err(invalid("identity.type", why.to_owned()));
    }
    let mut asked = false;
    for setting in properties.get(SETTINGS).and_then(Value::as_array).into_iter().flatten() {
        let word = |name: &str| setting.get(name).and_then(Value::as_str).unwrap_or_default();
        match word("lifecycle") {
            "" => {}
            word if word.eq_ignore_ascii_case("None") => {}
            word if word.eq_ignore_ascii_case("Main") => asked = true,
            _ => return Err(wrong(SETTINGS, "have a lifecycle that is neither Main nor None")),
        }
        if !word("identity").eq_ignore_ascii_case("system") {
            return Err(wrong(SETTINGS, "name another identity than system: a pool has its own, or none"));
        }
    }
    if asked && spec.container_type != ContainerType::CustomContainer {
        return Err(wrong(SETTINGS, "have the lifecycle Main, which is for custom containers: code has no identity"));
    }
    spec.managed_identity = asked.then(|| spec.managed_identity.take().unwrap_or_default());
    Ok(())
}

/// Tags, and where it is said to be.
fn notes(object: &mut PoolObject, resource: &Value, group: &Group) -> Result<(), Problem> {
    if let Some(tags) = resource.get("tags").filter(|tags| !tags.is_null()) {
        let labels = tags.as_object().and_then(|tags| {
            let text = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
            tags.iter().map(text).collect::<Option<_>>()
        });
        object.metadata.labels =
            labels.ok_or_else(|| invalid("tags", "tags: must be texts by their names.".to_owned()))?;
    } else {
        object.metadata.labels.clear();
    }
    let annotations = &mut object.metadata.annotations;
    annotations.insert(SUBSCRIPTION.to_owned(), group.subscription.clone());
    if let Some(name) = &group.name {
        annotations.insert(GROUP.to_owned(), name.clone());
    }
    if let Some(location) = resource.get("location").and_then(Value::as_str) {
        annotations.insert(LOCATION.to_owned(), location.to_owned());
    }
    Ok(())
}

/// When sessions end, in both forms.
fn life(properties: &Properties<'_>, spec: &mut PoolObjectSpec) -> Result<(), Problem> {
    const NESTED: &str = "dynamicPoolConfiguration.lifecycleConfiguration";
    const FLAT: &str = "dynamicPoolConfiguration";
    let place = if properties.get(NESTED).is_some() { NESTED } else { FLAT };
    let life = &mut spec.dynamic_pool_configuration.lifecycle_configuration;
    life.lifecycle_type = LifecycleType::Timed;
    let is_custom = spec.container_type == ContainerType::CustomContainer;
    for path in [format!("{NESTED}.lifecycleType"), format!("{FLAT}.executionType")] {
        match properties.word(&path)? {
            None => {}
            Some(word) if word.eq_ignore_ascii_case("Timed") => {}
            Some(word) if word.eq_ignore_ascii_case("OnContainerExit") && is_custom => {
                life.lifecycle_type = LifecycleType::OnContainerExit;
            }
            Some(word) => {
                let word: String = word.chars().take(40).collect();
                let why = format!("is {word}: Timed, or for custom containers OnContainerExit, is what there is");
                return Err(wrong(&path, &why));
            }
        }
    }
    let usual = sandpool_objects::pool::LifecycleSettings::default();
    let cooldown = properties.number(&format!("{place}.cooldownPeriodInSeconds"))?;
    life.cooldown_period_in_seconds = cooldown.unwrap_or(usual.cooldown_period_in_seconds);
    life.max_alive_period_in_seconds = properties.number(&format!("{place}.maxAlivePeriodInSeconds"))?;
    Ok(())
}

/// What is said of a custom container. Values of secrets that are not said again stay as they are.
fn custom(properties: &Properties<'_>, spec: &mut PoolObjectSpec) -> Result<(), Problem> {
    const TEMPLATE: &str = "customContainerTemplate";
    if let Some(secrets) = properties.get("secrets") {
        let wrong_form = || wrong("secrets", "must be a list of {name, value}");
        let mut kept = Vec::new();
        for secret in secrets.as_array().ok_or_else(wrong_form)? {
            let name = secret.get("name").and_then(Value::as_str).ok_or_else(wrong_form)?;
            let known = spec.container_secrets.iter().find(|known| known.name == name);
            let said = secret.get("value").and_then(Value::as_str).map(str::to_owned);
            let value = said.or_else(|| known.and_then(|known| known.value.clone()));
            if value.is_none() {
                return Err(wrong("secrets", &format!("{name} has no value")));
            }
            kept.push(ContainerSecret { name: name.to_owned(), value });
        }
        spec.container_secrets = kept;
    }
    let Some(template) = properties.get(TEMPLATE) else {
        return match spec.custom_container_template {
            Some(_) => Ok(()),
            None => Err(wrong(TEMPLATE, "is missing")),
        };
    };
    let mut template = said(template);
    credentials_of(&mut template)?;
    if let Some(transport) = template.get_mut("ingress").and_then(|ingress| ingress.get_mut("transport"))
        && let Some(word) = transport.as_str().map(str::to_ascii_lowercase)
    {
        *transport = word.into();
    }
    for container in template.get_mut("containers").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(fields) = container.as_object_mut() else { continue };
        for (at, probe) in fields.get_mut("probes").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
            let place = format!("customContainerTemplate.containers[0].probes[{at}]");
            probe_of(probe, &place)?;
        }
    }
    let template = serde_path_to_error::deserialize(template).map_err(|error| {
        let (path, why) = (error.path().to_string(), error.into_inner().to_string());
        wrong(&format!("{TEMPLATE}.{path}"), &why)
    })?;
    spec.custom_container_template = Some(template);
    Ok(())
}

/// As whom an image is got, in the object's words. Clients send empty texts for what they do not say.
fn credentials_of(template: &mut Value) -> Result<(), Problem> {
    const PLACE: &str = "customContainerTemplate.registryCredentials";
    let Some(fields) = template.get_mut("registryCredentials").and_then(Value::as_object_mut) else { return Ok(()) };
    fields.retain(|_, value| value.as_str() != Some(""));
    if fields.remove("identity").is_some() {
        let why = "is not here: a registry is asked with username and passwordSecretRef, or without credentials";
        return Err(wrong(&format!("{PLACE}.identity"), why));
    }
    if fields.keys().all(|name| name == "server") {
        template.as_object_mut().map(|template| template.remove("registryCredentials"));
    }
    Ok(())
}

/// A probe in the object's words. What says nothing is left out, and what cannot be done here is refused.
fn probe_of(probe: &mut Value, place: &str) -> Result<(), Problem> {
    let Some(fields) = probe.as_object_mut() else { return Ok(()) };
    if fields.remove("terminationGracePeriodSeconds").is_some() {
        return Err(wrong(
            &format!("{place}.terminationGracePeriodSeconds"),
            "is not here: what fails is ended at once",
        ));
    }
    for kind in ["Liveness", "Readiness", "Startup"] {
        if fields.get("type").and_then(Value::as_str).is_some_and(|said| said.eq_ignore_ascii_case(kind)) {
            fields.insert("type".to_owned(), kind.into());
        }
    }
    for check in ["httpGet", "tcpSocket"] {
        let check_of = fields.get_mut(check).and_then(Value::as_object_mut);
        if let Some(host) = check_of.and_then(|check| check.remove("host")) {
            let is_loopback = ["", "localhost", "127.0.0.1"].iter().any(|known| host == *known);
            if !is_loopback {
                let why = "is not here: a probe goes to the container; a Host is one of its httpHeaders";
                return Err(wrong(&format!("{place}.{check}.host"), why));
            }
        }
    }
    Ok(())
}

/// The same without nulls.
fn said(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            fields.map(|(name, value)| (name.clone(), said(value))).collect::<Map<_, _>>().into()
        }
        Value::Array(values) => values.iter().map(said).collect(),
        value => value.clone(),
    }
}

/// The resource that a pool is.
pub(super) fn write(kept: &Kept, group: &Group, origin: &str, version: &str, state: &State) -> Value {
    let object = &kept.object;
    let (spec, notes) = (&object.spec, &object.metadata.annotations);
    let name = &object.metadata.name;
    let place = group.name.as_ref().or_else(|| notes.get(GROUP)).map_or("sandpool", String::as_str);
    let subscription = &group.subscription;
    let below = format!("/subscriptions/{subscription}/resourceGroups/{place}");
    let endpoint = format!("{origin}{below}/sessionPools/{name}");
    let life = &spec.dynamic_pool_configuration.lifecycle_configuration;
    let dynamic = if FLAT.contains(&version) {
        json!({ "executionType": "Timed", "cooldownPeriodInSeconds": life.cooldown_period_in_seconds })
    } else {
        json!({ "lifecycleConfiguration": {
            "lifecycleType": match life.lifecycle_type {
                LifecycleType::Timed => "Timed",
                LifecycleType::OnContainerExit => "OnContainerExit",
            },
            "cooldownPeriodInSeconds": life.cooldown_period_in_seconds,
            "maxAlivePeriodInSeconds": life.max_alive_period_in_seconds,
        } })
    };
    let has_egress = spec.egress().is_ok_and(|egress| egress.is_some());
    // Their values are for nobody to read.
    let secrets: Vec<_> = spec.container_secrets.iter().map(|secret| json!({ "name": secret.name })).collect();
    let secrets = if secrets.is_empty() { Value::Null } else { secrets.into() };
    // Plain data: this cannot fail.
    let template = serde_json::to_value(&spec.custom_container_template).unwrap_or_default();
    let has_identity = spec.managed_identity.is_some();
    let settings = if has_identity { json!([{ "identity": "system", "lifecycle": "Main" }]) } else { json!([]) };
    let mut properties = json!({
        "environmentId": null,
        "containerType": spec.container_type.word(),
        "poolManagementType": "Dynamic",
        "nodeCount": 0,
        "scaleConfiguration": {
            "maxConcurrentSessions": spec.scale_configuration.max_concurrent_sessions,
            "readySessionInstances": spec.scale_configuration.ready_session_instances,
        },
        "secrets": secrets,
        "dynamicPoolConfiguration": dynamic,
        "customContainerTemplate": template,
        "sessionNetworkConfiguration": { "status": if has_egress { "EgressEnabled" } else { "EgressDisabled" } },
        "managedIdentitySettings": settings,
        "poolManagementEndpoint": endpoint,
        "provisioningState": state.word(),
    });
    if !WITHOUT_MCP.contains(&version) {
        let is_enabled = spec.mcp_server_settings.is_mcp_server_enabled;
        properties["mcpServerSettings"] = json!({
            "isMcpServerEnabled": is_enabled,
            "isMcpServerApiKeyDisabled": false,
            "mcpServerEndpoint": is_enabled.then(|| format!("{endpoint}/mcp")),
        });
    }
    json!({
        "id": format!("{below}/providers/Microsoft.App/sessionPools/{name}"),
        "name": name,
        "type": "Microsoft.App/sessionPools",
        "location": notes.get(LOCATION).map_or("local", String::as_str),
        "tags": object.metadata.labels,
        "identity": { "type": if has_identity { "SystemAssigned" } else { "None" } },
        "properties": properties,
    })
}
