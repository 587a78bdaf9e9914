//! The level of machines: sandboxes of the process level, each around a VMM, whose image has a kernel of its own.
//!
//! Launcher, control socket and agents are those of the process level: who a sandbox belongs to, how it is dialled and how it
//! ends is the same. What is different is what runs inside, and which wall that is.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use sandpool_core::ids::{PoolName, SandboxId};
use sandpool_driver::{Change, Description, Driver, DriverError, Owner, Sandbox, Stream, Template, Usage};
use sandpool_wire::agent::Activation;
use sandpool_wire::egress::{Policy, SecretValue};
use tokio::sync::broadcast;

use super::ProcessDriver;

/// The level's name where the processor is emulated.
pub const EMULATED: &str = "microvm-emulated (not a boundary)";

/// What machines of this host are made from.
#[derive(Clone, Debug)]
pub struct Machines {
    /// The VMM's root, below the images.
    pub root: PathBuf,
    /// Where images are as block devices: `<directory>/<name of the root file system>.erofs`.
    pub disks: PathBuf,
    /// The VMM, as it names itself.
    pub vmm: String,
    /// The guests' kernel.
    pub kernel: String,
}

impl Machines {
    /// An image as a block device.
    #[must_use]
    pub fn disk(&self, rootfs: &std::path::Path) -> PathBuf {
        let mut name = rootfs.file_name().unwrap_or_default().to_owned();
        name.push(".erofs");
        self.disks.join(name)
    }
}

/// Makes machines, through the launcher.
#[derive(Debug)]
pub struct MachineDriver {
    sandboxes: Arc<ProcessDriver>,
    machines: Machines,
}

impl MachineDriver {
    /// Over the launcher's sandboxes.
    #[must_use]
    pub fn new(sandboxes: Arc<ProcessDriver>, machines: Machines) -> Self {
        Self { sandboxes, machines }
    }
}

#[async_trait]
impl Driver for MachineDriver {
    fn describe(&self) -> Description {
        let around = self.sandboxes.describe();
        let mut wall = vec![format!("guest kernel: {}, in {} (emulated)", self.machines.kernel, self.machines.vmm)];
        wall.extend(around.wall.into_iter().map(|line| format!("around the VMM and inside the guest: {line}")));
        let emulated = "the processor is emulated: no maker of a VMM promises that such a guest cannot get out. What holds it \
                        then are the walls of the process level around the VMM.";
        let weaker = std::iter::once(emulated.to_owned()).chain(around.weaker).collect();
        Description { level: EMULATED.to_owned(), wall, weaker }
    }

    async fn ensure_pool(&self, template: &Template) -> Result<(), DriverError> {
        let image = self.machines.disk(&template.rootfs);
        self.sandboxes.ensure(template, Some((&self.machines.root, &image))).await
    }

    async fn remove_pool(&self, pool: &PoolName) -> Result<(), DriverError> {
        self.sandboxes.remove_pool(pool).await
    }

    async fn create(&self, id: SandboxId, pool: &PoolName) -> Result<(), DriverError> {
        self.sandboxes.create(id, pool).await
    }

    async fn assign(&self, id: SandboxId, owner: &Owner) -> Result<(), DriverError> {
        self.sandboxes.assign(id, owner).await
    }

    async fn activate(&self, id: SandboxId, activation: &Activation) -> Result<(), DriverError> {
        self.sandboxes.activate(id, activation).await
    }

    async fn give(&self, id: SandboxId, owner: &Owner, activation: &Activation) -> Result<Stream, DriverError> {
        self.sandboxes.give(id, owner, activation).await
    }

    async fn destroy(&self, id: SandboxId) -> Result<(), DriverError> {
        self.sandboxes.destroy(id).await
    }

    async fn list(&self) -> Result<Vec<Sandbox>, DriverError> {
        self.sandboxes.list_those(true).await
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        self.sandboxes.machine_changes.subscribe()
    }

    async fn dial(&self, id: SandboxId) -> Result<Stream, DriverError> {
        self.sandboxes.dial(id).await
    }

    async fn connect(&self, id: SandboxId, port: u16) -> Result<Stream, DriverError> {
        self.sandboxes.connect(id, port).await
    }

    async fn usage(&self, id: SandboxId) -> Result<Usage, DriverError> {
        self.sandboxes.usage(id).await
    }

    async fn narrow(&self, id: SandboxId, policy: Option<&Policy>) -> Result<(), DriverError> {
        self.sandboxes.narrow(id, policy).await
    }

    async fn entrust(&self, id: SandboxId, secrets: &[SecretValue]) -> Result<(), DriverError> {
        self.sandboxes.entrust(id, secrets).await
    }

    async fn narrowed(&self, id: SandboxId) -> Result<Option<Policy>, DriverError> {
        self.sandboxes.narrowed(id).await
    }
}
