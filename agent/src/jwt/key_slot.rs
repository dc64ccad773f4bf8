//! Sets of keys that are at hand: one slot for each source that a rule of this host names, kept from snapshot to snapshot.
//! Who verifies reads it without waiting; who fetches puts a new set in.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use baremesh_model::request_authentication::KeySource;
use tokio::sync::Notify;

use super::keys::KeySet;

/// The keys of one source.
pub struct KeySlot {
    source: KeySource,
    keys: ArcSwapOption<KeySet>,
    /// A token named a key that is not among these.
    is_asked: AtomicBool,
    asked: Arc<Notify>,
}

impl KeySlot {
    fn new(source: &KeySource, asked: &Arc<Notify>) -> Self {
        let inline = match source {
            KeySource::Inline(text) => KeySet::parse_any(text).ok().map(Arc::new),
            KeySource::File(_) | KeySource::Url(_) => None,
        };
        Self {
            source: source.clone(),
            keys: ArcSwapOption::from(inline),
            is_asked: AtomicBool::new(false),
            asked: Arc::clone(asked),
        }
    }

    /// Where the keys come from.
    pub fn source(&self) -> &KeySource {
        &self.source
    }

    /// The keys, if there are any at hand.
    pub fn keys(&self) -> Option<Arc<KeySet>> {
        self.keys.load_full()
    }

    /// From now on these are the keys, or none are.
    pub fn put(&self, keys: Option<Arc<KeySet>>) {
        self.keys.store(keys);
    }

    /// Asks for keys that are newer: a token names one that is not there.
    pub fn ask(&self) {
        if !self.is_asked.swap(true, Ordering::Relaxed) {
            self.asked.notify_one();
        }
    }

    /// Whether newer keys were asked for since the last time.
    pub(super) fn take_asked(&self) -> bool {
        self.is_asked.swap(false, Ordering::Relaxed)
    }

    /// Whether newer keys are asked for.
    pub(super) fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::Relaxed)
    }
}

/// All sources that rules of this host name.
#[derive(Default)]
pub struct TokenKeys {
    slots: HashMap<KeySource, (Arc<KeySlot>, Duration)>,
    asked: Arc<Notify>,
}

impl TokenKeys {
    /// None yet; `previous` has those of the state before, with the keys that are in them.
    pub(crate) fn new(previous: Option<&Self>) -> Self {
        let asked = previous.map_or_else(Arc::default, |previous| Arc::clone(&previous.asked));
        Self { slots: HashMap::new(), asked }
    }

    /// The slot of a source, which may be fetched from for so long.
    pub(crate) fn slot(
        &mut self,
        source: &KeySource,
        timeout: Duration,
        previous: Option<&Self>,
    ) -> Arc<KeySlot> {
        let (slot, longest) = self.slots.entry(source.clone()).or_insert_with(|| {
            let known = previous.and_then(|previous| previous.slots.get(source));
            let slot = known
                .map_or_else(|| Arc::new(KeySlot::new(source, &self.asked)), |(slot, _)| Arc::clone(slot));
            (slot, timeout)
        });
        *longest = timeout.max(*longest);
        Arc::clone(slot)
    }

    /// Every slot, with how long fetching may take.
    pub fn all(&self) -> impl Iterator<Item = (&Arc<KeySlot>, Duration)> {
        self.slots.values().map(|(slot, timeout)| (slot, *timeout))
    }

    /// Told when a slot is asked for newer keys.
    pub(super) fn asked(&self) -> Arc<Notify> {
        Arc::clone(&self.asked)
    }
}
