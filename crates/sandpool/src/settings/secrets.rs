//! Secrets by placeholder, as the settings say them, and what root makes of them at the start: a file for the egress proxy, and
//! certificates that the pool's sandboxes trust. The server gets neither.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use sandpool_egress::secrets::{
    FILE, MAX_VALUE, MIN_VALUE, PoolFile, SecretFile, Secrets, SecretsFile, authority, check_host,
};
use serde::{Deserialize, Serialize};

use super::{EnvVariable, PoolObjectSpec, Settings};
use crate::client::random_hex;
use crate::failure::Failure;
use crate::home::{Home, make_directory};
use crate::server::Images;

/// Secrets of one pool, at most.
const MOST: usize = 64;

/// Where images have the certificates that they trust, below their root.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

/// Where a pool with secrets has the certificate of its authority alone; agents look for it.
const AUTHORITY: &str = "etc/ssl/sandpool.pem";

/// The variables by which programs find certificates, instead of what they bring.
const BUNDLE_VARIABLES: [&str; 6] =
    ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE"];

/// One secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SecretSettings {
    /// The variable that sessions have; its value there is a placeholder.
    pub(crate) name: String,
    /// Where the value is.
    pub(crate) from: SecretSource,
    /// Who gets the value.
    pub(crate) hosts: Vec<String>,
    /// A file of certificates (PEM) that are trusted besides the host's own, when speaking with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trust: Option<PathBuf>,
}

/// Where a value is: exactly one of them. It is read at the start, by root.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct SecretSource {
    /// A variable of the environment that `sandpool serve` is started in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) env: Option<String>,
    /// A file; a line break at its end does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<PathBuf>,
}

/// # Errors
/// The key below `spec`, and what is wrong with it.
pub(super) fn check(spec: &PoolObjectSpec) -> Result<(), (String, String)> {
    let has_egress = spec.egress().is_ok_and(|egress| egress.is_some());
    if !spec.secrets.is_empty() && !has_egress {
        return Err(("secrets".to_owned(), "are of no use without egress: it must allow their hosts".to_owned()));
    }
    if spec.secrets.len() > MOST {
        return Err(("secrets".to_owned(), format!("are {}, {MOST} at most", spec.secrets.len())));
    }
    let mut names: BTreeSet<&str> = spec.env.iter().map(|variable| variable.name.as_str()).collect();
    for (at, secret) in spec.secrets.iter().enumerate() {
        let wrong = |field: &str, why: String| Err((format!("secrets[{at}].{field}"), why));
        let SecretSettings { name, from, hosts, .. } = secret;
        let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.len() <= 64;
        if !is_name {
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

/// Reads every value, and writes what the proxy and the sandboxes need. In `settings` a secret becomes a variable with its placeholder:
/// all that the server learns of it. What an earlier start left is removed.
pub(crate) fn install(home: &Home, settings: &mut Settings, images: &Images, proxy: (u32, u32)) -> Result<(), Failure> {
    let file = home.egress().join(FILE);
    let unwritable =
        |path: &Path, error: std::io::Error| Failure::new(format!("cannot write {}", path.display())).because(error);
    for (path, removed) in
        [(&file, std::fs::remove_file(&file)), (&home.trust(), std::fs::remove_dir_all(home.trust()))]
    {
        if let Err(error) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(unwritable(path, error));
        }
    }
    let mut all = SecretsFile::default();
    for pool in settings.pools.iter_mut().filter(|pool| !pool.spec.secrets.is_empty()) {
        let name = pool.metadata.name.clone();
        let image = images.get(&name).ok_or_else(|| Failure::new(format!("the image of {name} was not prepared")))?;
        let (made, certificate) = of_pool(&name, &mut pool.spec)?;
        let layer = home.trust().join(&name);
        lay(&layer, &image.rootfs, &certificate).map_err(|error| unwritable(&layer, error))?;
        all.pools.insert(name, made);
    }
    if all.pools.is_empty() {
        return Ok(());
    }
    // What the proxy could not use is said now, and not in its log.
    Secrets::new(&all).map_err(|why| Failure::usage("a secret cannot be used").because(why))?;
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut out = options.write(true).create_new(true).mode(0o400).open(&file)?;
        fchown(&out, Some(proxy.0), Some(proxy.1))?;
        out.write_all(&serde_json::to_vec(&all)?)
    };
    write().map_err(|error| unwritable(&file, error))
}

/// One pool's secrets, and the certificate of their authority. In its settings they become variables.
fn of_pool(pool: &str, spec: &mut PoolObjectSpec) -> Result<(PoolFile, String), Failure> {
    let mut made = PoolFile { key: String::new(), trust: Vec::new(), secrets: Vec::new() };
    let mut hosts = Vec::new();
    for secret in std::mem::take(&mut spec.secrets) {
        let SecretSettings { name, from, hosts: own, trust } = secret;
        let about = |what: &str| Failure::usage(format!("pool {pool}, secret {name}: {what}"));
        let value = match (&from.env, &from.file) {
            (Some(variable), _) => std::env::var(variable)
                .map_err(|error| about(&format!("the variable {variable} cannot be read")).because(error))?,
            (None, Some(path)) => std::fs::read_to_string(path)
                .map_err(|error| about(&format!("{} cannot be read", path.display())).because(error))?,
            (None, None) => return Err(about("its value is nowhere")),
        };
        let value = value.trim_end_matches(['\r', '\n']).to_owned();
        let is_printable = value.chars().all(|c| c.is_ascii_graphic() || c == ' ');
        if !is_printable || !(MIN_VALUE..=MAX_VALUE).contains(&value.len()) {
            return Err(about(&format!("its value must be {MIN_VALUE} to {MAX_VALUE} printable ASCII characters")));
        }
        if let Some(path) = trust {
            let text = std::fs::read_to_string(&path);
            made.trust.push(text.map_err(|error| about(&format!("{} cannot be read", path.display())).because(error))?);
        }
        let placeholder = format!("sandpool-{}-{}", name.to_ascii_lowercase().replace('_', "-"), random_hex(16)?);
        spec.env.push(EnvVariable { name: name.clone(), value: placeholder.clone() });
        hosts.extend(own.iter().cloned());
        made.secrets.push(SecretFile { name, placeholder, value, hosts: own });
    }
    let (certificate, key) = authority(&hosts)
        .map_err(|why| Failure::new(format!("pool {pool}: no certificate can be made")).because(why))?;
    made.key = key;
    let variables = BUNDLE_VARIABLES.map(|name| (name, BUNDLE)).into_iter().chain([("NODE_EXTRA_CA_CERTS", AUTHORITY)]);
    for (name, place) in variables {
        if !spec.env.iter().any(|known| known.name == name) {
            spec.env.push(EnvVariable { name: name.to_owned(), value: format!("/{place}") });
        }
    }
    Ok((made, certificate))
}

/// The layer that lies over the image: its certificates and the authority's, and the authority's alone.
fn lay(layer: &Path, rootfs: &Path, certificate: &str) -> std::io::Result<()> {
    let root = Some((0, 0));
    let mut directory = layer.to_owned();
    if let Some(parent) = layer.parent() {
        make_directory(parent, 0o755, root)?;
    }
    make_directory(layer, 0o755, root)?;
    for part in ["etc", "ssl", "certs"] {
        directory.push(part);
        make_directory(&directory, 0o755, root)?;
    }
    // An image without any trusts the authority alone.
    let mut bundle = std::fs::read_to_string(rootfs.join(BUNDLE)).unwrap_or_default();
    if !bundle.is_empty() && !bundle.ends_with('\n') {
        bundle.push('\n');
    }
    bundle.push_str(certificate);
    for (place, text) in [(BUNDLE, bundle.as_str()), (AUTHORITY, certificate)] {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o644).open(layer.join(place))?;
        file.write_all(text.as_bytes())?;
    }
    Ok(())
}
