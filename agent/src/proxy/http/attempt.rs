//! One attempt: a request goes out on one connection, its body behind it as it comes, and the answer comes back. The
//! two directions go on at once, since an answer may come before the request is whole.

use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use baremesh_model::grpc::GrpcStatus;
use baremesh_model::http::{Headers, RequestHead, ResponseHead};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use tokio::sync::Notify;

use super::body::{Answer, BodyError, Received, Sink, Source, framing_of};
use super::grpc::MessageCount;
use super::h1::{Asked, Frame, Framing, Hop, HttpLimits, MAX_INTERIM, Persistence};
use super::h2 as http2;
use super::upload::{Progress, Replay, Upload};
use super::upstream::Connection;
use crate::proxy::relay::{is_not_taken_up, until_idle};

/// Where an attempt goes.
pub enum Leg<'a> {
    /// A connection of HTTP/1.
    Http1(&'a mut Connection),
    /// A connection of HTTP/2.
    Http2(SendRequest<Bytes>),
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Attempt {
    /// The answer has gone to the caller whole.
    Answered,
    /// The answer is not for the caller: another attempt is to be made.
    Again,
    /// Nothing has gone to the caller.
    Failed(Failure),
    /// The answer broke off.
    BrokeOff(Failure),
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The upstream closed or reset; whether any byte of an answer had come.
    UpstreamClosed,
    /// The upstream never saw it: it refused the stream, or said before that it takes no more (RFC 9113, section 8.7).
    RefusedStream,
    /// The upstream answered what is no HTTP.
    UpstreamMalformed(&'static str),
    /// The time for the request with all its attempts ran out.
    Timeout,
    /// The time for one attempt ran out.
    PerTryTimeout,
    /// The caller's body stood still for too long.
    CallerStalled,
    /// Nothing moved in either direction for too long.
    Idle,
    /// The caller went away.
    CallerGone,
    /// The caller's body is malformed.
    CallerMalformed(&'static str),
    /// A policy that changed meanwhile no longer allows it.
    NoLongerAllowed,
}

impl Failure {
    /// Whether the upstream is to blame.
    pub fn is_upstreams(self) -> bool {
        match self {
            Self::UpstreamClosed
            | Self::RefusedStream
            | Self::UpstreamMalformed(_)
            | Self::Timeout
            | Self::PerTryTimeout => true,
            Self::CallerStalled
            | Self::Idle
            | Self::CallerGone
            | Self::CallerMalformed(_)
            | Self::NoLongerAllowed => false,
        }
    }
}

/// What is to become of an answer's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the caller.
    Relay,
    /// Another attempt is made.
    Again,
}

/// What came back.
#[derive(Debug, Default)]
pub struct Download {
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// gRPC messages among them, where it is gRPC.
    pub messages: Option<MessageCount>,
    /// The gRPC status of the trailers.
    pub grpc_status: Option<u16>,
    /// When the first byte of the answer was there.
    pub first_byte: Option<Instant>,
    /// The whole of the request was sent and the whole of the answer read: the connection can be used again.
    pub is_clean: bool,
}

impl Download {
    /// Nothing has come back of the next attempt.
    pub fn begin(&mut self) {
        *self = Self { messages: self.messages.map(|_| MessageCount::default()), ..Self::default() };
    }
}

/// The upstream's side of an answer.
enum Incoming<'a> {
    /// What was asked, and whether the upstream closes the connection after its answer.
    Http1(&'a mut super::h1::Reader, Asked, &'a mut bool),
    /// What was asked comes last.
    Http2(Option<ResponseFuture>, Option<Received>, Asked),
}

impl Incoming<'_> {
    /// The next head, interim ones included.
    async fn head(&mut self, head: &mut ResponseHead) -> Result<Framing, Failure> {
        match self {
            Self::Http1(reader, asked, closes) => {
                let hop = reader.response(head, *asked).await.map_err(BodyError::from)?;
                **closes = hop.persistence == Persistence::Close;
                Ok(hop.framing)
            }
            Self::Http2(future, received, asked) => {
                let Some(waiting) = future else { return Err(Failure::UpstreamClosed) };
                let next = poll_fn(|cx| match waiting.poll_informational(cx) {
                    Poll::Ready(Some(interim)) => Poll::Ready(interim.map(Err)),
                    _ => std::pin::Pin::new(&mut *waiting).poll(cx).map(|final_one| final_one.map(Ok)),
                });
                let malformed = Failure::UpstreamMalformed;
                match next.await.map_err(|error| refusal(&error))? {
                    Err(interim) => {
                        let (parts, ()) = interim.into_parts();
                        http2::read_response(&parts, head, &HttpLimits::default()).map_err(malformed)?;
                        match head.status {
                            // There is no such thing in HTTP/2 (RFC 9113, section 8.6).
                            101 => Err(malformed("http2.switching_protocols")),
                            _ => Ok(Framing::None),
                        }
                    }
                    Ok(response) => {
                        *future = None;
                        let (parts, body) = response.into_parts();
                        http2::read_response(&parts, head, &HttpLimits::default()).map_err(malformed)?;
                        let body = received.insert(Received::new(body));
                        Ok(match (framing_of(&head.headers, body), head.status) {
                            // As RFC 9112, section 6.3, has it: these have none, whatever else they say.
                            (_, 204 | 304) => Framing::None,
                            _ if *asked == Asked::Head => Framing::None,
                            (Framing::None, _) => Framing::Length(0),
                            (framing, _) => framing,
                        })
                    }
                }
            }
        }
    }

    fn body(&mut self) -> Option<Source<'_>> {
        match self {
            Self::Http1(reader, ..) => Some(Source::Http1(reader)),
            Self::Http2(_, received, _) => received.as_mut().map(Source::Http2),
        }
    }
}

/// Why no answer came on a stream.
fn refusal(error: &h2::Error) -> Failure {
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => Failure::RefusedStream,
        _ if is_not_taken_up(error) => Failure::RefusedStream,
        Some(h2::Reason::PROTOCOL_ERROR) if error.is_library() => {
            Failure::UpstreamMalformed("http2.protocol_error")
        }
        _ => Failure::UpstreamClosed,
    }
}

/// Whether a tunnel's stream was reset with REFUSED_STREAM.
fn is_refusal(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<h2::Error>());
    inner.is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

impl From<BodyError> for Failure {
    fn from(error: BodyError) -> Self {
        match error {
            // The peer's agent says so of a request that it could not hand to its program.
            BodyError::Broken(error) if is_refusal(&error) => Self::RefusedStream,
            BodyError::Broken(_) => Self::UpstreamClosed,
            BodyError::Malformed(why) => Self::UpstreamMalformed(why),
        }
    }
}

/// What an attempt is made with.
pub struct Order<'a> {
    /// The head as the upstream is to see it.
    pub head: &'a RequestHead,
    /// How long this attempt may take, from when all of the request has come.
    pub per_try: Option<Duration>,
    /// How long the request may take with all its attempts, from `since` on.
    pub overall: Option<Duration>,
    /// None: from when all of the request has come.
    pub since: Option<Instant>,
    /// How long an upgraded connection may be quiet both ways.
    pub idle: Duration,
}

impl<'a> Order<'a> {
    /// A request that nothing but its upstream limits.
    pub fn unlimited(head: &'a RequestHead, idle: Duration) -> Self {
        Self { head, per_try: None, overall: None, since: None, idle }
    }
}

/// Makes one attempt. `judge` sees the final answer's head before the caller does, may change it, and decides whether the
/// caller sees it.
pub async fn attempt(
    leg: Leg<'_>,
    order: Order<'_>,
    upload: &mut Upload<'_>,
    answer: &mut Answer<'_>,
    download: &mut Download,
    judge: &mut (dyn FnMut(&mut ResponseHead, Replay) -> Verdict + Send),
) -> Attempt {
    let Order { head, per_try, overall, since, idle } = order;
    let (hop, whole_at) = (upload.hop, since.or(upload.whole_at()));
    let (mut stream, mut incoming, mut sink);
    match leg {
        Leg::Http1(connection) => {
            connection.served += 1;
            // What follows an upgrade is no message's body.
            let framing = if hop.upgrade { Framing::Upgraded } else { hop.framing };
            if connection.writer.request(head, &Hop { framing, ..hop.to_upstream() }).is_err() {
                return Attempt::Failed(Failure::CallerMalformed("http1.invalid_request"));
            }
            sink = Sink::Http1(&mut connection.writer);
            incoming = Incoming::Http1(&mut connection.reader, Asked::by(head, &hop), &mut connection.closes);
        }
        Leg::Http2(sender) => {
            let request = match http2::request(head) {
                Ok(request) => request,
                Err(why) => return Attempt::Failed(Failure::CallerMalformed(why)),
            };
            let ready = tokio::select! {
                biased;
                ready = sender.ready() => ready,
                () = upload.gone() => return Attempt::Failed(Failure::CallerGone),
                () = answer.gone() => return Attempt::Failed(Failure::CallerGone),
            };
            let mut sender = match ready {
                Ok(sender) => sender,
                Err(error) => return Attempt::Failed(refusal(&error)),
            };
            let is_over = upload.is_bare();
            match sender.send_request(request, is_over) {
                Ok((future, send)) => {
                    stream = send;
                    sink = if is_over { Sink::Over } else { Sink::Http2(&mut stream) };
                    incoming = Incoming::Http2(Some(future), None, Asked::by(head, &hop));
                }
                Err(error) => return Attempt::Failed(refusal(&error)),
            }
        }
    }
    let progress = Progress::of(upload);
    let stall = upload.stall(head.is_grpc());
    let outcome = {
        let mut pump = pin!(upload.pump(&mut sink, &progress));
        let mut timeout = pin!(time_out(whole_at, (per_try, overall), &progress.whole));
        let mut stalls = pin!(progress.stalls(stall));
        // A future that has ended is not asked again.
        let (mut is_timed, mut is_pumping, mut interim) = (true, true, 0);
        let mut response = ResponseHead::default();
        let framing = loop {
            let next = tokio::select! {
                biased;
                next = incoming.head(&mut response) => next,
                failure = &mut pump, if is_pumping => match failure {
                    // A peer that answers early and closes is heard out first.
                    Failure::UpstreamClosed => {
                        is_pumping = false;
                        continue;
                    }
                    failure => Err(failure),
                },
                failure = &mut timeout => Err(failure),
                failure = &mut stalls => Err(failure),
                () = answer.gone() => Err(Failure::CallerGone),
            };
            download.first_byte.get_or_insert_with(Instant::now);
            match next {
                Ok(_) if (100..200).contains(&response.status) && response.status != 101 => {
                    interim += 1;
                    if interim > MAX_INTERIM {
                        return Attempt::Failed(Failure::UpstreamMalformed("too_many_interim_answers"));
                    }
                    if answer.interim(&response).await.is_err() {
                        return Attempt::Failed(Failure::CallerGone);
                    }
                }
                Ok(framing) => break framing,
                Err(failure) => return Attempt::Failed(failure),
            }
        };
        if judge(&mut response, progress.replay()) == Verdict::Again {
            return Attempt::Again;
        }
        progress.moved();
        progress.is_answered.store(true, Ordering::Relaxed);
        if answer.head(&response, framing).is_err() {
            return Attempt::BrokeOff(Failure::CallerGone);
        }
        // Another protocol has no answer that could be late.
        if framing == Framing::Upgraded {
            is_timed = false;
            progress.switched.notify_one();
        }
        download.grpc_status = grpc_status(&response.headers);
        let relayed = async {
            relay(&mut incoming, answer, (framing, &progress), download).await?;
            // Halves end one by one, and the called side's may be the first.
            if framing == Framing::Upgraded {
                progress.said_all.notified().await;
            }
            Ok(())
        };
        let mut relayed = pin!(relayed);
        tokio::select! {
            biased;
            ended = &mut relayed => ended,
            failure = &mut pump, if is_pumping => match failure {
                // What is left of the answer may still come.
                Failure::UpstreamClosed => tokio::select! {
                    ended = &mut relayed => ended,
                    failure = &mut timeout, if is_timed => Err(failure),
                    failure = &mut stalls => Err(failure),
                },
                failure => Err(failure),
            },
            failure = &mut timeout, if is_timed => Err(failure),
            failure = &mut stalls, if framing != Framing::Upgraded => Err(failure),
            () = until_idle(&progress.meter, idle), if framing == Framing::Upgraded => Err(Failure::Idle),
        }
    };
    match outcome {
        Ok(()) => {
            download.is_clean = progress.is_sent.load(Ordering::Relaxed);
            Attempt::Answered
        }
        Err(failure) => Attempt::BrokeOff(failure),
    }
}

/// Carries the answer's body to the caller.
async fn relay(
    incoming: &mut Incoming<'_>,
    answer: &mut Answer<'_>,
    (framing, progress): (Framing, &Progress),
    download: &mut Download,
) -> Result<(), Failure> {
    let gone = |_: std::io::Error| Failure::CallerGone;
    let Some(mut body) = incoming.body() else { return Ok(()) };
    let mut sink = answer.body();
    if matches!(framing, Framing::None | Framing::Length(0)) {
        return sink.finish(None).await.map_err(gone);
    }
    loop {
        let next = {
            let mut frame = pin!(body.frame());
            // What is there already leaves in one piece with the head.
            match poll_fn(|cx| Poll::Ready(frame.as_mut().poll(cx))).await {
                Poll::Ready(next) => next,
                Poll::Pending => {
                    sink.flush().await.map_err(gone)?;
                    tokio::select! {
                        biased;
                        next = frame => next,
                        () = sink.gone() => return Err(Failure::CallerGone),
                    }
                }
            }
        };
        progress.moved();
        match next? {
            Some(Frame::Data(data)) => {
                download.bytes += data.len() as u64;
                progress.meter.answered(data.len());
                if let Some(messages) = &mut download.messages {
                    messages.count(&data);
                }
                sink.data(data).await.map_err(gone)?;
            }
            Some(Frame::Trailers(trailers)) => {
                download.grpc_status = grpc_status(&trailers).or(download.grpc_status);
                return sink.finish(Some(&trailers)).await.map_err(gone);
            }
            None => {
                sink.finish(None).await.map_err(gone)?;
                if framing == Framing::Upgraded {
                    sink.shutdown();
                }
                return Ok(());
            }
        }
    }
}

fn grpc_status(headers: &Headers) -> Option<u16> {
    GrpcStatus::of(headers).map(|status| u16::from(status.code()))
}

/// Ends when time has run out, with which.
async fn time_out(
    whole_at: Option<Instant>,
    (per_try, overall): (Option<Duration>, Option<Duration>),
    whole: &Notify,
) -> Failure {
    if per_try.is_none() && overall.is_none() {
        return pending().await;
    }
    let since = match whole_at {
        Some(at) => at,
        None => {
            whole.notified().await;
            Instant::now()
        }
    };
    let now = Instant::now();
    let end = overall.map(|overall| since + overall);
    let end_of_try = per_try.map(|per_try| now + per_try);
    let (at, failure) = match (end, end_of_try) {
        (Some(end), Some(of_try)) if of_try < end => (of_try, Failure::PerTryTimeout),
        (Some(end), _) => (end, Failure::Timeout),
        (None, of_try) => (of_try.unwrap_or(now), Failure::PerTryTimeout),
    };
    tokio::time::sleep_until(at.into()).await;
    failure
}
