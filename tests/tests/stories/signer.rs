//! Somebody with the keys of the mesh's authority, or with some that look like them.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use baremesh_ca::issued::chain_to_pem;
use baremesh_ca::tls::provider;
use baremesh_tests::Mesh;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use crate::pair::WEB_ID;

/// Somebody who signs: the mesh's own authority in the wrong hands, or one that looks like it.
pub struct Signer {
    /// What signs.
    pub issuer: Issuer<'static, KeyPair>,
    /// What is sent with a leaf.
    pub chain: Vec<CertificateDer<'static>>,
}

impl Signer {
    /// With the keys of the control host.
    #[track_caller]
    pub fn of_mesh(mesh: &Mesh) -> Self {
        let read = |name: &str| {
            fs::read_to_string(mesh.control.path("/var/lib/baremesh/ca").join(name))
                .expect("the authority's file")
        };
        let (certificate, key) = (read("intermediate.crt"), read("intermediate.key"));
        let key = KeyPair::from_pem(&key).expect("a key");
        let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.as_bytes())
            .collect::<Result<_, _>>()
            .expect("certificates");
        Self { issuer: Issuer::from_ca_cert_der(&chain[0], key).expect("an authority"), chain }
    }

    /// With the names and the chain of the mesh's authority, and a key of its own.
    pub fn pretender(mesh: &Mesh) -> Self {
        let chain = Self::of_mesh(mesh).chain;
        let key = KeyPair::generate().expect("a key");
        Self { issuer: Issuer::from_ca_cert_der(&chain[0], key).expect("an authority"), chain }
    }

    /// Signs a certificate for `identity`: the key in PEM, and the chain in PEM.
    pub fn issue(&self, identity: &str) -> [String; 2] {
        let key = KeyPair::generate().expect("a key");
        let leaf = leaf(|leaf| leaf.subject_alt_names = vec![uri(identity)]).signed_by(&key, &self.issuer);
        let chain = [vec![leaf.expect("a certificate").into()], self.chain.clone()].concat();
        [key.serialize_pem(), chain_to_pem(&chain)]
    }

    /// Signs what a member's certificate says, after `change` has spoilt it.
    pub fn sign(&self, change: impl FnOnce(&mut CertificateParams)) -> Arc<CertifiedKey> {
        let key = KeyPair::generate().expect("a key");
        let leaf = leaf(change).signed_by(&key, &self.issuer).expect("a certificate");
        certified([vec![leaf.into()], self.chain.clone()].concat(), &key)
    }
}

/// What a member's certificate says, after `change` has spoilt it.
pub fn leaf(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(WEB_ID)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(120);
    params.not_after = OffsetDateTime::now_utc() + Duration::from_secs(3600);
    change(&mut params);
    params
}

/// A URI name.
pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

/// A chain with a key, which need not belong to it.
pub fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<CertifiedKey> {
    let der = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let key = provider().key_provider.load_private_key(der).expect("a key");
    // Not checked: some of these keys do not belong to their certificates.
    Arc::new(CertifiedKey::new(chain, key))
}
