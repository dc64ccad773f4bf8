//! Request lines, and who a request is for (RFC 9112, section 3).

use baremesh_model::http::syntax::{TargetError, check_target, is_authority, is_method};
use baremesh_model::http::{RequestHead, Version};
use memchr::memchr;

use super::fields::{self, Facts, Side};
use super::lines::Lines;
use super::{Framing, H1Error, Hop, HttpLimits};

/// Fills `head` with the head that `lines` were found in, and says what concerns the connection.
pub fn read(
    head: &mut RequestHead,
    lines: &Lines,
    buffer: &[u8],
    limits: &HttpLimits,
) -> Result<Hop, H1Error> {
    head.clear();
    let mut lines = lines.all(buffer);
    let line = Line::read(lines.next().unwrap_or_default(), limits)?;
    let facts = fields::read(lines, Side::Request, &mut head.headers)?;
    let authority = authority(&line, &facts)?;
    head.version = line.version;
    head.method.push_str(text(line.method)?);
    head.authority.push_str(text(authority)?);
    match line.target {
        // An absolute target may have no path at all (RFC 9112, sections 3.2.1 and 3.2.4).
        b"" if line.method == b"OPTIONS" => head.target.push('*'),
        b"" => head.target.push('/'),
        [b'?', ..] => {
            head.target.push('/');
            head.target.push_str(text(line.target)?);
        }
        target => head.target.push_str(text(target)?),
    }
    let framing = framing(line.version, &facts)?;
    let upgrade = facts.websocket
        && line.version == Version::Http11
        && line.method == b"GET"
        && matches!(framing, Framing::None | Framing::Length(0));
    if upgrade {
        head.headers.append_line(b"upgrade", b"websocket")?;
    }
    Ok(Hop { framing, persistence: facts.persistence(line.version), upgrade })
}

/// How a request's body ends (RFC 9112, section 6.3).
fn framing(version: Version, facts: &Facts<'_>) -> Result<Framing, H1Error> {
    match (facts.chunked, facts.length) {
        (true, _) if version == Version::Http10 => Err(H1Error::BodyNotAllowed),
        (true, Some(_)) => Err(H1Error::TwoFramings),
        (true, None) => Ok(Framing::Chunked),
        (false, Some(length)) => Ok(Framing::Length(length)),
        (false, None) => Ok(Framing::None),
    }
}

/// A request line in its parts.
struct Line<'a> {
    method: &'a [u8],
    /// Of an absolute target.
    authority: Option<&'a [u8]>,
    /// Path and query, or `*`. May be without its slash after an authority.
    target: &'a [u8],
    version: Version,
}

impl<'a> Line<'a> {
    fn read(line: &'a [u8], limits: &HttpLimits) -> Result<Self, H1Error> {
        let (method, rest) = cut(line).ok_or(H1Error::StartLine)?;
        let (target, version) = cut(rest).ok_or(H1Error::StartLine)?;
        if !is_method(method) {
            return Err(H1Error::StartLine);
        }
        let version = read_version(version)?;
        if target.len() > limits.target_bytes {
            return Err(H1Error::TargetTooLong(limits.target_bytes));
        }
        if method == b"CONNECT" {
            return Err(H1Error::Connect);
        }
        let (authority, target) = match target {
            [b'/', ..] => (None, target),
            b"*" if method == b"OPTIONS" => return Ok(Self { method, authority: None, target, version }),
            _ => {
                let (authority, target) = absolute(target)?;
                (Some(authority), target)
            }
        };
        match target {
            b"" => {}
            [b'?', ..] => query(target)?,
            _ => check_target(target)?,
        }
        Ok(Self { method, authority, target, version })
    }
}

/// Before and after the first space.
fn cut(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = memchr(b' ', line)?;
    Some((&line[..space], &line[space + 1..]))
}

/// The version at a line's end or start.
pub fn read_version(version: &[u8]) -> Result<Version, H1Error> {
    match version {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(H1Error::Version)
        }
        _ => Err(H1Error::StartLine),
    }
}

/// The authority of an absolute target, and what follows it.
fn absolute(target: &[u8]) -> Result<(&[u8], &[u8]), H1Error> {
    let colon = memchr(b':', target).ok_or(TargetError::Form)?;
    let (scheme, rest) = (&target[..colon], &target[colon + 1..]);
    let rest = rest.strip_prefix(b"//").ok_or(TargetError::Form)?;
    if !scheme.eq_ignore_ascii_case(b"http") {
        return Err(H1Error::Scheme);
    }
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    match is_authority(authority) {
        true => Ok((authority, target)),
        false => Err(H1Error::Host("the target's authority is no name or address")),
    }
}

/// A query right after an authority.
fn query(target: &[u8]) -> Result<(), TargetError> {
    match target.iter().all(|byte| matches!(byte, 0x21..=0x7e) && *byte != b'#') {
        true => Ok(()),
        false => Err(TargetError::Character),
    }
}

/// Whom the request is for: the target's authority, which `Host` must agree with, or `Host` (RFC 9112, section 3.3).
fn authority<'a>(line: &Line<'a>, facts: &Facts<'a>) -> Result<&'a [u8], H1Error> {
    let host = match (facts.host, facts.hosts) {
        (None, _) if line.version == Version::Http10 => return Ok(line.authority.unwrap_or_default()),
        (None, _) => return Err(H1Error::Host("there is none")),
        (Some(host), 1) => host,
        _ => return Err(H1Error::Host("there is more than one")),
    };
    // Empty for targets without an authority (RFC 9112, section 3.2).
    if !host.is_empty() && !is_authority(host) {
        return Err(H1Error::Host("it is no name or address"));
    }
    match line.authority {
        None => Ok(host),
        Some(authority) if without_port(authority).eq_ignore_ascii_case(without_port(host)) => Ok(authority),
        Some(_) => Err(H1Error::Host("it differs from the target's authority")),
    }
}

/// Without the port if it is the one that HTTP has anyway.
fn without_port(authority: &[u8]) -> &[u8] {
    authority.strip_suffix(b":80").unwrap_or(authority)
}

/// What was found to be ASCII.
fn text(part: &[u8]) -> Result<&str, H1Error> {
    std::str::from_utf8(part).map_err(|_| H1Error::StartLine)
}
