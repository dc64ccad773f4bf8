//! Signing the list of revoked certificates.

use std::time::SystemTime;

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};

use super::adopt::{self, NO_LISTS};
use super::{Authority, AuthorityError};
use crate::clock::to_date;
use crate::issued::chain_to_pem;

impl Authority {
    /// Signs the list of revoked certificates: serial numbers in hexadecimal, each with when it was revoked. `number` is that
    /// of the list (RFC 5280, section 5.2.3), higher than that of each list before: members take none that goes back. The text
    /// holds the list and the certificates up to the root, without it, in PEM.
    pub fn sign_revocations(
        &self,
        revoked: &[(String, SystemTime)],
        number: u64,
        now: SystemTime,
    ) -> Result<String, AuthorityError> {
        let entry = |(serial, at): &(String, SystemTime)| {
            let serial_number = SerialNumber::from_slice(&from_hexadecimal(serial));
            let revocation_time = to_date(*at);
            RevokedCertParams { serial_number, revocation_time, reason_code: None, invalidity_date: None }
        };
        let params = CertificateRevocationListParams {
            this_update: to_date(now),
            // RFC 5280 wants one. Members go by the newest list that they have, however old it is.
            next_update: to_date(self.issuing.not_after),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuing.issuer).map_err(|error| match error {
            rcgen::Error::IssuerNotCrlSigner => AuthorityError::Unusable(NO_LISTS.to_owned()),
            other => other.into(),
        })?;
        Ok(list.pem()? + &chain_to_pem(&self.issuing.chain))
    }
}

impl Authority {
    /// Whether the issuing certificate may sign that list. One that may not is taken no more; one that was taken by an earlier
    /// version goes on signing leaves.
    pub fn signs_revocations(&self) -> bool {
        self.issuing.chain.first().is_none_or(adopt::signs_lists)
    }
}

/// The bytes of a number in hexadecimal, as `serial_text` writes them. What is none has no bytes.
fn from_hexadecimal(text: &str) -> Vec<u8> {
    let padded = if text.len().is_multiple_of(2) { text.to_owned() } else { format!("0{text}") };
    let digits = padded.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.map(byte).collect::<Option<_>>().unwrap_or_default()
}
