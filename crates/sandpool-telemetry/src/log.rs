//! The server's events, as records with the span in which they happened.

use std::fmt::{Debug, Write as _};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::export::Exporter;
use crate::otlp::{Any, AnyValue, KeyValue, LogRecord};
use crate::trace::{Value, attribute, current_place};

/// Bytes of a record's text, and of each of its values; the rest is cut.
const MOST: usize = 4 * 1024;

/// Fields of one record.
const FIELDS: usize = 32;

/// What our own exporter's client says: it would be told for ever.
const NOT_TOLD: [&str; 6] = ["hyper", "h2", "reqwest", "rustls", "sandpool_telemetry", "tower"];

/// A layer of the log that gives its events to an exporter, once there is one. What is told is what is logged: put the same filter on it.
#[derive(Clone, Debug, Default)]
pub struct LogLayer(Arc<OnceLock<Exporter>>);

impl LogLayer {
    /// From now on they go there.
    pub fn connect(&self, exporter: &Exporter) {
        if exporter.signals().logs {
            // Only the first counts.
            let _ = self.0.set(exporter.clone());
        }
    }
}

impl<S: Subscriber> Layer<S> for LogLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(exporter) = self.0.get() else { return };
        let meta = event.metadata();
        let of = meta.target().split("::").next().unwrap_or_default();
        if NOT_TOLD.contains(&of) {
            return;
        }
        let mut seen = Seen::default();
        event.record(&mut seen);
        let (severity_number, severity_text) = match *meta.level() {
            Level::TRACE => (1, "TRACE"),
            Level::DEBUG => (5, "DEBUG"),
            Level::INFO => (9, "INFO"),
            Level::WARN => (13, "WARN"),
            Level::ERROR => (17, "ERROR"),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let place = current_place();
        seen.fields.push(attribute("code.namespace", Value::Static(meta.target())));
        exporter.log(LogRecord {
            time_unix_nano: now,
            observed_time_unix_nano: now,
            severity_number,
            severity_text: severity_text.to_owned(),
            body: Some(AnyValue { value: Some(Any::Text(seen.message)) }),
            attributes: seen.fields,
            flags: place.map_or(0, |place| u32::from(place.is_sampled)),
            trace_id: place.map_or_else(Vec::new, |place| place.trace.to_vec()),
            span_id: place.map_or_else(Vec::new, |place| place.span.to_vec()),
        });
    }
}

#[derive(Default)]
struct Seen {
    message: String,
    fields: Vec<KeyValue>,
}

impl Seen {
    fn put(&mut self, field: &Field, value: Value) {
        if self.fields.len() < FIELDS {
            self.fields.push(attribute(field.name(), value));
        }
    }

    fn text(&mut self, field: &Field, text: String) {
        let text = cut(text);
        if field.name() == "message" {
            self.message = text;
        } else {
            self.put(field, Value::Text(text));
        }
    }
}

fn cut(mut text: String) -> String {
    if text.len() > MOST {
        let end = (0..=MOST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        // Writing to a string does not fail, unless the value does.
        let _ = write!(text, "{value:?}");
        self.text(field, text);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Int(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Int(i64::try_from(value).unwrap_or(i64::MAX)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Bool(value));
    }
}
