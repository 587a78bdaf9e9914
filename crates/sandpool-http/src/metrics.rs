//! `/metrics`: what is counted of requests, and all that is counted, as Prometheus reads it.
//!
//! Of a request its dialect, its status and its time are counted, by adding to atomic numbers; of a refusal its code too, which is looked
//! up under a lock that is held for writing only when the code is new. How pools, tenants and the driver are is looked at when somebody
//! reads. No label is an identifier of a session, and none is something that a caller
//! made up.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use sandpool_node::metrics::{CallMetrics, Durations, Histogram, PoolMetrics, TenantMetrics, TenantUse};
use sandpool_telemetry::{Exporter, MetricValue, Point, Series};

use crate::app::App;
use crate::arm;
use crate::auth::{Principal, Scope};
use crate::problem::Problem;

/// What is answered to who asks for it; all others get the older text form.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// Statuses from 100 to 599.
const STATUSES: usize = 500;

/// What is counted for a client that went away before it had its answer.
pub(crate) const GONE_AWAY: u16 = 499;

/// Whose wire a request is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Native,
    Azure,
    Arm,
    Mcp,
    Identity,
    Server,
}

impl Dialect {
    const ALL: [Self; 6] = [Self::Native, Self::Azure, Self::Arm, Self::Mcp, Self::Identity, Self::Server];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Azure => "azure",
            Self::Arm => "arm",
            Self::Mcp => "mcp",
            Self::Identity => "identity",
            Self::Server => "server",
        }
    }

    /// The dialect that has this path. What nobody has is Azure's, which answers it.
    pub(crate) fn of(path: &str) -> Self {
        let mut segments = path.split('/').skip(1);
        match segments.next().unwrap_or_default() {
            "healthz" | "readyz" | "metrics" | "openapi.json" | "console" => Self::Server,
            "mcp" => Self::Mcp,
            "msi" | "metadata" | ".well-known" => Self::Identity,
            "pools" => match (segments.nth(1), segments.next()) {
                (Some("servers"), _) | (Some("mcp"), None) => Self::Mcp,
                (None | Some("sessions" | "object" | "mcp"), _) => Self::Native,
                (Some(_), _) => Self::Azure,
            },
            "subscriptions" if arm::Target::parse(path).is_some() => Self::Arm,
            "subscriptions" if path.ends_with("/mcp") => Self::Mcp,
            "subscriptions" => Self::Azure,
            _ if path.contains("/oauth2/") || path.contains("/.well-known/") => Self::Identity,
            _ => Self::Azure,
        }
    }
}

/// The code of a refusal, for whoever counts it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Code(pub(crate) &'static str);

/// A refusal's class and code. Its code is one of ours: there are as many as are in the source.
type Refusal = (&'static str, &'static str);

/// What is counted of requests.
#[derive(Debug)]
pub(crate) struct Requests {
    each: [OfDialect; Dialect::ALL.len()],
    refused: RwLock<BTreeMap<Refusal, AtomicU64>>,
    started: SystemTime,
}

#[derive(Debug)]
struct OfDialect {
    underway: AtomicI64,
    took: Histogram,
    statuses: Box<[AtomicU64]>,
}

impl Default for Requests {
    fn default() -> Self {
        let each = || OfDialect {
            underway: AtomicI64::new(0),
            took: Histogram::default(),
            statuses: (0..STATUSES).map(|_| AtomicU64::new(0)).collect(),
        };
        Self { each: std::array::from_fn(|_| each()), refused: RwLock::default(), started: SystemTime::now() }
    }
}

/// A request that has no answer yet.
struct Underway {
    requests: Arc<Requests>,
    dialect: Dialect,
    began: Instant,
    status: u16,
}

impl Underway {
    fn begin(requests: Arc<Requests>, dialect: Dialect) -> Self {
        requests.of(dialect).underway.fetch_add(1, Ordering::Relaxed);
        Self { requests, dialect, began: Instant::now(), status: GONE_AWAY }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let counts = self.requests.of(self.dialect);
        counts.underway.fetch_sub(1, Ordering::Relaxed);
        counts.took.add(self.began.elapsed());
        if let Some(count) = counts.statuses.get(usize::from(self.status.saturating_sub(100))) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Requests {
    fn refuse(&self, refusal: Refusal) {
        if let Some(count) = self.refused.read().unwrap_or_else(PoisonError::into_inner).get(&refusal) {
            count.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut refused = self.refused.write().unwrap_or_else(PoisonError::into_inner);
        *refused.entry(refusal).or_default().get_mut() += 1;
    }

    fn of(&self, dialect: Dialect) -> &OfDialect {
        &self.each[dialect as usize]
    }
}

/// Counts a request, up to the beginning of its answer: a stream may go on for as long as it likes.
pub(crate) async fn count(State(requests): State<Arc<Requests>>, request: Request, next: Next) -> Response {
    let mut underway = Underway::begin(Arc::clone(&requests), Dialect::of(request.uri().path()));
    let response = next.run(request).await;
    underway.status = response.status().as_u16();
    if let Some(Code(code)) = response.extensions().get() {
        let class = if response.status().is_server_error() { "5xx" } else { "4xx" };
        requests.refuse((class, code));
    }
    response
}

/// Its route.
pub(crate) fn routes(counted: Counted) -> Router {
    Router::new().route("/metrics", get(answer)).with_state(counted)
}

async fn answer(State(counted): State<Counted>, headers: HeaderMap) -> Result<Response, Problem> {
    if !counted.app.open_metrics {
        may_read(&counted.app.auth.verify(&headers).await?)?;
    }
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let is_open = accepted.into_iter().any(|value| value.contains(OPEN_METRICS));
    let mut registry = Registry::default();
    registry.register_collector(Box::new(counted));
    let mut body = String::new();
    let (written, kind) = if is_open {
        (text::encode(&mut body, &registry), "application/openmetrics-text; version=1.0.0; charset=utf-8")
    } else {
        (prometheus_text::encode(&mut body, &registry), prometheus_text::CONTENT_TYPE)
    };
    written.map_err(|_| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "The metrics cannot be written.")
    })?;
    Ok(([(CONTENT_TYPE, kind)], body).into_response())
}

/// They are about all pools and all tenants, so they are for who may look at all of these.
fn may_read(principal: &Principal) -> Result<(), Problem> {
    let is_bound = principal.pools.is_some() || principal.session.is_some() || principal.allows(Scope::Admin).is_err();
    if principal.tenant.is_default() && !is_bound {
        return Ok(());
    }
    let text = "Metrics are about all pools and all tenants: they are for tokens of the tenant default that are not bound to pools, a \
                session or a scope. Make one with: sandpool token --role reader";
    Err(Problem::new(StatusCode::FORBIDDEN, "Forbidden", text))
}

/// All that is counted, read when it is written.
#[derive(Clone, Debug)]
pub struct Counted {
    app: App,
    requests: Arc<Requests>,
    exporter: Option<Exporter>,
}

impl Counted {
    pub(crate) fn new(app: App, requests: Arc<Requests>, exporter: Option<Exporter>) -> Self {
        Self { app, requests, exporter }
    }

    /// All of it, as it is now: what `/metrics` would write.
    #[must_use]
    pub fn series(&self) -> Vec<Series> {
        let mut series = Vec::new();
        // Writing to memory does not fail.
        let _ = self.write(&mut Writer::Series(&mut series));
        series
    }
}

/// A label's name and its value.
type Label<'a> = (&'static str, &'a str);

/// Writes metrics: a name and a sentence, and then a row for each set of labels.
enum Writer<'a, 'e> {
    /// For Prometheus.
    Text(DescriptorEncoder<'e>),
    /// For OTLP.
    Series(&'a mut Vec<Series>),
}

/// A number, in either form.
trait Number: Copy {
    fn number(self) -> f64;
}

impl Number for f64 {
    fn number(self) -> f64 {
        self
    }
}

macro_rules! numbers {
    ($($kind:ty)*) => {
        $(impl Number for $kind {
            #[expect(clippy::cast_precision_loss, reason = "as Prometheus reads it, too")]
            fn number(self) -> f64 {
                self as f64
            }
        })*
    };
}

numbers! { u64 i64 }

/// A unit, in UCUM's words.
fn ucum(unit: Option<&Unit>) -> &'static str {
    match unit {
        Some(Unit::Seconds) => "s",
        Some(Unit::Bytes) => "By",
        _ => "",
    }
}

/// A name with its unit behind it, as the texts have it.
fn full(name: &str, unit: Option<&Unit>) -> String {
    match unit {
        Some(unit) => format!("{name}_{}", unit.as_str()),
        None => name.to_owned(),
    }
}

fn point<const N: usize>(labels: [Label<'_>; N], value: MetricValue) -> Point {
    Point { labels: labels.into_iter().map(|(name, value)| (name, value.to_owned())).collect(), value }
}

/// How many there are of something in a pool.
type OfPool = (&'static str, &'static str, fn(&PoolMetrics) -> u64);

/// How often something happened in a pool, by the words of a label.
type ByWord = (&'static str, &'static str, &'static str, fn(&PoolMetrics) -> &[(&'static str, u64)]);

const POOL_GAUGES: [OfPool; 13] = [
    ("sandpool_pool_ready_sandboxes", "Sandboxes that are ready for a session", |pool| pool.status.ready.into()),
    ("sandpool_pool_target_sandboxes", "Sandboxes that should be ready", |pool| pool.status.target.into()),
    ("sandpool_pool_booting_sandboxes", "Sandboxes that are being made", |pool| pool.status.booting.into()),
    ("sandpool_pool_sessions", "Sessions", |pool| pool.status.sessions.into()),
    ("sandpool_pool_busy_sessions", "Sessions in which something runs or is transferred", |pool| pool.busy),
    ("sandpool_pool_max_sessions", "Sessions at the same time, at most", |pool| {
        pool.status.spec.scale.max_sessions.into()
    }),
    (
        "sandpool_pool_full",
        "1 if it has as many ready sandboxes as it was asked to keep, or sessions that use them",
        |pool| pool.status.is_full.into(),
    ),
    ("sandpool_pool_suspended_sessions", "Sessions that are suspended", |pool| pool.suspended),
    ("sandpool_pool_snapshot_bytes", "Bytes of suspended sessions and snapshots on disk", |pool| pool.snapshot_bytes),
    ("sandpool_pool_trouble", "1 while sandboxes do not start", |pool| pool.status.trouble.is_some().into()),
    ("azure_pool_ready_pod_count", "Azure's PoolReadyPodCount: sandpool_pool_ready_sandboxes", |pool| {
        pool.status.ready.into()
    }),
    ("azure_pool_pending_pod_count", "Azure's PoolPendingPodCount: sandpool_pool_booting_sandboxes", |pool| {
        pool.status.booting.into()
    }),
    ("azure_pool_executing_pod_count", "Azure's PoolExecutingPodCount: sandpool_pool_sessions", |pool| {
        pool.status.sessions.into()
    }),
];

const POOL_COUNTERS: [OfPool; 3] = [
    ("sandpool_pool_waits", "New sessions that found no ready sandbox and waited for one", |pool| pool.status.waited),
    ("sandpool_pool_sessions_opened", "Sessions that were given a sandbox", |pool| pool.opened),
    ("sandpool_pool_boot_failures", "Sandboxes that could not be made", |pool| pool.boots_failed),
];

const POOL_WORDS: [ByWord; 5] = [
    ("sandpool_pool_sessions_ended", "Sessions that have ended without being lost", "reason", |pool| &pool.ended),
    ("sandpool_pool_sessions_lost", "Sessions whose sandbox was lost with all that was in it", "reason", |pool| {
        &pool.lost
    }),
    ("sandpool_pool_snapshots", "What was done with sessions on disk", "what", |pool| &pool.kept),
    ("sandpool_pool_refusals", "Sessions and executions that were refused, in all dialects", "reason", |pool| {
        &pool.refused
    }),
    ("sandpool_pool_executions", "Executions that are over", "outcome", |pool| &pool.executions),
];

type Timed<T> = (&'static str, &'static str, fn(&T) -> &Durations);

const POOL_TIMES: [Timed<PoolMetrics>; 3] = [
    ("sandpool_pool_allocation", "From the request to the new session", |pool| &pool.allocations),
    ("sandpool_pool_execution", "How long executions ran", |pool| &pool.ran),
    ("sandpool_pool_queue_wait", "How long executions had waited for their turn", |pool| &pool.queued),
];

impl Collector for Counted {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.write(&mut Writer::Text(encoder))
    }
}

impl Counted {
    fn write(&self, to: &mut Writer<'_, '_>) -> fmt::Result {
        let metrics = self.app.node.metrics();
        to.build(self.app.version)?;
        let started = self.requests.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        to.gauges("sandpool_start_time_seconds", "When this server started, since 1970", [([], started)])?;
        to.pools(&metrics.pools)?;
        to.tenants(&metrics.tenants)?;
        to.calls(&metrics.calls)?;
        let trouble = metrics.store_trouble.map(|trouble| ([], u64::from(trouble)));
        to.gauges("sandpool_store_trouble", "1 while the state on disk cannot be written", trouble)?;
        let help = "Decisions of the egress proxy that this server did not hear of";
        to.counters("sandpool_egress_decisions_missed", help, None, [([], metrics.decisions_missed)])?;
        if let Some(exporter) = &self.exporter {
            let sent = exporter.counts_sent();
            let sent = sent.into_iter().map(|(signal, count)| ([("signal", signal.word())], count));
            let help = "Spans, log records and points that the collector took";
            to.counters("sandpool_telemetry_sent", help, None, sent)?;
            let lost = exporter.counts_lost();
            let lost = lost
                .into_iter()
                .map(|(signal, why, count)| ([("signal", signal.word()), ("reason", why.word())], count));
            let help = "Spans, log records and points that no collector has";
            to.counters("sandpool_telemetry_dropped", help, None, lost)?;
        }
        to.requests(&self.requests)
    }
}

impl Writer<'_, '_> {
    fn build(&mut self, version: &str) -> fmt::Result {
        match self {
            Self::Text(text) => {
                let mut info = text.encode_descriptor("sandpool_build", "This program", None, MetricType::Info)?;
                info.encode_info(&[("version", version)])
            }
            Self::Series(_) => self.gauges("sandpool_build_info", "This program", [([("version", version)], 1_u64)]),
        }
    }

    /// Puts a series of numbers down.
    fn put<'l, const N: usize, V: Number>(
        series: &mut Vec<Series>,
        (name, unit): (&str, Option<&Unit>),
        (help, is_sum): (&'static str, bool),
        rows: impl IntoIterator<Item = ([Label<'l>; N], V)>,
    ) {
        let rows = rows.into_iter().map(|(labels, value)| point(labels, MetricValue::Number(value.number())));
        series.push(Series { name: full(name, unit), help, unit: ucum(unit), is_sum, points: rows.collect() });
    }

    fn gauges<'l, const N: usize, V: EncodeGaugeValue + Number>(
        &mut self,
        name: &'static str,
        help: &'static str,
        rows: impl IntoIterator<Item = ([Label<'l>; N], V)>,
    ) -> fmt::Result {
        match self {
            Self::Text(text) => {
                let mut metric = text.encode_descriptor(name, help, None, MetricType::Gauge)?;
                rows.into_iter().try_for_each(|(labels, value)| metric.encode_family(&labels)?.encode_gauge(&value))
            }
            Self::Series(series) => {
                Self::put(series, (name, None), (help, false), rows);
                Ok(())
            }
        }
    }

    fn counters<'l, const N: usize, V: EncodeCounterValue + Number>(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Option<&Unit>,
        rows: impl IntoIterator<Item = ([Label<'l>; N], V)>,
    ) -> fmt::Result {
        match self {
            Self::Text(text) => {
                let mut metric = text.encode_descriptor(name, help, unit, MetricType::Counter)?;
                rows.into_iter().try_for_each(|(labels, value)| {
                    metric.encode_family(&labels)?.encode_counter::<[Label<'_>; N], _, u64>(&value, None)
                })
            }
            Self::Series(series) => {
                Self::put(series, (name, unit), (help, true), rows);
                Ok(())
            }
        }
    }

    fn times<'l, const N: usize>(
        &mut self,
        name: &'static str,
        help: &'static str,
        rows: impl IntoIterator<Item = ([Label<'l>; N], Durations)>,
    ) -> fmt::Result {
        match self {
            Self::Text(text) => {
                let mut metric = text.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
                rows.into_iter().try_for_each(|(labels, Durations { sum, count, buckets })| {
                    metric.encode_family(&labels)?.encode_histogram::<[Label<'_>; N]>(sum, count, &buckets, None)
                })
            }
            Self::Series(series) => {
                let rows = rows.into_iter().map(|(labels, Durations { sum, buckets, .. })| {
                    let bounds = buckets.iter().map(|(bound, _)| *bound).filter(|bound| bound.is_finite()).collect();
                    let counts = buckets.iter().map(|(_, count)| *count).collect();
                    point(labels, MetricValue::Durations { bounds, counts, sum })
                });
                let (points, unit) = (rows.collect(), Some(&Unit::Seconds));
                series.push(Series { name: full(name, unit), help, unit: ucum(unit), is_sum: false, points });
                Ok(())
            }
        }
    }

    fn pools(&mut self, pools: &[PoolMetrics]) -> fmt::Result {
        let name = |pool: &'_ PoolMetrics| pool.status.spec.name.to_string();
        let names: Vec<_> = pools.iter().map(name).collect();
        let each = || names.iter().map(String::as_str).zip(pools);
        for (name, help, value) in POOL_GAUGES {
            self.gauges(name, help, each().map(|(pool, metrics)| ([("pool", pool)], value(metrics))))?;
        }
        for (name, help, value) in POOL_COUNTERS {
            self.counters(name, help, None, each().map(|(pool, metrics)| ([("pool", pool)], value(metrics))))?;
        }
        for (name, help, label, values) in POOL_WORDS {
            let rows = each().flat_map(|(pool, metrics)| {
                values(metrics).iter().map(move |(word, count)| ([("pool", pool), (label, *word)], *count))
            });
            self.counters(name, help, None, rows)?;
        }
        let egress = || each().filter_map(|(pool, metrics)| Some((pool, metrics.egress.as_ref()?)));
        let decided = egress().flat_map(|(pool, egress)| {
            egress.decisions.iter().map(move |(word, count)| ([("pool", pool), ("decision", *word)], *count))
        });
        let help = "Connections and questions for names that sandboxes tried";
        self.counters("sandpool_pool_egress_decisions", help, None, decided)?;
        let moved = egress().flat_map(|(pool, egress)| {
            egress.bytes.iter().map(move |(way, count)| ([("pool", pool), ("direction", *way)], *count))
        });
        let help = "Bytes of connections through the egress proxy, counted when they end";
        self.counters("sandpool_pool_egress", help, Some(&Unit::Bytes), moved)?;
        for (name, help, value) in POOL_TIMES {
            self.times(name, help, each().map(|(pool, metrics)| ([("pool", pool)], value(metrics).clone())))?;
        }
        Ok(())
    }

    fn tenants(&mut self, tenants: &[TenantMetrics]) -> fmt::Result {
        let quotas = || {
            tenants.iter().flat_map(|tenant| {
                let labels = move |resource| [("tenant", tenant.name.as_str()), ("resource", resource)];
                tenant.quota.iter().map(move |(resource, used, limit)| (labels(*resource), *used, *limit))
            })
        };
        let used = quotas().map(|(labels, used, _)| (labels, used));
        self.gauges("sandpool_tenant_quota_used", "What a tenant uses of what its quota limits", used)?;
        let limits = quotas().map(|(labels, _, limit)| (labels, limit));
        self.gauges("sandpool_tenant_quota_limit", "What a tenant's quota allows", limits)?;
        let refusals = tenants.iter().flat_map(|tenant| {
            let labels = move |resource| [("tenant", tenant.name.as_str()), ("resource", resource)];
            tenant.refused.iter().map(move |(resource, count)| (labels(*resource), *count))
        });
        let help = "What a tenant was refused because its quota is used up";
        self.counters("sandpool_tenant_quota_refusals", help, None, refusals)?;
        let uses = || tenants.iter().filter_map(|tenant| Some((tenant.name.as_str(), tenant.used?)));
        let moved = uses().flat_map(|(tenant, TenantUse { sent, received, .. })| {
            let labels = move |direction| [("tenant", tenant), ("direction", direction)];
            [(labels("sent"), sent), (labels("received"), received)]
        });
        let help = "What a tenant's sessions moved through the egress proxy, of tenants whose use is counted";
        self.counters("sandpool_tenant_egress", help, Some(&Unit::Bytes), moved)?;
        let cpu = uses().map(|(tenant, used)| ([("tenant", tenant)], used.cpu.as_secs_f64()));
        let help = "Processor time of a tenant's sessions, of tenants whose use is counted";
        self.counters("sandpool_tenant_cpu", help, Some(&Unit::Seconds), cpu)
    }

    fn calls(&mut self, calls: &[CallMetrics]) -> fmt::Result {
        let answers = calls.iter().flat_map(|call| {
            call.answers.iter().map(|(word, count)| ([("call", call.name), ("outcome", *word)], *count))
        });
        let help = "Calls of the driver, which asks the launcher and the agents";
        self.counters("sandpool_driver_calls", help, None, answers)?;
        let times = calls.iter().map(|call| ([("call", call.name)], call.took.clone()));
        self.times("sandpool_driver_call", "How long calls of the driver took", times)
    }

    fn requests(&mut self, requests: &Requests) -> fmt::Result {
        let each = || Dialect::ALL.into_iter().map(|dialect| (dialect.word(), requests.of(dialect)));
        let numbers: Vec<_> = (100..100 + STATUSES).map(|status| status.to_string()).collect();
        let counts = each().flat_map(|(dialect, counts)| {
            let counts = counts.statuses.iter().map(|count| count.load(Ordering::Relaxed));
            let seen = numbers.iter().zip(counts).filter(|(_, count)| *count > 0);
            seen.map(move |(status, count)| ([("dialect", dialect), ("status", status.as_str())], count))
        });
        self.counters("sandpool_http_requests", "Requests that were answered", None, counts)?;
        let times = each().map(|(dialect, counts)| ([("dialect", dialect)], counts.took.read()));
        self.times("sandpool_http_request", "From a request's head to the beginning of its answer", times)?;
        let underway =
            each().map(|(dialect, counts)| ([("dialect", dialect)], counts.underway.load(Ordering::Relaxed)));
        self.gauges("sandpool_http_requests_underway", "Requests without an answer yet", underway)?;
        let help = "Requests that were refused";
        let refused = requests.refused.read().unwrap_or_else(PoisonError::into_inner);
        let counts = refused
            .iter()
            .map(|((class, code), count)| ([("class", *class), ("code", *code)], count.load(Ordering::Relaxed)));
        self.counters("sandpool_http_refusals", help, None, counts)
    }
}

#[cfg(test)]
mod tests;
