//! Reading a set, and waiting for the next.

use std::time::Duration;

use super::super::query::{Consistency, Place};
use super::{ResourceStore, ResourcesError, Set};

/// What came of waiting.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Another set is in force.
    Set(Set),
    /// The same one.
    Same,
    /// There is none: nothing was ever written here, or Consul lost it.
    Nothing,
}

/// Follows the resources.
pub struct Following {
    store: ResourceStore,
    place: Place,
    held: Set,
    /// There was none when it was looked last. A Consul that was started again says so until it has read its log.
    was_nothing: bool,
}

impl Following {
    /// Has nothing yet.
    pub fn new(store: ResourceStore) -> Self {
        Self { store, place: Place::default(), held: Set::default(), was_nothing: false }
    }

    /// The next set, waited for as long as `wait`. After an error, what was read last holds, and the next call asks anew.
    pub async fn next(&mut self, wait: Duration) -> Result<Next, ResourcesError> {
        let next = self.look(wait).await;
        if next.is_err() {
            self.place.reset();
        }
        next
    }

    /// Where the last answer stood.
    pub fn index(&self) -> u64 {
        self.place.last()
    }

    async fn look(&mut self, wait: Duration) -> Result<Next, ResourcesError> {
        // What an index of a moment ago says is whole as well: the leader is not made to ask the others each time.
        let read = self.place.read(Consistency::Leader, wait);
        let answer = self.store.client.get(&self.store.index_key(), read).await?;
        self.place.advance(answer.index);
        let found = self.store.index_of(answer.value)?;
        let was_nothing = std::mem::replace(&mut self.was_nothing, found.is_none());
        let Some(found) = found else { return Ok(Next::Nothing) };
        if found.index.version == self.held.version && found.index.resources == self.held.hashes {
            return Ok(if was_nothing { Next::Set(self.held.clone()) } else { Next::Same });
        }
        // Read with its index once more, where that has moved on meanwhile.
        let set = match self.store.named_by(&found.index, &self.held).await {
            Err(ResourcesError::Gone { .. }) => self.store.read(&self.held).await?,
            other => Some(other?),
        };
        let Some(set) = set else { return Ok(Next::Nothing) };
        self.held = set.clone();
        Ok(Next::Set(set))
    }
}
