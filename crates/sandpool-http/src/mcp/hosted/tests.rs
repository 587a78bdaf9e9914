use axum::http::Method;
use futures::Stream;
use serde_json::Value;

use super::*;
use crate::served::{Answer, Served, read};

/// The server `echo` says again what it is told: a request comes back as one of the server's, and its answer as the answer.
const ECHO: &str = "/pools/shell/servers/echo/mcp";

const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{}}"#;

struct Client<'a> {
    served: &'a Served,
    token: String,
    path: &'static str,
    session: String,
}

impl Client<'_> {
    async fn send(&self, method: Method, accept: &str, body: &str) -> Response {
        let mut request = axum::http::Request::builder()
            .method(method)
            .uri(self.path)
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .header("accept", accept);
        if !self.session.is_empty() {
            request = request.header("mcp-session-id", &self.session);
        }
        self.served.send(request.body(Body::from(body.to_owned())).unwrap()).await
    }

    async fn post(&self, body: &str) -> Response {
        self.send(Method::POST, "application/json, text/event-stream", body).await
    }

    async fn answered(&self, body: &str) -> Answer {
        read(self.post(body).await).await
    }

    async fn end(&self) -> u16 {
        read(self.send(Method::DELETE, "*/*", "").await).await.status.as_u16()
    }
}

fn client<'a>(served: &'a Served, path: &'static str) -> Client<'a> {
    Client { served, token: served.token_for(Role::Executor, None, None), path, session: String::new() }
}

/// The only session of a pool, once there is one.
async fn opened(served: &Served, pool: &str) -> String {
    let pool = PoolName::parse(pool).unwrap();
    loop {
        let sessions = served.node.sessions(&pool, sandpool_node::Whose::Everybody).unwrap();
        if let [session] = &sessions[..] {
            return session.identifier.to_string();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn is_empty(served: &Served, pool: &str) {
    let pool = PoolName::parse(pool).unwrap();
    while !served.node.sessions(&pool, sandpool_node::Whose::Everybody).unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Begins a session. What the server says of it comes before anybody knows it, so that its answer has to be sent by its name.
async fn begin<'a>(served: &'a Served) -> Client<'a> {
    let first = client(served, ECHO);
    let mut second = client(served, ECHO);
    let (answer, ()) = tokio::join!(first.answered(INITIALIZE), async {
        let identifier = opened(served, "shell").await;
        second.session = identifier.strip_prefix("mcp-echo-").unwrap().to_owned();
        while second.answered(r#"{"jsonrpc":"2.0","id":0,"result":{"a":1}}"#).await.status != 202 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert_eq!((answer.status.as_u16(), answer.json()["result"]["a"].as_u64()), (200, Some(1)), "{answer:?}");
    assert_eq!(answer.header("mcp-session-id"), second.session);
    second
}

/// The next event of a stream, as JSON; comments are left out.
async fn next(stream: &mut (impl Stream<Item = Result<axum::body::Bytes, axum::Error>> + Unpin)) -> Option<Value> {
    loop {
        let bytes = stream.next().await?.unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        if let Some(data) = text.lines().find_map(|line| line.strip_prefix("data: ")) {
            return Some(serde_json::from_str(data).unwrap());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_hears_what_the_server_asks_meanwhile_and_then_its_answer() {
    let served = Served::start().await;
    let client = begin(&served).await;
    // What it was told at the beginning waits for a stream, and goes to whoever listens first.
    let response = client.post(r#"{"jsonrpc":"2.0","id":"x","method":"tools/call"}"#).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut stream = response.into_body().into_data_stream();
    assert_eq!(next(&mut stream).await.unwrap()["method"], "initialize");
    assert_eq!(next(&mut stream).await.unwrap()["method"], "tools/call", "as the server's own request");
    let said = client.answered(r#"{"jsonrpc":"2.0","id":"x","result":{"b":2}}"#).await;
    assert_eq!((said.status.as_u16(), said.text()), (202, ""));
    assert_eq!(next(&mut stream).await.unwrap()["result"]["b"], 2);
    assert_eq!(next(&mut stream).await, None, "the answer is the last");
}

#[tokio::test(start_paused = true)]
async fn what_belongs_to_no_call_comes_on_the_standing_stream() {
    let served = Served::start().await;
    let client = begin(&served).await;
    assert_eq!(read(client.send(Method::GET, "application/json", "").await).await.status.as_u16(), 406);
    let listen = async || client.send(Method::GET, "text/event-stream", "").await.into_body().into_data_stream();
    let mut first = listen().await;
    assert_eq!(next(&mut first).await.unwrap()["method"], "initialize");
    let said = client.answered(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
    assert_eq!(said.status.as_u16(), 202);
    assert_eq!(next(&mut first).await.unwrap()["method"], "notifications/initialized");
    let mut second = listen().await;
    assert_eq!(next(&mut first).await, None, "a client that comes again takes the place of the one before");
    client.answered(r#"{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}"#).await;
    assert_eq!(next(&mut second).await.unwrap()["method"], "notifications/roots/list_changed");
    assert_eq!(client.end().await, 204);
    assert_eq!(next(&mut second).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_with_its_sandbox_and_its_sandbox_with_it() {
    let served = Served::start().await;
    let client = begin(&served).await;
    let waiting = client.post(r#"{"jsonrpc":"2.0","id":5,"method":"tools/call"}"#);
    let (waiting, ()) = tokio::join!(waiting, async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(client.end().await, 204);
    });
    let text = read(waiting).await;
    assert!(text.text().contains("-32000"), "who waits hears of it: {text:?}");
    is_empty(&served, "shell").await;
    assert_eq!(client.end().await, 404);
    let answer = client.answered(r#"{"jsonrpc":"2.0","id":6,"method":"ping"}"#).await;
    assert_eq!((answer.status.as_u16(), answer.json()["id"].as_u64()), (404, Some(6)));

    let client = begin(&served).await;
    let pool = PoolName::parse("shell").unwrap();
    let key = SessionKey::new(Default::default(), Identifier::parse(&format!("mcp-echo-{}", client.session)).unwrap());
    served.node.delete_session(&pool, &key).await.unwrap();
    loop {
        let answer = client.answered(r#"{"jsonrpc":"2.0","method":"notifications/x"}"#).await;
        match answer.status.as_u16() {
            404 => break,
            202 => tokio::time::sleep(Duration::from_millis(1)).await,
            other => panic!("{other}: {answer:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_not_used_ends_by_the_pools_cool_down() {
    let served = Served::start().await;
    let client = begin(&served).await;
    // A client that only listens does not use it.
    let mut stream = client.send(Method::GET, "text/event-stream", "").await.into_body().into_data_stream();
    assert_eq!(next(&mut stream).await.unwrap()["method"], "initialize");
    let began = tokio::time::Instant::now();
    while next(&mut stream).await.is_some() {}
    assert!(began.elapsed() >= Duration::from_secs(299), "{:?}", began.elapsed());
    is_empty(&served, "shell").await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_awaited_keeps_its_session_and_one_that_is_taken_back_ends() {
    let served = Served::start().await;
    let client = begin(&served).await;
    let response = client.post(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#).await;
    let mut stream = response.into_body().into_data_stream();
    assert!(next(&mut stream).await.is_some() && next(&mut stream).await.is_some());
    tokio::time::sleep(Duration::from_secs(900)).await;
    let taken_back = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
    assert_eq!(client.answered(taken_back).await.status.as_u16(), 202);
    while let Some(more) = next(&mut stream).await {
        assert_eq!(more["method"], "notifications/cancelled", "said again by the server");
    }
    assert_eq!(client.end().await, 204);
}

#[tokio::test]
async fn a_server_that_does_not_begin_says_why_and_leaves_nothing() {
    let served = Served::start().await;
    let answer = client(&served, "/pools/shell/servers/broken/mcp").answered(INITIALIZE).await;
    assert_eq!(answer.status.as_u16(), 502, "{answer:?}");
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("code 3") && message.contains("no such luck"), "{message}");
    is_empty(&served, "shell").await;
    let answer = client(&served, "/pools/shell/servers/loud/mcp").answered(INITIALIZE).await;
    assert!(answer.status == 502 && answer.text().contains("more than 4194304 bytes"), "{answer:?}");
    is_empty(&served, "shell").await;
}

#[tokio::test]
async fn a_client_that_goes_away_before_it_has_a_session_leaves_none() {
    let served = Served::start().await;
    let first = client(&served, ECHO);
    tokio::select! {
        _ = first.answered(INITIALIZE) => panic!("nobody answers"),
        _ = opened(&served, "shell") => {}
    }
    is_empty(&served, "shell").await;
}

#[tokio::test(start_paused = true)]
async fn only_its_owner_reaches_a_session() {
    let served = Served::start().await;
    let mine = begin(&served).await;
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let other = Client { token: served.token_of("acme", Role::Executor), session: mine.session.clone(), ..mine };
    assert_eq!(other.answered(ping).await.status.as_u16(), 404);
    assert_eq!(other.end().await, 404);
    let of_another_pool = Client { path: "/pools/python/servers/echo/mcp", token: mine.token.clone(), ..other };
    assert_eq!(of_another_pool.answered(ping).await.status.as_u16(), 404);
    let response = mine.post(r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#).await;
    assert_eq!(response.status(), 200, "it is still there");
}

#[tokio::test]
async fn who_may_not_and_what_cannot_be_are_refused() {
    let served = Served::start().await;
    let status = async |client: Client<'_>, body: &str| client.answered(body).await.status.as_u16();
    let anybody = || client(&served, ECHO);
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    assert_eq!(status(Client { token: String::new(), ..anybody() }, ping).await, 401);
    let reader = served.token_for(Role::Reader, None, None);
    assert_eq!(status(Client { token: reader, ..anybody() }, INITIALIZE).await, 403);
    let elsewhere = served.token_for(Role::Executor, Some("python"), None);
    assert_eq!(status(Client { token: elsewhere, ..anybody() }, INITIALIZE).await, 403);
    let bound = served.token_for(Role::Executor, Some("shell"), Some("chat-17"));
    assert_eq!(status(Client { token: bound, ..anybody() }, INITIALIZE).await, 403);
    assert_eq!(status(client(&served, "/pools/none/servers/echo/mcp"), INITIALIZE).await, 404);
    let answer = client(&served, "/pools/shell/servers/none/mcp").answered(INITIALIZE).await;
    assert!(answer.status == 404 && answer.text().contains("broken, echo, loud"), "{answer:?}");
    assert_eq!(status(anybody(), ping).await, 400, "which session?");
    assert_eq!(status(anybody(), "[]").await, 400);
    assert_eq!(status(anybody(), "nonsense").await, 400);
    assert_eq!(status(anybody(), &format!("\"{}\"", "x".repeat(MAX_MESSAGE))).await, 413);
    assert_eq!(status(Client { session: "none".to_owned(), ..anybody() }, ping).await, 404);
    assert_eq!(status(Client { session: "none".to_owned(), ..anybody() }, INITIALIZE).await, 400);
    assert_eq!(read(anybody().send(Method::POST, "text/html", ping).await).await.status.as_u16(), 406);
    assert_eq!(read(anybody().send(Method::PUT, "*/*", ping).await).await.status.as_u16(), 405);
    let pages = [("https://evil.example", false), ("null", false), ("http://localhost:3000", true)];
    for (origin, is_ours) in pages {
        let request = axum::http::Request::builder()
            .method(Method::POST)
            .uri(ECHO)
            .header("authorization", format!("Bearer {}", anybody().token))
            .header("origin", origin)
            .body(Body::from(ping))
            .unwrap();
        assert_eq!(served.send(request).await.status().as_u16(), if is_ours { 400 } else { 403 }, "{origin}");
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_and_calls_count_against_their_tenants_quota() {
    let served = Served::start().await;
    let small = |session: &str| Client {
        token: served.token_of("small", Role::Executor),
        session: session.to_owned(),
        ..client(&served, ECHO)
    };
    let (first, ()) = tokio::join!(async { small("").answered(INITIALIZE).await }, async {
        let identifier = opened(&served, "shell").await;
        let session = identifier.strip_prefix("mcp-echo-").unwrap();
        assert_eq!(small("").answered(INITIALIZE).await.status.as_u16(), 429, "one session is its quota");
        while small(session).answered(r#"{"jsonrpc":"2.0","id":0,"result":{}}"#).await.status != 202 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let session = first.header("mcp-session-id").to_owned();
    let waiting = small(&session).post(r#"{"jsonrpc":"2.0","id":1,"method":"a"}"#).await;
    let second = small(&session).answered(r#"{"jsonrpc":"2.0","id":2,"method":"a"}"#).await;
    assert_eq!(second.status.as_u16(), 429, "one execution is its quota: {second:?}");
    drop(waiting);
    assert_eq!(small(&session).post(r#"{"jsonrpc":"2.0","id":3,"method":"a"}"#).await.status(), 200);
}
