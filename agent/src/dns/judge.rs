//! What a message from an upstream is: the answer that was asked for, or something to be ignored.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::reverse::is_virtual;
use super::wire::{self, HEADER, Record};

/// What is to be done about a message from an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It answers the question. Its first so many bytes are passed on; what may follow is no part of the message.
    Relay(usize),
    /// It answers the question, says that it is truncated, and breaks off within a record: the question and the
    /// truncation are passed on.
    RelayTruncated,
    /// Another id or question, or no response at all: a forgery, or an answer that came late.
    NotTheAnswer,
    /// It does not parse.
    Malformed,
    /// An address in it lies in a virtual range. The whole answer is dropped: such a name was set up to reach a mesh
    /// service under a foreign name, and what remained after a removal would be no more to be trusted.
    InVirtualRange,
}

/// Judges `reply`, which came from the address that `sent` went to.
///
/// The question must be equal byte by byte, case included. No letter's case is changed at random on the way out: a
/// fresh socket bound to a random port and a fresh random id protect each attempt, and upstreams that fold case would
/// fail all questions.
pub fn judge(reply: &[u8], sent: &[u8], ranges: &[IpNet]) -> Verdict {
    let (Some(flags), Some(sent_end)) = (wire::flags(reply), wire::question_end(sent)) else {
        return Verdict::Malformed;
    };
    let is_answer = flags & (wire::RESPONSE | wire::OPCODE) == wire::RESPONSE
        && reply.get(..2) == sent.get(..2)
        && wire::u16_at(reply, 4) == Some(1)
        && reply.get(HEADER..sent_end) == sent.get(HEADER..sent_end);
    if !is_answer {
        return Verdict::NotTheAnswer;
    }
    let mut virtual_address = false;
    let end = wire::walk(reply, sent_end, |record| {
        virtual_address = virtual_address || holds_virtual(&record, ranges);
    });
    match end {
        _ if virtual_address => Verdict::InVirtualRange,
        Some(end) => Verdict::Relay(end),
        None if flags & wire::TRUNCATED != 0 => Verdict::RelayTruncated,
        None => Verdict::Malformed,
    }
}

/// Addresses stand in A and AAAA records of any section, and as hints in SVCB and HTTPS records (RFC 9460).
fn holds_virtual(record: &Record<'_>, ranges: &[IpNet]) -> bool {
    let inside = |address: Option<IpAddr>| address.is_some_and(|address| is_virtual(address, ranges));
    match record.kind {
        wire::TYPE_A => inside(v4(record.data)),
        wire::TYPE_AAAA => inside(v6(record.data)),
        wire::TYPE_SVCB | wire::TYPE_HTTPS => hints(record.data, ranges).unwrap_or(true),
        _ => false,
    }
}

fn v4(data: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(data).ok().map(|octets| Ipv4Addr::from(octets).into())
}

fn v6(data: &[u8]) -> Option<IpAddr> {
    <[u8; 16]>::try_from(data).ok().map(|octets| Ipv6Addr::from(octets).into())
}

/// Whether a hint lies in a virtual range; `None` where the parameters do not parse, so that nothing could be said.
fn hints(data: &[u8], ranges: &[IpNet]) -> Option<bool> {
    const IPV4_HINT: u16 = 4;
    const IPV6_HINT: u16 = 6;
    // After the priority comes the target, which is never compressed.
    let mut at = 2;
    loop {
        let length = usize::from(*data.get(at)?);
        at += 1 + length;
        if length == 0 {
            break;
        }
    }
    while at < data.len() {
        let key = wire::u16_at(data, at)?;
        let end = at + 4 + usize::from(wire::u16_at(data, at + 2)?);
        let value = data.get(at + 4..end)?;
        let found = match key {
            IPV4_HINT => value.chunks(4).filter_map(v4).any(|address| is_virtual(address, ranges)),
            IPV6_HINT => value.chunks(16).filter_map(v6).any(|address| is_virtual(address, ranges)),
            _ => false,
        };
        if found {
            return Some(true);
        }
        at = end;
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{config, question, reply_to};
    use super::*;
    use hickory_proto::rr::RecordType;

    const NAME: &str = "www.example.com.";

    /// The first answer record of [`reply_to`] starts here: a pointer, the type, the class, the TTL, the length.
    fn first_record() -> usize {
        question(NAME, RecordType::A).len()
    }

    fn check(change: impl FnOnce(&mut Vec<u8>), expected: Verdict) {
        let sent = question(NAME, RecordType::A);
        let mut reply = reply_to(&sent, &["192.0.2.1", "192.0.2.2"]);
        change(&mut reply);
        assert_eq!(judge(&reply, &sent, &config().virtual_ranges), expected, "{reply:x?}");
    }

    #[test]
    fn takes_the_answer_and_nothing_else() {
        let whole = first_record() + 2 * 16;
        check(|_| {}, Verdict::Relay(whole));
        check(|reply| reply.extend_from_slice(b"more"), Verdict::Relay(whole));
        check(|reply| reply[0] ^= 1, Verdict::NotTheAnswer);
        check(|reply| reply[1] ^= 0x80, Verdict::NotTheAnswer);
        check(|reply| reply[2] &= 0x7f, Verdict::NotTheAnswer);
        check(|reply| reply[2] |= 0x20, Verdict::NotTheAnswer);
        check(|reply| reply[5] = 0, Verdict::NotTheAnswer);
        check(|reply| reply[13] = b'W', Verdict::NotTheAnswer);
        check(|reply| reply[first_record() - 3] = 28, Verdict::NotTheAnswer);
        check(|reply| reply.truncate(11), Verdict::Malformed);
        check(Vec::clear, Verdict::Malformed);
        check(|reply| reply.truncate(first_record() - 1), Verdict::NotTheAnswer);
        check(|reply| reply.truncate(whole - 1), Verdict::Malformed);
        check(|reply| reply[7] = 3, Verdict::Malformed);
        // The first owner's pointer to itself, and forwards.
        check(|reply| reply[first_record() + 1] = first_record() as u8, Verdict::Malformed);
        check(|reply| reply[first_record() + 1] += 60, Verdict::Malformed);
        let cut = |reply: &mut Vec<u8>| {
            reply[2] |= 2;
            reply.truncate(whole - 1);
        };
        check(cut, Verdict::RelayTruncated);
    }

    #[test]
    fn addresses_in_a_virtual_range_are_found_wherever_they_stand() {
        let check = |kind: u16, data: &[u8], expected: bool| {
            let record = Record { kind, class: 1, ttl: 0, data };
            assert_eq!(holds_virtual(&record, &config().virtual_ranges), expected, "{kind} {data:x?}");
        };
        let mapped = [&[0; 10][..], &[0xff, 0xff, 240, 240, 0, 1]].concat();
        let unique = [&[0xfd, 0, 0, 0xba][..], &[0; 12]].concat();
        check(wire::TYPE_A, &[240, 240, 255, 255], true);
        check(wire::TYPE_A, &[240, 241, 0, 0], false);
        check(wire::TYPE_A, &[240, 240, 0], false);
        check(wire::TYPE_AAAA, &mapped, true);
        check(wire::TYPE_AAAA, &unique, true);
        check(wire::TYPE_AAAA, &[0x20; 16], false);
        // Priority 1, the target's root, a parameter `alpn`, then the hints.
        let alpn = [0, 1, 0, 0, 1, 0, 3, 2, b'h', b'2'];
        check(wire::TYPE_HTTPS, &alpn, false);
        check(wire::TYPE_HTTPS, &[&alpn[..], &[0, 4, 0, 8, 10, 0, 0, 1, 240, 240, 0, 1]].concat(), true);
        check(wire::TYPE_HTTPS, &[&alpn[..], &[0, 4, 0, 4, 10, 0, 0, 1]].concat(), false);
        check(wire::TYPE_SVCB, &[&alpn[..], &[0, 6, 0, 16], &unique[..]].concat(), true);
        // What cannot be read could hold anything.
        check(wire::TYPE_HTTPS, &[&alpn[..], &[0, 4, 0, 9, 10]].concat(), true);
        check(wire::TYPE_HTTPS, &[0, 1], true);
        check(16, &[240, 240, 0, 1], false);
    }

    #[test]
    fn one_virtual_address_spoils_the_answer() {
        let sent = question(NAME, RecordType::A);
        let mut reply = reply_to(&sent, &["192.0.2.1", "240.240.0.9"]);
        assert_eq!(judge(&reply, &sent, &config().virtual_ranges), Verdict::InVirtualRange);
        // As additional records they count as well.
        reply.copy_within(6..8, 10);
        reply[6..8].fill(0);
        assert_eq!(judge(&reply, &sent, &config().virtual_ranges), Verdict::InVirtualRange);
    }

    proptest! {
        #[test]
        fn never_panics_and_relays_only_what_parses(
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let sent = question(NAME, RecordType::A);
            let mut reply = reply_to(&sent, &["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
            reply.truncate(cut.index(reply.len() + 1));
            for (at, byte) in flips {
                if !reply.is_empty() {
                    let at = at.index(reply.len());
                    reply[at] = byte;
                }
            }
            if let Verdict::Relay(length) = judge(&reply, &sent, &config().virtual_ranges) {
                prop_assert!(length <= reply.len() && reply[12..sent.len()] == sent[12..]);
            }
        }
    }
}
