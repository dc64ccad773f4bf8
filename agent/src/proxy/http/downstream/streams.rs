//! The streams of one connection of HTTP/2: each is carried by itself, and what they cost together has bounds.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ::bytes::Bytes;
use baremesh_model::http::RequestHead;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Exchange, Side};
use crate::proxy::flood::{Ended, GivenUp, LAST_WORDS, MAX_GIVEN_UP, Patience};
use crate::proxy::http::body::{Answer, Received, Source, framing_of};
use crate::proxy::http::h1::{Hop, HttpLimits, Persistence};
use crate::proxy::http::h2 as http2;
use crate::proxy::http::reply::Reply;
use crate::proxy::http::upload::Upload;

/// What the streams of one connection of HTTP/2 share.
pub struct Streams {
    /// Who carries them.
    pub side: Arc<Side>,
    given_up: GivenUp,
    /// Told when more were given up than are forgiven.
    pub too_many: Notify,
    /// Whether one ended otherwise than given up.
    served: AtomicBool,
    /// Bytes of the heads that are held.
    heads: AtomicUsize,
}

impl Streams {
    /// None so far.
    pub fn new(side: Arc<Side>) -> Self {
        Self {
            side,
            given_up: GivenUp::new(Instant::now(), MAX_GIVEN_UP),
            too_many: Notify::new(),
            served: AtomicBool::new(false),
            heads: AtomicUsize::new(0),
        }
    }

    /// Given up if all were.
    pub fn ended(&self) -> Ended {
        match self.served.load(Ordering::Relaxed) {
            true => Ended::Normally,
            false => Ended::GivenUp,
        }
    }
}

/// Ends a connection whose peer sent too much of something, and tells it so, for as long as it listens.
pub async fn calm<T: AsyncRead + AsyncWrite + Unpin>(connection: &mut Connection<T, Bytes>) {
    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
    let told = poll_fn(|cx| connection.poll_closed(cx));
    // A peer that does not read is not told.
    let _ = tokio::time::timeout(LAST_WORDS, told).await;
}

/// Carries one stream; `most` is what the heads of all streams of its connection may come to.
pub async fn carry_stream(
    streams: Arc<Streams>,
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    most: usize,
) {
    let (parts, body) = request.into_parts();
    let mut head = RequestHead::default();
    let read = http2::read_request(&parts, &mut head, &HttpLimits::default());
    // As the crate has it, a head takes more memory than the text that was read from it.
    drop(parts);
    let held = Held::take(&streams.heads, http2::size_of_head(&head));
    let mut received = Received::new(body);
    let framing = framing_of(&head.headers, &received);
    let hop = Hop { framing, persistence: Persistence::Keep, upgrade: false };
    let exchange = Exchange {
        head: &mut head,
        upload: Upload::new(Source::Http2(&mut received), hop).within(streams.side.worker().stall()),
        answer: Answer::Http2 { respond: &mut respond, stream: None, is_over: false },
    };
    let ended = match read {
        Ok(()) if held.all <= most => streams.side.carry(exchange).await,
        read => {
            let reply = match read {
                Ok(()) => Reply::malformed(431, "http2.heads_too_large"),
                Err(refused) => {
                    tracing::debug!(refused.why, "a request of HTTP/2 was refused");
                    Reply::malformed(refused.status, refused.detail)
                }
            };
            streams.side.refuse(exchange, reply).await;
            Ended::Normally
        }
    };
    if ended == Ended::Normally {
        streams.served.store(true, Ordering::Relaxed);
    }
    if streams.given_up.count(ended, Instant::now()) == Patience::Over {
        streams.too_many.notify_one();
    }
}

/// A head's share of what the heads of a connection may take.
struct Held<'a> {
    heads: &'a AtomicUsize,
    bytes: usize,
    /// What all of them took when it came.
    all: usize,
}

impl<'a> Held<'a> {
    fn take(heads: &'a AtomicUsize, bytes: usize) -> Self {
        Self { heads, bytes, all: heads.fetch_add(bytes, Ordering::Relaxed) + bytes }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.heads.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
