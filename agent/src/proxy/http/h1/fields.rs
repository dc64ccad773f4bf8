//! Field lines, and what they say of framing and connection. Fields that concern one connection alone are taken out here,
//! before anything that decides sees them, together with what `Connection` names (RFC 9110, section 7.6.1).

use baremesh_model::http::headers::{is_token, is_value};
use baremesh_model::http::{FieldError, Headers, Version};
use memchr::memchr;

use super::{H1Error, Persistence};

/// The most options of `Connection`: each is looked for among all fields.
const MAX_OPTIONS: usize = 16;
/// The longest length, in digits: well within what every reader counts with.
const MAX_LENGTH_DIGITS: usize = 18;

/// Which of the two kinds of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Request,
    Response,
}

/// What the fields say that is not passed on as it came.
#[derive(Debug, Default)]
pub struct Facts<'a> {
    /// The first `Host`.
    pub host: Option<&'a [u8]>,
    /// How many there are.
    pub hosts: usize,
    /// `Content-Length`.
    pub length: Option<u64>,
    /// `Transfer-Encoding: chunked`.
    pub chunked: bool,
    /// `Connection: upgrade` and `Upgrade: websocket`, and no other protocol.
    pub websocket: bool,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    protocols: usize,
    trailers: bool,
    options: usize,
    named: bool,
}

impl Facts<'_> {
    /// What becomes of the connection (RFC 9112, section 9.3).
    pub fn persistence(&self, version: Version) -> Persistence {
        match (version, self.close, self.keep_alive) {
            (_, true, _) | (Version::Http10, _, false) => Persistence::Close,
            (Version::Http10, _, true) => Persistence::KeepSaid,
            _ => Persistence::Keep,
        }
    }
}

/// Puts the fields of `lines` into `headers`, but for those of one connection alone, and says what these say.
pub fn read<'a>(
    lines: impl Iterator<Item = &'a [u8]> + Clone,
    side: Side,
    headers: &mut Headers,
) -> Result<Facts<'a>, H1Error> {
    let mut facts = Facts::default();
    for line in lines.clone() {
        let (name, value) = split(line)?;
        if !facts.special(name, value, side, headers)? {
            headers.append_line(name, value)?;
        }
    }
    facts.websocket &= facts.upgrade && facts.protocols == 1;
    if facts.named {
        remove_named(lines, headers);
    }
    Ok(facts)
}

/// Name and value of a line, the value without the space around it.
pub fn split(line: &[u8]) -> Result<(&[u8], &[u8]), H1Error> {
    if let Some(b' ' | b'\t') = line.first() {
        return Err(H1Error::Folded);
    }
    let colon = memchr(b':', line).ok_or(H1Error::Field)?;
    Ok((&line[..colon], trim(&line[colon + 1..])))
}

/// Without spaces and tabs around it, and these alone: another reader takes a form feed for a part of the value.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

impl<'a> Facts<'a> {
    /// Takes note of a field that is not simply passed on, and says whether it was one.
    fn special(
        &mut self,
        name: &[u8],
        value: &'a [u8],
        side: Side,
        headers: &mut Headers,
    ) -> Result<bool, H1Error> {
        // Told apart by their lengths first: most fields are none of these.
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        match name.len() {
            2 if is("te") => {
                if side == Side::Request && !self.trailers && lists(value, b"trailers") {
                    self.trailers = true;
                    headers.append_line(b"te", b"trailers")?;
                }
            }
            // A response has none; another reader need not see it either.
            4 if is("host") => {
                self.hosts += 1;
                self.host = self.host.or(Some(value));
            }
            7 if is("upgrade") => {
                self.protocols += 1;
                self.websocket = value.eq_ignore_ascii_case(b"websocket");
            }
            10 if is("connection") => self.connection(value)?,
            10 if is("keep-alive") => {}
            14 if is("content-length") => self.content_length(value, side, headers)?,
            14 if is("http2-settings") => {}
            16 if is("proxy-connection") => {}
            17 if is("transfer-encoding") => self.transfer_encoding(value)?,
            _ => return Ok(false),
        }
        // As `append_line` does with the others.
        if !value.iter().copied().all(is_value) {
            return Err(FieldError::Value.into());
        }
        Ok(true)
    }

    fn connection(&mut self, value: &[u8]) -> Result<(), H1Error> {
        for option in options(value) {
            self.options += 1;
            if self.options > MAX_OPTIONS || !option.iter().copied().all(is_token) {
                return Err(H1Error::ConnectionOptions);
            }
            let is = |other: &str| option.eq_ignore_ascii_case(other.as_bytes());
            if is("close") {
                self.close = true;
            } else if is("keep-alive") {
                self.keep_alive = true;
            } else if is("upgrade") {
                self.upgrade = true;
            } else if !is("te") {
                self.named = true;
            }
        }
        Ok(())
    }

    /// One length. A request that says it twice is refused even where it says the same: nobody sends it who means well. A
    /// response's is taken, as RFC 9110, section 8.6, allows.
    fn content_length(&mut self, value: &[u8], side: Side, headers: &mut Headers) -> Result<(), H1Error> {
        if !(1..=MAX_LENGTH_DIGITS).contains(&value.len()) || !value.iter().all(u8::is_ascii_digit) {
            return Err(H1Error::ContentLength);
        }
        let length = value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0'));
        match self.length {
            None => {
                self.length = Some(length);
                let first = value.iter().position(|digit| *digit != b'0').unwrap_or(value.len() - 1);
                headers.append_line(b"content-length", &value[first..])?;
                Ok(())
            }
            Some(before) if before == length && side == Side::Response => Ok(()),
            Some(_) => Err(H1Error::ContentLength),
        }
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), H1Error> {
        if !self.chunked && value.eq_ignore_ascii_case(b"chunked") {
            self.chunked = true;
            return Ok(());
        }
        let mut codings = value.split(|byte| *byte == b',').map(trim);
        let known = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
        let coding = |coding: &[u8]| !coding.is_empty() && coding.iter().copied().all(is_token);
        match codings.clone().all(coding) && codings.any(|coding| !known(coding)) {
            true => Err(H1Error::UnknownCoding),
            false => Err(H1Error::TransferEncoding),
        }
    }
}

/// The elements of a list, without empty ones.
fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim).filter(|option| !option.is_empty())
}

fn lists(value: &[u8], option: &[u8]) -> bool {
    options(value).any(|other| other.eq_ignore_ascii_case(option))
}

/// Removes what `Connection` names. `te` was reduced already to what may be passed on, and the length is the framing's.
fn remove_named<'a>(lines: impl Iterator<Item = &'a [u8]>, headers: &mut Headers) {
    let fields = lines.filter_map(|line| split(line).ok());
    for option in fields
        .filter(|(name, _)| name.eq_ignore_ascii_case(b"connection"))
        .flat_map(|(_, value)| options(value))
    {
        let kept = [&b"te"[..], b"content-length"].iter().any(|kept| option.eq_ignore_ascii_case(kept));
        if let (false, Ok(name)) = (kept, std::str::from_utf8(option)) {
            headers.remove(name);
        }
    }
}
