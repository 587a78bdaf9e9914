use std::sync::Mutex;

use sandpool_core::limits::Limits;
use sandpool_driver::Start;
use sandpool_driver::contract::{Harness, run};
use sandpool_driver::memory::{Memory, MemoryConfig};
use sandpool_wire::agent::{Runtime, Stdin, Work};

use super::*;

#[test]
fn a_duration_is_in_the_bucket_of_the_first_bound_that_it_is_not_over() {
    let histogram = Histogram::default();
    for (took, bound) in [(0, 0.001), (1_000, 0.001), (1_001, 0.002), (999_999, 1.0), (3_600_000_001, f64::INFINITY)] {
        let before = histogram.read();
        histogram.add(Duration::from_micros(took));
        let after = histogram.read();
        let grown: Vec<_> = before.buckets.iter().zip(&after.buckets).filter(|(one, other)| one != other).collect();
        assert_eq!(grown.len(), 1, "{took}");
        assert_eq!(grown[0].1.0.to_string(), bound.to_string(), "{took}");
        assert_eq!(after.count, before.count + 1);
    }
    assert!((histogram.read().sum - 3_601.002_001).abs() < 1e-3, "{}", histogram.read().sum);
}

#[test]
fn every_word_has_its_own_place() {
    let tally = Tally::default();
    for why in [Loss::Died, Loss::OutOfMemory, Loss::Restart, Loss::Restart] {
        tally.add(why);
    }
    let counted: Vec<_> = tally.read().into_iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counted, [("died", 1), ("outOfMemory", 1), ("restart", 2)]);
    assert_eq!(RESOURCES.map(word).iter().collect::<std::collections::BTreeSet<_>>().len(), RESOURCES.len());
}

/// Sandboxes in memory, by a driver whose calls are counted.
struct InMemory {
    memory: Memory,
    driver: Mutex<(Arc<dyn Driver>, Arc<Calls>)>,
}

#[async_trait]
impl Harness for InMemory {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::clone(&self.driver.lock().unwrap().0)
    }

    fn template(&self) -> Template {
        Template {
            pool: PoolName::parse("pool").unwrap(),
            runtime: Runtime::Shell,
            rootfs: "/nowhere".into(),
            limits: Limits::default(),
            boot_limit: Duration::from_secs(20),
            isolation: sandpool_driver::Isolation::default(),
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
        *self.driver.lock().unwrap() = counted(self.memory.driver());
        true
    }

    async fn reboot(&self, id: SandboxId) -> bool {
        self.memory.reboot(id)
    }
}

#[tokio::test(start_paused = true)]
async fn a_driver_whose_calls_are_counted_keeps_the_contract() {
    let memory = Memory::new(MemoryConfig::default());
    let driver = Mutex::new(counted(memory.driver()));
    run(&InMemory { memory, driver }).await;
}

#[tokio::test(start_paused = true)]
async fn calls_are_counted_with_what_came_of_them() {
    let memory = Memory::new(MemoryConfig::default());
    let (driver, calls) = counted(memory.driver());
    memory.answer_late(Duration::from_millis(30));
    driver.list().await.unwrap();
    memory.refuse(1);
    driver.list().await.unwrap_err();
    driver.create(SandboxId([1; 16]), &PoolName::parse("none").unwrap()).await.unwrap_err();
    let of = |operation: Operation| CallMetrics::of("", &calls.each[operation.place()]);
    let answers = |operation| of(operation).answers.into_iter().filter(|(_, count)| *count > 0).collect::<Vec<_>>();
    assert_eq!(answers(Operation::List), [("done", 1), ("unavailable", 1)]);
    assert_eq!(answers(Operation::Create), [("invalid", 1)]);
    assert_eq!(answers(Operation::Destroy), []);
    assert!((0.03..0.07).contains(&of(Operation::List).took.sum), "{:?}", of(Operation::List).took);
}
