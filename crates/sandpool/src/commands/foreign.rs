//! `sandpool image pull` and `import`: images of others.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use sandpool_image::{Image, Manifest, Source, Store, check_foreign};
use sandpool_oci::blobs::Blobs;
use sandpool_oci::registry::{self, Access, Credentials};
use sandpool_oci::signature::Key;
use sandpool_oci::unpack::Limits;
use sandpool_oci::{Bundle, OciError};
use sha2::{Digest, Sha256};

use super::Outcome;
use super::image::{explain, shown_image};
use crate::args::{Foreign, ImagePull};
use crate::client::Context;
use crate::failure::Failure;
use crate::print::{self, human_bytes};
use crate::unpack::{Said, Task, have_done};
use sandpool_objects::pool::is_image_name;

/// How layers become a root file system; a change of it makes other images of them.
const FORM: &str = "sandpool-oci-1";

/// Where the blobs are, in the directory of the images.
pub(crate) const BLOBS: &str = "blobs";

/// The longest password that is read, in bytes.
const MAX_PASSWORD: u64 = 64 << 10;

pub(crate) fn pull(context: &Context, pull: &ImagePull, directory: &Path) -> Outcome {
    let reference = registry::parse(&pull.reference).map_err(explain_oci)?;
    let name = name_of(pull.foreign.name.as_deref(), reference.repository())?;
    let registry = reference.registry().to_owned();
    let credentials = match &pull.username {
        Some(user) => {
            let mut password = String::new();
            let read = std::io::stdin().take(MAX_PASSWORD).read_to_string(&mut password);
            read.map_err(|error| Failure::new("no password can be read from standard input").because(error))?;
            Credentials::Basic(user.clone(), password.trim_end_matches(['\r', '\n']).to_owned())
        }
        None => match pull.auth_file.clone().or_else(default_auth_file) {
            Some(file) => registry::credentials_from(&file, &registry).map_err(explain_oci)?,
            None => Credentials::None,
        },
    };
    let authority = pull.ca.as_ref().map(|path| {
        std::fs::read(path).map_err(|error| Failure::new(format!("cannot read {}", path.display())).because(error))
    });
    let key = pull.key.as_deref().map(key_of).transpose()?;
    let access = Access { credentials, plain_http: pull.plain_http, authority: authority.transpose()?, key };
    let store = open(directory)?;
    let blobs = Blobs::open(&store.directory().join(BLOBS)).map_err(explain_oci)?;
    let _lock = blobs.lock().map_err(explain_oci)?;
    let coming = Coming::new(&pull.reference);
    let most = pull.foreign.max_size.0;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new("cannot start").because(error))?;
    let pulled = runtime.block_on(registry::pull(&pull.reference, &access, &blobs, most, &coming));
    coming.end();
    let bundle = pulled.map_err(explain_oci)?;
    shown_image(context, &keep(&store, &name, bundle, pull.foreign.max_size.0)?)
}

pub(crate) fn import(
    context: &Context,
    path: &Path,
    wanted: Option<&str>,
    foreign: &Foreign,
    directory: &Path,
) -> Outcome {
    let store = open(directory)?;
    let path = std::fs::canonicalize(path)
        .map_err(|error| Failure::usage(format!("cannot read {}", path.display())).because(error))?;
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let name = name_of(foreign.name.as_deref(), &stem)?;
    let blobs = store.directory().join(BLOBS);
    let _lock = Blobs::open(&blobs).and_then(|blobs| blobs.lock()).map_err(explain_oci)?;
    let task = Task::Import { path, wanted: wanted.map(str::to_owned), blobs, most: foreign.max_size.0 };
    match have_done(&task, |_| {})? {
        Said::Imported(bundle) => shown_image(context, &keep(&store, &name, bundle, foreign.max_size.0)?),
        _ => Err(Failure::new("the archive could not be read")),
    }
}

/// Removes images that no name means any more, and parts that no image is made of: of images that were removed, and of pulls that were not
/// finished.
pub(crate) fn prune(context: &Context, directory: &Path) -> Outcome {
    let store = open(directory)?;
    let blobs = Blobs::open(&store.directory().join(BLOBS)).map_err(explain_oci)?;
    let _lock = blobs.lock().map_err(explain_oci)?;
    let nameless = store.remove_nameless().map_err(explain)?;
    let images = store.list().map_err(explain)?;
    let parts = images.into_iter().filter_map(|image| image.manifest.source).flat_map(|source| source.parts);
    let used: BTreeSet<String> = parts.collect();
    let (removed, bytes) = nameless.unwrap_or_default();
    let freed = bytes + blobs.keep_only(&used).map_err(explain_oci)?;
    if context.json {
        let is_kept = nameless.is_none();
        print::json(&serde_json::json!({ "freedBytes": freed, "removedImages": removed, "keptForServer": is_kept }))?;
        return Ok(0);
    }
    print::out(&format!("freed {}\n", human_bytes(freed)))?;
    if nameless.is_none() {
        print::note("images that have lost their names stay: a server runs with them. Stop it, and prune again.");
    }
    Ok(0)
}

fn open(directory: &Path) -> Result<Store, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new("only root can add images").advise("sudo sandpool image ..."));
    }
    Store::open(directory).map_err(explain)
}

/// Unpacks an image, if it is not here under another name, and gives it its name. From now on its reference means this one.
pub(crate) fn keep(store: &Store, name: &str, bundle: Bundle, most: u64) -> Result<Image, Failure> {
    let reference = bundle.reference.clone();
    // One that is signed is another than the same without: what is known of it is part of what it is.
    let by = bundle.signed_by.as_deref().unwrap_or("nobody");
    let digest = hex::encode(Sha256::digest(format!("{FORM} {} {by}", bundle.digest)));
    let blobs = store.directory().join(BLOBS);
    let layers = bundle.layers.len();
    let image = store.put(name, &digest, |root| {
        let task = Task::Unpack {
            blobs,
            layers: bundle.layers.clone(),
            root: root.to_owned(),
            limits: Limits { bytes: most, ..Limits::default() },
            env: variables(&bundle.config.env),
        };
        let done = have_done(&task, |said| {
            if let Said::Layer(layer) = said {
                print::note(&format!("{name}: unpacking layer {layer} of {layers}"));
            }
        })?;
        let Said::Unpacked { what, shell } = done else { return Err(Failure::new("nothing was unpacked")) };
        if what.left_out > 0 {
            print::note(&format!("{name}: {} devices, pipes and the like are left out", what.left_out));
        }
        let Bundle { reference, digest: of_manifest, config, layers, signed_by } = bundle;
        let parts = layers.into_iter().map(|layer| layer.digest).collect();
        let config = serde_json::to_value(config).unwrap_or_default();
        Ok::<_, Failure>(Manifest {
            digest: digest.clone(),
            runtime: if shell.is_some() { "shell" } else { "none" }.to_owned(),
            version: shell.unwrap_or_default(),
            packages: Vec::new(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            bytes: what.bytes,
            source: Some(Source { reference, digest: of_manifest, parts, signed_by, config }),
        })
    });
    let image = image?;
    store.refer(&reference, name).map_err(explain)?;
    Ok(image)
}

/// A public key, from a file.
pub(crate) fn key_of(path: &Path) -> Result<Key, Failure> {
    let unusable = || Failure::usage(format!("cannot use the key {}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| unusable().because(error))?;
    Key::parse(&text).map_err(|error| unusable().because(error))
}

/// `NAME=value`, as an image says it; what is no variable is no use.
fn variables(env: &[String]) -> Vec<(String, String)> {
    // Where files and programs are for the session is not the image's to say: its home and its temporary files are the sandbox's.
    const OURS: [&str; 5] = ["HOME", "USER", "LOGNAME", "SHELL", "TMPDIR"];
    let pairs = env.iter().filter_map(|pair| pair.split_once('='));
    let pairs = pairs.filter(|(name, _)| sandpool_node::is_variable(name) && !OURS.contains(name));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// What an image is called here: as asked, or by the last part of its repository.
pub(crate) fn name_of(asked: Option<&str>, repository: &str) -> Result<String, Failure> {
    let name = match asked {
        Some(name) => name.to_owned(),
        None => {
            let last = repository.rsplit('/').next().unwrap_or(repository).to_ascii_lowercase();
            last.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect()
        }
    };
    if !is_image_name(&name) {
        return Err(Failure::usage(format!("{name:?} is not the name of an image"))
            .advise("--name NAME, of lower-case letters, digits and hyphens"));
    }
    check_foreign(&name).map_err(explain)?;
    Ok(name)
}

/// Where `docker login` and `podman login` write.
fn default_auth_file() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from)?;
    let docker = std::env::var_os("DOCKER_CONFIG").map_or_else(|| home.join(".docker"), PathBuf::from);
    Some(docker.join("config.json")).filter(|path| path.is_file())
}

pub(crate) fn explain_oci(error: OciError) -> Failure {
    let failure = Failure::new(error.to_string());
    match error {
        OciError::Reference(..) => Failure::usage(error.to_string()).advise("such as docker.io/library/debian:12-slim"),
        OciError::TooLarge(_) => failure.advise("--max-size SIZE, if it may be that large"),
        OciError::Registry { why, .. }
            if why.contains("uthoriz") || why.contains("uthentic") || why.contains("denied") =>
        {
            failure.advise("--username USER with the password on standard input, or --auth-file FILE")
        }
        OciError::Registry { .. }
        | OciError::Unsigned { .. }
        | OciError::Platform { .. }
        | OciError::Malformed(_)
        | OciError::Entry { .. }
        | OciError::Io { .. } => failure,
    }
}

/// How a pull looks.
struct Coming {
    bar: Option<ProgressBar>,
    name: String,
    total: RefCell<(u64, u64)>,
}

impl Coming {
    fn new(name: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(0));
        Self { bar, name: name.to_owned(), total: RefCell::default() }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl registry::Progress for Coming {
    fn total(&self, bytes: u64, parts: usize) {
        *self.total.borrow_mut() = (bytes, 0);
        match &self.bar {
            None => print::note(&format!("{}: {} in {parts} parts", self.name, human_bytes(bytes))),
            Some(bar) => {
                let template = "{prefix}: [{bar:24}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
                // The template is ours; a wrong one shows the default.
                let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
                bar.set_style(style);
                bar.set_prefix(self.name.clone());
                bar.set_length(bytes);
            }
        }
    }

    fn came(&self, bytes: u64) {
        let (total, before) = *self.total.borrow();
        *self.total.borrow_mut() = (total, before + bytes);
        match &self.bar {
            Some(bar) => bar.inc(bytes),
            // A line for each tenth.
            None if total > 0 && (before * 10) / total < ((before + bytes) * 10) / total => {
                print::note(&format!("{}: {} of {}", self.name, human_bytes(before + bytes), human_bytes(total)));
            }
            None => {}
        }
    }
}
