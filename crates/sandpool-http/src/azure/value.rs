//! What an execution brought, as clients read it: the value of the last expression, all that was shown, and streams that
//! are cut without losing the sign of it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sandpool_node::{Execution, Rich};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value as Json};

/// The forms of an image, the best first, and their names in an answer.
const IMAGES: [(&str, &str); 5] = [
    ("image/png", "png"),
    ("image/jpeg", "jpeg"),
    ("image/webp", "webp"),
    ("image/gif", "gif"),
    ("image/svg+xml", "svg"),
];

/// The value of the last expression, ready to be written.
#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Text(String),
    /// A boolean or a number, with all its digits.
    Raw(Box<RawValue>),
    Image {
        format: &'static str,
        base64_data: String,
    },
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Image<'a> {
            r#type: &'a str,
            format: &'a str,
            base64_data: &'a str,
        }
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Raw(raw) => raw.serialize(serializer),
            Self::Image { format, base64_data } => Image { r#type: "image", format, base64_data }.serialize(serializer),
        }
    }
}

/// How a client wants the value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manner {
    /// As Jupyter shows it (`returnJupyterFormatExecutionResult`).
    pub(crate) jupyter_format: bool,
    /// As text, whatever it is: semantic-kernel for .NET takes nothing else.
    pub(crate) text_only: bool,
}

impl Value {
    /// The value of an execution: that of its last expression, or the last figure it showed.
    pub(crate) fn of(execution: &Execution, manner: Manner) -> Self {
        let is_none = |rich: &Rich| rich.scalar.as_deref() == Some("null");
        let value = match &execution.result {
            Some(rich) if !is_none(rich) => Self::of_rich(rich, manner),
            none => match execution.displays.iter().rev().find_map(image) {
                Some(figure) => figure,
                None if none.is_some() && manner.jupyter_format => Self::Null,
                None => Self::Text(String::new()),
            },
        };
        if manner.text_only { value.into_text() } else { value }
    }

    fn of_rich(rich: &Rich, manner: Manner) -> Self {
        if let Some(image) = image(rich) {
            return image;
        }
        if manner.jupyter_format {
            return Self::Text(rich.text.clone());
        }
        match &rich.scalar {
            Some(json) if json.starts_with('"') => match serde_json::from_str(json) {
                Ok(text) => Self::Text(text),
                Err(_) => Self::Text(rich.text.clone()),
            },
            Some(json) => RawValue::from_string(json.clone()).map_or_else(|_| Self::Text(rich.text.clone()), Self::Raw),
            None if ["nan", "NaN", "np.float64(nan)", "np.float32(nan)"].contains(&rich.text.as_str()) => Self::Null,
            None => Self::Text(rich.text.clone()),
        }
    }

    fn into_text(self) -> Self {
        match self {
            Self::Null | Self::Text(_) => self,
            // Values of these kinds can always be written.
            other => Self::Text(serde_json::to_string(&other).unwrap_or_default()),
        }
    }
}

fn image(rich: &Rich) -> Option<Value> {
    IMAGES.iter().find_map(|(media, format)| {
        let (_, data) = rich.forms.iter().find(|(kind, _)| kind == media)?;
        Some(Value::Image { format, base64_data: STANDARD.encode(data) })
    })
}

/// All that an execution showed, in order: what it displayed, and its value if that has more forms than text.
pub(crate) fn outputs(execution: &Execution) -> Vec<Json> {
    let displays = execution.displays.iter().map(|rich| ("display", rich));
    let result = execution.result.iter().filter(|rich| !rich.forms.is_empty() || !rich.dropped.is_empty());
    displays.chain(result.map(|rich| ("result", rich))).map(|(kind, rich)| output(kind, rich)).collect()
}

fn output(kind: &str, rich: &Rich) -> Json {
    let mut data = Map::new();
    data.insert("text/plain".to_owned(), rich.text.clone().into());
    for (media, bytes) in &rich.forms {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) if media.starts_with("text/") || media.contains("json") || media.contains("xml") => {
                text.to_owned()
            }
            _ => STANDARD.encode(bytes),
        };
        data.insert(media.clone(), text.into());
    }
    let mut output = Map::new();
    output.insert("kind".to_owned(), kind.into());
    output.insert("data".to_owned(), data.into());
    if !rich.dropped.is_empty() {
        let too_large =
            rich.dropped.iter().map(|(media, size)| serde_json::json!({ "contentType": media, "sizeInBytes": size }));
        output.insert("tooLarge".to_owned(), too_large.collect());
    }
    output.into()
}

/// A stream as text, and whether something of it is missing at its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    pub(crate) text: String,
    pub(crate) is_cut: bool,
}

impl Stream {
    /// The first `limit` characters; what is cut ends with three full stops. `dropped` bytes were not even kept.
    pub(crate) fn new(bytes: Vec<u8>, dropped: u64, limit: Option<u64>) -> Self {
        let mut text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let bytes = error.as_bytes();
                let whole = match error.utf8_error() {
                    // Half a character, where the rest was dropped.
                    half if dropped > 0 && half.error_len().is_none() => &bytes[..half.valid_up_to()],
                    _ => bytes,
                };
                String::from_utf8_lossy(whole).into_owned()
            }
        };
        let mut is_cut = dropped > 0;
        if let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok())
            && text.len() > limit
            && let Some((at, _)) = text.char_indices().nth(limit)
        {
            text.truncate(at);
            is_cut = true;
        }
        if is_cut {
            text.push_str("...");
        }
        Self { text, is_cut }
    }
}

#[cfg(test)]
mod tests;
