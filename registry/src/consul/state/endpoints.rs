//! Endpoints: a WorkloadEntry for each instance that counts, and for none whose address and port are another's.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::sync::Arc;

use baremesh_model::health::Health;
use baremesh_model::name::{Key, Label};
use baremesh_model::service::Service;
use baremesh_model::workload::{Locality, OF_CATALOG, Tunnel, Workload};

use super::super::instance::{Standing, What};
use super::Derived;
use super::claims::Claims;
use super::consul_itself::ConsulItself;
use super::services::{Known, Member};
use crate::control::digest::Digest;
use crate::control::registration::workload_name;
use crate::format;
use crate::resource::Resource;

/// Adds the endpoints of all services.
pub(super) fn add(services: Vec<Known>, mut claims: Claims, consul: &ConsulItself, derived: &mut Derived) {
    let mut all: Vec<(Arc<Service>, Member)> = Vec::new();
    for Known { service, members, .. } in services {
        let service = Arc::new(service);
        all.extend(members.into_iter().map(|member| (Arc::clone(&service), member)));
    }
    all.sort_by(|(_, a), (_, b)| a.rank.cmp(&b.rank));
    let mut seen = BTreeSet::new();
    for (service, member) in all {
        if let What::Agent { host, .. } = &member.what
            && !seen.insert((service.key.clone(), host.clone()))
        {
            derived.report.leave_out(member.named, "its host has registered it twice");
            continue;
        }
        let workload = match workload(&service, &member, derived) {
            Ok(workload) => workload,
            Err(why) => {
                derived.report.leave_out(member.named, why);
                continue;
            }
        };
        let places = || service.ports.iter().flat_map(|port| workload.endpoints(port));
        if let Some(at) = places().find(|at| consul.is_at(*at)) {
            let why = format!("Consul itself is at {at}, and nothing else that is called");
            derived.report.leave_out(member.named, why);
            continue;
        }
        if workload.tunnel == Tunnel::Hbone
            && let Err(at) = claims.claim(&service, &workload)
        {
            let why = format!("{at} is another identity's already: whoever is at that address first has it");
            derived.report.leave_out(member.named, why);
            continue;
        }
        match workload.tunnel {
            Tunnel::Hbone => derived.report.agents += 1,
            Tunnel::Plain => derived.report.plain += 1,
        }
        let entry = entry(&workload.key);
        derived.entries.insert(entry, format::encode(&Resource::Workload(workload.into())));
    }
}

fn entry(key: &Key) -> String {
    format!("WorkloadEntry/{}/{}", key.namespace, key.name)
}

fn workload(service: &Service, member: &Member, derived: &Derived) -> Result<Workload, String> {
    let namespace = &service.key.namespace;
    let taken =
        |name: &Label| derived.entries.contains_key(&entry(&Key::new(namespace.clone(), name.clone())));
    let health = match member.standing {
        Standing::Well => Health::Healthy,
        Standing::Ill | Standing::Silent => Health::Unhealthy,
    };
    match &member.what {
        What::Agent { host, registration } => {
            let name = workload_name(&service.key.name, host, taken);
            Ok(Workload { health, ..registration.workload(name, host.clone(), service) })
        }
        What::Foreign { address, port, labels, weight, .. } => {
            let (node, id) = &member.place;
            let place = Label::new(&Digest::of(node, id).short()).expect("hexadecimal digits");
            let name = workload_name(&service.key.name, &place, taken);
            let mut labels = labels.clone();
            labels.insert(OF_CATALOG.into(), "true".into());
            if taken(&name) {
                return Err("a WorkloadEntry of that name is there already".to_owned());
            }
            Ok(Workload {
                key: Key::new(namespace.clone(), name),
                address: *address,
                other_addresses: Vec::new(),
                service: Some(service.key.name.clone()),
                host: None,
                ports: mapped(service, *port)?,
                labels,
                network: None,
                locality: Locality::default(),
                weight: *weight,
                service_account: None,
                tunnel: Tunnel::Plain,
                health,
            })
        }
    }
}

/// The port of a foreign instance, where it is not the service's own. Consul knows one port of an instance.
fn mapped(service: &Service, port: NonZeroU16) -> Result<BTreeMap<Arc<str>, NonZeroU16>, String> {
    match &service.ports[..] {
        [only] if only.target_port == port => Ok(BTreeMap::new()),
        [only] => match &only.name {
            Some(name) => Ok([(Arc::clone(name), port)].into()),
            None => Err(format!(
                "it is at port {port}, and the Service's port has no name to map by: give it one"
            )),
        },
        _ => Err("the Service has several ports, and Consul knows one of an instance: write WorkloadEntries"
            .to_owned()),
    }
}
