//! Tenants, as an operator writes them.

use sandpool_core::ids::TenantName;
use sandpool_node::{Quota, Tenant};
use serde::{Deserialize, Serialize};

use super::Size;
use super::{ApiKeySettings, AuthSettings, SettingsError, value};
use crate::credentials::ISSUER;

/// One tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TenantSettings {
    /// Its name; `default` is the tenant of all whom no other claims.
    pub(crate) name: String,
    /// Its share where tenants compete.
    #[serde(default = "default_weight")]
    pub(crate) weight: u32,
    /// Its keys.
    #[serde(default)]
    pub(crate) api_keys: Vec<ApiKeySettings>,
    /// Whose tokens are its own: any of these.
    #[serde(default)]
    pub(crate) tokens: Vec<TokenSettings>,
    /// What it may use.
    #[serde(default)]
    pub(crate) quota: QuotaSettings,
}

/// What a token must say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TokenSettings {
    /// Its issuer: one that is trusted, or our own.
    pub(crate) issuer: String,
    /// A claim, such as `sub` or `tid`; without one, every token of the issuer.
    #[serde(default)]
    pub(crate) claim: Option<String>,
    /// The claim's value, or one of them.
    #[serde(default)]
    pub(crate) value: Option<String>,
}

/// The most that a tenant may use, in all pools together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct QuotaSettings {
    pub(crate) sessions: Option<u32>,
    pub(crate) creates_per_second: Option<u32>,
    pub(crate) executions: Option<u32>,
    pub(crate) cpu_seconds_per_hour: Option<u32>,
    pub(crate) stored_bytes: Option<Size>,
    pub(crate) egress_bytes_per_hour: Option<Size>,
}

fn default_weight() -> u32 {
    1
}

/// Checks every value of all of them.
pub(super) fn check(tenants: &[TenantSettings], auth: &AuthSettings) -> Result<(), SettingsError> {
    let mut keys: Vec<(String, &str)> = Vec::new();
    for (at, key) in auth.api_keys.iter().enumerate() {
        keys.push((format!("auth.apiKeys[{at}]"), &key.sha256));
    }
    for (at, tenant) in tenants.iter().enumerate() {
        let key = |field: &str| format!("tenants[{at}].{field}");
        let name = TenantName::parse(&tenant.name).map_err(|error| value(key("name"), error.to_string()))?;
        if let Some(first) = tenants[..at].iter().position(|other| other.name == tenant.name) {
            return Err(value(key("name"), format!("{name} is already the name of tenants[{first}]")));
        }
        if !(1..=1_000).contains(&tenant.weight) {
            return Err(value(key("weight"), format!("is {}, must be from 1 to 1000", tenant.weight)));
        }
        if name.is_default() && !(tenant.api_keys.is_empty() && tenant.tokens.is_empty()) {
            let why =
                "takes no keys and no tokens: it has all that no other tenant claims, and keys under auth.apiKeys";
            return Err(value(format!("tenants[{at}]"), why));
        }
        for (key_at, api_key) in tenant.api_keys.iter().enumerate() {
            let place = key(&format!("apiKeys[{key_at}]"));
            api_key.check(&place)?;
            keys.push((place, &api_key.sha256));
        }
        for (token_at, token) in tenant.tokens.iter().enumerate() {
            let key = |field: &str| key(&format!("tokens[{token_at}].{field}"));
            let is_trusted = auth.issuers.iter().any(|issuer| issuer.issuer == token.issuer);
            if !is_trusted && token.issuer != ISSUER {
                return Err(value(key("issuer"), format!("{} is not one of auth.issuers, nor {ISSUER}", token.issuer)));
            }
            match (&token.claim, &token.value) {
                (Some(_), None) => return Err(value(key("value"), "is missing; claim and value go together")),
                (None, Some(_)) => return Err(value(key("claim"), "is missing; claim and value go together")),
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        let quota = &tenant.quota;
        let numbers = [
            ("sessions", quota.sessions, 1_000_000),
            ("createsPerSecond", quota.creates_per_second, 100_000),
            ("executions", quota.executions, 1_000_000),
            ("cpuSecondsPerHour", quota.cpu_seconds_per_hour, 100_000_000),
        ];
        for (field, size) in [("storedBytes", quota.stored_bytes), ("egressBytesPerHour", quota.egress_bytes_per_hour)]
        {
            if let Some(size) = size.filter(|size| size.0 == 0) {
                return Err(value(key(&format!("quota.{field}")), format!("is {size}, must be 1 at least")));
            }
        }
        for (field, number, most) in numbers {
            if let Some(number) = number.filter(|number| !(1..=most).contains(number)) {
                let field = key(&format!("quota.{field}"));
                return Err(value(field, format!("is {number}, must be from 1 to {most}")));
            }
        }
    }
    for (at, (place, digest)) in keys.iter().enumerate() {
        if let Some((first, _)) = keys[..at].iter().find(|(_, other)| other.eq_ignore_ascii_case(digest)) {
            return Err(value(format!("{place}.sha256"), format!("is that of {first} too: a key has one owner")));
        }
    }
    Ok(())
}

impl TenantSettings {
    /// Its name. [`check`] has been called.
    pub(crate) fn tenant_name(&self) -> Result<TenantName, SettingsError> {
        TenantName::parse(&self.name).map_err(|error| value("tenants.name", error.to_string()))
    }

    /// As the service layer takes it. [`check`] has been called.
    pub(crate) fn to_tenant(&self) -> Result<Tenant, SettingsError> {
        let QuotaSettings { sessions, creates_per_second, executions, cpu_seconds_per_hour, .. } = self.quota;
        let [stored_bytes, egress_bytes_per_hour] =
            [self.quota.stored_bytes, self.quota.egress_bytes_per_hour].map(|size| size.map(|size| size.0));
        let cpu_per_hour = cpu_seconds_per_hour.map(|seconds| std::time::Duration::from_secs(seconds.into()));
        let quota =
            Quota { sessions, creates_per_second, executions, cpu_per_hour, stored_bytes, egress_bytes_per_hour };
        Ok(Tenant { name: self.tenant_name()?, weight: self.weight, quota })
    }
}
