//! The dump of TCP sockets: one request for all of a family in some states, and messages of many answers each, until
//! the kernel says that it is done.

use super::{
    AF_INET, AF_INET6, ANSWER_LEN, HEADER_LEN, IPPROTO_TCP, LookupError, MESSAGE_ID, MESSAGE_LEN,
    NLM_F_REQUEST, NLMSG_ERROR, REQUEST_LEN, SOCK_DIAG_BY_FAMILY, SocketAddr, Uid, attribute, end,
    kernel_error, put, u16_at, u32_at,
};

/// Bytes of one message of a dump: the kernel makes none larger than this.
pub const PART_LEN: usize = 64 << 10;

pub(in crate::attribution) const NLM_F_DUMP: u16 = 0x300;
const NLMSG_DONE: u16 = 3;
const INET_DIAG_MARK: u16 = 15;

/// Which sockets are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// Connections that carry data still: ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT.
    Open,
    /// Listeners.
    Listening,
}

impl Listed {
    /// Bits by the numbers of linux/tcp_states.h.
    const fn states(self) -> u32 {
        match self {
            Self::Open => 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8,
            Self::Listening => 1 << 10,
        }
    }
}

/// The address family of a dump. IPv6 sockets may hold mapped IPv4 addresses, which come out as IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// As the kernel has it.
    pub(in crate::attribution) const fn number(self) -> u8 {
        match self {
            Self::V4 => AF_INET,
            Self::V6 => AF_INET6,
        }
    }
}

/// A socket of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketEntry {
    /// Its own end.
    pub local: SocketAddr,
    /// The other end; of a listener, port 0.
    pub peer: SocketAddr,
    /// The user that created it.
    pub uid: Uid,
    /// Its inode number; 0 where no process holds it any more.
    pub inode: u32,
    /// Its mark, which only `CAP_NET_ADMIN` is told.
    pub mark: Option<u32>,
}

/// Whether more of a dump comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Yes.
    More,
    /// No.
    Last,
}

/// The request for all sockets of a family.
pub fn encode(listed: Listed, family: Family) -> [u8; REQUEST_LEN] {
    let mut bytes = [0; REQUEST_LEN];
    put(&mut bytes, 0, &(REQUEST_LEN as u32).to_ne_bytes());
    put(&mut bytes, 4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(&mut bytes, 6, &(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    put(&mut bytes, HEADER_LEN, &[family.number(), IPPROTO_TCP]);
    put(&mut bytes, HEADER_LEN + 4, &listed.states().to_ne_bytes());
    bytes
}

/// Reads one message of the dump and hands every socket in it to `take`.
pub fn decode(bytes: &[u8], take: &mut impl FnMut(SocketEntry)) -> Result<Part, LookupError> {
    each_answer(bytes, SOCK_DIAG_BY_FAMILY, &mut |body| {
        take(entry(body)?.ok_or(SHORT)?);
        Ok(())
    })
}

pub(in crate::attribution) const SHORT: LookupError =
    LookupError::Malformed("a part of the list is cut short");

/// Reads one message of a dump whose answers are of this kind, and hands what is behind the header of each to `take`.
pub(in crate::attribution) fn each_answer(
    mut bytes: &[u8],
    kind: u16,
    take: &mut impl FnMut(&[u8]) -> Result<(), LookupError>,
) -> Result<Part, LookupError> {
    while !bytes.is_empty() {
        let length = u32_at(bytes, 0).ok_or(SHORT)? as usize;
        let body = bytes.get(HEADER_LEN..length).ok_or(SHORT)?;
        match u16_at(bytes, 4).ok_or(SHORT)? {
            answer if answer == kind => take(body)?,
            NLMSG_DONE => return Ok(Part::Last),
            NLMSG_ERROR => return Err(kernel_error(u32_at(body, 0).ok_or(SHORT)?)),
            _ => return Err(LookupError::Malformed("a part of the list is of another kind")),
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Part::More)
}

fn entry(body: &[u8]) -> Result<Option<SocketEntry>, LookupError> {
    let Some(attributes) = body.get(MESSAGE_LEN..) else { return Ok(None) };
    let mark = attribute(attributes, INET_DIAG_MARK)?;
    let read = || {
        Some(SocketEntry {
            local: end(body, MESSAGE_ID, MESSAGE_ID + 4)?,
            peer: end(body, MESSAGE_ID + 2, MESSAGE_ID + 20)?,
            uid: Uid(u32_at(body, 64)?),
            inode: u32_at(body, 68)?,
            mark: mark.and_then(|mark| u32_at(mark, 0)),
        })
    };
    Ok(read())
}

const _: () = assert!(PART_LEN > ANSWER_LEN, "a part holds an answer at least");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER_LEN + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER_LEN, 0);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn socket(mark: Option<u32>) -> Vec<u8> {
        let mut body = vec![0; MESSAGE_LEN];
        body[..2].copy_from_slice(&[AF_INET, 1]);
        body[4..8].copy_from_slice(&[0x1b, 0x58, 0x9c, 0x40]);
        body[8..12].copy_from_slice(&[10, 0, 0, 1]);
        body[24..28].copy_from_slice(&[10, 0, 0, 2]);
        body[64..72].copy_from_slice(&[1000_u32.to_ne_bytes(), 99_u32.to_ne_bytes()].concat());
        if let Some(mark) = mark {
            body.extend([8_u16.to_ne_bytes(), INET_DIAG_MARK.to_ne_bytes()].concat());
            body.extend(mark.to_ne_bytes());
        }
        message(SOCK_DIAG_BY_FAMILY, &body)
    }

    fn all(bytes: &[u8]) -> Result<(Vec<SocketEntry>, Part), LookupError> {
        let mut taken = Vec::new();
        let part = decode(bytes, &mut |entry| taken.push(entry))?;
        Ok((taken, part))
    }

    #[test]
    fn reads_every_socket_of_every_part() {
        let entry = |mark| SocketEntry {
            local: "10.0.0.1:7000".parse().expect("an address"),
            peer: "10.0.0.2:40000".parse().expect("an address"),
            uid: Uid(1000),
            inode: 99,
            mark,
        };
        let two = [socket(Some(7)), socket(None)].concat();
        assert_eq!(all(&two), Ok((vec![entry(Some(7)), entry(None)], Part::More)));
        let last = [socket(None), message(NLMSG_DONE, &[0; 4])].concat();
        assert_eq!(all(&last), Ok((vec![entry(None)], Part::Last)));
        assert_eq!(all(&[]), Ok((vec![], Part::More)));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let refusal = message(NLMSG_ERROR, &(-1_i32).to_ne_bytes());
        assert!(matches!(all(&refusal), Err(LookupError::Refused(_))));
        let mut no_length = socket(None);
        no_length[..4].fill(0);
        let short = message(SOCK_DIAG_BY_FAMILY, &[0; MESSAGE_LEN - 1]);
        for bytes in [no_length, short, message(99, &[]), vec![1, 2, 3], socket(None)[..80].to_vec()] {
            assert!(matches!(all(&bytes), Err(LookupError::Malformed(_))), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = all(&bytes);
        }
    }
}
