//! Deciding what a host's registrations, or other resources, change. Nothing is changed here: the outcome is a list
//! of records, which are stored before they are applied.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::SystemTime;

use baremesh_model::health::Health;
use baremesh_model::identity::Identity;
use baremesh_model::name::{Key, Label};
use baremesh_model::network::may_meet;
use baremesh_model::service::Service;
use baremesh_model::workload::{Tunnel, Workload};

use super::addresses::{AddressError, Assignment};
use super::admission::{
    Allowed, Claim, Claims, MAX_REGISTRATIONS, Refusal, fits_declared, fits_registered, places,
};
use super::catalog::{Catalog, Change, Declared, Host, Registered};
use super::registration::{Registration, RegistrationError, workload_name};

/// What was decided about a host's registrations.
#[derive(Debug, Default)]
pub struct Plan {
    /// One outcome a registration, in their order.
    pub outcomes: Vec<Result<(), Refusal>>,
    /// What changes.
    pub changes: Vec<Change>,
}

/// What one list of registrations has come to so far.
struct Round<'a> {
    allowed: Allowed<'a>,
    now: SystemTime,
    accepted: BTreeMap<Key, (Registration, Label)>,
    claims: Claims,
    superseded: BTreeSet<(Label, Key)>,
    addresses: BTreeMap<IpAddr, Option<Assignment>>,
}

impl<'a> Round<'a> {
    fn new(allowed: Allowed<'a>, now: SystemTime) -> Self {
        Self {
            allowed,
            now,
            accepted: BTreeMap::new(),
            claims: Claims::default(),
            superseded: BTreeSet::new(),
            addresses: BTreeMap::new(),
        }
    }
}

impl Catalog {
    /// Decides about the full list of a host's registrations: what was registered and is not in it goes.
    pub fn register(
        &self,
        host: &Label,
        list: &[Result<Registration, RegistrationError>],
        allowed: Allowed<'_>,
        now: SystemTime,
    ) -> Plan {
        let mut round = Round::new(allowed, now);
        let admit = |registration: &Result<Registration, RegistrationError>| {
            let registration = registration.as_ref().map_err(Clone::clone)?;
            self.admit(host, registration, &mut round)
        };
        let outcomes = list.iter().map(admit).collect();
        Plan { outcomes, changes: self.changes(host, round) }
    }

    /// Decides about taking one registration back.
    pub fn deregister(&self, host: &Label, service: &Key, now: SystemTime) -> Vec<Change> {
        let Some(entry) = self.hosts.get(host).filter(|entry| entry.registrations.contains_key(service))
        else {
            return Vec::new();
        };
        let gone = BTreeSet::from([(host.clone(), service.clone())]);
        let mut addresses = BTreeMap::new();
        self.release(&gone, |_| false, now, &mut addresses);
        let mut changes = vec![Change::Deregister { host: host.clone(), service: service.clone() }];
        if entry.departed && entry.registrations.len() == 1 {
            changes.push(Change::Departed { host: host.clone(), departed: false });
        }
        changes.extend(addresses.into_iter().map(Change::Address));
        changes
    }

    /// What a host's findings about its services change.
    pub fn health_changes(&self, host: &Label, found: &[(Key, Health)]) -> Vec<Change> {
        let known = |service: &Key| self.hosts.get(host)?.registrations.get(service);
        let differs = |(service, health): &&(Key, Health)| {
            known(service).is_some_and(|known| known.registration.health != *health)
        };
        let change = |(service, health): &(Key, Health)| Change::Health {
            host: host.clone(),
            service: service.clone(),
            health: *health,
        };
        found.iter().filter(differs).map(change).collect()
    }

    /// Decides about taking addresses out of a registration; one that has no other goes.
    pub fn without(
        &self,
        host: &Label,
        service: &Key,
        gone: &dyn Fn(IpAddr) -> bool,
        now: SystemTime,
    ) -> Vec<Change> {
        let entry = self.hosts.get(host).and_then(|entry| entry.registrations.get(service));
        // What is held back is not published; it is looked at again when it comes back.
        let Some(Registered { sequence, registration, workload, held: None }) = entry else {
            return Vec::new();
        };
        let mut left = registration.clone();
        left.addresses.retain(|address| !gone(*address));
        if left.addresses.is_empty() {
            return self.deregister(host, service, now);
        }
        if left == *registration {
            return Vec::new();
        }
        let (host, workload) = (host.clone(), workload.clone());
        vec![Change::Register { host, sequence: *sequence, workload, registration: left }]
    }

    fn admit(&self, host: &Label, registration: &Registration, round: &mut Round<'_>) -> Result<(), Refusal> {
        let key = &registration.service;
        if round.accepted.contains_key(key) {
            return Err(Refusal::Twice);
        }
        if round.accepted.len() >= MAX_REGISTRATIONS {
            return Err(Refusal::TooMany);
        }
        let ranges = &self.config().virtual_ranges;
        if let Some(address) = registration.addresses.iter().find(|address| ranges.contains(**address)) {
            return Err(RegistrationError::Unreachable(*address).into());
        }
        let mut superseded = BTreeSet::new();
        let account = match self.declared.services.get(key) {
            Some(service) => {
                fits_declared(registration, service)?;
                service.service_account.clone()
            }
            None => {
                self.fits_others(host, registration, &mut superseded)?;
                self.fits_declared_workloads(host, &registration.implicit_service())?;
                registration.account().clone()
            }
        };
        let identity =
            Identity::new(self.config().trust_domain.clone(), key.namespace.clone(), account.clone());
        if !(round.allowed)(host, &identity) {
            return Err(Refusal::NotGranted { host: host.clone(), identity });
        }
        let network = registration.network.clone();
        let claim = Claim { service: key.clone(), account, host: host.clone(), network };
        self.fits_claims(&claim, registration, &round.claims, &mut superseded)?;
        let workload = self.name_workload(host, key, round)?;
        let stated =
            self.declared.services.get(key).map(|service| &service.addresses[..]).unwrap_or_default();
        self.addresses.assign(key, stated, ranges, round.now, &mut round.addresses)?;
        round.claims.add(&claim, registration);
        round.superseded.append(&mut superseded);
        round.accepted.insert(key.clone(), (registration.clone(), workload));
        Ok(())
    }

    /// Other hosts' registrations of the service. Those of hosts that are there decide; one of a host that is
    /// gone gives way, so that a replaced machine does not block its successor.
    fn fits_others(
        &self,
        host: &Label,
        registration: &Registration,
        superseded: &mut BTreeSet<(Label, Key)>,
    ) -> Result<(), Refusal> {
        let key = &registration.service;
        for other in
            self.members.get(key).into_iter().flatten().map(|(_, other)| other).filter(|o| *o != host)
        {
            let Some(entry) = self.hosts.get(other) else { continue };
            let Some(theirs) = entry.registrations.get(key).filter(|theirs| theirs.held.is_none()) else {
                continue;
            };
            match fits_registered(registration, &theirs.registration, other) {
                // They agree among themselves: what fits one fits all.
                Ok(()) => break,
                Err(refusal) if entry.live => return Err(refusal),
                Err(_) => superseded.insert((other.clone(), key.clone())),
            };
        }
        Ok(())
    }

    /// Hand-written workloads that an implied service would take for its endpoints.
    fn fits_declared_workloads(&self, host: &Label, service: &Service) -> Result<(), Refusal> {
        let namespace = &service.key.namespace;
        for workload in self.declared.workloads.values().filter(|workload| workload.serves(service)) {
            let expected = &service.service_account;
            if let Some(stated) = workload.service_account.as_ref().filter(|stated| *stated != expected) {
                let (workload, stated) = (workload.key.clone(), stated.clone());
                return Err(Refusal::WorkloadDisagrees { workload, stated, expected: expected.clone() });
            }
            if workload.tunnel == Tunnel::Plain {
                continue;
            }
            for place in service.ports.iter().flat_map(|port| workload.endpoints(port)) {
                let place = (place.ip(), place.port());
                let others = self.claims.at(place).filter(|claim| {
                    (claim.host != *host || claim.service != service.key)
                        && may_meet(claim.network.as_ref(), workload.network.as_ref())
                        && !claim.same_identity(namespace, expected)
                });
                let other = others.map(|claim| claim.service.clone()).next();
                let at = (place.0, place.1, workload.network.as_ref());
                if let Some(other) = other.or_else(|| self.declared_at(at, namespace, expected)) {
                    return Err(Refusal::EndpointTaken { address: place.0, port: place.1, other });
                }
            }
        }
        Ok(())
    }

    fn fits_claims(
        &self,
        claim: &Claim,
        registration: &Registration,
        own: &Claims,
        superseded: &mut BTreeSet<(Label, Key)>,
    ) -> Result<(), Refusal> {
        let namespace = &claim.service.namespace;
        for place in places(registration) {
            let taken = |other: &Key| Refusal::EndpointTaken {
                address: place.0,
                port: place.1,
                other: other.clone(),
            };
            let differs = |other: &&Claim| {
                may_meet(other.network.as_ref(), claim.network.as_ref())
                    && !other.same_identity(namespace, &claim.account)
            };
            if let Some(other) = own.at(place).find(differs) {
                return Err(taken(&other.service));
            }
            for other in self.claims.at(place).filter(|other| other.host != claim.host).filter(differs) {
                if self.hosts.get(&other.host).is_some_and(|host| host.live) {
                    return Err(taken(&other.service));
                }
                superseded.insert((other.host.clone(), other.service.clone()));
            }
            let at = (place.0, place.1, claim.network.as_ref());
            if let Some(other) = self.declared_at(at, namespace, &claim.account) {
                return Err(taken(&other));
            }
        }
        Ok(())
    }

    /// The service that a hand-written mesh endpoint at that place serves under another identity.
    fn declared_at(
        &self,
        (address, port, network): (IpAddr, u16, Option<&Label>),
        namespace: &Label,
        account: &Label,
    ) -> Option<Key> {
        let at = |workload: &&Workload| {
            let mut addresses = std::iter::once(&workload.address).chain(&workload.other_addresses);
            workload.tunnel == Tunnel::Hbone
                && may_meet(workload.network.as_ref(), network)
                && addresses.any(|found| *found == address)
        };
        for workload in self.declared.workloads.values().filter(at) {
            for key in self.services().into_iter().filter(|key| key.namespace == workload.key.namespace) {
                let Some(service) = self.base(key).filter(|service| workload.serves(service)) else {
                    continue;
                };
                let here = service.ports.iter().any(|p| workload.endpoint(p).port() == port);
                if here && (key.namespace != *namespace || service.service_account != *account) {
                    return Some(key.clone());
                }
            }
        }
        None
    }

    fn name_workload(&self, host: &Label, service: &Key, round: &Round<'_>) -> Result<Label, Refusal> {
        let mine = (host.clone(), service.clone());
        let in_round = |name: &Label| {
            let same_namespace = |key: &&Key| key.namespace == service.namespace;
            let names = round.accepted.iter().filter(|(key, _)| same_namespace(key));
            names.map(|(_, (_, taken))| taken).any(|taken| taken == name)
        };
        let taken = |name: &Label| {
            let key = Key::new(service.namespace.clone(), name.clone());
            self.declared.workloads.contains_key(&key)
                || self.workload_names.get(&key).is_some_and(|owner| *owner != mine)
                || in_round(name)
        };
        let held = self.hosts.get(host).and_then(|entry| entry.registrations.get(service));
        if let Some(held) = held.filter(|held| !taken(&held.workload)) {
            return Ok(held.workload.clone());
        }
        let name = workload_name(&service.name, host, taken);
        if taken(&name) { Err(Refusal::NameTaken(name)) } else { Ok(name) }
    }

    /// The records that make `round` the host's registrations.
    fn changes(&self, host: &Label, mut round: Round<'_>) -> Vec<Change> {
        let none = BTreeMap::new();
        let entry = self.hosts.get(host);
        let before = entry.map_or(&none, |entry| &entry.registrations);
        let mut changes = Vec::new();
        if entry.is_some_and(|entry| entry.departed) {
            changes.push(Change::Departed { host: host.clone(), departed: false });
        }
        let mut gone = std::mem::take(&mut round.superseded);
        gone.extend(
            before
                .keys()
                .filter(|key| !round.accepted.contains_key(*key))
                .map(|key| (host.clone(), key.clone())),
        );
        self.release(&gone, |key| round.accepted.contains_key(key), round.now, &mut round.addresses);
        changes.extend(gone.into_iter().map(|(host, service)| Change::Deregister { host, service }));
        let mut sequence = self.next_sequence;
        for (service, (registration, workload)) in round.accepted {
            let held = before.get(&service);
            if held
                .is_some_and(|h| h.registration == registration && h.workload == workload && h.held.is_none())
            {
                continue;
            }
            let number = held.map_or(sequence, |held| held.sequence);
            sequence = sequence.max(number + 1);
            let host = host.clone();
            changes.push(Change::Register { host, sequence: number, workload, registration });
        }
        changes.extend(round.addresses.into_iter().map(Change::Address));
        changes
    }

    /// Takes back the addresses of services that are there by none but the registrations that go.
    fn release(
        &self,
        gone: &BTreeSet<(Label, Key)>,
        comes: impl Fn(&Key) -> bool,
        now: SystemTime,
        pending: &mut BTreeMap<IpAddr, Option<Assignment>>,
    ) {
        for (_, service) in gone {
            let members = self.members.get(service).into_iter().flat_map(BTreeMap::values);
            let mut left = members.filter(|owner| !gone.contains(&((*owner).clone(), service.clone())));
            let stays = self.declared.services.contains_key(service) || comes(service);
            if !stays && left.next().is_none() {
                self.addresses.release(service, now, pending);
            }
        }
    }

    /// The same knowledge under other resources: every registration is held against them in the order in which
    /// they came, and what contradicts is held back, not forgotten. Returns the new catalog and what to store.
    pub fn redeclare(
        &self,
        declared: Declared,
        allowed: Allowed<'_>,
        now: SystemTime,
    ) -> Result<(Self, Vec<Change>), AddressError> {
        let mut next = Self {
            declared,
            addresses: self.addresses.clone(),
            next_sequence: self.next_sequence,
            ..Self::default()
        };
        let mut changes = next.readdress(&self.members, now)?;
        let mut ordered: Vec<(&Label, &Registered)> = Vec::new();
        for (host, entry) in &self.hosts {
            // All count as there while they are compared: nobody gives way to a change of the files.
            let empty = Host { live: true, departed: entry.departed, registrations: BTreeMap::new() };
            next.hosts.insert(host.clone(), empty);
            ordered.extend(entry.registrations.values().map(|registered| (host, registered)));
        }
        ordered.sort_by_key(|(_, registered)| registered.sequence);
        for (host, registered) in ordered {
            let mut round = Round::new(allowed, now);
            let mut registered = registered.clone();
            registered.held = next.readmit(host, &registered.registration, &mut round).err();
            if let Some((_, (_, workload))) = round.accepted.pop_first()
                && workload != registered.workload
            {
                registered.workload = workload.clone();
                let (host, sequence) = (host.clone(), registered.sequence);
                let registration = registered.registration.clone();
                changes.push(Change::Register { host, sequence, workload, registration });
            }
            next.remember(host, registered);
        }
        for (host, entry) in &mut next.hosts {
            entry.live = self.hosts.get(host).is_some_and(|before| before.live);
        }
        Ok((next, changes))
    }

    fn readmit(
        &self,
        host: &Label,
        registration: &Registration,
        round: &mut Round<'_>,
    ) -> Result<(), Refusal> {
        // The same host's registrations are compared with each other too, which a round does otherwise.
        for place in places(registration) {
            for own in self.claims.at(place).filter(|claim| claim.host == *host) {
                let declared = self.declared.services.get(&registration.service);
                let account = declared.map_or(registration.account(), |service| &service.service_account);
                if !own.same_identity(&registration.service.namespace, account) {
                    let (address, port) = place;
                    return Err(Refusal::EndpointTaken { address, port, other: own.service.clone() });
                }
            }
        }
        self.admit(host, registration, round)
    }

    /// Assigns addresses to all services that there are, takes back those of services that are not, and forgets
    /// those whose quarantine is over.
    fn readdress(
        &mut self,
        members: &BTreeMap<Key, BTreeMap<u64, Label>>,
        now: SystemTime,
    ) -> Result<Vec<Change>, AddressError> {
        let mut pending: BTreeMap<IpAddr, Option<Assignment>> =
            self.addresses.lapsed(now).into_iter().collect();
        let services = &self.declared.services;
        let hosts = self.declared.addressed_hosts();
        for key in self.addresses.services() {
            let stated = services.get(key).map(|service| &service.addresses).or_else(|| hosts.get(key));
            match stated {
                None if members.contains_key(key) => {}
                None => self.addresses.release(key, now, &mut pending),
                Some(stated) if stated.is_empty() => {}
                Some(stated) => self.addresses.vacate(key, stated, now, &mut pending),
            }
        }
        let ranges = &self.declared.config.virtual_ranges;
        let declared = services.values().map(|service| (&service.key, &service.addresses)).chain(&hosts);
        let (stated, others): (Vec<_>, Vec<_>) = declared.partition(|(_, addresses)| !addresses.is_empty());
        for (key, addresses) in stated {
            self.addresses.assign(key, addresses, ranges, now, &mut pending)?;
        }
        let implied = members.keys().filter(|key| !services.contains_key(*key));
        for key in others.into_iter().map(|(key, _)| key).chain(implied) {
            self.addresses.assign(key, &[], ranges, now, &mut pending)?;
        }
        for change in &pending {
            self.addresses.apply(&(*change.0, change.1.clone()));
        }
        Ok(pending.into_iter().map(Change::Address).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::subscription::service_key;
    use super::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn label(text: &str) -> Label {
        Label::new(text).expect("a label")
    }

    fn key(text: &str) -> Key {
        service_key(text).expect("a service")
    }

    fn registration(service: &str, address: &str, more: &Value) -> Value {
        let mut raw = json!({ "service": service, "ports": [{ "port": 80 }], "addresses": [address] });
        if let (Some(raw), Some(more)) = (raw.as_object_mut(), more.as_object()) {
            raw.extend(more.clone());
        }
        raw
    }

    fn plain(service: &str, address: &str) -> Value {
        registration(service, address, &json!({}))
    }

    fn plan(catalog: &Catalog, host: &str, list: &[Value]) -> Plan {
        let list: Vec<_> = list.iter().map(Registration::read).collect();
        let allowed = |host: &Label, identity: &Identity| {
            host.as_str() != "guest" || identity.service_account().as_str() == "guestbook"
        };
        catalog.register(&label(host), &list, &allowed, now())
    }

    /// Registers, and shows `ok` or what the refusal says, one a registration.
    fn register(catalog: &mut Catalog, host: &str, list: &[Value]) -> Vec<String> {
        let plan = plan(catalog, host, list);
        catalog.apply(&plan.changes);
        catalog.mark(&label(host), true);
        let show = |outcome: Result<(), Refusal>| outcome.err().map_or("ok".to_owned(), |r| r.to_string());
        plan.outcomes.into_iter().map(show).collect()
    }

    fn check(catalog: &mut Catalog, host: &str, list: &[Value], expected: &[&str]) {
        let found = register(catalog, host, list);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{host}: {found} should say {expected}");
        }
    }

    fn redeclare(catalog: &mut Catalog, declared: Declared) -> Result<Vec<Change>, AddressError> {
        let (next, changes) = catalog.redeclare(declared, &|_, _| true, now())?;
        *catalog = next;
        Ok(changes)
    }

    fn declared(services: &[Service], workloads: &[Workload]) -> Declared {
        Declared {
            services: services.iter().map(|s| (s.key.clone(), s.clone())).collect(),
            workloads: workloads.iter().map(|w| (w.key.clone(), w.clone())).collect(),
            ..Declared::default()
        }
    }

    fn service(name: &str, account: &str) -> Service {
        let registration = registration(name, "10.0.0.1", &json!({ "serviceAccount": account }));
        Registration::read(&registration).expect("a registration").implicit_service()
    }

    fn endpoint(catalog: &Catalog, host: &str, service: &str) -> Option<String> {
        catalog.endpoint(&label(host), &key(service)).map(|workload| workload.key.to_string())
    }

    #[test]
    fn registers_replaces_and_forgets() {
        let mut catalog = Catalog::default();
        check(&mut catalog, "h1", &[plain("a.x", "10.0.0.1"), plain("b.x", "10.0.0.2")], &["ok", "ok"]);
        check(&mut catalog, "h2", &[plain("a.x", "10.0.0.3")], &["ok"]);
        assert_eq!(endpoint(&catalog, "h1", "a.x").as_deref(), Some("a-h1.x"));
        let address = catalog.service(&key("a.x")).expect("implied").addresses;
        assert_eq!(address.len(), 2, "one of each family");
        // The same again changes nothing, so that reconnecting costs no write.
        let again = plan(&catalog, "h1", &[plain("a.x", "10.0.0.1"), plain("b.x", "10.0.0.2")]);
        assert_eq!(again.changes, []);
        check(&mut catalog, "h1", &[plain("b.x", "10.0.0.2")], &["ok"]);
        assert_eq!(endpoint(&catalog, "h1", "a.x"), None);
        assert_eq!(catalog.service(&key("a.x")).map(|service| service.addresses), Some(address));
        let gone = catalog.deregister(&label("h2"), &key("a.x"), now());
        catalog.apply(&gone);
        assert_eq!(catalog.service(&key("a.x")), None);
        assert_eq!(catalog.deregister(&label("h2"), &key("a.x"), now()), []);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut catalog = Catalog::default();
        check(&mut catalog, "h1", &[plain("a.x", "10.0.0.1"), plain("a.x", "10.0.0.1")], &["ok", "twice on"]);
        check(&mut catalog, "h2", &[plain("b.x", "10.0.0.1")], &["10.0.0.1 port 80 serves a.x already"]);
        let http = json!({ "ports": [{ "port": 80, "protocol": "http" }] });
        check(
            &mut catalog,
            "h2",
            &[registration("a.x", "10.0.0.2", &http)],
            &["speaks tcp in the registration of host h1"],
        );
        let root = json!({ "serviceAccount": "root" });
        check(&mut catalog, "h2", &[registration("a.x", "10.0.0.2", &root)], &["disagrees with `a`"]);
        check(&mut catalog, "h2", &[plain("a.hosts", "10.0.0.2")], &["the mesh's own"]);
        check(&mut catalog, "h2", &[plain("a.x", "240.240.0.1")], &["other hosts can reach"]);
        check(
            &mut catalog,
            "guest",
            &[plain("a.x", "10.0.0.2"), plain("guestbook.x", "10.0.0.2")],
            &["host guest may not serve spiffe://mesh.internal/ns/x/sa/a", "ok"],
        );
        // Two identities of one host at one place, and one identity under two names.
        check(
            &mut catalog,
            "h3",
            &[plain("c.x", "10.0.0.3"), plain("d.x", "10.0.0.3")],
            &["ok", "serves c.x"],
        );
        let as_c = registration("d.x", "10.0.0.3", &json!({ "serviceAccount": "c" }));
        check(&mut catalog, "h3", &[plain("c.x", "10.0.0.3"), as_c], &["ok", "ok"]);
        let many: Vec<_> = (0..=MAX_REGISTRATIONS)
            .map(|n| plain(&format!("s{n}.x"), &format!("10.1.{}.{}", n / 256, n % 256)))
            .collect();
        assert!(register(&mut catalog, "h4", &many).last().is_some_and(|last| last.contains("at most 256")));
    }

    #[test]
    fn the_gone_give_way() {
        let mut catalog = Catalog::default();
        check(&mut catalog, "old", &[plain("a.x", "10.0.0.1"), plain("z.x", "10.0.0.9")], &["ok", "ok"]);
        catalog.mark(&label("old"), false);
        assert_eq!(endpoint(&catalog, "old", "a.x"), None);
        assert!(catalog.service(&key("a.x")).is_some(), "its name and address stay");
        check(&mut catalog, "new", &[plain("b.x", "10.0.0.1")], &["ok"]);
        assert!(catalog.hosts()[&label("old")].registrations.contains_key(&key("z.x")));
        check(&mut catalog, "old", &[plain("a.x", "10.0.0.1")], &["serves b.x already"]);
        check(&mut catalog, "new", &[], &[]);
        check(&mut catalog, "old", &[plain("a.x", "10.0.0.1")], &["ok"]);
    }

    #[test]
    fn names_workloads_apart_and_keeps_the_names() {
        let mut catalog = Catalog::default();
        check(&mut catalog, "b-c", &[plain("a.x", "10.0.0.1")], &["ok"]);
        check(&mut catalog, "c", &[plain("a-b.x", "10.0.0.2")], &["ok"]);
        let name = endpoint(&catalog, "c", "a-b.x").expect("published");
        assert!(name.starts_with("a-b-c-"), "{name}");
        check(&mut catalog, "b-c", &[], &[]);
        check(&mut catalog, "c", &[registration("a-b.x", "10.0.0.2", &json!({ "weight": 2 }))], &["ok"]);
        assert_eq!(endpoint(&catalog, "c", "a-b.x"), Some(name));
    }

    #[test]
    fn other_resources_hold_back_what_they_contradict() {
        let mut catalog = Catalog::default();
        check(&mut catalog, "h1", &[plain("a.x", "10.0.0.1")], &["ok"]);
        check(&mut catalog, "h2", &[plain("a.x", "10.0.0.2")], &["ok"]);
        let before = catalog.service(&key("a.x")).expect("implied").addresses;
        redeclare(&mut catalog, declared(&[service("a.x", "clerk")], &[])).expect("taken");
        assert!(!catalog.holds_back(), "an account that is not stated is the Service's");
        assert_eq!(catalog.service(&key("a.x")).expect("declared").addresses, before);
        let mut other = service("a.x", "a");
        other.ports[0].port = 81.try_into().expect("a port");
        redeclare(&mut catalog, declared(&[other], &[])).expect("taken");
        assert_eq!(endpoint(&catalog, "h1", "a.x"), None);
        assert!(catalog.holds_back());
        redeclare(&mut catalog, Declared::default()).expect("taken");
        assert!(endpoint(&catalog, "h1", "a.x").is_some() && endpoint(&catalog, "h2", "a.x").is_some());
    }

    #[test]
    fn hand_written_workloads_are_respected() {
        let mut entry = Registration::read(&plain("b.x", "10.0.0.7")).expect("a registration").workload(
            label("entry"),
            label("h"),
            &service("b.x", "b"),
        );
        (entry.service, entry.host) = (None, None);
        entry.labels = [("app".into(), "b".into())].into();
        let mut catalog = Catalog::default();
        check(&mut catalog, "h1", &[plain("a.x", "10.0.0.7")], &["ok"]);
        redeclare(&mut catalog, declared(&[service("b.x", "b")], &[entry.clone()])).expect("taken");
        assert_eq!(endpoint(&catalog, "h1", "a.x"), None, "the file's endpoint is there");
        // Without the Service, registering b would make the entry its endpoint, at a.x's place.
        redeclare(&mut catalog, declared(&[], &[entry.clone()])).expect("taken");
        assert!(endpoint(&catalog, "h1", "a.x").is_some());
        check(&mut catalog, "h2", &[plain("b.x", "10.0.0.8")], &["serves a.x already"]);
        entry.service_account = Some(label("root"));
        entry.address = "10.0.0.9".parse().expect("an address");
        redeclare(&mut catalog, declared(&[], &[entry])).expect("taken");
        check(
            &mut catalog,
            "h2",
            &[plain("b.x", "10.0.0.8")],
            &["WorkloadEntry entry.x serves it as `root`"],
        );
    }

    #[test]
    fn stated_addresses_can_swap_and_cannot_collide() {
        let address = |n: u8| vec![IpAddr::from([240, 240, 0, n])];
        let at = |name: &str, n| Service { addresses: address(n), ..service(name, "x") };
        let mut catalog = Catalog::default();
        redeclare(&mut catalog, declared(&[at("a.x", 1), at("b.x", 2)], &[])).expect("taken");
        redeclare(&mut catalog, declared(&[at("a.x", 2), at("b.x", 1)], &[])).expect("swapped");
        assert_eq!(catalog.addresses.of(&key("a.x")), address(2));
        redeclare(&mut catalog, declared(&[at("b.x", 2)], &[])).expect("taken over");
        let collision = redeclare(&mut catalog, declared(&[service("b.x", "x"), at("c.x", 2)], &[]));
        assert!(collision.expect_err("b.x keeps what it has").to_string().contains("b.x's already"));
    }

    #[test]
    fn hosts_of_service_entries_are_assigned_addresses_that_stay() {
        let declared = |more: &str| {
            let text = format!("[[ServiceEntry]]\nname = \"e\"\nhosts = [\"api.example.com\"{more}\n");
            let parsed = crate::format::toml::parse(&text, "e.toml");
            assert!(!parsed.failed(), "{:?}", parsed.findings);
            let crate::resource::Resource::ServiceEntry(entry) = parsed.resources[0].value.clone() else {
                panic!("another kind")
            };
            let service_entries = [(entry.key.clone(), std::sync::Arc::new(*entry))].into();
            Declared { service_entries, ..Declared::default() }
        };
        let mut catalog = Catalog::default();
        let of = |catalog: &Catalog, host: &str| {
            let entry = catalog.service_entry(&key("e.default")).expect("declared");
            entry.assigned.get(host).cloned().unwrap_or_default()
        };
        redeclare(&mut catalog, declared("]\nresolution = \"DNS\"")).expect("taken");
        let first = of(&catalog, "api.example.com");
        assert_eq!(first.len(), 2, "one of each family");
        redeclare(&mut catalog, declared(", \"b.example.com\"]\nresolution = \"DNS\"")).expect("taken");
        assert_eq!(of(&catalog, "api.example.com"), first);
        assert_ne!(of(&catalog, "b.example.com"), first);
        // Where callers are going nobody else says.
        redeclare(&mut catalog, declared("]\nresolution = \"NONE\"")).expect("taken");
        assert_eq!(of(&catalog, "api.example.com"), Vec::<IpAddr>::new());
        let stated = "]\nresolution = \"DNS\"\naddresses = [\"240.240.0.9\"]";
        redeclare(&mut catalog, declared(stated)).expect("taken");
        let taken = Service { addresses: vec![IpAddr::from([240_u8, 240, 0, 9])], ..service("a.x", "x") };
        let both = Declared { services: [(taken.key.clone(), taken)].into(), ..declared(stated) };
        assert!(redeclare(&mut catalog, both).expect_err("it is the host's").to_string().contains("already"));
    }

    #[test]
    fn what_is_published_always_assembles() {
        let mut catalog = Catalog::default();
        let hosts = ["h1", "h2", "h3"];
        for step in 0_usize..200 {
            let host = hosts[step % 3];
            let list: Vec<_> = (0..step % 4)
                .map(|n| {
                    let name = format!("s{}.x", (step / 3 + n) % 4);
                    let port = json!([{ "port": 80 + step % 2, "targetPort": 80 + (step / 7) % 2 }]);
                    registration(&name, &format!("10.0.0.{}", (step / 5 + n) % 3), &json!({ "ports": port }))
                })
                .collect();
            register(&mut catalog, host, &list);
            catalog.mark(&label(hosts[step / 2 % 3]), step % 5 != 0);
            if step % 11 == 0 {
                let services = [service("s1.x", "s0")];
                redeclare(&mut catalog, declared(&services[..step % 2], &[])).expect("taken");
            }
            let services = catalog.services().into_iter().filter_map(|key| catalog.service(key));
            let endpoints = catalog.hosts().iter().flat_map(|(host, entry)| {
                entry.registrations.keys().filter_map(|key| catalog.endpoint(host, key))
            });
            let parts = baremesh_model::mesh::Parts {
                services: services.map(|service| (service.key.clone(), service)).collect(),
                workloads: endpoints.map(|workload| (workload.key.clone(), workload.into())).collect(),
                ..Default::default()
            };
            if let Err(errors) = baremesh_model::mesh::Mesh::assemble(parts) {
                panic!("step {step}: {errors:?}");
            }
        }
    }
}
