//! What the certificates contain. Authorities carry no URI name constraints, because webpki refuses them, and
//! leaves carry nothing that a caller chose but an authorised identity and a proven key.

use std::time::{Duration, SystemTime};

use baremesh_model::identity::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;

use super::AuthorityError;
use crate::clock::{from_unix, to_date, whole_seconds};
use crate::key::fill_random;
use crate::leaf::{Serial, parse};

/// How long a root is valid.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(3_650 * 86_400);
/// How long an intermediate is valid, if its signer is.
pub const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// How far before its making a certificate becomes valid, so that a peer whose clock is behind takes it.
pub const BACKDATE: Duration = Duration::from_secs(120);

/// A certificate that can sign, fresh from the press.
pub(super) struct Made {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

pub(super) fn make_root(now: SystemTime) -> Result<Made, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let (not_before, not_after) = (backdated(now), whole_seconds(now + ROOT_LIFETIME));
    let params = authority("root", BasicConstraints::Unconstrained, (not_before, not_after));
    let certificate = params.self_signed(&key)?.into();
    Ok(Made { certificate, issuer: Issuer::new(params, key), not_before, not_after })
}

/// An intermediate that signs leaves only, and does not outlive its signer.
pub(super) fn make_intermediate(
    signer: &Issuer<'_, KeyPair>,
    signer_not_after: SystemTime,
    now: SystemTime,
) -> Result<Made, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let not_before = backdated(now);
    let not_after = whole_seconds(now + INTERMEDIATE_LIFETIME).min(signer_not_after);
    let mut params = authority("intermediate", BasicConstraints::Constrained(0), (not_before, not_after));
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, signer)?.into();
    Ok(Made { certificate, issuer: Issuer::new(params, key), not_before, not_after })
}

/// A root as another one signs it: the same name and the same key, valid for as long as the signer is.
pub(super) fn make_cross(
    root: &CertificateDer<'_>,
    signer: &Issuer<'_, KeyPair>,
    signer_not_after: SystemTime,
    now: SystemTime,
) -> Result<CertificateDer<'static>, AuthorityError> {
    let unusable = |reason: &str| AuthorityError::Unusable(reason.to_owned());
    let parsed = parse(root).map_err(|error| unusable(&error.to_string()))?;
    let end = from_unix(parsed.validity().not_after.timestamp()).min(signer_not_after);
    let mut params = authority("root", BasicConstraints::Unconstrained, (backdated(now), end));
    params.distinguished_name = DistinguishedName::new();
    let names = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    names.for_each(|name| params.distinguished_name.push(DnType::CommonName, name));
    params.use_authority_key_identifier_extension = true;
    let key = SubjectPublicKeyInfo::from_der(parsed.public_key().raw)?;
    let made: CertificateDer<'static> = params.signed_by(&key, signer)?.into();
    let same_name = parse(&made).is_ok_and(|made| made.subject().as_raw() == parsed.subject().as_raw());
    if same_name { Ok(made) } else { Err(unusable("the root's name cannot be written as it is")) }
}

fn authority(
    role: &str,
    constraints: BasicConstraints,
    (not_before, not_after): (SystemTime, SystemTime),
) -> CertificateParams {
    let serial = random_serial();
    let mut params = CertificateParams::default();
    // A part of the name is random, so that two meshes' authorities, and two intermediates of one, are never
    // taken for each other while a chain is built.
    params.distinguished_name = DistinguishedName::new();
    let suffix: String = serial[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name.push(DnType::CommonName, format!("baremesh {role} {suffix}"));
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = to_date(not_before);
    params.not_after = to_date(not_after);
    params
}

/// A leaf: one URI name and no subject, for TLS on both sides; an operator's, which serves nothing, for the client's alone.
pub(super) fn leaf(
    identity: &Identity,
    serial: &[u8],
    (not_before, not_after): (SystemTime, SystemTime),
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match identity.as_operator() {
        Some(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
        None => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    params.not_before = to_date(not_before);
    params.not_after = to_date(not_after);
    Ok(params)
}

/// `BACKDATE` before `now`.
pub(super) fn backdated(now: SystemTime) -> SystemTime {
    whole_seconds(now.checked_sub(BACKDATE).unwrap_or(now))
}

/// 128 random bits.
pub(super) fn random_serial() -> Serial {
    let mut serial = Serial::default();
    fill_random(&mut serial);
    serial
}
