//! The control server as source: connected to with the node credential, followed, and connected to again whenever it
//! goes away. The last good state is kept on disk, and an agent starts from it with no control server in reach.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use baremesh_ca::client::CONTROL_PORT;
use baremesh_ca::tls::{Expected, TrustBundle, client_config, describe_io, placeholder_server_name};
use baremesh_model::identity::Identity;
use baremesh_model::mesh::Mesh;
use baremesh_registry::control::client::{Ended, Local, backoff, follow};
use baremesh_registry::control::followed::Followed;
use baremesh_registry::control::registration::{Port, Registration};
use baremesh_registry::control::stream::{StreamReader, StreamWriter};
use baremesh_registry::control::subscription::Subscription;
use baremesh_registry::format::decode_from_newer;
use baremesh_registry::format::source::{Origin, Source, Span};
use baremesh_registry::resource::Located;
use baremesh_registry::set::assemble;
use http::{Method, Request, StatusCode};
use rustls::ClientConfig;
use rustls::client::ResolvesClientCert;
use serde_json::Value;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use super::of_trust_domain;
use crate::agent::{AgentError, empty_mesh};
use crate::membership::Membership;
use crate::proxy::socket::{self, Mark};
use crate::publish::Publisher;
use crate::registration::LocalService;
use crate::telemetry::metrics::Metrics;

/// The path of the control protocol.
const STATE_PATH: &str = "/v1/state";
/// The file of the last good state.
const STATE_FILE: &str = "last-good.state";
/// How long connecting, the handshake and the first answer may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How many addresses of a name are tried.
const MAX_ADDRESSES: usize = 8;
/// A connection that stood this long was a good one: the next pause is the first again.
const STEADY: Duration = Duration::from_secs(30);

/// A control server to follow.
pub struct ControlSource {
    control: String,
    bundle: Arc<TrustBundle>,
    followed: Followed,
    file: PathBuf,
    credential: Option<Arc<dyn ResolvesClientCert>>,
    mark: Mark,
}

impl ControlSource {
    /// The control server of `membership`, with the last good state of the state directory.
    pub fn open(state: &Path, membership: &Membership) -> Result<Self, AgentError> {
        let file = state.join(STATE_FILE);
        let followed = Followed::load(&file).unwrap_or_else(|error| {
            tracing::error!(%error, "the last good state cannot be used; the control server is asked for a new one");
            Followed::new(Some(file.clone()))
        });
        let (control, bundle) = (membership.control.clone(), Arc::clone(&membership.bundle));
        Ok(Self { control, bundle, followed, file, credential: None, mark: Mark(None) })
    }

    /// The last good mesh, or an empty one that lets nobody in without a certificate; with its version.
    pub fn last_good(&self, membership: &Membership) -> Result<(Mesh, u64), AgentError> {
        if self.followed.values().is_empty() {
            return Ok((empty_mesh(membership)?, 0));
        }
        match mesh_of(self.followed.values(), &self.bundle) {
            Ok(mesh) => Ok((mesh, self.followed.version())),
            Err(reason) => {
                tracing::error!(file = %self.file.display(), reason, "the last good state cannot be used");
                Ok((empty_mesh(membership)?, 0))
            }
        }
    }

    /// Connects with this credential from now on, over sockets that no rule captures.
    pub fn with(self, credential: Arc<dyn ResolvesClientCert>, mark: Mark) -> Self {
        Self { credential: Some(credential), mark, ..self }
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
        let (tell, registrations) = watch::channel(Vec::new());
        let mut local = Local {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            registrations,
            subscription: watch::channel(Subscription::All).1,
            shutdown,
        };
        let mut link = self.followed.link();
        let watching = async {
            while link.changed().await.is_ok() {
                let is_connected = link.borrow_and_update().connected;
                connected.send_replace(is_connected);
                metrics.registry_connected.set(i64::from(is_connected));
            }
        };
        let registering = register(publisher.registered(), publisher.snapshot(), &tell);
        let parting = async {
            leaving.await;
            say_goodbye.send_replace(true);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = Box::pin(self.keep_following(&mut local, &publisher)) => {}
            () = watching => {}
            () = registering => {}
            () = parting => {}
        }
    }

    async fn keep_following(&mut self, local: &mut Local, publisher: &Publisher) {
        let mut attempt = 0;
        loop {
            let began = tokio::time::Instant::now();
            match self.follow_once(local, publisher).await {
                Ok(Ended::Goodbye) => return,
                Ok(Ended::Closed) => {
                    tracing::info!(control = self.control, "the control server closed the session");
                }
                Err(reason) => {
                    tracing::warn!(control = self.control, reason, "the control server is not in reach");
                }
            }
            attempt = if began.elapsed() >= STEADY { 0 } else { attempt + 1 };
            tokio::select! {
                () = tokio::time::sleep(backoff(attempt, rand::random())) => {}
                _ = local.shutdown.wait_for(|shutdown| *shutdown) => return,
            }
        }
    }

    async fn follow_once(&mut self, local: &mut Local, publisher: &Publisher) -> Result<Ended, String> {
        let opened = tokio::select! {
            opened = tokio::time::timeout(CONNECT_TIMEOUT, Box::pin(self.open_stream())) => opened,
            // Nobody is connected who could take a goodbye: the lease runs out by itself.
            _ = local.shutdown.wait_for(|shutdown| *shutdown) => return Ok(Ended::Goodbye),
        };
        let (reader, writer, connection) =
            opened.map_err(|_| format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))??;
        let bundle = Arc::clone(&self.bundle);
        let publish = |values: &BTreeMap<String, Value>, version: u64| {
            let mesh = mesh_of(values, &bundle).inspect_err(|reason| publisher.refuse(reason.clone()))?;
            publisher.take_mesh(mesh, version)
        };
        let followed = Box::pin(follow(reader, writer, &mut self.followed, local, publish)).await;
        connection.abort();
        followed.map_err(|error| error.to_string())
    }

    async fn open_stream(&self) -> Result<(StreamReader, StreamWriter, tokio::task::JoinHandle<()>), String> {
        let credential = self.credential.clone().ok_or("there is no node credential to connect with")?;
        let control = Identity::control(self.bundle.trust_domain().clone());
        let mut config: ClientConfig =
            client_config(credential, Arc::clone(&self.bundle), Expected::exactly(control));
        config.enable_sni = false;
        let stream = connect(&self.control, self.mark).await?;
        let tls = TlsConnector::from(Arc::new(config)).connect(placeholder_server_name(), stream).await;
        let tls = tls.map_err(|error| format!("the handshake failed: {}", describe_io(&error)))?;
        let (mut sender, connection) = h2::client::handshake(tls).await.map_err(|error| error.to_string())?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the control server ended");
            }
        });
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("https://control{STATE_PATH}"))
            .body(())
            .map_err(|error| error.to_string())?;
        let (response, send) = sender.send_request(request, false).map_err(|error| error.to_string())?;
        let response = response.await.map_err(|error| error.to_string())?;
        match response.status() {
            StatusCode::OK => Ok((StreamReader::new(response.into_body()), StreamWriter::new(send), driver)),
            status => {
                driver.abort();
                Err(format!("it answered {status}: has this host been revoked, or joined again elsewhere?"))
            }
        }
    }
}

async fn connect(control: &str, mark: Mark) -> Result<TcpStream, String> {
    let name = if control.parse::<std::net::SocketAddr>().is_ok() || has_port(control) {
        control.to_owned()
    } else {
        format!("{control}:{CONTROL_PORT}")
    };
    let addresses = lookup_host(&name).await.map_err(|error| format!("{name}: {error}"))?;
    let mut last = format!("{name} has no address");
    for address in addresses.take(MAX_ADDRESSES) {
        match socket::connect(address, mark, CONNECT_TIMEOUT).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("nothing answers at {address}: {error}"),
        }
    }
    Err(last)
}

fn has_port(control: &str) -> bool {
    control.rsplit_once(':').is_some_and(|(host, port)| port.parse::<u16>().is_ok() && !host.ends_with(':'))
}

/// The resources of a state, put together into one mesh of the trust domain that this host is a member of.
fn mesh_of(values: &BTreeMap<String, Value>, bundle: &TrustBundle) -> Result<Mesh, String> {
    let mut resources = Vec::new();
    let mut findings = Vec::new();
    for (key, value) in values {
        match decode_from_newer(value) {
            Ok(read) => {
                for report in &read.reports {
                    tracing::warn!(resource = key, "{report}");
                }
                let origin = Origin { source: Arc::new(Source::new(key, "")), span: Span::default() };
                resources.push(Located { value: read.resource, origin });
                findings.extend(read.reports);
            }
            // A kind of a newer version, which this agent could not put in force in any case.
            Err(reports) => {
                let report = reports.first().map(ToString::to_string).unwrap_or_default();
                tracing::warn!(resource = key, report, "a resource is not understood and has no effect here");
            }
        }
    }
    let loaded = assemble(resources, findings).map_err(|refused| refused.to_string())?;
    of_trust_domain(loaded.mesh, bundle)
}

/// Tells the registrations of this host as they change.
async fn register(
    mut local: watch::Receiver<Vec<Arc<LocalService>>>,
    snapshot: Arc<arc_swap::ArcSwap<crate::snapshot::Snapshot>>,
    tell: &watch::Sender<Vec<Registration>>,
) {
    loop {
        let host = snapshot.load().host.addresses.clone();
        let services = local.borrow_and_update().clone();
        tell.send_replace(services.iter().filter_map(|service| registration(service, &host)).collect());
        if local.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

fn registration(service: &LocalService, host: &[std::net::IpAddr]) -> Option<Registration> {
    let addresses = service.addresses(host).to_vec();
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
        locality: service.locality.clone().unwrap_or_default(),
        weight: service.weight,
        service_account: Some(service.service_account.clone()),
    })
}
