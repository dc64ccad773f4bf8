//! What only the agent knows of how it is doing: the administration socket's route for `baremesh doctor`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use baremesh_model::flow::Way;
use baremesh_model::identity::Identity;
use baremesh_model::peer_authentication::MtlsMode;
use tokio::task::JoinSet;

use super::{Agent, seconds};
use crate::admin::report::CertificateReport;
use crate::admin::report::doctor::{DoctorReport, PeerReport, PlaintextReport, Step};
use crate::admin::server::{Answer, json};
use crate::doctor::look::host::{descriptors, memory, unwritable};
use crate::membership::Membership;
use crate::proxy::socket::{self, Mark};
use crate::snapshot::{Snapshot, Transport, endpoint};
use crate::source::control::probe::step_of_connect;

/// How many other agents are tried.
const MAX_PEERS: usize = 512;
/// How many of them at once.
const AT_ONCE: usize = 64;
/// How long each may take to accept a connection.
const PEER_PATIENCE: Duration = Duration::from_secs(3);
/// How many callers in plaintext are told.
const MAX_PLAINTEXT: usize = 32;

impl Agent {
    /// Takes some seconds where the control server, or another agent, does not answer.
    pub(super) async fn doctor(&self, query: &str) -> Answer {
        let snapshot = self.publisher.snapshot().load_full();
        let directories = self.config.directories.clone();
        let on_disk = tokio::task::spawn_blocking(move || {
            (unwritable(&directories.state), Membership::load(&directories.node()).ok(), memory())
        });
        let reach = async {
            match &self.probe {
                Some(probe) => Some(Box::pin(probe.run()).await),
                None => None,
            }
        };
        let peers = async {
            match query {
                "peers" => try_peers(agents_of(&snapshot), self.mark).await,
                _ => (Vec::new(), 0),
            }
        };
        let (on_disk, reach, (peers, peers_left_out)) = tokio::join!(on_disk, reach, peers);
        let (state_unwritable, membership, memory) = match on_disk {
            Ok(found) => found,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        let node = membership.map(|membership| CertificateReport {
            identity: membership.node.identity.to_string(),
            serial: membership.node.serial.clone(),
            not_before: seconds(membership.node.not_before),
            not_after: seconds(membership.node.not_after),
        });
        let (missing, not_granted) = self.not_issued();
        json(&DoctorReport {
            pid: std::process::id(),
            domain: snapshot.mesh.config.domain.to_string(),
            reach,
            version: self.publisher.published().version,
            node,
            missing,
            not_granted,
            descriptors: descriptors(self.config.limits.max_connections),
            memory,
            state_unwritable,
            restored: self.steward.as_ref().and_then(|steward| steward.restored()),
            plaintext: self.plaintext(&snapshot),
            peers,
            peers_left_out,
        })
    }

    fn not_issued(&self) -> (BTreeMap<String, String>, Vec<String>) {
        let status = self.rotation.lock().unwrap_or_else(PoisonError::into_inner);
        let text = |identity: &Identity| identity.to_string();
        (
            status.missing.iter().map(|(identity, reason)| (text(identity), reason.clone())).collect(),
            status.not_granted.iter().map(text).collect(),
        )
    }

    /// Who came in plaintext to services that take none.
    fn plaintext(&self, snapshot: &Snapshot) -> Vec<PlaintextReport> {
        let now = Instant::now();
        let is_strict = |at: SocketAddr| {
            snapshot.local_endpoints().any(|local| local.advertised == at && local.mode == MtlsMode::Strict)
        };
        let mut seen = self.flows.since(None, now);
        seen.retain(|seen| seen.flow.way == Way::Plaintext && is_strict(seen.flow.destination));
        seen.sort_by_key(|seen| std::cmp::Reverse(seen.last));
        let report = |seen: &crate::flows::Seen| PlaintextReport {
            service: seen.flow.service.to_string(),
            from: seen.flow.source_ip,
            connections: seen.count,
            seconds: now.saturating_duration_since(seen.last).as_secs(),
        };
        seen.iter().take(MAX_PLAINTEXT).map(report).collect()
    }
}

/// The agents of other hosts, each with a service that it has an endpoint of.
fn agents_of(snapshot: &Snapshot) -> BTreeMap<SocketAddr, String> {
    let mut agents = BTreeMap::new();
    for service in snapshot.services() {
        for endpoint in service.ports.iter().flat_map(|port| &port.endpoints) {
            // Those of other networks are reached through gateways.
            if let Transport::Hbone(endpoint::Agent { address, beyond: None }) = &endpoint.transport {
                agents.entry(*address).or_insert_with(|| service.key.to_string());
            }
        }
    }
    for (address, service) in snapshot.agents_elsewhere() {
        agents.entry(address).or_insert_with(|| service.key.to_string());
    }
    agents
}

/// Connects to each of them and says nothing. The number is of those that were not tried.
async fn try_peers(agents: BTreeMap<SocketAddr, String>, mark: Mark) -> (Vec<PeerReport>, usize) {
    let left_out = agents.len().saturating_sub(MAX_PEERS);
    let mut left = agents.into_iter().take(MAX_PEERS);
    let mut trying = JoinSet::new();
    let mut tried = Vec::new();
    loop {
        while trying.len() < AT_ONCE {
            let Some((agent, service)) = left.next() else { break };
            trying.spawn(async move {
                let failed = socket::connect(agent, mark, PEER_PATIENCE).await.err();
                PeerReport {
                    agent,
                    service,
                    step: failed.as_ref().map(step_of_connect),
                    detail: failed.map(|error| error.to_string()),
                }
            });
        }
        match trying.join_next().await {
            Some(Ok(peer)) => tried.push(peer),
            Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            None => break,
        }
    }
    tried.sort_by_key(|peer| (peer.step.is_none(), peer.step == Some(Step::Silence), peer.agent));
    (tried, left_out)
}
