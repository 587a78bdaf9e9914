//! Queues, and the tasks that empty them.
//!
//! ```text
//! span, log record -> a queue of 4,096 each -> one task each: 512 at once, or what there is after a second -> POST, protobuf
//! metrics          -> asked for every minute -> one task                                                  -> POST
//! ```
//!
//! Whoever gives something never waits: what has no room is left out, and counted. A collector that is away is tried again for some
//! seconds with what is in hand, and then that is left out too. What a collector answers is read up to a bound, and nothing of it is obeyed but
//! when to come again, within a bound: it may be as hostile as it likes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::otlp::{self, text};
use crate::trace::{Sampler, attribute};

/// Spans that wait, and log records.
const QUEUE: usize = 4_096;

/// So many are sent at once.
const BATCH: usize = 512;

/// How long the first of a batch waits for others.
const GATHER: Duration = Duration::from_secs(1);

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a batch is tried.
const ATTEMPTS: u32 = 4;

/// The longest pause between two attempts, whatever a collector asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long what is left is sent at the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// Bytes of an answer that are read.
const ANSWER: usize = 64 * 1024;

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signals {
    /// Spans.
    pub traces: bool,
    /// What is counted.
    pub metrics: bool,
    /// What is logged.
    pub logs: bool,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Spans.
    Traces,
    /// What is counted.
    Metrics,
    /// What is logged.
    Logs,
}

impl Signal {
    /// All.
    pub const ALL: [Self; 3] = [Self::Traces, Self::Metrics, Self::Logs];

    /// Its word, in addresses and labels.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
            Self::Logs => "logs",
        }
    }
}

/// Where and what to export.
#[derive(Clone)]
pub struct Config {
    /// Where the collector is: `/v1/traces` and its like are put behind.
    pub endpoint: String,
    /// Headers of each request. Secrets.
    pub headers: Vec<(String, String)>,
    /// What is exported.
    pub signals: Signals,
    /// Which traces.
    pub sampler: Sampler,
    /// From one look at what is counted to the next.
    pub metrics_interval: Duration,
    /// What this process is: `service.name` and the like.
    pub resource: Vec<(String, String)>,
    /// This program's version.
    pub version: &'static str,
}

/// Never a header's value.
impl std::fmt::Debug for Config {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { endpoint, signals, sampler, .. } = self;
        let mut shown = out.debug_struct("Config");
        shown.field("endpoint", endpoint).field("signals", signals).field("sampler", sampler);
        shown.finish_non_exhaustive()
    }
}

/// Why something was not exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// There was no room in the queue.
    QueueFull,
    /// The collector did not take it.
    Refused,
    /// The collector did not answer, or only that it could not for now.
    Unreachable,
}

impl Lost {
    /// All.
    pub const ALL: [Self; 3] = [Self::QueueFull, Self::Refused, Self::Unreachable];

    /// Its word, in labels.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::QueueFull => "queueFull",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
        }
    }
}

/// What came of a signal's spans, records or points.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    lost: [AtomicU64; Lost::ALL.len()],
}

/// Takes what is to be exported. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Exporter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    signals: Signals,
    sampler: Sampler,
    spans: mpsc::Sender<otlp::Span>,
    logs: mpsc::Sender<otlp::LogRecord>,
    counts: [Counts; Signal::ALL.len()],
}

/// What is counted, at one moment.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// In a sentence.
    pub help: &'static str,
    /// Its unit, in UCUM's words: `s`, `By`; empty for numbers of things.
    pub unit: &'static str,
    /// It counts up.
    pub is_sum: bool,
    /// One for each set of labels.
    pub points: Vec<Point>,
}

/// One number, or one histogram.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its labels.
    pub labels: Vec<(&'static str, String)>,
    /// What it is.
    pub value: Value,
}

/// What a point says.
#[derive(Clone, Debug)]
pub enum Value {
    /// A number.
    Number(f64),
    /// How often something took how long.
    Durations {
        /// Upper bounds in seconds, without the infinite one.
        bounds: Vec<f64>,
        /// How many of each, and one more for what is over the last bound.
        counts: Vec<u64>,
        /// All together, in seconds.
        sum: f64,
    },
}

/// Looks at what is counted.
pub type MetricSource = Box<dyn Fn() -> Vec<Series> + Send + Sync>;

/// What empties the queues.
pub struct Workers {
    client: reqwest::Client,
    config: Config,
    headers: HeaderMap,
    exporter: Exporter,
    spans: mpsc::Receiver<otlp::Span>,
    logs: mpsc::Receiver<otlp::LogRecord>,
    is_away: AtomicBool,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Workers").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Exporter {
    /// One that exports so, and what does the work.
    ///
    /// # Errors
    /// What is wrong with a header or the client, as a sentence.
    pub fn new(config: Config) -> Result<(Self, Workers), String> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        for (name, value) in &config.headers {
            let parsed = HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_str(value).ok());
            let (known, mut value) = parsed.ok_or_else(|| format!("the header {name:?} cannot be sent"))?;
            value.set_sensitive(true);
            headers.insert(known, value);
        }
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE)
            .build()
            .map_err(|error| format!("no client: {error}"))?;
        let (send_span, spans) = mpsc::channel(QUEUE);
        let (send_log, logs) = mpsc::channel(QUEUE);
        let exporter = Self(Arc::new(Inner {
            signals: config.signals,
            sampler: config.sampler,
            spans: send_span,
            logs: send_log,
            counts: Default::default(),
        }));
        let is_away = AtomicBool::new(false);
        Ok((exporter.clone(), Workers { client, config, headers, exporter, spans, logs, is_away }))
    }

    /// What is exported.
    #[must_use]
    pub fn signals(&self) -> Signals {
        self.0.signals
    }

    pub(crate) fn sampler(&self) -> Sampler {
        self.0.sampler
    }

    pub(crate) fn span(&self, span: otlp::Span) {
        if self.0.spans.try_send(span).is_err() {
            self.lose(Signal::Traces, Lost::QueueFull, 1);
        }
    }

    pub(crate) fn log(&self, record: otlp::LogRecord) {
        if self.0.logs.try_send(record).is_err() {
            self.lose(Signal::Logs, Lost::QueueFull, 1);
        }
    }

    fn lose(&self, signal: Signal, why: Lost, count: u64) {
        self.0.counts[signal as usize].lost[why as usize].fetch_add(count, Ordering::Relaxed);
    }

    fn sent(&self, signal: Signal, count: u64) {
        self.0.counts[signal as usize].sent.fetch_add(count, Ordering::Relaxed);
    }

    /// How many spans, log records or points were sent, by signal.
    #[must_use]
    pub fn counts_sent(&self) -> Vec<(Signal, u64)> {
        let read = |signal: Signal| self.0.counts[signal as usize].sent.load(Ordering::Relaxed);
        Signal::ALL.into_iter().map(|signal| (signal, read(signal))).collect()
    }

    /// How many were not, by signal and reason.
    #[must_use]
    pub fn counts_lost(&self) -> Vec<(Signal, Lost, u64)> {
        let of = |signal: Signal| {
            let counts = &self.0.counts[signal as usize].lost;
            Lost::ALL.into_iter().map(move |why| (signal, why, counts[why as usize].load(Ordering::Relaxed)))
        };
        Signal::ALL.into_iter().flat_map(of).collect()
    }
}

/// What became of a request.
enum Sent {
    /// All but so many were taken.
    Taken(u64),
    /// It will never be taken.
    Refused(String),
    /// It may be taken later, after so long if that was said.
    Later(String, Option<Duration>),
}

impl Workers {
    /// Works until `stop`, and a little longer with what is left.
    pub async fn run(mut self, metrics: MetricSource, stop: CancellationToken) {
        let (_, closed) = mpsc::channel(1);
        let spans = std::mem::replace(&mut self.spans, closed);
        let (_, closed) = mpsc::channel(1);
        let logs = std::mem::replace(&mut self.logs, closed);
        let this = &self;
        let traces = this.empty(spans, Signal::Traces, &stop, |spans| {
            let scope_spans = vec![otlp::ScopeSpans { scope: this.scope(), spans }];
            let resource_spans = vec![otlp::ResourceSpans { resource: this.resource(), scope_spans }];
            otlp::TracesRequest { resource_spans }.encode_to_vec()
        });
        let logs = this.empty(logs, Signal::Logs, &stop, |log_records| {
            let scope_logs = vec![otlp::ScopeLogs { scope: this.scope(), log_records }];
            let resource_logs = vec![otlp::ResourceLogs { resource: this.resource(), scope_logs }];
            otlp::LogsRequest { resource_logs }.encode_to_vec()
        });
        tokio::join!(traces, logs, this.count(&metrics, &stop));
    }

    fn scope(&self) -> Option<otlp::Scope> {
        Some(otlp::Scope { name: "sandpool".to_owned(), version: self.config.version.to_owned() })
    }

    fn resource(&self) -> Option<otlp::Resource> {
        let attributes = self.config.resource.iter().map(|(name, value)| text(name, value.as_str())).collect();
        Some(otlp::Resource { attributes })
    }

    async fn empty<T>(
        &self,
        mut queue: mpsc::Receiver<T>,
        signal: Signal,
        stop: &CancellationToken,
        encode: impl Fn(Vec<T>) -> Vec<u8>,
    ) {
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                biased;
                got = queue.recv_many(&mut batch, BATCH) => {
                    if got == 0 {
                        return;
                    }
                }
                () = stop.cancelled() => return,
            }
            let until = Instant::now() + GATHER;
            while batch.len() < BATCH && !stop.is_cancelled() {
                let room = BATCH - batch.len();
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    got = tokio::time::timeout_at(until, queue.recv_many(&mut batch, room)) => {
                        if !matches!(got, Ok(1..)) {
                            break;
                        }
                    }
                }
            }
            // What came in the last moments goes with it.
            while batch.len() < BATCH
                && let Ok(more) = queue.try_recv()
            {
                batch.push(more);
            }
            let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
            self.deliver(signal, encode(batch), count, stop).await;
        }
    }

    async fn count(&self, metrics: &MetricSource, stop: &CancellationToken) {
        if !self.config.signals.metrics {
            return;
        }
        let began = nanoseconds(SystemTime::now());
        loop {
            let is_last = tokio::select! {
                () = stop.cancelled() => true,
                () = tokio::time::sleep(self.config.metrics_interval) => false,
            };
            let series = metrics();
            let count = series.iter().map(|series| u64::try_from(series.points.len()).unwrap_or(u64::MAX)).sum();
            let now = nanoseconds(SystemTime::now());
            let metrics = series.into_iter().map(|series| metric(series, began, now)).collect();
            let scope_metrics = vec![otlp::ScopeMetrics { scope: self.scope(), metrics }];
            let resource_metrics = vec![otlp::ResourceMetrics { resource: self.resource(), scope_metrics }];
            let body = otlp::MetricsRequest { resource_metrics }.encode_to_vec();
            self.deliver(Signal::Metrics, body, count, stop).await;
            if is_last {
                return;
            }
        }
    }

    /// Sends, and sends again what may be taken later.
    async fn deliver(&self, signal: Signal, body: Vec<u8>, count: u64, stop: &CancellationToken) {
        let mut pause = Duration::from_secs(1);
        for attempt in 1..=ATTEMPTS {
            let sending = self.send(signal, body.clone());
            let sent = tokio::select! {
                sent = sending => sent,
                () = async { stop.cancelled().await; tokio::time::sleep(FAREWELL).await } => {
                    Sent::Later("this server ends".to_owned(), None)
                }
            };
            match sent {
                Sent::Taken(refused) => {
                    let refused = refused.min(count);
                    self.exporter.sent(signal, count - refused);
                    self.exporter.lose(signal, Lost::Refused, refused);
                    if self.is_away.swap(false, Ordering::Relaxed) {
                        tracing::info!(endpoint = self.config.endpoint, "the collector takes what it is sent again");
                    }
                    return;
                }
                Sent::Refused(why) => {
                    self.trouble(signal, &why);
                    return self.exporter.lose(signal, Lost::Refused, count);
                }
                Sent::Later(why, asked) => {
                    self.trouble(signal, &why);
                    if attempt == ATTEMPTS || stop.is_cancelled() {
                        break;
                    }
                    let wait = asked.unwrap_or(pause).min(LONGEST_PAUSE);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
        }
        self.exporter.lose(signal, Lost::Unreachable, count);
    }

    /// Said once, until it works again.
    fn trouble(&self, signal: Signal, why: &str) {
        if !self.is_away.swap(true, Ordering::Relaxed) {
            let (endpoint, signal) = (&self.config.endpoint, signal.word());
            tracing::warn!(endpoint, signal, "the collector does not take what it is sent: {why}");
        }
    }

    async fn send(&self, signal: Signal, body: Vec<u8>) -> Sent {
        let url = format!("{}/v1/{}", self.config.endpoint.trim_end_matches('/'), signal.word());
        let answer = self.client.post(url).headers(self.headers.clone()).body(body).send().await;
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let why = if error.is_timeout() { "it did not answer in time" } else { "it cannot be reached" };
                return Sent::Later(why.to_owned(), None);
            }
        };
        let status = answer.status();
        let after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        if status.is_success() {
            let mut bytes = Vec::new();
            while bytes.len() < ANSWER {
                match answer.chunk().await {
                    Ok(Some(chunk)) => bytes.extend_from_slice(&chunk[..chunk.len().min(ANSWER - bytes.len())]),
                    // What was taken is taken.
                    Ok(None) | Err(_) => break,
                }
            }
            let partial = otlp::Answer::decode(bytes.as_slice()).ok().and_then(|answer| answer.partial_success);
            return Sent::Taken(partial.map_or(0, |partial| u64::try_from(partial.rejected).unwrap_or(0)));
        }
        let why = format!("it answers {}", status.as_u16());
        match status {
            // As the protocol has it (opentelemetry-proto, docs/specification.md, "Failures").
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Sent::Later(why, after.map(Duration::from_secs)),
            _ => Sent::Refused(why),
        }
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn metric(series: Series, start_time_unix_nano: u64, time_unix_nano: u64) -> otlp::Metric {
    let Series { name, help, unit, is_sum, points } = series;
    let (mut numbers, mut histograms) = (Vec::new(), Vec::new());
    for Point { labels, value } in points {
        let attributes = labels.into_iter().map(|(name, value)| attribute(name, value.into())).collect();
        match value {
            Value::Number(number) => numbers.push(otlp::NumberPoint {
                start_time_unix_nano: if is_sum { start_time_unix_nano } else { 0 },
                time_unix_nano,
                as_double: Some(number),
                attributes,
            }),
            Value::Durations { bounds, counts, sum } => histograms.push(otlp::HistogramPoint {
                start_time_unix_nano,
                time_unix_nano,
                count: counts.iter().sum(),
                sum: Some(sum),
                bucket_counts: counts,
                explicit_bounds: bounds,
                attributes,
            }),
        }
    }
    let mut metric =
        otlp::Metric { name, description: help.to_owned(), unit: unit.to_owned(), ..otlp::Metric::default() };
    let aggregation_temporality = otlp::CUMULATIVE;
    if !histograms.is_empty() {
        metric.histogram = Some(otlp::Histogram { data_points: histograms, aggregation_temporality });
    } else if is_sum {
        metric.sum = Some(otlp::Sum { data_points: numbers, aggregation_temporality, is_monotonic: true });
    } else {
        metric.gauge = Some(otlp::Gauge { data_points: numbers });
    }
    metric
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Kind, Trace};
    use crate::{Parent, TraceParent};

    fn exporter(signals: Signals) -> (Exporter, Workers) {
        Exporter::new(Config {
            endpoint: "http://127.0.0.1:1".to_owned(),
            headers: vec![("authorization".to_owned(), "secret".to_owned())],
            signals,
            sampler: Sampler { ratio: 1.0, follows_parent: true },
            metrics_interval: Duration::from_secs(60),
            resource: vec![("service.name".to_owned(), "test".to_owned())],
            version: "1",
        })
        .unwrap()
    }

    const ALL: Signals = Signals { traces: true, metrics: true, logs: true };

    fn lost(exporter: &Exporter, signal: Signal, why: Lost) -> u64 {
        exporter.counts_lost().iter().find(|(one, reason, _)| (*one, *reason) == (signal, why)).unwrap().2
    }

    #[tokio::test]
    async fn a_full_queue_leaves_out_and_counts() {
        let (exporter, mut workers) = exporter(ALL);
        for _ in 0..QUEUE + 7 {
            Trace::begin(&exporter, Parent::None, "request", Kind::Server).unwrap().end(None);
        }
        assert_eq!(lost(&exporter, Signal::Traces, Lost::QueueFull), 7);
        let span = workers.spans.recv().await.unwrap();
        assert_eq!((span.name.as_str(), span.parent_span_id.len(), span.trace_id.len()), ("request", 0, 16));
        assert!(!format!("{workers:?}").contains("secret"));
    }

    #[tokio::test]
    async fn spans_are_put_below_each_other_and_below_their_callers() {
        let (exporter, mut workers) = exporter(ALL);
        let caller = TraceParent { trace: [3; 16], span: [4; 8], is_sampled: true };
        let request = Trace::begin(&exporter, Parent::Of(caller), "request", Kind::Server).unwrap();
        let mut inner = request.trace().child("execution").unwrap();
        inner.set("sandpool.outcome", "timedOut");
        inner.end(Some("timedOut"));
        request.end(None);
        let (inner, request) = (workers.spans.recv().await.unwrap(), workers.spans.recv().await.unwrap());
        assert_eq!((&request.trace_id[..], &request.parent_span_id[..]), (&[3; 16][..], &[4; 8][..]));
        assert_eq!((&inner.trace_id, &inner.parent_span_id), (&request.trace_id, &request.span_id));
        assert_eq!(inner.status.map(|status| status.code), Some(2));
        assert!(request.start_time_unix_nano <= inner.start_time_unix_nano);
        assert!(inner.end_time_unix_nano <= request.end_time_unix_nano);
        assert_eq!((request.flags & otlp::IS_REMOTE, inner.flags & otlp::IS_REMOTE), (otlp::IS_REMOTE, 0));
        let not = Parent::Of(TraceParent { is_sampled: false, ..caller });
        assert!(Trace::begin(&exporter, not, "request", Kind::Server).is_none());
    }

    #[tokio::test]
    async fn nothing_is_made_of_a_signal_that_is_off() {
        let (exporter, _workers) = exporter(Signals { traces: false, ..ALL });
        assert!(Trace::begin(&exporter, Parent::None, "request", Kind::Server).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_is_away_costs_what_was_for_it_and_nothing_else() {
        let (exporter, workers) = exporter(ALL);
        Trace::begin(&exporter, Parent::None, "request", Kind::Server).unwrap().end(None);
        let stop = CancellationToken::new();
        let working = tokio::spawn(workers.run(Box::new(Vec::new), stop.clone()));
        while lost(&exporter, Signal::Traces, Lost::Unreachable) == 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        stop.cancel();
        working.await.unwrap();
        assert_eq!(exporter.counts_sent()[0], (Signal::Traces, 0));
    }
}
