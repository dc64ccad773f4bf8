//! The PROXY protocol: the caller's address ahead of a connection's bytes, as text or binary (HAProxy's specification,
//! sections 2.1 and 2.2).

use std::net::{IpAddr, SocketAddr};

/// The version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyProtocol {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

/// What the binary form begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

impl ProxyProtocol {
    /// What is sent first on a connection of `source` to `destination`.
    pub fn header(self, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        let addresses = same_family(source.ip().to_canonical(), destination.ip().to_canonical());
        match self {
            Self::V1 => text(addresses, source.port(), destination.port()),
            Self::V2 => binary(addresses, source.port(), destination.port()),
        }
    }
}

/// Both as IPv4, or both as IPv6.
fn same_family(source: IpAddr, destination: IpAddr) -> (IpAddr, IpAddr) {
    let wide = |address| match address {
        IpAddr::V4(v4) => IpAddr::V6(v4.to_ipv6_mapped()),
        IpAddr::V6(_) => address,
    };
    if source.is_ipv4() == destination.is_ipv4() {
        (source, destination)
    } else {
        (wide(source), wide(destination))
    }
}

fn text((source, destination): (IpAddr, IpAddr), source_port: u16, destination_port: u16) -> Vec<u8> {
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    format!("PROXY {family} {source} {destination} {source_port} {destination_port}\r\n").into_bytes()
}

fn binary((source, destination): (IpAddr, IpAddr), source_port: u16, destination_port: u16) -> Vec<u8> {
    /// Version 2, and the command PROXY.
    const VERSION: u8 = 0x21;
    let (family, length) = if source.is_ipv4() { (0x11, 12_u16) } else { (0x21, 36) };
    let mut out = SIGNATURE.to_vec();
    out.extend([VERSION, family]);
    out.extend(length.to_be_bytes());
    for address in [source, destination] {
        match address {
            IpAddr::V4(v4) => out.extend(v4.octets()),
            IpAddr::V6(v6) => out.extend(v6.octets()),
        }
    }
    out.extend(source_port.to_be_bytes());
    out.extend(destination_port.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_specified() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let v1 = |source, destination| {
            String::from_utf8(ProxyProtocol::V1.header(address(source), address(destination))).expect("text")
        };
        assert_eq!(v1("10.0.0.1:40000", "240.240.0.2:80"), "PROXY TCP4 10.0.0.1 240.240.0.2 40000 80\r\n");
        assert_eq!(v1("[fd00::1]:1", "[fd00::2]:2"), "PROXY TCP6 fd00::1 fd00::2 1 2\r\n");
        assert_eq!(v1("10.0.0.1:1", "[fd00::2]:2"), "PROXY TCP6 ::ffff:10.0.0.1 fd00::2 1 2\r\n");
        let v2 = ProxyProtocol::V2.header(address("10.0.0.1:258"), address("10.0.0.2:80"));
        let expected = [0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 0, 80];
        assert_eq!((&v2[..12], &v2[12..]), (&SIGNATURE[..], &expected[..]));
        assert_eq!(ProxyProtocol::V2.header(address("[::1]:1"), address("[::2]:2")).len(), 12 + 4 + 36);
    }
}
