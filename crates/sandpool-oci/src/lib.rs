//! Images of others: from registries and archives, unpacked where they can do no harm.
//!
//! ```text
//! registry ----pull----> blobs (by digest, verified) --+
//! archive, layout --import--> blobs                    +--> unpack: layers, oldest first -> one root file system
//! ```
//!
//! What is in an image is hostile until it has been unpacked, and after that: names, links, sizes, kinds of files. Every path is resolved
//! by the kernel below the root that is being made, every number has a limit, and nothing of a layer is executed, owned by anybody, or
//! more than a file, a directory or a link.

pub mod archive;
pub mod blobs;
pub mod manifest;
pub mod registry;
pub mod signature;
pub mod unpack;

use serde::{Deserialize, Serialize};

/// An image whose parts are among the blobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// What it was asked for as, or what its archive calls it.
    pub reference: String,
    /// The digest of its manifest.
    pub digest: String,
    /// What it says about itself.
    pub config: Config,
    /// Its layers, the oldest first.
    pub layers: Vec<Layer>,
    /// The key whose signature was asked for, and found: its [`signature::Key::id`].
    #[serde(default)]
    pub signed_by: Option<String>,
}

/// A layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Of its blob.
    pub digest: String,
    /// Of what is in it, unpacked.
    pub diff_id: String,
    /// How it is packed.
    pub packing: Packing,
}

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// What an image says about how it is run (OCI image specification, "image configuration").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Config {
    /// Environment variables, `NAME=value`.
    pub env: Vec<String>,
    /// The program, and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments, or the program where there is no entry point.
    pub cmd: Vec<String>,
    /// Where it starts.
    pub working_dir: String,
    /// As whom.
    pub user: String,
    /// Ports it listens at, such as `8080/tcp`.
    pub exposed_ports: std::collections::BTreeMap<String, serde_json::Value>,
}

/// Why an image is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// What was asked for is no reference.
    #[error("{0:?} is no reference of an image: {1}")]
    Reference(String, String),
    /// The registry does not give it.
    #[error("{registry}: {why}")]
    Registry {
        /// Which.
        registry: String,
        /// What it said.
        why: String,
    },
    /// It has nothing for this machine.
    #[error("{reference} is for {there}, and not for {wanted}")]
    Platform {
        /// Which image.
        reference: String,
        /// What it is for.
        there: String,
        /// What was wanted.
        wanted: String,
    },
    /// Nobody who is trusted has signed it.
    #[error("{reference} is not signed with this key: {why}")]
    Unsigned {
        /// Which image.
        reference: String,
        /// What was found.
        why: String,
    },
    /// It is not what its digest says, or not in a form that is known.
    #[error("{0}")]
    Malformed(String),
    /// A layer contains what cannot be.
    #[error("layer {layer}, {entry:?}: {why}")]
    Entry {
        /// Which, from 1.
        layer: usize,
        /// The name in it.
        entry: String,
        /// What is wrong.
        why: String,
    },
    /// It is larger than it may be.
    #[error("the image is too large: {0}")]
    TooLarge(String),
    /// A file here cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl OciError {
    pub(crate) fn io(path: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_string();
        move |source| Self::Io { path, source }
    }
}
