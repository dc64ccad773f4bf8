//! What `baremesh explain` asks and is answered. `docs/explain.md` describes the JSON; fields are only ever added.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// `POST /explain`: a call to explain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// `http://host:port/path`, `tcp://host:port`, or `https://` and `tls://` for TLS of the application's own.
    pub url: String,
    /// The method.
    pub method: String,
    /// Header fields with their values.
    pub headers: Vec<(String, String)>,
    /// The calling service, `name` or `name.namespace`, or an identity; the host itself without.
    pub from: Option<String>,
    /// The address that the call comes from, where it matters and is another than the host's.
    pub source_ip: Option<IpAddr>,
    /// The TLS server name.
    pub sni: Option<String>,
    /// What the request's token says: its payload, which is taken to be signed by whom it names as its issuer.
    #[serde(default)]
    pub claims: Option<String>,
}

/// What would become of the call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The call, as it was understood.
    pub request: RequestReport,
    /// What becomes of it.
    pub outcome: Outcome,
    /// Whether it is let through wherever it may go, or answered by its route.
    pub passes: bool,
    /// The same in a sentence.
    pub summary: String,
    /// The service that it is for.
    pub service: Option<CalledReport>,
    /// The VirtualService whose routes hold for it, `namespace/name`.
    pub virtual_service: Option<String>,
    /// The routes up to the one that takes it, in their order; all of them where none does.
    pub routes: Vec<RouteReport>,
    /// What the agent answers itself, where it does.
    pub answer: Option<AnswerReport>,
    /// What the route does, and the DestinationRule of all destinations.
    pub effects: Vec<EffectReport>,
    /// Where it may go.
    pub destinations: Vec<DestinationReport>,
    /// What to know besides.
    pub notes: Vec<String>,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is sent on.
    Forwarded,
    /// Its route answers it.
    Answered,
    /// A fault of its route always answers it.
    Aborted,
    /// A policy, or the way to its endpoint, refuses it.
    Refused,
    /// Some of the places where it may go take it, others do not.
    Partly,
    /// Routes are there, and none takes it.
    NoRoute,
    /// Its route names a service, port or subset that there is not.
    NoDestination,
    /// There is no endpoint for it at the moment.
    NoEndpoint,
    /// The service has no such port.
    NoSuchPort,
    /// The address is not the mesh's: nothing of it is captured.
    NotMeshed,
}

/// A call, as it was understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestReport {
    /// The URL as given.
    pub url: String,
    /// The method; none where bytes are carried.
    pub method: Option<String>,
    /// `http` where requests are routed one by one, `bytes` where connections are.
    pub carried_as: String,
    /// Who calls.
    pub identity: String,
    /// The registered service that calls, `name.namespace`; none for the host itself.
    pub service: Option<String>,
    /// The address that endpoints on other hosts see.
    pub source_ip: Option<IpAddr>,
}

/// The service that a call is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalledReport {
    /// `name.namespace`.
    pub service: String,
    /// The full host name.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What it speaks.
    pub protocol: String,
    /// The identity that its endpoints show.
    pub identity: String,
}

/// A route, and whether it takes the call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteReport {
    /// Where it stands: `http[0]`, `tcp[1]`, `tls[0]`; those of delegates in their places.
    pub route: String,
    /// Its name.
    pub name: Option<String>,
    /// Whether it takes the call.
    pub taken: bool,
    /// For each of its matches what the call does not have of it; none where it matches. Empty where it asks for nothing.
    pub matches: Vec<MatchReport>,
}

/// A match of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatchReport {
    /// Its name.
    pub name: Option<String>,
    /// The first of its conditions that does not hold; none where all do.
    pub unmet: Option<String>,
    /// What is there instead.
    pub found: Option<String>,
}

/// What the agent answers itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerReport {
    /// The status; none where the connection is reset.
    pub status: Option<u16>,
    /// The response flags of the log.
    pub flags: String,
    /// The response code details of the log.
    pub details: String,
    /// `location`, where it redirects.
    pub location: Option<String>,
}

/// One thing that a route or rule does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EffectReport {
    /// The field that says so.
    pub field: String,
    /// What it comes to.
    pub effect: String,
}

/// One place where a call may go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DestinationReport {
    /// `name.namespace`, or the host as written where there is no such service.
    pub service: String,
    /// The port.
    pub port: Option<u16>,
    /// The subset.
    pub subset: Option<String>,
    /// Of how many calls, in per cent.
    pub share: f64,
    /// Whether every endpoint that may get the call takes it.
    pub passes: bool,
    /// Why nothing can be sent there, where that is so.
    pub fault: Option<String>,
    /// Endpoints that are not called from here, with the reason.
    #[serde(default)]
    pub out_of_reach: Vec<String>,
    /// The DestinationRules by which it is called, `namespace/name`.
    pub destination_rules: Vec<String>,
    /// How an endpoint is chosen.
    pub balancer: Option<String>,
    /// The endpoint that a consistent hash leads to, where the call has its key.
    pub hashed_to: Option<SocketAddr>,
    /// What the destination and its DestinationRule do.
    pub effects: Vec<EffectReport>,
    /// Its endpoints, the nearest first.
    pub endpoints: Vec<EndpointStandingReport>,
    /// What is decided at them.
    pub decisions: Vec<DecisionReport>,
}

/// How an endpoint stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointStandingReport {
    /// The workload's name.
    pub workload: String,
    /// Its address.
    pub address: SocketAddr,
    /// `hbone`, `plain` or `local`.
    pub transport: String,
    /// The network whose gateways lead there, where that is another one than this host's.
    #[serde(default)]
    pub network: Option<String>,
    /// The agent that is dialled, over HBONE.
    pub agent: Option<SocketAddr>,
    /// `region/zone/subzone`.
    pub locality: String,
    /// 0 is the nearest.
    pub priority: u32,
    /// As registered.
    pub weight: u32,
    /// Of the destination's calls, in per cent: by weight, while as much is in flight everywhere.
    pub share: f64,
    /// `healthy`, `unhealthy` where its own host's check says so, or `ejected` where this host leaves it out.
    pub health: String,
    /// For how many more seconds it is left out, where it is.
    pub ejected_for: Option<u64>,
    /// In flight from this host.
    pub active: u32,
    /// Why it cannot be reached, where that is so.
    pub fault: Option<String>,
    /// The index of its decision.
    pub decision: usize,
}

/// What is decided at some endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionReport {
    /// `agent` (the endpoint's own), `this_agent`, or `nobody`: no agent is there.
    pub by: String,
    /// Whether the call goes on.
    pub allowed: bool,
    /// Because of what.
    pub verdict: String,
    /// Who is asked before, and must allow it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<String>,
    /// What the caller is told of a request that is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<AnswerReport>,
    /// What becomes of the request's token there, where a RequestAuthentication asks about tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The limits on requests that count it there, each in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<String>,
    /// What it would be with the dry runs in force, where there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<String>,
    /// Whether plaintext would be taken; none where no agent is there.
    pub mtls: Option<MtlsReport>,
    /// The policies for the endpoint.
    pub policies: Vec<PolicyReport>,
}

/// The mode that is in force at an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MtlsReport {
    /// STRICT, PERMISSIVE or DISABLE.
    pub mode: String,
    /// What says so.
    pub from: String,
}

/// What an AuthorizationPolicy says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyReport {
    /// `namespace/name`.
    pub policy: String,
    /// ALLOW, DENY or AUDIT.
    pub action: String,
    /// Whether it only says what it would do.
    pub dry_run: bool,
    /// The number of the first rule that matches, from 1.
    pub matched_rule: Option<usize>,
    /// For each rule what the call does not have of it; none where it matches.
    pub unmet: Vec<Option<String>>,
}
