//! The floor's process: a bare hyper server on one thread.
//!
//! | `POST` | Does |
//! |---|---|
//! | `/echo` | answers |
//! | `/run/K` | runs the code in the K-th interpreter that lives on |
//! | `/prepare/N`, `/claim` | keeps N interpreters that have run something; runs the code in one of them, once |
//! | `/fork` | namespaces and mounts, then a fork, then runs the code in it; ends both after the answer |
//! | `/life` | the same, and answers when both are gone |
//! | `/place` | namespaces and mounts alone, and gone again |
//! | `/kill` | answers how long the end of such a pair took, in milliseconds |
//! | `/bash` | `bash -c` of the body |
//! | `/prepare-node/N`, `/node` | as `/prepare` and `/claim` with Node |
//! | `/hold/N`, `/hold-node/N`, `/release` | N idle interpreters, and their pids; gone again |
//! | `/pipe/N` | answers N times of the code in an interpreter without HTTP, in milliseconds |
//! | `/write`, `/read/BYTES` | the body into a file in memory; that many bytes out of it |

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io::{Read, Write};
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::{LocalSet, spawn_local};

use super::Plan;
use super::interpreter::{Interpreter, Python};
use super::launch::Place;
use crate::load::milliseconds;

/// What `/echo` answers: as long as our own answer to the same request.
const ECHO: &str = r#"{"pool":"python","session":"bench-warm-000000","execution":"00000000000000000000000000000000","createdAt":"2026-01-01T00:00:00.000000000Z","state":"ended","outcome":"succeeded","exitCode":null,"detail":null,"stdout":"1\n","stderr":"","truncated":{"stdout":0,"stderr":0},"result":null,"displays":[],"error":null,"durationMilliseconds":0.1,"queuedMilliseconds":0.1,"stateLost":false}"#;

/// Serves until its standard input ends. Prints where it listens, on a line.
///
/// # Errors
/// When it cannot listen, or Python does not start.
pub fn serve(plan: &str) -> Result<()> {
    let plan: Plan = serde_json::from_str(plan).context("no plan of a floor")?;
    // An interpreter that is gone is an error to answer, not a signal to die of: std has ignored SIGPIPE for us.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let python = Python::start(&plan.python).await?;
        let floor = Rc::new(Floor {
            plan,
            python,
            kept: RefCell::default(),
            ready: RefCell::default(),
            nodes: RefCell::default(),
            held: RefCell::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let mut alive = tokio::net::unix::pipe::Receiver::from_owned_fd(rustix::io::dup(rustix::stdio::stdin())?)?;
        loop {
            tokio::select! {
                _ = tokio::io::AsyncReadExt::read_u8(&mut alive) => return Ok(()),
                accepted = listener.accept() => {
                    let (stream, _) = accepted?;
                    stream.set_nodelay(true)?;
                    let floor = Rc::clone(&floor);
                    let service = service_fn(move |request| answer(Rc::clone(&floor), request));
                    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    spawn_local(async move { drop(connection.await) });
                }
            }
        }
    })
}

struct Floor {
    plan: Plan,
    python: Python,
    kept: RefCell<BTreeMap<usize, Rc<Mutex<Interpreter>>>>,
    ready: RefCell<VecDeque<Interpreter>>,
    nodes: RefCell<VecDeque<Interpreter>>,
    held: RefCell<Vec<Interpreter>>,
}

/// What a request asks for: the same form as ours.
#[derive(Deserialize)]
struct Asked {
    code: String,
}

async fn answer(floor: Rc<Floor>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::default());
    match floor.act(request).await {
        Ok(body) => *response.body_mut() = Full::new(body),
        Err(error) => {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            *response.body_mut() = Full::new(format!("{error:#}").into());
        }
    }
    Ok(response)
}

impl Floor {
    async fn act(self: &Rc<Self>, request: Request<Incoming>) -> Result<Bytes> {
        let path = request.uri().path().to_owned();
        let (word, rest) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
        let number = || rest.parse::<usize>().with_context(|| format!("no number: {path}"));
        if word == "write" {
            return write(request.into_body()).await;
        }
        let body = request.into_body().collect().await?.to_bytes();
        match word {
            "echo" => {
                code(&body)?;
                Ok(ECHO.into())
            }
            "run" => {
                let interpreter = self.kept(number()?).await?;
                let mut interpreter = interpreter.lock().await;
                Ok(interpreter.run(&code(&body)?).await?.into())
            }
            "prepare" => self.prepare(number()?).await,
            "claim" => self.claim(&body).await,
            "fork" => {
                let (place, interpreter, said) = self.begin(&body).await?;
                spawn_local(async move { drop((interpreter.kill().await, place.destroy().await)) });
                Ok(said)
            }
            "life" => {
                let (place, interpreter, said) = self.begin(&body).await?;
                interpreter.kill().await?;
                place.destroy().await?;
                Ok(said)
            }
            "place" => {
                Place::launch()?.destroy().await?;
                Ok(Bytes::new())
            }
            "kill" => {
                let (place, interpreter, _) = self.begin(&body).await?;
                let begun = Instant::now();
                interpreter.kill().await?;
                place.destroy().await?;
                Ok(milliseconds(begun.elapsed()).to_string().into())
            }
            "bash" => {
                let command = std::str::from_utf8(&body)?.to_owned();
                let output = tokio::process::Command::new("/bin/bash").arg("-c").arg(command).output().await?;
                Ok(output.stdout.into())
            }
            "prepare-node" => {
                while self.nodes.borrow().len() < number()? {
                    let node = self.new_node().await?;
                    self.nodes.borrow_mut().push_back(node);
                }
                Ok(Bytes::new())
            }
            "node" => {
                let ready = self.nodes.borrow_mut().pop_front();
                let mut node = ready.context("no Node is ready")?;
                let said = node.run(&code(&body)?).await?;
                spawn_local(async move { drop(node.kill().await) });
                Ok(said.into())
            }
            "hold" | "hold-node" => {
                let count = number()?;
                for _ in 0..count {
                    let held = if word == "hold" { self.new_python().await? } else { self.new_node().await? };
                    self.held.borrow_mut().push(held);
                }
                let pids: Vec<_> = self.held.borrow().iter().filter_map(Interpreter::pid).collect();
                Ok(serde_json::to_vec(&pids)?.into())
            }
            "release" => {
                let held = self.held.take();
                for interpreter in held {
                    interpreter.kill().await?;
                }
                Ok(Bytes::new())
            }
            "pipe" => {
                let interpreter = self.kept(usize::MAX).await?;
                let mut interpreter = interpreter.lock().await;
                let line = code(&body)?;
                let mut taken = Vec::new();
                for _ in 0..number()? {
                    let begun = Instant::now();
                    interpreter.run(&line).await?;
                    taken.push(milliseconds(begun.elapsed()));
                }
                Ok(serde_json::to_vec(&taken)?.into())
            }
            "read" => read(number()?),
            _ => bail!("no such floor: {path}"),
        }
    }

    /// The interpreter of this number, which lives on.
    async fn kept(&self, number: usize) -> Result<Rc<Mutex<Interpreter>>> {
        if let Some(kept) = self.kept.borrow().get(&number) {
            return Ok(Rc::clone(kept));
        }
        let new = Rc::new(Mutex::new(self.new_python().await?));
        Ok(Rc::clone(self.kept.borrow_mut().entry(number).or_insert(new)))
    }

    /// An interpreter that has run something, so that what its first run touches is touched.
    async fn new_python(&self) -> Result<Interpreter> {
        let mut interpreter = self.python.fork().await?;
        interpreter.run(b"{\"code\": \"print(1)\"}\n").await?;
        Ok(interpreter)
    }

    async fn new_node(&self) -> Result<Interpreter> {
        let mut node = Interpreter::node(&self.plan.node)?;
        node.run(b"{\"code\": \"1\"}\n").await.context("the floor's Node does not start")?;
        Ok(node)
    }

    async fn prepare(&self, count: usize) -> Result<Bytes> {
        while self.ready.borrow().len() < count {
            let interpreter = self.new_python().await?;
            self.ready.borrow_mut().push_back(interpreter);
        }
        Ok(Bytes::new())
    }

    /// Takes an interpreter that is ready, and replaces it after the answer.
    async fn claim(self: &Rc<Self>, body: &[u8]) -> Result<Bytes> {
        let ready = self.ready.borrow_mut().pop_front();
        let mut interpreter = ready.context("no interpreter is ready")?;
        let said = interpreter.run(&code(body)?).await?;
        let floor = Rc::clone(self);
        spawn_local(async move {
            drop(interpreter.kill().await);
            if let Ok(new) = floor.new_python().await {
                floor.ready.borrow_mut().push_back(new);
            }
        });
        Ok(said.into())
    }

    /// A place, an interpreter, and the answer to the code: one after the other, as nothing of it was ready.
    async fn begin(&self, body: &[u8]) -> Result<(Place, Interpreter, Bytes)> {
        let place = Place::launch()?;
        let mut interpreter = self.python.fork().await?;
        let said = interpreter.run(&code(body)?).await?;
        Ok((place, interpreter, said.into()))
    }
}

/// The line for an interpreter. The request is read as JSON and written as JSON: whoever takes requests does that much.
fn code(body: &[u8]) -> Result<Vec<u8>> {
    let asked: Asked = serde_json::from_slice(body)?;
    let mut line = serde_json::to_vec(&serde_json::json!({ "code": asked.code }))?;
    line.push(b'\n');
    Ok(line)
}

/// A file in memory: what a session's files are.
fn memory_file() -> Result<std::fs::File> {
    Ok(rustix::fs::memfd_create("floor", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

async fn write(mut body: Incoming) -> Result<Bytes> {
    let mut file = memory_file()?;
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame?.into_data() {
            file.write_all(&piece)?;
        }
    }
    Ok(Bytes::new())
}

fn read(count: usize) -> Result<Bytes> {
    let mut file = memory_file()?;
    file.set_len(u64::try_from(count)?)?;
    let mut bytes = Vec::with_capacity(count);
    file.read_to_end(&mut bytes)?;
    Ok(bytes.into())
}
