//! `RateLimit`: how many requests are let through.

use std::sync::Arc;
use std::time::Duration;

use baremesh_model::authorization::Enforcement;
use baremesh_model::http::headers::is_token;
use baremesh_model::rate_limit::{KeyPart, Limit, LimitError, MAX_KEY_PARTS, RateLimit, Traffic};
use baremesh_model::token::ClaimPath;
use baremesh_model::virtual_service::{HostPattern, HttpMatch};
use serde_json::{Map, Value as Json, json};

use super::decode::{At, Decoder, Fields, optional};
use super::document::Metadata;
use super::fields::{Field, enforced, refused};
use super::tree::Value;
use super::{duration, virtual_service};
use crate::diagnostic::{Code, quote};

const EXACT: &str = "the whole text, case counts";
const PREFIX: &str = "text that starts so; not by path segments";
const REGEX: &str = "RE2's syntax; must match the whole text";

/// The fields of the kind.
pub(super) static FIELDS: &[Field] = &[
    enforced(
        "selector",
        "the workloads that requests arrive at, whose agent enforces the limit; without `selector` and `host` all of \
         the namespace",
    ),
    enforced("selector.matchLabels", "labels that a workload must carry, all of them"),
    enforced(
        "host",
        "instead of `selector`: the service that workloads of the namespace send requests to; the callers' agents \
         enforce the limit",
    ),
    enforced("match", "any of these blocks, everything in a block; all requests without"),
    enforced("match[].uri", "the path without the query, normalised as MeshConfig says"),
    enforced("match[].uri.exact", "the whole path"),
    enforced("match[].uri.prefix", "a path that starts so; not by segments"),
    enforced("match[].uri.regex", REGEX),
    enforced("match[].ignoreUriCase", "`exact` and `prefix` of `uri` in either case"),
    enforced("match[].scheme", "http or https"),
    enforced("match[].scheme.exact", EXACT),
    enforced("match[].scheme.prefix", PREFIX),
    enforced("match[].scheme.regex", REGEX),
    enforced("match[].method", "the method"),
    enforced("match[].method.exact", EXACT),
    enforced("match[].method.prefix", PREFIX),
    enforced("match[].method.regex", REGEX),
    enforced("match[].authority", "the authority as it came, with its port if it had one"),
    enforced("match[].authority.exact", EXACT),
    enforced("match[].authority.prefix", PREFIX),
    enforced("match[].authority.regex", REGEX),
    enforced("match[].headers", "fields that must be there and match; `{}` or the regex `*`: be there"),
    enforced("match[].headers[].exact", EXACT),
    enforced("match[].headers[].prefix", PREFIX),
    enforced("match[].headers[].regex", REGEX),
    enforced("match[].withoutHeaders", "fields that must not match; one that is missing counts as empty"),
    enforced("match[].withoutHeaders[].exact", EXACT),
    enforced("match[].withoutHeaders[].prefix", PREFIX),
    enforced("match[].withoutHeaders[].regex", REGEX),
    enforced("match[].queryParams", "parameters that must be there and match, as they came"),
    enforced("match[].queryParams[].exact", EXACT),
    enforced("match[].queryParams[].prefix", PREFIX),
    enforced("match[].queryParams[].regex", REGEX),
    enforced("match[].port", "the workload's port; with `host` the service's"),
    enforced(
        "match[].sourceNamespace",
        "the namespace of the caller's identity; a caller without one could be from there, and counts",
    ),
    refused("match[].name", "records have the RateLimit's own name: remove it"),
    refused("match[].sourceLabels", "the called side knows callers by their identity: use `sourceNamespace`"),
    refused("match[].gateways", "a limit holds at the agents beside workloads: remove it"),
    enforced("limit", "how many"),
    enforced("limit.requests", "requests in each `per`, at most 1000000 a second"),
    enforced("limit.per", "a duration, such as `1s`, `1m` or `24h`"),
    enforced("limit.burst", "the most at once, `requests` without; they must come back within 366 days"),
    enforced(
        "key",
        "what requests are counted by, a list of `sourceIdentity`, `remoteAddress`, `path`, `{ header: name }` and \
         `{ claim: name }`; all together without",
    ),
    enforced(
        "key[].header",
        "all values of this field; `host` is the authority. Requests without it are one",
    ),
    enforced(
        "key[].claim",
        "this claim of the token that a RequestAuthentication had verified, such as `sub` or `[realm][groups]`; not with \
         `host`. Requests without it are one",
    ),
    enforced("dryRun", "true: refuses nothing, is logged and counted"),
];

pub(super) fn decode(d: &mut Decoder<'_>, metadata: &Metadata<'_>, spec: &Fields<'_>) -> Option<RateLimit> {
    let selector = d.selector(spec);
    let host = optional(spec.take("host"), |at| host(d, &at));
    if let (Some(_), Some(at)) = (spec.take("selector"), spec.take("host")) {
        let help = "write two: `selector` holds at the called side, `host` at the calling side";
        d.invalid(&at, "`selector` and `host` cannot both be set", help);
    }
    let matches = optional(spec.take("match"), |at| matches(d, &at, metadata));
    let limit = d.required(spec, "limit").and_then(|at| limit(d, &at));
    let parts = optional(spec.take("key"), |at| parts(d, &at));
    let dry = optional(spec.take("dryRun"), |at| d.boolean(&at));
    let (host, matches, parts) = (host?, matches?.unwrap_or_default(), parts?.unwrap_or_default());
    let asks_for_claims = matches.iter().any(HttpMatch::asks_for_claims)
        || parts.iter().any(|part| matches!(part, KeyPart::Claim(_)));
    if let (true, true, Some(at)) = (host.is_some(), asks_for_claims, spec.take("host")) {
        let help = "use `selector`: tokens are verified at the called side";
        d.invalid(&at, "the calling side knows no claims", help);
        return None;
    }
    let traffic = match host {
        Some(host) => Traffic::ToHost(host),
        None => Traffic::ToWorkloads(selector?),
    };
    let enforcement = if dry?.unwrap_or(false) { Enforcement::DryRun } else { Enforcement::Enforced };
    Some(RateLimit { key: metadata.key.clone(), traffic, matches, limit: limit?, parts, enforcement })
}

/// One service in any form of its name.
fn host(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    match HostPattern::new(text) {
        Ok(HostPattern::Exact(host)) => Some(host),
        Ok(_) => {
            d.invalid(
                at,
                format!("{} names more than one service", quote(text)),
                "write a RateLimit for each",
            );
            None
        }
        Err(error) => {
            d.invalid(at, error.to_string(), "");
            None
        }
    }
}

fn matches(d: &mut Decoder<'_>, at: &At<'_>, metadata: &Metadata<'_>) -> Option<Vec<HttpMatch>> {
    let blocks = d.each(at, |d, at| virtual_service::http_match(d, at, &metadata.key.namespace))?;
    if blocks.is_empty() {
        d.invalid(at, "matches nothing", "remove it to limit all requests");
        return None;
    }
    Some(blocks)
}

fn limit(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Limit> {
    let fields = d.fields(at)?;
    let requests = d.required(&fields, "requests").and_then(|at| count(d, &at));
    let per = d.required(&fields, "per").and_then(|at| duration::positive(d, &at));
    let burst = optional(fields.take("burst"), |at| count(d, &at));
    let (requests, per): (u32, Duration) = (requests?, per?);
    let read = Limit::new(requests, per, burst?.unwrap_or(requests));
    let help = match read {
        Err(LimitError::Zero) => "",
        Err(LimitError::TooFast) => "lower `requests`, or remove the RateLimit",
        Err(LimitError::TooSlow) => "lower `burst`, or shorten `per`",
        Ok(limit) => return Some(limit),
    };
    if let Err(error) = read {
        d.invalid(at, error.to_string(), help);
    }
    None
}

/// A number of requests.
fn count(d: &mut Decoder<'_>, at: &At<'_>) -> Option<u32> {
    let number = d.integer(at)?;
    let count = u32::try_from(number).ok().filter(|count| (1..=i32::MAX.unsigned_abs()).contains(count));
    if count.is_none() {
        let help = if number == 0 { "use AuthorizationPolicy to refuse everything" } else { "" };
        d.invalid(at, format!("Invalid value: {number}: must be between 1 and {}", i32::MAX), help);
    }
    count
}

fn parts(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Vec<KeyPart>> {
    let parts = d.each(at, part)?;
    let twice = parts.iter().enumerate().find(|(index, part)| parts[..*index].contains(part));
    let fault = if parts.is_empty() {
        Some(("tells no requests apart", "remove it to count all requests together"))
    } else if parts.len() > MAX_KEY_PARTS {
        Some(("has more than 8 parts", "write a RateLimit for each"))
    } else {
        twice.map(|_| ("has one part twice", "keep one of the two"))
    };
    if let Some((message, help)) = fault {
        d.invalid(at, message, help);
        return None;
    }
    Some(parts)
}

fn part(d: &mut Decoder<'_>, at: &At<'_>) -> Option<KeyPart> {
    const HELP: &str =
        "use `sourceIdentity`, `remoteAddress`, `path`, `{ header: name }` or `{ claim: name }`";
    if let Value::Map(entries) = &at.node.value {
        let before = d.findings.errors;
        let fields = d.fields(at)?;
        let (header, claim) = (fields.take("header"), fields.take("claim"));
        // A part that is not understood, of a newer version too, would have requests counted together that are not one.
        if (header.is_none() && claim.is_none() || entries.len() > 1) && d.findings.errors == before {
            d.invalid(at, "is not one part of a key", HELP);
            return None;
        }
        let of_header = header.and_then(|at| header_name(d, &at)).map(KeyPart::Header);
        return of_header.or_else(|| claim.and_then(|at| claim_path(d, &at)).map(KeyPart::Claim));
    }
    match d.text(at)? {
        "sourceIdentity" => Some(KeyPart::SourceIdentity),
        "remoteAddress" => Some(KeyPart::RemoteAddress),
        "path" => Some(KeyPart::Path),
        other => {
            d.invalid(at, format!("Unsupported value: {}", quote(other)), HELP);
            None
        }
    }
}

fn header_name(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    if !text.bytes().all(is_token) {
        let message = format!("`{}`: {} is not a header name", at.path, quote(text));
        d.findings.error(at.node.span, Code::InvalidValue, message, "write such as `x-tenant`");
        return None;
    }
    Some(text.to_ascii_lowercase().into())
}

/// A claim's name, or `[a][b]`.
fn claim_path(d: &mut Decoder<'_>, at: &At<'_>) -> Option<ClaimPath> {
    let text = d.text(at)?;
    let path =
        if text.starts_with('[') { ClaimPath::parse(text) } else { ClaimPath::parse(&format!("[{text}]")) };
    if path.is_none() {
        d.invalid(at, format!("{} is no claim", quote(text)), "write such as `sub` or `[realm][groups]`");
    }
    path
}

pub(super) fn encode(limit: &RateLimit) -> Json {
    let mut spec = Map::new();
    match &limit.traffic {
        Traffic::ToWorkloads(None) => {}
        Traffic::ToWorkloads(Some(labels)) => {
            spec.insert("selector".into(), json!({ "matchLabels": super::json::labels(labels) }));
        }
        Traffic::ToHost(host) => _ = spec.insert("host".into(), (&**host).into()),
    }
    if !limit.matches.is_empty() {
        let blocks: Vec<Json> = limit.matches.iter().map(virtual_service::encode_match).collect();
        spec.insert("match".into(), blocks.into());
    }
    let numbers = json!({
        "requests": limit.limit.requests(),
        "per": duration::text(limit.limit.per()),
        "burst": limit.limit.burst(),
    });
    spec.insert("limit".into(), numbers);
    if !limit.parts.is_empty() {
        let part = |part: &KeyPart| match part {
            KeyPart::SourceIdentity => "sourceIdentity".into(),
            KeyPart::RemoteAddress => "remoteAddress".into(),
            KeyPart::Path => "path".into(),
            KeyPart::Header(name) => json!({ "header": &**name }),
            KeyPart::Claim(path) => json!({ "claim": path.to_string() }),
        };
        spec.insert("key".into(), limit.parts.iter().map(part).collect());
    }
    if limit.enforcement == Enforcement::DryRun {
        spec.insert("dryRun".into(), true.into());
    }
    Json::Object(spec)
}
