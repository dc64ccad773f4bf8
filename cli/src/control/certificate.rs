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
    not_after: SystemTime,
}

impl Held {
    fn obtain(ca: &CaService, now: SystemTime) -> anyhow::Result<Self> {
        let issued = ca.control_certificate(now)?;
        let left = issued.not_after.duration_since(now).unwrap_or_default();
        Ok(Self { key: issued.certified_key()?, renew_at: now + left / 2, not_after: issued.not_after })
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

    /// Renews it for as long as the server runs.
    pub(super) async fn keep(self: Arc<Self>) {
        loop {
            let left = self.renew_at().duration_since(SystemTime::now()).unwrap_or_default();
            sleep(left.clamp(PAUSE, LOOK)).await;
            if SystemTime::now() < self.renew_at() {
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

    fn renew_at(&self) -> SystemTime {
        self.held.read().unwrap_or_else(PoisonError::into_inner).renew_at
    }
}

async fn obtain(ca: Arc<CaService>) -> anyhow::Result<Held> {
    tokio::task::spawn_blocking(move || Held::obtain(&ca, SystemTime::now())).await?
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        (SystemTime::now() <= held.not_after).then(|| held.key.clone())
    }
}
