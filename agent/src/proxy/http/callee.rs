//! The called side of HTTP: requests that came through a tunnel, in plaintext where that is taken, or from a program of
//! this host that dialled the service's own address, for a service of this host. Each connection has one connection to the program behind it; what the program is told of the caller is
//! what the handshake proved, or within a host the kernel.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::bytes::BytesMut;
use baremesh_model::authorization::Request;
use baremesh_model::http::ResponseHead;
use baremesh_model::token::Token;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::attempt::{Attempt, Download, Failure, Leg, Order, Verdict, attempt};
use super::authentication::authenticate;
use super::body::Answer;
use super::bytes::{self, ByteReader, ByteWriter, Joined};
use super::downstream::{self, Exchange, Side};
use super::external::Admitted;
use super::forwarded_cert::{Proved, introduce};
use super::forwarded_for;
use super::gateway::AtGateway;
use super::grpc::MessageCount;
use super::reply::Reply;
use super::upload::{Replay, Upload};
use super::upstream::{Connection, Lent, ShareError, Terms, UpstreamKey, Upstreams, Via};
use crate::proxy::error::ProxyError;
use crate::proxy::flood::Ended;
use crate::proxy::open::{Delivered, RequestWatch};
use crate::proxy::{Entered, Worker};
use crate::snapshot::cluster::Held;
use crate::snapshot::endpoint::InFlight;
use crate::snapshot::{LocalEndpoint, Snapshot};
use crate::telemetry::Record;
use crate::telemetry::request_record::{LoggedFields, RequestRecord};
use crate::telemetry::requests::RequestProtocol;

/// How long a request that is under way may go on when a certificate of its tunnel has ended.
const LAST_REQUEST: Duration = Duration::from_secs(600);
/// How long a connection that is no longer allowed stands on, so that its requests are told so before it is reset.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A connection that this host's policies let through to a program that speaks HTTP.
pub struct Arrived {
    /// What the policies decided on.
    pub delivered: Delivered,
    /// The state that they decided by.
    pub decided_by: Arc<Snapshot>,
    /// The program's side; none at a gateway.
    pub program: Option<TcpStream>,
    /// Counts against the limit on connections.
    pub entered: Option<Entered>,
    /// Counts where it was sent to, as far as that is known here.
    pub counts: Counts,
    /// The tunnel that it came in, if it did.
    pub tunnel: Option<Through>,
}

/// What a connection counts in: at its endpoint, and against the limit of a rule.
pub type Counts = (Option<InFlight>, Option<Held>);

/// What a connection has of the tunnel that it came in.
#[derive(Debug, Clone)]
pub struct Through {
    /// When the first of the tunnel's certificates ends: no request begins after it.
    pub ends: Instant,
    /// The SHA-256 of the certificate that the caller showed, in hexadecimal.
    pub fingerprint: Arc<str>,
}

/// Carries the requests of a connection until it ends, or is no longer allowed. Given up is one that its peer broke off
/// before any request was served.
pub async fn serve(
    worker: Arc<Worker>,
    arrived: Arrived,
    (reader, writer): (ByteReader, ByteWriter),
    peers: Record,
) -> Ended {
    let Arrived { delivered, decided_by, program, entered: _entered, counts: _counts, tunnel } = arrived;
    let entry = worker.open.enter(None, Some(delivered.clone()));
    entry.judge_again(&decided_by, &worker.shared.snapshot);
    let last = tunnel.as_ref().map(|tunnel| tunnel.ends + LAST_REQUEST);
    let gateway = delivered.local.gateway.clone();
    let callee = Callee::new(Arc::clone(&worker), (delivered, tunnel), (peers, program));
    let side = match gateway {
        Some(gateway) => Side::Gateway(Box::new(AtGateway::new(callee, &gateway))),
        None => Side::Callee(Box::new(callee)),
    };
    let closed = async {
        if let ProxyError::NoLongerAllowed(_) = entry.until_closed().await {
            tokio::time::sleep(LAST_WORDS).await;
        }
    };
    tokio::select! {
        biased;
        // Both sides are reset: nobody takes what has come for all there is.
        () = closed => Ended::Normally,
        ended = downstream::serve(Arc::new(side), reader, writer) => ended,
        () = downstream::until(last) => Ended::Normally,
    }
}

/// Who asks for something, as far as its request says so and is believed.
pub(super) struct Asker {
    /// What its token says.
    pub(super) token: Option<Token>,
    /// Where the request comes from.
    pub(super) remote_ip: IpAddr,
    /// What the providers of CUSTOM policies said.
    pub(super) external: Admitted,
}

/// A connection for a service of this host.
pub struct Callee {
    /// The worker that serves it.
    pub worker: Arc<Worker>,
    /// What policies decided on.
    pub(super) delivered: Delivered,
    tunnel: Option<Through>,
    peers: Record,
    /// The program's side over HTTP/1 and where it is, while it stands and no request is on it.
    program: Mutex<Option<(SocketAddr, Connection)>>,
    /// The program's side over HTTP/2.
    shared: Upstreams,
}

impl Callee {
    /// A connection of `source`, whose policies let it through, and the program's side of it.
    fn new(
        worker: Arc<Worker>,
        (delivered, tunnel): (Delivered, Option<Through>),
        (peers, program): (Record, Option<TcpStream>),
    ) -> Self {
        let program = program.map(|program| {
            let (reader, writer) = bytes::of_socket(program);
            (delivered.local.deliver, Connection::new(reader, writer, (None, None)))
        });
        Self { worker, delivered, tunnel, peers, program: Mutex::new(program), shared: Upstreams::default() }
    }

    /// From when on it takes no further requests.
    pub fn ends(&self) -> Option<Instant> {
        self.tunnel.as_ref().map(|tunnel| tunnel.ends)
    }

    /// The two ends of the connection.
    pub fn peers(&self) -> &Record {
        &self.peers
    }

    /// What stands before a request is carried on: who sends it is told, and policies, tokens and limits decide. One that is
    /// refused is answered and recorded here.
    pub(super) async fn arrive(
        &self,
        exchange: &mut Exchange<'_>,
    ) -> Result<(Arc<LocalEndpoint>, Asker, RequestRecord), Ended> {
        let snapshot = self.worker.shared.snapshot.load_full();
        snapshot.mesh.config.path_normalization.apply(&mut exchange.head.target);
        let certificate = self.tunnel.as_ref().map(|tunnel| &*tunnel.fingerprint);
        let proved = self.delivered.source.as_ref().map(|identity| Proved { identity, certificate });
        // Before it is decided on: what policies see is what the program does.
        let headers = &mut exchange.head.headers;
        introduce(headers, proved, &self.delivered.local.identity);
        let trusted = snapshot.mesh.config.trusted_proxies;
        let remote_ip = forwarded_for::tell(headers, trusted, self.delivered.source_ip);
        let mut record = self.record(exchange);
        let rules = snapshot.advertised(self.delivered.local.advertised).and_then(|now| now.tokens.as_ref());
        exchange.upload.hold_to(rules);
        match self.admit(&snapshot, exchange, remote_ip, &mut record).await {
            Ok((local, token, external)) => Ok((local, Asker { token, remote_ip, external }, record)),
            Err(reply) => {
                exchange.reply(&reply, &mut record).await;
                let ended = record.ended();
                self.finish(record, &exchange.upload);
                Err(ended)
            }
        }
    }

    /// Carries a request to the program.
    pub async fn carry(&self, mut exchange: Exchange<'_>) -> Ended {
        let mut watch = RequestWatch::begin(&self.worker.shared.snapshot_changed);
        let (local, asker, mut record) = match self.arrive(&mut exchange).await {
            Ok(arrived) => arrived,
            Err(ended) => return ended,
        };
        let mut download = Download::default();
        if record.protocol == RequestProtocol::Grpc {
            exchange.upload.messages = Some(MessageCount::default());
            download.messages = Some(MessageCount::default());
        }
        let ended =
            self.deliver(&local, &mut exchange, &mut record, (&mut download, &mut watch, &asker)).await;
        record.upstream_time = download.first_byte.map(|first| first.duration_since(record.peers.started));
        match ended {
            Ok(Attempt::Answered | Attempt::Again) => record.answered(&download),
            Ok(Attempt::Failed(Failure::RefusedStream)) if self.tunnel.is_some() => {
                record.replied(&Reply::upstream_closed());
                exchange.answer.refuse();
            }
            Ok(Attempt::Failed(failure)) => exchange.reply(&Reply::to(failure), &mut record).await,
            Ok(Attempt::BrokeOff(failure)) => {
                exchange.answer.abort();
                record.broke_off(failure, &download);
            }
            Err(error) => {
                record.fault = Some(error.to_string());
                let reply = Reply::connect_failed();
                if self.tunnel.is_some() {
                    record.replied(&reply);
                    exchange.answer.refuse();
                } else {
                    exchange.reply(&reply, &mut record).await;
                }
            }
        }
        let ended = record.ended();
        self.finish(record, &exchange.upload);
        ended
    }

    /// Answers a request that is not carried.
    pub async fn refuse(&self, mut exchange: Exchange<'_>, reply: Reply) {
        let mut record = self.record(&exchange);
        exchange.reply(&reply, &mut record).await;
        self.finish(record, &exchange.upload);
    }

    /// Whether the providers of CUSTOM policies allow the request, its token is good, the policies in force allow it, and the
    /// limits have room for it; if not, what its caller is told.
    async fn admit(
        &self,
        snapshot: &Snapshot,
        exchange: &mut Exchange<'_>,
        remote_ip: IpAddr,
        record: &mut RequestRecord,
    ) -> Result<(Arc<LocalEndpoint>, Option<Token>, Admitted), Box<Reply>> {
        // The connection is about to end, and takes nothing until then.
        let served = self.delivered.still_served(snapshot);
        let local = served.map_err(|reason| {
            record.fault = Some(reason);
            Box::new(Reply::denied())
        })?;
        let from = self.delivered.from();
        let external = match local.may_ask() {
            true => self.worker.ask_about_request(local, (from.0, remote_ip), exchange, record).await?,
            false => Admitted::default(),
        };
        let head = &mut *exchange.head;
        let token = authenticate(local, head, record)?;
        let asked = Request { head, token: token.as_ref(), remote_ip, allowed_by: &external.by };
        self.worker.authorize_request(local, (from, &asked), &mut record.peers)?;
        let counted = snapshot.rate_limits.on_arrival(
            local,
            (head, token.as_ref()),
            (from.0, remote_ip),
            &mut record.limited,
        );
        counted.map_err(|refusal| Box::new(Reply::rate_limited(refusal)))?;
        Ok((Arc::clone(local), token, external))
    }

    fn record(&self, exchange: &Exchange<'_>) -> RequestRecord {
        let mut record = RequestRecord::new(self.peers.again(), exchange.head);
        record.fields = LoggedFields::of(exchange.head);
        record
    }

    pub(super) fn finish(&self, mut record: RequestRecord, upload: &Upload<'_>) {
        record.uploaded(upload);
        self.worker.telemetry.finish_request(&record);
    }

    /// Sends a request to where the service is delivered by the state that it was admitted by.
    async fn deliver(
        &self,
        local: &LocalEndpoint,
        exchange: &mut Exchange<'_>,
        record: &mut RequestRecord,
        (download, watch, asker): (&mut Download, &mut RequestWatch, &Asker),
    ) -> Result<Attempt, ProxyError> {
        record.attempts = 1;
        record.peers.upstream = Some(local.deliver);
        let idle = self.worker.shared.limits.idle_timeout;
        if exchange.answer.is_http2() {
            return self.deliver_over_http2(local, exchange, record, (download, watch, asker)).await;
        }
        let mut program = self.program.lock().await;
        loop {
            let kept = program.take().filter(|(address, _)| *address == local.deliver);
            let kept = kept.and_then(|(_, connection)| connection.if_fit());
            let is_used = kept.as_ref().is_some_and(|connection| connection.served > 0);
            let mut connection = match kept {
                Some(connection) => connection,
                None => tokio::select! {
                    biased;
                    connected = self.connect(local) => connected?,
                    () = exchange.gone() => return Ok(Attempt::Failed(Failure::CallerGone)),
                },
            };
            download.begin();
            let Exchange { head, upload, answer } = &mut *exchange;
            let (order, leg) = (Order::unlimited(head, idle), Leg::Http1(&mut connection));
            let ended = self.attempt((leg, order), (upload, answer), (download, watch, asker), record).await;
            match ended {
                // A program may close a connection in the very moment in which a request is sent on it.
                Attempt::Failed(Failure::UpstreamClosed)
                    if is_used && head.is_idempotent() && upload.can_replay() => {}
                Attempt::Answered if download.is_clean && connection.can_be_kept() => {
                    *program = Some((local.deliver, connection));
                    return Ok(ended);
                }
                ended => return Ok(ended),
            }
        }
    }

    /// The same on a connection of HTTP/2 that requests share.
    async fn deliver_over_http2(
        &self,
        local: &LocalEndpoint,
        exchange: &mut Exchange<'_>,
        record: &mut RequestRecord,
        (download, watch, asker): (&mut Download, &mut RequestWatch, &Asker),
    ) -> Result<Attempt, ProxyError> {
        let idle = self.worker.shared.limits.idle_timeout;
        let mut is_anew = false;
        loop {
            let mut lent = tokio::select! {
                biased;
                lent = self.lend(local) => lent?,
                () = exchange.gone() => return Ok(Attempt::Failed(Failure::CallerGone)),
            };
            download.begin();
            let Exchange { head, upload, answer } = &mut *exchange;
            let (order, leg) = (Order::unlimited(head, idle), Leg::Http2(lent.sender.clone()));
            let ended = self.attempt((leg, order), (upload, answer), (download, watch, asker), record).await;
            match ended {
                // A program may say that a connection takes no more in the very moment in which a request is sent on it.
                Attempt::Failed(Failure::RefusedStream)
                    if !is_anew && lent.retire_if_told_to() && upload.can_replay() =>
                {
                    is_anew = true;
                }
                ended => return Ok(ended),
            }
        }
    }

    /// Makes the attempt, which ends when the policies no longer allow the request.
    async fn attempt(
        &self,
        (leg, order): (Leg<'_>, Order<'_>),
        (upload, answer): (&mut Upload<'_>, &mut Answer<'_>),
        (download, watch, asker): (&mut Download, &mut RequestWatch, &Asker),
        record: &mut RequestRecord,
    ) -> Attempt {
        let mut judge = |head: &mut ResponseHead, _: Replay| {
            record.status = head.status;
            asker.external.mark(head);
            Verdict::Relay
        };
        let asked = Request {
            head: order.head,
            token: asker.token.as_ref(),
            remote_ip: asker.remote_ip,
            allowed_by: &asker.external.by,
        };
        let in_force = &self.worker.shared.snapshot;
        let forbidden = tokio::select! {
            biased;
            reason = watch.until_forbidden((&self.delivered, &asked), in_force) => reason,
            ended = attempt(leg, order, upload, answer, download, &mut judge) => return ended,
        };
        record.fault = Some(forbidden.to_string());
        // Once it was judged, the caller may have seen the answer's head.
        match record.status {
            0 => Attempt::Failed(Failure::NoLongerAllowed),
            _ => Attempt::BrokeOff(Failure::NoLongerAllowed),
        }
    }

    async fn connect(&self, local: &LocalEndpoint) -> Result<Connection, ProxyError> {
        let (reader, writer) = bytes::of_socket(self.dial(local).await?);
        Ok(Connection::new(reader, writer, (None, None)))
    }

    async fn dial(&self, local: &LocalEndpoint) -> Result<TcpStream, ProxyError> {
        self.worker.deliver(local, &mut self.peers.again()).await
    }

    async fn lend(&self, local: &LocalEndpoint) -> Result<Lent, ProxyError> {
        let address = local.deliver;
        let key = UpstreamKey {
            source: local.identity.clone(),
            destination: local.identity.clone(),
            address,
            via: Via::Local(address),
        };
        let connect = async |_| {
            let socket = match self.program.lock().await.take().filter(|(at, _)| *at == address) {
                Some((_, unused)) => unused.into_halves(),
                None => bytes::of_socket(self.dial(local).await?),
            };
            Ok((Joined::new(socket.0, socket.1, BytesMut::new()), (None, None)))
        };
        let terms = Terms::plain(self.worker.shared.limits.idle_timeout);
        self.shared.share(&key, terms, connect).await.map_err(|error| match error {
            ShareError::Connect(error) => error,
            ShareError::Handshake(source) => ProxyError::Deliver { address, source },
            ShareError::Full => ProxyError::Overloaded("MAX_SHARED_CONNECTIONS"),
        })
    }
}
