//! Entries of `http`: what becomes of requests.

use std::sync::Arc;

use baremesh_model::http::Scheme;
use baremesh_model::name::Key;
use baremesh_model::re2::Re2;
use baremesh_model::string_match::StringMatch;
use baremesh_model::virtual_service::{
    Delegation, Destination, DirectResponse, HttpAction, HttpEntry, HttpMatch, HttpRoute, PathRewrite,
    Redirect, RedirectPath, RedirectPort, RedirectStatus, Rewrite, Split, UrlText, WeightedDestination,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::options::{header_rules, options};
use super::{Named, matching};
use crate::diagnostic::{Code, quote};
use crate::format::decode::{At, Decoder, Fields, optional};

/// What an entry can do: exactly one of them.
const ACTIONS: [&str; 4] = ["route", "redirect", "directResponse", "delegate"];

/// Bytes of a body that is answered with.
const MAX_BODY: usize = 512 << 10;

/// One entry of `http`.
pub(super) fn entry(d: &mut Decoder<'_>, at: &At<'_>, named: Named<'_>) -> Option<HttpEntry> {
    let fields = d.fields(at)?;
    let action = only_action(d, at, &fields);
    let name = optional(fields.take("name"), |at| d.text(&at));
    let matches =
        optional(fields.take("match"), |at| d.each(&at, |d, at| matching::http_match(d, at, named)));
    let options = options(d, &fields);
    let action = action?;
    let value = fields.take(action)?;
    if matches!(action, "redirect" | "directResponse") {
        let mut others = ["fault", "rewrite"].into_iter();
        if let Some(other) = others.find(|other| fields.take(other).is_some()) {
            let message = format!("HTTP route cannot contain both {other} and {action}");
            d.invalid(at, message, "remove one of the two");
            return None;
        }
    }
    if action == "delegate" {
        let to = delegate(d, &value, named);
        let (name, matches, options) = (name?.map(Arc::from), matches?.unwrap_or_default(), options?);
        no_regex(d, at, &matches)?;
        return Some(HttpEntry::Delegate(Box::new(Delegation { to: to?, name, matches, options })));
    }
    let action = match action {
        "route" => split(d, &value, Headers::Taken).map(HttpAction::Forward),
        "redirect" => redirect(d, &value).map(HttpAction::Redirect),
        _ => direct_response(d, &value).map(HttpAction::Respond),
    };
    let (name, matches) = (name?.map(Arc::from), matches?.unwrap_or_default());
    if named.is_delegate {
        no_regex(d, at, &matches)?;
    }
    Some(HttpEntry::Route(Arc::new(HttpRoute { name, matches, action: action?, options: options? })))
}

fn only_action(d: &mut Decoder<'_>, at: &At<'_>, fields: &Fields<'_>) -> Option<&'static str> {
    let mut written = ACTIONS.into_iter().filter(|action| fields.take(action).is_some());
    let Some(action) = written.next() else {
        d.invalid(
            at,
            "HTTP route, redirect or direct_response is required",
            "say where requests go: add `route`",
        );
        return None;
    };
    if let Some(other) = written.next() {
        let message = format!("HTTP route cannot contain both {action} and {other}");
        d.invalid(at, message, "remove one of the two");
        return None;
    }
    Some(action)
}

/// Whether a delegate's match lies within its root's cannot be told of regexes.
fn no_regex(d: &mut Decoder<'_>, at: &At<'_>, matches: &[HttpMatch]) -> Option<()> {
    let is_regex = |asked: &StringMatch| matches!(asked, StringMatch::Regex(_));
    for block in matches {
        let parts = [&block.uri, &block.scheme, &block.method, &block.authority];
        let lists = [&block.headers, &block.without_headers, &block.query_params];
        if parts.into_iter().flatten().any(is_regex)
            || lists.into_iter().flatten().any(|(_, asked)| is_regex(asked))
        {
            d.invalid(at, "a match by regex is not supported for delegating", "use `exact` or `prefix`");
            return None;
        }
    }
    Some(())
}

fn delegate(d: &mut Decoder<'_>, at: &At<'_>, named: Named<'_>) -> Option<Key> {
    if named.is_delegate {
        d.invalid(at, "delegate HTTP route cannot contain delegate", "delegating goes one level deep");
        return None;
    }
    let fields = d.fields(at)?;
    let name = d.required(&fields, "name").and_then(|at| d.label(&at));
    let namespace = optional(fields.take("namespace"), |at| d.label(&at));
    Some(Key::new(namespace?.unwrap_or_else(|| named.namespace.clone()), name?))
}

/// Whether destinations have `headers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Headers {
    Taken,
    None,
}

/// The destinations of a route.
pub(super) fn split(d: &mut Decoder<'_>, at: &At<'_>, headers: Headers) -> Option<Split> {
    let all = d.each(at, |d, at| weighted(d, at, headers))?;
    Split::new(all).map_err(|error| d.invalid(at, error.to_string(), "")).ok()
}

fn weighted(d: &mut Decoder<'_>, at: &At<'_>, headers: Headers) -> Option<WeightedDestination> {
    let fields = d.fields(at)?;
    let destination = d.required(&fields, "destination").and_then(|at| destination(d, &at));
    let weight = optional(fields.take("weight"), |at| weight(d, &at));
    let headers = match headers {
        Headers::Taken => optional(fields.take("headers"), |at| header_rules(d, &at)),
        Headers::None => Some(None),
    };
    let (weight, headers) = (weight?.unwrap_or(0), headers?.unwrap_or_default());
    Some(WeightedDestination { destination: destination?, weight, headers })
}

fn weight(d: &mut Decoder<'_>, at: &At<'_>) -> Option<u32> {
    let number = d.integer(at)?;
    let weight = u32::try_from(number).ok();
    if weight.is_none() {
        d.invalid(at, format!("{number} is not a weight of 0 to {}", u32::MAX), "");
    }
    weight
}

/// Host, subset and port.
pub(super) fn destination(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Destination> {
    let fields = d.fields(at)?;
    let host = d.required(&fields, "host").and_then(|at| super::exact_host(d, &at));
    let subset = optional(fields.take("subset"), |at| d.text(&at));
    let port = optional(fields.take("port"), |at| {
        let fields = d.fields(&at)?;
        d.required(&fields, "number").and_then(|at| d.port(&at))
    });
    Some(Destination { host: host?, subset: subset?.map(Arc::from), port: port? })
}

fn redirect(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Redirect> {
    let fields = d.fields(at)?;
    if fields.is_empty() {
        d.invalid(at, "redirect must specify URI, authority, scheme, or port", "");
        return None;
    }
    for (one, other) in [("uri", "prefixRewrite"), ("port", "derivePort")] {
        exclusive(d, at, &fields, (one, other))?;
    }
    let whole = optional(fields.take("uri"), |at| url_text(d, &at));
    let prefix = optional(fields.take("prefixRewrite"), |at| url_text(d, &at));
    let authority = optional(fields.take("authority"), |at| url_text(d, &at));
    let number = optional(fields.take("port"), |at| d.port(&at));
    let derived = optional(fields.take("derivePort"), |at| derive_port(d, &at));
    let scheme = optional(fields.take("scheme"), |at| scheme(d, &at));
    let status = optional(fields.take("redirectCode"), |at| redirect_status(d, &at));
    let path = whole?.map(RedirectPath::Whole).or(prefix?.map(RedirectPath::Matched));
    let port = number?.map(RedirectPort::Number).or(derived?);
    let (authority, scheme, status) = (authority?, scheme?, status?.unwrap_or_default());
    Some(Redirect { path, authority, port, scheme, status })
}

fn exclusive(d: &mut Decoder<'_>, at: &At<'_>, fields: &Fields<'_>, pair: (&str, &str)) -> Option<()> {
    if fields.take(pair.0).is_some() && fields.take(pair.1).is_some() {
        d.invalid(at, format!("`{}` and `{}` cannot both be set", pair.0, pair.1), "remove one of the two");
        return None;
    }
    Some(())
}

fn derive_port(d: &mut Decoder<'_>, at: &At<'_>) -> Option<RedirectPort> {
    match d.text(at)? {
        "FROM_REQUEST_PORT" => Some(RedirectPort::FromRequest),
        "FROM_PROTOCOL_DEFAULT" => Some(RedirectPort::FromScheme),
        other => {
            let message = format!("Unsupported value: {}", quote(other));
            d.invalid(at, message, "use FROM_REQUEST_PORT or FROM_PROTOCOL_DEFAULT");
            None
        }
    }
}

fn scheme(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Scheme> {
    match d.text(at)? {
        "http" => Some(Scheme::Http),
        "https" => Some(Scheme::Https),
        other => {
            d.invalid(at, format!("{} is not a scheme of a redirect", quote(other)), "use http or https");
            None
        }
    }
}

fn redirect_status(d: &mut Decoder<'_>, at: &At<'_>) -> Option<RedirectStatus> {
    let number = d.integer(at)?;
    let status = u16::try_from(number).ok().and_then(RedirectStatus::new);
    if status.is_none() {
        d.invalid(at, format!("{number} is not a redirect code"), "use 301, 302, 303, 307 or 308");
    }
    status
}

fn direct_response(d: &mut Decoder<'_>, at: &At<'_>) -> Option<DirectResponse> {
    let fields = d.fields(at)?;
    let status = d.required(&fields, "status").and_then(|at| status(d, &at));
    let body = optional(fields.take("body"), |at| body(d, &at));
    Some(DirectResponse { status: status?, body: body?.flatten() })
}

/// A status that an answer can have.
pub(super) fn status(d: &mut Decoder<'_>, at: &At<'_>) -> Option<u16> {
    let number = d.integer(at)?;
    let status = u16::try_from(number).ok().filter(|status| (200..600).contains(status));
    if status.is_none() {
        d.invalid(at, format!("HTTP status {number} is not in range 200-599"), "");
    }
    status
}

fn body(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Option<Arc<[u8]>>> {
    let fields = d.fields(at)?;
    exclusive(d, at, &fields, ("string", "bytes"))?;
    let text = optional(fields.take("string"), |at| d.any_text(&at).map(|text| text.as_bytes().to_vec()));
    let bytes = optional(fields.take("bytes"), |at| {
        let read = STANDARD.decode(d.any_text(&at)?);
        read.map_err(|_| d.invalid(&at, "is not base64", "write a text to `string` instead")).ok()
    });
    let body = text?.or(bytes?);
    if body.as_ref().is_some_and(|body| body.len() > MAX_BODY) {
        d.invalid(at, format!("a body has at most {MAX_BODY} bytes"), "let a service answer");
        return None;
    }
    Some(body.map(Arc::from))
}

/// `rewrite`.
pub(super) fn rewrite(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Rewrite> {
    let fields = d.fields(at)?;
    if fields.is_empty() {
        d.invalid(at, "rewrite must specify URI, UriRegexRewrite, or authority", "");
        return None;
    }
    exclusive(d, at, &fields, ("uri", "uriRegexRewrite"))?;
    let uri = optional(fields.take("uri"), |at| url_text(d, &at).map(PathRewrite::Matched));
    let regex = optional(fields.take("uriRegexRewrite"), |at| regex_rewrite(d, &at));
    let authority = optional(fields.take("authority"), |at| url_text(d, &at));
    Some(Rewrite { path: uri?.or(regex?), authority: authority? })
}

fn regex_rewrite(d: &mut Decoder<'_>, at: &At<'_>) -> Option<PathRewrite> {
    let fields = d.fields(at)?;
    let pattern = d.required(&fields, "match").and_then(|at| {
        let text = d.text(&at)?;
        matching::regex(d, &at, text)
    });
    let substitution = optional(fields.take("rewrite"), |at| match d.any_text(&at)? {
        "" => Some(None),
        _ => url_text(d, &at).map(Some),
    });
    let (pattern, substitution) = (pattern?, substitution?.flatten());
    if let (Some(text), Some(at)) = (&substitution, fields.take("rewrite")) {
        check_groups(d, &at, &pattern, text.as_str())?;
    }
    Some(PathRewrite::Regex { pattern, substitution })
}

/// A group that there is not would always be empty.
fn check_groups(d: &mut Decoder<'_>, at: &At<'_>, pattern: &Re2, text: &str) -> Option<()> {
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            continue;
        }
        match chars.next() {
            Some('\\') => {}
            Some(digit @ '0'..='9') if usize::from(digit as u8 - b'0') <= pattern.groups() => {}
            other => {
                let what = other.map(String::from).unwrap_or_default();
                let message = format!("`\\{what}` is no group of the {} that `match` has", pattern.groups());
                d.invalid(at, message, "write a backslash as `\\\\`");
                return None;
            }
        }
    }
    Some(())
}

/// Text of a request line, an authority or a location.
fn url_text(d: &mut Decoder<'_>, at: &At<'_>) -> Option<UrlText> {
    let text = d.text(at)?;
    let read = UrlText::new(text);
    if read.is_none() {
        let message = format!("`{}`: {} cannot stand in a URL", at.path, quote(text));
        d.findings.error(
            at.node.span,
            Code::InvalidValue,
            message,
            "percent-encode spaces and what is not ASCII",
        );
    }
    read
}
