//! One connection to a terminal of a session: a WebSocket of the native API.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use reqwest::{StatusCode, Upgraded};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use crate::client::{Client, segment, session_path};
use crate::execution::Ended;
use crate::failure::Failure;

/// The protocol that is spoken.
const PROTOCOL: &str = "sandpool.terminal.v1";

/// The longest message of a server, in bytes.
const MAX_MESSAGE: usize = 4 << 20;

/// The longest message to a server, in bytes: half of what it takes.
const PIECE: usize = 512 << 10;

/// Messages that wait to be sent; who has more waits.
const WAITING: usize = 16;

/// How long a server may take for what is said last.
const FAREWELL: Duration = Duration::from_secs(5);

/// Which terminal, and how much of it is known.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) pool: String,
    pub(crate) session: String,
    pub(crate) name: String,
    pub(crate) command: Vec<String>,
    pub(crate) term: String,
    /// Once it is known: this one, and no other that has the name later.
    pub(crate) execution: Option<String>,
    /// Bytes of its output that were seen.
    pub(crate) after: u64,
}

/// Why there is no connection.
pub(crate) enum NoTerminal {
    /// It may be there a moment later.
    Later(Failure),
    /// It will not get better.
    Never(Failure),
}

impl NoTerminal {
    pub(crate) fn failure(self) -> Failure {
        match self {
            Self::Later(failure) | Self::Never(failure) => failure,
        }
    }
}

/// What a terminal says.
#[derive(Debug)]
pub(crate) enum Said {
    /// These bytes were written to it.
    Output(Vec<u8>),
    /// So many bytes are missing here.
    Missed(u64),
    /// A message of ours was not understood: why.
    Refused(String),
    /// It has ended.
    Ended(Ended),
}

/// A connection to a terminal.
pub(crate) struct Terminal {
    hear: SplitStream<WebSocketStream<Upgraded>>,
    say: mpsc::Sender<Message>,
    /// It was made by this connection.
    pub(crate) is_new: bool,
    /// What runs on it.
    pub(crate) execution: String,
    /// The first byte that follows, and those before it that were asked for and are gone.
    pub(crate) offset: u64,
    pub(crate) missed: u64,
    writing: tokio::task::JoinHandle<()>,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.writing.abort();
    }
}

impl Wanted {
    fn path(&self, (rows, columns): (u16, u16)) -> String {
        let mut path = format!(
            "{}/terminals/{}?rows={rows}&columns={columns}&term={}&after={}",
            session_path(&self.pool, &self.session),
            segment(&self.name),
            segment(&self.term),
            self.after
        );
        match &self.execution {
            Some(execution) => path.push_str(&format!("&create=false&execution={execution}")),
            None => self.command.iter().for_each(|word| path.push_str(&format!("&command={}", segment(word)))),
        }
        path
    }
}

impl Terminal {
    /// Connects. What has no answer, or one that blames the server, may have another later.
    pub(crate) async fn attach(client: &Client, wanted: &Wanted, size: (u16, u16)) -> Result<Self, NoTerminal> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)
            .map_err(|error| NoTerminal::Never(Failure::new("no random numbers").because(error)))?;
        let key = STANDARD.encode(random);
        let request = client
            .upgrade(&wanted.path(size))
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", PROTOCOL)
            .header("sec-websocket-key", &key);
        let response = client.send_any(request).await.map_err(NoTerminal::Later)?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let failure = client.refusal(response).await;
            return Err(match status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
                true => NoTerminal::Later(failure),
                false => NoTerminal::Never(failure),
            });
        }
        let accepted = response
            .headers()
            .get("sec-websocket-accept")
            .is_some_and(|word| word.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes());
        if !accepted {
            return Err(NoTerminal::Never(Failure::new("the server does not answer like one of WebSockets")));
        }
        let upgraded = response.upgrade().await.map_err(|error| NoTerminal::Later(client.cut(&error)))?;
        let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
        let (sink, mut hear) = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await.split();
        let first = match hear.next().await {
            Some(Ok(Message::Text(text))) => serde_json::from_str::<Value>(&text).unwrap_or_default(),
            _ => return Err(NoTerminal::Later(Failure::new("the connection to the terminal broke off"))),
        };
        let (say, waiting) = mpsc::channel(WAITING);
        Ok(Self {
            hear,
            say,
            is_new: first["isNew"].as_bool().unwrap_or(false),
            execution: first["execution"].as_str().unwrap_or_default().to_owned(),
            offset: first["offset"].as_u64().unwrap_or(0),
            missed: first["missed"].as_u64().unwrap_or(0),
            writing: tokio::spawn(write(sink, waiting)),
        })
    }

    /// What it says next; `None` when the connection is broken. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Said> {
        loop {
            match self.hear.next().await?.ok()? {
                Message::Binary(bytes) => return Some(Said::Output(bytes.into())),
                Message::Text(text) => {
                    let said: Value = serde_json::from_str(&text).ok()?;
                    return Some(match said["type"].as_str() {
                        Some("ended") => Said::Ended(Ended::read(&said)),
                        Some("missed") => Said::Missed(said["bytes"].as_u64().unwrap_or(0)),
                        Some("error") => Said::Refused(said["message"].as_str().unwrap_or_default().to_owned()),
                        // A later server may say more.
                        _ => continue,
                    });
                }
                Message::Close(_) => return None,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Where messages for it go. A broken connection takes them and loses them.
    pub(crate) fn mouth(&self) -> mpsc::Sender<Message> {
        self.say.clone()
    }

    /// Leaves it, once all that was said is sent.
    pub(crate) async fn leave(mut self) {
        self.say = mpsc::channel(1).0;
        // One that does not read is left all the same.
        let _ = tokio::time::timeout(FAREWELL, &mut self.writing).await;
    }
}

async fn write(mut sink: SplitSink<WebSocketStream<Upgraded>, Message>, mut waiting: mpsc::Receiver<Message>) {
    while let Some(message) = waiting.recv().await {
        if sink.send(message).await.is_err() {
            // Its reader hears of it.
            return;
        }
    }
    let _ = sink.close().await;
}

/// What was typed, as messages.
pub(crate) fn typed(bytes: &[u8]) -> impl Iterator<Item = Message> {
    bytes.chunks(PIECE).map(|piece| Message::Binary(piece.to_vec().into()))
}

/// A new size.
pub(crate) fn resize((rows, columns): (u16, u16)) -> Message {
    Message::Text(json!({ "type": "resize", "rows": rows, "columns": columns }).to_string().into())
}
