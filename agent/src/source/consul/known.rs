//! What is known of Consul, and what is published of it: whole, and damped where much is lost at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use baremesh_model::name::Key;
use baremesh_registry::consul::bounds;
use baremesh_registry::consul::catalog::Instance;
use baremesh_registry::consul::damping::{At, Damper};
use baremesh_registry::consul::mark::{TTL_SECONDS, service_named};
use baremesh_registry::consul::resources::Set;
use baremesh_registry::consul::state::{
    ADDRESS, AddressRecord, INSTANCES, MESHED, Report, is_input, remember,
};
use baremesh_registry::control::followed::{Followed, WholeError};
use baremesh_registry::control::subscription::Subscription;
use serde::Deserialize as _;
use serde_json::Value;

use super::standing::Standing;
use super::{Heard, Part};
use crate::trust::{OlderList, is_about_trust};

/// A catalog that was out of reach for so long is not believed at once in what it lacks: an agent that feeds a check as often
/// may have missed a turn.
const OUTAGE: Duration = Duration::from_secs(TTL_SECONDS / 3);

/// How long a call waits for Consul's answer. Then what was read before is taken.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long what is new is gathered before it is published, where a call waits for it.
const GATHER_FOR_CALL: Duration = Duration::from_millis(20);

/// Whose endpoints are held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holding {
    asked: Subscription,
    /// Those among them that were read too long ago to be called: an answer is awaited.
    awaited: BTreeSet<Key>,
}

impl Holding {
    /// Whether what is known of a service's endpoints is enough to call it.
    pub(super) fn holds(&self, service: &Key) -> bool {
        self.asked.covers(service) && !self.awaited.contains(service)
    }
}

/// Something that is known now.
#[derive(Debug)]
pub(super) enum News {
    /// A whole set of resources.
    Resources(Set),
    /// There are none in Consul.
    NoResources,
    /// What is said of trust, by the names of statements.
    Trust(BTreeMap<String, Value>),
    /// Whose each virtual address is.
    Addresses(BTreeMap<IpAddr, AddressRecord>),
    /// The names in the catalog.
    Names(BTreeSet<String>),
    /// The instances of a service.
    Instances(String, Vec<Instance>),
    /// The catalog is another than before.
    BeganAnew,
    /// So many services of the catalog are read in turn, and not followed one by one.
    InTurn(usize),
}

/// All of it.
pub(super) struct Known {
    resources: BTreeMap<String, Value>,
    version: u64,
    trust: BTreeMap<String, Value>,
    addresses: BTreeMap<String, Value>,
    meshed: BTreeMap<String, Value>,
    seen: BTreeMap<At, Instance>,
    /// Names of the catalog that are no service's: not read, and said.
    unread: BTreeSet<String>,
    /// Services of which more is in the catalog than is held: so many instances.
    beyond: BTreeMap<String, usize>,
    damper: Damper,
    /// How each part stands; a part that nothing was heard of yet is not there.
    parts: BTreeMap<Part, Option<String>>,
    /// The same as it is shown.
    standing: Standing,
    missing: Option<&'static str>,
    /// Since when the catalog is out of reach, while it is.
    catalog_away_since: Option<Instant>,
    in_turn: usize,
    /// The names in the catalog.
    names: BTreeSet<String>,
    asked: Subscription,
    /// Services that have come to be asked for, each with since when an answer is awaited.
    awaited: BTreeMap<Key, Instant>,
    /// Those among them of which an answer came that has still to be published, and since when.
    answered: BTreeSet<Key>,
    answered_since: Option<Instant>,
    /// Since when something is known that has still to be published.
    changed_since: Option<Instant>,
    unsaved: bool,
    report: Report,
    /// What is to be said where something else is in force than what was heard.
    instead: Option<String>,
    /// A list of revoked certificates that was heard and is not in force.
    older_list: Option<OlderList>,
}

impl Known {
    /// What an agent begins with: the state that was in force last.
    pub(super) fn new(followed: &Followed, asked: Subscription, now: Instant) -> Self {
        let values = followed.values();
        let with = |prefix: &str| {
            let some = values.iter().filter(|(key, _)| key.starts_with(prefix));
            some.map(|(key, value)| (key.clone(), value.clone())).collect::<BTreeMap<_, _>>()
        };
        let (trust, rest): (BTreeMap<_, _>, BTreeMap<_, _>) = values
            .clone()
            .into_iter()
            .filter(|(key, _)| !is_input(key))
            .partition(|(key, _)| is_about_trust(key));
        let mut seen = BTreeMap::new();
        for (key, value) in with(INSTANCES) {
            let instances = Vec::<Instance>::deserialize(&value).unwrap_or_default();
            seen.extend(instances.into_iter().map(|one| (at(&key[INSTANCES.len()..], &one), one)));
        }
        let seen_names = seen.keys().map(|(name, _, _)| name.clone()).collect();
        Self {
            resources: rest,
            version: followed.version(),
            trust,
            addresses: with(ADDRESS),
            meshed: with(MESHED),
            damper: Damper::new(seen.clone(), now),
            seen,
            unread: BTreeSet::new(),
            beyond: BTreeMap::new(),
            parts: BTreeMap::new(),
            standing: Standing::default(),
            missing: None,
            catalog_away_since: None,
            in_turn: 0,
            names: seen_names,
            asked,
            awaited: BTreeMap::new(),
            answered: BTreeSet::new(),
            answered_since: None,
            changed_since: None,
            unsaved: false,
            report: Report::default(),
            instead: None,
            older_list: None,
        }
    }

    /// Takes what was heard.
    pub(super) fn take(&mut self, heard: Heard, now: Instant) {
        match heard {
            Heard::Fine(part, index) => {
                self.standing.answered(part, index, now);
                if part == Part::Catalog {
                    self.doubt_after_outage(now);
                    self.catalog_away_since = None;
                }
                if let Some(Some(reason)) = self.parts.insert(part, None) {
                    tracing::info!(part = part.in_words(), reason, "Consul is in reach again");
                }
            }
            Heard::Failed(part, reason) => {
                self.standing.failed(part, reason.clone(), now);
                if part == Part::Catalog {
                    self.catalog_away_since.get_or_insert(now);
                }
                let before = self.parts.insert(part, Some(reason.clone()));
                if before.flatten().as_ref() != Some(&reason) {
                    tracing::warn!(
                        part = part.in_words(),
                        reason,
                        "Consul is not in reach; what was known holds"
                    );
                }
            }
            Heard::Known(news) => self.learn(news, now),
            Heard::Leader(leader) => self.standing.lead(leader),
        }
    }

    /// What a Consul says that was away: checks ran out meanwhile whose agents could not tell it anything.
    fn doubt_after_outage(&mut self, now: Instant) {
        let was_away = |since: Instant| now.saturating_duration_since(since) >= OUTAGE;
        if self.catalog_away_since.is_some_and(was_away) {
            self.damper.doubt(now);
        }
    }

    /// Takes up whose endpoints are asked for. What is new among it is awaited, unless Consul is away.
    pub(super) fn ask(&mut self, asked: &Subscription, now: Instant) {
        let before = std::mem::replace(&mut self.asked, asked.clone());
        self.awaited.retain(|service, _| asked.covers(service));
        if self.catalog_away_since.is_none() {
            let named = self.names.iter().filter_map(|name| service_named(name).ok());
            let new = named.filter(|service| asked.covers(service) && !before.covers(service));
            self.awaited.extend(new.map(|service| (service, now)));
        }
    }

    /// Whose endpoints are held now.
    pub(super) fn holding(&mut self, now: Instant) -> Holding {
        self.awaited.retain(|_, since| now.saturating_duration_since(*since) < PATIENCE);
        Holding { asked: self.asked.clone(), awaited: self.awaited.keys().cloned().collect() }
    }

    /// For how long an answer is awaited yet, where one is.
    pub(super) fn patience(&self, now: Instant) -> Option<Duration> {
        let first = self.awaited.values().min()?;
        Some(PATIENCE.saturating_sub(now.saturating_duration_since(*first)))
    }

    /// When what is known is to be published that is not yet: it is gathered for `gather`, and for longer or shorter where a
    /// call waits for an answer.
    pub(super) fn publish_at(&self, gather: Duration) -> Option<Instant> {
        let at = self.changed_since? + gather;
        Some(match (self.answered_since, self.awaited.values().min()) {
            (Some(since), _) => at.min(since + GATHER_FOR_CALL),
            (None, Some(since)) => at.max(*since + PATIENCE).min(at + PATIENCE),
            (None, None) => at,
        })
    }

    fn learn(&mut self, news: News, now: Instant) {
        self.doubt_after_outage(now);
        if self.is_news(news, now) {
            self.changed_since.get_or_insert(now);
        }
    }

    /// Takes up something, and says whether it is other than what was known.
    fn is_news(&mut self, news: News, now: Instant) -> bool {
        match news {
            News::Resources(set) if set.values.is_empty() && !self.resources.is_empty() => {
                self.missing = Some("the index in Consul names no resource");
            }
            News::Resources(set) => {
                if set.version < self.version {
                    tracing::warn!(
                        version = set.version,
                        before = self.version,
                        "the resources in Consul begin anew"
                    );
                }
                (self.resources, self.version, self.missing) = (set.values, set.version, None);
            }
            News::NoResources => self.missing = Some("there are no resources in Consul"),
            // Who is trusted and what is revoked is never forgotten for an answer that says nothing.
            News::Trust(said) => self.trust.extend(said),
            News::Addresses(all) if all.is_empty() => return false,
            News::Addresses(all) => {
                let record = |record| serde_json::to_value(record).expect("plain fields");
                let all = all.into_iter().map(|(address, of)| (format!("{ADDRESS}{address}"), record(of)));
                self.addresses = all.collect();
            }
            News::Names(names) => {
                let is_unread = |name: &&String| service_named(name).is_err();
                let unread: BTreeSet<_> = names.iter().filter(is_unread).cloned().collect();
                if (&names, &unread) == (&self.names, &self.unread) {
                    return false;
                }
                self.seen.retain(|(name, _, _), _| names.contains(name));
                self.beyond.retain(|name, _| names.contains(name));
                (self.names, self.unread) = (names, unread);
            }
            News::Instances(name, instances) => {
                let awaited = service_named(&name).ok().filter(|service| self.awaited.contains_key(service));
                let (held, beyond) = bounds::of_service(instances);
                let held: BTreeMap<At, Instance> =
                    held.into_iter().map(|one| (at(&name, &one), one)).collect();
                let first = (name.clone(), String::new(), String::new());
                let before = self.seen.range(first..).take_while(|((of, _, _), _)| *of == name);
                if before.eq(&held) && self.beyond.get(&name).copied().unwrap_or_default() == beyond {
                    awaited.map(|service| self.awaited.remove(&service));
                    return false;
                }
                if let Some(service) = awaited {
                    self.answered.insert(service);
                    self.answered_since.get_or_insert(now);
                }
                self.seen.retain(|(of, _, _), _| *of != name);
                self.seen.extend(held);
                self.beyond.remove(&name);
                for (name, count) in bounds::in_all(&mut self.seen).into_iter().chain([(name, beyond)]) {
                    if count > 0 {
                        *self.beyond.entry(name).or_default() += count;
                    }
                }
            }
            News::BeganAnew => {
                tracing::warn!("Consul's catalog began anew: what it lacks is kept for a while");
                self.damper.doubt(now);
            }
            News::InTurn(count) => {
                self.in_turn = count;
                return false;
            }
        }
        true
    }

    /// How Consul stands.
    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Whether what is in force has still to be written.
    pub(super) fn is_unsaved(&self) -> bool {
        self.unsaved
    }

    /// Whether every part was in reach when it was asked last.
    pub(super) fn is_connected(&self) -> bool {
        let needed = [Part::Resources, Part::Trust, Part::Addresses, Part::Catalog, Part::Registrations];
        needed.iter().all(|part| self.parts.get(part) == Some(&None)) && self.missing.is_none()
    }

    /// What the mesh is made of now, with its version; nothing as long as no resources are known.
    pub(super) fn inputs(&mut self, now: Instant) -> Option<(BTreeMap<String, Value>, u64)> {
        (self.changed_since, self.answered_since) = (None, None);
        for service in std::mem::take(&mut self.answered) {
            self.awaited.remove(&service);
        }
        let held = self.damper.take(self.seen.clone(), now);
        if self.resources.is_empty() {
            return None;
        }
        let mut by_name: BTreeMap<String, Vec<Instance>> = BTreeMap::new();
        let unread = self.unread.iter().map(|name| (format!("{INSTANCES}{name}"), Vec::new()));
        by_name.extend(unread);
        for ((name, _, _), instance) in held {
            by_name.entry(format!("{INSTANCES}{name}")).or_default().push(instance);
        }
        let mut inputs = self.resources.clone();
        inputs.extend(self.trust.clone());
        inputs.extend(self.addresses.clone());
        inputs.extend(self.meshed.clone());
        let value = |all| serde_json::to_value(all).expect("plain fields");
        inputs.extend(by_name.into_iter().map(|(key, all)| (key, value(all))));
        let today = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        remember(&mut inputs, today);
        let meshed = inputs.iter().filter(|(key, _)| key.starts_with(MESHED));
        self.meshed = meshed.map(|(key, value)| (key.clone(), value.clone())).collect();
        Some((inputs, self.version))
    }

    /// Notes whether the list of revoked certificates was an older one, and returns it where that is news.
    pub(super) fn note_older_list(&mut self, older: Option<OlderList>) -> Option<&OlderList> {
        let is_news = self.older_list != older;
        self.older_list = older;
        self.older_list.as_ref().filter(|_| is_news)
    }

    /// Notes what became of it.
    pub(super) fn published(
        &mut self,
        put: &Result<(), WholeError>,
        report: Report,
        instead: Option<String>,
    ) {
        if let Some(said) = instead.as_ref().filter(|said| self.instead.as_ref() != Some(*said)) {
            tracing::error!("{said}");
        }
        self.instead = instead;
        self.unsaved = matches!(put, Err(WholeError::Unsaved(_)));
        self.report = report;
    }

    /// What operators ought to know.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let failed = self.parts.iter().filter_map(|(part, failed)| Some((part, failed.as_ref()?)));
        notes.extend(
            failed.map(|(part, reason)| {
                format!("Consul ({}): {reason}; what was known holds", part.in_words())
            }),
        );
        if let Some(missing) = self.missing {
            notes.push(format!(
                "{missing}: those of before stay in force; `baremesh control` writes them where it runs"
            ));
        }
        match self.damper.held() {
            0 => {}
            held => notes.push(format!(
                "alarm: {held} endpoints vanished from Consul's catalog at once, and stay in force for up to an hour"
            )),
        }
        let Report { left_out, named, .. } = &self.report;
        if *left_out > 0 {
            let shown = named.iter().take(3).map(|(what, why)| format!("{what}: {why}"));
            let shown: Vec<_> = shown.collect();
            notes.push(format!("{left_out} of Consul's catalog left out, among them {}", shown.join("; ")));
        }
        notes.extend(self.instead.clone());
        notes.extend(self.older_list.as_ref().map(ToString::to_string));
        if let Some((name, count)) = self.beyond.iter().max_by_key(|(_, count)| **count) {
            notes.push(format!(
                "{} instances of Consul's catalog left out, among them {count} of {name}: {} of a service, {} KiB of tags and meta of \
                 each, {} and {} MiB in all are held, the oldest",
                self.beyond.values().sum::<usize>(),
                bounds::MAX_INSTANCES,
                bounds::MAX_INSTANCE_BYTES >> 10,
                bounds::MAX_IN_ALL,
                bounds::MAX_BYTES_IN_ALL >> 20
            ));
        }
        if self.in_turn > 0 {
            notes.push(format!(
                "{} services of Consul's catalog are read in turn: their changes take longer to be seen",
                self.in_turn
            ));
        }
        notes
    }
}

fn at(name: &str, instance: &Instance) -> At {
    (name.to_owned(), instance.node.node.clone(), instance.service.id.clone())
}

#[cfg(test)]
mod tests;
