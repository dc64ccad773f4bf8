//! What is left of connections that were opened before their destination was captured: nobody has answered them, or they have ended.
//! Connection tracking remembers such a one for up to two minutes, and for as long as it does, it takes for it what comes
//! from the same port to the same place: no rule that redirects is asked, and a later connection would be refused, as one
//! that goes past the agent. So they are forgotten as soon as the rules for their destinations stand. One that is tried still
//! is brought to the agent from then on.

use std::net::SocketAddr;

use super::{
    ENTRY, FAMILY, GET, HEADER, NESTED, ORIGINAL, SEQUENCE, TrackingSocket, ends, find, message, put,
};
use crate::attribution::look_up::receive;
use crate::attribution::sock_diag::dump::{Family, NLM_F_DUMP, PART_LEN, Part, SHORT, each_answer};
use crate::attribution::sock_diag::{LookupError, NLMSG_ERROR, kernel_error};

/// `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 1 << 8 | 2;
/// `NLM_F_ACK`.
const ACKNOWLEDGED: u16 = 4;
/// `CTA_STATUS`, `CTA_PROTOINFO`, `CTA_ID`, `CTA_ZONE`, `CTA_STATUS_MASK`.
const STATUS: u16 = 3;
const ABOUT_PROTOCOL: u16 = 4;
const ID: u16 = 12;
const ZONE: u16 = 18;
const STATUS_MASK: u16 = 26;
/// `IPS_SEEN_REPLY`, and `IPS_DST_NAT`: what goes to the agent is translated.
const ANSWERED: u32 = 1 << 1;
const TRANSLATED: u32 = 1 << 5;
/// `CTA_PROTOINFO_TCP`, `CTA_PROTOINFO_TCP_STATE`.
const ABOUT_TCP: u16 = 1;
const STATE: u16 = 1;
/// `TCP_CONNTRACK_TIME_WAIT`, `TCP_CONNTRACK_CLOSE`.
const ENDED: [u8; 2] = [7, 8];

/// So many entries are looked at: some tens of milliseconds. Older kernels do not know how to leave out what is translated.
const MOST: usize = 20_000;

/// What names an entry to the kernel: its ends, and its number, so that none which came after it is meant. There is none
/// without ends, which would stand for all that is tracked.
struct Name(Vec<u8>);

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forgotten {
    /// So many were forgotten.
    pub entries: usize,
    /// There were more entries than are looked at.
    pub left_out: bool,
}

/// Forgets what is left of connections of a family to where is captured now.
///
/// # Errors
/// The kernel cannot be asked, or does not take it: the last such error, after all have been tried.
pub fn forget(family: Family, is_captured: impl Fn(SocketAddr) -> bool) -> Result<Forgotten, LookupError> {
    // What of the list is left unread goes with its socket. What is found is forgotten soon: it may be used again.
    let (mut listing, mut forgetting) = (TrackingSocket::open()?, TrackingSocket::open()?);
    let mut wanted = Vec::new();
    put(&mut wanted, STATUS, &0_u32.to_be_bytes());
    put(&mut wanted, STATUS_MASK, &TRANSLATED.to_be_bytes());
    listing.send(|sequence| message((GET, NLM_F_DUMP), family.number(), sequence, &wanted))?;
    let mut part = vec![0; PART_LEN];
    let (mut forgotten, mut failed) = (Forgotten { entries: 0, left_out: false }, None);
    let mut seen = 0;
    loop {
        let length = receive(&listing.socket, &mut part)?;
        let mut found = Vec::new();
        let read = decode(&part[..length], &mut |entry| {
            seen += 1;
            found.extend(leftover(entry, &is_captured));
        })?;
        for name in &found {
            match forgetting.delete(family, name) {
                Ok(was_there) => forgotten.entries += usize::from(was_there),
                Err(error) => failed = Some(error),
            }
        }
        forgotten.left_out = read == Part::More && seen >= MOST;
        if read == Part::Last || forgotten.left_out {
            return failed.map_or(Ok(forgotten), Err);
        }
    }
}

/// What names an entry, if it is one to forget.
fn leftover(entry: &[u8], is_captured: &impl Fn(SocketAddr) -> bool) -> Option<Name> {
    let status = u32::from_be_bytes(find(entry, STATUS)?.try_into().ok()?);
    let state = || find(find(find(entry, ABOUT_PROTOCOL)?, ABOUT_TCP)?, STATE)?.first().copied();
    let is_left = status & ANSWERED == 0 || state().is_some_and(|state| ENDED.contains(&state));
    // Others put what is in a zone there.
    if status & TRANSLATED != 0 || !is_left || find(entry, ZONE).is_some() {
        return None;
    }
    let (_, to) = ends(entry)?;
    if !is_captured(to) {
        return None;
    }
    let mut name = Vec::new();
    put(&mut name, ORIGINAL | NESTED, find(entry, ORIGINAL)?);
    put(&mut name, ID, find(entry, ID)?);
    Some(Name(name))
}

/// Reads one message of a list, and hands the attributes of every entry in it to `take`.
fn decode(bytes: &[u8], take: &mut impl FnMut(&[u8])) -> Result<Part, LookupError> {
    each_answer(bytes, ENTRY, &mut |body| {
        take(body.get(FAMILY..).ok_or(SHORT)?);
        Ok(())
    })
}

impl TrackingSocket {
    /// Whether the entry was there still.
    fn delete(&mut self, family: Family, Name(name): &Name) -> Result<bool, LookupError> {
        let make = |sequence| message((DELETE, ACKNOWLEDGED), family.number(), sequence, name);
        self.ask(make, acknowledged)
    }
}

/// Whether there was what the request with that number was about. `None`: it answers another request.
fn acknowledged(answer: &[u8], sequence: u32) -> Result<Option<bool>, LookupError> {
    const SHORT: LookupError = LookupError::Malformed("it is cut short");
    let word = |at: std::ops::Range<usize>| answer.get(at)?.try_into().ok().map(u32::from_ne_bytes);
    if word(SEQUENCE).ok_or(SHORT)? != sequence {
        return Ok(None);
    }
    if answer.get(4..6) != Some(&NLMSG_ERROR.to_ne_bytes()) {
        return Err(LookupError::Malformed("it is of another kind"));
    }
    match word(HEADER..HEADER + 4).ok_or(SHORT)? {
        0 => Ok(Some(true)),
        code => match kernel_error(code) {
            LookupError::Gone => Ok(Some(false)),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::conntrack::tests::entry;

    const TO: &str = "10.0.0.2:7000";

    /// A message of a list with one entry, and what of it is to be forgotten.
    fn read(bytes: &[u8]) -> Result<Vec<Name>, LookupError> {
        let mut found = Vec::new();
        let is_captured = |to: SocketAddr| to.to_string() == TO;
        decode(bytes, &mut |entry| found.extend(leftover(entry, &is_captured)))?;
        Ok(found)
    }

    fn listed(to: &str, status: u32, state: u8, further: &[(u16, &[u8])]) -> Vec<u8> {
        let address = |text: &str| text.parse().expect("an address");
        let mut message = entry(address("10.0.0.1:40000"), address(to));
        put(&mut message, STATUS, &status.to_be_bytes());
        let (mut of_tcp, mut about) = (Vec::new(), Vec::new());
        put(&mut of_tcp, STATE, &[state]);
        put(&mut about, ABOUT_TCP | NESTED, &of_tcp);
        put(&mut message, ABOUT_PROTOCOL | NESTED, &about);
        put(&mut message, ID, &[1, 2, 3, 4]);
        further.iter().for_each(|(kind, value)| put(&mut message, *kind, value));
        let length = (message.len() as u32).to_ne_bytes();
        message[..4].copy_from_slice(&length);
        message
    }

    #[test]
    fn what_nobody_answered_and_what_has_ended_is_forgotten_and_nothing_else() {
        let (sent, established, time_wait, close) = (1, 3, 7, 8);
        let zone: &[(u16, &[u8])] = &[(ZONE, &[0, 7])];
        for (to, status, state, further, is_forgotten) in [
            (TO, 0, sent, &[][..], true),
            (TO, ANSWERED, close, &[], true),
            (TO, ANSWERED, time_wait, &[], true),
            (TO, ANSWERED, established, &[], false),
            (TO, TRANSLATED, sent, &[], false),
            (TO, ANSWERED | TRANSLATED, close, &[], false),
            (TO, 0, sent, zone, false),
            ("10.0.0.2:7001", 0, sent, &[], false),
        ] {
            let message = listed(to, status, state, further);
            let found = read(&message).expect("a list");
            assert_eq!(!found.is_empty(), is_forgotten, "{to}, {status:#x}, {state}");
            for Name(name) in &found {
                assert_eq!(ends(name).map(|(_, to)| to.to_string()).as_deref(), Some(TO));
                assert_eq!(find(name, ID), Some(&[1, 2, 3, 4][..]));
            }
            let two = [&message[..], &message].concat();
            assert_eq!(read(&two).expect("a list").len(), 2 * found.len());
        }
    }

    #[test]
    fn a_list_has_an_end_and_may_be_refused() {
        let of_kind = |kind: u16, code: i32| {
            let mut message = listed(TO, 0, 1, &[])[..HEADER].to_vec();
            message[..4].copy_from_slice(&20_u32.to_ne_bytes());
            message[4..6].copy_from_slice(&kind.to_ne_bytes());
            message.extend(code.to_ne_bytes());
            message
        };
        let last = [listed(TO, 0, 1, &[]), of_kind(3, 0)].concat();
        let mut found = 0;
        assert_eq!(decode(&last, &mut |_| found += 1), Ok(Part::Last));
        assert_eq!(found, 1);
        let refused = of_kind(NLMSG_ERROR, -1);
        assert!(matches!(decode(&refused, &mut |_| ()), Err(LookupError::Refused(_))));
        let sequence = u32::from_ne_bytes(refused[SEQUENCE].try_into().expect("four bytes"));
        assert!(matches!(acknowledged(&refused, sequence), Err(LookupError::Refused(_))));
        assert_eq!(acknowledged(&refused, sequence + 1), Ok(None));
        assert_eq!(acknowledged(&of_kind(NLMSG_ERROR, 0), sequence), Ok(Some(true)));
        assert_eq!(acknowledged(&of_kind(NLMSG_ERROR, -2), sequence), Ok(Some(false)), "ENOENT");
        assert!(matches!(acknowledged(&last, sequence), Err(LookupError::Malformed(_))));
    }

    #[test]
    fn what_is_no_list_is_refused_or_read_as_far_as_it_goes() {
        let message = listed(TO, 0, 1, &[]);
        for length in 1..message.len() {
            assert!(read(&message[..length]).is_err(), "cut after {length}");
        }
        for byte in 0..message.len() {
            let mut damaged = message.clone();
            damaged[byte] ^= 0xff;
            let _ = read(&damaged);
        }
    }
}
