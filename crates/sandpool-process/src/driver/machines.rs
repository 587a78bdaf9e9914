//! The level of machines, as the driver sees it: sandboxes of the process level, each around a VMM, whose image has a kernel of its own.
//!
//! Launcher, control socket and agents are those of the process level: who a sandbox belongs to, how it is dialled and how it
//! ends is the same. What is different is what runs inside, and which wall that is.

use std::io;
use std::path::Path;

use sandpool_driver::{Description, DriverError, Template};
use sandpool_vm::prepared::Prepared;

use super::ProcessDriver;

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

/// The wall around such machines.
pub(super) fn describe(prepared: &Prepared) -> Description {
    let around = crate::host::describe();
    let how = if prepared.is_emulated { " (emulated)" } else { "" };
    let mut wall = vec![format!("guest kernel: {}, in {}{how}", prepared.kernel, prepared.vmm)];
    wall.extend(around.wall.into_iter().map(|line| format!("around the VMM and inside the guest: {line}")));
    let emulated = "the processor is emulated: no maker of a VMM promises that such a guest cannot get out. What holds it then are the walls \
                    of the process level around the VMM.";
    let emulated = prepared.is_emulated.then(|| emulated.to_owned());
    Description { level: prepared.level(), wall, weaker: emulated.into_iter().chain(around.weaker).collect() }
}
