//! OCI runtimes: which are on this host, whether they are good enough, and what each is told.
//!
//! A runtime is somebody else's program, and is found on the host, never brought along. What it prints is not trusted: its version is asked
//! for as a user without rights, by whoever prepares a start, and a version below its floor (`floors.txt`) refuses every pool that wants it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Child;

pub use sandpool_driver::OciRuntime;
use sandpool_vm::program::{self, Floors, WhyNot};
use serde::{Deserialize, Serialize};

/// The floors, as the file has them.
const FLOORS: Floors = Floors(include_str!("oci/floors.txt"));

/// What an operator says of one runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OciSettings {
    /// Its program; if not given, it is looked for in the usual places.
    pub path: Option<PathBuf>,
    /// A directory that its program needs besides the host's `/usr`, such as one with its libraries. By default the program's own.
    pub files: Option<PathBuf>,
    /// It is used although its version has holes that are known. Every session says so.
    pub accept_below_floor: bool,
}

/// A runtime that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Which.
    pub runtime: OciRuntime,
    /// Its file.
    pub path: PathBuf,
    /// What it needs besides the host's `/usr`.
    pub files: Option<PathBuf>,
    /// What it calls its version.
    pub version: String,
    /// Why it is weaker than it should be, where an operator wants it all the same.
    pub below_floor: Option<String>,
}

/// What was found of one runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It can be used.
    Good(Program),
    /// It is there, and must not be used: says why.
    Refused(String),
    /// It is not there.
    Absent(String),
}

/// What was found of each.
pub type Runtimes = BTreeMap<OciRuntime, Found>;

/// Looks for every runtime. Asks those that are there for their version, all at once. Needs root to ask as nobody.
#[must_use]
pub fn find(settings: &BTreeMap<OciRuntime, OciSettings>) -> Runtimes {
    let started: Vec<_> = OciRuntime::ALL
        .into_iter()
        .map(|runtime| {
            let said = settings.get(&runtime).cloned().unwrap_or_default();
            (runtime, locate(runtime, &said), said)
        })
        .collect();
    let found = started.into_iter().map(|(runtime, asked, said)| {
        let found = match asked {
            Err(found) => found,
            Ok((asked, path)) => match program::hear(asked).and_then(|text| version(runtime, &text)) {
                Err(why) => Found::Refused(format!("{}: {why}", path.display())),
                Ok(version) => judge(runtime, path, version, &said),
            },
        };
        (runtime, found)
    });
    found.collect()
}

/// Its file, and the question for its version.
fn locate(runtime: OciRuntime, said: &OciSettings) -> Result<(Child, PathBuf), Found> {
    let path = program::locate(runtime.word(), said.path.as_deref())?;
    Ok((program::ask(&path)?, path))
}

impl From<WhyNot> for Found {
    fn from(why: WhyNot) -> Self {
        match why {
            WhyNot::Refused(why) => Self::Refused(why),
            WhyNot::Absent(why) => Self::Absent(why),
        }
    }
}

/// The runtime for a pool that wants this one, or any.
///
/// # Errors
/// Why there is none.
pub fn choose(runtimes: &Runtimes, wanted: Option<OciRuntime>) -> Result<&Program, String> {
    let of = |runtime: OciRuntime| match runtimes.get(&runtime) {
        Some(Found::Good(program)) => Ok(program),
        Some(Found::Refused(why) | Found::Absent(why)) => Err(why.clone()),
        None => Err(format!("{} was not looked for", runtime.word())),
    };
    match wanted {
        Some(runtime) => of(runtime),
        None => {
            let each = OciRuntime::ALL.map(of);
            // One that is as it should be comes before one that somebody puts up with.
            let best = each.iter().flatten().min_by_key(|program| program.below_floor.is_some());
            best.copied().ok_or_else(|| {
                let whys: Vec<_> = each.into_iter().filter_map(Result::err).collect();
                format!("no OCI runtime is good enough here: {}", whys.join("; "))
            })
        }
    }
}

/// The version out of what `--version` prints: `runc version 1.3.6+ds1`, `runsc version 0.0~20240729.0` or `release-20250407.0`,
/// `youki version: 0.5.7`.
fn version(runtime: OciRuntime, text: &str) -> Result<String, String> {
    let line = text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix(runtime.word())?.trim_start().strip_prefix("version")?;
        Some(rest.trim_start_matches(':').trim())
    });
    let word = line.and_then(|rest| rest.split_whitespace().next()).unwrap_or_default();
    let word = word.trim_start_matches("release-").trim_start_matches("0.0~").trim_start_matches('v');
    if program::is_version(word) { Ok(word.to_owned()) } else { Err("what it says is no version of it".to_owned()) }
}

/// The floors of one runtime, for people.
#[must_use]
pub fn floor(runtime: OciRuntime) -> String {
    FLOORS.of(runtime.word())
}

fn judge(runtime: OciRuntime, path: PathBuf, version: String, said: &OciSettings) -> Found {
    let below_floor = FLOORS.below(runtime.word(), &version);
    match &below_floor {
        Some(why) if !said.accept_below_floor => Found::Refused(why.clone()),
        _ => {
            let own = path.parent().filter(|parent| !parent.starts_with("/usr")).map(Path::to_owned);
            let files = said.files.clone().or(own);
            Found::Good(Program { runtime, path, files, version, below_floor })
        }
    }
}

impl Program {
    /// The level that its sandboxes are at, as sessions report it.
    #[must_use]
    pub fn level(&self) -> String {
        level(self.runtime, &self.version)
    }

    /// Its command line: the container `c` of this bundle, detached, whose first process gets the descriptors from 3 on, of which there are so
    /// many.
    pub(crate) fn words(&self, bundle: &str, descriptors: usize, leads_out: bool) -> Vec<String> {
        let mut words = vec![self.path.to_string_lossy().into_owned(), "--root".to_owned(), "/run/oci".to_owned()];
        let mut add = |more: &[&str]| words.extend(more.iter().map(|word| (*word).to_owned()));
        match self.runtime {
            OciRuntime::Runc | OciRuntime::Youki => {}
            OciRuntime::Crun => add(&["--cgroup-manager=disabled"]),
            OciRuntime::Runsc => {
                // What leads out of a pool is its network namespace, with the listeners of its way out: then the sandbox's sockets are that
                // namespace's. Else its network is all gVisor's own.
                add(&[if leads_out { "--network=host" } else { "--network=none" }]);
                add(&[
                    "--platform=systrap",
                    "--ignore-cgroups",
                    "--overlay2=none",
                    "--host-uds=none",
                    "--host-fifo=none",
                ]);
            }
        }
        add(&["run", "--detach", "--bundle", bundle, "--pid-file", "/run/pid"]);
        match self.runtime {
            OciRuntime::Runc | OciRuntime::Crun | OciRuntime::Youki => {
                add(&["--preserve-fds", &descriptors.to_string()]);
            }
            OciRuntime::Runsc => {
                for number in 3..3 + descriptors {
                    add(&[&format!("--pass-fd={number}:{number}")]);
                }
            }
        }
        add(&["c"]);
        words
    }
}

/// The name of a level.
#[must_use]
pub fn level(runtime: OciRuntime, version: &str) -> String {
    match runtime {
        OciRuntime::Runsc => format!("container (runsc {version}, gVisor)"),
        _ => format!("container ({} {version})", runtime.word()),
    }
}

#[cfg(test)]
mod tests {
    use sandpool_vm::program::numbers;

    use super::*;

    #[test]
    fn versions_are_read_as_their_programs_say_them() {
        let said = |runtime, text: &str| version(runtime, text).ok();
        let runc = "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\n";
        assert_eq!(said(OciRuntime::Runc, runc).as_deref(), Some("1.1.5+ds1"));
        assert_eq!(said(OciRuntime::Crun, "crun version 1.8.1\ncommit: f8a\n").as_deref(), Some("1.8.1"));
        assert_eq!(said(OciRuntime::Runsc, "runsc version 0.0~20221219.0\n").as_deref(), Some("20221219.0"));
        assert_eq!(said(OciRuntime::Runsc, "runsc version release-20250407.0\n").as_deref(), Some("20250407.0"));
        assert_eq!(said(OciRuntime::Youki, "youki version: 0.5.7\n").as_deref(), Some("0.5.7"));
        for strange in ["", "runc version", "runc version $(id)", "runc version 1;2", "crun version 1.28"] {
            assert_eq!(said(OciRuntime::Runc, strange), None, "{strange}");
        }
    }

    #[test]
    fn versions_below_their_floor_are_told_with_the_reason() {
        let old = [
            (OciRuntime::Runc, "1.1.5+ds1"),
            (OciRuntime::Runc, "1.2.8"),
            (OciRuntime::Runc, "1.3.5"),
            (OciRuntime::Runc, "1.4.2"),
            (OciRuntime::Runc, "1.5.0-rc.2"),
            (OciRuntime::Crun, "1.8.1"),
            (OciRuntime::Crun, "1.27.1"),
            (OciRuntime::Youki, "0.5.6"),
            (OciRuntime::Runsc, "20221219.0"),
            (OciRuntime::Runsc, "20240729.0"),
        ];
        for (runtime, version) in old {
            let why = FLOORS.below(runtime.word(), version).unwrap_or_else(|| panic!("{version} was taken for good"));
            assert!(why.contains(version) && (why.contains("CVE") || why.contains("GHSA")), "{why}");
        }
        let good = [
            (OciRuntime::Runc, "1.3.6+ds1"),
            (OciRuntime::Runc, "1.3.10"),
            (OciRuntime::Runc, "1.4.3"),
            (OciRuntime::Runc, "1.5.0"),
            (OciRuntime::Runc, "1.30.0"),
            (OciRuntime::Runc, "2.0.0"),
            (OciRuntime::Crun, "1.28"),
            (OciRuntime::Youki, "0.6.0"),
            (OciRuntime::Runsc, "20250407.0"),
        ];
        for (runtime, version) in good {
            assert_eq!(FLOORS.below(runtime.word(), version), None, "{version}");
        }
    }

    #[test]
    fn every_runtime_has_a_floor_with_a_reason() {
        for runtime in OciRuntime::ALL {
            assert!(FLOORS.all().any(|floor| floor.program == runtime.word() && floor.branch == "*"), "{runtime:?}");
        }
        assert!(FLOORS.all().all(|floor| numbers(floor.version)[..2].iter().sum::<u64>() > 0 && !floor.why.is_empty()));
    }

    #[test]
    fn who_accepts_what_is_below_the_floor_is_told_of_it() {
        let said = |accept_below_floor| OciSettings { accept_below_floor, ..OciSettings::default() };
        let of = |accept| judge(OciRuntime::Runsc, "/opt/g/runsc".into(), "20240729.0".to_owned(), &said(accept));
        assert!(matches!(of(false), Found::Refused(why) if why.contains("below the floor")));
        let Found::Good(program) = of(true) else { panic!("it was to be accepted") };
        assert!(program.below_floor.is_some_and(|why| why.contains("below the floor")));
        assert_eq!(program.files.as_deref(), Some(Path::new("/opt/g")));
    }

    #[test]
    fn one_that_is_as_it_should_be_is_chosen_before_one_that_is_put_up_with() {
        let program = |runtime, below_floor: Option<&str>| {
            let below_floor = below_floor.map(str::to_owned);
            Found::Good(Program { runtime, path: "/x".into(), files: None, version: "1".to_owned(), below_floor })
        };
        let absent = Found::Absent("it is not there".to_owned());
        let mut runtimes = Runtimes::from([
            (OciRuntime::Runc, program(OciRuntime::Runc, Some("old"))),
            (OciRuntime::Crun, absent),
            (OciRuntime::Youki, Found::Refused("too old".to_owned())),
            (OciRuntime::Runsc, program(OciRuntime::Runsc, None)),
        ]);
        assert_eq!(choose(&runtimes, None).map(|program| program.runtime), Ok(OciRuntime::Runsc));
        assert_eq!(choose(&runtimes, Some(OciRuntime::Runc)).map(|program| program.runtime), Ok(OciRuntime::Runc));
        assert_eq!(choose(&runtimes, Some(OciRuntime::Youki)), Err("too old".to_owned()));
        runtimes.retain(|runtime, _| ![OciRuntime::Runc, OciRuntime::Runsc].contains(runtime));
        assert!(choose(&runtimes, None).unwrap_err().contains("too old"));
    }
}
