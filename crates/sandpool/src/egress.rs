//! The egress proxy, as a process of its own: what the launcher hands it, it serves.

use std::path::Path;
use std::process::ExitCode;

use sandpool_sys::counters::Counters;
use sandpool_sys::workload::inherited;
use tracing::error;

use crate::settings::egress::EgressLimits;

/// Runs until the launcher is gone.
pub(crate) fn run(records: &Path, limits: &EgressLimits) -> ExitCode {
    let serve = || {
        let control = sandpool_process::take_control()?;
        let counters = Counters::open(&inherited(sandpool_process::COUNTERS_FD)?)?;
        let tells = inherited(sandpool_process::TELLING_FD)?;
        // Before there is a second thread, which would be outside of them.
        sandpool_process::confine_proxy(records)?;
        let runtime = crate::server::runtime()?;
        runtime.block_on(sandpool_egress::serve::serve(control, counters, Some(tells), records, limits.to_limits()))
    };
    let served = serve();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(%error, "the egress proxy ends");
            ExitCode::FAILURE
        }
    }
}
