//! From frames to streams: who sent a packet to whom, and the bytes of each direction of a TCP connection in the
//! order in which the receiver reads them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Packet;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 0x02;
/// IPv6 headers that may stand before TCP and have their length in units of eight bytes (RFC 8200, section 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// One direction of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The protocol's number: 6 is TCP, 17 is UDP.
    pub protocol: u8,
    /// Who sends.
    pub source: SocketAddr,
    /// Who receives.
    pub destination: SocketAddr,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.protocol == TCP { "tcp" } else { "udp" };
        write!(f, "{protocol} {} > {}", self.source, self.destination)
    }
}

/// What one direction of one TCP connection carried.
pub(super) struct Stream {
    pub(super) flow: Flow,
    /// The bytes in order; each hole in what was recorded begins a new piece.
    pub(super) pieces: Vec<Vec<u8>>,
}

/// A stream before its segments are joined.
struct Gathered<'a> {
    flow: Flow,
    /// The sequence number of its first byte.
    start: u32,
    /// What was seen, by the distance from the start.
    segments: BTreeMap<u32, &'a [u8]>,
}

struct Segment<'a> {
    flow: Flow,
    /// Of TCP.
    sequence: u32,
    syn: bool,
    payload: &'a [u8],
}

/// The flow of a frame; `None` if it is neither TCP nor UDP.
pub(super) fn flow_of(frame: &[u8]) -> Option<Flow> {
    segment(frame).map(|segment| segment.flow)
}

/// The TCP streams among `packets`. A port that is used again begins another stream.
pub(super) fn streams(packets: &[Packet]) -> Vec<Stream> {
    let mut latest: HashMap<Flow, usize> = HashMap::new();
    let mut gathered: Vec<Gathered<'_>> = Vec::new();
    for segment in packets.iter().filter_map(|packet| segment(&packet.frame)) {
        if segment.flow.protocol != TCP {
            continue;
        }
        // A SYN takes one sequence number; a repeated one has the same.
        let first = if segment.syn { segment.sequence.wrapping_add(1) } else { segment.sequence };
        let index = match latest.get(&segment.flow).copied() {
            Some(index) if !segment.syn || gathered[index].start == first => index,
            _ => {
                gathered.push(Gathered { flow: segment.flow, start: first, segments: BTreeMap::new() });
                latest.insert(segment.flow, gathered.len() - 1);
                gathered.len() - 1
            }
        };
        let stream = &mut gathered[index];
        let offset = first.wrapping_sub(stream.start);
        // What lies before the start, a keep-alive probe for one, wraps to the upper half.
        if !segment.payload.is_empty() && offset < 1 << 31 {
            let longest = stream.segments.entry(offset).or_default();
            if segment.payload.len() > longest.len() {
                *longest = segment.payload;
            }
        }
    }
    gathered.into_iter().map(|stream| Stream { flow: stream.flow, pieces: join(stream.segments) }).collect()
}

fn join(segments: BTreeMap<u32, &[u8]>) -> Vec<Vec<u8>> {
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let mut end = 0;
    for (offset, payload) in segments {
        let offset = offset as usize;
        if offset > end || pieces.is_empty() {
            pieces.push(Vec::new());
            end = offset;
        }
        let known = end - offset;
        if let (Some(fresh), Some(piece)) = (payload.get(known..), pieces.last_mut()) {
            piece.extend_from_slice(fresh);
            end += fresh.len();
        }
    }
    pieces
}

fn segment(frame: &[u8]) -> Option<Segment<'_>> {
    let ethertype = short(frame, 12)?;
    let packet = frame.get(14..)?;
    let (protocol, source, destination, transport) = match ethertype {
        ETHERTYPE_IPV4 => ipv4(packet)?,
        ETHERTYPE_IPV6 => ipv6(packet)?,
        _ => return None,
    };
    let source = SocketAddr::new(source, short(transport, 0)?);
    let destination = SocketAddr::new(destination, short(transport, 2)?);
    let flow = Flow { protocol, source, destination };
    match protocol {
        TCP => {
            let sequence = u32::from_be_bytes(transport.get(4..8)?.try_into().ok()?);
            let header = usize::from(transport.get(12)? >> 4) * 4;
            let syn = transport.get(13)? & SYN != 0;
            Some(Segment { flow, sequence, syn, payload: transport.get(header..)? })
        }
        UDP => Some(Segment { flow, sequence: 0, syn: false, payload: transport.get(8..)? }),
        _ => None,
    }
}

type Parts<'a> = (u8, IpAddr, IpAddr, &'a [u8]);

fn ipv4(packet: &[u8]) -> Option<Parts<'_>> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let total = usize::from(short(packet, 2)?);
    // Later fragments have no ports.
    if short(packet, 6)? & 0x1fff != 0 {
        return None;
    }
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    // Ethernet pads short frames, so the packet's own length counts.
    let transport = packet.get(header..total)?;
    Some((*packet.get(9)?, address(12)?.into(), address(16)?.into(), transport))
}

fn ipv6(packet: &[u8]) -> Option<Parts<'_>> {
    let length = usize::from(short(packet, 4)?);
    let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
    let (source, destination) = (address(8)?.into(), address(24)?.into());
    let mut next = *packet.get(6)?;
    let mut rest = packet.get(40..40 + length)?;
    while matches!(next, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
        next = *rest.first()?;
        rest = rest.get((usize::from(*rest.get(1)?) + 1) * 8..)?;
    }
    Some((next, source, destination, rest))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
