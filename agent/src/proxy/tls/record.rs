//! Records of TLS 1.3 (RFC 8446, section 5) under AES-GCM, after the handshake. One sealer and one opener a
//! connection, each with its key, its IV and its sequence number.

use std::io;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

/// Bytes before a record's payload: type, legacy version, length.
pub const HEADER: usize = 5;
/// The most bytes of content in a record.
pub const MAX_CONTENT: usize = 16 * 1024;
/// Bytes of the authentication tag.
pub const TAG: usize = 16;
/// The most bytes of a record's payload: content, content type, padding and tag.
pub const MAX_PAYLOAD: usize = MAX_CONTENT + 256;
/// Bytes that a record has beyond its content: header, content type, tag.
pub const OVERHEAD: usize = HEADER + 1 + TAG;
/// A key is replaced after this many records, well before the limit of AES-GCM (2^24.5, RFC 8446, section 5.5).
pub const RECORDS_A_KEY: u64 = 1 << 23;

/// The outer type of every record after the handshake.
const OUTER_TYPE: u8 = 23;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentType {
    /// An alert.
    Alert,
    /// A message of the handshake protocol: a ticket, a key update.
    Handshake,
    /// Data.
    Data,
}

impl ContentType {
    fn of(byte: u8) -> io::Result<Self> {
        match byte {
            21 => Ok(Self::Alert),
            22 => Ok(Self::Handshake),
            23 => Ok(Self::Data),
            _ => Err(invalid("a record of an unknown type")),
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::Data => 23,
        }
    }
}

/// What breaks a connection.
pub fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// One direction's key, IV and sequence number.
struct Keys {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Keys {
    fn new((sequence, secrets): (u64, &ConnectionTrafficSecrets)) -> io::Result<Self> {
        let (algorithm, key, iv): (&'static Algorithm, _, _) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            _ => return Err(invalid("a cipher suite other than AES-GCM")),
        };
        let key =
            UnboundKey::new(algorithm, key.as_ref()).map_err(|_| invalid("a key of the wrong length"))?;
        let iv = iv.as_ref().try_into().map_err(|_| invalid("an IV of the wrong length"))?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence })
    }

    /// The nonce of the next record: the IV, with the sequence number added to its end bit by bit.
    fn next_nonce(&mut self) -> io::Result<Nonce> {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(invalid("too many records"))?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Seals records.
pub struct Sealer(Keys);

impl Sealer {
    /// With these keys, from this sequence number on.
    pub fn new(secrets: (u64, &ConnectionTrafficSecrets)) -> io::Result<Self> {
        Keys::new(secrets).map(Self)
    }

    /// Whether the key is to be replaced before the next record.
    pub fn is_worn(&self) -> bool {
        self.0.sequence >= RECORDS_A_KEY
    }

    /// Appends one record to `out`. The content comes in parts, `MAX_CONTENT` bytes together at most.
    pub fn seal<'a>(
        &mut self,
        content_type: ContentType,
        parts: impl Iterator<Item = &'a [u8]>,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let start = out.len();
        out.extend_from_slice(&[OUTER_TYPE, 3, 3, 0, 0]);
        for part in parts {
            out.extend_from_slice(part);
        }
        out.push(content_type.byte());
        let length = out.len() - start - HEADER + TAG;
        let length = u16::try_from(length).map_err(|_| invalid("a record too long to seal"))?;
        out[start + 3..start + HEADER].copy_from_slice(&length.to_be_bytes());
        let nonce = self.0.next_nonce()?;
        let (header, payload) = out[start..].split_at_mut(HEADER);
        let tag = self.0.key.seal_in_place_separate_tag(nonce, Aad::from(&*header), payload);
        let tag = tag.map_err(|_| invalid("a record that cannot be sealed"))?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

/// Opens records.
pub struct Opener(Keys);

/// The length of the first whole record of `bytes`, header included; `None` while it is not whole.
pub fn whole_record(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if header[0] != OUTER_TYPE {
        return Err(invalid("a record outside the encryption"));
    }
    if !(TAG + 1..=MAX_PAYLOAD).contains(&length) {
        return Err(invalid("a record of an impossible length"));
    }
    Ok((bytes.len() >= HEADER + length).then_some(HEADER + length))
}

impl Opener {
    /// With these keys, from this sequence number on.
    pub fn new(secrets: (u64, &ConnectionTrafficSecrets)) -> io::Result<Self> {
        Keys::new(secrets).map(Self)
    }

    /// Opens a whole record into `plain`, which has room for its payload without the tag. Returns what it holds and
    /// how many bytes of `plain` that is.
    pub fn open(&mut self, record: &[u8], plain: &mut [u8]) -> io::Result<(ContentType, usize)> {
        let (header, payload) = record.split_at(HEADER);
        let (sealed, tag) = payload.split_at(payload.len() - TAG);
        let nonce = self.0.next_nonce()?;
        let plain = plain.get_mut(..sealed.len()).ok_or(invalid("no room for a record"))?;
        let opened = self.0.key.open_separate_gather(nonce, Aad::from(header), sealed, tag, plain);
        opened.map_err(|_| invalid("a record that was not sealed by the peer"))?;
        // The content type stands after the content, behind it only padding of zeros.
        let end = plain.iter().rposition(|byte| *byte != 0).ok_or(invalid("a record without a type"))?;
        if end > MAX_CONTENT {
            return Err(invalid("a record with too much content"));
        }
        Ok((ContentType::of(plain[end])?, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::cipher::{AeadKey, Iv};

    fn pair() -> (Sealer, Opener) {
        let secrets =
            ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from([9; 32]), iv: Iv::copy(&[7; 12]) };
        (Sealer::new((0, &secrets)).expect("a sealer"), Opener::new((0, &secrets)).expect("an opener"))
    }

    fn seal(sealer: &mut Sealer, content_type: ContentType, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        sealer.seal(content_type, content.chunks(7), &mut out).expect("sealed");
        out
    }

    #[test]
    fn opens_what_it_seals() {
        let (mut sealer, mut opener) = pair();
        let mut plain = vec![0; MAX_PAYLOAD];
        for content in [&b"x"[..], &[0; 100], &[], &vec![5; MAX_CONTENT]] {
            for content_type in [ContentType::Data, ContentType::Alert, ContentType::Handshake] {
                let record = seal(&mut sealer, content_type, content);
                assert_eq!(record.len(), content.len() + OVERHEAD);
                assert_eq!(whole_record(&record).expect("a record"), Some(record.len()));
                let (found, length) = opener.open(&record, &mut plain).expect("opened");
                assert_eq!((found, &plain[..length]), (content_type, content));
            }
        }
    }

    #[test]
    fn refuses_what_was_changed_replayed_or_left_out() {
        let mut plain = vec![0; MAX_PAYLOAD];
        for at in [0, 3, 4, HEADER, HEADER + 3, HEADER + 8] {
            let (mut sealer, mut opener) = pair();
            let mut record = seal(&mut sealer, ContentType::Data, b"content");
            record[at] ^= 1;
            assert!(opener.open(&record, &mut plain).is_err(), "byte {at}");
        }
        let (mut sealer, mut opener) = pair();
        let (first, second) =
            (seal(&mut sealer, ContentType::Data, b"1"), seal(&mut sealer, ContentType::Data, b"2"));
        assert!(opener.open(&second, &mut plain).is_err());
        let (_, mut opener) = pair();
        opener.open(&first, &mut plain).expect("opened");
        assert!(opener.open(&first, &mut plain).is_err());
    }

    #[test]
    fn finds_whole_records_and_refuses_impossible_ones() {
        for (bytes, expected) in [
            (&[][..], Some(None)),
            (&[23, 3, 3, 0], Some(None)),
            (&[23, 3, 3, 0, 17], Some(None)),
            (&[23, 3, 3, 0, 16], None),
            (&[23, 3, 3, 0xff, 0xff], None),
            (&[22, 3, 3, 0, 17], None),
            (&[20, 3, 3, 0, 1, 1], None),
        ] {
            assert_eq!(whole_record(bytes).ok(), expected, "{bytes:?}");
        }
    }
}
