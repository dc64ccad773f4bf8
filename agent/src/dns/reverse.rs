//! Reverse names of virtual addresses: `4.3.240.240.in-addr.arpa` and the nibbles below `ip6.arpa`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::answer::Content;
use super::config::DnsConfig;
use super::zone::Zone;

/// How many labels a whole address has, and how many names are beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// A part of an address: a network.
    Network,
    Address,
    /// A name below an address, such as the ones that service discovery asks for.
    Below,
}

/// What is to be said about a reverse name. `None` where it is none, or not one of a virtual address.
pub(super) fn reverse(name: &str, zone: &Zone, config: &DnsConfig) -> Option<Content> {
    let (net, depth) = parse(name)?;
    if !config.virtual_ranges.iter().any(|range| range.contains(&net)) {
        return None;
    }
    Some(match depth {
        Depth::Network => Content::Empty,
        Depth::Below => Content::NoSuchName,
        Depth::Address => zone.reverse(net.addr()).map_or(Content::NoSuchName, Content::Pointer),
    })
}

fn parse(name: &str) -> Option<(IpNet, Depth)> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0_u8; 4];
        let (read, depth) = digits(rest, 4, |at, label| {
            if let (Some(place), Ok(octet)) = (octets.get_mut(at), label.parse::<u8>()) {
                *place = octet;
                return octet.to_string() == label;
            }
            false
        })?;
        let net = Ipv4Net::new(Ipv4Addr::from(octets), u8::try_from(read * 8).ok()?).ok()?;
        return Some((IpNet::V4(net), depth));
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let mut address = 0_u128;
    let (read, depth) = digits(rest, 32, |at, label| match (label.len(), u128::from_str_radix(label, 16)) {
        (1, Ok(nibble)) => {
            address |= nibble << (124 - 4 * at);
            true
        }
        _ => false,
    })?;
    let net = Ipv6Net::new(Ipv6Addr::from(address), u8::try_from(read * 4).ok()?).ok()?;
    Some((IpNet::V6(net), depth))
}

/// Takes labels from the right until there are `whole`; `None` where one of them is no digit of an address.
fn digits(labels: &str, whole: usize, mut take: impl FnMut(usize, &str) -> bool) -> Option<(usize, Depth)> {
    let mut read = 0;
    for label in labels.rsplit('.') {
        if read == whole {
            return Some((read, Depth::Below));
        }
        if !take(read, label) {
            return None;
        }
        read += 1;
    }
    Some((read, if read == whole { Depth::Address } else { Depth::Network }))
}

/// Whether an address lies in one of the ranges, an IPv4 address written in IPv6 included.
pub(super) fn is_virtual(address: IpAddr, ranges: &[IpNet]) -> bool {
    let address = address.to_canonical();
    ranges.iter().any(|range| range.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, expected: Option<(&str, Depth)>) {
        let expected = expected.map(|(net, depth)| (net.parse().expect("a network"), depth));
        assert_eq!(parse(name), expected, "{name}");
    }

    #[test]
    fn reads_reverse_names() {
        check("4.3.240.240.in-addr.arpa", Some(("240.240.3.4/32", Depth::Address)));
        check("240.240.in-addr.arpa", Some(("240.240.0.0/16", Depth::Network)));
        check("lb._dns-sd._udp.0.0.240.240.in-addr.arpa", Some(("240.240.0.0/32", Depth::Below)));
        check("x.240.240.in-addr.arpa", None);
        check("256.240.240.in-addr.arpa", None);
        check("+1.240.240.in-addr.arpa", None);
        check("01.240.240.in-addr.arpa", None);
        check("in-addr.arpa", None);
        check("1.0.0.d.f.ip6.arpa", Some(("fd00:1000::/20", Depth::Network)));
        let nibbles = format!("2.{}d.f.ip6.arpa", "0.".repeat(29));
        check(&nibbles, Some(("fd00::2/128", Depth::Address)));
        check(&format!("a.{nibbles}"), Some(("fd00::2/128", Depth::Below)));
        check("00.d.f.ip6.arpa", None);
        check("g.d.f.ip6.arpa", None);
        check("orders.mesh.internal", None);
    }
}
