//! The certificate that the TLS listener shows: the operator's own, or one of a local authority that we make.
//!
//! ```text
//! <directory>/ca.pem         the authority: what clients must trust
//! <directory>/ca.key         its key, readable by the server only
//! <directory>/server.pem     the certificate and its key, made anew before it expires
//! ```

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;

/// How long the authority lives.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// How long a certificate of ours lives. Clients of some systems refuse more than 398 days.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(397 * 24 * 3_600);

/// A certificate this old is replaced at the next start.
const CERTIFICATE_OLD: Duration = Duration::from_secs(300 * 24 * 3_600);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The PEM text is not what it should be.
    #[error("the {what} is not usable: {why}")]
    Unusable {
        /// The certificate or the key.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A file of the local authority cannot be read or written.
    #[error("{}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

impl TlsError {
    fn unusable(what: &'static str, error: impl std::fmt::Display) -> Self {
        Self::Unusable { what, why: error.to_string() }
    }
}

/// TLS with the operator's certificate chain and key, both PEM.
///
/// # Errors
/// When they cannot be read, or do not belong together.
pub fn given(certificate: &[u8], key: &[u8]) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::unusable("certificate", error))?;
    if chain.is_empty() {
        return Err(TlsError::unusable("certificate", "it holds no PEM section CERTIFICATE"));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::unusable("certificate's key", error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::unusable("TLS library", error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| TlsError::unusable("certificate", error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// TLS with a certificate for this machine's own addresses, signed by a local authority. Both are made when they are
/// not there.
///
/// # Errors
/// When the directory cannot be read or written.
pub fn local(directory: &Path) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let pem = match fresh(&directory.join("server.pem")) {
        Some(pem) => pem,
        None => make(directory)?,
    };
    given(pem.as_bytes(), pem.as_bytes())
}

/// The certificate, while it is young.
fn fresh(file: &Path) -> Option<String> {
    let modified = fs::metadata(file).and_then(|found| found.modified()).ok()?;
    let age = SystemTime::now().duration_since(modified).unwrap_or_default();
    if age < CERTIFICATE_OLD { fs::read_to_string(file).ok() } else { None }
}

fn make(directory: &Path) -> Result<String, TlsError> {
    let (ca_file, key_file) = (directory.join("ca.pem"), directory.join("ca.key"));
    let key = match fs::read_to_string(&key_file) {
        Ok(key) if ca_file.exists() => key,
        _ => {
            let (authority, key) = make_authority()?;
            write(&key_file, &key, 0o600)?;
            write(&ca_file, &authority, 0o644)?;
            key
        }
    };
    let key = KeyPair::from_pem(&key).map_err(|error| TlsError::unusable("authority's key", error))?;
    // What a signature needs of the authority is its name and its key.
    let issuer = Issuer::new(authority_params(), key);
    let own = KeyPair::generate().map_err(|error| TlsError::unusable("new key", error))?;
    let mut params = CertificateParams::new(vec!["localhost".to_owned(), host_name()])
        .map_err(|error| TlsError::unusable("host name", error))?;
    params.subject_alt_names.extend([SanType::IpAddress([127, 0, 0, 1].into()), {
        SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into())
    }]);
    params.distinguished_name = named("Sandpool");
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    last(&mut params, CERTIFICATE_LIFE);
    let certificate = params.signed_by(&own, &issuer).map_err(|error| TlsError::unusable("certificate", error))?;
    let pem = format!("{}{}", certificate.pem(), own.serialize_pem());
    write(&directory.join("server.pem"), &pem, 0o600)?;
    Ok(pem)
}

fn make_authority() -> Result<(String, String), TlsError> {
    let key = KeyPair::generate().map_err(|error| TlsError::unusable("new key", error))?;
    let mut params = authority_params();
    last(&mut params, AUTHORITY_LIFE);
    let authority = params.self_signed(&key).map_err(|error| TlsError::unusable("authority", error))?;
    Ok((authority.pem(), key.serialize_pem()))
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Sandpool local authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// From a day ago, for clocks that go slow.
fn last(params: &mut CertificateParams, life: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::from_secs(24 * 3_600);
    params.not_after = now + life - Duration::from_secs(24 * 3_600);
}

fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
    if plain { name.to_owned() } else { "localhost".to_owned() }
}

fn write(file: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let failed = |source| TlsError::File { path: file.to_owned(), source };
    let new = file.with_extension(format!("{}.new", std::process::id()));
    let mut options = fs::OpenOptions::new();
    let mut out = options.write(true).create(true).truncate(true).mode(mode).open(&new).map_err(failed)?;
    out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(failed)?;
    fs::rename(new, file).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_client_that_trusts_the_authority_gets_through_and_no_other() {
        let directory = std::env::temp_dir().join(format!("sandpool-tls-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let config = local(&directory).unwrap();
        let first = fs::read_to_string(directory.join("ca.pem")).unwrap();
        local(&directory).unwrap();
        assert_eq!(fs::read_to_string(directory.join("ca.pem")).unwrap(), first, "the authority stays");
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        let shake = async |roots: rustls::RootCertStore, name: &'static str| {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let client = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let (here, there) = tokio::io::duplex(1 << 16);
            let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
            let (served, connected) =
                tokio::join!(acceptor.accept(here), connector.connect(name.try_into().unwrap(), there));
            drop(served);
            connected.is_ok()
        };
        let trusting = || {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(first.as_bytes()).unwrap()).unwrap();
            roots
        };
        assert!(shake(trusting(), "localhost").await);
        assert!(shake(trusting(), "127.0.0.1").await);
        assert!(!shake(trusting(), "pools.example").await);
        assert!(!shake(rustls::RootCertStore::empty(), "localhost").await);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_is_no_certificate_is_told() {
        assert!(matches!(given(b"nothing", b"nothing"), Err(TlsError::Unusable { what: "certificate", .. })));
    }
}
