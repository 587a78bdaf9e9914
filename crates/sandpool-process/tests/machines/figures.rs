//! Figures of machines, printed when `SANDPOOL_TEST_FIGURES` is set. Nothing here is judged by time.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandpool_core::ids::{PoolName, SandboxId};
use sandpool_driver::{Driver, Start, Template};
use sandpool_wire::agent::Runtime;

use super::bare::{Outcome, code, shell};
use super::given;

/// How often each is done.
const ROUNDS: u8 = 5;

/// Machines whose memory is looked at together.
const TOGETHER: u8 = 6;

/// From the wish for a machine to its first answer, from a template and without one; and what machines from one template take of memory.
pub(crate) async fn figures(driver: &Arc<dyn Driver>, warm: &Template, killer: &UnixStream) -> Outcome<()> {
    let pool = PoolName::parse(&format!("{}-cold", warm.pool))?;
    let cold = Template { pool, start: Start::Cold, ..warm.clone() };
    driver.ensure_pool(&cold).await?;
    let mut medians = Vec::new();
    for (name, template) in [("from a template", warm), ("booted", &cold)] {
        let mut took = Vec::new();
        for round in 0..ROUNDS {
            let which = id(template, round);
            let began = Instant::now();
            given(driver, template, which).await?;
            let is_ready = began.elapsed();
            answer(driver, template, which).await?;
            took.push((began.elapsed(), is_ready));
            driver.destroy(which).await?;
        }
        took.sort_unstable();
        let (answered, is_ready) = took[took.len() / 2];
        println!("figure {} {name}: first answer after {answered:?}, ready after {is_ready:?}; {took:?}", warm.pool);
        medians.push(answered);
    }
    println!("figure {}: a template is {:.1} times as fast", warm.pool, ratio(medians[1], medians[0]));
    for number in 0..TOGETHER {
        let which = id(warm, 100 + number);
        given(driver, warm, which).await?;
        answer(driver, warm, which).await?;
        println!(
            "figure {}: control groups of machine {number}: {} KiB",
            warm.pool,
            driver.usage(which).await?.memory >> 10
        );
    }
    let mut killer = killer;
    killer.write_all(b"?")?;
    killer.read_exact(&mut [0])?;
    for number in 0..TOGETHER {
        driver.destroy(id(warm, 100 + number)).await?;
    }
    Ok(())
}

fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}

fn id(template: &Template, number: u8) -> SandboxId {
    let mut id = [0xf1; 16];
    id[..3].copy_from_slice(&[template.runtime as u8, number, template.start as u8]);
    SandboxId(id)
}

async fn answer(driver: &Arc<dyn Driver>, template: &Template, which: SandboxId) -> Outcome<()> {
    let said = match template.runtime {
        Runtime::Shell => shell(driver.as_ref(), which, "echo 4").await?,
        Runtime::Node => code(driver.as_ref(), which, "console.log(4)").await?,
        Runtime::Python | Runtime::Container => {
            code(driver.as_ref(), which, "import numpy; print(numpy.arange(5)[4])").await?
        }
    };
    assert_eq!(said, "4\n");
    Ok(())
}

/// What the VMMs of this launcher take of memory, for whoever may look.
pub(crate) fn look() -> Outcome<()> {
    let launcher = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().to_string()).unwrap_or_default();
    let mut parents = std::collections::HashMap::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some(parent) = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)) {
            parents.insert(entry.file_name().to_string_lossy().into_owned(), parent.to_owned());
        }
    }
    for (pid, parent) in &parents {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if parents.get(parent) != Some(&launcher) || !name.starts_with("qemu") {
            continue;
        }
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let of = |name: &str| -> u64 {
            let lines = rollup
                .lines()
                .filter_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
            lines.sum()
        };
        println!(
            "figure VMM: RSS {} KiB, PSS {} KiB, private {} KiB",
            of("Rss:"),
            of("Pss:"),
            of("Private_Clean:") + of("Private_Dirty:")
        );
    }
    Ok(())
}
