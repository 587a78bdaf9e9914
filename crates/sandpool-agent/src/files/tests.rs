use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use proptest::prelude::*;

/// A directory of the test's own, removed at its end.
struct Room(PathBuf);

impl Room {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().canonicalize().unwrap().join(format!("sandpool-files-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, inner: &str) -> String {
        self.0.join(inner).to_str().unwrap().to_owned()
    }

    fn write(&self, inner: &str, data: &str) {
        let path = self.0.join(inner);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }

    fn own(&self) -> String {
        self.0.to_str().unwrap().to_owned()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn paths(answer: &Answer) -> Vec<&str> {
    let Answer::Entries { entries, .. } = answer else { panic!("{answer:?}") };
    entries.iter().map(|entry| entry.path.as_str()).collect()
}

fn all_pages(path: &str, limit: u32) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    loop {
        let answer = list(path, true, found.last().cloned().as_deref(), limit).unwrap();
        found.extend(paths(&answer).into_iter().map(str::to_owned));
        if let Answer::Entries { more: false, .. } = answer {
            return found;
        }
    }
}

#[test]
fn listings_are_in_the_order_of_paths_and_come_in_pages() {
    let room = Room::new("list");
    for inner in ["a/b/c", "a/z", "a-b", "a.txt", "b", "c/d/e/f", "é/ü"] {
        room.write(inner, "x");
    }
    fs::create_dir(room.0.join("empty")).unwrap();
    fs::write(room.0.join(format!("{UNFINISHED}1")), "").unwrap();
    let mut expected =
        ["a", "a-b", "a.txt", "a/b", "a/b/c", "a/z", "b", "c", "c/d", "c/d/e", "c/d/e/f", "empty", "é", "é/ü"];
    assert_eq!(paths(&list(&room.own(), true, None, 1000).unwrap()), expected);
    expected.sort_unstable();
    for limit in 1..6 {
        assert_eq!(all_pages(&room.own(), limit), expected, "pages of {limit}");
    }
    assert_eq!(paths(&list(&room.own(), false, Some("a.txt"), 2).unwrap()), ["b", "c"]);
}

#[test]
fn links_are_listed_and_never_followed() {
    let room = Room::new("links");
    room.write("real/file", "secret");
    std::os::unix::fs::symlink("real", room.0.join("link")).unwrap();
    std::os::unix::fs::symlink("real/file", room.0.join("file")).unwrap();
    let Answer::Entry(entry) = stat(&room.path("link")).unwrap() else { panic!() };
    assert_eq!(entry.kind, EntryKind::Other);
    assert_eq!(paths(&list(&room.own(), true, None, 10).unwrap()), ["file", "link", "real", "real/file"]);
    for path in ["file", "link/file"] {
        assert!(matches!(read(&room.path(path), 0, 10), Err(Refusal::WrongKind(_))), "{path}");
        assert!(Upload::open(&room.path("link/new"), 1).is_err());
    }
    assert!(list(&room.path("link"), false, None, 10).is_err());
    remove(&room.path("link")).unwrap();
    assert!(room.0.join("real/file").exists());
}

#[test]
fn a_file_is_read_in_pieces() {
    let room = Room::new("read");
    room.write("f", "0123456789");
    let read = |offset, length| match read(&room.path("f"), offset, length).unwrap() {
        Answer::Data { data, size: 10 } => String::from_utf8(data).unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        (read(0, 4), read(8, 4), read(10, 4), read(u64::MAX, 1)),
        ("0123".into(), "89".into(), String::new(), String::new())
    );
}

#[test]
fn pipes_devices_and_directories_are_not_read_and_nothing_waits() {
    let room = Room::new("kinds");
    let pipe = room.path("pipe");
    rustix::fs::mkfifoat(CWD, pipe.as_str(), Mode::from(0o600)).unwrap();
    for path in [pipe.as_str(), "/dev/null", "/", &room.own()] {
        assert!(matches!(read(path, 0, 10), Err(Refusal::WrongKind(_))), "{path}");
    }
    assert_eq!(read("/proc/1/status", 0, 10), Err(Refusal::Denied));
    assert!(matches!(list(&pipe, false, None, 1), Err(Refusal::WrongKind(_))));
    remove(&pipe).unwrap();
}

#[test]
fn an_upload_is_unseen_until_it_is_complete() {
    let room = Room::new("upload");
    let target = room.path("new/dir/file");
    let upload = Upload::open(&target, 7).unwrap();
    upload.write(b"half").unwrap();
    assert_eq!(all_pages(&room.own(), 10), ["new", "new/dir"]);
    drop(upload);
    assert_eq!(fs::read_dir(room.0.join("new/dir")).unwrap().count(), 0);
    room.write("new/dir/file", "old and longer");
    let upload = Upload::open(&target, 8).unwrap();
    upload.write(b"whole").unwrap();
    let Answer::Entry(entry) = upload.commit().unwrap() else { panic!() };
    assert_eq!((entry.path.as_str(), entry.size), ("file", 5));
    assert_eq!(fs::read_to_string(&target).unwrap(), "whole");
    assert_eq!(all_pages(&room.own(), 10).len(), 3);
    assert!(matches!(Upload::open(&room.path("new"), 9), Err(Refusal::WrongKind(_))));
    assert!(matches!(Upload::open(&room.path("new/dir/file/below"), 9), Err(Refusal::WrongKind(_))));
}

#[test]
fn directories_are_removed_with_all_in_them() {
    let room = Room::new("remove");
    for index in 0..1500 {
        room.write(&format!("d/{}/{index}", index % 3), "");
    }
    room.write(&format!("d/{}/x", "deep/".repeat(50)), "");
    remove(&room.path("d")).unwrap();
    assert!(!room.0.join("d").exists());
    assert_eq!(remove(&room.path("d")), Err(Refusal::NotFound));
}

#[test]
fn paths_that_are_not_normal_are_refused() {
    for path in
        ["", "a", "/a/../b", "/a//b", "/a/", "/./a", "/a\0b", &"/a".repeat(3000), &format!("/{}", "x".repeat(256))]
    {
        assert!(matches!(stat(path), Err(Refusal::Invalid(_))), "{path:?}");
    }
    assert!(matches!(stat("/"), Ok(Answer::Entry(_))));
    assert!(remove("/").is_err());
}

proptest! {
    #[test]
    fn no_path_makes_it_panic(path in ".{0,40}") {
        let _ = (stat(&path), list(&path, false, None, 1), read(&path, 0, 1));
    }

    #[test]
    fn pages_together_are_the_whole(names in proptest::collection::btree_set("[a-c./ -]{1,6}", 1..12), limit in 1_u32..5) {
        let room = Room::new(&format!("pages-{:?}", std::thread::current().id()));
        for name in &names {
            let path = room.0.join(name.trim_matches('/'));
            if path.components().all(|part| !matches!(part, std::path::Component::ParentDir)) {
                if let Some(parent) = path.parent() { let _ = fs::create_dir_all(parent); }
                let _ = fs::write(&path, "");
            }
        }
        let mut expected = Vec::new();
        gather(&room.0, &room.0, &mut expected);
        expected.sort();
        prop_assert_eq!(all_pages(&room.own(), limit), expected);
    }
}

fn gather(root: &Path, directory: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        if path.is_dir() {
            gather(root, &path, found);
        }
    }
}

#[test]
fn names_one_by_one_follow_no_link_either() {
    let place = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(place.path()).unwrap();
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/b/file"), "x").unwrap();
    std::os::unix::fs::symlink("b", root.join("a/link")).unwrap();
    std::os::unix::fs::symlink("b/file", root.join("a/end")).unwrap();
    let open = |path: &str, flags: OFlags| step_by_step(root.join(path).to_str().unwrap(), flags);
    assert!(open("a/b/file", OFlags::RDONLY).is_ok() && open("a/b", OFlags::RDONLY | OFlags::DIRECTORY).is_ok());
    assert!(step_by_step("/", OFlags::RDONLY | OFlags::DIRECTORY).is_ok());
    assert_eq!(open("a/link/file", OFlags::RDONLY).unwrap_err(), Errno::NOTDIR);
    assert_eq!(open("a/end", OFlags::RDONLY).unwrap_err(), Errno::LOOP);
    assert_eq!(open("a/end", OFlags::PATH).unwrap_err(), Errno::LOOP);
    assert_eq!(open("a/b/none", OFlags::RDONLY).unwrap_err(), Errno::NOENT);
}
