//! The addresses at which other hosts reach this one, where the configuration does not say: those of the interface
//! that leads to the control server, or by the default route.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use if_addrs::{Interface, get_if_addrs};

use crate::capture::link::LINK;

/// A destination of TEST-NET-1 (RFC 5737): asked about as a route, never sent to.
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// Every address of this machine at which others might reach it.
pub fn own() -> io::Result<Vec<IpAddr>> {
    Ok(get_if_addrs()?.iter().filter(|interface| is_usable(interface)).map(Interface::ip).collect())
}

/// Addresses, and why it is these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// The preferred one first.
    pub addresses: Vec<IpAddr>,
    /// In words, for operators.
    pub why: String,
}

/// The addresses of the interface that leads to `towards`, IPv4 first. Without such a route, those of the interface of the
/// default route, and without that those of the first interface that has any.
pub fn detect(towards: Option<SocketAddr>) -> io::Result<Detected> {
    let interfaces: Vec<Interface> = get_if_addrs()?.into_iter().filter(is_usable).collect();
    let to_control = towards.and_then(source_towards);
    let preferred = to_control.or_else(|| source_towards(ELSEWHERE));
    let of_preferred = interfaces.iter().find(|interface| Some(interface.ip()) == preferred);
    let Some(chosen) = of_preferred.or_else(|| interfaces.first()) else {
        return Ok(Detected { addresses: Vec::new(), why: "no interface has one".to_owned() });
    };
    let why = match (of_preferred, to_control, towards) {
        (Some(_), Some(_), Some(control)) => format!("leads to the control server at {}", control.ip()),
        (Some(_), ..) => "has the default route".to_owned(),
        (None, ..) => "is the first that has an address: there is no default route".to_owned(),
    };
    let why = format!("of {}, which {why}", chosen.name);
    let mut addresses: Vec<IpAddr> =
        interfaces.iter().filter(|interface| interface.name == chosen.name).map(Interface::ip).collect();
    addresses.sort_by_key(|address| (address.is_ipv6(), Some(*address) != preferred));
    addresses.dedup();
    Ok(Detected { addresses, why })
}

fn is_usable(interface: &Interface) -> bool {
    let address = interface.ip();
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    interface.name != LINK && !interface.is_loopback() && !link_local && !address.is_unspecified()
}

/// The source address that the kernel would take towards a destination. Connecting a UDP socket sends nothing.
fn source_towards(destination: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr =
        if destination.is_ipv4() { "0.0.0.0:0".parse().ok()? } else { "[::]:0".parse().ok()? };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(destination).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}
