//! The life of one tunnel from another agent: its streams are taken until the peer, a certificate's end or revocation, a lost PING,
//! the drain or long disuse ends it. A peer that gives streams up as fast as it opens them loses its tunnel: each
//! costs it two frames, and this host a connection to the program.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::proxy::flood::{Alarm, Ended, Flooded, GivenUp, MAX_GIVEN_UP_IN_TUNNEL, Patience, is_flood};
use crate::proxy::http::downstream::calm;
use crate::proxy::tunnel::until_dead;
use crate::proxy::{Phase, hbone};

/// How long a tunnel without streams is kept. Longer than agents keep the tunnels that they made: theirs is the first
/// word, and what is closed here is nobody's any more, or made by somebody else.
const IDLE: Duration = Duration::from_secs(900);
/// How often a tunnel is looked at for being idle.
const LOOK: Duration = hbone::PING_INTERVAL;
/// Streams that have been taken and not ended: more than may be open at a time are there only where many were reset already.
/// What became of them is heard before more are taken.
const CROWD: usize = 2 * hbone::MAX_STREAMS as usize;
/// What ends a tunnel besides its peer.
pub struct Life<R> {
    /// When the first of both certificates ends: no new streams from then on.
    pub expiry: Instant,
    /// How far the agent is in stopping.
    pub phase: watch::Receiver<Phase>,
    /// Ends when a certificate of the tunnel is revoked, and with it the tunnel.
    pub revoked: R,
}

/// Why a tunnel did not end in good order.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// Its peer floods.
    Flooded(Flooded),
    /// A certificate was revoked.
    Revoked,
}

/// Takes streams, each carried by `carry` in a task of its own, until the tunnel has ended. Streams that are open then
/// end by themselves.
pub async fn serve<T, F, R>(
    (mut connection, alarm): (Connection<T, Bytes>, Arc<Alarm>),
    Life { expiry, mut phase, revoked }: Life<R>,
    carry: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F,
) -> Result<(), End>
where
    T: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Ended> + Send + 'static,
    R: Future<Output = ()>,
{
    let began = *phase.borrow();
    let expiry = tokio::time::sleep_until(expiry);
    let dead = until_dead(connection.ping_pong());
    tokio::pin!(expiry, dead, revoked);
    let mut look = tokio::time::interval(LOOK);
    let mut streams = JoinSet::new();
    let mut used = Instant::now();
    let given_up = GivenUp::new(used, MAX_GIVEN_UP_IN_TUNNEL);
    let mut leaving = false;
    let end = loop {
        if streams.len() > CROWD {
            tokio::task::yield_now().await;
            let mut patience = Patience::Left;
            while let (Patience::Left, Some(ended)) = (patience, streams.try_join_next()) {
                patience = given_up.count(ended.unwrap_or(Ended::Normally), Instant::now());
            }
            if patience == Patience::Over {
                break Err(End::Flooded(Flooded::GIVEN_UP));
            }
        }
        tokio::select! {
            accepted = connection.accept() => match accepted {
                // Boxed: the runtime moves what it is given several times, and this is large.
                Some(Ok((request, respond))) => drop(streams.spawn(Box::pin(carry(request, respond)))),
                Some(Err(error)) => {
                    tracing::debug!(%error, "a tunnel ended");
                    break if is_flood(&error) { Err(End::Flooded(Flooded::CODEC)) } else { Ok(()) };
                }
                None => break Ok(()),
            },
            Some(ended) = streams.join_next() => {
                used = Instant::now();
                if given_up.count(ended.unwrap_or(Ended::Normally), used) == Patience::Over {
                    break Err(End::Flooded(Flooded::GIVEN_UP));
                }
            },
            () = alarm.flooded() => break Err(End::Flooded(Flooded::FRAMES)),
            () = &mut revoked => break Err(End::Revoked),
            _ = look.tick() => if streams.is_empty() && used.elapsed() >= IDLE {
                if leaving {
                    // It was told before, and stays.
                    break Ok(());
                }
                leaving = true;
                connection.graceful_shutdown();
            },
            _ = phase.wait_for(|phase| phase.ends_what_began(began)), if !leaving => {
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
    if let Err(End::Flooded(_)) = end {
        calm(&mut connection).await;
    }
    end
}

#[cfg(test)]
mod tests;
