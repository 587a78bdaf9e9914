//! Which level's sandboxes a test program plays with: the process level, an OCI runtime's, or machines.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sandpool_driver::Isolation;
use sandpool_process::oci::{self, OciRuntime, OciSettings, Runtimes};

/// Names the level, for this program's other parts: a runtime's, or `microvm`.
const RUNTIME: &str = "SANDPOOL_TEST_LEVEL";

/// Whether machines are played with.
pub(crate) fn are_machines() -> bool {
    std::env::var(RUNTIME).is_ok_and(|word| word == Isolation::Microvm.word())
}

/// The file that `e2e/oci-runtimes` has written.
const SETTINGS: &str = "/var/lib/sandpool/cache/oci-runtimes/settings.json";

/// The variable that makes another part of this program play with this level.
pub(crate) fn variable(level: Isolation) -> (&'static str, &'static str) {
    let word = match level {
        Isolation::Container(Some(runtime)) => runtime.word(),
        Isolation::Process | Isolation::Container(None) | Isolation::Microvm => level.word(),
    };
    (RUNTIME, word)
}

/// The runtime that is played with; `None` at the process level.
pub(crate) fn runtime() -> Option<OciRuntime> {
    let word = std::env::var(RUNTIME).ok()?;
    OciRuntime::ALL.into_iter().find(|runtime| runtime.word() == word)
}

/// The level that is played with.
pub(crate) fn isolation() -> Isolation {
    match runtime() {
        _ if are_machines() => Isolation::Microvm,
        Some(runtime) => Isolation::Container(Some(runtime)),
        None => Isolation::Process,
    }
}

/// Its variable, for a server.
pub(crate) fn environment() -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    std::env::var_os(RUNTIME).map(|word| (RUNTIME.into(), word)).into_iter().collect()
}

/// Where newer runtimes than the host's are; `None` when nobody has got them.
pub(crate) fn settings() -> Option<BTreeMap<OciRuntime, OciSettings>> {
    let path = std::env::var_os("SANDPOOL_OCI_SETTINGS").map_or_else(|| SETTINGS.into(), PathBuf::from);
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

/// What a launcher has: the newer ones, where one is played with. Debian's newest gVisor is below its floor; what is tried here is our part of it.
pub(crate) fn runtimes() -> Runtimes {
    let Some(runtime) = runtime() else { return Runtimes::new() };
    let mut settings = settings().unwrap_or_default();
    settings.retain(|of, _| *of == runtime);
    for said in settings.values_mut() {
        said.accept_below_floor = runtime == OciRuntime::Runsc;
    }
    oci::find(&settings)
}
