//! Reverse names of virtual addresses: `4.3.240.240.in-addr.arpa` and the nibbles below `ip6.arpa`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use baremesh_model::name::Domain;
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

/// The domains that the mesh is the authority of: its own, and those of the reverse names of its virtual ranges. A range
/// that ends within a label of its reverse name has several.
pub fn domains_of(domain: &Domain, ranges: &[IpNet]) -> Vec<String> {
    let mut domains = vec![domain.to_string()];
    for range in ranges {
        match range {
            IpNet::V4(range) => {
                let whole = range.prefix_len().next_multiple_of(8).max(8);
                let octets = |net: Ipv4Net| {
                    let labels = net.addr().octets().into_iter().take(usize::from(whole / 8)).rev();
                    labels.map(|octet| format!("{octet}.")).collect::<String>() + "in-addr.arpa"
                };
                domains.extend(range.subnets(whole).into_iter().flatten().map(octets));
            }
            IpNet::V6(range) => {
                let whole = range.prefix_len().next_multiple_of(4).max(4);
                let nibbles = |net: Ipv6Net| {
                    let bits = u128::from(net.addr());
                    let labels = (0..u32::from(whole / 4)).rev().map(|at| (bits >> (124 - 4 * at)) & 15);
                    labels.map(|nibble| format!("{nibble:x}.")).collect::<String>() + "ip6.arpa"
                };
                domains.extend(range.subnets(whole).into_iter().flatten().map(nibbles));
            }
        }
    }
    domains
}

/// Whether an address lies in one of the ranges, an IPv4 address written in IPv6 included.
pub(super) fn is_virtual(address: IpAddr, ranges: &[IpNet]) -> bool {
    let address = address.to_canonical();
    ranges.iter().any(|range| range.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_the_domains_of_their_reverse_names() {
        let check = |range: &str, expected: &[&str]| {
            let domain = Domain::new("mesh.internal").expect("a domain");
            let found = domains_of(&domain, &[range.parse().expect("a range")]);
            assert_eq!(found[0], "mesh.internal");
            assert_eq!(found[1..], *expected, "{range}");
        };
        check("240.240.0.0/16", &["240.240.in-addr.arpa"]);
        check("240.240.0.0/15", &["240.240.in-addr.arpa", "241.240.in-addr.arpa"]);
        check("240.240.4.0/24", &["4.240.240.in-addr.arpa"]);
        check("240.240.4.8/31", &["8.4.240.240.in-addr.arpa", "9.4.240.240.in-addr.arpa"]);
        check("fdba:4e3e:5400::/64", &["0.0.0.0.0.0.4.5.e.3.e.4.a.b.d.f.ip6.arpa"]);
        check("fdba::/15", &["a.b.d.f.ip6.arpa", "b.b.d.f.ip6.arpa"]);
    }

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
