//! Which addresses nobody in a sandbox may reach (EG3): all that is not the public Internet, in every spelling.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an address is that is not public.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `0.0.0.0/8`, `::`.
    Unspecified,
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// `169.254.0.0/16`, `fe80::/10`: also where clouds keep their metadata.
    LinkLocal,
    /// `10.0.0.0/8` and its like, `fc00::/7`.
    Private,
    /// `100.64.0.0/10`, between a provider and its customers.
    Shared,
    /// A cloud's own service for its machines, such as `168.63.129.16`.
    Metadata,
    /// To many.
    Multicast,
    /// Set aside: for tests, documentation, protocols, or the future.
    Reserved,
    /// An address of this host.
    Own,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::Private => "private",
            Self::Shared => "carrier-shared",
            Self::Metadata => "cloud-metadata",
            Self::Multicast => "multicast",
            Self::Reserved => "reserved",
            Self::Own => "host's-own",
        })
    }
}

/// What an address is, when it is not a public one.
#[must_use]
pub fn not_public(address: IpAddr) -> Option<Kind> {
    match address {
        IpAddr::V4(address) => not_public_v4(address),
        IpAddr::V6(address) => not_public_v6(address),
    }
}

fn not_public_v4(address: Ipv4Addr) -> Option<Kind> {
    match address.octets() {
        [0, ..] => Some(Kind::Unspecified),
        [127, ..] => Some(Kind::Loopback),
        [169, 254, ..] => Some(Kind::LinkLocal),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Some(Kind::Private),
        [100, 64..=127, ..] => Some(Kind::Shared),
        // Azure's host, and Oracle's metadata.
        [168, 63, 129, 16] | [192, 0, 0, 192] => Some(Kind::Metadata),
        [224..=239, ..] => Some(Kind::Multicast),
        // Protocols, documentation, 6to4's relays, benchmarks (also our synthetic addresses), the future.
        [192, 0, 0 | 2, _]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [192, 88, 99, _]
        | [198, 18..=19, ..]
        | [240..=255, ..] => Some(Kind::Reserved),
        _ => None,
    }
}

fn not_public_v6(address: Ipv6Addr) -> Option<Kind> {
    let [a, b, c, .., g, h] = address.segments();
    let lower = v4(g, h);
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some(Kind::Unspecified),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(Kind::Loopback),
        // Images of version 4 are what they are images of: mapped, and through a translator (NAT64).
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => not_public_v4(lower),
        // 6to4 and Teredo are no more in use, but their routes may be.
        [0x2002, ..] => Some(not_public_v4(v4(b, c)).unwrap_or(Kind::Reserved)),
        [0x2001, 0, ..] => Some(not_public_v4(v4(!g, !h)).unwrap_or(Kind::Reserved)),
        [0xfe80..=0xfebf, ..] => Some(Kind::LinkLocal),
        // Amazon's metadata has its place here too.
        [0xfc00..=0xfdff, ..] => Some(Kind::Private),
        [0xff00..=0xffff, ..] => Some(Kind::Multicast),
        // ISATAP: an address of version 4 within one of version 6.
        [.., 0 | 0x200, 0x5efe, _, _] => Some(not_public_v4(lower).unwrap_or(Kind::Reserved)),
        // Protocols and documentation, out of what is given to the public.
        [0x2001, 0x0001..=0x01ff | 0x0db8, ..] | [0x3fff, 0..=0x0fff, ..] => Some(Kind::Reserved),
        _ if a & 0xe000 == 0x2000 => None,
        _ => Some(Kind::Reserved),
    }
}

fn v4(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))
}

/// A range of addresses, `10.0.0.0/8` or `fd00::/8`; a single address is one too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    base: IpAddr,
    bits: u32,
}

impl Net {
    /// Parses a range. Bits after the prefix must be zero, so that a typing error is seen.
    ///
    /// # Errors
    /// A sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let base: IpAddr =
            address.parse().map_err(|_| format!("{text:?} is neither an address nor a range of them"))?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(digits) => digits
                .parse()
                .ok()
                .filter(|bits| *bits <= most && digits.bytes().all(|byte| byte.is_ascii_digit()))
                .ok_or_else(|| format!("{text:?} has no prefix of 0 to {most} bits"))?,
        };
        if base != base.to_canonical() {
            return Err(format!("{text:?} stands for addresses of version 4: write those"));
        }
        let net = Self { base, bits };
        if net.head(base) == Some(net.bits_of(base)) {
            Ok(net)
        } else {
            Err(format!("{text:?} has bits set after its first {bits}"))
        }
    }

    /// Whether the address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.head(address).is_some_and(|head| head == self.bits_of(self.base))
    }

    fn bits_of(&self, address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(address) => address.to_bits().into(),
            IpAddr::V6(address) => address.to_bits(),
        }
    }

    /// The address with all but the first bits cleared; `None` for one of the other version.
    fn head(&self, address: IpAddr) -> Option<u128> {
        if address.is_ipv4() != self.base.is_ipv4() {
            return None;
        }
        let width = if address.is_ipv4() { 32 } else { 128 };
        let tail = width - self.bits;
        Some(self.bits_of(address).checked_shr(tail).unwrap_or(0).checked_shl(tail).unwrap_or(0))
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> Option<Kind> {
        not_public(text.parse().unwrap())
    }

    #[test]
    fn public_addresses_are_public() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "172.15.0.1",
            "172.32.0.1",
            "100.63.0.1",
            "168.63.129.17",
            "2606:4700::1111",
            "64:ff9b::808:808",
            "::ffff:8.8.8.8",
        ] {
            assert_eq!(kind(text), None, "{text}");
        }
    }

    #[test]
    fn the_metadata_service_is_refused_in_every_spelling() {
        for text in [
            "169.254.169.254",
            "169.254.170.2",
            "::ffff:169.254.169.254",
            "::ffff:a9fe:a9fe",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "::169.254.169.254",
            "2001:0:1:2:3:4:5601:5601",
            "2606:4700::5efe:a9fe:a9fe",
        ] {
            assert!(kind(text).is_some(), "{text}");
        }
    }

    #[test]
    fn what_is_not_public_is_named() {
        for (text, expected) in [
            ("0.0.0.0", Kind::Unspecified),
            ("0.1.2.3", Kind::Unspecified),
            ("::", Kind::Unspecified),
            ("127.0.0.1", Kind::Loopback),
            ("127.255.255.254", Kind::Loopback),
            ("::1", Kind::Loopback),
            ("::ffff:127.0.0.1", Kind::Loopback),
            ("64:ff9b::7f00:1", Kind::Loopback),
            ("2002:7f00:1::", Kind::Loopback),
            ("10.0.0.1", Kind::Private),
            ("172.16.0.1", Kind::Private),
            ("172.31.255.255", Kind::Private),
            ("192.168.1.1", Kind::Private),
            ("2002:c0a8:101::1", Kind::Private),
            ("fc00::1", Kind::Private),
            ("fd12::1", Kind::Private),
            ("fe80::1", Kind::LinkLocal),
            ("fec0::1", Kind::Reserved),
            ("100.64.0.1", Kind::Shared),
            ("224.0.0.1", Kind::Multicast),
            ("ff02::1", Kind::Multicast),
            ("255.255.255.255", Kind::Reserved),
            ("240.0.0.1", Kind::Reserved),
            ("198.18.0.1", Kind::Reserved),
            ("192.0.2.1", Kind::Reserved),
            ("2001:db8::1", Kind::Reserved),
            ("64:ff9b:1::1", Kind::Reserved),
            ("2002:808:808::1", Kind::Reserved),
            ("::8.8.8.8", Kind::Reserved),
        ] {
            assert_eq!(kind(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn ranges_contain_what_they_say() {
        let net = |text: &str| Net::parse(text).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(net("10.0.0.0/8").contains(ip("10.255.0.1")));
        assert!(net("10.0.0.0/8").contains(ip("::ffff:10.1.1.1")));
        assert!(!net("10.0.0.0/8").contains(ip("11.0.0.1")));
        assert!(!net("10.0.0.0/8").contains(ip("fd00::1")));
        assert!(net("0.0.0.0/0").contains(ip("1.2.3.4")));
        assert!(net("::/0").contains(ip("fd00::1")));
        assert!(net("fd00::/8").contains(ip("fd12::1")));
        assert!(net("127.0.0.1").contains(ip("127.0.0.1")));
        assert!(!net("127.0.0.1").contains(ip("127.0.0.2")));
        for text in [
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0/8",
            "::ffff:10.0.0.0/104",
            "a",
            "10.0.0.0/+8",
            "fd00::1/8",
        ] {
            assert!(Net::parse(text).is_err(), "{text}");
        }
        assert_eq!(net("10.0.0.0/8").to_string(), "10.0.0.0/8");
    }
}
