//! Reaching a provider: a service of the mesh as any other is called, by the identity of the service that is called; what is
//! outside of it by a socket of the agent's own. Connections are kept from check to check.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::bytes::{Bytes, BytesMut};
use baremesh_model::external_authorization::{CheckAnswer, CheckProtocol};
use baremesh_model::grpc::GrpcStatus;
use baremesh_model::http::{RequestHead, ResponseHead, Version};
use baremesh_model::name::Key;

use super::own_address;
use crate::external_authorization::question::Question;
use crate::external_authorization::{MAX_ANSWER, Provider, grpc};
use crate::fetch::is_nobodys;
use crate::proxy::Worker;
use crate::proxy::http::attempt::{Attempt, Download, Failure, Leg, Order, Verdict, attempt};
use crate::proxy::http::body::{Answer, Kept};
use crate::proxy::http::bytes::{self, Joined};
use crate::proxy::http::caller::Caller;
use crate::proxy::http::downstream::Exchange;
use crate::proxy::http::upload::Upload;
use crate::proxy::http::upstream::{Connection, ShareError, Terms, UpstreamKey, Via};
use crate::proxy::socket;
use crate::snapshot::endpoint::Origin;
use crate::snapshot::{LocalEndpoint, Snapshot};
use crate::telemetry::metrics::Party;
use crate::telemetry::{Record, Reporter};

/// The most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;
/// How long a connection to a provider outside of the mesh is kept without a check.
const IDLE: Duration = Duration::from_secs(60);

/// What a provider answered.
pub(super) struct Said {
    head: ResponseHead,
    body: Bytes,
    grpc_status: Option<u16>,
}

impl Said {
    fn of(kept: Kept) -> Result<Self, String> {
        if kept.head.status == 0 {
            return Err("the connection ended before an answer".to_owned());
        }
        if !kept.is_whole {
            return Err(format!("its answer broke off, or is longer than {MAX_ANSWER} bytes"));
        }
        let status =
            kept.trailers.as_ref().and_then(GrpcStatus::of).or_else(|| GrpcStatus::of(&kept.head.headers));
        let grpc_status = status.map(|status| u16::from(status.code()));
        Ok(Self { head: kept.head, body: kept.body.freeze(), grpc_status })
    }

    /// What it comes to.
    pub(super) fn read(self, protocol: &CheckProtocol) -> CheckAnswer {
        match protocol {
            CheckProtocol::Http(check) => check.read(&self.head, &self.body),
            CheckProtocol::Grpc if self.head.status != 200 => {
                CheckAnswer::Failed(format!("it answered {} to a call of gRPC", self.head.status))
            }
            CheckProtocol::Grpc => grpc::read(self.grpc_status, self.body),
        }
    }
}

/// A check on its way out.
struct Check {
    head: RequestHead,
    body: Bytes,
}

impl Check {
    fn of(question: Question, authority: String) -> Self {
        match question {
            Question::Http(head, body) => Self { head: *head, body },
            Question::Grpc(body) => {
                let mut head = RequestHead {
                    method: "POST".to_owned(),
                    authority,
                    target: grpc::PATH.to_owned(),
                    version: Version::Http2,
                    ..RequestHead::default()
                };
                for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
                    // Constants that may stand in a field.
                    let _ = head.headers.set(name, value.as_bytes());
                }
                Self { head, body }
            }
        }
    }
}

impl Worker {
    /// Sends a question and waits for all of the answer.
    pub(super) async fn send(
        self: &Arc<Self>,
        provider: &Provider,
        local: &LocalEndpoint,
        question: Question,
    ) -> Result<Said, String> {
        let definition = &provider.definition;
        let snapshot = self.shared.snapshot.load_full();
        let check = Check::of(question, definition.authority());
        match definition.service(&snapshot.mesh.config.domain) {
            Some(service) => self.send_in_mesh(&snapshot, (service, definition.port), local, check).await,
            None => self.send_outside(&snapshot, provider, local, check).await,
        }
    }

    /// As the called service calls any other: routed, balanced, over mutual TLS, under the policies of the provider's service.
    async fn send_in_mesh(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        (service, port): (Key, u16),
        local: &LocalEndpoint,
        mut check: Check,
    ) -> Result<Said, String> {
        let entry = snapshot.service(&service).ok_or_else(|| format!("there is no service {service}"))?;
        if entry.port_index(port).is_none() {
            return Err(format!("{service} has no port {port}"));
        }
        let mut record = Record::new(Reporter::Source, own_address(local));
        record.source = Party::registered(&local.identity, None, &local.labels);
        let who = (local.identity.clone(), Some(local.service.clone()));
        let caller = Caller::new(Arc::clone(self), who, (service, port), record).to_dialled();
        let mut kept = Kept::new(MAX_ANSWER);
        let upload = Upload::own(check.body.clone());
        let exchange = Exchange { head: &mut check.head, upload, answer: Answer::Kept(&mut kept) };
        // However it ended is in what was kept.
        let _ = caller.carry(exchange).await;
        Said::of(kept)
    }

    async fn send_outside(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        provider: &Provider,
        local: &LocalEndpoint,
        check: Check,
    ) -> Result<Said, String> {
        let addresses = addresses(provider).await?;
        let mut last = format!("{} has no address", provider.definition.host);
        for address in addresses.iter().take(MAX_ADDRESSES) {
            if self.is_own(snapshot, *address) || snapshot.mesh.config.virtual_ranges.contains(address.ip()) {
                last = format!("{address} is the mesh's own: name the service that is meant");
                continue;
            }
            if let Some(why) = is_nobodys(address.ip()) {
                last = format!("{address} is {why}");
                continue;
            }
            let key = UpstreamKey {
                source: local.identity.clone(),
                destination: local.identity.clone(),
                address: *address,
                via: Via::Socket(None),
            };
            let sent = match provider.definition.protocol {
                CheckProtocol::Http(_) => self.send_over_http1(snapshot, (provider, key), &check).await,
                CheckProtocol::Grpc => self.send_over_http2(snapshot, (provider, key), &check).await,
            };
            match sent {
                Ok(said) => return Ok(said),
                Err(why) => last = why,
            }
        }
        Err(last)
    }

    async fn send_over_http1(
        &self,
        snapshot: &Snapshot,
        (provider, key): (&Provider, UpstreamKey),
        check: &Check,
    ) -> Result<Said, String> {
        // One that was kept may be closed in the very moment in which it is used.
        loop {
            let kept = self.upstreams.take(&key);
            let was_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => {
                    let socket = self
                        .connect_outside(snapshot, (key.address, Origin::Given), provider.definition.timeout)
                        .await;
                    let (reader, writer) = bytes::of_socket(socket.map_err(|error| error.to_string())?);
                    Connection::new(reader, writer, (None, None))
                }
            };
            let (ended, kept, download) = exchanged(Leg::Http1(&mut connection), check).await;
            match ended {
                Attempt::Failed(Failure::UpstreamClosed) if was_kept => continue,
                Attempt::Answered if download.is_clean && connection.can_be_kept() => {
                    self.upstreams.keep(key, connection, &Terms::plain(IDLE), 0);
                }
                Attempt::Answered | Attempt::Again | Attempt::BrokeOff(_) => {}
                Attempt::Failed(failure) => return Err(words(failure, key.address)),
            }
            return Said::of(kept);
        }
    }

    async fn send_over_http2(
        &self,
        snapshot: &Snapshot,
        (provider, key): (&Provider, UpstreamKey),
        check: &Check,
    ) -> Result<Said, String> {
        let address = key.address;
        let connect = async |_| {
            let socket =
                self.connect_outside(snapshot, (address, Origin::Given), provider.definition.timeout).await?;
            let (reader, writer) = bytes::of_socket(socket);
            Ok((Joined::new(reader, writer, BytesMut::new()), (None, None)))
        };
        // The same of a connection that ends while a second check is sent on it.
        for is_last in [false, true] {
            let lent = self.upstreams.share(&key, Terms::plain(IDLE), connect).await;
            let lent = lent.map_err(|error: ShareError<crate::proxy::error::ProxyError>| match error {
                ShareError::Connect(error) => error.to_string(),
                ShareError::Handshake(error) => format!("{address} does not speak HTTP/2: {error}"),
                ShareError::Full => format!("too many checks are under way with {address}"),
            })?;
            // This check is one of those that it has carried.
            let was_used = lent.served() > 1;
            let (ended, kept, _) = exchanged(Leg::Http2(lent.sender.clone()), check).await;
            match ended {
                Attempt::Failed(Failure::UpstreamClosed) if was_used && !is_last => {}
                Attempt::Failed(Failure::RefusedStream) if !is_last => {}
                Attempt::Failed(failure) => return Err(words(failure, address)),
                Attempt::Answered | Attempt::Again | Attempt::BrokeOff(_) => return Said::of(kept),
            }
        }
        Err(format!("{address} closed the connection"))
    }
}

/// Sends a check on one connection, and keeps what comes back.
async fn exchanged(leg: Leg<'_>, check: &Check) -> (Attempt, Kept, Download) {
    let (mut kept, mut download) = (Kept::new(MAX_ANSWER), Download::default());
    let mut upload = Upload::own(check.body.clone());
    let ended = {
        let mut judge = |_: &mut _, _| Verdict::Relay;
        let order = Order::unlimited(&check.head, IDLE);
        attempt(leg, order, &mut upload, &mut Answer::Kept(&mut kept), &mut download, &mut judge).await
    };
    (ended, kept, download)
}

fn words(failure: Failure, address: SocketAddr) -> String {
    match failure {
        Failure::UpstreamMalformed(why) => format!("{address} answered what is no HTTP: {why}"),
        Failure::CallerMalformed(why) => format!("it cannot be asked about this request: {why}"),
        _ => format!("{address} closed the connection before an answer"),
    }
}

/// The addresses of a provider outside of the mesh.
async fn addresses(provider: &Provider) -> Result<Arc<[SocketAddr]>, String> {
    let definition = &provider.definition;
    if let Some(address) = definition.address() {
        return Ok([SocketAddr::new(address, definition.port)].into());
    }
    let wanted = Arc::clone(definition);
    let look_up = async move || {
        let found = tokio::net::lookup_host((&*wanted.host, wanted.port)).await;
        let found = found.map_err(|error| format!("{} has no address: {error}", wanted.host))?;
        Ok(found.map(socket::canonical).collect())
    };
    provider.resolved(look_up).await.map_err(|why| why.to_string())
}
