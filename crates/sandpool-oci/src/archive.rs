//! Images in files: a directory in OCI's layout, such a directory in a tar file (`oci-archive`), or what `docker save` writes
//! (`docker-archive`).
//!
//! ```text
//! oci-layout, index.json, blobs/sha256/...           OCI image layout
//! manifest.json, <config>.json, <layer>/layer.tar    docker-archive; names are the archive's own, and lead nowhere here
//! ```
//!
//! Nothing is written under a name of the archive: its parts become blobs, named by what is in them.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use crate::blobs::Blobs;
use crate::manifest::{self, Descriptor, Found, MAX_DOCUMENT};
use crate::{Bundle, Layer, OciError, Packing};

/// Files of an archive, at most.
const MAX_FILES: usize = 10_000;

/// What an archive calls the name of an image (OCI image specification, "Pre-Defined Annotation Keys").
const NAME: &str = "org.opencontainers.image.ref.name";

/// One image of a docker-archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Takes an image out of a file or directory into the blobs. `wanted` names one of several. No part of it may have more than `most` bytes.
///
/// # Errors
/// [`OciError`].
pub fn import(path: &Path, wanted: Option<&str>, blobs: &Blobs, most: u64) -> Result<Bundle, OciError> {
    let shown = path.display().to_string();
    if path.is_dir() {
        return layout(path, &shown, wanted, blobs, most);
    }
    let file = File::open(path).map_err(OciError::io(&shown))?;
    let named = take_apart(plain(file, &shown)?, blobs, most)?;
    match named.get("index.json") {
        Some(index) => from_index(&shown, &blobs.read_small(index, MAX_DOCUMENT)?, wanted, blobs),
        None => match named.get("manifest.json") {
            Some(listed) => saved(&shown, &blobs.read_small(listed, MAX_DOCUMENT)?, wanted, blobs, &named),
            None => Err(OciError::Malformed(format!("{shown} has neither an index.json nor a manifest.json"))),
        },
    }
}

/// An archive as it is, or through gzip.
fn plain(file: File, shown: &str) -> Result<Box<dyn Read>, OciError> {
    let packing = sniffed(&file, shown)?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).map_err(|error| OciError::io(shown)(error.into()))?;
    Ok(match packing {
        Packing::Gzip => Box::new(flate2::read::MultiGzDecoder::new(file)),
        Packing::Plain | Packing::Zstd => Box::new(file),
    })
}

/// Makes blobs of all files of an archive. Answers their digests by their names.
fn take_apart(reader: impl Read, blobs: &Blobs, most: u64) -> Result<HashMap<String, String>, OciError> {
    let broken = |error: std::io::Error| OciError::Malformed(format!("the archive cannot be read: {error}"));
    let (mut named, mut links) = (HashMap::new(), Vec::new());
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let Ok(name) = String::from_utf8(entry.path_bytes().into_owned()) else { continue };
        let name = name.trim_start_matches("./").to_owned();
        if named.len() + links.len() >= MAX_FILES || name.len() > 4096 {
            return Err(OciError::TooLarge(format!("it has more than {MAX_FILES} files, or a longer name than any")));
        }
        match entry.header().entry_type() {
            kind if kind.is_file() => drop(named.insert(name, blobs.take_in(&mut entry, most)?)),
            // A layer that is there under another name.
            kind if kind.is_symlink() || kind.is_hard_link() => {
                let target = entry.link_name_bytes().and_then(|target| String::from_utf8(target.into_owned()).ok());
                links.extend(target.map(|target| (name, target)));
            }
            _ => {}
        }
    }
    for (name, target) in links {
        let base = target.trim_start_matches("../");
        if let Some(digest) = named.get(base).cloned() {
            named.insert(name, digest);
        }
    }
    Ok(named)
}

/// A directory in OCI's layout.
fn layout(path: &Path, shown: &str, wanted: Option<&str>, blobs: &Blobs, most: u64) -> Result<Bundle, OciError> {
    let read = |name: &str| -> Result<Vec<u8>, OciError> {
        let file = path.join(name);
        let mut bytes = Vec::new();
        let opened = File::open(&file).map_err(OciError::io(file.display()))?;
        opened.take(MAX_DOCUMENT).read_to_end(&mut bytes).map_err(OciError::io(file.display()))?;
        Ok(bytes)
    };
    let index = read("index.json")?;
    let mut waiting: Vec<String> = manifest::entries(&index)?.into_iter().map(|entry| entry.digest).collect();
    let mut seen = 0;
    // What is named, by its digest, whose form is checked before it becomes part of a path. An index may name what is not there, such as
    // the images of other machines.
    let mut take = |digest: &str| -> Result<(), OciError> {
        seen += 1;
        if seen > MAX_FILES {
            return Err(OciError::TooLarge(format!("it has more than {MAX_FILES} parts")));
        }
        if blobs.has(digest)? {
            return Ok(());
        }
        let file = path.join("blobs").join(digest.replacen(':', "/", 1));
        let Ok(mut opened) = File::open(&file) else { return Ok(()) };
        match blobs.take_in(&mut opened, most)? {
            found if found == digest => Ok(()),
            found => Err(OciError::Malformed(format!("{} is {found}", file.display()))),
        }
    };
    while let Some(digest) = waiting.pop() {
        take(&digest)?;
        let Ok(document) = blobs.read_small(&digest, MAX_DOCUMENT) else { continue };
        match manifest::look(shown, &document) {
            Ok(Found::Other(other)) => waiting.push(other),
            Ok(Found::Parts { config, layers }) => {
                [config].iter().chain(&layers).try_for_each(|part| take(&part.digest))?;
            }
            // An index of nothing for us.
            Err(_) => {}
        }
    }
    from_index(shown, &index, wanted, blobs)
}

/// The image that an index names, all parts of which are among the blobs.
fn from_index(shown: &str, index: &[u8], wanted: Option<&str>, blobs: &Blobs) -> Result<Bundle, OciError> {
    let entries = manifest::entries(index)?;
    let name = |entry: &Descriptor| entry.annotations.get(NAME).cloned();
    let chosen = match (wanted, entries.as_slice()) {
        (None, [one]) => one,
        (None, []) => return Err(OciError::Malformed(format!("{shown} names no image"))),
        (None, _) | (Some(_), _) => {
            match entries.iter().find(|entry| wanted.is_some() && name(entry).as_deref() == wanted) {
                Some(one) => one,
                None => {
                    let names: Vec<_> = entries.iter().filter_map(name).collect();
                    return Err(OciError::Malformed(format!(
                        "{shown} has several images: say which of {}",
                        names.join(", ")
                    )));
                }
            }
        }
    };
    let reference = name(chosen).unwrap_or_else(|| shown.to_owned());
    let mut digest = chosen.digest.clone();
    // An index may be of indexes; none is deeper than that.
    for _ in 0..4 {
        let document = blobs.read_small(&digest, MAX_DOCUMENT)?;
        match manifest::look(&reference, &document)? {
            Found::Other(other) => digest = other,
            Found::Parts { config, layers } => return manifest::bundle(blobs, &reference, digest, &config, &layers),
        }
    }
    Err(OciError::Malformed(format!("{shown} has indexes in indexes")))
}

/// An image of a docker-archive.
fn saved(
    shown: &str,
    listed: &[u8],
    wanted: Option<&str>,
    blobs: &Blobs,
    named: &HashMap<String, String>,
) -> Result<Bundle, OciError> {
    let images: Vec<Saved> = serde_json::from_slice(listed)
        .map_err(|error| OciError::Malformed(format!("its manifest.json cannot be read: {error}")))?;
    let tags = |image: &Saved| image.repo_tags.clone().unwrap_or_default();
    let chosen = match (wanted, images.as_slice()) {
        (None, [one]) => Some(one),
        _ => images.iter().find(|image| tags(image).iter().any(|tag| wanted.is_some_and(|wanted| means(tag, wanted)))),
    };
    let Some(image) = chosen else {
        let names: Vec<_> = images.iter().flat_map(tags).collect();
        return Err(OciError::Malformed(format!("{shown} has several images: say which of {}", names.join(", "))));
    };
    let part = |name: &String| {
        named.get(name).cloned().ok_or_else(|| OciError::Malformed(format!("{name} is not in {shown}")))
    };
    let config = part(&image.config)?;
    let reference = tags(image).into_iter().next().unwrap_or_else(|| shown.to_owned());
    let (said, diff_ids) = manifest::configuration(&reference, &blobs.read_small(&config, MAX_DOCUMENT)?)?;
    if diff_ids.len() != image.layers.len() {
        return Err(OciError::Malformed("its configuration and its manifest name different layers".to_owned()));
    }
    let layers = image.layers.iter().zip(diff_ids).map(|(name, diff_id)| {
        let digest = part(name)?;
        // It is what its contents' digest says where nothing packs it.
        let packing = if digest == diff_id { Packing::Plain } else { sniffed(&blobs.read(&digest)?, &digest)? };
        Ok(Layer { digest, diff_id, packing })
    });
    // Such an archive has no manifest with a digest: its configuration says what it is.
    Ok(Bundle {
        reference,
        digest: config,
        config: said,
        layers: layers.collect::<Result<_, OciError>>()?,
        signed_by: None,
    })
}

/// Whether two names are one: `docker save` writes `python:3` for what skopeo calls `docker.io/library/python:3`.
fn means(tag: &str, wanted: &str) -> bool {
    let whole = |name: &str| crate::registry::parse(name).map(|reference| reference.whole());
    tag == wanted || matches!((whole(tag), whole(wanted)), (Ok(tag), Ok(wanted)) if tag == wanted)
}

/// How a file is packed, by its first bytes.
fn sniffed(mut file: &File, shown: &str) -> Result<Packing, OciError> {
    let mut magic = [0; 4];
    let count = file.read(&mut magic).map_err(OciError::io(shown))?;
    Ok(match &magic[..count] {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd] => Packing::Zstd,
        _ => Packing::Plain,
    })
}

#[cfg(test)]
mod tests {
    use super::means;

    #[test]
    fn names_are_one_however_they_are_written() {
        for (tag, wanted) in [
            ("python:3", "docker.io/library/python:3"),
            ("docker.io/library/python:3", "python:3"),
            ("python:latest", "python"),
            ("team/web:1", "docker.io/team/web:1"),
            ("reg.test:5000/web:1", "reg.test:5000/web:1"),
        ] {
            assert!(means(tag, wanted), "{tag} {wanted}");
        }
        for (tag, wanted) in
            [("python:3", "python:3.1"), ("team/web:1", "reg.test/team/web:1"), ("Not a name", "python:3")]
        {
            assert!(!means(tag, wanted), "{tag} {wanted}");
        }
    }
}
