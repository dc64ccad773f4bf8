//! Status lines, and how a response's body ends (RFC 9112, sections 4 and 6.3).

use baremesh_model::http::headers::is_value;
use baremesh_model::http::{ResponseHead, Version};

use super::fields::{self, Facts, Side};
use super::lines::Lines;
use super::request::read_version;
use super::{Asked, Framing, H1Error, Hop, Persistence};

/// Fills `head` with the head that `lines` were found in, and says what concerns the connection.
pub fn read(head: &mut ResponseHead, lines: &Lines, buffer: &[u8], asked: Asked) -> Result<Hop, H1Error> {
    head.clear();
    let mut lines = lines.all(buffer);
    (head.version, head.status) = status_line(lines.next().unwrap_or_default())?;
    let facts = fields::read(lines, Side::Response, &mut head.headers)?;
    let framing = framing(head, &facts, asked)?;
    if framing == Framing::Upgraded {
        head.headers.append_line(b"upgrade", b"websocket")?;
    }
    let persistence = match framing {
        Framing::UntilClose | Framing::Upgraded => Persistence::Close,
        _ => facts.persistence(head.version),
    };
    Ok(Hop { framing, persistence, upgrade: framing == Framing::Upgraded })
}

/// Version and status. The reason is dropped; its space may be missing, as many servers leave it out with it.
fn status_line(line: &[u8]) -> Result<(Version, u16), H1Error> {
    let (version, rest) = line.split_at_checked(8).ok_or(H1Error::StartLine)?;
    let version = read_version(version)?;
    let (status, reason) = rest.split_at_checked(4).ok_or(H1Error::StartLine)?;
    let status = match status {
        [b' ', hundreds @ b'1'..=b'9', tens, ones] if tens.is_ascii_digit() && ones.is_ascii_digit() => {
            [hundreds, tens, ones].iter().fold(0, |status, digit| status * 10 + u16::from(**digit - b'0'))
        }
        _ => return Err(H1Error::StartLine),
    };
    match reason {
        [] | [b' ', ..] if reason.iter().copied().all(is_value) => Ok((version, status)),
        _ => Err(H1Error::StartLine),
    }
}

fn framing(head: &mut ResponseHead, facts: &Facts<'_>, asked: Asked) -> Result<Framing, H1Error> {
    if facts.chunked && head.version == Version::Http10 {
        return Err(H1Error::BodyNotAllowed);
    }
    if facts.chunked && facts.length.is_some() {
        return Err(H1Error::TwoFramings);
    }
    match head.status {
        101 if asked == Asked::Upgrade && facts.websocket => Ok(Framing::Upgraded),
        101 => Err(H1Error::Upgrade),
        // What would come if one believed the length is the next response to another reader.
        100..=199 | 204 if facts.chunked || facts.length.is_some_and(|length| length > 0) => {
            Err(H1Error::BodyNotAllowed)
        }
        100..=199 | 204 => {
            head.headers.remove("content-length");
            Ok(Framing::None)
        }
        304 => Ok(Framing::None),
        _ if asked == Asked::Head => Ok(Framing::None),
        _ => Ok(match (facts.chunked, facts.length) {
            (true, _) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::UntilClose,
        }),
    }
}
