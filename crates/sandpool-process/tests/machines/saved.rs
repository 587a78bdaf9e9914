//! All of a machine, saved and gone on from: what its programs had is there, what was drawn is not drawn again.

use std::sync::Arc;

use sandpool_core::ids::SandboxId;
use sandpool_driver::{Driver, Owner, Stream, Template};
use sandpool_wire::agent::{Activation, Runtime};
use tokio::io::AsyncReadExt;

use super::bare::{Outcome, code, ready, shell};
use super::given;

/// Goes on as this sandbox from what was saved.
pub(crate) async fn woken(
    driver: &Arc<dyn Driver>,
    template: &Template,
    which: SandboxId,
    saved: &[u8],
) -> Outcome<()> {
    let mut watch = driver.watch();
    let all: Stream = Box::new(std::io::Cursor::new(saved.to_vec()));
    driver.load(which, &template.pool, all, None).await?;
    ready(driver.as_ref(), &mut watch, which).await?;
    driver.assign(which, &Owner { record: b"me".to_vec() }).await?;
    let mut seed = [0; 32];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
    driver.activate(which, &Activation { env: Vec::new(), seed }).await?;
    Ok(())
}

pub(crate) async fn all_of(driver: &Arc<dyn Driver>, which: SandboxId, stays: bool) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    driver.save(which, stays).await?.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// What a program that runs on its own writes down again and again.
const COUNTS: &str = "(i=0; while :; do i=$((i+1)); echo $i > /mnt/data/counts.new; mv /mnt/data/counts.new /mnt/data/counts; sleep 0.02; done) \
                      > /dev/null 2>&1 & echo kept > /mnt/data/kept; sync; until [ -e /mnt/data/counts ]; do sleep 0.02; done";

pub(crate) async fn what_was_saved_goes_on(driver: &Arc<dyn Driver>, template: &Template) -> Outcome<()> {
    let which =
        |number: u8| SandboxId([0xd0 + template.runtime as u8, number, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    given(driver, template, which(0)).await?;
    shell(driver.as_ref(), which(0), COUNTS).await?;
    let (set, get) = match template.runtime {
        Runtime::Python => (SET_PYTHON, GET_PYTHON),
        Runtime::Node => (SET_NODE, GET_NODE),
        Runtime::Shell | Runtime::Container => ("", ""),
    };
    let has_interpreter = !set.is_empty();
    if has_interpreter {
        code(driver.as_ref(), which(0), set).await?;
    }
    let bytes = all_of(driver, which(0), true).await?;
    println!("    {} KiB were saved of a machine of {}", bytes.len() >> 10, template.pool);
    let count = async |which| -> Outcome<u64> {
        Ok(shell(driver.as_ref(), which, "cat /mnt/data/counts").await?.trim().parse()?)
    };
    let mut drawn = std::collections::HashSet::new();
    for number in 0..3 {
        if number > 0 {
            woken(driver, template, which(number), &bytes).await?;
        }
        assert_eq!(shell(driver.as_ref(), which(number), "cat /mnt/data/kept").await?, "kept\n");
        // Its programs go on.
        let before = count(which(number)).await?;
        while count(which(number)).await? <= before {}
        let clock: u64 = shell(driver.as_ref(), which(number), "date +%s").await?.trim().parse()?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        assert!(clock.abs_diff(now) < 30, "{clock} {now}");
        if has_interpreter {
            let all = code(driver.as_ref(), which(number), get).await?;
            let mut lines = all.lines();
            assert_eq!(lines.next(), Some("a variable"));
            assert_eq!(all.lines().count(), if template.runtime == Runtime::Python { 8 } else { 6 }, "{all}");
            for line in lines {
                assert!(drawn.insert(line.to_owned()), "{number} draws what another drew: {line} of {all}");
            }
        }
    }
    for number in 0..3 {
        driver.destroy(which(number)).await?;
    }
    Ok(())
}

const SET_PYTHON: &str = "import random, numpy, ssl, uuid, secrets, tempfile; kept = 'a variable'; random.random(), numpy.random.random(), \
                          ssl.RAND_bytes(8), next(tempfile._get_candidate_names())";
const GET_PYTHON: &str = "print(kept)\nfor draw in (random.random(), numpy.random.random(), uuid.uuid4(), uuid.uuid1(), secrets.token_hex(), \
                          ssl.RAND_bytes(16).hex(), next(tempfile._get_candidate_names())): print(draw)";
const SET_NODE: &str = "kept = 'a variable'; drawer = require('crypto'); [Math.random(), drawer.randomUUID(), drawer.randomInt(2 ** 47), \
                        drawer.randomBytes(8)].length";
const GET_NODE: &str = "console.log(kept); for (const draw of [Math.random(), drawer.randomUUID(), drawer.randomInt(2 ** 47), \
                        drawer.randomBytes(16).toString('hex'), drawer.generateKeyPairSync('ed25519').publicKey.export({ type: 'spki', \
                        format: 'pem' }).split('\\n')[1]]) console.log(`${draw}`);";
