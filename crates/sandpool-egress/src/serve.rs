//! The proxy as a process: what the launcher hands it, sandbox by sandbox.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use sandpool_core::ids::SandboxId;
use sandpool_sys::packet;
use sandpool_wire::egress::{self as wire, FromEgress, ToEgress};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;

use crate::audit;
use crate::dial::Dialler;
use crate::policy::Rules;
use crate::sandbox::{Common, Limits, Sandbox};
use crate::secrets::Secrets;

/// The largest packet of the launcher, in bytes: rules, and a few names.
const MAX_PACKET: usize = 64 * 1024;

/// Serves sandboxes until the launcher is gone. Decisions are recorded in `records`, a directory that this process may write
/// to.
///
/// # Errors
/// When the record cannot be opened, or the launcher cannot be understood.
pub async fn serve(control: OwnedFd, records: &Path, limits: Limits) -> io::Result<()> {
    let (audit, writer) = audit::open(records)?;
    let writer = tokio::spawn(writer.run());
    // Without them sandboxes go on with what they may reach; who counts on a secret is refused by its host, and the log says why.
    let secrets = Secrets::read(records).unwrap_or_else(|why| {
        tracing::error!("the secrets cannot be used: {why}");
        Secrets::default()
    });
    let common = Common { dialler: Dialler::default(), audit, limits, secrets: Arc::new(secrets) };
    let served = listen(control, common).await;
    // Every sandbox has ended, and with it every hand that writes.
    let _ = writer.await;
    served
}

async fn listen(control: OwnedFd, common: Common) -> io::Result<()> {
    #[expect(deprecated, reason = "what it fears is a descriptor that changes; an `OwnedFd` does not")]
    let control = AsyncFd::new(control)?;
    let mut sandboxes: HashMap<[u8; 16], Arc<Sandbox>> = HashMap::new();
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
            ToEgress::Attach { sandbox, pool, rules } => {
                let (rules, problem) = understood(&rules);
                let id = SandboxId(sandbox).to_string();
                let new = Sandbox::new(&id, &pool, rules, common.clone());
                if let Some(problem) = problem {
                    tracing::error!(sandbox = id, pool, "its rules cannot be used, so it reaches nothing: {problem}");
                }
                match new.serve(listeners) {
                    Ok(()) => {
                        if let Some(old) = sandboxes.insert(sandbox, new) {
                            leaving.spawn(async move { old.end().await });
                        }
                    }
                    Err(error) => tracing::error!(sandbox = id, pool, "its listeners cannot be served: {error}"),
                }
            }
            ToEgress::Rule { sandbox, number, rules } => {
                let (rules, mut problem) = understood(&rules);
                match (sandboxes.get(&sandbox), &problem) {
                    (Some(sandbox), None) => sandbox.rule(rules),
                    // What was before was narrower than the pool, and that still holds.
                    (Some(_), Some(_)) => {}
                    (None, _) => problem = Some("the sandbox is not here".to_owned()),
                }
                answer(&control, &FromEgress::Ruled { number, problem }).await?;
            }
            ToEgress::Detach { sandbox } => {
                if let Some(old) = sandboxes.remove(&sandbox) {
                    leaving.spawn(async move { old.end().await });
                }
            }
        }
    };
    for (_, old) in sandboxes {
        leaving.spawn(async move { old.end().await });
    }
    leaving.join_all().await;
    result
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
