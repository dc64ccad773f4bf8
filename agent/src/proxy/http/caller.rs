//! The calling side of HTTP: what becomes of each request that a program of this host makes. It is routed, held to the
//! limits of whom it is for, sent, judged, sent again if that may help, and recorded.

/// What is to become of a request, decided before anything is done.
pub mod plan;
/// Reaching an endpoint.
mod dial;
/// The connection of an attempt.
mod line;
/// Attempts, until one is for the caller.
mod tries;
/// Copies for other services.
mod mirror;

pub use mirror::MAX_COPIES;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use baremesh_model::authorization::Request;
use baremesh_model::http::{PathNormalization, RequestHead};
use baremesh_model::identity::Identity;
use baremesh_model::name::Key;
use baremesh_model::token::Token;
use baremesh_model::virtual_service::{AbortStatus, CorsDecision, RouteOptions};

use self::plan::{Asked, Authority, Forward, Plan};
use super::attempt::Download;
use super::downstream::Exchange;
use super::grpc::MessageCount;
use super::reply::Reply;
use crate::proxy::Worker;
use crate::proxy::error::ProxyError;
use crate::proxy::flood::Ended;
use crate::proxy::open::{Delivered, RequestWatch};
use crate::snapshot::external::Way;
use crate::snapshot::{Cluster, Snapshot};
use crate::telemetry::Record;
use crate::telemetry::request_record::{LoggedFields, RequestRecord};
use crate::telemetry::requests::RequestProtocol;

/// The request's number by which logs and traces of several hosts come together (Envoy's name).
const REQUEST_ID: &str = "x-request-id";

/// A connection of a program of this host to a service.
pub struct Caller {
    /// The worker that serves it.
    pub worker: Arc<Worker>,
    /// Who calls.
    identity: Identity,
    /// The service of this host as which it calls; none for the host itself.
    registration: Option<Key>,
    /// The service and the port that were dialled.
    dialled: (Key, u16),
    authority: Authority,
    peers: Record,
}

/// A request that arrived at a gateway of this host, as its policies let it through.
pub struct LetThrough<'a> {
    /// The connection that it came on.
    pub delivered: &'a Delivered,
    /// As the policies saw it.
    pub request: Request<'a>,
}

impl Caller {
    /// A connection of somebody, by the identity and the service registered on this host, to a port of a service.
    pub fn new(
        worker: Arc<Worker>,
        (identity, registration): (Identity, Option<Key>),
        dialled: (Key, u16),
        peers: Record,
    ) -> Self {
        Self { worker, identity, registration, dialled, authority: Authority::Names, peers }
    }

    /// The registration as which it calls, by its index in a state.
    fn index(&self, snapshot: &Snapshot) -> Option<usize> {
        snapshot.registration(self.registration.as_ref())
    }

    /// The same, for requests whose authority says nothing of where they go: they are for what was dialled.
    pub fn to_dialled(self) -> Self {
        Self { authority: Authority::SaysNothing, ..self }
    }

    /// Whether its requests are checks of CUSTOM policies: nobody is asked about those, and nobody has copies of them.
    fn checks(&self) -> bool {
        self.authority == Authority::SaysNothing
    }

    /// The two ends of the connection.
    pub fn peers(&self) -> &Record {
        &self.peers
    }

    /// Carries a request to wherever its route says.
    pub async fn carry(&self, mut exchange: Exchange<'_>) -> Ended {
        let (mut watch, mut snapshot) = self.state_in_force();
        snapshot.mesh.config.path_normalization.apply(&mut exchange.head.target);
        let mut record = self.record(&mut exchange);
        let (random, mut began) = (rand::random(), None);
        loop {
            let state = (&snapshot, watch);
            let Some(unknown) = self.carry_by(state, &mut exchange, &mut record, random).await else { break };
            let began = *began.get_or_insert_with(Instant::now);
            if !Box::pin(self.has_endpoints(unknown, began, &mut exchange, &mut record)).await {
                break;
            }
            // Its path has its one form already.
            (watch, snapshot) = self.state_in_force();
        }
        let ended = record.ended();
        self.finish(record, &exchange);
        ended
    }

    /// The state in force, and what tells of the next one.
    pub(super) fn state_in_force(&self) -> (RequestWatch, Arc<Snapshot>) {
        // The watch first, so that no change is missed.
        let watch = RequestWatch::begin(&self.worker.shared.snapshot_changed);
        (watch, self.worker.shared.snapshot.load_full())
    }

    /// Carries a request as a state says. Where the endpoints that it is for have to be asked for first nothing is done, and the
    /// error says so.
    async fn carry_by(
        &self,
        (snapshot, watch): (&Arc<Snapshot>, RequestWatch),
        exchange: &mut Exchange<'_>,
        record: &mut RequestRecord,
        random: u64,
    ) -> Option<ProxyError> {
        let token = self.token_for_routes(snapshot, exchange.head);
        let (service, port) = (&self.dialled.0, self.dialled.1);
        let authority = self.authority;
        let ranges = &snapshot.mesh.config.virtual_ranges;
        let real_address = self.peers.destination.is_some_and(|address| !ranges.contains(address.ip()));
        let token = token.as_ref();
        let (identity, caller) = (&self.identity, self.index(snapshot));
        let asked = Asked { identity, caller, service, port, token, authority, real_address };
        let plan = plan::plan(snapshot, asked, exchange.head, random);
        self.follow((snapshot, watch), plan, (exchange, None), record).await
    }

    /// Does what was planned. `through` is there where the request arrived at a gateway of this host. Where the endpoints that it
    /// is for have to be asked for first nothing is done, and the error says so.
    #[must_use]
    pub(super) async fn follow(
        &self,
        (snapshot, watch): (&Arc<Snapshot>, RequestWatch),
        plan: Plan<'_>,
        (exchange, through): (&mut Exchange<'_>, Option<&LetThrough<'_>>),
        record: &mut RequestRecord,
    ) -> Option<ProxyError> {
        match plan {
            Plan::Answer(reply) => exchange.reply(&reply, record).await,
            Plan::Forward(forward) => {
                (record.peers.service_host, record.peers.external_namespace) = forward.service.noted();
                record.route = forward.route.and_then(|route| route.name()).map(Into::into);
                if let Err(unknown) = forward.service.call(self.worker.connect_timeout(forward.cluster)) {
                    return Some(unknown);
                }
                match self.asked_for(snapshot, &forward, exchange.head).await {
                    Ok(asked_for) => {
                        let cluster = asked_for.as_ref().unwrap_or(forward.cluster);
                        let forward = Forward { cluster, ..forward };
                        self.forward((snapshot, watch), (&forward, through), exchange, record).await;
                    }
                    Err(error) => {
                        record.fault = Some(error.to_string());
                        exchange.reply(&Reply::no_healthy_upstream(), record).await;
                    }
                }
            }
        }
        None
    }

    /// Waits for endpoints that a request is for. Where they do not come it is answered.
    pub(super) async fn has_endpoints(
        &self,
        unknown: ProxyError,
        began: Instant,
        exchange: &mut Exchange<'_>,
        record: &mut RequestRecord,
    ) -> bool {
        let told = tokio::select! {
            told = self.worker.shared.demand.wait(unknown, began) => told,
            () = exchange.gone() => {
                exchange.reply(&Reply::caller_gone(), record).await;
                return false;
            }
        };
        let Err(error) = told else { return true };
        record.fault = Some(error.to_string());
        let reply = match error {
            ProxyError::EndpointsUnknown { .. } => Reply::endpoints_unknown(),
            _ => Reply::overflow(),
        };
        exchange.reply(&reply, record).await;
        false
    }

    /// The endpoints of a request where its host lists none; nothing where it does.
    async fn asked_for(
        &self,
        snapshot: &Snapshot,
        forward: &Forward<'_>,
        head: &RequestHead,
    ) -> Result<Option<Arc<Cluster>>, ProxyError> {
        let (service, cluster) = (&**forward.service, forward.cluster);
        match service.way(forward.port) {
            Way::Endpoints => Ok(None),
            Way::OriginalDestination => {
                let cluster =
                    self.worker.where_it_was_going(snapshot, (service, cluster), self.peers.destination)?;
                Ok(Some(cluster))
            }
            Way::AskedName(pattern) => {
                // A route names the host itself; without one the request does.
                let named = forward.to.map(|to| &*to.destination.host);
                let name = named.filter(|host| pattern.matches_text(host)).unwrap_or(head.host());
                let at = (service, cluster, forward.port);
                let asked = self.worker.at_asked_name(snapshot, at, (&self.identity, pattern, Some(name)));
                Box::pin(asked).await.map(Some)
            }
        }
    }

    /// What the request's token says to routes, where any asks: by the rules of the workload that calls, as a gateway goes by
    /// its own. One that is not good says nothing; whether the request is taken is the called side's to decide.
    fn token_for_routes(&self, snapshot: &Snapshot, head: &RequestHead) -> Option<Token> {
        if !snapshot.routes_ask_for_claims {
            return None;
        }
        let source = &snapshot.sources[self.index(snapshot)?];
        source.tokens.as_ref()?.peek(head, SystemTime::now())
    }

    /// Answers a request that is not carried.
    pub async fn refuse(&self, mut exchange: Exchange<'_>, reply: Reply) {
        let mut record = self.record(&mut exchange);
        exchange.reply(&reply, &mut record).await;
        self.finish(record, &exchange);
    }

    fn record(&self, exchange: &mut Exchange<'_>) -> RequestRecord {
        let head = &mut *exchange.head;
        if !head.headers.contains(REQUEST_ID) {
            // A UUID has no character that a field may not have.
            let _ = head.headers.set(REQUEST_ID, uuid(rand::random()).as_bytes());
        }
        let mut record = RequestRecord::new(self.peers.again(), head);
        record.fields = LoggedFields::of(head);
        if record.protocol == RequestProtocol::Grpc {
            exchange.upload.messages = Some(MessageCount::default());
        }
        record
    }

    fn finish(&self, mut record: RequestRecord, exchange: &Exchange<'_>) {
        record.uploaded(&exchange.upload);
        self.worker.telemetry.finish_request(&record);
    }

    /// What a route does before anything is sent, and then the sending.
    async fn forward(
        &self,
        (snapshot, watch): (&Arc<Snapshot>, RequestWatch),
        (forward, through): (&Forward<'_>, Option<&LetThrough<'_>>),
        exchange: &mut Exchange<'_>,
        record: &mut RequestRecord,
    ) {
        let none = RouteOptions::default();
        let options = forward.route.map_or(&none, |route| &route.route.options);
        let mut origin = None;
        if let Some(cors) = &options.cors {
            match cors.decide(exchange.head) {
                CorsDecision::None => {}
                CorsDecision::Actual(asked) => origin = Some((cors, asked.to_vec())),
                CorsDecision::Preflight(asked) => {
                    let (asked, mut reply) = (asked.to_vec(), Reply::new(200, "", "-", "cors_response"));
                    cors.preflight_fields(&asked, &mut reply.headers);
                    return exchange.reply(&reply, record).await;
                }
                CorsDecision::Ignored => {
                    return exchange.reply(&Reply::new(200, "", "-", "cors_response"), record).await;
                }
            }
        }
        if let Some(fault) = &options.fault {
            let decision = fault.decide(rand::random(), rand::random());
            if let Some(delay) = decision.delay {
                record.flags = "DI";
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = exchange.gone() => return exchange.reply(&Reply::caller_gone(), record).await,
                }
            }
            if let Some(status) = decision.abort {
                return exchange.reply(&aborted(status), record).await;
            }
        }
        let _request = match forward.cluster.request() {
            Ok(held) => held,
            Err(_) => return exchange.reply(&Reply::overflow(), record).await,
        };
        let to = (&forward.service.key, forward.service.ports[forward.port].port);
        let from = (&self.identity, self.peers.client.ip());
        let limited = &mut record.limited;
        if let Err(refusal) = snapshot.rate_limits.on_sending(to, exchange.head, from, limited) {
            return exchange.reply(&Reply::rate_limited(refusal), record).await;
        }
        let mut download = Download::default();
        if record.protocol == RequestProtocol::Grpc {
            download.messages = Some(MessageCount::default());
        }
        prepare(exchange.head, forward, snapshot.mesh.config.path_normalization);
        let copies = self.copies(options, exchange.head);
        // A request with a body is copied when all of it has come.
        let is_whole = exchange.upload.is_whole();
        if is_whole {
            self.send_copies(copies.as_ref(), exchange);
        }
        let to_caller = tries::ToCaller { forward, options, origin, cookie: None, through };
        let state = (snapshot, watch);
        self.try_until_answered(state, to_caller, (exchange, &mut download), record).await;
        if !is_whole {
            self.send_copies(copies.as_ref(), exchange);
        }
    }
}

/// What the called side sees: path, authority and fields as the route says. What a rewrite makes of a path has its one form as
/// well: no piece of it becomes a way past policies.
pub fn prepare(head: &mut RequestHead, forward: &Forward<'_>, normalization: PathNormalization) {
    let (Some(route), Some(to)) = (forward.route, forward.to) else { return };
    let authority = route.route.authority(to).map(str::to_owned);
    if let Some(path) = route.route.options.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref()) {
        let before = head.target.clone();
        path.apply(head, route.path);
        normalization.apply(&mut head.target);
        // What a request asked for stays visible to who it is rewritten for (Envoy's name).
        let _ = head.headers.set("x-envoy-original-path", before.as_bytes());
    }
    if let Some(rules) = &route.route.options.headers {
        rules.request.apply(&mut head.headers);
    }
    to.headers.request.apply(&mut head.headers);
    if let Some(authority) = authority {
        head.authority = authority;
    }
}

/// The answer of a fault.
pub fn aborted(status: AbortStatus) -> Reply {
    let (status, grpc_status) = match status {
        AbortStatus::Http(status) => (status, None),
        AbortStatus::Grpc(status) => (200, Some(u16::from(status.code()))),
    };
    Reply { grpc_status, ..Reply::new(status, "fault filter abort", "FI", "fault_filter_abort") }
}

/// A random UUID (RFC 9562, section 5.4).
fn uuid(random: u128) -> String {
    let bits = random & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let part = |shift: u32, digits: usize| {
        let mask = (1_u128 << (4 * digits)) - 1;
        format!("{:0digits$x}", bits >> shift & mask)
    };
    [part(96, 8), part(80, 4), part(64, 4), part(48, 4), part(0, 12)].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_random_uuids() {
        assert_eq!(uuid(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
