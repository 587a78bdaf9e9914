//! Questions for names, as a sandbox sends them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandpool_egress::dns::{Answer, answer, query};

fuzz_target!(|bytes: &[u8]| {
    if let Some(query) = query(bytes) {
        // Nobody gets more than was asked, but for one address.
        assert!(answer(&query, Answer::Refused).len() <= bytes.len());
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        assert!(answer(&query, Answer::Address(address)).len() <= bytes.len() + 16);
    }
});
