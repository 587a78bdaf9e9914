//! From a recipe to an image: Debian by `mmdebstrap`, then the recipe's scripts in the new root, then a look at what
//! came out.
//!
//! All of it runs in mount and process namespaces of its own, which end with the builder: also when that is killed,
//! nothing stays mounted or running. The host's certificates are shown to scripts there, since a registry may be
//! reached through a proxy that has its own; they are no part of the image.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, PipeReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

use crate::recipe::Recipe;
use crate::{ImageError, Manifest, Package, Progress};

/// Lines of a failed step that its error repeats.
const TAIL: usize = 12;

/// Bytes of one line that are looked at; what is longer is progress drawn over itself.
const LINE: usize = 8 << 10;

/// How often a build says that it is alive.
const PULSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Starts a program that dies with us, and with it all that it started.
const ALONE: [&str; 10] = [
    "setpriv",
    "--pdeathsig",
    "KILL",
    "unshare",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--propagation=private",
];

/// Where the host keeps the certificates it trusts.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What of the host's environment tells registries' clients where to go.
const REGISTRY_VARIABLES: [&str; 14] = [
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
    "PIP_RETRIES",
    "npm_config_registry",
    "NPM_CONFIG_REGISTRY",
    "UV_INDEX_URL",
];

/// Puts packages that were downloaded before where apt finds them. One that was cut is seen by its size.
const FILL: &str = r#"mkdir -p "$1/var/cache/apt/archives/partial"
cp -n "$SANDPOOL_DEBS"/*.deb "$1/var/cache/apt/archives/" 2>/dev/null || true"#;

/// Keeps packages for other builds. A name appears when the whole file is there.
const KEEP: &str = r#"for file in "$1"/var/cache/apt/archives/*.deb; do
    kept="$SANDPOOL_DEBS/${file##*/}"
    [ -e "$kept" ] || { cp "$file" "$kept.new" && mv "$kept.new" "$kept"; } || true
done"#;

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

/// What the directory of an unfinished build is called, before its image's name. Whoever builds next removes it.
pub(crate) const PARTIAL: &str = "partial-";

/// A build of an image, whatever it is made from.
pub(crate) struct Build<'a> {
    name: &'a str,
    progress: &'a dyn Progress,
    root: PathBuf,
    recipe_directory: PathBuf,
    cache: PathBuf,
    log: PathBuf,
}

/// Builds, and puts the image in place. The caller holds the store's lock.
pub(crate) fn build(store: &Path, recipe: &Recipe, progress: &dyn Progress) -> Result<(), ImageError> {
    prepare(store, recipe.name, recipe.text.disk_mib)?;
    let partial = store.join(format!("{PARTIAL}{}", recipe.name));
    let build = Build::new(store, &partial, recipe.name, progress);
    let done = build.run(recipe).and_then(|manifest| build.place(store, &partial, &manifest));
    if done.is_err() {
        keep_downloads(&build.root, &build.cache);
    }
    remove(&partial)?;
    done
}

/// Checks that an image can be built here, and removes what earlier builds left behind.
pub(crate) fn prepare(store: &Path, name: &str, needed: u64) -> Result<(), ImageError> {
    if !rustix::process::geteuid().is_root() {
        return Err(ImageError::NotRoot);
    }
    if let Some((program, package)) = missing_program() {
        return Err(ImageError::Missing(program, package));
    }
    sweep(store)?;
    let space = rustix::fs::statvfs(store).map_err(|error| ImageError::io(store)(error.into()))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize) >> 20;
    if free < needed {
        return Err(ImageError::Disk { place: store.display().to_string(), name: name.to_owned(), free, needed });
    }
    Ok(())
}

/// Removes what earlier builds that were killed left behind, but for what they had downloaded.
fn sweep(store: &Path) -> Result<(), ImageError> {
    for entry in fs::read_dir(store).map_err(ImageError::io(store))? {
        let entry = entry.map_err(ImageError::io(store))?;
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            keep_downloads(&entry.path().join("rootfs"), &store.join("cache"));
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// A program that builds need and this machine lacks, and the package that has it.
pub(crate) fn missing_program() -> Option<(&'static str, &'static str)> {
    let needed =
        [("mmdebstrap", "mmdebstrap"), ("unshare", "util-linux"), ("setpriv", "util-linux"), ("chroot", "coreutils")];
    let is_there = |program: &str| {
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    needed.into_iter().find(|(program, _)| !is_there(program))
}

pub(crate) fn remove(directory: &Path) -> Result<(), ImageError> {
    // Nothing is mounted there: builds mount in namespaces of their own. Should something be, this machine's own
    // devices may be behind it, and removing goes no further.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if let Some(place) = mounted_below(&mounts, directory) {
        return Err(ImageError::io(directory)(io::Error::other(format!("{place} is mounted there: umount it first"))));
    }
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::io(directory)(error)),
        _ => Ok(()),
    }
}

/// A place in or below a directory where something is mounted, by the text of `mountinfo`.
fn mounted_below(mounts: &str, directory: &Path) -> Option<String> {
    let place = |line: &str| Some(line.split(' ').nth(4)?.replace("\\040", " "));
    mounts.lines().filter_map(place).find(|place| Path::new(place).starts_with(directory))
}

impl<'a> Build<'a> {
    /// A build in the directory `partial` of a store.
    pub(crate) fn new(store: &Path, partial: &Path, name: &'a str, progress: &'a dyn Progress) -> Self {
        Self {
            name,
            progress,
            root: partial.join("rootfs"),
            recipe_directory: partial.join("recipe"),
            cache: store.join("cache"),
            log: store.join(format!("{name}.log")),
        }
    }

    /// The new root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes its directories, all empty but the caches.
    pub(crate) fn begin(&self) -> Result<(), ImageError> {
        let make = |directory: &Path| fs::create_dir_all(directory).map_err(ImageError::io(directory));
        make(&self.root)?;
        make(&self.recipe_directory)?;
        for part in ["debs", "pip", "npm"] {
            make(&self.cache.join(part))?;
        }
        fs::write(&self.log, "").map_err(ImageError::io(&self.log))
    }

    fn run(&self, recipe: &Recipe) -> Result<Manifest, ImageError> {
        self.begin()?;
        for (name, text) in recipe.files {
            self.write_script(name, text)?;
        }
        self.debian(&recipe.text)?;
        for step in &recipe.text.steps {
            self.script(&step.title, &step.script, &step.counts, "0:0")?;
        }
        self.write_script("finish.sh", FINISH)?;
        self.script("finishing", "finish.sh", "", "0:0")?;
        self.script("checking", &recipe.text.check, "", "1000:1000")?;
        let manifest = self.look(recipe)?;
        self.empty_dev()?;
        Ok(manifest)
    }

    /// Device nodes are no part of an image: each sandbox gets its own few.
    pub(crate) fn empty_dev(&self) -> Result<(), ImageError> {
        let devices = self.root.join("dev");
        remove(&devices)?;
        fs::create_dir_all(&devices).map_err(ImageError::io(&devices))
    }

    fn debian(&self, recipe: &crate::recipe::Text) -> Result<(), ImageError> {
        let debs = self.cache.join("debs");
        let mut command = alone("mmdebstrap");
        command
            .args(["--mode=root", "--variant=minbase"])
            .arg(format!("--architectures={}", recipe.architecture))
            .arg(format!("--include={}", recipe.packages.join(",")))
            .arg("--aptopt=Acquire::Retries \"3\"")
            .args(["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*"])
            .arg("--dpkgopt=path-exclude=/usr/share/man/*")
            .args(["--skip=download/empty", "--skip=essential/unlink"])
            .arg(format!("--setup-hook={FILL}"))
            .arg(format!("--customize-hook={KEEP}"))
            .arg(&recipe.suite)
            .arg(&self.root)
            // The hooks read it: a path has no place in the text of a script.
            .env("SANDPOOL_DEBS", &debs);
        if let Some(mirror) = std::env::var_os("SANDPOOL_DEBIAN_MIRROR") {
            command.arg(mirror);
        }
        self.follow("installing Debian packages", &mut command, "Unpacking ").map(drop)
    }

    pub(crate) fn write_script(&self, name: &str, text: &str) -> Result<(), ImageError> {
        let file = self.recipe_directory.join(name);
        fs::write(&file, text).map_err(ImageError::io(&file))
    }

    fn script(&self, title: &str, script: &str, counts: &str, ids: &str) -> Result<String, ImageError> {
        self.script_with(title, script, counts, ids, &[])
    }

    /// Runs a script of the recipe in the new root, with these variables.
    pub(crate) fn script_with(
        &self,
        title: &str,
        script: &str,
        counts: &str,
        ids: &str,
        variables: &[(&str, &str)],
    ) -> Result<String, ImageError> {
        let mut command = alone("/bin/sh");
        command
            .args(["-c", ENTER, "sh"])
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
        command.envs(variables.iter().copied());
        self.follow(title, &mut command, counts)
    }

    /// Runs a program, counts its progress, writes all it says to the log, and answers its last line.
    pub(crate) fn follow(&self, title: &str, command: &mut Command, counts: &str) -> Result<String, ImageError> {
        self.progress.stage(title, None);
        let io = || ImageError::io(&self.log);
        let mut log = fs::OpenOptions::new().append(true).open(&self.log).map_err(io())?;
        writeln!(log, "== {title}").map_err(io())?;
        let (mut reader, writer) = io::pipe().map_err(io())?;
        command.stdin(Stdio::null()).stdout(writer.try_clone().map_err(io())?).stderr(writer);
        let mut child = command.spawn().map_err(io())?;
        // The command holds the pipe's other end open as long as it exists.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut tail = Tail::default();
        let mut pending = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = self.read(&mut reader, &mut buffer).map_err(io())?;
            log.write_all(&buffer[..count]).map_err(io())?;
            pending.extend_from_slice(&buffer[..count]);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                self.hear(title, counts, &line, &mut tail);
            }
            if pending.len() > LINE || count == 0 {
                self.hear(title, counts, &pending, &mut tail);
                pending.clear();
            }
            if count == 0 {
                break;
            }
        }
        let status = child.wait().map_err(io())?;
        if status.success() {
            return Ok(tail.lines.pop_back().unwrap_or_default());
        }
        Err(ImageError::Step {
            name: self.name.to_owned(),
            stage: title.to_owned(),
            how: status.to_string(),
            cause: tail.cause,
            tail: Vec::from(tail.lines).into(),
            log: self.log.clone(),
        })
    }

    /// Reads what there is, and tells the one who waits that this goes on while there is nothing.
    fn read(&self, reader: &mut PipeReader, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let ready = {
                let mut fds = [PollFd::new(reader, PollFlags::IN)];
                rustix::event::poll(&mut fds, Some(&PULSE))
            };
            self.progress.pulse();
            match ready {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return reader.read(buffer),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn hear(&self, title: &str, counts: &str, line: &[u8], tail: &mut Tail) {
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        if let Some(total) = text.strip_prefix("sandpool:total ") {
            self.progress.stage(title, total.trim().parse().ok());
        } else if !counts.is_empty() && text.trim_start().starts_with(counts) {
            self.progress.step();
        }
        tail.push(text);
    }

    /// Asks the image what it holds.
    fn look(&self, recipe: &Recipe) -> Result<Manifest, ImageError> {
        let runtime = recipe.text.runtime.as_str();
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
        Ok(Manifest {
            digest: recipe.digest(),
            runtime: runtime.to_owned(),
            version,
            packages,
            created: now(),
            bytes: size(&self.root),
            source: None,
        })
    }

    pub(crate) fn place(&self, store: &Path, partial: &Path, manifest: &Manifest) -> Result<(), ImageError> {
        let about = json!({ "runtime": manifest.runtime, "version": manifest.version, "env": {} });
        let file = self.root.join("etc/sandpool-image.json");
        // It may be another image's too: not written over, but made anew.
        let _ = fs::remove_file(&file);
        fs::write(&file, format!("{about:#}\n")).map_err(ImageError::io(&file))?;
        remove(&self.recipe_directory)?;
        finish(store, partial, self.name, manifest)
    }
}

/// What has been made in `partial` is whole: it becomes the image of this name.
pub(crate) fn finish(store: &Path, partial: &Path, called: &str, manifest: &Manifest) -> Result<(), ImageError> {
    let file = partial.join("manifest.json");
    fs::write(&file, format!("{:#}\n", json!(manifest))).map_err(ImageError::io(&file))?;
    let image = store.join(&manifest.digest);
    remove(&image)?;
    fs::rename(partial, &image).map_err(ImageError::io(&image))?;
    name(store, called, &manifest.digest)
}

/// From now on the name means this digest.
pub(crate) fn name(store: &Path, name: &str, digest: &str) -> Result<(), ImageError> {
    let place = store.join("names").join(name);
    let new = store.join("names").join(format!(".{name}.new"));
    fs::write(&new, format!("{digest}\n")).map_err(ImageError::io(&new))?;
    fs::rename(&new, &place).map_err(ImageError::io(&place))
}

/// After a failure: whole packages that were downloaded need not be downloaded again.
fn keep_downloads(root: &Path, cache: &Path) {
    let debs = cache.join("debs");
    for entry in fs::read_dir(root.join("var/cache/apt/archives")).into_iter().flatten().flatten() {
        if entry.path().extension().is_none_or(|extension| extension != "deb") {
            continue;
        }
        let kept = debs.join(entry.file_name());
        let new = kept.with_extension("deb.new");
        // A cache: what cannot be kept is fetched again.
        if !kept.exists() && fs::copy(entry.path(), &new).is_ok() {
            let _ = fs::rename(&new, &kept);
        }
    }
}

/// A program in namespaces of its own, that ends when we do.
fn alone(program: &str) -> Command {
    let mut command = Command::new(ALONE[0]);
    command.args(&ALONE[1..]).arg("--").arg(program);
    command
}

/// What a step said last, and what of all it said tells why it failed.
#[derive(Default)]
struct Tail {
    lines: VecDeque<String>,
    cause: Option<Cause>,
}

impl Tail {
    fn push(&mut self, text: String) {
        if text.is_empty() {
            return;
        }
        if let Some(cause) = Cause::of(&text) {
            // What follows from a full disk or a wrong hash looks like something else.
            self.cause = Some(self.cause.map_or(cause, |known| known.min(cause)));
        }
        self.lines.push_back(text);
        if self.lines.len() > TAIL {
            self.lines.pop_front();
        }
    }
}

/// Why a step failed, where its words are well known. The most telling one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The disk became full.
    DiskFull,
    /// A download is not what the lock file says.
    WrongHash,
    /// Debian's signature is by a key that this machine does not know.
    UnknownKey,
    /// A registry or mirror cannot be reached.
    Unreachable,
}

impl Cause {
    fn of(line: &str) -> Option<Self> {
        const SAID: [(&str, Cause); 19] = [
            ("No space left on device", Cause::DiskFull),
            ("ENOSPC", Cause::DiskFull),
            ("You don't have enough free space", Cause::DiskFull),
            ("DO NOT MATCH THE HASHES", Cause::WrongHash),
            ("EINTEGRITY", Cause::WrongHash),
            ("Hash Sum mismatch", Cause::WrongHash),
            ("NO_PUBKEY", Cause::UnknownKey),
            ("is not signed", Cause::UnknownKey),
            ("EXPKEYSIG", Cause::UnknownKey),
            ("Could not resolve", Cause::Unreachable),
            ("Temporary failure", Cause::Unreachable),
            ("Name or service not known", Cause::Unreachable),
            ("Connection refused", Cause::Unreachable),
            ("ECONNREFUSED", Cause::Unreachable),
            ("ENOTFOUND", Cause::Unreachable),
            ("ETIMEDOUT", Cause::Unreachable),
            ("EAI_AGAIN", Cause::Unreachable),
            ("Could not connect", Cause::Unreachable),
            ("Failed to establish a new connection", Cause::Unreachable),
        ];
        SAID.iter().find(|(words, _)| line.contains(words)).map(|(_, cause)| *cause)
    }

    /// In a sentence.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::DiskFull => "the disk became full",
            Self::WrongHash => "a download is not what its lock says: its hash is another",
            Self::UnknownKey => "this machine does not know the key that Debian's packages are signed with",
            Self::Unreachable => "a server that packages come from cannot be reached",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::DiskFull => "make room, or keep images elsewhere with --images DIR; then the same command again",
            Self::WrongHash => {
                "a mirror or proxy that changes files is in between: another one, then the same command again"
            }
            Self::UnknownKey => "apt-get update && apt-get install debian-archive-keyring; then the same command again",
            Self::Unreachable => {
                "the same command again when there is a network: it goes on from what it has. Mirrors and proxies are \
                 taken from https_proxy, SANDPOOL_DEBIAN_MIRROR, PIP_INDEX_URL and npm_config_registry"
            }
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The bytes of all files below a directory. Links are not followed.
pub(crate) fn size(directory: &Path) -> u64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_step_said_tells_why_it_failed() {
        for (said, cause) in [
            ("npm error code EINTEGRITY", Some(Cause::WrongHash)),
            ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", Some(Cause::WrongHash)),
            (
                "Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111: Connection refused)",
                Some(Cause::Unreachable),
            ),
            ("tar: write error: No space left on device\nnpm error code ECONNREFUSED", Some(Cause::DiskFull)),
            ("W: GPG error: trixie InRelease: NO_PUBKEY 0123456789ABCDEF", Some(Cause::UnknownKey)),
            ("AssertionError", None),
        ] {
            let mut tail = Tail::default();
            said.lines().for_each(|line| tail.push(line.to_owned()));
            assert_eq!(tail.cause, cause, "{said}");
        }
    }

    #[test]
    fn what_is_mounted_in_a_tree_is_seen() {
        let mounts = "22 1 0:20 / /proc rw - proc proc rw\n\
            40 1 0:30 / /a\\040store/partial-x/rootfs/dev rw - devtmpfs none rw\n";
        let below = |directory: &str| mounted_below(mounts, Path::new(directory));
        assert_eq!(below("/a store/partial-x").as_deref(), Some("/a store/partial-x/rootfs/dev"));
        assert_eq!(below("/a store/partial"), None);
    }

    #[test]
    fn a_tail_is_short_and_has_no_empty_lines() {
        let mut tail = Tail::default();
        (0..40).for_each(|number| tail.push(if number % 2 == 0 { String::new() } else { number.to_string() }));
        assert_eq!((tail.lines.len(), tail.lines.back().map(String::as_str)), (TAIL, Some("39")));
    }
}
