//! The server that the conformance suite of MCP is run against (`e2e/test_mcp_conformance.py`): our transport, sessions of the protocol
//! and tokens, and behind them what the suite asks for. Prints its address and a token, and serves until its standard input ends.

use std::io::Write;

use sandpool_http::served::Served;
use sandpool_http::{Listener, serve};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let served = Served::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let told = format!("http://{}/conformance/mcp {}\n", listener.local_addr()?, served.token());
    std::io::stdout().write_all(told.as_bytes())?;
    std::io::stdout().flush()?;
    let stop = CancellationToken::new();
    let ended = stop.clone();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ended.cancel();
    });
    serve(vec![Listener::Plain(listener)], served.router(), stop).await
}
