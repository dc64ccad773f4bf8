//! One rule of an AuthorizationPolicy: sources, operations, conditions.

/// Writing a rule.
mod encode;

use std::net::IpAddr;
use std::sync::Arc;

use baremesh_model::authorization::{Condition, Operation, PathPattern, Rule, ServiceAccount, Source};
use baremesh_model::http::headers::is_token;
use baremesh_model::name::Label;
use baremesh_model::pattern::{Match, Pattern};
use ipnet::{IpNet, Ipv4Net};

use super::decode::{At, Decoder, Fields, optional};
use super::fields::nearest;
use crate::diagnostic::{Code, quote};
pub(super) use encode::encode;

/// The keys of `when`; of those in brackets with anything in the brackets.
const KEYS: [&str; 14] = [
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "remote.ip",
    "destination.ip",
    "destination.port",
    "connection.sni",
    HEADERS,
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    CLAIMS,
];
const HEADERS: &str = "request.headers[…]";
const CLAIMS: &str = "request.auth.claims[…]";
/// The most claims within claims.
const MAX_CLAIM_DEPTH: usize = 8;

/// Reads one rule of a policy in `namespace`.
pub(super) fn decode(d: &mut Decoder<'_>, at: &At<'_>, namespace: &Label) -> Option<Rule> {
    let fields = d.fields(at)?;
    let from = optional(fields.take("from"), |at| filled(d, &at, |d, at| source(d, at, namespace)));
    let to = optional(fields.take("to"), |at| filled(d, &at, operation));
    let when = optional(fields.take("when"), |at| filled(d, &at, |d, at| condition(d, at, namespace)));
    Some(Rule {
        from: from?.unwrap_or_default(),
        to: to?.unwrap_or_default(),
        when: when?.unwrap_or_default(),
    })
}

/// A list with something in it. An empty one asks for nothing, so that everybody would match.
fn filled<T>(
    d: &mut Decoder<'_>,
    at: &At<'_>,
    read: impl FnMut(&mut Decoder<'_>, &At<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    let items = d.each(at, read)?;
    if items.is_empty() {
        d.invalid(
            at,
            "cannot be empty: it would ask for nothing, and all would match",
            "remove it or fill it",
        );
        return None;
    }
    Some(items)
}

fn source(d: &mut Decoder<'_>, at: &At<'_>, namespace: &Label) -> Option<Source> {
    let fields = inner(d, at, "source")?;
    let account = |d: &mut Decoder<'_>, at: &At<'_>| service_account(d, at, namespace);
    let principals = matching(d, &fields, ("principals", "notPrincipals"), principal);
    let namespaces = matching(d, &fields, ("namespaces", "notNamespaces"), pattern);
    let accounts = matching(d, &fields, ("serviceAccounts", "notServiceAccounts"), account);
    let trust_domains = matching(d, &fields, ("trustDomains", "notTrustDomains"), pattern);
    let ip_blocks = matching(d, &fields, ("ipBlocks", "notIpBlocks"), block);
    let remote_ip_blocks = matching(d, &fields, ("remoteIpBlocks", "notRemoteIpBlocks"), block);
    let request_principals =
        matching(d, &fields, ("requestPrincipals", "notRequestPrincipals"), free_pattern);
    let (principals, namespaces, service_accounts) = (principals?, namespaces?, accounts?);
    let others = !principals.is_empty() || !namespaces.is_empty();
    if !service_accounts.is_empty() && others {
        let message = format!("`{}`: Cannot set serviceAccounts with namespaces or principals", at.path);
        d.findings.error(fields.span, Code::InvalidValue, message, "write two sources, or principals alone");
        return None;
    }
    Some(Source {
        principals,
        request_principals: request_principals?,
        namespaces,
        service_accounts,
        trust_domains: trust_domains?,
        ip_blocks: ip_blocks?,
        remote_ip_blocks: remote_ip_blocks?,
    })
}

fn operation(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Operation> {
    let fields = inner(d, at, "operation")?;
    let hosts = matching(d, &fields, ("hosts", "notHosts"), pattern);
    let ports = matching(d, &fields, ("ports", "notPorts"), port);
    let methods = matching(d, &fields, ("methods", "notMethods"), pattern);
    let paths = matching(d, &fields, ("paths", "notPaths"), path);
    Some(Operation { hosts: hosts?, ports: ports?, methods: methods?, paths: paths? })
}

/// The `source` or `operation` of an item, with at least one field.
fn inner<'n>(d: &mut Decoder<'_>, at: &At<'n>, key: &str) -> Option<Fields<'n>> {
    let outer = d.fields(at)?;
    let before = d.findings.errors;
    let fields = d.required(&outer, key).and_then(|at| d.fields(&at))?;
    if !fields.is_empty() {
        return Some(fields);
    }
    if d.findings.errors == before {
        let message = format!("`{}.{key}` must have at least one field: it would match everybody", at.path);
        d.findings.error(
            fields.span,
            Code::InvalidValue,
            message,
            "leave the whole list out to mean everybody",
        );
    }
    None
}

fn matching<T>(
    d: &mut Decoder<'_>,
    fields: &Fields<'_>,
    (any_of, none_of): (&str, &str),
    mut read: impl FnMut(&mut Decoder<'_>, &At<'_>) -> Option<T>,
) -> Option<Match<T>> {
    let any_of = optional(fields.take(any_of), |at| filled(d, &at, &mut read));
    let none_of = optional(fields.take(none_of), |at| filled(d, &at, &mut read));
    Some(Match { any_of: any_of?.unwrap_or_default(), none_of: none_of?.unwrap_or_default() })
}

fn condition(d: &mut Decoder<'_>, at: &At<'_>, namespace: &Label) -> Option<Condition> {
    let fields = d.fields(at)?;
    let key_at = d.required(&fields, "key")?;
    let key = d.text(&key_at)?;
    if fields.take("values").is_none() && fields.take("notValues").is_none() {
        let message = format!("`{}`: at least one of `values` or `notValues` must be set", at.path);
        d.findings.error(fields.span, Code::InvalidValue, message, "");
        return None;
    }
    const VALUES: (&str, &str) = ("values", "notValues");
    let account = |d: &mut Decoder<'_>, at: &At<'_>| service_account(d, at, namespace);
    match key {
        "source.ip" => matching(d, &fields, VALUES, block).map(Condition::SourceIp),
        "remote.ip" => matching(d, &fields, VALUES, block).map(Condition::RemoteIp),
        "source.namespace" => matching(d, &fields, VALUES, pattern).map(Condition::SourceNamespace),
        "source.principal" => matching(d, &fields, VALUES, principal).map(Condition::SourcePrincipal),
        "source.serviceAccount" => matching(d, &fields, VALUES, account).map(Condition::SourceServiceAccount),
        "source.trustDomain" => matching(d, &fields, VALUES, pattern).map(Condition::SourceTrustDomain),
        "destination.ip" => matching(d, &fields, VALUES, block).map(Condition::DestinationIp),
        "destination.port" => matching(d, &fields, VALUES, port).map(Condition::DestinationPort),
        "connection.sni" => matching(d, &fields, VALUES, pattern).map(Condition::ConnectionSni),
        "request.auth.principal" => {
            matching(d, &fields, VALUES, free_pattern).map(Condition::RequestPrincipal)
        }
        "request.auth.audiences" => {
            matching(d, &fields, VALUES, free_pattern).map(Condition::RequestAudiences)
        }
        "request.auth.presenter" => {
            matching(d, &fields, VALUES, free_pattern).map(Condition::RequestPresenter)
        }
        other => {
            let values = |d: &mut Decoder<'_>| matching(d, &fields, VALUES, free_pattern);
            if let Some(name) = other.strip_prefix("request.headers").and_then(one_bracket) {
                let name = header_name(d, &key_at, &name)?;
                return values(d).map(|values| Condition::RequestHeader(name, values));
            }
            if let Some(path) = other.strip_prefix("request.auth.claims").and_then(brackets) {
                return values(d).map(|values| Condition::RequestClaim(path, values));
            }
            unknown_key(d, &key_at, other);
            None
        }
    }
}

/// The names in `[a][b]`, at least one and none empty.
fn brackets(text: &str) -> Option<Vec<Arc<str>>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let names: Vec<&str> = inner.split("][").collect();
    let fits = |name: &&str| !name.is_empty() && !name.contains(['[', ']']);
    (names.len() <= MAX_CLAIM_DEPTH && names.iter().all(fits))
        .then(|| names.into_iter().map(Into::into).collect())
}

fn one_bracket(text: &str) -> Option<Arc<str>> {
    let names = brackets(text)?;
    let [name] = &names[..] else { return None };
    Some(Arc::clone(name))
}

/// The name of a field, in lower case as all are compared.
fn header_name(d: &mut Decoder<'_>, at: &At<'_>, name: &str) -> Option<Arc<str>> {
    let name = name.to_ascii_lowercase();
    let is_pseudo = matches!(&*name, ":authority" | ":method" | ":path" | ":scheme");
    if !is_pseudo && !name.bytes().all(is_token) {
        d.invalid(
            at,
            format!("{} is not the name of a field", quote(&name)),
            "write such as request.headers[x-role]",
        );
        return None;
    }
    Some(name.into())
}

fn unknown_key(d: &mut Decoder<'_>, at: &At<'_>, key: &str) {
    if key.starts_with("experimental.") {
        let message = format!("`{}`: {} is refused: there is no Envoy here", at.path, quote(key));
        d.findings.error(at.node.span, Code::RefusedField, message, "use another key");
    } else {
        let help = match nearest(key, KEYS.into_iter()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the keys are {}", KEYS.join(", ")),
        };
        d.invalid(at, format!("{} is not a key of `when`", quote(key)), &help);
    }
}

/// A path, or a template of one.
fn path(d: &mut Decoder<'_>, at: &At<'_>) -> Option<PathPattern> {
    let text = d.text(at)?;
    match PathPattern::new(text) {
        Ok(PathPattern::Plain(plain)) => {
            let middle = |text: &str| text.contains('*');
            if matches!(&plain, Pattern::Exact(text) | Pattern::Prefix(text) | Pattern::Suffix(text) if middle(text))
            {
                let help = "`*` stands at the start or at the end, once; `{*}` stands for a segment";
                d.invalid(at, format!("{} matches nothing that callers mean", quote(text)), help);
                return None;
            }
            Some(PathPattern::Plain(plain))
        }
        Ok(template) => Some(template),
        Err(error) => {
            d.invalid(
                at,
                format!("{}: {error}", quote(text)),
                "write such as `/users/{*}/cart` or `/static/{**}`",
            );
            None
        }
    }
}

/// A value of a token or a field, which may hold any character: a star in the middle stands for itself.
fn free_pattern(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Pattern> {
    d.text(at).map(Pattern::new)
}

/// A value of an identity or a server name: none of these holds a star, so that one in the middle matches nothing.
fn pattern(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Pattern> {
    let text = d.text(at)?;
    let pattern = Pattern::new(text);
    let rest = match &pattern {
        Pattern::Exact(rest) | Pattern::Prefix(rest) | Pattern::Suffix(rest) => rest,
        Pattern::Present => return Some(pattern),
    };
    if rest.contains('*') {
        d.invalid(
            at,
            format!("{} matches nothing", quote(text)),
            "`*` stands at the start or at the end, once",
        );
        return None;
    }
    Some(pattern)
}

fn principal(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Pattern> {
    if let Some(rest) = d.text(at)?.strip_prefix("spiffe://") {
        let help = format!("write {}", quote(rest));
        d.invalid(at, "a principal is written without `spiffe://`, so this matches nobody", &help);
        return None;
    }
    pattern(d, at)
}

fn service_account(d: &mut Decoder<'_>, at: &At<'_>, namespace: &Label) -> Option<ServiceAccount> {
    let text = d.text(at)?;
    let (space, account) = match text.split_once('/') {
        Some((space, account)) => (d.named(at, Label::new(space))?, account),
        None => (namespace.clone(), text),
    };
    Some(ServiceAccount { namespace: space, account: d.named(at, Label::new(account))? })
}

/// An address or a block, brought to the form that connections' addresses have: IPv4 is never written as IPv6.
fn block(d: &mut Decoder<'_>, at: &At<'_>) -> Option<IpNet> {
    let text = d.text(at)?;
    let read = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let block = read.ok().and_then(canonical);
    if block.is_none() {
        let message = format!("{} is not an IP address or CIDR block", quote(text));
        d.invalid(at, message, "write such as `10.1.2.3`, `10.0.0.0/8` or `fd00::/8`");
    }
    block
}

fn canonical(block: IpNet) -> Option<IpNet> {
    let IpNet::V6(v6) = block else { return Some(block.trunc()) };
    match v6.addr().to_ipv4_mapped() {
        // A block wider than all of IPv4's mapped addresses would match in one form and not in the other.
        Some(v4) => Some(IpNet::V4(Ipv4Net::new(v4, v6.prefix_len().checked_sub(96)?).ok()?.trunc())),
        None => Some(block.trunc()),
    }
}

fn port(d: &mut Decoder<'_>, at: &At<'_>) -> Option<u16> {
    let text = d.text(at)?;
    d.port_text(at, text)
}
