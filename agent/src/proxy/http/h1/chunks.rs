//! Chunked bodies (RFC 9112, section 7.1): sizes in bounded hexadecimal digits and nothing else, extensions dropped and
//! bounded, every line ended by CR and LF.

use baremesh_model::http::Headers;
use baremesh_model::http::headers::is_value;
use bytes::{Buf, BytesMut};

use super::lines::Lines;
use super::parser::Step;
use super::{Frame, H1Error, HttpLimits, trailers};

/// The most digits of a size. Sixteen would be all that 64 bits hold; no chunk is as large as fifteen allow.
const MAX_DIGITS: usize = 15;
/// The longest line with a size and its extensions.
const MAX_LINE: usize = 256;
/// The most bytes of extensions of one body: they are read for nothing.
const MAX_EXTENSIONS: usize = 16 * 1024;

/// Where in a chunked body the next byte stands.
#[derive(Debug, Default)]
pub struct Chunks {
    place: Place,
    extensions: usize,
}

#[derive(Debug, Default)]
enum Place {
    /// At a size.
    #[default]
    Size,
    /// In the data of a chunk, with this many bytes to come.
    Data(u64),
    /// Behind the data of a chunk.
    End,
    /// Behind the last chunk.
    Trailers(Lines),
    /// Behind all of it.
    Over,
}

impl Chunks {
    /// The next part of what is in `buffer`.
    pub fn next(&mut self, buffer: &mut BytesMut, limits: &HttpLimits) -> Result<Step, H1Error> {
        loop {
            match &mut self.place {
                Place::Size => match self.size(buffer)? {
                    None => return Ok(Step::More),
                    Some(0) => self.place = Place::Trailers(Lines::default()),
                    Some(size) => self.place = Place::Data(size),
                },
                Place::Data(left) => {
                    if buffer.is_empty() {
                        return Ok(Step::More);
                    }
                    let part = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                    *left -= part as u64;
                    if *left == 0 {
                        self.place = Place::End;
                    }
                    return Ok(Step::Frame(Frame::Data(buffer.split_to(part).freeze())));
                }
                Place::End => match &buffer[..buffer.len().min(2)] {
                    b"\r\n" => {
                        buffer.advance(2);
                        self.place = Place::Size;
                    }
                    b"" | b"\r" => return Ok(Step::More),
                    _ => return Err(H1Error::Chunk("its data is followed by something else than CR and LF")),
                },
                Place::Trailers(lines) => {
                    let Some(end) = lines.trailers(buffer, limits)? else { return Ok(Step::More) };
                    let mut fields = Headers::default();
                    trailers::read(lines.all(buffer), &mut fields)?;
                    buffer.advance(end);
                    self.place = Place::Over;
                    return Ok(match fields.is_empty() {
                        true => Step::End,
                        false => Step::Frame(Frame::Trailers(fields)),
                    });
                }
                Place::Over => return Ok(Step::End),
            }
        }
    }

    /// Takes a line with a size. What is wrong with it is said as soon as it is seen, wherever the bytes are cut.
    fn size(&mut self, buffer: &mut BytesMut) -> Result<Option<u64>, H1Error> {
        let mut size = 0;
        let mut digits = 0;
        for byte in buffer.iter() {
            let Some(digit) = char::from(*byte).to_digit(16) else { break };
            digits += 1;
            if digits > MAX_DIGITS {
                return Err(H1Error::Chunk("its size has too many digits"));
            }
            size = size << 4 | u64::from(digit);
        }
        let extensions = match buffer.get(digits) {
            None => return Ok(None),
            Some(_) if digits == 0 => return Err(H1Error::Chunk("its size is no number")),
            Some(b';' | b'\r') => &buffer[digits..],
            Some(_) => {
                return Err(H1Error::Chunk(
                    "its size is followed by something else than `;` or a line's end",
                ));
            }
        };
        // Up to the CR; whatever is no value's byte is refused, a LF before it among them.
        let length = extensions.iter().position(|byte| !is_value(*byte)).unwrap_or(extensions.len());
        if digits + length > MAX_LINE || self.extensions + length > MAX_EXTENSIONS {
            return Err(H1Error::Chunk("its extensions are too long"));
        }
        match &extensions[length..extensions.len().min(length + 2)] {
            b"\r\n" => {
                self.extensions += length;
                buffer.advance(digits + length + 2);
                Ok(Some(size))
            }
            b"" | b"\r" => Ok(None),
            _ => Err(H1Error::Chunk("its line does not end with CR and LF")),
        }
    }
}
