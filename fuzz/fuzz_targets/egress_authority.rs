//! Hosts and ports of CONNECT, Host and a pool's lists.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandpool_egress::host::{Host, Target, authority};
use sandpool_egress::policy::Policy;
use sandpool_wire::egress::{Mode, Policy as Texts};

fuzz_target!(|text: &str| {
    if let Ok(host) = Host::parse(text) {
        assert_eq!(Host::parse(host.as_str()).as_ref(), Ok(&host));
        assert!(host.as_str().parse::<std::net::IpAddr>().is_err());
    }
    if let Ok((target, _)) = authority(text) {
        assert_eq!(Target::parse(&target.to_string()), Ok(target));
    }
    let texts = Texts { mode: Mode::AllowList, allow: vec![text.to_owned()], ..Texts::default() };
    // A list is understood or refused.
    let _ = Policy::parse(&texts);
});
