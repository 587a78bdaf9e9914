//! Registries: a manifest by its tag or digest, and its parts, each verified, as far as they are not here.

use std::path::Path;

use futures::StreamExt;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
    OciDescriptor,
};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use serde::Deserialize;

use crate::blobs::Blobs;
use crate::manifest::{self, Descriptor, Found, MAX_DOCUMENT};
use crate::signature::{self, Key};
use crate::{Bundle, OciError};

/// Manifests and indexes, as registries call them.
const DOCUMENTS: [&str; 4] =
    [OCI_IMAGE_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE];

/// Attempts to get a blob, each from where the last one stopped.
const ATTEMPTS: u32 = 5;

/// Who asks.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Anybody.
    #[default]
    None,
    /// A user with a password, or a token as such.
    Basic(String, String),
}

/// Never the password.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Basic(user, _) => f.debug_tuple("Basic").field(user).finish_non_exhaustive(),
        }
    }
}

/// How a registry is spoken with.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Who asks.
    pub credentials: Credentials,
    /// Without TLS. A registry on this machine's loopback is spoken with so anyway.
    pub plain_http: bool,
    /// A certificate (PEM) that is trusted besides the host's own.
    pub authority: Option<Vec<u8>>,
    /// Who must have signed the image.
    pub key: Option<Key>,
}

/// Hears how it goes.
pub trait Progress {
    /// So many bytes are to come, in so many parts.
    fn total(&self, bytes: u64, parts: usize);
    /// So many more are here.
    fn came(&self, bytes: u64);
}

/// What a reference says, with what it leaves out.
///
/// # Errors
/// `Reference`.
pub fn parse(reference: &str) -> Result<Reference, OciError> {
    reference.parse().map_err(|error| OciError::Reference(reference.to_owned(), format!("{error}")))
}

/// Whether a registry is on this machine's loopback.
fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// Fetches an image's manifest and what of its parts is not here, at most `most` bytes of each.
///
/// # Errors
/// [`OciError`]. What has come stays, and the next attempt goes on from there.
pub async fn pull(
    reference: &str,
    access: &Access,
    blobs: &Blobs,
    most: u64,
    progress: &dyn Progress,
) -> Result<Bundle, OciError> {
    let parsed = parse(reference)?;
    let registry = parsed.resolve_registry().to_owned();
    let failed =
        |error: &dyn std::fmt::Display| OciError::Registry { registry: registry.clone(), why: error.to_string() };
    let protocol =
        if access.plain_http || is_loopback(&registry) { ClientProtocol::Http } else { ClientProtocol::Https };
    let authority =
        access.authority.iter().map(|data| Certificate { encoding: CertificateEncoding::Pem, data: data.clone() });
    let config = ClientConfig { protocol, extra_root_certificates: authority.collect(), ..ClientConfig::default() };
    let client = Client::try_from(config).map_err(|error| failed(&error))?;
    let auth = match &access.credentials {
        Credentials::None => RegistryAuth::Anonymous,
        Credentials::Basic(user, password) => RegistryAuth::Basic(user.clone(), password.clone()),
    };
    client.auth(&parsed, &auth, RegistryOperation::Pull).await.map_err(|error| failed(&error))?;
    let mut asked = parsed.clone();
    let (mut chosen, mut depth) = (None, 0);
    // The digest that was asked for, and those that led from it to the manifest: what is signed is any of them.
    let mut digests = Vec::new();
    while chosen.is_none() {
        let (document, digest) =
            client.pull_manifest_raw(&asked, &auth, &DOCUMENTS).await.map_err(|error| failed(&error))?;
        if document.len() as u64 > MAX_DOCUMENT {
            return Err(OciError::TooLarge(format!("its manifest has {} bytes", document.len())));
        }
        // By a digest or by a tag: it is what its digest says.
        let mut coming = blobs.resume(&digest)?;
        coming.clear()?;
        coming.add(&document)?;
        coming.finish()?;
        digests.push(digest.clone());
        match manifest::look(reference, &document)? {
            Found::Parts { config, layers } => chosen = Some((digest, config, layers)),
            Found::Other(other) if depth < 4 => {
                let (registry, repository) = (parsed.registry().to_owned(), parsed.repository().to_owned());
                asked = Reference::with_digest(registry, repository, other);
                depth += 1;
            }
            Found::Other(_) => return Err(OciError::Malformed("it has indexes in indexes".to_owned())),
        }
    }
    let Some((digest, config, layers)) = chosen else { return Err(failed(&"no manifest")) };
    if let Some(key) = &access.key {
        signed(&client, &parsed, &auth, key, &digests, blobs).await?;
    }
    let parts: Vec<&Descriptor> = [&config].into_iter().chain(&layers).collect();
    for part in &parts {
        if part.size > most {
            return Err(OciError::TooLarge(format!(
                "{} has {} bytes, and {most} are the most",
                part.digest, part.size
            )));
        }
    }
    progress.total(parts.iter().map(|part| part.size).sum(), parts.len());
    for part in parts {
        if blobs.has(&part.digest)? {
            progress.came(part.size);
            continue;
        }
        fetch(&client, &parsed, part, blobs, progress).await.map_err(|error| match error {
            Fetching::Ours(error) => error,
            Fetching::Theirs(why) => failed(&why),
        })?;
    }
    let bundle = manifest::bundle(blobs, reference, digest, &config, &layers)?;
    Ok(Bundle { signed_by: access.key.as_ref().map(|key| key.id().to_owned()), ..bundle })
}

/// Bytes of a signed statement, at most.
const MAX_STATEMENT: u64 = 64 << 10;

/// Signatures of one image that are looked at.
const MAX_SIGNATURES: usize = 64;

/// Sees that the key has signed one of these digests.
async fn signed(
    client: &Client,
    image: &Reference,
    auth: &RegistryAuth,
    key: &Key,
    digests: &[String],
    blobs: &Blobs,
) -> Result<(), OciError> {
    let mut why = "there is no signature".to_owned();
    for digest in digests {
        let (registry, repository) = (image.registry().to_owned(), image.repository().to_owned());
        let beside = Reference::with_tag(registry, repository, signature::tag(digest));
        let Ok((document, _)) = client.pull_manifest_raw(&beside, auth, &DOCUMENTS).await else { continue };
        let Ok(Found::Parts { layers, .. }) = manifest::look("its signature", &document) else { continue };
        for layer in layers.iter().take(MAX_SIGNATURES).filter(|layer| layer.size <= MAX_STATEMENT) {
            let Some(given) = layer.annotations.get(signature::SIGNATURE) else { continue };
            if !blobs.has(&layer.digest)? && fetch(client, image, layer, blobs, &Silent).await.is_err() {
                continue;
            }
            if key.has_signed(digest, &blobs.read_small(&layer.digest, MAX_STATEMENT)?, given) {
                return Ok(());
            }
            "it has signatures of others, or of another image".clone_into(&mut why);
        }
    }
    Err(OciError::Unsigned { reference: image.to_string(), why })
}

/// Says nothing.
struct Silent;

impl Progress for Silent {
    fn total(&self, _: u64, _: usize) {}

    fn came(&self, _: u64) {}
}

/// What went wrong, and where.
enum Fetching {
    Ours(OciError),
    Theirs(String),
}

/// Fetches one part, from where it stopped.
async fn fetch(
    client: &Client,
    image: &Reference,
    part: &Descriptor,
    blobs: &Blobs,
    progress: &dyn Progress,
) -> Result<(), Fetching> {
    let wanted = OciDescriptor {
        media_type: part.media_type.clone(),
        digest: part.digest.clone(),
        size: i64::try_from(part.size).unwrap_or(i64::MAX),
        ..OciDescriptor::default()
    };
    let mut coming = blobs.resume(&part.digest).map_err(Fetching::Ours)?;
    if coming.length() > part.size {
        coming.clear().map_err(Fetching::Ours)?;
    }
    progress.came(coming.length());
    let mut why = String::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(200 << attempt)).await;
        }
        let rest = part.size - coming.length();
        if rest == 0 {
            break;
        }
        let stream = if coming.length() == 0 {
            client.pull_blob_stream(image, &wanted).await.map(|stream| stream.stream)
        } else {
            use oci_client::client::BlobResponse;
            match client.pull_blob_stream_partial(image, &wanted, coming.length(), Some(rest)).await {
                Ok(BlobResponse::Partial(stream)) => Ok(stream.stream),
                // It knows no parts: all of it comes anew.
                Ok(BlobResponse::Full(stream)) => {
                    coming.clear().map_err(Fetching::Ours)?;
                    Ok(stream.stream)
                }
                Err(error) => Err(error),
            }
        };
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                why = error.to_string();
                continue;
            }
        };
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(bytes) if coming.length() + bytes.len() as u64 > part.size => {
                    return Err(Fetching::Theirs(format!("{} is longer than it is said to be", part.digest)));
                }
                Ok(bytes) => {
                    coming.add(&bytes).map_err(Fetching::Ours)?;
                    progress.came(bytes.len() as u64);
                }
                Err(error) => {
                    why = error.to_string();
                    break;
                }
            }
        }
        if coming.length() == part.size {
            break;
        }
    }
    if coming.length() != part.size {
        let why = if why.is_empty() { "it broke off".to_owned() } else { why };
        return Err(Fetching::Theirs(format!("{} did not come in {ATTEMPTS} attempts: {why}", part.digest)));
    }
    coming.finish().map_err(Fetching::Ours)
}

/// What Docker's file of credentials has for a registry. Programs that it names as helpers are not run.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DockerConfig {
    auths: std::collections::BTreeMap<String, DockerAuth>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    auth: Option<String>,
}

/// The credentials for a registry in a file as `docker login` and `podman login` write it; none where the file has none.
///
/// # Errors
/// `Malformed` for a file that is none.
pub fn credentials_from(file: &Path, registry: &str) -> Result<Credentials, OciError> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Credentials::None),
        Err(error) => return Err(OciError::io(file.display())(error)),
    };
    let malformed = |why: &str| OciError::Malformed(format!("{}: {why}", file.display()));
    let config: DockerConfig = serde_json::from_str(&text).map_err(|_| malformed("no file of credentials"))?;
    let names = [registry.to_owned(), format!("https://{registry}"), format!("https://{registry}/v1/")];
    let found = names.iter().find_map(|name| config.auths.get(name)?.auth.clone());
    let Some(encoded) = found else { return Ok(Credentials::None) };
    let decoded = decode_base64(encoded.trim()).and_then(|bytes| String::from_utf8(bytes).ok());
    let decoded = decoded.ok_or_else(|| malformed(&format!("what it has for {registry} cannot be decoded")))?;
    match decoded.split_once(':') {
        Some((user, password)) => Ok(Credentials::Basic(user.to_owned(), password.to_owned())),
        None => Err(malformed(&format!("what it has for {registry} has no user"))),
    }
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_those_of_the_registry_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        assert!(matches!(credentials_from(&file, "a.example"), Ok(Credentials::None)));
        std::fs::write(
            &file,
            r#"{"auths": {"a.example": {"auth": "bWU6cGFzczp3b3Jk"}, "https://b.example/v1/": {"auth": "eW91OnNlY3JldA=="},
                "c.example": {}, "d.example": {"auth": "bm8gdXNlcg=="}, "e.example": {"auth": "%"}}, "credHelpers": {"a.example": "x"}}"#,
        )
        .unwrap();
        let found = credentials_from(&file, "a.example").unwrap();
        assert!(matches!(&found, Credentials::Basic(user, password) if user == "me" && password == "pass:word"));
        assert!(!format!("{found:?}").contains("word"));
        assert!(matches!(credentials_from(&file, "b.example"), Ok(Credentials::Basic(user, _)) if user == "you"));
        for registry in ["c.example", "a.example.evil", "example"] {
            assert!(matches!(credentials_from(&file, registry), Ok(Credentials::None)), "{registry}");
        }
        for registry in ["d.example", "e.example"] {
            let error = credentials_from(&file, registry).unwrap_err().to_string();
            assert!(error.contains(registry) && error.contains("config.json"), "{error}");
        }
        std::fs::write(&file, "no json with-a-secret").unwrap();
        let error = credentials_from(&file, "a.example").unwrap_err().to_string();
        assert!(!error.contains("with-a-secret"), "{error}");
    }

    #[test]
    fn loopback_is_spoken_with_plainly_and_nothing_else() {
        for registry in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.8.8.8"] {
            assert!(is_loopback(registry), "{registry}");
        }
        for registry in ["localhost.example", "127.0.0.1.example:5000", "10.0.0.1:5000", "registry.example"] {
            assert!(!is_loopback(registry), "{registry}");
        }
    }

    #[test]
    fn what_is_no_reference_is_told_so() {
        assert_eq!(parse("debian:12").unwrap().registry(), "docker.io");
        assert!(parse("127.0.0.1:5000/a/b@sha256:").is_err());
        for bad in ["", "docker.io/UPPER/case", "a b", "http://a/b", "a:b:c"] {
            assert!(matches!(parse(bad), Err(OciError::Reference(..))), "{bad}");
        }
    }
}
