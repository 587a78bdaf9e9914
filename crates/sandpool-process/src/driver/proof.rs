//! The container level, as the driver sees it: the proof of a pool's wall, and what is told of it.

use std::io;
use std::time::Duration;

use sandpool_core::ids::{PoolName, SandboxId};
use sandpool_driver::{Change, Description, DriverError, GoneReason, OciRuntime};
use sandpool_wire::agent::{FromAgent, PROTOCOL};
use tokio::sync::broadcast::error::RecvError;

use super::{ProcessDriver, unavailable};
use crate::control::{self, Answer, Call, MadeBy, Purpose};
use crate::oci;

/// How long the launcher may take to tell why a sandbox ended.
const REASON: Duration = Duration::from_secs(10);

impl ProcessDriver {
    /// Makes one container as a pool's sandboxes will be made, which no session gets, and hears from its agent that the wall is what it must
    /// be: an agent that finds it weaker does not begin. `call` declares the pool of the proof.
    ///
    /// # Errors
    /// `Invalid` with the reason, for a runtime that cannot be used or a wall that is weaker.
    pub(super) async fn prove(&self, pool: &PoolName, call: Call, limit: Duration) -> Result<(), DriverError> {
        let made_by = match self.ask(call).await?.0 {
            Answer::Pool { made_by: Some(made_by), .. } => made_by,
            _ => return Err(unavailable(&"the launcher answered something else")),
        };
        let proved = self.prove_once(pool, limit).await;
        self.ask(Call::RemovePool { pool: control::of_proof(pool.as_str()) }).await?;
        proved.map_err(|why| {
            let level = oci::level(made_by.runtime, &made_by.version);
            DriverError::Invalid(format!("the wall of {level} could not be proved: {why}"))
        })
    }

    async fn prove_once(&self, pool: &PoolName, limit: Duration) -> Result<(), String> {
        let mut id = [0; 16];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).map_err(|error| error.to_string())?;
        let mut changes = self.changes.subscribe();
        let create = Call::Create { id, pool: control::of_proof(pool.as_str()), purpose: Purpose::Proof };
        self.ask(create).await.map_err(|error| error.to_string())?;
        let heard = tokio::time::timeout(limit, async {
            let mut stream = self.dial_new(SandboxId(id)).await.map_err(io::Error::other)?;
            super::boot::next(&mut stream, &mut Vec::new()).await
        });
        let heard = match heard.await {
            Ok(Ok(FromAgent::Hello { protocol: PROTOCOL, .. })) => Ok(()),
            Ok(Ok(_)) => Err("its agent said something else than hello".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("its agent said nothing in {} s", limit.as_secs())),
        };
        let Err(why) = heard else {
            return self.ask(Call::Destroy { id }).await.map(drop).map_err(|error| error.to_string());
        };
        // When it has ended by itself, the launcher has the better reason.
        let ended = tokio::time::timeout(REASON, async {
            loop {
                match changes.recv().await {
                    Ok(Change::Gone { id: gone, reason }) if gone == SandboxId(id) => return Some(reason),
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        match ended.await {
            Ok(Some(GoneReason::BootFailed(said) | GoneReason::Died(said))) => Err(said.trim().to_owned()),
            Ok(Some(GoneReason::OutOfMemory)) => Err("it has too little memory".to_owned()),
            Ok(Some(GoneReason::Destroyed) | None) | Err(_) => {
                // What does not end by itself ends now; that it did not begin is what counts.
                let _ = self.ask(Call::Destroy { id }).await;
                Err(why)
            }
        }
    }
}

impl MadeBy {
    /// The wall around sandboxes that are made so.
    pub(super) fn describe(&self, leads_out: bool) -> Description {
        let Description { wall, mut weaker, .. } = crate::host::describe();
        let Self { runtime, version, below_floor } = self;
        let is_own = *runtime == OciRuntime::Runsc;
        let replaced = |line: &str| -> Option<String> {
            let subject = line.split(':').next().unwrap_or_default();
            match subject {
                "namespaces" => Some(format!(
                    "runtime: {} {version}, as root of the sandbox's own user namespace and nobody outside, in namespaces of its own: user, pid, \
                     mount, network, ipc, uts, cgroup; the sandbox in further ones: pid, mount, ipc, uts",
                    runtime.word()
                )),
                "seccomp" if is_own => {
                    Some("kernel: gVisor's (systrap) in front of the host's, which no program of the sandbox calls".to_owned())
                }
                "landlock" if is_own => None,
                "seccomp" => Some(format!("{line}; the list once more by the runtime")),
                "network" if is_own && leads_out => {
                    Some("network: sockets of the host's kernel, in the sandbox's own namespace, whose every address leads to its way out".to_owned())
                }
                "network" if is_own => Some("network: loopback only, gVisor's own".to_owned()),
                _ => Some(line.to_owned()),
            }
        };
        let wall = wall.iter().filter_map(|line| replaced(line)).collect();
        if is_own {
            weaker.retain(|line| !line.starts_with("Landlock"));
        }
        if *runtime == OciRuntime::Crun {
            let why = "crun mounts the root anew, without nosuid and nodev: that programs gain no privileges, and that its devices are a user \
                       namespace's, makes both of no effect";
            weaker.push(why.to_owned());
        }
        if let Some(why) = below_floor {
            weaker.insert(0, format!("ACCEPTED BELOW ITS FLOOR by this host's operator: {why}"));
        }
        Description { level: oci::level(*runtime, version), wall, weaker }
    }
}
