//! What a local program opens: captured, who opened it, where it goes, to which endpoint, over which transport,
//! relayed, recorded.

/// Routes of bytes.
mod stream_route;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use baremesh_model::destination_rule::ClientTls;
use baremesh_model::identity::Identity;
use baremesh_model::name::Key;
use baremesh_model::outlier::Outcome;
use baremesh_model::service::Protocol;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::error::ProxyError;
use super::http::callee::{self, Arrived};
use super::http::caller::Caller;
use super::http::downstream::{self, Side};
use super::open::Delivered;
use super::relay::{self, Broken, TunnelStream};
use super::sniff::First;
use super::socket;
use super::tunnel::{Peer, Place};
use super::{Entered, Worker, http, sniff};
use crate::attribution::{self, Who};
use crate::capture::Outbound;
use crate::snapshot::cluster::Held;
use crate::snapshot::{
    Cluster, Endpoint, LocalEndpoint, NoEndpoint, PortEntry, Route, ServiceEntry, Snapshot,
};
use crate::snapshot::{Transport, endpoint};
use crate::telemetry::metrics::Party;
use crate::telemetry::{Counted, Record, Reporter, Security};

/// What DestinationRules add.
mod ruled;

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
            return Box::pin(callee::serve(worker, *arrived, http::bytes::of_socket(client), record)).await;
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
    service: Key,
    port: u16,
    /// Counts against the limit on connections.
    entered: Entered,
}

async fn carry_requests(worker: Arc<Worker>, client: TcpStream, requests: Requests, record: Record) {
    let Requests { caller, service, port, entered } = requests;
    let entry = worker.open.enter(None, None);
    let (reader, writer) = http::bytes::of_socket(client);
    let caller = Caller::new(Arc::clone(&worker), caller, (service, port), record);
    tokio::select! {
        biased;
        _ = entry.until_closed() => {}
        () = downstream::serve(Arc::new(Side::Caller(Box::new(caller))), reader, writer) => {}
    }
    drop(entered);
}

async fn connect_and_relay(
    worker: &Worker,
    client: &mut TcpStream,
    record: &mut Record,
    counted: &mut Option<Arc<Counted>>,
) -> Result<Carried, ProxyError> {
    let entered = worker.enter().ok_or(ProxyError::Overloaded("max_connections"))?;
    let destination = socket::original_destination(client).map_err(|_| ProxyError::NotCaptured)?;
    record.destination = Some(destination);
    let snapshot = worker.shared.snapshot.load_full();
    if worker.is_own(&snapshot, destination) {
        return Err(ProxyError::NotCaptured);
    }
    let (caller, index) = who(worker, client, destination, &snapshot, record).await?;
    client.set_nodelay(true).map_err(ProxyError::ClientBroke)?;
    let call = Call { worker, snapshot: &snapshot, caller, index };
    let upstream = match snapshot.route(destination)? {
        Route::Service(service, port) => {
            record.service_host = Some(Arc::clone(&service.host));
            let PortEntry { port: number, protocol, .. } = service.ports[port];
            let is_http = match protocol {
                Protocol::Auto => sniff::is_http(client, number).await,
                declared => declared.is_http(),
            };
            if is_http {
                let (caller, service) = (call.caller, service.key.clone());
                return Ok(Carried::Requests(Requests { caller, service, port: number, entered }));
            }
            let opened = (destination, number, protocol);
            let target = stream_route::target(&call, client, opened, (service, port)).await?;
            record.service_host = Some(Arc::clone(&target.service.host));
            any_endpoint(&call, &target, record).await?
        }
        Route::Endpoint(service, port, endpoint) => {
            record.service_host = Some(Arc::clone(&service.host));
            dialled_endpoint(&call, &service, port, &endpoint, record).await?
        }
        Route::Local(local) => {
            record.service_host = snapshot.service(&local.service).map(|service| Arc::clone(&service.host));
            this_host(&call, &local, record).await?
        }
        Route::Passthrough if worker.shared.outbound == Outbound::All => {
            as_it_was(&call, destination, record).await?
        }
        Route::Passthrough => return Err(ProxyError::NotMeshed(destination)),
    };
    let upstream = match upstream {
        Upstream { leg: Leg::Socket(program), delivered: Some(delivered), in_flight, held, times } => {
            if worker.speaks_http(&delivered, &snapshot, First::Socket(client), &program).await? {
                let (counts, decided_by) = ((in_flight, held), Arc::clone(&snapshot));
                let entered = Some(entered);
                let arrived = Arrived { delivered, decided_by, program, entered, counts, tunnel: None };
                return Ok(Carried::Delivered(Box::new(arrived)));
            }
            Upstream { leg: Leg::Socket(program), delivered: Some(delivered), in_flight, held, times }
        }
        other => other,
    };
    let counted = counted.insert(worker.telemetry.open(record));
    upstream.relay(&call, client, counted).await.map(|()| Carried::Bytes)
}

/// One connection's fixed facts: who calls, by which state, on which worker.
struct Call<'a> {
    worker: &'a Worker,
    snapshot: &'a Arc<Snapshot>,
    caller: Identity,
    /// The caller's registration; none for the host itself.
    index: Option<usize>,
}

/// The identity of the service whose process opened the connection, with the index of its registration; else the host's.
async fn who(
    worker: &Worker,
    client: &TcpStream,
    destination: SocketAddr,
    snapshot: &Snapshot,
    record: &mut Record,
) -> Result<(Identity, Option<usize>), ProxyError> {
    let unknown = |error: attribution::CallerUnknown| ProxyError::CallerUnknown(error.to_string());
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
        Call { worker, snapshot, .. }: &Call<'_>,
        client: &mut TcpStream,
        counted: &Arc<Counted>,
    ) -> Result<(), ProxyError> {
        let entry = worker.open.enter(Some(Arc::clone(counted)), self.delivered.take());
        entry.judge_again(snapshot, &worker.shared.snapshot);
        let idle = self.times.idle.unwrap_or(worker.shared.limits.idle_timeout);
        let relayed = async {
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
            ended = relayed => ended.map_err(ProxyError::from),
            () = ruled::over(self.times.longest) => Err(ProxyError::TooLong),
        }
    }

    fn on(leg: Leg) -> Self {
        Self { leg, in_flight: None, held: None, times: Times::default(), delivered: None }
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

/// Tries endpoints of the service until one takes the connection. Nothing of the caller's has been sent before
/// that, so that each may be tried.
async fn any_endpoint(
    call: &Call<'_>,
    stream_route::Target { service, port, subset }: &stream_route::Target,
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    let cluster =
        service.cluster(call.index, *port, subset.as_deref()).ok_or_else(|| no_endpoint(service))?;
    let held = cluster.connection()?;
    let hash = cluster.hash_of_connection(record.client.ip());
    let mut tried = Vec::new();
    let mut last = None;
    while tried.len() < call.worker.shared.limits.max_attempts {
        let endpoint = match cluster.pick(&tried, hash, Instant::now(), rand::random()) {
            Ok(endpoint) => endpoint,
            Err(NoEndpoint::Unhealthy) => {
                last = last.or_else(|| Some(ProxyError::AllEjected(service.key.clone())));
                break;
            }
            Err(NoEndpoint::Empty | NoEndpoint::Tried) => break,
        };
        let connected = one_endpoint(call, service, cluster, endpoint, record).await;
        match &connected {
            Ok(_) => _ = cluster.judge(endpoint, Outcome::Success, Instant::now()),
            Err(error) if error.is_endpoints_own() => {
                call.worker.judge(cluster, endpoint, Outcome::LocalFailure);
            }
            Err(_) => {}
        }
        match connected {
            Ok(mut upstream) => {
                ruled::announce(&mut upstream.leg, cluster, record).await?;
                return Ok(Upstream { held: Some(held), ..upstream });
            }
            Err(error) if error.is_endpoints_own() => {
                tried.push(endpoint.address);
                last = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| no_endpoint(service)))
}

fn no_endpoint(service: &ServiceEntry) -> ProxyError {
    ProxyError::NoEndpoint(service.key.clone())
}

/// Connects to the endpoint that was dialled by its own address: the limits of its service hold there too.
async fn dialled_endpoint(
    call: &Call<'_>,
    service: &ServiceEntry,
    port: u16,
    endpoint: &Arc<Endpoint>,
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    let index = service.ports.iter().position(|entry| entry.port == port);
    let cluster = index.and_then(|index| service.cluster(call.index, index, None));
    let cluster = cluster.ok_or_else(|| no_endpoint(service))?;
    let held = cluster.connection()?;
    let connected = one_endpoint(call, service, cluster, endpoint, record).await;
    match &connected {
        Ok(_) => endpoint.state.succeeded(),
        Err(error) if error.is_endpoints_own() => endpoint.state.failed(),
        Err(_) => {}
    }
    let mut upstream = connected?;
    ruled::announce(&mut upstream.leg, cluster, record).await?;
    Ok(Upstream { held: Some(held), ..upstream })
}

/// Connects to one endpoint.
async fn one_endpoint(
    call: &Call<'_>,
    service: &ServiceEntry,
    cluster: &Cluster,
    endpoint: &Arc<Endpoint>,
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    let in_flight = endpoint.state.enter();
    record.target =
        Party::registered(&service.identity, Some(Arc::clone(&endpoint.workload)), &endpoint.labels);
    record.upstream = Some(endpoint.address);
    let connecting = async {
        match &endpoint.transport {
            Transport::Hbone(agent) => {
                over_tunnel(call, (*agent, endpoint.address), &service.identity, record).await
            }
            Transport::Plain => without_agent(call, cluster, endpoint.address, record).await,
            Transport::Local(local) => this_host(call, local, record).await,
        }
    };
    let connected = match cluster.limits().connect_timeout {
        // Its own time comes on top of the agent's, which is the most there is.
        Some(time) => tokio::time::timeout(time, connecting).await.unwrap_or_else(|_| {
            let source = io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {time:?}"));
            Err(ProxyError::Connect { address: endpoint.address, source })
        }),
        None => connecting.await,
    };
    let times = Times::of(cluster.limits());
    connected.map(|upstream| Upstream { in_flight: Some(in_flight), times, ..upstream })
}

async fn over_tunnel(
    Call { worker, caller, .. }: &Call<'_>,
    (agent, authority): (SocketAddr, SocketAddr),
    callee: &Identity,
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    let credentials = worker.shared.credentials.load_full();
    let source = credentials
        .of(caller, SystemTime::now())
        .ok_or_else(|| ProxyError::NoCertificate(caller.to_string()))?;
    record.security = Security::MutualTls;
    let peer = Peer { credentials: &credentials, source, destination: callee, agent };
    let (stream, place) = worker.pool.open(peer, authority, record.client).await?;
    record.peer_serial = Some(Arc::clone(&place.tunnel().peer_serial));
    Ok(Upstream::on(Leg::Tunnel(stream, place)))
}

/// To a service of this host: no wire, the same policy.
async fn this_host(
    Call { worker, caller, .. }: &Call<'_>,
    local: &Arc<LocalEndpoint>,
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    record.security = Security::None;
    record.target = Party::registered(&local.identity, None, &local.labels);
    let source_ip = record.client.ip();
    worker.authorize(local, Some(caller), source_ip, record)?;
    let upstream = worker.deliver(local, record).await?;
    let delivered = Delivered { local: Arc::clone(local), source: Some(caller.clone()), source_ip };
    Ok(Upstream { delivered: Some(delivered), ..Upstream::on(Leg::Socket(upstream)) })
}

/// To an endpoint without an agent. One that a resource places at a service of this host is that service, under its
/// policy, and one at the agent's own ports is none.
async fn without_agent(
    call: &Call<'_>,
    cluster: &Cluster,
    address: SocketAddr,
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    if call.worker.is_own(call.snapshot, address) {
        return Err(ProxyError::NotMeshed(address));
    }
    match call.snapshot.local(address) {
        Some(local) => this_host(call, local, record).await,
        None => {
            if let Some(tls @ ClientTls::IstioMutual) = cluster.tls() {
                // What asks for TLS is never sent in plaintext.
                return Err(ProxyError::NeedsTls { address, mode: tls.mode() });
            }
            let upstream = as_it_was(call, address, record).await?;
            if let (Leg::Socket(socket), Some(keepalive)) = (&upstream.leg, cluster.limits().keepalive) {
                socket::keep_alive_as(socket, keepalive).map_err(ProxyError::UpstreamBroke)?;
            }
            match (cluster.tls(), upstream.leg) {
                (Some(ClientTls::Simple(server) | ClientTls::Mutual(_, server)), Leg::Socket(socket)) => {
                    let to = (address, socket);
                    let tls = Box::pin(call.worker.in_tls(cluster, server, to)).await?;
                    Ok(Upstream::on(Leg::Tls(tls)))
                }
                (_, leg) => Ok(Upstream { leg, ..upstream }),
            }
        }
    }
}

/// Plaintext, as without a mesh.
async fn as_it_was(
    Call { worker, snapshot, .. }: &Call<'_>,
    address: SocketAddr,
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    record.security = Security::None;
    record.upstream = Some(address);
    let timeout = worker.shared.limits.connect_timeout;
    let upstream = worker.connect_outside(snapshot, address, timeout).await?;
    Ok(Upstream::on(Leg::Socket(upstream)))
}

impl Worker {
    /// Connects to where no agent is.
    pub(super) async fn connect_outside(
        &self,
        snapshot: &Snapshot,
        address: SocketAddr,
        timeout: Duration,
    ) -> Result<TcpStream, ProxyError> {
        let stream = socket::connect(address, self.shared.mark, timeout)
            .await
            .inspect(relay::reset_on_close)
            .map_err(|source| ProxyError::Connect { address, source })?;
        // Both ends at one address: it is this host, under an address that was not known to be its own. Its services are
        // reached through their policies or not at all.
        let here = stream.local_addr().is_ok_and(|local| local.ip().to_canonical() == address.ip());
        if here && snapshot.serves_port(address.port()) {
            return Err(ProxyError::NotMeshed(address));
        }
        Ok(stream)
    }
}
