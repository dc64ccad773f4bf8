//! The asking side of HTTP: a connection of a program of this host, or a stream that another agent opened. Its requests
//! are read one by one, or side by side over HTTP/2, and each is handed to the side that carries it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use baremesh_model::http::RequestHead;
use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;

use super::attempt::Upload;
use super::body::{Answer, Ending, Received, Source, framing_of};
use super::bytes::{self, ByteReader, ByteWriter, Joined};
use super::callee::Callee;
use super::caller::Caller;
use super::h1::{self, Framing, H1Error, HttpLimits};
use super::h2 as http2;
use super::reply::Reply;
use crate::proxy::tunnel::until_dead;
use crate::proxy::{Phase, Worker};

/// The bytes that every HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a request's head may take from its first byte on.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

/// Who carries the requests of a connection.
pub enum Side {
    /// The caller's agent: it routes.
    Caller(Caller),
    /// The called side's agent: it delivers.
    Callee(Callee),
}

/// One request, and the way back.
pub struct Exchange<'a> {
    /// The request's head, as it came.
    pub head: &'a mut RequestHead,
    /// Its body.
    pub upload: Upload<'a>,
    /// The way back.
    pub answer: Answer<'a>,
}

impl Side {
    fn worker(&self) -> &Arc<Worker> {
        match self {
            Self::Caller(caller) => &caller.worker,
            Self::Callee(callee) => &callee.worker,
        }
    }

    async fn carry(&self, exchange: Exchange<'_>) {
        match self {
            Self::Caller(caller) => Box::pin(caller.carry(exchange)).await,
            Self::Callee(callee) => Box::pin(callee.carry(exchange)).await,
        }
    }

    /// Answers a request that is not carried at all.
    async fn refuse(&self, exchange: Exchange<'_>, reply: Reply) {
        match self {
            Self::Caller(caller) => caller.refuse(exchange, reply).await,
            Self::Callee(callee) => callee.refuse(exchange, reply).await,
        }
    }
}

/// Serves a connection until it ends, in the version of HTTP that its first bytes show.
pub async fn serve(side: Arc<Side>, mut reader: ByteReader, writer: ByteWriter) {
    let idle = side.worker().shared.limits.idle_timeout;
    let mut buffer = BytesMut::new();
    let first = async {
        while PREFACE.starts_with(&buffer) && buffer.len() < PREFACE.len() {
            if reader.read_some(&mut buffer, PREFACE.len()).await.unwrap_or(0) == 0 {
                return false;
            }
        }
        true
    };
    if !tokio::time::timeout(idle, first).await.unwrap_or(false) {
        return writer.settle();
    }
    if buffer.starts_with(PREFACE) {
        serve_http2(side, Joined::new(reader, writer, buffer)).await;
    } else {
        serve_http1(&side, h1::Reader::with(reader, buffer), h1::Writer::new(writer)).await;
    }
}

async fn serve_http1(side: &Side, mut reader: h1::Reader, mut writer: h1::Writer) {
    let limits = HttpLimits::default();
    let worker = side.worker();
    let mut phase = worker.shared.phase.clone();
    let mut head = RequestHead::default();
    loop {
        let idle = tokio::time::sleep(worker.shared.limits.idle_timeout);
        tokio::select! {
            biased;
            more = reader.next_begins() => if !more { break },
            _ = phase.wait_for(|phase| *phase >= Phase::Draining) => break,
            () = idle => break,
        }
        let read = tokio::time::timeout(HEADER_TIMEOUT, reader.request(&mut head, &limits)).await;
        let mut ending = Ending::Keep;
        let read = match read {
            Ok(Ok(None)) => break,
            Ok(Ok(Some(framing))) => Ok(framing),
            Ok(Err(H1Error::Io(_))) => return,
            Ok(Err(error)) => Err(Reply::malformed(error.status(), error.details())),
            Err(_) => Err(Reply::malformed(408, "request_header_timeout")),
        };
        if read.is_err() || !reader.keeps_alive() || *phase.borrow() >= Phase::Draining {
            ending = Ending::Close;
        }
        let framing = *read.as_ref().unwrap_or(&Framing::None);
        let exchange = Exchange {
            head: &mut head,
            upload: Upload::new(Source::Http1(&mut reader), framing),
            answer: Answer::Http1(&mut writer, &mut ending),
        };
        match read {
            Ok(_) => side.carry(exchange).await,
            Err(reply) => side.refuse(exchange, reply).await,
        }
        // A request that was answered before it was whole leaves bytes that are no next request.
        if ending == Ending::Close || !reader.body_is_over() {
            break;
        }
    }
    let (mut reader, mut writer) = (reader.into_bytes(), writer.into_bytes());
    bytes::linger(&mut reader, &mut writer).await;
}

async fn serve_http2(side: Arc<Side>, io: Joined) {
    let limits = HttpLimits::default();
    let worker = Arc::clone(side.worker());
    let handshake = http2::server(&limits).handshake::<_, Bytes>(io);
    let Ok(Ok(mut connection)) =
        tokio::time::timeout(worker.shared.limits.handshake_timeout, handshake).await
    else {
        return;
    };
    let mut phase = worker.shared.phase.clone();
    let dead = until_dead(connection.ping_pong());
    tokio::pin!(dead);
    let mut leaving = false;
    // Looked at once a period, instead of a timer armed at every request.
    let idle = worker.shared.limits.idle_timeout;
    let mut quiet_since = Instant::now();
    let streams = Arc::new(());
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let (side, counted) = (Arc::clone(&side), Arc::clone(&streams));
                    quiet_since = Instant::now();
                    tokio::spawn(async move {
                        carry_stream(&side, request, respond).await;
                        drop(counted);
                    });
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "a connection of HTTP/2 ended");
                    return;
                }
                None => return,
            },
            _ = phase.wait_for(|phase| *phase >= Phase::Draining), if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            }
            () = tokio::time::sleep(idle), if !leaving => {
                if Arc::strong_count(&streams) == 1 && quiet_since.elapsed() >= idle {
                    leaving = true;
                    connection.graceful_shutdown();
                }
            }
            () = &mut dead => return,
        }
    }
}

async fn carry_stream(side: &Side, request: http::Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (parts, body) = request.into_parts();
    let mut head = RequestHead::default();
    let read = http2::read_request(&parts, &mut head, &HttpLimits::default());
    let mut received = Received::new(body);
    let framing = framing_of(&head, &received);
    let mut stream = None;
    let exchange = Exchange {
        head: &mut head,
        upload: Upload::new(Source::Http2(&mut received), framing),
        answer: Answer::Http2(&mut respond, &mut stream),
    };
    match read {
        Ok(()) => side.carry(exchange).await,
        Err(_) => side.refuse(exchange, Reply::malformed(400, "http2.invalid.header.field")).await,
    }
}
