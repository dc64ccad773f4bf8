//! The called side of HTTP: requests that came through a tunnel, in plaintext where that is taken, or from a program of
//! this host that dialled the service's own address, for a service of this host. Each connection has one connection to the program behind it; what the program is told of the caller is
//! what the handshake proved, or within a host the kernel.

use std::sync::Arc;

use ::bytes::BytesMut;
use baremesh_model::http::{Headers, RequestHead, ResponseHead};
use baremesh_model::identity::Identity;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::attempt::{Attempt, Download, Failure, Leg, Order, Verdict, attempt};
use super::bytes::{self, ByteReader, ByteWriter, Joined};
use super::downstream::{self, Exchange, Side};
use super::grpc::MessageCount;
use super::reply::Reply;
use super::upload::{Replay, Upload};
use super::upstream::{Connection, Lent, ShareError, UpstreamKey, Upstreams, Via};
use crate::proxy::error::ProxyError;
use crate::proxy::flood::Ended;
use crate::proxy::open::Delivered;
use crate::proxy::{Entered, Worker};
use crate::snapshot::rate_limit::Refusal;
use crate::snapshot::{LocalEndpoint, Snapshot};
use crate::telemetry::request_record::{LoggedFields, RequestRecord};
use crate::telemetry::requests::RequestProtocol;
use crate::telemetry::{Record, Security};

/// Where the called side learns who calls (Envoy's name).
const CLIENT_CERT: &str = "x-forwarded-client-cert";

/// A connection that this host's policies let through to a program that speaks HTTP.
pub struct Arrived {
    /// What the policies decided on.
    pub delivered: Delivered,
    /// The state that they decided by.
    pub decided_by: Arc<Snapshot>,
    /// The program's side.
    pub program: TcpStream,
    /// Counts against the limit on connections.
    pub entered: Option<Entered>,
}

/// Carries the requests of a connection until it ends, or is no longer allowed. Given up is one that its peer broke off
/// before any request was served.
pub async fn serve(
    worker: Arc<Worker>,
    arrived: Arrived,
    (reader, writer): (ByteReader, ByteWriter),
    peers: Record,
) -> Ended {
    let Arrived { delivered, decided_by, program, entered: _entered } = arrived;
    let (local, source) = (Arc::clone(&delivered.local), delivered.source.clone());
    let entry = worker.open.enter(None, Some(delivered));
    entry.judge_again(&decided_by, &worker.shared.snapshot);
    let callee = Callee::new(Arc::clone(&worker), local, source, (peers, program));
    tokio::select! {
        biased;
        // Both sides are reset: nobody takes what has come for all there is.
        _ = entry.until_closed() => Ended::Normally,
        ended = downstream::serve(Arc::new(Side::Callee(Box::new(callee))), reader, writer) => ended,
    }
}

/// A connection for a service of this host.
pub struct Callee {
    /// The worker that serves it.
    pub worker: Arc<Worker>,
    local: Arc<LocalEndpoint>,
    source: Option<Identity>,
    peers: Record,
    /// The program's side over HTTP/1, while it stands and no request is on it.
    program: Mutex<Option<Connection>>,
    /// The program's side over HTTP/2.
    shared: Upstreams,
}

impl Callee {
    /// A connection of `source`, whose policies let it through, and the program's side of it.
    pub fn new(
        worker: Arc<Worker>,
        local: Arc<LocalEndpoint>,
        source: Option<Identity>,
        (peers, program): (Record, TcpStream),
    ) -> Self {
        let (reader, writer) = bytes::of_socket(program);
        let program = Mutex::new(Some(Connection::new(reader, writer, (None, None))));
        Self { worker, local, source, peers, program, shared: Upstreams::default() }
    }

    /// The two ends of the connection.
    pub fn peers(&self) -> &Record {
        &self.peers
    }

    /// Carries a request to the program.
    pub async fn carry(&self, mut exchange: Exchange<'_>) -> Ended {
        let mut record = self.record(&exchange);
        if let Err(refusal) = self.within_limits(exchange.head, &mut record) {
            exchange.reply(&Reply::rate_limited(refusal), &mut record).await;
            let ended = record.ended();
            self.finish(record, &exchange.upload);
            return ended;
        }
        introduce(&mut exchange.head.headers, self.source.as_ref(), &self.local.identity);
        let mut download = Download::default();
        if record.protocol == RequestProtocol::Grpc {
            exchange.upload.messages = Some(MessageCount::default());
            download.messages = Some(MessageCount::default());
        }
        let ended = self.deliver(&mut exchange, &mut record, &mut download).await;
        record.upstream_time = download.first_byte.map(|first| first.duration_since(record.peers.started));
        match ended {
            Ok(Attempt::Answered | Attempt::Again) => record.answered(&download),
            Ok(Attempt::Failed(Failure::RefusedStream)) if self.is_from_an_agent() => {
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
                if self.is_from_an_agent() {
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

    /// Whether another host's agent asks, which may send elsewhere what nobody has seen. A program is told what happened.
    fn is_from_an_agent(&self) -> bool {
        self.peers.security == Security::MutualTls
    }

    /// Whether the limits in force have room for a request.
    fn within_limits(&self, head: &RequestHead, record: &mut RequestRecord) -> Result<(), Refusal> {
        let snapshot = self.worker.shared.snapshot.load();
        let from = (self.source.as_ref(), self.peers.client.ip());
        snapshot.rate_limits.on_arrival(&self.local, head, from, &mut record.limited)
    }

    fn record(&self, exchange: &Exchange<'_>) -> RequestRecord {
        let mut record = RequestRecord::new(self.peers.again(), exchange.head);
        record.fields = LoggedFields::of(exchange.head);
        record
    }

    fn finish(&self, mut record: RequestRecord, upload: &Upload<'_>) {
        record.uploaded(upload);
        self.worker.telemetry.finish_request(&record);
    }

    async fn deliver(
        &self,
        exchange: &mut Exchange<'_>,
        record: &mut RequestRecord,
        download: &mut Download,
    ) -> Result<Attempt, ProxyError> {
        let mut judge = |head: &mut ResponseHead, _: Replay| {
            record.status = head.status;
            Verdict::Relay
        };
        let Exchange { head, upload, answer } = exchange;
        record.attempts = 1;
        if answer.is_http2() {
            let lent = self.lend().await?;
            let order = Order { head, per_try: None, overall: None, since: None };
            return Ok(
                attempt(Leg::Http2(lent.sender.clone()), order, upload, answer, download, &mut judge).await
            );
        }
        let mut program = self.program.lock().await;
        loop {
            let kept = program.take().and_then(Connection::if_fit);
            let is_used = kept.as_ref().is_some_and(|connection| connection.served > 0);
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            let order = Order { head, per_try: None, overall: None, since: None };
            let ended =
                attempt(Leg::Http1(&mut connection), order, upload, answer, download, &mut judge).await;
            match ended {
                // A program may close a connection in the very moment in which a request is sent on it.
                Attempt::Failed(Failure::UpstreamClosed)
                    if is_used && head.is_idempotent() && upload.can_replay() => {}
                Attempt::Answered if download.is_clean && connection.can_be_kept() => {
                    *program = Some(connection);
                    return Ok(ended);
                }
                ended => return Ok(ended),
            }
        }
    }

    async fn connect(&self) -> Result<Connection, ProxyError> {
        let (reader, writer) = bytes::of_socket(self.dial().await?);
        Ok(Connection::new(reader, writer, (None, None)))
    }

    async fn dial(&self) -> Result<TcpStream, ProxyError> {
        self.worker.deliver(&self.local, &mut self.peers.again()).await
    }

    async fn lend(&self) -> Result<Lent, ProxyError> {
        let address = self.local.deliver;
        let key = UpstreamKey {
            source: self.local.identity.clone(),
            destination: self.local.identity.clone(),
            address,
            via: Via::Local(address),
        };
        let connect = async {
            let socket = match self.program.lock().await.take() {
                Some(unused) => unused.into_halves(),
                None => bytes::of_socket(self.dial().await?),
            };
            Ok((Joined::new(socket.0, socket.1, BytesMut::new()), (None, None)))
        };
        self.shared.share(&key, connect).await.map_err(|error| match error {
            ShareError::Connect(error) => error,
            ShareError::Handshake(source) => ProxyError::Deliver { address, source },
            ShareError::Full => ProxyError::Overloaded("MAX_SHARED_CONNECTIONS"),
        })
    }
}

/// Tells a program of this host who calls, as far as it was proved. What the caller wrote there itself is not believed,
/// nor what some programs read as the same name.
pub(super) fn introduce(headers: &mut Headers, source: Option<&Identity>, callee: &Identity) {
    headers.retain(|name| {
        let bytes = name.bytes().map(|byte| if byte == b'_' { b'-' } else { byte });
        !bytes.eq(CLIENT_CERT.bytes())
    });
    if let Some(source) = source {
        let proved = format!("By={callee};Subject=\"\";URI={source}");
        // An identity's URI has no character that a field may not have.
        let _ = headers.set(CLIENT_CERT, proved.as_bytes());
    }
}
