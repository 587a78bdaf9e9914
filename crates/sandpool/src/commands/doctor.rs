//! `sandpool doctor`: what this host can do, what is missing, and how to get it.

use sandpool_process::host::{Line, Report, Verdict};

use super::Outcome;
use crate::args::Doctor;
use crate::client::Context;
use crate::failure::Failure;
use crate::print;

pub(crate) fn run(context: &Context, doctor: &Doctor) -> Outcome {
    if doctor.attack {
        check(&context.home)?;
        return super::attack::run(context, doctor);
    }
    let report = sandpool_process::host::probe();
    if context.json {
        print::json(&serde_json::to_value(&report).map_err(anyhow::Error::from)?)?;
    } else {
        print::out(&render(&report))?;
    }
    let weak = report.lines.iter().any(|line| matches!(line.verdict, Verdict::Warn));
    Ok(u8::from(!report.is_fit() || doctor.strict && weak))
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
