//! Values that several parts have: counts, shares, times, names of settings.

use std::sync::Arc;
use std::time::Duration;

use baremesh_model::decimal::Decimal;
use serde_json::{Map, Value as Json};

use crate::diagnostic::quote;
use crate::format::decode::{At, Decoder};
use crate::format::durations;
use crate::format::tree::Value;

/// The largest number that Istio's `int32` fields hold.
const MOST: i64 = i32::MAX as i64;

/// A number of things, from 0.
pub(super) fn count(d: &mut Decoder<'_>, at: &At<'_>) -> Option<u32> {
    let number = d.integer(at)?;
    let count = u32::try_from(number).ok().filter(|_| number <= MOST);
    if count.is_none() {
        d.invalid(at, format!("Invalid value: {number}: must be between 0 and {MOST}"), "");
    }
    count
}

/// A number of failures in a row.
pub(super) fn small_count(d: &mut Decoder<'_>, at: &At<'_>) -> Option<u16> {
    let number = d.integer(at)?;
    let count = u16::try_from(number).ok();
    if count.is_none() {
        d.invalid(at, format!("Invalid value: {number}: must be between 0 and {}", u16::MAX), "");
    }
    count
}

/// A whole percentage.
pub(super) fn whole_percent(d: &mut Decoder<'_>, at: &At<'_>) -> Option<u8> {
    let number = d.integer(at)?;
    let percent = u8::try_from(number).ok().filter(|percent| *percent <= 100);
    if percent.is_none() {
        d.invalid(at, format!("Invalid value: {number}: must be between 0 and 100"), "");
    }
    percent
}

/// A number with a fraction, from 0.
pub(super) fn decimal(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Decimal> {
    let text: Arc<str> = match &at.node.value {
        Value::Integer(number) => number.to_string().into(),
        Value::Other(text) => Arc::clone(text),
        _ => {
            d.invalid(
                at,
                format!("expected a number, found {}", at.node.type_name()),
                "write it without quotes",
            );
            return None;
        }
    };
    let number = text.parse().map_err(|error| d.invalid(at, format!("Invalid value: {error}"), ""));
    number.ok()
}

/// A percentage with a fraction.
pub(super) fn percent(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Decimal> {
    let percent = decimal(d, at)?;
    if percent > Decimal::whole(100) {
        d.invalid(at, format!("Invalid value: {percent}: must be between 0 and 100"), "");
        return None;
    }
    Some(percent)
}

/// A duration, from zero.
pub(super) fn duration(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Duration> {
    let text = d.text(at)?;
    let duration = durations::parse(text);
    if duration.is_none() {
        let message = format!("{} is not a duration", quote(text));
        d.invalid(
            at,
            message,
            "write a number and a unit, such as 10s, 1.5s, 250ms or 1h; ten years at most",
        );
    }
    duration
}

/// A duration of at least a millisecond.
pub(super) fn time(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Duration> {
    let time = duration(d, at)?;
    if time < Duration::from_millis(1) {
        d.invalid(at, "duration must be greater than 1ms", "");
        return None;
    }
    Some(time)
}

/// One of several names.
pub(super) fn choice<T: Copy>(d: &mut Decoder<'_>, at: &At<'_>, names: &[(&str, T)]) -> Option<T> {
    let text = d.text(at)?;
    let found = names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    if found.is_none() {
        let all: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        d.invalid(at, format!("Unsupported value: {}", quote(text)), &format!("use {}", all.join(", ")));
    }
    found
}

/// The only one of several fields that is written; two are an error.
pub(super) fn only<'n, const N: usize>(
    d: &mut Decoder<'_>,
    fields: [(&'static str, Option<At<'n>>); N],
) -> Option<Option<(&'static str, At<'n>)>> {
    let mut written = fields.into_iter().filter_map(|(name, at)| Some((name, at?)));
    let first = written.next();
    if let (Some((name, _)), Some((_, second))) = (&first, written.next()) {
        d.invalid(&second, format!("only one of this and `{name}` can be set"), "remove one of the two");
        return None;
    }
    Some(first)
}

/// What is being written: only what is set.
#[derive(Default)]
pub(super) struct Out(Map<String, Json>);

impl Out {
    pub(super) fn put(&mut self, key: &str, value: impl Into<Json>) {
        self.0.insert(key.to_owned(), value.into());
    }

    pub(super) fn put_some(&mut self, key: &str, value: Option<impl Into<Json>>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    pub(super) fn put_time(&mut self, key: &str, value: Option<Duration>) {
        self.put_some(key, value.map(durations::format));
    }

    pub(super) fn put_text(&mut self, key: &str, value: Option<&Arc<str>>) {
        self.put_some(key, value.map(|text| &**text));
    }

    /// As an object, even an empty one.
    pub(super) fn object(self) -> Json {
        Json::Object(self.0)
    }

    /// As an object, unless nothing is set.
    pub(super) fn some(self) -> Option<Json> {
        (!self.0.is_empty()).then_some(Json::Object(self.0))
    }
}

/// A number with a fraction; whole ones without a point.
pub(super) fn number(decimal: Decimal) -> Json {
    // What `Display` writes is a number of JSON.
    serde_json::from_str(&decimal.to_string()).unwrap_or_default()
}
