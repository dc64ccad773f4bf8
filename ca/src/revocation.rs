//! Certificates that are not to be taken although they have not ended: a certificate revocation list (RFC 5280,
//! section 5), signed by the authority, with the certificates that lead from its signer to a root. Members take it from
//! the control server together with the mesh's state, and keep it with it. Times in it are not looked at: a list that
//! is old still says what must not be taken, and the authority leaves out what has ended.

use std::collections::HashSet;

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::issued::MAX_CHAIN;
use crate::leaf::{parse, serial_text};

/// The most certificates that are revoked at a time. The list is one message of the control protocol, and each takes
/// about 50 bytes of it. What has ended is left out, so that it takes hundreds of hosts, all revoked on one day.
pub const MAX_REVOKED: usize = 10_000;
/// The PEM label of a list, RFC 7468, section 6.
const LIST: &str = "X509 CRL";

/// Why a list is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// Not a list with its signer's certificates.
    #[error("the list of revoked certificates cannot be read: {0}")]
    Unreadable(&'static str),
    /// Signed by somebody whom the mesh does not trust.
    #[error("the list of revoked certificates is not signed by this mesh's authority: {0}")]
    Signer(&'static str),
}

/// The serial numbers that are revoked, and the number of the list that says so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revoked {
    serials: HashSet<String>,
    number: u64,
}

impl Revoked {
    /// Whether a certificate with that serial number, in lower-case hexadecimal without leading zeros, is revoked.
    pub fn contains(&self, serial: &str) -> bool {
        self.serials.contains(serial)
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.serials.is_empty()
    }

    /// How many are.
    pub fn len(&self) -> usize {
        self.serials.len()
    }

    /// The list's number (RFC 5280, section 5.2.3): of two lists of one authority the newer one has the higher; 0 where there
    /// is no list.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The number that a list says it has, whoever signed it.
    pub(crate) fn stated_number(text: &str) -> Option<u64> {
        let blocks = pem::parse_many(text).ok()?;
        let list = blocks.iter().find(|block| block.tag() == LIST)?;
        number(&CertificateRevocationList::from_der(list.contents()).ok()?.1).ok()
    }

    /// The serial numbers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.serials.iter().map(String::as_str)
    }

    /// Reads a list that was signed under one of `roots`.
    pub fn read(text: &str, roots: &[CertificateDer<'_>]) -> Result<Self, RevocationError> {
        use RevocationError::{Signer, Unreadable};
        let blocks = pem::parse_many(text).map_err(|_| Unreadable("it is not PEM"))?;
        let (lists, chain): (Vec<_>, Vec<_>) = blocks.iter().partition(|block| block.tag() == LIST);
        let [list] = lists[..] else { return Err(Unreadable("it is not one list")) };
        let Ok(([], list)) = CertificateRevocationList::from_der(list.contents()) else {
            return Err(Unreadable("it is no list in DER"));
        };
        if list.iter_revoked_certificates().count() > MAX_REVOKED {
            return Err(Unreadable("it is longer than any list of a mesh"));
        }
        let chain: Vec<_> = chain.iter().map(|block| CertificateDer::from(block.contents())).collect();
        let signer = chain.first().ok_or(Signer("it comes without a certificate"))?;
        leads_to_a_root(&chain, roots).map_err(Signer)?;
        let signer = parse(signer).map_err(|_| Signer("its certificate cannot be read"))?;
        if list.issuer().as_raw() != signer.subject().as_raw()
            || list.verify_signature(signer.public_key()).is_err()
        {
            return Err(Signer("the signature does not hold"));
        }
        let serials = list.iter_revoked_certificates().map(|entry| serial_text(entry.raw_serial())).collect();
        Ok(Self { serials, number: number(&list)? })
    }
}

impl FromIterator<String> for Revoked {
    fn from_iter<T: IntoIterator<Item = String>>(serials: T) -> Self {
        Self { serials: serials.into_iter().collect(), number: 0 }
    }
}

/// The number of a list; 0 where it has none.
fn number(list: &CertificateRevocationList<'_>) -> Result<u64, RevocationError> {
    let stated = list.crl_number().map_or(Ok(0), u64::try_from);
    stated.map_err(|_| RevocationError::Unreadable("its number is higher than any of a mesh"))
}

/// Each certificate is an authority signed by the next, and the last is a root or signed by one.
fn leads_to_a_root(chain: &[CertificateDer<'_>], roots: &[CertificateDer<'_>]) -> Result<(), &'static str> {
    if chain.len() > MAX_CHAIN {
        return Err("it comes with too many certificates");
    }
    let read = |all: &'_ [CertificateDer<'_>]| all.iter().all(|one| parse(one).is_ok());
    if !read(chain) || !read(roots) {
        return Err("its certificate cannot be read");
    }
    let parsed: Vec<X509Certificate<'_>> = chain.iter().filter_map(|one| parse(one).ok()).collect();
    let anchors: Vec<X509Certificate<'_>> = roots.iter().filter_map(|one| parse(one).ok()).collect();
    let signed_by = |below: &X509Certificate<'_>, above: &X509Certificate<'_>| {
        below.issuer().as_raw() == above.subject().as_raw()
            && below.verify_signature(Some(above.public_key())).is_ok()
    };
    for (at, certificate) in parsed.iter().enumerate() {
        if !certificate.is_ca() {
            return Err("its signer is no authority");
        }
        let holds = match parsed.get(at + 1) {
            Some(above) => signed_by(certificate, above),
            None => roots.contains(&chain[at]) || anchors.iter().any(|anchor| signed_by(certificate, anchor)),
        };
        if !holds {
            return Err("its certificates do not lead to a root that is trusted here");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
