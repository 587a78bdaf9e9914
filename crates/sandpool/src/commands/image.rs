//! `sandpool image`, and what `up` needs of it: images are built once, before the server starts.
//!
//! What goes on is said on standard error: as bars on a terminal, as lines elsewhere.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use sandpool_image::{ImageError, Progress, Recipe, ServerPackage, Store, recipe, recipes};
use sandpool_node::Isolation;
use sandpool_objects::PoolObject;
use sandpool_oci::signature::Key;
use serde_json::{Value, json};

use super::{Outcome, foreign};
use crate::args;
use crate::client::Context;
use crate::failure::Failure;
use crate::home::Home;
use crate::print::{self, human_bytes};
use crate::server::{Image, Images, Plan};
use crate::settings::Settings;

/// What building needs besides mmdebstrap itself, and Debian's installer does not bring along: the keys of Debian on
/// other systems, and the program that mmdebstrap finds the right ones with.
const PACKAGES: [&str; 3] = ["mmdebstrap", "debian-archive-keyring", "gpg"];

pub(crate) fn run(context: &Context, image: &args::Image) -> Outcome {
    match image {
        args::Image::Build { names, images } => build(context, names, &directory(context, images.as_deref())),
        args::Image::Pull(pull) => foreign::pull(context, pull, &directory(context, pull.foreign.images.as_deref())),
        args::Image::Import { path, tag, foreign } => {
            let directory = directory(context, foreign.images.as_deref());
            foreign::import(context, path, tag.as_deref(), foreign, &directory)
        }
        args::Image::Prune { images } => foreign::prune(context, &directory(context, images.as_deref())),
        args::Image::Ls { images } => list(context, &directory(context, images.as_deref())),
        args::Image::Rm { names, images } => remove(context, names, &directory(context, images.as_deref())),
    }
}

fn directory(context: &Context, asked: Option<&Path>) -> PathBuf {
    asked.map_or_else(|| context.home.images(), Path::to_owned)
}

/// Where a server's images are.
pub(crate) fn store(settings: &Settings) -> Result<Store, Failure> {
    let directory = settings.images.as_deref().ok_or_else(|| Failure::new("no directory of images is set"))?;
    Store::open(directory).map_err(explain)
}

/// Builds what is missing of the images of these pools. No thread is left behind.
pub(crate) fn prepare(store: &Store, settings: &Settings) -> Result<Images, Failure> {
    let names: BTreeSet<&str> = settings.pools.iter().map(|pool| pool.image()).collect();
    // An image that has no recipe can only be there already.
    let wanted: Vec<_> = names.iter().filter_map(|name| recipe(name).ok()).collect();
    build_missing(store, &wanted)?;
    let mut images = Images::new();
    for pool in &settings.pools {
        let name = pool.image();
        let Some(image) = store.meant(name).map_err(explain)? else {
            let pool = &pool.metadata.name;
            return Err(Failure::usage(format!("pool {pool}: there is no image {name}"))
                .because(format!("it is not in {}, and no recipe makes it", store.directory().display()))
                .advise(format!("one of: {}", recipes().iter().map(|one| one.name).collect::<Vec<_>>().join(", "))));
        };
        signed(pool, &image)?;
        let needed = pool.spec.container_type.runtime().word();
        if needed != "container" && image.manifest.runtime != needed {
            return Err(Failure::usage(format!(
                "pool {}: {} needs {needed} in its image, and the image {name} has {}",
                pool.metadata.name,
                pool.spec.container_type.word(),
                image.manifest.runtime
            )));
        }
        let image = with_servers(store, image, &pool.server_packages())?;
        images.insert(pool.metadata.name.clone(), Image::from(image));
    }
    let of_machines = settings.pools.iter().filter(|pool| pool.spec.isolation() == Isolation::Microvm);
    let roots: BTreeSet<&Path> =
        of_machines.filter_map(|pool| images.get(&pool.metadata.name)).map(|image| image.rootfs.as_path()).collect();
    if !roots.is_empty() {
        print::note(
            "Preparing machines: a guest kernel, and images as disks. What is not there yet takes some seconds.",
        );
        // A host that cannot have machines is without these pools, which say why; the others are there.
        let roots: Vec<_> = roots.into_iter().collect();
        if let Err(failure) = crate::puller::machines(store.directory(), &roots, &settings.machines) {
            print::note(&failure.to_string());
        }
    }
    Ok(images)
}

/// A pool that says who must have signed its image gets no other.
fn signed(pool: &PoolObject, image: &sandpool_image::Image) -> Result<(), Failure> {
    let (key, file) = match (pool.image_key(), &pool.spec.image_key) {
        (_, None) => return Ok(()),
        (Some(text), _) => {
            let unusable =
                |error| Failure::usage(format!("pool {}: imageKey is no key", pool.metadata.name)).because(error);
            (Key::parse(text).map_err(unusable)?, "KEY.pub")
        }
        (None, Some(file)) => (foreign::key_of(Path::new(file))?, file.as_str()),
    };
    if image.is_signed_by(key.id()) {
        return Ok(());
    }
    let pool = &pool.metadata.name;
    let is_signed = image.manifest.source.as_ref().is_some_and(|source| source.signed_by.is_some());
    Err(Failure::usage(format!("pool {pool}: the image {} is not known to be signed with its imageKey", image.name))
        .because(match is_signed {
            true => "another key was asked for when it was got",
            false => "it was got without a look at signatures",
        })
        .advise(format!("sandpool image pull REFERENCE --key {file} --name {}", image.name)))
}

/// The image with a pool's servers in it, built if it is not there.
fn with_servers(
    store: &Store,
    base: sandpool_image::Image,
    servers: &[ServerPackage],
) -> Result<sandpool_image::Image, Failure> {
    if servers.is_empty() {
        return Ok(base);
    }
    if let Some(image) = store.with_servers(&base, servers).map_err(explain)? {
        return Ok(image);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(explain(ImageError::NotRoot));
    }
    install_what_builds()?;
    let start = Instant::now();
    let names: Vec<_> = servers.iter().map(|server| server.package.as_str()).collect();
    print::note(&format!("Adding {} to the image {}. It happens once.", names.join(", "), base.name));
    let shown = Shown::new(format!("{} with servers", base.name));
    let built = store.add_servers(&base, servers, &shown);
    shown.end();
    let image = built.map_err(explain)?;
    print::note(&format!("{}: built in {} s", image.name, start.elapsed().as_secs()));
    Ok(image)
}

fn build(context: &Context, names: &[String], directory: &Path) -> Outcome {
    let wanted: Vec<&Recipe> = match names {
        [] => recipes().iter().collect(),
        names => names
            .iter()
            .map(|name| recipe(name).map_err(|error| Failure::usage(error.to_string())))
            .collect::<Result<_, _>>()?,
    };
    let store = Store::open(directory).map_err(explain)?;
    build_missing(&store, &wanted)?;
    let mut built = Vec::new();
    for recipe in wanted {
        built.extend(store.current(recipe).map_err(explain)?);
    }
    if context.json {
        let value: Vec<_> = built.iter().map(|image| described(image, "current", false)).collect();
        print::json(&json!({ "value": value }))?;
    } else {
        for image in &built {
            print::out(&format!(
                "{}: {} {}, {}, {}\n",
                image.name,
                image.manifest.runtime,
                image.manifest.version,
                human_bytes(image.manifest.bytes),
                image.rootfs.display()
            ))?;
        }
    }
    Ok(0)
}

/// Builds those that are not there, one after the other, and says how it goes.
fn build_missing(store: &Store, wanted: &[&Recipe]) -> Result<(), Failure> {
    let mut missing = Vec::new();
    for recipe in wanted {
        if store.current(recipe).map_err(explain)?.is_none() {
            missing.push(*recipe);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        return Err(explain(ImageError::NotRoot));
    }
    install_what_builds()?;
    let names: Vec<_> = missing.iter().map(|recipe| recipe.name).collect();
    print::note(&format!(
        "Building {} in {}. It happens once: about a minute each with a fast network; what is cut short goes on \
         from its downloads.",
        names.join(", "),
        store.directory().display()
    ));
    for (index, recipe) in missing.iter().enumerate() {
        let start = Instant::now();
        let shown = Shown::new(format!("{} ({}/{})", recipe.name, index + 1, missing.len()));
        let built = store.build(recipe, &shown);
        shown.end();
        let image = built.map_err(explain)?;
        print::note(&format!(
            "{}: {} {}, {}, built in {} s",
            recipe.name,
            image.manifest.runtime,
            image.manifest.version,
            human_bytes(image.manifest.bytes),
            start.elapsed().as_secs()
        ));
    }
    Ok(())
}

/// Installs mmdebstrap, where there is the one tool that can.
fn install_what_builds() -> Result<(), Failure> {
    let Some((program, package)) = Store::missing_program() else { return Ok(()) };
    let by_hand = format!("apt-get update && apt-get install {}", PACKAGES.join(" "));
    let failure = || Failure::new(format!("building images needs {program}, and it is not on this machine"));
    if package != PACKAGES[0] {
        return Err(failure().advise(format!("apt-get install {package}")));
    }
    print::note(&format!("Installing {} with apt-get: images are built with it.", PACKAGES.join(", ")));
    let apt = |words: &[&str]| {
        Command::new("apt-get")
            .args(["-q", "-y", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=3"])
            .args(words)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .output()
    };
    let install: Vec<&str> = ["install", "--no-install-recommends"].into_iter().chain(PACKAGES).collect();
    let mut said = match apt(&install) {
        Ok(done) => done,
        Err(error) => {
            return Err(failure().because(format!("apt-get cannot be run: {error}")).advise(
                "install mmdebstrap with this system's own tool, or build images on a Debian machine and bring their \
                 directory along (--images DIR)",
            ));
        }
    };
    if !said.status.success() {
        // Its lists may be missing or old.
        let update = apt(&["update"]).map_err(|error| failure().because(error).advise(&by_hand))?;
        said = apt(&install).map_err(|error| failure().because(error).advise(&by_hand))?;
        if !said.status.success() && !update.status.success() {
            said = update;
        }
    }
    if said.status.success() && Store::missing_program().is_none() {
        return Ok(());
    }
    let mut failure = failure().because(format!("apt-get failed ({})", said.status));
    for line in String::from_utf8_lossy(&said.stderr).lines().filter(|line| !line.trim().is_empty()).take(5) {
        failure = failure.because(line);
    }
    Err(failure.advise(by_hand))
}

fn list(context: &Context, directory: &Path) -> Outcome {
    let mut found = Vec::new();
    // Who looks makes nothing.
    let images = if directory.join("names").is_dir() {
        Store::open(directory).and_then(|store| store.list()).map_err(explain)?
    } else {
        Vec::new()
    };
    for recipe in recipes() {
        match images.iter().find(|image| image.name == recipe.name) {
            Some(image) if image.manifest.digest == recipe.digest() => {
                found.push((image.name.clone(), "current", Some(image)));
            }
            Some(image) => found.push((image.name.clone(), "old", Some(image))),
            None => found.push((recipe.name.to_owned(), "missing", None)),
        }
    }
    let others = images.iter().filter(|image| recipe(&image.name).is_err());
    found.extend(others.map(|image| (image.name.clone(), "own", Some(image))));
    if context.json {
        let value = found.iter().map(|(name, state, image)| match image {
            Some(image) => described(image, state, true),
            None => json!({ "name": name, "state": state }),
        });
        print::json(&json!({ "value": value.collect::<Vec<_>>() }))?;
        return Ok(0);
    }
    let rows = found.iter().map(|(name, state, image)| {
        let cells = match image {
            Some(image) => [
                format!("{} {}", image.manifest.runtime, image.manifest.version),
                image.manifest.packages.len().to_string(),
                human_bytes(image.manifest.bytes),
                image.manifest.digest.chars().take(12).collect(),
            ],
            None => ["-".into(), "-".into(), "-".into(), "-".into()],
        };
        [name.clone(), (*state).to_owned()].into_iter().chain(cells).collect::<Vec<_>>()
    });
    print::table(&["IMAGE", "STATE", "RUNTIME", "PACKAGES", "SIZE", "DIGEST"], &rows.collect::<Vec<_>>())?;
    Ok(0)
}

fn described(image: &sandpool_image::Image, state: &str, with_packages: bool) -> Value {
    let manifest = &image.manifest;
    let mut value = json!({
        "name": image.name,
        "state": state,
        "runtime": manifest.runtime,
        "version": manifest.version,
        "digest": manifest.digest,
        "sizeInBytes": manifest.bytes,
        "createdAtUnixSeconds": manifest.created,
        "rootfs": image.rootfs,
    });
    if with_packages {
        value["packages"] = json!(manifest.packages);
    }
    if let Some(source) = &manifest.source {
        value["source"] = json!(source);
    }
    value
}

/// One image, as a command that made it ends.
pub(crate) fn shown_image(context: &Context, image: &sandpool_image::Image) -> Outcome {
    if context.json {
        print::json(&described(image, "own", true))?;
        return Ok(0);
    }
    let manifest = &image.manifest;
    let from = manifest.source.as_ref().map(|source| format!("{} ({})", source.reference, source.digest));
    print::out(&format!(
        "{}: {}, {}, {}\n",
        image.name,
        from.unwrap_or_default(),
        human_bytes(manifest.bytes),
        image.rootfs.display()
    ))?;
    Ok(0)
}

fn remove(context: &Context, names: &[String], directory: &Path) -> Outcome {
    let store = Store::open(directory).map_err(explain)?;
    // All or none: what cannot be removed is said before anything is.
    for name in names {
        let Some(image) = store.get(name).map_err(explain)? else {
            return Err(Failure::new(format!("there is no image {name} in {}", store.directory().display()))
                .advise("sandpool image ls"));
        };
        refuse_used(&context.home, &image)?;
    }
    for name in names {
        store.remove(name).map_err(explain)?;
        if !context.json {
            print::out(&format!("removed {name}\n"))?;
        }
    }
    if context.json {
        print::json(&json!({ "removed": names }))?;
    }
    Ok(0)
}

/// Says no while a server of this state directory makes sandboxes of the image.
fn refuse_used(home: &Home, image: &sandpool_image::Image) -> Result<(), Failure> {
    let Some(server) = home.server() else { return Ok(()) };
    let plan = Plan::read(&home.plan())?;
    if plan.images.values().all(|used| used.rootfs != image.rootfs) {
        return Ok(());
    }
    Err(Failure::new(format!("the image {} is in use", image.name))
        .because(format!("the server at {} makes sandboxes of it (process {})", server.endpoint, server.launcher.pid))
        .advise(format!("sandpool down{} first", home.flag())))
}

/// What to print of a failure, and what to do about it.
pub(crate) fn explain(error: ImageError) -> Failure {
    match error {
        ImageError::Step { name, stage, how, cause, tail, log } => {
            let mut failure = Failure::new(format!("image {name} was not built: {stage} failed"));
            failure = match cause {
                Some(cause) => failure.because(cause.sentence()),
                None => failure.because(how),
            };
            failure = failure.because(format!("its last words were:\n    {}", tail.join("\n    ")));
            match cause {
                Some(cause) => failure.because(format!("{} has all of it", log.display())).advise(cause.advice()),
                None => failure.advise(format!("{} has all of it", log.display())),
            }
        }
        ImageError::NotRoot => Failure::new("images are missing, and only root can build them")
            .advise("sudo sandpool image build; then they can be used by any user"),
        ImageError::Disk { .. } => {
            Failure::new(error.to_string()).advise("make room, or keep images elsewhere with --images DIR")
        }
        ImageError::Missing(_, package) => Failure::new(error.to_string()).advise(format!("apt-get install {package}")),
        ImageError::Unknown(..) => Failure::usage(error.to_string()),
        ImageError::Reserved(_) => Failure::usage(error.to_string()).advise("--name NAME gives this one another"),
        ImageError::Io { path, source } => {
            let failure = Failure::new(format!("cannot use {}", path.display())).because(&source);
            match source.kind() {
                std::io::ErrorKind::PermissionDenied => failure.advise("root may, with sudo; or --images DIR"),
                _ => failure,
            }
        }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        explain(error)
    }
}

impl From<sandpool_image::Image> for Image {
    fn from(image: sandpool_image::Image) -> Self {
        let manifest = image.manifest;
        let packages = manifest.packages.into_iter().map(|package| (package.name, package.version)).collect();
        Self {
            rootfs: image.rootfs,
            runtime: manifest.runtime,
            version: manifest.version,
            packages,
            created: UNIX_EPOCH + Duration::from_secs(manifest.created),
            config: manifest.source.and_then(|source| serde_json::from_value(source.config).ok()).unwrap_or_default(),
        }
    }
}

/// How a build looks. It is drawn when the build says something, so no thread draws it.
struct Shown {
    image: String,
    stage: RefCell<String>,
    bar: Option<ProgressBar>,
}

impl Shown {
    fn new(image: String) -> Self {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
        Self { image, stage: RefCell::default(), bar }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Shown {
    fn stage(&self, title: &str, total: Option<u64>) {
        let is_new = self.stage.replace(title.to_owned()) != title;
        let Some(bar) = &self.bar else {
            if is_new {
                print::note(&format!("{}: {title}", self.image));
            }
            return;
        };
        let template = match total {
            Some(_) => "{spinner} {prefix}: {msg} [{bar:24}] {pos}/{len}, {elapsed}",
            None => "{spinner} {prefix}: {msg} {pos:.dim}, {elapsed}",
        };
        // The templates are ours; a wrong one shows the default.
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_prefix(self.image.clone());
        bar.set_message(title.to_owned());
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(0);
    }

    fn step(&self) {
        if let Some(bar) = &self.bar {
            // What is counted is only about as many as was said.
            let full = bar.length().is_some_and(|length| bar.position() >= length);
            if !full {
                bar.inc(1);
            }
        }
    }

    fn pulse(&self) {
        if let Some(bar) = &self.bar {
            bar.tick();
        }
    }
}
