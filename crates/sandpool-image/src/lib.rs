//! Images: root file systems, built once from recipes, kept under the digest of what they are made from.
//!
//! ```text
//! <store>/<digest>/{rootfs, manifest.json}     an image
//! <store>/names/<name>                         the digest that a name means
//! <store>/references/<SHA-256 of a reference>  the name of what was got by it last
//! <store>/cache/{debs, pip, npm}               downloads, so that a build that was cut short goes on
//! <store>/partial-<name>                       being built; renamed when it is whole
//! ```

mod builder;
mod recipe;
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use builder::Cause;
pub use recipe::{Recipe, recipe, recipes};
pub use servers::{Registry, ServerPackage};

/// A directory of images.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

/// An image that is there.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its name, such as `python`.
    pub name: String,
    /// Its root file system.
    pub rootfs: PathBuf,
    /// What it is.
    pub manifest: Manifest,
}

/// What an image is: as found in it after it was built, not as its recipe wished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// SHA-256 of what it is made from, in hexadecimal.
    pub digest: String,
    /// What answers code: `python`, `node` or `shell`.
    pub runtime: String,
    /// The runtime's version, as it says itself.
    pub version: String,
    /// The runtime's packages.
    pub packages: Vec<Package>,
    /// When it was built, in seconds since 1970.
    pub created: u64,
    /// The size of its files, in bytes.
    pub bytes: u64,
    /// Where it comes from, when nobody built it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// Where an image of others comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// What it was asked for as.
    pub reference: String,
    /// The digest of its manifest.
    pub digest: String,
    /// The digests of all that it is made of.
    pub parts: Vec<String>,
    /// The key that it was found to be signed with, when it was got: SHA-256 of it, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// What it says about how it is run: entry point, arguments, user, directory, ports, in the words of the OCI specification.
    pub config: serde_json::Value,
}

/// A package of an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// Hears how a build goes.
pub trait Progress {
    /// A new stage has begun. `total` is how many things it counts, when that is known.
    fn stage(&self, title: &str, total: Option<u64>);
    /// One more thing of the stage has been done.
    fn step(&self);
    /// The build is at work. Said several times a second, so that who shows progress needs no thread of its own.
    fn pulse(&self) {}
}

/// Why an image is not there.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no such recipe.
    #[error("there is no recipe for an image {0}; there are: {1}")]
    Unknown(String, String),
    /// A program that builds images is missing.
    #[error("building images needs {0}: apt-get install {1}")]
    Missing(&'static str, &'static str),
    /// A recipe has this name.
    #[error("{0} is the name of an image that is built here")]
    Reserved(String),
    /// Only root can build.
    #[error("building images needs root")]
    NotRoot,
    /// The disk is too full.
    #[error("{place} has {free} MiB free; the image {name} needs {needed} MiB")]
    Disk {
        /// Where.
        place: String,
        /// The image's name.
        name: String,
        /// What is there, in MiB.
        free: u64,
        /// What is needed, in MiB.
        needed: u64,
    },
    /// A step of the build failed.
    #[error("image {name}: {stage} failed ({how}){}", told(*.cause, .tail, .log))]
    Step {
        /// The image's name.
        name: String,
        /// The step.
        stage: String,
        /// The exit status.
        how: String,
        /// Why, if that is plain from what was said.
        cause: Option<Cause>,
        /// The last lines it wrote.
        tail: Box<[String]>,
        /// The file with all of them.
        log: PathBuf,
    },
    /// The store cannot be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

fn told(cause: Option<Cause>, tail: &[String], log: &Path) -> String {
    let cause = cause.map(|cause| format!(": {}", cause.sentence())).unwrap_or_default();
    format!("{cause}; its last words:\n  {}\nall of them: {}", tail.join("\n  "), log.display())
}

impl ImageError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

impl Image {
    /// Whether it was got only because this key had signed it, by [the key's own name](Source::signed_by).
    #[must_use]
    pub fn is_signed_by(&self, key: &str) -> bool {
        self.manifest.source.as_ref().is_some_and(|source| source.signed_by.as_deref() == Some(key))
    }
}

/// The file that is locked while sandboxes may run on a store's images.
const IN_USE: &str = "in-use";

impl Store {
    /// Opens a store; makes its directory when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(directory: &Path) -> Result<Self, ImageError> {
        fs::create_dir_all(directory.join("names")).map_err(ImageError::io(directory))?;
        let directory = fs::canonicalize(directory).map_err(ImageError::io(directory))?;
        Ok(Self { directory })
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The image of this name, if there is one.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn get(&self, name: &str) -> Result<Option<Image>, ImageError> {
        let link = self.directory.join("names").join(checked(name)?);
        match fs::read_to_string(&link) {
            Ok(digest) => self.by_digest(name, digest.trim()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::io(&link)(error)),
        }
    }

    /// The image of this name, or the one that was got by this reference.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn meant(&self, name: &str) -> Result<Option<Image>, ImageError> {
        if checked(name).is_ok() {
            return self.get(name);
        }
        if let Ok(known) = fs::read_to_string(self.reference(name))
            && let Some(image) = self.get(known.trim())?
        {
            return Ok(Some(image));
        }
        let is_it = |image: &Image| {
            let source = image.manifest.source.as_ref();
            source.is_some_and(|source| source.reference == name || name.ends_with(&format!("@{}", source.digest)))
        };
        Ok(self.list()?.into_iter().find(is_it))
    }

    /// From now on this reference means the image of this name.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn refer(&self, reference: &str, name: &str) -> Result<(), ImageError> {
        let place = self.reference(reference);
        let new = place.with_extension("new");
        let directory = self.directory.join("references");
        fs::create_dir_all(&directory).map_err(ImageError::io(&directory))?;
        fs::write(&new, format!("{}\n", checked(name)?)).map_err(ImageError::io(&new))?;
        fs::rename(&new, &place).map_err(ImageError::io(&place))
    }

    fn reference(&self, reference: &str) -> PathBuf {
        self.directory.join("references").join(hex::encode(Sha256::digest(reference)))
    }

    /// Every image, by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let names = self.directory.join("names");
        let mut images = BTreeMap::new();
        for entry in fs::read_dir(&names).map_err(ImageError::io(&names))? {
            let name = entry.map_err(ImageError::io(&names))?.file_name();
            let Some(name) = name.to_str().filter(|name| checked(name).is_ok()) else { continue };
            if let Some(image) = self.get(name)? {
                images.insert(name.to_owned(), image);
            }
        }
        Ok(images.into_values().collect())
    }

    /// Builds the image of a recipe; answers at once when it is there.
    ///
    /// # Errors
    /// What is missing, or which step failed and why. Nothing half-made is left but downloads.
    pub fn build(&self, recipe: &Recipe, progress: &dyn Progress) -> Result<Image, ImageError> {
        if let Some(image) = self.current(recipe)? {
            return Ok(image);
        }
        let _lock = self.lock(|| progress.stage("waiting for another build", None))?;
        // The other build may have been this one.
        if let Some(image) = self.current(recipe)? {
            return Ok(image);
        }
        builder::build(&self.directory, recipe, progress)?;
        self.current(recipe)?.ok_or_else(|| {
            ImageError::io(&self.directory)(io::Error::other(format!(
                "the image {} is not where it was put",
                recipe.name
            )))
        })
    }

    /// Puts an image of others into the store, or gives one that is there a further name. `fill` is given an empty directory for
    /// the root file system; `digest` says what it is made from, 64 hexadecimal digits.
    ///
    /// # Errors
    /// `Reserved` for a recipe's name, and whatever `fill` says: then nothing is left.
    pub fn put<E: From<ImageError>>(
        &self,
        name: &str,
        digest: &str,
        fill: impl FnOnce(&Path) -> Result<Manifest, E>,
    ) -> Result<Image, E> {
        check_foreign(name)?;
        let _lock = self.lock(|| {})?;
        if let Some(image) = self.by_digest(name, digest)? {
            builder::name(&self.directory, name, digest)?;
            return Ok(image);
        }
        let partial = self.directory.join(format!("{}{name}", builder::PARTIAL));
        builder::remove(&partial)?;
        let rootfs = partial.join("rootfs");
        fs::create_dir_all(&rootfs).map_err(ImageError::io(&rootfs))?;
        let filled = fill(&rootfs);
        if filled.is_err() {
            builder::remove(&partial)?;
        }
        let manifest = filled?;
        builder::finish(&self.directory, &partial, name, &manifest)?;
        let missing = || ImageError::io(&self.directory)(io::Error::other(format!("{name} is not where it was put")));
        Ok(self.by_digest(name, digest)?.ok_or_else(missing)?)
    }

    /// A program that builds need and this machine lacks, and the package that has it.
    #[must_use]
    pub fn missing_program() -> Option<(&'static str, &'static str)> {
        builder::missing_program()
    }

    /// One build or removal at a time, of all processes. Says that it waits before it does.
    fn lock(&self, waits: impl FnOnce()) -> Result<fs::File, ImageError> {
        let path = self.directory.join("lock");
        let file = fs::File::create(&path).map_err(ImageError::io(&path))?;
        // What a build starts holds the lock too: if the builder is killed, the next one waits until all that it had
        // started is gone.
        let inherit = rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty());
        inherit.map_err(|error| ImageError::io(&path)(error.into()))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            waits();
            let wait = rustix::fs::flock(&file, FlockOperation::LockExclusive);
            wait.map_err(|error| ImageError::io(&path)(error.into()))?;
        }
        Ok(file)
    }

    /// Removes an image. Whether there was one. Sandboxes that run on it must have ended before.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<bool, ImageError> {
        let _lock = self.lock(|| {})?;
        let Some(image) = self.get(name)? else { return Ok(false) };
        let link = self.directory.join("names").join(name);
        fs::remove_file(&link).map_err(ImageError::io(&link))?;
        let in_use = self.list()?.iter().any(|other| other.manifest.digest == image.manifest.digest);
        if !in_use {
            self.condemn(&image.manifest.digest)?;
        }
        Ok(true)
    }

    /// Says that sandboxes may run on the store's images, for as long as the file is open. Where nothing can be written nothing can be
    /// removed either, and it says nothing.
    ///
    /// # Errors
    /// When it cannot be said.
    pub fn hold(&self) -> Result<Option<fs::File>, ImageError> {
        let path = self.directory.join(IN_USE);
        let file = match fs::File::create(&path) {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => return Ok(None),
            made => made.map_err(ImageError::io(&path))?,
        };
        rustix::fs::flock(&file, FlockOperation::LockShared).map_err(|error| ImageError::io(&path)(error.into()))?;
        Ok(Some(file))
    }

    /// Removes the images that no name means any more, since another one took it: how many, and their bytes. `None` where there are such
    /// and somebody holds the store, so that sandboxes may run on them.
    ///
    /// # Errors
    /// When the store cannot be read, or one of them not be removed.
    pub fn remove_nameless(&self) -> Result<Option<(usize, u64)>, ImageError> {
        let _lock = self.lock(|| {})?;
        let named: BTreeSet<String> = self.list()?.into_iter().map(|image| image.manifest.digest).collect();
        let mut nameless = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(ImageError::io(&self.directory))? {
            let name = entry.map_err(ImageError::io(&self.directory))?.file_name();
            let name = name.to_string_lossy().into_owned();
            if name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) && !named.contains(&name) {
                nameless.extend(self.by_digest("nameless", &name)?);
            }
        }
        if nameless.is_empty() {
            return Ok(Some((0, 0)));
        }
        let path = self.directory.join(IN_USE);
        let file = fs::File::create(&path).map_err(ImageError::io(&path))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        for image in &nameless {
            self.condemn(&image.manifest.digest)?;
        }
        Ok(Some((nameless.len(), nameless.iter().map(|image| image.manifest.bytes).sum())))
    }

    fn condemn(&self, digest: &str) -> Result<(), ImageError> {
        let directory = self.directory.join(digest);
        // Under this name, what is left of it if this is cut short is swept by the next build.
        let condemned = self.directory.join(format!("{}{digest}", builder::PARTIAL));
        fs::rename(&directory, &condemned).map_err(ImageError::io(&directory))?;
        builder::remove(&condemned)
    }

    /// The image of a recipe as it is now, if it has been built.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn current(&self, recipe: &Recipe) -> Result<Option<Image>, ImageError> {
        Ok(self.get(recipe.name)?.filter(|image| image.manifest.digest == recipe.digest()))
    }

    fn by_digest(&self, name: &str, digest: &str) -> Result<Option<Image>, ImageError> {
        let directory = self.directory.join(checked(digest)?);
        let file = directory.join("manifest.json");
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ImageError::io(&file)(error)),
        };
        let manifest = serde_json::from_str(&text).map_err(|error| ImageError::io(&file)(error.into()))?;
        Ok(Some(Image { name: name.to_owned(), rootfs: directory.join("rootfs"), manifest }))
    }
}

/// Whether an image of others may be called so.
///
/// # Errors
/// `Reserved` for a recipe's name, `Unknown` for what is no name.
pub fn check_foreign(name: &str) -> Result<(), ImageError> {
    if recipe(name).is_ok() {
        return Err(ImageError::Reserved(name.to_owned()));
    }
    checked(name).map(drop)
}

/// A name that is one plain component of a path.
fn checked(name: &str) -> Result<&str, ImageError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if (1..=64).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(name);
    }
    let names: Vec<_> = recipes().iter().map(|recipe| recipe.name).collect();
    Err(ImageError::Unknown(name.to_owned(), names.join(", ")))
}
