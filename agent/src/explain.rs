//! What becomes of a call, and why: `baremesh explain`. Nothing is decided here. The questions go to the functions that the
//! data path asks itself, with the draws of chance laid out one beside the other, and the answers are put into words.
//!
//! Modules in reading order.

/// The call that is asked about.
mod asked;
/// Who calls.
pub mod caller;
/// Calls whose requests are routed one by one.
mod requests;
/// Calls that are carried as bytes.
mod streams;
/// Calls that leave through a gateway.
mod gateways;
/// Endpoints, and how they stand.
mod destinations;
/// What is decided at an endpoint.
mod policies;
/// Limits on requests that count it.
mod limits;
/// What is made of its token.
mod tokens;
/// Routes and rules in words.
mod words;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use baremesh_model::http::{FieldError, RequestHead};
use baremesh_model::identity::Identity;
use baremesh_model::service::Protocol;

use crate::admin::report::explain::{
    AnswerReport, CalledReport, Explanation, Outcome, Question, RequestReport,
};
use crate::proxy::error::ProxyError;
use crate::snapshot::external::{Meant, best};
use crate::snapshot::{Route, ServiceEntry, Snapshot};
use asked::{Asked, Carried};
pub use caller::Caller;

/// Why a call cannot be explained: what was asked makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// The URL cannot be read.
    #[error("`{0}` is no URL of a call: write http://SERVICE:PORT/PATH, or tcp://SERVICE:PORT for bytes")]
    Url(String),
    /// There is no usual port.
    #[error("`{0}` needs a port: tcp://SERVICE:PORT")]
    NoPort(String),
    /// The method is none.
    #[error("`{0}` is no method")]
    Method(String),
    /// What is said to be a token's payload is none.
    #[error("the token's claims are no payload of a token: {0}")]
    Claims(&'static str),
    /// A header cannot be sent.
    #[error("the header `{name}` cannot be sent: {source}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong.
        source: FieldError,
    },
    /// There is no such service.
    #[error("no service of the mesh is called `{name}`{hint}")]
    NoService {
        /// The name as given.
        name: String,
        /// Names near it, in words.
        hint: String,
    },
    /// The caller is not known.
    #[error("`{name}` is {what}{hint}")]
    NoCaller {
        /// The name as given.
        name: String,
        /// What it is not, in words.
        what: &'static str,
        /// Names near it, in words.
        hint: String,
    },
    /// The port is declared to speak HTTP.
    #[error(
        "port {port} of {service} speaks {protocol}: what is no HTTP is refused there; ask with http://, or about another port"
    )]
    SpeaksHttp {
        /// The service.
        service: String,
        /// The port.
        port: u16,
        /// What it speaks.
        protocol: Protocol,
    },
    /// The set does not go together with the caller.
    #[error("{0}")]
    Set(String),
}

/// A call that is being explained.
#[derive(Clone, Copy)]
struct Case<'a> {
    snapshot: &'a Snapshot,
    caller: &'a Caller,
    asked: &'a Asked,
    /// The request as an endpoint sees it, once that is known.
    sent: Option<&'a RequestHead>,
    /// Where the connection goes as the program sees it.
    dialled: SocketAddr,
    /// Whether there is a certificate for an identity.
    certified: &'a dyn Fn(&Identity) -> bool,
    now: Instant,
}

impl Case<'_> {
    /// The address that the agent sees the caller's connection come from. To an address of its own host, virtual ones among
    /// them, the kernel lets a program speak from that very address, unless it has bound another.
    fn client_ip(&self) -> Option<IpAddr> {
        let ranges = &self.snapshot.mesh.config.virtual_ranges;
        let is_own = ranges.contains(self.dialled.ip()) || self.snapshot.local(self.dialled).is_some();
        self.asked.source_ip.or(is_own.then_some(self.dialled.ip()))
    }

    /// The address that the agent of an endpoint sees the call come from.
    fn address_towards(&self, agent: IpAddr) -> Option<IpAddr> {
        let same_family = |address: &&IpAddr| address.is_ipv4() == agent.is_ipv4();
        self.asked.source_ip.or_else(|| self.caller.addresses.iter().find(same_family).copied())
    }
}

/// Explains a call of `caller`. `certified` says whether this host holds a certificate for an identity.
pub fn explain(
    snapshot: &Snapshot,
    caller: &Caller,
    question: &Question,
    certified: &dyn Fn(&Identity) -> bool,
) -> Result<Explanation, ExplainError> {
    let mut asked = Asked::read(question)?;
    snapshot.mesh.config.path_normalization.apply(&mut asked.head.target);
    let dialled = dialled(snapshot, caller, &asked)?;
    let (asked, now) = (&asked, Instant::now());
    let case = Case { snapshot, caller, asked, sent: None, dialled, certified, now };
    let mut explanation = blank(question, &case);
    let (route, unseen) = match settled(&case, snapshot.route(dialled)) {
        Ok(Settled::Route(route)) => (Ok(route), None),
        Ok(Settled::Unseen(host)) => (Ok(Route::Passthrough), Some(host)),
        Err(error) => (Err(error), None),
    };
    match route.and_then(|route| snapshot.within_sidecar(caller.index, route)) {
        Ok(Route::Service(service, port)) => {
            let entry = &service.ports[port];
            let is_http = match entry.protocol {
                Protocol::Auto => asked.carried == Carried::Requests,
                declared => declared.is_http(),
            };
            explanation.service = Some(called(&service, entry.port, entry.protocol));
            match (is_http, asked.carried) {
                (true, Carried::Requests) => {
                    explanation.request.carried_as = "http".to_owned();
                    requests::explain(&case, &service, port, &mut explanation);
                }
                (true, Carried::Bytes) => {
                    let (service, port) = (service.key.to_string(), entry.port);
                    return Err(ExplainError::SpeaksHttp { service, port, protocol: entry.protocol });
                }
                (false, carried) => {
                    if carried == Carried::Requests {
                        explanation.notes.push(format!(
                            "port {} is declared `{}`: requests are carried as bytes, and `http` routes say nothing of them",
                            entry.port, entry.protocol
                        ));
                    }
                    streams::explain(&case, &service, port, &mut explanation);
                }
            }
        }
        Ok(Route::Endpoint(service, port, endpoint)) => {
            streams::explain_endpoint(&case, (&service, port), &endpoint, &mut explanation);
        }
        Ok(Route::Unheld(service, port)) => {
            let protocol =
                service.port_index(port).map_or(Protocol::Tcp, |index| service.ports[index].protocol);
            explanation.service = Some(called(&service, port, protocol));
            explanation.outcome = Outcome::NoEndpoint;
            explanation.summary = format!("nowhere to send it at {} port {port}: {NOT_ASKED}", service.key);
        }
        Ok(Route::Local(local)) => streams::explain_local(&case, &local, &mut explanation),
        Ok(Route::Passthrough) if !snapshot.lets_out(caller.index, dialled) => {
            let error = ProxyError::NotInRegistry(dialled);
            explanation.outcome = Outcome::NoRoute;
            explanation.summary = format!("refused: {error}");
            explanation.answer = Some(refused_with(&error));
        }
        Ok(Route::Passthrough) => {
            explanation.outcome = Outcome::NotMeshed;
            explanation.summary = match unseen {
                Some(host) => format!(
                    "{dialled} is given to {}, which `exportTo` keeps from this caller: the name is looked up, and it goes as without a mesh",
                    host.host
                ),
                None if snapshot.is_held(caller.index) || snapshot.is_captured_for_external(dialled) => {
                    format!("{dialled} is no service's for this caller: it goes as without a mesh")
                }
                None => format!(
                    "{dialled} is no service's: unless `capture.outbound = \"all\"` says otherwise it is not captured, and goes as without a mesh"
                ),
            };
        }
        Err(error) => {
            explanation.outcome = match error {
                ProxyError::NoSuchPort { .. } => Outcome::NoSuchPort,
                _ => Outcome::NoRoute,
            };
            explanation.summary = format!("refused: {error}{}", ports(&case));
            explanation.answer = Some(refused_with(&error));
        }
    }
    Ok(explanation)
}

/// Why a service whose endpoints were not asked for cannot be called: they were asked for to explain it.
const NOT_ASKED: &str =
    "it was not called from this host before, and the registry did not tell its endpoints in time";

/// What the record of a refused connection says.
fn refused_with(error: &ProxyError) -> AnswerReport {
    AnswerReport {
        status: None,
        flags: error.reason().response_flags().to_owned(),
        details: error.reason().name().to_owned(),
        location: None,
    }
}

/// Where a call goes, once it is known which host of ServiceEntries it means.
enum Settled {
    Route(Route),
    /// As without a mesh, to a host that the caller does not see.
    Unseen(Arc<ServiceEntry>),
}

/// The route of a call by the host of ServiceEntries that it names, or by what is at the address that it dials, as the data path
/// takes it: the first bytes of the call name what the question does.
fn settled(case: &Case<'_>, route: Result<Route, ProxyError>) -> Result<Settled, ProxyError> {
    let (snapshot, asked, port) = (case.snapshot, case.asked, case.dialled.port());
    let is_address = asked.host.parse::<IpAddr>().is_ok();
    let called = snapshot.called(&asked.host, case.caller.identity.namespace());
    let external = called.filter(|service| !is_address && service.external.is_some());
    let named = external.and_then(|service| Some((service, service.port_index(port)?)));
    if let Some((service, port)) = named {
        return Ok(Settled::Route(Route::Service(Arc::clone(service), port)));
    }
    let name = match asked.carried {
        Carried::Requests => Some(asked.head.host()),
        Carried::Bytes => asked.sni.as_deref(),
    };
    let found = match snapshot.meant(case.caller.index, (route?, case.dialled))? {
        Meant::Routed(route) => return Ok(Settled::Route(route)),
        Meant::Unseen(host) => return Ok(Settled::Unseen(host)),
        Meant::Hosts(all) => {
            let named = name.and_then(|name| best(all.iter().copied(), name));
            named.or(all.first().copied())
        }
        Meant::Unaddressed(all) => {
            let is_bytes = |host: &&Arc<ServiceEntry>| {
                host.port_index(port).is_some_and(|index| host.ports[index].protocol == Protocol::Tcp)
            };
            let speaking = all.iter().copied().filter(|host| !is_bytes(host));
            let named = name.and_then(|name| best(speaking, name));
            named.or_else(|| all.iter().copied().find(is_bytes))
        }
    };
    let index = found.and_then(|host| Some((host, host.port_index(port)?)));
    let route = index.map(|(host, index)| Route::Service(Arc::clone(host), index));
    Ok(Settled::Route(route.unwrap_or(Route::Passthrough)))
}

/// Where a program's connection goes: an address as it is, a name as the mesh's DNS resolves it.
fn dialled(snapshot: &Snapshot, caller: &Caller, asked: &Asked) -> Result<SocketAddr, ExplainError> {
    if let Ok(address) = asked.host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, asked.port));
    }
    let found = snapshot.called(&asked.host, caller.identity.namespace());
    let given = found.and_then(|service| service.external.as_ref());
    let given = given.and_then(|external| external.addresses.first()).map(ipnet::IpNet::addr);
    let address = found.and_then(|service| service.addresses.first()).or(given.as_ref());
    address.map(|address| SocketAddr::new(*address, asked.port)).ok_or_else(|| ExplainError::NoService {
        name: asked.host.clone(),
        hint: caller::hint_of_services(snapshot, caller.identity.namespace(), &asked.host),
    })
}

/// The ports that the service has which the call is for.
fn ports(case: &Case<'_>) -> String {
    let services = || case.snapshot.services();
    let service = services().find(|service| service.addresses.contains(&case.dialled.ip()));
    let ports =
        service.map(|service| service.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)));
    ports.map_or(String::new(), |ports| format!(" ({})", ports.collect::<Vec<_>>().join(", ")))
}

fn blank(question: &Question, case: &Case<'_>) -> Explanation {
    let requests = case.asked.carried == Carried::Requests;
    Explanation {
        request: RequestReport {
            url: question.url.clone(),
            method: requests.then(|| question.method.clone()),
            carried_as: "bytes".to_owned(),
            identity: case.caller.identity.to_string(),
            service: case.caller.service.as_ref().map(ToString::to_string),
            source_ip: case.asked.source_ip.or_else(|| case.caller.addresses.first().copied()),
        },
        outcome: Outcome::Forwarded,
        passes: false,
        summary: String::new(),
        service: None,
        virtual_service: None,
        routes: Vec::new(),
        answer: None,
        effects: Vec::new(),
        destinations: Vec::new(),
        notes: Vec::new(),
    }
}

fn called(service: &ServiceEntry, port: u16, protocol: Protocol) -> CalledReport {
    CalledReport {
        service: service.key.to_string(),
        host: service.host.to_string(),
        port,
        protocol: protocol.to_string(),
        identity: service.identity.to_string(),
    }
}

#[cfg(test)]
mod tests;
