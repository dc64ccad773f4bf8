//! DNS messages as bytes: just enough of RFC 1035 and RFC 6891 to relay a message without rewriting it. Whole
//! messages are walked, never decoded, so that record types which nobody here has heard of pass unharmed.

/// The length of a message's header.
pub(super) const HEADER: usize = 12;
/// The largest message, as a length of two bytes allows.
pub(super) const MAX_MESSAGE: usize = 65_535;
/// The least payload that every UDP client takes (RFC 1035, section 2.3.4).
pub(super) const MIN_PAYLOAD: u16 = 512;

/// Compression pointers followed in one name. Honest names have one; the bound keeps a message of pointers cheap.
const MAX_POINTERS: usize = 32;
/// The largest name (RFC 1035, section 2.3.4), its length bytes and the root's included.
const MAX_NAME: usize = 255;

pub(super) const RESPONSE: u16 = 0x8000;
pub(super) const OPCODE: u16 = 0x7800;
pub(super) const TRUNCATED: u16 = 0x0200;
pub(super) const RECURSION_DESIRED: u16 = 0x0100;
pub(super) const RECURSION_AVAILABLE: u16 = 0x0080;
pub(super) const RCODE: u16 = 0x000f;

pub(super) const TYPE_A: u16 = 1;
const TYPE_NS: u16 = 2;
const TYPE_CNAME: u16 = 5;
const TYPE_PTR: u16 = 12;
const TYPE_MX: u16 = 15;
pub(super) const TYPE_AAAA: u16 = 28;
const TYPE_DNAME: u16 = 39;
pub(super) const TYPE_OPT: u16 = 41;
pub(super) const TYPE_SVCB: u16 = 64;
pub(super) const TYPE_HTTPS: u16 = 65;

/// A response code of RFC 1035, section 4.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rcode {
    FormErr = 1,
    ServFail = 2,
    NotImp = 4,
    Refused = 5,
}

/// Why an error is said, for clients that speak EDNS: an extended DNS error of RFC 8914.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reason {
    pub(super) code: u16,
    pub(super) text: &'static str,
}

/// What a client said in its OPT record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opt {
    pub(super) payload: u16,
    pub(super) version: u8,
    pub(super) dnssec_ok: bool,
}

/// A well-formed question: one query, whole records, no more than one OPT, nothing behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    /// Where the question section ends.
    pub(super) question_end: usize,
    pub(super) opt: Option<Opt>,
}

impl Asked {
    pub(super) fn read(message: &[u8]) -> Option<Self> {
        if message.len() > MAX_MESSAGE {
            return None;
        }
        let question_end = question_end(message)?;
        let mut opt = None;
        let mut opts = 0;
        let end = walk(message, question_end, |record| {
            if record.kind == TYPE_OPT {
                opts += 1;
                opt = Some(Opt {
                    payload: record.class,
                    version: (record.ttl >> 16) as u8,
                    dnssec_ok: record.ttl & 0x8000 != 0,
                });
            }
        })?;
        (end == message.len() && opts <= 1).then_some(Self { question_end, opt })
    }

    /// The largest UDP payload that the client takes.
    pub(super) fn payload(&self) -> u16 {
        self.opt.map_or(MIN_PAYLOAD, |opt| opt.payload.max(MIN_PAYLOAD))
    }
}

/// The two bytes at `at` as a number.
pub(super) fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]))
}

fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(u16_at(message, at)?) << 16 | u32::from(u16_at(message, at + 2)?))
}

/// The message's flags, where it has a whole header.
pub(super) fn flags(message: &[u8]) -> Option<u16> {
    if message.len() < HEADER { None } else { u16_at(message, 2) }
}

/// Where the only question ends. A question's name has nothing before it that it could point to.
pub(super) fn question_end(message: &[u8]) -> Option<usize> {
    if u16_at(message, 4)? != 1 {
        return None;
    }
    let end = name_end(message, HEADER)? + 4;
    (end <= message.len()).then_some(end)
}

/// One resource record's place in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) kind: u16,
    pub(super) class: u16,
    pub(super) ttl: u32,
    pub(super) data: &'a [u8],
}

/// Visits the records of all three sections. `None` where a record is cut off or a name does not end; otherwise
/// where the last record ends.
pub(super) fn walk<'a>(message: &'a [u8], start: usize, mut visit: impl FnMut(Record<'a>)) -> Option<usize> {
    let mut at = start;
    let sections = [u16_at(message, 6)?, u16_at(message, 8)?, u16_at(message, 10)?];
    for _ in 0..sections.into_iter().map(usize::from).sum() {
        let fixed = name_end(message, at)?;
        let kind = u16_at(message, fixed)?;
        let data = fixed + 10;
        let end = data + usize::from(u16_at(message, fixed + 8)?);
        let record = Record {
            kind,
            class: u16_at(message, fixed + 2)?,
            ttl: u32_at(message, fixed + 4)?,
            data: message.get(data..end)?,
        };
        let name = match kind {
            TYPE_NS | TYPE_CNAME | TYPE_PTR | TYPE_DNAME => Some(data),
            TYPE_MX => Some(data + 2),
            _ => None,
        };
        if name.is_some_and(|name| name_end(message, name) != Some(end)) {
            return None;
        }
        visit(record);
        at = end;
    }
    Some(at)
}

/// Where the name at `start` ends, the root's byte or the first pointer included. Each pointer must point before
/// the part that it stands in, as RFC 1035, section 4.1.4 has it ("a prior occurrence"), which excludes loops.
pub(super) fn name_end(message: &[u8], start: usize) -> Option<usize> {
    let (mut at, mut part, mut end) = (start, start, None);
    let (mut length, mut pointers) = (0, 0);
    loop {
        let byte = usize::from(*message.get(at)?);
        match byte >> 6 {
            0 => {
                at += 1 + byte;
                length += 1 + byte;
                if length > MAX_NAME || at > message.len() {
                    return None;
                }
                if byte == 0 {
                    return end.or(Some(at));
                }
            }
            3 => {
                let target = usize::from(u16_at(message, at)? & 0x3fff);
                pointers += 1;
                if !(HEADER..part).contains(&target) || pointers > MAX_POINTERS {
                    return None;
                }
                end = end.or(Some(at + 2));
                (at, part) = (target, target);
            }
            _ => return None,
        }
    }
}

/// An answer that only says an error: the question where it could be read, and an OPT record where the client sent one.
/// `None` where the query has no whole header, and so no id to answer to.
pub(super) fn error_reply(query: &[u8], code: Rcode, reason: Option<Reason>) -> Option<Vec<u8>> {
    let flags = flags(query)?;
    let asked = Asked::read(query);
    let question = asked.and_then(|asked| query.get(HEADER..asked.question_end)).unwrap_or_default();
    let opt = asked.and_then(|asked| asked.opt);
    let said = RESPONSE | (flags & (OPCODE | RECURSION_DESIRED)) | RECURSION_AVAILABLE | code as u16;

    let mut reply = Vec::with_capacity(HEADER + question.len() + 128);
    reply.extend_from_slice(query.get(..2)?);
    reply.extend_from_slice(&said.to_be_bytes());
    let counts = [u16::from(!question.is_empty()), 0, 0, u16::from(opt.is_some())];
    reply.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    reply.extend_from_slice(question);
    if let Some(opt) = opt {
        append_opt(&mut reply, opt, reason);
    }
    Some(reply)
}

fn append_opt(reply: &mut Vec<u8>, opt: Opt, reason: Option<Reason>) {
    const EXTENDED_ERROR: u16 = 15;
    let mut options = Vec::new();
    if let Some(Reason { code, text }) = reason {
        let length = u16::try_from(2 + text.len()).unwrap_or(2);
        for number in [EXTENDED_ERROR, length, code] {
            options.extend_from_slice(&number.to_be_bytes());
        }
        options.extend_from_slice(text.get(..usize::from(length) - 2).unwrap_or_default().as_bytes());
    }
    let dnssec_ok = if opt.dnssec_ok { 0x8000 } else { 0 };
    let length = u16::try_from(options.len()).unwrap_or(0);
    reply.push(0);
    for number in [TYPE_OPT, super::config::MAX_UDP_ANSWER, 0, dnssec_ok, length] {
        reply.extend_from_slice(&number.to_be_bytes());
    }
    reply.extend_from_slice(options.get(..usize::from(length)).unwrap_or_default());
}

/// A message's header and question alone, marked truncated: what a client gets that takes no more over UDP.
pub(super) fn truncated(message: &[u8], question_end: usize) -> Option<Vec<u8>> {
    let mut short = message.get(..question_end)?.to_vec();
    let flags = flags(&short)? | TRUNCATED;
    short.get_mut(2..4)?.copy_from_slice(&flags.to_be_bytes());
    short.get_mut(6..HEADER)?.fill(0);
    Some(short)
}

/// Writes another id into a message.
pub(super) fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.get_mut(..2) {
        place.copy_from_slice(&id.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_name(bytes: &[u8], start: usize, expected: Option<usize>) {
        let mut message = vec![0; HEADER];
        message.extend_from_slice(bytes);
        assert_eq!(name_end(&message, start), expected, "{bytes:?} from {start}");
    }

    #[test]
    fn names_end_or_are_refused() {
        check_name(&[0], 12, Some(13));
        check_name(b"\x03abc\x00", 12, Some(17));
        check_name(b"\x03abc\x00\xc0\x0c", 17, Some(19));
        check_name(b"\x03abc\x00\x01d\xc0\x0c", 17, Some(21));
        check_name(b"\x03abc", 12, None);
        check_name(b"\x03ab", 12, None);
        check_name(b"", 12, None);
        check_name(b"\xc0", 12, None);
        // To itself, forwards, and into the header.
        check_name(b"\xc0\x0c", 12, None);
        check_name(b"\xc0\x0e\x00", 12, None);
        check_name(b"\xc0\x00", 12, None);
        // Two names that point at each other, and a label that leads back into the pointer.
        check_name(b"\xc0\x0e\xc0\x0c", 14, None);
        check_name(b"\x01a\xc0\x0c", 12, None);
        check_name(b"\x01a\xc0\x0c\xc0\x0c", 16, None);
        // Reserved label types.
        check_name(b"\x40a", 12, None);
        check_name(b"\x80a", 12, None);
    }

    #[test]
    fn names_have_a_largest_length() {
        let label = [&[63][..], &[b'a'; 63]].concat();
        let name = |last: u8| [label.repeat(3), vec![last], vec![b'a'; last.into()], vec![0]].concat();
        check_name(&name(61), 12, Some(12 + 255));
        check_name(&name(62), 12, None);
    }

    #[test]
    fn a_chain_of_pointers_is_cut() {
        let chain = |links: usize| {
            let mut bytes = vec![0, 0];
            for link in 0..links {
                let target = u16::try_from(HEADER + link * 2).expect("short") | 0xc000;
                bytes.extend_from_slice(&if link == 0 { 0xc00c_u16 } else { target }.to_be_bytes());
            }
            bytes
        };
        check_name(&chain(MAX_POINTERS), HEADER + MAX_POINTERS * 2, Some(HEADER + 2 + MAX_POINTERS * 2));
        check_name(&chain(MAX_POINTERS + 1), HEADER + (MAX_POINTERS + 1) * 2, None);
    }

    #[test]
    fn questions_with_anything_behind_them_are_refused() {
        let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01".to_vec();
        let asked = Asked { question_end: question.len(), opt: None };
        assert_eq!(Asked::read(&question), Some(asked));
        assert_eq!(Asked::read(&[&question[..], &[0]].concat()), None);
        for length in 0..question.len() {
            assert_eq!(Asked::read(&question[..length]), None);
        }

        let opt = b"\x00\x00\x29\x10\x00\x00\x00\x80\x00\x00\x00";
        let mut with_opt = [&question[..], opt].concat();
        with_opt[11] = 1;
        let expected = Opt { payload: 4096, version: 0, dnssec_ok: true };
        assert_eq!(Asked::read(&with_opt).and_then(|asked| asked.opt), Some(expected));
        let mut twice = [&with_opt[..], opt].concat();
        twice[11] = 2;
        assert_eq!(Asked::read(&twice), None);
    }

    #[test]
    fn errors_carry_the_question_and_the_reason() {
        let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x01a\x00\x00\x01\x00\x01\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00";
        let reason = Reason { code: 22, text: "none" };
        let reply = error_reply(query, Rcode::ServFail, Some(reason)).expect("a header");
        let message = hickory_proto::op::Message::from_vec(&reply).expect("a whole message");
        assert_eq!(message.metadata.id, 0x1234);
        assert_eq!(message.metadata.response_code, hickory_proto::op::ResponseCode::ServFail);
        assert_eq!(message.queries.len(), 1);
        assert!(message.edns.is_some());
        assert!(reply.ends_with(b"\x00\x0f\x00\x06\x00\x16none"));
        assert_eq!(error_reply(&query[..11], Rcode::FormErr, None), None);
        assert_eq!(error_reply(&query[..20], Rcode::FormErr, None).map(|reply| reply.len()), Some(HEADER));
    }
}
