//! Services and their addresses: what each name of the catalog is, and which of its instances count.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use baremesh_model::name::{Key, default_namespace};
use baremesh_model::service::{Service, ServicePort};
use baremesh_model::service_entry::hosts;
use serde_json::Value;

use super::super::catalog::Instance;
use super::super::instance::{PORT_NAME, Standing, What, is_elsewhere, standing, what};
use super::super::mark::service_named;
use super::super::settings::Settings;
use super::{CONSUL_ITSELF, Declared, Derived, MESHED, Report, assigned, instances, is_agent_of};
use crate::format;
use crate::resource::Resource;

/// One instance that counts.
pub(super) struct Member {
    /// As reports name it.
    pub(super) named: String,
    pub(super) what: What,
    pub(super) standing: Standing,
    /// Whose claim to an address and port comes first.
    pub(super) rank: Rank,
    /// Tells it from the others of its service.
    pub(super) place: (String, String),
}

/// Who comes first: who was heard of before who is silent, who is at the addresses of its node before who was granted others,
/// the older before the newer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    is_silent: bool,
    is_elsewhere: bool,
    age: u64,
    place: String,
}

/// A service with its instances. Its addresses may be missing.
pub(super) struct Known {
    pub(super) service: Service,
    pub(super) members: Vec<Member>,
    /// Whether nothing but the catalog says that it is there.
    pub(super) is_implied: bool,
}

/// The services of the catalog.
pub(super) fn catalog(
    inputs: &BTreeMap<String, Value>,
    declared: &Declared,
    settings: &Settings,
    report: &mut Report,
) -> BTreeMap<Key, Known> {
    let mut all = BTreeMap::new();
    for (name, instances) in instances(inputs).filter(|(name, _)| *name != CONSUL_ITSELF) {
        let key = match service_named(name) {
            Ok(key) => key,
            Err(why) => {
                report.leave_out(name.to_owned(), why);
                continue;
            }
        };
        let stated = declared.services.get(&key);
        if stated.is_some_and(|service| service.federated.is_some()) {
            report.leave_out(name.to_owned(), "the Service of that name is another mesh's");
            continue;
        }
        let members = members(&key, &instances, declared, report);
        let has_agent = || members.iter().any(|member| is_agent_of(&key, &member.what, declared));
        let is_known = key.namespace == default_namespace()
            || declared.namespaces.contains(&key.namespace)
            || settings.plain.contains(&key);
        if !is_known && !has_agent() {
            report.leave_out(name.to_owned(), UNKNOWN_NAMESPACE);
            continue;
        }
        let was_meshed = inputs.contains_key(&format!("{MESHED}{key}"));
        let takes_plain = settings.plain.contains(&key) || (stated.is_none() && !has_agent() && !was_meshed);
        let Some(service) = stated.cloned().or_else(|| implied(&key, &members, takes_plain)) else {
            for member in &members {
                report.leave_out(member.named.clone(), reason_without_service(member));
            }
            continue;
        };
        let counts = |member: &Member| match &member.what {
            What::Agent { registration, .. } if *registration.account() != service.service_account => {
                Err(format!(
                    "it runs as `{}`, and {key} as `{}`: a Service resource says so where that is meant",
                    registration.account(),
                    service.service_account
                ))
            }
            What::Foreign { .. } if !takes_plain => Err(PLAIN_OF_MESHED.to_owned()),
            What::Foreign { address, .. } if declared.config.virtual_ranges.contains(*address) => {
                Err(format!("{address} is a virtual address of the mesh, and nobody's own"))
            }
            What::Agent { .. } | What::Foreign { .. } => Ok(()),
        };
        let mut counted = Vec::new();
        for member in members {
            match counts(&member) {
                Ok(()) => counted.push(member),
                Err(why) => report.leave_out(member.named, why),
            }
        }
        all.insert(key, Known { service, members: counted, is_implied: stated.is_none() });
    }
    all
}

const PLAIN_OF_MESHED: &str = "the service is meshed, and somebody registered this instance without an agent: nothing is sent to it in plaintext, \
     unless `plain` in [consul] names the service";

const UNKNOWN_NAMESPACE: &str = "no resource is in that namespace, and no agent registered it: else whoever registers `github.com` would be \
     it; write a Service, or any resource in the namespace";

fn reason_without_service(member: &Member) -> String {
    match &member.what {
        What::Agent { registration, .. } => format!(
            "it runs as `{}`, which is not the service's own name: a Service resource says so where that is meant",
            registration.account()
        ),
        What::Foreign { .. } => PLAIN_OF_MESHED.to_owned(),
    }
}

fn members(key: &Key, instances: &[Instance], declared: &Declared, report: &mut Report) -> Vec<Member> {
    let mut members = Vec::new();
    for instance in instances {
        let (node, id) = (&instance.node.node, &instance.service.id);
        let named = format!("{key} `{id}` on {node}");
        match what(key, instance, &declared.grants) {
            Ok(what) => {
                let standing = standing(instance);
                let rank = Rank {
                    is_silent: standing == Standing::Silent,
                    is_elsewhere: is_elsewhere(instance, &what),
                    age: instance.service.create_index,
                    place: format!("{node}/{id}"),
                };
                members.push(Member { named, what, standing, rank, place: (node.clone(), id.clone()) });
            }
            Err(why) => report.leave_out(named, why),
        }
    }
    members.sort_by(|a, b| a.rank.cmp(&b.rank));
    members
}

/// The Service that instances stand for where no resource says what it is: the oldest of its agents says so. Its account is
/// the service's own name, whatever a registration says: who may write to the catalog does not choose whom callers trust.
fn implied(key: &Key, members: &[Member], takes_plain: bool) -> Option<Service> {
    let agents = members.iter().filter_map(|member| match &member.what {
        What::Agent { registration, .. } if *registration.account() == key.name => {
            Some((member.rank.age, registration))
        }
        _ => None,
    });
    match agents.min_by_key(|(age, _)| *age) {
        Some((_, oldest)) => Some(oldest.implicit_service()),
        None if takes_plain => implied_by_foreign(key, members),
        None => None,
    }
}

/// The port is the one that most have; the others are mapped.
fn implied_by_foreign(key: &Key, members: &[Member]) -> Option<Service> {
    let foreign = members.iter().filter_map(|member| match &member.what {
        What::Foreign { port, protocol, .. } => Some((*port, *protocol)),
        What::Agent { .. } => None,
    });
    let foreign: Vec<_> = foreign.collect();
    let mut counts: BTreeMap<NonZeroU16, usize> = BTreeMap::new();
    foreign.iter().for_each(|(port, _)| *counts.entry(*port).or_default() += 1);
    // Of those that are equally many, the lowest.
    let (port, _) = counts.iter().rev().max_by_key(|(_, count)| **count)?;
    let protocol = foreign.iter().find_map(|(_, protocol)| *protocol).unwrap_or_default();
    let name = Some(Arc::from(PORT_NAME));
    Some(Service {
        key: key.clone(),
        ports: vec![ServicePort { port: *port, target_port: *port, protocol, name }],
        selector: None,
        service_account: key.name.clone(),
        addresses: Vec::new(),
        federated: None,
    })
}

/// Gives every service its addresses, and writes it into the entries: those that it states, else those that are assigned
/// to it, else those that its name hashes to, which is where assigning begins. Whoever would share one with another waits
/// until it is assigned one of its own.
pub(super) fn with_addresses(
    inputs: &BTreeMap<String, Value>,
    declared: &Declared,
    mut catalog: BTreeMap<Key, Known>,
    derived: &mut Derived,
) -> Vec<Known> {
    let ranges = &declared.config.virtual_ranges;
    for service in declared.services.values() {
        let known = || Known { service: service.clone(), members: Vec::new(), is_implied: false };
        catalog.entry(service.key.clone()).or_insert_with(known);
    }
    let stated = declared
        .services
        .values()
        .flat_map(|service| service.addresses.iter().map(|address| (*address, service.key.clone())));
    let mut taken: BTreeMap<IpAddr, Key> = stated.collect();
    let mut of: BTreeMap<Key, Vec<IpAddr>> = BTreeMap::new();
    for (address, key) in assigned(inputs).into_iter().filter(|(address, _)| ranges.contains(*address)) {
        let needs = || catalog.get(&key).is_some_and(|known| known.service.addresses.is_empty());
        if !taken.contains_key(&address) && (key.as_host().is_some() || needs()) {
            if needs() {
                taken.insert(address, key.clone());
            }
            of.entry(key).or_default().push(address);
        }
    }
    hosts_with_addresses(declared, &mut of, &mut taken, derived);
    let mut all = Vec::new();
    for (key, mut known) in catalog {
        let entry = format!("Service/{}/{}", key.namespace, key.name);
        if known.service.addresses.is_empty() {
            let addresses = of.remove(&key).unwrap_or_else(|| ranges.hashed(&key));
            if addresses.iter().any(|address| taken.get(address).is_some_and(|other| *other != key)) {
                derived.entries.remove(&entry);
                derived.report.leave_out(key.to_string(), WAITS);
                continue;
            }
            taken.extend(addresses.iter().map(|address| (*address, key.clone())));
            known.service.addresses = addresses;
        }
        let value = format::encode(&Resource::Service(Box::new(known.service.clone())));
        derived.entries.insert(entry, value);
        all.push(known);
    }
    all
}

const WAITS: &str =
    "its virtual address is another's, and it has none of its own yet: the control server assigns them";

/// Gives the hosts of ServiceEntries the addresses that are assigned to them.
fn hosts_with_addresses(
    declared: &Declared,
    of: &mut BTreeMap<Key, Vec<IpAddr>>,
    taken: &mut BTreeMap<IpAddr, Key>,
    derived: &mut Derived,
) {
    let mut entries = BTreeMap::new();
    for (key, entry) in &declared.service_entries {
        let mut entry = (**entry).clone();
        if entry.needs_virtual_addresses() {
            for host in entry.host_names().collect::<Vec<_>>() {
                if let Some(addresses) = of.get(&entry.key_of(&host)) {
                    entry.assigned.insert(host, addresses.clone());
                }
            }
        }
        entries.insert(key.clone(), Arc::new(entry));
    }
    let name = |key: &Key| format!("ServiceEntry/{}/{}", key.namespace, key.name);
    for (key, entry) in &entries {
        let value = format::encode(&Resource::ServiceEntry(Box::new((**entry).clone())));
        derived.entries.insert(name(key), value);
    }
    for host in hosts(&entries, &declared.config.virtual_ranges).into_values() {
        let is_other = |other: &Key| *other != host.key && !host.shares_addresses_with(other, &entries);
        if host.virtual_addresses.iter().any(|address| taken.get(address).is_some_and(is_other)) {
            for entry in &host.entries {
                derived.entries.remove(&name(&entry.key));
            }
            derived.report.leave_out(host.key.to_string(), WAITS);
            continue;
        }
        taken.extend(host.virtual_addresses.iter().map(|address| (*address, host.key.clone())));
    }
}
