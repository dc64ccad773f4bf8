//! Bytes in several slices, taken as one sequence.

use std::io::IoSlice;

/// A place in a list of slices.
pub(super) struct Cursor<'a, 'b> {
    slices: &'a [IoSlice<'b>],
    offset: usize,
}

impl<'a, 'b> Cursor<'a, 'b> {
    /// At the first byte.
    pub fn new(slices: &'a [IoSlice<'b>]) -> Self {
        Self { slices, offset: 0 }
    }

    /// The next `length` bytes, in parts.
    pub fn take(&mut self, mut length: usize) -> impl Iterator<Item = &'a [u8]> {
        std::iter::from_fn(move || {
            while length > 0 {
                let (first, rest) = self.slices.split_first()?;
                let left: &'a [u8] = &first[self.offset..];
                if left.is_empty() {
                    (self.slices, self.offset) = (rest, 0);
                    continue;
                }
                let part = &left[..left.len().min(length)];
                self.offset += part.len();
                length -= part.len();
                return Some(part);
            }
            None
        })
    }
}
