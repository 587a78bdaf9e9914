//! Secrets by placeholder, as a pool's object names them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use sandpool_egress::secrets::check_host;
use serde::{Deserialize, Serialize};

use crate::pool::PoolObjectSpec;

/// Secrets of one pool, at most.
const MOST: usize = 64;

/// One secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretSettings {
    /// The variable that sessions have; its value there is a placeholder.
    pub name: String,
    /// Where the value is.
    pub from: SecretSource,
    /// Who gets the value.
    pub hosts: Vec<String>,
    /// A file of certificates (PEM) that are trusted besides the host's own, when speaking with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<PathBuf>,
}

/// Where a value is: exactly one of them. It is read at the start, by root.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SecretSource {
    /// A variable of the environment that `sandpool serve` is started in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// A file; a line break at its end does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

/// # Errors
/// The key below `spec`, and what is wrong with it.
pub(crate) fn check(spec: &PoolObjectSpec) -> Result<(), (String, String)> {
    let has_egress = spec.egress().is_ok_and(|egress| egress.is_some());
    for (field, is_said) in [("secrets", !spec.secrets.is_empty()), ("sessionSecrets", spec.session_secrets)] {
        if is_said && !has_egress {
            return Err((
                field.to_owned(),
                "is of no use without egress: it must allow the hosts of secrets".to_owned(),
            ));
        }
    }
    if spec.secrets.len() > MOST {
        return Err(("secrets".to_owned(), format!("are {}, {MOST} at most", spec.secrets.len())));
    }
    let mut names: BTreeSet<&str> = spec.env.iter().map(|variable| variable.name.as_str()).collect();
    for (at, secret) in spec.secrets.iter().enumerate() {
        let wrong = |field: &str, why: String| Err((format!("secrets[{at}].{field}"), why));
        let SecretSettings { name, from, hosts, .. } = secret;
        if !sandpool_node::is_variable(name) {
            return wrong("name", format!("{name:?} is not the name of an environment variable"));
        }
        if !names.insert(name) {
            return wrong("name", format!("{name} is there already, in env or secrets"));
        }
        if from.env.is_some() == from.file.is_some() {
            return wrong("from", "must have exactly one of env and file".to_owned());
        }
        if hosts.is_empty() || hosts.len() > MOST {
            return wrong("hosts", format!("are {}, must be from 1 to {MOST}", hosts.len()));
        }
        for (host_at, host) in hosts.iter().enumerate() {
            check_host(host).map_err(|why| (format!("secrets[{at}].hosts[{host_at}]"), why))?;
        }
    }
    Ok(())
}
