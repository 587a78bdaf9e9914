//! Hosted servers, as an operator writes them: somebody else's MCP servers that run in sandboxes of a pool.

use std::collections::BTreeMap;

use sandpool_image::{Registry, ServerPackage};
use serde::{Deserialize, Serialize};

use crate::pool::{ContainerType, EnvVariable};
use crate::{Fault, HostedServer, fault};

/// The most servers of one pool.
const MOST: usize = 64;

/// The longest name of a server.
const NAME: usize = 40;

/// The longest package with its version, and the longest program.
const WORD: usize = 214;

/// Bytes of all arguments of a server.
const ARGUMENTS: usize = 64 * 1024;

/// The servers of a pool, by name.
pub type Servers = BTreeMap<String, ServerSettings>;

/// One server, which speaks over its standard input and output, or over HTTP in its sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerSettings {
    /// A package of npm with its exact version: `name@1.2.3`.
    #[serde(default)]
    pub npm: Option<String>,
    /// A package of PyPI with its exact version: `name==1.2.3`.
    #[serde(default)]
    pub pypi: Option<String>,
    /// The program: one of the package's, or of the image where there is no package.
    #[serde(default)]
    pub command: Option<String>,
    /// What it is started with.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment variables of its own, over the pool's.
    #[serde(default)]
    pub env: Vec<EnvVariable>,
    /// Where it listens, when it speaks over HTTP.
    #[serde(default)]
    pub http: Option<HttpSettings>,
}

/// Where a server listens in its sandbox: Streamable HTTP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpSettings {
    /// The port.
    pub port: u16,
    /// The path there.
    #[serde(default = "default_path")]
    pub path: String,
}

fn default_path() -> String {
    "/mcp".into()
}

/// Speaks with a server over HTTP, in its sandbox, and with us as the others do. Every image has what runs it.
const OVER_HTTP: &str = include_str!("../../../runtimes/servers/http.py");

/// Checks every value of all of them; `place` is the key that they stand under.
pub(crate) fn check(servers: &Servers, kind: ContainerType, place: &str) -> Result<(), Fault> {
    if servers.len() > MOST {
        return Err(fault(place, format!("there are {} servers, and {MOST} may be", servers.len())));
    }
    for (name, server) in servers {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > NAME || !name.chars().all(plain) || name.starts_with('-') {
            let why = format!("{name:?} is no name of a server: 1 to {NAME} of a-z, 0-9 and -, not - first");
            return Err(fault(place, why));
        }
        server.check(kind, &format!("{place}.{name}"))?;
    }
    Ok(())
}

impl ServerSettings {
    fn check(&self, kind: ContainerType, place: &str) -> Result<(), Fault> {
        let key = |field: &str| format!("{place}.{field}");
        match (&self.npm, &self.pypi) {
            (Some(_), Some(_)) => {
                return Err(fault(place, "has both npm and pypi: one of them says where it comes from"));
            }
            (Some(package), None) => {
                if kind != ContainerType::NodeLTS {
                    let why =
                        format!("needs npm, which the image of {} has not: a pool of NodeLTS has it", kind.word());
                    return Err(fault(key("npm"), why));
                }
                if !is_npm(package) {
                    let why = format!("{package:?} is no package with its exact version, such as name@1.2.3");
                    return Err(fault(key("npm"), why));
                }
            }
            (None, Some(package)) => {
                if !is_pypi(package) {
                    let why = format!("{package:?} is no package with its exact version, such as name==1.2.3");
                    return Err(fault(key("pypi"), why));
                }
            }
            (None, None) if self.command.is_none() => {
                return Err(fault(place, "says neither npm nor pypi nor command: what is the server?"));
            }
            (None, None) => {}
        }
        if let Some(command) = &self.command {
            let of_package = self.npm.is_some() || self.pypi.is_some();
            if command.is_empty()
                || command.len() > WORD
                || command.contains('\0')
                || of_package && command.contains('/')
            {
                return Err(fault(key("command"), format!("{command:?} is no program")));
            }
        }
        if self.args.iter().any(|word| word.contains('\0'))
            || self.args.iter().map(String::len).sum::<usize>() > ARGUMENTS
        {
            return Err(fault(key("args"), format!("has a NUL, or is longer than {ARGUMENTS} bytes in all")));
        }
        if let Some(http) = &self.http {
            if http.port == 0 {
                return Err(fault(key("http.port"), "is 0, must be from 1 to 65535"));
            }
            if !http.path.starts_with('/')
                || http.path.len() > WORD
                || !http.path.bytes().all(|byte| byte.is_ascii_graphic())
            {
                let why = format!("{:?} is no path, such as /mcp", http.path);
                return Err(fault(key("http.path"), why));
            }
        }
        for (at, variable) in self.env.iter().enumerate() {
            variable.check(&key(&format!("env[{at}]")))?;
        }
        Ok(())
    }

    /// What has to be in the image for it.
    pub fn package(&self, name: &str) -> Option<ServerPackage> {
        let (registry, package) = match (&self.npm, &self.pypi) {
            (Some(package), _) => (Registry::Npm, package),
            (None, Some(package)) => (Registry::Pypi, package),
            (None, None) => return None,
        };
        Some(ServerPackage { name: name.to_owned(), registry, package: package.clone(), command: self.command.clone() })
    }

    /// How it is started.
    pub fn to_hosted(&self, name: &str) -> HostedServer {
        let program = match &self.command {
            Some(command) if self.npm.is_none() && self.pypi.is_none() => command.clone(),
            _ => ServerPackage::program(name),
        };
        let env = self.env.iter().map(|variable| (variable.name.clone(), variable.value.clone())).collect();
        let bridge = self.http.as_ref().map(|http| {
            ["python3".to_owned(), "-c".to_owned(), OVER_HTTP.to_owned(), http.port.to_string(), http.path.clone()]
        });
        let own = std::iter::once(program).chain(self.args.iter().cloned());
        HostedServer { argv: bridge.into_iter().flatten().chain(own).collect(), env }
    }
}

/// An exact version, and nothing that installers would take for a range, a tag or an address.
fn is_version(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
        && text.contains('.')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_' | '!'))
        && !text.split('.').any(|part| part.eq_ignore_ascii_case("x"))
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

fn is_npm(package: &str) -> bool {
    let Some((name, version)) = package.rsplit_once('@') else { return false };
    let is_name = match name.strip_prefix('@') {
        Some(scoped) => scoped.split_once('/').is_some_and(|(scope, name)| is_word(scope) && is_word(name)),
        None => is_word(name),
    };
    package.len() <= WORD && is_name && is_version(version)
}

fn is_pypi(package: &str) -> bool {
    let Some((name, version)) = package.split_once("==") else { return false };
    let is_name = match name.split_once('[') {
        Some((name, extras)) => {
            is_word(name) && extras.strip_suffix(']').is_some_and(|extras| extras.split(',').all(is_word))
        }
        None => is_word(name),
    };
    package.len() <= WORD && is_name && is_version(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_has_a_name_and_an_exact_version_and_nothing_else() {
        for good in ["@modelcontextprotocol/server-everything@2026.8.31", "a@1.0.0-rc.1", "a.b@0.1.0+build"] {
            assert!(is_npm(good), "{good}");
        }
        for bad in ["a", "a@latest", "a@^1.0.0", "a@1", "a@1.x", "-g@1.0.0", "@a@1.0.0", "a@file:../x@1.0", "a b@1.0.0"]
        {
            assert!(!is_npm(bad), "{bad}");
        }
        for good in ["mcp-server-time==2026.10.19", "a[b,c]==1.0", "a==1!2.0.post1"] {
            assert!(is_pypi(good), "{good}");
        }
        for bad in ["a", "a>=1.0", "a==1.*", "a==1.0; x", "--index-url==1.0", "a[]==1.0", "a @ http://b==1.0"] {
            assert!(!is_pypi(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_server_is_said() {
        let said = |text: &str, kind| {
            let servers: Servers = serde_norway::from_str(text).unwrap();
            check(&servers, kind, "servers").map_err(|error| error.to_string())
        };
        let node = ContainerType::NodeLTS;
        assert_eq!(said("a: { npm: b@1.0.0 }\nc: { pypi: d==1.0 }\ne: { command: /bin/f }", node), Ok(()));
        for (text, kind, part) in [
            ("A: { npm: b@1.0.0 }", node, "servers: \"A\" is no name"),
            ("a: { npm: b@1.0.0 }", ContainerType::Shell, "servers.a.npm: needs npm"),
            ("a: { npm: b }", node, "servers.a.npm: \"b\""),
            ("a: { pypi: b }", node, "servers.a.pypi: \"b\""),
            ("a: { npm: b@1.0.0, pypi: c==1.0 }", node, "servers.a: has both"),
            ("a: {}", node, "servers.a: says neither"),
            ("a: { npm: b@1.0.0, command: ../x }", node, "servers.a.command: \"../x\""),
            ("a: { command: b, http: { port: 0 } }", node, "servers.a.http.port: is 0"),
            ("a: { command: b, http: { port: 1, path: 'a b' } }", node, "servers.a.http.path: \"a b\""),
            ("a: { command: b, env: [{ name: '' }] }", node, "servers.a.env[0]: \"\""),
        ] {
            let error = said(text, kind).unwrap_err();
            assert!(error.starts_with(part), "{error}");
        }
    }

    #[test]
    fn a_server_is_started_by_its_package_or_by_its_command() {
        let argv = |text: &str| serde_norway::from_str::<ServerSettings>(text).unwrap().to_hosted("one").argv;
        assert_eq!(argv("{ npm: b@1.0.0, command: c, args: [d] }"), ["/opt/servers/one/run", "d"]);
        assert_eq!(argv("{ command: c, args: [d] }"), ["c", "d"]);
        let over_http = argv("{ command: c, args: [d], http: { port: 3001 } }");
        assert_eq!(over_http, ["python3", "-c", OVER_HTTP, "3001", "/mcp", "c", "d"]);
    }
}
