//! The bytes of one connection, counted while it goes on.

use std::sync::atomic::{AtomicU64, Ordering};

/// What moved on one connection. Read by the telemetry tick while the relay goes on.
#[derive(Debug, Default)]
pub struct Meter {
    from_client: AtomicU64,
    to_client: AtomicU64,
}

impl Meter {
    /// Bytes from the caller to the called side.
    pub fn bytes_from_client(&self) -> u64 {
        self.from_client.load(Ordering::Relaxed)
    }

    /// Bytes from the called side to the caller.
    pub fn bytes_to_client(&self) -> u64 {
        self.to_client.load(Ordering::Relaxed)
    }

    pub(in crate::proxy) fn sent(&self, bytes: usize) {
        self.from_client.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(in crate::proxy) fn answered(&self, bytes: usize) {
        self.to_client.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn moved(&self) -> u64 {
        self.bytes_from_client() + self.bytes_to_client()
    }
}
