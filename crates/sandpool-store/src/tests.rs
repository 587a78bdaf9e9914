use std::sync::atomic::AtomicU64;

use super::*;

/// An execution that says how far it is.
struct Run(ExecutionId, AtomicBool, Vec<u8>);

impl Source for Run {
    fn row(&self) -> Row {
        Row { id: self.0, is_ended: self.1.load(Ordering::Relaxed), body: self.2.clone() }
    }
}

fn run(number: u64, is_ended: bool, size: usize) -> Arc<Run> {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_le_bytes());
    Arc::new(Run(ExecutionId(id), AtomicBool::new(is_ended), vec![b'x'; size]))
}

fn place_of(number: u8) -> Arc<Place> {
    Arc::new(Place {
        pool: PoolName::parse("python").unwrap(),
        key: SessionKey::new(TenantName::parse("acme").unwrap(), Identifier::parse(&format!("name{number}")).unwrap()),
        payer: TenantName::parse("acme").unwrap(),
        sandbox: SandboxId([number; 16]),
        owner: "me".to_owned(),
        created: time(milliseconds(SystemTime::now())),
    })
}

#[tokio::test]
async fn what_is_written_is_there_when_it_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let (one, two) = (place_of(1), place_of(2));
    let (first, second) = (run(1, true, 3), run(2, false, 3));
    {
        let store = Store::open(&path).unwrap();
        store.opened(&one);
        store.opened(&two);
        store.execution(one.sandbox, Arc::clone(&first) as Arc<dyn Source>);
        store.execution(one.sandbox, Arc::clone(&second) as Arc<dyn Source>);
        store.execution(two.sandbox, run(3, true, 3));
        store.lost(one.sandbox, "it died, and said no", "it died");
        store.ended(two.sandbox);
        // What ends after its session is not kept either.
        store.execution(two.sandbox, run(4, true, 3));
        store.written().await;
        store.close();
    }
    let store = Store::open(&path).unwrap();
    assert_eq!(store.find(&one.pool, &one.key, first.0).await, Some(first.row()));
    assert_eq!(store.find(&one.pool, &place_of(3).key, first.0).await, None);
    let another = SessionKey::new(TenantName::default(), one.key.identifier.clone());
    assert_eq!(store.find(&one.pool, &another, first.0).await, None, "it is another tenant's");
    assert_eq!(store.find(&two.pool, &two.key, run(3, true, 3).0).await, None);
    assert_eq!(store.unfinished(one.sandbox).await, [second.row()]);
    let known = Known { place: (*one).clone(), lost: Some("it died, and said no".to_owned()), is_heard: false };
    assert_eq!(store.sessions().await, vec![known.clone()]);
    store.heard(one.sandbox);
    store.written().await;
    assert_eq!(store.sessions().await, [Known { is_heard: true, ..known }]);
    let trail = read_journal(&path).1.into_iter().map(|found| found.unwrap().record);
    let trail: Vec<_> = trail.map(|line| format!("{} {} {}", line.what, line.session, line.detail)).collect();
    let wanted =
        ["session.opened name1 ", "session.opened name2 ", "session.lost name1 it died", "session.ended name2 "];
    assert_eq!(trail, wanted);
}

#[tokio::test]
async fn a_session_keeps_its_last_executions_and_no_end_is_undone() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("state.db")).unwrap();
    let one = place_of(1);
    store.opened(&one);
    let runs = u64::from(KEPT_EXECUTIONS) + 10;
    for number in 0..runs {
        store.execution(one.sandbox, run(number, true, 1));
    }
    store.execution(one.sandbox, run(runs - 1, false, 9));
    store.written().await;
    let mut kept = 0;
    for number in 0..runs {
        let found = store.find(&one.pool, &one.key, run(number, true, 1).0).await;
        kept += u32::from(found.is_some());
        assert_eq!(found.is_some(), number >= 10, "{number}");
        assert!(found.is_none_or(|row| row.is_ended));
    }
    assert_eq!(kept, KEPT_EXECUTIONS);
}

#[tokio::test]
async fn a_full_disk_is_told_and_what_was_given_is_written_once_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let store = Store::open_bounded(&path, 256 << 10).unwrap();
    let (one, two) = (place_of(1), place_of(2));
    store.opened(&one);
    store.execution(one.sandbox, run(1, true, 150 << 10));
    store.written().await;
    assert_eq!(store.trouble(), None);
    store.opened(&two);
    store.execution(two.sandbox, run(2, true, 150 << 10));
    let waited = tokio::time::timeout(Duration::from_millis(50), store.written()).await;
    assert!(waited.is_err(), "it is not said to be written");
    while store.trouble().is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(store.trouble().unwrap().contains("no space is left"), "{:?}", store.trouble());
    // Nothing of the batch is there, and all before it is.
    assert_eq!(store.sessions().await.len(), 1);
    assert!(store.find(&one.pool, &one.key, run(1, true, 0).0).await.is_some());
    store.close();
    let store = Store::open_bounded(&path, 1 << 20).unwrap();
    assert_eq!(store.sessions().await.len(), 1);
    store.opened(&two);
    store.execution(two.sandbox, run(2, true, 150 << 10));
    store.written().await;
    assert!(store.find(&two.pool, &two.key, run(2, true, 0).0).await.is_some());
}

#[test]
fn what_cannot_be_used_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let refused = || Store::open(&path).unwrap_err();
    let store = Store::open(&path).unwrap();
    store.close();
    drop(store);
    let change = |sql: &str| Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    change(&format!("PRAGMA user_version = {}", VERSION + 1));
    let newer = refused();
    assert!(matches!(&newer, StoreError::Newer { found, .. } if *found == VERSION + 1), "{newer}");
    assert!(newer.to_string().contains("mv "), "{newer}");
    change(&format!("PRAGMA user_version = {VERSION}; PRAGMA application_id = 7"));
    assert!(matches!(refused(), StoreError::Foreign { .. }));
    for garbage in [vec![b'x'; 5_000], {
        let mut half = std::fs::read(&path).unwrap();
        half.truncate(5_000);
        half
    }] {
        std::fs::write(&path, garbage).unwrap();
        let damaged = refused();
        assert!(matches!(&damaged, StoreError::Damaged { .. }), "{damaged}");
        assert!(damaged.to_string().contains(".damaged"), "{damaged}");
    }
    std::fs::remove_file(&path).unwrap();
    Store::open(&path).unwrap();
    assert!(matches!(Store::open(Path::new("/nowhere/state.db")).unwrap_err(), StoreError::Unusable { .. }));
}

/// The child of the next test: writes, says what was acknowledged, and never ends.
#[test]
fn written_until_it_is_killed() {
    let Some(path) = std::env::var_os("SANDPOOL_STORE_TEST") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = Store::open(Path::new(&path)).unwrap();
    runtime.block_on(async {
        let one = place_of(1);
        store.opened(&one);
        for number in 0.. {
            store.opened(&place_of(u8::try_from(number % 200).unwrap() + 2));
            store.execution(one.sandbox, run(number, true, 10_000));
            store.written().await;
            println!("\nwritten {number}");
        }
    });
}

#[test]
fn what_was_acknowledged_survives_a_kill_at_any_moment() {
    use std::io::BufRead;
    static SEED: AtomicU64 = AtomicU64::new(7);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for round in 0..12 {
        // Kills after so many acknowledgements, and a little in the middle of the next.
        let seed = SEED.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed) >> 40;
        let (after, more) = (1 + seed % 40, Duration::from_micros(seed % 3_000));
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::written_until_it_is_killed", "--nocapture", "--test-threads=1"])
            .env("SANDPOOL_STORE_TEST", &path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut last = None;
        let mut next = || loop {
            let line = lines.next()?.ok()?;
            if let Some(number) = line.strip_prefix("written ") {
                return number.parse::<u64>().ok();
            }
        };
        for _ in 0..after {
            last = next().or(last);
        }
        std::thread::sleep(more);
        child.kill().unwrap();
        child.wait().unwrap();
        while let Some(number) = next() {
            last = Some(number);
        }
        let last = last.expect("something was written");
        let store = Store::open(&path).unwrap_or_else(|error| panic!("round {round}: {error}"));
        let one = place_of(1);
        for number in last.saturating_sub(u64::from(KEPT_EXECUTIONS) - 1)..=last {
            let row = runtime.block_on(store.find(&one.pool, &one.key, run(number, true, 0).0));
            assert_eq!(row.map(|row| row.body.len()), Some(10_000), "round {round}: {number} of {last}");
        }
        store.ended(one.sandbox);
        runtime.block_on(store.written());
        store.close();
    }
}

/// A journal of `count` records, as they are read again.
async fn journal(path: &Path, count: usize) -> (chain::Link, Vec<chain::Found>, i64) {
    let store = Store::open(path).unwrap();
    for number in 0..count {
        let detail = format!("the {number}th");
        store.audit(Deed { what: "pool.applied", subject: "me".to_owned(), detail, ..Deed::default() });
    }
    store.written().await;
    store.close();
    read_journal(path)
}

fn read_journal(path: &Path) -> (chain::Link, Vec<chain::Found>, i64) {
    let trail = trail::Trail::open(path).unwrap();
    (trail.base().unwrap(), trail.records(0, u32::MAX).unwrap(), trail.last().unwrap())
}

fn said(verdict: &chain::Verdict) -> Vec<String> {
    verdict.problems.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn what_was_not_touched_is_as_it_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let (base, found, last) = journal(&path, 20).await;
    assert_eq!((base, last), (chain::Link::ORIGIN, 20));
    let verdict = chain::verify(base, found, Some(last), &[]);
    assert_eq!((verdict.faults, verdict.records, verdict.unchained), (0, 20, 0), "{:?}", said(&verdict));
    // It goes on where it was, also after a new start.
    let noted = verdict.head.unwrap();
    let (base, found, last) = journal(&path, 5).await;
    let verdict = chain::verify(base, found, Some(last), &[noted]);
    assert_eq!((verdict.faults, verdict.records), (0, 25), "{:?}", said(&verdict));
}

#[tokio::test]
async fn a_changed_a_missing_and_a_moved_record_are_found_and_located() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let (base, whole, last) = journal(&path, 30).await;
    let noted = chain::verify(base, whole.clone(), Some(last), &[]).head.unwrap();
    type Tamper = fn(&mut Vec<chain::Found>);
    fn at(found: &mut [chain::Found], number: usize) -> &mut chain::Chained {
        found[number - 1].as_mut().unwrap()
    }
    let cases: [(Tamper, &[&str]); 13] = [
        (|found| at(found, 7).record.detail.push('x'), &["record 7 was changed: it does not have its hash"]),
        (|found| at(found, 7).record.subject = "you".to_owned(), &["record 7 was changed: it does not have its hash"]),
        (
            |found| at(found, 7).record.at += Duration::from_millis(1),
            &["record 7 was changed: it does not have its hash"],
        ),
        (|found| at(found, 1).record.what.clear(), &["record 1 was changed: it does not have its hash"]),
        (|found| at(found, 30).record.pool.push('p'), &["record 30 was changed: it does not have its hash"]),
        (|found| at(found, 9).hash.as_mut().unwrap()[4] ^= 1, &["the hash of record 9 was changed"]),
        (|found| at(found, 9).hash = None, &["record 9 was changed: it does not have its hash"]),
        (|found| drop(found.remove(10)), &["record 11 is missing"]),
        (|found| drop(found.drain(10..13)), &["records 11 to 13 are missing"]),
        (|found| drop(found.pop()), &["record 30 is missing"]),
        // Its lines stand in another order.
        (|found| found.swap(4, 5), &["record 5 was moved: it stands after a later one"]),
        // It has another number.
        (
            |found| {
                found.swap(4, 5);
                at(found, 5).record.number = 5;
                at(found, 6).record.number = 6;
            },
            &[
                "record 5 was moved: what stands there was written as record 6",
                "record 6 was moved: what stands there was written as record 5",
            ],
        ),
        (|found| found.insert(3, found[3].clone()), &["record 4 is there twice"]),
    ];
    for (number, (tamper, wanted)) in cases.into_iter().enumerate() {
        let mut found = whole.clone();
        tamper(&mut found);
        let verdict = chain::verify(base, found, Some(last), &[]);
        assert_eq!(said(&verdict), wanted, "case {number}");
    }
    // Who changes a record and makes all hashes anew is told by a hash that was noted.
    let mut forged = Vec::new();
    let mut previous = base.hash;
    for found in whole {
        let mut record = found.unwrap().record;
        if record.number == 12 {
            record.subject = "you".to_owned();
        }
        previous = chain::hash(&previous, &record);
        forged.push(Ok(chain::Chained { record, hash: Some(previous) }));
    }
    assert_eq!(chain::verify(base, forged.clone(), Some(last), &[]).faults, 0);
    let verdict = chain::verify(base, forged, Some(last), &[noted]);
    assert_eq!(said(&verdict), ["record 30 does not have the hash that was noted: the journal was made anew"]);
}

#[tokio::test]
async fn what_is_changed_in_the_file_is_found_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    drop(journal(&path, 10).await);
    let change = |sql: &str| Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    let verify = || {
        let (base, found, last) = read_journal(&path);
        said(&chain::verify(base, found, Some(last), &[]))
    };
    assert_eq!(verify(), Vec::<String>::new());
    change("DELETE FROM audit WHERE number = 10");
    assert_eq!(verify(), ["record 10 is missing"]);
    change("UPDATE audit SET detail = CAST(x'ff' AS TEXT) WHERE number = 4");
    assert_eq!(verify(), ["record 4 cannot be read: it has bytes that are no UTF-8", "record 10 is missing"]);
    // What is written afterwards hides nothing.
    let store = Store::open(&path).unwrap();
    store.audit(Deed { what: "server.started", ..Deed::default() });
    store.written().await;
    store.close();
    let after = verify();
    assert!(after.iter().any(|line| line.contains("record 4 ")), "{after:?}");
    assert!(after.iter().any(|line| line.contains("record 10")), "{after:?}");
}

#[tokio::test]
async fn old_records_go_and_the_others_are_still_a_chain() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    drop(journal(&path, 40).await);
    let prune = |now: SystemTime, most: i64| {
        let mut connection = schema::open(&path, MAX_BYTES).unwrap();
        let change = connection.transaction().unwrap();
        write::prune_journal(&change, now, most).unwrap();
        change.commit().unwrap();
    };
    let verify = || {
        let (base, found, last) = read_journal(&path);
        let verdict = chain::verify(base, found, Some(last), &[]);
        assert_eq!(verdict.faults, 0, "{:?}", said(&verdict));
        verdict.records
    };
    prune(SystemTime::now(), 15);
    assert_eq!(verify(), 15);
    prune(SystemTime::now() + KEPT_AUDIT + Duration::from_secs(60), 15);
    assert_eq!(verify(), 0);
    let (_, found, last) = journal(&path, 3).await;
    assert_eq!((found.len(), last), (3, 43));
    assert_eq!(verify(), 3);
    assert!(found.iter().all(|found| found.as_ref().unwrap().record.number > 40));
}

#[test]
fn a_journal_from_before_there_was_a_chain_goes_on_as_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    drop(schema::open(&path, MAX_BYTES).unwrap());
    let connection = Connection::open(&path).unwrap();
    let now = milliseconds(SystemTime::now());
    let before = format!(
        "DROP INDEX audit_ends; DROP TABLE chain; ALTER TABLE audit DROP COLUMN hash; PRAGMA user_version = 2;
        INSERT INTO audit (at, tenant, subject, pool, session, sandbox, what, detail)
        VALUES ({now}, '', '', '', '', '', 'server.started', '1'), ({now}, '', '', '', '', '', 'server.started', '2');"
    );
    connection.execute_batch(&before).unwrap();
    drop(connection);
    let old = trail::Trail::open(&path).unwrap_err();
    assert!(old.to_string().contains("start the server once"), "{old}");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (base, found, last) = runtime.block_on(journal(&path, 3));
    let verdict = chain::verify(base, found, Some(last), &[]);
    assert_eq!((verdict.faults, verdict.unchained, verdict.records), (0, 2, 5), "{:?}", said(&verdict));
}

#[test]
fn a_last_record_is_read_as_it_is_shown() {
    let link = chain::Link { number: 7, hash: [0xab; 32] };
    assert_eq!(link.to_string().parse(), Ok(link));
    for wrong in ["", "7", "7:", ":ab", "7:abcd", &link.to_string().to_uppercase(), &format!("{link}0")] {
        assert!(wrong.parse::<chain::Link>().is_err(), "{wrong}");
    }
}
