//! Sidecar: which services a workload calls, and at which of its ports it is called. What is not among the former is to that
//! workload as if the mesh did not have it. As in Istio, one that selects a workload goes before its namespace's, and that before the root namespace's.

use std::sync::Arc;

use crate::name::{Domain, Key, Label};
use crate::outbound::OutboundPolicy;
use crate::service::Protocol;
use crate::workload::{Labels, selects};

/// What its workloads call, and whether they reach what the registry does not have: Istio's Sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
    /// Namespace and name.
    pub key: Key,
    /// The workloads of the namespace that it is for; without one all of them, and in the root namespace all of the mesh.
    pub selector: Option<Labels>,
    /// What they call; none: as the next less specific Sidecar says, or everything.
    pub egress: Option<Vec<Egress>>,
    /// The ports at which they are called; none: as the next less specific Sidecar says, or all.
    pub ingress: Option<Vec<Ingress>>,
    /// Whether they reach what the registry does not have; none: as MeshConfig says.
    pub outbound: Option<OutboundPolicy>,
}

/// One port at which workloads are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ingress {
    /// The workload's port, which is the `targetPort` of its service's.
    pub port: u16,
    /// What it speaks, where that is said. It changes nothing: where the service's port speaks something else, the entry is
    /// not of that port.
    pub protocol: Option<Protocol>,
}

impl Ingress {
    /// Whether it has a port called that speaks `protocol`.
    pub fn is_of(self, port: u16, protocol: Protocol) -> bool {
        // What a port without a word of its own speaks is found out from what comes.
        let agrees = |said| said == protocol || protocol == Protocol::Auto;
        self.port == port && self.protocol.is_none_or(agrees)
    }
}

/// Some services that are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// At this port of theirs alone; none: at all that no other entry names a port for.
    pub port: Option<u16>,
    /// Which.
    pub hosts: Vec<EgressHost>,
}

/// `namespace/dnsName`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressHost {
    /// Of which namespaces.
    pub namespace: EgressNamespace,
    /// Which names.
    pub name: EgressName,
}

/// The part before the slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EgressNamespace {
    /// `*`
    Any,
    /// `.`: the workload's own.
    Own,
    /// `~`: none, so that nothing is called.
    None,
    /// This one.
    Named(Label),
}

/// The part behind the slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EgressName {
    /// `*`
    Any,
    /// One host in any form of its name.
    Exact(Arc<str>),
    /// `*.shop.mesh.internal`: those below it.
    Below(Arc<str>),
}

impl EgressHost {
    /// Reads `namespace/dnsName`; an error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (namespace, name) = text.split_once('/').ok_or("there is no `/`: write `namespace/dnsName`")?;
        let namespace = match namespace {
            "*" => EgressNamespace::Any,
            "." => EgressNamespace::Own,
            "~" => EgressNamespace::None,
            named => EgressNamespace::Named(
                Label::new(named).map_err(|_| "before the `/` stands a namespace, `.`, `*` or `~`")?,
            ),
        };
        let is_name = |name: &str| !name.is_empty() && name.split('.').all(|label| Label::new(label).is_ok());
        let name = match name {
            "*" => EgressName::Any,
            name => match name.strip_prefix("*.") {
                Some(below) if is_name(below) => EgressName::Below(below.into()),
                None if is_name(name) => EgressName::Exact(name.into()),
                _ => return Err("behind the `/` stands a host's name, `*`, or one whose first part is `*`"),
            },
        };
        Ok(Self { namespace, name })
    }

    /// Whether a service is meant, for a workload of `own`.
    pub fn matches(&self, service: &Key, own: &Label, domain: &Domain) -> bool {
        let of_namespace = match &self.namespace {
            EgressNamespace::Any => true,
            EgressNamespace::Own => service.namespace == *own,
            EgressNamespace::None => false,
            EgressNamespace::Named(named) => service.namespace == *named,
        };
        if let Some(host) = service.as_host() {
            return of_namespace
                && match &self.name {
                    EgressName::Any => true,
                    EgressName::Exact(name) => **name == *host,
                    EgressName::Below(below) => {
                        host.strip_suffix(&**below).is_some_and(|rest| rest.ends_with('.'))
                    }
                };
        }
        of_namespace
            && match &self.name {
                EgressName::Any => true,
                // A bare name is of the service's own namespace, which the part before the slash has said.
                EgressName::Exact(name) => {
                    Key::resolve(name, &service.namespace, domain).is_ok_and(|named| named == *service)
                }
                EgressName::Below(below) => {
                    let host = service.host(domain);
                    let cluster = format!("{}.{}.svc.cluster.local", service.name, service.namespace);
                    let is_below =
                        |host: &str| host.strip_suffix(&**below).is_some_and(|rest| rest.ends_with('.'));
                    is_below(&host) || is_below(&cluster)
                }
            }
    }
}

impl std::fmt::Display for EgressHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            EgressNamespace::Any => f.write_str("*/")?,
            EgressNamespace::Own => f.write_str("./")?,
            EgressNamespace::None => f.write_str("~/")?,
            EgressNamespace::Named(named) => write!(f, "{named}/")?,
        }
        match &self.name {
            EgressName::Any => f.write_str("*"),
            EgressName::Exact(name) => f.write_str(name),
            EgressName::Below(below) => write!(f, "*.{below}"),
        }
    }
}

/// What Sidecars come to for one workload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope<'a> {
    /// What it calls, and the Sidecar that says so; none: everything.
    pub egress: Option<(&'a Key, &'a [Egress])>,
    /// At which ports it is called, and the Sidecar that says so; none: at all.
    pub ingress: Option<(&'a Key, &'a [Ingress])>,
    /// Whether it reaches what the registry does not have, where a Sidecar says so.
    pub outbound: Option<OutboundPolicy>,
}

impl<'a> Scope<'a> {
    /// Of a workload of `namespace` with `labels`. `all` is ordered by key: of several that are equally specific, which
    /// Istio leaves undefined, the first by name.
    pub fn of(all: &'a [Arc<Sidecar>], (namespace, labels): (&Label, &Labels), root: &Label) -> Self {
        let own = |sidecar: &&Arc<Sidecar>| sidecar.key.namespace == *namespace;
        let selecting = all
            .iter()
            .filter(own)
            .find(|sidecar| sidecar.selector.as_ref().is_some_and(|selector| selects(selector, labels)));
        let of_namespace = all.iter().filter(own).find(|sidecar| sidecar.selector.is_none());
        let of_root = all.iter().find(|sidecar| sidecar.key.namespace == *root && sidecar.selector.is_none());
        let by_rank: Vec<&Arc<Sidecar>> = [selecting, of_namespace, of_root].into_iter().flatten().collect();
        let egress = by_rank.iter().find_map(|sidecar| Some((&sidecar.key, sidecar.egress.as_deref()?)));
        let ingress = by_rank.iter().find_map(|sidecar| Some((&sidecar.key, sidecar.ingress.as_deref()?)));
        // What is outside is decided by the one Sidecar that is the workload's.
        Self { egress, ingress, outbound: by_rank.first().and_then(|sidecar| sidecar.outbound) }
    }

    /// The Sidecar by which nobody calls the workload at that port of its, which speaks `protocol`; none where it may be.
    pub fn ingress_against(&self, port: u16, protocol: Protocol) -> Option<&'a Key> {
        let (sidecar, ingress) = self.ingress?;
        (!ingress.iter().any(|entry| entry.is_of(port, protocol))).then_some(sidecar)
    }

    /// Whether the workload, of `own`, calls a port of a service.
    pub fn calls(&self, (service, port): (&Key, u16), own: &Label, domain: &Domain) -> bool {
        let Some((_, egress)) = self.egress else { return true };
        let named = |entry: &Egress| entry.hosts.iter().any(|host| host.matches(service, own, domain));
        // An entry without a port is for what no other entry names a port for.
        let has_entry = egress.iter().any(|entry| entry.port == Some(port));
        egress.iter().filter(|entry| entry.port == has_entry.then_some(port)).any(named)
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

    fn domain() -> Domain {
        Domain::new("mesh.internal").expect("a domain")
    }

    #[test]
    fn hosts_are_matched_as_in_istio() {
        let check = |host: &str, service: &str, expected: bool| {
            let found = EgressHost::parse(host).expect(host);
            assert_eq!(found.to_string(), host);
            assert_eq!(found.matches(&key(service), &label("shop"), &domain()), expected, "{host} {service}");
        };
        check("*/*", "a.x", true);
        check("./*", "a.shop", true);
        check("./*", "a.x", false);
        check("~/*", "a.shop", false);
        check("x/*", "a.x", true);
        check("x/*", "a.shop", false);
        check("x/a.x.mesh.internal", "a.x", true);
        check("x/a.x.svc.cluster.local", "a.x", true);
        check("x/a", "a.x", true);
        check("x/b", "a.x", false);
        check("*/a.x.mesh.internal", "a.x", true);
        check("./a.x.mesh.internal", "a.x", false);
        check("*/*.x.mesh.internal", "a.x", true);
        check("*/*.x.svc.cluster.local", "a.x", true);
        check("*/*.mesh.internal", "a.x", true);
        check("*/*.y.mesh.internal", "a.x", false);
    }

    #[test]
    fn hosts_of_service_entries_are_matched_by_their_own_names() {
        let check = |host: &str, name: &str, expected: bool| {
            let service = Key::of_host(label("x"), &Arc::from(name));
            let found = EgressHost::parse(host).expect(host);
            assert_eq!(found.matches(&service, &label("shop"), &domain()), expected, "{host} {name}");
        };
        check("*/*", "api.example.com", true);
        check("x/*", "api.example.com", true);
        check("./*", "api.example.com", false);
        check("x/api.example.com", "api.example.com", true);
        check("x/example.com", "api.example.com", false);
        check("*/*.example.com", "api.example.com", true);
        check("*/*.example.com", "*.example.com", true);
        check("*/*.example.com", "example.com", false);
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for bad in ["", "a", "/a", "A/a", "a/", "a/b*", "a/*.", "a/**", "a/b/c", "~", "a b/*"] {
            assert!(EgressHost::parse(bad).is_err(), "{bad}");
        }
    }

    fn sidecar(name: &str, selector: Option<&str>, egress: Option<&[(Option<u16>, &str)]>) -> Arc<Sidecar> {
        let entry = |(port, host): &(Option<u16>, &str)| Egress {
            port: *port,
            hosts: vec![EgressHost::parse(host).expect("a host")],
        };
        Arc::new(Sidecar {
            key: key(name),
            selector: selector.map(|app| [(Arc::from("app"), Arc::from(app))].into()),
            egress: egress.map(|entries| entries.iter().map(entry).collect()),
            ingress: None,
            outbound: None,
        })
    }

    fn calls(all: &[Arc<Sidecar>], app: &str, service: &str, port: u16) -> bool {
        let labels: Labels = [(Arc::from("app"), Arc::from(app))].into();
        let scope = Scope::of(all, (&label("shop"), &labels), &label("root"));
        scope.calls((&key(service), port), &label("shop"), &domain())
    }

    #[test]
    fn the_most_specific_sidecar_decides() {
        let root = sidecar("default.root", None, Some(&[(None, "./*")]));
        let namespace = sidecar("default.shop", None, Some(&[(None, "x/*")]));
        let selecting = sidecar("web.shop", Some("web"), Some(&[(None, "y/*")]));
        assert!(calls(&[], "web", "a.x", 80), "without any, everything");
        let all = [Arc::clone(&root)];
        assert!(calls(&all, "web", "a.shop", 80) && !calls(&all, "web", "a.x", 80));
        let all = [Arc::clone(&root), Arc::clone(&namespace)];
        assert!(!calls(&all, "web", "a.shop", 80) && calls(&all, "web", "a.x", 80));
        let all = [root, namespace, selecting];
        assert!(calls(&all, "web", "a.y", 80) && !calls(&all, "web", "a.x", 80));
        assert!(calls(&all, "other", "a.x", 80) && !calls(&all, "other", "a.y", 80));
        // One without egress leaves it to the next.
        let bare = sidecar("web.shop", Some("web"), None);
        let all = [sidecar("default.shop", None, Some(&[(None, "x/*")])), bare];
        assert!(calls(&all, "web", "a.x", 80) && !calls(&all, "web", "a.y", 80));
        // One of the root namespace with a selector is for that namespace.
        let of_root = sidecar("web.root", Some("web"), Some(&[(None, "~/*")]));
        assert!(calls(&[of_root], "web", "a.x", 80));
    }

    #[test]
    fn an_entry_with_a_port_is_for_that_port_and_the_others_for_the_rest() {
        let all = [sidecar("default.shop", None, Some(&[(Some(9080), "x/*"), (None, "y/*")]))];
        let check = |service: &str, port: u16, expected: bool| {
            assert_eq!(calls(&all, "web", service, port), expected, "{service}:{port}");
        };
        check("a.x", 9080, true);
        check("a.x", 80, false);
        check("a.y", 80, true);
        check("a.y", 9080, false);
    }

    #[test]
    fn ports_that_no_entry_names_are_not_called() {
        let with = |sidecar: Arc<Sidecar>, ports: &[(u16, Option<Protocol>)]| {
            let ingress = ports.iter().map(|(port, protocol)| Ingress { port: *port, protocol: *protocol });
            Arc::new(Sidecar { ingress: Some(ingress.collect()), ..Sidecar::clone(&sidecar) })
        };
        let root = with(sidecar("default.root", None, None), &[(7000, None)]);
        let web = with(sidecar("web.shop", Some("web"), None), &[(7001, Some(Protocol::Tcp)), (7002, None)]);
        let all = [root, sidecar("default.shop", None, Some(&[(None, "*/*")])), web];
        let check = |app: &str, port: u16, protocol: Protocol, against: Option<&str>| {
            let labels: Labels = [(Arc::from("app"), Arc::from(app))].into();
            let scope = Scope::of(&all, (&label("shop"), &labels), &label("root"));
            let found = scope.ingress_against(port, protocol).map(ToString::to_string);
            assert_eq!(found.as_deref(), against, "{app} {port} {protocol:?}");
        };
        // Its namespace's has no `ingress`, and leaves it to the root namespace's.
        check("other", 7000, Protocol::Http, None);
        check("other", 7001, Protocol::Tcp, Some("default.root"));
        check("web", 7000, Protocol::Tcp, Some("web.shop"));
        check("web", 7001, Protocol::Tcp, None);
        check("web", 7001, Protocol::Auto, None);
        check("web", 7001, Protocol::Http, Some("web.shop"));
        check("web", 7002, Protocol::Http, None);
        assert_eq!(Scope::default().ingress_against(1, Protocol::Tcp), None);
    }

    #[test]
    fn what_is_outside_is_decided_by_the_workloads_own_sidecar() {
        let with =
            |sidecar: Arc<Sidecar>, outbound| Arc::new(Sidecar { outbound, ..Sidecar::clone(&sidecar) });
        let strict = with(sidecar("default.root", None, None), Some(OutboundPolicy::RegistryOnly));
        let labels = Labels::new();
        let of = |all: &[Arc<Sidecar>]| Scope::of(all, (&label("shop"), &labels), &label("root")).outbound;
        assert_eq!(of(&[Arc::clone(&strict)]), Some(OutboundPolicy::RegistryOnly));
        assert_eq!(of(&[strict, sidecar("default.shop", None, None)]), None, "as MeshConfig says");
    }
}
