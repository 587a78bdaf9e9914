//! Spans, and the one that is current.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::context::{Parent, TraceParent};
use crate::export::Exporter;
use crate::otlp::{self, Any, AnyValue, KeyValue};

/// Which traces are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// The share of traces, 0 to 1.
    pub ratio: f64,
    /// Where the caller says whether it records, it is done as it does.
    pub follows_parent: bool,
}

impl Sampler {
    /// Whether this one is: the same for all that look at the same trace with the same ratio (the lower 8 bytes of its id below the bound).
    fn takes(self, trace: &[u8; 16], parent: Parent) -> bool {
        if let (true, Parent::Of(parent)) = (self.follows_parent, parent) {
            return parent.is_sampled;
        }
        let [.., a, b, c, d, e, f, g, h] = *trace;
        // Of 63 bits, as the SDKs of other languages do it.
        let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1;
        #[expect(clippy::cast_precision_loss, reason = "a share needs no more")]
        let share = number as f64 / (1_u64 << 63) as f64;
        // The largest numbers are rounded to 1.
        self.ratio >= 1.0 || share < self.ratio
    }
}

/// What kind of thing a span is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something inside.
    Internal,
    /// A request that came.
    Server,
}

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text that the program has.
    Static(&'static str),
    /// Text.
    Text(String),
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Double(f64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Static(text)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

/// In seconds.
impl From<Duration> for Value {
    fn from(time: Duration) -> Self {
        Self::Double(time.as_secs_f64())
    }
}

pub(crate) fn attribute(key: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Static(text) => Any::Text(text.to_owned()),
        Value::Text(text) => Any::Text(text),
        Value::Bool(value) => Any::Bool(value),
        Value::Int(number) => Any::Int(number),
        Value::Double(number) => Any::Double(number),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

tokio::task_local! {
    static CURRENT: Trace;
}

/// The trace in which this task works, if it is recorded.
#[must_use]
pub fn current() -> Option<Trace> {
    CURRENT.try_with(Trace::clone).ok()
}

/// The place in it, for what only names it.
pub(crate) fn current_place() -> Option<TraceParent> {
    CURRENT.try_with(|trace| trace.place()).ok()
}

/// Works in a trace.
pub async fn scope<T>(trace: Option<Trace>, work: impl Future<Output = T>) -> T {
    match trace {
        Some(trace) => CURRENT.scope(trace, work).await,
        None => work.await,
    }
}

/// A place in a trace that is recorded: the span under which others are put. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Trace {
    whole: Arc<Whole>,
    span: [u8; 8],
}

#[derive(Debug)]
struct Whole {
    id: [u8; 16],
    exporter: Exporter,
    /// One moment by both clocks, so that all spans of a trace are on one line, whoever sets the host's clock.
    anchor: (Instant, SystemTime),
    /// What its request is, where no router says so.
    route: OnceLock<&'static str>,
}

/// A span that goes on. One that is dropped before its end is not recorded.
#[derive(Debug)]
pub struct Span {
    trace: Trace,
    name: Cow<'static, str>,
    kind: Kind,
    parent: [u8; 8],
    is_remote: bool,
    began: Instant,
    attributes: Vec<KeyValue>,
}

impl Trace {
    /// Begins the first span that a request has here, if it is one to be recorded.
    #[must_use]
    pub fn begin(exporter: &Exporter, parent: Parent, name: &'static str, kind: Kind) -> Option<Span> {
        if !exporter.signals().traces {
            return None;
        }
        let id = match parent {
            Parent::Of(parent) => parent.trace,
            Parent::None => random()?,
        };
        if !exporter.sampler().takes(&id, parent) {
            return None;
        }
        let now = Instant::now();
        let anchor = (now, SystemTime::now());
        let whole = Whole { id, exporter: exporter.clone(), anchor, route: OnceLock::new() };
        let trace = Self { whole: Arc::new(whole), span: random()? };
        let (parent, is_remote) = match parent {
            Parent::Of(parent) => (parent.span, true),
            Parent::None => ([0; 8], false),
        };
        Some(Span { trace, name: name.into(), kind, parent, is_remote, began: now, attributes: Vec::new() })
    }

    /// Begins a span below this one.
    #[must_use]
    pub fn child(&self, name: &'static str) -> Option<Span> {
        let trace = Self { whole: Arc::clone(&self.whole), span: random()? };
        let (parent, began, name, kind) = (self.span, Instant::now(), name.into(), Kind::Internal);
        Some(Span { trace, name, kind, parent, is_remote: false, began, attributes: Vec::new() })
    }

    /// Begins one below this, or below what its caller says of itself: where that is of another trace, it is recorded there.
    #[must_use]
    pub fn child_of(&self, parent: Parent, name: &'static str) -> Option<Span> {
        match parent {
            Parent::Of(parent) if parent.is_sampled => {
                let Whole { exporter, anchor, .. } = &*self.whole;
                let whole = match parent.trace == self.whole.id {
                    true => Arc::clone(&self.whole),
                    false => {
                        let (exporter, anchor, route) = (exporter.clone(), *anchor, OnceLock::new());
                        Arc::new(Whole { id: parent.trace, exporter, anchor, route })
                    }
                };
                let trace = Self { whole, span: random()? };
                let (kind, began, name) = (Kind::Server, Instant::now(), name.into());
                Some(Span { trace, name, kind, parent: parent.span, is_remote: true, began, attributes: Vec::new() })
            }
            Parent::Of(_) | Parent::None => self.child(name),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> TraceParent {
        TraceParent { trace: self.whole.id, span: self.span, is_sampled: true }
    }

    /// The route of its request, if it was said.
    #[must_use]
    pub fn route(&self) -> Option<&'static str> {
        self.whole.route.get().copied()
    }

    /// Its request is for this route: a template, never a path.
    pub fn is_route(&self, route: &'static str) {
        // Only the first is.
        let _ = self.whole.route.set(route);
    }
}

impl Span {
    /// The place under which others are put.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// It has another name.
    pub fn rename(&mut self, name: String) {
        self.name = name.into();
    }

    /// It began at another time than when it was made.
    #[must_use]
    pub fn since(self, began: Instant) -> Self {
        Self { began, ..self }
    }

    /// Something about it.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.attributes.push(attribute(key, value.into()));
    }

    /// It has ended, now. `error`: why it did not go well, in a word of ours.
    pub fn end(self, error: Option<&'static str>) {
        self.end_at(Instant::now(), error);
    }

    /// It has ended.
    pub fn end_at(self, at: Instant, error: Option<&'static str>) {
        let Self { trace, name, kind, parent, is_remote, began, attributes } = self;
        let (moment, clock) = trace.whole.anchor;
        let nanoseconds = |at: Instant| {
            let time = match at.checked_duration_since(moment) {
                Some(after) => clock + after,
                None => clock - moment.saturating_duration_since(at),
            };
            time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
        };
        let span = otlp::Span {
            trace_id: trace.whole.id.to_vec(),
            span_id: trace.span.to_vec(),
            parent_span_id: if parent == [0; 8] { Vec::new() } else { parent.to_vec() },
            name: name.into_owned(),
            kind: match kind {
                Kind::Internal => 1,
                Kind::Server => 2,
            },
            start_time_unix_nano: nanoseconds(began),
            end_time_unix_nano: nanoseconds(at.max(began)),
            attributes,
            status: error.map(|why| otlp::Status { message: why.to_owned(), code: 2 }),
            flags: 1 | otlp::HAS_IS_REMOTE | if is_remote { otlp::IS_REMOTE } else { 0 },
        };
        trace.whole.exporter.span(span);
    }
}

/// An id that is not all zero; none where the host has no randomness.
fn random<const N: usize>() -> Option<[u8; N]> {
    let mut id = [0; N];
    getrandom::fill(&mut id).ok()?;
    (id != [0; N]).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_taken_by_its_caller_or_by_its_number() {
        let all = Sampler { ratio: 1.0, follows_parent: true };
        let parent = |is_sampled| Parent::Of(TraceParent { trace: [1; 16], span: [1; 8], is_sampled });
        assert!(all.takes(&[0xff; 16], Parent::None));
        assert!(!all.takes(&[1; 16], parent(false)));
        let none = Sampler { ratio: 0.0, follows_parent: true };
        assert!(!none.takes(&[0; 16], Parent::None) && none.takes(&[1; 16], parent(true)));
        let stubborn = Sampler { follows_parent: false, ..none };
        assert!(!stubborn.takes(&[1; 16], parent(true)));
        let half = Sampler { ratio: 0.5, follows_parent: false };
        assert!(half.takes(&[0x7f; 16], Parent::None) && !half.takes(&[0x80; 16], Parent::None));
    }

    #[tokio::test]
    async fn nothing_is_current_where_nobody_traces() {
        assert!(current().is_none());
        scope(None, async { assert!(current_place().is_none()) }).await;
    }
}
