//! `loadBalancer`.

use std::sync::Arc;

use baremesh_model::destination_rule::{
    Algorithm, ConsistentHash, Cookie, HashKey, HashTable, LoadBalancer, Warmup,
};
use baremesh_model::http::headers;
use serde_json::{Value as Json, json};

use super::locality;
use super::values::{Out, count, decimal, duration, number, only, percent, time};
use crate::diagnostic::{Code, quote};
use crate::format::decode::{At, Decoder, Fields, optional};

pub(super) fn decode(d: &mut Decoder<'_>, at: &At<'_>) -> Option<LoadBalancer> {
    let fields = d.fields(at)?;
    let algorithm = algorithm(d, &fields);
    let warmup = warmup(d, &fields);
    let locality = optional(fields.take("localityLbSetting"), |at| locality::decode(d, &at));
    Some(LoadBalancer { algorithm: algorithm?, warmup: warmup?, locality: locality? })
}

fn algorithm(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<Algorithm> {
    let written = [("simple", fields.take("simple")), ("consistentHash", fields.take("consistentHash"))];
    match only(d, written)? {
        Some(("simple", at)) => simple(d, &at),
        Some((_, at)) => consistent_hash(d, &at).map(Algorithm::ConsistentHash),
        None => Some(Algorithm::default()),
    }
}

fn simple(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Algorithm> {
    match d.text(at)? {
        "UNSPECIFIED" | "LEAST_REQUEST" | "LEAST_CONN" => Some(Algorithm::LeastRequest),
        "ROUND_ROBIN" => Some(Algorithm::RoundRobin),
        "RANDOM" => Some(Algorithm::Random),
        "PASSTHROUGH" => Some(Algorithm::Passthrough),
        other => {
            let message = format!("Unsupported value: {}", quote(other));
            d.invalid(at, message, "use LEAST_REQUEST, ROUND_ROBIN, RANDOM or PASSTHROUGH");
            None
        }
    }
}

fn consistent_hash(d: &mut Decoder<'_>, at: &At<'_>) -> Option<ConsistentHash> {
    let fields = d.fields(at)?;
    let keys = ["httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"];
    let key = match only(d, keys.map(|name| (name, fields.take(name))))? {
        Some(("httpHeaderName", at)) => header(d, &at),
        Some(("httpCookie", at)) => cookie(d, &at).map(HashKey::Cookie),
        Some(("useSourceIp", at)) => source_ip(d, &at),
        Some((_, at)) => d.text(&at).map(|name| HashKey::QueryParameter(name.into())),
        None => {
            let help = "set httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName";
            d.invalid(at, "a hash key is required", help);
            None
        }
    };
    let tables = ["ringHash", "maglev", "minimumRingSize"];
    let table = match only(d, tables.map(|name| (name, fields.take(name))))? {
        Some(("ringHash", at)) => {
            let fields = d.fields(&at)?;
            optional(fields.take("minimumRingSize"), |at| ring(d, &at)).map(Option::unwrap_or_default)
        }
        Some(("maglev", at)) => maglev(d, &at),
        Some((_, at)) => ring(d, &at),
        None => Some(HashTable::default()),
    };
    Some(ConsistentHash { key: key?, table: table? })
}

fn header(d: &mut Decoder<'_>, at: &At<'_>) -> Option<HashKey> {
    let name = d.text(at)?;
    // `:authority` is the one name that is no token.
    if name != ":authority" && !name.bytes().all(headers::is_token) {
        d.invalid(at, format!("{} is not the name of a header", quote(name)), "");
        return None;
    }
    Some(HashKey::Header(name.to_ascii_lowercase().into()))
}

fn source_ip(d: &mut Decoder<'_>, at: &At<'_>) -> Option<HashKey> {
    if d.boolean(at)? {
        return Some(HashKey::SourceIp);
    }
    d.invalid(at, "a hash key is required", "set it to true, or use another key");
    None
}

fn cookie(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Cookie> {
    let fields = d.fields(at)?;
    let name = d.required(&fields, "name").and_then(|at| token(d, &at));
    let path = optional(fields.take("path"), |at| attribute(d, &at));
    let ttl = optional(fields.take("ttl"), |at| duration(d, &at));
    let attributes = optional(fields.take("attributes"), |at| {
        d.each(&at, |d, at| {
            let fields = d.fields(at)?;
            let name = d.required(&fields, "name").and_then(|at| token(d, &at));
            let value = optional(fields.take("value"), |at| attribute(d, &at));
            Some((name?, value?))
        })
    });
    Some(Cookie { name: name?, path: path?, ttl: ttl?, attributes: attributes?.unwrap_or_default() })
}

/// RFC 6265, section 4.1.1: a cookie's name is a token.
fn token(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    if !text.bytes().all(headers::is_token) {
        d.invalid(at, format!("{} is not the name of a cookie", quote(text)), "");
        return None;
    }
    Some(text.into())
}

/// What stands after an attribute's `=`: anything but what ends it.
fn attribute(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    if !text.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b';') {
        d.invalid(at, format!("{} does not fit in a cookie", quote(text)), "");
        return None;
    }
    Some(text.into())
}

fn ring(d: &mut Decoder<'_>, at: &At<'_>) -> Option<HashTable> {
    let size = count(d, at)?;
    if size > HashTable::MAX_RING_SIZE {
        d.invalid(at, format!("Invalid value: {size}: must be at most {}", HashTable::MAX_RING_SIZE), "");
        return None;
    }
    // In Istio's proto 0 and nothing are the same.
    let minimum_size = if size == 0 { HashTable::DEFAULT_RING_SIZE } else { size };
    Some(HashTable::Ring { minimum_size })
}

fn maglev(d: &mut Decoder<'_>, at: &At<'_>) -> Option<HashTable> {
    let fields = d.fields(at)?;
    let Some(at) = fields.take("tableSize") else {
        return Some(HashTable::Maglev { size: HashTable::DEFAULT_MAGLEV_SIZE });
    };
    let size = count(d, &at)?;
    if size == 0 {
        return Some(HashTable::Maglev { size: HashTable::DEFAULT_MAGLEV_SIZE });
    }
    if size > HashTable::MAX_MAGLEV_SIZE || !is_prime(size) {
        let message = format!("Invalid value: {size}: tableSize must be a prime number, at most 5000011");
        d.invalid(&at, message, "65537 is one");
        return None;
    }
    Some(HashTable::Maglev { size })
}

fn is_prime(number: u32) -> bool {
    let small = |divisor: &u32| divisor * divisor <= number;
    number >= 2 && (2..).take_while(small).all(|divisor| !number.is_multiple_of(divisor))
}

/// `warmup`, or the older `warmupDurationSecs`.
fn warmup(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<Option<Warmup>> {
    let written = [("warmup", fields.take("warmup")), ("old", fields.take("warmupDurationSecs"))];
    let (length, least, aggression) = match only(d, written)? {
        None => return Some(None),
        Some(("old", at)) => (time(d, &at), Some(None), Some(None)),
        Some((_, at)) => {
            let inner = d.fields(&at)?;
            let length = match inner.take("duration") {
                Some(at) => time(d, &at),
                None => {
                    let message = format!("`{}.duration`: Required value", at.path);
                    d.findings.error(at.node.span, Code::InvalidValue, message, "set how long it takes");
                    None
                }
            };
            let least = optional(inner.take("minimumPercent"), |at| percent(d, &at));
            (length, least, optional(inner.take("aggression"), |at| decimal(d, &at)))
        }
    };
    Some(Some(Warmup {
        duration: length?,
        minimum_percent: least?.unwrap_or(Warmup::DEFAULT_MINIMUM_PERCENT),
        aggression: aggression?.unwrap_or(Warmup::DEFAULT_AGGRESSION),
    }))
}

pub(super) fn encode(balancer: &LoadBalancer) -> Json {
    let mut out = Out::default();
    match &balancer.algorithm {
        Algorithm::LeastRequest => out.put("simple", "LEAST_REQUEST"),
        Algorithm::RoundRobin => out.put("simple", "ROUND_ROBIN"),
        Algorithm::Random => out.put("simple", "RANDOM"),
        Algorithm::Passthrough => out.put("simple", "PASSTHROUGH"),
        Algorithm::ConsistentHash(hash) => out.put("consistentHash", encode_hash(hash)),
    }
    if let Some(warmup) = &balancer.warmup {
        let mut part = Out::default();
        part.put_time("duration", Some(warmup.duration));
        part.put("minimumPercent", number(warmup.minimum_percent));
        part.put("aggression", number(warmup.aggression));
        out.put("warmup", part.object());
    }
    out.put_some("localityLbSetting", balancer.locality.as_ref().map(locality::encode));
    out.object()
}

fn encode_hash(hash: &ConsistentHash) -> Json {
    let mut out = Out::default();
    match &hash.key {
        HashKey::Header(name) => out.put("httpHeaderName", &**name),
        HashKey::Cookie(cookie) => out.put("httpCookie", encode_cookie(cookie)),
        HashKey::SourceIp => out.put("useSourceIp", true),
        HashKey::QueryParameter(name) => out.put("httpQueryParameterName", &**name),
    }
    match hash.table {
        HashTable::Ring { minimum_size } => out.put("ringHash", json!({ "minimumRingSize": minimum_size })),
        HashTable::Maglev { size } => out.put("maglev", json!({ "tableSize": size })),
    }
    out.object()
}

fn encode_cookie(cookie: &Cookie) -> Json {
    let mut out = Out::default();
    out.put("name", &*cookie.name);
    out.put_text("path", cookie.path.as_ref());
    out.put_time("ttl", cookie.ttl);
    let attribute = |(name, value): &(Arc<str>, Option<Arc<str>>)| {
        let mut part = Out::default();
        part.put("name", &**name);
        part.put_text("value", value.as_ref());
        part.object()
    };
    if !cookie.attributes.is_empty() {
        out.put("attributes", cookie.attributes.iter().map(attribute).collect::<Vec<_>>());
    }
    out.object()
}
