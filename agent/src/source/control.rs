//! The control server as source: connected to with the node credential, followed, and connected to again whenever it
//! goes away. The last good state is kept on disk, and an agent starts from it with no control server in reach.

/// Connections to the control server.
mod line;
/// Whether it is in reach, step by step.
pub mod probe;
/// Telling who came to this host's services.
mod telling;
/// Showing which addresses are this host's.
mod showing;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use baremesh_model::mesh::Mesh;
use baremesh_registry::control::client::{Ended, Local, backoff, follow};
use baremesh_registry::control::followed::{Entries, Followed};
use baremesh_registry::control::registration::{Port, Registration};
use baremesh_registry::control::stream::{StreamReader, StreamWriter};
use baremesh_registry::control::subscription::Subscription;
use http::{Method, Request, StatusCode};
use rustls::client::ResolvesClientCert;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use self::line::{CONNECT_TIMEOUT, Line, Open};
use self::probe::Probe;
use self::showing::Showing;
use super::resources::Resources;
use crate::agent::{AgentError, empty_mesh};
use crate::flows::Flows;
use crate::membership::Membership;
use crate::proxy::socket::Mark;
use crate::publish::Publisher;
use crate::registration::LocalService;
use crate::snapshot::Host;
use crate::telemetry::metrics::Metrics;
use crate::trust::Trust;

/// The path of the control protocol.
const STATE_PATH: &str = "/v1/state";
/// The file of the last good state.
const STATE_FILE: &str = "last-good.state";
/// A connection that stood this long was a good one: the next pause is the first again.
const STEADY: Duration = Duration::from_secs(30);

/// A control server to follow.
pub struct ControlSource {
    line: Line,
    followed: Followed,
    resources: Resources,
    file: PathBuf,
    trust: Arc<Trust>,
    flows: Arc<Flows>,
    subscription: watch::Receiver<Subscription>,
    flush: mpsc::Sender<oneshot::Sender<()>>,
    flushes: mpsc::Receiver<oneshot::Sender<()>>,
}

impl ControlSource {
    /// The control server of `membership`, with the last good state of the state directory. What that says of trust is
    /// in force from here on.
    pub fn open(state: &Path, membership: &Membership, trust: &Arc<Trust>) -> Result<Self, AgentError> {
        let file = state.join(STATE_FILE);
        let followed = Followed::load(&file).unwrap_or_else(|error| {
            tracing::error!(%error, "the last good state cannot be used; the control server is asked for a new one");
            Followed::new(Some(file.clone()))
        });
        if let Err(reason) = trust.take(|key| Some(followed.entries().get(key)?.value())) {
            tracing::error!(file = %file.display(), reason, "what the last good state says of trust cannot be used");
        }
        let (control, trust) = (membership.control.clone(), Arc::clone(trust));
        let line = Line { control, trust: trust.follow(), credential: None, mark: Mark(None) };
        let resources = Resources::default();
        let (flows, subscription) = (Arc::default(), watch::channel(Subscription::All).1);
        let (flush, flushes) = mpsc::channel(1);
        Ok(Self { line, followed, resources, file, trust, flows, subscription, flush, flushes })
    }

    /// The last good mesh, or an empty one that lets nobody in without a certificate; with its version.
    pub fn last_good(&mut self, membership: &Membership) -> Result<(Mesh, u64), AgentError> {
        if self.followed.entries().is_empty() {
            return Ok((empty_mesh(membership)?, 0));
        }
        match self.resources.mesh(self.followed.entries(), &self.trust.now()) {
            Ok(mesh) => Ok((mesh, self.followed.version())),
            Err(reason) => {
                tracing::error!(file = %self.file.display(), reason, "the last good state cannot be used");
                Ok((empty_mesh(membership)?, 0))
            }
        }
    }

    /// The state that is on the disk now, with its version; nothing where there is none.
    pub fn reread(&mut self) -> Result<Option<(Mesh, u64)>, String> {
        let followed = Followed::load(&self.file).map_err(|error| error.to_string())?;
        if followed.entries().is_empty() {
            return Ok(None);
        }
        self.trust.take(|key| Some(followed.entries().get(key)?.value()))?;
        let mesh = self.resources.mesh(followed.entries(), &self.trust.now())?;
        let version = followed.version();
        self.followed = followed;
        Ok(Some((mesh, version)))
    }

    /// Connects with this credential from now on, over sockets that no rule captures.
    pub fn with(self, credential: Arc<dyn ResolvesClientCert>, mark: Mark) -> Self {
        Self { line: Line { credential: Some(credential), mark, ..self.line }, ..self }
    }

    /// What finds out whether it is in reach.
    pub fn probe(&self) -> Probe {
        Probe::over(self.line.clone())
    }

    /// Tells it of these flows.
    pub fn telling(self, flows: Arc<Flows>) -> Self {
        Self { flows, ..self }
    }

    /// Asks it for these endpoints, and not for all.
    pub fn asking_for(self, subscription: watch::Receiver<Subscription>) -> Self {
        Self { subscription, ..self }
    }

    /// By which the state in force is written to its file at once; what is sent is told when it is.
    pub fn flush(&self) -> mpsc::Sender<oneshot::Sender<()>> {
        self.flush.clone()
    }

    /// Follows the control server until `leaving`, and says goodbye to it then.
    pub async fn follow(
        mut self,
        publisher: Arc<Publisher>,
        connected: watch::Sender<bool>,
        metrics: Arc<Metrics>,
        leaving: impl Future<Output = ()>,
    ) {
        let (say_goodbye, shutdown) = watch::channel(false);
        // Complete from the beginning: what is missing when a session begins counts as deregistered.
        let host = publisher.snapshot().load().host.clone();
        let mut registered = publisher.registered();
        let first = registrations_of(&registered.borrow_and_update(), &host);
        let (tell, registrations) = watch::channel(first);
        let mut local = Local {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            registrations,
            subscription: self.subscription.clone(),
            shutdown,
            flush: std::mem::replace(&mut self.flushes, mpsc::channel(1).1),
        };
        let mut link = self.followed.link();
        let watching = async {
            while link.changed().await.is_ok() {
                let (is_connected, version) = {
                    let link = link.borrow_and_update();
                    (link.connected, link.version)
                };
                // Of nothing but a state that is in force.
                if version > 0 {
                    publisher.confirm(version);
                }
                connected.send_replace(is_connected);
                metrics.registry_connected.set(i64::from(is_connected));
            }
        };
        let showing = Showing::over(self.line.clone());
        let registering = register(registered, publisher.snapshot(), (&showing, &tell));
        let parting = async {
            leaving.await;
            say_goodbye.send_replace(true);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = Box::pin(self.keep_following(&mut local, &publisher, &showing)) => {}
            () = watching => {}
            () = registering => {}
            () = parting => {}
        }
    }

    async fn keep_following(&mut self, local: &mut Local, publisher: &Publisher, showing: &Showing) {
        let mut attempt = 0;
        loop {
            let began = tokio::time::Instant::now();
            match self.follow_once(local, publisher, showing).await {
                Ok(Ended::Goodbye) => return,
                Ok(Ended::Closed) => {
                    tracing::info!(control = self.line.control, "the control server closed the session");
                }
                Err(reason) => {
                    tracing::warn!(control = self.line.control, reason, "the control server is not in reach");
                }
            }
            attempt = if began.elapsed() >= STEADY { 0 } else { attempt + 1 };
            tokio::select! {
                () = tokio::time::sleep(backoff(attempt, rand::random())) => {}
                // All of it was written when the connection ended.
                Some(done) = local.flush.recv() => {
                    let _ = done.send(());
                }
                _ = local.shutdown.wait_for(|shutdown| *shutdown) => return,
            }
        }
    }

    async fn follow_once(
        &mut self,
        local: &mut Local,
        publisher: &Publisher,
        showing: &Showing,
    ) -> Result<Ended, String> {
        let registrations = local.registrations.borrow().clone();
        let opened = tokio::select! {
            opened = Box::pin(self.open_stream(showing, &registrations)) => opened,
            // Nobody is connected who could take a goodbye: the lease runs out by itself.
            _ = local.shutdown.wait_for(|shutdown| *shutdown) => return Ok(Ended::Goodbye),
        };
        let (reader, writer, open) = opened?;
        let trust = Arc::clone(&self.trust);
        let resources = &mut self.resources;
        let publish = |entries: &Entries, version: u64| {
            let refuse = |reason: &String| publisher.refuse(reason.clone());
            // Not put off by a resource that this agent cannot take.
            let taken = trust.take(|key| Some(entries.get(key)?.value())).inspect_err(refuse)?;
            taken.into_iter().for_each(|older| publisher.refuse_list(&older));
            let mesh = resources.mesh(entries, &trust.now()).inspect_err(refuse)?;
            publisher.take_mesh(mesh, version)
        };
        let (again, flows) = (local.registrations.clone(), Arc::clone(&self.flows));
        let followed = tokio::select! {
            followed = Box::pin(follow(reader, writer, &mut self.followed, local, publish)) => followed,
            () = showing.keep_showing(|| again.borrow().clone()) => Ok(Ended::Closed),
            () = telling::keep_telling(&flows, open.requests.clone()) => Ok(Ended::Closed),
        };
        showing.connected(None);
        drop(open);
        followed.map_err(|error| error.to_string())
    }

    /// Opens the stream of the state, after this host's addresses were shown: what is unknown when the session registers
    /// them would be refused.
    async fn open_stream(
        &self,
        showing: &Showing,
        registrations: &[Registration],
    ) -> Result<(StreamReader, StreamWriter, Open), String> {
        let late = |_| format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
        let mut open = timeout(CONNECT_TIMEOUT, self.line.open()).await.map_err(late)??;
        showing.connected(Some(open.requests.clone()));
        showing.show(registrations).await;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("https://control{STATE_PATH}"))
            .body(())
            .map_err(|error| error.to_string())?;
        let (response, send) =
            open.requests.send_request(request, false).map_err(|error| error.to_string())?;
        let response = timeout(CONNECT_TIMEOUT, response).await.map_err(late)?;
        let response = response.map_err(|error| error.to_string())?;
        match response.status() {
            StatusCode::OK => Ok((StreamReader::new(response.into_body()), StreamWriter::new(send), open)),
            status => {
                Err(format!("it answered {status}: has this host been revoked, or joined again elsewhere?"))
            }
        }
    }
}

/// Tells the registrations of this host as they change.
async fn register(
    mut local: watch::Receiver<Vec<Arc<LocalService>>>,
    snapshot: Arc<arc_swap::ArcSwap<crate::snapshot::Snapshot>>,
    (showing, tell): (&Showing, &watch::Sender<Vec<Registration>>),
) {
    while local.changed().await.is_ok() {
        let host = snapshot.load().host.clone();
        let registrations = registrations_of(&local.borrow_and_update(), &host);
        // Most changes are of health, which is not to wait for a question about addresses.
        let addresses = |all: &[Registration]| all.iter().flat_map(|one| one.addresses.clone()).collect();
        let (before, after): (BTreeSet<_>, BTreeSet<_>) =
            (addresses(&tell.borrow()), addresses(&registrations));
        if before != after {
            showing.show(&registrations).await;
        }
        tell.send_replace(registrations);
    }
    std::future::pending::<()>().await;
}

/// What this host registers of its services.
pub(super) fn registrations_of(services: &[Arc<LocalService>], host: &Host) -> Vec<Registration> {
    services.iter().filter_map(|service| registration(service, host)).collect()
}

fn registration(service: &LocalService, host: &Host) -> Option<Registration> {
    let addresses = service.addresses(&host.addresses).to_vec();
    let port = |port: &crate::registration::LocalPort| Port {
        port: port.port,
        target_port: port.target_port,
        protocol: Some(port.protocol),
        name: port.name.clone(),
    };
    (!addresses.is_empty()).then(|| Registration {
        service: service.key.clone(),
        ports: service.ports.iter().map(port).collect(),
        addresses,
        labels: service.labels(),
        network: host.network_name().cloned(),
        locality: service.locality.clone().unwrap_or_default(),
        weight: service.weight,
        service_account: Some(service.service_account.clone()),
        health: service.health,
    })
}
