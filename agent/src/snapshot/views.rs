//! How each service is called, by kinds of callers of this host: which DestinationRule holds for each, where each stands,
//! and so which clusters each has. Callers for whom nothing differs share one view.

use std::collections::HashMap;
use std::sync::Arc;

use baremesh_model::balance::locality::{self, Place};
use baremesh_model::balance::{Balancer, Member, hash};
use baremesh_model::destination_rule::{
    Caller, EffectivePolicy, LoadBalancer, MergedRule, Rules, Subset, TrafficPolicy,
};
use baremesh_model::identity::Identity;
use baremesh_model::mesh::Mesh;
use baremesh_model::name::{Key, Label};
use baremesh_model::workload::{Labels, Locality, selects};

use super::cluster::{Cluster, ClusterName, Group, Table};
use super::{Endpoint, Host, PortEntry, PortView, View, Views};
use crate::registration::LocalService;

/// One caller of this host, as rules and balancing know it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct From {
    namespace: Label,
    labels: Labels,
    locality: Locality,
}

/// All callers of this host: the registrations by their index, and last the host itself.
pub(super) struct Callers {
    callers: Vec<From>,
    rules: Rules,
}

/// What tells views of one service apart.
#[derive(PartialEq)]
struct Kind<'a> {
    rule: Option<&'a Arc<MergedRule>>,
    /// Where the caller stands, where the rule has it count.
    place: Option<(&'a Locality, &'a Labels)>,
}

impl Callers {
    pub(super) fn new(mesh: &Mesh, registrations: &[Arc<LocalService>], host: &Host) -> Self {
        let of = |local: &Arc<LocalService>| From {
            namespace: local.key.namespace.clone(),
            labels: local.labels(),
            locality: local.locality.clone().unwrap_or_default(),
        };
        let mut callers: Vec<From> = registrations.iter().map(of).collect();
        // The host stands where its services do, if they agree.
        let first = callers.first().map(|caller| caller.locality.clone()).unwrap_or_default();
        let agreed = callers.iter().all(|caller| caller.locality == first);
        let identity = Identity::host(mesh.config.trust_domain.clone(), host.name.clone());
        callers.push(From {
            namespace: identity.namespace().clone(),
            labels: Labels::new(),
            locality: if agreed { first } else { Locality::default() },
        });
        let config = &mesh.config;
        let rules = Rules::new(&mesh.destination_rules, &config.domain, &config.root_namespace);
        Self { callers, rules }
    }

    /// The callers, the host itself last.
    pub(super) fn list(&self) -> &[From] {
        &self.callers
    }

    /// The views of a service. What was learnt comes from `former`, those that it had before.
    pub(super) fn views(
        &self,
        service: &Key,
        host: &Arc<str>,
        ports: &[PortEntry],
        former: Option<&Views>,
    ) -> Views {
        let former = former.map(|former| &*former.views).unwrap_or_default();
        if self.rules.is_empty() {
            let view = view(&Kind { rule: None, place: None }, (&[], former), host, ports);
            return Views { views: vec![view], of_caller: Vec::new() };
        }
        let mut kinds: Vec<Kind<'_>> = Vec::new();
        let mut of_caller = Vec::with_capacity(self.callers.len());
        for caller in &self.callers {
            let who = Caller { namespace: &caller.namespace, labels: &caller.labels };
            let rule = self.rules.find(who, service);
            let counts = rule.is_some_and(|rule| place_counts(rule));
            let kind = Kind { rule, place: counts.then_some((&caller.locality, &caller.labels)) };
            let index = kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
                kinds.push(kind);
                kinds.len() - 1
            });
            of_caller.push(u32::try_from(index).unwrap_or(0));
        }
        let mut views = Vec::with_capacity(kinds.len());
        for kind in &kinds {
            views.push(view(kind, (&views, former), host, ports));
        }
        Views { views, of_caller }
    }

    /// The views of a host of ServiceEntries. Where a rule originates TLS and names nobody, the entry says whose certificate
    /// is taken.
    pub(super) fn views_of_external(
        &self,
        (service, host): (&Key, &Arc<str>),
        ports: &[PortEntry],
        names: &[Arc<str>],
        former: Option<&Views>,
    ) -> Views {
        let mut views = self.views(service, host, ports, former);
        if !names.is_empty() {
            let ports = views.views.iter_mut().flat_map(|view| &mut view.ports);
            let clusters =
                ports.flat_map(|port| std::iter::once(&mut port.whole).chain(port.subsets.values_mut()));
            clusters.for_each(|cluster| {
                if let Some(Some(of_entry)) = cluster.tls().map(|tls| tls.held_to(names)) {
                    *cluster = Arc::new(cluster.with_tls(of_entry));
                }
            });
        }
        views
    }
}

/// One view; what was learnt is shared with `others` of the same service, and comes from its `former` ones.
fn view(kind: &Kind<'_>, (others, former): (&[View], &[View]), host: &Arc<str>, ports: &[PortEntry]) -> View {
    let rules: Arc<[Key]> = kind.rule.map(|rule| rule.keys.clone()).unwrap_or_default().into();
    let port = |port: &PortEntry| {
        let cluster = |subset: Option<&Subset>| {
            let name = ClusterName {
                host: Arc::clone(host),
                port: port.port,
                subset: subset.map(|subset| Arc::clone(&subset.name)),
                rules: Arc::clone(&rules),
            };
            let clusters =
                others.iter().chain(former).flat_map(|view| &view.ports).flat_map(PortView::clusters);
            let known: Vec<_> = clusters.filter(|known| known.name == name).collect();
            Arc::new(cluster(name, (kind, subset), port, &known))
        };
        let subsets = kind.rule.map(|rule| &*rule.subsets).unwrap_or_default();
        PortView {
            whole: cluster(None),
            subsets: subsets.iter().map(|s| (Arc::clone(&s.name), cluster(Some(s)))).collect(),
        }
    };
    View { rule: kind.rule.cloned(), ports: ports.iter().map(port).collect() }
}

/// The cluster of a port, or of one of its subsets. `known` are those that lend what was learnt: of other callers of this
/// host, and of the state before.
fn cluster(
    name: ClusterName,
    (kind, subset): (&Kind<'_>, Option<&Subset>),
    port: &PortEntry,
    known: &[&Arc<Cluster>],
) -> Cluster {
    let policy = kind
        .rule
        .map(|rule| rule.policy.effective(subset.and_then(|subset| subset.policy.as_ref()), port.port));
    let policy = policy.unwrap_or_default();
    let labels = subset.map(|subset| &subset.labels);
    let inside = |endpoint: &&Arc<Endpoint>| labels.is_none_or(|labels| selects(labels, &endpoint.labels));
    let endpoints: Vec<Arc<Endpoint>> = port.endpoints.iter().filter(inside).cloned().collect();
    let endpoints = if policy.outlier.is_some() { judged_apart(endpoints, known) } else { endpoints };
    let (mut ordered, mut groups) = (Vec::new(), Vec::new());
    for group in grouped(&endpoints, kind.place, &policy) {
        let start = ordered.len();
        ordered.extend(group.members.into_iter().map(|member| Arc::clone(&endpoints[member])));
        let table = table(&ordered[start..], &policy, known);
        groups.push(Group {
            priority: group.priority,
            weight: group.weight,
            range: start..ordered.len(),
            table,
        });
    }
    let state = known.first().map(|known| Arc::clone(known.state())).unwrap_or_default();
    Cluster::new(name, policy, ordered, groups, state)
}

/// Whether where a caller stands makes a difference under a rule.
fn place_counts(rule: &MergedRule) -> bool {
    let of_policy = |policy: &TrafficPolicy| {
        let ports = policy.ports.values();
        let mut parts = ports.map(|port| (&port.outlier_detection, &port.load_balancer));
        let counts = |(outlier, balancer): (&Option<_>, &Option<LoadBalancer>)| {
            outlier.is_some() || balancer.as_ref().is_some_and(|balancer| balancer.locality.is_some())
        };
        counts((&policy.outlier_detection, &policy.load_balancer)) || parts.any(counts)
    };
    of_policy(&rule.policy) || rule.subsets.iter().filter_map(|subset| subset.policy.as_ref()).any(of_policy)
}

/// The endpoints with a record of their own on who is left out: another cluster may judge them by other rules.
fn judged_apart(endpoints: Vec<Arc<Endpoint>>, known: &[&Arc<Cluster>]) -> Vec<Arc<Endpoint>> {
    let known: HashMap<_, &Arc<Endpoint>> = known
        .iter()
        .rev()
        .filter(|known| known.policy.outlier.is_some())
        .flat_map(|known| known.endpoints().iter().map(|endpoint| (endpoint.place(), endpoint)))
        .collect();
    let apart = |endpoint: Arc<Endpoint>| {
        let state = match known.get(&endpoint.place()) {
            Some(known) => Arc::clone(&known.state),
            None => Arc::new(endpoint.state.beside()),
        };
        Arc::new(Endpoint { state, ..Endpoint::clone(&endpoint) })
    };
    endpoints.into_iter().map(apart).collect()
}

fn grouped(
    endpoints: &[Arc<Endpoint>],
    place: Option<(&Locality, &Labels)>,
    policy: &EffectivePolicy,
) -> Vec<locality::Group> {
    let places: Vec<Place<'_>> = endpoints
        .iter()
        .map(|endpoint| Place {
            locality: &endpoint.locality,
            labels: &endpoint.labels,
            weight: endpoint.weight,
        })
        .collect();
    let nowhere = (Locality::default(), Labels::new());
    let (locality, labels) = place.unwrap_or((&nowhere.0, &nowhere.1));
    let caller = Place { locality, labels, weight: 0 };
    let setting = policy.load_balancer.locality.as_ref();
    locality::groups(&places, caller, setting, policy.outlier.is_some())
}

/// The table of a group; one that is known where it is of the same endpoints.
fn table(endpoints: &[Arc<Endpoint>], policy: &EffectivePolicy, known: &[&Arc<Cluster>]) -> Arc<Table> {
    let member = |endpoint: &Arc<Endpoint>| Member {
        id: hash::of_endpoint(endpoint.address),
        weight: endpoint.weight,
    };
    let members: Box<[Member]> = endpoints.iter().map(member).collect();
    let algorithm = &policy.load_balancer.algorithm;
    let mut tables = known.iter().flat_map(|known| known.groups()).map(|group| &group.table);
    match tables.find(|table| table.members == members && table.algorithm == *algorithm) {
        Some(known) => Arc::clone(known),
        None => Arc::new(Table {
            balancer: Balancer::new(algorithm, &members),
            algorithm: algorithm.clone(),
            members,
        }),
    }
}
