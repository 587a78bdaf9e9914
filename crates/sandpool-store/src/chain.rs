//! The hash chain of the journal: each record's hash is over what it says and over the hash before it, so that no record can be changed,
//! left out, added or moved without every later hash saying so.
//!
//! What the chain cannot tell by itself is that its end was cut off, or that somebody who may write the file made all of it anew.
//! Both are told by a hash that was noted elsewhere before: see [`Verdict::head`] and [`verify`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use sandpool_core::ids::SandboxId;
use sha2::{Digest, Sha256};

use crate::Audited;

/// A hash in the chain: SHA-256.
pub type Hash = [u8; 32];

/// What every hash begins with, so that it is no hash of anything else.
const DOMAIN: &[u8] = b"sandpool journal 1\0";

/// Problems that are told one by one, at most: what follows is counted.
const TOLD: usize = 100;

/// Hashes that a record may have been written after, when those before it were changed: the last ones, at most.
const CANDIDATES: usize = 16;

/// A record, and its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chained {
    /// What it says.
    pub record: Audited,
    /// Its hash. `None` for one from before there was a chain.
    pub hash: Option<Hash>,
}

/// A place in the chain: a record's number and its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The record's number.
    pub number: i64,
    /// Its hash.
    pub hash: Hash,
}

impl Link {
    /// Before all records.
    pub const ORIGIN: Self = Self { number: 0, hash: [0; 32] };
}

impl std::fmt::Display for Link {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}:{}", self.number, hex::encode(self.hash))
    }
}

impl std::str::FromStr for Link {
    type Err = String;

    /// `NUMBER:HASH`, as it is shown.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "is not NUMBER:HASH, as sandpool journal verify prints it".to_owned();
        let (number, hash) = text.split_once(':').ok_or_else(wrong)?;
        Ok(Self { number: number.parse().map_err(|_| wrong())?, hash: parse_hash(hash).map_err(|_| wrong())? })
    }
}

/// A hash as it is shown: 64 hexadecimal digits, in lower case.
///
/// # Errors
/// What is wrong with it.
pub fn parse_hash(text: &str) -> Result<Hash, String> {
    let mut hash = Hash::default();
    let read = hex::decode_to_slice(text, &mut hash).is_ok() && !text.bytes().any(|byte| byte.is_ascii_uppercase());
    if read { Ok(hash) } else { Err("it is no hash: 64 hexadecimal digits, in lower case".to_owned()) }
}

/// A record's hash: SHA-256 of the words `sandpool journal 1` and a zero byte, the hash before (32 bytes), the number and the time in
/// milliseconds since 1970 (8 bytes each, big-endian), and of tenant, subject, pool, session, sandbox, what and detail the
/// length in bytes (8 bytes, big-endian) and the UTF-8.
#[must_use]
pub fn hash(previous: &Hash, record: &Audited) -> Hash {
    let mut hash = Sha256::new();
    hash.update(DOMAIN);
    hash.update(previous);
    hash.update(record.number.to_be_bytes());
    hash.update(crate::milliseconds(record.at).to_be_bytes());
    let Audited { number: _, at: _, tenant, subject, pool, session, sandbox, what, detail } = record;
    for text in [tenant, subject, pool, session, sandbox, what, detail] {
        hash.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(text);
    }
    hash.finalize().into()
}

/// What is wrong at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The number of the record that is concerned; of the first, if they are several.
    pub number: i64,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What can be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It does not say what was written.
    Changed,
    /// It says what was written, but its hash is another.
    HashChanged,
    /// It, and those up to this number, are not there.
    Missing(i64),
    /// What stands here was written as the record of this number.
    Moved(i64),
    /// It stands after one with a higher number.
    OutOfOrder,
    /// It is there twice.
    Twice,
    /// It cannot be read.
    Unreadable(String),
    /// It is there, but its hash is not the one that was noted.
    NotAsNoted,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = self.number;
        match &self.fault {
            Fault::Changed => write!(out, "record {number} was changed: it does not have its hash"),
            Fault::HashChanged => write!(out, "the hash of record {number} was changed"),
            Fault::Missing(last) if *last == number => write!(out, "record {number} is missing"),
            Fault::Missing(last) => write!(out, "records {number} to {last} are missing"),
            Fault::Moved(from) => {
                write!(out, "record {number} was moved: what stands there was written as record {from}")
            }
            Fault::OutOfOrder => write!(out, "record {number} was moved: it stands after a later one"),
            Fault::Twice => write!(out, "record {number} is there twice"),
            Fault::Unreadable(why) => write!(out, "record {number} cannot be read: {why}"),
            Fault::NotAsNoted => {
                write!(out, "record {number} does not have the hash that was noted: the journal was made anew")
            }
        }
    }
}

/// What came of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Records that were looked at.
    pub records: u64,
    /// Those of them from before there was a chain: nothing can be said of them.
    pub unchained: u64,
    /// The last record: note it elsewhere, and nothing up to it can be changed or cut off unseen.
    pub head: Option<Link>,
    /// What is wrong, in the order of numbers: 100 at most.
    pub problems: Vec<Problem>,
    /// How many there are in all.
    pub faults: u64,
}

/// A record as it was found, or the number at which one cannot be read, and why.
pub type Found = Result<Chained, (i64, String)>;

/// Verifies records in the order in which they stand, which follow `base`. With `last`, the number up to which there must be records;
/// with `noted`, links that must be among them.
#[must_use]
pub fn verify(base: Link, found: Vec<Found>, last: Option<i64>, noted: &[Link]) -> Verdict {
    let mut verdict = Verdict { records: u64::try_from(found.len()).unwrap_or(u64::MAX), ..Verdict::default() };
    let mut problems = Vec::new();
    let mut say = |number, fault| problems.push(Problem { number, fault });
    // What stands in another order is put in order, and told.
    let mut ordered: BTreeMap<i64, Result<Chained, String>> = BTreeMap::new();
    let mut highest = i64::MIN;
    for entry in found {
        let (number, entry) = match entry {
            Ok(chained) => (chained.record.number, Ok(chained)),
            Err((number, why)) => (number, Err(why)),
        };
        if number < highest {
            say(number, Fault::OutOfOrder);
        }
        highest = highest.max(number);
        match ordered.entry(number) {
            Entry::Vacant(place) => drop(place.insert(entry)),
            Entry::Occupied(_) => say(number, Fault::Twice),
        }
    }
    for link in noted {
        if let Some(Ok(chained)) = ordered.get(&link.number)
            && chained.hash != Some(link.hash)
        {
            say(link.number, Fault::NotAsNoted);
        }
    }
    let unchained = |entry: &Result<Chained, String>| matches!(entry, Ok(Chained { hash: None, .. }));
    let before = ordered.range(..=base.number);
    verdict.unchained = before.filter(|(_, entry)| unchained(entry)).map(|_| 1).sum();
    let must_be = noted.iter().map(|link| link.number).chain(last).max();
    // The hashes that the next record may have been written after: what stands with the one before, and what it should be.
    let mut previous = vec![base.hash];
    let mut next = base.number + 1;
    for (&number, entry) in ordered.range(next..) {
        if number > next {
            say(next, Fault::Missing(number - 1));
            previous.clear();
        }
        next = number + 1;
        let chained = match entry {
            Ok(chained) => chained,
            Err(why) => {
                say(number, Fault::Unreadable(why.clone()));
                previous.clear();
                continue;
            }
        };
        let Some(stands) = chained.hash else {
            say(number, Fault::Changed);
            previous.clear();
            continue;
        };
        verdict.head = Some(Link { number, hash: stands });
        let possible: Vec<_> = previous.iter().map(|previous| hash(previous, &chained.record)).collect();
        if previous.is_empty() || possible.contains(&stands) {
            // After a gap nothing can be said of the first: those that follow hold it.
            previous = vec![stands];
            continue;
        }
        let was = moved_from(&ordered, number, &chained.record, stands);
        say(number, was.map_or_else(|| changed(&ordered, number, &possible), Fault::Moved));
        // Whichever was changed, the next one was written after one of these: so each fault is told where it is, and once.
        previous.extend(possible);
        previous.push(stands);
        previous.drain(..previous.len().saturating_sub(CANDIDATES));
    }
    if let Some(last) = must_be
        && last >= next
    {
        say(next, Fault::Missing(last));
    }
    problems.sort_by_key(|problem| problem.number);
    verdict.faults = u64::try_from(problems.len()).unwrap_or(u64::MAX);
    problems.truncate(TOLD);
    verdict.problems = problems;
    verdict
}

/// Whether it is the record's hash that was changed: then the next one follows what it should have been.
fn changed(ordered: &BTreeMap<i64, Result<Chained, String>>, number: i64, possible: &[Hash]) -> Fault {
    let follows = match ordered.get(&(number + 1)) {
        Some(Ok(Chained { record, hash: Some(stands) })) => {
            possible.iter().any(|possible| hash(possible, record) == *stands)
        }
        _ => false,
    };
    if follows { Fault::HashChanged } else { Fault::Changed }
}

/// How far away a moved record is looked for, in records.
const NEAR: i64 = 16;

/// The number under which a record was written that stands at `number` with its hash, if there is one: it follows the hash that stands before
/// that place, or the one that stood there until it was moved.
fn moved_from(
    ordered: &BTreeMap<i64, Result<Chained, String>>,
    number: i64,
    record: &Audited,
    stands: Hash,
) -> Option<i64> {
    let near = ordered.range(number - NEAR..=number + NEAR);
    let hashes: Vec<_> = near.filter_map(|(&at, entry)| Some((at, entry.as_ref().ok()?.hash?))).collect();
    let mut written = record.clone();
    hashes.iter().map(|(at, _)| *at).filter(|at| *at != number).find(|at| {
        written.number = *at;
        hashes.iter().any(|(_, previous)| hash(previous, &written) == stands)
    })
}

/// A sandbox's id, as the journal has it.
#[must_use]
pub fn sandbox_text(sandbox: SandboxId) -> String {
    hex::encode(sandbox.0)
}
