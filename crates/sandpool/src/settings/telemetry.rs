//! What is told to a collector over OTLP, as the settings say it, and OpenTelemetry's own variables where they do not.

use std::collections::BTreeMap;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use sandpool_telemetry::{Config, Sampler, Signals};
use serde::{Deserialize, Serialize};

/// From one look at what is counted to the next, unless it is said.
const METRICS_INTERVAL: u64 = 60;

/// Where a collector is, and what it gets. Nothing is exported without `endpoint`. What is not given has OpenTelemetry's own default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct TelemetrySettings {
    /// The collector: an http or https URL, without `/v1/traces`.
    pub(crate) endpoint: Option<String>,
    /// Headers of each request to it.
    pub(crate) headers: BTreeMap<String, String>,
    /// Traces are exported.
    pub(crate) traces: Option<bool>,
    /// Metrics are.
    pub(crate) metrics: Option<bool>,
    /// Logs are.
    pub(crate) logs: Option<bool>,
    /// Which traces.
    pub(crate) sampler: Option<SamplerName>,
    /// The share of them, for samplers that have one.
    pub(crate) ratio: Option<f64>,
    /// `service.name`.
    pub(crate) service_name: Option<String>,
    /// More about this server.
    pub(crate) resource_attributes: BTreeMap<String, String>,
    /// Seconds from one look at what is counted to the next.
    pub(crate) metrics_interval_seconds: Option<u64>,
}

/// OpenTelemetry's names of samplers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SamplerName {
    #[serde(rename = "always_on")]
    AlwaysOn,
    #[serde(rename = "always_off")]
    AlwaysOff,
    #[serde(rename = "traceidratio")]
    Ratio,
    #[serde(rename = "parentbased_always_on")]
    ParentAlwaysOn,
    #[serde(rename = "parentbased_always_off")]
    ParentAlwaysOff,
    #[serde(rename = "parentbased_traceidratio")]
    ParentRatio,
}

impl SamplerName {
    const ALL: [(&'static str, Self); 6] = [
        ("always_on", Self::AlwaysOn),
        ("always_off", Self::AlwaysOff),
        ("traceidratio", Self::Ratio),
        ("parentbased_always_on", Self::ParentAlwaysOn),
        ("parentbased_always_off", Self::ParentAlwaysOff),
        ("parentbased_traceidratio", Self::ParentRatio),
    ];
}

/// What is wrong: the key or variable, and why.
pub(crate) type Wrong = (String, String);

impl TelemetrySettings {
    /// # Errors
    /// The key, and what is wrong with it.
    pub(crate) fn check(&self) -> Result<(), Wrong> {
        let wrong = |key: &str, why: String| Err((key.to_owned(), why));
        if let Some(endpoint) = &self.endpoint {
            let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
            if rest.is_none_or(|rest| rest.is_empty() || rest.contains(['@', '?', '#']) || !rest.is_ascii()) {
                return wrong(
                    "endpoint",
                    format!("{endpoint:?} is not an http or https URL without user, query and fragment"),
                );
            }
        }
        for (name, value) in &self.headers {
            let is_token =
                !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            if !is_token || !value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
                return wrong(&format!("headers.{name}"), "is not a header that can be sent".to_owned());
            }
        }
        if self.ratio.is_some_and(|ratio| !(0.0..=1.0).contains(&ratio)) {
            return wrong("ratio", "is a number from 0 to 1".to_owned());
        }
        if self.metrics_interval_seconds.is_some_and(|seconds| !(1..=86_400).contains(&seconds)) {
            return wrong("metricsIntervalSeconds", "is a number from 1 to 86400".to_owned());
        }
        Ok(())
    }

    /// Fills in what is not given from OpenTelemetry's variables.
    ///
    /// # Errors
    /// The variable, and what is wrong with it.
    pub(crate) fn fill(&mut self, variable: impl Fn(&str) -> Option<String>) -> Result<(), Wrong> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let is_disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        if self.endpoint.is_none() && !is_disabled {
            self.endpoint = variable("OTEL_EXPORTER_OTLP_ENDPOINT");
        }
        if self.endpoint.is_none() {
            return Ok(());
        }
        if let Some(protocol) = variable("OTEL_EXPORTER_OTLP_PROTOCOL")
            && protocol != "http/protobuf"
        {
            let why = format!("is {protocol:?}; http/protobuf is what is spoken here, at port 4318 of most collectors");
            return Err(("OTEL_EXPORTER_OTLP_PROTOCOL".to_owned(), why));
        }
        for (name, pairs) in [
            ("OTEL_EXPORTER_OTLP_HEADERS", &mut self.headers),
            ("OTEL_RESOURCE_ATTRIBUTES", &mut self.resource_attributes),
        ] {
            if let (true, Some(text)) = (pairs.is_empty(), variable(name)) {
                *pairs = list(&text).ok_or_else(|| (name.to_owned(), "is not KEY=VALUE,KEY=VALUE".to_owned()))?;
            }
        }
        for (name, signal) in [
            ("OTEL_TRACES_EXPORTER", &mut self.traces),
            ("OTEL_METRICS_EXPORTER", &mut self.metrics),
            ("OTEL_LOGS_EXPORTER", &mut self.logs),
        ] {
            if signal.is_none() && variable(name).is_some_and(|exporter| exporter == "none") {
                *signal = Some(false);
            }
        }
        if let (None, Some(name)) = (self.sampler, variable("OTEL_TRACES_SAMPLER")) {
            let known = SamplerName::ALL.iter().find(|(known, _)| *known == name);
            let names = SamplerName::ALL.map(|(name, _)| name).join(", ");
            let (_, known) =
                known.ok_or_else(|| ("OTEL_TRACES_SAMPLER".to_owned(), format!("is {name:?}; there are {names}")))?;
            self.sampler = Some(*known);
        }
        if let (None, Some(text)) = (self.ratio, variable("OTEL_TRACES_SAMPLER_ARG")) {
            let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
            let why = || ("OTEL_TRACES_SAMPLER_ARG".to_owned(), format!("is {text:?}, and not a number from 0 to 1"));
            self.ratio = Some(ratio.ok_or_else(why)?);
        }
        if self.service_name.is_none() {
            self.service_name = variable("OTEL_SERVICE_NAME");
        }
        if let (None, Some(text)) = (self.metrics_interval_seconds, variable("OTEL_METRIC_EXPORT_INTERVAL")) {
            let seconds = text.parse::<u64>().ok().map(|milliseconds| milliseconds.div_ceil(1_000).max(1));
            let why =
                || ("OTEL_METRIC_EXPORT_INTERVAL".to_owned(), format!("is {text:?}, and not a number of milliseconds"));
            self.metrics_interval_seconds = Some(seconds.ok_or_else(why)?);
        }
        self.check()
    }

    /// What the exporter is told; nothing without an endpoint.
    pub(crate) fn to_config(&self) -> Option<Config> {
        let endpoint = self.endpoint.clone()?;
        let is_on = |signal: Option<bool>| signal.unwrap_or(true);
        let signals = Signals { traces: is_on(self.traces), metrics: is_on(self.metrics), logs: is_on(self.logs) };
        let ratio = self.ratio.unwrap_or(1.0);
        let (ratio, follows_parent) = match self.sampler.unwrap_or(SamplerName::ParentRatio) {
            SamplerName::AlwaysOn => (1.0, false),
            SamplerName::AlwaysOff => (0.0, false),
            SamplerName::Ratio => (ratio, false),
            SamplerName::ParentAlwaysOn => (1.0, true),
            SamplerName::ParentAlwaysOff => (0.0, true),
            SamplerName::ParentRatio => (ratio, true),
        };
        let version = env!("CARGO_PKG_VERSION");
        let mut resource = self.resource_attributes.clone();
        let named = self.service_name.clone().or_else(|| resource.get("service.name").cloned());
        resource.insert("service.name".to_owned(), named.unwrap_or_else(|| "sandpool".to_owned()));
        resource.entry("service.version".to_owned()).or_insert_with(|| version.to_owned());
        Some(Config {
            endpoint,
            headers: self.headers.clone().into_iter().collect(),
            signals,
            sampler: Sampler { ratio, follows_parent },
            metrics_interval: Duration::from_secs(self.metrics_interval_seconds.unwrap_or(METRICS_INTERVAL)),
            resource: resource.into_iter().collect(),
            version,
        })
    }
}

/// `KEY=VALUE,KEY=VALUE`, with percent-encoding in values (W3C baggage).
fn list(text: &str) -> Option<BTreeMap<String, String>> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let decoded = pairs.map(|pair| {
        let (key, value) = pair.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?.into_owned();
        Some((key.trim().to_owned(), value)).filter(|(key, _)| !key.is_empty())
    });
    decoded.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(mut settings: TelemetrySettings, variables: &[(&str, &str)]) -> Result<TelemetrySettings, Wrong> {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        settings.fill(find).map(|()| settings)
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");

    #[test]
    fn nothing_is_exported_unless_it_is_asked_for() {
        assert!(TelemetrySettings::default().to_config().is_none());
        let others = [("OTEL_SERVICE_NAME", "x"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
        assert!(filled(TelemetrySettings::default(), &others).unwrap().to_config().is_none());
        let disabled = [ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")];
        assert!(filled(TelemetrySettings::default(), &disabled).unwrap().to_config().is_none());
    }

    #[test]
    fn variables_fill_in_what_the_settings_do_not_say() {
        let variables = [
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x, x-scope=a"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
            ("OTEL_SERVICE_NAME", "boxes"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_LOGS_EXPORTER", "none"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "1500"),
        ];
        let config = filled(TelemetrySettings::default(), &variables).unwrap().to_config().unwrap();
        assert_eq!(config.endpoint, "http://127.0.0.1:4318");
        let headers =
            [("authorization", "Bearer x"), ("x-scope", "a")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(config.headers, headers);
        assert_eq!(config.sampler, Sampler { ratio: 0.25, follows_parent: false });
        assert_eq!(config.signals, Signals { traces: true, metrics: true, logs: false });
        assert_eq!(config.metrics_interval, Duration::from_secs(2));
        assert!(config.resource.contains(&("service.name".to_owned(), "boxes".to_owned())));
        let own = TelemetrySettings {
            endpoint: Some("https://own.example".to_owned()),
            service_name: Some("own".to_owned()),
            sampler: Some(SamplerName::AlwaysOff),
            ..TelemetrySettings::default()
        };
        let config = filled(own, &variables).unwrap().to_config().unwrap();
        assert_eq!((config.endpoint.as_str(), config.sampler.ratio), ("https://own.example", 0.0));
        assert!(config.resource.contains(&("service.name".to_owned(), "own".to_owned())));
    }

    #[test]
    fn what_cannot_be_used_is_told_by_its_name() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "no pair"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "soon"),
        ] {
            let (wrong, _) = filled(TelemetrySettings::default(), &[ENDPOINT, (name, value)]).unwrap_err();
            assert_eq!(wrong, name);
        }
        for endpoint in ["127.0.0.1:4318", "http://", "http://a@b", "https://x/?q"] {
            let settings = TelemetrySettings { endpoint: Some(endpoint.to_owned()), ..TelemetrySettings::default() };
            assert_eq!(settings.check().unwrap_err().0, "endpoint", "{endpoint}");
        }
    }
}
