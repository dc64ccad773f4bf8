//! What the DNS server counts. Nothing is dropped without a number here going up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Numbers since the start, read by telemetry. The first eight count what clients sent; the others what became of
/// it on the way.
#[derive(Debug, Default)]
pub struct DnsCounters {
    /// Questions about mesh names answered with records.
    pub answered: AtomicU64,
    /// Questions about mesh names that do not exist.
    pub nxdomain: AtomicU64,
    /// Questions about mesh names that have no record of the type asked for.
    pub nodata: AtomicU64,
    /// Questions sent upstream.
    pub forwarded: AtomicU64,
    /// Questions answered with SERVFAIL because too many others were waiting for upstreams.
    pub over_limit: AtomicU64,
    /// Messages that are no DNS question: answered with FORMERR, or dropped where they have no whole header.
    pub refused_malformed: AtomicU64,
    /// Questions of a kind that is not served: other opcodes and EDNS versions, zone transfers, classes other than IN.
    pub refused_kind: AtomicU64,
    /// Responses sent to us as if they were questions, dropped so that two servers never answer each other.
    pub dropped_responses: AtomicU64,
    /// Questions answered with SERVFAIL: no upstream is known, none answered, or a mesh name that DNS cannot carry.
    pub servfail: AtomicU64,
    /// Attempts at an upstream that ran out of time.
    pub upstream_timeouts: AtomicU64,
    /// Attempts at an upstream that failed otherwise: refused, reset, unreachable.
    pub upstream_errors: AtomicU64,
    /// Messages from an upstream with another id or question than was asked, or that are no response: ignored.
    pub spoofed_ignored: AtomicU64,
    /// Messages from an upstream that do not parse: ignored.
    pub malformed_ignored: AtomicU64,
    /// Upstream answers with an address in a virtual range: dropped whole, and SERVFAIL said instead.
    pub dropped_in_virtual_range: AtomicU64,
    /// Upstream answers larger than the client takes, passed on as truncated.
    pub truncated: AtomicU64,
    /// TCP connections closed at once because as many as may be were open.
    pub connections_refused: AtomicU64,
    /// TCP connections closed by us: idle or slow past the limit, or not speaking DNS.
    pub connections_cut: AtomicU64,
    /// Answers that could not be sent to the client.
    pub unsent: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Lets one log line through in ten seconds, so that a fault that every question meets does not fill the journal.
#[derive(Debug)]
pub(super) struct LogGate {
    start: Instant,
    next: AtomicU64,
}

impl LogGate {
    const INTERVAL: Duration = Duration::from_secs(10);

    pub(super) fn new() -> Self {
        Self { start: Instant::now(), next: AtomicU64::new(0) }
    }

    pub(super) fn opens(&self) -> bool {
        let now = self.start.elapsed().as_secs();
        let next = self.next.load(Ordering::Relaxed);
        let after = now + Self::INTERVAL.as_secs();
        now >= next && self.next.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}
