//! What hosts of ServiceEntries must not be beside the services of the mesh and beside each other.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Kind, MeshError, MeshFault, Parts, ResourceId};
use crate::identity::RESERVED_NAMESPACES;
use crate::name::Key;
use crate::service_entry::hosts;

/// Hosts are outside the mesh's domain, and no two hosts, or a host and a service, share a virtual address.
pub(super) fn check(parts: &Parts, errors: &mut Vec<MeshError>) {
    let (config, entries) = (&parts.config, &parts.service_entries);
    let services = parts.services.iter();
    let mut taken: BTreeMap<IpAddr, Key> = services
        .flat_map(|(key, service)| service.addresses.iter().map(move |address| (*address, key.clone())))
        .collect();
    let mut push = |key: &Key, fault| {
        let resource = ResourceId { kind: Kind::ServiceEntry, key: key.clone() };
        errors.push(MeshError { resource, fault });
    };
    for key in entries.keys().filter(|key| RESERVED_NAMESPACES.contains(&key.namespace.as_str())) {
        push(key, MeshFault::ReservedNamespace(key.namespace.clone()));
    }
    let in_mesh = |host: &str| {
        let within = |domain: &str| host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        within(config.domain.as_str()) || within("svc.cluster.local") || host == config.domain.as_str()
    };
    for host in hosts(entries, &config.virtual_ranges).into_values() {
        let first = &host.entries[0];
        if in_mesh(&host.name) {
            push(&first.key, MeshFault::HostOfMesh(Arc::clone(&host.name)));
        }
        for other in &host.entries[1..] {
            let (host, first_key) = (Arc::clone(&host.name), first.key.clone());
            if other.export_to != first.export_to {
                push(&other.key, MeshFault::ExportsDiffer { host, other: first_key });
            } else if other.resolution.is_none() != first.resolution.is_none() {
                push(&other.key, MeshFault::ResolutionsDiffer { host, other: first_key });
            }
        }
        for address in &host.virtual_addresses {
            if let Some(other) = taken.insert(*address, host.key.clone())
                && !host.shares_addresses_with(&other, entries)
            {
                push(&first.key, MeshFault::AddressTaken { address: *address, other });
            }
        }
    }
}
