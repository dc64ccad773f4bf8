//! One object of Consul's, read field by field. Keys are taken in the API's form (`PathExact`) and in that of HCL
//! (`path_exact`); a value that says nothing (null, `""`, 0, false, an empty list or object) counts as not written, as
//! Consul's API writes all fields. What nobody has asked for in the end is refused by its name.

use std::cell::RefCell;
use std::time::Duration;

use serde_json::{Map, Value as Json};

use super::Findings;
use crate::format::duration;

/// An object within an entry.
#[derive(Debug)]
pub(super) struct Fields<'j> {
    /// The entry, for people.
    pub(super) entry: String,
    path: String,
    values: Vec<(&'j str, &'j Json)>,
    /// Which of `values` somebody asked for.
    asked: RefCell<Vec<bool>>,
}

/// The key in the form in which keys are compared.
fn plain(key: &str) -> String {
    key.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect()
}

/// Whether a value says nothing.
fn says_nothing(value: &Json) -> bool {
    match value {
        Json::Null | Json::Bool(false) => true,
        Json::Bool(true) => false,
        Json::Number(number) => number.as_f64() == Some(0.0),
        Json::String(text) => text.is_empty() || text == "0s",
        Json::Array(items) => items.iter().all(says_nothing),
        Json::Object(fields) => fields.values().all(says_nothing),
    }
}

impl<'j> Fields<'j> {
    /// The fields of a whole entry.
    pub(super) fn of_entry(entry: impl Into<String>, map: &'j Map<String, Json>) -> Self {
        Self::new(entry.into(), String::new(), map)
    }

    fn new(entry: String, path: String, map: &'j Map<String, Json>) -> Self {
        let values: Vec<_> = map.iter().map(|(key, value)| (key.as_str(), value)).collect();
        Self { entry, path, asked: RefCell::new(vec![false; values.len()]), values }
    }

    /// Where a field stands, such as `Routes[0].Match.HTTP`.
    pub(super) fn place(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn written(&self, key: &str) -> Option<&'j Json> {
        let asked_for = plain(key);
        let index = self.values.iter().position(|(key, _)| plain(key) == asked_for)?;
        if let Some(asked) = self.asked.borrow_mut().get_mut(index) {
            *asked = true;
        }
        self.values.get(index).map(|(_, value)| *value)
    }

    /// A value, where it says something.
    pub(super) fn value(&self, key: &str) -> Option<&'j Json> {
        self.written(key).filter(|value| !says_nothing(value))
    }

    /// Whether the field stands there, whatever it says: a zero may mean something.
    pub(super) fn stands(&self, key: &str) -> Option<&'j Json> {
        self.written(key).filter(|value| !value.is_null())
    }

    /// Refuses a field.
    pub(super) fn refuse(
        &self,
        f: &mut Findings,
        key: &str,
        reason: impl Into<String>,
        help: impl Into<String>,
    ) {
        f.refuse(&self.entry, Some(&self.place(key)), reason, help);
    }

    fn wrong(&self, f: &mut Findings, key: &str, expected: &str) {
        self.refuse(f, key, format!("is not {expected}"), "is it the JSON of Consul's API?");
    }

    /// A text.
    pub(super) fn text(&self, f: &mut Findings, key: &str) -> Option<&'j str> {
        let value = self.value(key)?;
        let text = value.as_str();
        if text.is_none() {
            self.wrong(f, key, "a text");
        }
        text
    }

    /// Whether a flag is set.
    pub(super) fn flag(&self, f: &mut Findings, key: &str) -> bool {
        match self.value(key) {
            None => false,
            Some(Json::Bool(set)) => *set,
            Some(_) => {
                self.wrong(f, key, "true or false");
                false
            }
        }
    }

    /// A whole number that is at least 1; 0 is the same as none.
    pub(super) fn number(&self, f: &mut Findings, key: &str) -> Option<u64> {
        let value = self.value(key)?;
        let number = value.as_u64();
        if number.is_none() {
            self.wrong(f, key, "a whole number that is not negative");
        }
        number
    }

    /// A length of time: a text such as `5s`, or nanoseconds.
    pub(super) fn duration(&self, f: &mut Findings, key: &str) -> Option<Duration> {
        let read = match self.value(key)? {
            Json::String(text) => duration::parse(text),
            Json::Number(number) => number.as_u64().map(Duration::from_nanos),
            _ => None,
        };
        if read.is_none() {
            self.wrong(f, key, "a length of time");
        }
        read
    }

    /// A list of texts.
    pub(super) fn texts(&self, f: &mut Findings, key: &str) -> Vec<&'j str> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let texts: Option<Vec<_>> =
            value.as_array().and_then(|items| items.iter().map(Json::as_str).collect());
        texts.unwrap_or_else(|| {
            self.wrong(f, key, "a list of texts");
            Vec::new()
        })
    }

    /// An object with something in it, zeros too: some of them mean something. HCL's blocks are lists of one in JSON.
    pub(super) fn object(&self, f: &mut Findings, key: &str) -> Option<Fields<'j>> {
        let map = match self.stands(key)? {
            Json::Object(map) if map.is_empty() => return None,
            Json::Array(items) if items.is_empty() => return None,
            Json::Object(map) => Some(map),
            Json::Array(items) => match &items[..] {
                [Json::Object(map)] => Some(map),
                _ => None,
            },
            _ => None,
        };
        if map.is_none() {
            self.wrong(f, key, "an object");
        }
        map.map(|map| Fields::new(self.entry.clone(), self.place(key), map))
    }

    /// A list of objects. A single one may stand without the list.
    pub(super) fn objects(&self, f: &mut Findings, key: &str) -> Vec<Fields<'j>> {
        let items = match self.value(key) {
            None => return Vec::new(),
            Some(Json::Array(items)) => items.iter().collect(),
            Some(other) => vec![other],
        };
        let place = |index: usize| format!("{}[{index}]", self.place(key));
        let maps: Option<Vec<_>> = items.into_iter().map(Json::as_object).collect();
        let Some(maps) = maps else {
            self.wrong(f, key, "a list of objects");
            return Vec::new();
        };
        let each = maps.into_iter().enumerate();
        each.map(|(index, map)| Fields::new(self.entry.clone(), place(index), map)).collect()
    }

    /// An object whose keys are names that somebody chose, with the object of each.
    pub(super) fn named(&self, f: &mut Findings, key: &str) -> Vec<(&'j str, Fields<'j>)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(map) = value.as_object() else {
            self.wrong(f, key, "an object");
            return Vec::new();
        };
        let mut named = Vec::new();
        for (name, value) in map {
            match (value, value.as_array().map(Vec::as_slice)) {
                (Json::Object(map), _) | (_, Some([Json::Object(map)])) => {
                    let place = format!("{}[{name}]", self.place(key));
                    named.push((name.as_str(), Fields::new(self.entry.clone(), place, map)));
                }
                _ => self.wrong(f, key, "an object of objects"),
            }
        }
        named
    }

    /// Texts by names that somebody chose.
    pub(super) fn pairs(&self, f: &mut Findings, key: &str) -> Vec<(&'j str, &'j str)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let pairs: Option<Vec<_>> = value
            .as_object()
            .and_then(|map| map.iter().map(|(name, value)| Some((name.as_str(), value.as_str()?))).collect());
        pairs.unwrap_or_else(|| {
            self.wrong(f, key, "an object of texts");
            Vec::new()
        })
    }

    /// Fields that are Consul's own bookkeeping, or words for people: they change nothing for traffic.
    pub(super) fn pass_over(&self, keys: &[&str]) {
        for key in keys {
            self.written(key);
        }
    }

    /// Refuses a field that says something.
    pub(super) fn unsaid(&self, f: &mut Findings, key: &str, reason: &str, help: &str) {
        if self.value(key).is_some() {
            self.refuse(f, key, reason, help);
        }
    }

    /// Refuses what the open source Consul does not have, or another mesh is needed for.
    pub(super) fn at_home(&self, f: &mut Findings) {
        for key in ["Namespace", "Partition"] {
            if self.text(f, key).is_some_and(|name| name != "default") {
                let reason = "is Consul Enterprise's: each namespace and partition is converted by itself";
                self.refuse(f, key, reason, "export it alone, and give --namespace");
            }
        }
        for key in ["Peer", "SamenessGroup"] {
            self.unsaid(
                f,
                key,
                "other clusters have trust domains of their own here",
                "see docs/federation.md",
            );
        }
    }

    /// Refuses what nobody asked for and says something.
    pub(super) fn finish(self, f: &mut Findings) {
        let asked = self.asked.borrow();
        for ((key, value), asked) in self.values.iter().zip(asked.iter()) {
            if !asked && !says_nothing(value) {
                let help =
                    "remove it if it may be without effect; docs/consul-migration.md lists what is taken";
                f.refuse(&self.entry, Some(&self.place(key)), "is not a field that can be converted", help);
            }
        }
    }
}

/// A length of time as resources write it; `None` if it is finer than a millisecond.
pub(super) fn written(duration: Duration) -> Option<String> {
    let exact = duration.subsec_nanos().is_multiple_of(1_000_000);
    exact.then(|| match duration.as_millis() {
        ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    })
}
