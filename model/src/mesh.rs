//! The whole set of resources, validated as a whole. Everything that runs is compiled from one `Mesh`, and a set
//! that does not hold together never becomes one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::authorization::AuthorizationPolicy;
use crate::destination_rule::DestinationRule;
use crate::endpoint_addresses::EndpointAddresses;
use crate::federation::Federated;
use crate::gateway::Gateway;
use crate::identity::{Identity, RESERVED_NAMESPACES};
use crate::mesh_config::MeshConfig;
use crate::name::{Key, Label};
use crate::network::may_meet;
use crate::peer_authentication::PeerAuthentication;
use crate::rate_limit::RateLimit;
use crate::request_authentication::RequestAuthentication;
use crate::service::Service;
use crate::service_entry::{ServiceEntry, selected_by};
use crate::sidecar::Sidecar;
use crate::virtual_service::VirtualService;
use crate::workload::{Tunnel, Workload};
use crate::workload_group::WorkloadGroup;

/// Hosts of service entries beside everything else.
mod external_hosts;

/// The kinds of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `MeshConfig`
    MeshConfig,
    /// `Service`
    Service,
    /// `WorkloadEntry`
    WorkloadEntry,
    /// `VirtualService`
    VirtualService,
    /// `PeerAuthentication`
    PeerAuthentication,
    /// `AuthorizationPolicy`
    AuthorizationPolicy,
    /// `HostGrant`
    HostGrant,
    /// `DestinationRule`
    DestinationRule,
    /// `RateLimit`
    RateLimit,
    /// `RequestAuthentication`
    RequestAuthentication,
    /// `ServiceEntry`
    ServiceEntry,
    /// `WorkloadGroup`
    WorkloadGroup,
    /// `Sidecar`
    Sidecar,
    /// `Gateway`
    Gateway,
}

impl Kind {
    /// The kind's name as written.
    pub fn name(self) -> &'static str {
        match self {
            Self::MeshConfig => "MeshConfig",
            Self::Service => "Service",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::VirtualService => "VirtualService",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::HostGrant => "HostGrant",
            Self::DestinationRule => "DestinationRule",
            Self::RateLimit => "RateLimit",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadGroup => "WorkloadGroup",
            Self::Sidecar => "Sidecar",
            Self::Gateway => "Gateway",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which resource a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId {
    /// The kind.
    pub kind: Kind,
    /// Namespace and name.
    pub key: Key,
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.key.namespace, self.key.name)
    }
}

/// Why a set of resources is not a mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{resource}: {fault}")]
pub struct MeshError {
    /// The resource at fault; of two that collide, the later by key.
    pub resource: ResourceId,
    /// What is wrong with it.
    pub fault: MeshFault,
}

/// What is wrong with a resource within its set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The messages say what each is.
pub enum MeshFault {
    #[error("the namespace `{0}` is the mesh's own: choose another")]
    ReservedNamespace(Label),
    #[error("the virtual address {address} is {other}'s already: set `addresses` of one of the two")]
    AddressTaken { address: IpAddr, other: Key },
    #[error("the virtual address {0} lies outside the mesh's virtual ranges")]
    AddressOutside(IpAddr),
    #[error(
        "serviceAccount `{stated}` disagrees with `{expected}` of Service {service}: correct one of the two"
    )]
    AccountDisagrees { stated: Label, expected: Label, service: Key },
    #[error(
        "{address} port {port} serves {service} and {other}: two identities cannot share one address and port"
    )]
    EndpointTaken { address: IpAddr, port: u16, service: Key, other: Key },
    #[error("there is no Service `{0}` to register under")]
    NoService(Key),
    #[error(
        "{0} is of a trust domain that `federation` of MeshConfig does not name: take the one out of `subjectAltNames`, or put the other in"
    )]
    NotFederated(Identity),
    #[error("{0} is what another mesh keeps for itself, and no service")]
    FederatedReserved(Identity),
    #[error(
        "Service {service} is another mesh's ({identity}): its endpoints are reached by their agents alone, so write `tunnel = \"hbone\"`"
    )]
    FederatedPlain { service: Key, identity: Identity },
    #[error("Service {service} is another mesh's ({identity}): no host of this one registers it")]
    FederatedRegistered { service: Key, identity: Identity },
    #[error(
        "the host `{0}` lies in the mesh's own domain: write a Service, with WorkloadEntries for its endpoints"
    )]
    HostOfMesh(Arc<str>),
    #[error(
        "ServiceEntry {other} has the host `{host}` for other namespaces: two for one host in one namespace have the same `exportTo`"
    )]
    ExportsDiffer { host: Arc<str>, other: Key },
    #[error(
        "ServiceEntry {other} has the host `{host}` with resolution NONE, this one has not: two for one host in one namespace are both NONE, or neither is"
    )]
    ResolutionsDiffer { host: Arc<str>, other: Key },
}

/// Everything that a mesh is made of, before it is known to hold together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    /// Mesh-wide settings.
    pub config: MeshConfig,
    /// Services by key.
    pub services: BTreeMap<Key, Service>,
    /// Workloads by key. Shared with sets before and after: most of a mesh stays as it is when something changes.
    pub workloads: BTreeMap<Key, Arc<Workload>>,
    /// Virtual services, ordered by key.
    pub virtual_services: Vec<Arc<VirtualService>>,
    /// Peer authentications, ordered by key.
    pub peer_authentications: Vec<PeerAuthentication>,
    /// Authorization policies, ordered by key.
    pub authorization_policies: Vec<Arc<AuthorizationPolicy>>,
    /// Destination rules, ordered by key.
    pub destination_rules: Vec<Arc<DestinationRule>>,
    /// Rate limits, ordered by key.
    pub rate_limits: Vec<Arc<RateLimit>>,
    /// Request authentications, ordered by key.
    pub request_authentications: Vec<Arc<RequestAuthentication>>,
    /// Service entries by key.
    pub service_entries: BTreeMap<Key, Arc<ServiceEntry>>,
    /// Workload groups by key.
    pub workload_groups: BTreeMap<Key, Arc<WorkloadGroup>>,
    /// Sidecars, ordered by key.
    pub sidecars: Vec<Arc<Sidecar>>,
    /// Services whose endpoints a host has not asked for, with where they are. It knows nothing else of those.
    pub unheld: BTreeMap<Key, Arc<EndpointAddresses>>,
    /// Gateways, ordered by key.
    pub gateways: Vec<Arc<Gateway>>,
}

/// A validated set of resources. Only `Mesh::assemble` makes one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mesh {
    parts: Parts,
    /// The workloads of each service that has some, ordered by key.
    members: HashMap<Key, Vec<Arc<Workload>>>,
}

impl std::ops::Deref for Mesh {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl Mesh {
    /// Validates the parts as a whole. Services without addresses get hashed ones. All faults are reported, not
    /// the first alone.
    pub fn assemble(mut parts: Parts) -> Result<Self, Vec<MeshError>> {
        let mut errors = Vec::new();
        for service in parts.services.values_mut() {
            if service.addresses.is_empty() {
                service.addresses = parts.config.virtual_ranges.hashed(&service.key);
            }
        }
        parts.peer_authentications.sort_by(|a, b| a.key.cmp(&b.key));
        parts.authorization_policies.sort_by(|a, b| a.key.cmp(&b.key));
        parts.virtual_services.sort_by(|a, b| a.key.cmp(&b.key));
        parts.destination_rules.sort_by(|a, b| a.key.cmp(&b.key));
        parts.rate_limits.sort_by(|a, b| a.key.cmp(&b.key));
        parts.request_authentications.sort_by(|a, b| a.key.cmp(&b.key));
        parts.sidecars.sort_by(|a, b| a.key.cmp(&b.key));
        parts.gateways.sort_by(|a, b| a.key.cmp(&b.key));
        check_services(&parts, &mut errors);
        external_hosts::check(&parts, &mut errors);
        let members = check_workloads(&parts, &mut errors);
        check_groups(&parts, &mut errors);
        if errors.is_empty() { Ok(Self { parts, members }) } else { Err(errors) }
    }

    /// The same mesh as a host knows it that has not asked for the endpoints of these services.
    pub fn holding_all_but(mut self, unheld: BTreeMap<Key, Arc<EndpointAddresses>>) -> Self {
        self.parts.unheld = unheld;
        self
    }

    /// The same mesh as a host knows it that holds the endpoints of some services: of the others it knows where those are. What
    /// a ServiceEntry selects is held, since what is called by that is not asked for.
    pub fn holding(mut self, holds: impl Fn(&Key) -> bool) -> Self {
        let mut given_up: BTreeSet<Key> = BTreeSet::new();
        for (key, service) in self.parts.services.iter().filter(|(key, _)| !holds(key)) {
            let members = self.members.remove(key).unwrap_or_default();
            if let Some(addresses) = EndpointAddresses::of(service, members.iter().map(Arc::as_ref)) {
                self.parts.unheld.insert(key.clone(), Arc::new(addresses));
                given_up.extend(members.iter().map(|workload| workload.key.clone()));
            }
        }
        let is_selected = selected_by(self.parts.service_entries.values().map(Arc::as_ref));
        // A workload may serve several services.
        let kept: BTreeSet<&Key> = self.members.values().flatten().map(|workload| &workload.key).collect();
        self.parts.workloads.retain(move |key, workload| {
            !given_up.contains(key) || kept.contains(key) || is_selected(workload)
        });
        self
    }

    /// The parts, to change and assemble anew.
    pub fn into_parts(self) -> Parts {
        self.parts
    }

    /// The workloads that serve a service of this mesh, ordered by key.
    pub fn workloads_of(&self, service: &Service) -> &[Arc<Workload>] {
        self.members.get(&service.key).map(|members| &**members).unwrap_or_default()
    }

    /// The identity that the endpoints of `service` show.
    pub fn identity_of(&self, service: &Service) -> Identity {
        service.identity(&self.parts.config.trust_domain)
    }
}

fn check_services(parts: &Parts, errors: &mut Vec<MeshError>) {
    let mut taken: BTreeMap<IpAddr, &Key> = BTreeMap::new();
    for (key, service) in &parts.services {
        let mut fault = |fault| {
            let resource = ResourceId { kind: Kind::Service, key: key.clone() };
            errors.push(MeshError { resource, fault });
        };
        if RESERVED_NAMESPACES.contains(&key.namespace.as_str()) {
            fault(MeshFault::ReservedNamespace(key.namespace.clone()));
        }
        if let Some(identity) = &service.federated {
            let names = |federated: &Federated| federated.trust_domain == *identity.trust_domain();
            if !parts.config.federation.iter().any(names) {
                fault(MeshFault::NotFederated(identity.clone()));
            }
            if identity.is_reserved() {
                fault(MeshFault::FederatedReserved(identity.clone()));
            }
        }
        for address in &service.addresses {
            if !parts.config.virtual_ranges.contains(*address) {
                fault(MeshFault::AddressOutside(*address));
            }
            if let Some(other) = taken.insert(*address, key) {
                fault(MeshFault::AddressTaken { address: *address, other: other.clone() });
            }
        }
    }
}

fn check_groups(parts: &Parts, errors: &mut Vec<MeshError>) {
    for key in parts.workload_groups.keys() {
        if RESERVED_NAMESPACES.contains(&key.namespace.as_str()) {
            let resource = ResourceId { kind: Kind::WorkloadGroup, key: key.clone() };
            errors.push(MeshError { resource, fault: MeshFault::ReservedNamespace(key.namespace.clone()) });
        }
    }
}

/// Whose an address and port are, in which network.
type Owner<'a> = (Option<&'a Label>, &'a Service);

/// Checks the workloads, and returns those of each service.
fn check_workloads(parts: &Parts, errors: &mut Vec<MeshError>) -> HashMap<Key, Vec<Arc<Workload>>> {
    let mut owners: HashMap<(IpAddr, u16), Vec<Owner<'_>>> = HashMap::with_capacity(parts.workloads.len());
    let mut members: HashMap<Key, Vec<Arc<Workload>>> = HashMap::with_capacity(parts.services.len());
    let services = ServicesOfWorkloads::new(parts);
    for workload in parts.workloads.values() {
        let mut fault = |fault| {
            let resource = ResourceId { kind: Kind::WorkloadEntry, key: workload.key.clone() };
            errors.push(MeshError { resource, fault });
        };
        if let Some(name) = &workload.service {
            let key = Key::new(workload.key.namespace.clone(), name.clone());
            if !parts.services.contains_key(&key) {
                fault(MeshFault::NoService(key));
            }
        }
        for service in services.of(workload) {
            members.entry(service.key.clone()).or_default().push(Arc::clone(workload));
            if let Some(stated) = workload.service_account.as_ref().filter(|a| **a != service.service_account)
            {
                fault(MeshFault::AccountDisagrees {
                    stated: stated.clone(),
                    expected: service.service_account.clone(),
                    service: service.key.clone(),
                });
            }
            if let Some(identity) = service.federated.clone() {
                let service = service.key.clone();
                if workload.host.is_some() {
                    fault(MeshFault::FederatedRegistered { service, identity });
                } else if workload.tunnel == Tunnel::Plain {
                    fault(MeshFault::FederatedPlain { service, identity });
                }
            }
            if workload.tunnel == Tunnel::Plain {
                continue;
            }
            for address in service.ports.iter().flat_map(|port| workload.endpoints(port)) {
                let at = (address.ip(), address.port());
                let there = owners.entry(at).or_default();
                let mut others =
                    there.iter().filter(|(network, _)| may_meet(*network, workload.network.as_ref()));
                if let Some((_, other)) = others.find(|(_, other)| !same_identity(other, service)) {
                    fault(MeshFault::EndpointTaken {
                        address: at.0,
                        port: at.1,
                        service: service.key.clone(),
                        other: other.key.clone(),
                    });
                }
                there.push((workload.network.as_ref(), service));
            }
        }
    }
    members
}

/// Which services a workload is an endpoint of, without a look at each: a mesh has thousands of both. Says what
/// `Workload::serves` says.
struct ServicesOfWorkloads<'a> {
    services: &'a BTreeMap<Key, Service>,
    /// Those with a selector, by namespace.
    selecting: HashMap<&'a Label, Vec<&'a Service>>,
}

impl<'a> ServicesOfWorkloads<'a> {
    fn new(parts: &'a Parts) -> Self {
        let mut selecting: HashMap<_, Vec<_>> = HashMap::new();
        for service in parts.services.values().filter(|service| service.selector.is_some()) {
            selecting.entry(&service.key.namespace).or_default().push(service);
        }
        Self { services: &parts.services, selecting }
    }

    fn of(&self, workload: &Workload) -> impl Iterator<Item = &'a Service> {
        let namespace = &workload.key.namespace;
        let (name, selecting) = match &workload.service {
            Some(registered) => (Some(registered.clone()), None),
            None => {
                let app = workload.labels.get("app").and_then(|app| Label::new(app).ok());
                (app, self.selecting.get(namespace))
            }
        };
        let named = name.and_then(|name| self.services.get(&Key::new(namespace.clone(), name)));
        let named = named.filter(|service| workload.serves(service));
        let selecting = selecting.into_iter().flatten().copied();
        // One with a selector that is also named by the label `app` is found by its selector alone.
        let others = selecting.filter(move |service| named.is_none_or(|named| named.key != service.key));
        let others: Vec<_> = others.filter(|service| workload.serves(service)).collect();
        named.into_iter().chain(others)
    }
}

fn same_identity(a: &Service, b: &Service) -> bool {
    match (&a.federated, &b.federated) {
        (None, None) => a.key.namespace == b.key.namespace && a.service_account == b.service_account,
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{Protocol, ServicePort};
    use crate::service_entry::Endpoints;
    use crate::service_entry::{Location, Resolution};
    use crate::virtual_service::{HostPattern, Visibility};
    use crate::workload::Locality;

    fn key(text: &str) -> Key {
        let (name, namespace) = text.split_once('.').expect("name.namespace");
        Key::new(Label::new(namespace).expect("a label"), Label::new(name).expect("a label"))
    }

    fn service(name: &str) -> Service {
        let port = 8080.try_into().expect("a port");
        let ports = vec![ServicePort { port, target_port: port, protocol: Protocol::Tcp, name: None }];
        let key = key(name);
        let service_account = key.name.clone();
        Service { key, ports, selector: None, service_account, addresses: vec![], federated: None }
    }

    fn workload(name: &str, service: &str, address: &str) -> Workload {
        Workload {
            key: key(name),
            address: address.parse().expect("an address"),
            other_addresses: vec![],
            service: Some(Label::new(service).expect("a label")),
            host: None,
            ports: BTreeMap::new(),
            labels: BTreeMap::new(),
            network: None,
            locality: Locality::default(),
            weight: 1,
            service_account: None,
            tunnel: Tunnel::Hbone,
            health: Default::default(),
        }
    }

    fn check(services: Vec<Service>, workloads: Vec<Workload>, expected: &[&str]) {
        let parts = Parts {
            services: services.into_iter().map(|s| (s.key.clone(), s)).collect(),
            workloads: workloads.into_iter().map(|w| (w.key.clone(), w.into())).collect(),
            ..Parts::default()
        };
        let errors = Mesh::assemble(parts).err().unwrap_or_default();
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), expected.len(), "{errors:?}");
        for (error, part) in errors.iter().zip(expected) {
            assert!(error.contains(part), "{error} should say {part}");
        }
    }

    #[test]
    fn takes_a_set_that_holds_together() {
        check(vec![service("a.x"), service("b.x")], vec![workload("a-1.x", "a", "10.0.0.1")], &[]);
    }

    #[test]
    fn refuses_what_does_not() {
        check(vec![service("a.hosts")], vec![], &["the mesh's own"]);
        check(vec![service("a.x")], vec![workload("b-1.x", "b", "10.0.0.1")], &["no Service `b.x`"]);
        check(
            vec![service("a.x"), service("b.x")],
            vec![workload("a-1.x", "a", "10.0.0.1"), workload("b-1.x", "b", "10.0.0.1")],
            &["cannot share"],
        );
        let of = |network: &str, workload: Workload| Workload {
            network: Some(Label::new(network).expect("a label")),
            ..workload
        };
        check(
            vec![service("a.x"), service("b.x")],
            vec![of("eu", workload("a-1.x", "a", "10.0.0.1")), of("us", workload("b-1.x", "b", "10.0.0.1"))],
            &[],
        );
        check(
            vec![service("a.x"), service("b.x")],
            vec![of("eu", workload("a-1.x", "a", "10.0.0.1")), workload("b-1.x", "b", "10.0.0.1")],
            &["cannot share"],
        );
        let mut disagreeing = workload("a-1.x", "a", "10.0.0.1");
        disagreeing.service_account = Some(Label::new("root").expect("a label"));
        check(vec![service("a.x")], vec![disagreeing], &["disagrees"]);
        let address = "240.240.0.9".parse().expect("an address");
        let with_address = |name: &str| Service { addresses: vec![address], ..service(name) };
        check(vec![with_address("a.x"), with_address("b.x")], vec![], &["a.x's already"]);
        let outside = Service { addresses: vec!["10.0.0.1".parse().expect("an address")], ..service("a.x") };
        check(vec![outside], vec![], &["outside"]);
    }

    #[test]
    fn of_services_that_are_not_held_is_known_where_their_endpoints_are() {
        let labels =
            |all: &[(&str, &str)]| all.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let (of_a, both, old) = (("app", "a"), ("of", "both"), ("vm", "old"));
        let labelled = |name: &str, address: &str, all: &[(&str, &str)]| {
            let workload = workload(name, "a", address);
            (workload.key.clone(), Workload { service: None, labels: labels(all), ..workload }.into())
        };
        let selecting = |name: &str, by: (&str, &str)| {
            let service_account = Label::new("a").expect("a label");
            let service = Service { selector: Some(labels(&[by])), service_account, ..service(name) };
            (service.key.clone(), service)
        };
        let mut parts = Parts {
            services: [selecting("a.x", of_a), selecting("b.x", both), selecting("c.x", ("of", "nobody"))]
                .into(),
            workloads: [
                labelled("a-1.x", "10.0.0.1", &[of_a]),
                labelled("a-2.x", "10.0.0.2", &[of_a, old]),
                labelled("ab.x", "10.0.0.3", &[of_a, both]),
                labelled("b-1.x", "10.0.0.4", &[both]),
            ]
            .into(),
            ..Parts::default()
        };
        let outside = ServiceEntry {
            key: key("outside.x"),
            hosts: vec![HostPattern::Exact("old.example.com".into())],
            addresses: Vec::new(),
            ports: service("a.x").ports,
            location: Location::default(),
            resolution: Resolution::Static,
            endpoints: Endpoints::Selected(labels(&[old])),
            subject_alt_names: Vec::new(),
            export_to: Visibility::default(),
            assigned: BTreeMap::new(),
        };
        parts.service_entries = [(outside.key.clone(), Arc::new(outside))].into();
        let mesh = Mesh::assemble(parts).expect("it holds together");
        let shown = |mesh: &Mesh| {
            let members = |name| mesh.workloads_of(&mesh.services[&key(name)]).len();
            let unheld = mesh.unheld.iter().map(|(key, at)| format!("{key} {}", at.all().count()));
            let workloads = mesh.workloads.keys().map(ToString::to_string);
            let text = |all: Vec<String>| all.join(" ");
            (["a.x", "b.x", "c.x"].map(members), text(unheld.collect()), text(workloads.collect()))
        };
        let (none, a) = (mesh.clone().holding(|_| false), mesh.clone().holding(|held| *held == key("a.x")));
        assert_eq!(shown(&none), ([0, 0, 0], "a.x 3 b.x 2".to_owned(), "a-2.x".to_owned()));
        assert_eq!(shown(&a), ([3, 0, 0], "b.x 2".to_owned(), "a-1.x a-2.x ab.x".to_owned()));
        assert_eq!(mesh.clone().holding(|_| true), mesh);
    }

    #[test]
    fn workloads_are_found_as_they_serve() {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let selecting = |name: &str, selector: &[(&str, &str)]| Service {
            selector: Some(labels(selector)),
            ..service(name)
        };
        let hand_written = |name: &str, address: &str, pairs: &[(&str, &str)]| Workload {
            service: None,
            labels: labels(pairs),
            tunnel: Tunnel::Plain,
            ..workload(name, "none", address)
        };
        let services = vec![
            service("a.x"),
            service("a.y"),
            selecting("b.x", &[("app", "b")]),
            selecting("tier.x", &[("tier", "web")]),
            selecting("all.x", &[]),
        ];
        let workloads = vec![
            workload("r1.x", "a", "10.0.0.1"),
            workload("r2.x", "b", "10.0.0.2"),
            hand_written("w1.x", "10.0.0.3", &[("app", "a"), ("tier", "web")]),
            hand_written("w2.x", "10.0.0.4", &[("app", "b")]),
            hand_written("w3.x", "10.0.0.5", &[("app", "Not a name")]),
            hand_written("w4.y", "10.0.0.6", &[("app", "a"), ("tier", "web")]),
            hand_written("w5.y", "10.0.0.7", &[]),
        ];
        let parts = Parts {
            services: services.into_iter().map(|s| (s.key.clone(), s)).collect(),
            workloads: workloads.into_iter().map(|w| (w.key.clone(), w.into())).collect(),
            ..Parts::default()
        };
        let mesh = Mesh::assemble(parts).expect("it holds together");
        for service in mesh.services.values() {
            let serving = mesh.workloads.values().filter(|workload| workload.serves(service));
            let expected: Vec<_> = serving.map(|workload| &workload.key).collect();
            let found: Vec<_> = mesh.workloads_of(service).iter().map(|workload| &workload.key).collect();
            assert_eq!(found, expected, "{:?}", service.key);
        }
    }
}
