//! What sessions of a pool may reach, as its object says it.

use sandpool_egress::policy::Policy;
use sandpool_node::{EgressMode, EgressPolicy};
use serde::{Deserialize, Serialize};

/// The same, as the ARM resource says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkSettings {
    /// Whether anything is reached.
    pub status: NetworkStatus,
}

/// Whether anything is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkStatus {
    /// All that is public, unless `egress` says less.
    EgressEnabled,
    /// Nothing.
    EgressDisabled,
}

/// What both ways of saying it mean; `None` for nothing.
///
/// # Errors
/// The key below `spec`, and what is wrong with it.
pub(crate) fn policy(
    egress: Option<&EgressPolicy>,
    network: Option<&NetworkSettings>,
) -> Result<Option<EgressPolicy>, (String, String)> {
    const STATUS: &str = "sessionNetworkConfiguration.status";
    let status = network.map(|network| network.status);
    let open = EgressPolicy { mode: EgressMode::Open, ..EgressPolicy::default() };
    let egress = match (egress, status) {
        (None, None | Some(NetworkStatus::EgressDisabled)) => return Ok(None),
        (None, Some(NetworkStatus::EgressEnabled)) => &open,
        (Some(egress), Some(NetworkStatus::EgressDisabled)) if egress.mode != EgressMode::None => {
            return Err((STATUS.to_owned(), "is EgressDisabled, but egress.mode is not none".to_owned()));
        }
        (Some(egress), Some(NetworkStatus::EgressEnabled)) if egress.mode == EgressMode::None => {
            return Err((STATUS.to_owned(), "is EgressEnabled, but egress.mode is none".to_owned()));
        }
        (Some(egress), _) => egress,
    };
    let wrong = |list: &str, why: String| (format!("egress.{list}"), why);
    Policy::parse(egress).map_err(|error| wrong(error.list, error.why))?;
    egress.encode().map_err(|why| ("egress".to_owned(), why))?;
    Ok((egress.mode != EgressMode::None).then(|| egress.clone()))
}

/// Variables by which programs in a session find the way out for all ports. What they do without them, at the usual ports, works
/// as well.
pub(crate) fn variables() -> Vec<(String, String)> {
    const PROXY: &str = "http://127.0.0.1:3128";
    const INSIDE: &str = "localhost,127.0.0.1,::1,0.0.0.0,sandbox";
    [
        ("HTTP_PROXY", PROXY),
        ("http_proxy", PROXY),
        ("HTTPS_PROXY", PROXY),
        ("https_proxy", PROXY),
        ("NO_PROXY", INSIDE),
        ("no_proxy", INSIDE),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}
