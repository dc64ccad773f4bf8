//! Why a connection was not carried, or ended early. Every error answers whose fault it is and has one short
//! stable reason, which the access log, the metric and the response flag share.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use baremesh_model::name::Key;

use crate::snapshot::OutOfReach;

/// Whose fault a failure is, which is whom an operator should look at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The caller, or the program behind it.
    Client,
    /// The called side, or the network between.
    Upstream,
    /// A policy, which did what it says.
    Policy,
    /// This agent, its configuration or its host.
    Agent,
}

impl Fault {
    /// As it stands in logs and documentation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "caller",
            Self::Upstream => "upstream",
            Self::Policy => "policy",
            Self::Agent => "agent",
        }
    }
}

/// Why a connection was not carried, or ended early.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The connection reached a capture port without having been redirected there.
    #[error("a connection to the capture port itself, not redirected by the rules: nothing to carry")]
    NotCaptured,
    /// Attribution failed or was ambiguous.
    #[error("the caller could not be told: {0}; it is refused because its identity would be a guess")]
    CallerUnknown(String),
    /// The destination was captured, but is not, or is no longer, one of the mesh's.
    #[error("{0} is no longer an endpoint of the mesh: nothing is sent there in plaintext; try again")]
    NotMeshed(SocketAddr),
    /// The caller reaches the registry alone, and this is not in it.
    #[error(
        "{0} is not in the registry, and outboundTrafficPolicy is REGISTRY_ONLY: declare it as a service with a \
         WorkloadEntry if it is to be reached"
    )]
    NotInRegistry(SocketAddr),
    /// The host that a connection led to is there no longer, or no longer for the caller, who reaches the registry alone.
    #[error(
        "{0} is no longer in the registry for its caller, and outboundTrafficPolicy is REGISTRY_ONLY: declare it as a ServiceEntry \
         that `exportTo` shows the caller if it is to be reached"
    )]
    NoLongerInRegistry(Key),
    /// The caller's Sidecar does not name the service.
    #[error(
        "Sidecar {sidecar} does not have its workloads call {service} at port {port}: add it to `egress` if they are to"
    )]
    NotInSidecar {
        /// The service.
        service: Key,
        /// The port dialled.
        port: u16,
        /// The Sidecar.
        sidecar: Key,
    },
    /// The called workload's Sidecar does not name the port.
    #[error(
        "Sidecar {sidecar} does not have {service} called at port {port}: add it to `ingress`, with the protocol that the service \
         speaks or none, if it is to be"
    )]
    NotInSidecarIngress {
        /// The service.
        service: Key,
        /// The workload's port.
        port: u16,
        /// The Sidecar.
        sidecar: Key,
    },
    /// No service has that virtual address.
    #[error("no service has the virtual address {0}: was it deregistered, or its DNS answer kept too long?")]
    NoSuchService(SocketAddr),
    /// The service does not declare that port.
    #[error("{service} has no port {port}: `baremesh get service {service}` shows its ports")]
    NoSuchPort {
        /// The service.
        service: Key,
        /// The port dialled.
        port: u16,
    },
    /// The service has no endpoint at all.
    #[error("{0} has no endpoint: is it registered on a host that is up?")]
    NoEndpoint(Key),
    /// Nobody on this host had called the service before, and its endpoints did not come.
    #[error(
        "the endpoints of {service} were not called from this host before, and the registry did not tell them within {within:?}: \
         is it in reach? `baremesh status` says so"
    )]
    EndpointsUnknown {
        /// The service.
        service: Key,
        /// How long is waited for them.
        within: std::time::Duration,
    },
    /// All endpoints are of other networks, and no gateway leads there.
    #[error("every endpoint of {service} is out of reach: {first}")]
    OutOfReach {
        /// The service.
        service: Key,
        /// One of the endpoints.
        first: OutOfReach,
    },
    /// A host that is a wildcard was dialled, and the caller names none below it.
    #[error("{0} is called by the name that a request or TLS asks for, and this one asks for none below it")]
    NotNamed(Key),
    /// DNS has no address for the name that a caller asks for.
    #[error("{name} is not resolved: {source}")]
    Unresolved {
        /// The name.
        name: String,
        /// Why.
        source: crate::dns::LookUpError,
    },
    /// Outlier detection has left out every endpoint.
    #[error(
        "every endpoint of {0} is left out by outlier detection: `baremesh status` shows why and until when"
    )]
    AllEjected(Key),
    /// No endpoint is healthy by the check of its own host.
    #[error(
        "every endpoint of {0} is unhealthy: `baremesh service list` on their hosts says what each check finds"
    )]
    AllUnhealthy(Key),
    /// A limit of a DestinationRule is reached.
    #[error("{0}")]
    OverLimit(#[from] crate::snapshot::cluster::OverLimit),
    /// The rule asks for TLS that the endpoint cannot be given.
    #[error(
        "{address} has no agent, and its DestinationRule asks for tls mode {mode}: nothing is sent there in plaintext"
    )]
    NeedsTls {
        /// The endpoint.
        address: SocketAddr,
        /// The mode.
        mode: &'static str,
    },
    /// The connection has lasted for as long as the rule lets it.
    #[error("open for longer than maxConnectionDuration of its DestinationRule")]
    TooLong,
    /// The endpoint could not be reached.
    #[error(
        "nothing answers at {address}: {source}; is a firewall between the hosts, or the agent there stopped?"
    )]
    Connect {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The local program does not accept.
    #[error(
        "the service's program does not answer at {address}: {source}; is it running, and listening there?"
    )]
    Deliver {
        /// The registered local address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The mutual TLS handshake failed.
    #[error("mutual TLS with {address} failed: {source}")]
    Handshake {
        /// The peer.
        address: SocketAddr,
        /// What rustls or the verifier said.
        source: io::Error,
    },
    /// The peer did not speak, or stopped speaking, HTTP/2 as HBONE needs it.
    #[error("the tunnel to {address} broke: {source}")]
    Tunnel {
        /// The peer.
        address: SocketAddr,
        /// What the codec said.
        source: h2::Error,
    },
    /// The destination's agent refused by policy (401).
    #[error("the agent at {0} refused the call: its AuthorizationPolicy does not allow this caller")]
    DeniedByPeer(SocketAddr),
    /// The destination's agent answered with another status than 200 or 401.
    #[error("the agent at {address} answered {status} to CONNECT")]
    RefusedByPeer {
        /// The peer.
        address: SocketAddr,
        /// The status.
        status: u16,
    },
    /// The HTTP proxy that a DestinationRule leads through did not connect.
    #[error(
        "the HTTP proxy at {address} answered {status} to CONNECT: does it let this host reach the target?"
    )]
    RefusedByProxy {
        /// The proxy.
        address: SocketAddr,
        /// The status.
        status: u16,
    },
    /// An AuthorizationPolicy on this host refused.
    #[error("{0}")]
    Denied(String),
    /// A provider of a CUSTOM policy refuses.
    #[error("the provider {0}, which a CUSTOM policy asks, refused the connection")]
    DeniedByProvider(String),
    /// A provider of a CUSTOM policy says nothing.
    #[error("the provider {provider}, which a CUSTOM policy asks, said nothing that counts: {why}")]
    NoProvidersAnswer {
        /// Its name.
        provider: String,
        /// Why.
        why: String,
    },
    /// The policy changed, and the open connection is no longer allowed.
    #[error("closed while open: {0}")]
    NoLongerAllowed(String),
    /// STRICT, and the connection came in plaintext.
    #[error("plaintext is refused, PeerAuthentication is STRICT: the caller's host needs an agent")]
    PlaintextRefused,
    /// The CONNECT was malformed, or not a CONNECT.
    #[error("not an HBONE request: {0}")]
    BadRequest(&'static str),
    /// The peer sent more of something than anybody who means well, and lost its connection.
    #[error("the connection was closed: its peer sent too many {0}")]
    Flooded(&'static str),
    /// The authority is not registered here, or belongs to another identity than the certificate shown.
    #[error("{authority} is not registered here under the identity that was asked for")]
    NotRegistered {
        /// What was asked for.
        authority: String,
    },
    /// There is no valid certificate to act with.
    #[error("no valid certificate for {0}: `baremesh certs` shows what this host holds, and why")]
    NoCertificate(String),
    /// A certificate of the tunnel ran out while it stood.
    #[error("a certificate of the tunnel has expired")]
    CertificateExpired,
    /// A certificate of the tunnel was revoked while it stood, or the trust domain that the peer is of was let go.
    #[error(
        "a certificate of the tunnel was revoked (`baremesh certs revoked` on the control host says when), or its trust domain \
         is federated no more"
    )]
    CertificateRevoked,
    /// No Gateway has the host leave the mesh here.
    #[error(
        "no Gateway has {host} leave through {gateway} at port {port}: list it in `servers` of one that selects it"
    )]
    NotAtGateway {
        /// The gateway.
        gateway: Key,
        /// Its port.
        port: u16,
        /// The host, in words.
        host: String,
    },
    /// A host may leave the mesh here, and nothing says where it is.
    #[error("{host} may leave through {gateway} at port {port}, and does not: {why}")]
    NoWayFromGateway {
        /// The gateway.
        gateway: Key,
        /// Its port.
        port: u16,
        /// The host, in words.
        host: String,
        /// Why.
        why: &'static str,
    },
    /// A route at a gateway leads to a gateway.
    #[error(
        "a route at the gateway {gateway} leads to {to}, which is a gateway too, or of its own host: name the host that is to be \
         reached"
    )]
    GatewayLoop {
        /// The gateway.
        gateway: Key,
        /// Where it leads.
        to: Key,
    },
    /// A named limit was reached.
    #[error("the limit `{0}` is reached")]
    Overloaded(&'static str),
    /// Nothing moved for as long as the idle timeout.
    #[error("idle for longer than the idle timeout")]
    Idle,
    /// The caller reset or broke the connection.
    #[error("the caller broke the connection: {0}")]
    ClientBroke(io::Error),
    /// The called side reset or broke the connection.
    #[error("the called side broke the connection: {0}")]
    UpstreamBroke(io::Error),
    /// The agent is shutting down and the drain time is over.
    #[error("the agent is stopping and the drain time is over")]
    Draining,
}

impl ProxyError {
    /// The stable reason: access log, metric and documentation name it so.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotCaptured => Reason::NotCaptured,
            Self::CallerUnknown(_) => Reason::CallerUnknown,
            Self::NotMeshed(_) => Reason::NotMeshed,
            Self::NotInRegistry(_) | Self::NoLongerInRegistry(_) => Reason::NotInRegistry,
            Self::NotInSidecar { .. } => Reason::NotInSidecar,
            Self::NotInSidecarIngress { .. } => Reason::NotInSidecarIngress,
            Self::NoSuchService(_) => Reason::NoSuchService,
            Self::NoSuchPort { .. } => Reason::NoSuchPort,
            Self::NoEndpoint(_) | Self::OutOfReach { .. } => Reason::NoEndpoint,
            Self::EndpointsUnknown { .. } => Reason::EndpointsUnknown,
            Self::NotNamed(_) => Reason::NotNamed,
            Self::Unresolved { .. } => Reason::Unresolved,
            Self::AllEjected(_) => Reason::AllEjected,
            Self::AllUnhealthy(_) => Reason::AllUnhealthy,
            Self::OverLimit(_) => Reason::OverLimit,
            Self::NeedsTls { .. } => Reason::NeedsTls,
            Self::TooLong => Reason::TooLong,
            Self::Connect { .. } => Reason::ConnectFailed,
            Self::Deliver { .. } => Reason::DeliveryFailed,
            Self::Handshake { .. } => Reason::HandshakeFailed,
            Self::Tunnel { .. } => Reason::TunnelBroken,
            Self::DeniedByPeer(_) => Reason::DeniedByPeer,
            Self::RefusedByPeer { .. } => Reason::RefusedByPeer,
            Self::RefusedByProxy { .. } => Reason::RefusedByProxy,
            Self::Denied(_) => Reason::Denied,
            Self::DeniedByProvider(_) => Reason::DeniedByProvider,
            Self::NoProvidersAnswer { .. } => Reason::NoProvidersAnswer,
            Self::NoLongerAllowed(_) => Reason::NoLongerAllowed,
            Self::PlaintextRefused => Reason::PlaintextRefused,
            Self::BadRequest(_) => Reason::BadRequest,
            Self::Flooded(_) => Reason::Flooded,
            Self::NotRegistered { .. } => Reason::NotRegistered,
            Self::NotAtGateway { .. } => Reason::NotAtGateway,
            Self::NoWayFromGateway { .. } => Reason::NoWayFromGateway,
            Self::GatewayLoop { .. } => Reason::GatewayLoop,
            Self::NoCertificate(_) => Reason::NoCertificate,
            Self::CertificateExpired => Reason::CertificateExpired,
            Self::CertificateRevoked => Reason::CertificateRevoked,
            Self::Overloaded(_) => Reason::Overloaded,
            Self::Idle => Reason::Idle,
            Self::ClientBroke(_) => Reason::ClientBroke,
            Self::UpstreamBroke(_) => Reason::UpstreamBroke,
            Self::Draining => Reason::Draining,
        }
    }

    /// Whether another endpoint may be tried: nothing of the caller's was sent, and the fault may be this
    /// endpoint's alone.
    pub fn is_endpoints_own(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Handshake { .. } | Self::Tunnel { .. } | Self::Deliver { .. } => {
                true
            }
            Self::RefusedByPeer { status, .. } => *status == 503,
            // A bad gateway, none to be had, or one that took too long.
            Self::RefusedByProxy { status, .. } => matches!(status, 502..=504),
            _ => false,
        }
    }
}

macro_rules! reasons {
    ($($name:ident, $text:literal, $flags:literal, $fault:ident;)*) => {
        /// The stable reasons.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs)] // Each is documented at the error that it stands for.
        pub enum Reason { $($name),* }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// As it stands in logs and documentation.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// Envoy's response flags for it.
            pub fn response_flags(self) -> &'static str {
                match self { $(Self::$name => $flags),* }
            }

            /// Whose fault it is.
            pub fn fault(self) -> Fault {
                match self { $(Self::$name => Fault::$fault),* }
            }
        }
    };
}

reasons! {
    NotCaptured, "not_captured", "NR", Client;
    CallerUnknown, "caller_unknown", "UAEX", Client;
    NotMeshed, "not_meshed", "NR", Client;
    NotInRegistry, "not_in_registry", "UH", Policy;
    NotInSidecar, "not_in_sidecar", "UH", Policy;
    NotInSidecarIngress, "not_in_sidecar_ingress", "UAEX", Policy;
    NoSuchService, "no_such_service", "NR", Client;
    NoSuchPort, "no_such_port", "NR", Client;
    NoEndpoint, "no_endpoint", "UH", Upstream;
    EndpointsUnknown, "endpoints_unknown", "UH", Agent;
    NotNamed, "not_named", "NR", Client;
    Unresolved, "unresolved", "UH", Upstream;
    AllEjected, "all_ejected", "UH", Upstream;
    AllUnhealthy, "all_unhealthy", "UH", Upstream;
    OverLimit, "over_limit", "UO", Policy;
    NeedsTls, "needs_tls", "UF", Policy;
    TooLong, "too_long", "DT", Policy;
    ConnectFailed, "connect_failed", "UF", Upstream;
    DeliveryFailed, "delivery_failed", "UF", Upstream;
    HandshakeFailed, "handshake_failed", "UF", Upstream;
    TunnelBroken, "tunnel_broken", "UF", Upstream;
    DeniedByPeer, "denied_by_peer", "UAEX", Policy;
    RefusedByPeer, "refused_by_peer", "UF", Upstream;
    RefusedByProxy, "refused_by_proxy", "UF", Upstream;
    Denied, "denied", "UAEX", Policy;
    DeniedByProvider, "ext_authz_denied", "UAEX", Policy;
    NoProvidersAnswer, "ext_authz_error", "UAEX", Upstream;
    NoLongerAllowed, "no_longer_allowed", "UAEX", Policy;
    PlaintextRefused, "plaintext_refused", "UAEX", Policy;
    BadRequest, "bad_request", "DPE", Client;
    Flooded, "flooded", "DPE", Client;
    NotRegistered, "not_registered", "NR", Client;
    NotAtGateway, "not_at_gateway", "NR", Policy;
    NoWayFromGateway, "no_way_from_gateway", "NR", Policy;
    GatewayLoop, "gateway_loop", "NR", Policy;
    NoCertificate, "no_certificate", "UF", Agent;
    CertificateExpired, "certificate_expired", "UF", Upstream;
    CertificateRevoked, "certificate_revoked", "UAEX", Policy;
    Overloaded, "overloaded", "UO", Agent;
    Idle, "idle", "-", Client;
    ClientBroke, "client_broke", "DC", Client;
    UpstreamBroke, "upstream_broke", "UC", Upstream;
    Draining, "draining", "-", Agent;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_every_reason_with_its_flag_and_its_fault() {
        let manual = include_str!("../../../docs/operating.md");
        let head = "| reason | flag | fault | what to do |";
        let (_, table) = manual.split_once(head).expect("the table of reasons");
        let documented: Vec<[&str; 3]> = table
            .lines()
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .map(|line| {
                let mut cells = line.split('|').skip(1).map(str::trim);
                std::array::from_fn(|_| cells.next().unwrap_or_default())
            })
            .collect();
        for reason in Reason::ALL {
            let name = format!("`{reason}`");
            let row = [name.as_str(), reason.response_flags(), reason.fault().name()];
            assert!(documented.contains(&row), "docs/operating.md lacks {row:?}, or says otherwise");
        }
        assert_eq!(documented.len(), Reason::ALL.len(), "{documented:?}");
    }
}
