//! One attempt after the other, until an answer is for the caller: endpoint, connection, request, judgement.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use baremesh_model::authorization::Request;
use baremesh_model::http::{RequestHead, ResponseHead};
use baremesh_model::outlier::Outcome;
use baremesh_model::virtual_service::{
    CorsPolicy, EndpointChoice, RetryPolicy, RouteOptions, Sent, TryOutcome,
};

use super::dial::Target;
use super::line::{Freshness, Wanted};
use super::plan::Forward;
use super::{Caller, LetThrough};
use crate::proxy::error::ProxyError;
use crate::proxy::http::attempt::{Attempt, Download, Failure, Order, Verdict, attempt};
use crate::proxy::http::downstream::Exchange;
use crate::proxy::http::reply::Reply;
use crate::proxy::http::upload::Replay;
use crate::proxy::open::RequestWatch;
use crate::snapshot::cluster::Held;
use crate::snapshot::{Endpoint, Snapshot};
use crate::telemetry::request_record::RequestRecord;

/// How the caller sees an answer.
pub(super) struct ToCaller<'a> {
    pub(super) forward: &'a Forward<'a>,
    pub(super) options: &'a RouteOptions,
    /// The origin that a CORS policy lets read the answer.
    pub(super) origin: Option<(&'a CorsPolicy, Vec<u8>)>,
    /// The cookie by which its next request finds the same endpoint.
    pub(super) cookie: Option<String>,
    /// By what it was let through where it arrived at a gateway of this host.
    pub(super) through: Option<&'a LetThrough<'a>>,
}

/// Why an attempt came to nothing.
pub(super) enum Miss {
    /// No connection was had.
    NotConnected(ProxyError),
    /// A limit was reached.
    Overflow,
    /// The rules for tokens of a service of this host, its policies, or its limits on requests refuse it.
    Refused(Box<Reply>),
    /// There is no endpoint to try.
    NoEndpoint,
    /// It was sent, and this became of it.
    Failed(Failure),
}

/// What one attempt came to.
enum Tried {
    Answered,
    BrokeOff(Failure),
    /// The answer is one to try again on, and another try is allowed for as long as this is held.
    Again(Held),
    Missed(Miss),
}

/// How an attempt is tried again.
#[derive(Clone, Copy)]
struct Retries<'a> {
    policy: &'a RetryPolicy,
    /// There are tries left.
    may_retry: bool,
}

impl Retries<'_> {
    fn may_answer_be_retried(self, head: &ResponseHead) -> bool {
        self.may_retry && self.policy.retries_on(TryOutcome::Answered(head))
    }
}

impl Caller {
    /// Makes attempts until one is for the caller, and answers it with why if none is.
    pub(super) async fn try_until_answered(
        &self,
        (snapshot, mut watch): (&Arc<Snapshot>, RequestWatch),
        mut to_caller: ToCaller<'_>,
        (exchange, download): (&mut Exchange<'_>, &mut Download),
        record: &mut RequestRecord,
    ) {
        let default = RetryPolicy::default();
        let of_mesh = || snapshot.mesh.config.default_retries.as_ref();
        let policy = to_caller.options.retries.as_ref().or_else(of_mesh).unwrap_or(&default);
        let forward = to_caller.forward;
        let hash = self.hash(&mut to_caller, exchange);
        let to_caller = &to_caller;
        let choice = if hash.is_some() { EndpointChoice::Hashed } else { EndpointChoice::Free };
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut retrying = None;
        loop {
            record.attempts += 1;
            // A number may stand in a field.
            let count = record.attempts.to_string();
            let _ = exchange.head.headers.set("x-envoy-attempt-count", count.as_bytes());
            let exclude = if policy.ignores_previous_hosts(choice) { &*tried } else { &[] };
            let endpoint = match forward.cluster.pick(exclude, hash, Instant::now(), rand::random()) {
                // The same one again is better than none.
                Err(_) if !exclude.is_empty() => {
                    forward.cluster.pick(&[], hash, Instant::now(), rand::random())
                }
                picked => picked,
            };
            let may_retry = record.attempts <= policy.attempts;
            let outcome = match endpoint {
                Ok(endpoint) => {
                    tried.push(endpoint.address);
                    let retries = Retries { policy, may_retry };
                    // A service of this host may be sent less, or something else, than what another endpoint, or the next
                    // attempt, is to see.
                    let trusts = snapshot.mesh.config.trusted_proxies > 0;
                    let local = snapshot.here(endpoint);
                    let changes =
                        local.is_some_and(|local| trusts || local.tokens.is_some() || local.may_ask());
                    let before = changes.then(|| exchange.head.clone());
                    let (state, sending) = ((snapshot, &mut watch), (to_caller, retries, endpoint));
                    let ended = self.try_once(state, sending, (exchange, download), record).await;
                    if let Some(before) = before {
                        *exchange.head = before;
                    }
                    self.judge(forward, endpoint, &ended, record.status);
                    ended
                }
                Err(_) => Tried::Missed(Miss::NoEndpoint),
            };
            drop(retrying.take());
            let miss = match outcome {
                Tried::Answered => {
                    record.answered(download);
                    if record.attempts > 1 && !may_retry && is_retriable(policy, record.status) {
                        record.flags = "URX";
                    }
                    return;
                }
                Tried::BrokeOff(failure) => {
                    exchange.answer.abort();
                    return record.broke_off(failure, download);
                }
                Tried::Again(held) => {
                    retrying = Some(held);
                    None
                }
                Tried::Missed(miss) => Some(miss),
            };
            if let Some(miss) = miss {
                let again = may_retry
                    && worth_another(policy, &miss)
                    && exchange.upload.can_replay()
                    && !is_overdue(exchange, to_caller, record);
                match again.then(|| forward.cluster.retry()) {
                    Some(Ok(held)) => retrying = Some(held),
                    Some(Err(_)) | None => {
                        if let Miss::NotConnected(error) = &miss {
                            record.fault = Some(error.to_string());
                        }
                        return exchange.reply(&reply_to(&miss, record.attempts), record).await;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(policy.backoff(record.attempts, rand::random())) => {}
                () = exchange.gone() => return exchange.reply(&Reply::caller_gone(), record).await,
            }
        }
    }

    async fn try_once(
        &self,
        (snapshot, watch): (&Arc<Snapshot>, &mut RequestWatch),
        (to_caller, retries, endpoint): (&ToCaller<'_>, Retries<'_>, &Arc<Endpoint>),
        (exchange, download): (&mut Exchange<'_>, &mut Download),
        record: &mut RequestRecord,
    ) -> Tried {
        let forward = to_caller.forward;
        let cluster = &**forward.cluster;
        let _in_flight = endpoint.state.enter();
        let target = Target { snapshot, endpoint, identity: &forward.service.identity, cluster };
        record.peers.target = forward.service.party(endpoint);
        record.peers.upstream = Some(endpoint.address);
        // Before it is decided on: what policies see is what the program does.
        let remote_ip = self.introduce(&target, &mut exchange.head.headers);
        exchange.upload.hold_to(snapshot.here(endpoint).and_then(|local| local.tokens.as_ref()));
        let external = match self.ask(&target, (exchange, remote_ip), record).await {
            Ok(external) => external,
            Err(miss) => return Tried::Missed(miss),
        };
        let token = match self.admit(&target, (exchange.head, &external.by), remote_ip, record) {
            Ok(token) => token,
            Err(miss) => return Tried::Missed(miss),
        };
        let watched = self.watch(&target, snapshot);
        // What is tried again may have been let through by a state that is no longer in force.
        if let Some(watched) = &watched
            && watched.is_forbidden(
                snapshot,
                &Request { head: exchange.head, token: token.as_ref(), remote_ip, allowed_by: &external.by },
                &self.worker.shared.snapshot,
            )
        {
            return Tried::Missed(Miss::Failed(Failure::NoLongerAllowed));
        }
        let overall = to_caller.timeout(exchange);
        // A kept connection may have been closed by the endpoint while the request was on its way, and the peer of a shared one
        // may have said that it takes no more: the request is then sent anew.
        let mut freshness = Freshness::Any;
        loop {
            let asked = Wanted::by(exchange, forward, freshness);
            let line = tokio::select! {
                biased;
                line = self.line(&target, asked, record) => line,
                () = exchange.gone() => Err(Miss::Failed(Failure::CallerGone)),
            };
            let mut line = match line {
                Ok(line) => line,
                Err(miss) => return Tried::Missed(miss),
            };
            let started = Instant::now();
            let (mut status, mut held) = (0, None);
            download.begin();
            let mut judge = |head: &mut ResponseHead, replay: Replay| {
                status = head.status;
                let again = replay == Replay::Possible && retries.may_answer_be_retried(head);
                // Without a place for another try this answer is the caller's.
                held = again.then(|| cluster.retry().ok()).flatten();
                if held.is_some() {
                    return Verdict::Again;
                }
                external.mark(head);
                to_caller.finish(head, started.elapsed());
                Verdict::Relay
            };
            let since = counted_from(record, exchange.head);
            let Exchange { head, upload, answer } = &mut *exchange;
            let idle = cluster.limits().tcp_idle_timeout.unwrap_or(self.worker.shared.limits.idle_timeout);
            let per_try = retries.policy.per_try_timeout;
            let order = Order { head, per_try, overall, since, idle };
            let was_kept = line.was_kept();
            let asked = Request { head, token: token.as_ref(), remote_ip, allowed_by: &external.by };
            let in_force = &self.worker.shared.snapshot;
            let mut at_gateway = to_caller.through.map(|through| (through, watch.clone()));
            let closed = async {
                match &watched {
                    Some(watched) => watched.until_closed(watch, &asked, in_force).await,
                    None => std::future::pending().await,
                }
            };
            let shut = async {
                match &mut at_gateway {
                    Some((through, watch)) => {
                        watch.until_forbidden((through.delivered, &through.request), in_force).await
                    }
                    None => std::future::pending().await,
                }
            };
            let (ended, reason) = tokio::select! {
                biased;
                reason = shut => (None, Some(reason)),
                reason = closed => (None, Some(reason)),
                ended = attempt(line.leg(), order, upload, answer, download, &mut judge) => (Some(ended), None),
            };
            record.status = status;
            record.upstream_time = download.first_byte.map(|first| first.saturating_duration_since(started));
            let ended = match ended {
                Some(ended) => ended,
                None => {
                    record.fault = reason.as_ref().map(ToString::to_string);
                    let failure = match reason {
                        Some(ProxyError::NoLongerAllowed(_)) => Failure::NoLongerAllowed,
                        _ => Failure::UpstreamClosed,
                    };
                    // Once it was judged, the caller may have seen the answer's head.
                    if status == 0 { Attempt::Failed(failure) } else { Attempt::BrokeOff(failure) }
                }
            };
            let came_too_late = match ended {
                Attempt::Failed(Failure::UpstreamClosed) => was_kept && exchange.head.is_idempotent(),
                Attempt::Failed(Failure::RefusedStream) => line.retire_if_told_to(),
                _ => false,
            };
            if came_too_late && freshness == Freshness::Any && exchange.upload.can_replay() {
                freshness = Freshness::New;
                continue;
            }
            self.put_back(&target, line, download);
            return match ended {
                Attempt::Answered => Tried::Answered,
                Attempt::Again => match held {
                    Some(held) => Tried::Again(held),
                    None => Tried::Missed(Miss::Failed(Failure::UpstreamClosed)),
                },
                Attempt::BrokeOff(failure) => Tried::BrokeOff(failure),
                Attempt::Failed(failure) => Tried::Missed(Miss::Failed(failure)),
            };
        }
    }

    /// Remembers how an endpoint did.
    fn judge(&self, forward: &Forward<'_>, endpoint: &Endpoint, tried: &Tried, status: u16) {
        let outcome = match tried {
            Tried::Answered | Tried::Again(_) => Outcome::of_status(status),
            Tried::BrokeOff(failure) | Tried::Missed(Miss::Failed(failure)) if !failure.is_upstreams() => {
                return;
            }
            Tried::Missed(Miss::Overflow | Miss::NoEndpoint | Miss::Refused(_)) => {
                return;
            }
            Tried::Missed(Miss::NotConnected(error)) if !error.is_endpoints_own() => return,
            Tried::Missed(Miss::NotConnected(_)) => Outcome::LocalFailure,
            // Without a rule only one that cannot be reached is left out.
            Tried::BrokeOff(_) | Tried::Missed(_) if forward.cluster.policy.outlier.is_none() => return,
            Tried::BrokeOff(_) | Tried::Missed(_) => Outcome::LocalFailure,
        };
        self.worker.judge(forward.cluster, endpoint, outcome);
    }

    /// The hash that a rule's balancer goes by. A caller without the cookie that is hashed is given one.
    fn hash(&self, to_caller: &mut ToCaller<'_>, exchange: &Exchange<'_>) -> Option<u64> {
        let key = to_caller.forward.cluster.hash_key()?;
        let found = key.of_request(exchange.head, self.peers.client.ip());
        found.or_else(|| {
            let (hash, cookie) = key.generates()?.generate(rand::random());
            to_caller.cookie = Some(cookie);
            Some(hash)
        })
    }
}

impl ToCaller<'_> {
    /// The time for a request with all its attempts.
    fn timeout(&self, exchange: &Exchange<'_>) -> Option<Duration> {
        match self.forward.route {
            Some(route) => route.route.timeout(exchange.head),
            None => {
                exchange.head.is_grpc().then(|| baremesh_model::grpc::timeout_of(exchange.head)).flatten()
            }
        }
    }

    /// The answer's head as the caller is to see it.
    fn finish(&self, head: &mut ResponseHead, took: Duration) {
        let took = took.as_millis().to_string();
        // A number may stand in a field.
        let _ = head.headers.set("x-envoy-upstream-service-time", took.as_bytes());
        if let Some(cookie) = &self.cookie {
            // Its parts were checked where they were read.
            let _ = head.headers.append("set-cookie", cookie.as_bytes());
        }
        if let Some(rules) = &self.options.headers {
            rules.response.apply(&mut head.headers);
        }
        if let Some(to) = self.forward.to {
            to.headers.response.apply(&mut head.headers);
        }
        if let Some((cors, origin)) = &self.origin {
            cors.mark_answer(origin, &mut head.headers);
        }
    }
}

/// When the time for a request begins, if not at its end: the deadline of a gRPC call runs while it streams.
fn counted_from(record: &RequestRecord, head: &RequestHead) -> Option<Instant> {
    let has_deadline = head.is_grpc() && baremesh_model::grpc::timeout_of(head).is_some();
    has_deadline.then_some(record.peers.started)
}

/// Whether the time for a request with all its attempts is over.
fn is_overdue(exchange: &Exchange<'_>, to_caller: &ToCaller<'_>, record: &RequestRecord) -> bool {
    let since = counted_from(record, exchange.head).or(exchange.upload.whole_at());
    to_caller.timeout(exchange).zip(since).is_some_and(|(timeout, since)| since.elapsed() >= timeout)
}

fn worth_another(policy: &RetryPolicy, miss: &Miss) -> bool {
    let outcome = match miss {
        Miss::NotConnected(error) if error.is_endpoints_own() => TryOutcome::NotConnected,
        Miss::Failed(Failure::RefusedStream) => TryOutcome::RefusedStream,
        Miss::Failed(Failure::UpstreamClosed | Failure::UpstreamMalformed(_)) => {
            TryOutcome::Reset(Sent::Something)
        }
        Miss::Failed(Failure::PerTryTimeout) => TryOutcome::TimedOut,
        Miss::Overflow => TryOutcome::Overflow,
        // As the answer of another host's agent would be.
        Miss::Refused(reply) => {
            let mut head = ResponseHead::default();
            reply.head(&mut head, false);
            return policy.retries_on(TryOutcome::Answered(&head));
        }
        Miss::NotConnected(_)
        | Miss::NoEndpoint
        | Miss::Failed(
            Failure::Timeout
            | Failure::CallerStalled
            | Failure::CallerGone
            | Failure::CallerMalformed(_)
            | Failure::Idle
            | Failure::NoLongerAllowed,
        ) => return false,
    };
    policy.retries_on(outcome)
}

fn is_retriable(policy: &RetryPolicy, status: u16) -> bool {
    let head = ResponseHead { status, ..ResponseHead::default() };
    policy.retries_on(TryOutcome::Answered(&head))
}

/// What the caller is told where no attempt was for it.
fn reply_to(miss: &Miss, attempts: u32) -> Reply {
    let mut reply = match miss {
        Miss::NoEndpoint => Reply::no_healthy_upstream(),
        Miss::Overflow => Reply::overflow(),
        Miss::Refused(reply) => Reply::clone(reply),
        Miss::NotConnected(ProxyError::DeniedByPeer(_) | ProxyError::NotInSidecarIngress { .. }) => {
            Reply::denied()
        }
        Miss::NotConnected(_) => Reply::connect_failed(),
        Miss::Failed(failure) => Reply::to(*failure),
    };
    if attempts > 1 {
        reply.flags = match reply.flags {
            "UF" => "UF,URX",
            "UC" => "UC,URX",
            "UT" => "UT,URX",
            flags => flags,
        };
    }
    reply
}
