//! Changing the set: what is new is written under keys of its own, and then the index, if nobody was faster.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::kv::{MAX_OPERATIONS, MAX_VALUE, Operation, Transacted, When};
use super::document::{Index, hash_of, is_id, key_of};
use super::{Found, ResourceStore, ResourcesError, Set};
use crate::consul::ConsulError;
use crate::control::client::backoff;

/// How often a change is tried while others are faster.
const MAX_ATTEMPTS: u32 = 10;

/// Why a set was not changed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages say what each is.
pub enum ChangeError<E> {
    /// Whoever asked for the change refuses it, seeing what is there now.
    #[error("{0}")]
    Refused(E),
    #[error(transparent)]
    Resources(#[from] ResourcesError),
    #[error("{id}: {size} bytes are more than Consul takes as one value, {}: split it", MAX_VALUE)]
    TooLarge { id: String, size: usize },
    #[error("`{0}` names no resource")]
    NoResource(String),
    #[error(
        "others changed the resources {MAX_ATTEMPTS} times meanwhile, and nothing was written: try again"
    )]
    Overtaken,
}

impl<E> From<ConsulError> for ChangeError<E> {
    fn from(error: ConsulError) -> Self {
        Self::Resources(error.into())
    }
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed<T> {
    /// The set that is in force now.
    pub set: Set,
    /// What the plan gave with its changes.
    pub plan: T,
}

/// Resources by `Kind/namespace/name`, as they will be; `None`: gone.
pub type Changes = BTreeMap<String, Option<Value>>;

impl ResourceStore {
    /// Changes the set. `plan` sees what is in force and says what to change, or refuses; where others are faster, it is
    /// asked again about what they left. All of a change is in force afterwards, or nothing of it.
    pub async fn change<T, E>(
        &self,
        mut plan: impl FnMut(&Set) -> Result<(Changes, T), E>,
    ) -> Result<Changed<T>, ChangeError<E>> {
        let mut held = Set::default();
        for attempt in 0..MAX_ATTEMPTS {
            let found = self.found(&held).await?;
            let (found, set) = match found {
                Some((found, set)) => (found, set),
                None => (Found { index: Index::default(), modified: 0 }, Set::default()),
            };
            let (changes, plan) = plan(&set).map_err(ChangeError::Refused)?;
            if changes.iter().all(|(id, value)| set.values.get(id) == value.as_ref()) {
                return Ok(Changed { set, plan });
            }
            let texts = texts_of(&changes)?;
            if let Some(version) = self.attempt(found, &texts).await? {
                let mut now = set;
                now.version = version;
                for (id, value) in changes {
                    now.values.remove(&id);
                    now.hashes.remove(&id);
                    if let (Some(value), Some((hash, _))) = (value, &texts[&id]) {
                        now.insert(&id, hash, value);
                    }
                }
                return Ok(Changed { set: now, plan });
            }
            held = set;
            tokio::time::sleep(backoff(attempt, rand::random()) / 4).await;
        }
        Err(ChangeError::Overtaken)
    }

    /// One attempt: the new version, or nothing where somebody was faster.
    async fn attempt<E>(&self, found: Found, texts: &Texts) -> Result<Option<u64>, ChangeError<E>> {
        let Found { mut index, mut modified } = found;
        let old = index.deletable();
        if !old.is_empty() {
            if !self.delete(&old, modified).await? {
                return Ok(None);
            }
            index.retired.retain(|key, _| !old.contains(key));
        }
        // Before a retired key is written again it must be retired no longer: whoever deletes it now would take what the
        // next index names.
        let again = |key: &String| {
            texts.iter().any(|(id, text)| matches!(text, Some((hash, _)) if *key == key_of("", id, hash)))
        };
        if index.retired.keys().any(again) {
            index.retired.retain(|key, _| !again(key));
            match self.put_index(&index, modified).await? {
                Some(now) => modified = now,
                None => return Ok(None),
            }
        }
        for (id, text) in texts {
            if let Some((hash, text)) = text {
                self.put_text(&key_of(&self.resources(), id, hash), text.clone()).await?;
            }
        }
        let hashes = texts.iter().map(|(id, text)| (id.clone(), text.as_ref().map(|(hash, _)| hash.clone())));
        let next = index.with(&hashes.collect());
        Ok(self.put_index(&next, modified).await?.map(|_| next.version))
    }

    /// Writes the index if it is as it was at `modified`. Where it stands now; nothing where it was another.
    async fn put_index(&self, index: &Index, modified: u64) -> Result<Option<u64>, ConsulError> {
        let when = if modified == 0 { When::Absent } else { When::Unchanged(modified) };
        let (key, text) = (self.index_key(), index.write());
        let written = self.client.put(&key, text.clone(), when).await;
        // Where the answer was lost, what stands there says what became of it: nobody else writes the same.
        if matches!(written, Ok(false)) {
            return Ok(None);
        }
        let now = self.client.get(&key, super::Read::now(super::Consistency::Consistent)).await;
        match (written, now?.value) {
            (_, Some(pair)) if pair.value == text => Ok(Some(pair.modified)),
            (Ok(_), _) => Ok(None),
            (Err(error), _) => Err(error),
        }
    }

    /// Deletes versions of resources, as long as the index is as it was at `modified`. False: it is another.
    async fn delete(&self, keys: &[String], modified: u64) -> Result<bool, ConsulError> {
        for some in keys.chunks(MAX_OPERATIONS - 1) {
            let mut operations = vec![Operation::Check { key: self.index_key(), modified }];
            operations.extend(some.iter().map(|key| Operation::Delete {
                key: format!("{}{key}", self.resources()),
                when: When::Always,
            }));
            if self.client.transact(&operations).await? != Transacted::Done {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The texts with their hashes.
type Texts = BTreeMap<String, Option<(String, Vec<u8>)>>;

fn texts_of<E>(changes: &Changes) -> Result<Texts, ChangeError<E>> {
    let text = |(id, value): (&String, &Option<Value>)| {
        if !is_id(id) {
            return Err(ChangeError::NoResource(id.clone()));
        }
        let text = value.as_ref().map(|value| value.to_string().into_bytes());
        if let Some(size) = text.as_ref().map(Vec::len).filter(|size| *size > MAX_VALUE) {
            return Err(ChangeError::TooLarge { id: id.clone(), size });
        }
        Ok((id.clone(), text.map(|text| (hash_of(&text), text))))
    };
    changes.iter().map(text).collect()
}
