//! The server's own certificate: issued by the authority in the same process, renewed at half of its life while
//! connections go on. One that has ended is never shown.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use baremesh_ca::service::CaService;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::time::sleep;

/// How often the clock is looked at: after a suspend, or when it was set, sleeping until a moment comes too late.
const LOOK: Duration = Duration::from_secs(15);
/// The least pause between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

struct Held {
    key: Arc<CertifiedKey>,
    renew_at: SystemTime,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Held {
    fn obtain(ca: &CaService, now: SystemTime) -> anyhow::Result<Self> {
        let issued = ca.control_certificate(now)?;
        let left = issued.not_after.duration_since(now).unwrap_or_default();
        let (not_before, not_after) = (issued.not_before, issued.not_after);
        Ok(Self { key: issued.certified_key()?, renew_at: now + left / 2, not_before, not_after })
    }

    fn is_valid(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// How long it serves still; not at all when it was made while the clock was ahead.
    fn left(&self, now: SystemTime) -> Duration {
        match self.is_valid(now) {
            true => self.renew_at.duration_since(now).unwrap_or_default(),
            false => Duration::ZERO,
        }
    }
}

/// The certificate in force.
pub(super) struct OwnCertificate {
    ca: Arc<CaService>,
    held: RwLock<Held>,
}

impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnCertificate").field("not_after", &self.not_after()).finish_non_exhaustive()
    }
}

impl OwnCertificate {
    /// The first one.
    pub(super) async fn obtain(ca: Arc<CaService>) -> anyhow::Result<Self> {
        let held = obtain(ca.clone()).await.context("the server's own certificate cannot be issued")?;
        Ok(Self { ca, held: RwLock::new(held) })
    }

    /// Until when it is valid.
    pub(super) fn not_after(&self) -> SystemTime {
        self.held.read().unwrap_or_else(PoisonError::into_inner).not_after
    }

    /// Renews it now: what signs is another.
    pub(super) async fn renew(&self) -> anyhow::Result<()> {
        let held = obtain(self.ca.clone()).await?;
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = held;
        Ok(())
    }

    /// Renews it for as long as the server runs.
    pub(super) async fn keep(self: Arc<Self>) {
        loop {
            sleep(self.left().clamp(PAUSE, LOOK)).await;
            if !self.left().is_zero() {
                continue;
            }
            match obtain(self.ca.clone()).await {
                Ok(held) => *self.held.write().unwrap_or_else(PoisonError::into_inner) = held,
                // Tried again after the next pause; the one in force serves until it ends.
                Err(error) => {
                    tracing::error!("the server's own certificate cannot be renewed: {error:#}");
                    sleep(LOOK).await;
                }
            }
        }
    }

    fn left(&self) -> Duration {
        self.held.read().unwrap_or_else(PoisonError::into_inner).left(SystemTime::now())
    }
}

async fn obtain(ca: Arc<CaService>) -> anyhow::Result<Held> {
    tokio::task::spawn_blocking(move || Held::obtain(&ca, SystemTime::now())).await?
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.is_valid(SystemTime::now()).then(|| held.key.clone())
    }
}

#[cfg(test)]
mod tests {
    use baremesh_ca::authority::Authority;
    use baremesh_ca::ledger::Ledger;
    use baremesh_ca::service::Settings;
    use baremesh_model::name::TrustDomain;

    use super::*;

    #[test]
    fn is_renewed_at_half_life_and_whenever_the_clock_leaves_it() {
        let place = tempfile::tempdir().expect("a directory");
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        let domain = TrustDomain::new("mesh.test").expect("a domain");
        let authority = Authority::create(place.path().join("ca"), &domain, now).expect("an authority");
        let ledger = Ledger::open(&place.path().join("control.db")).expect("a ledger");
        let settings = Settings { workload_lifetime: 4 * hour, ..Settings::default() };
        let held = Held::obtain(&CaService::new(authority, ledger, settings), now).expect("issued");
        for (at, valid, due) in [
            (now, true, false),
            (now - Duration::from_secs(60), true, false),
            (now + hour, true, false),
            (now + 3 * hour, true, true),
            (now + 5 * hour, false, true),
            (now - hour, false, true),
        ] {
            assert_eq!((held.is_valid(at), held.left(at).is_zero()), (valid, due), "{at:?}");
        }
    }
}
