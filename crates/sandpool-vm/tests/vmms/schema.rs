//! What an API takes, as a table says it.

use serde_json::Value;

/// One field.
#[derive(Debug)]
struct Field {
    /// With the fields that it is in, before points.
    path: &'static str,
    is_required: bool,
    kind: &'static str,
    may_be: Vec<&'static str>,
}

/// One request.
#[derive(Debug)]
pub(crate) struct Request {
    method: &'static str,
    path: &'static str,
    /// When it is allowed.
    pub(crate) when: &'static str,
    fields: Vec<Field>,
}

/// The requests of a table.
pub(crate) fn read(table: &'static str) -> Vec<Request> {
    let mut requests: Vec<Request> = Vec::new();
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match (line.starts_with(' '), words.as_slice()) {
            (false, [method, path, when]) => requests.push(Request { method, path, when, fields: Vec::new() }),
            (true, [name, kind, may_be @ ..]) => {
                let (path, is_required) = name.strip_suffix('!').map_or((*name, false), |path| (path, true));
                let field = Field { path, is_required, kind, may_be: may_be.to_vec() };
                requests.last_mut().expect("a request before its fields").fields.push(field);
            }
            _ => panic!("the table has a line that says nothing: {line:?}"),
        }
    }
    requests
}

/// The request that this is, with a body as it has to be.
///
/// # Errors
/// What is wrong, as a status and a sentence.
pub(crate) fn check<'a>(
    requests: &'a [Request],
    (method, path): (&str, &str),
    body: Option<&Value>,
) -> Result<&'a Request, (u16, String)> {
    let request = requests.iter().find(|request| request.path == path && request.method == method);
    let request = request.ok_or_else(|| (404, format!("there is no {method} {path}")))?;
    match (body, request.fields.is_empty()) {
        (None, true) => Ok(request),
        (Some(body), false) => fields(&request.fields, "", body).map(|()| request).map_err(|why| (400, why)),
        (None, false) => Err((400, "it has no body".to_owned())),
        (Some(_), true) => Err((400, "it takes no body".to_owned())),
    }
}

fn fields(all: &[Field], within: &str, body: &Value) -> Result<(), String> {
    let body = body.as_object().ok_or_else(|| format!("{within:?} is no object"))?;
    let inside = |field: &&Field| {
        let name = if within.is_empty() { Some(field.path) } else { field.path.strip_prefix(&format!("{within}.")) };
        name.is_some_and(|name| !name.contains('.'))
    };
    let own: Vec<&Field> = all.iter().filter(inside).collect();
    let name_of = |field: &Field| field.path.rsplit('.').next().unwrap_or_default();
    for name in body.keys() {
        if !own.iter().any(|field| name_of(field) == name) {
            return Err(format!("unknown field `{name}` in {within:?}"));
        }
    }
    for field in own {
        match body.get(name_of(field)) {
            None if field.is_required => return Err(format!("missing field `{}`", field.path)),
            None => {}
            Some(value) => one(all, field, value)?,
        }
    }
    Ok(())
}

fn one(all: &[Field], field: &Field, value: &Value) -> Result<(), String> {
    let wrong = || format!("`{}` is no {} {}: {value}", field.path, field.kind, field.may_be.join("|"));
    match field.kind {
        "string" => {
            let text = value.as_str().ok_or_else(wrong)?;
            if field.may_be.is_empty() || field.may_be.contains(&text) { Ok(()) } else { Err(wrong()) }
        }
        "boolean" => value.as_bool().map(drop).ok_or_else(wrong),
        "integer" => {
            let number = value.as_u64().ok_or_else(wrong)?;
            let (least, most) = field.may_be[0].split_once("..").expect("a range");
            let most = if most.is_empty() { u64::MAX } else { most.parse().expect("a number") };
            if (least.parse().expect("a number")..=most).contains(&number) { Ok(()) } else { Err(wrong()) }
        }
        "object" => fields(all, field.path, value),
        "list" => {
            let list = value.as_array().ok_or_else(wrong)?;
            list.iter().try_for_each(|value| fields(all, field.path, value))
        }
        other => panic!("the table has no type {other}"),
    }
}
