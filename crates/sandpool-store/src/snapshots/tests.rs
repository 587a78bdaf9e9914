use super::cut::{After, CutDisk};
use super::*;

const ROOT: &str = "/snapshots";

fn open(disk: &CutDisk) -> Snapshots {
    bounded(disk, Bounds { all: 1 << 30, of_tenant: 1 << 30 })
}

fn bounded(disk: &CutDisk, bounds: Bounds) -> Snapshots {
    Snapshots::open(Path::new(ROOT), Arc::new(disk.clone()), bounds).unwrap()
}

fn place(identifier: &str) -> (PoolName, SessionKey) {
    let identifier = sandpool_core::ids::Identifier::parse(identifier).unwrap();
    (PoolName::parse("python").unwrap(), SessionKey::from(identifier))
}

fn manifest(identifier: &str, kind: Kind) -> Manifest {
    let (pool, key) = place(identifier);
    Manifest {
        format: 0,
        id: String::new(),
        kind,
        name: None,
        pool: pool.to_string(),
        tenant: key.tenant.to_string(),
        identifier: identifier.to_owned(),
        payer: "default".to_owned(),
        owner: "me".to_owned(),
        sandbox: String::new(),
        created_ms: 1,
        alive_ms: 2,
        taken_ms: 3,
        parent: None,
        level: "process".to_owned(),
        keeps: "files".to_owned(),
        made_of: BTreeMap::new(),
        narrowed: None,
        env: Vec::new(),
        files: Vec::new(),
    }
}

/// Takes a snapshot with two files.
fn taken(snapshots: &Snapshots, identifier: &str, kind: Kind, bytes: &[u8]) -> Result<Held, SnapshotError> {
    let mut writing = snapshots.begin(&TenantName::default())?;
    writing.file("files")?;
    for piece in bytes.chunks(7) {
        writing.write(piece)?;
    }
    writing.file("more")?;
    writing.write(b"and this")?;
    writing.commit(manifest(identifier, kind))?;
    let (pool, key) = place(identifier);
    Ok(match kind {
        Kind::Suspended => snapshots.suspended(&pool, &key).unwrap(),
        Kind::Snapshot => {
            let newest = snapshots.copies(&pool, &key).pop().unwrap();
            snapshots.copy(&pool, &key, &newest.id).unwrap()
        }
    })
}

fn content(snapshots: &Snapshots, held: &Held) -> Result<Vec<u8>, SnapshotError> {
    let reading = snapshots.verify(held)?;
    let mut bytes = Vec::new();
    for part in &reading.manifest.files {
        reading.file(&part.name)?.read_to_end(&mut bytes).unwrap();
    }
    Ok(bytes)
}

#[test]
fn a_snapshot_is_read_as_it_was_written_and_by_whoever_comes_later() {
    let disk = CutDisk::default();
    let snapshots = open(&disk);
    let (pool, key) = place("chat-1");
    assert!(snapshots.suspended(&pool, &key).is_none());
    let held = taken(&snapshots, "chat-1", Kind::Suspended, b"some bytes of a session").unwrap();
    taken(&snapshots, "chat-1", Kind::Snapshot, b"a copy").unwrap();
    for snapshots in [snapshots, open(&disk)] {
        assert_eq!(content(&snapshots, &held).unwrap(), b"some bytes of a sessionand this");
        assert_eq!(snapshots.counts(&pool), (1, 23 + 8 + 6 + 8));
        assert_eq!((snapshots.suspended_of(&pool).len(), snapshots.copies(&pool, &key).len()), (1, 1));
        assert!(snapshots.suspended(&pool, &place("chat-2").1).is_none());
        assert!(snapshots.copies(&pool, &place("chat-2").1).is_empty());
        let copy = snapshots.copies(&pool, &key)[0].id.clone();
        assert!(snapshots.copy(&pool, &key, &copy).is_some());
        assert!(snapshots.copy(&pool, &place("chat-2").1, &copy).is_none(), "not by a guess");
    }
    let snapshots = open(&disk);
    snapshots.retire(held.id).unwrap();
    assert_eq!(snapshots.retire(held.id), Err(SnapshotError::Missing(held.id.to_string())));
    assert!(open(&disk).suspended(&pool, &key).is_none());
    assert_eq!(disk.names(Path::new(ROOT)).unwrap().len(), 1, "nothing of it is left");
}

#[test]
fn every_changed_byte_is_refused_with_the_file_named() {
    let disk = CutDisk::default();
    let held = taken(&open(&disk), "chat-1", Kind::Suspended, b"some bytes of a session").unwrap();
    let directory = Path::new(ROOT).join(held.directory());
    let (pool, key) = place("chat-1");
    for name in ["files", "more", MANIFEST] {
        let path = directory.join(name);
        let (_, length) = disk.open(&path).unwrap();
        let spoilt = |disk: &CutDisk, change: &dyn Fn(&mut Vec<u8>)| {
            let disk = disk.after(After::Kept);
            disk.spoil(&path, change);
            let snapshots = open(&disk);
            let held = snapshots.suspended(&pool, &key).expect("the session is not forgotten");
            match content(&snapshots, &held) {
                Err(SnapshotError::Damaged { file, .. }) => assert_eq!(file, name),
                other => panic!("{name}: {other:?}"),
            }
        };
        for at in 0..usize::try_from(length).unwrap() {
            spoilt(&disk, &|bytes| bytes[at] ^= 1);
        }
        spoilt(&disk, &|bytes| bytes.truncate(bytes.len() - 1));
        spoilt(&disk, &|bytes| bytes.push(b'\n'));
        let without = disk.after(After::Kept);
        without.remove_file(&path).unwrap();
        let snapshots = open(&without);
        let refused = content(&snapshots, &snapshots.suspended(&pool, &key).unwrap()).unwrap_err();
        assert!(refused.to_string().contains(name), "{refused}");
    }
    let with = disk.after(After::Kept);
    with.create(&directory.join("extra")).unwrap();
    let snapshots = open(&with);
    let refused = content(&snapshots, &snapshots.suspended(&pool, &key).unwrap()).unwrap_err();
    assert!(refused.to_string().contains("extra does not belong to it"), "{refused}");
    // Also while the server runs, which has read the manifest before.
    let snapshots = open(&disk);
    disk.spoil(&directory.join(MANIFEST), |bytes| bytes[5] ^= 1);
    assert!(matches!(content(&snapshots, &held), Err(SnapshotError::Damaged { .. })));
}

#[test]
fn what_is_too_much_is_refused_and_leaves_nothing() {
    let disk = CutDisk::default();
    let snapshots = bounded(&disk, Bounds { all: 50, of_tenant: 40 });
    taken(&snapshots, "chat-1", Kind::Suspended, b"0123456789").unwrap();
    let whose = "tenant default".to_owned();
    let refused = taken(&snapshots, "chat-2", Kind::Suspended, &[0; 20]).unwrap_err();
    assert_eq!(refused, SnapshotError::TooMuch { whose, limit: 40 });
    let mut other = snapshots.begin(&TenantName::parse("other").unwrap()).unwrap();
    other.file("files").unwrap();
    other.write(&[0; 30]).unwrap();
    assert!(matches!(other.write(&[0; 5]), Err(SnapshotError::TooMuch { limit: 50, .. })));
    drop(other);
    assert_eq!(disk.names(Path::new(ROOT)).unwrap().len(), 1);
    taken(&snapshots, "chat-2", Kind::Suspended, b"0123").unwrap();
    // The same where the disk has no room.
    let full = CutDisk::default();
    full.has_room_for(20);
    let snapshots = open(&full);
    assert_eq!(taken(&snapshots, "chat-1", Kind::Suspended, &[0; 30]).unwrap_err(), SnapshotError::NoSpace);
    assert!(full.names(Path::new(ROOT)).unwrap().is_empty());
}

/// Suspends a session, suspends it again later, and ends it, until the power is cut: which of these were answered, and how many operations
/// had been done then.
fn story(disk: &CutDisk) -> Vec<(&'static str, usize)> {
    let mut answered = Vec::new();
    // Before the first start nothing can be lost.
    let Ok(snapshots) =
        Snapshots::open(Path::new(ROOT), Arc::new(disk.clone()), Bounds { all: 1 << 20, of_tenant: 1 << 20 })
    else {
        return answered;
    };
    let Ok(first) = taken(&snapshots, "chat-1", Kind::Suspended, b"the first state") else { return answered };
    answered.push(("first", disk.operations()));
    if snapshots.retire(first.id).is_err() {
        return answered;
    }
    answered.push(("resumed", disk.operations()));
    let Ok(second) = taken(&snapshots, "chat-1", Kind::Suspended, b"another, longer state") else { return answered };
    answered.push(("second", disk.operations()));
    if snapshots.retire(second.id).is_ok() {
        answered.push(("ended", disk.operations()));
    }
    answered
}

/// What a start finds of the session: whole, or nothing.
fn found(disk: &CutDisk) -> Option<Vec<u8>> {
    let (pool, key) = place("chat-1");
    let snapshots = open(disk);
    let names = disk.names(Path::new(ROOT)).unwrap();
    assert!(names.iter().all(|name| name.starts_with("suspended-")), "what is half is gone: {names:?}");
    let held = snapshots.suspended(&pool, &key)?;
    Some(content(&snapshots, &held).expect("what is there is whole"))
}

#[test]
fn whenever_the_power_is_cut_there_is_the_old_state_or_the_new() {
    let whole = CutDisk::default();
    let answered: Vec<_> = story(&whole).into_iter().map(|(what, _)| what).collect();
    assert_eq!(answered, ["first", "resumed", "second", "ended"]);
    let mut tried = 0;
    for operation in 0..whole.operations() {
        let partly: &[usize] = if operation.is_multiple_of(3) { &[0, 1, 5] } else { &[0, 3, 7] };
        for bytes in partly {
            let disk = CutDisk::default();
            disk.cut_at(operation, *bytes);
            let answered = story(&disk);
            assert!(disk.is_off());
            let seeds = (0..8).map(|seed| After::Mixed(seed * 1_000 + u64::try_from(operation).unwrap()));
            for after in [After::Lost, After::Kept].into_iter().chain(seeds) {
                let found = found(&disk.after(after));
                let (old, new): (Option<&[u8]>, Option<&[u8]>) = match answered.last() {
                    None => (None, Some(b"the first stateand this")),
                    Some(("first", _)) => (Some(b"the first stateand this"), None),
                    Some(("resumed", _)) => (None, Some(b"another, longer stateand this")),
                    Some(("second", _)) => (Some(b"another, longer stateand this"), None),
                    Some(_) => (None, None),
                };
                // What was cut off at its very beginning has not happened at all.
                let has_begun = answered.last().is_none_or(|(_, done)| operation > *done);
                let is_one = found.as_deref() == old || (has_begun && found.as_deref() == new);
                assert!(is_one, "cut at {operation}+{bytes}, {after:?}, answered {answered:?}: {found:?}");
                tried += 1;
            }
        }
    }
    assert!(tried > 1_000, "{tried}");
}

#[test]
fn the_host_keeps_it_for_nobody_else() {
    use std::os::unix::fs::PermissionsExt;
    let room = tempfile::tempdir().unwrap();
    let root = room.path().join("snapshots");
    let open = || Snapshots::open(&root, Arc::new(HostDisk), Bounds { all: 1 << 20, of_tenant: 1 << 20 }).unwrap();
    let held = taken(&open(), "chat-1", Kind::Suspended, b"bytes").unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let directory = root.join(held.directory());
    assert_eq!((mode(&root), mode(&directory)), (0o700, 0o700));
    for entry in std::fs::read_dir(&directory).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
    std::fs::create_dir(root.join("partial-x")).unwrap();
    std::fs::write(root.join("partial-x/files"), "half").unwrap();
    let snapshots = open();
    assert!(!root.join("partial-x").exists());
    assert_eq!(content(&snapshots, &held).unwrap(), b"bytesand this");
    snapshots.retire(held.id).unwrap();
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
}
