//! From a service to one of its endpoints that takes a connection of bytes.

use std::sync::Arc;
use std::time::Instant;

use baremesh_model::outlier::Outcome;

use super::external::Opened;
use super::reach::one_endpoint;
use super::{Call, Upstream, external, stream_route};
use crate::proxy::error::ProxyError;
use crate::snapshot::{Endpoint, NoEndpoint, ServiceEntry};
use crate::telemetry::Record;

/// Tries endpoints of the service until one takes the connection. Nothing of the caller's has been sent before
/// that, so that each may be tried.
pub(super) async fn any_endpoint(
    call: &Call<'_>,
    client: Opened<'_>,
    target: &stream_route::Target,
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    let stream_route::Target { service, port, subset } = target;
    let cluster =
        service.cluster(call.index, *port, subset.as_deref()).ok_or_else(|| no_endpoint(service))?;
    service.call(call.worker.connect_timeout(cluster))?;
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

pub(super) fn no_endpoint(service: &ServiceEntry) -> ProxyError {
    match service.out_of_reach.first() {
        Some(first) => ProxyError::OutOfReach { service: service.key.clone(), first: first.clone() },
        None => ProxyError::NoEndpoint(service.key.clone()),
    }
}

/// Connects to the endpoint that was dialled by its own address: the limits of its service hold there too.
pub(super) async fn dialled_endpoint(
    call: &Call<'_>,
    service: &ServiceEntry,
    port: u16,
    endpoint: &Arc<Endpoint>,
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    let index = service.ports.iter().position(|entry| entry.port == port);
    let cluster = index.and_then(|index| service.cluster(call.index, index, None));
    let cluster = cluster.ok_or_else(|| no_endpoint(service))?;
    service.call(call.worker.connect_timeout(cluster))?;
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
