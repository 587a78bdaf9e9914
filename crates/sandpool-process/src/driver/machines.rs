//! The level of machines, as the driver sees it: sandboxes of the process level, each around a VMM, whose image has a kernel of its own.
//!
//! Launcher, control socket and agents are those of the process level: who a sandbox belongs to, how it is dialled and how it
//! ends is the same. What is different is what runs inside, and which wall that is.

use std::io;
use std::path::Path;
use std::time::Instant;

use sandpool_core::ids::PoolName;
use sandpool_driver::{Description, Driver, DriverError, Start, Template};
use sandpool_vm::identity::{Identity, Probe};
use sandpool_vm::prepared::Prepared;

use super::ProcessDriver;
use super::boot::MACHINE;
use crate::control::{self, Call};

/// Prepares what machines need on this host, and this image's root file system as a block device. Waits for it.
///
/// # Errors
/// Why that cannot be, for people.
pub type Prepare = dyn Fn(&Path) -> Result<(), String> + Send + Sync;

impl ProcessDriver {
    /// Has machines prepared so, when a pool asks for them and they are not. Once; without it, they must be there already.
    pub fn prepare_machines_with(&self, prepare: Box<Prepare>) {
        // A second one has nothing that the first had not.
        let _ = self.prepare.set(prepare);
    }

    /// What a pool of machines is made from: what is prepared, and its image as a block device.
    pub(super) async fn machine_of(&self, template: &Template) -> Result<(Prepared, String), DriverError> {
        if self.prepare.get().is_some() {
            let (driver, rootfs) = (self.shared()?, template.rootfs.clone());
            let prepared = tokio::task::spawn_blocking(move || driver.prepare.get().map(|prepare| prepare(&rootfs)));
            if let Ok(Some(Err(why))) = prepared.await {
                return Err(DriverError::Invalid(why));
            }
        }
        let prepared = Prepared::read(&self.images).map_err(|error| {
            DriverError::Invalid(match error.kind() {
                io::ErrorKind::NotFound => {
                    "nothing is prepared for machines on this host: sandpool doctor says what is missing".to_owned()
                }
                _ => format!("what machines are made of cannot be read: {error}"),
            })
        })?;
        if !template.local_servers && !prepared.forbids_ports() {
            let why = format!(
                "localServers: false needs a guest kernel from 6.7 on, whose Landlock can forbid ports; here it is {}",
                prepared.kernel
            );
            return Err(DriverError::Invalid(why));
        }
        let disk = Prepared::disk(&template.rootfs);
        let disk =
            disk.to_str().ok_or_else(|| DriverError::Invalid(format!("the path {} is not UTF-8", disk.display())))?;
        Ok((prepared, disk.to_owned()))
    }
}

/// A pool of machines, as far as more than its template is known.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    prepared: Prepared,
    /// What showed that the kernel inside is another than the host's. A template that a server before this one made was proved by that one.
    proof: Option<Vec<Probe>>,
}

impl ProcessDriver {
    /// Makes one machine as a pool's will be made, which no session gets, and sees that its kernel is another than the host's; unless that is
    /// known of the pool, or will be seen when its template is made. `call` declares the pool of the proof.
    ///
    /// # Errors
    /// `Invalid` where there can be no machine, or it is not proved.
    pub(super) async fn try_machine(
        &self,
        template: &Template,
        prepared: Prepared,
        call: Call,
    ) -> Result<Pool, DriverError> {
        {
            let state = self.state();
            let known = state.machines.get(&template.pool).filter(|known| known.prepared == prepared);
            match (known, state.templates.get(&template.pool)) {
                (Some(known), Some(before)) if before == template => return Ok(known.clone()),
                (_, None) if template.start == Start::Zygote => return Ok(Pool { prepared, proof: None }),
                _ => {}
            }
        }
        let pool = control::of_proof(template.pool.as_str());
        self.ask(call).await?;
        let said = self.frozen(&pool, false, MACHINE).await;
        self.ask(Call::RemovePool { pool }).await?;
        let proof = Some(judge(&prepared, said?)?);
        Ok(Pool { prepared, proof })
    }

    /// Makes the template from which a pool's machines go on. A pool for which there is none has none of its machines either.
    ///
    /// # Errors
    /// As [`ProcessDriver::try_machine`]. The pool is forgotten then.
    pub(super) async fn make_template(&self, pool: &PoolName, machine: Pool) -> Result<(), DriverError> {
        let began = Instant::now();
        let said = self.frozen(pool.as_str(), true, MACHINE).await?;
        let proof = match judge(&machine.prepared, said) {
            Ok(proof) => proof,
            Err(error) => {
                self.remove_pool(pool).await?;
                return Err(error);
            }
        };
        tracing::info!(%pool, took = ?began.elapsed(), "the template of its machines is made");
        self.state().machines.insert(pool.clone(), Pool { proof: Some(proof), ..machine });
        if self.state().fresh.insert(pool.clone()) {
            tokio::spawn(Self::keep_zygote_fresh(self.this.clone(), pool.clone()));
        }
        Ok(())
    }
}

/// What shows that a machine's kernel is another than the host's, of what its keeper said of it.
fn judge(prepared: &Prepared, said: Result<String, String>) -> Result<Vec<Probe>, DriverError> {
    let refused = |why: String| DriverError::Invalid(format!("no machine can be made: {why}"));
    let identity = said.and_then(|said| {
        let identity = serde_json::from_str::<Identity>(&said);
        identity.map_err(|error| format!("it does not say whose kernel it runs: {error}"))
    });
    let proof = identity.map_err(refused)?.judge(&prepared.host, &prepared.kernel);
    match proof.iter().find(|probe| !probe.holds) {
        None => Ok(proof),
        Some(Probe { name, inside, outside, .. }) => Err(refused(format!(
            "its kernel is not proved to be another than the host's: {name} is {inside:?} there, which was compared with {outside:?}"
        ))),
    }
}

/// The wall around such machines.
pub(super) fn describe(pool: &Pool) -> Description {
    let Pool { prepared, proof } = pool;
    let around = crate::host::describe();
    let how = if prepared.is_emulated { " (emulated)" } else { "" };
    let mut wall = vec![format!("guest kernel: {}, in {}{how}", prepared.kernel, prepared.vmm)];
    wall.push(match proof {
        Some(probes) => {
            let said: Vec<_> = probes.iter().map(|probe| format!("{} {}", probe.name, probe.inside)).collect();
            format!("kernel: proved to be another than the host's when this pool was made: {}", said.join("; "))
        }
        None => "kernel: proved to be another than the host's by the server that made this pool's template".to_owned(),
    });
    wall.extend(around.wall.into_iter().map(|line| format!("around the VMM and inside the guest: {line}")));
    let emulated = "the processor is emulated: no maker of a VMM promises that such a guest cannot get out. What holds it then are the walls \
                    of the process level around the VMM.";
    let emulated = prepared.is_emulated.then(|| emulated.to_owned());
    Description { level: prepared.level(), wall, weaker: emulated.into_iter().chain(around.weaker).collect() }
}
