//! A hash that is the same on every host and in every version, so that all callers agree on the endpoint of a key. Keys
//! come from callers, who can choose them so that they collide: all that this gets them is one endpoint.

use std::net::{IpAddr, SocketAddr};

/// FNV-1a, 64 bits: offset basis and prime.
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// The hash of some bytes.
pub fn of(bytes: &[u8]) -> u64 {
    finish(begin(), bytes)
}

/// The state before any byte.
pub(super) fn begin() -> u64 {
    BASIS
}

/// The state after some more bytes.
pub(super) fn more(state: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(state, |state, byte| (state ^ u64::from(*byte)).wrapping_mul(PRIME))
}

fn finish(state: u64, bytes: &[u8]) -> u64 {
    mix(more(state, bytes))
}

/// The hash of an endpoint's address.
pub fn of_endpoint(address: SocketAddr) -> u64 {
    mix(more(address_state(address.ip()), &address.port().to_be_bytes()))
}

/// The hash of a caller's address.
pub fn of_address(address: IpAddr) -> u64 {
    mix(address_state(address))
}

fn address_state(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => more(begin(), &v4.octets()),
        IpAddr::V6(v6) => more(begin(), &v6.octets()),
    }
}

/// Spreads a number over all bits; every number comes from exactly one (the finaliser of SplitMix64).
pub fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_the_same() {
        // Callers of different versions must agree: these values never change.
        assert_eq!(of(b""), mix(BASIS));
        assert_eq!(more(begin(), b"a"), 0xaf63_dc4c_8601_ec8c, "the published value for FNV-1a");
        assert_eq!(of(b"jason"), 13_498_397_723_501_846_853);
        assert_eq!(of_endpoint("10.0.0.1:8080".parse().expect("an address")), of(&[10, 0, 0, 1, 0x1f, 0x90]));
        assert_eq!(of_address("::ffff:10.0.0.1".parse().expect("an address")), of(&[10, 0, 0, 1]));
    }
}
