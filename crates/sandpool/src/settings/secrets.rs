//! Secrets by placeholder, as the settings say them, and what root makes of them at the start: a file for the egress proxy, and what
//! makes the certificates that the pool's sandboxes trust. The server gets neither.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, fchown};

use sandpool_egress::secrets::{Authorities, FILE, PoolFile, Secrets, SecretsFile};
use sandpool_process::launcher::Trust;
use sandpool_wire::egress::{MAX_VALUE, MIN_VALUE, SecretValue};

use sandpool_objects::PoolObject;
use sandpool_objects::pool::{EnvVariable, PoolObjectSpec};
use sandpool_objects::secrets::SecretSettings;

use super::Settings;
use crate::client::random_hex;
use crate::failure::Failure;
use crate::home::Home;

/// Where sandboxes have the certificates that they trust, and where that of their own authority alone.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
const AUTHORITY: &str = "/etc/ssl/sandpool.pem";

/// The variables by which programs find certificates, instead of what they bring.
const BUNDLE_VARIABLES: [&str; 6] =
    ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE"];

/// Reads every value, and writes what the proxy needs. In `settings` a secret becomes a variable with its placeholder: all that the server
/// learns of it. Answers what makes the certificates that sandboxes trust. What an earlier start left is removed.
pub(crate) fn install(
    home: &Home,
    settings: &mut Settings,
    proxy: (u32, u32),
) -> Result<BTreeMap<String, Trust>, Failure> {
    let file = home.egress().join(FILE);
    let unwritable = |error: std::io::Error| Failure::new(format!("cannot write {}", file.display())).because(error);
    match std::fs::remove_file(&file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(unwritable(error)),
        _ => {}
    }
    let mut all = SecretsFile::default();
    let with_secrets = |pool: &&mut PoolObject| !pool.spec.secrets.is_empty() || pool.spec.session_secrets;
    for pool in settings.pools.iter_mut().filter(with_secrets) {
        let name = pool.metadata.name.clone();
        let made = of_pool(&name, &mut pool.spec)?;
        all.pools.insert(name, made);
    }
    if all.pools.is_empty() {
        return Ok(BTreeMap::new());
    }
    // What the proxy could not use is said now, and not in its log.
    Secrets::new(&all).map_err(|why| Failure::usage("a secret cannot be used").because(why))?;
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut out = options.write(true).create_new(true).mode(0o400).open(&file)?;
        fchown(&out, Some(proxy.0), Some(proxy.1))?;
        out.write_all(&serde_json::to_vec(&all)?)
    };
    write().map_err(unwritable)?;
    let trusts = all.pools.iter().map(|(pool, file)| {
        let authorities = Authorities::of(file)
            .map_err(|why| Failure::new(format!("pool {pool}: no certificates can be made")).because(why))?;
        let make = move |sandbox: &[u8; 16]| authorities.certificate(sandbox).map_err(std::io::Error::other);
        Ok((pool.clone(), Trust(Box::new(make))))
    });
    trusts.collect()
}

/// One pool's secrets. In its settings they become variables.
fn of_pool(pool: &str, spec: &mut PoolObjectSpec) -> Result<PoolFile, Failure> {
    let seed = random_hex(32)?;
    let mut made = PoolFile { seed, any_host: spec.session_secrets, trust: Vec::new(), secrets: Vec::new() };
    for secret in std::mem::take(&mut spec.secrets) {
        let SecretSettings { name, from, hosts, trust } = secret;
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
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| Failure::new("no random bytes can be had").because(error))?;
        let placeholder = sandpool_node::placeholder(&name, random);
        spec.env.push(EnvVariable { name: name.clone(), value: placeholder.clone() });
        made.secrets.push(SecretValue { name, placeholder, value, hosts });
    }
    let variables = BUNDLE_VARIABLES.map(|name| (name, BUNDLE)).into_iter().chain([("NODE_EXTRA_CA_CERTS", AUTHORITY)]);
    for (name, place) in variables {
        if !spec.env.iter().any(|known| known.name == name) {
            spec.env.push(EnvVariable { name: name.to_owned(), value: place.to_owned() });
        }
    }
    Ok(made)
}
