//! What a server, which faces the network, says to its launcher, which is root; and the way back.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    sandpool_process::is_packet(bytes);
});
