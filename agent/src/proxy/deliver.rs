//! The local program's side: a connection that this host's policies let through is handed to the address that the
//! service was registered with.

use std::net::IpAddr;
use std::sync::Arc;

use baremesh_model::authorization::{Action, Decision};
use baremesh_model::flow::Way;
use baremesh_model::identity::Identity;
use baremesh_model::service::Protocol;
use tokio::net::TcpStream;

use super::Worker;
use super::error::ProxyError;
use super::open::Delivered;
use super::relay;
use super::sniff::{First, arrives_as_http};
use super::socket;
use crate::snapshot::{LocalEndpoint, Snapshot};
use crate::telemetry::metrics::Party;
use crate::telemetry::{Record, Security};

impl Worker {
    /// Decides whether `source` may reach a service of this host, and notes what policies said without deciding.
    pub(super) fn authorize(
        &self,
        local: &LocalEndpoint,
        source: Option<&Identity>,
        source_ip: IpAddr,
        record: &mut Record,
    ) -> Result<(), ProxyError> {
        let way = match (source, record.security) {
            (None, _) => Way::Plaintext,
            (Some(_), Security::MutualTls) => Way::MutualTls,
            (Some(_), _) => Way::WithinHost,
        };
        self.shared.flows.note(local, source, source_ip, (way, record.started));
        let Decision { verdict, notes } = local.authorize(source, source_ip);
        for note in notes {
            let word = match note.action {
                Action::Allow => "would allow",
                Action::Deny => "would deny",
                Action::Audit => "audit",
            };
            record.notes.push(format!("{}/{}: {word}", note.policy.namespace, note.policy.name));
            self.telemetry.metrics().policy_notes.inc();
        }
        if verdict.allows() { Ok(()) } else { Err(ProxyError::Denied(verdict.to_string())) }
    }

    /// Connects to the service's program.
    pub(super) async fn deliver(
        &self,
        local: &LocalEndpoint,
        record: &mut Record,
    ) -> Result<TcpStream, ProxyError> {
        let address = local.deliver;
        record.upstream = Some(address);
        let connected = socket::connect(address, self.shared.mark, self.shared.limits.connect_timeout).await;
        connected.inspect(relay::reset_on_close).map_err(|source| ProxyError::Deliver { address, source })
    }
}

impl Worker {
    /// Whether a connection that was let through, by the state `decided_by`, is carried request by request. Waits for its
    /// first bytes where the port does not say what it speaks.
    pub(super) async fn speaks_http(
        &self,
        delivered: &Delivered,
        decided_by: &Arc<Snapshot>,
        first: First<'_>,
        program: &TcpStream,
    ) -> Result<bool, ProxyError> {
        let local = &delivered.local;
        if local.protocol != Protocol::Auto {
            return Ok(local.protocol.is_http());
        }
        let entry = self.open.enter(None, Some(delivered.clone()));
        entry.judge_again(decided_by, &self.shared.snapshot);
        tokio::select! {
            biased;
            reason = entry.until_closed() => Err(reason),
            told = arrives_as_http(first, local.advertised.port(), program) => {
                told.map_err(ProxyError::ClientBroke)
            }
            () = tokio::time::sleep(self.shared.limits.idle_timeout) => Err(ProxyError::Idle),
        }
    }
}

impl Record {
    /// The called side is a service of this host.
    pub(super) fn calls(&mut self, local: &LocalEndpoint, host: Option<Arc<str>>) {
        self.target = Party::registered(&local.identity, None, &local.labels);
        self.service_host = host;
    }
}
