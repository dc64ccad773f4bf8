//! Where a connection came from before the kernel translated it, asked of its connection tracking (nfnetlink, see
//! linux/netfilter/nfnetlink_conntrack.h). Connections of one port to several places all become connections to the agent:
//! the kernel gives all but the first another port, under which nobody knows their socket.

use std::net::{IpAddr, SocketAddr};

use rustix::io::retry_on_intr;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use super::look_up::receive;
use super::sock_diag::{LookupError, canonical};

/// `IPCTNL_MSG_CT_NEW` and `_GET` of the subsystem for connection tracking.
const ENTRY: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
const REQUEST: u16 = 1;
const NESTED: u16 = 1 << 15;
/// A netlink header, and the one of nfnetlink.
const HEADER: usize = 16;
const FAMILY: usize = 4;
/// More than any entry of a TCP connection takes.
const ANSWER: usize = 4096;

/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
/// `CTA_TUPLE_IP`, `CTA_TUPLE_PROTO`.
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
/// `CTA_PROTO_NUM`, `CTA_PROTO_SRC_PORT`, `CTA_PROTO_DST_PORT`.
const NUMBER: u16 = 1;
const FROM_PORT: u16 = 2;
const TO_PORT: u16 = 3;
const TCP: u8 = 6;

/// The ends that a connection had before translation, from which and to where; `local` and `peer` are those of the socket that
/// was accepted. Nothing where the kernel does not track it, or has no `nf_conntrack_netlink`.
pub fn before_translation(
    local: SocketAddr,
    peer: SocketAddr,
) -> Result<Option<(SocketAddr, SocketAddr)>, LookupError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))
            .map_err(LookupError::Refused)?;
    rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0)).map_err(LookupError::Refused)?;
    let request = encode(canonical(local), canonical(peer));
    retry_on_intr(|| rustix::net::send(&socket, &request, SendFlags::empty()))
        .map_err(LookupError::Refused)?;
    let mut answer = [0; ANSWER];
    let length = receive(&socket, &mut answer)?;
    Ok(decode(&answer[..length]))
}

/// Asks for the entry whose answers go from `local` to `peer`.
fn encode(local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    let mut addresses = Vec::new();
    let (family, kinds) = if local.is_ipv4() { (2, [1, 2]) } else { (10, [3, 4]) };
    for (kind, end) in kinds.into_iter().zip([local, peer]) {
        match end.ip() {
            IpAddr::V4(address) => put(&mut addresses, kind, &address.octets()),
            IpAddr::V6(address) => put(&mut addresses, kind, &address.octets()),
        }
    }
    let mut protocol = Vec::new();
    put(&mut protocol, NUMBER, &[TCP]);
    put(&mut protocol, FROM_PORT, &local.port().to_be_bytes());
    put(&mut protocol, TO_PORT, &peer.port().to_be_bytes());
    let mut tuple = Vec::new();
    put(&mut tuple, ADDRESSES | NESTED, &addresses);
    put(&mut tuple, PROTOCOL | NESTED, &protocol);
    let mut body = vec![family, 0, 0, 0];
    put(&mut body, REPLY | NESTED, &tuple);
    let mut message = Vec::with_capacity(HEADER + body.len());
    // Some hundred bytes at most.
    message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend(GET.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend((4 + value.len() as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The original ends of the entry that the kernel answers with; nothing for any other answer.
fn decode(answer: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let length = u32::from_ne_bytes(answer.get(..4)?.try_into().ok()?) as usize;
    let message = answer.get(..length)?;
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    if kind != ENTRY {
        return None;
    }
    let tuple = find(message.get(HEADER + FAMILY..)?, ORIGINAL)?;
    let (addresses, protocol) = (find(tuple, ADDRESSES)?, find(tuple, PROTOCOL)?);
    if find(protocol, NUMBER)? != [TCP] {
        return None;
    }
    let port = |kind| Some(u16::from_be_bytes(find(protocol, kind)?.try_into().ok()?));
    let address = |v4, v6| {
        let of_v4 = find(addresses, v4).and_then(|octets| <[u8; 4]>::try_from(octets).ok()).map(IpAddr::from);
        of_v4.or_else(|| Some(IpAddr::from(<[u8; 16]>::try_from(find(addresses, v6)?).ok()?)))
    };
    Some((SocketAddr::new(address(1, 3)?, port(FROM_PORT)?), SocketAddr::new(address(2, 4)?, port(TO_PORT)?)))
}

/// The value of the first attribute of that kind.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let found = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?) & !NESTED;
        let value = attributes.get(4..length)?;
        if found == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: u16, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        // The request for it, as if it were the entry itself.
        let mut message = encode(from, to);
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[HEADER + FAMILY + 2..HEADER + FAMILY + 4].copy_from_slice(&(ORIGINAL | NESTED).to_ne_bytes());
        message
    }

    #[test]
    fn the_ends_before_translation_are_read_and_nothing_else_is() {
        for (from, to) in [("10.0.0.1:40000", "240.240.0.1:80"), ("[fd00::1]:40000", "[fd00::2]:80")] {
            let (from, to) = (from.parse().expect("an address"), to.parse().expect("an address"));
            let message = entry(ENTRY, from, to);
            assert_eq!(decode(&message), Some((from, to)));
            assert_eq!(decode(&entry(2, from, to)), None, "an error is no entry");
            for length in 0..message.len() {
                assert_eq!(decode(&message[..length]), None, "cut after {length}");
            }
            for byte in 0..message.len() {
                let mut damaged = message.clone();
                damaged[byte] ^= 0xff;
                let _ = decode(&damaged);
            }
        }
    }
}
