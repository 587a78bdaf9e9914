//! What sessions of a pool may reach, as its settings say it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sandpool_egress::policy::Policy;
use sandpool_node::{EgressMode, EgressPolicy};
use serde::{Deserialize, Serialize};

/// What sessions of a pool may reach.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct EgressSettings {
    pub(crate) mode: ModeWord,
    /// Hosts that are reached, in the mode `allow-list`.
    pub(crate) allow: Vec<String>,
    /// Hosts that are not, whatever else is said.
    pub(crate) deny: Vec<String>,
    /// Ranges of addresses that are not public and are reached all the same.
    pub(crate) allow_addresses: Vec<String>,
    /// Addresses of names that are asked of nobody.
    pub(crate) hosts: BTreeMap<String, Vec<IpAddr>>,
}

/// What holds for hosts that no list names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ModeWord {
    #[default]
    None,
    AllowList,
    Open,
}

/// The same, as the ARM resource says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NetworkSettings {
    pub(crate) status: NetworkStatus,
}

/// Whether anything is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NetworkStatus {
    EgressEnabled,
    EgressDisabled,
}

impl EgressSettings {
    fn policy(&self) -> EgressPolicy {
        EgressPolicy {
            mode: match self.mode {
                ModeWord::None => EgressMode::None,
                ModeWord::AllowList => EgressMode::AllowList,
                ModeWord::Open => EgressMode::Open,
            },
            allow: self.allow.clone(),
            deny: self.deny.clone(),
            allow_addresses: self.allow_addresses.clone(),
            hosts: self.hosts.clone(),
        }
    }
}

/// What both ways of saying it mean; `None` for nothing.
///
/// # Errors
/// The key below `spec`, and what is wrong with it.
pub(crate) fn policy(
    egress: Option<&EgressSettings>,
    network: Option<&NetworkSettings>,
) -> Result<Option<EgressPolicy>, (String, String)> {
    const STATUS: &str = "sessionNetworkConfiguration.status";
    let status = network.map(|network| network.status);
    let open = EgressSettings { mode: ModeWord::Open, ..EgressSettings::default() };
    let egress = match (egress, status) {
        (None, None | Some(NetworkStatus::EgressDisabled)) => return Ok(None),
        (None, Some(NetworkStatus::EgressEnabled)) => &open,
        (Some(egress), Some(NetworkStatus::EgressDisabled)) if egress.mode != ModeWord::None => {
            return Err((STATUS.to_owned(), "is EgressDisabled, but egress.mode is not none".to_owned()));
        }
        (Some(egress), Some(NetworkStatus::EgressEnabled)) if egress.mode == ModeWord::None => {
            return Err((STATUS.to_owned(), "is EgressEnabled, but egress.mode is none".to_owned()));
        }
        (Some(egress), _) => egress,
    };
    let policy = egress.policy();
    let wrong = |list: &str, why: String| (format!("egress.{list}"), why);
    Policy::parse(&policy).map_err(|error| wrong(error.list, error.why))?;
    policy.encode().map_err(|why| ("egress".to_owned(), why))?;
    Ok((policy.mode != EgressMode::None).then_some(policy))
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
