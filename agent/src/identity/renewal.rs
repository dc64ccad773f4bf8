//! When a certificate is renewed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use baremesh_ca::authority::BACKDATE;
use baremesh_ca::issued::Issued;
use baremesh_ca::tls::{PeerVerifier, Purpose, TrustBundle};
use rustls_pki_types::CertificateDer;

/// Renewal comes up to this share of the lifetime earlier, by chance, so that hosts do not ask all at once.
const JITTER: f64 = 0.1;
/// Certificates that lead to a root which signs no more are renewed within this time, each at a moment by chance, so that
/// hosts do not ask all at once.
const UNDER_ANOTHER_ROOT: Duration = Duration::from_secs(20);

/// A moment soon, by chance.
pub(super) fn soon(now: SystemTime) -> SystemTime {
    now + UNDER_ANOTHER_ROOT.mul_f64(rand::random())
}

/// When a certificate is renewed: at half of its life, a little earlier by chance, and soon if it leads to a root that
/// signs no more.
pub(super) fn renewal(issued: &Issued, bundle: &TrustBundle) -> SystemTime {
    let issued_at = issued.not_before + BACKDATE;
    let life = issued.not_after.duration_since(issued_at).unwrap_or_default();
    let usual = issued_at + life.mul_f64(0.5 - JITTER * rand::random::<f64>());
    let now = SystemTime::now();
    match leads_to_first(&issued.chain, bundle, now) {
        true => usual,
        false => usual.min(soon(now)),
    }
}

/// Whether a chain leads to the root under which is signed now, which is the first. What is not valid at the moment is
/// no question of roots.
pub(super) fn leads_to_first(
    chain: &[CertificateDer<'static>],
    bundle: &TrustBundle,
    now: SystemTime,
) -> bool {
    let Some((leaf, rest)) = chain.split_first() else { return true };
    let only =
        |roots: &[CertificateDer<'static>]| TrustBundle::new(bundle.trust_domain().clone(), roots.to_vec());
    let is_taken = |bundle: TrustBundle| {
        PeerVerifier::new(Arc::new(bundle)).verify(leaf, rest, Purpose::Client, now).is_ok()
    };
    bundle.roots().len() == 1 || only(&bundle.roots()[..1]).is_ok_and(is_taken)
}
