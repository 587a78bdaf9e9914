//! `sandpool pool`: the pools of a server.

use std::path::Path;

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Outcome;
use crate::args::{ObjectForm, Pool};
use crate::client::{Client, Context, block_on, pool_path};
use crate::failure::Failure;
use crate::print::{self, cell};

/// The largest file of objects that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

pub(crate) fn run(context: &Context, pool: &Pool) -> Outcome {
    let client = Client::new(context)?;
    block_on(async {
        match pool {
            Pool::Ls => {
                let answer = client.get("/pools").await?;
                if context.json {
                    print::json(&answer)?;
                } else {
                    let rows: Vec<_> = answer["value"].as_array().into_iter().flatten().map(row).collect();
                    print::table(
                        &["POOL", "TYPE", "READY", "TARGET", "BOOTING", "SESSIONS", "MAX", "LEVEL", "TROUBLE"],
                        &rows,
                    )?;
                }
            }
            Pool::Get { pool, output: Some(form) } => {
                let object = client.get(&format!("{}/object", pool_path(pool))).await?;
                match form {
                    ObjectForm::Yaml => print::out(&yaml(&object)?)?,
                    ObjectForm::Json => print::json(&object)?,
                }
            }
            Pool::Apply { file, dry_run } => apply(context, &client, file, *dry_run).await?,
            Pool::Diff { file } => return diff(context, &client, file).await,
            Pool::Rm { pools } => {
                for pool in pools {
                    client.send(client.request(Method::DELETE, &pool_path(pool))).await?;
                    told(context, pool, "removed")?;
                }
            }
            Pool::Get { pool, output: None } => {
                let answer = client.get(&pool_path(pool)).await?;
                if context.json {
                    print::json(&answer)?;
                } else {
                    print::object(&answer)?;
                }
            }
            Pool::McpKey { pool, rotate } => {
                let path = format!("{}/mcp/credentials?rotate={rotate}", pool_path(pool));
                let answer = client.json(client.request(Method::POST, &path)).await?;
                if context.json {
                    print::json(&answer)?;
                } else {
                    print::out(&format!("{}\n", answer["apiKey"].as_str().unwrap_or_default()))?;
                }
            }
        }
        Ok(0)
    })
}

/// What became of a pool.
fn told(context: &Context, pool: &str, what: &str) -> Result<(), Failure> {
    match context.json {
        true => print::json(&json!({ "pool": pool, "result": what })),
        false => print::out(&format!("pool {pool} {what}\n")),
    }
}

/// What people read and apply again: without what nobody has said.
fn yaml(object: &Value) -> Result<String, Failure> {
    Ok(serde_norway::to_string(&said(object)).map_err(anyhow::Error::from)?)
}

/// The same without nulls, empty lists and empty maps.
fn said(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), said(value)))
            .filter(|(_, value)| !is_nothing(value) && value.as_object().is_none_or(|fields| !fields.is_empty()))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        value => value.clone(),
    }
}

/// The objects of a file, which may have several documents, with their names.
fn objects(file: &Path) -> Result<Vec<(String, Value)>, Failure> {
    use std::io::Read;
    let shown = if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() };
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => std::io::stdin().take(MAX_FILE).read_to_string(&mut text),
        false => std::fs::File::open(file).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text)),
    };
    read.map_err(|error| Failure::usage(format!("cannot read {shown}")).because(error))?;
    let mut objects = Vec::new();
    for document in serde_norway::Deserializer::from_str(&text) {
        let at = objects.len() + 1;
        let wrong = |why: String| Failure::usage(format!("{shown}, object {at}")).because(why);
        let object = Value::deserialize(document).map_err(|error| wrong(error.to_string()))?;
        if object.is_null() {
            continue;
        }
        match object["kind"].as_str() {
            None | Some("SessionPool") => {}
            Some(kind) => return Err(wrong(format!("kind: is {kind:?}, and SessionPool is what can be applied"))),
        }
        let name = object["metadata"]["name"].as_str().map(str::to_owned);
        let name = name.ok_or_else(|| wrong("metadata.name: is missing".to_owned()))?;
        if objects.iter().any(|(known, _)| *known == name) {
            return Err(wrong(format!("metadata.name: {name} is there twice")));
        }
        objects.push((name, object));
    }
    if objects.is_empty() {
        return Err(Failure::usage(format!("{shown} has no object")));
    }
    Ok(objects)
}

/// Asks the server to apply one object.
async fn send(client: &Client, name: &str, object: &Value, is_dry: bool) -> Result<Value, Failure> {
    let path = format!("{}?dryRun={is_dry}", pool_path(name));
    client.json(client.request(Method::PUT, &path).json(object)).await
}

/// All of them are checked before the first is applied.
async fn apply(context: &Context, client: &Client, file: &Path, dry_run: bool) -> Result<(), Failure> {
    let objects = objects(file)?;
    if objects.len() > 1 && !dry_run {
        for (name, object) in &objects {
            send(client, name, object, true).await?;
        }
    }
    for (name, object) in &objects {
        let answer = send(client, name, object, dry_run).await?;
        let result = answer["result"].as_str().unwrap_or_default();
        told(context, name, &if dry_run { format!("{result} (dry run)") } else { result.to_owned() })?;
    }
    Ok(())
}

/// Says line by line what would change; 1 if anything would.
async fn diff(context: &Context, client: &Client, file: &Path) -> Outcome {
    let mut changes = 0;
    for (name, object) in objects(file)? {
        let answer = send(client, &name, &object, true).await?;
        if answer["result"] == "unchanged" {
            continue;
        }
        changes += 1;
        let is_new = answer["result"] == "created";
        let before = if is_new { Value::Null } else { client.get(&format!("{}/object", pool_path(&name))).await? };
        let mut lines = Vec::new();
        differences("spec", &before["spec"], &answer["object"]["spec"], &mut lines);
        for notes in ["labels", "annotations"] {
            let of = |object: &Value| object["metadata"][notes].clone();
            differences(&format!("metadata.{notes}"), &of(&before), &of(&answer["object"]), &mut lines);
        }
        if lines.is_empty() {
            // Values of secrets are not shown, and an image's name may mean another one now.
            let has_secrets = !is_nothing(&answer["object"]["spec"]["containerSecrets"]);
            let (field, what) = match has_secrets {
                true => ("containerSecrets", "a value is another one, or the image's name means another one now"),
                false => ("image", "its name means another one now"),
            };
            lines.push((field.to_owned(), Value::Null, json!(what)));
        }
        if context.json {
            let lines =
                lines.iter().map(|(field, before, after)| json!({ "field": field, "before": before, "after": after }));
            print::json(&json!({ "pool": name, "isNew": is_new, "changes": lines.collect::<Vec<_>>() }))?;
        } else {
            print::out(&format!("pool {name}{}\n", if is_new { " (new)" } else { "" }))?;
            for (field, before, after) in lines {
                for (sign, value) in [('-', before), ('+', after)] {
                    if !value.is_null() {
                        print::out(&format!("{sign} {field}: {value}\n"))?;
                    }
                }
            }
        }
    }
    Ok(u8::from(changes > 0))
}

/// The fields in which two objects differ, with both values.
fn differences(at: &str, before: &Value, after: &Value, found: &mut Vec<(String, Value, Value)>) {
    let fields = |value: &Value| value.as_object().cloned().unwrap_or_default();
    if before.is_object() || after.is_object() {
        let (before, after) = (fields(before), fields(after));
        let names: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for name in names {
            let of = |fields: &serde_json::Map<String, Value>| fields.get(name).cloned().unwrap_or_default();
            differences(&format!("{at}.{name}"), &of(&before), &of(&after), found);
        }
    } else if before != after && !(is_nothing(before) && is_nothing(after)) {
        found.push((at.to_owned(), before.clone(), after.clone()));
    }
}

/// What is as if it were not there.
fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

fn row(pool: &Value) -> Vec<String> {
    ["name", "containerType", "ready", "readyTarget", "booting", "sessions", "maxSessions", "level", "trouble"]
        .iter()
        .map(|field| cell(&pool[*field]))
        .collect()
}

/// The names of a server's pools.
pub(crate) async fn names(client: &Client) -> Result<Vec<String>, Failure> {
    let answer = client.get("/pools").await?;
    let name = |pool: &Value| pool["name"].as_str().map(str::to_owned);
    Ok(answer["value"].as_array().into_iter().flatten().filter_map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let names = objects(file.path()).map(|objects| objects.into_iter().map(|(name, _)| name).collect());
        names.map_err(|failure| failure.to_string().replace(&file.path().display().to_string(), "FILE"))
    }

    #[test]
    fn a_file_has_one_object_or_several() {
        let one = "kind: SessionPool\nmetadata: { name: a }\n";
        assert_eq!(read(one).unwrap(), ["a"]);
        assert_eq!(read(&format!("# two\n---\n{one}---\nmetadata:\n  name: b\n")).unwrap(), ["a", "b"]);
        for (text, part) in [
            ("", "FILE has no object"),
            ("metadata: {}", "metadata.name: is missing"),
            ("kind: Pod\nmetadata: { name: a }", "kind: is \"Pod\""),
            ("a: b: c", "FILE, object 1"),
            (&format!("{one}---\n{one}"), "a is there twice"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn differences_are_told_field_by_field() {
        let mut found = Vec::new();
        let before = json!({ "a": 1, "b": { "c": [1], "d": null }, "e": [] });
        let after = json!({ "a": 1, "b": { "c": [1, 2] }, "f": "x" });
        differences("spec", &before, &after, &mut found);
        let fields: Vec<_> = found.iter().map(|(field, _, _)| field.as_str()).collect();
        assert_eq!(fields, ["spec.b.c", "spec.f"]);
    }
}
