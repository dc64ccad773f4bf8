//! Requests that leave the mesh through a gateway of this host. They arrive as for any service, under its policies, tokens and
//! limits; then they are routed from here as routes and ServiceEntries say, by an agent that is now the caller. One record is
//! written: who called, through which gateway, to which host.

use std::sync::Arc;
use std::time::Instant;

use baremesh_model::authorization::Request;

use super::callee::Callee;
use super::caller::plan::{self, Plan};
use super::caller::{Caller, LetThrough};
use super::downstream::Exchange;
use super::forwarded_for;
use super::reply::Reply;
use crate::proxy::error::ProxyError;
use crate::proxy::flood::Ended;
use crate::proxy::open::RequestWatch;
use crate::snapshot::gateway::GatewayPort;

/// A connection to a port of a gateway that carries requests.
pub struct AtGateway {
    /// Where they arrive.
    pub callee: Callee,
    /// From where they go on.
    caller: Caller,
}

impl AtGateway {
    /// A connection that arrived, and goes on in the gateway's own name.
    pub fn new(callee: Callee, gateway: &GatewayPort) -> Self {
        let local = &callee.delivered.local;
        let registered = (local.identity.clone(), Some(local.service.clone()));
        let dialled = (local.service.clone(), gateway.port);
        let caller = Caller::new(Arc::clone(&callee.worker), registered, dialled, callee.peers().again());
        Self { callee, caller }
    }

    /// Carries a request to where it leaves for.
    pub async fn carry(&self, mut exchange: Exchange<'_>) -> Ended {
        let worker = &self.callee.worker;
        // Of what let it in: a change since then ends it, however long endpoints are waited for.
        let watch = RequestWatch::begin(&worker.shared.snapshot_changed);
        let (local, asker, mut record) = match self.callee.arrive(&mut exchange).await {
            Ok(arrived) => arrived,
            Err(ended) => return ended,
        };
        // What is outside learns nothing of who is within.
        forwarded_for::forget(&mut exchange.head.headers);
        // Policies are asked again about what they saw, whatever a route makes of it.
        let seen = exchange.head.clone();
        let (token, remote_ip) = (asker.token.as_ref(), asker.remote_ip);
        let request = Request { head: &seen, token, remote_ip, allowed_by: &asker.external.by };
        let through = LetThrough { delivered: &self.callee.delivered, request };
        let mut snapshot = worker.shared.snapshot.load_full();
        let (random, mut began) = (rand::random(), None);
        loop {
            let planned = match &local.gateway {
                Some(gateway) => plan::from_gateway(&snapshot, gateway, (exchange.head, token), random),
                // It was one when the connection was let through, and the connection is about to end.
                None => Ok(Plan::Answer(Reply::denied())),
            };
            let plan = match planned {
                Ok(plan) => plan,
                Err(error) => {
                    exchange.reply(&refused(&error), &mut record).await;
                    record.fault = Some(error.to_string());
                    break;
                }
            };
            let sending = (&mut exchange, Some(&through));
            let followed = self.caller.follow((&snapshot, watch.clone()), plan, sending, &mut record).await;
            let Some(unknown) = followed else { break };
            let began = *began.get_or_insert_with(Instant::now);
            if !Box::pin(self.caller.has_endpoints(unknown, began, &mut exchange, &mut record)).await {
                break;
            }
            snapshot = worker.shared.snapshot.load_full();
        }
        // The record is of the call to the gateway, and says where that went.
        let peers = self.callee.peers();
        (record.peers.target, record.peers.security) = (peers.target.clone(), peers.security);
        record.peers.peer_serial.clone_from(&peers.peer_serial);
        let ended = record.ended();
        self.callee.finish(record, &exchange.upload);
        ended
    }
}

/// What the caller is told of a request that does not leave.
pub fn refused(error: &ProxyError) -> Reply {
    let reason = error.reason();
    let status = match error {
        ProxyError::NotAtGateway { .. } | ProxyError::NoWayFromGateway { .. } => 404,
        _ => 503,
    };
    Reply::new(status, "", reason.response_flags(), reason.name())
}
