//! The proxy as a process: what the launcher hands it, sandbox by sandbox.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use sandpool_core::ids::SandboxId;
use sandpool_sys::counters::Counters;
use sandpool_sys::packet;
use sandpool_wire::egress::{self as wire, FromEgress, SecretValue, ToEgress};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;

use crate::audit;
use crate::dial::Dialler;
use crate::policy::Rules;
use crate::sandbox::{Common, Limits, Sandbox};
use crate::secrets::{Nonce, SandboxSecrets, Secrets};

/// The largest packet of the launcher, in bytes: rules, and a few names.
const MAX_PACKET: usize = 64 * 1024;

/// Serves sandboxes until the launcher is gone. What they move is added up in `counters`. Decisions are recorded in `records`, a directory that this process may write
/// to, and told to a server at the other end of `server`.
///
/// # Errors
/// When the record cannot be opened, or the launcher cannot be understood.
pub async fn serve(
    control: OwnedFd,
    counters: Arc<Counters>,
    server: Option<OwnedFd>,
    records: &Path,
    limits: Limits,
) -> io::Result<()> {
    let (audit, writer) = audit::open(records, server)?;
    let writer = tokio::spawn(writer.run());
    // Without them sandboxes go on with what they may reach; who counts on a secret is refused by its host, and the log says why.
    let secrets = Secrets::read(records).unwrap_or_else(|why| {
        tracing::error!("the secrets cannot be used: {why}");
        Secrets::default()
    });
    let common = Common { dialler: Dialler::default(), audit, limits, secrets: Arc::new(secrets) };
    let served = listen(control, &counters, common).await;
    // Every sandbox has ended, and with it every hand that writes.
    let _ = writer.await;
    served
}

async fn listen(control: OwnedFd, counters: &Arc<Counters>, common: Common) -> io::Result<()> {
    #[expect(deprecated, reason = "what it fears is a descriptor that changes; an `OwnedFd` does not")]
    let control = AsyncFd::new(control)?;
    let mut sandboxes: HashMap<[u8; 16], Here> = HashMap::new();
    let mut leaving = JoinSet::new();
    let mut buffer = vec![0; MAX_PACKET];
    let result = loop {
        let mut ready = tokio::select! {
            ready = control.readable() => ready?,
            Some(_) = leaving.join_next() => continue,
        };
        let (message, listeners) = match packet::receive(control.get_ref(), &mut buffer) {
            Ok((0, _)) => break Ok(()),
            Ok((length, listeners)) => match postcard::from_bytes(&buffer[..length]) {
                Ok(message) => (message, listeners),
                Err(error) => break Err(io::Error::other(format!("the launcher cannot be understood: {error}"))),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready.clear_ready();
                continue;
            }
            // The launcher has ended in the middle.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break Ok(()),
            Err(error) => break Err(error),
        };
        match message {
            ToEgress::Attach { sandbox, pool, nonce, counter, rules } => {
                let (secrets, unusable) = entrusted(&common.secrets, &pool, &nonce, &rules);
                let own = rules.secrets.clone().filter(|_| unusable.is_none());
                let (rules, problem) = understood(&rules);
                let problem = problem.or(unusable);
                let id = SandboxId(sandbox).to_string();
                let new = Sandbox::new(&id, &pool, rules, counters.counter(counter), common.clone());
                new.entrust(secrets);
                if let Some(problem) = problem {
                    tracing::error!(sandbox = id, pool, "its rules cannot be used, so it reaches nothing: {problem}");
                }
                match new.serve(listeners) {
                    Ok(()) => {
                        if let Some(old) = sandboxes.insert(sandbox, Here { pool, nonce, own, sandbox: new }) {
                            leaving.spawn(async move { old.sandbox.end().await });
                        }
                    }
                    Err(error) => tracing::error!(sandbox = id, pool, "its listeners cannot be served: {error}"),
                }
            }
            ToEgress::Rule { sandbox, number, rules } => {
                let problem = match sandboxes.get_mut(&sandbox) {
                    // After a problem, what was before holds: it was narrower than the pool.
                    Some(here) => here.rule(&common.secrets, &rules).err(),
                    None => Some("the sandbox is not here".to_owned()),
                };
                answer(&control, &FromEgress::Ruled { number, problem }).await?;
            }
            ToEgress::Detach { sandbox } => {
                if let Some(old) = sandboxes.remove(&sandbox) {
                    leaving.spawn(async move { old.sandbox.end().await });
                }
            }
        }
    };
    for (_, old) in sandboxes {
        leaving.spawn(async move { old.sandbox.end().await });
    }
    leaving.join_all().await;
    result
}

/// A sandbox that is served.
struct Here {
    pool: String,
    nonce: Nonce,
    /// Its session's own secrets, as they came.
    own: Option<Vec<u8>>,
    sandbox: Arc<Sandbox>,
}

impl Here {
    /// From now on it has these rules. Its secrets, and the certificates that were made for their hosts, stay where they are the same.
    fn rule(&mut self, secrets: &Secrets, rules: &wire::Rules) -> Result<(), String> {
        let others = match self.own == rules.secrets {
            true => None,
            false => Some(entrusted(secrets, &self.pool, &self.nonce, rules)),
        };
        let parsed = Rules::decode(rules)?;
        if let Some((secrets, unusable)) = others {
            unusable.map_or(Ok(()), Err)?;
            self.sandbox.entrust(secrets);
            self.own.clone_from(&rules.secrets);
        }
        self.sandbox.rule(parsed);
        Ok(())
    }
}

/// The secrets that a sandbox has by these rules, or its pool's alone and why.
fn entrusted(
    secrets: &Secrets,
    pool: &str,
    nonce: &Nonce,
    rules: &wire::Rules,
) -> (Option<Arc<SandboxSecrets>>, Option<String>) {
    let own = rules.secrets.as_deref().map_or(Ok(Vec::new()), SecretValue::decode);
    match own.and_then(|own| secrets.of(pool, nonce, &own)) {
        Ok(secrets) => (secrets, None),
        Err(problem) => (secrets.of(pool, nonce, &[]).ok().flatten(), Some(problem)),
    }
}

/// Rules, or those under which nothing is reached, and why.
fn understood(rules: &wire::Rules) -> (Rules, Option<String>) {
    match Rules::decode(rules) {
        Ok(rules) => (rules, None),
        Err(problem) => (Rules::default(), Some(problem)),
    }
}

async fn answer(control: &AsyncFd<OwnedFd>, message: &FromEgress) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    loop {
        let mut ready = control.writable().await?;
        match packet::send(control.get_ref(), &bytes, &[]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            // The next look at the socket shows that the launcher is gone.
            _ => return Ok(()),
        }
    }
}
