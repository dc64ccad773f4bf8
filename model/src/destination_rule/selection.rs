//! Which rule holds for a caller and a service, as Istio looks it up: in the caller's namespace, then in the service's,
//! then in the root namespace; an exact host before a wildcard, the longer wildcard before the shorter. Rules of one
//! namespace for one host are one rule.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use super::{DestinationRule, ExportTo, Subset, TrafficPolicy};
use crate::name::{Domain, Key, Label};
use crate::workload::{Labels, selects};

/// The services that a rule is for, as written: a host, or `*.` and what they end in, or `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPattern(Arc<str>);

/// A text that names no service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a host: write a service's name, a host name, `*.` and a domain, or `*`")]
pub struct NotAHost(pub String);

/// The longest host name, RFC 1035, section 2.3.4.
const MAX_HOST: usize = 253;

impl HostPattern {
    /// Reads a host; upper case is folded.
    pub fn new(text: &str) -> Result<Self, NotAHost> {
        let folded = text.to_ascii_lowercase();
        let name = folded.strip_prefix("*.").unwrap_or(&folded);
        let label = |part: &str| Label::new(part).is_ok();
        let valid = folded == "*" || (name.len() <= MAX_HOST && name.split('.').all(label));
        if valid { Ok(Self(folded.into())) } else { Err(NotAHost(text.to_owned())) }
    }

    /// As written, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What a wildcard's hosts end in; the text after the star.
    pub fn suffix(&self) -> Option<&str> {
        self.0.strip_prefix('*')
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who calls, as far as rules tell callers apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller<'a> {
    /// The namespace of its identity.
    pub namespace: &'a Label,
    /// Its labels.
    pub labels: &'a Labels,
}

/// The rules of one namespace for one host, as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedRule {
    /// The rules that it is made of, for explanations: the first by key has the policy.
    pub keys: Vec<Key>,
    /// What holds for every subset and port that says nothing else.
    pub policy: TrafficPolicy,
    /// All subsets; of two of one name, the first.
    pub subsets: Vec<Subset>,
    export_to: ExportTo,
    workload_selector: Option<Labels>,
}

impl MergedRule {
    fn of(rule: &DestinationRule) -> Self {
        Self {
            keys: vec![rule.key.clone()],
            policy: rule.policy.clone(),
            subsets: rule.subsets.clone(),
            export_to: rule.export_to.clone(),
            workload_selector: rule.workload_selector.clone(),
        }
    }

    /// Rules are one where they are for the same callers; the others stand side by side, and the first counts.
    fn takes(&self, rule: &DestinationRule) -> bool {
        self.export_to == rule.export_to && self.workload_selector == rule.workload_selector
    }

    fn add(&mut self, rule: &DestinationRule) {
        self.keys.push(rule.key.clone());
        if self.policy == TrafficPolicy::default() {
            self.policy = rule.policy.clone();
        }
        for subset in &rule.subsets {
            if self.subset(&subset.name).is_none() {
                self.subsets.push(subset.clone());
            }
        }
    }

    /// The subset of that name.
    pub fn subset(&self, name: &str) -> Option<&Subset> {
        self.subsets.iter().find(|subset| &*subset.name == name)
    }

    fn is_for(&self, namespace: &Label) -> bool {
        match &self.export_to {
            ExportTo::All => true,
            ExportTo::Only(namespaces) => namespaces.contains(namespace),
        }
    }
}

/// The rules of one namespace.
#[derive(Debug, Default)]
struct Space {
    exact: HashMap<Arc<str>, Vec<Arc<MergedRule>>>,
    /// By what hosts end in, the longest first.
    wildcards: Vec<(Arc<str>, Vec<Arc<MergedRule>>)>,
}

/// All rules, for look-ups.
#[derive(Debug)]
pub struct Rules {
    spaces: HashMap<Label, Space>,
    root: Label,
    domain: Domain,
}

impl Rules {
    /// The rules of a mesh, which are ordered by key.
    pub fn new(rules: &[Arc<DestinationRule>], domain: &Domain, root: &Label) -> Self {
        let mut by_host: BTreeMap<(&Label, Arc<str>), Vec<MergedRule>> = BTreeMap::new();
        for rule in rules {
            let host = canonical(&rule.host, &rule.key.namespace, domain);
            let merged = by_host.entry((&rule.key.namespace, host)).or_default();
            match merged.iter_mut().find(|merged| merged.takes(rule)) {
                Some(merged) => merged.add(rule),
                None => merged.push(MergedRule::of(rule)),
            }
        }
        let mut spaces: HashMap<Label, Space> = HashMap::new();
        for ((namespace, host), merged) in by_host {
            let space = spaces.entry(namespace.clone()).or_default();
            let merged = merged.into_iter().map(Arc::new).collect();
            match host.strip_prefix('*') {
                Some(suffix) => space.wildcards.push((suffix.into(), merged)),
                None => _ = space.exact.insert(host, merged),
            }
        }
        for space in spaces.values_mut() {
            space.wildcards.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        }
        Self { spaces, root: root.clone(), domain: domain.clone() }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.spaces.is_empty()
    }

    /// The rule that holds when `caller` calls `service`.
    pub fn find(&self, caller: Caller<'_>, service: &Key) -> Option<&Arc<MergedRule>> {
        self.local(caller, service)
            .or_else(|| self.exported(&service.namespace, caller, service))
            .or_else(|| self.exported(&self.root, caller, service))
    }

    /// A rule of the caller's own namespace; one that selects the caller goes before one that is for all. What the root
    /// namespace has for others as well comes last there.
    fn local(&self, caller: Caller<'_>, service: &Key) -> Option<&Arc<MergedRule>> {
        let in_root = *caller.namespace == self.root;
        let selected = |rule: &&Arc<MergedRule>| {
            rule.workload_selector.as_ref().is_some_and(|selector| selects(selector, caller.labels))
        };
        let for_all = |rule: &&Arc<MergedRule>| {
            rule.workload_selector.is_none() && !(in_root && rule.export_to == ExportTo::All)
        };
        let found =
            |wanted: &dyn Fn(&&Arc<MergedRule>) -> bool| self.of_space(caller.namespace, service, wanted);
        found(&selected).or_else(|| found(&for_all))
    }

    fn exported(&self, namespace: &Label, caller: Caller<'_>, service: &Key) -> Option<&Arc<MergedRule>> {
        self.of_space(namespace, service, &|rule| {
            rule.workload_selector.is_none() && rule.is_for(caller.namespace)
        })
    }

    fn of_space(
        &self,
        namespace: &Label,
        service: &Key,
        wanted: &dyn Fn(&&Arc<MergedRule>) -> bool,
    ) -> Option<&Arc<MergedRule>> {
        let space = self.spaces.get(namespace)?;
        let full = service.host(&self.domain);
        // A host of two labels is read as a service of a namespace where a rule names it.
        let as_service = || space.exact.get(&*format!("{}.{}", service.as_host()?, self.domain));
        let rules = space.exact.get(&*full).or_else(as_service);
        let exact = rules.and_then(|rules| rules.iter().find(wanted));
        exact.or_else(|| {
            // Istio's name for the service, which wildcards copied from there end in.
            let istio = format!("{}.{}.svc.cluster.local", service.name, service.namespace);
            let covers = |suffix: &str| full.ends_with(suffix) || istio.ends_with(suffix);
            let mut covering = space.wildcards.iter().filter(|(suffix, _)| covers(suffix));
            covering.find_map(|(_, rules)| rules.iter().find(wanted))
        })
    }
}

/// A host in full: what resolves to a service is the service's host name, all else stays as written.
fn canonical(host: &HostPattern, namespace: &Label, domain: &Domain) -> Arc<str> {
    match Key::resolve(host.as_str(), namespace, domain) {
        Ok(key) if host.suffix().is_none() => key.host(domain).into(),
        _ => Arc::clone(&host.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Label {
        Label::new(text).expect("a label")
    }

    fn key(text: &str) -> Key {
        let (name, namespace) = text.split_once('.').expect("name.namespace");
        Key::new(label(namespace), label(name))
    }

    fn rule(name: &str, host: &str) -> DestinationRule {
        let subset = Subset { name: name.into(), labels: Labels::new(), policy: None };
        DestinationRule {
            key: key(name),
            host: HostPattern::new(host).expect("a host"),
            policy: TrafficPolicy::default(),
            subsets: vec![subset],
            workload_selector: None,
            export_to: ExportTo::All,
        }
    }

    fn check(
        rules: &[DestinationRule],
        caller: (&str, &[(&str, &str)]),
        service: &str,
        expected: Option<&str>,
    ) {
        let mut rules: Vec<_> = rules.iter().cloned().map(Arc::new).collect();
        rules.sort_by(|a, b| a.key.cmp(&b.key));
        let rules =
            Rules::new(&rules, &Domain::new("mesh.internal").expect("a domain"), &label("mesh-system"));
        let labels = caller.1.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let namespace = label(caller.0);
        let found = rules.find(Caller { namespace: &namespace, labels: &labels }, &key(service));
        let names = found.map(|rule| rule.keys.iter().map(ToString::to_string).collect::<Vec<_>>().join("+"));
        assert_eq!(names.as_deref(), expected, "{caller:?} to {service}");
    }

    #[test]
    fn the_callers_namespace_then_the_services_then_the_root() {
        let all = [
            rule("mine.web", "orders.shop.mesh.internal"),
            rule("theirs.shop", "orders"),
            rule("everybodys.mesh-system", "*.local"),
        ];
        check(&all, ("web", &[]), "orders.shop", Some("mine.web"));
        check(&all, ("other", &[]), "orders.shop", Some("theirs.shop"));
        check(&all, ("other", &[]), "stock.shop", Some("everybodys.mesh-system"));
        check(&all, ("mesh-system", &[]), "orders.shop", Some("theirs.shop"));
        check(&all[..1], ("other", &[]), "orders.shop", None);
    }

    #[test]
    fn exact_hosts_then_the_longest_wildcard() {
        let all = [
            rule("all.shop", "*"),
            rule("domain.shop", "*.mesh.internal"),
            rule("space.shop", "*.shop.svc.cluster.local"),
            rule("one.shop", "orders.shop.svc.cluster.local"),
        ];
        check(&all, ("shop", &[]), "orders.shop", Some("one.shop"));
        check(&all, ("shop", &[]), "stock.shop", Some("space.shop"));
        check(&all, ("shop", &[]), "stock.other", Some("domain.shop"));
        check(&all[..1], ("shop", &[]), "stock.other", Some("all.shop"));
    }

    #[test]
    fn rules_for_one_host_are_one_and_exports_hold() {
        let all = [rule("a.shop", "orders"), rule("b.shop", "orders.shop.mesh.internal")];
        check(&all, ("web", &[]), "orders.shop", Some("a.shop+b.shop"));
        let own = DestinationRule { export_to: ExportTo::Only(vec![]), ..rule("own.shop", "orders") };
        check(std::slice::from_ref(&own), ("web", &[]), "orders.shop", None);
        check(std::slice::from_ref(&own), ("shop", &[]), "orders.shop", Some("own.shop"));
        let some = DestinationRule { export_to: ExportTo::Only(vec![label("web")]), ..own };
        check(std::slice::from_ref(&some), ("web", &[]), "orders.shop", Some("own.shop"));
        check(&[some], ("other", &[]), "orders.shop", None);
    }

    #[test]
    fn a_selected_caller_has_its_own_rule() {
        let selector = Some([("app".into(), "web".into())].into());
        let all = [
            rule("a.web", "orders.shop"),
            DestinationRule { workload_selector: selector, ..rule("b.web", "orders.shop") },
        ];
        check(&all, ("web", &[("app", "web")]), "orders.shop", Some("b.web"));
        check(&all, ("web", &[("app", "other")]), "orders.shop", Some("a.web"));
        check(&all[1..], ("other", &[("app", "web")]), "orders.shop", None);
    }

    #[test]
    fn hosts_are_names_or_wildcards() {
        for bad in ["", "a*", "*a", "*.*", "a b", "a..b", &"a.".repeat(200)] {
            assert_eq!(HostPattern::new(bad), Err(NotAHost(bad.to_owned())));
        }
        assert_eq!(HostPattern::new("Orders").expect("a host").as_str(), "orders");
    }
}
