//! Manifests, indexes and configurations: the OCI image specification's, and Docker's, which are alike where it matters.

use serde::Deserialize;

use crate::blobs::Blobs;
use crate::{Bundle, Config, Layer, OciError, Packing};

/// Bytes of a manifest, an index or a configuration, at most (registries allow manifests of 4 MiB).
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// Layers of one image, at most; Docker's own limit is 127.
const MAX_LAYERS: usize = 256;

/// A manifest, or an index of several.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// A configuration.
#[derive(Debug, Deserialize)]
struct Whole {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    // Null where nothing is said.
    config: Option<Said>,
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Said {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    exposed_ports: Option<std::collections::BTreeMap<String, serde_json::Value>>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// What is next to be looked at.
#[derive(Debug)]
pub(crate) enum Found {
    /// The manifest of this digest.
    Other(String),
    /// It is a manifest: its configuration and layers.
    Parts { config: Descriptor, layers: Vec<Descriptor> },
}

/// The architecture of this machine, as images name it.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn parse<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, OciError> {
    serde_json::from_slice(bytes).map_err(|error| OciError::Malformed(format!("{what} cannot be read: {error}")))
}

/// Reads a manifest, or chooses from an index.
pub(crate) fn look(reference: &str, bytes: &[u8]) -> Result<Found, OciError> {
    let Document { manifests, config, layers } = parse("the manifest", bytes)?;
    if let Some(config) = config {
        if layers.len() > MAX_LAYERS {
            return Err(OciError::TooLarge(format!("it has {} layers; {MAX_LAYERS} are the most", layers.len())));
        }
        return Ok(Found::Parts { config, layers });
    }
    let wanted = architecture();
    // An index of one, without a word about what it is for, is meant.
    let fits = |one: &&Descriptor| match &one.platform {
        Some(platform) => platform.os == "linux" && platform.architecture == wanted,
        None => manifests.len() == 1,
    };
    match manifests.iter().find(fits) {
        Some(found) => Ok(Found::Other(found.digest.clone())),
        None => {
            let names = manifests.iter().filter_map(|one| one.platform.as_ref());
            let names: Vec<_> = names.map(|one| format!("{}/{}", one.os, one.architecture)).collect();
            Err(OciError::Platform {
                reference: reference.to_owned(),
                there: if names.is_empty() { "nothing that it names".to_owned() } else { names.join(", ") },
                wanted: format!("linux/{wanted}"),
            })
        }
    }
}

/// What an index names, as an archive's.
pub(crate) fn entries(bytes: &[u8]) -> Result<Vec<Descriptor>, OciError> {
    parse::<Document>("the index", bytes).map(|document| document.manifests)
}

/// The image of a manifest whose configuration and layers are among the blobs.
pub(crate) fn bundle(
    blobs: &Blobs,
    reference: &str,
    digest: String,
    config: &Descriptor,
    layers: &[Descriptor],
) -> Result<Bundle, OciError> {
    let (config, diff_ids) = configuration(reference, &blobs.read_small(&config.digest, MAX_DOCUMENT)?)?;
    if diff_ids.len() != layers.len() {
        let why = format!("its configuration names {} layers, and its manifest {}", diff_ids.len(), layers.len());
        return Err(OciError::Malformed(why));
    }
    let layers = layers.iter().zip(diff_ids).map(|(layer, diff_id)| {
        let packing = packing(&layer.media_type)?;
        Ok(Layer { digest: layer.digest.clone(), diff_id, packing })
    });
    let layers = layers.collect::<Result<_, OciError>>()?;
    Ok(Bundle { reference: reference.to_owned(), digest, config, layers, signed_by: None })
}

/// What a configuration says, and the digests of its layers' contents.
pub(crate) fn configuration(reference: &str, bytes: &[u8]) -> Result<(Config, Vec<String>), OciError> {
    let Whole { architecture: arch, os, config, rootfs } = parse("the configuration", bytes)?;
    let is_ours = (os.is_empty() || os == "linux") && (arch.is_empty() || arch == architecture());
    if !is_ours {
        return Err(OciError::Platform {
            reference: reference.to_owned(),
            there: format!("{os}/{arch}"),
            wanted: format!("linux/{}", architecture()),
        });
    }
    let said = config.unwrap_or_default();
    let config = Config {
        env: said.env.unwrap_or_default(),
        entrypoint: said.entrypoint.unwrap_or_default(),
        cmd: said.cmd.unwrap_or_default(),
        working_dir: said.working_dir.unwrap_or_default(),
        user: said.user.unwrap_or_default(),
        exposed_ports: said.exposed_ports.unwrap_or_default(),
    };
    Ok((config, rootfs.diff_ids))
}

/// How a layer of this media type is packed.
pub(crate) fn packing(media_type: &str) -> Result<Packing, OciError> {
    let is = |end: &str| media_type.ends_with(end);
    // Docker's: `application/vnd.docker.image.rootfs.diff.tar.gzip`. OCI's: `application/vnd.oci.image.layer.v1.tar+gzip`.
    match media_type {
        _ if is("tar.gzip") || is("tar+gzip") => Ok(Packing::Gzip),
        _ if is("tar+zstd") || is("tar.zstd") => Ok(Packing::Zstd),
        _ if is(".tar") || is("rootfs.diff.tar") => Ok(Packing::Plain),
        other => Err(OciError::Malformed(format!("a layer of the type {other:?} cannot be unpacked"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_asked_for_what_this_machine_runs() {
        let other = if architecture() == "amd64" { "s390x" } else { "amd64" };
        let index = |arch: &str| {
            format!(
                r#"{{"manifests": [
                {{"digest": "sha256:a", "platform": {{"os": "windows", "architecture": "{arch}"}}}},
                {{"digest": "sha256:b", "platform": {{"os": "linux", "architecture": "{arch}"}}}}]}}"#
            )
        };
        let found = look("x", index(architecture()).as_bytes()).unwrap();
        assert!(matches!(found, Found::Other(digest) if digest == "sha256:b"));
        let error = look("x", index(other).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(&format!("linux/{other}")) && error.contains(architecture()), "{error}");
        assert!(matches!(look("x", br#"{"manifests": [{"digest": "sha256:c"}]}"#), Ok(Found::Other(_))));
        assert!(look("x", b"[").is_err() && look("x", b"{}").is_err());
    }

    #[test]
    fn a_configuration_says_how_it_is_run_or_nothing() {
        let text = r#"{"architecture": "ARCH", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:d"]},
            "config": {"Env": ["A=1"], "Entrypoint": null, "Cmd": ["sh"], "ExposedPorts": {"80/tcp": {}}}}"#;
        let text = text.replace("ARCH", architecture());
        let (config, diff_ids) = configuration("x", text.as_bytes()).unwrap();
        assert_eq!(
            (config.env, config.cmd, diff_ids),
            (vec!["A=1".into()], vec!["sh".into()], vec!["sha256:d".into()])
        );
        assert_eq!(config.exposed_ports.len(), 1);
        configuration("x", br#"{"config": null, "rootfs": {"diff_ids": []}}"#).unwrap();
        let foreign = text.replace("linux", "windows");
        assert!(matches!(configuration("x", foreign.as_bytes()), Err(OciError::Platform { .. })));
    }

    #[test]
    fn layers_are_packed_in_ways_that_are_known() {
        for (media_type, expected) in [
            ("application/vnd.oci.image.layer.v1.tar", Packing::Plain),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Packing::Gzip),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Packing::Zstd),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Packing::Gzip),
        ] {
            assert_eq!(packing(media_type).unwrap(), expected);
        }
        assert!(packing("application/vnd.wasm").is_err() && packing("").is_err());
    }
}
