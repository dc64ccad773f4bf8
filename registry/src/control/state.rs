//! The state that agents follow: keys to values, each with the version of its last change. A difference is
//! computed when an agent can take it, from the version that it has to the newest, so a slow agent costs no
//! queue and never sees an intermediate state. Deletions are remembered up to a bound; who was away for longer
//! gets everything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use baremesh_model::name::Key;
use bytes::Bytes;
use serde_json::Value;

use super::digest::Digest;
use super::message::{Resume, upsert_frame};
use super::subscription::Subscription;

/// Most deletions remembered.
pub const MAX_DELETIONS: usize = 10_000;

/// Who is sent an entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Audience {
    /// Every agent.
    Everyone,
    /// The agents that asked for this service's endpoints.
    CallersOf(Key),
    /// The agents that did not.
    OthersThanCallersOf(Key),
}

impl Audience {
    fn within(&self, subscription: &Subscription) -> bool {
        match self {
            Self::Everyone => true,
            Self::CallersOf(service) => subscription.covers(service),
            Self::OthersThanCallersOf(service) => !subscription.covers(service),
        }
    }
}

/// An entry as it is sent: encoded once, when it changes, for all agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    frame: Bytes,
    /// How many bytes of it are the value's text.
    length: usize,
}

impl Sent {
    /// What stands behind the value in a frame.
    const END: usize = "}}".len();

    fn new(key: &str, text: &str) -> Self {
        Self { frame: upsert_frame(key, text).into_boxed_slice().into(), length: text.len() }
    }

    /// The message, without its length.
    pub fn frame(&self) -> &Bytes {
        &self.frame
    }

    /// The value's text.
    pub fn text(&self) -> &str {
        let end = self.frame.len() - Self::END;
        std::str::from_utf8(&self.frame[end - self.length..end]).expect("it was made of text")
    }
}

struct Entry {
    sent: Sent,
    digest: Digest,
    audience: Audience,
    version: u64,
    /// Whether it once had another audience, which then has to be told that it is gone.
    moved: bool,
}

#[derive(Default)]
struct Group {
    digest: Digest,
    keys: BTreeSet<Arc<str>>,
}

/// What an agent holds, as far as the server can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The version.
    pub version: u64,
    /// The subscription.
    pub subscription: Subscription,
}

/// One change of a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// New or changed.
    Upsert(Arc<str>, Sent),
    /// Gone, or no longer for this agent. The agent may not have had it.
    Delete(Arc<str>),
}

/// What brings an agent to the newest version.
#[derive(Debug)]
pub struct Difference {
    /// The changes, no key twice.
    pub changes: Vec<Change>,
    /// The version that they lead to.
    pub version: u64,
    /// The digest of what the agent then holds.
    pub digest: Digest,
    /// Whether these are all entries, so that everything else is gone.
    pub full: bool,
}

/// The keyed, versioned map.
pub struct State {
    epoch: u64,
    version: u64,
    entries: BTreeMap<Arc<str>, Entry>,
    /// The entries by version: each version is the last change of one entry at most.
    changed: BTreeMap<u64, Arc<str>>,
    deleted: BTreeMap<Arc<str>, (u64, Audience)>,
    deletions: BTreeMap<u64, Arc<str>>,
    /// The newest deletion that is no longer remembered.
    horizon: u64,
    groups: BTreeMap<Audience, Group>,
    /// Of what those hold who ask for all, and of what else there is for those who ask for nothing.
    all: Digest,
    instead: Digest,
}

impl State {
    /// An empty state of a run of the server; `epoch` differs between runs.
    pub fn new(epoch: u64) -> Self {
        Self {
            epoch,
            version: 0,
            entries: BTreeMap::new(),
            changed: BTreeMap::new(),
            deleted: BTreeMap::new(),
            deletions: BTreeMap::new(),
            horizon: 0,
            groups: BTreeMap::new(),
            all: Digest::default(),
            instead: Digest::default(),
        }
    }

    /// The run that the versions belong to.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The newest version; 0 is the empty state.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The entries' keys and texts.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &str)> {
        self.entries.iter().map(|(key, entry)| (key, entry.sent.text()))
    }

    /// Whether there is an entry of that key.
    pub fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Sets an entry. The same value again is no change.
    pub fn set(&mut self, key: &str, audience: Audience, value: &Value) {
        let text = value.to_string();
        let before = self.entries.get(key);
        if before.is_some_and(|entry| entry.sent.text() == text && entry.audience == audience) {
            return;
        }
        let moved = before.is_some_and(|entry| entry.moved || entry.audience != audience)
            || self.deleted.get(key).is_some_and(|(_, former)| *former != audience);
        let key: Arc<str> = key.into();
        self.unlink(&key);
        self.version += 1;
        let digest = Digest::of(&key, &text);
        let group = self.groups.entry(audience.clone()).or_default();
        group.digest = group.digest.plus(digest);
        group.keys.insert(key.clone());
        let total = self.total(&audience);
        *total = total.plus(digest);
        self.changed.insert(self.version, key.clone());
        let sent = Sent::new(&key, &text);
        self.entries.insert(key, Entry { sent, digest, audience, version: self.version, moved });
    }

    /// Removes an entry.
    pub fn remove(&mut self, key: &str) {
        let Some(entry) = self.entries.get(key) else { return };
        let audience = if entry.moved { Audience::Everyone } else { entry.audience.clone() };
        let key: Arc<str> = key.into();
        self.unlink(&key);
        self.version += 1;
        self.deletions.insert(self.version, key.clone());
        self.deleted.insert(key, (self.version, audience));
        while self.deletions.len() > MAX_DELETIONS {
            if let Some((version, key)) = self.deletions.pop_first() {
                self.deleted.remove(&key);
                self.horizon = version;
            }
        }
    }

    /// Makes the state exactly these entries; what stays the same keeps its version.
    pub fn replace(&mut self, entries: &BTreeMap<String, (Audience, Value)>) {
        let gone: Vec<Arc<str>> =
            self.entries.keys().filter(|key| !entries.contains_key(&***key)).cloned().collect();
        for key in gone {
            self.remove(&key);
        }
        for (key, (audience, value)) in entries {
            self.set(key, audience.clone(), value);
        }
    }

    /// Takes an entry, or the memory of its deletion, out of the indexes.
    fn unlink(&mut self, key: &Arc<str>) {
        if let Some((version, _)) = self.deleted.remove(key) {
            self.deletions.remove(&version);
        }
        let Some(entry) = self.entries.remove(key) else { return };
        self.changed.remove(&entry.version);
        let total = self.total(&entry.audience);
        *total = total.minus(entry.digest);
        if let Some(group) = self.groups.get_mut(&entry.audience) {
            group.digest = group.digest.minus(entry.digest);
            group.keys.remove(key);
            if group.keys.is_empty() {
                self.groups.remove(&entry.audience);
            }
        }
    }

    /// The sum that the entries of an audience are part of.
    fn total(&mut self, audience: &Audience) -> &mut Digest {
        match audience {
            Audience::Everyone | Audience::CallersOf(_) => &mut self.all,
            Audience::OthersThanCallersOf(_) => &mut self.instead,
        }
    }

    /// Whether more than so many entries have changed for an agent that held that, as far as they are remembered. To want the
    /// endpoints of some services in place of all, or the other way round, changes as much as there is.
    pub fn is_behind(&self, held: Option<&Held>, wanted: &Subscription, most: usize) -> bool {
        let is_all = |subscription: &Subscription| *subscription == Subscription::All;
        let goes_on =
            |held: &&Held| held.version >= self.horizon && is_all(&held.subscription) == is_all(wanted);
        let Some(held) = held.filter(goes_on) else {
            return self.entries.len() > most;
        };
        let since = held.version.saturating_add(1)..;
        self.changed.range(since.clone()).take(most + 1).count()
            + self.deletions.range(since).take(most + 1).count()
            > most
    }

    /// The digest of what an agent of that subscription holds at the newest version.
    pub fn digest(&self, subscription: &Subscription) -> Digest {
        let of =
            |audience: &Audience| self.groups.get(audience).map(|group| group.digest).unwrap_or_default();
        match subscription {
            Subscription::All => self.all,
            Subscription::Services(services) => {
                let for_others = of(&Audience::Everyone).plus(self.instead);
                services.iter().fold(for_others, |sum, service| {
                    sum.plus(of(&Audience::CallersOf(service.clone())))
                        .minus(of(&Audience::OthersThanCallersOf(service.clone())))
                })
            }
        }
    }

    /// Where an agent that comes back can go on: from its version, when this run knows it, or without any
    /// change, when it holds exactly what is newest, as after a restart of the server. `None`: from nothing.
    pub fn resume(&self, resume: &Resume, asked: &Subscription) -> Option<Held> {
        let subscription = match &resume.subscribe {
            Some(written) => Subscription::read(written)?,
            None => asked.clone(),
        };
        let known = resume.epoch == self.epoch && (self.horizon..=self.version).contains(&resume.version);
        if known {
            return Some(Held { version: resume.version, subscription });
        }
        let same = self.digest(&subscription).to_string() == resume.digest;
        same.then_some(Held { version: self.version, subscription })
    }

    /// What brings an agent that holds `held` to the newest version of `wanted`.
    pub fn difference(&self, held: Option<&Held>, wanted: &Subscription) -> Difference {
        let (version, digest) = (self.version, self.digest(wanted));
        let Some(held) = held.filter(|held| held.version >= self.horizon) else {
            let all = self.entries.iter().filter(|(_, entry)| entry.audience.within(wanted));
            let changes = all.map(|(key, entry)| Change::Upsert(key.clone(), entry.sent.clone())).collect();
            return Difference { changes, version, digest, full: true };
        };
        let mut changes = Vec::new();
        for key in self.changed.range(held.version.saturating_add(1)..).map(|(_, key)| key) {
            let Some(entry) = self.entries.get(key) else { continue };
            if entry.audience.within(wanted) {
                changes.push(Change::Upsert(key.clone(), entry.sent.clone()));
            } else if entry.moved || entry.audience.within(&held.subscription) {
                changes.push(Change::Delete(key.clone()));
            }
        }
        for (_, key) in self.deletions.range(held.version.saturating_add(1)..) {
            let told = |(_, audience): &(u64, Audience)| audience.within(&held.subscription);
            if self.deleted.get(key).is_some_and(told) {
                changes.push(Change::Delete(key.clone()));
            }
        }
        if held.subscription != *wanted {
            self.resubscribe(held, wanted, &mut changes);
        }
        Difference { changes, version, digest, full: false }
    }

    /// The entries that have not changed since, and are sent or taken back because the subscription has.
    fn resubscribe(&self, held: &Held, wanted: &Subscription, changes: &mut Vec<Change>) {
        for (audience, group) in &self.groups {
            let (had, wants) = (audience.within(&held.subscription), audience.within(wanted));
            if had == wants {
                continue;
            }
            for key in &group.keys {
                let Some(entry) = self.entries.get(key).filter(|e| e.version <= held.version) else {
                    continue;
                };
                changes.push(match wants {
                    true => Change::Upsert(key.clone(), entry.sent.clone()),
                    false => Change::Delete(key.clone()),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::subscription::service_key;
    use super::*;

    fn callers_of(service: &str) -> Audience {
        Audience::CallersOf(service_key(service).expect("a service"))
    }

    fn subscription(names: &[&str]) -> Subscription {
        Subscription::read(&names.iter().map(ToString::to_string).collect::<Vec<_>>()).expect("services")
    }

    fn shown(difference: &Difference) -> Vec<String> {
        let show = |change: &Change| match change {
            Change::Upsert(key, sent) => format!("{key}={}", sent.text()),
            Change::Delete(key) => format!("-{key}"),
        };
        difference.changes.iter().map(show).collect()
    }

    fn example() -> State {
        let mut state = State::new(1);
        state.set("Service/x/a", Audience::Everyone, &json!(1));
        state.set("WorkloadEntry/x/a-1", callers_of("a.x"), &json!(2));
        state.set("WorkloadEntry/x/b-1", callers_of("b.x"), &json!(3));
        state
    }

    fn check(held: Option<(u64, &[&str])>, wanted: &[&str], expected: &[&str]) {
        let held = held.map(|(version, names)| Held { version, subscription: subscription(names) });
        let difference = example().difference(held.as_ref(), &subscription(wanted));
        assert_eq!(shown(&difference), expected, "{held:?} to {wanted:?}");
        assert_eq!(difference.full, held.is_none());
    }

    #[test]
    fn sends_what_is_new_and_asked_for() {
        check(None, &[], &["Service/x/a=1"]);
        check(None, &["a.x"], &["Service/x/a=1", "WorkloadEntry/x/a-1=2"]);
        check(Some((1, &["*"])), &["*"], &["WorkloadEntry/x/a-1=2", "WorkloadEntry/x/b-1=3"]);
        check(Some((3, &["a.x"])), &["a.x"], &[]);
        check(Some((3, &["a.x"])), &["a.x", "b.x"], &["WorkloadEntry/x/b-1=3"]);
        check(Some((3, &["*"])), &["a.x"], &["-WorkloadEntry/x/b-1"]);
        check(Some((2, &["a.x"])), &["b.x"], &["WorkloadEntry/x/b-1=3", "-WorkloadEntry/x/a-1"]);
    }

    #[test]
    fn forgets_old_deletions_and_then_sends_everything() {
        let mut state = example();
        for n in 0..=MAX_DELETIONS {
            state.set(&format!("Service/x/s{n}"), Audience::Everyone, &json!(n));
            state.remove(&format!("Service/x/s{n}"));
        }
        let held = |version| Held { version, subscription: Subscription::All };
        assert!(state.difference(Some(&held(3)), &Subscription::All).full);
        assert!(!state.difference(Some(&held(state.horizon)), &Subscription::All).full);
        let resume = Resume { epoch: 1, version: 3, ..Resume::default() };
        assert_eq!(state.resume(&resume, &Subscription::All), None);
    }

    #[test]
    fn goes_on_after_a_restart_when_nothing_differs() {
        let state = example();
        let resume = |epoch, version, digest: Digest| Resume {
            epoch,
            version,
            digest: digest.to_string(),
            subscribe: Some(vec!["a.x".into()]),
        };
        let same = state.digest(&subscription(&["a.x"]));
        let held = state.resume(&resume(7, 99, same), &Subscription::All).expect("the same entries");
        assert_eq!(held, Held { version: 3, subscription: subscription(&["a.x"]) });
        assert_eq!(state.resume(&resume(7, 2, Digest::default()), &Subscription::All), None);
        assert!(state.resume(&resume(1, 2, Digest::default()), &Subscription::All).is_some());
        assert_eq!(
            state.resume(&resume(1, 4, Digest::default()), &Subscription::All),
            None,
            "from the future"
        );
    }

    #[test]
    fn an_entry_is_encoded_once() {
        let mut state = State::new(1);
        state.set("Service/x/a\"b", Audience::Everyone, &json!({ "é": "}}" }));
        let changes = state.difference(None, &Subscription::All).changes;
        let again = state.difference(None, &Subscription::All).changes;
        let [Change::Upsert(_, one)] = &changes[..] else { panic!("{changes:?}") };
        let [Change::Upsert(_, other)] = &again[..] else { panic!("{again:?}") };
        assert_eq!(one.text(), "{\"é\":\"}}\"}");
        assert_eq!(one.frame().as_ptr(), other.frame().as_ptr(), "the same bytes for everybody");
        assert_eq!(**one.frame(), *upsert_frame("Service/x/a\"b", one.text()));
    }

    #[test]
    fn who_holds_little_of_what_is_new_is_behind() {
        let mut state = example();
        let behind = |state: &State, version: Option<u64>, most| {
            let held = version.map(|version| Held { version, subscription: Subscription::All });
            state.is_behind(held.as_ref(), &Subscription::All, most)
        };
        for (version, most, expected) in
            [(None, 2, true), (None, 3, false), (Some(0), 2, true), (Some(1), 2, false), (Some(3), 0, false)]
        {
            assert_eq!(behind(&state, version, most), expected, "{version:?}, {most}");
        }
        let some = Subscription::of(BTreeSet::new());
        let held = |subscription| Held { version: 3, subscription };
        assert!(state.is_behind(Some(&held(Subscription::All)), &some, 2));
        assert!(state.is_behind(Some(&held(some.clone())), &Subscription::All, 2));
        assert!(!state.is_behind(Some(&held(some.clone())), &some, 0));
        state.remove("Service/x/a");
        assert!(behind(&state, Some(3), 0) && !behind(&state, Some(3), 1));
    }

    #[test]
    fn the_same_again_is_no_change() {
        let mut state = example();
        state.set("Service/x/a", Audience::Everyone, &json!(1));
        state.remove("Service/x/none");
        assert_eq!(state.version(), 3);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Set(u8, Option<(u8, bool)>, u8),
        Remove(u8),
        Follow(Option<Vec<u8>>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let audience = proptest::option::of((0..3_u8, any::<bool>()));
        let step = prop_oneof![
            (0..6_u8, audience, any::<u8>())
                .prop_map(|(key, audience, value)| Step::Set(key, audience, value)),
            (0..6_u8).prop_map(Step::Remove),
            proptest::option::of(proptest::collection::vec(0..3_u8, 0..3)).prop_map(Step::Follow),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        /// Whatever happens in whatever order, an agent that applies the differences holds what a new one gets,
        /// and comes to the digest that it was sent.
        #[test]
        fn differences_lead_to_the_newest_state(steps in steps()) {
            let mut state = State::new(1);
            let mut agent: BTreeMap<Arc<str>, Arc<str>> = BTreeMap::new();
            let mut held: Option<Held> = None;
            let service = |n: u8| service_key(&format!("s{n}.x")).expect("a service");
            for step in steps {
                match step {
                    Step::Set(key, audience, value) => {
                        let audience = match audience {
                            None => Audience::Everyone,
                            Some((n, true)) => Audience::CallersOf(service(n)),
                            Some((n, false)) => Audience::OthersThanCallersOf(service(n)),
                        };
                        state.set(&format!("k{key}"), audience, &json!(value));
                    }
                    Step::Remove(key) => state.remove(&format!("k{key}")),
                    Step::Follow(services) => {
                        let wanted = services.map_or(Subscription::All, |services| {
                            Subscription::of(services.into_iter().map(service).collect())
                        });
                        let difference = state.difference(held.as_ref(), &wanted);
                        let mut keys = BTreeSet::new();
                        for change in difference.changes {
                            let key = match change {
                                Change::Upsert(key, sent) => { agent.insert(key.clone(), sent.text().into()); key }
                                Change::Delete(key) => { agent.remove(&key); key }
                            };
                            prop_assert!(keys.insert(key), "a key twice");
                        }
                        let digest = agent.iter().map(|(key, text)| Digest::of(key, text));
                        prop_assert_eq!(digest.fold(Digest::default(), Digest::plus), difference.digest);
                        prop_assert_eq!(state.difference(None, &wanted).changes.len(), agent.len());
                        held = Some(Held { version: difference.version, subscription: wanted });
                    }
                }
            }
        }
    }
}
