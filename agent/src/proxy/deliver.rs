//! The local program's side: a connection that this host's policies let through is handed to the address that the
//! service was registered with.

use std::net::IpAddr;
use std::sync::Arc;

use baremesh_model::authorization::{Action, Decision};
use baremesh_model::identity::Identity;
use tokio::net::TcpStream;

use super::Worker;
use super::error::ProxyError;
use super::relay;
use super::socket;
use crate::snapshot::LocalEndpoint;
use crate::telemetry::Record;
use crate::telemetry::metrics::Party;

impl Worker {
    /// Decides whether `source` may reach a service of this host, and notes what policies said without deciding.
    pub(super) fn authorize(
        &self,
        local: &LocalEndpoint,
        source: Option<&Identity>,
        source_ip: IpAddr,
        record: &mut Record,
    ) -> Result<(), ProxyError> {
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

impl Record {
    /// The called side is a service of this host.
    pub(super) fn calls(&mut self, local: &LocalEndpoint, host: Option<Arc<str>>) {
        self.target = Party::registered(&local.identity, None, &local.labels);
        self.service_host = host;
    }
}
