//! What ends a tunnel that its peer does not: long disuse, its age, a PING that is not answered.

use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use h2::{Ping, PingPong};

use super::{Tunnel, hbone};

/// How long an unused tunnel is kept.
const IDLE: Duration = Duration::from_secs(300);
/// How often a tunnel is looked at: whether it lives, is used, or is due to be replaced.
const TICK: Duration = hbone::PING_INTERVAL;

/// Ends when nobody has used the tunnel for `IDLE`, or it is due to be replaced and nobody uses it any more.
pub(super) async fn until_unused(tunnel: &Tunnel) {
    let mut unused_since = None;
    loop {
        tokio::time::sleep(TICK).await;
        let now = Instant::now();
        if !tunnel.is_unused() {
            unused_since = None;
            continue;
        }
        let since = *unused_since.get_or_insert(now);
        if tunnel.is_due(now) || now.duration_since(since) >= IDLE {
            // Nobody enters from here on; who entered meanwhile is waited for.
            tunnel.over.store(true, Ordering::SeqCst);
            if tunnel.is_unused() {
                return;
            }
        }
    }
}

/// Ends when the peer has not answered a PING in time.
pub async fn until_dead(ping: Option<PingPong>) {
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        tokio::time::sleep(hbone::PING_INTERVAL).await;
        if ping.send_ping(Ping::opaque()).is_err() {
            return;
        }
        let pong = poll_fn(|cx| ping.poll_pong(cx));
        if !matches!(tokio::time::timeout(hbone::PING_TIMEOUT, pong).await, Ok(Ok(_))) {
            return;
        }
    }
}
