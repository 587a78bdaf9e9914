//! The egress proxy, as a process of its own: what the launcher hands it, it serves.

use std::path::Path;
use std::process::ExitCode;

use sandpool_egress::sandbox::Limits;
use tracing::error;

/// Runs until the launcher is gone.
pub(crate) fn run(records: &Path) -> ExitCode {
    let served = sandpool_process::take_control().and_then(|control| {
        let runtime = crate::server::runtime()?;
        runtime.block_on(sandpool_egress::serve::serve(control, records, Limits::default()))
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(%error, "the egress proxy ends");
            ExitCode::FAILURE
        }
    }
}
