//! What a VMM answers at its API socket, which whoever got out of a machine may have written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandpool_vm::vmm::api::{Answer, MAX_BODY, MAX_HEAD, parse};

fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes);
    // More is asked for only up to the limits.
    assert!(whole != Ok(None) || bytes.len() < MAX_HEAD + MAX_BODY);
    if let Ok(Some(Answer { status, body })) = &whole {
        assert!((200..600).contains(status) && body.len() <= MAX_BODY);
        // It was not whole before its end, and nothing belongs to it after that.
        assert!(parse(&bytes[..bytes.len() - 1]) == Ok(None));
        assert!(parse(&[bytes, b"x"].concat()).is_err());
    }
});
