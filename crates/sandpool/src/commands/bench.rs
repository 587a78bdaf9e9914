//! `sandpool bench`: what a caller feels, measured beside the same work without us.

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use sandpool_bench::compare::{self, compare};
use sandpool_bench::floor::Plan;
use sandpool_bench::run::{self, Progress, Run};
use sandpool_bench::scenario::{Scale, Scenario};
use sandpool_image::Store;
use serde_json::json;

use super::Outcome;
use crate::args::{Bench, BenchCompare, BenchRun, BenchWhat};
use crate::client::Context;
use crate::failure::Failure;
use crate::home::quoted;
use crate::print;

pub(crate) fn run(context: &Context, bench: &Bench) -> Outcome {
    match bench {
        Bench::Run(asked) => measure(context, asked),
        Bench::List => list(context),
        Bench::Compare(asked) => compare_two(context, asked),
        Bench::Show { run } => show(context, &Run::read(run)?),
        Bench::Floor { plan } => {
            sandpool_bench::floor::serve(plan)?;
            Ok(0)
        }
    }
}

fn measure(context: &Context, asked: &BenchRun) -> Outcome {
    let (images, plan) = images(context, &asked.what)?;
    let this = this_program()?;
    let config = run::Config {
        program: asked.program.clone().unwrap_or_else(|| this.clone()),
        images,
        floor: [this.into_os_string(), "bench".into(), "__floor".into()].to_vec(),
        plan,
        scenarios: if asked.scenarios.is_empty() {
            Scenario::ALL.into_iter().filter(|scenario| !scenario.is_asked_for()).collect()
        } else {
            asked.scenarios.clone()
        },
        scale: scale(&asked.what),
        peers: asked.peers.clone().map(|peers| sandpool_bench::peers::Config {
            peers,
            state: context.home.path().join("cache/peers"),
            rounds: sandpool_bench::peers::rounds(asked.what.quick),
            scenarios: asked.scenarios.iter().map(|scenario| scenario.name().to_owned()).collect(),
        }),
    };
    let bars = Bars::default();
    let found = run::run(&config, &bars);
    bars.end();
    let found = found?;
    let out = asked.out.clone().unwrap_or_else(|| Path::new("bench/runs").join(found.name()));
    found.write(&out, &command())?;
    show(context, &found)?;
    print::note(&format!("kept in {}", out.display()));
    Ok(u8::from(!found.trouble.is_empty()))
}

fn compare_two(context: &Context, asked: &BenchCompare) -> Outcome {
    let (images, _) = images(context, &asked.what)?;
    let config = compare::Config {
        programs: [asked.a.clone(), asked.b.clone()],
        images,
        scenarios: asked.scenarios.clone(),
        rounds: asked.rounds.and_then(|rounds| usize::try_from(rounds).ok()),
        scale: scale(&asked.what),
        seed: 1,
    };
    let bars = Bars::default();
    let found = compare(&config, &bars);
    bars.end();
    let found = found?;
    if context.json {
        print::json(&serde_json::to_value(&found).map_err(anyhow::Error::from)?)?;
    } else {
        print::out(&found.markdown())?;
    }
    Ok(0)
}

fn list(context: &Context) -> Outcome {
    if context.json {
        let described = |scenario: &Scenario| json!({ "name": scenario.name(), "about": scenario.about(), "floor": scenario.floor(), "goal": scenario.goal() });
        print::json(&json!({ "value": Scenario::ALL.iter().map(described).collect::<Vec<_>>() }))?;
        return Ok(0);
    }
    let row = |scenario: &Scenario| {
        let goal = scenario.goal().map_or_else(|| "-".to_owned(), |goal| format!("G{}", goal.number));
        vec![scenario.name().to_owned(), goal, scenario.about().to_owned()]
    };
    print::table(&["SCENARIO", "GOAL", "MEASURES"], &Scenario::ALL.iter().map(row).collect::<Vec<_>>())?;
    Ok(0)
}

fn show(context: &Context, found: &Run) -> Outcome {
    if context.json {
        print::json(&serde_json::to_value(found).map_err(anyhow::Error::from)?)?;
    } else {
        print::out(&found.markdown())?;
    }
    Ok(0)
}

fn scale(what: &BenchWhat) -> Scale {
    Scale { quick: what.quick, random: what.poisson }
}

/// The image store, and the root file systems of those images that floors need. Says what is missing before anything
/// is started.
fn images(context: &Context, what: &BenchWhat) -> Result<(PathBuf, Plan), Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new("a benchmark starts a server and bare sandboxes, and only root can make those")
            .advise(format!("sudo {}", command())));
    }
    let directory = what.images.clone().unwrap_or_else(|| context.home.images());
    let missing = |name: &str| {
        Failure::new(format!("there is no image {name} in {}", directory.display()))
            .because("a benchmark measures what is built, and builds nothing")
            .advise(format!("sandpool image build --images {}", quoted(&directory.to_string_lossy())))
    };
    // Who looks makes nothing.
    if !directory.join("names").is_dir() {
        return Err(missing("python"));
    }
    let store = Store::open(&directory).map_err(anyhow::Error::from)?;
    let rootfs = |name: &str| match store.get(name).map_err(anyhow::Error::from)? {
        Some(image) => Ok(image.rootfs),
        None => Err(missing(name)),
    };
    rootfs("shell")?;
    let plan = Plan { python: rootfs("python")?, node: rootfs("node")? };
    Ok((directory, plan))
}

fn this_program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|error| Failure::new("cannot find this program").because(error))
}

/// How this was called.
fn command() -> String {
    let words: Vec<OsString> = std::env::args_os().collect();
    words.iter().map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// How far it is: a bar on a terminal, a line for each scenario elsewhere.
#[derive(Default)]
struct Bars {
    bar: RefCell<Option<ProgressBar>>,
}

impl Bars {
    fn end(&self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bars {
    fn stage(&self, title: &str, turns: usize) {
        self.end();
        if !std::io::stderr().is_terminal() {
            return print::note(title);
        }
        let bar = ProgressBar::new(u64::try_from(turns).unwrap_or_default());
        let style = ProgressStyle::with_template("{spinner} {msg} [{bar:24}] {pos}/{len}, {elapsed}");
        // The template is ours; a wrong one shows the default.
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(title.to_owned());
        bar.tick();
        self.bar.replace(Some(bar));
    }

    fn step(&self) {
        if let Some(bar) = &*self.bar.borrow() {
            bar.inc(1);
        }
    }
}
