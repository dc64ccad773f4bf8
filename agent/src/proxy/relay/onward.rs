//! From a caller's tunnel to where a gateway leads it that is no bare socket: another tunnel, or a server that is reached
//! over TLS. Back-pressure is that of the streams: a window is given back when what came in it has been taken.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio_rustls::client::TlsStream;

use super::{Broken, MEDIUM_READ, Meter, TunnelStream, after, both, h2_error, send_all};

/// Carries a caller's stream over another tunnel until both directions have ended.
pub async fn tunnel_to_tunnel(
    caller: &mut TunnelStream,
    called: &mut TunnelStream,
    meter: &Meter,
    idle: Duration,
) -> Result<(), Broken> {
    let up = passed((&mut caller.receive, Broken::Client), (&mut called.send, Broken::Upstream), |n| {
        meter.sent(n);
    });
    let down = passed((&mut called.receive, Broken::Upstream), (&mut caller.send, Broken::Client), |n| {
        meter.answered(n);
    });
    let ended = both(up, down, meter, idle).await;
    if ended.is_err() {
        caller.send.send_reset(Reason::CANCEL);
        called.send.send_reset(Reason::CANCEL);
    }
    ended
}

/// What names the side that broke.
type Leg = fn(std::io::Error) -> Broken;

async fn passed(
    (from, from_leg): (&mut RecvStream, Leg),
    (to, to_leg): (&mut SendStream<Bytes>, Leg),
    count: impl Fn(usize),
) -> Result<(), Broken> {
    while let Some(chunk) = poll_fn(|cx| from.poll_data(cx)).await {
        let chunk = chunk.map_err(|error| from_leg(h2_error(error)))?;
        let length = chunk.len();
        send_all(to, chunk).await.map_err(to_leg)?;
        count(length);
        // An error means that the stream is gone, which the next poll says with its reason.
        let _ = from.flow_control().release_capacity(length);
        consume_budget().await;
    }
    to.send_data(Bytes::new(), true).map_err(|error| to_leg(h2_error(error)))
}

/// Carries between a caller's stream and a server that is reached over TLS until both directions have ended. A server that is
/// gone without a word of farewell has broken off (RFC 8446, section 6.1): what came may not be all.
pub async fn tunnel_to_tls(
    caller: &mut TunnelStream,
    tls: &mut TlsStream<TcpStream>,
    meter: &Meter,
    idle: Duration,
) -> Result<(), Broken> {
    let (mut receive, mut send) = tokio::io::split(&mut *tls);
    let TunnelStream { send: to_caller, receive: from_caller } = caller;
    let up = async {
        while let Some(chunk) = poll_fn(|cx| from_caller.poll_data(cx)).await {
            let chunk = chunk.map_err(|error| Broken::Client(h2_error(error)))?;
            send.write_all(&chunk).await.map_err(Broken::Upstream)?;
            send.flush().await.map_err(Broken::Upstream)?;
            meter.sent(chunk.len());
            // As above.
            let _ = from_caller.flow_control().release_capacity(chunk.len());
            consume_budget().await;
        }
        send.shutdown().await.map_err(Broken::Upstream)
    };
    let down = async {
        let mut buffer = vec![0; MEDIUM_READ];
        loop {
            let read = receive.read(&mut buffer).await.map_err(Broken::Upstream)?;
            if read == 0 {
                return to_caller
                    .send_data(Bytes::new(), true)
                    .map_err(|error| Broken::Client(h2_error(error)));
            }
            send_all(to_caller, Bytes::copy_from_slice(&buffer[..read])).await.map_err(Broken::Client)?;
            meter.answered(read);
        }
    };
    let ended = both(up, down, meter, idle).await;
    after(&ended, tls.get_ref().0, Some(to_caller));
    ended
}
