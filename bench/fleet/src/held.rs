//! What one agent holds of the state: of each entry the digest alone, so that thousands fit into one process. That is enough to
//! know whether every difference led to where the server says that it does.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use anyhow::{Result, bail};
use baremesh_registry::control::digest::Digest;
use baremesh_registry::control::message::{Complete, Resume, Upsert};

/// Numbers for keys, shared by all agents.
#[derive(Debug, Default)]
pub struct Keys(RwLock<HashMap<String, Key>>);

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    number: usize,
    is_endpoint: bool,
}

impl Keys {
    fn of(&self, key: &str) -> Key {
        if let Some(known) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(key) {
            return *known;
        }
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let new = Key { number: keys.len(), is_endpoint: key.starts_with("WorkloadEntry/") };
        *keys.entry(key.to_owned()).or_insert(new)
    }
}

/// What one agent holds.
#[derive(Debug, Default)]
pub struct Held {
    /// By the number of the key.
    digests: Vec<Option<Digest>>,
    sum: Digest,
    endpoints: usize,
    epoch: u64,
    version: u64,
    staged: Vec<(Key, Option<Digest>)>,
}

impl Held {
    /// How many endpoints there are.
    pub fn endpoints(&self) -> usize {
        self.endpoints
    }

    /// Where the next connection can go on; nowhere before the first state.
    pub fn resume(&self) -> Option<Resume> {
        let (epoch, version, digest) = (self.epoch, self.version, self.sum.to_string());
        (version > 0).then_some(Resume { epoch, version, digest, subscribe: None })
    }

    /// What was not complete when a connection ended is nothing.
    pub fn begin(&mut self) {
        self.staged.clear();
    }

    /// Takes an entry that is new or changed.
    pub fn upsert(&mut self, keys: &Keys, upsert: &Upsert) {
        self.staged.push((keys.of(&upsert.key), Some(Digest::of(&upsert.key, upsert.value.get()))));
    }

    /// Takes an entry that is gone.
    pub fn delete(&mut self, keys: &Keys, key: &str) {
        self.staged.push((keys.of(key), None));
    }

    /// Puts in force what came before the marker. Fails where that does not lead to the server's digest.
    pub fn complete(&mut self, complete: &Complete, epoch: u64) -> Result<()> {
        if complete.full {
            (self.digests, self.sum, self.endpoints) = (Vec::new(), Digest::default(), 0);
        }
        for (key, digest) in std::mem::take(&mut self.staged) {
            if self.digests.len() <= key.number {
                self.digests.resize(key.number + 1, None);
            }
            let before = std::mem::replace(&mut self.digests[key.number], digest);
            if let Some(before) = before {
                self.sum = self.sum.minus(before);
                self.endpoints -= usize::from(key.is_endpoint);
            }
            if let Some(digest) = digest {
                self.sum = self.sum.plus(digest);
                self.endpoints += usize::from(key.is_endpoint);
            }
        }
        if self.sum.to_string() != complete.digest {
            *self = Self::default();
            bail!("version {} does not lead to its digest", complete.version);
        }
        (self.epoch, self.version) = (epoch, complete.version);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use baremesh_registry::control::state::{Audience, Change, Held as Known, State};
    use baremesh_registry::control::subscription::Subscription;
    use serde_json::json;
    use serde_json::value::RawValue;

    use super::*;

    #[test]
    fn differences_lead_to_the_servers_digest_and_damaged_ones_do_not() {
        let (keys, mut held, mut state) = (Keys::default(), Held::default(), State::new(7));
        let mut known: Option<Known> = None;
        let mut follow = |state: &State, held: &mut Held, damaged: bool| {
            let difference = state.difference(known.as_ref(), &Subscription::All);
            for change in difference.changes {
                match change {
                    Change::Upsert(key, sent) => {
                        let text = if damaged { "0" } else { sent.text() };
                        let value = RawValue::from_string(text.to_owned()).expect("JSON");
                        held.upsert(&keys, &Upsert { key: key.to_string(), value });
                    }
                    Change::Delete(key) => held.delete(&keys, &key),
                }
            }
            let (version, digest, full) =
                (difference.version, difference.digest.to_string(), difference.full);
            known = Some(Known { version, subscription: Subscription::All });
            held.complete(&Complete { version, digest, full, subscribed: 0 }, 7)
        };
        state.set("Service/x/a", Audience::Everyone, &json!(1));
        state.set("WorkloadEntry/x/a-1", Audience::Everyone, &json!(2));
        follow(&state, &mut held, false).expect("the same");
        assert_eq!((held.endpoints(), held.resume().map(|resume| resume.version)), (1, Some(2)));
        state.remove("WorkloadEntry/x/a-1");
        state.set("Service/x/a", Audience::Everyone, &json!(3));
        follow(&state, &mut held, false).expect("the same");
        assert_eq!(held.endpoints(), 0);
        state.set("Service/x/a", Audience::Everyone, &json!(4));
        follow(&state, &mut held, true).expect_err("another text");
        assert_eq!(held.resume(), None);
    }
}
