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
        store.lost(one.sandbox, "it died");
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
    let known = Known { place: (*one).clone(), lost: Some("it died".to_owned()), is_heard: false };
    assert_eq!(store.sessions().await, vec![known.clone()]);
    store.heard(one.sandbox);
    store.written().await;
    assert_eq!(store.sessions().await, [Known { is_heard: true, ..known }]);
    let trail = store.audited(0, 10).await;
    let trail: Vec<_> = trail.iter().map(|line| format!("{} {} {}", line.what, line.session, line.detail)).collect();
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
