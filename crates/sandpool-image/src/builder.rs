//! From a recipe to an image: Debian by `mmdebstrap`, then the recipe's scripts in the new root, then a look at what
//! came out.
//!
//! Scripts run in a mount and process namespace of their own, so that whatever happens nothing of theirs stays
//! mounted or running. The host's certificates are shown to them there, since a registry may be reached through a
//! proxy that has its own; they are no part of the image.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::recipe::Recipe;
use crate::{ImageError, Manifest, Package, Progress};

/// Lines of a failed step that its error repeats.
const TAIL: usize = 15;

/// Where the host keeps the certificates it trusts.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What of the host's environment tells registries' clients where to go.
const REGISTRY_VARIABLES: [&str; 13] = [
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_DEFAULT_TIMEOUT",
    "PIP_TRUSTED_HOST",
    "npm_config_registry",
    "NPM_CONFIG_REGISTRY",
    "UV_INDEX_URL",
];

/// Prepares the root, then becomes the script. Arguments: root, recipe directory, cache, ids, script.
const ENTER: &str = r#"
set -eu
root=$1 recipe=$2 cache=$3 ids=$4 script=$5
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root/run/recipe" "$root/run/cache" "$root/run/scratch"
chown "$ids" "$root/run/scratch"
mount --bind "$recipe" "$root/run/recipe"
mount --bind "$cache" "$root/run/cache"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
for file in /etc/resolv.conf /etc/hosts "$CERTIFICATES"; do
    if [ -s "$file" ] && [ -e "$root$file" ]; then mount --bind "$(readlink -f "$file")" "$root$file"; fi
done
export CACHE=/run/cache SCRATCH=/run/scratch RECIPE=/run/recipe HOME=/run/scratch TMPDIR=/tmp LANG=C.UTF-8
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=
exec chroot --userspec="$ids" "$root" /bin/sh -c 'cd /run/recipe && exec /bin/sh "$1"' sh "$script"
"#;

/// Finds out what is in the image. Prints JSON: version, packages.
const LOOK: [(&str, &str); 3] = [
    (
        "python",
        r#"python3 -c 'import importlib.metadata as m, json, platform
print(json.dumps({"version": platform.python_version(), "packages": [[d.metadata["Name"], d.version] for d in m.distributions()]}))'"#,
    ),
    (
        "node",
        r#"node -e 'const fs = require("fs"), root = "/usr/local/lib/node_modules/", packages = [];
const look = name => { try { const p = JSON.parse(fs.readFileSync(root + name + "/package.json")); packages.push([p.name, p.version]); } catch {} };
for (const name of fs.readdirSync(root)) name[0] === "@" ? fs.readdirSync(root + name).forEach(part => look(name + "/" + part)) : look(name);
console.log(JSON.stringify({ version: process.versions.node, packages }))'"#,
    ),
    (
        "shell",
        r#"python3 -c 'import json, subprocess
run = lambda *words: subprocess.run(words, capture_output=True, text=True, check=True).stdout
packages = [line.split() for line in run("dpkg-query", "-W", "-f", "${Package} ${Version}\\n").splitlines()]
print(json.dumps({"version": run("bash", "-c", "echo ${BASH_VERSION%%(*}").strip(), "packages": packages}))'"#,
    ),
];

/// Makes the tree what sandboxes expect: no privilege in it, our users, our mount points.
const FINISH: &str = r#"
set -eu
printf 'sandbox:x:1000:\n' >>/etc/group
printf 'sandpool:x:998:\n' >>/etc/group
printf 'sandbox:x:1000:1000:sandbox:/home/sandbox:/bin/bash\n' >>/etc/passwd
printf 'sandpool:x:998:998:sandpool agent:/nonexistent:/usr/sbin/nologin\n' >>/etc/passwd
mkdir -p /mnt/data /home/sandbox
rm -rf /var/tmp /var/cache/apt/* /var/cache/debconf/* /var/lib/apt/lists/* /var/log/* /root/.cache /etc/machine-id
rm -f /etc/apt/apt.conf.d/*mmdebstrap* /etc/shadow- /etc/passwd- /etc/group- /etc/gshadow-
ln -s /tmp /var/tmp
find / -xdev -perm /6000 -exec chmod a-s {} +
"#;

struct Build<'a> {
    recipe: &'a Recipe,
    progress: &'a dyn Progress,
    root: PathBuf,
    recipe_directory: PathBuf,
    cache: PathBuf,
    log: PathBuf,
}

/// Builds, and puts the image in place. The caller holds the store's lock.
pub(crate) fn build(store: &Path, recipe: &Recipe, progress: &dyn Progress) -> Result<(), ImageError> {
    if !rustix::process::geteuid().is_root() {
        return Err(ImageError::NotRoot);
    }
    for (program, package) in [("mmdebstrap", "mmdebstrap"), ("unshare", "util-linux"), ("chroot", "coreutils")] {
        let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.map_err(|_| ImageError::Missing(program, package))?;
    }
    let space = rustix::fs::statvfs(store).map_err(|error| ImageError::io(store)(error.into()))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize) >> 20;
    if free < recipe.text.disk_mib {
        return Err(ImageError::Disk {
            place: store.display().to_string(),
            name: recipe.name.to_owned(),
            free,
            needed: recipe.text.disk_mib,
        });
    }
    let partial = store.join(format!("partial-{}", recipe.name));
    // What an earlier build that was killed left behind.
    remove(&partial)?;
    let build = Build {
        recipe,
        progress,
        root: partial.join("rootfs"),
        recipe_directory: partial.join("recipe"),
        cache: store.join("cache"),
        log: store.join(format!("{}.log", recipe.name)),
    };
    let done = build.run().and_then(|manifest| build.place(store, &partial, &manifest));
    if done.is_err() {
        build.keep_downloads();
    }
    remove(&partial)?;
    done
}

fn remove(directory: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::io(directory)(error)),
        _ => Ok(()),
    }
}

impl Build<'_> {
    fn run(&self) -> Result<Manifest, ImageError> {
        let make = |directory: &Path| fs::create_dir_all(directory).map_err(ImageError::io(directory));
        make(&self.root)?;
        make(&self.recipe_directory)?;
        for part in ["debs", "pip", "npm"] {
            make(&self.cache.join(part))?;
        }
        for (name, text) in self.recipe.files {
            let file = self.recipe_directory.join(name);
            fs::write(&file, text).map_err(ImageError::io(&file))?;
        }
        fs::write(&self.log, "").map_err(ImageError::io(&self.log))?;
        self.debian()?;
        for step in &self.recipe.text.steps {
            self.script(&step.title, &step.script, &step.counts, "0:0")?;
        }
        self.write_script("finish.sh", FINISH)?;
        self.script("finishing", "finish.sh", "", "0:0")?;
        self.script("checking", &self.recipe.text.check, "", "1000:1000")?;
        let manifest = self.look()?;
        // Device nodes are no part of an image: each sandbox gets its own few.
        let devices = self.root.join("dev");
        remove(&devices)?;
        make(&devices)?;
        Ok(manifest)
    }

    fn debian(&self) -> Result<(), ImageError> {
        let debs = self.cache.join("debs");
        let debs = debs.display();
        let mut command = Command::new("mmdebstrap");
        command
            .args(["--mode=root", "--variant=minbase"])
            .arg(format!("--architectures={}", self.recipe.text.architecture))
            .arg(format!("--include={}", self.recipe.text.packages.join(",")))
            .arg("--aptopt=Acquire::Retries \"3\"")
            .args(["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*"])
            .arg("--dpkgopt=path-exclude=/usr/share/man/*")
            .args(["--skip=download/empty", "--skip=essential/unlink"])
            .arg(format!("--setup-hook=mkdir -p \"$1/var/cache/apt/archives/partial\"; cp -n {debs}/*.deb \"$1/var/cache/apt/archives/\" 2>/dev/null || true"))
            .arg(format!("--customize-hook=cp -n \"$1\"/var/cache/apt/archives/*.deb {debs}/ 2>/dev/null || true"))
            .arg(&self.recipe.text.suite)
            .arg(&self.root);
        if let Some(mirror) = std::env::var_os("SANDPOOL_DEBIAN_MIRROR") {
            command.arg(mirror);
        }
        self.follow("installing Debian packages", &mut command, "Unpacking ").map(drop)
    }

    fn write_script(&self, name: &str, text: &str) -> Result<(), ImageError> {
        let file = self.recipe_directory.join(name);
        fs::write(&file, text).map_err(ImageError::io(&file))
    }

    fn script(&self, title: &str, script: &str, counts: &str, ids: &str) -> Result<String, ImageError> {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--propagation=private", "/bin/sh", "-c", ENTER, "sh"])
            .args([&self.root, &self.recipe_directory, &self.cache])
            .args([ids, script])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CERTIFICATES", CERTIFICATES)
            .env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
        for name in ["PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE"] {
            command.env(name, CERTIFICATES);
        }
        for name in REGISTRY_VARIABLES {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        self.follow(title, &mut command, counts)
    }

    /// Runs a program, counts its progress, writes all it says to the log, and answers its last line.
    fn follow(&self, title: &str, command: &mut Command, counts: &str) -> Result<String, ImageError> {
        self.progress.stage(title, None);
        let io = || ImageError::io(&self.log);
        let mut log = fs::OpenOptions::new().append(true).open(&self.log).map_err(io())?;
        writeln!(log, "== {title}").map_err(io())?;
        let (reader, writer) = io::pipe().map_err(io())?;
        command.stdin(Stdio::null()).stdout(writer.try_clone().map_err(io())?).stderr(writer);
        let mut child = command.spawn().map_err(io())?;
        // The command holds the pipe's other end open as long as it exists.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut tail = VecDeque::new();
        let mut lines = BufReader::new(reader);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).map_err(io())? > 0 {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            writeln!(log, "{text}").map_err(io())?;
            if let Some(total) = text.strip_prefix("sandpool:total ") {
                self.progress.stage(title, total.trim().parse().ok());
            } else if !counts.is_empty() && text.trim_start().starts_with(counts) {
                self.progress.step();
            }
            if !text.is_empty() {
                tail.push_back(text);
            }
            if tail.len() > TAIL {
                tail.pop_front();
            }
        }
        let status = child.wait().map_err(io())?;
        if status.success() {
            return Ok(tail.pop_back().unwrap_or_default());
        }
        Err(ImageError::Step {
            name: self.recipe.name.to_owned(),
            stage: title.to_owned(),
            how: status.to_string(),
            tail: tail.into_iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"),
            log: self.log.display().to_string(),
        })
    }

    /// Asks the image what it holds.
    fn look(&self) -> Result<Manifest, ImageError> {
        let runtime = self.recipe.text.runtime.as_str();
        let question = LOOK.iter().find(|(name, _)| *name == runtime).map_or("echo '{}'", |(_, question)| question);
        self.write_script("look.sh", question)?;
        let answer = self.script("looking at what is there", "look.sh", "", "1000:1000")?;
        let answer: Value = serde_json::from_str(&answer).map_err(|error| ImageError::io(&self.log)(error.into()))?;
        let version = answer["version"].as_str().unwrap_or_default().to_owned();
        let mut packages: Vec<Package> = answer["packages"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|pair| {
                Some(Package { name: pair[0].as_str()?.to_owned(), version: pair[1].as_str()?.to_owned() })
            })
            .collect();
        packages.sort();
        packages.dedup();
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Ok(Manifest {
            digest: self.recipe.digest(),
            runtime: runtime.to_owned(),
            version,
            packages,
            created,
            bytes: size(&self.root),
        })
    }

    fn place(&self, store: &Path, partial: &Path, manifest: &Manifest) -> Result<(), ImageError> {
        let about = json!({ "runtime": manifest.runtime, "version": manifest.version, "env": {} });
        let text = |value: &Value| format!("{value:#}\n");
        let file = self.root.join("etc/sandpool-image.json");
        fs::write(&file, text(&about)).map_err(ImageError::io(&file))?;
        let file = partial.join("manifest.json");
        fs::write(&file, text(&json!(manifest))).map_err(ImageError::io(&file))?;
        remove(&self.recipe_directory)?;
        let image = store.join(&manifest.digest);
        remove(&image)?;
        fs::rename(partial, &image).map_err(ImageError::io(&image))?;
        let name = store.join("names").join(self.recipe.name);
        let new = store.join("names").join(format!(".{}.new", self.recipe.name));
        fs::write(&new, format!("{}\n", manifest.digest)).map_err(ImageError::io(&new))?;
        fs::rename(&new, &name).map_err(ImageError::io(&name))
    }

    /// After a failure: whole packages that were downloaded need not be downloaded again.
    fn keep_downloads(&self) {
        let archives = self.root.join("var/cache/apt/archives");
        for entry in fs::read_dir(archives).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "deb") {
                // A cache: what cannot be kept is fetched again.
                let _ = fs::copy(entry.path(), self.cache.join("debs").join(entry.file_name()));
            }
        }
    }
}

/// The bytes of all files below a directory. Links are not followed.
fn size(directory: &Path) -> u64 {
    let mut total = 0;
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => left.push(entry.path()),
                Ok(meta) => total += meta.len(),
                Err(_) => {}
            }
        }
    }
    total
}
