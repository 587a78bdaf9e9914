use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::*;

fn packed(roots: &[&Path]) -> Vec<u8> {
    let mut pack = Pack::begin(named(roots)).unwrap();
    let mut all = Vec::new();
    loop {
        let (data, is_last) = pack.take().unwrap();
        assert!(data.len() <= sandpool_wire::agent::MAX_CHUNK);
        all.extend(data);
        if is_last {
            return all;
        }
    }
}

fn named(roots: &[&Path]) -> Vec<String> {
    roots.iter().map(|root| root.canonicalize().unwrap().to_str().unwrap().to_owned()).collect()
}

fn unpacked(bytes: &[u8], roots: &[&Path]) -> Result<Answer, Refusal> {
    let mut unpack = Unpack::begin(named(roots)).unwrap();
    for piece in bytes.chunks(100_000) {
        unpack.put(piece)?;
    }
    unpack.end()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_tree_is_put_back_as_it_was() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (from.path(), to.path());
    let (data, home) = (a.join("data"), a.join("home"));
    fs::create_dir_all(data.join("deep/er")).unwrap();
    fs::create_dir(&home).unwrap();
    fs::write(data.join("deep/er/file"), vec![7; 700_000]).unwrap();
    fs::write(data.join("empty"), "").unwrap();
    fs::write(home.join("secret"), "s").unwrap();
    fs::hard_link(data.join("deep/er/file"), data.join("again")).unwrap();
    fs::write(data.join(OsStr::from_bytes(b"not \xff text")), "x").unwrap();
    symlink("/etc/passwd", data.join("out")).unwrap();
    symlink("deep", data.join("in")).unwrap();
    // Of a file of a gigabyte, one byte.
    let sparse = fs::File::create(data.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"!", 500_000_000).unwrap();
    sparse.set_len(1_000_000_000).unwrap();
    let when = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5);
    fs::File::open(data.join("empty")).unwrap().set_modified(when).unwrap();
    for (path, mode) in [("deep/er/file", 0o4751), ("empty", 0o000), ("deep/er", 0o555), ("deep", 0o1700)] {
        fs::set_permissions(data.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let bytes = packed(&[&data, &home]);
    assert!(bytes.len() < 1_000_000, "holes and second names are not written: {}", bytes.len());

    let (data, home) = (b.join("data"), b.join("home"));
    fs::create_dir(&data).unwrap();
    fs::create_dir(&home).unwrap();
    // What is there already is replaced, and not written through.
    fs::write(a.join("outside"), "untouched").unwrap();
    symlink(a.join("outside"), home.join("secret")).unwrap();
    fs::write(data.join("deep"), "in the way").unwrap();
    fs::write(data.join("stays"), "").unwrap();
    unpacked(&bytes, &[&data, &home]).unwrap();
    assert_eq!(fs::read_to_string(home.join("secret")).unwrap(), "s");
    assert_eq!(fs::read_to_string(a.join("outside")).unwrap(), "untouched");
    assert!(data.join("stays").exists());
    assert_eq!(fs::read(data.join("again")).unwrap(), vec![7; 700_000]);
    let inode = |path: &str| fs::metadata(data.join(path)).unwrap().ino();
    assert_eq!(inode("again"), inode("deep/er/file"), "two names of one file");
    assert_eq!(fs::read_to_string(data.join(OsStr::from_bytes(b"not \xff text"))).unwrap(), "x");
    assert_eq!(fs::read_link(data.join("out")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::read_link(data.join("in")).unwrap(), Path::new("deep"));
    let sparse = fs::metadata(data.join("sparse")).unwrap();
    assert_eq!((sparse.len(), sparse.blocks() < 10_000), (1_000_000_000, true));
    assert_eq!(fs::metadata(data.join("empty")).unwrap().modified().unwrap(), when);
    for (path, expected) in [("deep/er/file", 0o751), ("empty", 0o000), ("deep/er", 0o555), ("deep", 0o1700)] {
        assert_eq!(mode(&data.join(path)), expected, "{path}");
    }
    // Otherwise nobody but root could remove them.
    for (root, path) in [(a, "data/deep/er"), (b, "data/deep/er")] {
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn what_is_not_there_is_left_out_and_what_is_not_whole_is_refused() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(from.path().join("file"), "x").unwrap();
    let missing = vec![from.path().join("none").to_str().unwrap().to_owned(), named(&[from.path()]).remove(0)];
    let mut pack = Pack::begin(missing).unwrap();
    let (bytes, is_last) = pack.take().unwrap();
    assert!(is_last);
    let both: [&Path; 2] = [&from.path().join("."), to.path()];
    unpacked(&bytes, &both).unwrap();
    assert_eq!(fs::read_to_string(to.path().join("file")).unwrap(), "x", "it is the second root's");
    for end in 0..bytes.len() {
        assert!(unpacked(&bytes[..end], &both).is_err(), "{end} bytes of {}", bytes.len());
    }
    // One root fewer than there were.
    assert!(unpacked(&bytes, &both[..1]).is_err());
}

#[test]
fn a_hostile_tree_reaches_nothing_outside_of_its_roots() {
    let (here, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let put = |items: &[Item]| {
        let mut bytes: Vec<u8> = items.iter().flat_map(|item| frame::encode(item).unwrap()).collect();
        bytes.extend(frame::encode(&Item::End(u64::try_from(items.len()).unwrap())).unwrap());
        unpacked(&bytes, &[here.path()])
    };
    let leave = || Item::Leave(Kept { mode: 0o755, modified_ns: 0 });
    let file = |name: &str| Item::File { name: name.into(), kept: Kept::default(), size: 1, number: None };
    let link = |name: &str| Item::Link { name: name.into(), target: outside.path().as_os_str().as_bytes().to_vec() };
    // Through a link of its own: the link is replaced by a directory.
    put(&[Item::Root(0), link("a"), Item::Enter(b"a".to_vec()), file("inside"), leave(), leave()]).unwrap();
    assert!(here.path().join("a/inside").exists());
    // By a name of several components, a second name of what is not there, bytes beyond a file's end.
    assert!(put(&[Item::Root(0), file("../b"), leave()]).is_err());
    assert!(put(&[Item::Root(0), Item::Same { name: b"c".to_vec(), number: 9 }, leave()]).is_err());
    let far = Item::Data { offset: u64::MAX, bytes: vec![0] };
    assert!(put(&[Item::Root(0), file("d"), far, leave()]).is_err());
    assert!(put(&[Item::Root(7), leave()]).is_err());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}
