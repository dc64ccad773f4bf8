//! What is decided at an endpoint: by its own agent, whose policies every agent knows, by this agent where the endpoint is a
//! service of this host, or by nobody where no agent is.

use std::net::{IpAddr, Ipv4Addr};

use baremesh_model::authorization::{
    Action, AuthorizationPolicy, Carried, Condition, Connection, Decision, Enforcement, Facts, Hello,
    Operation, PolicySet, Request, Rule, Source, Unmet, server_name, server_names,
};
use baremesh_model::name::{Key, Label};
use baremesh_model::pattern::Match;
use baremesh_model::peer_authentication::{ModeOrigin, MtlsMode, mode_with_origin};
use baremesh_model::rate_limit::Asking;
use baremesh_model::service::Protocol;
use baremesh_model::sidecar::Scope;
use baremesh_model::workload::Labels;

use super::requests::answer;
use super::{Case, asked, limits, tokens};
use crate::admin::report::explain::{DecisionReport, MtlsReport, PolicyReport};
use crate::proxy::error::ProxyError;
use crate::proxy::http::forwarded_for;
use crate::proxy::http::reply::Reply;
use crate::snapshot::{Endpoint, LocalEndpoint, ServiceEntry, Transport};

/// What is decided at an endpoint of a service.
pub(super) fn decide(case: &Case<'_>, service: &ServiceEntry, endpoint: &Endpoint) -> DecisionReport {
    if let Some(local) = case.snapshot.here(endpoint) {
        return decide_here(case, local);
    }
    let Transport::Hbone(agent) = &endpoint.transport else {
        return DecisionReport {
            by: "nobody".to_owned(),
            allowed: true,
            verdict: "no agent is there: policies are not enforced".to_owned(),
            asks: Vec::new(),
            answer: None,
            token: None,
            rate_limits: Vec::new(),
            dry_run: None,
            mtls: None,
            policies: Vec::new(),
        };
    };
    let mesh = &case.snapshot.mesh;
    // As the endpoint's agent fills in what a registration leaves out.
    let mut labels = endpoint.labels.clone();
    labels.entry("app".into()).or_insert_with(|| service.key.name.as_str().into());
    let namespace = &service.key.namespace;
    let root = &mesh.config.root_namespace;
    let workload_port = endpoint.address.port();
    let chosen = PolicySet::select(&mesh.authorization_policies, namespace, &labels, root);
    let policies = PolicySet::new(chosen.cloned().collect());
    let port = mesh.services.get(&service.key).and_then(|declared| {
        declared.ports.iter().find(|port| port.target_port.get() == endpoint.address.port())
    });
    let number = port.map_or(endpoint.address.port(), |port| port.port.get());
    let protocol = port.map_or(Protocol::Auto, |port| port.protocol);
    let scope = Scope::of(&mesh.sidecars, (namespace, &labels), root);
    if let Some(sidecar) = scope.ingress_against(workload_port, protocol) {
        return not_called(case, "agent", (&service.key, workload_port, protocol), sidecar);
    }
    let names = server_names(&service.host, &service.key, number);
    // Behind a gateway it is the gateway's, whichever that is.
    let near = agent.beyond.is_none().then(|| case.address_towards(agent.address.ip()));
    let source_ip = near.flatten().unwrap_or(UNKNOWN);
    let (workload, advertised) = ((namespace, &labels), endpoint.address.port());
    as_carried(case, (protocol, workload, advertised), source_ip, |carried| {
        let source = Some(&case.caller.identity);
        let (destination_ip, destination_port) = (endpoint.address.ip(), endpoint.address.port());
        let hello = hello(case, protocol);
        let server_name = server_name((source, &names), protocol, carried, &hello);
        let connection = Connection { source, source_ip, destination_ip, destination_port, server_name };
        let mtls = mtls(case, (namespace, &labels), destination_port);
        let may_ask = !mesh.config.is_provider(&service.key, number);
        let facts = Facts { connection, carried };
        report("agent", (&policies, asks(&policies, facts, may_ask)), facts, mtls)
    })
}

/// What is decided at a service of this host.
pub(super) fn decide_here(case: &Case<'_>, local: &LocalEndpoint) -> DecisionReport {
    if let Some(sidecar) = &local.refused_by {
        let called = (&local.service, local.advertised.port(), local.protocol);
        return not_called(case, "this_agent", called, sidecar);
    }
    let source_ip = case.client_ip().unwrap_or(UNKNOWN);
    let workload = (&local.service.namespace, &local.labels);
    as_carried(case, (local.protocol, workload, local.advertised.port()), source_ip, |carried| {
        let hello = hello(case, local.protocol);
        let facts = local.facts((Some(&case.caller.identity), source_ip), carried, &hello);
        let mtls = mtls(case, (&local.service.namespace, &local.labels), local.advertised.port());
        let asks = asks(&local.policies, facts, local.may_ask());
        report("this_agent", (&local.policies, asks), facts, mtls)
    })
}

/// What is decided by a Sidecar before anybody is asked.
fn not_called(
    case: &Case<'_>,
    by: &str,
    (service, port, protocol): (&Key, u16, Protocol),
    sidecar: &Key,
) -> DecisionReport {
    let (service, sidecar) = (service.clone(), sidecar.clone());
    let error = ProxyError::NotInSidecarIngress { service, port, sidecar };
    let is_request = case.asked.carried == asked::Carried::Requests
        && !matches!(protocol, Protocol::Tcp | Protocol::Tls | Protocol::Https);
    DecisionReport {
        by: by.to_owned(),
        allowed: false,
        verdict: error.to_string(),
        asks: Vec::new(),
        answer: is_request.then(|| answer(&Reply::denied())),
        token: None,
        rate_limits: Vec::new(),
        dry_run: None,
        mtls: None,
        policies: Vec::new(),
    }
}

/// Decides on the request where the port takes it for one, else on the connection. A request's token is looked at before
/// policies are asked, and limits count what these let through.
fn as_carried(
    case: &Case<'_>,
    (protocol, workload, port): (Protocol, (&Label, &Labels), u16),
    source_ip: IpAddr,
    decide: impl FnOnce(Carried<'_>) -> DecisionReport,
) -> DecisionReport {
    let head = match (case.asked.carried, protocol) {
        (_, Protocol::Tcp | Protocol::Tls | Protocol::Https) => return decide(Carried::Bytes),
        (asked::Carried::Requests, _) => case.sent.unwrap_or(&case.asked.head),
        (asked::Carried::Bytes, Protocol::Auto) => return decide(Carried::Bytes),
        // Whatever comes is read as requests.
        (asked::Carried::Bytes, Protocol::Http | Protocol::Http2 | Protocol::Grpc) => {
            return decide(Carried::Requests);
        }
    };
    let remote_ip =
        forwarded_for::client_of(&head.headers, case.snapshot.mesh.config.trusted_proxies, source_ip);
    let rules = tokens::rules(case, workload);
    let judged = tokens::judge(case, rules.as_deref(), head);
    let said = tokens::in_words(rules.as_deref(), &judged);
    let token = judged.as_ref().ok().and_then(Option::as_ref);
    let request = Request { head, token, remote_ip, allowed_by: &[] };
    let report = DecisionReport { token: said, ..decide(Carried::Request(&request)) };
    match judged {
        Err(refusal) => DecisionReport {
            allowed: false,
            verdict: format!("its token is not taken: {}", refusal.text()),
            answer: Some(answer(&refusal.reply(head))),
            // Nobody asks them.
            policies: Vec::new(),
            dry_run: None,
            ..report
        },
        Ok(_) if report.allowed => {
            let source = Some(&case.caller.identity);
            let asking = Asking { head, port, source, address: remote_ip, token };
            DecisionReport { rate_limits: limits::on_arrival(case, workload, &asking), ..report }
        }
        Ok(_) => report,
    }
}

/// What the called side's agent sees of the application's own TLS.
fn hello(case: &Case<'_>, protocol: Protocol) -> Hello {
    match (&case.asked.sni, case.asked.tls) {
        (Some(name), _) => Hello::Named(name.to_ascii_lowercase().into()),
        (None, true) => Hello::Nameless,
        (None, false) if matches!(protocol, Protocol::Tls | Protocol::Https) => Hello::Unread,
        (None, false) => Hello::Absent,
    }
}

/// What stands for an address that nobody said; a note tells where it matters.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Whether a policy of the mesh asks where a call comes from.
pub(super) fn asks_for_addresses(policies: &AuthorizationPolicy) -> bool {
    let by_address =
        |condition: &Condition| matches!(condition, Condition::SourceIp(_) | Condition::RemoteIp(_));
    let of_rule = |rule: &Rule| {
        let mut sources = rule.from.iter();
        sources.any(|source| !source.ip_blocks.is_empty() || !source.remote_ip_blocks.is_empty())
            || rule.when.iter().any(by_address)
    };
    policies.rules.iter().any(of_rule)
}

/// Whether a policy asks who the request's token names.
pub(super) fn asks_for_tokens(policy: &AuthorizationPolicy) -> bool {
    let by_token = |condition: &Condition| {
        matches!(
            condition,
            Condition::RequestPrincipal(_)
                | Condition::RequestAudiences(_)
                | Condition::RequestPresenter(_)
                | Condition::RequestClaim(..)
        )
    };
    let of_rule = |rule: &Rule| {
        let mut sources = rule.from.iter();
        sources.any(|source| !source.request_principals.is_empty()) || rule.when.iter().any(by_token)
    };
    policy.rules.iter().any(of_rule)
}

/// Who is asked before anything is decided, in this order. What each would say is not known.
fn asks(policies: &PolicySet, facts: Facts<'_>, may_ask: bool) -> Vec<String> {
    let (mut asked, mut reports) = (Vec::new(), Vec::new());
    // While requests are to come, each is asked about for itself.
    let may_ask = may_ask && !matches!(facts.carried, Carried::Requests);
    while let Some(asks) = may_ask.then(|| policies.asks(facts, &asked)).flatten() {
        reports.push(asks.to_string());
        asked.push(asks.provider.into());
    }
    reports
}

fn report(
    by: &str,
    (policies, asks): (&PolicySet, Vec<String>),
    facts: Facts<'_>,
    mtls: MtlsReport,
) -> DecisionReport {
    let Decision { verdict, dry_run, .. } = policies.decide(facts);
    let is_request = matches!(facts.carried, Carried::Request(_));
    DecisionReport {
        by: by.to_owned(),
        allowed: verdict.allows(),
        verdict: verdict.to_string(),
        asks,
        answer: (is_request && !verdict.allows()).then(|| answer(&Reply::denied_by(&verdict))),
        token: None,
        rate_limits: Vec::new(),
        dry_run: dry_run.map(|verdict| verdict.to_string()),
        mtls: Some(mtls),
        policies: policies.policies().iter().map(|policy| policy_report(policy, facts)).collect(),
    }
}

fn policy_report(policy: &AuthorizationPolicy, facts: Facts<'_>) -> PolicyReport {
    let unmet: Vec<_> = policy.unmet(facts).map(|unmet| unmet.map(words)).collect();
    PolicyReport {
        policy: slashed(&policy.key),
        action: match policy.action {
            Action::Allow => "ALLOW",
            Action::Deny => "DENY",
            Action::Audit => "AUDIT",
            Action::Custom => "CUSTOM",
        }
        .to_owned(),
        dry_run: policy.enforcement == Enforcement::DryRun,
        matched_rule: unmet.iter().position(Option::is_none).map(|index| index + 1),
        unmet,
    }
}

fn mtls(case: &Case<'_>, workload: (&Label, &Labels), port: u16) -> MtlsReport {
    let mesh = &case.snapshot.mesh;
    let default = (&mesh.config.root_namespace, mesh.config.default_mtls);
    let (mode, origin) = mode_with_origin(&mesh.peer_authentications, workload, port, default);
    let policy = |key: &Key, whose: &str| format!("PeerAuthentication {}, {whose}", slashed(key));
    MtlsReport {
        mode: match mode {
            MtlsMode::Disable => "DISABLE",
            MtlsMode::Permissive => "PERMISSIVE",
            MtlsMode::Strict => "STRICT",
        }
        .to_owned(),
        from: match origin {
            ModeOrigin::Port(key) => policy(key, "for the workload's port"),
            ModeOrigin::Workload(key) => policy(key, "for the workload"),
            ModeOrigin::Namespace(key) => policy(key, "for the namespace"),
            ModeOrigin::Root(key) => policy(key, "for the mesh"),
            ModeOrigin::Default => "the mesh's default, no PeerAuthentication says anything".to_owned(),
        },
    }
}

/// A resource as messages name it.
pub(super) fn slashed(key: &Key) -> String {
    format!("{}/{}", key.namespace, key.name)
}

/// What a rule asks for, in the fields' own names.
fn words(unmet: Unmet<'_>) -> String {
    match unmet {
        Unmet::From(sources) => format!("from: {}", any(sources.iter().map(source))),
        Unmet::To(operations) => format!("to: {}", any(operations.iter().map(operation))),
        Unmet::When(condition) => format!("when: {}", self::condition(condition)),
    }
}

fn any(all: impl Iterator<Item = String>) -> String {
    all.collect::<Vec<_>>().join(" or ")
}

fn source(source: &Source) -> String {
    let account = |account: &baremesh_model::authorization::ServiceAccount| {
        format!("{}/{}", account.namespace, account.account)
    };
    let parts = [
        listed("principals", &source.principals, ToString::to_string),
        listed("requestPrincipals", &source.request_principals, ToString::to_string),
        listed("namespaces", &source.namespaces, ToString::to_string),
        listed("serviceAccounts", &source.service_accounts, account),
        listed("trustDomains", &source.trust_domains, ToString::to_string),
        listed("ipBlocks", &source.ip_blocks, ToString::to_string),
        listed("remoteIpBlocks", &source.remote_ip_blocks, ToString::to_string),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

fn operation(operation: &Operation) -> String {
    let parts = [
        listed("hosts", &operation.hosts, ToString::to_string),
        listed("ports", &operation.ports, ToString::to_string),
        listed("methods", &operation.methods, ToString::to_string),
        listed("paths", &operation.paths, ToString::to_string),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

fn condition(condition: &Condition) -> String {
    let account = |account: &baremesh_model::authorization::ServiceAccount| {
        format!("{}/{}", account.namespace, account.account)
    };
    match condition {
        Condition::SourceIp(asked) => listed("source.ip", asked, ToString::to_string),
        Condition::RemoteIp(asked) => listed("remote.ip", asked, ToString::to_string),
        Condition::SourceNamespace(asked) => listed("source.namespace", asked, ToString::to_string),
        Condition::SourcePrincipal(asked) => listed("source.principal", asked, ToString::to_string),
        Condition::SourceServiceAccount(asked) => listed("source.serviceAccount", asked, account),
        Condition::SourceTrustDomain(asked) => listed("source.trustDomain", asked, ToString::to_string),
        Condition::DestinationIp(asked) => listed("destination.ip", asked, ToString::to_string),
        Condition::DestinationPort(asked) => listed("destination.port", asked, ToString::to_string),
        Condition::ConnectionSni(asked) => listed("connection.sni", asked, ToString::to_string),
        Condition::RequestHeader(name, asked) => {
            listed(&format!("request.headers[{name}]"), asked, ToString::to_string)
        }
        Condition::RequestPrincipal(asked) => listed("request.auth.principal", asked, ToString::to_string),
        Condition::RequestAudiences(asked) => listed("request.auth.audiences", asked, ToString::to_string),
        Condition::RequestPresenter(asked) => listed("request.auth.presenter", asked, ToString::to_string),
        Condition::RequestClaim(path, asked) => {
            let names: String = path.iter().map(|name| format!("[{name}]")).collect();
            listed(&format!("request.auth.claims{names}"), asked, ToString::to_string)
        }
    }
    .unwrap_or_default()
}

/// A field with its values, `name a, b` and `not c`; none where it asks for nothing.
fn listed<T>(name: &str, asked: &Match<T>, text: impl Fn(&T) -> String) -> Option<String> {
    let list = |values: &[T]| values.iter().map(&text).collect::<Vec<_>>().join(", ");
    match (&asked.any_of[..], &asked.none_of[..]) {
        ([], []) => None,
        (any, []) => Some(format!("{name} {}", list(any))),
        ([], none) => Some(format!("{name} not {}", list(none))),
        (any, none) => Some(format!("{name} {} and not {}", list(any), list(none))),
    }
}
