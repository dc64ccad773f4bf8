//! Reaching one endpoint: over a tunnel where an agent is there, in plaintext or its own TLS where none is, on this host
//! under the policies of the service itself.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use baremesh_model::authorization::Hello;
use baremesh_model::destination_rule::ClientTls;
use baremesh_model::identity::Identity;
use tokio::net::TcpStream;

use super::ruled::{self, Times};
use super::{Call, Leg, Upstream};
use crate::capture::Outbound;
use crate::proxy::certificates::Shown;
use crate::proxy::error::ProxyError;
use crate::proxy::open::{Beyond, Delivered};
use crate::proxy::tunnel::Peer;
use crate::proxy::{Worker, relay, socket};
use crate::snapshot::endpoint::{Agent, Origin};
use crate::snapshot::{Cluster, Endpoint, LocalEndpoint, ServiceEntry, Snapshot, Transport};
use crate::telemetry::metrics::Party;
use crate::telemetry::{Record, Security};

/// Connects to one endpoint, and says there what its rule wants said first.
pub(super) async fn one_endpoint(
    call: &Call<'_>,
    service: &ServiceEntry,
    cluster: &Cluster,
    endpoint: &Arc<Endpoint>,
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    let in_flight = endpoint.state.enter();
    record.target = service.party(endpoint);
    record.upstream = Some(endpoint.address);
    let way = match &endpoint.transport {
        // What the caller itself lacks is no fault of the endpoint's, and waiting for it takes nothing of its time.
        Transport::Hbone(agent) => Way::Tunnel(agent, call.worker.certificate_of(&call.caller).await?),
        Transport::Plain => Way::Plain,
        Transport::Local(local) => Way::Here(local),
    };
    let connecting = async {
        let mut upstream = match way {
            Way::Tunnel(agent, shown) => {
                let at = (agent, endpoint.address);
                over_tunnel(call, at, (&shown, &service.identity), record).await?
            }
            Way::Plain => without_agent(call, cluster, endpoint, record).await?,
            Way::Here(local) => this_host(call, local, record).await?,
        };
        ruled::announce(&mut upstream.leg, cluster, record).await?;
        if let Some(tunnel) = &cluster.policy.tunnel {
            let limit = call.worker.shared.limits.connect_timeout;
            let first = Box::pin(ruled::through_proxy(&mut upstream.leg, tunnel, endpoint, limit)).await?;
            upstream.first = Some(first);
        }
        Ok(upstream)
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

/// How an endpoint is reached, with all that it takes.
enum Way<'a> {
    Tunnel(&'a Agent, Shown),
    Plain,
    Here(&'a Arc<LocalEndpoint>),
}

async fn over_tunnel(
    Call { worker, .. }: &Call<'_>,
    (agent, authority): (&Agent, SocketAddr),
    ((credentials, source), destination): (&Shown, &Identity),
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    record.security = Security::MutualTls;
    let peer = Peer { credentials, source, destination, agent };
    let (stream, place) = worker.pool.open(peer, authority, Some(record.client)).await?;
    record.peer_serial = Some(Arc::clone(&place.tunnel().peer_serial));
    Ok(Upstream::on(Leg::Tunnel(stream, place)))
}

/// To a service of this host: no wire, the same policy.
pub(super) async fn this_host(
    Call { worker, caller, .. }: &Call<'_>,
    local: &Arc<LocalEndpoint>,
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    record.security = Security::None;
    record.target = Party::registered(&local.identity, None, &local.labels);
    let source_ip = record.client.ip();
    let allowed_by = worker.authorize(local, (Some(caller), source_ip), record).await?;
    let upstream = worker.deliver(local, record).await?;
    let source = Some(caller.clone());
    let (local, hello) = (Arc::clone(local), Hello::Unread);
    let delivered = Delivered { local, source, source_ip, serial: None, allowed_by, hello };
    Ok(Upstream { delivered: Some(delivered), ..Upstream::on(Leg::Socket(upstream)) })
}

/// To an endpoint without an agent. One that a resource places at a service of this host is that service, under its
/// policy, and one at the agent's own ports is none.
async fn without_agent(
    call: &Call<'_>,
    cluster: &Cluster,
    endpoint: &Endpoint,
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    let address = endpoint.address;
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
            let upstream = as_it_was(call, (address, endpoint.origin), record).await?;
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

/// To what is no service's: as without a mesh, where the caller may go there.
pub(super) async fn outside(
    call: &Call<'_>,
    address: SocketAddr,
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    let_out(call, address, record)?;
    // What is captured although the mesh leads nobody there was the mesh's a moment ago, unless everything is, or
    // everything of this caller.
    let is_held = call.snapshot.is_held(call.index);
    // What was captured for the sake of other callers of this host, who see a ServiceEntry, goes as without.
    let is_others = call.snapshot.is_captured_for_external(address);
    if call.worker.shared.outbound != Outbound::All && !is_held && !is_others {
        return Err(ProxyError::NotMeshed(address));
    }
    passed_on(call, (address, Origin::Given), record).await
}

/// Refuses what the caller may not reach.
pub(super) fn let_out(call: &Call<'_>, address: SocketAddr, record: &mut Record) -> Result<(), ProxyError> {
    if call.snapshot.lets_out(call.index, address) {
        return Ok(());
    }
    record.service_host = Some(Arc::clone(&BLACK_HOLE));
    Err(ProxyError::NotInRegistry(address))
}

/// To where no service is.
pub(super) async fn passed_on(
    call: &Call<'_>,
    to: (SocketAddr, Origin),
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    record.service_host = Some(Arc::clone(&PASSTHROUGH));
    let upstream = as_it_was(call, to, record).await?;
    Ok(Upstream { outside: Some(Beyond::Address(to.0)), ..upstream })
}

/// Says where a connection was going that the caller's Sidecar does not let go there.
pub(super) fn note_refusal(error: &ProxyError, record: &mut Record) {
    if let ProxyError::NotInSidecar { .. } = error {
        record.service_host = Some(Arc::clone(&BLACK_HOLE));
    }
}

/// Istio's names for what is not let out, and for what is.
static BLACK_HOLE: LazyLock<Arc<str>> = LazyLock::new(|| "BlackHoleCluster".into());
static PASSTHROUGH: LazyLock<Arc<str>> = LazyLock::new(|| "PassthroughCluster".into());

/// Plaintext, as without a mesh.
pub(super) async fn as_it_was(
    Call { worker, snapshot, .. }: &Call<'_>,
    (address, origin): (SocketAddr, Origin),
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    record.security = Security::None;
    record.upstream = Some(address);
    let timeout = worker.shared.limits.connect_timeout;
    let upstream = worker.connect_outside(snapshot, (address, origin), timeout).await?;
    Ok(Upstream::on(Leg::Socket(upstream)))
}

impl Worker {
    /// Connects to where no agent is.
    pub(in crate::proxy) async fn connect_outside(
        &self,
        snapshot: &Snapshot,
        to: (SocketAddr, Origin),
        timeout: Duration,
    ) -> Result<TcpStream, ProxyError> {
        connected(snapshot, to, self.shared.mark, timeout).await
    }
}

async fn connected(
    snapshot: &Snapshot,
    (address, origin): (SocketAddr, Origin),
    mark: socket::Mark,
    timeout: Duration,
) -> Result<TcpStream, ProxyError> {
    // Whoever answers for a name does not lead callers to what listens on this host for this host alone.
    if origin == Origin::Dns && snapshot.host.addresses.contains(&address.ip().to_canonical()) {
        return Err(ProxyError::NotMeshed(address));
    }
    let stream = socket::connect(address, mark, timeout)
        .await
        .inspect(relay::reset_on_close)
        .map_err(|source| ProxyError::Connect { address, source })?;
    // Both ends at one address: it is this host, under an address that was not known to be its own. Its services are reached
    // through their policies or not at all.
    let here = stream.local_addr().is_ok_and(|local| local.ip().to_canonical() == address.ip());
    if here && (origin == Origin::Dns || snapshot.serves_port(address.port())) {
        return Err(ProxyError::NotMeshed(address));
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::snapshot::tests::{host, mesh};

    #[tokio::test]
    async fn whoever_answers_for_a_name_leads_nobody_to_this_host() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let snapshot = Snapshot::build(&mesh(""), &[], &host(), 15008, None).expect("a snapshot");
        let own = SocketAddr::new(snapshot.host.addresses[0], address.port());
        let timeout = Duration::from_secs(10);
        for (to, origin, expected) in [
            (address, Origin::Given, true),
            // Found by where the connection comes from.
            (address, Origin::Dns, false),
            (own, Origin::Dns, false),
        ] {
            let found = connected(&snapshot, (to, origin), socket::Mark(None), timeout).await;
            match expected {
                true => assert!(found.is_ok(), "{to} {origin:?} {found:?}"),
                false => assert!(matches!(found, Err(ProxyError::NotMeshed(_))), "{to} {origin:?} {found:?}"),
            }
        }
    }
}
