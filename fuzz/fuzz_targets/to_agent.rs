//! What the agent of a sandbox hears.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandpool_wire::{agent::ToAgent, frame};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some((message, used))) = frame::take::<ToAgent>(bytes) {
        assert!(used <= bytes.len() && used <= frame::HEADER + frame::MAX_FRAME);
        let again = frame::encode(&message).expect("what was a frame fits into one");
        assert_eq!(frame::take(&again).expect("ours"), Some((message, again.len())));
    }
});
