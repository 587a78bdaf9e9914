//! The messages of OTLP that are sent, with the numbers of their fields (`opentelemetry/proto` of open-telemetry/opentelemetry-proto, 1.x,
//! where they are declared stable). What is not used is left out.

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($fields:tt)* })*) => {
        $($(#[$doc])* #[derive(Clone, PartialEq, prost::Message)] pub(crate) struct $name { $($fields)* })*
    };
}

messages! {
    /// `collector/trace/v1`.
    TracesRequest { #[prost(message, repeated, tag = "1")] pub(crate) resource_spans: Vec<ResourceSpans>, }
    ResourceSpans {
        #[prost(message, optional, tag = "1")] pub(crate) resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")] pub(crate) scope_spans: Vec<ScopeSpans>,
    }
    ScopeSpans {
        #[prost(message, optional, tag = "1")] pub(crate) scope: Option<Scope>,
        #[prost(message, repeated, tag = "2")] pub(crate) spans: Vec<Span>,
    }
    Span {
        #[prost(bytes = "vec", tag = "1")] pub(crate) trace_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")] pub(crate) span_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "4")] pub(crate) parent_span_id: Vec<u8>,
        #[prost(string, tag = "5")] pub(crate) name: String,
        #[prost(int32, tag = "6")] pub(crate) kind: i32,
        #[prost(fixed64, tag = "7")] pub(crate) start_time_unix_nano: u64,
        #[prost(fixed64, tag = "8")] pub(crate) end_time_unix_nano: u64,
        #[prost(message, repeated, tag = "9")] pub(crate) attributes: Vec<KeyValue>,
        #[prost(message, optional, tag = "15")] pub(crate) status: Option<Status>,
        #[prost(fixed32, tag = "16")] pub(crate) flags: u32,
    }
    Status {
        #[prost(string, tag = "2")] pub(crate) message: String,
        #[prost(int32, tag = "3")] pub(crate) code: i32,
    }
    /// `collector/logs/v1`.
    LogsRequest { #[prost(message, repeated, tag = "1")] pub(crate) resource_logs: Vec<ResourceLogs>, }
    ResourceLogs {
        #[prost(message, optional, tag = "1")] pub(crate) resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")] pub(crate) scope_logs: Vec<ScopeLogs>,
    }
    ScopeLogs {
        #[prost(message, optional, tag = "1")] pub(crate) scope: Option<Scope>,
        #[prost(message, repeated, tag = "2")] pub(crate) log_records: Vec<LogRecord>,
    }
    LogRecord {
        #[prost(fixed64, tag = "1")] pub(crate) time_unix_nano: u64,
        #[prost(int32, tag = "2")] pub(crate) severity_number: i32,
        #[prost(string, tag = "3")] pub(crate) severity_text: String,
        #[prost(message, optional, tag = "5")] pub(crate) body: Option<AnyValue>,
        #[prost(message, repeated, tag = "6")] pub(crate) attributes: Vec<KeyValue>,
        #[prost(fixed32, tag = "8")] pub(crate) flags: u32,
        #[prost(bytes = "vec", tag = "9")] pub(crate) trace_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "10")] pub(crate) span_id: Vec<u8>,
        #[prost(fixed64, tag = "11")] pub(crate) observed_time_unix_nano: u64,
    }
    /// `collector/metrics/v1`.
    MetricsRequest { #[prost(message, repeated, tag = "1")] pub(crate) resource_metrics: Vec<ResourceMetrics>, }
    ResourceMetrics {
        #[prost(message, optional, tag = "1")] pub(crate) resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")] pub(crate) scope_metrics: Vec<ScopeMetrics>,
    }
    ScopeMetrics {
        #[prost(message, optional, tag = "1")] pub(crate) scope: Option<Scope>,
        #[prost(message, repeated, tag = "2")] pub(crate) metrics: Vec<Metric>,
    }
    Metric {
        #[prost(string, tag = "1")] pub(crate) name: String,
        #[prost(string, tag = "2")] pub(crate) description: String,
        #[prost(string, tag = "3")] pub(crate) unit: String,
        #[prost(message, optional, tag = "5")] pub(crate) gauge: Option<Gauge>,
        #[prost(message, optional, tag = "7")] pub(crate) sum: Option<Sum>,
        #[prost(message, optional, tag = "9")] pub(crate) histogram: Option<Histogram>,
    }
    Gauge { #[prost(message, repeated, tag = "1")] pub(crate) data_points: Vec<NumberPoint>, }
    Sum {
        #[prost(message, repeated, tag = "1")] pub(crate) data_points: Vec<NumberPoint>,
        #[prost(int32, tag = "2")] pub(crate) aggregation_temporality: i32,
        #[prost(bool, tag = "3")] pub(crate) is_monotonic: bool,
    }
    Histogram {
        #[prost(message, repeated, tag = "1")] pub(crate) data_points: Vec<HistogramPoint>,
        #[prost(int32, tag = "2")] pub(crate) aggregation_temporality: i32,
    }
    NumberPoint {
        #[prost(fixed64, tag = "2")] pub(crate) start_time_unix_nano: u64,
        #[prost(fixed64, tag = "3")] pub(crate) time_unix_nano: u64,
        #[prost(double, optional, tag = "4")] pub(crate) as_double: Option<f64>,
        #[prost(message, repeated, tag = "7")] pub(crate) attributes: Vec<KeyValue>,
    }
    HistogramPoint {
        #[prost(fixed64, tag = "2")] pub(crate) start_time_unix_nano: u64,
        #[prost(fixed64, tag = "3")] pub(crate) time_unix_nano: u64,
        #[prost(fixed64, tag = "4")] pub(crate) count: u64,
        #[prost(double, optional, tag = "5")] pub(crate) sum: Option<f64>,
        #[prost(fixed64, repeated, tag = "6")] pub(crate) bucket_counts: Vec<u64>,
        #[prost(double, repeated, tag = "7")] pub(crate) explicit_bounds: Vec<f64>,
        #[prost(message, repeated, tag = "9")] pub(crate) attributes: Vec<KeyValue>,
    }
    Resource { #[prost(message, repeated, tag = "1")] pub(crate) attributes: Vec<KeyValue>, }
    Scope {
        #[prost(string, tag = "1")] pub(crate) name: String,
        #[prost(string, tag = "2")] pub(crate) version: String,
    }
    KeyValue {
        #[prost(string, tag = "1")] pub(crate) key: String,
        #[prost(message, optional, tag = "2")] pub(crate) value: Option<AnyValue>,
    }
    AnyValue { #[prost(oneof = "Any", tags = "1, 2, 3, 4")] pub(crate) value: Option<Any>, }
    /// What is answered to a request: the same for all three.
    Answer { #[prost(message, optional, tag = "1")] pub(crate) partial_success: Option<PartialSuccess>, }
    PartialSuccess {
        #[prost(int64, tag = "1")] pub(crate) rejected: i64,
        #[prost(string, tag = "2")] pub(crate) error_message: String,
    }
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Any {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(int64, tag = "3")]
    Int(i64),
    #[prost(double, tag = "4")]
    Double(f64),
}

/// `AGGREGATION_TEMPORALITY_CUMULATIVE`.
pub(crate) const CUMULATIVE: i32 = 2;

/// `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK`, and `SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`: whether the parent is another process's is known; it is.
pub(crate) const HAS_IS_REMOTE: u32 = 0x100;
pub(crate) const IS_REMOTE: u32 = 0x200;

pub(crate) fn text(key: &str, value: impl Into<String>) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(Any::Text(value.into())) }) }
}
