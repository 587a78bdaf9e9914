use std::os::unix::fs::{MetadataExt, PermissionsExt};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;

/// Layers, blobs of them, and the root they are unpacked into; beside it, what nothing may touch.
struct Bench {
    place: TempDir,
    blobs: Blobs,
    layers: Vec<Layer>,
}

/// An entry: its name as it is, its kind, what a link leads to, and what is in it.
struct Given<'a>(&'a [u8], EntryType, &'a [u8], &'a [u8]);

fn file<'a>(name: &'a str, bytes: &'a str) -> Given<'a> {
    Given(name.as_bytes(), EntryType::Regular, b"", bytes.as_bytes())
}

fn link<'a>(name: &'a str, target: &'a str) -> Given<'a> {
    Given(name.as_bytes(), EntryType::Symlink, target.as_bytes(), b"")
}

fn hard<'a>(name: &'a str, target: &'a str) -> Given<'a> {
    Given(name.as_bytes(), EntryType::Link, target.as_bytes(), b"")
}

fn directory(name: &str) -> Given<'_> {
    Given(name.as_bytes(), EntryType::Directory, b"", b"")
}

/// An archive whose names nobody has looked at.
fn archive(entries: &[Given<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for Given(name, kind, target, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o4711);
        header.set_uid(4711);
        header.set_mtime(1_000_000);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

impl Bench {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&place.path().join("blobs")).unwrap();
        std::fs::create_dir_all(place.path().join("root")).unwrap();
        std::fs::write(place.path().join("outside"), "untouched").unwrap();
        Self { place, blobs, layers: Vec::new() }
    }

    fn root(&self) -> PathBuf {
        self.place.path().join("root")
    }

    fn add(&mut self, entries: &[Given<'_>]) -> &mut Self {
        self.add_bytes(&archive(entries), Packing::Plain)
    }

    fn add_bytes(&mut self, plain: &[u8], packing: Packing) -> &mut Self {
        let packed = match packing {
            Packing::Plain => plain.to_vec(),
            Packing::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            Packing::Zstd => ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest),
        };
        let digest = self.blobs.take_in(&mut packed.as_slice(), u64::MAX).unwrap();
        let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(plain)));
        self.layers.push(Layer { digest, diff_id, packing });
        self
    }

    fn unpack(&self) -> Result<Unpacked, OciError> {
        self.unpack_within(Limits::default())
    }

    /// Whatever comes of it: nothing outside is touched.
    fn unpack_within(&self, limits: Limits) -> Result<Unpacked, OciError> {
        let done = unpack(&self.blobs, &self.layers, &self.root(), limits, |_| {});
        let outside: BTreeSet<_> =
            std::fs::read_dir(self.place.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(outside.len(), 3, "{outside:?}");
        assert_eq!(std::fs::read_to_string(self.place.path().join("outside")).unwrap(), "untouched");
        done
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.root().join(name)).unwrap()
    }

    fn has(&self, name: &str) -> bool {
        self.root().join(name).symlink_metadata().is_ok()
    }

    fn why(&self) -> String {
        self.unpack().unwrap_err().to_string()
    }
}

#[test]
fn layers_lie_over_each_other() {
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let mut bench = Bench::new();
        bench.add_bytes(
            &archive(&[
                directory("./etc/"),
                file("./etc/one", "1"),
                file("etc/two", "2"),
                link("etc/link", "two"),
                hard("etc/hard", "etc/one"),
                directory("old"),
                file("old/file", "x"),
                file("replaced/by/a/file", "x"),
            ]),
            packing,
        );
        bench.add_bytes(&archive(&[file("etc/two", "changed"), file("replaced", "y"), directory("etc/link")]), packing);
        let done = bench.unpack().unwrap();
        assert_eq!((done.entries, done.left_out), (11, 0));
        assert_eq!(
            (bench.text("etc/one"), bench.text("etc/two"), bench.text("etc/hard")),
            ("1".into(), "changed".into(), "1".into())
        );
        assert_eq!((bench.text("replaced"), bench.text("old/file")), ("y".into(), "x".into()));
        assert!(bench.root().join("etc/link").symlink_metadata().unwrap().is_dir());
        // Readable for all, nobody's rights in them, and as old as they are.
        let meta = bench.root().join("etc/one").metadata().unwrap();
        assert_eq!((meta.permissions().mode() & 0o7777, meta.mtime()), (0o755, 1_000_000));
        assert_ne!(meta.uid(), 4711);
        assert_eq!(bench.root().join("etc").metadata().unwrap().mtime(), 1_000_000);
    }
}

#[test]
fn names_that_lead_out_are_refused_or_meant_inside() {
    for name in ["../outside", "a/../../outside", "..", "./../outside", "a/b/../../../outside"] {
        let mut bench = Bench::new();
        bench.add(&[file(name, "bad")]);
        assert!(bench.why().contains("leads out of the image"), "{name}");
    }
    // Absolute names are the image's own, as everywhere.
    let mut bench = Bench::new();
    let absolute = bench.place.path().join("outside");
    let absolute = absolute.to_str().unwrap().to_owned();
    bench.add(&[file(&absolute, "inside")]);
    bench.unpack().unwrap();
    assert_eq!(bench.text(absolute.trim_start_matches('/')), "inside");
}

#[test]
fn links_lead_nowhere_but_inside() {
    let bench = Bench::new();
    let outside = bench.place.path().to_str().unwrap().to_owned();
    let up = "../../../../../../../../..".to_owned() + &outside;
    for target in [outside.as_str(), up.as_str(), "/proc/self/root", "/proc/self/cwd", "/proc/1/root"] {
        // A link to a directory outside, and a file through it: in this layer, and in the next.
        for layers in [1, 2] {
            let mut bench = Bench::new();
            if layers == 1 {
                bench.add(&[link("door", target), file("door/outside", "bad")]);
            } else {
                bench.add(&[link("door", target)]).add(&[file("door/outside", "bad")]);
            }
            let _ = bench.unpack();
        }
        // A link to a file outside that is written again, and one that is linked to.
        let direct = format!("{target}/outside");
        let mut bench = Bench::new();
        bench.add(&[link("door", &direct), file("door", "inside")]);
        bench.unpack().unwrap();
        assert_eq!(bench.text("door"), "inside");
        let mut bench = Bench::new();
        bench.add(&[link("door", &direct), hard("copy", "door")]).add(&[file("copy", "inside")]);
        bench.unpack().unwrap();
        assert_eq!(bench.text("copy"), "inside");
    }
    // A link inside is a way inside.
    let mut bench = Bench::new();
    bench.add(&[directory("usr"), directory("usr/lib"), link("lib", "/usr/lib"), file("lib/found", "x")]);
    bench.unpack().unwrap();
    assert_eq!(bench.text("usr/lib/found"), "x");
}

#[test]
fn hard_links_have_targets_inside() {
    let bench = Bench::new();
    let outside = bench.place.path().join("outside").to_str().unwrap().to_owned();
    for target in ["../outside", "a/../../outside", "", "/", outside.as_str(), "missing", "copy"] {
        let mut bench = Bench::new();
        bench.add(&[hard("copy", target)]);
        assert!(bench.why().contains("copy"), "{target}");
    }
    // Through a link to a directory outside.
    let mut bench = Bench::new();
    let door = bench.place.path().to_str().unwrap().to_owned();
    bench.add(&[link("door", &door), hard("copy", "door/outside")]);
    bench.unpack().unwrap_err();
    let mut bench = Bench::new();
    bench.add(&[directory("dir"), hard("copy", "dir")]);
    assert!(bench.why().contains("directory"));
    // One that is written again changes itself alone.
    let mut bench = Bench::new();
    bench.add(&[file("one", "1"), hard("two", "one")]).add(&[file("two", "2")]);
    bench.unpack().unwrap();
    assert_eq!((bench.text("one"), bench.text("two")), ("1".into(), "2".into()));
}

#[test]
fn devices_and_pipes_are_left_out() {
    let mut bench = Bench::new();
    let kinds = [EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::new(b'9')];
    let entries: Vec<_> = kinds.iter().map(|kind| Given(b"dev/thing", *kind, b"", b"")).collect();
    bench.add(&entries);
    let done = bench.unpack().unwrap();
    assert_eq!((done.left_out, bench.has("dev/thing")), (4, false));
}

#[test]
fn whiteouts_remove_what_is_older_and_nothing_else() {
    let mut bench = Bench::new();
    bench
        .add(&[file("a/one", "1"), file("a/two", "2"), file("a/deep/er/file", "x"), file("b/old", "x"), file("c", "x")])
        .add(&[
            file("a/.wh.one", ""),
            file("a/.wh.deep", ""),
            file("b/new", "y"),
            file("b/.wh..wh..opq", ""),
            file("c", "new"),
            file(".wh.c", ""),
            file("missing/.wh.x", ""),
            file("a/.wh..wh.plnk", ""),
        ]);
    bench.unpack().unwrap();
    assert!(!bench.has("a/one") && bench.has("a/two") && !bench.has("a/deep"));
    assert!(
        !bench.has("b/old")
            && bench.has("b/new")
            && bench.has("c")
            && !bench.has("missing")
            && !bench.has("a/.wh..wh.plnk")
    );
    for name in [".wh.", ".wh..", ".wh...", "a/.wh..", "a/.wh..."] {
        let mut bench = Bench::new();
        bench.add(&[file("a/keep", "1")]).add(&[file(name, "")]);
        assert!(bench.why().contains("no name"), "{name}");
    }
    // Through a link, to what is outside.
    let mut bench = Bench::new();
    let door = bench.place.path().to_str().unwrap().to_owned();
    bench.add(&[link("door", &door)]).add(&[
        file("door/.wh.outside", ""),
        file("door/.wh..wh..opq", ""),
        file(".wh.door", ""),
    ]);
    bench.unpack().unwrap();
    assert!(!bench.has("door"));
}

#[test]
fn what_is_too_large_is_refused_before_it_fills_the_disk() {
    let limits = Limits { bytes: 1 << 20, entries: 100 };
    let mut bench = Bench::new();
    bench.add_bytes(&archive(&[file("zeros", &"\0".repeat(2 << 20))]), Packing::Gzip);
    assert!(bench.unpack_within(limits).unwrap_err().to_string().contains("too large"));
    // A header alone promises it: a sparse file of 1 TiB.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_path("sparse").unwrap();
    header.set_size(0);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.realsize[..12].copy_from_slice(b"20000000000\0");
    gnu.sparse[0].offset[..12].copy_from_slice(b"20000000000\0");
    gnu.sparse[0].numbytes[..12].copy_from_slice(b"00000000000\0");
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend([0; 1024]);
    let mut bench = Bench::new();
    bench.add_bytes(&bytes, Packing::Plain);
    let why = bench.unpack_within(limits).unwrap_err().to_string();
    assert!(why.contains("too large"), "{why}");
    // Many small ones, and what follows the end of the archive.
    let names: Vec<_> = (0..101).map(|number| format!("file-{number}")).collect();
    let many: Vec<_> = names.iter().map(|name| file(name, "")).collect();
    let mut bench = Bench::new();
    bench.add(&many);
    assert!(bench.unpack_within(limits).unwrap_err().to_string().contains("100 entries"));
    let mut bytes = archive(&[file("small", "x")]);
    bytes.extend(vec![0; 8 << 20]);
    let mut bench = Bench::new();
    bench.add_bytes(&bytes, Packing::Gzip);
    assert!(bench.unpack_within(limits).unwrap_err().to_string().contains("does not end"));
    // And too deep.
    let deep = "d/".repeat(49) + "f";
    let mut bench = Bench::new();
    bench.add(&[file(&deep, "x")]);
    bench.unpack().unwrap();
}

#[test]
fn a_sparse_file_is_sparse() {
    let mut bench = Bench::new();
    let mut text = "\0".repeat(4 << 20);
    text.push('x');
    bench.add(&[file("sparse", &text)]);
    bench.unpack().unwrap();
    let meta = bench.root().join("sparse").metadata().unwrap();
    assert_eq!(meta.len(), (4 << 20) + 1);
    assert!(meta.blocks() * 512 < 1 << 20, "{}", meta.blocks());
    assert_eq!(bench.text("sparse"), text);
}

#[test]
fn a_layer_is_what_its_digest_says_and_an_archive() {
    let mut bench = Bench::new();
    bench.add(&[file("one", "1")]);
    bench.layers[0].diff_id = format!("sha256:{}", "0".repeat(64));
    assert!(bench.why().contains("and should be"));
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let mut bench = Bench::new();
        bench.add_bytes(&[b'x'; 700], packing);
        bench.unpack().unwrap_err();
        bench.layers[0].packing = if packing == Packing::Gzip { Packing::Zstd } else { Packing::Gzip };
        bench.unpack().unwrap_err();
    }
    // Cut short anywhere.
    let whole = archive(&[file("one", &"text ".repeat(300)), file("two", "2")]);
    for end in (0..whole.len() - 1024).step_by(97) {
        let mut bench = Bench::new();
        bench.add_bytes(&whole[..end], Packing::Plain);
        let _ = bench.unpack();
    }
}

#[test]
fn names_of_any_bytes_are_names_or_errors() {
    let names: [&[u8]; 6] = [b"\xff\xfe/\x80", b"new\nline", b"a//b///c", b" ", b".wh", b"...."];
    let mut bench = Bench::new();
    let entries: Vec<_> = names.iter().map(|name| Given(name, EntryType::Regular, b"", b"x")).collect();
    bench.add(&entries);
    bench.unpack().unwrap();
    assert!(bench.has("a/b/c") && bench.has("...."));
}
