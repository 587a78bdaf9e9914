//! The tree of files that an agent is given to unpack.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandpool_wire::tree::{Item, Items, MAX_DATA};

fuzz_target!(|bytes: &[u8]| {
    let mut items = Items::default();
    let mut depth = 0_usize;
    for piece in bytes.chunks(97) {
        items.push(piece);
        loop {
            match items.take() {
                Err(_) => return,
                Ok(None) => break,
                Ok(Some(Item::Root(_))) => {
                    assert_eq!(depth, 0);
                    depth = 1;
                }
                Ok(Some(Item::Enter(name))) => {
                    assert!(!name.is_empty() && !name.contains(&b'/') && name != b"..");
                    depth += 1;
                }
                Ok(Some(Item::Leave(_))) => depth -= 1,
                Ok(Some(Item::Data { bytes, .. })) => assert!(bytes.len() <= MAX_DATA),
                Ok(Some(_)) => {}
            }
        }
    }
    if items.finish().is_ok() {
        assert_eq!(depth, 0);
    }
});
