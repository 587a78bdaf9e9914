//! The in-memory driver keeps the contract that every driver keeps.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use sandpool_core::ids::{PoolName, SandboxId};
use sandpool_core::limits::Limits;
use sandpool_driver::contract::{Harness, run};
use sandpool_driver::levels::Levels;
use sandpool_driver::memory::{Memory, MemoryConfig};
use sandpool_driver::{Description, Driver, DriverError, GoneReason, Isolation, OciRuntime, Start, Template};
use sandpool_wire::agent::{Runtime, Stdin, Work};

struct InMemory {
    memory: Memory,
    driver: Mutex<Arc<dyn Driver>>,
    /// Another level's, which has no part in it.
    other: Option<Memory>,
    isolation: Isolation,
}

impl InMemory {
    fn new(memory: Memory, other: Option<Memory>) -> Self {
        let driver = Mutex::new(Self::joined(&memory, other.as_ref()));
        Self { memory, driver, other, isolation: Isolation::default() }
    }

    /// The driver that a server has.
    fn joined(memory: &Memory, other: Option<&Memory>) -> Arc<dyn Driver> {
        let driver: Arc<dyn Driver> = memory.driver();
        match other {
            None => driver,
            Some(other) => {
                Arc::new(Levels::new(vec![(vec!["container"], other.driver()), (vec!["process", "microvm"], driver)]))
            }
        }
    }
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
            isolation: self.isolation,
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
        *self.driver.lock().unwrap() = Self::joined(&self.memory, self.other.as_ref());
        true
    }

    async fn reboot(&self, id: SandboxId) -> bool {
        self.memory.reboot(id)
    }
}

async fn check(late: Duration) {
    let memory = Memory::new(MemoryConfig::default());
    memory.answer_late(late);
    run(&InMemory::new(memory, None)).await;
}

#[tokio::test(start_paused = true)]
async fn drivers_of_several_levels_keep_it_together() {
    let (memory, other) = (Memory::new(MemoryConfig::default()), Memory::new(MemoryConfig::default()));
    run(&InMemory::new(memory, Some(other))).await;
}

#[tokio::test(start_paused = true)]
async fn sandboxes_that_keep_all_of_a_machine_keep_it_too() {
    for other in [None, Some(Memory::new(MemoryConfig::default()))] {
        let harness = InMemory::new(Memory::new(MemoryConfig::default()), other);
        run(&InMemory { isolation: Isolation::Microvm, ..harness }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_of_its_level_and_of_no_other() {
    let (one, two) = (Memory::new(MemoryConfig::default()), Memory::new(MemoryConfig::default()));
    let template = InMemory::new(one.clone(), None).template();
    let (one, two): (Arc<dyn Driver>, Arc<dyn Driver>) = (one.driver(), two.driver());
    let both = || Levels::new(vec![(vec!["process"], Arc::clone(&one)), (vec!["container"], Arc::clone(&two))]);
    let levels = both();
    let contained = Template {
        pool: PoolName::parse("contained").unwrap(),
        isolation: Isolation::Container(Some(OciRuntime::Runsc)),
        ..template.clone()
    };
    for template in [&template, &contained] {
        levels.ensure_pool(template).await.unwrap();
        let Description { level, .. } = levels.describe_pool(&template.pool);
        assert!(level.starts_with("memory"), "{level}");
    }
    let (here, there) = (SandboxId([1; 16]), SandboxId([2; 16]));
    levels.create(here, &template.pool).await.unwrap();
    levels.create(there, &contained.pool).await.unwrap();
    let of = async |driver: &Arc<dyn Driver>| -> Vec<SandboxId> {
        driver.list().await.unwrap().iter().map(|sandbox| sandbox.id).collect()
    };
    assert_eq!((of(&one).await, of(&two).await), (vec![here], vec![there]));
    assert_eq!(levels.list().await.unwrap().len(), 2);
    assert!(matches!(levels.create(here, &contained.pool).await, Err(DriverError::Conflict(_))));
    // A server that has just started knows of neither, and finds both.
    let later = both();
    later.usage(there).await.unwrap();
    later.destroy(here).await.unwrap();
    later.destroy(there).await.unwrap();
    assert!(of(&one).await.is_empty() && of(&two).await.is_empty());
    // What no driver makes is refused, and says so.
    let only = Levels::new(vec![(vec!["process"], Arc::clone(&one))]);
    let refused = only.ensure_pool(&contained).await.unwrap_err().to_string();
    assert!(refused.contains("container"), "{refused}");
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
