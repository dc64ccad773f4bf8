//! Certificates as somebody without a key of the mesh's makes them up. The first byte says what the rest is: a chain that
//! a peer shows in a handshake, a request for a certificate, or a list of revoked ones. Those of the directory beside
//! this file were signed by keys that nobody has any more, so that nothing else can be taken.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use baremesh_ca::issued::{MAX_CHAIN, chain_from_pem, chain_to_pem};
use baremesh_ca::key::PublicKey;
use baremesh_ca::revocation::Revoked;
use baremesh_ca::tls::{
    PeerVerifier, Purpose, TrustBundle, describe, peer_identity, peer_leaf_facts, validity,
    verify_anonymous_chain,
};
use baremesh_model::identity::Identity;
use baremesh_model::name::TrustDomain;
use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;

const ROOT: &[u8] = include_bytes!("certificate/root.der");
const INTERMEDIATE: &[u8] = include_bytes!("certificate/intermediate.der");
const LEAF: &[u8] = include_bytes!("certificate/leaf.der");
const REQUEST: &[u8] = include_bytes!("certificate/request.der");
const LIST: &str = include_str!("certificate/list.pem");
/// Whose the leaf is.
const WEB: &str = "spiffe://mesh.example/ns/shop/sa/web";
/// Within the time of all of them: the middle of 2026.
const NOW: Duration = Duration::from_secs(1_782_864_000);

static BUNDLE: LazyLock<Arc<TrustBundle>> = LazyLock::new(|| {
    let domain = TrustDomain::new("mesh.example").expect("a domain");
    Arc::new(TrustBundle::new(domain, vec![CertificateDer::from(ROOT)]).expect("a root"))
});

pub fn check(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 4 {
        0 => chain(rest, Purpose::Server),
        1 => chain(rest, Purpose::Client),
        2 => request(rest),
        _ => list(rest),
    }
}

/// Certificates behind each other, each as long as its own DER says; what is left over is the last.
fn split(mut data: &[u8]) -> Vec<CertificateDer<'static>> {
    let mut chain = Vec::new();
    while !data.is_empty() && chain.len() <= MAX_CHAIN {
        let (head, content) = sequence(data).unwrap_or((0, data.len()));
        let (one, rest) = data.split_at((head + content).min(data.len()));
        chain.push(CertificateDer::from(one.to_vec()));
        data = rest;
    }
    chain
}

/// How long the head and the content of a sequence are, in DER.
fn sequence(data: &[u8]) -> Option<(usize, usize)> {
    match *data {
        [0x30, 0x82, high, low, ..] => Some((4, usize::from(high) * 256 + usize::from(low))),
        [0x30, 0x81, low, ..] => Some((3, usize::from(low))),
        [0x30, low @ ..=0x7f, ..] => Some((2, usize::from(low))),
        _ => None,
    }
}

fn chain(data: &[u8], purpose: Purpose) {
    let chain = split(data);
    let Some((leaf, intermediates)) = chain.split_first() else { return };
    let now = SystemTime::UNIX_EPOCH + NOW;
    facts(leaf);
    match PeerVerifier::new(Arc::clone(&BUNDLE)).verify(leaf, intermediates, purpose, now) {
        Ok(identity) => {
            assert_eq!(identity.to_string(), WEB, "somebody else is taken");
            assert!(is_signed_as(leaf, LEAF), "another leaf is taken");
            assert!(intermediates.iter().any(|one| is_signed_as(one, INTERMEDIATE)), "by another authority");
            assert!(chain.len() <= MAX_CHAIN, "a long chain is taken");
        }
        Err(error) => {
            assert!(!describe(&error).is_empty(), "no word on {error:?}");
            let sound = leaf.as_ref() == LEAF
                && intermediates.iter().all(|one| [INTERMEDIATE, ROOT].contains(&one.as_ref()))
                && intermediates.iter().any(|one| one.as_ref() == INTERMEDIATE)
                && chain.len() <= MAX_CHAIN;
            assert!(!sound, "what is signed is refused: {error}");
        }
    }
    // Without the identity, and with nothing but the chain's own root to go by.
    let roots = [CertificateDer::from(ROOT)];
    if verify_anonymous_chain(leaf, intermediates, &roots, purpose, now).is_ok() {
        assert!(is_signed_as(leaf, LEAF), "another leaf is verified");
    }
    let text = chain_to_pem(&chain);
    assert_eq!(chain_from_pem(text.as_bytes()), (chain.len() <= MAX_CHAIN).then_some(chain), "{text}");
}

/// Whether it is that certificate, whatever its signature's bits: what was signed stands in it.
fn is_signed_as(one: &[u8], known: &[u8]) -> bool {
    // What is signed comes first in the sequence.
    let signed = |whole: &[u8]| {
        let within = whole.get(sequence(whole)?.0..)?;
        let (head, content) = sequence(within)?;
        within.get(..head + content).map(<[u8]>::to_vec)
    };
    signed(one).is_some_and(|one| Some(one) == signed(known))
}

/// What is read of a leaf, whoever signed it: two readers find one identity, and it stands in its bytes.
fn facts(leaf: &CertificateDer<'_>) {
    let identity = peer_identity(leaf);
    let facts = peer_leaf_facts(leaf);
    assert_eq!(facts.as_ref().ok().map(|facts| &facts.identity), identity.as_ref().ok());
    let Ok(facts) = facts else { return };
    assert_eq!(validity(leaf), Ok((facts.not_before, facts.not_after)));
    let hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    assert!(facts.serial.bytes().all(hexadecimal) && !facts.serial.starts_with('0'), "{}", facts.serial);
    let _ = facts.generation();
    let name = facts.identity.to_string();
    assert!(leaf.windows(name.len()).any(|part| part == name.as_bytes()), "{name} stands nowhere");
    let Ok(other) = EndEntityCert::try_from(leaf) else { return };
    let named: Vec<_> = other.valid_uri_names().collect();
    // webpki stops where it cannot read on; what it has read is the same.
    assert!(named.is_empty() || named == [name.as_str()], "{name} for one reader, {named:?} for another");
    assert!(Identity::parse(&name).is_ok());
}

fn request(data: &[u8]) {
    if PublicKey::from_request(data).is_ok() {
        assert!(is_signed_as(data, REQUEST), "a request is taken that its key did not sign");
    } else {
        assert_ne!(data, REQUEST, "what is signed is refused");
    }
}

fn list(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(revoked) = Revoked::read(text, &[CertificateDer::from(ROOT)]) else {
        assert_ne!(text, LIST, "what is signed is refused");
        return;
    };
    let serials: Vec<_> = revoked.iter().collect();
    assert_eq!(serials, ["1234567890abcdef"], "another list is taken");
}
