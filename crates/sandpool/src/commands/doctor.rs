//! `sandpool doctor`: what this host can do, what is missing, and how to get it.

use std::path::Path;

use sandpool_process::host::{Line, Report, Verdict};
use sandpool_process::oci::{self, Found, OciRuntime, Runtimes};

use sandpool_vm::found::{Found as FoundMachines, Wanted, found};
use sandpool_vm::prepared::Prepared;
use sandpool_vm::program;

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
        Some(path) => Settings::read(path).map_err(|error| config::unusable(&error))?,
        // Without a server, or the right to read what it was told: as one would be that is told nothing.
        None => Plan::read(&context.home.plan()).map(|plan| plan.settings).unwrap_or_default(),
    };
    let runtimes = oci::find(&settings.oci_runtimes);
    let images = settings.images.clone().unwrap_or_else(|| context.home.images());
    let machines = Machines::find(&settings.machines, &images);
    if context.json {
        let mut value = serde_json::to_value(&report).map_err(anyhow::Error::from)?;
        value["runtimes"] = runtimes.iter().map(|(runtime, found)| shown(*runtime, found)).collect();
        value["machines"] = machines.shown();
        print::json(&value)?;
    } else {
        print::out(&(render(&report) + &render_runtimes(&runtimes) + &machines.render()))?;
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

/// What this host has for machines.
struct Machines {
    found: FoundMachines,
    /// Programs that make disks, and whether they are there: with what to install.
    makers: Vec<(&'static str, &'static str, bool)>,
    /// What a server prepared last, if one did.
    prepared: Option<Prepared>,
}

impl Machines {
    fn find(wanted: &Wanted, images: &Path) -> Self {
        let makers = [("mkfs.erofs", "erofs-utils"), ("mke2fs", "e2fsprogs"), ("apt-get", "apt"), ("dpkg-deb", "dpkg")];
        let makers = makers.map(|(name, package)| (name, package, program::locate(name, None).is_ok())).into();
        Self { found: found(wanted), makers, prepared: Prepared::read(images).ok() }
    }

    fn shown(&self) -> serde_json::Value {
        let vmms: Vec<_> = self.found.vmms.iter().map(|vmm| {
            serde_json::json!({
                "vmm": vmm.vmm.word(), "path": vmm.path, "version": vmm.version, "floor": vmm.floor, "why": vmm.why_not,
            })
        }).collect();
        let missing: Vec<_> = self.makers.iter().filter(|(.., is_there)| !is_there).map(|(name, ..)| name).collect();
        let prepared = self.prepared.as_ref().map(|prepared| {
            serde_json::json!({
                "level": prepared.level(), "vmm": prepared.vmm, "kernel": prepared.kernel, "isEmulated": prepared.is_emulated,
                "whyNoKvm": prepared.no_kvm,
            })
        });
        serde_json::json!({ "vmms": vmms, "whyNoKvm": self.found.no_kvm, "missing": missing, "prepared": prepared })
    }

    fn render(&self) -> String {
        let mut text = "\nMachines, for pools with isolation: microvm\n".to_owned();
        let mut line = |word: &str, name: &str, what: &str| text.push_str(&format!("{word:<8} {name:<16} {what}\n"));
        for vmm in &self.found.vmms {
            let (path, version) = (vmm.path.as_deref().map(Path::display), vmm.version.as_deref().unwrap_or_default());
            match (&vmm.why_not, path) {
                (None, Some(path)) => {
                    line("ok", vmm.vmm.word(), &format!("{version} ({path}), at least {}", vmm.floor));
                }
                (why, path) => {
                    let word = if path.is_some() { "refused" } else { "absent" };
                    line(word, vmm.vmm.word(), why.as_deref().unwrap_or("it does not say its version"));
                }
            }
        }
        match &self.found.no_kvm {
            None => line("ok", "/dev/kvm", "is there; whether it runs our guests is tried when machines are prepared"),
            Some(why) => line("absent", "/dev/kvm", why),
        }
        for (name, package, _) in self.makers.iter().filter(|(.., is_there)| !is_there) {
            line("absent", name, &format!("apt-get install {package}"));
        }
        match &self.prepared {
            None => line("", "level", "nothing is prepared yet: sandpool up --isolation microvm"),
            Some(prepared) => {
                let word = if prepared.is_emulated { "weak" } else { "ok" };
                line(
                    word,
                    "level",
                    &format!("{}: {}, guest kernel {}", prepared.level(), prepared.vmm, prepared.kernel),
                );
                if let Some(why) = &prepared.no_kvm {
                    line("", "", &format!("-> its processor is emulated: {why}"));
                }
            }
        }
        text
    }
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
