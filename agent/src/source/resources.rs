//! Entries of a state, put together into a mesh. What was read from an entry is kept as long as the entry is: a change of one
//! among thousands reads that one, and everything else is shared with the mesh before.

use std::collections::BTreeMap;
use std::sync::Arc;

use baremesh_ca::tls::TrustBundle;
use baremesh_model::endpoint_addresses::EndpointAddresses;
use baremesh_model::mesh::Mesh;
use baremesh_model::name::Key;
use baremesh_registry::control::endpoint_addresses::{self, service_of};
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
    addresses: BTreeMap<String, Addresses>,
    together: BTreeMap<Key, Together>,
}

/// Where the endpoints of a service are that nobody on this host has asked for.
struct Addresses {
    entry: Arc<Entry>,
    service: Key,
    read: Arc<EndpointAddresses>,
}

/// Where the endpoints of one service are, from all of its entries.
struct Together {
    parts: Vec<Arc<EndpointAddresses>>,
    all: Arc<EndpointAddresses>,
}

impl Together {
    fn of(parts: Vec<Arc<EndpointAddresses>>) -> Self {
        let all = match &parts[..] {
            [only] => Arc::clone(only),
            several => {
                let groups = several.iter().flat_map(|part| &part.groups).cloned().collect();
                Arc::new(EndpointAddresses { groups })
            }
        };
        Self { parts, all }
    }

    fn is_of(&self, parts: &[Arc<EndpointAddresses>]) -> bool {
        let same = |(one, other): (&Arc<_>, &Arc<_>)| Arc::ptr_eq(one, other);
        self.parts.len() == parts.len() && self.parts.iter().zip(parts).all(same)
    }
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
        let unheld = self.unheld(entries)?;
        let mut count = 0;
        let is_resource = |key: &str| !is_about_trust(key) && service_of(key).is_none();
        for (key, entry) in entries.iter().filter(|(key, _)| is_resource(key)) {
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
        of_trust_domain(mesh.holding_all_but(unheld), bundle)
    }

    /// The services whose endpoints are not among the entries, with where they are.
    fn unheld(&mut self, entries: &Entries) -> Result<BTreeMap<Key, Arc<EndpointAddresses>>, String> {
        self.addresses.retain(|key, _| entries.contains_key(key));
        let prefix = format!("{}/", endpoint_addresses::KIND);
        for (key, entry) in entries.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix)) {
            let service = service_of(key).ok_or_else(|| format!("{key} is of no service"))?;
            if self.addresses.get(key).is_some_and(|known| Arc::ptr_eq(&known.entry, entry)) {
                continue;
            }
            let read = endpoint_addresses::read(&entry.value()).map_err(|why| {
                format!("{key} is not understood ({why}), and what is there would be called in plaintext")
            })?;
            let (entry, read) = (Arc::clone(entry), Arc::new(read));
            self.addresses.insert(key.clone(), Addresses { entry, service, read });
        }
        let mut parts: BTreeMap<Key, Vec<Arc<EndpointAddresses>>> = BTreeMap::new();
        for known in self.addresses.values() {
            parts.entry(known.service.clone()).or_default().push(Arc::clone(&known.read));
        }
        let mut together = BTreeMap::new();
        for (service, parts) in parts {
            let former = self.together.remove(&service).filter(|former| former.is_of(&parts));
            together.insert(service, former.unwrap_or_else(|| Together::of(parts)));
        }
        self.together = together;
        Ok(self.together.iter().map(|(service, known)| (service.clone(), Arc::clone(&known.all))).collect())
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

    #[test]
    fn services_that_nobody_asked_for_are_known_by_where_they_are() {
        let bundle = bundle();
        let mut resources = Resources::default();
        let at = |key: &str, addresses: &str| {
            let value = json!({ "groups": [{ "ports": "80", "at": addresses }] });
            (key.to_owned(), value)
        };
        let mut state = entries(&[service("a"), at("EndpointAddresses/x/a", "10.0.0.1 10.0.0.2")]);
        let shown = |mesh: &Mesh| {
            let all = mesh.unheld.iter().map(|(key, known)| (key.to_string(), known.all().count()));
            all.collect::<Vec<_>>()
        };
        let first = resources.mesh(&state, &bundle).expect("a mesh");
        assert_eq!(shown(&first), [("a.x".to_owned(), 2)]);
        let second = resources.mesh(&state, &bundle).expect("a mesh");
        let key = Key::read("a.x").expect("a key");
        assert!(Arc::ptr_eq(&first.unheld[&key], &second.unheld[&key]), "what is the same is not read again");
        let (further, value) = at("EndpointAddresses/x/a/1", "10.0.0.3");
        state.insert(further.clone(), Arc::new(Entry::of(&further, &value)));
        let third = resources.mesh(&state, &bundle).expect("a mesh");
        assert_eq!(shown(&third), [("a.x".to_owned(), 3)]);
        let fourth = resources.mesh(&state, &bundle).expect("a mesh");
        assert!(Arc::ptr_eq(&third.unheld[&key], &fourth.unheld[&key]), "nor put together again");
        state.retain(|key, _| key.starts_with("Service/"));
        assert_eq!(shown(&resources.mesh(&state, &bundle).expect("a mesh")), []);
        let (nobody, value) = at("EndpointAddresses/x/a.b", "10.0.0.1");
        state.insert(nobody.clone(), Arc::new(Entry::of(&nobody, &value)));
        let refused = resources.mesh(&state, &bundle).err().unwrap_or_default();
        assert!(refused.contains("EndpointAddresses/x/a.b is of no service"), "{refused}");
        state.remove(&nobody);
        let bad = json!({ "groups": [{ "ports": "80", "at": "10.0.0.1", "tunnel": "newer" }] });
        state.insert("EndpointAddresses/x/a".to_owned(), Arc::new(Entry::of("EndpointAddresses/x/a", &bad)));
        let refused = resources.mesh(&state, &bundle).err().unwrap_or_default();
        assert!(refused.contains("EndpointAddresses/x/a is not understood"), "{refused}");
    }
}
