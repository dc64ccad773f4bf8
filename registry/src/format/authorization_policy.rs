//! `AuthorizationPolicy`: who may call whom. What is not enforced is refused, never warned about: a rule that is
//! half in force lets through what somebody believes to be shut.

use std::sync::Arc;

use baremesh_model::authorization::{
    Action, AuthorizationPolicy, Condition, DenyResponse, Enforcement, Rule,
};
use serde_json::{Map, Value as Json, json};

use super::authorization_rule;
use super::decode::{At, Decoder, Fields, optional};
use super::document::Metadata;
use super::fields::{Field, enforced, refused};
use super::tree::Value;
use crate::diagnostic::{Code, quote};

const TARGET: &str = "use `selector.matchLabels`";

/// The fields of the kind.
pub(super) static FIELDS: &[Field] = &[
    enforced("selector", "the workloads that it is for; all of the namespace without it"),
    enforced("selector.matchLabels", "labels that a workload must carry, all of them"),
    enforced("action", "ALLOW (default), DENY, AUDIT or CUSTOM, which has `provider` asked before all else"),
    enforced(
        "dryRun",
        "true: decides nothing, is logged and counted (also the annotation `istio.io/dry-run`)",
    ),
    enforced("rules", "any of these makes a match; an ALLOW policy without rules allows nothing"),
    enforced("rules[].from", "any of these sources"),
    enforced("rules[].from[].source", "every field of it must hold"),
    enforced(
        "rules[].from[].source.principals",
        "`<trust domain>/ns/<namespace>/sa/<account>`, `abc*`, `*abc`, `*`",
    ),
    enforced("rules[].from[].source.notPrincipals", "none of these; `*` means a caller without identity"),
    enforced("rules[].from[].source.namespaces", "namespaces of the caller's identity"),
    enforced("rules[].from[].source.notNamespaces", "none of these"),
    enforced(
        "rules[].from[].source.serviceAccounts",
        "`namespace/account`, or `account` in the policy's namespace",
    ),
    enforced("rules[].from[].source.notServiceAccounts", "none of these"),
    enforced("rules[].from[].source.trustDomains", "trust domains of the caller's identity"),
    enforced("rules[].from[].source.notTrustDomains", "none of these"),
    enforced("rules[].from[].source.ipBlocks", "addresses or CIDR blocks that the connection comes from"),
    enforced("rules[].from[].source.notIpBlocks", "none of these"),
    enforced(
        "rules[].from[].source.requestPrincipals",
        "`<issuer>/<subject>` of the request's verified token; `*`: there is one",
    ),
    enforced("rules[].from[].source.notRequestPrincipals", "none of these; `*`: there is no verified token"),
    enforced(
        "rules[].from[].source.remoteIpBlocks",
        "addresses or CIDR blocks that the request comes from: the connection's, or what trusted proxies say (`numTrustedProxies` of MeshConfig)",
    ),
    enforced("rules[].from[].source.notRemoteIpBlocks", "none of these"),
    enforced("rules[].to", "any of these operations"),
    enforced("rules[].to[].operation", "every field of it must hold"),
    enforced("rules[].to[].operation.ports", "the workload's ports, as texts"),
    enforced("rules[].to[].operation.notPorts", "none of these"),
    enforced(
        "rules[].to[].operation.hosts",
        "hosts that requests are for, in either case; with a port only where one is written here",
    ),
    enforced("rules[].to[].operation.notHosts", "none of these"),
    enforced("rules[].to[].operation.methods", "methods of requests, case counts; gRPC's is POST"),
    enforced("rules[].to[].operation.notMethods", "none of these"),
    enforced(
        "rules[].to[].operation.paths",
        "paths of requests without the query, normalised: `/abc`, `/abc*`, `*abc`, `*`, or a template with `{*}` for a \
         segment and `{**}` for any text",
    ),
    enforced("rules[].to[].operation.notPaths", "none of these"),
    enforced("rules[].when", "all of these conditions"),
    enforced(
        "rules[].when[].key",
        "source.ip, source.namespace, source.principal, source.serviceAccount, source.trustDomain, remote.ip, \
         destination.ip, destination.port, connection.sni, request.headers[x], request.auth.principal, \
         request.auth.audiences, request.auth.presenter or request.auth.claims[x], [x][y] for a claim in a claim",
    ),
    enforced("rules[].when[].values", "any of these"),
    enforced("rules[].when[].notValues", "none of these"),
    refused("targetRef", TARGET),
    refused("targetRefs", TARGET),
    enforced("provider", "of a CUSTOM policy: who is asked"),
    enforced("provider.name", "one of `extensionProviders` of the MeshConfig"),
    enforced("response", "of a DENY policy: what the caller of a denied request is told"),
    enforced("response.status", "the status, 400 to 599; 403 unless set"),
    enforced("response.body", "the text, at most 4096 bytes; `RBAC: access denied` unless set"),
];

pub(super) fn decode(
    d: &mut Decoder<'_>,
    metadata: &Metadata<'_>,
    spec: &Fields<'_>,
) -> Option<AuthorizationPolicy> {
    let selector = d.selector(spec);
    let action = optional(spec.take("action"), |at| action(d, &at)).map(|a| a.unwrap_or(Action::Allow));
    let enforcement = enforcement(d, metadata, spec);
    let namespace = &metadata.key.namespace;
    let rules =
        optional(spec.take("rules"), |at| d.each(&at, |d, at| authorization_rule::decode(d, at, namespace)));
    let response = optional(spec.take("response"), |at| Some((response(d, &at)?, at)));
    let provider = optional(spec.take("provider"), |at| Some((provider(d, &at)?, at)));
    let (action, rules, response) = (action?, rules?.unwrap_or_default(), response?);
    let (provider, enforcement) = (provider?, enforcement?);
    if action == Action::Deny && rules.is_empty() {
        let message = "a DENY policy without `rules` is meaningless: it never matches".to_owned();
        let help = "add an empty rule, `rules: [{}]`, to deny everything";
        d.findings.error(spec.span, Code::InvalidValue, message, help);
        return None;
    }
    if action == Action::Custom {
        custom(d, spec, (&rules, enforcement), provider.is_some())?;
    } else if let Some((_, at)) = &provider {
        d.invalid(at, "a provider is that of a CUSTOM policy", "remove it, or set `action` to CUSTOM");
        return None;
    }
    if let (Some((_, at)), Action::Allow | Action::Audit | Action::Custom) = (&response, action) {
        d.invalid(at, "a response is that of a DENY policy: others answer nobody", "remove it");
        return None;
    }
    Some(AuthorizationPolicy {
        key: metadata.key.clone(),
        selector: selector?,
        action,
        enforcement,
        rules,
        response: response.map(|(response, _)| response),
        provider: provider.map(|(provider, _)| provider),
    })
}

/// The provider's name.
fn provider(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let fields = d.fields(at)?;
    let name = d.required(&fields, "name")?;
    d.text(&name).map(Arc::from)
}

/// What must hold of a CUSTOM policy.
fn custom(
    d: &mut Decoder<'_>,
    spec: &Fields<'_>,
    (rules, enforcement): (&[Rule], Enforcement),
    has_provider: bool,
) -> Option<()> {
    let mut fault = |message: &str, help: &str| {
        d.findings.error(spec.span, Code::InvalidValue, message.to_owned(), help);
    };
    if !has_provider {
        fault("`provider.name` must not be empty", "name one of the MeshConfig's `extensionProviders`");
        return None;
    }
    if rules.is_empty() {
        let help = "add an empty rule, `rules: [{}]`, to have the provider asked about everything";
        fault("a CUSTOM policy without `rules` is meaningless: its provider is never asked", help);
        return None;
    }
    if enforcement == Enforcement::DryRun {
        let help = "let it select a workload that is there for trying it, or let the provider answer 200";
        fault("a CUSTOM policy is no dry run: what its provider would say is known when it is asked", help);
        return None;
    }
    let items = spec.take("rules").and_then(|at| d.list(&at)).unwrap_or_default();
    let mut sound = Some(());
    for (at, rule) in items.iter().zip(rules) {
        if let Some(field) = not_of_custom(rule) {
            let message = format!("{field} is not supported with CUSTOM, here as in Istio");
            let help = "let the rules say what is asked about by ports, hosts, paths, methods, fields and addresses, and write an \
                        ALLOW or DENY policy beside it for who may call";
            d.invalid(at, message, help);
            sound = None;
        }
    }
    sound
}

/// What a rule asks for that rules of CUSTOM policies may not: who calls is the provider's to judge, and tokens are verified
/// after it was asked. The same fields as in Istio.
fn not_of_custom(rule: &Rule) -> Option<&'static str> {
    let of_sources = rule.from.iter().find_map(|source| {
        [
            (source.namespaces.is_empty(), "`from.source.namespaces`"),
            (source.service_accounts.is_empty(), "`from.source.serviceAccounts`"),
            (source.principals.is_empty(), "`from.source.principals`"),
            (source.request_principals.is_empty(), "`from.source.requestPrincipals`"),
        ]
        .into_iter()
        .find_map(|(is_unset, name)| (!is_unset).then_some(name))
    });
    of_sources.or_else(|| {
        rule.when.iter().find_map(|condition| match condition {
            Condition::SourceNamespace(_) => Some("`when` on `source.namespace`"),
            Condition::SourcePrincipal(_) => Some("`when` on `source.principal`"),
            Condition::SourceServiceAccount(_) => Some("`when` on `source.serviceAccount`"),
            Condition::RequestPrincipal(_)
            | Condition::RequestAudiences(_)
            | Condition::RequestPresenter(_)
            | Condition::RequestClaim(..) => Some("`when` on `request.auth`"),
            Condition::SourceIp(_)
            | Condition::RemoteIp(_)
            | Condition::SourceTrustDomain(_)
            | Condition::DestinationIp(_)
            | Condition::DestinationPort(_)
            | Condition::ConnectionSni(_)
            | Condition::RequestHeader(..) => None,
        })
    })
}

/// What the caller of a denied request is told.
fn response(d: &mut Decoder<'_>, at: &At<'_>) -> Option<DenyResponse> {
    let fields = d.fields(at)?;
    let status = optional(fields.take("status"), |at| d.integer(&at));
    let body = optional(fields.take("body"), |at| d.any_text(&at).map(Into::into));
    let (status, body) = (status?.unwrap_or(403), body?);
    let read = u16::try_from(status).ok().and_then(|status| DenyResponse::new(status, body));
    if read.is_none() {
        let message = format!(
            "a response has a status of 400 to 599, and a body of {} bytes at most",
            DenyResponse::MAX_BODY
        );
        d.invalid(at, message, "");
    }
    read
}

fn action(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Action> {
    match d.text(at)? {
        "ALLOW" => Some(Action::Allow),
        "DENY" => Some(Action::Deny),
        "AUDIT" => Some(Action::Audit),
        "CUSTOM" => Some(Action::Custom),
        other => {
            d.invalid(at, format!("Unsupported value: {}", quote(other)), "use ALLOW, DENY, AUDIT or CUSTOM");
            None
        }
    }
}

/// `dryRun`, or the annotation; where both are written they must agree.
fn enforcement(d: &mut Decoder<'_>, metadata: &Metadata<'_>, spec: &Fields<'_>) -> Option<Enforcement> {
    let field = optional(spec.take("dryRun"), |at| d.boolean(&at))?;
    let annotation = optional(metadata.dry_run.clone(), |at| annotation(d, &at))?;
    if let (Some(a), Some(b), Some(at)) = (field, annotation, &metadata.dry_run)
        && a != b
    {
        d.invalid(at, "the annotation and `dryRun` disagree", "keep one of the two");
        return None;
    }
    let dry = field.or(annotation).unwrap_or(false);
    Some(if dry { Enforcement::DryRun } else { Enforcement::Enforced })
}

fn annotation(d: &mut Decoder<'_>, at: &At<'_>) -> Option<bool> {
    match &at.node.value {
        Value::Text(text) if &**text == "true" => Some(true),
        Value::Text(text) if &**text == "false" => Some(false),
        _ => {
            d.invalid(at, "must be \"true\" or \"false\", in quotes", "");
            None
        }
    }
}

/// The spec; the dry run stands in an annotation, as Istio has it.
pub(super) fn encode(policy: &AuthorizationPolicy) -> Json {
    let mut spec = Map::new();
    if let Some(selector) = &policy.selector {
        spec.insert("selector".into(), json!({ "matchLabels": super::json::labels(selector) }));
    }
    let action = match policy.action {
        Action::Allow => "ALLOW",
        Action::Deny => "DENY",
        Action::Audit => "AUDIT",
        Action::Custom => "CUSTOM",
    };
    spec.insert("action".into(), action.into());
    let rules: Vec<Json> = policy.rules.iter().map(authorization_rule::encode).collect();
    if !rules.is_empty() {
        spec.insert("rules".into(), rules.into());
    }
    if let Some(provider) = &policy.provider {
        spec.insert("provider".into(), json!({ "name": &**provider }));
    }
    if let Some(response) = &policy.response {
        let mut out = Map::from_iter([("status".to_owned(), response.status().into())]);
        out.extend(response.body().map(|body| ("body".to_owned(), body.into())));
        spec.insert("response".into(), out.into());
    }
    Json::Object(spec)
}
