//! What a local program opens: captured, who opened it, where it goes, to which endpoint, over which transport,
//! relayed, recorded.

/// Endpoints, until one takes the connection.
mod attempts;
/// Hosts of ServiceEntries.
mod external;
/// What leaves the mesh through a gateway of this host, as bytes.
pub mod onward;
/// Reaching one endpoint.
mod reach;
/// Routes of bytes.
pub mod stream_route;

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use baremesh_model::identity::Identity;
use baremesh_model::name::Key;
use baremesh_model::service::Protocol;
use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::error::ProxyError;
use super::http::callee::{self, Arrived};
use super::http::caller::Caller;
use super::http::downstream::{self, Side};
use super::open::{Beyond, Delivered, Outside};
use super::relay::{self, Broken, TunnelStream};
use super::sniff::First;
use super::socket;
use super::tunnel::Place;
use super::{Entered, Worker, http, sniff};
use crate::attribution::{self, Who};
use crate::snapshot::cluster::Held;
use crate::snapshot::{PortEntry, Route, Snapshot, endpoint};
use crate::telemetry::{Counted, Record, Reporter};

/// What DestinationRules add.
mod ruled;

use attempts::{any_endpoint, dialled_endpoint, no_endpoint};
use external::{Opened, Settled};
use reach::{outside, this_host};
use ruled::Times;

/// Carries one captured connection, and writes its record.
pub async fn carry(worker: Arc<Worker>, mut client: TcpStream) {
    let Ok(address) = client.peer_addr() else { return };
    let mut record = Record::new(Reporter::Source, socket::canonical(address));
    let mut counted = None;
    let outcome = connect_and_relay(&worker, &mut client, &mut record, &mut counted).await;
    let outcome = match outcome {
        Ok(Carried::Bytes) => Ok(()),
        Ok(Carried::Requests(asked)) => {
            return Box::pin(carry_requests(worker, client, asked, record)).await;
        }
        Ok(Carried::Delivered(arrived)) => {
            Box::pin(callee::serve(worker, *arrived, http::bytes::of_socket(client), record)).await;
            return;
        }
        Err(error) => {
            relay::reset_on_close(&client);
            Err(error)
        }
    };
    worker.telemetry.finish(&record, counted.as_deref(), &outcome);
}

/// What became of a connection.
enum Carried {
    /// It was carried to its end.
    Bytes,
    /// It is for a port that speaks HTTP, and each of its requests is carried for itself.
    Requests(Requests),
    /// The same, for a service of this host: nothing routes it, and its program is told who calls.
    Delivered(Box<Arrived>),
}

/// A connection whose requests are carried one by one.
struct Requests {
    caller: Identity,
    /// The service of this host as which it calls; none for the host itself.
    registration: Option<Key>,
    service: Key,
    port: u16,
    /// Counts against the limit on connections.
    entered: Option<Entered>,
}

async fn carry_requests(worker: Arc<Worker>, client: TcpStream, requests: Requests, record: Record) {
    let Requests { caller, registration, service, port, entered } = requests;
    let entry = worker.open.enter(None, None);
    let (reader, writer) = http::bytes::of_socket(client);
    let caller = Caller::new(Arc::clone(&worker), (caller, registration), (service, port), record);
    tokio::select! {
        biased;
        _ = entry.until_closed() => {}
        // A program costs itself a connection with each.
        _ = downstream::serve(Arc::new(Side::Caller(Box::new(caller))), reader, writer) => {}
    }
    drop(entered);
}

async fn connect_and_relay(
    worker: &Arc<Worker>,
    client: &mut TcpStream,
    record: &mut Record,
    counted: &mut Option<Arc<Counted>>,
) -> Result<Carried, ProxyError> {
    let entered = worker.enter()?;
    let destination = socket::original_destination(client).map_err(|_| ProxyError::NotCaptured)?;
    record.destination = Some(destination);
    client.set_nodelay(true).map_err(ProxyError::ClientBroke)?;
    let (mut entered, mut began) = (Some(entered), None);
    loop {
        let (noted, taken) = ((&mut *record, &mut *counted), (destination, &mut entered));
        match by_state_in_force(worker, client, noted, taken).await {
            // Nothing of the caller's was taken yet: the state that has the endpoints decides anew.
            Err(error @ ProxyError::EndpointsUnknown { .. }) => {
                let began = *began.get_or_insert_with(Instant::now);
                Box::pin(worker.shared.demand.wait(error, began)).await?;
            }
            ended => return ended,
        }
    }
}

/// Decides by the state that is in force now, and does what was decided.
async fn by_state_in_force(
    worker: &Arc<Worker>,
    client: &mut TcpStream,
    (record, counted): (&mut Record, &mut Option<Arc<Counted>>),
    (destination, entered): (SocketAddr, &mut Option<Entered>),
) -> Result<Carried, ProxyError> {
    let snapshot = worker.shared.snapshot.load_full();
    if worker.is_own(&snapshot, destination) {
        return Err(ProxyError::NotCaptured);
    }
    let (caller, index) = who(worker, client, destination, &snapshot, record).await?;
    let call = Call { worker, snapshot: &snapshot, caller, index };
    let settled = external::settled(&call, client, (snapshot.route(destination)?, destination)).await?;
    let (route, unseen) = match settled {
        Settled::Route(route) => (route, None),
        Settled::Unseen(host) => (Route::Passthrough, Some(host)),
    };
    let route = snapshot.within_sidecar(index, route);
    let route = route.inspect_err(|error| reach::note_refusal(error, record))?;
    let mut upstream = match route {
        Route::Service(service, port) => {
            (record.service_host, record.external_namespace) = service.noted();
            let PortEntry { port: number, protocol, .. } = service.ports[port];
            let is_http = match protocol {
                Protocol::Auto => sniff::is_http(client, number).await,
                declared => declared.is_http(),
            };
            if is_http {
                let (registration, service, port) = (call.registration(), service.key.clone(), number);
                let (caller, entered) = (call.caller, entered.take());
                return Ok(Carried::Requests(Requests { caller, registration, service, port, entered }));
            }
            let opened = (destination, number, protocol);
            let dialled = Arc::clone(&service);
            let target = stream_route::target(&call, client, opened, (service, port)).await?;
            (record.service_host, record.external_namespace) = target.service.noted();
            let upstream = any_endpoint(&call, Opened::Socket(client), &target, record).await?;
            let outside = Beyond::of_hosts((&dialled, number), &target.service);
            Upstream { outside, ..upstream }
        }
        Route::Endpoint(service, port, endpoint) => {
            (record.service_host, record.external_namespace) = service.noted();
            let upstream = dialled_endpoint(&call, &service, port, &endpoint, record).await?;
            Upstream { outside: Beyond::of_hosts((&service, port), &service), ..upstream }
        }
        Route::Unheld(service, port) => {
            (record.service_host, record.external_namespace) = service.noted();
            let port = service.port_index(port);
            let cluster = port.and_then(|port| service.cluster(call.index, port, None));
            let cluster = cluster.ok_or_else(|| no_endpoint(&service))?;
            return Err(service.unknown(worker.connect_timeout(cluster)));
        }
        Route::Local(local) => {
            record.service_host = snapshot.service(&local.service).map(|service| Arc::clone(&service.host));
            this_host(&call, &local, record).await?
        }
        Route::Passthrough => match unseen {
            Some(host) => external::unseen(&call, (&host, destination), record).await?,
            None => outside(&call, destination, record).await?,
        },
    };
    let outside = upstream.outside.take();
    let upstream = match upstream {
        // What goes on through an HTTP proxy is not this host's program's.
        Upstream {
            leg: Leg::Socket(program),
            delivered: Some(mut delivered),
            in_flight,
            held,
            times,
            first: None,
            outside: None,
        } => {
            let asked = (First::Socket(client), &program);
            if worker.speaks_http(&mut delivered, &snapshot, asked, record).await? {
                let (counts, decided_by) = ((in_flight, held), Arc::clone(&snapshot));
                let (entered, program) = (entered.take(), Some(program));
                let arrived = Arrived { delivered, decided_by, program, entered, counts, tunnel: None };
                return Ok(Carried::Delivered(Box::new(arrived)));
            }
            let leg = Leg::Socket(program);
            let (first, outside) = (None, None);
            Upstream { leg, delivered: Some(delivered), in_flight, held, times, first, outside }
        }
        mut other => {
            // Through a proxy of this host go bytes, whatever its port speaks.
            if let (Some(delivered), Some(_)) = (&mut other.delivered, &other.first) {
                worker.authorize_bytes(delivered, record).await?;
            }
            other
        }
    };
    let counted = counted.insert(worker.telemetry.open(record));
    let upstream = Upstream { outside, ..upstream };
    upstream.relay(&call, client, counted).await.map(|()| Carried::Bytes)
}

/// One connection's fixed facts: who calls, by which state, on which worker.
struct Call<'a> {
    worker: &'a Arc<Worker>,
    snapshot: &'a Arc<Snapshot>,
    caller: Identity,
    /// The caller's registration; none for the host itself.
    index: Option<usize>,
}

impl Call<'_> {
    /// The service of this host as which the caller calls; none for the host itself.
    fn registration(&self) -> Option<Key> {
        self.index.map(|index| self.snapshot.registrations[index].key.clone())
    }
}

/// The identity of the service whose process opened the connection, with the index of its registration; else the host's.
/// A container is known by its address, and has no identity without a registration.
async fn who(
    worker: &Worker,
    client: &TcpStream,
    destination: SocketAddr,
    snapshot: &Snapshot,
    record: &mut Record,
) -> Result<(Identity, Option<usize>), ProxyError> {
    let unknown = |error: attribution::CallerUnknown| ProxyError::CallerUnknown(error.to_string());
    if !socket::is_of_this_host(client) {
        let address = client.peer_addr().map_err(|_| ProxyError::NotCaptured)?.ip().to_canonical();
        let index = snapshot.container(address).ok_or_else(|| {
            let uncertain = snapshot.suspended(address).map(|local| {
                let standing = local.container.as_ref().map(|own| own.standing.to_string());
                format!(
                    "the container at {address} is not certain to be {}: {}",
                    local.key,
                    standing.unwrap_or_default()
                )
            });
            ProxyError::CallerUnknown(uncertain.unwrap_or_else(|| format!(
                "no service is registered for the container at {address}: `baremesh service register … --source {address} --interface BRIDGE`, or --container-label KEY=VALUE"
            )))
        })?;
        let source = &snapshot.sources[index];
        record.source = source.party.clone();
        return Ok((source.identity.clone(), Some(index)));
    }
    let asked = {
        let mut attributor = worker.attributor.lock().unwrap_or_else(PoisonError::into_inner);
        attributor.who(client, destination, &snapshot.callers).map_err(unknown)?
    };
    let caller = match asked {
        Who::Known(caller) => caller,
        Who::Pending(pending) => Box::pin(pending.resolve(&snapshot.callers)).await.map_err(unknown)?,
    };
    match caller {
        attribution::Caller::Service(index) => {
            let source = &snapshot.sources[index];
            record.source = source.party.clone();
            Ok((source.identity.clone(), Some(index)))
        }
        attribution::Caller::Host => {
            record.called_by(&snapshot.host_identity);
            Ok((snapshot.host_identity.clone(), None))
        }
    }
}

/// The called side, connected.
struct Upstream {
    leg: Leg,
    /// Counts at the endpoint for as long as the connection lasts.
    in_flight: Option<endpoint::InFlight>,
    /// Counts against the rule's limit for as long.
    held: Option<Held>,
    times: Times,
    delivered: Option<Delivered>,
    /// What came of the called side with the answer of an HTTP proxy, where it is reached through one.
    first: Option<BytesMut>,
    /// What of the outside it is.
    outside: Option<Beyond>,
}

enum Leg {
    /// The place in the tunnel is held for as long as the stream lives.
    Tunnel(TunnelStream, #[allow(dead_code)] Place),
    Socket(TcpStream),
    /// Of the called side's own, without an agent.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Upstream {
    async fn relay(
        mut self,
        call: &Call<'_>,
        client: &mut TcpStream,
        counted: &Arc<Counted>,
    ) -> Result<(), ProxyError> {
        let Call { worker, snapshot, .. } = call;
        let (counted_there, delivered) = (Some(Arc::clone(counted)), self.delivered.take());
        let outside = self.outside.take().zip(call.registration());
        let outside = outside.map(|(beyond, caller)| Outside { caller, beyond });
        let entry = worker.open.enter_outside(counted_there, delivered, outside);
        entry.judge_again(snapshot, &worker.shared.snapshot);
        let idle = self.times.idle.unwrap_or(worker.shared.limits.idle_timeout);
        let relayed = async {
            if let Some(first) = self.first.take().filter(|first| !first.is_empty()) {
                client.write_all(&first).await.map_err(Broken::Client)?;
                counted.meter.answered(first.len());
            }
            match &mut self.leg {
                Leg::Tunnel(stream, _) => relay::client_to_tunnel(client, stream, &counted.meter, idle).await,
                Leg::Socket(upstream) => {
                    relay::client_to_upstream(client, upstream, &counted.meter, idle).await
                }
                Leg::Tls(upstream) => {
                    Box::pin(relay::client_to_tls(client, upstream, &counted.meter, idle)).await
                }
            }
        };
        tokio::select! {
            biased;
            reason = entry.until_closed() => Err(reason),
            ended = relayed => ended.map_err(|broken| match &self.leg {
                Leg::Tunnel(_, place) if place.tunnel().is_revoked() => ProxyError::CertificateRevoked,
                _ => ProxyError::from(broken),
            }),
            () = ruled::over(self.times.longest) => Err(ProxyError::TooLong),
        }
    }

    fn on(leg: Leg) -> Self {
        Self {
            leg,
            in_flight: None,
            held: None,
            times: Times::default(),
            delivered: None,
            first: None,
            outside: None,
        }
    }
}

impl From<Broken> for ProxyError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Client(error) => Self::ClientBroke(error),
            Broken::Upstream(error) => Self::UpstreamBroke(error),
            Broken::Idle => Self::Idle,
        }
    }
}
