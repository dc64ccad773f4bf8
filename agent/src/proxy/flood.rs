//! What a peer of HTTP/2 may cost beyond what it asks for. Frames that carry nothing, and streams that are opened only to
//! be reset, are cheap to send and dear to take: both are counted, what an honest peer's traffic explains is forgiven,
//! and beyond that the connection ends, and that one alone (CVE-2019-9512 and those after it, CVE-2023-44487,
//! CVE-2025-8671).

/// Frames, between the socket and the codec.
mod frames;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use h2::Reason;
use tokio::time::Instant;

use super::hbone::MAX_STREAMS;

pub use frames::{Alarm, Starts, Watched};

/// A stream that its peer resets sooner, before it was answered, was opened for nothing.
pub const GIVEN_UP_WITHIN: Duration = Duration::from_secs(1);
/// Streams that a peer may give up at once on a connection that is its own, beyond those that are forgiven. A program that
/// connects and resets, as some health checks do, stays far below.
pub const MAX_GIVEN_UP: u32 = 200;
/// The same in a tunnel, which the programs of a host share that are one service: what one of them gives up ends its own
/// connection long before it ends theirs.
pub const MAX_GIVEN_UP_IN_TUNNEL: u32 = 800;
/// Streams that this side resets in a tunnel before it opens another one for what comes next. Those that are still open
/// may be reset too, and its peer has not lost its patience then: nobody's stream ends because of others'.
pub const MAX_RESETS_SENT: u32 = MAX_STREAMS;
/// Streams of a tunnel that may have been reset before they were taken up: twice what a calling side does at its worst.
pub const MAX_RESET_UNHEARD: u32 = 4 * MAX_STREAMS;
/// One stream that was given up is forgiven after so long: 50 a second, for as long as the connection stands.
const FORGIVEN_EVERY: Duration = Duration::from_millis(20);
/// How long a peer may take to read why its connection is closed.
pub const LAST_WORDS: Duration = Duration::from_secs(5);

/// The peer sent more of something than anybody who means well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flooded(pub &'static str);

impl Flooded {
    /// Streams that were reset as soon as they were opened.
    pub const GIVEN_UP: Self = Self("streams given up at once");
    /// Frames without content.
    pub const FRAMES: Self = Self("frames without content");
    /// The codec's own limits: CONTINUATION frames, field lists, empty and tiny DATA frames, errors of streams.
    pub const CODEC: Self = Self("frames of one kind, or faulty streams");
}

/// How a stream ended, as far as its connection is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// In any other way.
    Normally,
    /// The peer reset it as soon as it had opened it, without waiting for anything.
    GivenUp,
}

/// Whether the codec itself closed the connection because of too much of something.
pub fn is_flood(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_library() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM)
}

/// Whether a peer is borne with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It is.
    Left,
    /// Its connection is to end.
    Over,
}

/// Streams that a peer gave up, less those that were forgiven: one for each that ended well, and some as time passes.
#[derive(Debug)]
pub struct GivenUp {
    most: u32,
    count: AtomicU32,
    forgiven_at: Mutex<Instant>,
}

impl GivenUp {
    /// None so far, of `most` at once.
    pub fn new(now: Instant, most: u32) -> Self {
        Self { most, count: AtomicU32::new(0), forgiven_at: Mutex::new(now) }
    }

    /// Counts a stream that has ended.
    pub fn count(&self, ended: Ended, now: Instant) -> Patience {
        if ended == Ended::Normally {
            // Nothing to forgive is the usual case, and costs one look.
            let _ =
                self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
            return Patience::Left;
        }
        if self.count.fetch_add(1, Ordering::Relaxed) < self.most {
            return Patience::Left;
        }
        let mut forgiven_at = self.forgiven_at.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.duration_since(*forgiven_at).as_millis() / FORGIVEN_EVERY.as_millis();
        let forgiven = u32::try_from(passed).unwrap_or(u32::MAX);
        *forgiven_at += FORGIVEN_EVERY.saturating_mul(forgiven);
        // All but the one that was just counted.
        let forgive = |count: u32| count.saturating_sub(1).saturating_sub(forgiven) + 1;
        let before =
            self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(forgive(count)));
        match before.map_or(1, forgive) <= self.most {
            true => Patience::Left,
            false => Patience::Over,
        }
    }
}

#[cfg(test)]
mod tests;
