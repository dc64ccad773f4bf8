//! What is left of connections that were opened before their destination was captured: nobody has answered them, or they have ended.
//! Connection tracking remembers such a one for up to two minutes, and for as long as it does, it takes for it what comes
//! from the same port to the same place: no rule that redirects is asked, and a later connection would be refused, as one
//! that goes past the agent. So they are forgotten as soon as the rules for their destinations stand. One that is tried still
//! is brought to the agent from then on.

use std::net::SocketAddr;

use rustix::io::retry_on_intr;
use rustix::net::SendFlags;

use super::{ENTRY, FAMILY, GET, HEADER, NESTED, ORIGINAL, TrackingSocket, ends, find, message, put};
use crate::attribution::look_up::receive;
use crate::attribution::sock_diag::dump::{PART_LEN, Part};
use crate::attribution::sock_diag::{LookupError, NLMSG_ERROR, kernel_error};

/// `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 1 << 8 | 2;
/// `NLM_F_DUMP`, `NLM_F_ACK`, and the kind of a list's end.
const ALL: u16 = 0x300;
const ACKNOWLEDGED: u16 = 4;
const DONE: u16 = 3;
/// IPv4 and IPv6.
const FAMILIES: [u8; 2] = [2, 10];

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

/// So many entries of a family are looked at: some tens of milliseconds. On a kernel before 5.16 what is translated is among them.
const MOST: usize = 20_000;

/// Forgets what is left of connections to where is captured now; of how many.
///
/// # Errors
/// The kernel cannot be asked, or does not take it.
pub fn forget(is_captured: impl Fn(SocketAddr) -> bool) -> Result<usize, LookupError> {
    let mut forgotten = 0;
    for family in FAMILIES {
        let found = list(family, &is_captured)?;
        if found.is_empty() {
            continue;
        }
        let mut kernel = TrackingSocket::open()?;
        for entry in &found {
            forgotten += usize::from(kernel.delete(family, entry)?);
        }
    }
    Ok(forgotten)
}

/// The entries of a family that are to be forgotten, each as the attributes by which it is named. On a socket of its own, with
/// which goes what of the list is left unread.
fn list(family: u8, is_captured: &impl Fn(SocketAddr) -> bool) -> Result<Vec<Vec<u8>>, LookupError> {
    let mut kernel = TrackingSocket::open()?;
    let mut body = Vec::new();
    put(&mut body, STATUS, &0_u32.to_be_bytes());
    put(&mut body, STATUS_MASK, &TRANSLATED.to_be_bytes());
    kernel.send(GET, ALL, (family, &body))?;
    let (mut found, mut seen) = (Vec::new(), 0);
    let mut part = vec![0; PART_LEN];
    loop {
        let length = receive(&kernel.socket, &mut part)?;
        let read = decode(&part[..length], &mut |entry| {
            seen += 1;
            found.extend(leftover(entry, is_captured));
        })?;
        if read == Part::Last || seen >= MOST {
            return Ok(found);
        }
    }
}

/// What names an entry, if it is one to forget: its ends, and its number, so that none which came after it is meant.
fn leftover(entry: &[u8], is_captured: &impl Fn(SocketAddr) -> bool) -> Option<Vec<u8>> {
    let status = u32::from_be_bytes(find(entry, STATUS)?.try_into().ok()?);
    let state = || find(find(find(entry, ABOUT_PROTOCOL)?, ABOUT_TCP)?, STATE)?.first().copied();
    let is_left = status & ANSWERED == 0 || state().is_some_and(|state| ENDED.contains(&state));
    // Our rules are not asked about what has a zone.
    if status & TRANSLATED != 0 || !is_left || find(entry, ZONE).is_some() {
        return None;
    }
    let (_, to) = ends(entry)?;
    let mut name = Vec::new();
    put(&mut name, ORIGINAL | NESTED, find(entry, ORIGINAL)?);
    put(&mut name, ID, find(entry, ID)?);
    is_captured(to).then_some(name)
}

/// Reads one message of a list, and hands the attributes of every entry in it to `take`.
fn decode(mut bytes: &[u8], take: &mut impl FnMut(&[u8])) -> Result<Part, LookupError> {
    const SHORT: LookupError = LookupError::Malformed("a part of the list is cut short");
    while !bytes.is_empty() {
        let header = bytes.first_chunk::<HEADER>().ok_or(SHORT)?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = bytes.get(HEADER..length).ok_or(SHORT)?;
        match u16::from_ne_bytes([header[4], header[5]]) {
            ENTRY => take(body.get(FAMILY..).ok_or(SHORT)?),
            DONE => return Ok(Part::Last),
            NLMSG_ERROR => return Err(error_of(body).ok_or(SHORT)?),
            _ => return Err(LookupError::Malformed("a part of the list is of another kind")),
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Part::More)
}

fn error_of(body: &[u8]) -> Option<LookupError> {
    Some(kernel_error(u32::from_ne_bytes(*body.first_chunk()?)))
}

impl TrackingSocket {
    fn send(&mut self, kind: u16, flags: u16, (family, body): (u8, &[u8])) -> Result<(), LookupError> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = message((kind, flags), family, self.sequence, body);
        retry_on_intr(|| rustix::net::send(&self.socket, &request, SendFlags::empty()))
            .map_err(LookupError::Refused)?;
        Ok(())
    }

    /// Whether the entry was there still.
    fn delete(&mut self, family: u8, name: &[u8]) -> Result<bool, LookupError> {
        self.send(DELETE, ACKNOWLEDGED, (family, name))?;
        let length = receive(&self.socket, &mut self.answer[..])?;
        let body = self.answer[..length].get(HEADER..).unwrap_or_default();
        match body.first_chunk().map(|code| u32::from_ne_bytes(*code)) {
            Some(0) => Ok(true),
            Some(code) => match kernel_error(code) {
                LookupError::Gone => Ok(false),
                error => Err(error),
            },
            None => Err(LookupError::Malformed("it is cut short")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::conntrack::tests::entry;

    const TO: &str = "10.0.0.2:7000";

    /// A message of a list with one entry, and what of it is to be forgotten.
    fn read(bytes: &[u8]) -> Result<Vec<Vec<u8>>, LookupError> {
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
        let (sent, established, close) = (1, 3, 8);
        let zone: &[(u16, &[u8])] = &[(ZONE, &[0, 7])];
        for (to, status, state, further, is_forgotten) in [
            (TO, 0, sent, &[][..], true),
            (TO, ANSWERED, close, &[], true),
            (TO, ANSWERED, established, &[], false),
            (TO, TRANSLATED, sent, &[], false),
            (TO, ANSWERED | TRANSLATED, close, &[], false),
            (TO, 0, sent, zone, false),
            ("10.0.0.2:7001", 0, sent, &[], false),
        ] {
            let message = listed(to, status, state, further);
            let found = read(&message).expect("a list");
            assert_eq!(!found.is_empty(), is_forgotten, "{to}, {status:#x}, {state}");
            for name in &found {
                assert_eq!(ends(name).map(|(_, to)| to.to_string()).as_deref(), Some(TO));
                assert_eq!(find(name, ID), Some(&[1, 2, 3, 4][..]));
            }
            let two = [&message[..], &message].concat();
            assert_eq!(read(&two).expect("a list").len(), 2 * found.len());
        }
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
