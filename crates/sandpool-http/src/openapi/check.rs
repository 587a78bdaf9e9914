//! Answers held against the document: the statuses, headers' kinds and schemas that it promises.

use std::sync::LazyLock;

use serde_json::Value;

use super::DOCUMENT;

/// The document, parsed.
pub(crate) static PARSED: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(DOCUMENT).unwrap());

/// What a `$ref` leads to.
pub(super) fn resolved(mut value: &'static Value) -> &'static Value {
    while let Some(target) = value["$ref"].as_str() {
        value = PARSED.pointer(target.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("nothing is at {target}"));
    }
    value
}

/// The documented path that this one is an instance of: the one with the fewest braces, and then
/// the most words.
fn item(path: &str) -> Option<(&'static str, &'static Value)> {
    let fits = |template: &str| {
        let (mut asked, mut written) = (path.split('/'), template.split('/'));
        loop {
            match (asked.next(), written.next()) {
                (None, None) => return true,
                // The path of a file has as many segments as it likes.
                (Some(_), Some("{path}")) if written.next().is_none() => return true,
                (Some(asked), Some(written)) => {
                    let fits = match written.split_once('{').zip(written.split_once('}')) {
                        Some(((before, _), (_, after))) => asked.starts_with(before) && asked.ends_with(after),
                        None => asked == written,
                    };
                    if !fits {
                        return false;
                    }
                }
                _ => return false,
            }
        }
    };
    let paths = PARSED["paths"].as_object().unwrap();
    let fitting = paths.iter().filter(|(template, _)| fits(template));
    fitting
        .min_by_key(|(template, _)| (template.matches('{').count(), std::cmp::Reverse(template.len())))
        .map(|(path, item)| (path.as_str(), item))
}

/// Panics when an answer is not as it is documented. Paths without an entry are somebody else's.
pub(crate) fn answer(method: &str, uri: &str, status: u16, kind: &str, body: &[u8]) {
    let path = uri.split('?').next().unwrap_or_default();
    let Some((template, item)) = item(path) else { return };
    let operation = &item[method.to_ascii_lowercase()];
    let where_ = format!("{method} {template} {status}");
    if operation.is_null() {
        assert!(status == 405 || method == "HEAD", "{where_}: the method is not documented");
        return;
    }
    let response = resolved(&operation["responses"][status.to_string()]);
    assert!(response.is_object(), "{where_} is not documented: {}", String::from_utf8_lossy(body));
    let Some(content) = response["content"].as_object() else {
        assert!(body.is_empty(), "{where_}: has a body, which is not documented");
        return;
    };
    let kind = kind.split(';').next().unwrap_or_default();
    let media = content.get(kind).unwrap_or_else(|| panic!("{where_}: {kind} is not documented"));
    if kind == "application/json" {
        let value = serde_json::from_slice(body).unwrap();
        if let Some(why) = mismatch(&media["schema"], &value, "answer") {
            panic!("{where_}: {why} in {value}");
        }
    }
}

/// Why `value` is not what `schema` says. Objects may have no key that is not documented.
pub(super) fn mismatch(schema: &'static Value, value: &Value, at: &str) -> Option<String> {
    let schema = resolved(schema);
    if let Some(options) = schema["oneOf"].as_array() {
        let all: Vec<_> = options.iter().map(|option| mismatch(option, value, at)).collect();
        return if all.iter().filter(|why| why.is_none()).count() == 1 {
            None
        } else {
            Some(format!("{at} fits not exactly one: {all:?}"))
        };
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        return Some(format!("{at}: {value} is none of {words:?}"));
    }
    let kinds: Vec<_> = match &schema["type"] {
        Value::String(kind) => vec![kind.as_str()],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => return None,
    };
    let is = |kind: &str| match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{at}: the document has a type {other}"),
    };
    if !kinds.iter().any(|kind| is(kind)) {
        return Some(format!("{at}: {value} is no {kinds:?}"));
    }
    match value {
        Value::Object(map) => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            if let Some(missing) = required.into_iter().find(|name| !map.contains_key(*name)) {
                return Some(format!("{at} has no {missing}"));
            }
            map.iter().find_map(|(name, inner)| match (&schema["properties"][name], &schema["additionalProperties"]) {
                (Value::Null, Value::Null | Value::Bool(false)) => Some(format!("{at}.{name} is not documented")),
                (Value::Null, _) => None,
                (known, _) => mismatch(known, inner, &format!("{at}.{name}")),
            })
        }
        Value::Array(list) => {
            list.iter().enumerate().find_map(|(n, inner)| mismatch(&schema["items"], inner, &format!("{at}[{n}]")))
        }
        _ => None,
    }
}
