//! Machines that go on from one template have nothing in common of what must not be drawn twice.
//!
//! `SANDPOOL_TEST_CLONES` says how many there are in all; they come in batches.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use sandpool_core::ids::SandboxId;
use sandpool_driver::{Driver, Template};
use sandpool_wire::agent::Runtime;

use super::bare::{Outcome, code, shell};
use super::given;

/// Machines of each runtime, when nobody says how many.
const CLONES: u16 = 16;

/// Machines at one time.
const BATCH: u16 = 4;

/// Seconds by which a clock may be wrong. What lies between its setting and its reading counts, on a host that is busy.
const CLOCK: u64 = 30;

/// Prints the time, what all of them have in common, and then one draw a line.
const PYTHON: &str = r#"
import time, os, random, secrets, ssl, uuid, tempfile, numpy
print(int(time.time()))
print(hash("the template's"))
for draw in (os.urandom(16).hex(), random.random(), random.getrandbits(128), numpy.random.random(), numpy.random.default_rng().random(),
             uuid.uuid4(), uuid.uuid1(), secrets.token_hex(16), ssl.RAND_bytes(16).hex(), next(tempfile._get_candidate_names())):
    print(draw)
"#;

const NODE: &str = r#"
{
  const crypto = require("crypto");
  console.log(Math.floor(Date.now() / 1000));
  console.log("nothing");
  for (const draw of [Math.random(), Math.random(), crypto.randomBytes(16).toString("hex"), crypto.randomUUID(),
                      crypto.webcrypto.getRandomValues(new BigUint64Array(2)).join("-"), crypto.randomInt(2 ** 47),
                      crypto.generateKeyPairSync("ed25519").publicKey.export({ type: "spki", format: "pem" }).split("\n")[1],
                      require("vm").runInNewContext("Math.random()"),
                      require("fs").readFileSync("/proc/sys/kernel/random/uuid", "utf8").trim()]) {
    console.log(`${draw}`);
  }
  console.log(Math.abs(performance.timeOrigin - Date.now()) < 3_600_000 ? process.hrtime.bigint() : "begun long ago");
}
"#;

const SHELL: &str =
    "date +%s; echo nothing; cat /proc/sys/kernel/random/uuid; od -An -N16 -tx1 /dev/urandom; mktemp -u";

pub(crate) async fn nothing_is_drawn_twice(driver: &Arc<dyn Driver>, template: &Template) -> Outcome<u16> {
    let count = std::env::var("SANDPOOL_TEST_CLONES").ok().and_then(|count| count.parse().ok()).unwrap_or(CLONES);
    let which = |number: u16| which(template.runtime, number);
    let mut drawn = HashSet::new();
    let mut in_common = HashSet::new();
    for first in (0..count).step_by(usize::from(BATCH)) {
        let batch: Vec<u16> = (first..count.min(first + BATCH)).collect();
        let all = batch.iter().map(|number| draw(driver, template, which(*number)));
        for lines in futures::future::join_all(all).await {
            let lines = lines?;
            let mut lines = lines.lines();
            let clock: u64 = lines.next().unwrap_or_default().parse()?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            assert!(clock.abs_diff(now) < CLOCK, "a clock says {clock} at {now}");
            in_common.insert(lines.next().unwrap_or_default().to_owned());
            let before = drawn.len();
            for line in lines {
                assert!(drawn.insert(line.to_owned()), "drawn twice: {line}");
            }
            assert!(drawn.len() >= before + 3, "nothing was drawn");
        }
        for number in batch {
            driver.destroy(which(number)).await?;
        }
    }
    // They are what they are said to be, copies of one process: what is not drawn anew, as Python's seed of `hash` is not, is the same
    // in all of them, and so would be what they draw.
    assert_eq!(in_common.len(), 1, "{in_common:?}");
    Ok(count)
}

fn which(runtime: Runtime, number: u16) -> SandboxId {
    let [high, low] = number.to_be_bytes();
    let mut id = [0xc1; 16];
    id[..3].copy_from_slice(&[high, low, runtime as u8]);
    SandboxId(id)
}

async fn draw(driver: &Arc<dyn Driver>, template: &Template, which: SandboxId) -> Outcome<String> {
    given(driver, template, which).await?;
    // The machine's id is its own; the kernel's boot, which clones have in common, is hidden as at the process level.
    let id =
        shell(driver.as_ref(), which, "cat /etc/machine-id; cat /proc/sys/kernel/random/boot_id 2>/dev/null").await?;
    assert!(id.len() == 33 && id.trim_end().chars().all(|c| c.is_ascii_hexdigit()), "{id:?}");
    let drawn = match template.runtime {
        Runtime::Python => code(driver.as_ref(), which, PYTHON).await,
        Runtime::Node => code(driver.as_ref(), which, NODE).await,
        Runtime::Shell | Runtime::Container => shell(driver.as_ref(), which, SHELL).await,
    };
    Ok(drawn? + &id)
}
