//! What a sandbox says to the server.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandpool_wire::{agent::FromAgent, frame};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some((message, used))) = frame::take::<FromAgent>(bytes) {
        assert!(used <= bytes.len() && used <= frame::HEADER + frame::MAX_FRAME);
        let again = frame::encode(&message).expect("what was a frame fits into one");
        assert_eq!(frame::take(&again).expect("ours"), Some((message, again.len())));
    }
});
