//! The life of one tunnel from another agent: its streams are taken until the peer, a certificate's end, a lost PING,
//! the drain or long disuse ends it. A peer that gives streams up as fast as it opens them loses its tunnel: each
//! costs it two frames, and this host a connection to the program.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::proxy::tunnel::until_dead;
use crate::proxy::{Phase, hbone};

/// How long a tunnel without streams is kept. Longer than agents keep the tunnels that they made: theirs is the first
/// word, and what is closed here is nobody's any more, or made by somebody else.
const IDLE: Duration = Duration::from_secs(900);
/// How often a tunnel is looked at for being idle.
const LOOK: Duration = hbone::PING_INTERVAL;
/// Streams that a peer may give up at once, beyond those that are forgiven: as many as it may provoke resets of ours.
/// A program that connects and resets, as some health checks do, stays far below.
const MAX_GIVEN_UP: u32 = 200;
/// One stream that was given up is forgiven after so long: 50 a second, for as long as the tunnel stands.
const FORGIVEN_EVERY: Duration = Duration::from_millis(20);
/// How long the peer may take to read why its tunnel is closed.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How a stream ended, as far as its tunnel is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// In any other way.
    Normally,
    /// The peer reset it as soon as it had opened it, without waiting for anything.
    GivenUp,
}

/// What ends a tunnel besides its peer.
pub struct Life {
    /// When the first of both certificates ends: no new streams from then on.
    pub expiry: Instant,
    /// How far the agent is in stopping.
    pub phase: watch::Receiver<Phase>,
}

/// The peer sent more of something than anybody who means well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flooded(pub &'static str);

/// Takes streams, each carried by `carry` in a task of its own, until the tunnel has ended. Streams that are open then
/// end by themselves.
pub async fn serve<T, F>(
    mut connection: Connection<T, Bytes>,
    Life { expiry, mut phase }: Life,
    carry: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F,
) -> Result<(), Flooded>
where
    T: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Ended> + Send + 'static,
{
    let expiry = tokio::time::sleep_until(expiry);
    let dead = until_dead(connection.ping_pong());
    tokio::pin!(expiry, dead);
    let mut look = tokio::time::interval(LOOK);
    let mut streams = JoinSet::new();
    let mut used = Instant::now();
    let mut given_up = GivenUp::new(used);
    let mut leaving = false;
    let end = loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => drop(streams.spawn(carry(request, respond))),
                Some(Err(error)) => {
                    tracing::debug!(%error, "a tunnel ended");
                    break if is_flood(&error) { Err(Flooded("frames")) } else { Ok(()) };
                }
                None => break Ok(()),
            },
            Some(ended) = streams.join_next() => {
                used = Instant::now();
                if matches!(ended, Ok(Ended::GivenUp)) && given_up.another(used) == Patience::Over {
                    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    break Err(Flooded("streams given up at once"));
                }
            },
            _ = look.tick() => if streams.is_empty() && used.elapsed() >= IDLE {
                if leaving {
                    // It was told before, and stays.
                    break Ok(());
                }
                leaving = true;
                connection.graceful_shutdown();
            },
            _ = phase.wait_for(|phase| *phase >= Phase::Draining), if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            },
            () = &mut expiry, if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            },
            () = &mut dead => break Ok(()),
        }
    };
    streams.detach_all();
    if end.is_err() {
        let told = poll_fn(|cx| connection.poll_closed(cx));
        // A peer that does not read is not told.
        let _ = tokio::time::timeout(LAST_WORDS, told).await;
    }
    end
}

/// Whether the codec itself closed the connection because of too many frames of one kind.
fn is_flood(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_library() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM)
}

/// Streams that the peer gave up, less those that were forgiven.
#[derive(Debug, Clone, Copy)]
struct GivenUp {
    count: u32,
    forgiven_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    Left,
    Over,
}

impl GivenUp {
    fn new(now: Instant) -> Self {
        Self { count: 0, forgiven_at: now }
    }

    /// Counts one more.
    fn another(&mut self, now: Instant) -> Patience {
        let passed = now.duration_since(self.forgiven_at).as_millis() / FORGIVEN_EVERY.as_millis();
        let forgiven = u32::try_from(passed).unwrap_or(u32::MAX);
        self.count = self.count.saturating_sub(forgiven).saturating_add(1);
        self.forgiven_at += FORGIVEN_EVERY.saturating_mul(forgiven);
        if self.count > MAX_GIVEN_UP { Patience::Over } else { Patience::Left }
    }
}

#[cfg(test)]
mod tests;
