//! An entry's bytes: a seal in hexadecimal, a line feed, and what changed in JSON. The seal is HMAC-SHA256 (RFC 2104) over the
//! position, the seal of the entry before, and the JSON: an entry stands in one place of one log, and was written by who has the
//! secret.

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign, verify};
use serde::{Deserialize, Serialize};

use super::LedgerError;
use super::rows::Change;
use crate::key::fill_random;

/// The most bytes of an entry: what a list of 10,000 revoked certificates needs, several times.
pub const MAX_ENTRY_BYTES: usize = 8 << 20;
/// The hexadecimal digits of a seal.
const SEAL_DIGITS: usize = 64;

/// An entry, sealed.
pub(super) struct Sealed {
    /// All of it.
    pub(super) bytes: Vec<u8>,
    /// Its seal.
    pub(super) seal: [u8; 32],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    /// What makes it another than one of the same changes at the same place.
    once: String,
    changes: Vec<Change>,
}

impl Sealed {
    /// The entry that begins a log.
    pub(super) fn first(secret: &[u8; 32]) -> Self {
        Self::of(secret, (1, &[0; 32]), br#"{"once":"","changes":[]}"#)
    }

    /// An entry for this position, behind the one with that seal.
    pub(super) fn new(
        secret: &[u8; 32],
        (position, before): (u64, &[u8; 32]),
        changes: &[Change],
    ) -> Result<Self, LedgerError> {
        let mut once = [0; 16];
        fill_random(&mut once);
        let body = Body { once: to_hexadecimal(&once), changes: changes.to_vec() };
        let json = serde_json::to_vec(&body).map_err(|_| LedgerError::Corrupt("change"))?;
        if json.len() > MAX_ENTRY_BYTES - SEAL_DIGITS - 1 {
            return Err(LedgerError::EntryTooLarge(json.len()));
        }
        Ok(Self::of(secret, (position, before), &json))
    }

    fn of(secret: &[u8; 32], at: (u64, &[u8; 32]), json: &[u8]) -> Self {
        let mut seal = [0; 32];
        seal.copy_from_slice(sign(&key(secret), &sealed_text(at, json)).as_ref());
        let bytes = [to_hexadecimal(&seal).as_bytes(), b"\n", json].concat();
        Self { bytes, seal }
    }

    /// An entry of the log, if it is one for this position behind the one with that seal.
    pub(super) fn open(
        secret: &[u8; 32],
        (position, before): (u64, &[u8; 32]),
        bytes: Vec<u8>,
    ) -> Result<(Self, Vec<Change>), LedgerError> {
        let forged = || LedgerError::Forged { position };
        let seal = seal_of(&bytes).ok_or_else(forged)?;
        let json = bytes.get(SEAL_DIGITS + 1..).ok_or_else(forged)?;
        verify(&key(secret), &sealed_text((position, before), json), &seal).map_err(|_| forged())?;
        // Who has the secret wrote it: what is not understood is of a later version.
        let body: Body = serde_json::from_slice(json).map_err(|_| LedgerError::NewerEntry { position })?;
        Ok((Self { bytes, seal }, body.changes))
    }
}

/// What the head of a log says where the entry of this position, with that seal, is the last one.
pub(super) fn head(position: u64, seal: &[u8; 32]) -> Vec<u8> {
    format!("{position}\n{}", to_hexadecimal(seal)).into_bytes()
}

fn key(secret: &[u8; 32]) -> Key {
    Key::new(HMAC_SHA256, secret)
}

fn sealed_text((position, before): (u64, &[u8; 32]), json: &[u8]) -> Vec<u8> {
    [&position.to_be_bytes()[..], before, json].concat()
}

/// The seal that an entry shows.
pub(super) fn seal_of(bytes: &[u8]) -> Option<[u8; 32]> {
    let (digits, rest) = bytes.split_at_checked(SEAL_DIGITS)?;
    let seal = from_hexadecimal(std::str::from_utf8(digits).ok()?)?;
    rest.starts_with(b"\n").then(|| seal.try_into().ok()).flatten()
}

/// Bytes as lower-case hexadecimal.
pub(super) fn to_hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

/// The reverse of `to_hexadecimal`.
pub(super) fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}
