//! Sockets that are kept without a request, counted over all workers: descriptors are the process's. A socket with a
//! request on it is paid for by the connection that the request came on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::metrics::gauge::Gauge;

/// The sockets that are kept.
#[derive(Debug)]
pub struct KeptSockets {
    count: AtomicUsize,
    most: usize,
    gauge: Gauge,
}

impl Default for KeptSockets {
    fn default() -> Self {
        Self::new(usize::MAX, Gauge::default())
    }
}

impl KeptSockets {
    /// None yet, `most` at most; `gauge` shows how many.
    pub fn new(most: usize, gauge: Gauge) -> Self {
        Self { count: AtomicUsize::new(0), most, gauge }
    }
}

/// One of them.
pub struct KeptSocket(Arc<KeptSockets>);

impl KeptSocket {
    /// Counts one more, if there may be one.
    pub fn new(kept: &Arc<KeptSockets>) -> Option<Self> {
        let another = |count: usize| (count < kept.most).then_some(count + 1);
        kept.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, another).ok()?;
        kept.gauge.inc();
        Some(Self(Arc::clone(kept)))
    }
}

impl Drop for KeptSocket {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        self.0.gauge.dec();
    }
}
