//! `sandpool doctor`: what this host can do, what is missing, and how to get it.

use sandpool_process::host::{Line, Report, Verdict};
use sandpool_process::oci::{self, Found, OciRuntime, Runtimes};

use super::{Outcome, config};
use crate::args::Doctor;
use crate::client::Context;
use crate::failure::Failure;
use crate::print;
use crate::server::Plan;
use crate::settings::Settings;

pub(crate) fn run(context: &Context, doctor: &Doctor) -> Outcome {
    if doctor.attack {
        check(&context.home)?;
        return super::attack::run(context, doctor);
    }
    let report = sandpool_process::host::probe();
    let settings = match &doctor.config {
        Some(path) => Settings::read(path).map_err(|error| config::unusable(&error))?.oci_runtimes,
        // Without a server, or the right to read what it was told: as one would be that is told nothing.
        None => Plan::read(&context.home.plan()).map(|plan| plan.settings.oci_runtimes).unwrap_or_default(),
    };
    let runtimes = oci::find(&settings);
    if context.json {
        let mut value = serde_json::to_value(&report).map_err(anyhow::Error::from)?;
        value["runtimes"] = runtimes.iter().map(|(runtime, found)| shown(*runtime, found)).collect();
        print::json(&value)?;
    } else {
        print::out(&(render(&report) + &render_runtimes(&runtimes)))?;
    }
    let weak = report.lines.iter().any(|line| matches!(line.verdict, Verdict::Warn));
    Ok(u8::from(!report.is_fit() || doctor.strict && weak))
}

/// One runtime, for programs.
fn shown(runtime: OciRuntime, found: &Found) -> serde_json::Value {
    let (word, version, why) = match found {
        Found::Good(program) => match &program.below_floor {
            None => ("good", Some(&program.version), None),
            Some(why) => ("accepted below floor", Some(&program.version), Some(why)),
        },
        Found::Refused(why) => ("refused", None, Some(why)),
        Found::Absent(why) => ("absent", None, Some(why)),
    };
    serde_json::json!({
        "runtime": runtime.word(), "found": word, "version": version, "floor": oci::floor(runtime), "why": why,
    })
}

fn render_runtimes(runtimes: &Runtimes) -> String {
    let mut text = "\nOCI runtimes, for pools with isolation: container\n".to_owned();
    for (runtime, found) in runtimes {
        let (word, what) = match found {
            Found::Good(program) => match &program.below_floor {
                None => ("ok", format!("{} ({})", program.level(), program.path.display())),
                Some(why) => ("WEAK", format!("ACCEPTED BELOW ITS FLOOR by this host's operator: {why}")),
            },
            Found::Refused(why) => ("refused", why.clone()),
            Found::Absent(why) => ("absent", why.clone()),
        };
        text.push_str(&format!("{word:<8} {:<16} {what}\n", runtime.word()));
    }
    text
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "ok",
        Verdict::Warn => "weak",
        Verdict::Refuse => "MISSING",
    }
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    for Line { id, verdict, found, fix } in &report.lines {
        text.push_str(&format!("{:<8} {id:<16} {found}\n", word(*verdict)));
        if let Some(fix) = fix.as_deref().filter(|_| !matches!(verdict, Verdict::Pass)) {
            text.push_str(&format!("{:<8} {:<16} -> {fix}\n", "", ""));
        }
    }
    let missing = report.refusals().count();
    text.push_str(&match missing {
        0 => "This host can run sandboxes.\n".to_owned(),
        1 => "This host cannot run sandboxes: one thing is missing.\n".to_owned(),
        n => format!("This host cannot run sandboxes: {n} things are missing.\n"),
    });
    text
}

/// Refuses a host that cannot hold the wall, and says why.
pub(crate) fn check(home: &crate::home::Home) -> Result<(), Failure> {
    let report = sandpool_process::host::probe();
    if report.is_fit() {
        return Ok(());
    }
    let mut failure = Failure::new("this host cannot run sandboxes");
    for line in report.refusals() {
        let fix = line.fix.as_deref().map(|fix| format!(" -> {fix}")).unwrap_or_default();
        failure = failure.because(format!("{}: {}{fix}", line.id, line.found));
    }
    Err(failure.advise(format!("sandpool doctor{}", home.flag())))
}
