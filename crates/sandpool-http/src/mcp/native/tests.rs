use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};

use super::*;
use crate::auth::Role;
use crate::served::{Answer, Served, read};

const MODERN: &str = "2026-07-28";

fn request(token: &str, path: &str, body: &Value) -> axum::http::request::Builder {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header("host", "127.0.0.1")
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .header("content-length", body.to_string().len())
        .header("accept", "application/json, text/event-stream");
    if body["params"]["_meta"].is_object() {
        request = request.header("mcp-protocol-version", MODERN).header("mcp-method", body["method"].as_str().unwrap());
        if let Some(name) = body["params"]["name"].as_str().or(body["params"]["taskId"].as_str()) {
            request = request.header("mcp-name", name);
        }
        if let Some(session) = body["params"]["arguments"]["session_id"].as_str() {
            request = request.header("mcp-param-session", session);
        }
    }
    request
}

async fn post(served: &Served, token: &str, path: &str, body: &Value) -> Answer {
    let request = request(token, path, body).body(Body::from(body.to_string())).unwrap();
    read(served.send(request).await).await
}

/// The last message of a stream of events.
fn event(answer: &Answer) -> Value {
    let data = answer.text().lines().rev().find_map(|line| line.strip_prefix("data:"));
    serde_json::from_str(data.unwrap_or_else(|| panic!("{answer:?}"))).unwrap()
}

fn initialize() -> Value {
    json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "test", "version": "1" } } })
}

fn call(name: &str, arguments: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": { "name": name, "arguments": arguments } })
}

fn modern(mut call: Value) -> Value {
    call["params"]["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    call
}

/// One caller of one address.
struct Caller<'a> {
    served: &'a Served,
    token: String,
    path: &'static str,
}

impl Caller<'_> {
    async fn result(&self, name: &str, arguments: Value) -> Value {
        let answer = post(self.served, &self.token, self.path, &call(name, &arguments)).await;
        assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
        answer.json()["result"].clone()
    }

    /// The structured part of an answer, which its schema fits.
    async fn tool(&self, name: &str, arguments: Value) -> Value {
        let result = self.result(name, arguments).await;
        let structured = &result["structuredContent"];
        let schema = TOOLS.iter().find(|tool| tool.name == name).and_then(|tool| tool.output_schema.clone()).unwrap();
        for field in schema["required"].as_array().unwrap() {
            assert!(structured.get(field.as_str().unwrap()).is_some(), "{field} in {result}");
        }
        structured.clone()
    }

    async fn refusal(&self, name: &str, arguments: Value) -> String {
        let result = self.result(name, arguments).await;
        assert_eq!(result["isError"], true, "{result}");
        result["content"][0]["text"].as_str().unwrap().to_owned()
    }

    async fn open(&self, arguments: Value) -> Value {
        self.tool("open_session", arguments).await["session_id"].clone()
    }
}

fn caller<'a>(served: &'a Served, path: &'static str) -> Caller<'a> {
    Caller { served, token: served.token_for(Role::Executor, None, None), path }
}

#[tokio::test]
async fn both_eras_are_answered_on_one_address() {
    let served = Served::start().await;
    let token = served.token_for(Role::Executor, None, None);
    let answer = post(&served, &token, "/mcp", &initialize()).await;
    assert_eq!(event(&answer)["result"]["protocolVersion"], "2025-11-25", "{answer:?}");
    assert_ne!(answer.header("mcp-session-id"), "", "cancellations find their calls");
    let note = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    assert_eq!(post(&served, &token, "/mcp", &note).await.status.as_u16(), 202);
    let list = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {} });
    let old = post(&served, &token, "/mcp", &list).await.json()["result"]["tools"].clone();
    assert_eq!(old.as_array().unwrap().len(), 9);
    let discover = modern(json!({ "jsonrpc": "2.0", "id": 3, "method": "server/discover", "params": {} }));
    let found = post(&served, &token, "/mcp", &discover).await;
    assert_eq!(found.status.as_u16(), 200, "{found:?}");
    let new = post(&served, &token, "/pools/shell/mcp", &modern(list)).await.json()["result"].clone();
    assert_eq!(new["resultType"], "complete");
    assert_eq!(new["tools"], old, "the same tools in the same order");
    let run = modern(call("open_session", &json!({})));
    let opened = post(&served, &token, "/pools/shell/mcp", &run).await.json();
    assert_eq!(opened["result"]["structuredContent"]["pool"], "shell", "{opened}");
}

#[tokio::test]
async fn who_has_no_token_is_told_where_tokens_come_from() {
    let served = Served::start().await;
    for path in ["/mcp", "/pools/python/mcp"] {
        let request = Request::builder().method(Method::POST).uri(path).header("host", "pools.example");
        let answer = read(served.send(request.body(Body::empty()).unwrap()).await).await;
        assert_eq!(answer.status.as_u16(), 401);
        let challenge = answer.header("www-authenticate").to_owned();
        let place = format!("http://pools.example{METADATA}{path}");
        assert!(challenge.contains(&format!(r#"resource_metadata="{place}""#)), "{challenge}");
        let request = Request::builder().uri(format!("{METADATA}{path}")).header("host", "pools.example");
        let metadata = read(served.send(request.body(Body::empty()).unwrap()).await).await.json();
        assert_eq!(metadata["resource"], format!("http://pools.example{path}"));
    }
    let token = served.token_for(Role::Executor, Some("shell"), None);
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    assert_eq!(post(&served, &token, "/pools/python/mcp", &list).await.status.as_u16(), 403);
    let evil = request(&token, "/mcp", &list).header("origin", "http://evil.example");
    let evil = read(served.send(evil.body(Body::from(list.to_string())).unwrap()).await).await;
    assert_eq!(evil.status.as_u16(), 403, "a page of somebody else's");
}

#[tokio::test]
async fn code_runs_and_its_answer_is_bounded() {
    let served = Served::start().await;
    let caller = caller(&served, "/mcp");
    let session = caller.open(json!({})).await;
    let run = async |code: &str| caller.result("run_code", json!({ "session_id": session, "code": code })).await;
    let done = run("out hi\npng\nvalue 42").await;
    let said = &done["structuredContent"];
    assert_eq!((&said["status"], &said["stdout"], &said["result"]), (&json!("done"), &json!("hi\n"), &json!("42")));
    assert_eq!(done["content"][1]["type"], "image", "{done}");
    let uri = said["artifacts"][0]["uri"].as_str().unwrap();
    let read = json!({ "jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": { "uri": uri } });
    let image = post(&served, &caller.token, "/mcp", &read).await.json();
    assert_eq!(image["result"]["contents"][0]["blob"], done["content"][1]["data"], "{image}");
    let raised = run("raise A: b").await;
    assert_eq!((&raised["isError"], &raised["structuredContent"]["error"]["name"]), (&json!(true), &json!("A")));
    let flood = run("flood 40000").await["structuredContent"].clone();
    assert_eq!(flood["truncated"], true);
    let text = flood["stdout"].as_str().unwrap();
    assert!(text.len() < 17_000 && text.contains("bytes more were not kept"), "{}", text.len());
    let other = json!({ "session_id": session, "code": "1", "language": "javascript" });
    assert!(caller.refusal("run_code", other).await.contains("does not run javascript"));
}

#[tokio::test]
async fn a_long_run_answers_in_time_and_is_gone_on_with() {
    let served = Served::start().await;
    let caller = caller(&served, "/mcp");
    let session = caller.open(json!({})).await;
    let code = json!({ "session_id": session, "code": "out begun\nwait", "wait_seconds": 0.2 });
    let running = caller.tool("run_code", code).await;
    assert_eq!((&running["status"], &running["stdout"]), (&json!("running"), &json!("begun\n")));
    let mut again = json!({ "session_id": session, "execution_id": running["execution_id"], "wait_seconds": 0 });
    let all = caller.tool("wait_execution", again.clone()).await;
    assert_eq!((&all["status"], &all["stdout"]), (&json!("running"), &json!("begun\n")));
    again["after_seq"] = running["last_seq"].clone();
    assert_eq!(caller.tool("wait_execution", again).await["stdout"], "", "nothing after that");
    let stop = json!({ "session_id": session, "execution_id": running["execution_id"] });
    assert_eq!(caller.tool("stop_execution", stop).await["status"], "cancelled");
}

#[tokio::test]
async fn a_client_that_goes_away_stops_its_run_but_not_what_is_in_the_background() {
    let served = Served::start().await;
    let caller = caller(&served, "/mcp");
    let session = caller.open(json!({ "name": "chat-17" })).await;
    let background = json!({ "session_id": session, "command": "wait", "background": true });
    let background = caller.tool("run_command", background).await;
    assert_eq!(background["status"], "running");
    let place = Asker { principal: principal(), pool: None }.place("python/chat-17").unwrap();
    let running = async || served.node.executions(&place.pool, &place.key).await.unwrap();
    let body = call("run_code", &json!({ "session_id": session, "code": "out begun\nwait" }));
    let asked = request(&caller.token, "/mcp", &body).body(Body::from(body.to_string())).unwrap();
    let waiting = served.send(asked);
    let begun = async {
        while !running().await.iter().any(|one| one.snapshot().stdout == b"begun\n") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        response = waiting => panic!("it has not ended: {response:?}"),
        () = begun => {}
    }
    // The request was dropped, as when its connection closes.
    let left = running().await.pop().unwrap();
    let ended = left.wait(Duration::from_secs(20)).await;
    assert_eq!(ended.state, sandpool_node::ExecutionState::Ended(sandpool_node::Outcome::Cancelled));
    assert_eq!(ended.stdout, b"begun\n", "its output is kept");
    let id = json!({ "session_id": session, "execution_id": background["execution_id"], "wait_seconds": 0 });
    assert_eq!(caller.tool("wait_execution", id).await["status"], "running");
}

fn principal() -> Principal {
    Principal {
        subject: "tester".to_owned(),
        role: Role::Executor,
        pools: None,
        session: None,
        scopes: None,
        tenant: sandpool_core::ids::TenantName::default(),
    }
}

#[tokio::test]
async fn files_are_written_listed_and_read_in_parts() {
    let served = Served::start().await;
    let caller = caller(&served, "/pools/shell/mcp");
    let session = caller.open(json!({})).await;
    let write = json!({ "session_id": session, "path": "notes/a.txt", "content": "0123456789" });
    let written = caller.tool("write_file", write).await;
    assert_eq!((&written["path"], &written["bytes_written"]), (&json!("/mnt/data/notes/a.txt"), &json!(10)));
    let listed = caller.tool("list_files", json!({ "session_id": session, "path": "notes" })).await;
    assert_eq!((&listed["entries"][0]["path"], &listed["truncated"]), (&json!("a.txt"), &json!(false)), "{listed}");
    let part = json!({ "session_id": session, "path": "/mnt/data/notes/a.txt", "offset": 2, "limit": 3 });
    let part = caller.tool("read_file", part).await;
    assert_eq!((&part["content"], &part["next_offset"], &part["size"]), (&json!("234"), &json!(5), &json!(10)));
    let read = json!({ "jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": { "uri": written["uri"] } });
    let whole = post(&served, &caller.token, "/pools/shell/mcp", &read).await.json();
    assert_eq!(whole["result"]["contents"][0]["text"], "0123456789", "{whole}");
    let missing = json!({ "session_id": session, "path": "none" });
    assert!(caller.refusal("read_file", missing).await.contains("list_files shows"));
}

#[tokio::test]
async fn a_handle_gives_no_right_and_a_lost_one_says_what_to_do() {
    let served = Served::start().await;
    let caller = caller(&served, "/mcp");
    let session = caller.open(json!({ "name": "chat-17" })).await;
    assert_eq!(session, "python/chat-17");
    let other = Caller { served: &served, token: served.token_of("small", Role::Executor), path: "/mcp" };
    let code = json!({ "session_id": session, "code": "value 1" });
    assert!(other.refusal("run_code", code.clone()).await.contains("call open_session"));
    assert_eq!(caller.tool("close_session", json!({ "session_id": session })).await["closed"], true);
    let gone = caller.result("run_code", code).await;
    assert_eq!(gone["structuredContent"]["session_lost"], true, "{gone}");
    assert_eq!(caller.tool("close_session", json!({ "session_id": session })).await["closed"], false);
}

#[tokio::test]
async fn a_session_of_the_protocol_is_its_owners_only() {
    let served = Served::start().await;
    let (token, other) = (served.token().to_owned(), served.token_of("acme", Role::Executor));
    let name = post(&served, &token, "/mcp", &initialize()).await.header("mcp-session-id").to_owned();
    let list = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {} });
    let ask = async |method: Method, token: &str, name: &str| {
        let mut asked =
            request(token, "/mcp", &list).header("mcp-session-id", name).header("mcp-protocol-version", "2025-11-25");
        let mut body = Body::from(list.to_string());
        if method == Method::DELETE {
            asked.headers_mut().unwrap().remove("content-length");
            body = Body::empty();
        }
        served.send(asked.method(method).body(body).unwrap()).await.status().as_u16()
    };
    assert_eq!(ask(Method::POST, &token, &name).await, 200);
    assert_eq!(ask(Method::POST, &other, &name).await, 404, "somebody else's");
    assert_eq!(ask(Method::DELETE, &other, &name).await, 404);
    let (bare, mark) = name.split_once('.').unwrap();
    assert_eq!(ask(Method::POST, &token, bare).await, 404, "it is bound to nobody");
    assert_eq!(ask(Method::POST, &token, &format!("x{bare}.{mark}")).await, 404);
    // Another server knows it too, once its owner comes with it.
    let again = Served::start().await;
    let asked = request(again.token(), "/mcp", &list).header("mcp-session-id", &name);
    assert_eq!(again.send(asked.body(Body::from(list.to_string())).unwrap()).await.status().as_u16(), 200);
    assert_eq!(ask(Method::DELETE, &token, &name).await, 202);
    assert_eq!(ask(Method::POST, &token, &name).await, 404, "it was ended");
}

#[tokio::test]
async fn what_takes_long_is_a_task_for_those_who_know_tasks() {
    let served = Served::start().await;
    let caller = caller(&served, "/mcp");
    let session = caller.open(json!({ "name": "chat-17" })).await;
    let ask = async |mut message: Value| {
        message["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] =
            json!({ "extensions": { "io.modelcontextprotocol/tasks": {} } });
        post(&served, &caller.token, "/mcp", &message).await.json()
    };
    let about = |method: &str, id: &Value| {
        modern(json!({ "jsonrpc": "2.0", "id": 9, "method": method, "params": { "taskId": id } }))
    };
    let run =
        |code: &str| modern(call("run_code", &json!({ "session_id": session, "code": code, "background": true })));
    let task = ask(run("out begun\nwait")).await["result"].clone();
    assert_eq!((&task["resultType"], &task["status"]), (&json!("task"), &json!("working")), "{task}");
    let (_, execution) = task["taskId"].as_str().unwrap().rsplit_once('/').unwrap();
    let same = json!({ "session_id": session, "execution_id": execution, "wait_seconds": 0 });
    assert_eq!(caller.tool("wait_execution", same).await["status"], "running", "a task is an execution");
    assert_eq!(ask(about("tasks/get", &task["taskId"])).await["result"]["status"], "working");
    let cancelled = ask(about("tasks/cancel", &task["taskId"])).await;
    assert_eq!(cancelled["result"]["resultType"], "complete", "{cancelled}");
    let ended = async |id: &Value| loop {
        let now = ask(about("tasks/get", id)).await["result"].clone();
        if now["status"] != "working" {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(ended(&task["taskId"]).await["status"], "cancelled");
    let task = ask(run("sleep 200\nraise A: b")).await["result"].clone();
    let done = ended(&task["taskId"]).await;
    assert_eq!((&done["status"], &done["result"]["isError"]), (&json!("completed"), &json!(true)), "{done}");
    let unknown = ask(about("tasks/get", &json!("python/chat-17/none"))).await;
    assert_eq!(unknown["error"]["code"], -32602, "{unknown}");
    let never = post(&served, &caller.token, "/mcp", &run("value 1")).await.json();
    assert!(
        never["result"]["structuredContent"]["execution_id"].is_string(),
        "it did not say that it knows them: {never}"
    );
    let refused = post(&served, &caller.token, "/mcp", &about("tasks/get", &task["taskId"])).await.json();
    assert_eq!(refused["error"]["code"], -32021, "{refused}");
}

#[tokio::test]
async fn who_lacks_a_scope_hears_which() {
    let served = Served::start().await;
    let whole = caller(&served, "/mcp");
    let session = whole.open(json!({ "name": "chat-17" })).await;
    let files = Caller { served: &served, token: served.token_with(&[Scope::Files]), path: "/mcp" };
    let written = json!({ "session_id": session, "path": "a", "content": "x" });
    assert_eq!(files.tool("write_file", written).await["bytes_written"], 1);
    let run = call("run_code", &json!({ "session_id": session, "code": "value 1" }));
    for refused in [run.clone(), modern(run)] {
        let answer = post(&served, &files.token, "/mcp", &refused).await;
        assert_eq!(answer.status.as_u16(), 403, "{answer:?}");
        let challenge = answer.header("www-authenticate");
        assert!(challenge.contains(r#"error="insufficient_scope", scope="sessions:execute""#), "{challenge}");
        assert!(challenge.contains(r#"resource_metadata="http://127.0.0.1/.well-known/oauth-protected-resource/mcp""#));
    }
    let list = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {} });
    assert_eq!(post(&served, &files.token, "/mcp", &list).await.status.as_u16(), 200);
    let runs = Caller { served: &served, token: served.token_with(&[Scope::Execute]), path: "/mcp" };
    assert_eq!(runs.tool("run_code", json!({ "session_id": session, "code": "value 1" })).await["status"], "done");
    let read = json!({ "jsonrpc": "2.0", "id": 1, "method": "resources/read",
        "params": { "uri": "sandbox://python/chat-17/files/mnt/data/a" } });
    assert_eq!(post(&served, &runs.token, "/mcp", &read).await.status.as_u16(), 403);
    assert_eq!(post(&served, &files.token, "/mcp", &read).await.json()["result"]["contents"][0]["text"], "x");
    let unknown = Request::post("/mcp").header("host", "127.0.0.1").body(Body::empty()).unwrap();
    let challenged = read_challenge(&served, unknown).await;
    assert!(challenged.contains(r#"scope="sessions:execute sessions:files""#), "{challenged}");
}

async fn read_challenge(served: &Served, request: Request<Body>) -> String {
    read(served.send(request).await).await.header("www-authenticate").to_owned()
}
