//! Programs of the host that others wrote: where they are, whose they are, which version they call themselves, and whether that is good
//! enough. What they print is not trusted: they are asked as a user without rights, and bounded.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where a program is looked for that nobody has said the place of.
const PLACES: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];

/// How long one may take to say its version, and how much it may say.
const VERSION: Duration = Duration::from_secs(5);
const MAX_VERSION: u64 = 4096;

/// Whom it is asked as.
const NOBODY: u32 = 65_534;

/// Why a program cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// It is there, and must not be used: says why.
    Refused(String),
    /// It is not there.
    Absent(String),
}

/// Its own path: that which is said, or one in the usual places.
///
/// # Errors
/// Also where others than root could have changed it.
pub fn locate(name: &str, said: Option<&Path>) -> Result<PathBuf, WhyNot> {
    let path = match said {
        Some(path) => path.to_owned(),
        None => {
            let found = PLACES.iter().map(|place| Path::new(place).join(name)).find(|path| path.exists());
            found.ok_or_else(|| WhyNot::Absent(format!("{name} is not in {}", PLACES.join(", "))))?
        }
    };
    let real = std::fs::canonicalize(&path)
        .map_err(|error| WhyNot::Absent(format!("{name} is not there: {}: {error}", path.display())))?;
    let refused = |why: &str| Err(WhyNot::Refused(format!("{}: {why}", real.display())));
    match std::fs::metadata(&real) {
        Ok(meta) if !meta.is_file() => refused("it is no file"),
        // Whoever could change it could be it.
        Ok(meta) if meta.uid() != 0 || meta.mode() & 0o022 != 0 => {
            refused("it belongs to others than root, or others may change it")
        }
        Ok(_) => Ok(real),
        Err(error) => refused(&error.to_string()),
    }
}

/// Asks for its version, as nobody in particular where the caller is root.
///
/// # Errors
/// Where it cannot be started.
pub fn ask(path: &Path) -> Result<Child, WhyNot> {
    let mut command = Command::new(path);
    command.arg("--version").env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.spawn().map_err(|error| WhyNot::Refused(format!("{}: {error}", path.display())))
}

/// What it says when it is asked.
///
/// # Errors
/// Where it fails, or takes too long.
pub fn hear(mut child: Child) -> Result<String, String> {
    let until = Instant::now() + VERSION;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
            _ => {
                // It says no more; what comes of it does not matter.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it did not say its version in {} s", VERSION.as_secs()));
            }
        }
    };
    let mut text = Vec::new();
    if let Some(output) = child.stdout {
        output.take(MAX_VERSION).read_to_end(&mut text).map_err(|error| error.to_string())?;
    }
    if status.success() {
        Ok(String::from_utf8_lossy(&text).into_owned())
    } else {
        Err(format!("asked for its version, it ended with {status}"))
    }
}

/// Whether a word can be a version: it begins with a number, and has nothing in it that anybody would have to quote.
#[must_use]
pub fn is_version(word: &str) -> bool {
    word.starts_with(|first: char| first.is_ascii_digit())
        && word.len() <= 64
        && word.chars().all(|c| c.is_ascii_alphanumeric() || ".+-~".contains(c))
}

/// The numbers of a version, by which versions are in order. What comes before a version (`1.5.0-rc.3`) is less than it.
#[must_use]
pub fn numbers(version: &str) -> Vec<u64> {
    let (plain, before) = match version.split_once('-') {
        Some((plain, rest)) => (plain, rest.starts_with("rc")),
        None => (version, false),
    };
    let plain = plain.split(['+', '~']).next().unwrap_or_default();
    let mut numbers: Vec<u64> = plain.split('.').map_while(|part| part.parse().ok()).collect();
    numbers.resize(4, 0);
    numbers.push(u64::from(!before));
    numbers
}

/// The oldest versions that are good enough, as a text with lines of a program's word, a branch (a prefix of the version, or `*` for all
/// others), a version, and the reason. Lines that begin with `#` are for people.
#[derive(Clone, Copy, Debug)]
pub struct Floors(pub &'static str);

/// One line of them.
#[derive(Clone, Copy, Debug)]
pub struct Floor {
    /// Whose it is.
    pub program: &'static str,
    /// Which versions it is for.
    pub branch: &'static str,
    /// The oldest of them that is good enough.
    pub version: &'static str,
    /// What those before it have.
    pub why: &'static str,
}

impl Floors {
    /// All of them.
    pub fn all(self) -> impl Iterator<Item = Floor> {
        self.0.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (program, rest) = line.split_once(char::is_whitespace)?;
            let (branch, rest) = rest.trim_start().split_once(char::is_whitespace)?;
            let (version, why) = rest.trim_start().split_once(char::is_whitespace)?;
            Some(Floor { program, branch, version, why: why.trim() })
        })
    }

    /// Those of one program, for people.
    #[must_use]
    pub fn of(self, program: &str) -> String {
        let versions: Vec<_> = self.all().filter(|floor| floor.program == program).map(|floor| floor.version).collect();
        versions.join(", ")
    }

    /// Why a version is too old, if it is.
    #[must_use]
    pub fn below(self, program: &str, version: &str) -> Option<String> {
        let of_it: Vec<_> = self.all().filter(|floor| floor.program == program).collect();
        let of_branch = of_it.iter().find(|floor| {
            version.strip_prefix(floor.branch).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
        });
        let floor = of_branch.or_else(|| of_it.iter().find(|floor| floor.branch == "*"))?;
        if numbers(version) >= numbers(floor.version) {
            return None;
        }
        Some(format!("{program} {version} is below the floor ({}): {}", self.of(program), floor.why))
    }
}
