//! The whole data plane over sandboxes in memory: what goes in, what comes out.

use std::collections::BTreeMap;
use std::path::PathBuf;

use axum::http::Request;
use sandpool_core::limits::{Life, Limits, Scale};
use sandpool_driver::memory::{Memory as Host, MemoryConfig};
use sandpool_node::{Node, NodeConfig, PoolSpec, Runtime};
use sandpool_objects::{Metadata, Origin, PoolFace, Prepared};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::auth::{Auth, AuthConfig, Mint};

const VERSION: &str = "api-version=2025-10-02-preview&identifier=abcd";

struct World {
    router: Router,
    tokens: BTreeMap<&'static str, String>,
    keys: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        // Whether the directory of a test's keys is there any more makes no difference to it.
        let _ = std::fs::remove_dir_all(&self.keys);
    }
}

/// What came back.
struct Heard {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Heard {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {}", self.text))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

async fn world(name: &str) -> World {
    let keys = std::env::temp_dir().join(format!("sandpool-azure-{name}-{}", std::process::id()));
    let auth = Auth::open(AuthConfig {
        keys_dir: keys.clone(),
        issuer: "https://sandpool.test".to_owned(),
        trusted: Vec::new(),
        api_keys: Vec::new(),
        tenants: Vec::new(),
        identity_header: "secret".to_owned(),
        open_metadata: false,
        token_ttl: Duration::from_secs(600),
    })
    .unwrap();
    let mint = |role, session: Option<&str>| {
        let session = session.map(str::to_owned);
        auth.mint(&Mint { session, ..Mint::new("me", role) }).unwrap().token
    };
    let tokens = BTreeMap::from([
        ("executor", mint(Role::Executor, None)),
        ("reader", mint(Role::Reader, None)),
        ("bound", mint(Role::Executor, Some("abcd"))),
    ]);
    let runtimes = [("python", Runtime::Python), ("shell", Runtime::Shell)];
    let specs = runtimes.map(|(name, runtime)| PoolSpec {
        name: PoolName::parse(name).unwrap(),
        runtime,
        rootfs: PathBuf::from("/nowhere"),
        scale: Scale { max_sessions: 2, ready: 1, most_ready: 1, boots: 2 },
        life: Life { cooldown: Duration::from_secs(300), max_alive: None },
        limits: Limits::default(),
        queue: 2,
        output_limit: 1 << 20,
        max_timeout: Duration::from_secs(220),
        env: Vec::new(),
        start: sandpool_node::Start::Cold,
        egress: None,
        scope: sandpool_node::SessionScope::Tenant,
        container: None,
        session_secrets: false,
        isolation: sandpool_node::Isolation::default(),
        local_servers: true,
        suspends: sandpool_core::limits::Suspends::default(),
        full_wait: Duration::ZERO,
    });
    let mut prepared = Prepared::default();
    for spec in &specs {
        let metadata = Metadata {
            runtime: "Python".to_owned(),
            version: "3.13".to_owned(),
            packages: vec![("ipython".to_owned(), "9.1".to_owned())],
            created: SystemTime::UNIX_EPOCH,
        };
        let face = PoolFace {
            container_type: "PythonLTS".to_owned(),
            metadata,
            default_output_limit: 4096,
            is_mcp_enabled: false,
            servers: BTreeMap::new(),
        };
        let object = sandpool_objects::pool::default_pools().remove(0);
        prepared.declare(object, spec.clone(), face, Origin::File);
    }
    let host = Host::new(MemoryConfig::default());
    let node = Node::start(NodeConfig { pools: specs.to_vec(), ..NodeConfig::default() }, host.driver()).await.unwrap();
    let pools = prepared.with(node.clone(), None, Arc::new(crate::served::InMemory));
    let (auth, preview_host) = (Arc::new(auth), "preview.localhost".into());
    let router = service(App { node, auth, pools, preview_host, open_metrics: false, version: "0" });
    World { router, tokens, keys }
}

impl World {
    async fn send(&self, who: &str, request: Request<Body>) -> Heard {
        let (mut parts, body) = request.into_parts();
        if let Some(token) = self.tokens.get(who) {
            parts.headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        parts.headers.insert(HOST, HeaderValue::from_static("pool.test:7300"));
        let response = self.router.clone().oneshot(Request::from_parts(parts, body)).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8_lossy(&body.collect().await.unwrap().to_bytes()).into_owned();
        Heard { status: parts.status.as_u16(), headers: parts.headers, text }
    }

    async fn call(&self, method: &str, path: &str, body: impl Into<Body>) -> Heard {
        let request = Request::builder().method(method).uri(format!("/pools{path}")).body(body.into()).unwrap();
        self.send("executor", request).await
    }

    async fn run(&self, code: &str) -> Value {
        let body = json!({ "code": code }).to_string();
        let heard = self.call("POST", &format!("/python/executions?{VERSION}"), body).await;
        assert_eq!(heard.status, 200, "{}", heard.text);
        heard.json()
    }
}

fn multipart(name: &str, data: &str) -> String {
    format!("--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n{data}\r\n--b--\r\n")
}

#[tokio::test]
async fn item_3_both_envelopes_carry_one_execution() {
    let world = world("envelopes").await;
    let modern = world.run("out hi\nvalue 42").await;
    assert_eq!((&modern["status"], &modern["executionType"]), (&json!("Succeeded"), &json!("Synchronous")));
    assert_eq!(modern["identifier"], "abcd");
    assert_eq!(modern["result"]["stdout"], "hi\n");
    assert_eq!(modern["result"]["executionResult"], 42);
    let failed = world.run("raise ZeroDivisionError: division by zero").await;
    assert_eq!(failed["status"], "Failed");
    assert!(failed["result"]["stderr"].as_str().unwrap().contains("division by zero"), "{failed}");
    for (route, body) in [
        (
            "/code/execute?identifier=abcd&api-version=2024-02-02-preview",
            json!({ "properties": { "code": "value 42" } }),
        ),
        ("//execute/?identifier=abcd", json!({ "code": "value 42" })),
        ("/python/execute", json!({ "properties": { "identifier": "abcd", "pythonCode": "value 42" } })),
        ("/identifier/abcd/code/execute", json!({ "code": "value 42" })),
    ] {
        let heard = world.call("POST", &format!("/python{route}"), body.to_string()).await;
        let answer = heard.json();
        for place in [&answer, &answer["properties"]] {
            let four = ["status", "result", "stdout", "stderr"].map(|field| place[field].clone());
            assert_eq!(four, [json!("Success"), json!(42), json!(""), json!("")], "{route} {answer}");
        }
        assert_eq!(answer["properties"]["executionResult"], 42);
        assert_eq!(heard.header("x-ms-new-allocation"), "false");
        assert_eq!(heard.header("x-ms-session-guid").len(), 36);
        assert!(heard.header("x-ms-container-execution-duration").parse::<f64>().unwrap() >= 0.0);
        assert!(heard.header("api-supported-versions").contains("2025-10-02-preview"));
    }
    let failed = world.call("POST", "/python/code/execute?identifier=abcd", r#"{"code":"raise A: b"}"#).await.json();
    assert_eq!(failed["properties"]["status"], "Failure");
}

#[tokio::test]
async fn item_6_a_commands_status_is_its_exit_code() {
    let world = world("shell").await;
    for code in [0, 1, 2, 127, 137] {
        let body = json!({ "shellCommand": format!("out x\nexit {code}") }).to_string();
        let answer = world.call("POST", &format!("/shell/executions?{VERSION}"), body).await.json();
        assert_eq!((&answer["status"], &answer["result"]["stdout"]), (&json!(code.to_string()), &json!("x\n")));
        assert!(answer["result"].get("executionResult").is_none());
    }
    let body = r#"{"shellCommand":"out x\nwait","timeoutInSeconds":1}"#;
    let late = world.call("POST", &format!("/shell/executions?{VERSION}"), body).await.json();
    assert_eq!((&late["status"], &late["result"]["stdout"]), (&json!("-1"), &json!("x\n")));
    let refused = world.call("POST", &format!("/shell/executions?{VERSION}"), r#"{"code":"1"}"#).await;
    assert_eq!((refused.status, refused.header("x-ms-error-code")), (400, "SessionPropertiesMissing"));
}

#[tokio::test]
async fn long_output_is_cut_says_so_and_can_be_read_whole() {
    let world = world("cut").await;
    let heard = world.call("POST", &format!("/python/executions?{VERSION}"), r#"{"code":"flood 5000"}"#).await;
    assert_eq!(heard.header("x-sandpool-truncated"), "stdout");
    let answer = heard.json();
    let stdout = answer["result"]["stdout"].as_str().unwrap();
    assert!(stdout.len() == 4099 && stdout.ends_with("..."), "{}", stdout.len());
    let link = answer["result"]["truncated"]["fullOutput"].as_str().unwrap();
    let path = link.strip_prefix("http://pool.test:7300/pools").unwrap();
    let whole = world.call("GET", path, "").await.json();
    assert_eq!(whole["result"]["stdout"].as_str().unwrap().len(), 5000);
    assert!(whole["result"].get("truncated").is_none());
    let legacy = world.call("POST", "/python/code/execute?identifier=abcd", r#"{"code":"flood 5000"}"#).await.json();
    assert_eq!(legacy["properties"]["stdout"].as_str().unwrap().len(), 5000);
}

#[tokio::test]
async fn an_asynchronous_execution_is_polled_where_it_says() {
    let world = world("async").await;
    let path = format!("/pools/python/executions?{VERSION}");
    let body = r#"{"code":"wait","executionType":"Asynchronous","timeoutInSeconds":1}"#;
    let request = Request::post(path).header("operation-id", "my-own:id").body(Body::from(body)).unwrap();
    let heard = world.send("executor", request).await;
    assert_eq!((heard.status, heard.header("operation-id")), (202, "my-own:id"));
    let answer = heard.json();
    assert_eq!((&answer["status"], &answer["id"]), (&json!("Running"), &json!("my-own:id")));
    assert!(answer.get("result").is_none());
    let link = heard.header("operation-location").strip_prefix("http://pool.test:7300/pools").unwrap().to_owned();
    let end = loop {
        let polled = world.call("GET", &link, "").await.json();
        assert_eq!((&polled["executionType"], &polled["id"]), (&json!("Asynchronous"), &json!("my-own:id")));
        if polled["status"] != "Running" {
            break polled;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(end["status"], "Failed");
    assert!(end["result"]["stderr"].as_str().unwrap().contains("timed out"), "{end}");
    let unknown = world.call("GET", &format!("/python/executions/none?{VERSION}"), "").await;
    assert_eq!((unknown.status, unknown.header("x-ms-error-code")), (404, "ExecutionNotFound"));
}

#[tokio::test]
async fn item_4_files_go_in_and_come_out_in_every_shape() {
    let world = world("files").await;
    let nowhere = world.call("GET", &format!("/python/files/none?{VERSION}"), "").await;
    assert_eq!((nowhere.status, nowhere.header("x-ms-error-code")), (404, "FileNotFound"));
    assert_eq!(world.call("GET", &format!("/python/session?{VERSION}"), "").await.status, 404);
    let empty = world.call("GET", &format!("/python/files?{VERSION}&path="), "").await;
    assert_eq!((empty.json(), empty.header("x-ms-new-allocation")), (json!({ "value": [] }), "true"));

    let up = world.call("POST", &format!("/python/files?{VERSION}"), multipart("/mnt/data/a b.txt", "hello")).await;
    let record = up.json();
    let shown = ["name", "type", "contentType", "sizeInBytes", "directory"].map(|field| record[field].clone());
    let expected = [json!("a b.txt"), json!("file"), json!("text/plain; charset=utf-8"), json!(5), json!(".")];
    assert_eq!(shown, expected, "{record}");
    assert_eq!(record["lastModifiedAt"].as_str().unwrap().len(), "2026-03-31T18:04:05.1234567Z".len());
    for route in ["files/upload", "files:uploadFile", "files/a%20b.txt:uploadFile", "python/uploadFile"] {
        let many =
            world.call("POST", &format!("/python/{route}?{VERSION}"), multipart("a b.txt", "hello")).await.json();
        assert_eq!(many["value"][0]["properties"]["filename"], "a b.txt", "{route} {many}");
        assert_eq!(many["value"][0]["properties"]["size"], 5);
        assert_eq!(many["value"][0]["sizeInBytes"], 5);
    }
    let legacy = world.call("GET", "/python//files?identifier=abcd&api-version=2024-02-02-preview", "").await.json();
    assert_eq!(legacy["value"][0]["properties"]["filename"], "a b.txt");
    assert!(legacy["value"][0].get("name").is_none());
    let modern = world.call("GET", &format!("/python/files?{VERSION}&recursive=true"), "").await.json();
    assert_eq!(modern["value"][0]["name"], "a b.txt");
    assert!(modern["value"][0].get("properties").is_none());
    let both = world.call("GET", "/python/python/files?identifier=abcd", "").await.json();
    assert_eq!((&both["$values"][0]["filename"], &both["$values"][0]["bytes"]), (&json!("a b.txt"), &json!(5)));
    for route in ["files/a%20b.txt/content", "files/content/a%20b.txt", "files/content//mnt/data/a%20b.txt"] {
        let down = world.call("GET", &format!("/python/{route}?{VERSION}"), "").await;
        assert_eq!((down.text.as_str(), down.header("content-type")), ("hello", "application/octet-stream"), "{route}");
    }
    let down = world.call("GET", "/python/python/downloadFile?identifier=abcd&filename=a+b.txt", "").await;
    assert_eq!(down.text, "hello");
    let down = world.call("POST", &format!("/python/files/a%20b.txt:downloadFile?{VERSION}"), "").await;
    assert_eq!(down.json(), json!({ "content": "aGVsbG8=" }));
    assert_eq!(world.call("DELETE", &format!("/python/files/a%20b.txt?{VERSION}"), "").await.status, 204);
    assert_eq!(world.call("DELETE", &format!("/python/files/a%20b.txt?{VERSION}"), "").await.status, 404);
    for (path, body, code) in [
        ("files", String::new(), "SessionRequestValidationFailed"),
        ("files", multipart("a", "b").replace("\"file\"", "\"other\""), "SessionRequestValidationFailed"),
        ("files", multipart("a*b", "b"), "FileNameInvalid"),
        ("files", multipart("a", "b").replace("--b--", ""), "SessionRequestValidationFailed"),
    ] {
        let refused = world.call("POST", &format!("/python/{path}?{VERSION}"), body).await;
        assert_eq!((refused.status, refused.header("x-ms-error-code")), (400, code), "{}", refused.text);
    }
    let bad = world.call("GET", &format!("/python/files?{VERSION}&path=a.b"), "").await;
    assert_eq!((bad.status, bad.header("x-ms-error-code")), (400, "FilePathInvalid"));
}

#[tokio::test]
async fn item_9_a_full_pool_says_when_to_come_again_and_recovers() {
    let world = world("full").await;
    for (identifier, status) in [("one1", 200), ("two2", 200), ("three", 429)] {
        let path = format!("/python/files?identifier={identifier}");
        let heard = world.call("GET", &path, "").await;
        assert_eq!(heard.status, status, "{identifier}");
        if status == 429 {
            assert!(heard.header("retry-after").parse::<u64>().unwrap() >= 1);
            let body = heard.json();
            assert_eq!(
                (&body["code"], &body["error"]["code"]),
                (&body["error"]["code"], &json!("SessionsCountExceedsLimit"))
            );
        }
    }
    let listed = world.call("GET", "/python/listSessions?limit=1", "").await.json();
    assert_eq!(listed["sessions"][0]["identifier"], "one1");
    let next = listed["nextLink"].as_str().unwrap().strip_prefix("http://pool.test:7300/pools").unwrap().to_owned();
    let listed = world.call("GET", &next, "").await.json();
    assert_eq!((&listed["sessions"][0]["identifier"], listed.get("nextLink")), (&json!("two2"), None));
    let session = world.call("GET", "/python/session?identifier=one1", "").await;
    assert_eq!(session.header("x-ms-session-etag"), session.json()["etag"]);
    let managed = world.call("POST", "/python/.management/listSessions?skip=0", "{}").await.json();
    assert_eq!((&managed["count"], &managed["value"][1]["expiresAt"]), (&json!(2), &managed["value"][1]["expireAt"]));
    assert_eq!(world.call("DELETE", "/python/session?identifier=one1", "").await.status, 204);
    assert_eq!(world.call("DELETE", "/python/session?identifier=one1", "").await.status, 404);
    assert_eq!(world.call("GET", "/python/files?identifier=three", "").await.status, 200);
    let stopped = world.call("POST", "/python/.management/stopSession?identifier=three", "").await;
    assert!(stopped.header("content-type").starts_with("text/plain"), "{}", stopped.header("content-type"));
    let again = world.call("POST", "/python/.management/stopSession?identifier=three", "").await;
    assert_eq!((again.status, again.header("x-ms-error-code")), (400, "SessionWithIdentifierNotFound"));
}

#[tokio::test]
async fn item_2_the_token_is_looked_at_before_anything_else() {
    let world = world("tokens").await;
    for (who, method, path, status, code) in [
        ("nobody", "GET", "/pools/none/metadata", 401, "Unauthorized"),
        ("nobody", "GET", "/pools/python/files?api-version=x", 401, "Unauthorized"),
        ("nobody", "GET", "/elsewhere", 404, "NotFound"),
        ("executor", "GET", "/pools/none/metadata", 404, "SessionPoolNotFound"),
        ("executor", "GET", "/pools/python/none", 404, "NotFound"),
        ("executor", "PUT", "/pools/python/session", 405, "MethodNotAllowed"),
        ("executor", "GET", "/pools/python/files", 400, "SessionRequestValidationFailed"),
        ("executor", "GET", "/pools/python/files?identifier=abc", 400, "InvalidLengthOfSessionIdentifier"),
        ("executor", "GET", "/pools/python/files?identifier=abcd&api-version=x", 400, "InvalidApiVersion"),
        ("reader", "POST", "/pools/python/executions?identifier=abcd", 403, "Forbidden"),
        ("reader", "GET", "/pools/python/metadata", 200, ""),
        ("bound", "GET", "/pools/python/metadata", 200, ""),
        ("bound", "GET", "/pools/python/files?identifier=abcd", 200, ""),
        ("bound", "GET", "/pools/python/files?identifier=efgh", 403, "Forbidden"),
        ("bound", "GET", "/pools/python/listSessions", 403, "Forbidden"),
    ] {
        let heard = world.send(who, Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).await;
        assert_eq!(
            (heard.status, heard.header("x-ms-error-code")),
            (status, code),
            "{who} {method} {path}: {}",
            heard.text
        );
    }
    // A token for one session is not good for another that only the body names.
    let body = r#"{"properties":{"identifier":"efgh","pythonCode":"out x"}}"#;
    let heard =
        world.send("bound", Request::post("/pools/python/python/execute").body(Body::from(body)).unwrap()).await;
    assert_eq!(heard.status, 403);
}

#[tokio::test]
async fn semantic_kernel_for_dotnet_gets_its_values_as_text() {
    let world = world("dotnet").await;
    let request = Request::post(format!("/pools/python/executions?{VERSION}"))
        .header("user-agent", "Semantic-Kernel/1.40 (Language=dotnet)")
        .body(Body::from(r#"{"code":"value 42"}"#))
        .unwrap();
    assert_eq!(world.send("executor", request).await.json()["result"]["executionResult"], "42");
    let figure = world.run("png").await;
    assert_eq!(figure["result"]["executionResult"]["format"], "png");
    assert_eq!(figure["result"]["outputs"][0]["kind"], "display");
}
