//! Digests of keyed states. The digest of a state is the sum, modulo 2^256, of the SHA-256 of its entries: it
//! depends on no order, and a change costs one subtraction and one addition however large the state is.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256, digest};

/// A sum of entries.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of one entry, over its text exactly as it is sent.
    pub fn of(key: &str, text: &str) -> Self {
        let mut context = Context::new(&SHA256);
        // The length keeps apart two entries whose key and text, written together, are the same.
        context.update(&(key.len() as u64).to_be_bytes());
        context.update(key.as_bytes());
        context.update(text.as_bytes());
        Self::from_slice(context.finish().as_ref())
    }

    /// The SHA-256 of bytes.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self::from_slice(digest(&SHA256, bytes).as_ref())
    }

    fn from_slice(slice: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(slice);
        Self(bytes)
    }

    /// The digest of a state with an entry more, or of two states that share no entry.
    pub fn plus(self, other: Self) -> Self {
        let mut sum = [0; 32];
        let mut carry = 0_u16;
        for i in (0..32).rev() {
            let total = u16::from(self.0[i]) + u16::from(other.0[i]) + carry;
            sum[i] = (total & 0xff) as u8;
            carry = total >> 8;
        }
        Self(sum)
    }

    /// The digest of a state without one of its entries.
    pub fn minus(self, other: Self) -> Self {
        // Two's complement: the inverse and one more.
        let mut negated = other.0.map(|byte| !byte);
        for byte in negated.iter_mut().rev() {
            let (next, overflowed) = byte.overflowing_add(1);
            *byte = next;
            if !overflowed {
                break;
            }
        }
        self.plus(Self(negated))
    }

    /// The first bytes, in hexadecimal, for names that must differ.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_know_no_order_and_can_be_taken_back() {
        let [a, b, c] = ["a", "b", "c"].map(|key| Digest::of(key, "{}"));
        assert_eq!(a.plus(b).plus(c), c.plus(a).plus(b));
        assert_eq!(a.plus(b).plus(c).minus(b), a.plus(c));
        assert_eq!(a.minus(a), Digest::default());
        assert_eq!(Digest::default().minus(a).plus(a), Digest::default());
    }

    #[test]
    fn tells_the_key_from_the_text() {
        assert_ne!(Digest::of("ab", "c"), Digest::of("a", "bc"));
    }
}
