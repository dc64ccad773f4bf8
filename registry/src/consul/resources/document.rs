//! The documents: an index, and the names of keys.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use baremesh_model::mesh::Kind;
use baremesh_model::name::Label;
use serde::{Deserialize, Serialize};

use crate::resource::KINDS;

/// How many hexadecimal digits of a text's SHA-256 its key has.
const HASH_DIGITS: usize = 16;

/// What is in force. Fields of later versions are left alone by readers; a writer keeps to those it knows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Index {
    /// Goes up with every change.
    pub(super) version: u64,
    /// The hash of each resource's text, by `Kind/namespace/name`.
    pub(super) resources: BTreeMap<String, String>,
    /// What is named no longer and not deleted yet, as `Kind/namespace/name/hash`, with the version that named it last.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) retired: BTreeMap<String, u64>,
}

impl Index {
    pub(super) fn read(text: &[u8]) -> Result<Self, String> {
        let index: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let is_hash = |text: &str| {
            text.len() == HASH_DIGITS
                && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let bad = index.resources.iter().find(|(id, hash)| !is_id(id) || !is_hash(hash));
        let split = |text: &str| text.rsplit_once('/').is_some_and(|(id, hash)| is_id(id) && is_hash(hash));
        let bad = bad.map(|(id, _)| id).or_else(|| index.retired.keys().find(|key| !split(key)));
        match bad {
            Some(id) => Err(format!("`{id}` names no resource")),
            None => Ok(index),
        }
    }

    pub(super) fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text keys and plain values")
    }

    /// The index that follows, in which `id`s have these hashes or are gone.
    pub(super) fn with(&self, changes: &BTreeMap<String, Option<String>>) -> Self {
        let mut next = self.clone();
        next.version += 1;
        for (id, hash) in changes {
            let before = match hash {
                Some(hash) => next.resources.insert(id.clone(), hash.clone()),
                None => next.resources.remove(id),
            };
            if let Some(before) = before.filter(|before| hash.as_ref() != Some(before)) {
                next.retired.insert(format!("{id}/{before}"), self.version);
            }
        }
        next
    }

    /// What may be deleted while this index is in force: what neither it nor the one before named.
    pub(super) fn deletable(&self) -> Vec<String> {
        let old = |version: u64| version + 1 < self.version;
        self.retired.iter().filter(|(_, version)| old(**version)).map(|(key, _)| key.clone()).collect()
    }
}

/// Whether it is `Kind/namespace/name`, of a kind of any version: names of keys are made of it.
pub(super) fn is_id(id: &str) -> bool {
    let mut parts = id.split('/');
    let kind = |text: &str| {
        KINDS.iter().any(|kind: &Kind| kind.name() == text)
            || (text.len() <= 63 && !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric()))
    };
    let mut label = || parts.next().map(str::to_owned);
    let (first, namespace, name, none) = (label(), label(), label(), label());
    let is_label = |text: Option<String>| text.is_some_and(|text| Label::new(&text).is_ok());
    first.is_some_and(|text| kind(&text)) && is_label(namespace) && is_label(name) && none.is_none()
}

/// The first digits of a text's SHA-256.
pub(super) fn hash_of(text: &[u8]) -> String {
    let whole = digest(&SHA256, text);
    whole.as_ref().iter().take(HASH_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect()
}

/// The key of one version of a resource.
pub(super) fn key_of(resources: &str, id: &str, hash: &str) -> String {
    format!("{resources}{id}/{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(digit: char) -> String {
        std::iter::repeat_n(digit, HASH_DIGITS).collect()
    }

    #[test]
    fn what_is_named_no_longer_outlives_the_next_index() {
        let id = "Service/default/a".to_owned();
        let first = Index::default().with(&[(id.clone(), Some(hash('1')))].into());
        let second = first.with(&[(id.clone(), Some(hash('2')))].into());
        assert_eq!((second.version, second.deletable()), (2, vec![]), "readers of the first may be late");
        let third = second.with(&BTreeMap::new());
        assert_eq!(third.deletable(), [format!("{id}/{}", hash('1'))]);
        let same = second.with(&[(id.clone(), Some(hash('2')))].into());
        assert_eq!(same.retired, second.retired);
        let gone = second.with(&[(id, None)].into());
        assert_eq!(gone.retired.len(), 2);
        assert_eq!(Index::read(&gone.write()), Ok(gone));
    }

    #[test]
    fn no_key_is_made_of_what_names_no_resource() {
        let check = |id: &str, expected: bool| assert_eq!(is_id(id), expected, "{id}");
        check("Service/default/a", true);
        check("KindOfLater/default/a", true);
        for bad in
            ["", "Service", "Service/a", "Service/../a", "Service/a/b/c", "Service/A/b", "Ser vice/a/b"]
        {
            check(bad, false);
        }
        for text in [
            "{}",
            "[]",
            "{\"version\":1,\"resources\":{\"Service/default/a\":\"x\"}}",
            "{\"version\":1,\"resources\":{\"a\":\"0000000000000000\"}}",
            "{\"version\":1,\"resources\":{},\"retired\":{\"index\":0}}",
        ] {
            assert!(Index::read(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(hash_of(b"abc"), "ba7816bf8f01cfea");
    }
}
