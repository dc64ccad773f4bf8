//! `AuthorizationPolicy`: who may call whom. What is not enforced is refused, never warned about: a rule that is
//! half in force lets through what somebody believes to be shut.

use baremesh_model::authorization::{Action, AuthorizationPolicy, DenyResponse, Enforcement};
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
    enforced("action", "ALLOW (default), DENY or AUDIT; CUSTOM is refused"),
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
        "addresses or CIDR blocks that the request comes from; no forwarding field is believed, so as `ipBlocks`",
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
    refused("provider", "external authorisation is not supported yet"),
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
    let (action, rules, response) = (action?, rules?.unwrap_or_default(), response?);
    if action == Action::Deny && rules.is_empty() {
        let message = "a DENY policy without `rules` is meaningless: it never matches".to_owned();
        let help = "add an empty rule, `rules: [{}]`, to deny everything";
        d.findings.error(spec.span, Code::InvalidValue, message, help);
        return None;
    }
    if let (Some((_, at)), Action::Allow | Action::Audit) = (&response, action) {
        d.invalid(at, "a response is that of a DENY policy: others answer nobody", "remove it");
        return None;
    }
    Some(AuthorizationPolicy {
        key: metadata.key.clone(),
        selector: selector?,
        action,
        enforcement: enforcement?,
        rules,
        response: response.map(|(response, _)| response),
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
        "CUSTOM" => {
            let message =
                format!("`{}`: CUSTOM is refused: external authorisation is not supported yet", at.path);
            d.findings.error(at.node.span, Code::RefusedField, message, "use ALLOW or DENY");
            None
        }
        other => {
            d.invalid(at, format!("Unsupported value: {}", quote(other)), "use ALLOW, DENY or AUDIT");
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
    };
    spec.insert("action".into(), action.into());
    let rules: Vec<Json> = policy.rules.iter().map(authorization_rule::encode).collect();
    if !rules.is_empty() {
        spec.insert("rules".into(), rules.into());
    }
    if let Some(response) = &policy.response {
        let mut out = Map::from_iter([("status".to_owned(), response.status().into())]);
        out.extend(response.body().map(|body| ("body".to_owned(), body.into())));
        spec.insert("response".into(), out.into());
    }
    Json::Object(spec)
}
