//! Tokens whose signature was found good, so that the next request with the same one does not pay for the check again. The
//! memory is part of a set of keys: other keys begin with an empty one. It remembers that a key of the set signed exactly
//! this text, and nothing else; dates, issuer and audience are looked at for each request. Nothing gets in without such a
//! signature, so that nobody can fill it with what he makes up.

use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};

/// Places with the same first bits. One that is full forgets its oldest.
const WAYS: usize = 4;
/// As many such sets: 4,096 tokens, in 140 KiB, for each set of keys with which a token was verified.
const SETS: usize = 1024;

/// The SHA-256 of a whole token.
type Digest = [u8; 32];

/// The memory of one set of keys.
#[derive(Default)]
pub(super) struct VerifiedTokens(OnceLock<Box<[Mutex<Places>]>>);

#[derive(Clone, Copy)]
struct Places {
    digests: [Option<Digest>; WAYS],
    next: u8,
}

impl VerifiedTokens {
    /// Whether this very text was verified.
    pub(super) fn knows(&self, token: &Name) -> bool {
        let Some(sets) = self.0.get() else { return false };
        // Held for a few comparisons, by a thread that waits for nothing meanwhile.
        let places = sets[token.set()].lock().unwrap_or_else(PoisonError::into_inner);
        places.digests.contains(&Some(token.0))
    }

    /// Remembers a text that was verified.
    pub(super) fn remember(&self, token: &Name) {
        let empty = || Mutex::new(Places { digests: [None; WAYS], next: 0 });
        let sets = self.0.get_or_init(|| (0..SETS).map(|_| empty()).collect());
        let mut places = sets[token.set()].lock().unwrap_or_else(PoisonError::into_inner);
        if !places.digests.contains(&Some(token.0)) {
            let at = usize::from(places.next) % WAYS;
            places.digests[at] = Some(token.0);
            places.next = places.next.wrapping_add(1);
        }
    }
}

impl fmt::Debug for VerifiedTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerifiedTokens")
    }
}

/// What a token is known by.
pub(super) struct Name(Digest);

impl Name {
    pub(super) fn of(token: &str) -> Self {
        let mut name = [0; 32];
        name.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        Self(name)
    }

    fn set(&self) -> usize {
        usize::from(u16::from_be_bytes([self.0[0], self.0[1]])) % SETS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_it_was_told_and_forgets_the_oldest() {
        let tokens = VerifiedTokens::default();
        assert!(!tokens.knows(&Name::of("a")));
        tokens.remember(&Name::of("a"));
        tokens.remember(&Name::of("a"));
        assert!(tokens.knows(&Name::of("a")) && !tokens.knows(&Name::of("b")));
        let crowd: Vec<Name> = (0_u8..6)
            .map(|number| {
                let mut digest = [7; 32];
                digest[31] = number;
                Name(digest)
            })
            .collect();
        crowd.iter().for_each(|name| tokens.remember(name));
        let known: Vec<bool> = crowd.iter().map(|name| tokens.knows(name)).collect();
        assert_eq!(known, [false, false, true, true, true, true]);
        assert!(tokens.knows(&Name::of("a")), "others have other places");
        for number in 0..100_000 {
            tokens.remember(&Name::of(&number.to_string()));
        }
        let held = tokens.0.get().expect("some are held");
        assert_eq!(size_of_val(&**held) / 1024, 140, "KiB, however many there were");
    }
}
