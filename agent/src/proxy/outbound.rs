//! What a local program opens: captured, who opened it, where it goes, to which endpoint, over which transport,
//! relayed, recorded.

/// Hosts of ServiceEntries.
mod external;
/// Reaching one endpoint.
mod reach;
/// Routes of bytes.
pub mod stream_route;

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use baremesh_model::identity::Identity;
use baremesh_model::name::Key;
use baremesh_model::outlier::Outcome;
use baremesh_model::service::Protocol;
use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
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
use super::tunnel::Place;
use super::{Entered, Worker, http, sniff};
use crate::attribution::{self, Who};
use crate::snapshot::cluster::Held;
use crate::snapshot::{Endpoint, NoEndpoint, PortEntry, Route, ServiceEntry, Snapshot, endpoint};
use crate::telemetry::{Counted, Record, Reporter};

/// What DestinationRules add.
mod ruled;

use reach::{one_endpoint, outside, this_host};
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
    let route = external::settled(&call, client, (snapshot.route(destination)?, destination)).await?;
    let route = snapshot.within_sidecar(index, route);
    let route = route.inspect_err(|error| reach::note_refusal(error, record))?;
    let upstream = match route {
        Route::Service(service, port) => {
            (record.service_host, record.external_namespace) = service.noted();
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
            (record.service_host, record.external_namespace) = target.service.noted();
            any_endpoint(&call, client, &target, record).await?
        }
        Route::Endpoint(service, port, endpoint) => {
            (record.service_host, record.external_namespace) = service.noted();
            dialled_endpoint(&call, &service, port, &endpoint, record).await?
        }
        Route::Local(local) => {
            record.service_host = snapshot.service(&local.service).map(|service| Arc::clone(&service.host));
            this_host(&call, &local, record).await?
        }
        Route::Passthrough => outside(&call, destination, record).await?,
    };
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
                let entered = Some(entered);
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
            let text = format!(
                "no service is registered for the container at {address}: `baremesh service register … --source {address} --interface BRIDGE`"
            );
            ProxyError::CallerUnknown(text)
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
    /// Where it is, where that is no service's.
    outside: Option<SocketAddr>,
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
        Call { worker, snapshot, caller, .. }: &Call<'_>,
        client: &mut TcpStream,
        counted: &Arc<Counted>,
    ) -> Result<(), ProxyError> {
        let entry = match self.outside {
            Some(outside) => worker.open.enter_outside(Arc::clone(counted), (caller.clone(), outside)),
            None => worker.open.enter(Some(Arc::clone(counted)), self.delivered.take()),
        };
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

/// Tries endpoints of the service until one takes the connection. Nothing of the caller's has been sent before
/// that, so that each may be tried.
async fn any_endpoint(
    call: &Call<'_>,
    client: &TcpStream,
    target: &stream_route::Target,
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    let stream_route::Target { service, port, subset } = target;
    let cluster =
        service.cluster(call.index, *port, subset.as_deref()).ok_or_else(|| no_endpoint(service))?;
    let dialled = record.destination.unwrap_or(record.client);
    let asked_for = external::endpoints(call, client, (target, cluster), dialled).await?;
    let cluster = asked_for.as_ref().unwrap_or(cluster);
    let held = cluster.connection()?;
    let hash = cluster.hash_of_connection(record.client.ip());
    let mut tried = Vec::new();
    let mut last = None;
    while tried.len() < call.worker.shared.limits.max_attempts {
        let endpoint = match cluster.pick(&tried, hash, Instant::now(), rand::random()) {
            Ok(endpoint) => endpoint,
            Err(NoEndpoint::Ejected) => {
                last = last.or_else(|| Some(ProxyError::AllEjected(service.key.clone())));
                break;
            }
            Err(NoEndpoint::Unhealthy) => {
                last = last.or_else(|| Some(ProxyError::AllUnhealthy(service.key.clone())));
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
                upstream.held = Some(held);
                return Ok(upstream);
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
    match service.out_of_reach.first() {
        Some(first) => ProxyError::OutOfReach { service: service.key.clone(), first: first.clone() },
        None => ProxyError::NoEndpoint(service.key.clone()),
    }
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
    upstream.held = Some(held);
    Ok(upstream)
}
