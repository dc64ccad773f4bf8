//! Resources put together. A set is taken whole, as one validated mesh, or not at all, with every reason.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use baremesh_model::authorization::{AuthorizationPolicy, Condition, Rule};
use baremesh_model::mesh::{Kind, Mesh, MeshError, MeshFault, Parts, ResourceId};
use baremesh_model::mesh_config::MeshConfig;
use baremesh_model::name::{Key, Label};
use baremesh_model::pattern::{Match, Pattern};
use baremesh_model::virtual_service::{DelegationReason, Routing};

use crate::diagnostic::{Code, Diagnostic};
use crate::format::source::Origin;
use crate::resource::{HostGrant, Located, Resource};

/// Findings that are kept of one set; a set with more is broken enough.
pub const MAX_SET_FINDINGS: usize = 1000;

/// A set that holds together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Loaded {
    /// The mesh.
    pub mesh: Mesh,
    /// What hosts may be, ordered by key.
    pub grants: Vec<HostGrant>,
    /// What is accepted without effect, and the like.
    pub warnings: Vec<Diagnostic>,
    /// Where each resource stands, as `file:line`.
    pub places: BTreeMap<ResourceId, Arc<str>>,
}

/// A set that does not hold together, with at least one error. Its warnings are among the findings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.summary())]
pub struct Refused(pub Vec<Diagnostic>);

impl Refused {
    /// The errors, without the warnings.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0.iter().filter(|finding| finding.is_error())
    }

    fn summary(&self) -> String {
        let mut errors = self.errors();
        let first = errors.next().map(Diagnostic::headline).unwrap_or_default();
        match errors.count() {
            0 => first,
            more => format!("{first} (and {more} more)"),
        }
    }
}

impl Loaded {
    /// All resources of the set, ordered by kind and key. The mesh's own settings are among them.
    pub fn resources(&self) -> Vec<Resource> {
        let mesh = &self.mesh;
        let config = std::iter::once(Resource::MeshConfig(mesh.config.clone().into()));
        let services = mesh.services.values().map(|service| Resource::Service(service.clone().into()));
        let workloads = mesh.workloads.values().map(|workload| Resource::Workload(Arc::clone(workload)));
        let routes = mesh.virtual_services.iter();
        let routes = routes.map(|service| Resource::VirtualService(Box::new((**service).clone())));
        let peers = mesh.peer_authentications.iter();
        let peers = peers.map(|policy| Resource::PeerAuthentication(policy.clone().into()));
        let policies = mesh.authorization_policies.iter();
        let policies = policies.map(|policy| Resource::AuthorizationPolicy(Arc::clone(policy)));
        let grants = self.grants.iter().map(|grant| Resource::HostGrant(grant.clone().into()));
        let rules = mesh.destination_rules.iter();
        let rules = rules.map(|rule| Resource::DestinationRule(Box::new((**rule).clone())));
        let limits = mesh.rate_limits.iter();
        let limits = limits.map(|limit| Resource::RateLimit(Box::new((**limit).clone())));
        let tokens = mesh.request_authentications.iter();
        let tokens = tokens.map(|policy| Resource::RequestAuthentication(Box::new((**policy).clone())));
        let entries = mesh.service_entries.values();
        let entries = entries.map(|entry| Resource::ServiceEntry(Box::new((**entry).clone())));
        let groups = mesh.workload_groups.values();
        let groups = groups.map(|group| Resource::WorkloadGroup(Box::new((**group).clone())));
        let sidecars = mesh.sidecars.iter();
        let sidecars = sidecars.map(|sidecar| Resource::Sidecar(Box::new((**sidecar).clone())));
        let policies = peers.chain(policies).chain(grants).chain(rules).chain(limits).chain(tokens);
        let gateways = mesh.gateways.iter();
        let gateways = gateways.map(|gateway| Resource::Gateway(Box::new((**gateway).clone())));
        let policies = policies.chain(entries).chain(groups).chain(sidecars).chain(gateways);
        config.chain(services).chain(workloads).chain(routes).chain(policies).collect()
    }
}

/// Puts together what files held. `findings` are those of reading them; an error among them refuses the set like any other.
pub fn assemble(resources: Vec<Located<Resource>>, findings: Vec<Diagnostic>) -> Result<Loaded, Refused> {
    let (mesh, grants, warnings, origins) = put_together(resources, findings)?;
    let places = origins.into_iter().map(|(id, origin)| (id, origin.place().into())).collect();
    Ok(Loaded { mesh, grants, warnings, places })
}

/// Puts together what messages held, for those who want nothing but the mesh.
pub fn assemble_mesh(resources: Vec<Located<Resource>>, findings: Vec<Diagnostic>) -> Result<Mesh, Refused> {
    Ok(put_together(resources, findings)?.0)
}

type Origins = BTreeMap<ResourceId, Origin>;

fn put_together(
    resources: Vec<Located<Resource>>,
    mut findings: Vec<Diagnostic>,
) -> Result<(Mesh, Vec<HostGrant>, Vec<Diagnostic>, Origins), Refused> {
    let root = root_namespace(&resources);
    let (by_id, duplicates) = index(resources, &root);
    findings.extend(duplicates);
    let origins: Origins = by_id.iter().map(|(id, located)| (id.clone(), located.origin.clone())).collect();
    let (parts, grants) = parts(by_id);
    let mesh = match Mesh::assemble(parts) {
        Ok(mesh) => Some(mesh),
        Err(errors) => {
            let errors = errors.iter().take(MAX_SET_FINDINGS);
            findings.extend(errors.map(|error| mesh_error(error, &origins)));
            None
        }
    };
    if let Some(mesh) = &mesh {
        findings.extend(routing_warnings(mesh, &origins));
    }
    let failed = findings.iter().any(Diagnostic::is_error);
    // Errors come first, so that the bound drops warnings before them.
    findings.sort_by_key(|finding| finding.severity);
    findings.truncate(MAX_SET_FINDINGS);
    match mesh {
        Some(mesh) if !failed => Ok((mesh, grants, findings, origins)),
        _ => Err(Refused(findings)),
    }
}

/// The parts of a set that need not hold together, and where each resource stands; of two that are one, the first.
pub(crate) fn gather(resources: Vec<Located<Resource>>) -> (Parts, BTreeMap<ResourceId, Origin>) {
    let root = root_namespace(&resources);
    let (by_id, _) = index(resources, &root);
    let origins = by_id.iter().map(|(id, located)| (id.clone(), located.origin.clone())).collect();
    (parts(by_id).0, origins)
}

/// The root namespace that the set's MeshConfig names.
pub(crate) fn root_namespace(resources: &[Located<Resource>]) -> Label {
    let named = resources.iter().find_map(|located| match &located.value {
        Resource::MeshConfig(config) => Some(config.root_namespace.clone()),
        _ => None,
    });
    named.unwrap_or_else(|| MeshConfig::default().root_namespace)
}

/// Istio's name for the root namespace, which means the configured one in policies.
const ISTIO_ROOT: &str = "istio-system";

/// The key by which a policy is known: one of `istio-system` belongs to the root namespace.
pub(crate) fn canonical_id(id: ResourceId, root: &Label) -> ResourceId {
    let policy = matches!(
        id.kind,
        Kind::PeerAuthentication
            | Kind::AuthorizationPolicy
            | Kind::DestinationRule
            | Kind::RateLimit
            | Kind::RequestAuthentication
            | Kind::Sidecar
    );
    if policy && id.key.namespace.as_str() == ISTIO_ROOT {
        ResourceId { key: Key::new(root.clone(), id.key.name), ..id }
    } else {
        id
    }
}

type ById = BTreeMap<ResourceId, Located<Resource>>;

fn index(resources: Vec<Located<Resource>>, root: &Label) -> (ById, Vec<Diagnostic>) {
    let (mut by_id, mut duplicates) = (ById::new(), Vec::new());
    for mut located in resources {
        let id = canonical_id(located.value.id(), root);
        rename(&mut located.value, &id.key);
        match by_id.entry(id) {
            Entry::Vacant(entry) => {
                entry.insert(located);
            }
            Entry::Occupied(entry) if duplicates.len() < MAX_SET_FINDINGS => {
                duplicates.push(duplicate(&located, entry.key(), &entry.get().origin));
            }
            Entry::Occupied(_) => {}
        }
    }
    (by_id, duplicates)
}

fn rename(resource: &mut Resource, key: &Key) {
    match resource {
        Resource::PeerAuthentication(policy) => policy.key = key.clone(),
        // One that has its name already stays shared.
        Resource::AuthorizationPolicy(policy) if policy.key != *key => {
            Arc::make_mut(policy).key = key.clone();
        }
        Resource::DestinationRule(rule) => rule.key = key.clone(),
        Resource::RateLimit(limit) => limit.key = key.clone(),
        Resource::RequestAuthentication(policy) => policy.key = key.clone(),
        Resource::Sidecar(sidecar) => sidecar.key = key.clone(),
        _ => {}
    }
}

fn duplicate(second: &Located<Resource>, id: &ResourceId, first: &Origin) -> Diagnostic {
    let message = match id.kind {
        Kind::MeshConfig => {
            format!("a mesh has one MeshConfig, and there is one at {} already", first.place())
        }
        kind => format!("a {kind} of this namespace and name stands at {} already", first.place()),
    };
    Diagnostic::at_origin(&second.origin, Code::Duplicate, message)
        .with_resource(Some(id.clone()))
        .with_help("rename or remove one of the two")
}

fn parts(by_id: ById) -> (Parts, Vec<HostGrant>) {
    let (mut parts, mut grants) = (Parts::default(), Vec::new());
    for located in by_id.into_values() {
        match located.value {
            Resource::MeshConfig(config) => parts.config = *config,
            Resource::Service(service) => _ = parts.services.insert(service.key.clone(), *service),
            Resource::Workload(workload) => _ = parts.workloads.insert(workload.key.clone(), workload),
            Resource::VirtualService(service) => parts.virtual_services.push(Arc::new(*service)),
            Resource::PeerAuthentication(policy) => parts.peer_authentications.push(*policy),
            Resource::AuthorizationPolicy(policy) => parts.authorization_policies.push(policy),
            Resource::HostGrant(grant) => grants.push(*grant),
            Resource::DestinationRule(rule) => parts.destination_rules.push(Arc::new(*rule)),
            Resource::RateLimit(limit) => parts.rate_limits.push(Arc::new(*limit)),
            Resource::RequestAuthentication(policy) => {
                parts.request_authentications.push(Arc::new(*policy));
            }
            Resource::ServiceEntry(entry) => {
                _ = parts.service_entries.insert(entry.key.clone(), Arc::new(*entry));
            }
            Resource::WorkloadGroup(group) => {
                parts.workload_groups.insert(group.key.clone(), Arc::new(*group));
            }
            Resource::Sidecar(sidecar) => parts.sidecars.push(Arc::new(*sidecar)),
            Resource::Gateway(gateway) => parts.gateways.push(Arc::new(*gateway)),
        }
    }
    let trust_domain = parts.config.trust_domain.as_str().to_owned();
    for policy in &mut parts.authorization_policies {
        // Most name nobody of Istio's, and stay shared with sets before and after.
        if principals_of(policy).any(is_of_istio) {
            localise(Arc::make_mut(policy), &trust_domain);
        }
    }
    (parts, grants)
}

/// Istio's default trust domain, which stands for the mesh's own in principals.
const ISTIO_TRUST_DOMAIN: &str = "cluster.local/";

/// The principals that a policy names.
fn principals_of(policy: &AuthorizationPolicy) -> impl Iterator<Item = &Pattern> {
    policy.rules.iter().flat_map(of_rule).flat_map(|named| named.any_of.iter().chain(&named.none_of))
}

fn of_rule(rule: &Rule) -> Vec<&Match<Pattern>> {
    let sources = rule.from.iter().map(|source| &source.principals);
    let conditions = rule.when.iter().filter_map(|condition| match condition {
        Condition::SourcePrincipal(principals) => Some(principals),
        _ => None,
    });
    sources.chain(conditions).collect()
}

fn is_of_istio(principal: &Pattern) -> bool {
    matches!(principal, Pattern::Exact(text) | Pattern::Prefix(text) if text.starts_with(ISTIO_TRUST_DOMAIN))
}

/// Reads `cluster.local/…` in principals as the mesh's own trust domain, as Istio does. Otherwise a DENY policy copied
/// from there would match nobody.
fn localise(policy: &mut AuthorizationPolicy, trust_domain: &str) {
    let replace = |principals: &mut Match<Pattern>| {
        for pattern in principals.any_of.iter_mut().chain(&mut principals.none_of) {
            if let Pattern::Exact(text) | Pattern::Prefix(text) = pattern
                && let Some(rest) = text.strip_prefix(ISTIO_TRUST_DOMAIN)
            {
                *text = format!("{trust_domain}/{rest}").into();
            }
        }
    };
    for rule in &mut policy.rules {
        rule.from.iter_mut().for_each(|source| replace(&mut source.principals));
        for condition in &mut rule.when {
            if let Condition::SourcePrincipal(principals) = condition {
                replace(principals);
            }
        }
    }
}

/// A fault of the set at the place of its resource, with the place of the other one that it names.
fn mesh_error(error: &MeshError, origins: &BTreeMap<ResourceId, Origin>) -> Diagnostic {
    let code = match error.fault {
        MeshFault::NoService(_) => Code::MissingReference,
        MeshFault::ReservedNamespace(_) | MeshFault::HostOfMesh(_) => Code::InvalidValue,
        _ => Code::Conflict,
    };
    let other = match &error.fault {
        MeshFault::AddressTaken { other, .. } | MeshFault::EndpointTaken { other, .. } => Some(other),
        MeshFault::AccountDisagrees { service, .. } => Some(service),
        _ => None,
    };
    let of_service = |key: &Key| origins.get(&ResourceId { kind: Kind::Service, key: key.clone() });
    let message = error.fault.to_string();
    let finding = match origins.get(&error.resource) {
        Some(origin) => Diagnostic::at_origin(origin, code, message),
        None => Diagnostic::about_file("", code, message),
    };
    let finding = finding.with_resource(Some(error.resource.clone()));
    match other.and_then(|key| Some((key, of_service(key)?))) {
        Some((key, origin)) => finding.with_help(format!("Service {key} stands at {}", origin.place())),
        None => finding,
    }
}

/// Routes of delegates that are not in force, each at the place of the resource that delegates.
fn routing_warnings(mesh: &Mesh, origins: &BTreeMap<ResourceId, Origin>) -> Vec<Diagnostic> {
    let routing = Routing::new(&mesh.virtual_services, &mesh.config.domain);
    let faults = routing.faults().iter().take(MAX_SET_FINDINGS).filter_map(|fault| {
        let resource = ResourceId { kind: Kind::VirtualService, key: fault.root.clone() };
        let code = match fault.reason {
            DelegationReason::NotThere => Code::MissingReference,
            _ => Code::Conflict,
        };
        let message = format!("routes of the delegate {} are not in force: {}", fault.delegate, fault.reason);
        let finding = Diagnostic::at_origin(origins.get(&resource)?, code, message);
        Some(finding.with_resource(Some(resource)).into_warning())
    });
    faults.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Form;

    fn load(files: &[(&str, &str)]) -> Result<Loaded, Refused> {
        let (mut resources, mut findings) = (Vec::new(), Vec::new());
        for (name, text) in files {
            let parsed = Form::of_file(name).expect("a known ending").parse(text, name);
            resources.extend(parsed.resources);
            findings.extend(parsed.findings);
        }
        assemble(resources, findings)
    }

    const ORDERS: &str = "[[Service]]\nname = \"orders\"\nports = [{ port = 80 }]\n";

    #[test]
    fn two_forms_make_one_mesh() {
        let policy = "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {name: p}\n";
        let loaded = load(&[("a.toml", ORDERS), ("b.yaml", policy)]).expect("a set that holds together");
        assert_eq!(loaded.mesh.services.len(), 1);
        assert_eq!(loaded.mesh.peer_authentications.len(), 1);
        let places: Vec<&str> = loaded.places.values().map(|place| &**place).collect();
        assert_eq!(places, ["a.toml:1", "b.yaml:1"]);
        assert_eq!(loaded.resources().len(), 3);
    }

    #[test]
    fn duplicates_name_both_places() {
        let refused = load(&[("a.toml", ORDERS), ("b.toml", &format!("\n\n{ORDERS}"))]).expect_err("twice");
        let headline = refused.0[0].headline();
        assert!(headline.starts_with("b.toml:3:1: Error [BM0201] (Service default/orders)"), "{headline}");
        assert!(headline.contains("a.toml:1"), "{headline}");
        let config = "[[MeshConfig]]\nname = \"a\"\n[[MeshConfig]]\nname = \"b\"\n";
        let refused = load(&[("a.toml", config)]).expect_err("twice");
        assert!(refused.to_string().contains("a.toml:1 already"), "{refused}");
    }

    #[test]
    fn faults_of_the_set_stand_at_their_resource() {
        let entry = "[[WorkloadEntry]]\nname = \"w\"\naddress = \"10.0.0.1\"\nservice = \"nobody\"\n";
        let refused = load(&[("a.toml", &format!("{ORDERS}{entry}"))]).expect_err("no such service");
        let headline = refused.0[0].headline();
        assert!(headline.starts_with("a.toml:4:1: Error [IST0101] (WorkloadEntry default/w)"), "{headline}");
    }

    #[test]
    fn one_bad_file_refuses_all() {
        let refused = load(&[("a.toml", ORDERS), ("b.toml", "[[Service]]\nname = ")]).expect_err("bad TOML");
        assert_eq!(refused.errors().count(), 1);
    }

    #[test]
    fn istio_names_mean_the_mesh_own() {
        let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
            metadata: {name: p, namespace: istio-system}\nspec:\n  rules:\n  - from:\n    - source:\n        \
            principals: [cluster.local/ns/a/sa/b, cluster.local/ns/a/*, other/ns/a/sa/b, '*/sa/b']\n";
        let config = "[[MeshConfig]]\ntrustDomain = \"example.org\"\nrootNamespace = \"root\"\n";
        let loaded = load(&[("a.yaml", text), ("b.toml", config)]).expect("a set that holds together");
        let policy = &loaded.mesh.authorization_policies[0];
        assert_eq!(policy.key.namespace.as_str(), "root");
        let principals: Vec<String> =
            policy.rules[0].from[0].principals.any_of.iter().map(ToString::to_string).collect();
        assert_eq!(principals, ["example.org/ns/a/sa/b", "example.org/ns/a/*", "other/ns/a/sa/b", "*/sa/b"]);
    }

    #[test]
    fn delegates_that_are_not_in_force_are_named() {
        let root = "[[VirtualService]]\nname = \"root\"\nhosts = [\"orders\"]\n\
            http = [{ match = [{ uri = { prefix = \"/a\" } }], delegate = { name = \"inner\" } }]\n";
        let inner = "[[VirtualService]]\nname = \"inner\"\n\
            http = [{ match = [{ uri = { prefix = \"/b\" } }], redirect = { uri = \"/c\" } }]\n";
        let check = |files: &[(&str, &str)], expected: &str| {
            let loaded = load(files).expect("a set that holds together");
            let warnings: Vec<String> = loaded.warnings.iter().map(Diagnostic::headline).collect();
            assert!(matches!(&warnings[..], [only] if only.contains(expected)), "{warnings:?}");
        };
        check(
            &[("a.toml", root)],
            "a.toml:1:1: Warning [IST0101] (VirtualService default/root) routes of the delegate",
        );
        check(
            &[("a.toml", root), ("b.toml", inner)],
            "inner.default are not in force: its `http[0]` matches",
        );
    }

    #[test]
    fn nothing_is_a_mesh_of_nothing() {
        let loaded = load(&[("a.toml", "# nothing yet\n"), ("b.yaml", "---\n# nothing\n")]).expect("empty");
        assert!(loaded.mesh.services.is_empty());
    }
}
