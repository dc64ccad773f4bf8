//! What addresses are, by themselves: which lead to whoever calls them, and which to nobody who is to be called.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address of IPv4 that one leads to: as it is, or as IPv6 writes it. IPv4-compatible (RFC 4291), IPv4-translated (RFC 2765),
/// NAT64 (RFC 6052, and RFC 8215 for prefixes of one's own) and 6to4 (RFC 3056) addresses lead to one.
fn v4_behind(address: IpAddr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match address.to_canonical() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(address) => match address.segments() {
            [0x64, 0xff9b, 1, ..] => Some(v4_behind_own_nat64(address)),
            [0, 0, 0, 0, 0, 0, high, low]
            | [0, 0, 0, 0, 0xffff, 0, high, low]
            | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
            | [0x2002, high, low, ..] => Some(v4(high, low)),
            _ => None,
        },
    }
}

/// The same within the /48 in which networks choose NAT64 prefixes. How long the chosen one is the address does not say: where
/// a shorter one would lead to what nobody is to be led to, that counts, and else the usual /96.
fn v4_behind_own_nat64(address: Ipv6Addr) -> Ipv4Addr {
    let [.., o6, o7, _, o9, o10, o11, o12, o13, o14, o15] = address.octets();
    let shorter = [[o6, o7, o9, o10], [o7, o9, o10, o11], [o9, o10, o11, o12]].map(Ipv4Addr::from);
    let astray = shorter.into_iter().find(|v4| v4.is_loopback() || is_metadata_v4(*v4) || v4.is_link_local());
    astray.unwrap_or_else(|| Ipv4Addr::new(o12, o13, o14, o15))
}

fn is_metadata_v4(address: Ipv4Addr) -> bool {
    [[100, 100, 100, 200], [168, 63, 129, 16], [192, 0, 0, 192]].contains(&address.octets())
}

/// Whether whoever calls the address calls itself: loopback, or no address at all.
pub fn is_this_host(address: IpAddr) -> bool {
    address.is_loopback()
        || address.is_unspecified()
        || v4_behind(address).is_some_and(|address| address.is_loopback() || address.octets()[0] == 0)
}

/// What an address is where nobody is who is to be called: link-local, a cloud's metadata, or many hosts; nothing where
/// it is none of these.
pub fn is_nobodys(address: IpAddr) -> Option<&'static str> {
    match (v4_behind(address), address) {
        (Some(address), _) => is_nobodys_v4(address),
        (None, IpAddr::V6(address)) => is_nobodys_v6(address),
        (None, IpAddr::V4(_)) => None,
    }
}

fn is_nobodys_v4(address: Ipv4Addr) -> Option<&'static str> {
    if address.is_link_local() {
        Some("link-local, where machines keep their metadata")
    } else if address.is_multicast() || address.is_broadcast() {
        Some("no single host's address")
    } else if is_metadata_v4(address) {
        Some("a cloud's metadata address")
    } else {
        None
    }
}

fn is_nobodys_v6(address: Ipv6Addr) -> Option<&'static str> {
    /// Where machines of clouds keep their metadata.
    const METADATA: [Ipv6Addr; 2] = [
        Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
        Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    ];
    let segments = address.segments();
    if (segments[0] & 0xffc0) == 0xfe80 {
        return Some("link-local, where machines keep their metadata");
    }
    if address.is_multicast() {
        return Some("no single host's address");
    }
    METADATA.contains(&address).then_some("a cloud's metadata address")
}

/// Why no other host reaches anybody at an address, or nobody who is to be called; nothing where some host may have it.
pub fn is_unreachable(address: IpAddr) -> Option<&'static str> {
    if is_this_host(address) { Some("that is whoever calls it") } else { is_nobodys(address) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_to_the_caller_or_to_its_machine_is_no_other_host() {
        for (address, expected) in [
            ("10.0.0.1", true),
            ("fd00::1", true),
            ("::ffff:10.0.0.1", true),
            ("127.0.0.1", false),
            ("::ffff:127.0.0.1", false),
            ("64:ff9b::7f00:1", false),
            ("2002:7f00:1::", false),
            ("0.0.0.0", false),
            ("::", false),
            ("::1", false),
            ("224.0.0.1", false),
            ("ff02::1", false),
            ("255.255.255.255", false),
            ("169.254.169.254", false),
            ("::ffff:169.254.169.254", false),
            ("100.100.100.200", false),
            ("fd00:ec2::254", false),
            ("fe80::1", false),
        ] {
            let found = is_unreachable(address.parse().expect("an address"));
            assert_eq!(found.is_none(), expected, "{address} {found:?}");
        }
    }
}
