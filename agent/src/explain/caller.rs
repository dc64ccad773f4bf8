//! Who calls: a service that is registered on this host, the host itself, or, without an agent, anybody whom a set of
//! resources names.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use baremesh_model::health::Health;
use baremesh_model::identity::Identity;
use baremesh_model::mesh::Mesh;
use baremesh_model::name::{Key, Label, default_namespace};
use baremesh_model::workload::{Labels, Locality, Workload};
use baremesh_registry::format::fields::nearest;

use super::ExplainError;
use crate::registration::{DefaultForAddress, LocalService, Serves, WhenGone};
use crate::snapshot::{Host, Snapshot};

/// The most names that a message lists.
const MAX_NAMES: usize = 8;

/// Who calls.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The identity.
    pub identity: Identity,
    /// The registration, by its index in the snapshot; none for the host itself.
    pub index: Option<usize>,
    /// The service; none for the host itself.
    pub service: Option<Key>,
    /// The addresses that endpoints on other hosts see.
    pub addresses: Vec<IpAddr>,
}

/// Somebody whom a set of resources names, as `--from` and what goes with it say.
#[derive(Debug, Clone, Default)]
pub struct Named {
    /// `name`, `name.namespace`, or an identity.
    pub from: String,
    /// Labels besides those of the caller's workload, or in place of them.
    pub labels: Labels,
    /// Where it stands, in place of where its workload stands.
    pub locality: Option<Locality>,
}

impl Caller {
    /// The service of this host that `from` names; without it the host itself.
    pub fn registered(snapshot: &Snapshot, from: Option<&str>) -> Result<Self, ExplainError> {
        let addresses = snapshot.host.addresses.clone();
        let host = || Self {
            identity: snapshot.host_identity.clone(),
            index: None,
            service: None,
            addresses: addresses.clone(),
        };
        let Some(from) = from else { return Ok(host()) };
        if from == snapshot.host_identity.to_string() {
            return Ok(host());
        }
        let key = Key::resolve(from, &default_namespace(), &snapshot.mesh.config.domain).ok();
        let by_name = |local: &Arc<LocalService>| Some(&local.key) == key.as_ref();
        let index = snapshot
            .registrations
            .iter()
            .position(by_name)
            .or_else(|| snapshot.sources.iter().position(|source| source.identity.to_string() == from));
        let Some(index) = index else {
            let known: Vec<_> = snapshot.registrations.iter().map(|local| local.key.to_string()).collect();
            return Err(ExplainError::NoCaller {
                name: from.to_owned(),
                what: "not registered on this host, and only what is can call from it",
                hint: hint(from, &known, "registered here"),
            });
        };
        let registration = &snapshot.registrations[index];
        let addresses = registration.addresses(&addresses).to_vec();
        let identity = snapshot.sources[index].identity.clone();
        Ok(Self { identity, index: Some(index), service: Some(registration.key.clone()), addresses })
    }
}

/// A snapshot as a host would have it on which nothing runs but the caller, and the caller. The set is compiled exactly as an
/// agent compiles it.
pub fn in_set(mesh: &Mesh, named: &Named) -> Result<(Snapshot, Caller), ExplainError> {
    let (identity, key) = identity(mesh, &named.from)?;
    let host_name = identity.as_host().cloned();
    let workload = mesh.workloads.values().find(|workload| is_of(mesh, workload, &identity, &key));
    let mut labels = workload.map(|workload| workload.labels.clone()).unwrap_or_default();
    labels.extend(named.labels.clone());
    let registration = LocalService {
        service_account: identity.service_account().clone(),
        serves: Serves::default(),
        ports: Vec::new(),
        addresses: None,
        matcher: None,
        container: None,
        labels,
        locality: named.locality.clone().or_else(|| workload.map(|workload| workload.locality.clone())),
        weight: 1,
        when_gone: WhenGone::default(),
        check: None,
        health: Health::default(),
        group: None,
        default_for_address: DefaultForAddress::default(),
        key: key.clone(),
    };
    let registrations: Vec<_> = if host_name.is_some() { vec![] } else { vec![Arc::new(registration)] };
    // No address: nothing of the set is taken to be on this host.
    let host = Host {
        name: host_name.unwrap_or_else(|| key.name.clone()),
        addresses: Vec::new(),
        why: "".into(),
        network: None,
    };
    let hbone = crate::proxy::Ports::default().hbone;
    let snapshot = Snapshot::build(mesh, &registrations, &host, hbone, None)
        .map_err(|error| ExplainError::Set(error.to_string()))?;
    let index = (!snapshot.registrations.is_empty()).then_some(0);
    let addresses = workload.into_iter().flat_map(|workload| {
        std::iter::once(workload.address).chain(workload.other_addresses.iter().copied())
    });
    let addresses = addresses.collect();
    Ok((snapshot, Caller { identity, index, service: index.map(|_| key), addresses }))
}

/// The identity that `from` names, and the service that it is the identity of.
fn identity(mesh: &Mesh, from: &str) -> Result<(Identity, Key), ExplainError> {
    let config = &mesh.config;
    if let Ok(identity) = Identity::parse(from) {
        if *identity.trust_domain() != config.trust_domain {
            let what = "of another trust domain than the set";
            let hint = format!(": {}", config.trust_domain);
            return Err(ExplainError::NoCaller { name: from.to_owned(), what, hint });
        }
        let key = Key::new(identity.namespace().clone(), identity.service_account().clone());
        return Ok((identity, key));
    }
    let known: BTreeSet<String> = accounts(mesh).map(|key| key.to_string()).collect();
    let unknown = || ExplainError::NoCaller {
        name: from.to_owned(),
        what: "no service and no service account of the set",
        hint: hint(from, &known.iter().cloned().collect::<Vec<_>>(), "there are")
            + " (whom the set does not name is written in full, spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT)",
    };
    let key = Key::resolve(from, &default_namespace(), &config.domain).map_err(|_| unknown())?;
    match mesh.services.get(&key) {
        Some(service) => Ok((mesh.identity_of(service), key)),
        None if accounts(mesh).any(|account| account == key) => {
            let domain = config.trust_domain.clone();
            Ok((Identity::new(domain, key.namespace.clone(), key.name.clone()), key))
        }
        None => Err(unknown()),
    }
}

/// The services of a set, and the accounts that its services and workloads run as.
fn accounts(mesh: &Mesh) -> impl Iterator<Item = Key> {
    let services = mesh.services.values().flat_map(|service| {
        [service.key.clone(), Key::new(service.key.namespace.clone(), service.service_account.clone())]
    });
    let of_workload = |workload: &Workload| {
        Some(Key::new(workload.key.namespace.clone(), workload.service_account.clone()?))
    };
    services.chain(mesh.workloads.values().filter_map(move |workload| of_workload(workload)))
}

/// Whether the workload is the caller.
fn is_of(mesh: &Mesh, workload: &Workload, identity: &Identity, key: &Key) -> bool {
    let serves = || mesh.services.get(key).is_some_and(|service| workload.serves(service));
    let runs_as = || {
        workload.key.namespace == *identity.namespace()
            && workload.service_account.as_ref() == Some(identity.service_account())
    };
    serves() || runs_as()
}

/// Services whose names are near `host`, in words.
pub(super) fn hint_of_services(snapshot: &Snapshot, from: &Label, host: &str) -> String {
    let own = Key::resolve(host, from, &snapshot.mesh.config.domain).ok();
    if let Some(own) = own.filter(|own| snapshot.service(own).is_some()) {
        return format!(": a name without a namespace is one of `default`; `{own}` is there");
    }
    let domain = snapshot.mesh.config.domain.as_str();
    let short = host.strip_suffix(domain).map_or(host, |rest| rest.trim_end_matches('.'));
    let known: BTreeSet<_> = snapshot.services().map(|service| service.key.to_string()).collect();
    hint(short, &known.into_iter().collect::<Vec<_>>(), "there are")
}

/// The known name that one most likely meant, else those that there are.
fn hint(name: &str, known: &[String], there_are: &str) -> String {
    let bare = |known: &str| known.strip_suffix(".default").unwrap_or(known).to_owned();
    let first = |known: &str| known.split_once('.').map_or(known, |(name, _)| name).to_owned();
    let pairs: Vec<_> = known.iter().flat_map(|key| [(bare(key), key), (first(key), key)]).collect();
    let near = nearest(name, pairs.iter().map(|(written, _)| &**written));
    let near = near.and_then(|near| pairs.iter().find(|(written, _)| written == near));
    if let Some((_, key)) = near {
        return format!(": did you mean `{key}`?");
    }
    match known {
        [] => String::new(),
        known if known.len() <= MAX_NAMES => format!(": {there_are} {}", known.join(", ")),
        known => {
            format!(": {there_are} {}, and {} more", known[..MAX_NAMES].join(", "), known.len() - MAX_NAMES)
        }
    }
}
