//! The scenarios' work on a server.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use hyper::Method;
use tokio::task::JoinSet;

use super::{Block, Rounds, Scale, Scenario};
use crate::load::{Clock, Schedule, Shot, closed_loop, milliseconds, open_loop};
use crate::memory;
use crate::server::Server;

/// The cell that all scenarios and all peers run.
pub(super) const CELL: &str = r#"{"code": "print(1)"}"#;

/// A cell that prints a megabyte: below the default limit of what is kept of an execution's output.
pub(super) const OUTPUT: &str = r#"{"code": "print('x' * 1000000)"}"#;

/// A cell that makes system calls and tells how long they took, in milliseconds.
pub(super) const WALLS: &str = r#"{"code": "def measure():\n import os, time\n r, w = os.pipe()\n begun = time.perf_counter()\n for _ in range(1000):\n  os.write(w, b'x')\n  os.read(r, 1)\n taken = time.perf_counter() - begun\n os.close(r)\n os.close(w)\n return taken * 1e3\nprint(measure())"}"#;

/// How long whatever is left of a deleted session is waited for.
const GONE_LIMIT: Duration = Duration::from_secs(30);

/// A server that scenarios are run against, and the names that were used on it.
#[derive(Debug)]
pub struct Subject {
    server: Rc<Server>,
    named: Cell<u64>,
}

impl Subject {
    /// Scenarios on this server.
    #[must_use]
    pub fn new(server: Server) -> Self {
        Self { server: Rc::new(server), named: Cell::new(0) }
    }

    /// The server.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    pub(super) fn shared(&self) -> Rc<Server> {
        Rc::clone(&self.server)
    }

    /// A name that was not used before on this server.
    fn name(&self) -> String {
        self.named.set(self.named.get() + 1);
        format!("bench-{:06}", self.named.get())
    }

    /// One turn of a scenario.
    ///
    /// # Errors
    /// When something does not work that has nothing to do with load. What the server refuses is in the block.
    pub async fn turn(&self, scenario: Scenario, scale: Scale, rounds: Rounds, round: usize) -> Result<Block> {
        let Rounds { each, .. } = rounds;
        match scenario {
            Scenario::Warm => self.repeated("python", "bench-warm", CELL, each).await,
            Scenario::Output => self.repeated("python", "bench-warm", OUTPUT, each).await,
            Scenario::Walls => {
                let mut block = Block::default();
                for _ in 0..each {
                    let answer = self.server.execute("python", "bench-warm", WALLS).await?;
                    block.samples.push(printed(&answer.body)?);
                }
                Ok(block)
            }
            Scenario::Shell => self.repeated("shell", "bench-warm", r#"{"command": "echo hi"}"#, each).await,
            Scenario::Throughput8 => self.throughput(8, each).await,
            Scenario::Throughput16 => self.throughput(16, each).await,
            Scenario::Throughput32 => self.throughput(32, each).await,
            Scenario::NewSession | Scenario::NewSession100 | Scenario::Burst => {
                self.new_sessions("python", CELL, &scenario.schedule(scale, each, round), each).await
            }
            Scenario::Node => {
                self.new_sessions("node", r#"{"code": "1+1"}"#, &scenario.schedule(scale, each, round), each).await
            }
            Scenario::Cold => self.cold(each).await,
            Scenario::Churn => self.churn(each).await,
            Scenario::Delete => self.deletes(each).await,
            Scenario::Upload1 => self.files(Method::PUT, 1, each).await,
            Scenario::Upload128 => self.files(Method::PUT, 128, each).await,
            Scenario::Download1 => self.files(Method::GET, 1, each).await,
            Scenario::Download128 => self.files(Method::GET, 128, each).await,
            Scenario::Idle
            | Scenario::Memory
            | Scenario::MemoryNode
            | Scenario::Capacity
            | Scenario::Restart
            | Scenario::Noisy
            | Scenario::Egress => {
                bail!("{} is not made of turns", scenario.name())
            }
        }
    }

    /// One caller, one session, one after the other.
    async fn repeated(&self, pool: &str, session: &str, work: &'static str, count: usize) -> Result<Block> {
        let mut block = Block::default();
        // The session is made, and what its first run touches is touched.
        self.server.execute(pool, session, work).await?;
        for _ in 0..count {
            let begun = Instant::now();
            self.server.execute(pool, session, work).await?;
            block.samples.push(milliseconds(begun.elapsed()));
        }
        Ok(block)
    }

    async fn throughput(&self, sessions: usize, seconds: usize) -> Result<Block> {
        for session in 0..sessions {
            self.server.execute("python", &format!("bench-many-{session}"), CELL).await?;
        }
        self.server.client().connect(sessions).await?;
        let server = Rc::clone(&self.server);
        let time = Duration::from_secs(u64::try_from(seconds)?);
        let done = closed_loop(sessions, time, move |caller| {
            let server = Rc::clone(&server);
            async move { server.execute("python", &format!("bench-many-{caller}"), CELL).await.map(drop) }
        })
        .await?;
        Ok(Block { samples: done.rates(), ..Block::default() })
    }

    /// Each request at its time with an identifier of its own, whose session is deleted after the answer.
    async fn new_sessions(
        &self,
        pool: &'static str,
        work: &'static str,
        schedule: &Schedule,
        count: usize,
    ) -> Result<Block> {
        self.server.full(pool).await?;
        let before = self.server.pool(pool).await?;
        self.server.client().connect(count.min(32)).await?;
        let deletes = Rc::new(RefCell::new(JoinSet::new()));
        let names: Vec<String> = (0..count).map(|_| self.name()).collect();
        let send = |index: usize| {
            let (server, deletes) = (Rc::clone(&self.server), Rc::clone(&deletes));
            let session = names[index].clone();
            async move {
                let answer = server.execute(pool, &session, work).await;
                let owner = Rc::clone(&server);
                deletes.borrow_mut().spawn_local(async move { owner.delete(pool, &session).await });
                answer.map(drop)
            }
        };
        let mut clock = Clock::exact()?;
        let shots = open_loop(&mut clock, schedule, send).await?;
        let mut deletes = deletes.take();
        while let Some(deleted) = deletes.join_next().await {
            // One that was refused is not there.
            let _ = deleted?;
        }
        let after = self.server.pool(pool).await?;
        let (now, others) = (&after["sessions"], &before["sessions"]);
        ensure!(now == others, "{now} sessions are there, and before {others}");
        let mut block = sorted_out(&shots);
        let waited = after["waited"].as_u64().unwrap_or_default() - before["waited"].as_u64().unwrap_or_default();
        if waited > 0 {
            block.notes.push(format!("{waited} of {count} found the reservoir empty, and waited for a new sandbox"));
        }
        Ok(block)
    }

    /// New Python sessions at 20/s, whatever others there are.
    pub(super) async fn some_new_sessions(&self, count: usize) -> Result<Block> {
        self.new_sessions("python", CELL, &Schedule::even(20.0, count), count).await
    }

    async fn cold(&self, count: usize) -> Result<Block> {
        let mut block = Block::default();
        let mut ready = 0;
        for _ in 0..count {
            let session = self.name();
            self.server.empty("python").await?;
            ready += usize::from(self.server.pool("python").await?["ready"] != 0);
            let begun = Instant::now();
            self.server.execute("python", &session, CELL).await?;
            block.samples.push(milliseconds(begun.elapsed()));
            self.server.delete("python", &session).await?;
        }
        if ready > 0 {
            block.notes.push(format!("{ready} of {count} found a sandbox that was made ahead of the demand"));
        }
        Ok(block)
    }

    async fn churn(&self, seconds: usize) -> Result<Block> {
        self.server.full("python").await?;
        let before = memory::available_mib()?;
        let time = Duration::from_secs(u64::try_from(seconds)?);
        let server = Rc::clone(&self.server);
        let named = Rc::new(Cell::new(self.named.get()));
        let names = Rc::clone(&named);
        server.client().connect(8).await?;
        let done = closed_loop(4, time, move |_| {
            names.set(names.get() + 1);
            let (server, session) = (Rc::clone(&server), format!("bench-{:06}", names.get()));
            async move {
                server.execute("python", &session, CELL).await?;
                server.delete("python", &session).await
            }
        })
        .await?;
        self.named.set(named.get());
        self.server.empty("python").await?;
        self.server.full("python").await?;
        let mut block = Block { samples: done.rates(), ..Block::default() };
        let after = memory::available_mib()?;
        block.notes.push(format!(
            "{} sessions; available memory {before:.0} MiB before and {after:.0} MiB after; {} processes in sandboxes left, of a full reservoir",
            done.waited_ms.len(),
            self.server.sandboxed().len(),
        ));
        Ok(block)
    }

    async fn deletes(&self, count: usize) -> Result<Block> {
        let mut block = Block::default();
        for _ in 0..count {
            let session = self.name();
            self.server.full("python").await?;
            let place = r#"{"code": "import os; print(os.readlink('/proc/self/ns/pid'))"}"#;
            let answer = self.server.execute("python", &session, place).await?;
            let answer: serde_json::Value = serde_json::from_slice(&answer.body)?;
            let place = answer["stdout"].as_str().unwrap_or_default().trim().to_owned();
            let pids = memory::processes_of(&place);
            ensure!(!pids.is_empty(), "no process of the session is seen in {place:?}");
            let groups = groups_of(&self.server, &pids);
            // What replaces it is made before, so that it is not in the way.
            self.server.full("python").await?;
            let begun = Instant::now();
            self.server.delete("python", &session).await?;
            while pids.iter().any(|pid| std::fs::exists(format!("/proc/{pid}")).unwrap_or(true))
                || groups.iter().any(|group| is_used(group))
            {
                ensure!(begun.elapsed() < GONE_LIMIT, "of a deleted session, {pids:?} or {groups:?} are still there");
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            block.samples.push(milliseconds(begun.elapsed()));
            ensure!(memory::processes_of(&place).is_empty(), "a process of a deleted session lives on");
        }
        Ok(block)
    }

    async fn files(&self, method: Method, mebibytes: usize, count: usize) -> Result<Block> {
        let body = Bytes::from(vec![b'x'; mebibytes << 20]);
        let path = "/pools/python/sessions/bench-files/files/data.bin";
        let client = self.server.client();
        client.ask(Method::PUT, path, body.clone()).await?;
        let mut block = Block::default();
        for _ in 0..count {
            let sent = if method == Method::PUT { body.clone() } else { Bytes::new() };
            let begun = Instant::now();
            let answer = client.ask(method.clone(), path, sent).await?;
            block.samples.push(milliseconds(begun.elapsed()));
            ensure!(method == Method::PUT || answer.body.len() == body.len(), "a file came back with another length");
        }
        self.server.delete("python", "bench-files").await?;
        Ok(block)
    }
}

/// The number that a cell printed.
pub(super) fn printed(body: &[u8]) -> Result<f64> {
    let answer: serde_json::Value = serde_json::from_slice(body)?;
    let text = answer["stdout"].as_str().unwrap_or_default();
    text.trim().parse().with_context(|| format!("a cell printed {text:?}, and no number"))
}

/// Latencies of those that were served, and the words of those that were not.
fn sorted_out(shots: &[Shot<Result<()>>]) -> Block {
    let mut block = Block::default();
    for shot in shots {
        block.late_ms.push(shot.late_ms());
        match &shot.answer {
            Ok(()) => block.samples.push(shot.waited_ms()),
            Err(error) => block.refused.push(format!("{error:#}")),
        }
    }
    block
}

/// The control groups in which these processes are.
fn groups_of(server: &Server, pids: &BTreeSet<i32>) -> Vec<std::path::PathBuf> {
    let holds =
        |group: &std::path::PathBuf| members(group).is_some_and(|members| members.iter().any(|pid| pids.contains(pid)));
    server.groups().into_iter().filter(holds).collect()
}

fn members(group: &std::path::Path) -> Option<Vec<i32>> {
    let text = std::fs::read_to_string(group.join("cgroup.procs")).ok()?;
    Some(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Whether a process is still charged to the group. One that was removed is not there.
fn is_used(group: &std::path::Path) -> bool {
    members(group).is_some_and(|members| !members.is_empty())
}
