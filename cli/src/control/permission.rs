//! Which resources an operator may change. An editor has namespaces, and what it writes there holds there alone: what
//! would reach further is for admins. Decided for each resource of a change by itself; one that is refused refuses all.

use baremesh_model::mesh::{Kind, ResourceId};
use baremesh_model::mesh_config::MeshConfig;
use baremesh_model::name::Key;
use baremesh_model::operator::Role;
use baremesh_model::service_entry::ServiceEntry;
use baremesh_model::virtual_service::{Gateway, HostPattern, VirtualService, Visibility};
use baremesh_model::workload::Tunnel;
use baremesh_registry::resource::Resource;

/// Istio's name for the root namespace, whatever the mesh calls its own.
const ISTIO_ROOT: &str = "istio-system";

/// Why a resource of that kind, namespace and name may not be changed by that role at all; nothing where it may.
pub(super) fn refusal_of_id(role: &Role, id: &ResourceId, config: &MeshConfig) -> Option<String> {
    let namespaces = match role {
        Role::Admin => return None,
        Role::Viewer => return Some("a viewer changes nothing".to_owned()),
        Role::Editor(namespaces) => namespaces,
    };
    let namespace = &id.key.namespace;
    match id.kind {
        // A Gateway is for gateways of whichever namespace.
        Kind::MeshConfig | Kind::HostGrant | Kind::Gateway => {
            Some(format!("{id}: a {} holds for the whole mesh, and is changed by admins alone", id.kind))
        }
        _ if *namespace == config.root_namespace || namespace.as_str() == ISTIO_ROOT => Some(format!(
            "{id}: what stands in the root namespace holds for the whole mesh, and is changed by admins alone"
        )),
        _ if !namespaces.contains(namespace) => Some(format!(
            "{id}: the namespace {namespace} is not one of those that this operator ({role}) changes"
        )),
        _ => None,
    }
}

/// Why a resource may not be written so by that role; nothing where it may.
pub(super) fn refusal(role: &Role, resource: &Resource, config: &MeshConfig) -> Option<String> {
    let id = resource.id();
    if let Some(refusal) = refusal_of_id(role, &id, config) {
        return Some(refusal);
    }
    let beyond = match resource {
        Resource::VirtualService(service) => routes_beyond(role, service, config),
        Resource::Workload(workload) if workload.tunnel == Tunnel::Hbone && *role != Role::Admin => Some(format!(
            "it declares an agent at {}, and every host then captures what is opened to that address: leave it to the \
             agent's own registration, or to an admin",
            workload.address
        )),
        Resource::Workload(_)
        // Selected, found and counted within their own namespace; a set in which addresses collide is refused.
        | Resource::Service(_)
        | Resource::PeerAuthentication(_)
        | Resource::AuthorizationPolicy(_)
        | Resource::RequestAuthentication(_)
        | Resource::RateLimit(_)
        // A template for registrations of its own namespace: what a host may be is for its grants to say.
        | Resource::WorkloadGroup(_)
        // For callers of its own namespace.
        | Resource::Sidecar(_)
        // Found for callers of its own namespace, and for services of it.
        | Resource::DestinationRule(_)
        // Refused above to all but admins.
        | Resource::MeshConfig(_)
        | Resource::Gateway(_)
        | Resource::HostGrant(_) => None,
        Resource::ServiceEntry(entry) => leads_beyond(role, entry),
    };
    beyond.map(|reason| format!("{id}: {reason}"))
}

/// A host for other namespaces' callers would take their calls, those to its addresses included.
fn leads_beyond(role: &Role, entry: &ServiceEntry) -> Option<String> {
    let Role::Editor(namespaces) = role else { return None };
    match &entry.export_to {
        Visibility::Namespaces(seen_by) if seen_by.is_subset(namespaces) => None,
        _ => Some(format!(
            "it says where calls of other namespaces go than those that this operator ({role}) changes: add `exportTo = \
             [\".\"]` to take the calls of its own namespace alone"
        )),
    }
}

/// Routes for other namespaces' services would lead other namespaces' calls elsewhere.
fn routes_beyond(role: &Role, service: &VirtualService, config: &MeshConfig) -> Option<String> {
    let Role::Editor(namespaces) = role else { return None };
    if let Visibility::Namespaces(seen_by) = &service.export_to
        && seen_by.is_subset(namespaces)
    {
        return None;
    }
    let of_others = |gateway: &&Gateway| match gateway {
        Gateway::Mesh => false,
        Gateway::Named(gateway) => !namespaces.contains(&gateway.namespace),
    };
    if let Some(other) = service.gateways.iter().find(of_others) {
        return Some(format!(
            "it routes what comes to Gateway {other}, which is not of the namespaces that this operator ({role}) changes: an admin binds \
             routes to that"
        ));
    }
    let own = |host: &HostPattern| match host {
        HostPattern::Exact(name) => Key::resolve(name, &service.key.namespace, &config.domain)
            .is_ok_and(|key| namespaces.contains(&key.namespace)),
        HostPattern::Suffix(_) | HostPattern::Any => false,
    };
    let other = service.hosts.iter().find(|host| !own(host))?;
    Some(format!(
        "it routes {other}, which is no service of the namespaces that this operator ({role}) changes, for callers of every namespace: add `exportTo = [\".\"]` to route \
         the calls of its own namespace alone"
    ))
}

#[cfg(test)]
mod tests {
    use baremesh_registry::format::Form;

    use super::*;

    fn editor() -> Role {
        let label = |text| baremesh_model::name::Label::new(text).expect("a label");
        Role::new("editor", [label("shop"), label("web")].into()).expect("a role")
    }

    fn refused(role: &Role, text: &str) -> Option<String> {
        let parsed = Form::Toml.parse(text, "x.toml");
        assert!(!parsed.failed(), "{:?}", parsed.findings);
        refusal(role, &parsed.resources[0].value, &MeshConfig::default())
    }

    #[test]
    fn an_editor_has_its_namespaces_and_nothing_that_reaches_further() {
        let at = |kind: &str, namespace: &str, more: &str| {
            format!("[[{kind}]]\nname = \"x\"\nnamespace = \"{namespace}\"\n{more}\n")
        };
        let route = |hosts: &str, more: &str| {
            at(
                "VirtualService",
                "shop",
                &format!(
                    "hosts = [{hosts}]\n{more}\ntcp = [{{ route = [{{ destination = {{ host = \"x\" }} }}] }}]"
                ),
            )
        };
        let service = "ports = [{ port = 80 }]";
        let entry = "address = \"10.0.0.7\"\nlabels = { app = \"x\" }\n";
        for (text, expected) in [
            (at("Service", "shop", service), None),
            (at("Service", "web", service), None),
            (at("Service", "billing", service), Some("not one of")),
            (at("AuthorizationPolicy", "shop", ""), None),
            (at("AuthorizationPolicy", "mesh-system", ""), Some("root namespace")),
            (at("PeerAuthentication", "istio-system", ""), Some("root namespace")),
            (at("DestinationRule", "shop", "host = \"x.billing\""), None),
            (at("ServiceEntry", "shop", "hosts = [\"a.example.com\"]"), Some("exportTo")),
            (at("ServiceEntry", "shop", "hosts = [\"a.example.com\"]\nexportTo = [\".\"]"), None),
            (at("HostGrant", "shop", "host = \"*\"\nservices = [\"*.*\"]"), Some("whole mesh")),
            ("[[MeshConfig]]\ntrustDomain = \"a.b\"\n".to_owned(), Some("whole mesh")),
            (at("WorkloadEntry", "shop", entry), None),
            (at("WorkloadEntry", "shop", &format!("{entry}tunnel = \"hbone\"")), Some("declares an agent")),
            (route("\"orders\"", ""), None),
            (route("\"orders.shop\", \"orders.web.mesh.internal\"", ""), None),
            (route("\"orders.billing\"", ""), Some("routes orders.billing")),
            (route("\"orders\", \"orders.billing.svc.cluster.local\"", ""), Some("exportTo")),
            (route("\"orders.mesh.internal\"", ""), Some("routes")),
            (route("\"*.example.com\"", ""), Some("routes *.example.com")),
            (route("\"*.shop.mesh.internal\"", ""), Some("routes")),
            (route("\"example.com\"", ""), Some("routes")),
            (route("\"orders.billing\"", "exportTo = [\".\"]"), None),
            (route("\"*.example.com\"", "exportTo = [\".\", \"web\"]"), None),
            (route("\"orders.billing\"", "exportTo = [\".\", \"billing\"]"), Some("routes")),
            (route("\"orders\"", "gateways = [\"mesh\", \"shop/own\"]"), None),
            (route("\"orders\"", "gateways = [\"edge/leaving\"]"), Some("Gateway edge/leaving")),
        ] {
            let found = refused(&editor(), &text);
            match expected {
                None => assert_eq!(found, None, "{text}"),
                Some(part) => assert!(found.as_ref().is_some_and(|r| r.contains(part)), "{text}: {found:?}"),
            }
            assert_eq!(refused(&Role::Admin, &text), None, "{text}");
            assert!(refused(&Role::Viewer, &text).is_some(), "{text}");
        }
    }
}
