//! Synthetic addresses: what a sandbox gets for a name, and what brings the name back when it connects (EG1).
//!
//! A name keeps its number, and an address is never another name's, until a sandbox has asked for so many names that
//! the oldest is forgotten; then its address leads nowhere. Numbers go round only after all have been used.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::host::Host;

/// Names that one sandbox can have addresses of, at the same time.
pub const MAX_NAMES: usize = 4096;

/// 198.18.0.0/15, which is nobody's (RFC 2544). Its first address is the sandbox's own.
const BASE_V4: u32 = 0xc612_0000;
/// As many addresses as there are in it, but the first two and the last.
const NUMBERS: u32 = (1 << 17) - 3;
/// Of fd00::/8, in which everybody makes ranges of their own: `fd5a:6e64:706f::/96`.
const BASE_V6: u128 = 0xfd5a_6e64_706f_0000_0000_0000_0000_0000;

/// The names of one sandbox.
#[derive(Debug, Default)]
pub struct Names {
    numbers: HashMap<Host, u32>,
    hosts: HashMap<u32, Host>,
    /// The oldest first.
    order: VecDeque<u32>,
    next: u32,
}

impl Names {
    /// Whether the name has addresses.
    #[must_use]
    pub fn has(&self, host: &Host) -> bool {
        self.numbers.contains_key(host)
    }

    /// The number of a name: an old one, or a new one.
    pub fn number(&mut self, host: &Host) -> u32 {
        if let Some(number) = self.numbers.get(host) {
            return *number;
        }
        if self.order.len() >= MAX_NAMES
            && let Some(oldest) = self.order.pop_front()
            && let Some(host) = self.hosts.remove(&oldest)
        {
            self.numbers.remove(&host);
        }
        let number = self.next;
        self.next = (self.next + 1) % NUMBERS;
        self.numbers.insert(host.clone(), number);
        self.hosts.insert(number, host.clone());
        self.order.push_back(number);
        number
    }

    /// The name that an address stands for: `Err` for a synthetic one that stands for none (any more), `Ok(None)` for
    /// one that is not synthetic.
    ///
    /// # Errors
    /// It stands for no name.
    pub fn host(&self, address: IpAddr) -> Result<Option<&Host>, Unknown> {
        let number = match address.to_canonical() {
            IpAddr::V4(address) if address.to_bits() & !0x1_ffff == BASE_V4 => {
                (address.to_bits() & 0x1_ffff).checked_sub(2)
            }
            IpAddr::V6(address) if address.to_bits() & !0xffff_ffff == BASE_V6 => {
                u32::try_from(address.to_bits() & 0xffff_ffff).ok().and_then(|low| low.checked_sub(2))
            }
            _ => return Ok(None),
        };
        number.and_then(|number| self.hosts.get(&number)).map(Some).ok_or(Unknown)
    }
}

/// A synthetic address that stands for no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

/// A number's address of version 4.
#[must_use]
pub fn v4(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(BASE_V4 + 2 + number)
}

/// A number's address of version 6.
#[must_use]
pub fn v6(number: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(BASE_V6 + 2 + u128::from(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_bring_names_back() {
        let mut names = Names::default();
        let hosts: Vec<Host> = (0..100).map(|at| Host::parse(&format!("a{at}.example.com")).unwrap()).collect();
        for host in &hosts {
            let number = names.number(host);
            assert_eq!(names.number(host), number);
            assert_eq!(names.host(v4(number).into()), Ok(Some(host)));
            assert_eq!(names.host(v6(number).into()), Ok(Some(host)));
            assert_eq!(names.host(v4(number).to_ipv6_mapped().into()), Ok(Some(host)));
        }
        assert_eq!(v4(0).to_string(), "198.18.0.2");
        assert_eq!(v4(NUMBERS - 1).to_string(), "198.19.255.254");
        assert_eq!(v6(0).to_string(), "fd5a:6e64:706f::2");
        for address in [
            "198.18.0.0",
            "198.18.0.1",
            "198.19.255.255",
            "198.19.0.9",
            "fd5a:6e64:706f::1",
            "fd5a:6e64:706f::ffff:ffff",
        ] {
            assert_eq!(names.host(address.parse().unwrap()), Err(Unknown), "{address}");
        }
        for address in ["1.1.1.1", "198.20.0.2", "198.17.255.255", "fd5a:6e64:706f:1::2", "::1"] {
            assert_eq!(names.host(address.parse().unwrap()), Ok(None), "{address}");
        }
    }

    #[test]
    fn a_forgotten_name_leaves_an_address_that_leads_nowhere() {
        let mut names = Names::default();
        let host = |at: usize| Host::parse(&format!("a{at}.example.com")).unwrap();
        for at in 0..=MAX_NAMES {
            names.number(&host(at));
        }
        assert_eq!(names.hosts.len(), MAX_NAMES);
        assert!(!names.has(&host(0)) && names.has(&host(1)));
        assert_eq!(names.host(v4(0).into()), Err(Unknown));
        // It comes again, and gets an address that was nobody's.
        assert_eq!(usize::try_from(names.number(&host(0))).unwrap(), MAX_NAMES + 1);
    }
}
