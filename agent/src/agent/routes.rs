//! The routes of the administration socket, of the metrics and of the readiness.

/// Those about the capture rules.
mod capturing;
/// Containers.
mod containing;
/// How the agent is doing.
mod doctor;
/// What becomes of a call.
mod explaining;
/// Registrations and their WorkloadGroups.
mod grouping;
/// A service's word on itself.
mod heartbeat;
/// The services that are known, and how much of each.
mod services;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use baremesh_model::name::Key;
use baremesh_model::peer_authentication::MtlsMode;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::handover::{Sockets, Use};
use super::{AgentError, doing};
use crate::admin::report::{CertificateReport, LocalServiceReport, SourceReport, StatusReport};
use crate::admin::server::{self, AdminSocket, Administer, Answer, Bounds, json, text, with};
use crate::attribution::{Matcher, Tracking};
use crate::beat;
use crate::capture::conntrack::Tracked;
use crate::config::{AgentConfig, SourceConfig};
use crate::containers::heard::Heard;
use crate::containers::wire;
use crate::credentials::Keyring;
use crate::demand::Demand;
use crate::dns::DnsCounters;
use crate::flows::Flows;
use crate::health::Checks;
use crate::identity::RotationStatus;
use crate::privileges;
use crate::proxy::Phase;
use crate::proxy::socket::Mark;
use crate::publish::{News, Publisher};
use crate::registration::drop_in::DropIns;
use crate::registration::file;
use crate::snapshot::Snapshot;
use crate::source::consul::standing::Standing;
use crate::source::control::probe::Probe;
use crate::steward::{Mode, Steward};
use crate::telemetry::access_log::Tally;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::text_format;

/// How often the service manager is told that all is well, and readiness is looked at.
const TELL: Duration = Duration::from_millis(200);
/// The same while nothing is missing.
const TELL_READY: Duration = Duration::from_secs(1);

/// The largest body of a request, in bytes: a question about a call, with its headers.
const MAX_QUESTION: usize = 64 * 1024;

/// What the routes answer from.
pub struct Agent {
    pub config: AgentConfig,
    pub publisher: Arc<Publisher>,
    pub credentials: Arc<Keyring>,
    pub rotation: Arc<Mutex<RotationStatus>>,
    pub steward: Option<Arc<Steward>>,
    pub checks: Arc<Checks>,
    pub connected: watch::Receiver<bool>,
    /// What is to be said of the source.
    pub source_notes: watch::Receiver<Vec<String>>,
    /// How Consul stands, where it is the source.
    pub consul: Option<watch::Receiver<Standing>>,
    pub metrics: Arc<Metrics>,
    pub dns: Option<Arc<DnsCounters>>,
    pub log: Arc<Tally>,
    pub phase: watch::Receiver<Phase>,
    pub probe: Option<Probe>,
    pub flows: Arc<Flows>,
    pub mark: Mark,
    /// Whose endpoints are asked for.
    pub demand: Arc<Demand>,
    /// What is told of containers.
    pub heard: Arc<Heard>,
}

/// The three listeners.
pub struct Listening {
    admin: AdminSocket,
    metrics: TcpListener,
    ready: TcpListener,
}

impl Listening {
    /// Binds them, or takes what another agent hands over of them.
    pub async fn bind(config: &AgentConfig, given: &mut Sockets) -> Result<Self, AgentError> {
        let path = config.directories.agent_socket();
        let admin = match given.take(Use::Administration).pop() {
            Some(taken) => server::taken_over(taken, &path),
            None => server::bind_socket(&path),
        };
        let mut tcp = async |of, address| match given.take::<std::net::TcpListener>(of).pop() {
            Some(taken) if taken.local_addr().is_ok_and(|at| at == address) => TcpListener::from_std(taken),
            _ => server::bind_tcp(address).await,
        };
        Ok(Self {
            admin: admin.map_err(doing(format!("making the socket {}", path.display())))?,
            metrics: tcp(Use::Metrics, config.metrics).await.map_err(doing("serving metrics"))?,
            ready: tcp(Use::Readiness, config.ready).await.map_err(doing("serving readiness"))?,
        })
    }

    /// Adds copies of them to what another agent may take over.
    pub fn offer(&self, sockets: &mut Sockets) -> io::Result<()> {
        sockets.add(Use::Administration, &self.admin)?;
        sockets.add(Use::Metrics, &self.metrics)?;
        sockets.add(Use::Readiness, &self.ready)
    }

    /// Serves them all.
    pub fn serve(self, agent: &Arc<Agent>) -> [JoinHandle<()>; 3] {
        let (for_admin, for_metrics, for_ready) = (Arc::clone(agent), Arc::clone(agent), Arc::clone(agent));
        let serve = |listener, answer: fn(&Agent, &Request<Bytes>) -> Answer, agent: Arc<Agent>| {
            let refused = agent.metrics.refused_scrapes.clone();
            let handle = move |request: Request<Bytes>| std::future::ready(answer(&agent, &request));
            tokio::spawn(server::serve_tcp(listener, Bounds::default(), refused, handle))
        };
        [
            tokio::spawn(server::serve_socket(self.admin, Socket(for_admin))),
            serve(self.metrics, Agent::metrics, for_metrics),
            serve(self.ready, Agent::readiness, for_ready),
        ]
    }
}

/// The agent as its administration socket sees it.
#[derive(Clone)]
struct Socket(Arc<Agent>);

impl Administer for Socket {
    /// A question or a heartbeat with its note; no other request has a body.
    const MAX_BODY: usize = MAX_QUESTION;

    async fn answer(&self, uid: u32, request: Request<Bytes>) -> Answer {
        match (request.method(), request.uri().path()) {
            (&Method::POST, wire::ROUTE) => self.0.hear_of_containers(uid, request),
            _ => Box::pin(self.0.administrate(request)).await,
        }
    }

    fn refuse(&self, status: StatusCode, reason: String) -> Answer {
        text(status, reason)
    }
}

impl Agent {
    async fn administrate(&self, request: Request<Bytes>) -> Answer {
        let query = request.uri().query().unwrap_or_default();
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/status") => json(&self.status().await),
            (&Method::GET, "/certificates") => json(&self.certificates()),
            (&Method::GET, "/services") => json(&self.services()),
            (&Method::GET, wire::ROUTE) => json(&self.containers()),
            (&Method::GET, "/doctor") => Box::pin(self.doctor(query)).await,
            (&Method::GET, path) if path.starts_with("/group-ports/") => self.ports_of_group(path),
            (&Method::POST, "/explain") => self.explain(request.body()).await,
            (&Method::POST, "/reload") => match self.reload().await {
                Ok(()) => json(&()),
                Err(error) => text(StatusCode::CONFLICT, error.to_string()),
            },
            (&Method::POST, "/heartbeat") => self.heartbeat(request.body()),
            (method, path) if path.starts_with("/capture/") => self.capture(method, path, query).await,
            _ => text(StatusCode::NOT_FOUND, "no such route\n"),
        }
    }

    fn metrics(&self, request: &Request<Bytes>) -> Answer {
        if request.uri().path() != "/metrics" && request.uri().path() != "/stats/prometheus" {
            return text(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
        }
        let dropped = &self.metrics.dropped_log_lines;
        dropped.inc_by(self.log.lost().saturating_sub(dropped.get()));
        let rendered = self.metrics.render(self.dns.as_deref());
        let accept = request.headers().get(http::header::ACCEPT).and_then(|value| value.to_str().ok());
        match text_format::wants_openmetrics(accept) {
            true => with(StatusCode::OK, text_format::OPENMETRICS, rendered.into_bytes()),
            false => {
                with(StatusCode::OK, text_format::TEXT, text_format::from_openmetrics(&rendered).into_bytes())
            }
        }
    }

    fn readiness(&self, request: &Request<Bytes>) -> Answer {
        if !matches!(request.uri().path(), "/healthz/ready" | "/ready") {
            return text(StatusCode::NOT_FOUND, "readiness is at /healthz/ready\n");
        }
        match self.not_ready() {
            missing if missing.is_empty() => text(StatusCode::OK, "ready\n"),
            missing => text(StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n"),
        }
    }

    /// Reads this host's registrations anew and brings them into force, the capture rules included: who was told that a
    /// service is registered can rely on it that nobody goes round its policy.
    pub async fn reload(&self) -> Result<(), AgentError> {
        let registrations = file::read_all(&self.config.directories.registrations(), &self.config.terms())
            .inspect_err(|error| self.publisher.refuse_registrations(error.to_string()))?;
        self.publisher.take_registrations(&registrations).map_err(AgentError::State)?;
        match &self.steward {
            Some(steward) if steward.mode() == Mode::Keep => Ok(steward.keep_from_now().await.map(drop)?),
            _ => Ok(()),
        }
    }

    /// What serving needs and is not in place.
    fn not_ready(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if *self.phase.borrow() != Phase::Running {
            missing.push("the agent is stopping".to_owned());
        }
        if let Some(steward) = self.steward.as_ref().filter(|_| self.config.capture) {
            missing.extend(steward.trouble().borrow().clone().map(|trouble| format!("capture: {trouble}")));
        }
        missing.extend(serving_lacks(
            &self.config.source,
            &self.publisher,
            (&self.credentials, &self.rotation),
        ));
        missing
    }

    async fn status(&self) -> StatusReport {
        let snapshot = self.publisher.snapshot().load_full();
        let mut published = self.publisher.published();
        let not_ready = self.not_ready();
        let capture = match &self.steward {
            None => "off: `nft` or `ip` is missing".to_owned(),
            Some(steward) => steward.in_words().await,
        };
        let name = match &self.config.source {
            SourceConfig::Control => "control".to_owned(),
            SourceConfig::Consul(settings) => {
                let all: Vec<_> = settings.addresses.iter().map(ToString::to_string).collect();
                format!("consul {}", all.join(" "))
            }
            SourceConfig::Files(directory) => format!("files {}", directory.display()),
        };
        StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: snapshot.host.name.to_string(),
            addresses: snapshot.host.addresses.clone(),
            addresses_why: snapshot.host.why.to_string(),
            network: snapshot.host.network_name().map(ToString::to_string),
            network_gateway: snapshot.host.is_gateway(),
            trust_domain: snapshot.mesh.config.trust_domain.to_string(),
            ready: not_ready.is_empty(),
            not_ready,
            source: SourceReport {
                name,
                connected: *self.connected.borrow(),
                version: published.version,
                taken: seconds(published.taken),
                last_error: published.refused.remove(&News::Mesh),
                consul: self.consul.as_ref().map(|consul| consul.borrow().report(Instant::now())),
            },
            refused: published.refused.iter().map(|(news, reason)| format!("{news}: {reason}")).collect(),
            endpoints: self.endpoints(&snapshot),
            capture,
            privileges: privileges::in_words(),
            services: self.local_services(&snapshot),
            warnings: [
                warnings(&snapshot),
                containing::warnings(&snapshot, &self.config.interfaces),
                grouping::warnings(&snapshot),
                self.ending(),
                self.source_notes.borrow().clone(),
            ]
            .concat(),
            open_connections: self.metrics.open_connections.get(),
            tunnels: self.metrics.tunnels.get(),
        }
    }

    /// Certificates that are near their end.
    fn ending(&self) -> Vec<String> {
        self.rotation.lock().unwrap_or_else(PoisonError::into_inner).ending.clone()
    }

    fn local_services(&self, snapshot: &Snapshot) -> Vec<LocalServiceReport> {
        let credentials = self.credentials.load();
        let report = |registered: &Arc<crate::registration::LocalService>| {
            let endpoints: Vec<_> =
                snapshot.local_endpoints().filter(|local| local.service == registered.key).collect();
            let first = endpoints.first()?;
            let mut advertised: Vec<_> = endpoints.iter().map(|local| local.advertised).collect();
            advertised.sort();
            let programs = endpoints.iter().filter(|local| local.gateway.is_none());
            let mut deliver: Vec<_> = programs.map(|local| local.deliver).collect();
            deliver.sort();
            deliver.dedup();
            Some(LocalServiceReport {
                service: registered.key.to_string(),
                identity: first.identity.to_string(),
                advertised,
                own_addresses: registered.addresses.is_some(),
                deliver,
                mtls: match first.mode {
                    MtlsMode::Disable => "DISABLE",
                    MtlsMode::Permissive => "PERMISSIVE",
                    MtlsMode::Strict => "STRICT",
                }
                .to_owned(),
                certificate: credentials.of(&first.identity, SystemTime::now()).is_some(),
                health: self.checks.report(&registered.key),
                group: grouping::report(registered),
                container: containing::report(registered),
            })
        };
        snapshot.registrations.iter().filter_map(report).collect()
    }

    fn certificates(&self) -> Vec<CertificateReport> {
        let credentials = self.credentials.load();
        let report = |held: &Arc<crate::credentials::Credential>| CertificateReport {
            identity: held.identity.to_string(),
            serial: held.serial.clone(),
            not_before: seconds(held.not_before),
            not_after: seconds(held.not_after),
        };
        let mut all: Vec<_> = credentials.iter().map(report).collect();
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }
}

/// Which certificates and what of the mesh serving needs and has not.
pub fn serving_lacks(
    source: &SourceConfig,
    publisher: &Publisher,
    (credentials, rotation): (&Keyring, &Mutex<RotationStatus>),
) -> Vec<String> {
    let mut missing = Vec::new();
    let credentials = credentials.load();
    let rotation = rotation.lock().unwrap_or_else(PoisonError::into_inner);
    for identity in &publisher.snapshot().load().identities {
        if credentials.of(identity, SystemTime::now()).is_none() {
            let reason = rotation.missing.get(identity).map_or("not issued yet", String::as_str);
            missing.push(format!("no certificate for {identity}: {reason}"));
        }
    }
    // A member that has neither a state on disk nor one from its source serves nothing it could know.
    if publisher.published().version == 0 {
        match source {
            SourceConfig::Files(_) => {}
            SourceConfig::Consul(_) => missing.push(
                "no state of the mesh yet: Consul has not been reached, or has no resources".to_owned(),
            ),
            SourceConfig::Control => {
                missing.push("no state of the mesh yet: the control server has not been reached".to_owned());
            }
        }
    }
    missing
}

/// What works, but perhaps not as meant.
fn warnings(snapshot: &Snapshot) -> Vec<String> {
    let mut warnings = Vec::new();
    warnings.extend(Tracking::look().trouble());
    warnings.extend(
        Tracked::read().filter(|tracked| tracked.is_nearly_full()).map(|tracked| tracked.to_string()),
    );
    for address in &snapshot.host.addresses {
        let here = || snapshot.local_endpoints().filter(|local| local.advertised.ip() == *address);
        if here().next().is_some() && snapshot.unnamed(*address).is_none() {
            warnings.push(format!(
                "several services at {address} and none is its default: peers that send no server name (Istio's ztunnel) reach none of them; register one with --default"
            ));
        }
    }
    let drop_ins = DropIns::of_system();
    let is_noted =
        |matcher: &Matcher, key: &Key| matcher.unit().is_some_and(|unit| drop_ins.notes(key, unit));
    let by_place = snapshot.held().filter(|(matcher, _)| matcher.user().is_none());
    for (matcher, _) in by_place.filter(|(matcher, registered)| !is_noted(matcher, &registered.key)) {
        let or =
            if matcher.unit().is_some() { ", or with --drop-in where systemd is 255 or later" } else { "" };
        warnings.push(format!(
            "{matcher} reaches the registry alone, and no user is named with it: what starts anew in a cgroup of its own is held only when the agent has found it; register it with --user too{or}"
        ));
    }
    for registered in snapshot
        .registrations
        .iter()
        .filter(|registered| registered.matcher.is_none() && registered.container.is_none())
    {
        warnings.push(format!(
            "{} names neither unit, user nor cgroup: what its processes call, they call as the host",
            registered.key
        ));
    }
    warnings
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Tells systemd that the agent is ready once it is, and what is missing until then.
pub async fn tell_service_manager(agent: Arc<Agent>) {
    let mut told = None;
    loop {
        let missing = agent.not_ready();
        let ready = missing.is_empty();
        if told.as_ref() != Some(&missing) {
            let status = if ready { "ready".to_owned() } else { missing.join("; ") };
            tracing::info!(ready, status, "readiness");
            let mut states = vec![sd_notify::NotifyState::Status(&status)];
            if ready {
                states.push(sd_notify::NotifyState::Ready);
            }
            // Outside systemd there is nobody to tell.
            let _: io::Result<()> = sd_notify::notify(&states);
            told = Some(missing);
        }
        beat::next(if ready { TELL_READY } else { TELL }).await;
    }
}
