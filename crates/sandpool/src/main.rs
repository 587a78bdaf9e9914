//! Sandpool's one program: server, launcher, agent inside, and the command line that talks to them.
//!
//! ```text
//! args      what people type            commands/*   one module per command
//! settings  what the program means      server       the unprivileged half of a running server
//! home      the state directory         egress         the egress proxy, as its process
//! client, execution, sse: the native API's client
//! ```

use std::process::ExitCode;

use clap::Parser;
use sandpool_telemetry::LogLayer;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::{Cli, Command, Global, LogFormat};
use crate::client::Context;
use crate::failure::Failure;
use crate::home::Home;

mod args;
mod client;
mod commands;
mod credentials;
mod egress;
mod execution;
mod failure;
mod home;
mod print;
mod puller;
#[cfg(test)]
mod reference;
mod server;
mod settings;
mod sse;
mod terminal;
mod unpack;

/// The static program inside every sandbox (see `build.rs`).
pub(crate) static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent.elf"));

fn main() -> ExitCode {
    let cli = Cli::parse();
    let log = start_log(&cli);
    let json = cli.global.json;
    match dispatch(cli, &log) {
        Ok(code) => code,
        Err(failure) => {
            if json {
                print::note(&failure.json().to_string());
            } else {
                print::note(&failure.to_string());
            }
            ExitCode::from(failure.code())
        }
    }
}

fn dispatch(cli: Cli, log: &LogLayer) -> Result<ExitCode, Failure> {
    let Global { home, server, json, log_format } = cli.global;
    let home_asked = home.is_some();
    let context = Context { home: Home::find(home.as_deref())?, server, json };
    let code = match cli.command {
        Command::Up(up) => return commands::up::up(&context, &up, log_format),
        Command::Serve(serve) => return commands::up::serve(&context, &serve, home_asked, log_format),
        Command::Server { plan } => return Ok(server::run(&context, &plan, log)),
        Command::Unpack => return Ok(unpack::run()),
        Command::Puller { images, machines, user, parent } => {
            return Ok(puller::run(&images, &machines, user, parent));
        }
        Command::Egress { records, limits } => return Ok(egress::run(&records, &limits)),
        Command::Down(down) => commands::down::run(&context, &down),
        Command::Doctor(doctor) => commands::doctor::run(&context, &doctor),
        Command::Env(env) => commands::env::run(&context, &env),
        Command::Token(token) => commands::token::run(&context, &token),
        Command::Console(console) => commands::console::run(&context, &console),
        Command::Run(run) => commands::run::run(&context, &run),
        Command::Shell(shell) => commands::shell::run(&context, &shell),
        Command::Files(files) => commands::files::run(&context, &files),
        Command::Session(session) => commands::session::run(&context, &session),
        Command::Pool(pool) => commands::pool::run(&context, &pool),
        Command::Mcp(mcp) => commands::mcp::run(&context, &mcp),
        Command::Image(image) => commands::image::run(&context, &image),
        Command::Journal(journal) => commands::journal::run(&context, &journal),
        Command::Config(config) => commands::config::run(&context, &config),
        Command::Bench(bench) => commands::bench::run(&context, &bench),
        Command::Completions { shell } => commands::completions::run(shell),
    }?;
    Ok(ExitCode::from(code))
}

/// Logs to standard error: the server's life events, and of clients only what is wrong. What a server logs can be given to an exporter too.
fn start_log(cli: &Cli) -> LogLayer {
    let is_server = matches!(
        cli.command,
        Command::Up(_) | Command::Serve(_) | Command::Server { .. } | Command::Egress { .. } | Command::Puller { .. }
    );
    let by_default = if is_server { "info" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(by_default));
    // The library that speaks MCP logs what passes through it, which is users' code and its output.
    let filter = filter.add_directive("rmcp=off".parse().expect("it is a directive"));
    let told = LogLayer::default();
    let all = tracing_subscriber::registry().with(filter);
    let all = all.with(matches!(cli.command, Command::Server { .. }).then(|| told.clone()));
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match cli.global.log_format {
        LogFormat::Json => all.with(log.json()).init(),
        LogFormat::Text => all.with(log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))).init(),
    }
    told
}
