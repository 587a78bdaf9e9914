//! A layer of an image, as a stranger packs it: whatever it is, nothing outside the root that is made is touched.
#![no_main]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use sandpool_oci::blobs::Blobs;
use sandpool_oci::unpack::{Limits, unpack};
use sandpool_oci::{Layer, Packing};

/// Where this process works: made once, since most inputs leave nothing behind.
fn place() -> &'static PathBuf {
    static PLACE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    PLACE.get_or_init(|| {
        let place = std::env::temp_dir().join(format!("sandpool-fuzz-oci-{}", std::process::id()));
        fs::create_dir_all(place.join("outside")).unwrap();
        fs::write(place.join("outside/kept"), "untouched").unwrap();
        place
    })
}

fn check(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let meta = entry.as_ref().unwrap().path().symlink_metadata().unwrap();
        assert!(meta.is_file() || meta.is_dir() || meta.is_symlink());
        assert!(meta.is_symlink() || meta.mode() & 0o7022 == 0, "{:o}", meta.mode());
        if meta.is_dir() {
            check(&entry.unwrap().path());
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let (&[kind, ref bytes @ ..], place) = (bytes, place()) else { return };
    let packing = [Packing::Plain, Packing::Plain, Packing::Gzip, Packing::Zstd][usize::from(kind % 4)];
    let root = place.join("root");
    fs::create_dir(&root).unwrap();
    let blobs = Blobs::open(place).unwrap();
    let digest = blobs.take_in(&mut &bytes[..], 1 << 20).unwrap();
    let diff_id = digest.clone();
    let layers = [Layer { digest, diff_id, packing }];
    let limits = Limits { bytes: 1 << 20, entries: 200 };
    // With its digest as a packed layer's contents it is refused in the end, when all of it has been unpacked.
    let _ = unpack(&blobs, &layers, &root, limits, |_| {});
    check(&root);
    assert_eq!(fs::read_to_string(place.join("outside/kept")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(place.join("outside")).unwrap().count(), 1);
    fs::remove_dir_all(&root).unwrap();
    fs::remove_dir_all(place.join("sha256")).unwrap();
    assert_eq!(fs::read_dir(place).unwrap().count(), 1);
});
