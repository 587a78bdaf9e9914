//! SOCKS 5, as a sandbox speaks it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandpool_egress::socks::{MAX_HANDSHAKE, Read, greeting, request};

fuzz_target!(|bytes: &[u8]| {
    if let Read::Whole(_, length) = greeting(bytes) {
        assert!(length <= bytes.len());
    }
    match request(bytes) {
        Read::Whole(_, length) => assert!(length <= bytes.len() && length <= MAX_HANDSHAKE),
        Read::More => assert!(bytes.len() < MAX_HANDSHAKE),
        Read::Bad(_) => {}
    }
});
