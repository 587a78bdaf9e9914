//! The in-memory driver keeps the contract that every driver keeps.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use sandpool_core::ids::{PoolName, SandboxId};
use sandpool_core::limits::Limits;
use sandpool_driver::contract::{Harness, run};
use sandpool_driver::memory::{Memory, MemoryConfig, MemoryDriver};
use sandpool_driver::{Driver, GoneReason, Start, Template};
use sandpool_wire::agent::{Runtime, Stdin, Work};

struct InMemory {
    memory: Memory,
    driver: Mutex<Arc<MemoryDriver>>,
}

#[async_trait]
impl Harness for InMemory {
    fn driver(&self) -> Arc<dyn Driver> {
        self.driver.lock().unwrap().clone()
    }

    fn template(&self) -> Template {
        Template {
            pool: PoolName::parse("pool").unwrap(),
            runtime: Runtime::Shell,
            rootfs: "/nowhere".into(),
            limits: Limits::default(),
            boot_limit: Duration::from_secs(20),
            local_servers: true,
            main: None,
            start: Start::default(),
            egress: None,
        }
    }

    fn endless(&self) -> Work {
        Work::Shell { command: "out on\nwait".to_owned(), stdin: Stdin::Empty }
    }

    fn changes_kept(&self) -> usize {
        MemoryConfig::default().changes
    }

    async fn kill(&self, id: SandboxId) {
        assert!(self.memory.kill(id, GoneReason::Died("it was killed".to_owned())));
    }

    async fn restart(&self) -> bool {
        *self.driver.lock().unwrap() = self.memory.driver();
        true
    }

    async fn reboot(&self, id: SandboxId) -> bool {
        self.memory.reboot(id)
    }
}

async fn check(late: Duration) {
    let memory = Memory::new(MemoryConfig::default());
    let driver = Mutex::new(memory.driver());
    memory.answer_late(late);
    run(&InMemory { memory, driver }).await;
}

#[tokio::test(start_paused = true)]
async fn sandboxes_in_memory_keep_the_contract() {
    check(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn they_keep_it_when_every_answer_is_late() {
    check(Duration::from_millis(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn they_keep_it_on_many_threads() {
    check(Duration::ZERO).await;
}
