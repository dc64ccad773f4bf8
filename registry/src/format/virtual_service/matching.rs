//! What routes ask for: texts, fields of requests, callers.

use std::net::IpAddr;
use std::sync::Arc;

use baremesh_model::http::headers::is_token;
use baremesh_model::name::{Key, Label};
use baremesh_model::re2::Re2;
use baremesh_model::string_match::{Case, StringMatch};
use baremesh_model::token::ClaimPath;
use baremesh_model::virtual_service::{Gateway, HttpMatch, Scope, TcpMatch};
use ipnet::IpNet;

use super::Named;
use crate::diagnostic::{Code, quote};
use crate::format::decode::{At, Decoder, Fields, optional};

/// Fields of `headers` that stand for other parts of a request in Istio's documentation, and are not looked at there.
const NOT_HEADERS: [&str; 4] = ["uri", "scheme", "method", "authority"];

/// One block of `http[].match`.
pub(super) fn http_match(d: &mut Decoder<'_>, at: &At<'_>, named: Named<'_>) -> Option<HttpMatch> {
    let fields = understood(d, at)?;
    let name = optional(fields.take("name"), |at| d.text(&at));
    let scope = scope(d, &fields, named);
    let uri = optional(fields.take("uri"), |at| string_match(d, &at));
    let ignored = optional(fields.take("ignoreUriCase"), |at| d.boolean(&at));
    let scheme = optional(fields.take("scheme"), |at| string_match(d, &at));
    let method = optional(fields.take("method"), |at| string_match(d, &at));
    let authority = optional(fields.take("authority"), |at| string_match(d, &at));
    let headers = optional(fields.take("headers"), |at| headers(d, &at));
    let without = optional(fields.take("withoutHeaders"), |at| fields_and_claims(d, &at));
    let params = optional(fields.take("queryParams"), |at| named_matches(d, &at));
    let (headers, claims) = headers?.unwrap_or_default();
    let (without_headers, without_claims) = without?.unwrap_or_default();
    Some(HttpMatch {
        name: name?.map(Arc::from),
        scope: scope?,
        uri: uri?,
        uri_case: if ignored?.unwrap_or(false) { Case::Ignored } else { Case::Sensitive },
        scheme: scheme?,
        method: method?,
        authority: authority?,
        headers,
        without_headers,
        query_params: params?.unwrap_or_default(),
        claims,
        without_claims,
    })
}

/// The fields of something that limits a route. A key of a newer version is an error here and not passed over: without it
/// the route would take more than was meant.
pub(super) fn understood<'n>(d: &mut Decoder<'_>, at: &At<'n>) -> Option<Fields<'n>> {
    let before = d.findings.errors;
    let entries = d.map(at)?.len();
    let fields = d.fields(at)?;
    let passed_over = entries - fields.len();
    let without_effect = usize::from(at.node.entry("statPrefix").is_some());
    if passed_over > without_effect && d.findings.errors == before {
        d.invalid(at, "a match that is not understood would take more than was meant", "");
        return None;
    }
    Some(fields)
}

/// `{}` and the regex `*` ask for presence.
pub(super) fn string_match(d: &mut Decoder<'_>, at: &At<'_>) -> Option<StringMatch> {
    let fields = understood(d, at)?;
    let ways = ["exact", "prefix", "regex"];
    let mut written = ways.into_iter().filter_map(|way| Some((way, fields.take(way)?)));
    let Some((way, value)) = written.next() else { return Some(StringMatch::Present) };
    if let Some((other, _)) = written.next() {
        d.invalid(at, format!("`{way}` and `{other}` cannot both be set"), "write two blocks");
        return None;
    }
    match way {
        "exact" => Some(StringMatch::Exact(d.any_text(&value)?.into())),
        "prefix" => Some(StringMatch::Prefix(d.text(&value)?.into())),
        _ => match d.text(&value)? {
            "*" => Some(StringMatch::Present),
            text => regex(d, &value, text).map(StringMatch::Regex),
        },
    }
}

/// A compiled expression.
pub(super) fn regex(d: &mut Decoder<'_>, at: &At<'_>, text: &str) -> Option<Re2> {
    let expression = Re2::new(text);
    if let Err(error) = &expression {
        let message = format!("`{}`: {error}", at.path);
        d.findings.error(at.node.span, Code::InvalidRegex, message, "");
    }
    expression.ok()
}

fn named_matches(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Vec<(Arc<str>, StringMatch)>> {
    let entries = d.map(at)?;
    let read = entries.iter().map(|entry| {
        let asked = string_match(d, &at.entry(entry))?;
        Some((Arc::clone(&entry.key), asked))
    });
    // Every entry is read before the first fault ends it.
    read.collect::<Vec<_>>().into_iter().collect()
}

/// Fields by their names in lower case, and claims of the token by their paths.
type FieldsAndClaims = (Vec<(Arc<str>, StringMatch)>, Vec<(ClaimPath, StringMatch)>);

fn headers(d: &mut Decoder<'_>, at: &At<'_>) -> Option<FieldsAndClaims> {
    let (mut headers, claims) = fields_and_claims(d, at)?;
    headers.retain(|(name, _)| {
        let ignored = NOT_HEADERS.contains(&&**name);
        if ignored {
            let message = format!("`{}`: {} is not looked at among headers", at.path, quote(name));
            let help = format!("write `{name}` beside `headers`");
            d.findings.warning(at.node.span, Code::NoEffect, message, &help);
        }
        !ignored
    });
    Some((headers, claims))
}

fn fields_and_claims(d: &mut Decoder<'_>, at: &At<'_>) -> Option<FieldsAndClaims> {
    let mut valid = true;
    for entry in d.map(at)? {
        let at = at.entry(entry);
        if entry.key.starts_with('@') {
            if claim_named(&entry.key).is_none() {
                let message = format!("{} is no claim", quote(&entry.key));
                d.invalid(&at, message, "write `@request.auth.claims.sub` or `@request.auth.claims[a][b]`");
                valid = false;
            }
        } else if entry.key.is_empty() || !entry.key.bytes().all(is_token) {
            d.invalid(&at, format!("{} is not a header name", quote(&entry.key)), "");
            valid = false;
        }
    }
    let (claims, named): (Vec<_>, Vec<_>) =
        named_matches(d, at)?.into_iter().partition(|(name, _)| name.starts_with('@'));
    let claims = claims.into_iter().filter_map(|(name, asked)| Some((claim_named(&name)?, asked))).collect();
    let lower = |(name, asked): (Arc<str>, _)| (Arc::from(name.to_ascii_lowercase()), asked);
    let named: Vec<(Arc<str>, StringMatch)> = named.into_iter().map(lower).collect();
    let twice = named
        .iter()
        .enumerate()
        .find(|(index, (name, _))| named.iter().take(*index).any(|(other, _)| other == name));
    if let Some((_, (name, _))) = twice {
        d.invalid(at, format!("{} stands here twice, in another case", quote(name)), "keep one of the two");
        return None;
    }
    valid.then_some((named, claims))
}

/// How a claim of the verified token is named in the place of a field (Istio's form).
pub(super) const CLAIMS: &str = "@request.auth.claims";

fn claim_named(name: &str) -> Option<ClaimPath> {
    ClaimPath::parse(name.strip_prefix(CLAIMS)?)
}

/// Caller, gateway and port.
pub(super) fn scope(d: &mut Decoder<'_>, fields: &Fields<'_>, named: Named<'_>) -> Option<Scope> {
    let gateways = optional(fields.take("gateways"), |at| gateways(d, &at, named));
    let labels = optional(fields.take("sourceLabels"), |at| d.labels(&at));
    let namespace = optional(fields.take("sourceNamespace"), |at| d.label(&at));
    let port = optional(fields.take("port"), |at| d.port(&at));
    Some(Scope {
        gateways: gateways?.unwrap_or_default(),
        source_labels: labels?.unwrap_or_default(),
        source_namespace: namespace?,
        port: port?,
    })
}

/// `mesh`, names, `namespace/name`.
pub(super) fn gateways(d: &mut Decoder<'_>, at: &At<'_>, named: Named<'_>) -> Option<Vec<Gateway>> {
    let gateways = d.each(at, |d, at| gateway(d, at, named.namespace))?;
    if gateways.is_empty() {
        d.invalid(at, "names no gateway", "remove it to mean `mesh`");
        return None;
    }
    Some(gateways)
}

fn gateway(d: &mut Decoder<'_>, at: &At<'_>, namespace: &Label) -> Option<Gateway> {
    let text = d.text(at)?;
    let (space, name) = match text.split_once('/') {
        _ if text == "mesh" => return Some(Gateway::Mesh),
        Some((".", name)) => (namespace.clone(), name),
        Some((space, name)) => (d.named(at, Label::new(space))?, name),
        // Istio's old form, `name.namespace.svc.cluster.local`.
        None => match text.split_once('.') {
            Some((name, rest)) => {
                (d.named(at, Label::new(rest.split('.').next().unwrap_or_default()))?, name)
            }
            None => (namespace.clone(), text),
        },
    };
    Some(Gateway::Named(Key::new(space, d.named(at, Label::new(name))?)))
}

/// What is asked of a connection beside its server name.
pub(super) fn connection(d: &mut Decoder<'_>, fields: &Fields<'_>, named: Named<'_>) -> Option<TcpMatch> {
    let scope = scope(d, fields, named);
    let subnets = optional(fields.take("destinationSubnets"), |at| d.each(&at, subnet));
    Some(TcpMatch { scope: scope?, destination_subnets: subnets?.unwrap_or_default() })
}

fn subnet(d: &mut Decoder<'_>, at: &At<'_>) -> Option<IpNet> {
    let text = d.text(at)?;
    let read = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    if read.is_err() {
        let message = format!("{} is not an IP address or CIDR block", quote(text));
        d.invalid(at, message, "write such as `10.1.2.3`, `10.0.0.0/8` or `fd00::/8`");
    }
    read.ok().map(|subnet| subnet.trunc())
}
