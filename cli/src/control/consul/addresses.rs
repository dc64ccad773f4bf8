//! Virtual addresses in Consul: `addresses/<ip>` says whose one is. A key is made only if there is none, so that an address
//! has one owner however many control servers assign them; who was overtaken looks again and takes the next free one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use baremesh_model::grant::Grant;
use baremesh_model::name::{Key, Label, default_namespace};
use baremesh_registry::consul::ConsulError;
use baremesh_registry::consul::kv::{MAX_OPERATIONS, Operation, Transacted, When};
use baremesh_registry::consul::mark::{TAG, service_named};
use baremesh_registry::consul::query::{Consistency, Place, Read, Step};
use baremesh_registry::consul::state::AddressRecord;
use baremesh_registry::control::addresses::{Addresses, Assignment};
use baremesh_registry::control::catalog::Declared;
use baremesh_registry::control::client::backoff;
use baremesh_registry::resource::Resource;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{ConsulSide, Part, WAIT};
use crate::control::Server;

/// How often it is looked for addresses whose quarantine is over.
const LOOK: Duration = Duration::from_secs(3600);
/// The pause after a change, so that many are one.
const PACE: Duration = Duration::from_millis(500);

/// Assigns for as long as the server runs.
pub(super) async fn keep(side: Arc<ConsulSide>, server: Arc<Server>) {
    let (tell, names) = watch::channel(None);
    tokio::join!(Box::pin(follow_names(side.clone(), tell)), Box::pin(assign_always(side, server, names)));
}

/// The services in the catalog, once they are known, and whether an agent registered each.
type Names = Option<BTreeMap<Key, bool>>;

async fn follow_names(side: Arc<ConsulSide>, tell: watch::Sender<Names>) {
    let (mut place, mut attempt) = (Place::default(), 0);
    loop {
        match side.client.services(place.read(Consistency::Leader, WAIT)).await {
            Ok(answer) => {
                attempt = 0;
                if place.advance(answer.index) != Step::Same {
                    let all = answer.value.iter().filter(|(name, _)| *name != "consul");
                    let named = |(name, tags): (&String, &Vec<String>)| {
                        Some((service_named(name).ok()?, tags.iter().any(|tag| tag == TAG)))
                    };
                    tell.send_replace(Some(all.filter_map(named).collect()));
                }
                sleep(PACE).await;
            }
            Err(error) => {
                side.note(Part::Addresses, Some(error.to_string()));
                place.reset();
                attempt += 1;
                sleep(backoff(attempt, rand::random())).await;
            }
        }
    }
}

async fn assign_always(side: Arc<ConsulSide>, server: Arc<Server>, mut names: watch::Receiver<Names>) {
    let mut in_force = server.in_force.clone();
    let mut attempt = 0;
    loop {
        in_force.mark_unchanged();
        let known = names.borrow_and_update().clone();
        let done = match known {
            Some(known) => Box::pin(assign(&side, &server, known)).await,
            None => Ok(Done::All),
        };
        let again = match done {
            Ok(Done::All) => {
                attempt = 0;
                side.note(Part::Addresses, None);
                LOOK
            }
            Ok(Done::Overtaken) => PACE,
            Err(error) => {
                attempt += 1;
                side.note(Part::Addresses, Some(error.to_string()));
                backoff(attempt, rand::random())
            }
        };
        tokio::select! {
            changed = in_force.changed() => if changed.is_err() { return },
            changed = names.changed() => if changed.is_err() { return },
            () = sleep(again) => {}
        }
        sleep(PACE).await;
    }
}

enum Done {
    All,
    /// Another control server wrote one of them meanwhile.
    Overtaken,
}

async fn assign(side: &ConsulSide, server: &Server, named: BTreeMap<Key, bool>) -> Result<Done, ConsulError> {
    let prefix = format!("{}addresses/", side.client.settings().prefix);
    let found = side.client.list(&prefix, Read::now(Consistency::Consistent)).await?.value;
    let (mut addresses, mut stands) = (Addresses::default(), BTreeMap::new());
    for pair in found {
        let address = pair.key.strip_prefix(&prefix).and_then(|text| text.parse::<IpAddr>().ok());
        let record: Option<AddressRecord> = serde_json::from_slice(&pair.value).ok();
        if let Some((address, assignment)) = address.zip(record.as_ref().and_then(assignment)) {
            addresses.apply(&(address, Some(assignment)));
            stands.insert(address, (pair.modified, record));
        }
    }
    let (stated, ranges) = {
        let ranges = server.in_force.borrow().loaded.mesh.config.virtual_ranges;
        (stated(server), ranges)
    };
    let now = SystemTime::now();
    let mut pending = BTreeMap::new();
    let namespaces = namespaces(server);
    let counts = |(key, is_ours): &(&Key, &bool)| **is_ours || namespaces.contains(&key.namespace);
    let named = named.iter().filter(counts).map(|(key, _)| key);
    let all: BTreeSet<&Key> = stated.keys().chain(named).collect();
    for service in &all {
        let own = stated.get(*service).map(Vec::as_slice).unwrap_or_default();
        if let Err(error) = addresses.assign(service, own, &ranges, now, &mut pending) {
            tracing::error!(%error, "a service has no virtual address");
        }
    }
    let gone: Vec<Key> = addresses.services().filter(|service| !all.contains(service)).cloned().collect();
    gone.iter().for_each(|service| addresses.release(service, now, &mut pending));
    for (address, none) in addresses.lapsed(now) {
        pending.entry(address).or_insert(none);
    }
    let mut by_service: BTreeMap<Option<Key>, Vec<Operation>> = BTreeMap::new();
    for (address, wanted) in pending {
        let key = format!("{prefix}{address}");
        let before = stands.get(&address);
        let when = before.map_or(When::Absent, |(modified, _)| When::Unchanged(*modified));
        let service = wanted.as_ref().map(|wanted| wanted.service.clone());
        let operation = match wanted {
            Some(wanted) => {
                let record = record(&wanted, before.and_then(|(_, record)| record.as_ref()), now);
                Operation::Put { key, value: serde_json::to_vec(&record).expect("plain fields"), when }
            }
            None => Operation::Delete { key, when },
        };
        by_service.entry(service).or_default().push(operation);
    }
    // Nobody sees a service with an address of one family and without that of the other.
    for operations in together(by_service.into_values()) {
        match side.client.transact(&operations).await? {
            Transacted::Done => {}
            Transacted::Refused(_) => return Ok(Done::Overtaken),
        }
    }
    Ok(Done::All)
}

/// As few transactions as there can be, each of whole groups; a group of more than a transaction holds is several.
fn together(groups: impl IntoIterator<Item = Vec<Operation>>) -> Vec<Vec<Operation>> {
    let mut transactions: Vec<Vec<Operation>> = Vec::new();
    for group in groups {
        for part in group.chunks(MAX_OPERATIONS) {
            match transactions.last_mut() {
                Some(last) if last.len() + part.len() <= MAX_OPERATIONS => last.extend_from_slice(part),
                _ => transactions.push(part.to_vec()),
            }
        }
    }
    transactions
}

/// The services and the hosts of ServiceEntries of the resources, each with the addresses that it states.
fn stated(server: &Server) -> BTreeMap<Key, Vec<IpAddr>> {
    let resources = server.directory.resources().map(|(resources, _)| resources).unwrap_or_default();
    let mut declared = Declared::default();
    for located in resources {
        match located.value {
            Resource::Service(service) => _ = declared.services.insert(service.key.clone(), *service),
            Resource::ServiceEntry(entry) => {
                declared.service_entries.insert(entry.key.clone(), Arc::new(*entry));
            }
            Resource::MeshConfig(config) => declared.config = *config,
            _ => {}
        }
    }
    let mut all = declared.addressed_hosts();
    all.extend(declared.services.into_values().map(|service| (service.key, service.addresses)));
    all
}

/// Namespaces whose services are taken from the catalog when nobody's agent registered them.
fn namespaces(server: &Server) -> BTreeSet<Label> {
    let resources = server.directory.resources().map(|(resources, _)| resources).unwrap_or_default();
    let mut namespaces = BTreeSet::from([default_namespace()]);
    for located in resources {
        namespaces.insert(located.value.id().key.namespace);
        if let Resource::HostGrant(grant) = &located.value {
            namespaces.extend(grant.services.iter().filter_map(Grant::namespace));
        }
    }
    namespaces
}

fn assignment(record: &AddressRecord) -> Option<Assignment> {
    let service = Key::read(&record.service)?;
    Some(Assignment { service, released: record.released.map(|at| UNIX_EPOCH + Duration::from_secs(at)) })
}

fn record(wanted: &Assignment, before: Option<&AddressRecord>, now: SystemTime) -> AddressRecord {
    let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let service = wanted.service.to_string();
    let since = before.filter(|before| before.service == service).map(|before| before.since);
    AddressRecord { service, since: since.unwrap_or(seconds(now)), released: wanted.released.map(seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_service_are_written_together() {
        let group = |count: usize| {
            let one = |n| Operation::Check { key: format!("{count}/{n}"), modified: 1 };
            (0..count).map(one).collect::<Vec<_>>()
        };
        let sizes = |counts: &[usize]| {
            let all = together(counts.iter().map(|count| group(*count)));
            all.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[2, 2, 1]), [5]);
        assert_eq!(sizes(&[62, 1, 2, 64, 65]), [63, 2, 64, 64, 1]);
        assert_eq!(together([group(2), group(1)])[0], [group(2), group(1)].concat());
    }
}
