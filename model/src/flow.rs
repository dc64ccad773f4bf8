//! Flows: connections that arrived, as policies see them, counted by who came to what; and what other policies would have
//! done with them. It is the data path's own decision, asked again.

use std::net::{IpAddr, SocketAddr};

use crate::authorization::{Carried, Connection, Facts, Hello, PolicySet, server_name, server_names};
use crate::identity::Identity;
use crate::mesh::Mesh;
use crate::name::Key;
use crate::peer_authentication::{MtlsMode, mode_of};
use crate::service::{Protocol, ServicePort};
use crate::sidecar::Scope;
use crate::workload::Labels;

/// How a connection arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// Over mutual TLS, from another host's agent.
    MutualTls,
    /// In plaintext, from another host.
    Plaintext,
    /// From a program of the same host, which the kernel vouches for.
    WithinHost,
}

impl Way {
    /// As reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Plaintext => "plaintext",
            Self::WithinHost => "within_host",
        }
    }

    /// The way of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::MutualTls, Self::Plaintext, Self::WithinHost].into_iter().find(|way| way.name() == name)
    }
}

/// Connections that policies cannot tell apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// The service that was called.
    pub service: Key,
    /// Its identity.
    pub identity: Identity,
    /// The workload's labels, by which policies select it.
    pub labels: Labels,
    /// The workload's address and port.
    pub destination: SocketAddr,
    /// Who called; nobody over plaintext.
    pub source: Option<Identity>,
    /// From where.
    pub source_ip: IpAddr,
    /// How it arrived.
    pub way: Way,
}

/// What policies do with a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// It goes on.
    Allowed,
    /// It is plaintext, and PeerAuthentication is STRICT.
    PlaintextRefused,
    /// AuthorizationPolicies refuse it, for this reason.
    Denied(String),
}

impl std::fmt::Display for Judgement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Allowed => f.write_str("allowed"),
            Self::PlaintextRefused => f.write_str("it is plaintext, and PeerAuthentication is STRICT"),
            Self::Denied(reason) => f.write_str(reason),
        }
    }
}

impl Flow {
    /// What the policies of a mesh do with it.
    pub fn judge(&self, mesh: &Mesh) -> Judgement {
        let root = &mesh.config.root_namespace;
        let workload = (&self.service.namespace, &self.labels);
        let port = self.destination.port();
        if self.way == Way::Plaintext {
            let default = (root, mesh.config.default_mtls);
            if mode_of(&mesh.peer_authentications, workload, port, default) == MtlsMode::Strict {
                return Judgement::PlaintextRefused;
            }
        }
        let (protocol, called) = self.port(mesh);
        if let Some(sidecar) = Scope::of(&mesh.sidecars, workload, root).ingress_against(port, protocol) {
            return Judgement::Denied(format!("port {port} is not in `ingress` of Sidecar {sidecar}"));
        }
        let policies =
            PolicySet::select(&mesh.authorization_policies, &self.service.namespace, &self.labels, root);
        let policies = PolicySet::new(policies.cloned().collect());
        let names = server_names(&self.service.host(&mesh.config.domain), &self.service, called);
        let (source, carried) = (self.source.as_ref(), Carried::opening(protocol));
        let connection = Connection {
            source,
            source_ip: self.source_ip,
            destination_ip: self.destination.ip(),
            destination_port: port,
            server_name: server_name((source, &names), protocol, carried, &Hello::Pending),
        };
        match policies.decide(Facts { connection, carried }).verdict {
            verdict if verdict.allows() => Judgement::Allowed,
            verdict => Judgement::Denied(verdict.to_string()),
        }
    }

    /// What the port speaks, and its number for callers. A service that is gone is taken to carry bytes.
    fn port(&self, mesh: &Mesh) -> (Protocol, u16) {
        let number = self.destination.port();
        let ports = mesh.services.get(&self.service).map_or(&[][..], |service| &service.ports);
        let is_it = |port: &&ServicePort| port.target_port.get() == number;
        // A workload may map a port of the service to another number of its own.
        let found = ports.iter().find(is_it).or_else(|| ports.first());
        found.map_or((Protocol::Tcp, number), |port| (port.protocol, port.port.get()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::authorization::{Action, AuthorizationPolicy, Enforcement, Rule, Source};
    use crate::mesh::Parts;
    use crate::name::{Label, TrustDomain};
    use crate::pattern::{Match, Pattern};
    use crate::peer_authentication::PeerAuthentication;
    use crate::sidecar::{Ingress, Sidecar};

    fn label(text: &str) -> Label {
        Label::new(text).expect("a label")
    }

    fn id(account: &str) -> Identity {
        Identity::new(TrustDomain::new("td").expect("a domain"), label("shop"), label(account))
    }

    fn flow(way: Way, source: Option<&str>) -> Flow {
        Flow {
            service: Key::new(label("shop"), label("orders")),
            identity: id("orders"),
            labels: [("app".into(), "orders".into())].into(),
            destination: "10.0.0.7:80".parse().expect("an address"),
            source: source.map(id),
            source_ip: "10.0.0.9".parse().expect("an address"),
            way,
        }
    }

    #[test]
    fn is_judged_as_the_data_path_would() {
        let web = Match { any_of: vec![Pattern::new("td/ns/shop/sa/web")], ..Match::default() };
        let policy = AuthorizationPolicy {
            key: Key::new(label("shop"), label("orders")),
            selector: Some([("app".into(), "orders".into())].into()),
            action: Action::Allow,
            enforcement: Enforcement::Enforced,
            response: None,
            provider: None,
            rules: vec![Rule {
                from: vec![Source { principals: web, ..Source::default() }],
                ..Rule::default()
            }],
        };
        let strict = PeerAuthentication {
            key: Key::new(label("shop"), label("strict")),
            selector: None,
            mode: Some(MtlsMode::Strict),
            ports: Default::default(),
        };
        let mesh = |policies: &[AuthorizationPolicy], peers: &[PeerAuthentication]| {
            let authorization_policies = policies.iter().cloned().map(Arc::new).collect();
            let parts =
                Parts { authorization_policies, peer_authentications: peers.to_vec(), ..Parts::default() };
            Mesh::assemble(parts).expect("a mesh")
        };
        let (open, listed) = (mesh(&[], &[]), mesh(std::slice::from_ref(&policy), &[]));
        let shut = mesh(&[policy], &[strict]);
        for (way, source, expected) in [
            (Way::MutualTls, Some("web"), [true, true, true]),
            (Way::MutualTls, Some("till"), [true, false, false]),
            (Way::WithinHost, Some("web"), [true, true, true]),
            (Way::Plaintext, None, [true, false, false]),
        ] {
            let flow = flow(way, source);
            let found = [&open, &listed, &shut].map(|mesh| flow.judge(mesh) == Judgement::Allowed);
            assert_eq!(found, expected, "{flow:?}");
        }
        assert_eq!(flow(Way::Plaintext, None).judge(&shut), Judgement::PlaintextRefused);
        let denied = flow(Way::MutualTls, Some("till")).judge(&listed).to_string();
        assert!(denied.contains("no ALLOW policy"), "{denied}");
    }

    #[test]
    fn a_port_that_no_sidecar_takes_is_judged_so() {
        let mesh = |port: u16| {
            let ingress = Some(vec![Ingress { port, protocol: None }]);
            let key = Key::new(label("shop"), label("default"));
            let sidecar = Sidecar { key, selector: None, egress: None, ingress, outbound: None };
            let parts = Parts { sidecars: vec![Arc::new(sidecar)], ..Parts::default() };
            Mesh::assemble(parts).expect("a mesh")
        };
        let flow = flow(Way::MutualTls, Some("web"));
        assert_eq!(flow.judge(&mesh(80)), Judgement::Allowed);
        let refused = flow.judge(&mesh(81)).to_string();
        assert!(refused.contains("port 80 is not in `ingress` of Sidecar default.shop"), "{refused}");
    }

    #[test]
    fn ways_have_names() {
        for way in [Way::MutualTls, Way::Plaintext, Way::WithinHost] {
            assert_eq!(Way::of_name(way.name()), Some(way));
        }
        assert_eq!(Way::of_name("tls"), None);
    }
}
