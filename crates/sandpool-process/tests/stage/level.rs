//! Which level's sandboxes a test program plays with: the process level, or an OCI runtime's.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sandpool_driver::Isolation;
use sandpool_process::oci::{self, OciRuntime, OciSettings, Runtimes};

/// Names the runtime, for this program's other parts.
const RUNTIME: &str = "SANDPOOL_TEST_OCI_RUNTIME";

/// The file that `e2e/oci-runtimes` has written.
const SETTINGS: &str = "/var/lib/sandpool/cache/oci-runtimes/settings.json";

/// The variable that makes another part of this program play with this runtime.
pub(crate) fn variable(runtime: OciRuntime) -> (&'static str, &'static str) {
    (RUNTIME, runtime.word())
}

/// The runtime that is played with; `None` at the process level.
pub(crate) fn runtime() -> Option<OciRuntime> {
    let word = std::env::var(RUNTIME).ok()?;
    OciRuntime::ALL.into_iter().find(|runtime| runtime.word() == word)
}

/// The level that is played with.
pub(crate) fn isolation() -> Isolation {
    runtime().map_or(Isolation::Process, |runtime| Isolation::Container(Some(runtime)))
}

/// Its variable, for a server.
pub(crate) fn environment() -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    runtime().map(|runtime| (RUNTIME.into(), runtime.word().into())).into_iter().collect()
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
