use std::collections::BTreeSet;

use axum::body::{Body, Bytes};
use axum::http::header::AUTHORIZATION;
use axum::http::{Request, StatusCode};
use futures::stream;
use http_body_util::BodyExt;
use sandpool_driver::Driver as _;
use sandpool_driver::memory::{Boot, Memory, MemoryConfig};
use serde_json::{Value, json};

use super::documented;
use crate::auth::Role;
use crate::served::{Answer, OUTPUT_LIMIT, Served, read};

const HERE: &str = "/pools/python/sessions/chat-17";
const ID: &str = "0b6b2f0e-5a55-4a7e-9b8a-0e4f6f1a2c33";

async fn run(served: &Served, path: &str, body: Value) -> Answer {
    served.call("POST", &format!("{path}/executions"), body.to_string()).await
}

async fn events(served: &Served, query: &str, header: (&str, &str)) -> String {
    let path = format!("{HERE}/executions/{ID}/events{query}");
    read(served.stream("GET", &path, header, "").await).await.text().to_owned()
}

/// The names and ids of a stream's events.
fn outline(text: &str) -> String {
    let mut words = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("event: ") {
            words.push(name.to_owned());
        } else if let (Some(id), Some(last)) = (line.strip_prefix("id: "), words.last_mut()) {
            last.push_str(id);
        }
    }
    words.join(" ")
}

#[test]
fn no_method_of_a_path_is_there_twice() {
    let all = documented();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
}

#[tokio::test]
async fn code_runs_and_is_told_with_all_it_did() {
    let served = Served::start().await;
    let code = "out hi\nerr oh\npng\nvalue 123456789012345678901";
    let answer = run(&served, HERE, json!({ "code": code, "id": ID })).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert!(answer.text().contains("\"json\":123456789012345678901,"), "every digit: {}", answer.text());
    assert_eq!(answer.header("location"), format!("{HERE}/executions/{ID}"));
    let body = answer.json();
    assert_eq!((&body["stdout"], &body["stderr"]), (&json!("hi\n"), &json!("oh\n")));
    assert_eq!((&body["state"], &body["outcome"], &body["id"]), (&json!("ended"), &json!("succeeded"), &json!(ID)));
    assert!(body["displays"][0]["forms"].as_array().unwrap().iter().any(|form| form["type"] == "image/png"), "{body}");
    // The same id finds it, and starts nothing.
    let again = run(&served, HERE, json!({ "code": "out other", "id": ID })).await.json();
    assert_eq!(again["stdout"], "hi\n");
    let list = served.call("GET", &format!("{HERE}/executions"), "").await.json();
    assert_eq!(list["value"].as_array().unwrap().len(), 1);
    assert_eq!((&list["value"][0]["outcome"], &list["value"][0]["stdout"]), (&json!("succeeded"), &Value::Null));
    let raw = served.call("GET", &format!("{HERE}/executions/{ID}?bytes=base64"), "").await.json();
    assert_eq!((&raw["stdoutBase64"], &raw["stdout"]), (&json!("aGkK"), &Value::Null));
    let raised = run(&served, HERE, json!({ "code": "raise ValueError: bad" })).await;
    assert_eq!(raised.status, StatusCode::OK);
    assert_eq!((&raised.json()["outcome"], &raised.json()["error"]["name"]), (&json!("raised"), &json!("ValueError")));
    let cut = run(&served, HERE, json!({ "code": format!("flood {}", OUTPUT_LIMIT + 7) })).await.json();
    assert_eq!(cut["truncated"]["stdout"], 7);
    let code = run(&served, "/pools/shell/sessions/chat-17", json!({ "command": "exit 3" })).await.json();
    assert_eq!((&code["outcome"], &code["exitCode"]), (&json!("exited"), &json!(3)));
}

#[tokio::test(start_paused = true)]
async fn an_answer_waits_as_long_as_it_is_asked_to() {
    let served = Served::start().await;
    let begun = run(&served, HERE, json!({ "code": "sleep 5000\nout late", "id": ID, "waitSeconds": 0 })).await;
    assert_eq!(begun.status, StatusCode::ACCEPTED);
    assert!(begun.json()["outcome"].is_null());
    let path = begun.header("location").to_owned();
    let early = served.call("GET", &format!("{path}?wait=1.5"), "").await.json();
    assert_eq!(early["state"], "running");
    let late = served.call("GET", &format!("{path}?wait=10"), "").await.json();
    assert_eq!((&late["state"], &late["stdout"]), (&json!("ended"), &json!("late\n")));
    let short = run(&served, HERE, json!({ "code": "sleep 5000", "timeoutSeconds": 1 })).await.json();
    assert_eq!(short["outcome"], "timedOut");
}

#[tokio::test]
async fn a_stream_is_taken_up_again_where_it_broke_off() {
    let served = Served::start().await;
    let body = json!({ "code": "out a\nerr b\nvalue 1", "id": ID }).to_string();
    let response = served.stream("POST", &format!("{HERE}/executions"), ("x", "y"), &body).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["location"], format!("{HERE}/executions/{ID}"));
    let whole = read(response).await.text().to_owned();
    assert_eq!(outline(&whole), "started1 stdout2 stderr3 result4 finished5");
    assert!(whole.contains(r#"data: {"text":"a\n"}"#), "{whole}");
    assert_eq!(outline(&events(&served, "", ("x", "y")).await), outline(&whole));
    assert_eq!(outline(&events(&served, "?after=3", ("x", "y")).await), "result4 finished5");
    assert_eq!(outline(&events(&served, "?after=1", ("last-event-id", "4")).await), "finished5");
    assert_eq!(outline(&events(&served, "?after=5", ("x", "y")).await), "");
    assert!(events(&served, "?after=2&bytes=base64", ("x", "y")).await.contains(r#"data: {"base64":"Ygo="}"#));
    let bad = served.stream("GET", &format!("{HERE}/executions/{ID}/events"), ("last-event-id", "x"), "").await;
    assert_eq!(read(bad).await.refusal().2, "Last-Event-ID");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_nothing() {
    let served = Served::start().await;
    let body = json!({ "argv": ["cat"], "stdin": true, "id": ID }).to_string();
    let mut response = served.stream("POST", &format!("{HERE}/executions"), ("x", "y"), &body).await;
    let first = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, Bytes::from("event: started\ndata: {}\nid: 1\n\n"));
    drop(response);
    let input = format!("{HERE}/executions/{ID}/input");
    assert_eq!(served.call("POST", &input, "still here").await.status, StatusCode::NO_CONTENT);
    assert_eq!(served.call("POST", &input, "").await.status, StatusCode::NO_CONTENT);
    let ended = served.call("GET", &format!("{HERE}/executions/{ID}?wait=60"), "").await.json();
    assert_eq!((&ended["state"], &ended["stdout"]), (&json!("ended"), &json!("still here")));
    let late = served.call("POST", &input, "x").await.refusal();
    assert_eq!(late, (409, "ExecutionEnded".to_owned(), json!("execution")));
}

#[tokio::test]
async fn input_goes_where_it_is_wanted_only() {
    let served = Served::start().await;
    run(&served, HERE, json!({ "code": "wait", "id": ID, "waitSeconds": 0 })).await;
    let at = |what: &str| format!("{HERE}/executions/{ID}/{what}");
    let validation = |answer: &Answer| (answer.status.as_u16(), answer.refusal().2);
    assert_eq!(validation(&served.call("POST", &at("input"), "x").await), (400, json!("execution")));
    let size = r#"{"rows": 1, "columns": 1}"#;
    assert_eq!(validation(&served.call("POST", &at("resize"), size).await), (400, json!("execution")));
    assert_eq!(validation(&served.call("POST", &at("resize"), r#"{"rows": 1}"#).await), (400, json!("body")));
    assert_eq!(validation(&served.call("POST", &at("stop"), r#"{"how": "softly"}"#).await), (400, json!("how")));
    assert_eq!(served.call("POST", &at("stop"), "").await.status, StatusCode::NO_CONTENT);
    let ended = served.call("GET", &format!("{HERE}/executions/{ID}?wait=60"), "").await.json();
    assert_eq!(ended["state"], "ended");
    assert_eq!(served.call("POST", &at("stop"), r#"{"how": "kill"}"#).await.status, StatusCode::NO_CONTENT);
    let terminal = json!({ "argv": ["cat"], "terminal": { "rows": 24, "columns": 80 }, "waitSeconds": 0 });
    let begun = run(&served, HERE, terminal).await;
    let path = begun.header("location").to_owned();
    assert_eq!(served.call("POST", &format!("{path}/resize"), size).await.status, StatusCode::NO_CONTENT);
    served.call("POST", &format!("{path}/stop"), r#"{"how": "kill"}"#).await;
}

#[tokio::test]
async fn a_full_queue_and_a_full_pool_say_so() {
    let served = Served::start().await;
    for _ in 0..3 {
        let answer = run(&served, HERE, json!({ "code": "wait", "waitSeconds": 0 })).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED);
    }
    let full = run(&served, HERE, json!({ "code": "out no" })).await;
    assert_eq!(full.refusal().1, "ExecutionQueueFull");
    assert_eq!((full.status, full.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "1"));
    // Commands do not wait for the interpreter.
    assert_eq!(run(&served, HERE, json!({ "command": "out yes" })).await.json()["stdout"], "yes\n");
    for name in ["chat-18", "chat-19"] {
        let made = served.call("PUT", &format!("/pools/python/sessions/{name}"), "").await;
        assert_eq!((made.status, &made.json()["isNew"]), (StatusCode::CREATED, &json!(true)));
    }
    let found = served.call("PUT", HERE, "").await;
    assert_eq!((found.status, &found.json()["isNew"]), (StatusCode::OK, &json!(false)));
    let exhausted = run(&served, "/pools/python/sessions/chat-20", json!({ "code": "out no" })).await;
    assert_eq!(exhausted.refusal().1, "SessionsCountExceedsLimit");
    assert!(exhausted.header("retry-after").parse::<u64>().unwrap() >= 1);
    // Pages of one, oldest first, to the end.
    let (mut names, mut after) = (Vec::new(), String::new());
    loop {
        let page = served.call("GET", &format!("/pools/python/sessions?limit=1{after}"), "").await.json();
        names
            .extend(page["value"].as_array().unwrap().iter().map(|one| one["identifier"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(names, ["chat-17", "chat-18", "chat-19"]);
    // What each uses is said when it is asked for.
    let page = served.call("GET", "/pools/python/sessions?usage=true", "").await.json();
    let used = page["value"].as_array().unwrap().iter().map(|one| one["usage"]["memoryBytes"].is_u64());
    assert_eq!(used.collect::<Vec<_>>(), [true; 3], "{page}");
    let one = served.call("GET", HERE, "").await.json();
    assert_eq!((&one["owner"], &one["level"]), (&json!("tester"), &json!("memory (no boundary)")));
    assert!(one["usage"]["memoryBytes"].is_u64() && one["busy"].as_u64() >= Some(1), "{one}");
    assert_eq!(served.call("DELETE", HERE, "").await.status, StatusCode::NO_CONTENT);
    assert_eq!(served.call("DELETE", HERE, "").await.refusal().1, "NoSessionFoundError");
}

#[tokio::test]
async fn a_lost_session_says_so_before_its_name_is_used_anew() {
    let served = Served::start().await;
    let died = run(&served, HERE, json!({ "code": "crash", "id": ID })).await.json();
    assert_eq!(died["outcome"], "died");
    // Whoever comes back for it hears what became of it, as often as they ask.
    for _ in 0..2 {
        let gone = served.call("GET", &format!("{HERE}/executions/{ID}"), "").await;
        assert_eq!((gone.status, gone.refusal().1), (StatusCode::GONE, "SessionLost".to_owned()));
    }
    assert_eq!(run(&served, HERE, json!({ "code": "out x" })).await.refusal().1, "SessionLost");
    assert_eq!(run(&served, HERE, json!({ "code": "out x" })).await.json()["stdout"], "x\n");
}

#[tokio::test]
async fn files_come_back_as_they_were() {
    let served = Served::start().await;
    let bytes: Vec<u8> = (0..=255).cycle().take(600_000).collect();
    let put = served.call("PUT", &format!("{HERE}/files/in/a%20b.bin"), bytes.clone()).await;
    assert_eq!(put.status, StatusCode::OK, "{put:?}");
    let record = put.json();
    assert_eq!((&record["name"], &record["path"]), (&json!("a b.bin"), &json!("/mnt/data/in/a b.bin")));
    assert_eq!((&record["size"], &record["type"]), (&json!(600_000), &json!("file")));
    let got = served.call("GET", &format!("{HERE}/files/in/a%20b.bin"), "").await;
    assert_eq!(got.body, bytes);
    assert_eq!(got.header("content-length"), "600000");
    assert_eq!(got.header("content-type"), "application/octet-stream");
    assert_eq!(got.header("x-content-type-options"), "nosniff");
    assert_eq!(got.header("content-disposition"), "attachment; filename=\"a b.bin\"; filename*=UTF-8''a%20b.bin");
    let absolute = format!("{HERE}/files/-?absolute=%2Fmnt%2Fdata%2Fin%2Fa%20b.bin");
    assert_eq!(served.call("GET", &absolute, "").await.body, bytes);
    served.call("PUT", &format!("{HERE}/files/in/c"), "").await;
    let names = |answer: Answer| {
        let entries = answer.json()["value"].as_array().unwrap().clone();
        entries.iter().map(|entry| entry["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(served.call("GET", &format!("{HERE}/files"), "").await), "in");
    assert_eq!(names(served.call("GET", &format!("{HERE}/files?recursive=true"), "").await), "in in/a b.bin in/c");
    let page = served.call("GET", &format!("{HERE}/files?path=in&limit=1"), "").await;
    let next = page.json()["next"].as_str().unwrap().replace(' ', "%20");
    assert_eq!(names(served.call("GET", &format!("{HERE}/files?path=in&after={next}"), "").await), "c");
    assert_eq!(served.call("DELETE", &format!("{HERE}/files/in"), "").await.status, StatusCode::NO_CONTENT);
    let gone = served.call("GET", &format!("{HERE}/files/in/c"), "").await.refusal();
    assert_eq!(gone, (404, "FileNotFound".to_owned(), json!("path")));
}

#[tokio::test]
async fn an_upload_that_is_too_large_or_breaks_off_leaves_nothing() {
    let served = Served::start().await;
    let declared = Request::builder()
        .method("PUT")
        .uri(format!("{HERE}/files/a"))
        .header(AUTHORIZATION, format!("Bearer {}", served.token_for(Role::Executor, None, None)))
        .header("content-length", (128 << 20) + 1);
    let refused = read(served.send(declared.body(Body::empty()).unwrap()).await).await.refusal();
    assert_eq!(refused, (413, "RequestTooLarge".to_owned(), json!("body")));
    // It was refused before a session was made for it.
    assert_eq!(served.call("GET", HERE, "").await.status, StatusCode::NOT_FOUND);
    let broken = stream::iter([Ok(Bytes::from("half")), Err(std::io::Error::other("gone"))]);
    let refused = served.call("PUT", &format!("{HERE}/files/a"), Body::from_stream(broken)).await.refusal();
    assert_eq!(refused, (400, "SessionRequestValidationFailed".to_owned(), json!("body")));
    assert_eq!(served.call("GET", &format!("{HERE}/files"), "").await.json()["value"], json!([]));
}

#[tokio::test]
async fn nothing_is_open_and_roles_are_kept() {
    let served = Served::start().await;
    run(&served, HERE, json!({ "code": "out x", "id": ID })).await;
    served.call("PUT", "/pools/python/sessions/chat-18", "").await;
    let reader = served.token_for(Role::Reader, None, None);
    for (method, path) in documented() {
        if path == "/readyz" {
            continue;
        }
        let path = path.replace("{pool}", "python").replace("{session}", "chat-17").replace("{execution}", ID);
        let path = path.replace("{path}", "a").replace("{terminal}", "main");
        let method = method.to_uppercase();
        let none = Request::builder().method(method.as_str()).uri(&path).body(Body::empty()).unwrap();
        let answer = read(served.send(none).await).await;
        assert_eq!((answer.status, answer.refusal().1.as_str()), (StatusCode::UNAUTHORIZED, "Unauthorized"), "{path}");
        assert!(answer.header("www-authenticate").starts_with("Bearer"), "{path}");
        let looks = method == "GET" && !["/files", "/object", "/terminals/"].iter().any(|word| path.contains(word));
        let answer = served.as_(&reader, &method, &path, "").await;
        assert_eq!(answer.status == StatusCode::FORBIDDEN, !looks, "{method} {path}: {answer:?}");
    }
    let names = |answer: Answer, key: &str| {
        let value = answer.json()["value"].as_array().unwrap().clone();
        value.iter().map(|one| one[key].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    let in_node = served.token_for(Role::Executor, Some("node"), None);
    assert_eq!(names(served.as_(&in_node, "GET", "/pools", "").await, "name"), "node");
    assert_eq!(served.as_(&in_node, "GET", "/pools/python", "").await.status, StatusCode::FORBIDDEN);
    assert_eq!(served.as_(&in_node, "GET", HERE, "").await.status, StatusCode::FORBIDDEN);
    let bound = served.token_for(Role::Executor, Some("python"), Some("chat-18"));
    assert_eq!(names(served.as_(&bound, "GET", "/pools/python/sessions", "").await, "identifier"), "chat-18");
    assert_eq!(served.as_(&bound, "GET", "/pools/python", "").await.status, StatusCode::OK);
    assert_eq!(served.as_(&bound, "GET", HERE, "").await.status, StatusCode::FORBIDDEN);
    assert_eq!(served.as_(&bound, "GET", "/pools/python/sessions/chat-18", "").await.status, StatusCode::OK);
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let served = Served::start().await;
    served.call("PUT", HERE, "").await;
    let long = format!("/pools/python/sessions/{}", "x".repeat(129));
    let table = [
        ("GET", "/pools/Python", "", 400, "pool"),
        ("GET", "/pools/none", "", 404, ""),
        ("GET", "/pools/python/sessions/abc", "", 400, "session"),
        ("GET", "/pools/python/sessions/a%20bc", "", 400, "session"),
        ("GET", "/pools/python/sessions/abc%ff", "", 400, "path"),
        ("PUT", &long, "", 400, "session"),
        ("GET", "/pools/python/sessions/none", "", 404, ""),
        ("GET", "/pools/python/sessions?limit=0", "", 400, "limit"),
        ("GET", "/pools/python/sessions?after=x", "", 400, "after"),
        ("POST", "/pools/python/sessions/chat-17/executions", "{", 400, "body"),
        ("POST", "/pools/python/sessions/chat-17/executions?bytes=hex", "{}", 400, "bytes"),
        ("POST", "/pools/shell/sessions/chat-17/executions", r#"{"code": "1"}"#, 400, ""),
        ("GET", "/pools/python/sessions/chat-17/executions/7", "", 400, "execution"),
        ("GET", "/pools/python/sessions/chat-17/executions/0b6b2f0e-5a55-4a7e-9b8a-0e4f6f1a2c33", "", 404, ""),
        (
            "GET",
            "/pools/python/sessions/chat-17/executions/0b6b2f0e-5a55-4a7e-9b8a-0e4f6f1a2c33?wait=601",
            "",
            400,
            "wait",
        ),
        ("GET", "/pools/python/sessions/chat-17/files?recursive=yes", "", 400, "recursive"),
        ("GET", "/pools/python/sessions/chat-17/files?path=..", "", 400, "path"),
        ("GET", "/pools/python/sessions/chat-17/files?path=none", "", 404, "path"),
        ("GET", "/pools/python/sessions/chat-17/files/a%2F..%2Fb", "", 400, "path"),
        ("GET", "/pools/python/sessions/chat-17/files/a%00b", "", 400, "path"),
        ("GET", "/pools/python/sessions/chat-17/files/-?absolute=tmp", "", 400, "absolute"),
        ("GET", "/pools/python/sessions/chat-17/files/a?absolute=/tmp", "", 400, "absolute"),
        ("PUT", "/pools/python/sessions/chat-17/files/a/", "x", 400, "path"),
        ("PATCH", "/pools/python/sessions/chat-17", "", 405, ""),
        ("DELETE", "/pools", "", 405, ""),
    ];
    for (method, path, body, status, target) in table {
        let answer = served.call(method, path, body.to_owned()).await;
        let (found, code, about) = answer.refusal();
        assert_eq!((found, about.as_str().unwrap_or_default()), (status, target), "{method} {path}: {}", answer.text());
        if status == 405 {
            assert!(code == "MethodNotAllowed" && answer.header("allow").contains("GET"), "{answer:?}");
        }
    }
    let long = json!({ "code": "x".repeat(sandpool_node::MAX_CODE + 1) });
    assert_eq!(run(&served, HERE, long).await.refusal(), (413, "RequestTooLarge".to_owned(), json!("code")));
    let longer = vec![b' '; 6 * sandpool_node::MAX_CODE + 65 * 1024];
    let answer = served.call("POST", &format!("{HERE}/executions"), longer).await;
    assert_eq!(answer.refusal(), (413, "RequestTooLarge".to_owned(), json!("body")));
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let memory = Memory::new(MemoryConfig::default());
    memory.all_boots(Boot::Fails("no such interpreter".to_owned()));
    let served = Served::over(memory).await;
    let mut ready = read(served.send(Request::get("/readyz").body(Body::empty()).unwrap()).await).await;
    while !ready.text().contains("no such interpreter") {
        assert_eq!(ready.refusal().1, "NotReady");
        tokio::task::yield_now().await;
        ready = read(served.send(Request::get("/readyz").body(Body::empty()).unwrap()).await).await;
    }
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(ready.text().contains("Pool ") && ready.text().contains("0 of 1 ready"), "{}", ready.text());
    let served = Served::start().await;
    while !served.node.is_ready() {
        tokio::task::yield_now().await;
    }
    let ready = read(served.send(Request::get("/readyz").body(Body::empty()).unwrap()).await).await;
    assert_eq!((ready.status, &ready.json()["status"]), (StatusCode::OK, &json!("ready")));
    let pool = served.call("GET", "/pools/python", "").await.json();
    assert_eq!((&pool["containerType"], &pool["maxSessions"]), (&json!("PythonLTS"), &json!(3)));
    assert_eq!(served.memory.sandboxes().len(), 3);
}

#[expect(clippy::needless_pass_by_value, reason = "a spec is made where it is given")]
fn object(name: &str, spec: Value) -> Value {
    let mut object = json!({ "metadata": { "name": name }, "spec": { "containerType": "Shell" } });
    let fields = object["spec"].as_object_mut().unwrap();
    fields.extend(spec.as_object().unwrap().clone());
    object
}

#[tokio::test]
async fn a_pool_is_applied_used_changed_and_removed() {
    let served = Served::start().await;
    let admin = served.token_for(Role::Admin, None, None);
    let apply = async |path: &str, object: &Value| served.as_(&admin, "PUT", path, object.to_string()).await;
    let calc = object("calc", json!({ "scaleConfiguration": { "readySessionInstances": 1 } }));
    // A dry run says what would be, and does nothing.
    let answer = apply("/pools/calc?dryRun=true", &calc).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["result"]), (200, &json!("created")), "{answer:?}");
    assert_eq!(served.as_(&admin, "GET", "/pools/calc/object", "").await.status, StatusCode::NOT_FOUND);
    let answer = apply("/pools/calc", &calc).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["result"]), (201, &json!("created")), "{answer:?}");
    let ran = served.call("POST", "/pools/calc/sessions/chat-17/executions", r#"{"command": "out hi"}"#).await;
    assert_eq!(ran.json()["stdout"], "hi\n");
    // What was got can be applied again, and changes nothing.
    let got = served.as_(&admin, "GET", "/pools/calc/object", "").await.json();
    assert_eq!((&got["metadata"]["origin"], &got["metadata"]["generation"]), (&json!("applied"), &json!(1)), "{got}");
    assert_eq!(apply("/pools/calc", &got).await.json()["result"], "unchanged");
    // A change counts, and leaves the session where it is.
    let more = object(
        "calc",
        json!({ "resources": { "memory": "512Mi" }, "scaleConfiguration": { "readySessionInstances": 1 } }),
    );
    let answer = apply("/pools/calc", &more).await.json();
    assert_eq!((&answer["result"], &answer["object"]["metadata"]["generation"]), (&json!("changed"), &json!(2)));
    assert_eq!(served.call("GET", "/pools/calc", "").await.json()["limits"]["memoryBytes"], 512 << 20);
    let opened = served.call("PUT", "/pools/calc/sessions/chat-17", "").await;
    assert_eq!((opened.status.as_u16(), &opened.json()["isNew"]), (200, &json!(false)));
    assert_eq!(served.as_(&admin, "DELETE", "/pools/calc", "").await.status, StatusCode::NO_CONTENT);
    assert_eq!(served.call("GET", "/pools/calc/sessions/chat-17", "").await.refusal().0, 404);
    assert_eq!(served.as_(&admin, "DELETE", "/pools/calc", "").await.refusal().0, 404);
    // One that was being made meanwhile is destroyed as soon as it is there.
    for _ in 0..400 {
        let sandboxes = served.memory.driver().list().await.unwrap();
        if sandboxes.iter().all(|one| one.pool.as_str() != "calc") {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("something of it is left");
}

#[tokio::test]
async fn an_object_that_cannot_be_applied_is_refused_with_its_field() {
    let served = Served::start().await;
    let admin = served.token_for(Role::Admin, None, None);
    let refused = async |path: &str, object: Value| served.as_(&admin, "PUT", path, object.to_string()).await.refusal();
    for (spec, status, field) in [
        (json!({ "resources": { "memory": "1" } }), 400, "spec.resources.memory"),
        (json!({ "resources": { "memroy": "1Gi" } }), 400, "spec.resources.memroy"),
        (
            json!({ "scaleConfiguration": { "maxConcurrentSessions": "many" } }),
            400,
            "spec.scaleConfiguration.maxConcurrentSessions",
        ),
        (json!({ "image": "nobody" }), 400, "spec.image"),
        (json!({ "sessionSecrets": true, "egress": { "mode": "open" } }), 400, "spec.sessionSecrets"),
        (json!({ "servers": { "one": { "pypi": "a==1.0" } } }), 400, "spec.servers.one"),
    ] {
        let (got, code, target) = refused("/pools/calc", object("calc", spec.clone())).await;
        assert_eq!((got, code.as_str(), target), (status, "SessionPoolInvalid", json!(field)), "{spec}");
    }
    assert_eq!(refused("/pools/other", object("calc", json!({}))).await.2, "metadata.name");
    // The kind of a pool is what it is.
    let (status, code, _) = refused("/pools/python", object("python", json!({}))).await;
    assert_eq!((status, code.as_str()), (409, "SessionPoolConflict"));
    // One of the server's own is not removed.
    assert_eq!(served.as_(&admin, "DELETE", "/pools/python", "").await.refusal().1, "SessionPoolNotApplied");
    // And none of it is for others than operators.
    for token in [served.token_for(Role::Executor, None, None), served.token_of("acme", Role::Admin)] {
        for (method, path) in [("PUT", "/pools/calc"), ("DELETE", "/pools/shell"), ("GET", "/pools/shell/object")] {
            assert_eq!(
                served.as_(&token, method, path, object("calc", json!({})).to_string()).await.refusal().0,
                403,
                "{method}"
            );
        }
    }
}

#[tokio::test]
async fn what_was_applied_over_a_pool_of_the_server_gives_way_to_it_again() {
    let served = Served::start().await;
    let admin = served.token_for(Role::Admin, None, None);
    let more = object("shell", json!({ "execution": { "queue": 7 }, "image": "stranger" }));
    let answer = served.as_(&admin, "PUT", "/pools/shell", more.to_string()).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["object"]["metadata"]["origin"]), (200, &json!("applied")));
    assert_eq!(served.call("GET", "/pools/shell", "").await.json()["queue"], 7);
    assert_eq!(served.as_(&admin, "DELETE", "/pools/shell", "").await.status, StatusCode::NO_CONTENT);
    let pool = served.call("GET", "/pools/shell", "").await.json();
    assert_eq!((&pool["queue"], &pool["origin"]), (&json!(2), &json!("default")));
}

#[tokio::test]
async fn a_session_that_is_not_there_is_not_made_when_it_is_asked_so() {
    let served = Served::start().await;
    let body = json!({ "code": "value 1" });
    let path = format!("{HERE}/executions?existing=true");
    assert_eq!(served.call("POST", &path, body.to_string()).await.refusal().1, "NoSessionFoundError");
    served.call("PUT", HERE, "").await;
    assert_eq!(served.call("POST", &path, body.to_string()).await.status, StatusCode::OK);
}
