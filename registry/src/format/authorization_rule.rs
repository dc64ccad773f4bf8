//! One rule of an AuthorizationPolicy: sources, operations, conditions.

use std::net::IpAddr;

use baremesh_model::authorization::{Condition, Operation, Rule, ServiceAccount, Source};
use baremesh_model::name::Label;
use baremesh_model::pattern::{Match, Pattern};
use ipnet::{IpNet, Ipv4Net};
use serde_json::{Map, Value as Json};

use super::decode::{At, Decoder, Fields, optional};
use super::fields::nearest;
use crate::diagnostic::{Code, quote};

/// The keys of `when` that a connection has.
const KEYS: [&str; 8] = [
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "remote.ip",
    "destination.ip",
    "destination.port",
];

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
    let (principals, namespaces, service_accounts) = (principals?, namespaces?, accounts?);
    let others = !principals.is_empty() || !namespaces.is_empty();
    if !service_accounts.is_empty() && others {
        let message = format!("`{}`: Cannot set serviceAccounts with namespaces or principals", at.path);
        d.findings.error(fields.span, Code::InvalidValue, message, "write two sources, or principals alone");
        return None;
    }
    let (trust_domains, ip_blocks) = (trust_domains?, ip_blocks?);
    Some(Source { principals, namespaces, service_accounts, trust_domains, ip_blocks })
}

fn operation(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Operation> {
    let fields = inner(d, at, "operation")?;
    Some(Operation { ports: matching(d, &fields, ("ports", "notPorts"), port)? })
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
        "source.ip" | "remote.ip" => matching(d, &fields, VALUES, block).map(Condition::SourceIp),
        "source.namespace" => matching(d, &fields, VALUES, pattern).map(Condition::SourceNamespace),
        "source.principal" => matching(d, &fields, VALUES, principal).map(Condition::SourcePrincipal),
        "source.serviceAccount" => matching(d, &fields, VALUES, account).map(Condition::SourceServiceAccount),
        "source.trustDomain" => matching(d, &fields, VALUES, pattern).map(Condition::SourceTrustDomain),
        "destination.ip" => matching(d, &fields, VALUES, block).map(Condition::DestinationIp),
        "destination.port" => matching(d, &fields, VALUES, port).map(Condition::DestinationPort),
        other => {
            unknown_key(d, &key_at, other);
            None
        }
    }
}

fn unknown_key(d: &mut Decoder<'_>, at: &At<'_>, key: &str) {
    if key.starts_with("request.") {
        let message = format!("`{}`: {} is refused: HTTP requests are not read yet", at.path, quote(key));
        let help = "use a key of the connection, such as source.principal or destination.port";
        d.findings.error(at.node.span, Code::RefusedField, message, help);
    } else if key == "connection.sni" {
        let message = format!(
            "`{}`: {} is refused: the server name of TLS inside the mesh is not read yet",
            at.path,
            quote(key)
        );
        d.findings.error(
            at.node.span,
            Code::RefusedField,
            message,
            "use another key of the connection, such as source.principal",
        );
    } else if key.starts_with("experimental.") {
        let message = format!("`{}`: {} is refused: there is no Envoy here", at.path, quote(key));
        d.findings.error(at.node.span, Code::RefusedField, message, "use a key of the connection");
    } else {
        let help = match nearest(key, KEYS.into_iter()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the keys are {}", KEYS.join(", ")),
        };
        d.invalid(at, format!("{} is not a key of `when`", quote(key)), &help);
    }
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

pub(super) fn encode(rule: &Rule) -> Json {
    let mut out = Map::new();
    let mut put = |key: &str, items: Vec<Json>| {
        if !items.is_empty() {
            out.insert(key.into(), items.into());
        }
    };
    put("from", rule.from.iter().map(|source| wrap("source", encode_source(source))).collect());
    put("to", rule.to.iter().map(|operation| wrap("operation", encode_operation(operation))).collect());
    put("when", rule.when.iter().map(encode_condition).collect());
    Json::Object(out)
}

fn wrap(key: &str, value: Map<String, Json>) -> Json {
    Json::Object(Map::from_iter([(key.to_owned(), Json::Object(value))]))
}

fn encode_source(source: &Source) -> Map<String, Json> {
    let mut out = Map::new();
    put_match(&mut out, ("principals", "notPrincipals"), &source.principals, ToString::to_string);
    put_match(&mut out, ("namespaces", "notNamespaces"), &source.namespaces, ToString::to_string);
    put_match(&mut out, ("serviceAccounts", "notServiceAccounts"), &source.service_accounts, account_text);
    put_match(&mut out, ("trustDomains", "notTrustDomains"), &source.trust_domains, ToString::to_string);
    put_match(&mut out, ("ipBlocks", "notIpBlocks"), &source.ip_blocks, ToString::to_string);
    out
}

fn encode_operation(operation: &Operation) -> Map<String, Json> {
    let mut out = Map::new();
    put_match(&mut out, ("ports", "notPorts"), &operation.ports, ToString::to_string);
    out
}

fn encode_condition(condition: &Condition) -> Json {
    let mut out = Map::new();
    let values = ("values", "notValues");
    let key = match condition {
        Condition::SourceIp(asked) => {
            put_match(&mut out, values, asked, ToString::to_string);
            "source.ip"
        }
        Condition::SourceNamespace(asked) => {
            put_match(&mut out, values, asked, ToString::to_string);
            "source.namespace"
        }
        Condition::SourcePrincipal(asked) => {
            put_match(&mut out, values, asked, ToString::to_string);
            "source.principal"
        }
        Condition::SourceServiceAccount(asked) => {
            put_match(&mut out, values, asked, account_text);
            "source.serviceAccount"
        }
        Condition::SourceTrustDomain(asked) => {
            put_match(&mut out, values, asked, ToString::to_string);
            "source.trustDomain"
        }
        Condition::DestinationIp(asked) => {
            put_match(&mut out, values, asked, ToString::to_string);
            "destination.ip"
        }
        Condition::DestinationPort(asked) => {
            put_match(&mut out, values, asked, ToString::to_string);
            "destination.port"
        }
    };
    out.insert("key".into(), key.into());
    Json::Object(out)
}

fn account_text(account: &ServiceAccount) -> String {
    format!("{}/{}", account.namespace, account.account)
}

fn put_match<T>(
    out: &mut Map<String, Json>,
    (any_of, none_of): (&str, &str),
    asked: &Match<T>,
    text: impl Fn(&T) -> String,
) {
    for (key, list) in [(any_of, &asked.any_of), (none_of, &asked.none_of)] {
        if !list.is_empty() {
            let list: Vec<Json> = list.iter().map(|item| text(item).into()).collect();
            out.insert(key.into(), list.into());
        }
    }
}
