//! The first message of TLS, as a sandbox sends it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandpool_egress::sni::{Hello, Read, read};

fuzz_target!(|bytes: &[u8]| {
    if let Read::Hello(Hello { name: Some(name), .. }) = read(bytes) {
        // What is read from the whole is not read otherwise from the whole and more.
        let more = [bytes, b"more"].concat();
        assert!(matches!(read(&more), Read::Hello(Hello { name: Some(again), .. }) if again == name));
    }
});
