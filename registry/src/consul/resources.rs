//! The mesh's resources in Consul's key-value store. Each version of a resource is a key of its own,
//! `resources/<Kind>/<namespace>/<name>/<hash of its text>`, and one key, `index`, names those that are in force. It is written by
//! compare-and-set after all that it names is there: whoever reads what an index names has a whole set, of one moment.
//!
//! What an index names no longer is deleted by the change after the next one, so that readers who are late find it. An index
//! says what is to be deleted (`retired`), and deletions go together with a check that it still stands: nobody can take
//! away what another one is just about to name again.

/// The documents: an index, and the names of keys.
mod document;
/// Reading a set, and waiting for the next.
mod following;
/// Changing it.
mod change;

pub use change::{ChangeError, Changed, Changes};
pub use following::{Following, Next};

use std::collections::BTreeMap;

use serde_json::Value;

use super::client::Client;
use super::error::ConsulError;
use super::kv::{Pair, When};
use super::query::{Consistency, Read};
use document::{Index, hash_of, key_of};

/// How many resources are read one by one rather than all there are.
const ONE_BY_ONE: usize = 16;
/// How often an index is read again because what it names is gone: another one has followed it meanwhile.
const MAX_AGAIN: usize = 8;

/// Why a set could not be had. What was in force before stays.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages say what each is.
pub enum ResourcesError {
    #[error(transparent)]
    Consul(#[from] ConsulError),
    #[error(
        "{key} in Consul is not what baremesh writes: {reason}; put an earlier version back, or apply the resources anew"
    )]
    Unreadable { key: String, reason: String },
    #[error("{key} in Consul is gone, although the index names it: apply that resource anew")]
    Gone { key: String },
}

/// A whole set of resources.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Set {
    /// Goes up with every change.
    pub version: u64,
    /// The resources as JSON, by `Kind/namespace/name`.
    pub values: BTreeMap<String, Value>,
    hashes: BTreeMap<String, String>,
}

/// The place where the resources are.
#[derive(Clone)]
pub struct ResourceStore {
    client: Client,
    prefix: String,
}

/// An index with where it stands.
struct Found {
    index: Index,
    modified: u64,
}

impl ResourceStore {
    /// Below the prefix of the client's settings.
    pub fn new(client: Client) -> Self {
        let prefix = client.settings().prefix.clone();
        Self { client, prefix }
    }

    fn index_key(&self) -> String {
        format!("{}index", self.prefix)
    }

    fn resources(&self) -> String {
        format!("{}resources/", self.prefix)
    }

    fn index_of(&self, pair: Option<Pair>) -> Result<Option<Found>, ResourcesError> {
        let Some(pair) = pair else { return Ok(None) };
        match Index::read(&pair.value) {
            Ok(index) => Ok(Some(Found { index, modified: pair.modified })),
            Err(reason) => Err(ResourcesError::Unreadable { key: pair.key, reason }),
        }
    }

    async fn index_now(&self) -> Result<Option<Found>, ResourcesError> {
        let answer = self.client.get(&self.index_key(), Read::now(Consistency::Consistent)).await?;
        self.index_of(answer.value)
    }

    /// The set that is in force; nothing where none was ever written. What `held` has already is not read again.
    pub async fn read(&self, held: &Set) -> Result<Option<Set>, ResourcesError> {
        Ok(self.found(held).await?.map(|(_, set)| set))
    }

    async fn found(&self, held: &Set) -> Result<Option<(Found, Set)>, ResourcesError> {
        let mut gone = None;
        for _ in 0..MAX_AGAIN {
            let Some(found) = self.index_now().await? else { return Ok(None) };
            match self.named_by(&found.index, held).await {
                Ok(set) => return Ok(Some((found, set))),
                Err(ResourcesError::Gone { key }) => gone = Some(key),
                Err(error) => return Err(error),
            }
        }
        Err(ResourcesError::Gone { key: gone.unwrap_or_default() })
    }

    /// The set that an index names.
    async fn named_by(&self, index: &Index, held: &Set) -> Result<Set, ResourcesError> {
        let mut set = Set { version: index.version, ..Set::default() };
        let mut missing = Vec::new();
        for (id, hash) in &index.resources {
            match held.values.get(id).filter(|_| held.hashes.get(id) == Some(hash)) {
                Some(value) => set.insert(id, hash, value.clone()),
                None => missing.push((id, hash)),
            }
        }
        let now = Read::now(Consistency::Consistent);
        let mut texts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        if missing.len() > ONE_BY_ONE {
            let all = self.client.list(&self.resources(), now).await?.value;
            texts.extend(all.into_iter().map(|pair| (pair.key, pair.value)));
        }
        for (id, hash) in missing.iter().copied() {
            let key = key_of(&self.resources(), id, hash);
            let text = match texts.remove(&key) {
                Some(text) => text,
                None if missing.len() > ONE_BY_ONE => return Err(ResourcesError::Gone { key }),
                None => match self.client.get(&key, now).await?.value {
                    Some(pair) => pair.value,
                    None => return Err(ResourcesError::Gone { key }),
                },
            };
            let unreadable = |reason: String| ResourcesError::Unreadable { key: key.clone(), reason };
            if hash_of(&text) != *hash {
                return Err(unreadable("its text is not the one that it is named for".to_owned()));
            }
            let value = serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
            set.insert(id, hash, value);
        }
        Ok(set)
    }

    async fn put_text(&self, key: &str, text: Vec<u8>) -> Result<(), ConsulError> {
        // There may be one already: its text is the same by construction.
        self.client.put(key, text, When::Always).await.map(|_| ())
    }
}

impl Set {
    fn insert(&mut self, id: &str, hash: &str, value: Value) {
        self.values.insert(id.to_owned(), value);
        self.hashes.insert(id.to_owned(), hash.to_owned());
    }
}
