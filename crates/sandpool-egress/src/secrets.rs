//! Secrets by placeholder (EG6): code in a sandbox has a placeholder, and the value is put in here, on the way to the secret's own hosts
//! and nowhere else.
//!
//! ```text
//! client --TLS, our certificate--> Sandbox::tls -> http: placeholder -> value --TLS, verified--> the secret's host
//!                                                  http: value -> placeholder <-----------------
//! ```
//!
//! TLS is opened for those hosts alone. Our certificate is of an authority that is one sandbox's own ([`Authorities`]): its key is derived
//! from a seed of the pool and what the launcher called the sandbox, in the launcher (which puts the certificate into the sandbox) and here
//! (which signs with it), and is nowhere in a sandbox. Where a pool's own secrets are all there can be, it may sign for nothing but their
//! hosts (name constraints, RFC 5280 4.2.1.10).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::hkdf;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper::header::{self, HeaderMap, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256,
};
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sandpool_wire::egress::{MAX_VALUE, MIN_VALUE, SecretValue};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::host::{Host, Target};
use crate::policy::Pattern;

/// The file's name, in the directory of the records.
pub const FILE: &str = "secrets.json";

/// How long an authority is good for; each sandbox has a new one.
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
    /// What the keys of its sandboxes' authorities are derived from: 32 bytes, as hexadecimal digits.
    pub seed: String,
    /// Sessions may bring secrets of their own, for any host.
    pub any_host: bool,
    /// Certificates that are trusted besides the host's own, as PEM.
    pub trust: Vec<String>,
    /// Its secrets.
    pub secrets: Vec<SecretValue>,
}

/// What a sandbox's authority is told by: the launcher's name for it.
pub type Nonce = [u8; 16];

/// What signs for the sandboxes of one pool.
pub struct Authorities {
    seed: [u8; 32],
    /// What it may sign for; `None` for all names.
    names: Option<Vec<GeneralSubtree>>,
}

/// Never the seed.
impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorities").finish_non_exhaustive()
    }
}

impl Authorities {
    /// A pool's.
    ///
    /// # Errors
    /// A sentence, for a seed or hosts that are none.
    pub fn of(pool: &PoolFile) -> Result<Self, String> {
        let mut seed = [0; 32];
        hex::decode_to_slice(&pool.seed, &mut seed).map_err(|error| format!("the seed of its authorities: {error}"))?;
        let names = match pool.any_host {
            true => None,
            false => {
                let hosts = pool.secrets.iter().flat_map(|secret| &secret.hosts);
                Some(hosts.map(|host| constraint(host)).collect::<Result<_, _>>()?)
            }
        };
        Ok(Self { seed, names })
    }

    /// The certificate of a sandbox's authority, as PEM.
    ///
    /// # Errors
    /// A sentence.
    pub fn certificate(&self, sandbox: &Nonce) -> Result<String, String> {
        let mut params = authority_params(sandbox);
        params.not_before = days(-1);
        params.not_after = days(AUTHORITY_DAYS);
        params.name_constraints = self
            .names
            .clone()
            .map(|permitted_subtrees| NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
        let certificate = params.self_signed(&self.key(sandbox)?).map_err(|error| error.to_string())?;
        Ok(certificate.pem())
    }

    /// What signs certificates for a sandbox.
    fn issuer(&self, sandbox: &Nonce) -> Result<Issuer<'static, KeyPair>, String> {
        Ok(Issuer::new(authority_params(sandbox), self.key(sandbox)?))
    }

    fn key(&self, sandbox: &Nonce) -> Result<KeyPair, String> {
        let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, b"sandpool: the authority of a sandbox").extract(&self.seed);
        // A number that is not below the curve's order, one in 2^32, is none: then the next.
        let mut error = String::new();
        for attempt in 0..8_u8 {
            let mut der = P256_KEY.to_vec();
            der.resize(P256_KEY.len() + 32, 0);
            let about = [sandbox.as_slice(), &[attempt]];
            let filled = derived.expand(&about, hkdf::HKDF_SHA256);
            filled
                .and_then(|okm| okm.fill(&mut der[P256_KEY.len()..]))
                .map_err(|_| "no key can be derived".to_owned())?;
            match KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), &PKCS_ECDSA_P256_SHA256) {
                Ok(key) => return Ok(key),
                Err(why) => error = why.to_string(),
            }
        }
        Err(error)
    }
}

/// What stands before the 32 bytes of a key of the curve P-256, as PKCS #8 (RFC 5208) around RFC 5915 without its optional fields.
const P256_KEY: [u8; 35] = [
    0x30, 0x41, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x27, 0x30, 0x25, 0x02, 0x01, 0x01, 0x04, 0x20,
];

/// What an authority may sign for a host of a secret.
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

/// What an authority's certificate says, and what it signs must repeat: its name.
fn authority_params(sandbox: &Nonce) -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Sandpool: secrets of sandbox {}", hex::encode(sandbox)));
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

    /// A sandbox's: its pool's, and those of its session.
    ///
    /// # Errors
    /// A sentence, without any value: for a session's secrets that cannot be used.
    pub fn of(&self, pool: &str, sandbox: &Nonce, own: &[SecretValue]) -> Result<Option<Arc<SandboxSecrets>>, String> {
        let Some(pool) = self.0.get(pool) else {
            return if own.is_empty() {
                Ok(None)
            } else {
                Err("sessions of this pool have no secrets of their own".to_owned())
            };
        };
        if !own.is_empty() && !pool.any_host {
            return Err("sessions of this pool have no secrets of their own".to_owned());
        }
        let mut secrets = pool.secrets.clone();
        for secret in own {
            secrets.push(Arc::new(Secret::parse(secret)?));
        }
        let issuer = pool.authorities.issuer(sandbox)?;
        let upstream = Arc::clone(&pool.upstream);
        Ok(Some(Arc::new(SandboxSecrets { secrets, issuer, leaves: Mutex::default(), upstream })))
    }
}

/// One pool's secrets, and what is needed to speak with their hosts.
struct PoolSecrets {
    secrets: Vec<Arc<Secret>>,
    any_host: bool,
    authorities: Authorities,
    upstream: Arc<ClientConfig>,
}

impl PoolSecrets {
    fn new(file: &PoolFile) -> Result<Self, String> {
        let secrets = file.secrets.iter().map(|secret| Secret::parse(secret).map(Arc::new));
        Ok(Self {
            secrets: secrets.collect::<Result<_, _>>()?,
            any_host: file.any_host,
            authorities: Authorities::of(file)?,
            upstream: Arc::new(upstream(&file.trust)?),
        })
    }
}

/// Names alone.
impl fmt::Debug for PoolSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.secrets.iter().map(|secret| &secret.name)).finish()
    }
}

struct Secret {
    name: String,
    placeholder: String,
    value: String,
    hosts: Vec<Pattern>,
}

impl Secret {
    fn parse(secret: &SecretValue) -> Result<Self, String> {
        let SecretValue { name, placeholder, value, hosts } = secret;
        if HeaderValue::from_str(value).is_err() || !(MIN_VALUE..=MAX_VALUE).contains(&value.len()) {
            return Err(format!("the value of {name} is none that a header can carry"));
        }
        if placeholder.len() < MIN_VALUE {
            return Err(format!("the placeholder of {name} is too short"));
        }
        let of_names = |host: &String| check_host(host).and_then(|()| Pattern::parse(host));
        let hosts = hosts.iter().map(of_names).collect::<Result<_, _>>().map_err(|why| format!("{name}: {why}"))?;
        let (name, placeholder, value) = (name.clone(), placeholder.clone(), value.clone());
        Ok(Self { name, placeholder, value, hosts })
    }
}

/// One sandbox's secrets, and what is needed to speak with their hosts and with who believes to.
pub struct SandboxSecrets {
    secrets: Vec<Arc<Secret>>,
    issuer: Issuer<'static, KeyPair>,
    leaves: Mutex<HashMap<Host, (Instant, Arc<ServerConfig>)>>,
    upstream: Arc<ClientConfig>,
}

/// Never a value.
impl fmt::Debug for SandboxSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.secrets.iter().map(|secret| &secret.name)).finish()
    }
}

impl SandboxSecrets {
    /// Whether a destination is a host of one of them.
    #[must_use]
    pub fn covers(&self, target: &Target, port: u16) -> bool {
        self.of(target, port).next().is_some()
    }

    fn of(&self, target: &Target, port: u16) -> impl Iterator<Item = &Arc<Secret>> {
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
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
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
            let Secret { name, placeholder, value, .. } = &**secret;
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
    let config = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
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

    fn secret(name: &str, value: &str, hosts: &[&str]) -> SecretValue {
        SecretValue {
            name: name.to_owned(),
            placeholder: format!("placeholder-{name}"),
            value: value.to_owned(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        }
    }

    fn file(secrets: Vec<SecretValue>, any_host: bool) -> SecretsFile {
        let pool = PoolFile { seed: "5a".repeat(32), any_host, trust: Vec::new(), secrets };
        SecretsFile { pools: BTreeMap::from([("pool".to_owned(), pool)]) }
    }

    fn secrets() -> Arc<SandboxSecrets> {
        let list = vec![
            secret("ONE", "one-is-abcabcabd", &["api.example"]),
            secret("TWO", "two/& ä".replace('ä', "a+").as_str(), &["*.more.example:8443"]),
        ];
        Secrets::new(&file(list, false)).unwrap().of("pool", &[1; 16], &[]).unwrap().unwrap()
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
        let bad = secret("BAD", "line\nline-secret", &["a.example"]);
        let error = Secrets::new(&file(vec![bad.clone()], false)).unwrap_err();
        assert!(error.contains("BAD") && !error.contains("line-secret"), "{error}");
        let said = format!("{bad:?}");
        assert!(said.contains("BAD") && !said.contains("line-secret"), "{said}");
    }

    #[test]
    fn each_sandbox_has_an_authority_of_its_own_that_is_the_same_wherever_it_is_made() {
        let all = file(vec![secret("ONE", "one-is-abcabcabd", &["api.example"])], false);
        let (one, again) = (Authorities::of(&all.pools["pool"]).unwrap(), Authorities::of(&all.pools["pool"]).unwrap());
        let key = |authorities: &Authorities, sandbox: u8| authorities.key(&[sandbox; 16]).unwrap().serialize_der();
        assert_eq!(key(&one, 1), key(&again, 1));
        assert_ne!(key(&one, 1), key(&one, 2));
        assert_ne!(one.certificate(&[1; 16]).unwrap(), one.certificate(&[2; 16]).unwrap());
    }

    #[test]
    fn a_session_has_secrets_of_its_own_where_its_pool_lets_it() {
        let own = [secret("MINE", "mine-is-secret", &["mine.example"])];
        for (pools, refused) in
            [(file(Vec::new(), false), true), (SecretsFile::default(), true), (file(Vec::new(), true), false)]
        {
            let secrets = Secrets::new(&pools).unwrap();
            assert_eq!(secrets.of("pool", &[1; 16], &own).is_err(), refused);
            secrets.of("pool", &[1; 16], &[]).unwrap();
        }
        let secrets = Secrets::new(&file(Vec::new(), true)).unwrap();
        let (mine, other) = (secrets.of("pool", &[1; 16], &own), secrets.of("pool", &[2; 16], &[]));
        let target = Target::parse("mine.example").unwrap();
        assert!(mine.unwrap().unwrap().covers(&target, 443) && !other.unwrap().unwrap().covers(&target, 443));
        let error = secrets.of("pool", &[1; 16], &[secret("BAD", "bad-is-secret", &["10.0.0.1"])]).unwrap_err();
        assert!(error.contains("BAD") && !error.contains("bad-is-secret"), "{error}");
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
