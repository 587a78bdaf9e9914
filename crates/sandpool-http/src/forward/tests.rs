use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use sandpool_driver::memory::{Memory, MemoryConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::auth::Role;
use crate::served::{Answer, Served, read};

const HERE: &str = "/pools/shell/sessions/chat-17";

/// A program of a session: says what it was asked, echoes what is sent, changes the protocol.
fn program() -> Router {
    let asked = async |method: Method, uri: Uri, headers: HeaderMap| {
        let headers: serde_json::Map<_, _> = headers
            .iter()
            .map(|(name, value)| (name.to_string(), Value::from(value.to_str().unwrap_or_default())))
            .collect();
        let said = json!({ "method": method.as_str(), "uri": uri.to_string(), "headers": headers });
        ([("set-cookie", "a=b"), ("connection", "x-mine"), ("x-mine", "1"), ("x-other", "2")], Json(said))
    };
    let upgrade = async |mut request: Request<Body>| -> Result<Response, Infallible> {
        let coming = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(coming.await.unwrap());
            let mut word = [0; 5];
            stream.read_exact(&mut word).await.unwrap();
            word.reverse();
            stream.write_all(&word).await.unwrap();
        });
        Ok((StatusCode::SWITCHING_PROTOCOLS, [("connection", "Upgrade"), ("upgrade", "mirror")]).into_response())
    };
    let slowly = async || {
        let lines = futures::stream::unfold(0_u8, |at| async move {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            (at < 3).then(|| (Ok::<_, Infallible>(Bytes::from(format!("data: {at}\n\n"))), at + 1))
        });
        ([("content-type", "text/event-stream")], Body::from_stream(lines))
    };
    Router::new()
        .route("/echo", post(async |body: Body| body))
        .route("/upgrade", get(upgrade))
        .route("/events", get(slowly))
        .route("/teapot", any(async || StatusCode::IM_A_TEAPOT))
        .fallback(asked)
}

async fn served() -> Served {
    let config = MemoryConfig {
        port: Some(Arc::new(|port, stream| {
            match port {
                8000 => {
                    let service = TowerToHyperService::new(program());
                    let serving = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades();
                    tokio::spawn(async move { drop(serving.await) });
                }
                // Not HTTP.
                9000 => {
                    tokio::spawn(async move { drop({ stream }.write_all(b"220 ready\r\n").await) });
                }
                _ => return None,
            }
            Some(())
        })),
        ..MemoryConfig::default()
    };
    let served = Served::over(Memory::new(config)).await;
    served.call("PUT", HERE, "").await;
    served
}

/// What a program answers is held against no document.
async fn pass(served: &Served, method: &str, path: &str, body: impl Into<Body>) -> Answer {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("authorization", format!("Bearer {}", served.token()));
    read(served.send(request.body(body.into()).unwrap()).await).await
}

#[tokio::test]
async fn a_request_is_passed_on_without_what_is_ours() {
    let served = served().await;
    let request = Request::post(format!("{HERE}/ports/8000/a%2Fb/c?x=1&y=%20"))
        .header("authorization", format!("Bearer {}", served.token()))
        .header("x-ms-apikey", "k")
        .header("cookie", "session=1")
        .header("host", "pool.test:7300")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("x-kept", "2")
        .body(Body::empty())
        .unwrap();
    let answer = read(served.send(request).await).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let said = answer.json();
    assert_eq!((&said["method"], &said["uri"]), (&json!("POST"), &json!("/a%2Fb/c?x=1&y=%20")));
    let headers = said["headers"].as_object().unwrap();
    for gone in ["authorization", "x-ms-apikey", "cookie", "x-hop", "connection"] {
        assert!(!headers.contains_key(gone), "{gone}: {headers:?}");
    }
    assert_eq!((&headers["x-kept"], &headers["host"]), (&json!("2"), &json!("localhost:8000")));
    assert_eq!(headers["x-forwarded-host"], "pool.test:7300");
    assert_eq!(headers["x-forwarded-prefix"], format!("{HERE}/ports/8000"));
    assert_eq!((answer.header("set-cookie"), answer.header("x-mine"), answer.header("x-other")), ("", "", "2"));
    assert!(answer.header("content-security-policy").starts_with("sandbox "), "{answer:?}");
}

#[tokio::test]
async fn bodies_streams_and_statuses_come_as_they_are() {
    let served = served().await;
    let large = "x".repeat(3_000_000);
    let answer = pass(&served, "POST", &format!("{HERE}/ports/8000/echo"), large.clone()).await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, large.len()));
    let events = pass(&served, "GET", &format!("{HERE}/ports/8000/events"), "").await;
    assert_eq!(events.text(), "data: 0\n\ndata: 1\n\ndata: 2\n\n");
    assert_eq!(pass(&served, "DELETE", &format!("{HERE}/ports/8000/teapot"), "").await.status, StatusCode::IM_A_TEAPOT);
    // What does not answer is told.
    assert_eq!(pass(&served, "GET", &format!("{HERE}/ports/8001/"), "").await.refusal().1, "SessionPortRefused");
    assert_eq!(pass(&served, "GET", &format!("{HERE}/ports/9000/"), "").await.refusal().1, "SessionPortUnusable");
    assert_eq!(pass(&served, "GET", &format!("{HERE}/ports/0/"), "").await.refusal().0, 400);
    assert_eq!(served.call("GET", "/pools/shell/sessions/nobody/ports/8000/", "").await.refusal().0, 404);
    // The pool python has a way out at port 80.
    served.call("PUT", "/pools/python/sessions/chat-17", "").await;
    assert_eq!(served.call("GET", "/pools/python/sessions/chat-17/ports/80/", "").await.refusal().0, 400);
    let reader = served.token_for(Role::Reader, None, None);
    assert_eq!(served.as_(&reader, "GET", &format!("{HERE}/ports/8000/"), "").await.refusal().0, 403);
}

#[tokio::test]
async fn an_address_leads_there_until_it_or_the_session_ends() {
    let served = served().await;
    let made = served.call("POST", &format!("{HERE}/previews"), r#"{"port": 8000, "ttlSeconds": 60}"#).await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    let url = made.json()["url"].as_str().unwrap().to_owned();
    let path = url.strip_prefix("http://localhost").unwrap();
    let ask = async |path: &str, host: &str| {
        let request = Request::get(path).header("host", host).header("cookie", "a=b").body(Body::empty()).unwrap();
        read(served.send(request).await).await
    };
    let answer = ask(&format!("{path}a?b=c"), "localhost").await;
    assert_eq!((&answer.json()["uri"], answer.header("set-cookie")), (&json!("/a?b=c"), ""));
    assert!(!answer.json()["headers"].as_object().unwrap().contains_key("cookie"));
    // As a host of its own it is an ordinary site.
    let host =
        made.json()["hostUrl"].as_str().unwrap().strip_prefix("http://").unwrap().trim_end_matches('/').to_owned();
    let answer = ask("/a?b=c", &host).await;
    assert_eq!((&answer.json()["uri"], answer.header("set-cookie")), (&json!("/a?b=c"), "a=b"));
    assert_eq!(answer.json()["headers"]["cookie"], "a=b");
    assert_eq!(answer.header("content-security-policy"), "");
    // One sign of it changed, and it is none.
    let word = path.trim_start_matches("/preview/").trim_end_matches('/');
    for at in [0, 20, word.len() - 1] {
        let mut other: Vec<u8> = word.into();
        other[at] = if other[at] == b'a' { b'b' } else { b'a' };
        let other = String::from_utf8(other).unwrap();
        assert_eq!(ask(&format!("/preview/{other}/"), "localhost").await.refusal().1, "PreviewNotFound", "{at}");
    }
    for bad in ["", "a", &"a".repeat(64), "%00"] {
        assert_eq!(ask(&format!("/preview/{bad}/"), "localhost").await.status, StatusCode::NOT_FOUND, "{bad}");
    }
    for (body, target) in
        [(r#"{"port": 0}"#, "port"), (r#"{"port": 1, "ttlSeconds": 0}"#, "ttlSeconds"), ("{}", "body")]
    {
        let refused = served.call("POST", &format!("{HERE}/previews"), body).await.refusal();
        assert_eq!((refused.0, refused.2), (400, json!(target)), "{body}");
    }
    served.call("DELETE", HERE, "").await;
    assert_eq!(ask(path, "localhost").await.refusal().1, "PreviewNotFound");
    // Another session of that name is another one.
    served.call("PUT", HERE, "").await;
    assert_eq!(ask(path, "localhost").await.refusal().1, "PreviewNotFound");
}

#[tokio::test]
async fn a_protocol_is_changed_and_both_sides_are_heard() {
    let served = served().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let serving = tokio::spawn(crate::serve(vec![crate::Listener::Plain(listener)], served.router(), stop.clone()));
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {HERE}/ports/8000/upgrade HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nConnection: Upgrade\r\nUpgrade: mirror\r\n\r\n",
        served.token()
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: mirror"), "{head}");
    client.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"olleh");
    drop(client);
    stop.cancel();
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_session_is_in_use_for_as_long_as_a_connection_is() {
    let served = served().await;
    let request = Request::get(format!("{HERE}/ports/8000/events"))
        .header("authorization", format!("Bearer {}", served.token()))
        .body(Body::empty())
        .unwrap();
    let answer = served.send(request).await;
    assert_eq!(served.call("GET", HERE, "").await.json()["busy"], 1);
    answer.into_body().collect().await.unwrap();
    for _ in 0..200 {
        if served.call("GET", HERE, "").await.json()["busy"] == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("it is in use for ever");
}

#[tokio::test]
async fn what_is_below_a_pool_of_containers_is_its_programs() {
    let served = served().await;
    let admin = served.token_for(Role::Admin, None, None);
    let object = json!({
        "metadata": { "name": "web" },
        "spec": {
            "containerType": "CustomContainer",
            "customContainerTemplate": { "containers": [{ "image": "stranger" }], "ingress": { "targetPort": 8000 } },
        },
    });
    assert_eq!(served.as_(&admin, "PUT", "/pools/web", object.to_string()).await.status, StatusCode::CREATED);
    const BASE: &str = "/subscriptions/s/resourceGroups/r/sessionPools/web";
    for (path, uri) in [
        ("executions?identifier=user-1&api-version=1", "/executions?identifier=user-1&api-version=1"),
        ("a//b%2F?identifier=user-1", "/a//b%2F?identifier=user-1"),
        ("?identifier=user-1", "/?identifier=user-1"),
    ] {
        let said = pass(&served, "PUT", &format!("{BASE}/{path}"), "").await.json();
        assert_eq!((&said["uri"], &said["method"]), (&json!(uri), &json!("PUT")), "{path}");
        assert!(!said["headers"].as_object().unwrap().contains_key("authorization"));
    }
    let session = served.call("GET", "/pools/web/sessions/user-1", "").await;
    assert_eq!(session.status, StatusCode::OK, "the first request made it");
    // The service keeps what it always kept, and says what is missing.
    let kept = pass(&served, "GET", &format!("{BASE}/.management/listSessions"), "").await;
    assert_eq!(kept.status, StatusCode::OK, "{kept:?}");
    assert_eq!(pass(&served, "GET", &format!("{BASE}/x"), "").await.refusal().2, json!("identifier"));
    let reader = served.token_for(Role::Reader, None, None);
    let request =
        Request::get(format!("{BASE}/x?identifier=user-1")).header("authorization", format!("Bearer {reader}"));
    assert_eq!(read(served.send(request.body(Body::empty()).unwrap()).await).await.status, StatusCode::FORBIDDEN);
    // What it has written is read in pieces.
    let logs = served.call("GET", "/pools/web/sessions/user-1/logs", "").await.json();
    assert_eq!(logs, json!({ "text": "begun\n", "dropped": 0, "next": 6, "isAll": true }));
    assert_eq!(served.call("GET", &format!("{HERE}/logs"), "").await.refusal().0, 400);
}

#[test]
fn a_programs_own_address_is_its_clients() {
    let pool = sandpool_core::ids::PoolName::parse("web").unwrap();
    let identifier = sandpool_core::ids::Identifier::parse("chat-17").unwrap();
    let key =
        sandpool_core::ids::SessionKey::new(sandpool_core::ids::TenantName::parse("default").unwrap(), identifier);
    let place = |room, prefix: &str| super::Place { pool: &pool, key: &key, port: 80, prefix: prefix.to_owned(), room };
    let data = place(super::Room::Data, "/pools/web");
    let ours = place(super::Room::Ours, "/preview/word");
    let its = place(super::Room::Its, "");
    for (place, to, moved) in [
        (&ours, "/login", Some("/preview/word/login")),
        (&ours, "/preview/word/login", Some("/preview/word/login")),
        (&ours, "/preview/words", Some("/preview/word/preview/words")),
        (&ours, "http://localhost:80/a?b#c", Some("/preview/word/a?b#c")),
        (&ours, "http://localhost:80", Some("/preview/word/")),
        (&ours, "http://localhost:8080/a", None),
        (&ours, "http://localhost:80.evil.test/a", None),
        (&ours, "//evil.test/a", None),
        (&ours, "relative", None),
        (&ours, "https://example.com/", None),
        (&its, "/login", Some("/login")),
        (&its, "http://localhost:80/login", Some("/login")),
        (&data, "/login#top", Some("/pools/web/login?identifier=chat-17#top")),
        (&data, "/login?a=b", Some("/pools/web/login?a=b&identifier=chat-17")),
        (&data, "/login?identifier=other", Some("/pools/web/login?identifier=other")),
    ] {
        assert_eq!(super::moved(to, place, "/x?y=1&identifier=chat-17").as_deref(), moved, "{to}");
    }
    for (place, cookie, kept) in [
        (&data, "a=b; Path=/; Domain=example.com; Secure", "a=b; Path=/pools/web/; Secure"),
        (&data, "path=/x; path = /in", "path=/x; Path=/pools/web/in"),
        (&data, "a=b; Path=/pools/web/in", "a=b; Path=/pools/web/in"),
        (&data, "a=b; HttpOnly", "a=b; HttpOnly"),
        (&its, "a=b; Path=/; DOMAIN=.test", "a=b; Path=/"),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("set-cookie", cookie.parse().unwrap());
        super::keep_to_itself(&mut headers, place);
        assert_eq!(headers["set-cookie"], kept);
    }
}

#[test]
fn who_asks_is_who_is_there() {
    let said = |peer: &str| {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-forwarded-for", "10.1.2.3"), ("forwarded", "for=10.1.2.3"), ("x-real-ip", "10.1.2.3")]
        {
            headers.insert(name, value.parse().unwrap());
        }
        super::forwarded_for(&mut headers, Some(peer.parse().unwrap()));
        assert!(!headers.contains_key("forwarded") && !headers.contains_key("x-real-ip"));
        headers["x-forwarded-for"].to_str().unwrap().to_owned()
    };
    assert_eq!(said("192.0.2.7"), "192.0.2.7");
    assert_eq!(said("127.0.0.1"), "10.1.2.3, 127.0.0.1", "a reverse proxy's word");
}
