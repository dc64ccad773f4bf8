//! How a route does what it does: retries, faults, mirrors, CORS, changes of fields.

use std::sync::Arc;

use baremesh_model::grpc::GrpcStatus;
use baremesh_model::http::headers::is_token;
use baremesh_model::string_match::StringMatch;
use baremesh_model::virtual_service::{
    Abort, AbortStatus, CorsPolicy, Credentials, Delay, Fault, HeaderOperations, HeaderRules, HeaderValue,
    Mirror, Percentage, RetryConditions, RetryPolicy, RouteOptions, UnmatchedPreflights, is_changeable,
};

use super::{http, matching};
use crate::diagnostic::{Code, quote};
use crate::format::decode::{At, Decoder, Fields, optional};
use crate::format::duration;

/// What cannot be set, added or removed.
const UNCHANGEABLE: &str = "names are letters, digits and hyphens, and not of framing such as `content-length`; values have no line ends";

/// The most tries after the first: more of them is a mistake, and hurts whom they hit.
const MAX_ATTEMPTS: u32 = 100;

/// Everything beside a route's match and action.
pub(super) fn options(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<RouteOptions> {
    let rewrite = optional(fields.take("rewrite"), |at| http::rewrite(d, &at));
    let timeout = optional(fields.take("timeout"), |at| timeout(d, &at));
    let retries = optional(fields.take("retries"), |at| retries(d, &at));
    let fault = optional(fields.take("fault"), |at| fault(d, &at));
    let mirrors = mirrors(d, fields);
    let cors = optional(fields.take("corsPolicy"), |at| cors(d, &at));
    let headers = optional(fields.take("headers"), |at| header_rules(d, &at));
    let (rewrite, headers) = (rewrite?, headers?);
    let twice = rewrite.as_ref().is_some_and(|rewrite| rewrite.authority.is_some())
        && headers.as_ref().is_some_and(|headers| headers.authority.is_some());
    if let (true, Some(at)) = (twice, fields.take("headers")) {
        d.invalid(
            &at,
            "authority header cannot be set multiple times",
            "keep it in `rewrite` or in `headers`",
        );
        return None;
    }
    Some(RouteOptions {
        rewrite,
        timeout: timeout?,
        retries: retries?,
        fault: fault?,
        mirrors: mirrors?,
        cors: cors?,
        headers,
    })
}

/// 0 is none; anything else is at least a millisecond.
fn timeout(d: &mut Decoder<'_>, at: &At<'_>) -> Option<std::time::Duration> {
    let read = duration::duration(d, at)?;
    if read.is_zero() { Some(read) } else { duration::positive(d, at) }
}

pub(in crate::format) fn retries(d: &mut Decoder<'_>, at: &At<'_>) -> Option<RetryPolicy> {
    let fields = d.fields(at)?;
    let attempts = optional(fields.take("attempts"), |at| attempts(d, &at));
    let per_try_timeout = optional(fields.take("perTryTimeout"), |at| duration::positive(d, &at));
    let conditions = optional(fields.take("retryOn"), |at| {
        // An empty text is what leaving it out means.
        let text = d.any_text(&at)?;
        let read =
            if text.is_empty() { Ok(RetryConditions::default()) } else { RetryConditions::parse(text) };
        read.map_err(|error| d.invalid(&at, error.to_string(), "see `baremesh reference` for the words")).ok()
    });
    let remote = optional(fields.take("retryRemoteLocalities"), |at| d.boolean(&at));
    let previous = optional(fields.take("retryIgnorePreviousHosts"), |at| d.boolean(&at));
    let backoff = optional(fields.take("backoff"), |at| duration::positive(d, &at));
    let attempts = attempts?.unwrap_or(0);
    let others = ["perTryTimeout", "retryOn", "retryRemoteLocalities", "retryIgnorePreviousHosts", "backoff"];
    if attempts == 0 && others.iter().any(|other| fields.take(other).is_some()) {
        let message = "http retry policy configured when attempts are set to 0 (disabled)";
        d.invalid(at, message, "set `attempts`");
        return None;
    }
    let default = RetryPolicy::default();
    Some(RetryPolicy {
        attempts,
        per_try_timeout: per_try_timeout?,
        conditions: conditions?.unwrap_or(default.conditions),
        backoff: backoff?.unwrap_or(default.backoff),
        ignore_previous_hosts: previous?,
        remote_localities: remote?.unwrap_or(default.remote_localities),
    })
}

fn attempts(d: &mut Decoder<'_>, at: &At<'_>) -> Option<u32> {
    let number = d.integer(at)?;
    let attempts = u32::try_from(number).ok().filter(|attempts| *attempts <= MAX_ATTEMPTS);
    if attempts.is_none() {
        let what = if number < 0 { "attempts cannot be negative" } else { "attempts are too many" };
        d.invalid(at, format!("{what}: {number}"), &format!("use 0 to {MAX_ATTEMPTS}"));
    }
    attempts
}

fn fault(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Fault> {
    let fields = d.fields(at)?;
    let delay = optional(fields.take("delay"), |at| {
        let fields = d.fields(&at)?;
        let fixed = d.required(&fields, "fixedDelay").and_then(|at| duration::positive(d, &at));
        let percentage = share_of_fault(d, &at, &fields);
        Some(Delay { fixed: fixed?, percentage: percentage? })
    });
    let abort = optional(fields.take("abort"), |at| {
        let fields = d.fields(&at)?;
        let status = abort_status(d, &at, &fields);
        let percentage = share_of_fault(d, &at, &fields);
        Some(Abort { status: status?, percentage: percentage? })
    });
    let (delay, abort) = (delay?, abort?);
    if delay.is_none() && abort.is_none() {
        d.invalid(at, "HTTP fault injection must have an abort and/or a delay", "");
        return None;
    }
    Some(Fault { delay, abort })
}

fn abort_status(d: &mut Decoder<'_>, at: &At<'_>, fields: &Fields<'_>) -> Option<AbortStatus> {
    match (fields.take("httpStatus"), fields.take("grpcStatus")) {
        (Some(at), None) => http::status(d, &at).map(AbortStatus::Http),
        (None, Some(at)) => {
            let text = d.text(&at)?;
            let status = GrpcStatus::named(text);
            if status.is_none() {
                d.invalid(
                    &at,
                    format!("gRPC status {} is not supported", quote(text)),
                    "use such as `UNAVAILABLE`",
                );
            }
            status.map(AbortStatus::Grpc)
        }
        (Some(_), Some(_)) => {
            d.invalid(at, "`httpStatus` and `grpcStatus` cannot both be set", "remove one of the two");
            None
        }
        (None, None) => {
            d.invalid(at, "an abort needs `httpStatus` or `grpcStatus`", "");
            None
        }
    }
}

/// Of how many requests. Nothing written is nothing done, which is worth a word.
fn share_of_fault(d: &mut Decoder<'_>, at: &At<'_>, fields: &Fields<'_>) -> Option<Percentage> {
    if let Some(at) = fields.take("percentage") {
        return percentage(d, &at);
    }
    if let Some(at) = fields.take("percent") {
        return whole_percent(d, &at);
    }
    let message = format!("`{}`: without `percentage` it is for no request at all", at.path);
    let help = "write `percentage: {value: 100}` for every request";
    d.findings.warning(at.node.span, Code::NoEffect, message, help);
    Some(Percentage::NONE)
}

/// `value` of a percentage; 0 where it is not written.
fn percentage(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Percentage> {
    let fields = d.fields(at)?;
    let Some(at) = fields.take("value") else { return Some(Percentage::NONE) };
    let number = d.number(&at)?;
    let share = Percentage::new(number);
    if share.is_none() {
        d.invalid(&at, format!("percentage {number} is not in range 0..100"), "");
    }
    share
}

fn whole_percent(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Percentage> {
    let number = d.integer(at)?;
    let share = u8::try_from(number).ok().and_then(|number| Percentage::new(f64::from(number)));
    if share.is_none() {
        d.invalid(at, format!("percentage {number} is not in range 0..100"), "");
    }
    share
}

/// `mirror` with its percentage, and `mirrors`.
fn mirrors(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<Vec<Mirror>> {
    let one = optional(fields.take("mirror"), |at| http::destination(d, &at));
    let share = optional(fields.take("mirrorPercentage"), |at| percentage(d, &at));
    let old = optional(fields.take("mirrorPercent"), |at| whole_percent(d, &at));
    let several = optional(fields.take("mirrors"), |at| d.each(&at, mirror));
    let (one, several) = (one?, several?.unwrap_or_default());
    let share = share?.or(old?);
    if let (None, Some(at)) = (&one, fields.take("mirrorPercentage").or_else(|| fields.take("mirrorPercent")))
    {
        let message = format!("`{}` is accepted and has no effect without `mirror`", at.path);
        d.findings.warning(
            at.node.span,
            Code::NoEffect,
            message,
            "each of `mirrors` has its own `percentage`",
        );
    }
    let percentage = share.unwrap_or(Percentage::ALL);
    let one = one.map(|destination| Mirror { destination, percentage });
    Some(one.into_iter().chain(several).collect())
}

fn mirror(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Mirror> {
    let fields = d.fields(at)?;
    let destination = d.required(&fields, "destination").and_then(|at| http::destination(d, &at));
    let share = optional(fields.take("percentage"), |at| percentage(d, &at));
    Some(Mirror { destination: destination?, percentage: share?.unwrap_or(Percentage::ALL) })
}

fn cors(d: &mut Decoder<'_>, at: &At<'_>) -> Option<CorsPolicy> {
    let fields = d.fields(at)?;
    let origins = optional(fields.take("allowOrigins"), |at| d.each(&at, matching::string_match));
    let old = optional(fields.take("allowOrigin"), |at| {
        d.each(&at, |d, at| Some(StringMatch::Exact(d.text(at)?.into())))
    });
    let methods = optional(fields.take("allowMethods"), |at| d.each(&at, token));
    let allowed = optional(fields.take("allowHeaders"), |at| d.each(&at, token));
    let exposed = optional(fields.take("exposeHeaders"), |at| d.each(&at, token));
    let age = optional(fields.take("maxAge"), |at| {
        let age = duration::duration(d, &at)?;
        if age.subsec_nanos() > 0 {
            d.invalid(&at, "max_age duration is accurate only to seconds precision", "");
            return None;
        }
        Some(age)
    });
    let credentials = optional(fields.take("allowCredentials"), |at| d.boolean(&at));
    let unmatched = optional(fields.take("unmatchedPreflights"), |at| unmatched_preflights(d, &at));
    let (origins, old) = (origins?.unwrap_or_default(), old?.unwrap_or_default());
    if origins.contains(&StringMatch::Present) {
        d.invalid(at, "an entry of `allowOrigins` names no origin", "write `exact: \"*\"` to mean every one");
        return None;
    }
    let credentials = credentials?.unwrap_or(false);
    Some(CorsPolicy {
        allow_origins: if origins.is_empty() { old } else { origins },
        allow_methods: methods?.unwrap_or_default(),
        allow_headers: allowed?.unwrap_or_default(),
        expose_headers: exposed?.unwrap_or_default(),
        max_age: age?,
        credentials: if credentials { Credentials::Allowed } else { Credentials::Refused },
        unmatched_preflights: unmatched?.unwrap_or_default(),
    })
}

fn unmatched_preflights(d: &mut Decoder<'_>, at: &At<'_>) -> Option<UnmatchedPreflights> {
    match d.text(at)? {
        "UNSPECIFIED" | "FORWARD" => Some(UnmatchedPreflights::Forward),
        "IGNORE" => Some(UnmatchedPreflights::Ignore),
        other => {
            d.invalid(at, format!("Unsupported value: {}", quote(other)), "use FORWARD or IGNORE");
            None
        }
    }
}

/// A name of a method or field; `*` is one as well.
fn token(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    if text.bytes().all(is_token) {
        return Some(text.into());
    }
    d.invalid(at, format!("{} is not a name of a method or header", quote(text)), "");
    None
}

/// `headers` of a route or destination.
pub(super) fn header_rules(d: &mut Decoder<'_>, at: &At<'_>) -> Option<HeaderRules> {
    let fields = d.fields(at)?;
    let mut authority = Vec::new();
    let request = optional(fields.take("request"), |at| operations(d, &at, Some(&mut authority)));
    let response = optional(fields.take("response"), |at| operations(d, &at, None));
    if authority.len() > 1 {
        d.invalid(at, "authority header cannot be set multiple times", "keep one of them");
        return None;
    }
    Some(HeaderRules {
        request: request?.unwrap_or_default(),
        authority: authority.pop(),
        response: response?.unwrap_or_default(),
    })
}

/// Operations on one head. Those on the authority, where it can be set, are put aside.
fn operations(
    d: &mut Decoder<'_>,
    at: &At<'_>,
    mut authority: Option<&mut Vec<Arc<str>>>,
) -> Option<HeaderOperations> {
    let fields = d.fields(at)?;
    let set = optional(fields.take("set"), |at| values(d, &at, authority.as_deref_mut()));
    let add = optional(fields.take("add"), |at| values(d, &at, authority));
    let remove = optional(fields.take("remove"), |at| d.each(&at, removed));
    Some(HeaderOperations {
        set: set?.unwrap_or_default(),
        add: add?.unwrap_or_default(),
        remove: remove?.unwrap_or_default(),
    })
}

fn removed(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    if !is_changeable(text) {
        d.invalid(at, format!("{} is not a header that can be removed", quote(text)), UNCHANGEABLE);
        return None;
    }
    Some(text.to_ascii_lowercase().into())
}

fn values(
    d: &mut Decoder<'_>,
    at: &At<'_>,
    mut authority: Option<&mut Vec<Arc<str>>>,
) -> Option<Vec<HeaderValue>> {
    let (mut values, mut valid) = (Vec::new(), true);
    for entry in d.map(at)? {
        let at = at.entry(entry);
        let Some(text) = d.any_text(&at).and_then(|text| plain_value(d, &at, text)) else {
            valid = false;
            continue;
        };
        let names_authority =
            entry.key.eq_ignore_ascii_case(":authority") || entry.key.eq_ignore_ascii_case("host");
        match &mut authority {
            Some(authority)
                if names_authority && text.bytes().all(|b| b.is_ascii_graphic()) && !text.is_empty() =>
            {
                authority.push(text.into());
            }
            _ => match HeaderValue::new(&entry.key, &text) {
                Some(value) if values.iter().any(|other: &HeaderValue| other.name() == value.name()) => {
                    d.invalid(&at, "stands here twice, in another case", "keep one of the two");
                    valid = false;
                }
                Some(value) => values.push(value),
                None => {
                    let message = format!("{} with {} cannot be set", quote(&entry.key), quote(&text));
                    d.invalid(&at, message, UNCHANGEABLE);
                    valid = false;
                }
            },
        }
    }
    valid.then_some(values)
}

/// A value without variables: `%%` is a percent sign, and a single one would begin a variable of Envoy's.
fn plain_value(d: &mut Decoder<'_>, at: &At<'_>, text: &str) -> Option<String> {
    let (mut plain, mut chars) = (String::with_capacity(text.len()), text.chars());
    while let Some(c) = chars.next() {
        if c == '%' && chars.next() != Some('%') {
            let message = format!("`{}`: variables in header values are refused: {}", at.path, quote(text));
            d.findings.error(at.node.span, Code::RefusedField, message, "write `%%` for a percent sign");
            return None;
        }
        plain.push(c);
    }
    Some(plain)
}
