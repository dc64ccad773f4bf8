//! Entries of a state, put together into a mesh. What was read from an entry is kept as long as the entry is: a change of one
//! among thousands reads that one, and everything else is shared with the mesh before.

use std::collections::BTreeMap;
use std::sync::Arc;

use baremesh_ca::tls::TrustBundle;
use baremesh_model::mesh::Mesh;
use baremesh_registry::control::followed::{Entries, Entry};
use baremesh_registry::diagnostic::Diagnostic;
use baremesh_registry::format::decode_from_newer;
use baremesh_registry::format::source::{Origin, Source, Span};
use baremesh_registry::resource::{Located, Resource};
use baremesh_registry::set::assemble_mesh;

use super::of_trust_domain;
use crate::trust::is_about_trust;

/// What was read from the entries of a state.
#[derive(Default)]
pub struct Resources {
    read: BTreeMap<String, Read>,
}

/// What one entry comes to.
struct Read {
    entry: Arc<Entry>,
    /// None where this version does not understand it.
    resource: Option<Located<Resource>>,
    reports: Vec<Diagnostic>,
}

impl Resources {
    /// The resources of a state, put together into one mesh of the trust domain that this host is a member of.
    pub fn mesh(&mut self, entries: &Entries, bundle: &TrustBundle) -> Result<Mesh, String> {
        let mut count = 0;
        for (key, entry) in entries.iter().filter(|(key, _)| !is_about_trust(key)) {
            count += 1;
            let known = self.read.get(key);
            if !known.is_some_and(|known| Arc::ptr_eq(&known.entry, entry)) {
                self.read.insert(key.clone(), read(key, entry));
            }
        }
        if self.read.len() != count {
            self.read.retain(|key, _| entries.contains_key(key));
        }
        let resources = self.read.values().filter_map(|read| read.resource.clone()).collect();
        let findings = self.read.values().flat_map(|read| read.reports.iter().cloned()).collect();
        let mesh = assemble_mesh(resources, findings).map_err(|refused| refused.to_string())?;
        of_trust_domain(mesh, bundle)
    }
}

fn read(key: &str, entry: &Arc<Entry>) -> Read {
    let (resource, reports) = match decode_from_newer(&entry.value()) {
        Ok(read) => {
            for report in &read.reports {
                tracing::warn!(resource = key, "{report}");
            }
            let origin = Origin { source: Arc::new(Source::new(key, "")), span: Span::default() };
            (Some(Located { value: read.resource, origin }), read.reports)
        }
        // A kind of a newer version, which this agent could not put in force in any case.
        Err(reports) => {
            let report = reports.first().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(resource = key, report, "a resource is not understood and has no effect here");
            (None, Vec::new())
        }
    };
    Read { entry: Arc::clone(entry), resource, reports }
}

#[cfg(test)]
mod tests {
    use baremesh_model::name::TrustDomain;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    use serde_json::{Value, json};

    use super::*;

    fn bundle() -> TrustBundle {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&KeyPair::generate().expect("a key")).expect("a root");
        TrustBundle::new(TrustDomain::new("mesh.internal").expect("a domain"), vec![root.der().clone()])
            .expect("a bundle")
    }

    fn service(name: &str) -> (String, Value) {
        let value = json!({
            "apiVersion": "baremesh/v1", "kind": "Service", "metadata": { "name": name, "namespace": "x" },
            "spec": { "ports": [{ "port": 80 }] },
        });
        (format!("Service/x/{name}"), value)
    }

    fn workload(name: &str, address: &str) -> (String, Value) {
        let value = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
            "metadata": { "name": name, "namespace": "x" },
            "spec": { "address": address, "labels": { "app": "a" } },
        });
        (format!("WorkloadEntry/x/{name}"), value)
    }

    fn entries(of: &[(String, Value)]) -> Entries {
        of.iter().map(|(key, value)| (key.clone(), Arc::new(Entry::of(key, value)))).collect()
    }

    #[test]
    fn what_did_not_change_is_shared_and_what_is_gone_is_gone() {
        let bundle = bundle();
        let mut resources = Resources::default();
        let mut state = entries(&[service("a"), workload("w1", "10.0.0.1"), workload("w2", "10.0.0.2")]);
        let first = resources.mesh(&state, &bundle).expect("a mesh");
        let (key, value) = workload("w2", "10.0.0.3");
        state.insert(key.clone(), Arc::new(Entry::of(&key, &value)));
        let second = resources.mesh(&state, &bundle).expect("a mesh");
        let of = |mesh: &Mesh| mesh.workloads.values().cloned().collect::<Vec<_>>();
        assert!(Arc::ptr_eq(&of(&first)[0], &of(&second)[0]));
        assert_eq!(of(&second)[1].address.to_string(), "10.0.0.3");
        state.remove("WorkloadEntry/x/w1");
        let third = resources.mesh(&state, &bundle).expect("a mesh");
        assert_eq!(third.workloads.len(), 1);
        assert_eq!(third, Resources::default().mesh(&state, &bundle).expect("a mesh"), "as if read anew");
        state.remove("Service/x/a");
        let bad = json!({ "kind": "Nobody knows", "metadata": { "name": "n" } });
        state.insert("New/x/n".to_owned(), Arc::new(Entry::of("New/x/n", &bad)));
        let fourth = resources.mesh(&state, &bundle).expect("what is not understood has no effect");
        assert!(fourth.services.is_empty());
    }
}
