//! `sandpool journal`: who did what to which session or pool, and whether anybody changed what is written of it. Read from the state
//! directory's file, by whoever may read that, with or without a server.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::SystemTime;

use sandpool_node::chain::{self, Chained, Found, Hash, Link, Verdict};
use sandpool_node::trail::Trail;
use sandpool_node::{Audited, StoreError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Outcome;
use crate::args::{Journal, JournalFilter};
use crate::client::Context;
use crate::failure::{Failure, printable};
use crate::print;

/// Records that are read at once.
const PAGE: u32 = 10_000;

/// The longest line of an exported file, in bytes: more than the longest record has.
const MAX_LINE: u64 = 1 << 20;

/// What the first line of an exported file says it is.
const KIND: &str = "SandpoolJournal";

pub(crate) fn run(context: &Context, journal: &Journal) -> Outcome {
    match journal {
        Journal::Ls { filter, limit } => list(context, filter, *limit),
        Journal::Verify { file: Some(file), noted } => judge(context, verify_file(file, noted)?),
        Journal::Verify { file: None, noted } => {
            let trail = open(context)?;
            let found = all(&trail, 0)?;
            let (base, last) = (trail.base().map_err(unreadable)?, trail.last().map_err(unreadable)?);
            judge(context, chain::verify(base, found, Some(last), noted))
        }
        Journal::Export { after } => export(context, *after),
    }
}

fn open(context: &Context) -> Result<Trail, Failure> {
    let path = context.home.state().join("sandpool.db");
    if !path.exists() {
        let none = Failure::new(format!("there is no journal: {} is not there", path.display()));
        return Err(none.advise("start the server once, or say which state directory is meant: --home DIR"));
    }
    Trail::open(&path).map_err(unreadable)
}

fn unreadable(error: StoreError) -> Failure {
    Failure::new("the journal cannot be read").because(error)
}

/// All records after a number.
fn all(trail: &Trail, mut after: i64) -> Result<Vec<Found>, Failure> {
    let mut whole = Vec::new();
    loop {
        let page = trail.records(after, PAGE).map_err(unreadable)?;
        let Some(last) = page.last() else { return Ok(whole) };
        after = number_of(last);
        whole.extend(page);
    }
}

fn number_of(found: &Found) -> i64 {
    match found {
        Ok(chained) => chained.record.number,
        Err((number, _)) => *number,
    }
}

// Lists.

fn list(context: &Context, filter: &JournalFilter, limit: u32) -> Outcome {
    let trail = open(context)?;
    let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut shown: std::collections::VecDeque<Audited> = std::collections::VecDeque::new();
    let mut after = if filter.is_empty() { trail.before_last(limit).map_err(unreadable)? } else { 0 };
    loop {
        let page = trail.records(after, PAGE).map_err(unreadable)?;
        let Some(last) = page.last() else { break };
        after = number_of(last);
        for Chained { record, .. } in page.into_iter().flatten() {
            if filter.has(&record) {
                shown.push_back(record);
            }
            if shown.len() > wanted {
                shown.pop_front();
            }
        }
    }
    if context.json {
        print::json(&shown.iter().map(|record| json!(Line::from((record, None)))).collect())?;
        return Ok(0);
    }
    let rows: Vec<_> = shown
        .into_iter()
        .map(|record| {
            let Audited { number, at, tenant, subject, pool, session, what, detail, sandbox: _ } = record;
            vec![number.to_string(), moment(at), what, pool, session, tenant, subject, detail]
        })
        .collect();
    print::table(&["NUMBER", "AT", "WHAT", "POOL", "SESSION", "TENANT", "SUBJECT", "DETAIL"], &rows)?;
    Ok(0)
}

impl JournalFilter {
    fn is_empty(&self) -> bool {
        let Self { pool, session, tenant, subject, what } = self;
        [pool, session, tenant, subject, what].iter().all(|part| part.is_none())
    }

    fn has(&self, record: &Audited) -> bool {
        let is = |asked: &Option<String>, has: &str| asked.as_ref().is_none_or(|asked| asked == has);
        is(&self.pool, &record.pool)
            && is(&self.session, &record.session)
            && is(&self.tenant, &record.tenant)
            && is(&self.subject, &record.subject)
            && self.what.as_ref().is_none_or(|what| {
                record.what.strip_prefix(what.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
    }
}

fn moment(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

// Exports.

/// The first line of an exported file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    kind: String,
    version: u32,
    after: LinkLine,
}

/// The last line of an exported file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    end: LinkLine,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkLine {
    number: i64,
    hash: String,
}

/// A record as a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    number: i64,
    at: String,
    tenant: String,
    subject: String,
    pool: String,
    session: String,
    sandbox: String,
    what: String,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
}

impl From<(&Audited, Option<Hash>)> for Line {
    fn from((record, hash): (&Audited, Option<Hash>)) -> Self {
        let Audited { number, at, tenant, subject, pool, session, sandbox, what, detail } = record.clone();
        let hash = hash.map(hex::encode);
        Self { number, at: moment(at), tenant, subject, pool, session, sandbox, what, detail, hash }
    }
}

impl From<Link> for LinkLine {
    fn from(Link { number, hash }: Link) -> Self {
        Self { number, hash: hex::encode(hash) }
    }
}

impl Line {
    fn read(self) -> Result<Chained, String> {
        let Self { number, at, tenant, subject, pool, session, sandbox, what, detail, hash } = self;
        let time = OffsetDateTime::parse(&at, &Rfc3339).map_err(|error| format!("at: {error}"))?;
        if moment(time.into()) != at {
            return Err("at: is not as it was exported".to_owned());
        }
        let hash = hash.as_deref().map(chain::parse_hash).transpose()?;
        let at = time.into();
        let record = Audited { number, at, tenant, subject, pool, session, sandbox, what, detail };
        Ok(Chained { record, hash })
    }
}

fn export(context: &Context, after: Option<i64>) -> Outcome {
    let trail = open(context)?;
    let base = trail.base().map_err(unreadable)?;
    let begins = match after {
        Some(after) if after > base.number => {
            // What it follows is the record with that number.
            match trail.records(after - 1, 1).map_err(unreadable)?.pop() {
                Some(Ok(Chained { record, hash: Some(hash) })) if record.number == after => {
                    Link { number: after, hash }
                }
                _ => return Err(Failure::usage(format!("--after {after}: there is no record with that number"))),
            }
        }
        Some(_) | None => base,
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut write = |value: Value| match writeln!(out, "{value}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new("cannot write to standard output").because(error)),
        Ok(()) => Ok(true),
    };
    if !write(json!(Head { kind: KIND.to_owned(), version: 1, after: begins.into() }))? {
        return Ok(0);
    }
    let (mut number, mut end) = (begins.number, begins);
    loop {
        let page = trail.records(number, PAGE).map_err(unreadable)?;
        let Some(last) = page.last() else { break };
        number = number_of(last);
        for found in page {
            let Chained { record, hash } = found.map_err(|(number, why)| {
                Failure::new(format!("record {number} cannot be exported: {why}"))
                    .advise("sandpool journal verify says what else is wrong")
            })?;
            if let Some(hash) = hash {
                end = Link { number: record.number, hash };
            }
            if !write(json!(Line::from((&record, hash))))? {
                return Ok(0);
            }
        }
    }
    write(json!(End { end: end.into() }))?;
    Ok(0)
}

// Verifies.

fn verify_file(path: &Path, noted: &[Link]) -> Result<Verdict, Failure> {
    let failed = |why: String| {
        Failure::new(format!("{} is no exported journal", path.display()))
            .because(why)
            .advise("sandpool journal export >FILE makes one")
    };
    let file = std::fs::File::open(path)
        .map_err(|error| Failure::new(format!("{} cannot be read", path.display())).because(error))?;
    let mut lines = Lines(BufReader::new(file));
    let mut next = || lines.next().map_err(&failed);
    let first = next()?.ok_or_else(|| failed("it is empty".to_owned()))?;
    let head: Head = serde_json::from_slice(&first).map_err(|error| failed(format!("its first line: {error}")))?;
    if (head.kind.as_str(), head.version) != (KIND, 1) {
        return Err(failed(format!("its first line says {} {}, not {KIND} 1", head.kind, head.version)));
    }
    let base = Link {
        number: head.after.number,
        hash: chain::parse_hash(&head.after.hash).map_err(|why| failed(format!("its first line: {why}")))?,
    };
    let (mut found, mut end): (Vec<Found>, _) = (Vec::new(), None);
    let mut expected = base.number + 1;
    while let Some(line) = next()? {
        if let Ok(End { end: last }) = serde_json::from_slice(&line) {
            let hash = chain::parse_hash(&last.hash).map_err(|why| failed(format!("its last line: {why}")))?;
            end = Some(Link { number: last.number, hash });
            break;
        }
        let read = serde_json::from_slice::<Line>(&line).map_err(|error| error.to_string());
        let read = read.and_then(Line::read).map_err(|why| (expected, why));
        expected = number_of(&read).saturating_add(1);
        found.push(read);
    }
    let end =
        end.ok_or_else(|| failed(format!("it has no last line: it was cut off after record {}", expected - 1)))?;
    if next()?.is_some() {
        return Err(failed("something stands after its last line".to_owned()));
    }
    let noted: Vec<_> = noted.iter().copied().chain([end]).collect();
    Ok(chain::verify(base, found, Some(end.number), &noted))
}

/// Lines of bounded length.
struct Lines<R>(R);

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        let mut line = Vec::new();
        std::io::Read::take(&mut self.0, MAX_LINE).read_until(b'\n', &mut line).map_err(|error| error.to_string())?;
        match line.pop() {
            None => Ok(None),
            Some(b'\n') => Ok(Some(line)),
            Some(_) => Err("it has a line without an end, or a longer one than it can have".to_owned()),
        }
    }
}

fn judge(context: &Context, verdict: Verdict) -> Outcome {
    let Verdict { records, unchained, head, problems, faults } = verdict;
    if context.json {
        let problems: Vec<_> = problems
            .iter()
            .map(|problem| json!({ "number": problem.number, "message": problem.to_string() }))
            .collect();
        print::json(&json!({
            "isIntact": faults == 0,
            "records": records,
            "unchained": unchained,
            "head": head.map(LinkLine::from),
            "problems": problems,
            "faults": faults,
        }))?;
        return Ok(u8::from(faults > 0));
    }
    let mut text = String::new();
    for problem in &problems {
        text.push_str(&format!("{}\n", printable(&problem.to_string())));
    }
    let told = u64::try_from(problems.len()).unwrap_or(u64::MAX);
    if faults > told {
        text.push_str(&format!("and {} more\n", faults - told));
    }
    if unchained > 0 {
        text.push_str(&format!("{unchained} records are from before there was a chain: nothing can be said of them\n"));
    }
    let of = if records == 1 { "1 record".to_owned() } else { format!("{records} records") };
    match (faults, head) {
        (0, Some(last)) => text.push_str(&format!("{of}, as they were written. The last is {last}\n")),
        (0, None) => text.push_str("there are no records\n"),
        (_, _) => text.push_str(&format!("{of}, and they are not as they were written\n")),
    }
    print::out(&text)?;
    Ok(u8::from(faults > 0))
}
