//! The environment of programs: built from nothing, layer over layer.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use sandpool_wire::agent::{Activation, Refusal, Runtime};

/// Where an image says what its programs need.
pub const IMAGE_FILE: &str = "/etc/sandpool-image.json";

/// Where a sandbox of a pool with secrets has the certificate of their authority.
const AUTHORITY: &str = "/etc/ssl/sandpool.pem";

/// Where programs start.
pub const DIRECTORY: &str = "/mnt/data";

/// Bytes of names and values that a session may bring.
const MAX_BYTES: usize = 128 * 1024;

const BASH: &str = "/bin/bash";

/// Whether the image has bash.
#[must_use]
pub fn has_bash() -> bool {
    rustix::fs::access(BASH, rustix::fs::Access::EXEC_OK).is_ok()
}

/// What runs commands: bash, or in an image without it, what it has as `sh`.
#[must_use]
pub fn shell() -> &'static str {
    if has_bash() { BASH } else { "/bin/sh" }
}

/// The layers of the environment.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// The names of those that the session brought.
    of_session: std::collections::BTreeSet<String>,
    directory: PathBuf,
    version: String,
}

#[derive(Default, serde::Deserialize)]
struct ImageFile {
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    version: String,
}

impl Environment {
    /// What every program has, and over it what the image says. Programs start in `directory`.
    #[must_use]
    pub fn new(runtime: Runtime, image: Option<&str>, directory: PathBuf) -> Self {
        let mut variables: BTreeMap<String, String> = [
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/home/sandbox"),
            ("USER", "sandbox"),
            ("LOGNAME", "sandbox"),
            ("SHELL", shell()),
            ("LANG", "C.UTF-8"),
            ("TMPDIR", "/tmp"),
            // What a program wrote before its time was up must not be lost in its own buffer.
            ("PYTHONUNBUFFERED", "1"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        match runtime {
            Runtime::Python => {
                variables.insert("MPLCONFIGDIR".to_owned(), "/tmp/.matplotlib".to_owned());
                variables.insert("IPYTHONDIR".to_owned(), "/tmp/.ipython".to_owned());
            }
            Runtime::Node => {
                variables.insert("NODE_PATH".to_owned(), "/usr/local/lib/node_modules".to_owned());
            }
            Runtime::Shell | Runtime::Container => {}
        }
        if Path::new(AUTHORITY).exists() {
            // Node looks once, when it starts, which is before a session brings its variables.
            variables.insert("NODE_EXTRA_CA_CERTS".to_owned(), AUTHORITY.to_owned());
        }
        // An image is made by the operator; a file of it that cannot be read says nothing, and is no reason to stop.
        let image: ImageFile = image.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        variables.extend(image.env.into_iter().filter(|(name, value)| check(name, value).is_ok()));
        Self { variables, of_session: std::collections::BTreeSet::new(), directory, version: image.version }
    }

    /// The version of what answers code, as the image says it; empty when it does not.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Where programs start.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Adds what a session brings.
    ///
    /// # Errors
    /// `Invalid` when a name or value cannot be in an environment, or all are too long.
    pub fn activate(&mut self, activation: &Activation) -> Result<(), Refusal> {
        check_all(&activation.env)?;
        self.of_session.extend(activation.env.iter().map(|(name, _)| name.clone()));
        self.variables.extend(activation.env.iter().cloned());
        Ok(())
    }

    /// Whether the session brought this one.
    #[must_use]
    pub fn is_of_session(&self, name: &str) -> bool {
        self.of_session.contains(name)
    }

    /// What the session brought.
    #[must_use]
    pub fn given(&self) -> Vec<(String, String)> {
        let own = self.of_session.iter().filter_map(|name| self.variables.get_key_value(name));
        own.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Whether there is a variable of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.variables.contains_key(name)
    }

    /// The variables, with `more` over them.
    #[must_use]
    pub fn with(&self, more: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        let mut variables: BTreeMap<&str, &str> =
            self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        variables.extend(more.iter().copied());
        variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
    }
}

/// Whether these can be in an environment.
///
/// # Errors
/// `Invalid` when one cannot, or all are too long.
pub fn check_all(variables: &[(String, String)]) -> Result<(), Refusal> {
    let bytes: usize = variables.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    if bytes > MAX_BYTES {
        return Err(Refusal::Invalid(format!("the environment is longer than {MAX_BYTES} bytes")));
    }
    variables.iter().try_for_each(|(name, value)| check(name, value))
}

fn check(name: &str, value: &str) -> Result<(), Refusal> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(Refusal::Invalid(format!("no name of an environment variable: {name:?}")));
    }
    if value.contains('\0') {
        return Err(Refusal::Invalid(format!("the environment variable {name} has a NUL in its value")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(environment: &Environment, name: &str) -> Option<String> {
        let all = environment.with(&[("LAST", "1")]);
        all.into_iter().find(|(known, _)| known == name).map(|(_, value)| value.into_string().unwrap())
    }

    #[test]
    fn layers_lie_over_each_other() {
        let image = r#"{"env": {"LANG": "de", "A": "image", "": "bad"}, "other": 1}"#;
        let mut environment = Environment::new(Runtime::Node, Some(image), DIRECTORY.into());
        let env = vec![("A".to_owned(), "session".to_owned())];
        environment.activate(&Activation { env, seed: [0; 32] }).unwrap();
        assert_eq!(value(&environment, "LANG").as_deref(), Some("de"));
        assert_eq!(value(&environment, "A").as_deref(), Some("session"));
        assert_eq!(value(&environment, "HOME").as_deref(), Some("/home/sandbox"));
        assert_eq!(value(&environment, "LAST").as_deref(), Some("1"));
        assert_eq!(value(&environment, ""), None);
    }

    #[test]
    fn what_cannot_be_in_an_environment_is_refused_as_a_whole() {
        let mut environment = Environment::new(Runtime::Shell, Some("not JSON"), DIRECTORY.into());
        for (name, bad) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0"), ("A", &"x".repeat(MAX_BYTES))] {
            let env = vec![("GOOD".to_owned(), "1".to_owned()), (name.to_owned(), bad.to_owned())];
            assert!(environment.activate(&Activation { env, seed: [0; 32] }).is_err(), "{name:?}");
        }
        assert_eq!(value(&environment, "GOOD"), None);
    }
}
