//! The asking side of HTTP: a connection of a program of this host, or a stream that another agent opened. Its requests
//! are read one by one, or side by side over HTTP/2, and each is handed to the side that carries it.

/// The streams of one connection of HTTP/2.
mod streams;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::bytes::{Bytes, BytesMut};
use baremesh_model::http::{RequestHead, ResponseHead};
use tokio::sync::watch;

use super::attempt::{Download, Failure};
use super::body::{Answer, Source};
use super::bytes::{self, ByteReader, ByteWriter, Joined};
use super::callee::Callee;
use super::caller::Caller;
use super::gateway::AtGateway;
use super::h1::{self, Framing, HEAD_TIMEOUT, Hop, HttpLimits, Persistence};
use super::h2 as http2;
use super::reply::Reply;
use super::upload::{Stall, Upload};
use crate::proxy::error::ProxyError;
use crate::proxy::flood::{Ended, Flooded, GIVEN_UP_WITHIN, Starts, Watched, is_flood};
use crate::proxy::tunnel::until_dead;
use crate::proxy::{Phase, Worker};
use crate::telemetry::request_record::RequestRecord;
use crate::telemetry::requests::RequestProtocol;
pub use streams::calm;
use streams::{Streams, carry_stream};

/// The bytes that every HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Who carries the requests of a connection.
pub enum Side {
    /// The caller's agent: it routes.
    Caller(Box<Caller>),
    /// The called side's agent: it delivers.
    Callee(Box<Callee>),
    /// A gateway's agent: it routes what arrives.
    Gateway(Box<AtGateway>),
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

impl Exchange<'_> {
    /// Ends when the caller has gone. Nothing that it sends meanwhile is lost: what is read to see it is kept for whoever
    /// reads next.
    pub async fn gone(&mut self) {
        tokio::select! {
            () = self.upload.gone() => {}
            () = self.answer.gone() => {}
        }
    }

    /// Answers in the agent's own name.
    pub async fn reply(&mut self, reply: &Reply, record: &mut RequestRecord) {
        let is_grpc = record.protocol == RequestProtocol::Grpc;
        record.replied(reply);
        if reply.status == 0 {
            return self.answer.abort();
        }
        let mut head = ResponseHead::default();
        reply.head(&mut head, is_grpc);
        let body = if is_grpc { Bytes::new() } else { Bytes::copy_from_slice(&reply.body) };
        record.sizes.response_bytes = body.len() as u64;
        let framing = match (&*self.head.method, body.len()) {
            ("HEAD", _) => Framing::None,
            _ if matches!(head.status, 204 | 304) => Framing::None,
            (_, length) => Framing::Length(length as u64),
        };
        let sent = async {
            self.answer.head(&head, framing)?;
            let mut sink = self.answer.body();
            if framing != Framing::None && !body.is_empty() {
                sink.data(body).await?;
            }
            sink.finish(None).await
        };
        if sent.await.is_err() {
            record.flags = "DC";
        }
    }
}

impl RequestRecord {
    /// How the request ended, as far as its connection is concerned: given up if the caller took it back at once.
    pub(super) fn ended(&self) -> Ended {
        match self.status == 0 && self.flags == "DC" && self.peers.started.elapsed() < GIVEN_UP_WITHIN {
            true => Ended::GivenUp,
            false => Ended::Normally,
        }
    }

    /// The agent answered itself.
    pub(super) fn replied(&mut self, reply: &Reply) {
        let is_grpc = self.protocol == RequestProtocol::Grpc;
        self.status = if is_grpc && reply.status != 0 { 200 } else { reply.status };
        self.grpc_status = is_grpc.then(|| reply.grpc_status());
        (self.flags, self.details) = (reply.flags, reply.details.clone());
    }

    /// The answer has gone to the caller.
    pub(super) fn answered(&mut self, download: &Download) {
        self.sizes.response_bytes = download.bytes;
        self.sizes.response_messages = download.messages.map_or(0, |count| count.messages);
        self.grpc_status = download.grpc_status;
    }

    /// The answer broke off, the caller saw its head.
    pub(super) fn broke_off(&mut self, failure: Failure, download: &Download) {
        self.answered(download);
        let (flags, details) = match failure {
            Failure::CallerGone | Failure::CallerMalformed(_) => ("DC", "downstream_remote_disconnect"),
            Failure::Timeout => ("UT", "response_timeout"),
            Failure::CallerStalled => ("SI", "request_body_timeout"),
            Failure::PerTryTimeout => ("UT", "upstream_per_try_timeout"),
            Failure::Idle => ("SI", "stream_idle_timeout"),
            Failure::NoLongerAllowed => ("UAEX", "rbac_access_denied"),
            Failure::UpstreamMalformed(details) => ("UPE", details),
            Failure::UpstreamClosed | Failure::RefusedStream => {
                ("UC", "upstream_reset_after_response_started{connection_termination}")
            }
        };
        (self.flags, self.details) = (flags, details.into());
    }

    /// What of the request has come.
    pub(super) fn uploaded(&mut self, upload: &Upload<'_>) {
        self.sizes.request_bytes = upload.bytes;
        self.sizes.request_messages = upload.messages.map_or(0, |count| count.messages);
        self.sizes.duration = self.peers.started.elapsed();
    }
}

impl Worker {
    fn stall(&self) -> Stall {
        let limits = &self.shared.limits;
        Stall { body: limits.body_timeout, idle: limits.idle_timeout }
    }
}

impl Side {
    fn worker(&self) -> &Arc<Worker> {
        match self {
            Self::Caller(caller) => &caller.worker,
            Self::Callee(callee) => &callee.worker,
            Self::Gateway(gateway) => &gateway.callee.worker,
        }
    }

    /// Writes the record of a connection that ended because of what its peer sent too much of.
    fn flooded(&self, flooded: Flooded) {
        let peers = match self {
            Self::Caller(caller) => caller.peers(),
            Self::Callee(callee) => callee.peers(),
            Self::Gateway(gateway) => gateway.callee.peers(),
        };
        self.worker().telemetry.finish(&peers.again(), None, &Err(ProxyError::Flooded(flooded.0)));
    }

    /// From when on no further request is taken.
    fn ends(&self) -> Option<tokio::time::Instant> {
        match self {
            Self::Caller(_) => None,
            Self::Callee(callee) => callee.ends(),
            Self::Gateway(gateway) => gateway.callee.ends(),
        }
    }

    async fn carry(&self, exchange: Exchange<'_>) -> Ended {
        match self {
            Self::Caller(caller) => caller.carry(exchange).await,
            Self::Callee(callee) => callee.carry(exchange).await,
            Self::Gateway(gateway) => gateway.carry(exchange).await,
        }
    }

    /// Answers a request that is not carried at all.
    async fn refuse(&self, exchange: Exchange<'_>, reply: Reply) {
        match self {
            Self::Caller(caller) => caller.refuse(exchange, reply).await,
            Self::Callee(callee) => callee.refuse(exchange, reply).await,
            Self::Gateway(gateway) => gateway.callee.refuse(exchange, reply).await,
        }
    }
}

/// Ends at the time, if there is one.
pub async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Serves a connection until it ends, in the version of HTTP that its first bytes show. Given up is one that its peer
/// broke off before any request was served.
pub async fn serve(side: Arc<Side>, mut reader: ByteReader, writer: ByteWriter) -> Ended {
    let idle = side.worker().shared.limits.idle_timeout;
    let mut buffer = BytesMut::new();
    let mut phase = side.worker().shared.phase.clone();
    let begun = tokio::select! {
        biased;
        read = reader.read_some(&mut buffer, PREFACE.len()) => read,
        () = until_idle_ends(&mut phase) => Ok(0),
        () = tokio::time::sleep(idle) => Ok(0),
        () = until(side.ends()) => Ok(0),
    };
    match begun {
        Ok(0) => {
            writer.settle();
            return Ended::Normally;
        }
        Ok(_) => {}
        Err(_) => return Ended::GivenUp,
    }
    // Who has begun is not waited for without end.
    let by = tokio::time::Instant::now() + HEAD_TIMEOUT;
    let told = async {
        while PREFACE.starts_with(&buffer)
            && buffer.len() < PREFACE.len()
            && reader.read_some(&mut buffer, PREFACE.len()).await? > 0
        {}
        std::io::Result::Ok(())
    };
    if let Ok(Err(_)) = tokio::time::timeout_at(by, told).await {
        return Ended::GivenUp;
    }
    if buffer.starts_with(PREFACE) {
        serve_http2(side, Joined::new(reader, writer, buffer)).await
    } else {
        let reader = h1::Reader::with(reader, HttpLimits::default(), buffer);
        serve_http1(&side, reader, h1::Writer::new(writer), by).await
    }
}

/// How long a connection without a request is kept once the process is about to be started anew.
const LAST_REQUEST: Duration = Duration::from_secs(5);

/// Ends when a connection without a request is not kept any more: at once where nothing new is served, and after a while where
/// the process is about to be started anew, so that who has just sent a request is answered.
async fn until_idle_ends(phase: &mut watch::Receiver<Phase>) {
    let ends = |phase: Phase| phase.serves_no_more() || phase == Phase::StartingAnew;
    // An error means that the agent itself is gone.
    let is_started_anew =
        phase.wait_for(|phase| ends(*phase)).await.is_ok_and(|phase| *phase == Phase::StartingAnew);
    if is_started_anew {
        let served_no_more = phase.wait_for(|phase| phase.serves_no_more());
        let _ = tokio::time::timeout(LAST_REQUEST, served_no_more).await;
    }
}

/// Serves a connection of HTTP/1, whose first head is to have come `by` then.
async fn serve_http1(
    side: &Side,
    mut reader: h1::Reader,
    mut writer: h1::Writer,
    by: tokio::time::Instant,
) -> Ended {
    let worker = side.worker();
    let mut phase = worker.shared.phase.clone();
    let mut head = RequestHead::default();
    // Until one request was served, or refused.
    let mut all = Ended::GivenUp;
    let mut first = Some(by);
    let ended = loop {
        tokio::select! {
            biased;
            // What is there already is not taken either.
            () = until(side.ends()) => break Ended::Normally,
            begins = reader.begins() => match begins {
                Ok(true) => {}
                Ok(false) => break Ended::Normally,
                Err(_) => return all,
            },
            () = until_idle_ends(&mut phase) => break Ended::Normally,
            () = tokio::time::sleep(worker.shared.limits.idle_timeout) => break Ended::Normally,
        }
        // What is refused before it is read is not recorded as the request before.
        head.clear();
        let by = first.take().unwrap_or_else(|| tokio::time::Instant::now() + HEAD_TIMEOUT);
        let read = match tokio::time::timeout_at(by, reader.request(&mut head)).await {
            Ok(Ok(None)) => break Ended::Normally,
            Ok(Ok(Some(hop))) => Ok(hop),
            Ok(Err(error)) => match error.status() {
                Some(status) => Err(Reply::malformed(status, error.detail())),
                None => return all,
            },
            Err(_) => Err(Reply::malformed(408, "request_header_timeout")),
        };
        let closing = Hop { framing: Framing::None, persistence: Persistence::Close, upgrade: false };
        let hop = *read.as_ref().unwrap_or(&closing);
        let mut persistence = match *phase.borrow() {
            Phase::Running => hop.persistence,
            Phase::StartingAnew | Phase::Draining | Phase::HandedOver | Phase::Closing => Persistence::Close,
        };
        let version = head.version;
        let exchange = Exchange {
            head: &mut head,
            upload: Upload::new(Source::Http1(&mut reader), hop).within(worker.stall()),
            answer: Answer::Http1 { writer: &mut writer, version, persistence: &mut persistence },
        };
        let carried = match read {
            Ok(_) => side.carry(exchange).await,
            Err(reply) => {
                side.refuse(exchange, reply).await;
                Ended::Normally
            }
        };
        if carried == Ended::Normally {
            all = Ended::Normally;
        }
        // A request that was answered before it was whole leaves bytes that are no next request.
        if persistence == Persistence::Close || !reader.is_over() || !writer.is_over() {
            break all;
        }
    };
    if writer.flush().await.is_ok() && writer.is_over() {
        bytes::linger(reader.bytes(), writer.bytes()).await;
    }
    ended
}

async fn serve_http2(side: Arc<Side>, io: Joined) -> Ended {
    let limits = HttpLimits::default();
    let worker = Arc::clone(side.worker());
    let (io, alarm) = Watched::new(io, Starts::Peer);
    let handshake = http2::server(&limits).handshake::<_, Bytes>(io);
    let Ok(Ok(mut connection)) =
        tokio::time::timeout(worker.shared.limits.handshake_timeout, handshake).await
    else {
        return Ended::GivenUp;
    };
    let mut phase = worker.shared.phase.clone();
    let began = *phase.borrow();
    let dead = until_dead(connection.ping_pong());
    tokio::pin!(dead);
    let mut leaving = false;
    // Looked at once a period, instead of a timer armed at every request.
    let idle = worker.shared.limits.idle_timeout;
    let mut quiet_since = Instant::now();
    let streams = Arc::new(Streams::new(side));
    let flooded = loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    quiet_since = Instant::now();
                    let most = http2::most_of_heads(alarm.bytes_of_heads());
                    // Boxed: the runtime moves what it is given several times, and this is large.
                    tokio::spawn(Box::pin(carry_stream(Arc::clone(&streams), request, respond, most)));
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "a connection of HTTP/2 ended");
                    break is_flood(&error).then_some(Flooded::CODEC);
                }
                None => break None,
            },
            () = alarm.flooded() => break Some(Flooded::FRAMES),
            () = streams.too_many.notified() => break Some(Flooded::GIVEN_UP),
            _ = phase.wait_for(|phase| phase.ends_what_began(began)), if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            }
            () = until(streams.side.ends()), if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            }
            () = tokio::time::sleep(idle), if !leaving => {
                if Arc::strong_count(&streams) == 1 && quiet_since.elapsed() >= idle {
                    leaving = true;
                    connection.graceful_shutdown();
                }
            }
            () = &mut dead => break None,
        }
    };
    if let Some(flooded) = flooded {
        streams.side.flooded(flooded);
        calm(&mut connection).await;
    }
    streams.ended()
}
