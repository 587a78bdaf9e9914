//! Images with servers: another image, and packages of somebody else's beside it, each in a directory of its own.
//!
//! ```text
//! /opt/servers/<name>/run     the program to start        /opt/servers/<name>/bin     all programs of the package
//! ```
//!
//! The other image's files are shared with it (hard links), so they must not change: nothing of a package runs in a build, and the
//! installers write to the server's own directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::builder::{self, Build};
use crate::{Image, ImageError, Manifest, Package, Progress, Store};

/// Changes when the same packages make another image.
const BUILDER: &str = "servers-1";

/// Free space that is asked for, in MiB.
const DISK_MIB: u64 = 500;

const NPM: &str = include_str!("../../../runtimes/servers/npm.sh");
const PYPI: &str = include_str!("../../../runtimes/servers/pypi.sh");

/// Where packages come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registry {
    /// npm; its image must have npm.
    Npm,
    /// PyPI; its image must have Python.
    Pypi,
}

/// A server to install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerPackage {
    /// The server's name: one plain component of a path.
    pub name: String,
    /// Where it comes from.
    pub registry: Registry,
    /// The package and its version as the registry's installer takes them: `name@1.2.3`, `name==1.2.3`.
    pub package: String,
    /// The program of the package; by default its only one, or that of its name.
    pub command: Option<String>,
}

impl ServerPackage {
    /// The program to start, in the image.
    #[must_use]
    pub fn program(name: &str) -> String {
        format!("/opt/servers/{name}/run")
    }
}

/// SHA-256 of what such an image is made from, in hexadecimal.
fn digest(base: &Image, servers: &[ServerPackage]) -> String {
    let mut hash = Sha256::new();
    let mut add = |part: &str| {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(part.as_bytes());
    };
    [BUILDER, NPM, PYPI, &base.manifest.digest].into_iter().for_each(&mut add);
    for server in servers {
        let registry = match server.registry {
            Registry::Npm => "npm",
            Registry::Pypi => "pypi",
        };
        let command = server.command.as_deref().unwrap_or_default();
        [registry, &server.name, &server.package, command].into_iter().for_each(&mut add);
    }
    hex::encode(hash.finalize())
}

impl Store {
    /// The image that has these servers beside what `base` has, if it has been built.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn with_servers(&self, base: &Image, servers: &[ServerPackage]) -> Result<Option<Image>, ImageError> {
        let digest = digest(base, servers);
        Ok(self.get(&name(base, &digest))?.filter(|image| image.manifest.digest == digest))
    }

    /// Builds that image; answers at once when it is there.
    ///
    /// # Errors
    /// What is missing, or which server could not be installed and why. Nothing half-made is left but downloads.
    pub fn add_servers(
        &self,
        base: &Image,
        servers: &[ServerPackage],
        progress: &dyn Progress,
    ) -> Result<Image, ImageError> {
        if let Some(image) = self.with_servers(base, servers)? {
            return Ok(image);
        }
        let _lock = self.lock(|| progress.stage("waiting for another build", None))?;
        // The other build may have been this one.
        if let Some(image) = self.with_servers(base, servers)? {
            return Ok(image);
        }
        let digest = digest(base, servers);
        let name = name(base, &digest);
        builder::prepare(self.directory(), &name, DISK_MIB)?;
        let partial = self.directory().join(format!("{}{name}", builder::PARTIAL));
        let build = Build::new(self.directory(), &partial, &name, progress);
        let done = install(&build, base, servers, digest).and_then(|manifest| {
            build.place(self.directory(), &partial, &manifest)?;
            let rootfs = self.directory().join(&manifest.digest).join("rootfs");
            Ok(Image { name: name.clone(), rootfs, manifest })
        });
        builder::remove(&partial)?;
        done
    }
}

/// A name for it: what it is made from decides.
fn name(base: &Image, digest: &str) -> String {
    format!("{:.40}-servers-{:.12}", base.name, digest)
}

fn install(build: &Build<'_>, base: &Image, servers: &[ServerPackage], digest: String) -> Result<Manifest, ImageError> {
    build.begin()?;
    share(build, &base.rootfs)?;
    for (file, text) in [("npm.sh", NPM), ("pypi.sh", PYPI)] {
        build.write_script(file, text)?;
    }
    let mut packages = base.manifest.packages.clone();
    for server in servers {
        let title = format!("installing the server {}", server.name);
        let (script, counts) = match server.registry {
            Registry::Npm => ("npm.sh", "npm http "),
            Registry::Pypi => ("pypi.sh", "Collecting "),
        };
        let variables = [
            ("SERVER", server.name.as_str()),
            ("PACKAGE", &server.package),
            ("COMMAND", server.command.as_deref().unwrap_or_default()),
        ];
        build.script_with(&title, script, counts, "0:0", &variables)?;
        packages.push(package(server));
    }
    build.empty_dev()?;
    let bytes = builder::size(build.root());
    Ok(Manifest { digest, packages, created: builder::now(), bytes, ..base.manifest.clone() })
}

/// A server's package as manifests list them.
fn package(server: &ServerPackage) -> Package {
    let at = match server.registry {
        Registry::Npm => server.package.rsplit_once('@'),
        Registry::Pypi => server.package.split_once("=="),
    };
    let (name, version) = at.unwrap_or((&server.package, ""));
    Package { name: name.to_owned(), version: version.to_owned() }
}

/// The other image's files, under new names.
fn share(build: &Build<'_>, rootfs: &Path) -> Result<(), ImageError> {
    let target: PathBuf = build.root().to_owned();
    fs::remove_dir(&target).map_err(ImageError::io(&target))?;
    let mut copy = Command::new("cp");
    copy.args(["--archive", "--link", "--no-target-directory", "--"]).arg(rootfs).arg(&target);
    build.follow("sharing the image's files", &mut copy, "").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(registry: Registry, package: &str) -> ServerPackage {
        ServerPackage { name: "one".to_owned(), registry, package: package.to_owned(), command: None }
    }

    #[test]
    fn a_package_is_listed_by_its_name_and_version() {
        for (registry, text, name, version) in [
            (Registry::Npm, "@scope/server@1.2.3", "@scope/server", "1.2.3"),
            (Registry::Npm, "server@1.0.0-rc.1", "server", "1.0.0-rc.1"),
            (Registry::Pypi, "mcp-server-time==2026.10.19", "mcp-server-time", "2026.10.19"),
            (Registry::Pypi, "server[all]==1.0", "server[all]", "1.0"),
        ] {
            let found = package(&server(registry, text));
            assert_eq!((found.name.as_str(), found.version.as_str()), (name, version));
        }
    }

    #[test]
    fn an_image_is_another_when_anything_of_it_is() {
        let manifest = |digest: &str| Manifest {
            source: None,
            digest: digest.to_owned(),
            runtime: "node".to_owned(),
            version: "1".to_owned(),
            packages: Vec::new(),
            created: 0,
            bytes: 0,
        };
        let base = |digest: &str| Image { name: "node".to_owned(), rootfs: "/x".into(), manifest: manifest(digest) };
        let one = [server(Registry::Npm, "a@1.0.0")];
        let first = digest(&base("x"), &one);
        assert_eq!(first, digest(&base("x"), &one));
        assert_ne!(first, digest(&base("y"), &one));
        assert_ne!(first, digest(&base("x"), &[server(Registry::Pypi, "a@1.0.0")]));
        let named = ServerPackage { command: Some("b".to_owned()), ..one[0].clone() };
        assert_ne!(first, digest(&base("x"), &[named]));
        assert!(name(&base("x"), &first).len() <= 64);
    }
}
