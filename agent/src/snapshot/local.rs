//! Services of this host, as calls to them are decided.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use baremesh_model::authorization::{
    Asks, Carried, Connection, Decision, Facts, Hello, PolicySet, server_name,
};
use baremesh_model::identity::Identity;
use baremesh_model::name::Key;
use baremesh_model::peer_authentication::MtlsMode;
use baremesh_model::service::Protocol;
use baremesh_model::workload::Labels;

use super::gateway::GatewayPort;
use crate::external_authorization::Providers;
use crate::jwt::TokenRules;
use crate::proxy::error::ProxyError;

/// One port of a service of this host.
#[derive(Debug)]
pub struct LocalEndpoint {
    /// The service.
    pub service: Key,
    /// The service's identity.
    pub identity: Identity,
    /// Labels of the workload, as policies and metrics see them.
    pub labels: Labels,
    /// The address and port under which it is advertised; policies speak of these.
    pub advertised: SocketAddr,
    /// Where the program listens; nowhere, which is an unspecified address, at a gateway and where its container is not known.
    pub deliver: SocketAddr,
    /// Whether that is certain to be the service. Where it is not nothing is delivered, and nobody goes there past the agent.
    pub is_known: bool,
    /// What leaves the mesh here, where it is a gateway's.
    pub gateway: Option<Arc<GatewayPort>>,
    /// What it speaks.
    pub protocol: Protocol,
    /// The Sidecar by which nobody calls this port; none where it may be called.
    pub refused_by: Option<Key>,
    /// Whether plaintext is taken.
    pub mode: MtlsMode,
    /// The policies that it answers to.
    pub policies: Arc<PolicySet>,
    /// The rules that tokens of its requests are held to, where there are any.
    pub tokens: Option<Arc<TokenRules>>,
    /// What `connection.sni` is to policies.
    pub server_names: Arc<[Arc<str>]>,
    /// Who may be asked by its policies.
    pub providers: Arc<Providers>,
    /// Whether somebody who is asked is asked here. Nobody is asked about that: it would never end.
    pub is_provider: bool,
}

/// Who calls, as far as that is known, and from where.
pub type From<'a> = (Option<&'a Identity>, IpAddr);

impl LocalEndpoint {
    /// Where the program listens, if anywhere.
    pub fn delivers_at(&self) -> Option<SocketAddr> {
        Some(self.deliver).filter(|address| !address.ip().is_unspecified())
    }

    /// What the policies come to for a connection, or a request on it.
    pub fn authorize<'a>(&'a self, from: From<'a>, carried: Carried<'a>, hello: &'a Hello) -> Decision<'a> {
        self.policies.decide(self.facts(from, carried, hello))
    }

    /// Whether a Sidecar has nobody call the port, whoever it is and whatever policies say.
    pub fn taken(&self) -> Result<(), ProxyError> {
        let Some(sidecar) = &self.refused_by else { return Ok(()) };
        let (service, port) = (self.service.clone(), self.advertised.port());
        Err(ProxyError::NotInSidecarIngress { service, port, sidecar: sidecar.clone() })
    }

    /// What is known of the application's own TLS before anything came: it is waited for where a policy goes by it.
    pub fn opening_hello(&self) -> Hello {
        if self.policies.asks_for_server_names() { Hello::Pending } else { Hello::Unread }
    }

    /// Whether what is carried as bytes in any case is decided on when the application's own TLS has come, and not before.
    pub fn waits_for_hello(&self) -> bool {
        matches!(self.protocol, Protocol::Tls | Protocol::Https) && self.policies.asks_for_server_names()
    }

    /// Whether a call may have somebody asked.
    pub fn may_ask(&self) -> bool {
        self.policies.may_ask() && !self.is_provider && self.refused_by.is_none()
    }

    /// Who is to be asked about a call next, other than those that have allowed it already.
    pub fn asks<'a>(
        &'a self,
        from: From<'a>,
        (carried, hello): (Carried<'a>, &'a Hello),
        allowed_by: &[Arc<str>],
    ) -> Option<Asks<'a>> {
        self.may_ask().then(|| self.policies.asks(self.facts(from, carried, hello), allowed_by)).flatten()
    }

    /// What the policies decide on.
    pub fn facts<'a>(
        &'a self,
        (source, source_ip): From<'a>,
        carried: Carried<'a>,
        hello: &'a Hello,
    ) -> Facts<'a> {
        let server_name = server_name((source, &self.server_names), self.protocol, carried, hello);
        let (destination_ip, destination_port) = (self.advertised.ip(), self.advertised.port());
        let connection = Connection { source, source_ip, destination_ip, destination_port, server_name };
        Facts { connection, carried }
    }
}
