//! What there is to refer to: services by every form of their names, their endpoints, the rules for a host.

use std::collections::{BTreeMap, BTreeSet};

use baremesh_model::destination_rule::DestinationRule;
use baremesh_model::identity::RESERVED_NAMESPACES;
use baremesh_model::mesh::{Kind, Parts, ResourceId};
use baremesh_model::name::{Key, Label};
use baremesh_model::service::Service;
use baremesh_model::workload::Workload;

use super::Unread;
use crate::format::fields::nearest;

/// What there is to refer to.
pub(super) struct Known<'p> {
    pub(super) parts: &'p Parts,
    /// Hosts of ServiceEntries, as services.
    external: &'p BTreeMap<Key, Service>,
    unread: Unread,
    /// Workloads by their namespace.
    spaces: BTreeMap<&'p Label, Vec<&'p Workload>>,
    /// The endpoints of each service.
    endpoints: BTreeMap<&'p Key, Vec<&'p Workload>>,
    /// Rules by the service that they are for.
    rules: BTreeMap<Key, Vec<&'p DestinationRule>>,
    /// Rules for what ends so.
    wildcards: Vec<(&'p str, &'p DestinationRule)>,
}

/// What a host's name stands for.
pub(super) enum Named<'p> {
    /// A service.
    Service(&'p Service),
    /// Something that could not be read, or may be in what could not.
    Unsure,
    /// Nothing.
    Nothing,
}

impl<'p> Known<'p> {
    pub(super) fn new(parts: &'p Parts, external: &'p BTreeMap<Key, Service>, unread: Unread) -> Self {
        let mut spaces: BTreeMap<&Label, Vec<&Workload>> = BTreeMap::new();
        for workload in parts.workloads.values() {
            spaces.entry(&workload.key.namespace).or_default().push(&**workload);
        }
        let endpoints = parts.services.iter().map(|(key, service)| {
            let all = spaces.get(&key.namespace).into_iter().flatten().copied();
            (key, all.filter(|workload| workload.serves(service)).collect())
        });
        let endpoints = endpoints.collect();
        let (mut rules, mut wildcards) = (BTreeMap::<Key, Vec<&DestinationRule>>::new(), Vec::new());
        for rule in &parts.destination_rules {
            match rule.host.suffix() {
                Some(suffix) => wildcards.push((suffix, &**rule)),
                None => {
                    let key = Key::resolve(rule.host.as_str(), &rule.key.namespace, &parts.config.domain);
                    let external = || Key::of_host(rule.key.namespace.clone(), rule.host.as_str());
                    rules.entry(key.unwrap_or_else(|_| external())).or_default().push(rule);
                }
            }
        }
        Self { parts, external, unread, spaces, endpoints, rules, wildcards }
    }

    /// Whether all texts were read, so that what is not here is not there.
    pub(super) fn is_whole(&self) -> bool {
        !self.unread.others
    }

    /// What a host stands for where somebody in `from` names it.
    pub(super) fn host(&self, host: &str, from: &Label) -> Named<'p> {
        let key = Key::resolve(host, from, &self.parts.config.domain).ok();
        let service = key.as_ref().and_then(|key| self.parts.services.get(key));
        match service.or_else(|| self.external(host, from)) {
            Some(service) => Named::Service(service),
            None if self.unread.others || key.is_some_and(|key| self.is_unread(&key)) => Named::Unsure,
            None if self.unread.resources.iter().any(|id| id.kind == Kind::ServiceEntry) => Named::Unsure,
            None => Named::Nothing,
        }
    }

    /// The host of a ServiceEntry that a name is, or that a wildcard of one takes in; of the own namespace first.
    fn external(&self, host: &str, from: &Label) -> Option<&'p Service> {
        let host = host.to_ascii_lowercase();
        let takes = |key: &&Key| {
            let name = key.as_host().unwrap_or_default();
            let below = |suffix: &str| host.len() > suffix.len() && host.ends_with(suffix);
            name == host || name.strip_prefix('*').is_some_and(below)
        };
        let found = self.external.keys().filter(takes);
        let best = found.max_by_key(|key| (key.namespace == *from, key.name.as_str().len()));
        best.map(|key| &self.external[key])
    }

    /// Whether a service of that key may be among what could not be read.
    pub(super) fn is_unread(&self, key: &Key) -> bool {
        self.unread.others
            || self.unread.resources.contains(&ResourceId { kind: Kind::Service, key: key.clone() })
    }

    /// Whether a resource may be among what could not be read.
    pub(super) fn may_be_unread(&self, kind: Kind, key: &Key) -> bool {
        self.unread.others || self.unread.resources.contains(&ResourceId { kind, key: key.clone() })
    }

    /// What to write in the place of a host that is not there.
    pub(super) fn instead_of(&self, host: &str, from: &Label) -> String {
        let services = || self.parts.services.keys();
        let name = host.split('.').next().unwrap_or_default();
        if let Some(elsewhere) = services().find(|key| key.name.as_str() == name) {
            return format!("Service {elsewhere} is there: write `{elsewhere}`");
        }
        let own = services().filter(|key| key.namespace == *from).map(|key| key.name.as_str());
        match nearest(name, own) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "correct the name, or add the Service; one that hosts registered is known with `--live`"
                .to_owned(),
        }
    }

    /// The endpoints of a service.
    pub(super) fn endpoints(&self, service: &Key) -> &[&'p Workload] {
        self.endpoints.get(service).map_or(&[], Vec::as_slice)
    }

    /// The services that each workload is an endpoint of.
    pub(super) fn served(&self) -> BTreeMap<&'p Key, Vec<&'p Service>> {
        let mut served: BTreeMap<&Key, Vec<&Service>> = BTreeMap::new();
        for (key, workloads) in &self.endpoints {
            let service = &self.parts.services[*key];
            workloads.iter().for_each(|workload| served.entry(&workload.key).or_default().push(service));
        }
        served
    }

    /// The workloads of a namespace.
    pub(super) fn workloads_in(&self, namespace: &Label) -> &[&'p Workload] {
        self.spaces.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// The rules that are for a service, or for a host of a service's name that is not there.
    pub(super) fn rules_for(&self, service: &Key) -> impl Iterator<Item = &'p DestinationRule> {
        let full = service.host(&self.parts.config.domain);
        let istio = format!("{}.{}.svc.cluster.local", service.name, service.namespace);
        // A host of two labels reads like a service of a namespace.
        let domain = &self.parts.config.domain;
        let as_service = || Key::resolve(service.as_host()?, &service.namespace, domain).ok();
        let exact = self.rules.get(service).or_else(|| self.rules.get(&as_service()?));
        let exact = exact.into_iter().flatten().copied();
        let covers = move |suffix: &str| full.ends_with(suffix) || istio.ends_with(suffix);
        let wide = self.wildcards.iter().filter(move |(suffix, _)| covers(suffix)).map(|(_, rule)| *rule);
        exact.chain(wide)
    }

    /// Every namespace that something is in, and the mesh's own.
    pub(super) fn namespaces(&self) -> BTreeSet<&str> {
        let services = self.parts.services.keys().map(|key| key.namespace.as_str());
        let workloads = self.spaces.keys().map(|namespace| namespace.as_str());
        let unread = self.unread.resources.iter().map(|id| id.key.namespace.as_str());
        let root = self.parts.config.root_namespace.as_str();
        services.chain(workloads).chain(unread).chain(RESERVED_NAMESPACES).chain([root]).collect()
    }
}
