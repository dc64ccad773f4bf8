//! All VirtualServices of a mesh, ready to be asked: names in full, delegates put in their places, and which one holds for
//! a host found at once. On the mesh exactly one holds: an exact host goes before a star, the longer star before the
//! shorter, and of two for the same host the first by namespace and name; they are not merged.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::delegate;
use super::host::{HostName, HostPattern};
use super::http_route::{Destination, HttpAction, HttpEntry, HttpRoute, Split};
use super::routes::Routes;
use super::scope::{Gateway, Visibility};
use super::{Delegation, VirtualService};
use crate::name::{Domain, Key, Label};

/// All VirtualServices of a mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routing {
    /// By full name; of each name in the order of the keys.
    exact: HashMap<Arc<str>, Vec<Arc<Bound>>>,
    /// The longest first, of one length in the order of the keys.
    stars: Vec<(HostPattern, Arc<Bound>)>,
    /// What of delegates is not in force.
    faults: Vec<DelegationFault>,
}

/// Routes with those for whom they are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bound {
    gateways: Vec<Gateway>,
    visibility: Visibility,
    /// In full, and as they are written.
    hosts: Box<[HostPattern]>,
    routes: Arc<Routes>,
}

/// Routes of a delegate that are not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelegationFault {
    /// The VirtualService with the hosts.
    pub root: Key,
    /// The VirtualService that it delegates to.
    pub delegate: Key,
    /// Why.
    pub reason: DelegationReason,
}

/// Why routes of a delegate are not in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DelegationReason {
    /// There is none of that name.
    #[error("it is not there")]
    NotThere,
    /// It has hosts of its own.
    #[error("it has `hosts`, and a delegate has none")]
    HasHosts,
    /// It is not for the root's namespace.
    #[error("its `exportTo` leaves this namespace out")]
    NotExported,
    /// The route of this index matches something that the root does not give.
    #[error("its `http[{0}]` matches what is not within the root's match")]
    Conflict(usize),
}

impl Routing {
    /// Puts all VirtualServices together.
    pub fn new(all: &[Arc<VirtualService>], domain: &Domain) -> Self {
        let by_key: BTreeMap<Key, VirtualService> =
            all.iter().map(|one| (one.key.clone(), in_full(one, domain))).collect();
        let mut routing = Self::default();
        // In the order of the keys, so that the first of a host is the one that holds.
        for service in by_key.values().filter(|service| !service.is_delegate()) {
            let written = all.iter().find(|one| one.key == service.key).map(|one| &one.hosts[..]);
            let bound = Arc::new(Bound {
                gateways: service.gateways.clone(),
                visibility: service.export_to.clone(),
                hosts: service.hosts.iter().chain(written.unwrap_or_default()).cloned().collect(),
                routes: Arc::new(routing.routes_of(service, &by_key)),
            });
            for (index, host) in service.hosts.iter().enumerate() {
                // A host of two labels, which is read as a service of a namespace, may be a ServiceEntry's.
                if let Some(HostPattern::Exact(text)) = written.and_then(|written| written.get(index))
                    && text.contains('.')
                    && HostPattern::Exact(Arc::clone(text)) != *host
                {
                    routing.exact.entry(Arc::clone(text)).or_default().push(Arc::clone(&bound));
                }
                match host {
                    HostPattern::Exact(name) => {
                        routing.exact.entry(Arc::clone(name)).or_default().push(Arc::clone(&bound));
                    }
                    star => routing.stars.push((star.clone(), Arc::clone(&bound))),
                }
            }
        }
        // Stable: of one length, the order of the keys stays.
        routing.stars.sort_by_key(|(star, _)| std::cmp::Reverse(star.length()));
        routing
    }

    /// Whether there are no routes at all.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.stars.is_empty()
    }

    /// The routes that hold on the mesh for callers of `namespace` and a host.
    pub fn on_mesh(&self, namespace: &Label, host: &HostName) -> Option<&Arc<Routes>> {
        let holds = |bound: &&Arc<Bound>| {
            bound.gateways.contains(&Gateway::Mesh) && bound.visibility.includes(namespace)
        };
        self.of_host(host).find(holds).map(|bound| &bound.routes)
    }

    /// All routes that hold at a gateway of `namespace` for a host, in the order in which they are tried.
    pub fn at_gateway(
        &self,
        namespace: &Label,
        gateway: &Gateway,
        host: &HostName,
    ) -> impl Iterator<Item = &Arc<Routes>> {
        let holds = move |bound: &&Arc<Bound>| {
            bound.gateways.contains(gateway) && bound.visibility.includes(namespace)
        };
        self.of_host(host).filter(holds).map(|bound| &bound.routes)
    }

    /// All routes that hold at a gateway of `namespace` for hosts of which `is_for` says that they leave there, each once and in
    /// the order of their keys: bytes name no host.
    pub fn of_gateway(
        &self,
        namespace: &Label,
        gateway: &Gateway,
        is_for: impl Fn(&[HostPattern]) -> bool,
    ) -> Vec<&Arc<Routes>> {
        let stars = self.stars.iter().map(|(_, bound)| bound);
        let all = self.exact.values().flatten().chain(stars);
        let holds = |bound: &&Arc<Bound>| {
            bound.gateways.contains(gateway) && bound.visibility.includes(namespace) && is_for(&bound.hosts)
        };
        let mut found: Vec<_> = all.filter(holds).map(|bound| &bound.routes).collect();
        found.sort_by(|one, other| one.key.cmp(&other.key));
        found.dedup_by(|one, other| one.key == other.key);
        found
    }

    /// What of delegates is not in force, in the order of the roots' keys.
    pub fn faults(&self) -> &[DelegationFault] {
        &self.faults
    }

    /// What is bound to a host, the first to go first.
    fn of_host<'a>(&'a self, host: &HostName) -> impl Iterator<Item = &'a Arc<Bound>> {
        let exact = self.exact.get(host.full()).into_iter().flatten();
        let stars = self.stars.iter().filter(|(star, _)| star.matches(host)).map(|(_, bound)| bound);
        exact.chain(stars)
    }

    fn routes_of(&mut self, service: &VirtualService, by_key: &BTreeMap<Key, VirtualService>) -> Routes {
        let mut http = Vec::new();
        for entry in &service.http {
            match entry {
                HttpEntry::Route(route) => http.push(Arc::clone(route)),
                HttpEntry::Delegate(delegation) => self.delegated(service, delegation, by_key, &mut http),
            }
        }
        Routes { key: service.key.clone(), http, tcp: service.tcp.clone(), tls: service.tls.clone() }
    }

    /// Adds the routes of a delegate. One that is not there has none, and those that conflict are dropped.
    fn delegated(
        &mut self,
        root: &VirtualService,
        delegation: &Delegation,
        by_key: &BTreeMap<Key, VirtualService>,
        http: &mut Vec<Arc<HttpRoute>>,
    ) {
        let (to, faults) = (&delegation.to, &mut self.faults);
        let mut fault = |reason| {
            faults.push(DelegationFault { root: root.key.clone(), delegate: to.clone(), reason });
        };
        let delegate = match by_key.get(to) {
            None => return fault(DelegationReason::NotThere),
            Some(delegate) if !delegate.is_delegate() => return fault(DelegationReason::HasHosts),
            Some(delegate) if !delegate.export_to.includes(&root.key.namespace) => {
                return fault(DelegationReason::NotExported);
            }
            Some(delegate) => delegate,
        };
        for (index, entry) in delegate.http.iter().enumerate() {
            // One level: a delegate that delegates is refused where it is read.
            let HttpEntry::Route(route) = entry else { continue };
            match delegate::merged(delegation, route) {
                Some(merged) => http.push(Arc::new(merged)),
                None => fault(DelegationReason::Conflict(index)),
            }
        }
    }
}

/// A VirtualService with all its hosts in full: short names are those of its own namespace, a delegate's too.
fn in_full(service: &VirtualService, domain: &Domain) -> VirtualService {
    let from = &service.key.namespace;
    let resolve = |destination: &mut Destination| {
        destination.host = Arc::clone(HostName::resolve(&destination.host, from, domain).full());
    };
    let resolve_split = |split: &mut Split| split.all_mut().for_each(|to| resolve(&mut to.destination));
    let mut service = service.clone();
    service.hosts.iter_mut().for_each(|host| *host = host.resolved(from, domain));
    for entry in &mut service.http {
        let options = match entry {
            HttpEntry::Route(route) => {
                let route = Arc::make_mut(route);
                if let HttpAction::Forward(split) = &mut route.action {
                    resolve_split(split);
                }
                &mut route.options
            }
            HttpEntry::Delegate(delegation) => &mut delegation.options,
        };
        options.mirrors.iter_mut().for_each(|mirror| resolve(&mut mirror.destination));
    }
    service.tcp.iter_mut().for_each(|route| resolve_split(&mut Arc::make_mut(route).split));
    service.tls.iter_mut().for_each(|route| resolve_split(&mut Arc::make_mut(route).split));
    service
}

#[cfg(test)]
mod tests;
