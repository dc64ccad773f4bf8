//! What a leaf certificate says. An identity is exactly one URI name; a certificate with none, with two, or with
//! one that is no SPIFFE identity of this form is nobody's. Reading is not trusting: the chain is verified by
//! `tls`.

use std::time::SystemTime;

use baremesh_model::identity::{Identity, IdentityError};
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::clock::from_unix;
use crate::key::sha256;

/// Why a certificate shows no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// Not an X.509 certificate in DER.
    #[error("the peer's certificate cannot be read as X.509")]
    Unreadable,
    /// No URI name, or several.
    #[error(
        "the peer's certificate has {0} URI names where exactly one is an identity: it was not issued by a mesh's authority"
    )]
    UriNames(usize),
    /// One URI name that is no identity.
    #[error("the peer's certificate names no one: {0}")]
    NoIdentity(#[from] IdentityError),
}

/// What the mesh reads from a leaf certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafFacts {
    /// Whose certificate it is.
    pub identity: Identity,
    /// The serial number in lower-case hexadecimal, without leading zeros.
    pub serial: String,
    /// From when on it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid, this second included.
    pub not_after: SystemTime,
    /// The SHA-256 of the whole certificate.
    pub fingerprint: [u8; 32],
}

/// A serial number. RFC 5280, section 4.1.2.2, allows 20 bytes at most.
pub(crate) type Serial = [u8; 16];

/// The first byte of a serial number that tells a generation.
const GENERATION_FOLLOWS: u8 = 1;

/// Makes a random serial number tell a generation; 88 bits of it stay random.
pub(crate) fn write_generation(serial: &mut Serial, generation: u32) {
    serial[0] = GENERATION_FOLLOWS;
    serial[1..5].copy_from_slice(&generation.to_be_bytes());
}

impl LeafFacts {
    /// Of a node credential: how often the host's name had been taken over when it was issued. The authority alone
    /// chooses serial numbers. 0 where the serial number tells none.
    pub fn generation(&self) -> u32 {
        let serial = u128::from_str_radix(&self.serial, 16).unwrap_or_default().to_be_bytes();
        match serial {
            [GENERATION_FOLLOWS, a, b, c, d, ..] => u32::from_be_bytes([a, b, c, d]),
            _ => 0,
        }
    }
}

/// Which purposes a leaf's extended key usage names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Purposes {
    pub(crate) server: bool,
    pub(crate) client: bool,
}

/// Reads whose certificate this is.
pub fn peer_identity(certificate: &CertificateDer<'_>) -> Result<Identity, LeafError> {
    identity_of(&parse(certificate)?)
}

/// Reads identity, serial and validity of a leaf.
pub fn peer_leaf_facts(certificate: &CertificateDer<'_>) -> Result<LeafFacts, LeafError> {
    let parsed = parse(certificate)?;
    Ok(LeafFacts {
        identity: identity_of(&parsed)?,
        serial: serial_text(parsed.raw_serial()),
        not_before: from_unix(parsed.validity().not_before.timestamp()),
        not_after: from_unix(parsed.validity().not_after.timestamp()),
        fingerprint: sha256(certificate),
    })
}

/// Reads from when on and until when a certificate is valid, an authority's too.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), LeafError> {
    let parsed = parse(certificate)?;
    let validity = parsed.validity();
    Ok((from_unix(validity.not_before.timestamp()), from_unix(validity.not_after.timestamp())))
}

/// Reads the serial number.
pub(crate) fn serial(certificate: &CertificateDer<'_>) -> Result<String, LeafError> {
    Ok(serial_text(parse(certificate)?.raw_serial()))
}

/// Reads identity and purposes, in one pass over the certificate.
pub(crate) fn identity_and_purposes(
    certificate: &CertificateDer<'_>,
) -> Result<(Identity, Purposes), LeafError> {
    let parsed = parse(certificate)?;
    let purposes = purposes_of(&parsed)?;
    Ok((identity_of(&parsed)?, purposes))
}

/// Reads purposes alone, of a certificate that need not name anybody.
pub(crate) fn purposes(certificate: &CertificateDer<'_>) -> Result<Purposes, LeafError> {
    purposes_of(&parse(certificate)?)
}

fn purposes_of(parsed: &X509Certificate<'_>) -> Result<Purposes, LeafError> {
    let usage = parsed.extended_key_usage().map_err(|_| LeafError::Unreadable)?;
    Ok(Purposes {
        server: usage.as_ref().is_some_and(|usage| usage.value.server_auth),
        client: usage.as_ref().is_some_and(|usage| usage.value.client_auth),
    })
}

/// A serial number as it is logged and recorded: lower-case hexadecimal without leading zeros.
pub(crate) fn serial_text(bytes: &[u8]) -> String {
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    text.trim_start_matches('0').to_owned()
}

pub(crate) fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, LeafError> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(LeafError::Unreadable),
    }
}

fn identity_of(parsed: &X509Certificate<'_>) -> Result<Identity, LeafError> {
    let names = parsed.subject_alternative_name().map_err(|_| LeafError::Unreadable)?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris[..] {
        [uri] => Ok(Identity::parse(uri)?),
        _ => Err(LeafError::UriNames(uris.len())),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn with_names(names: &[SanType]) -> CertificateDer<'static> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.self_signed(&key).expect("a certificate").into()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().expect("ascii"))
    }

    #[test]
    fn takes_exactly_one_uri_name() {
        let good = "spiffe://td/ns/shop/sa/orders";
        let dns = SanType::DnsName("orders.shop.td".try_into().expect("ascii"));
        let identity = Identity::parse(good).expect("an identity");
        assert_eq!(peer_identity(&with_names(&[uri(good)])), Ok(identity.clone()));
        assert_eq!(peer_identity(&with_names(&[dns.clone(), uri(good)])), Ok(identity));
        assert_eq!(peer_identity(&with_names(&[])), Err(LeafError::UriNames(0)));
        assert_eq!(peer_identity(&with_names(&[dns])), Err(LeafError::UriNames(0)));
        assert_eq!(peer_identity(&with_names(&[uri(good), uri(good)])), Err(LeafError::UriNames(2)));
        assert_eq!(peer_identity(&with_names(&[uri(good), uri("https://x")])), Err(LeafError::UriNames(2)));
        let ip = SanType::IpAddress([192, 0, 2, 7].into());
        assert_eq!(peer_identity(&with_names(std::slice::from_ref(&ip))), Err(LeafError::UriNames(0)));
        assert!(peer_identity(&with_names(&[ip, uri(good)])).is_ok(), "names of other kinds say nothing");
    }

    /// SPIFFE-ID, sections 2.1 and 2.3, and nothing that a URI parser might bring into another form: what is compared is what
    /// stands there, byte for byte.
    #[test]
    fn a_uri_that_is_not_exactly_an_identity_is_none() {
        let long = format!("spiffe://td/ns/a/sa/{}", "b".repeat(64));
        let longer = format!("spiffe://{}td/ns/a/sa/b", "a.".repeat(2048));
        for bad in [
            "",
            "spiffe:",
            "spiffe:/td/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "https://td/ns/a/sa/b",
            "SPIFFE://td/ns/a/sa/b",
            "Spiffe://td/ns/a/sa/b",
            " spiffe://td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b ",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td/NS/a/sa/b",
            "spiffe://td/ns/A/sa/b",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b//",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td//ns/a/sa/b",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns/./sa/b",
            "spiffe://td/ns/x/../a/sa/b",
            "spiffe://td/ns/%61/sa/b",
            "spiffe://td/ns/a/sa/b%00",
            "spiffe://td/ns/a/sa/b%2Fc",
            "spiffe://td/ns/a/sa/b?",
            "spiffe://td/ns/a/sa/b?x=y",
            "spiffe://td/ns/a/sa/b#",
            "spiffe://td/ns/a/sa/b#x",
            "spiffe://td:443/ns/a/sa/b",
            "spiffe://td:/ns/a/sa/b",
            "spiffe://user@td/ns/a/sa/b",
            "spiffe://user:secret@td/ns/a/sa/b",
            "spiffe://@td/ns/a/sa/b",
            "spiffe://[::1]/ns/a/sa/b",
            "spiffe://td./ns/a/sa/b",
            "spiffe://td/ns/a/sa/b\0",
            "spiffe://td/ns/a/sa/b\0.evil",
            "spiffe://td\0.evil/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b\n",
            "spiffe://td/ns/a/sa/*",
            "spiffe://td/ns/a/sa/b;c",
            &long,
            &longer,
        ] {
            let found = peer_identity(&with_names(&[uri(bad)]));
            assert!(matches!(found, Err(LeafError::NoIdentity(_))), "{bad}: {found:?}");
        }
        // A byte that is no ASCII, which no IA5String has.
        let good = with_names(&[uri("spiffe://td/ns/a/sa/orders")]);
        let mut der = good.to_vec();
        let at = der.windows(6).position(|part| part == b"orders").expect("the name");
        der[at] = 0xef;
        assert!(peer_identity(&CertificateDer::from(der)).is_err());
        assert!(peer_identity(&good).is_ok());
    }

    #[test]
    fn a_serial_number_tells_its_generation_or_none() {
        let mut facts = LeafFacts {
            identity: Identity::parse("spiffe://td/ns/nodes/sa/h1").expect("an identity"),
            serial: String::new(),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH,
            fingerprint: [0; 32],
        };
        for generation in [0, 1, 256, u32::MAX] {
            let mut serial = [0xab; 16];
            write_generation(&mut serial, generation);
            facts.serial = serial_text(&serial);
            assert_eq!(facts.generation(), generation, "{}", facts.serial);
        }
        for foreign in ["", "aff", "zz", &"ff".repeat(16), &"11".repeat(20)] {
            facts.serial = foreign.to_owned();
            assert_eq!(facts.generation(), 0, "{foreign}");
        }
    }

    #[test]
    fn reads_serials_without_leading_zeros() {
        assert_eq!(serial_text(&[0, 0x0a, 0xff]), "aff");
        assert_eq!(parse(&CertificateDer::from(vec![1, 2, 3])).err(), Some(LeafError::Unreadable));
    }
}
