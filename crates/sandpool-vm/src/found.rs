//! What a host has to run machines with: VMMs and their versions, and processors that run guests. Nothing is booted to know it.

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::program::{self, Floors, WhyNot};
use crate::vmm::Kind;

/// The device that runs guests.
pub const KVM: &str = "/dev/kvm";

const FLOORS: Floors = Floors(include_str!("found/floors.txt"));

/// What an operator wants machines to be run by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// QEMU, on the host's processors.
    Qemu,
    /// QEMU, which emulates a processor: such machines are no boundary.
    QemuEmulated,
    /// Firecracker.
    Firecracker,
    /// Cloud Hypervisor.
    CloudHypervisor,
}

impl Choice {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Qemu, Self::QemuEmulated, Self::Firecracker, Self::CloudHypervisor];

    /// Its word in settings.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Qemu | Self::Firecracker | Self::CloudHypervisor => self.vmm().word(),
            Self::QemuEmulated => "qemu-emulated",
        }
    }

    /// The program that it means.
    #[must_use]
    pub fn vmm(self) -> Kind {
        match self {
            Self::Qemu | Self::QemuEmulated => Kind::Qemu,
            Self::Firecracker => Kind::Firecracker,
            Self::CloudHypervisor => Kind::CloudHypervisor,
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let words = || Self::ALL.map(Self::word).join(", ");
        let found = Self::ALL.into_iter().find(|choice| choice.word() == word);
        found.ok_or_else(|| format!("{word:?} is no VMM: there are {}", words()))
    }
}

/// What an operator says of machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Wanted {
    /// Which VMM; if not given, QEMU: on the host's processors where they run our guests' kernel, else emulating one.
    pub vmm: Option<Choice>,
    /// Its program; if not given, it is looked for in the usual places.
    pub path: Option<PathBuf>,
    /// It is used although its version has flaws that are known.
    pub accept_below_floor: bool,
}

impl Wanted {
    /// The VMM that this means.
    #[must_use]
    pub fn vmm(&self) -> Kind {
        self.vmm.map_or(Kind::Qemu, Choice::vmm)
    }
}

/// A VMM that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vmm {
    /// Which.
    pub kind: Kind,
    /// Its file.
    pub path: PathBuf,
    /// What it calls its version.
    pub version: String,
}

impl Vmm {
    /// Its name with its version, for people.
    #[must_use]
    pub fn name(&self) -> String {
        let name = match self.kind {
            Kind::Qemu => "QEMU",
            Kind::Firecracker => "Firecracker",
            Kind::CloudHypervisor => "Cloud Hypervisor",
        };
        format!("{name} {}", self.version)
    }
}

/// What was found of one VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundVmm {
    /// Which.
    pub vmm: Kind,
    /// Its file, where it is there.
    pub path: Option<PathBuf>,
    /// What it calls its version, where it says one.
    pub version: Option<String>,
    /// The oldest version that is good enough.
    pub floor: String,
    /// Why it cannot be used, and how to get one that can.
    pub why_not: Option<String>,
}

/// What a host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Each VMM.
    pub vmms: Vec<FoundVmm>,
    /// Why there is no device that runs guests, and how to get it. That it is there says nothing of whether it runs ours: see
    /// [`crate::build::prepare`].
    pub no_kvm: Option<String>,
}

/// Looks for all of it; asks each VMM that is there for its version. Needs root to ask as nobody.
#[must_use]
pub fn found(wanted: &Wanted) -> Found {
    let vmms = Kind::ALL.map(|vmm| look(vmm, wanted));
    Found { vmms: vmms.into(), no_kvm: kvm().err() }
}

/// Whether there is a device that runs guests, which can be opened.
///
/// # Errors
/// Says why there is none, and how to get it. Nothing else than KVM is needed of the host's kernel: no `vhost`, no `tun`.
pub fn kvm() -> Result<(), String> {
    let opened = std::fs::File::options().read(true).write(true).open(KVM);
    opened.map(drop).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!(
            "{KVM} is not there: turn on the processor's virtualization (VT-x, AMD-V; in a virtual machine, nesting), and \
             modprobe kvm_intel or kvm_amd"
        ),
        _ => format!("{KVM} cannot be opened ({error}): run as root, or as a member of the group that it belongs to"),
    })
}

/// The VMM that is wanted.
///
/// # Errors
/// Why it cannot be used, and how to get one that can.
pub fn choose(wanted: &Wanted) -> Result<Vmm, String> {
    let kind = wanted.vmm();
    let FoundVmm { path, version, why_not, .. } = look(kind, wanted);
    match (path, version, why_not) {
        (Some(path), Some(version), None) => Ok(Vmm { kind, path, version }),
        (_, _, why_not) => Err(why_not.unwrap_or_else(|| format!("{} is of no use", kind.word()))),
    }
}

fn look(vmm: Kind, wanted: &Wanted) -> FoundVmm {
    let is_wanted = wanted.vmm() == vmm;
    let said = wanted.path.as_deref().filter(|_| is_wanted);
    let accepts = is_wanted && wanted.accept_below_floor;
    let mut found = FoundVmm { vmm, path: None, version: None, floor: FLOORS.of(vmm.word()), why_not: None };
    found.why_not = judge(&mut found, said, accepts).err().map(|why| {
        let (WhyNot::Refused(why) | WhyNot::Absent(why)) = why;
        format!("{why}: {}", remedy(vmm, &found.floor))
    });
    found
}

fn judge(found: &mut FoundVmm, said: Option<&Path>, accepts: bool) -> Result<(), WhyNot> {
    let path = program::locate(found.vmm.program(), said)?;
    let path = &*found.path.insert(path);
    let refused = |why: String| WhyNot::Refused(format!("{}: {why}", path.display()));
    let text = program::hear(program::ask(path)?).map_err(refused)?;
    let version = version(found.vmm, &text).map_err(refused)?;
    let version = &*found.version.insert(version);
    match FLOORS.below(found.vmm.word(), version) {
        Some(why) if !accepts => Err(WhyNot::Refused(why)),
        _ => Ok(()),
    }
}

/// How to get one.
fn remedy(vmm: Kind, floor: &str) -> String {
    match vmm {
        Kind::Qemu => format!("apt-get install qemu-system-x86, {floor} or newer"),
        Kind::Firecracker | Kind::CloudHypervisor => {
            format!(
                "put {floor} or newer of its makers' releases at /usr/local/bin/{} (docs/microvm-hosts.md)",
                vmm.program()
            )
        }
    }
}

/// The version out of what `--version` prints: `QEMU emulator version 7.2.22 (Debian ...)`, `Firecracker v1.16.1`, `cloud-hypervisor v53.0`
/// (with `.0` behind it in some).
fn version(vmm: Kind, text: &str) -> Result<String, String> {
    let before = match vmm {
        Kind::Qemu => "QEMU emulator version ",
        Kind::Firecracker => "Firecracker v",
        Kind::CloudHypervisor => "cloud-hypervisor v",
    };
    let rest = text.lines().find_map(|line| line.trim().strip_prefix(before));
    let word = rest.and_then(|rest| rest.split_whitespace().next()).unwrap_or_default();
    if program::is_version(word) { Ok(word.to_owned()) } else { Err("what it says is no version of it".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_their_programs_say_them() {
        let said = |vmm, text: &str| version(vmm, text).ok();
        let qemu = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022\n";
        assert_eq!(said(Kind::Qemu, qemu).as_deref(), Some("7.2.22"));
        assert_eq!(said(Kind::Firecracker, "Firecracker v1.16.1\n\n").as_deref(), Some("1.16.1"));
        assert_eq!(said(Kind::CloudHypervisor, "cloud-hypervisor v53.0.0\n").as_deref(), Some("53.0.0"));
        for strange in ["", "Firecracker v", "Firecracker v$(id)", "firecracker 1.16.1", "cloud-hypervisor v53.0"] {
            assert_eq!(said(Kind::Firecracker, strange), None, "{strange}");
        }
    }

    #[test]
    fn versions_below_their_floor_are_told_with_the_reason() {
        let below = |vmm: Kind, version: &str| FLOORS.below(vmm.word(), version);
        for (vmm, version, why) in [
            (Kind::Qemu, "6.2.0", "tried"),
            (Kind::Firecracker, "1.14.3", "CVE-2026-5747"),
            (Kind::Firecracker, "1.15.1", "#5882"),
            (Kind::Firecracker, "1.16.0", "#5958"),
            (Kind::CloudHypervisor, "51.2", "CVE-2026-45782"),
        ] {
            let said = below(vmm, version).unwrap_or_else(|| panic!("{version} was taken for good"));
            assert!(said.contains(version) && said.contains(why), "{said}");
        }
        for (vmm, version) in [
            (Kind::Qemu, "7.2.22"),
            (Kind::Qemu, "10.0.2"),
            (Kind::Firecracker, "1.16.1"),
            (Kind::Firecracker, "1.17.0"),
            (Kind::CloudHypervisor, "52.0"),
            (Kind::CloudHypervisor, "53.0.0"),
        ] {
            assert_eq!(below(vmm, version), None, "{version}");
        }
    }

    #[test]
    fn every_vmm_has_a_floor_with_a_reason() {
        for vmm in Kind::ALL {
            assert!(FLOORS.all().any(|floor| floor.program == vmm.word() && floor.branch == "*"), "{vmm:?}");
        }
        assert!(FLOORS.all().all(|floor| program::numbers(floor.version)[0] > 0 && !floor.why.is_empty()));
    }

    #[test]
    fn what_is_not_there_says_how_to_get_it() {
        let wanted = |choice| Wanted { vmm: Some(choice), path: Some("/nowhere/at/all".into()), ..Wanted::default() };
        for (choice, remedy) in [
            (Choice::Qemu, "apt-get install qemu-system-x86"),
            (Choice::Firecracker, "/usr/local/bin/firecracker"),
            (Choice::CloudHypervisor, "/usr/local/bin/cloud-hypervisor"),
        ] {
            let why = choose(&wanted(choice)).unwrap_err();
            assert!(why.contains("/nowhere/at/all") && why.contains(remedy), "{why}");
            // What is said of one program says nothing of the others.
            let others = found(&wanted(choice)).vmms.into_iter().filter(|found| found.vmm != choice.vmm());
            assert!(others.filter_map(|found| found.why_not).all(|why| !why.contains("/nowhere")));
        }
    }

    #[test]
    fn words_are_those_of_settings() {
        for choice in Choice::ALL {
            assert_eq!(choice.word().parse(), Ok(choice));
            assert_eq!(serde_json::to_value(choice).unwrap(), choice.word());
        }
        assert!("xen".parse::<Choice>().unwrap_err().contains("qemu-emulated"));
        for vmm in Kind::ALL {
            assert_eq!(serde_json::to_value(vmm).unwrap(), vmm.word());
        }
    }
}
