//! Join tokens: `bm1.<id>.<secret>.<root fingerprint>`. A token is all that a new host needs to know: the
//! fingerprint tells it whom to trust, the secret tells the control server that the host was invited. What the
//! invitation covers stands in the ledger, not in the token.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::key::{fill_random, sha256};
use crate::tls::Fingerprint;

/// The version of the form.
const PREFIX: &str = "bm1";
/// Random bytes in an id: unique among all tokens of a mesh, and no secret.
const ID_LENGTH: usize = 9;
/// Random bytes in a secret.
const SECRET_LENGTH: usize = 32;

/// Not a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a join token: copy the whole text that `baremesh token create` printed; it starts with `{PREFIX}.` and has four parts"
)]
pub struct TokenError;

/// A join token with its secret. It is shown once, to whom it was made for, and never written by this host.
#[derive(Clone)]
pub struct Token {
    id: String,
    secret: [u8; SECRET_LENGTH],
    root: Fingerprint,
}

impl Token {
    /// A fresh token for the mesh with this root.
    pub fn mint(root: Fingerprint) -> Self {
        let (mut id, mut secret) = ([0; ID_LENGTH], [0; SECRET_LENGTH]);
        fill_random(&mut id);
        fill_random(&mut secret);
        Self { id: URL_SAFE_NO_PAD.encode(id), secret, root }
    }

    /// Reads a token as an operator pasted it; white space around it is taken off.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let [PREFIX, id, secret, root] = text.trim().split('.').collect::<Vec<_>>()[..] else {
            return Err(TokenError);
        };
        decode::<ID_LENGTH>(id)?;
        let root = Fingerprint::from_bytes(decode(root)?);
        Ok(Self { id: id.to_owned(), secret: decode(secret)?, root })
    }

    /// The token's text, secret included.
    pub fn reveal(&self) -> String {
        let secret = URL_SAFE_NO_PAD.encode(self.secret);
        format!("{PREFIX}.{}.{secret}.{}", self.id, URL_SAFE_NO_PAD.encode(self.root.as_bytes()))
    }

    /// What names the token in lists and logs.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The fingerprint of the mesh's root.
    pub fn root(&self) -> Fingerprint {
        self.root
    }

    /// What the ledger keeps of the secret. The secret is 256 random bits, so a plain hash cannot be reversed.
    pub(crate) fn secret_hash(&self) -> [u8; 32] {
        sha256(&self.secret)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id)
    }
}

fn decode<const LENGTH: usize>(text: &str) -> Result<[u8; LENGTH], TokenError> {
    // Far more than any part has; a longer text is not worth decoding.
    if text.len() > 2 * LENGTH {
        return Err(TokenError);
    }
    URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(TokenError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_reveals_and_shows_no_secret_otherwise() {
        let token = Token::mint(Fingerprint::from_bytes([7; 32]));
        let text = token.reveal();
        let again = Token::parse(&format!(" {text}\n")).expect("a token");
        assert_eq!(again.reveal(), text);
        assert_eq!(again.secret_hash(), token.secret_hash());
        let secret = text.split('.').nth(2).expect("a secret").to_owned();
        assert!(!format!("{token:?}").contains(&secret));
        assert_ne!(Token::mint(token.root()).reveal(), text);
    }

    #[test]
    fn refuses_everything_else() {
        let text = Token::mint(Fingerprint::from_bytes([7; 32])).reveal();
        let cut = &text[..text.len() - 1];
        let (other, longer) = (text.replacen("bm1", "bm2", 1), format!("{text}.x"));
        let padded = format!("{text}=");
        for bad in ["", "bm1", "bm1...", cut, &other, &longer, &padded, &"a".repeat(100_000)] {
            assert!(Token::parse(bad).is_err(), "{bad:.80}");
        }
    }
}
