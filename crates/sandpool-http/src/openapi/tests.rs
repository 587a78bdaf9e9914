use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::Request;
use serde_json::Value;

use super::check::{self, PARSED, resolved};
use super::write::{AZURE_BASE, document};
use crate::azure::route::ROUTES;
use crate::served::{Served, read};

/// Every operation of the document with this tag: method and path.
fn tagged(tag: &str) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for (path, item) in PARSED["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if operation["tags"][0] == tag {
                found.insert((method.clone(), path.clone()));
            }
        }
    }
    found
}

#[test]
fn the_committed_document_is_the_written_one() {
    let mut text = serde_json::to_string_pretty(&document()).unwrap();
    text.push('\n');
    expect_test::expect_file!["../../../../docs/openapi.json"].assert_eq(&text);
}

#[test]
fn every_route_has_its_entry_and_every_entry_its_route() {
    let readiness = ("get".to_owned(), "/readyz".to_owned());
    let native = crate::native::documented().into_iter().map(|(method, path)| (method.to_owned(), path));
    let native: BTreeSet<_> = native.filter(|route| *route != readiness).collect();
    assert_eq!(tagged("native"), native);
    assert!(tagged("server").contains(&readiness));
    let azure = ROUTES.iter().map(|route| {
        let path = route.path.replace("...}", "}");
        (route.method.as_str().to_ascii_lowercase(), format!("{AZURE_BASE}/{path}"))
    });
    assert_eq!(tagged("azure"), azure.collect());
}

/// The routes of other modules, which have no table: each is there, with that method, and nothing else is.
#[tokio::test]
async fn what_has_no_table_is_there_too() {
    let served = Served::start().await;
    for (method, path) in tagged("identity").into_iter().chain(tagged("server")) {
        let path = path.replace("{tenant}", "common");
        for (method, is_there) in [(method.to_uppercase(), true), ("PATCH".to_owned(), false)] {
            let request = Request::builder().method(method.as_str()).uri(&path).body(Body::empty()).unwrap();
            let answer = read(served.send(request).await).await;
            assert_ne!(answer.status.as_u16(), 404, "{method} {path}");
            assert_eq!(answer.status.as_u16() != 405, is_there, "{method} {path}");
        }
    }
}

#[test]
fn examples_are_what_they_are_examples_of() {
    let mut count = 0;
    for (name, schema) in PARSED["components"]["schemas"].as_object().unwrap() {
        for example in schema["examples"].as_array().into_iter().flatten() {
            assert_eq!(check::mismatch(schema, example, name), None);
            count += 1;
        }
    }
    assert!(count >= 8, "{count} examples");
}

#[test]
fn every_reference_leads_somewhere_and_every_name_is_its_own() {
    fn walk(value: &'static Value) {
        match value {
            Value::Object(map) => {
                resolved(value);
                map.values().for_each(walk);
            }
            Value::Array(list) => list.iter().for_each(walk),
            _ => {}
        }
    }
    walk(&PARSED);
    let items = PARSED["paths"].as_object().unwrap().values();
    let names: Vec<_> = items.flat_map(|item| item.as_object().unwrap().values()).collect();
    let names: Vec<_> = names.iter().filter_map(|operation| operation["operationId"].as_str()).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
}

/// What one session of Azure's data plane answers, held against the document (as all that `Served` answers).
#[tokio::test]
async fn azures_answers_are_as_documented() {
    let served = Served::start().await;
    let at = |path: &str| {
        let mark = if path.contains('?') { '&' } else { '?' };
        format!("/subscriptions/s/resourceGroups/r/sessionPools/python/{path}{mark}identifier=chat-17")
    };
    let modern = "api-version=2025-10-02-preview";
    let legacy = "api-version=2024-02-02-preview";
    let part = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\nhi\r\n--b--\r\n";
    let calls = [
        ("POST", at("executions"), r#"{"code": "out hi\npng\nvalue 42"}"#, 200),
        ("POST", at("executions"), r#"{"code": "raise A: b"}"#, 200),
        ("POST", at("executions"), r#"{"code": "flood 9000"}"#, 200),
        ("POST", at("executions"), r#"{"code": "sleep 1", "executionType": "asynchronous"}"#, 202),
        ("POST", at("code/execute"), r#"{"properties": {"code": "text [1]"}}"#, 200),
        ("POST", at("python/execute"), r#"{"properties": {"pythonCode": "value 1"}}"#, 200),
        ("POST", at("executions"), "{}", 400),
        ("GET", at("executions/none"), "", 404),
        ("POST", at("files"), part, 200),
        ("POST", at("files/upload"), part, 200),
        ("POST", at("python/uploadFile"), part, 200),
        ("GET", at(&format!("files?{modern}")), "", 200),
        ("GET", at(&format!("files?{legacy}")), "", 200),
        ("GET", at("files"), "", 200),
        ("GET", at("python/files"), "", 200),
        ("GET", at("files/a.txt"), "", 200),
        ("GET", at("files/a.txt/content"), "", 200),
        ("GET", at("files/content/a.txt"), "", 200),
        ("POST", at("files/a.txt:downloadFile"), "", 200),
        ("GET", at("files/none"), "", 404),
        ("DELETE", at("files/a.txt"), "", 204),
        ("GET", at("session"), "", 200),
        ("GET", at("listSessions"), "", 200),
        ("GET", at("metadata"), "", 200),
        ("POST", at(".management/getSession"), "", 200),
        ("POST", at(".management/listSessions"), "", 200),
        ("POST", at(".management/stopSession"), "", 200),
        ("GET", at("session"), "", 404),
    ];
    for (method, path, body, status) in calls {
        let answer = served.call(method, &path, body).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {answer:?}");
    }
}
