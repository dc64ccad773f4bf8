//! Bulk data that both ends can make and check: a fixed pseudo-random stream, and a checksum that takes eight bytes
//! a step, so that a gibibyte is cheap even in an unoptimised build. It is meant against mistakes, not malice.

/// An odd constant with bits all over, from the digits of the golden ratio.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

const WORD: usize = 8;

/// The stream that every source sends, from its beginning.
pub(super) struct Pattern {
    state: u64,
}

impl Pattern {
    pub(super) fn new() -> Self {
        Self { state: 1 }
    }

    /// The next bytes. All but the last call have to ask for a multiple of eight.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(WORD) {
            self.state = self.state.wrapping_mul(MIX).wrapping_add(1);
            let word = (self.state ^ (self.state >> 29)).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Length and checksum of a stream. Every step can be undone, so two streams that differ in one word never agree.
#[derive(Clone, Debug, Default)]
pub(super) struct Checksum {
    state: u64,
    length: u64,
    /// The bytes of a word that is not complete yet.
    partial: [u8; WORD],
}

impl Checksum {
    pub(super) fn add(&mut self, mut bytes: &[u8]) {
        let filled = (self.length % WORD as u64) as usize;
        self.length += bytes.len() as u64;
        if filled > 0 {
            let taken = bytes.len().min(WORD - filled);
            self.partial[filled..filled + taken].copy_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if filled + taken < WORD {
                return;
            }
            self.step(self.partial);
        }
        let (words, rest) = bytes.as_chunks::<WORD>();
        for word in words {
            self.step(*word);
        }
        self.partial[..rest.len()].copy_from_slice(rest);
    }

    fn step(&mut self, word: [u8; WORD]) {
        self.state = (self.state ^ u64::from_le_bytes(word)).wrapping_mul(MIX).rotate_left(29);
    }
}

impl Checksum {
    /// How many bytes there were.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The checksum of all of them, in hexadecimal.
    pub(super) fn digest(&self) -> String {
        let mut all = self.clone();
        let filled = (self.length % WORD as u64) as usize;
        all.partial[filled..].fill(0);
        all.step(all.partial);
        all.step(self.length.to_le_bytes());
        format!("{:016x}", all.state)
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, checksum {}", self.length, self.digest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(pieces: &[&[u8]]) -> String {
        let mut checksum = Checksum::default();
        for piece in pieces {
            checksum.add(piece);
        }
        checksum.to_string()
    }

    #[test]
    fn pieces_do_not_matter_and_bytes_do() {
        let mut bytes = [0; 1003];
        Pattern::new().fill(&mut bytes);
        let whole = sum(&[&bytes]);
        for cut in [0, 1, 7, 8, 9, 500, 1003] {
            assert_eq!(sum(&[&bytes[..cut], &bytes[cut..]]), whole, "{cut}");
            assert_eq!(sum(&[&bytes[..cut / 2], &bytes[cut / 2..cut], &bytes[cut..]]), whole, "{cut}");
        }
        for flipped in [0, 8, 999, 1002] {
            let mut wrong = bytes;
            wrong[flipped] ^= 1;
            assert_ne!(sum(&[&wrong]), whole, "{flipped}");
        }
        assert_ne!(sum(&[&bytes[..1002]]), whole);
        assert_ne!(sum(&[b"ab", &bytes[..16]]), sum(&[b"ba", &bytes[..16]]));
        assert_ne!(sum(&[b"\0"]), sum(&[b"\0\0"]), "padding is not data");
    }

    #[test]
    fn the_pattern_is_one_stream() {
        let mut whole = [0; 40];
        Pattern::new().fill(&mut whole);
        let mut parts = [0; 40];
        let mut pattern = Pattern::new();
        let (first, second) = parts.split_at_mut(16);
        pattern.fill(first);
        pattern.fill(second);
        assert_eq!(whole, parts);
    }
}
