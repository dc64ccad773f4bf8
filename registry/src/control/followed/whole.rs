//! States that a source puts together itself, and hands over whole: the same file keeps the last one that was in force.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::to_raw_value;

use super::super::digest::Digest;
use super::super::message::Complete;
use super::super::subscription::Subscription;
use super::{Followed, FollowedError, Staged};
use crate::control::message::Upsert;

/// Why a whole state is not what is in force, or not on the disk.
#[derive(Debug, thiserror::Error)]
pub enum WholeError {
    /// It was refused; the reason.
    #[error("{0}")]
    Refused(String),
    /// It is in force, and an agent that starts anew starts from an older one.
    #[error("the state in force is not on the disk: {0}")]
    Unsaved(FollowedError),
    /// It is larger than an agent holds.
    #[error(transparent)]
    Bounds(FollowedError),
}

impl Followed {
    /// Whether what is held are these values, of that version. Each is compared by itself: a mesh of values is large.
    pub fn is_of(&self, values: &BTreeMap<String, Value>, version: u64) -> bool {
        let is_held = |(key, value): (&String, &Value)| {
            let held = self.entries.get(key).map(|entry| entry.text.get());
            held.is_some_and(|held| to_raw_value(value).is_ok_and(|text| text.get() == held))
        };
        self.version() == version && self.entries.len() == values.len() && values.iter().all(is_held)
    }

    /// Has `publish` put a state in force, and keeps it in the file then. What was refused changes nothing. It writes, and
    /// so blocks.
    pub fn put_in_force(
        &mut self,
        entries: &BTreeMap<String, Value>,
        version: u64,
        publish: impl FnOnce() -> Result<(), String>,
    ) -> Result<(), WholeError> {
        let (mut staged, mut digest) = (Staged::default(), Digest::default());
        for (key, value) in entries {
            let text = to_raw_value(value).expect("JSON is written as JSON");
            digest = digest.plus(Digest::of(key, text.get()));
            staged.upsert(Upsert { key: key.clone(), value: text }).map_err(WholeError::Bounds)?;
        }
        let complete = Complete { version, digest: digest.to_string(), full: true, subscribed: 0 };
        let former = self.apply(staged, &complete, 0, &Subscription::All).map_err(WholeError::Bounds)?;
        if let Err(reason) = publish() {
            self.refused(former);
            return Err(WholeError::Refused(reason));
        }
        self.accepted();
        match self.save() {
            Some(save) => save().map_err(WholeError::Unsaved),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_refused_is_not_what_an_agent_starts_from() {
        let place = tempfile::tempdir().expect("a directory");
        let file = place.path().join("state");
        let mut followed = Followed::new(Some(file.clone()));
        let state = |n: u64| BTreeMap::from([(format!("a/{n}"), json!({ "n": n }))]);
        followed.put_in_force(&state(1), 1, || Ok(())).expect("in force");
        let refused = followed.put_in_force(&state(2), 2, || Err("no".to_owned()));
        assert!(matches!(refused, Err(WholeError::Refused(_))));
        let again = Followed::load(&file).expect("a state");
        assert_eq!((again.values(), again.version()), (state(1), 1));
        let check = |values: BTreeMap<String, Value>, version: u64, expected: bool| {
            assert_eq!(again.is_of(&values, version), expected, "{values:?} {version}");
        };
        check(state(1), 1, true);
        check(state(1), 2, false);
        check(state(2), 1, false);
        check(BTreeMap::from([("a/1".to_owned(), json!({ "n": 2 }))]), 1, false);
        check(state(1).into_iter().chain(state(2)).collect(), 1, false);
        followed.put_in_force(&state(3), 3, || Ok(())).expect("in force");
        assert_eq!(Followed::load(&file).expect("a state").values(), state(3));
    }
}
