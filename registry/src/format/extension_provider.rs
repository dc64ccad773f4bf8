//! `extensionProviders` of the MeshConfig: who may be asked by CUSTOM policies. Providers of other kinds, for traces and logs,
//! are passed over with a warning.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use baremesh_model::external_authorization::{
    BodyInCheck, CheckProtocol, DEFAULT_TIMEOUT, ExtensionProvider, HttpCheck, LongerBody, MAX_BODY,
    MAX_FIELDS, MAX_PROVIDERS, MAX_TIMEOUT, MAX_TTL, OnFailure, Packing, may_be_set,
};
use baremesh_model::http::headers::{is_token, is_value};
use baremesh_model::http::syntax::{check_target, is_authority};
use baremesh_model::name::Label;
use baremesh_model::pattern::Pattern;
use serde_json::{Map, Value as Json, json};

use super::decode::{At, Decoder, Fields, optional};
use super::duration;
use crate::diagnostic::quote;

const HTTP: &str = "envoyExtAuthzHttp";
const GRPC: &str = "envoyExtAuthzGrpc";
/// The longest name of a provider, in bytes: it stands in every line about it.
const MAX_NAME: usize = 253;
/// What a refused request is told where nothing else is said.
const REFUSED: u16 = 403;

/// Reads the providers that can be asked.
pub(super) fn decode(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Vec<Arc<ExtensionProvider>>> {
    let items = d.list(at)?;
    let read = d.each(at, provider)?;
    if read.len() > MAX_PROVIDERS {
        d.invalid(at, format!("has more than {MAX_PROVIDERS} entries"), "");
        return None;
    }
    let mut names = HashSet::new();
    let mut all = Vec::new();
    for ((name, provider), at) in read.into_iter().zip(&items) {
        if !names.insert(Arc::clone(&name)) {
            d.invalid(at, format!("there are two providers {}", quote(&name)), "rename one of the two");
            return None;
        }
        all.extend(provider.map(Arc::new));
    }
    Some(all)
}

/// One provider's name, and what it is if it can be asked.
fn provider(d: &mut Decoder<'_>, at: &At<'_>) -> Option<(Arc<str>, Option<ExtensionProvider>)> {
    let fields = d.fields(at)?;
    // All of it is read before the first fault ends it, so that all faults are reported.
    let name = d.required(&fields, "name").and_then(|at| name_of(d, &at));
    let read = match (fields.take(HTTP), fields.take(GRPC)) {
        (None, None) => Some(None),
        (Some(_), Some(at)) => {
            d.invalid(&at, format!("`{HTTP}` and `{GRPC}` cannot both be set"), "write two providers");
            None
        }
        (Some(at), None) => d.fields(&at).and_then(|fields| {
            let (check, provider) = (http(d, &fields), common(d, &fields));
            Some(Some(ExtensionProvider { protocol: CheckProtocol::Http(check?), ..provider? }))
        }),
        (None, Some(at)) => d.fields(&at).and_then(|fields| common(d, &fields).map(Some)),
    };
    let (name, read) = (name?, read?);
    Some((Arc::clone(&name), read.map(|provider| ExtensionProvider { name, ..provider })))
}

fn name_of(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    if text.len() > MAX_NAME || text.chars().any(char::is_control) {
        d.invalid(at, "is no name: too long, or with control characters", "");
        return None;
    }
    Some(text.into())
}

/// What both kinds have, without a name yet.
fn common(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<ExtensionProvider> {
    let service = d.required(fields, "service").and_then(|at| service(d, &at));
    let port = d.required(fields, "port").and_then(|at| d.port(&at));
    let timeout = optional(fields.take("timeout"), |at| bounded(d, &at, MAX_TIMEOUT));
    let opens = optional(fields.take("failOpen"), |at| d.boolean(&at));
    let status = optional(fields.take("statusOnError"), |at| status(d, &at));
    let body = optional(fields.take("includeRequestBodyInCheck"), |at| body(d, &at));
    let cache = optional(fields.take("cache"), |at| {
        let fields = d.fields(&at)?;
        let ttl = d.required(&fields, "ttl")?;
        bounded(d, &ttl, MAX_TTL)
    });
    let ((namespace, host), status) = (service?, status?.unwrap_or(REFUSED));
    Some(ExtensionProvider {
        name: "".into(),
        host,
        namespace,
        port: port?.get(),
        timeout: timeout?.unwrap_or(DEFAULT_TIMEOUT),
        on_failure: if opens?.unwrap_or(false) { OnFailure::Allow } else { OnFailure::Refuse(status) },
        protocol: CheckProtocol::Grpc,
        body: body?,
        cache: cache?,
    })
}

/// A host, with a namespace before it or without.
fn service(d: &mut Decoder<'_>, at: &At<'_>) -> Option<(Option<Label>, Arc<str>)> {
    let text = d.text(at)?;
    let (namespace, host) = match text.split_once('/') {
        Some((namespace, host)) => (Some(d.named(at, Label::new(namespace))?), host),
        None => (None, text),
    };
    let is_address = host.parse::<std::net::Ipv6Addr>().is_ok();
    let has_port = !host.starts_with('[') && host.contains(':');
    if !is_address && (has_port || !is_authority(host.as_bytes())) {
        let message = format!("{} is no name of a host and no address", quote(host));
        d.invalid(
            at,
            message,
            "write such as `authz.shop`, `127.0.0.1` or `authz.example.org`; the port stands beside it",
        );
        return None;
    }
    Some((namespace, host.to_ascii_lowercase().into()))
}

fn bounded(d: &mut Decoder<'_>, at: &At<'_>, most: Duration) -> Option<Duration> {
    let read = duration::positive(d, at)?;
    if read > most {
        d.invalid(at, format!("is more than {}", duration::text(most)), "");
        return None;
    }
    Some(read)
}

fn status(d: &mut Decoder<'_>, at: &At<'_>) -> Option<u16> {
    let text = d.text(at)?;
    let read = text.parse().ok().filter(|status| (400..=599).contains(status));
    if read.is_none() {
        d.invalid(
            at,
            format!("{} is no status of 400 to 599", quote(text)),
            "write such as \"403\" or \"503\"",
        );
    }
    read
}

fn body(d: &mut Decoder<'_>, at: &At<'_>) -> Option<BodyInCheck> {
    let fields = d.fields(at)?;
    let most = d.required(&fields, "maxRequestBytes").and_then(|at| {
        let number = d.integer(&at)?;
        let read = u32::try_from(number).ok().filter(|most| (1..=MAX_BODY).contains(most));
        if read.is_none() {
            d.invalid(&at, format!("{number} is not from 1 to {MAX_BODY}"), "");
        }
        read
    });
    let partial = optional(fields.take("allowPartialMessage"), |at| d.boolean(&at));
    let packs = optional(fields.take("packAsBytes"), |at| d.boolean(&at));
    Some(BodyInCheck {
        max_bytes: most?,
        longer: if partial?.unwrap_or(false) { LongerBody::Cut } else { LongerBody::Refused },
        packing: if packs?.unwrap_or(false) { Packing::Bytes } else { Packing::Text },
    })
}

fn http(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<HttpCheck> {
    let prefix = optional(fields.take("pathPrefix"), |at| prefix(d, &at));
    let mut list = |key: &str, patterns: fn(&mut Decoder<'_>, &At<'_>) -> Option<Vec<Pattern>>| {
        optional(fields.take(key), |at| patterns(d, &at)).map(Option::unwrap_or_default)
    };
    let request_fields = list("includeRequestHeadersInCheck", seen);
    let to_upstream = list("headersToUpstreamOnAllow", set);
    let to_caller_on_allow = list("headersToDownstreamOnAllow", set);
    let to_caller_on_deny = list("headersToDownstreamOnDeny", seen);
    let added = optional(fields.take("includeAdditionalHeadersInCheck"), |at| added(d, &at));
    Some(HttpCheck {
        path_prefix: prefix?.unwrap_or_else(|| "".into()),
        request_fields: request_fields?,
        added_fields: added?.unwrap_or_default(),
        to_upstream: to_upstream?,
        to_caller_on_allow: to_caller_on_allow?,
        to_caller_on_deny: to_caller_on_deny?,
    })
}

fn prefix(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    if check_target(text.as_bytes()).is_err() || text.contains('?') {
        d.invalid(at, format!("{} is no path", quote(text)), "write such as `/check`");
        return None;
    }
    Some(text.into())
}

/// Names of fields that are shown.
fn seen(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Vec<Pattern>> {
    bound(d, at, name)
}

/// Names of fields that the provider sets.
fn set(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Vec<Pattern>> {
    bound(d, at, |d, at| {
        let pattern = name(d, at)?;
        if let Pattern::Exact(name) = &pattern
            && !may_be_set(name)
        {
            let help = "a message is framed and addressed by it, or it says who calls: no provider sets it";
            d.invalid(at, format!("{} is not the provider's to set", quote(name)), help);
            return None;
        }
        Some(pattern)
    })
}

fn bound<T>(
    d: &mut Decoder<'_>,
    at: &At<'_>,
    read: impl FnMut(&mut Decoder<'_>, &At<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    let all = d.each(at, read)?;
    if all.len() > MAX_FIELDS {
        d.invalid(at, format!("has more than {MAX_FIELDS} entries"), "");
        return None;
    }
    Some(all)
}

/// The name of a field, its start or its end; in lower case, as all names are compared.
fn name(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Pattern> {
    let text = d.text(at)?.to_ascii_lowercase();
    let pattern = Pattern::new(&text);
    let rest = match &pattern {
        Pattern::Exact(rest) | Pattern::Prefix(rest) | Pattern::Suffix(rest) => &**rest,
        // Every field there is: nobody means that, and Istio does not take it either.
        Pattern::Present => "",
    };
    if rest.is_empty() || rest.contains('*') || !rest.bytes().all(is_token) {
        let message = format!("{} is no name of a field", quote(&text));
        d.invalid(at, message, "write such as `x-user`, `x-auth-*` or `*-id`");
        return None;
    }
    Some(pattern)
}

fn added(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Vec<(Arc<str>, Arc<str>)>> {
    let entries = d.map(at)?;
    if entries.len() > MAX_FIELDS {
        d.invalid(at, format!("has more than {MAX_FIELDS} entries"), "");
        return None;
    }
    let mut all = Vec::new();
    for entry in entries {
        let at = at.entry(entry);
        let (name, value) = (entry.key.to_ascii_lowercase(), d.any_text(&at)?);
        if name.is_empty()
            || !name.bytes().all(is_token)
            || !may_be_set(&name)
            || !value.bytes().all(is_value)
        {
            d.invalid(&at, "is no field that can be sent", "write such as `x-source: mesh`");
            return None;
        }
        all.push((name.into(), value.into()));
    }
    all.sort();
    all.dedup_by(|a, b| a.0 == b.0);
    Some(all)
}

/// A provider as it is read back.
pub(super) fn encode(provider: &ExtensionProvider) -> Json {
    let mut out = Map::new();
    let host = match &provider.namespace {
        Some(namespace) => format!("{namespace}/{}", provider.host),
        None => provider.host.to_string(),
    };
    out.insert("service".into(), host.into());
    out.insert("port".into(), provider.port.into());
    if provider.timeout != DEFAULT_TIMEOUT {
        out.insert("timeout".into(), duration::text(provider.timeout).into());
    }
    match provider.on_failure {
        OnFailure::Allow => _ = out.insert("failOpen".into(), true.into()),
        OnFailure::Refuse(REFUSED) => {}
        OnFailure::Refuse(status) => _ = out.insert("statusOnError".into(), status.to_string().into()),
    }
    if let Some(body) = provider.body {
        let body = json!({
            "maxRequestBytes": body.max_bytes,
            "allowPartialMessage": body.longer == LongerBody::Cut,
            "packAsBytes": body.packing == Packing::Bytes,
        });
        out.insert("includeRequestBodyInCheck".into(), body);
    }
    if let Some(ttl) = provider.cache {
        out.insert("cache".into(), json!({ "ttl": duration::text(ttl) }));
    }
    let kind = match &provider.protocol {
        CheckProtocol::Grpc => GRPC,
        CheckProtocol::Http(check) => {
            encode_http(check, &mut out);
            HTTP
        }
    };
    json!({ "name": &*provider.name, kind: out })
}

fn encode_http(check: &HttpCheck, out: &mut Map<String, Json>) {
    if !check.path_prefix.is_empty() {
        out.insert("pathPrefix".into(), (&*check.path_prefix).into());
    }
    for (key, patterns) in [
        ("includeRequestHeadersInCheck", &check.request_fields),
        ("headersToUpstreamOnAllow", &check.to_upstream),
        ("headersToDownstreamOnAllow", &check.to_caller_on_allow),
        ("headersToDownstreamOnDeny", &check.to_caller_on_deny),
    ] {
        if !patterns.is_empty() {
            out.insert(key.into(), patterns.iter().map(|pattern| Json::from(pattern.to_string())).collect());
        }
    }
    if !check.added_fields.is_empty() {
        let added = check.added_fields.iter();
        let added: Map<_, _> = added.map(|(name, value)| (name.to_string(), Json::from(&**value))).collect();
        out.insert("includeAdditionalHeadersInCheck".into(), added.into());
    }
}
