//! A difference as it comes.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::super::message::Upsert;
use super::{FollowedError, MAX_ENTRIES, MAX_STATE};

/// A difference that is not complete yet.
#[derive(Default)]
pub(in crate::control) struct Staged {
    pub(super) changes: BTreeMap<String, Option<Box<RawValue>>>,
    pub(super) size: usize,
}

impl Staged {
    pub(in crate::control) fn upsert(&mut self, upsert: Upsert) -> Result<(), FollowedError> {
        self.grow(upsert.key.len() + upsert.value.get().len())?;
        self.changes.insert(upsert.key, Some(upsert.value));
        Ok(())
    }

    pub(in crate::control) fn delete(&mut self, key: String) -> Result<(), FollowedError> {
        self.grow(key.len())?;
        self.changes.insert(key, None);
        Ok(())
    }

    pub(in crate::control) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether it says more than where endpoints are.
    pub(in crate::control) fn is_about_more_than_endpoints(&self) -> bool {
        let is_endpoint =
            |key: &String| key.starts_with("WorkloadEntry/") || key.starts_with("EndpointAddresses/");
        !self.changes.keys().all(is_endpoint)
    }

    fn grow(&mut self, size: usize) -> Result<(), FollowedError> {
        self.size += size;
        if self.size > MAX_STATE {
            return Err(FollowedError::TooLarge);
        }
        // A difference may replace every entry with another.
        if self.changes.len() > 2 * MAX_ENTRIES { Err(FollowedError::TooMany) } else { Ok(()) }
    }
}
