//! Where a head ends: its lines are found as bytes come, each byte looked at once however they are cut.

use memchr::memchr;

use super::{H1Error, HttpLimits};

/// The ends of the lines of a head that is coming in.
#[derive(Debug, Default)]
pub struct Lines {
    /// Bytes that were looked at.
    at: usize,
    /// Where the line feeds are.
    ends: Vec<usize>,
}

impl Lines {
    /// Starts anew, and keeps the memory.
    pub fn clear(&mut self) {
        self.at = 0;
        self.ends.clear();
    }

    /// How many bytes the head takes, once it is whole: lines up to an empty one. The first is no field.
    pub fn head(&mut self, buffer: &[u8], limits: &HttpLimits) -> Result<Option<usize>, H1Error> {
        self.find(buffer, limits, 1)
    }

    /// As `head`, for lines of which each is a field.
    pub fn trailers(&mut self, buffer: &[u8], limits: &HttpLimits) -> Result<Option<usize>, H1Error> {
        self.find(buffer, limits, 0)
    }

    fn find(&mut self, buffer: &[u8], limits: &HttpLimits, others: usize) -> Result<Option<usize>, H1Error> {
        loop {
            let end = match memchr(b'\n', &buffer[self.at..]) {
                Some(further) => self.at + further,
                None => {
                    self.at = buffer.len();
                    return if buffer.len() > limits.head_bytes {
                        Err(self.too_large(limits, others))
                    } else {
                        Ok(None)
                    };
                }
            };
            if end >= limits.head_bytes {
                return Err(self.too_large(limits, others));
            }
            let start = self.ends.last().map_or(0, |before| before + 1);
            if end == start || buffer[end - 1] != b'\r' {
                return Err(H1Error::BareLf);
            }
            self.at = end + 1;
            if end - 1 == start && self.ends.len() >= others {
                return Ok(Some(self.at));
            }
            if self.ends.len() >= limits.fields + others {
                return Err(H1Error::TooManyFields(limits.fields));
            }
            self.ends.push(end);
        }
    }

    /// What is too large: the first line is mostly target.
    fn too_large(&self, limits: &HttpLimits, others: usize) -> H1Error {
        match self.ends.len() < others {
            true => H1Error::TargetTooLong(limits.target_bytes),
            false => H1Error::HeadTooLarge(limits.head_bytes),
        }
    }

    /// The lines without their ends and without the empty one, of the buffer in which they were found.
    pub fn all<'a>(&'a self, buffer: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + Clone {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let line = &buffer[start..end - 1];
            start = end + 1;
            line
        })
    }
}
