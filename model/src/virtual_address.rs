//! Virtual addresses: each service has one of each family, which stands for it on every host. Without a control
//! server that remembers assignments they are a hash of the service's name, so that hosts agree without talking.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::name::Key;

/// The ranges that virtual addresses come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtualRanges {
    /// IPv4, 240.240.0.0/16 unless configured: class E, which no host routes.
    pub v4: Ipv4Net,
    /// IPv6, a unique local prefix (RFC 4193); `None` switches IPv6 virtual addresses off.
    pub v6: Option<Ipv6Net>,
}

impl Default for VirtualRanges {
    fn default() -> Self {
        Self {
            v4: Ipv4Net::new_assert(Ipv4Addr::new(240, 240, 0, 0), 16),
            v6: Some(Ipv6Net::new_assert(Ipv6Addr::new(0xfdba, 0x4e3e, 0x5400, 0, 0, 0, 0, 0), 64)),
        }
    }
}

impl VirtualRanges {
    /// Whether an address lies in either range.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.contains(&address),
            IpAddr::V6(address) => self.v6.is_some_and(|range| range.contains(&address)),
        }
    }

    /// The addresses that a service's name hashes to. The first and the last address of a range are left out.
    pub fn hashed(&self, service: &Key) -> Vec<IpAddr> {
        let hash = fnv1a(&service.to_string());
        let mut addresses = vec![IpAddr::V4(self.nth_v4(hash))];
        addresses.extend(self.v6.map(|range| IpAddr::V6(nth_v6(range, hash))));
        addresses
    }

    /// How many IPv4 virtual addresses there are.
    pub fn capacity(&self) -> u64 {
        (1_u64 << (32 - self.v4.prefix_len())).saturating_sub(2).max(1)
    }

    /// The IPv4 virtual address of a number, modulo the capacity.
    pub fn nth_v4(&self, number: u64) -> Ipv4Addr {
        let offset = 1 + number % self.capacity();
        let base = u64::from(u32::from(self.v4.network()));
        Ipv4Addr::from(u32::try_from(base + offset).unwrap_or(u32::MAX))
    }

    /// The IPv6 virtual address of a number.
    pub fn nth_v6(&self, number: u64) -> Option<Ipv6Addr> {
        self.v6.map(|range| nth_v6(range, number))
    }
}

fn nth_v6(range: Ipv6Net, number: u64) -> Ipv6Addr {
    let host_bits = 128 - u32::from(range.prefix_len());
    let mask = 1_u128.checked_shl(host_bits).map_or(u128::MAX, |bit| bit - 1);
    let offset = (u128::from(number) & mask).max(1);
    Ipv6Addr::from(u128::from(range.network()) | offset)
}

/// FNV-1a over 64 bits, folded once more so that the low bits depend on all of the input. Every host must come
/// to the same number, in every version.
fn fnv1a(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Label;

    #[test]
    fn hashes_stay_in_the_range_and_stay_the_same() {
        let ranges = VirtualRanges::default();
        let key = |name: &str| {
            Key::new(Label::new("default").expect("a label"), Label::new(name).expect("a label"))
        };
        for n in 0..1000 {
            for address in ranges.hashed(&key(&format!("s{n}"))) {
                assert!(ranges.contains(address), "{address}");
            }
        }
        // Other hosts of the mesh may run another version: this value is part of the protocol.
        assert_eq!(ranges.hashed(&key("orders"))[0].to_string(), "240.240.179.3");
    }

    #[test]
    fn small_ranges_do_not_overflow() {
        for prefix in [8, 24, 30, 31, 32] {
            let v4 = Ipv4Net::new_assert(Ipv4Addr::new(255, 255, 255, 254), prefix).trunc();
            let ranges = VirtualRanges { v4, v6: None };
            for n in [0, 1, u64::MAX] {
                ranges.nth_v4(n);
            }
        }
    }
}
