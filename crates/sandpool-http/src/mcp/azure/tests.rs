use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};

use super::*;
use crate::served::{Answer, Served, read};

const ARM: &str = "/subscriptions/s/resourceGroups/r/sessionPools";

async fn post(served: &Served, path: &str, header: (&str, &str), body: &str) -> Answer {
    let request = Request::builder().method(Method::POST).uri(path).header(header.0, header.1);
    read(served.send(request.body(Body::from(body.to_owned())).unwrap()).await).await
}

async fn key(served: &Served, pool: &str, query: &str) -> String {
    let admin = served.token_for(Role::Admin, None, None);
    let answer = served.as_(&admin, "POST", &format!("/pools/{pool}/mcp/credentials{query}"), "").await;
    answer.json()["apiKey"].as_str().unwrap().to_owned()
}

/// The whole answer to a tool's call.
async fn called(served: &Served, key: &str, pool: &str, name: &str, arguments: Value) -> Value {
    let call = json!({ "jsonrpc": "2.0", "id": "1", "method": "tools/call",
        "params": { "name": name, "arguments": arguments } });
    let answer = post(served, &format!("{ARM}/{pool}/mcp"), ("x-ms-apikey", key), &call.to_string()).await;
    assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
    answer.json()
}

async fn tool(served: &Served, key: &str, pool: &str, name: &str, arguments: Value) -> Value {
    let result = called(served, key, pool, name, arguments).await["result"].clone();
    if let Some(structured) = result.get("structuredContent") {
        let text = result["content"][0]["text"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), *structured, "the text says the same");
    }
    result
}

fn said(result: &Value) -> &str {
    assert_eq!(result["isError"], true, "{result}");
    result["content"][0]["text"].as_str().unwrap()
}

#[tokio::test]
async fn a_pools_key_opens_that_pool_only() {
    let served = Served::start().await;
    let (python, shell) = (key(&served, "python", "").await, key(&served, "shell", "").await);
    assert_eq!(key(&served, "python", "").await, python, "it is the same until it is rotated");
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let status = async |path: &str, header: (&str, &str)| post(&served, path, header, list).await.status.as_u16();
    let at = |pool: &str| format!("{ARM}/{pool}/mcp");
    assert_eq!(status(&at("python"), ("x-ms-apikey", &python)).await, 200);
    assert_eq!(status("/pools/python/mcp", ("x-ms-apikey", &python)).await, 200);
    assert_eq!(status(&at("python"), ("x-ms-apikey", &shell)).await, 401);
    assert_eq!(status(&at("python"), ("authorization", &format!("Bearer {python}"))).await, 401, "it is no token");
    assert_eq!(status(&at("python"), ("accept", "*/*")).await, 401);
    assert_eq!(status(&at("none"), ("x-ms-apikey", &python)).await, 401, "who has no key learns nothing of pools");
    let token = format!("Bearer {}", served.token_for(Role::Executor, None, None));
    assert_eq!(status(&at("python"), ("authorization", &token)).await, 200, "a token is as good as elsewhere");
    let new = key(&served, "python", "?rotate=true").await;
    assert_ne!(new, python);
    assert_eq!(status(&at("python"), ("x-ms-apikey", &new)).await, 200);
    assert_eq!(status(&at("python"), ("x-ms-apikey", &python)).await, 200, "for five minutes");
    key(&served, "python", "?rotate=true").await;
    assert_eq!(status(&at("python"), ("x-ms-apikey", &python)).await, 401, "the one before the one before is not");
    let off = post(&served, &at("node"), ("authorization", &token), list).await;
    assert_eq!(off.refusal().1, "SessionMCPServerNotEnabled");
}

#[tokio::test]
async fn only_an_operator_gets_a_pools_key() {
    let served = Served::start().await;
    for token in [served.token_for(Role::Executor, None, None), served.token_of("small", Role::Admin)] {
        let answer = served.as_(&token, "POST", "/pools/python/mcp/credentials", "").await;
        assert_eq!(answer.status.as_u16(), 403, "{answer:?}");
    }
}

#[tokio::test]
async fn requests_are_read_leniently_and_answered_in_their_own_form() {
    let served = Served::start().await;
    let key = key(&served, "shell", "").await;
    let send = async |body: &str| post(&served, &format!("{ARM}/shell/mcp/"), ("x-ms-apikey", &key), body).await;
    let initialize = send(r#"{"jsonrpc":"2.0","id":"1","method":"initialize"}"#).await.json();
    assert_eq!(initialize["id"], "1");
    assert_eq!(initialize["result"]["protocolVersion"], "2025-03-26");
    let newer = r#"{"id":2,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#;
    assert_eq!(send(newer).await.json()["result"]["protocolVersion"], "2025-11-25");
    let note = send(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
    assert_eq!((note.status.as_u16(), note.body.len()), (202, 0));
    let names = send(r#"{"jsonrpc":"2.0","id":3,"method":"tools/list"}"#).await.json();
    let names = names["result"]["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap());
    assert!(names.eq([
        "launchShell",
        "runShellCommandInRemoteEnvironment",
        "launchPythonEnvironment",
        "runPythonCodeInRemoteEnvironment"
    ]));
    for (body, status, code) in [
        ("{", 400, PARSE_ERROR),
        ("[]", 400, INVALID_REQUEST),
        (r#"{"id":{},"method":"ping"}"#, 400, INVALID_REQUEST),
        (r#"{"id":4,"method":"resources/list"}"#, 200, NO_METHOD),
        (r#"{"id":4,"method":"tools/call","params":{"name":"rm"}}"#, 200, INVALID_PARAMS),
    ] {
        let answer = send(body).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (status, &json!(code)), "{body}");
    }
    let get = Request::builder().uri(format!("{ARM}/shell/mcp")).body(Body::empty()).unwrap();
    let get = read(served.send(get).await).await;
    assert_eq!((get.status.as_u16(), get.header("allow")), (405, "POST"));
}

#[tokio::test]
async fn code_and_commands_run_in_the_session_that_the_environment_names() {
    let served = Served::start().await;
    let (python, shell) = (key(&served, "python", "").await, key(&served, "shell", "").await);
    let environment = tool(&served, &python, "python", "launchPythonEnvironment", json!({})).await;
    let environment = environment["structuredContent"]["environmentId"].clone();
    let name = Identifier::parse(environment.as_str().unwrap()).unwrap();
    let pool = PoolName::parse("python").unwrap();
    let session = SessionKey::new(Default::default(), name);
    assert!(served.node.session(&pool, &session).is_err(), "nothing is taken before the first run");
    let run = async |code: &str| {
        let arguments = json!({ "environmentId": environment, "pythonCode": code });
        tool(&served, &python, "python", "runPythonCodeInRemoteEnvironment", arguments).await
    };
    let result = run("out hi\npng\nvalue 42").await;
    assert!(served.node.session(&pool, &session).is_ok());
    assert_eq!(result["structuredContent"]["stdout"], "hi\n");
    assert_eq!(result["structuredContent"]["exitCode"], 0);
    assert_eq!(result["structuredContent"]["executionResult"], 42);
    assert_eq!(
        (&result["content"][1]["type"], &result["content"][1]["mimeType"]),
        (&json!("image"), &json!("image/png"))
    );
    assert_eq!(result["isError"], false);
    let raised = run("raise A: b").await;
    assert_eq!((&raised["isError"], &raised["structuredContent"]["exitCode"]), (&json!(true), &json!(1)));
    let arguments = json!({ "environmentId": "anything", "shellCommand": "exit 3", "execCommandAndArgs": [] });
    let exited = tool(&served, &shell, "shell", "runShellCommandInRemoteEnvironment", arguments).await;
    assert_eq!(exited["structuredContent"]["exitCode"], 3, "{exited}");
}

#[tokio::test]
async fn what_a_model_can_mend_is_told_to_it() {
    let served = Served::start().await;
    let shell = key(&served, "shell", "").await;
    let name = "runShellCommandInRemoteEnvironment";
    let run = async |arguments: Value| tool(&served, &shell, "shell", name, arguments).await;
    assert!(said(&run(json!({ "shellCommand": "true" })).await).contains("call launchShell"));
    assert!(said(&run(json!({ "environmentId": "abc", "shellCommand": "true" })).await).contains("launchShell"));
    assert!(said(&run(json!({ "environmentId": "abcd" })).await).contains("exactly one"));
    let both = json!({ "environmentId": "abcd", "shellCommand": "true", "execCommandAndArgs": ["true"] });
    assert!(said(&run(both).await).contains("exactly one"));
    assert!(said(&run(json!({ "environmentId": 7 })).await).contains("cannot be read"));
    let python = json!({ "environmentId": "abcd", "pythonCode": "1" });
    let python = tool(&served, &shell, "shell", "runPythonCodeInRemoteEnvironment", python).await;
    assert!(said(&python).contains("runShellCommandInRemoteEnvironment"));
}

#[tokio::test]
async fn an_environment_that_was_launched_long_ago_and_is_gone_is_to_be_launched_again() {
    let served = Served::start().await;
    let shell = key(&served, "shell", "").await;
    let run = async |name: &str| {
        let arguments = json!({ "environmentId": name, "shellCommand": "exit 0" });
        called(&served, &shell, "shell", "runShellCommandInRemoteEnvironment", arguments).await
    };
    let old = launched(SystemTime::now() - Duration::from_secs(301)).unwrap();
    let error = run(&old).await["error"].clone();
    assert_eq!(error["code"], NO_ENVIRONMENT, "{error}");
    let text = error["message"].as_str().unwrap();
    assert!(text.contains("Environment not found") && text.contains("call launchShell again"), "{text}");
    let young = launched(SystemTime::now() - Duration::from_secs(200)).unwrap();
    assert_eq!(run(&young).await["result"]["structuredContent"]["exitCode"], 0);
}

#[test]
fn the_time_of_a_name_is_read_again() {
    let at = UNIX_EPOCH + Duration::from_millis(1_790_000_000_123);
    let name = launched(at).unwrap();
    assert!(Identifier::parse(&name).is_ok());
    assert_eq!(launched_at(&name), Some(at));
    for other in ["env-", "env-zz-1", "chat-17", &name[..name.len() - 1]] {
        assert_eq!(launched_at(other), None, "{other}");
    }
}
