//! Counts against limits. Whoever comes over one is told so at once, and never waits in a queue without a bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use baremesh_model::destination_rule::{EffectivePolicy, Limits};

use super::ClusterState;
use super::spare::Spares;

/// What is going on at a cluster.
#[derive(Debug, Default)]
pub(in crate::snapshot) struct Counters {
    connections: AtomicU32,
    requests: AtomicU32,
    pending: AtomicU32,
    retries: AtomicU32,
    /// Connections without a request that would give their places up.
    pub(super) spares: Spares,
}

/// A limit of a DestinationRule is reached; the field's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the DestinationRule's limit `{0}` is reached")]
pub struct OverLimit(pub &'static str);

/// Something that counts against a limit for as long as it lives.
#[derive(Debug)]
pub struct Held {
    state: Arc<ClusterState>,
    counter: fn(&Counters) -> &AtomicU32,
    /// Requests may wait for the place.
    is_awaited: bool,
}

impl Held {
    pub(super) fn connection(state: &Arc<ClusterState>, limits: &Limits) -> Result<Self, OverLimit> {
        let mut held =
            Self::take(state, |counters| &counters.connections, |before| before < limits.max_connections)
                .ok_or(OverLimit("maxConnections"))?;
        held.is_awaited = limits.max_connections < u32::MAX;
        Ok(held)
    }

    pub(super) fn connection_beyond(state: &Arc<ClusterState>) -> Self {
        state.counters.connections.fetch_add(1, Ordering::Relaxed);
        Self { state: Arc::clone(state), counter: |counters| &counters.connections, is_awaited: true }
    }

    pub(super) fn request(state: &Arc<ClusterState>, limits: &Limits) -> Result<Self, OverLimit> {
        Self::take(state, |counters| &counters.requests, |before| before < limits.http2_max_requests)
            .ok_or(OverLimit("http2MaxRequests"))
    }

    pub(super) fn pending(state: &Arc<ClusterState>, limits: &Limits) -> Result<Self, OverLimit> {
        Self::take(state, |counters| &counters.pending, |before| before < limits.http1_max_pending_requests)
            .ok_or(OverLimit("http1MaxPendingRequests"))
    }

    pub(super) fn retry(state: &Arc<ClusterState>, policy: &EffectivePolicy) -> Result<Self, OverLimit> {
        let Counters { requests, pending, .. } = &state.counters;
        match policy.retry_budget {
            Some(budget) => {
                let open = requests.load(Ordering::Relaxed).saturating_add(pending.load(Ordering::Relaxed));
                Self::take(state, |counters| &counters.retries, |before| budget.allows(before, open))
                    .ok_or(OverLimit("retryBudget"))
            }
            None => {
                Self::take(state, |counters| &counters.retries, |before| before < policy.limits.max_retries)
                    .ok_or(OverLimit("maxRetries"))
            }
        }
    }

    fn take(
        state: &Arc<ClusterState>,
        counter: fn(&Counters) -> &AtomicU32,
        allows: impl Fn(u32) -> bool,
    ) -> Option<Self> {
        let another = |before| allows(before).then_some(before.saturating_add(1));
        // Who is refused is never counted: nobody else is refused for it.
        counter(&state.counters).fetch_update(Ordering::Relaxed, Ordering::Relaxed, another).ok()?;
        Some(Self { state: Arc::clone(state), counter, is_awaited: false })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        (self.counter)(&self.state.counters).fetch_sub(1, Ordering::Relaxed);
        if self.is_awaited {
            self.state.counters.spares.tell();
        }
    }
}

impl ClusterState {
    /// Requests that wait for a connection.
    pub(super) fn waiting(&self) -> u32 {
        self.counters.pending.load(Ordering::Relaxed)
    }
}
