//! Secrets by placeholder (EG6): code in a sandbox has a placeholder, and the value is put in here, on the way to the secret's own hosts
//! and nowhere else.
//!
//! ```text
//! client --TLS, our certificate--> Sandbox::tls -> http: placeholder -> value --TLS, verified--> the secret's host
//!                                                  http: value -> placeholder <-----------------
//! ```
//!
//! TLS is opened for those hosts alone. Our certificate is of an authority of the pool that signs for nothing but those hosts (name
//! constraints, RFC 5280 4.2.1.10); its key is in the proxy's file and memory, and nowhere in a sandbox.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper::header::{self, HeaderMap, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::host::{Host, Target};
use crate::policy::Pattern;

/// The file's name, in the directory of the records.
pub const FILE: &str = "secrets.json";

/// Bytes of a value, at most: what fits into a header.
pub const MAX_VALUE: usize = 8 * 1024;

/// Bytes of a value, at least: a shorter one would be found in what has nothing to do with it.
pub const MIN_VALUE: usize = 8;

/// How long an authority is good for; each start makes a new one.
const AUTHORITY_DAYS: i64 = 3650;

/// How long a certificate for one host is good for, and used.
const LEAF_DAYS: i64 = 7;
const LEAF_USED: Duration = Duration::from_secs(24 * 3600);

/// What a query keeps of a value as it is (RFC 3986, unreserved).
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The proxy's file: each pool's secrets. Readable by the proxy's user alone.
#[derive(Default, Serialize, Deserialize)]
pub struct SecretsFile {
    /// By the pool's name.
    pub pools: BTreeMap<String, PoolFile>,
}

/// One pool's.
#[derive(Serialize, Deserialize)]
pub struct PoolFile {
    /// The key of its authority, as PEM.
    pub key: String,
    /// Certificates that are trusted besides the host's own, as PEM.
    pub trust: Vec<String>,
    /// Its secrets.
    pub secrets: Vec<SecretFile>,
}

/// One secret.
#[derive(Serialize, Deserialize)]
pub struct SecretFile {
    /// Its name: the variable in the sandbox.
    pub name: String,
    /// What the sandbox has instead.
    pub placeholder: String,
    /// What its hosts get.
    pub value: String,
    /// Its hosts: `example.com`, `*.example.com`, each with `:PORT` if it is not 443.
    pub hosts: Vec<String>,
}

/// The certificate of a new authority for these hosts, and its key, both as PEM.
///
/// # Errors
/// A sentence, for hosts that are none.
pub fn authority(hosts: &[String]) -> Result<(String, String), String> {
    let mut names = Vec::new();
    for host in hosts {
        names.push(constraint(host)?);
    }
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let mut params = authority_params();
    params.not_before = days(-1);
    params.not_after = days(AUTHORITY_DAYS);
    params.name_constraints = Some(NameConstraints { permitted_subtrees: names, excluded_subtrees: Vec::new() });
    let certificate = params.self_signed(&key).map_err(|error| error.to_string())?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// What its authority may sign for a host of a secret.
///
/// # Errors
/// A sentence, where it is no name.
fn constraint(host: &str) -> Result<GeneralSubtree, String> {
    check_host(host)?;
    let name = host.split(':').next().unwrap_or(host);
    Ok(GeneralSubtree::DnsName(name.strip_prefix("*.").unwrap_or(name).to_owned()))
}

/// Whether a secret may have this host.
///
/// # Errors
/// A sentence.
pub fn check_host(host: &str) -> Result<(), String> {
    if Pattern::parse(host)?.is_of_names() {
        Ok(())
    } else {
        Err(format!("{host:?}: a secret's host is a name, as its certificate has it, or *. and a name"))
    }
}

fn days(count: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + time::Duration::days(count)
}

/// What the authority's certificate says, and what it signs must repeat: its name.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Sandpool: secrets of this pool");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// All pools' secrets.
#[derive(Debug, Default)]
pub struct Secrets(HashMap<String, Arc<PoolSecrets>>);

impl Secrets {
    /// Reads the proxy's file; where there is none there are no secrets.
    ///
    /// # Errors
    /// A sentence, without what is in the file.
    pub fn read(directory: &Path) -> Result<Self, String> {
        let path = directory.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        // The error's own words could repeat a value.
        let file: SecretsFile = serde_json::from_slice(&text)
            .map_err(|error| format!("{}: line {}, column {}", path.display(), error.line(), error.column()))?;
        Self::new(&file)
    }

    /// Makes ready what is in the file.
    ///
    /// # Errors
    /// A sentence, without any value.
    pub fn new(file: &SecretsFile) -> Result<Self, String> {
        let pools = file.pools.iter().map(|(pool, file)| {
            PoolSecrets::new(file)
                .map(|secrets| (pool.clone(), Arc::new(secrets)))
                .map_err(|why| format!("{pool}: {why}"))
        });
        Ok(Self(pools.collect::<Result<_, _>>()?))
    }

    /// A pool's.
    #[must_use]
    pub fn of(&self, pool: &str) -> Option<Arc<PoolSecrets>> {
        self.0.get(pool).cloned()
    }
}

/// One pool's secrets, and what is needed to speak with their hosts and with who believes to.
pub struct PoolSecrets {
    secrets: Vec<Secret>,
    issuer: Issuer<'static, KeyPair>,
    leaves: Mutex<HashMap<Host, (Instant, Arc<ServerConfig>)>>,
    upstream: Arc<ClientConfig>,
}

struct Secret {
    name: String,
    placeholder: String,
    value: String,
    hosts: Vec<Pattern>,
}

/// Never a value.
impl fmt::Debug for PoolSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.secrets.iter().map(|secret| &secret.name)).finish()
    }
}

impl PoolSecrets {
    fn new(file: &PoolFile) -> Result<Self, String> {
        let key = KeyPair::from_pem(&file.key).map_err(|error| format!("its authority's key: {error}"))?;
        let mut secrets = Vec::new();
        for SecretFile { name, placeholder, value, hosts } in &file.secrets {
            if HeaderValue::from_str(value).is_err() || !(MIN_VALUE..=MAX_VALUE).contains(&value.len()) {
                return Err(format!("the value of {name} is none that a header can carry"));
            }
            let hosts = hosts.iter().map(|host| Pattern::parse(host)).collect::<Result<_, _>>()?;
            let (name, placeholder, value) = (name.clone(), placeholder.clone(), value.clone());
            secrets.push(Secret { name, placeholder, value, hosts });
        }
        Ok(Self {
            secrets,
            issuer: Issuer::new(authority_params(), key),
            leaves: Mutex::default(),
            upstream: Arc::new(upstream(&file.trust)?),
        })
    }

    /// Whether a destination is a host of one of them.
    #[must_use]
    pub fn covers(&self, target: &Target, port: u16) -> bool {
        self.of(target, port).next().is_some()
    }

    fn of(&self, target: &Target, port: u16) -> impl Iterator<Item = &Secret> {
        let is_name = matches!(target, Target::Host(_));
        self.secrets.iter().filter(move |secret| {
            // Without a port, 443 is meant: a value never goes out in the clear.
            is_name && secret.hosts.iter().any(|host| host.allows(target, port))
        })
    }

    /// Speaks TLS with a client that believes to speak with this host.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn acceptor(&self, host: &Host) -> Result<TlsAcceptor, String> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, config)) = leaves.get(host)
            && made.elapsed() < LEAF_USED
        {
            return Ok(Arc::clone(config).into());
        }
        let config = Arc::new(self.leaf(&host.to_string()).map_err(|error| format!("no certificate: {error}"))?);
        // A wildcard covers any number of names.
        if leaves.len() >= 1024 {
            leaves.clear();
        }
        leaves.insert(host.clone(), (Instant::now(), Arc::clone(&config)));
        Ok(config.into())
    }

    fn leaf(&self, host: &str) -> Result<ServerConfig, Box<dyn std::error::Error>> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, "Sandpool");
        params.not_before = days(-1);
        params.not_after = days(LEAF_DAYS);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let private = PrivateKeyDer::try_from(key.serialize_der())?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Speaks TLS with the host itself, whose certificate must be good.
    pub(crate) fn connector(&self) -> TlsConnector {
        Arc::clone(&self.upstream).into()
    }

    /// Puts values in for placeholders, in a request to this destination: in headers, in what `Authorization: Basic` carries, and in
    /// the path and query. Answers whose values they are.
    ///
    /// # Errors
    /// A sentence, when what comes out is none.
    pub(crate) fn fill(
        &self,
        target: &Target,
        port: u16,
        headers: &mut HeaderMap,
        uri: &mut Uri,
    ) -> Result<Vec<&str>, String> {
        let mut used = Vec::new();
        for secret in self.of(target, port) {
            let Secret { name, placeholder, value, .. } = secret;
            let mut is_used = false;
            for (header, given) in headers.iter_mut() {
                let Ok(text) = given.to_str() else { continue };
                let filled = if text.contains(placeholder) {
                    Some(text.replace(placeholder, value))
                } else {
                    basic(text).filter(|_| *header == header::AUTHORIZATION).and_then(|text| {
                        let filled = text.replace(placeholder, value);
                        (filled != text).then(|| format!("Basic {}", STANDARD.encode(filled)))
                    })
                };
                if let Some(filled) = filled {
                    *given = HeaderValue::from_str(&filled).map_err(|_| "the header would be none".to_owned())?;
                    given.set_sensitive(true);
                    is_used = true;
                }
            }
            let path = uri.to_string();
            if path.contains(placeholder) {
                let filled = path.replace(placeholder, &utf8_percent_encode(value, IN_QUERY).to_string());
                *uri = filled.parse().map_err(|_| "the address would be none".to_owned())?;
                is_used = true;
            }
            if is_used {
                used.push(name.as_str());
            }
        }
        Ok(used)
    }

    /// Puts placeholders in for values, in an answer's headers: hosts may repeat what they were sent.
    pub(crate) fn hide(&self, headers: &mut HeaderMap) {
        for secret in &self.secrets {
            for (_, given) in headers.iter_mut() {
                let Ok(text) = given.to_str() else { continue };
                if text.contains(&secret.value) {
                    let hidden = HeaderValue::from_str(&text.replace(&secret.value, &secret.placeholder));
                    *given = hidden.unwrap_or_else(|_| HeaderValue::from_static(""));
                }
            }
        }
    }

    /// The same for a piece of an answer's body. `rest` is what of the pieces before could be the beginning of a value; what comes
    /// back may go on, and `rest` is kept for the next piece, or for the end (`is_last`).
    pub(crate) fn hide_piece(&self, rest: &mut Vec<u8>, piece: &[u8], is_last: bool) -> Vec<u8> {
        rest.extend_from_slice(piece);
        let mut out = Vec::with_capacity(rest.len());
        let mut at = 0;
        while at < rest.len() {
            let left = &rest[at..];
            if let Some(secret) = self.secrets.iter().find(|secret| left.starts_with(secret.value.as_bytes())) {
                out.extend_from_slice(secret.placeholder.as_bytes());
                at += secret.value.len();
            } else if !is_last && self.secrets.iter().any(|secret| secret.value.as_bytes().starts_with(left)) {
                break;
            } else {
                // To the next byte at which a value could begin.
                let skip = left[1..].iter().position(|byte| self.begins(*byte)).map_or(left.len(), |next| next + 1);
                out.extend_from_slice(&left[..skip]);
                at += skip;
            }
        }
        rest.drain(..at);
        out
    }

    fn begins(&self, byte: u8) -> bool {
        self.secrets.iter().any(|secret| secret.value.as_bytes().first() == Some(&byte))
    }
}

/// What `Basic` credentials carry, where that is text.
fn basic(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()
}

/// The host's own trust, and what the operator adds to it.
fn upstream(trust: &[String]) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    // Those that cannot be read are trusted by nobody.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for pem in trust {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| format!("what it trusts: {error}"))?;
            roots.add(certificate).map_err(|error| format!("what it trusts: {error}"))?;
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// A host as TLS names it.
pub(crate) fn server_name(host: &Host) -> Result<ServerName<'static>, String> {
    ServerName::try_from(host.to_string()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> PoolSecrets {
        let secret = |name: &str, value: &str, hosts: &[&str]| SecretFile {
            name: name.to_owned(),
            placeholder: format!("placeholder-{name}"),
            value: value.to_owned(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        };
        let hosts = ["api.example".to_owned(), "*.more.example:8443".to_owned()];
        let (_, key) = authority(&hosts).unwrap();
        let list = vec![
            secret("ONE", "one-is-abcabcabd", &["api.example"]),
            secret("TWO", "two/& ä".replace('ä', "a+").as_str(), &["*.more.example:8443"]),
        ];
        PoolSecrets::new(&PoolFile { key, trust: Vec::new(), secrets: list }).unwrap()
    }

    fn filled(host: &str, port: u16, header: &str, path: &str) -> (String, String, Vec<String>) {
        let secrets = secrets();
        let mut headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(header).unwrap())]);
        let mut uri: Uri = path.parse().unwrap();
        let target = Target::parse(host).unwrap();
        let used = secrets.fill(&target, port, &mut headers, &mut uri).unwrap();
        let used = used.into_iter().map(str::to_owned).collect();
        (headers[header::AUTHORIZATION].to_str().unwrap().to_owned(), uri.to_string(), used)
    }

    #[test]
    fn a_value_goes_to_its_own_hosts_and_nowhere_else() {
        let (header, path, used) = filled("api.example", 443, "Bearer placeholder-ONE", "/a?key=placeholder-ONE&b=1");
        assert_eq!((header.as_str(), path.as_str()), ("Bearer one-is-abcabcabd", "/a?key=one-is-abcabcabd&b=1"));
        assert_eq!(used, ["ONE"]);
        for (host, port) in
            [("other.example", 443), ("x.api.example", 443), ("api.example", 8443), ("a.more.example", 8443)]
        {
            let (header, path, used) = filled(host, port, "Bearer placeholder-ONE", "/?placeholder-ONE");
            assert_eq!(
                (header.as_str(), path.as_str()),
                ("Bearer placeholder-ONE", "/?placeholder-ONE"),
                "{host}:{port}"
            );
            assert!(used.is_empty());
        }
    }

    #[test]
    fn a_value_is_put_into_basic_credentials_and_written_for_a_query() {
        let given = format!("basic {}", STANDARD.encode("me:placeholder-TWO"));
        let (header, path, used) = filled("a.more.example", 8443, &given, "/?k=placeholder-TWO");
        assert_eq!(basic(&header).unwrap(), "me:two/& a+");
        assert_eq!((path.as_str(), used.len()), ("/?k=two%2F%26%20a%2B", 1));
    }

    #[test]
    fn what_comes_back_is_hidden_wherever_it_is_cut() {
        let secrets = secrets();
        let text = b"x one-is-abcabcabcabd one-is-abcabcabd, one-is-abcone-is-abcabcabd one-is-abcabcab".as_slice();
        for cut in 0..text.len() {
            for second in cut..text.len() {
                let mut rest = Vec::new();
                let mut out = secrets.hide_piece(&mut rest, &text[..cut], false);
                out.extend(secrets.hide_piece(&mut rest, &text[cut..second], false));
                out.extend(secrets.hide_piece(&mut rest, &text[second..], false));
                out.extend(secrets.hide_piece(&mut rest, b"", true));
                let expected = "x one-is-abcabcabcabd placeholder-ONE, one-is-abcplaceholder-ONE one-is-abcabcab";
                assert_eq!(String::from_utf8(out).unwrap(), expected, "cut at {cut} and {second}");
            }
        }
        let mut headers = HeaderMap::from_iter([(header::LOCATION, HeaderValue::from_static("/?one-is-abcabcabd"))]);
        secrets.hide(&mut headers);
        assert_eq!(headers[header::LOCATION], "/?placeholder-ONE");
    }

    #[test]
    fn values_are_in_no_words_about_them() {
        let said = format!("{:?}", secrets());
        assert!(said.contains("ONE") && !said.contains("abcabd"), "{said}");
        let file = PoolFile {
            key: authority(&["a.example".to_owned()]).unwrap().1,
            trust: Vec::new(),
            secrets: vec![SecretFile {
                name: "BAD".to_owned(),
                placeholder: "p".to_owned(),
                value: "line\nline-secret".to_owned(),
                hosts: Vec::new(),
            }],
        };
        let error = PoolSecrets::new(&file).unwrap_err();
        assert!(error.contains("BAD") && !error.contains("line-secret"), "{error}");
    }

    #[test]
    fn hosts_are_names() {
        for host in ["api.example", "*.example.com", "api.example:8443"] {
            check_host(host).unwrap();
        }
        for host in ["*", "10.0.0.1", "10.0.0.0/8", "https://api.example", "a b"] {
            check_host(host).unwrap_err();
        }
    }
}
