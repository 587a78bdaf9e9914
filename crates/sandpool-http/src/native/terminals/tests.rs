use std::net::SocketAddr;
use std::time::Duration;

use sandpool_node::Open;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message as Sent};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::served::Served;

const HERE: &str = "/pools/shell/sessions/chat-17/terminals";

/// A server on loopback.
async fn listening(served: &Served) -> (SocketAddr, CancellationToken) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(crate::serve::serve(vec![crate::serve::Listener::Plain(socket)], served.router(), stop.clone()));
    (address, stop)
}

struct Client(WebSocketStream<TcpStream>);

/// Attaches with these headers; or the refusal's status and code.
async fn attach_with(address: SocketAddr, path: &str, headers: &[(&str, String)]) -> Result<Client, (u16, String)> {
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    for (name, value) in headers {
        let name = HeaderName::try_from(*name).unwrap();
        request.headers_mut().insert(name, HeaderValue::try_from(value).unwrap());
    }
    let stream = TcpStream::connect(address).await.unwrap();
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, response)) => {
            assert!(!format!("{response:?}").contains(BEARER), "a token is never said again");
            Ok(Client(socket))
        }
        Err(Error::Http(response)) => {
            let code = response.headers().get("x-ms-error-code").map(|code| code.to_str().unwrap().to_owned());
            Err((response.status().as_u16(), code.unwrap_or_default()))
        }
        Err(error) => panic!("{error}"),
    }
}

async fn attach_to(served: &Served, address: SocketAddr, path: &str) -> Client {
    let bearer = ("authorization", format!("Bearer {}", served.token()));
    attach_with(address, path, &[bearer]).await.unwrap_or_else(|refusal| panic!("{refusal:?}"))
}

impl Client {
    /// The next message that is not a ping.
    async fn hear(&mut self) -> Sent {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(60), self.0.next()).await.unwrap();
            match next.unwrap().unwrap() {
                Sent::Ping(_) | Sent::Pong(_) => {}
                message => return message,
            }
        }
    }

    async fn text(&mut self) -> Value {
        match self.hear().await {
            Sent::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Output until it ends so.
    async fn until(&mut self, end: &str) -> String {
        let mut all = Vec::new();
        while !all.ends_with(end.as_bytes()) {
            match self.hear().await {
                Sent::Binary(bytes) => all.extend_from_slice(&bytes),
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&all)),
            }
        }
        String::from_utf8(all).unwrap()
    }

    async fn say(&mut self, message: impl Into<Sent>) {
        self.0.send(message.into()).await.unwrap();
    }
}

#[tokio::test]
async fn a_terminal_is_attached_to_left_and_found_again() {
    let served = Served::start().await;
    let (address, _stop) = listening(&served).await;
    let mut first = attach_to(&served, address, &format!("{HERE}/main?rows=40&columns=100")).await;
    let said = first.text().await;
    assert_eq!((&said["type"], &said["offset"], &said["missed"]), (&json!("attached"), &json!(0), &json!(0)), "{said}");
    assert_eq!((&said["isNew"], &said["rows"], &said["name"]), (&json!(true), &json!(40), &json!("main")), "{said}");
    first.say(b"one\n".to_vec()).await;
    assert_eq!(first.until("one\n").await, "one\n");
    first.say("no json").await;
    assert_eq!(first.text().await["type"], "error");
    first.say(r#"{"type":"resize","rows":50,"columns":132}"#).await;
    first.say(b"two\n".to_vec()).await;
    assert_eq!(first.until("two\n").await, "two\n");
    let mut second = attach_to(&served, address, &format!("{HERE}/main?after=4")).await;
    let again = second.text().await;
    assert_eq!(
        (&again["execution"], &again["isNew"], &again["offset"]),
        (&said["execution"], &json!(false), &json!(4))
    );
    assert_eq!(second.until("two\n").await, "two\n");
    let listed = served.call("GET", HERE, "").await.json();
    let [one] = &listed["value"].as_array().unwrap()[..] else { panic!("{listed}") };
    assert_eq!((&one["attached"], &one["rows"], &one["state"]), (&json!(2), &json!(50), &json!("running")), "{one}");
    drop(first);
    second.say(b"three\n".to_vec()).await;
    second.until("three\n").await;
    assert_eq!(served.call("DELETE", &format!("{HERE}/main"), "").await.status, 204);
    let ended = second.text().await;
    assert_eq!((&ended["type"], &ended["outcome"]), (&json!("ended"), &json!("cancelled")), "{ended}");
    assert!(matches!(second.hear().await, Sent::Close(Some(frame)) if u16::from(frame.code) == 1000));
    assert_eq!(served.call("GET", HERE, "").await.json(), json!({ "value": [] }));
    assert_eq!(served.call("DELETE", &format!("{HERE}/main"), "").await.refusal().1, "TerminalNotFound");
}

#[tokio::test]
async fn a_terminal_ends_with_its_program_and_with_its_session() {
    let served = Served::start().await;
    let (address, _stop) = listening(&served).await;
    let mut client = attach_to(&served, address, &format!("{HERE}/a?command=out&command=hi%0Aexit&command=3")).await;
    client.text().await;
    client.until("hi\n").await;
    let ended = client.text().await;
    assert_eq!((&ended["outcome"], &ended["exitCode"]), (&json!("exited"), &json!(3)));
    // Its end is still known, to whoever does not want another.
    let mut client = attach_to(&served, address, &format!("{HERE}/a?create=false")).await;
    client.text().await;
    client.until("hi\n").await;
    assert_eq!(client.text().await["exitCode"], 3);
    let mut client = attach_to(&served, address, &format!("{HERE}/b")).await;
    client.text().await;
    assert_eq!(served.call("DELETE", "/pools/shell/sessions/chat-17", "").await.status, 204);
    let ended = client.text().await;
    assert_eq!((&ended["type"], &ended["outcome"]), (&json!("ended"), &json!("died")), "{ended}");
}

#[tokio::test]
async fn who_may_not_is_refused_before_anything_is_made() {
    let served = Served::start().await;
    let (address, _stop) = listening(&served).await;
    let path = format!("{HERE}/main");
    let ours = |more: &str| ("sec-websocket-protocol", format!("{PROTOCOL}{more}"));
    let bearer = |token: &str| ("authorization", format!("Bearer {token}"));
    let origin = ("origin", "https://elsewhere.example".to_owned());
    let refused = |headers: Vec<(&'static str, String)>| {
        let path = path.clone();
        async move { attach_with(address, &path, &headers).await.err().map(|(status, _)| status) }
    };
    assert_eq!(refused(vec![]).await, Some(401));
    assert_eq!(refused(vec![bearer("wrong")]).await, Some(401));
    assert_eq!(refused(vec![ours(", sandpool.bearer.wrong")]).await, Some(401));
    assert_eq!(refused(vec![ours(""), origin.clone()]).await, Some(403), "a foreign page without a token");
    let reader = served.token_for(Role::Reader, None, None);
    assert_eq!(refused(vec![bearer(&reader)]).await, Some(403));
    let other = served.token_for(Role::Executor, None, Some("another-session"));
    assert_eq!(refused(vec![bearer(&other)]).await, Some(403));
    let token = served.token();
    let twice = format!(", {BEARER}{token}, {BEARER}{token}");
    assert_eq!(refused(vec![ours(&twice)]).await, Some(401));
    assert_eq!(refused(vec![ours(&format!(", {BEARER}{token}")), bearer(token)]).await, Some(401));
    let without_ours = ("sec-websocket-protocol", format!("{BEARER}{token}"));
    assert_eq!(refused(vec![without_ours]).await, Some(400));
    for query in ["rows=0", "columns=x", "term=a%20b", "create=no", "after=-1", "execution=x", "command="] {
        let refusal = attach_with(address, &format!("{path}?{query}"), &[bearer(token)]).await.err();
        assert_eq!(refusal, Some((400, "SessionRequestValidationFailed".to_owned())), "{query}");
    }
    assert_eq!(
        attach_with(address, &format!("{path}?create=false"), &[bearer(token)]).await.err().map(|(status, _)| status),
        Some(404)
    );
    assert_eq!(served.call("GET", &path, "").await.refusal().1, "WebSocketRequired");
    assert_eq!(served.call("GET", "/pools/shell/sessions/chat-17", "").await.status, 404, "nothing was made");
    // A foreign page that brings its token in the handshake has been given it.
    let headers = [ours(&format!(", {BEARER}{token}")), origin];
    let mut client = attach_with(address, &path, &headers).await.unwrap_or_else(|refusal| panic!("{refusal:?}"));
    assert_eq!(client.text().await["isNew"], true);
    // Another tenant's session of that name is another session.
    let theirs = served.token_of("acme", Role::Executor);
    let refusal = attach_with(address, &format!("{path}?create=false"), &[bearer(&theirs)]).await.err();
    assert_eq!(refusal.map(|(status, _)| status), Some(404));
}

#[tokio::test]
async fn there_are_only_so_many() {
    let served = Served::start().await;
    let (address, _stop) = listening(&served).await;
    for number in 0..16 {
        attach_to(&served, address, &format!("{HERE}/t{number}")).await.text().await;
    }
    let bearer = ("authorization", format!("Bearer {}", served.token()));
    let refusal = attach_with(address, &format!("{HERE}/one-more"), std::slice::from_ref(&bearer)).await.err();
    assert_eq!(refusal, Some((429, "TerminalsCountExceedsLimit".to_owned())));
    // A tenant whose executions are used up finds the terminal that is there, and makes no other.
    let small = ("authorization", format!("Bearer {}", served.token_of("small", Role::Executor)));
    let mut client = attach_with(address, &format!("{HERE}/main"), std::slice::from_ref(&small)).await.ok().unwrap();
    client.text().await;
    let pool = PoolName::parse("shell").unwrap();
    let identifier = sandpool_core::ids::Identifier::parse("chat-17").unwrap();
    let key = SessionKey::new(sandpool_core::ids::TenantName::parse("small").unwrap(), identifier);
    served.node.open(&pool, &key, Open::Existing, &sandpool_node::Caller::default()).await.unwrap();
    let work = sandpool_node::Work::Shell { command: "wait".to_owned(), stdin: sandpool_node::Stdin::Empty };
    let request = sandpool_node::ExecuteRequest { id: None, work, timeout: None, output_limit: None };
    served.node.execute(&pool, &key, request).await.unwrap();
    let refusal = attach_with(address, &format!("{HERE}/other"), std::slice::from_ref(&small)).await.err();
    assert_eq!(refusal, Some((429, "TenantQuotaExceeded".to_owned())));
    let mut client = attach_with(address, &format!("{HERE}/main"), &[small]).await.ok().unwrap();
    assert_eq!(client.text().await["isNew"], false);
}

#[tokio::test]
async fn a_message_that_is_too_long_ends_the_connection_and_not_the_terminal() {
    let served = Served::start().await;
    let (address, _stop) = listening(&served).await;
    let mut client = attach_to(&served, address, &format!("{HERE}/main")).await;
    client.text().await;
    client.say(vec![b'x'; MAX_MESSAGE + 1]).await;
    loop {
        match client.0.next().await {
            Some(Ok(Sent::Close(Some(frame)))) => {
                assert_eq!(u16::from(frame.code), 1009);
                break;
            }
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    let mut client = attach_to(&served, address, &format!("{HERE}/main")).await;
    assert_eq!(client.text().await["isNew"], false);
}

#[test]
fn an_origin_is_ours_or_foreign() {
    let foreign = |origin: Option<&'static str>, host: &'static str| {
        let mut headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
        if let Some(origin) = origin {
            headers.insert(ORIGIN, HeaderValue::from_static(origin));
        }
        is_foreign(&headers)
    };
    assert!(!foreign(None, "127.0.0.1:7300"));
    assert!(!foreign(Some("http://127.0.0.1:7300"), "127.0.0.1:7300"));
    assert!(foreign(Some("http://127.0.0.1:7301"), "127.0.0.1:7300"));
    assert!(foreign(Some("null"), "127.0.0.1:7300"));
    assert!(foreign(Some("https://pools.example.evil"), "pools.example"));
}
