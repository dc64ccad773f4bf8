//! The control server: it lets hosts in, issues certificates, pushes resources and endpoints to the agents, and takes
//! orders through a Unix socket. One process, one state directory.
//!
//! Modules in reading order.

/// What goes over the administration socket.
pub mod report;
/// Reading and changing a directory of resources.
pub mod resources;
/// How much of everything there may be.
mod limits;
/// The server's own certificate.
mod certificate;
/// The ledger that several control processes share.
pub mod shared_ledger;
/// Which services each host may have.
mod grants;
/// The last set of resources that was in force, on the disk.
mod last_good;
/// The control state in one file.
pub mod backup;
/// What agents are told of certificates.
mod trust;
/// Roots of other trust domains.
mod federation;
/// Resources coming into force.
mod in_force;
/// Resources, trust and addresses in Consul.
mod consul;
/// Connections of hosts.
mod listener;
/// What hosts ask for.
mod calls;
/// Which addresses are a host's.
mod addresses;
/// Every call, with who may make it.
mod endpoints;
/// What hosts tell of connections.
mod flows;
/// Orders from afar.
mod remote;
/// Who gives an order.
mod who;
/// Which resources an operator may change.
mod permission;
/// What a change did, in words.
mod difference;
/// The administration socket.
mod socket;
/// What operators ask for.
mod orders;

#[cfg(test)]
mod tests;

use std::fs::{DirBuilder, File, TryLockError};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use baremesh_agent::admin::server::{bind_socket, serve_socket};
use baremesh_agent::config::Directories;
use baremesh_ca::authority::{Authority, Place, has_unsealed};
use baremesh_ca::client::CONTROL_PORT;
use baremesh_ca::ledger::Ledger;
use baremesh_ca::seal::Passphrase;
use baremesh_ca::service::{CaService, Settings as CaSettings};
use baremesh_model::name::TrustDomain;
use baremesh_registry::consul::Settings as ConsulSettings;
use baremesh_registry::control::server::{Control, Format, Settings};
use baremesh_registry::control::store::Store;
use baremesh_registry::files::{ResourceDirectory, Status as FilesStatus};
use baremesh_registry::format;
use baremesh_registry::resource::Resource;
use baremesh_registry::set::Refused;
use ipnet::IpNet;
use sd_notify::NotifyState;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use certificate::OwnCertificate;
use consul::ConsulSide;
use federation::Federation;
use flows::FlowBook;
use grants::GrantBook;
use in_force::InForce;
use limits::Limits;
use shared_ledger::processes::Processes;

pub use consul::{FILE as CONTROL_FILE, settings as consul_settings, settings_of as consul_settings_of};

/// How long calls and connections have to end when the server stops.
const DRAIN: Duration = Duration::from_secs(5);
/// The database of tokens, hosts, registrations and addresses, in the state directory.
pub const DATABASE: &str = "control.db";
/// What one process holds while it serves, in the state directory.
const LOCK: &str = "control.lock";

/// What a control server is told.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// Its directories.
    pub directories: Directories,
    /// Where hosts reach it, at least one.
    pub listen: Vec<SocketAddr>,
    /// Addresses of this host and its link at which roots of other trust domains may be fetched all the same.
    pub federation_allow: Vec<IpNet>,
    /// Opens the authority's keys where they are sealed, and seals those that are made.
    pub ca_passphrase: Option<Passphrase>,
    /// How long services' certificates are valid.
    pub workload_lifetime: Duration,
    /// How long node credentials are valid.
    pub node_lifetime: Duration,
    /// How long a silent host's endpoints are kept.
    pub lease: Duration,
    /// Where Consul is, where it is the registry; a directory of files is without.
    pub consul: Option<ConsulSettings>,
    /// Where the ledger is shared with other control processes, if it is.
    pub shared_ledger: Option<ConsulSettings>,
}

/// Every address of this machine, in both families.
pub fn default_listeners() -> Vec<SocketAddr> {
    vec![(Ipv4Addr::UNSPECIFIED, CONTROL_PORT).into(), (Ipv6Addr::UNSPECIFIED, CONTROL_PORT).into()]
}

/// Waits until the server is to stop; when nobody can say so any more, too.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// What the parts of a control server share.
struct Server {
    trust_domain: TrustDomain,
    ca: Arc<CaService>,
    control: Control,
    grants: Arc<GrantBook>,
    directory: ResourceDirectory,
    /// The others that share the ledger, where it is shared.
    processes: Option<Arc<Processes>>,
    /// The way to Consul, where the directory mirrors what is there.
    consul: Option<Arc<ConsulSide>>,
    in_force: watch::Receiver<InForce>,
    /// How reading the resource files goes.
    files: watch::Receiver<FilesStatus>,
    certificate: Arc<OwnCertificate>,
    /// What takes connections of hosts: another one when what is trusted changes.
    tls: watch::Sender<TlsAcceptor>,
    /// Held while agents are told what is trusted and what is revoked.
    publishing: tokio::sync::Mutex<()>,
    /// The version of the state that says what is trusted now.
    told: AtomicU64,
    listen: Vec<SocketAddr>,
    limits: Limits,
    /// Goes up when who is a member, or an operator, has changed, so that open connections are looked at again.
    membership: watch::Sender<u64>,
    /// Who came to which service, as hosts tell it.
    flows: FlowBook,
    /// The roots of other trust domains.
    federation: Federation,
    /// The resources that the audit knows of; held while they are changed and the change gets its version.
    changing: Mutex<Vec<Resource>>,
    stop: watch::Receiver<bool>,
}

/// A control server that serves until it is stopped.
pub struct Running {
    addresses: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    connections: JoinSet<()>,
    tasks: JoinSet<()>,
    socket: PathBuf,
    processes: Option<Arc<Processes>>,
    _lock: File,
}

impl Running {
    /// Where hosts reach it.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops: nothing new is taken, calls come to their end within a limit, the socket goes away.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let drained = async { while self.connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("some connections did not end within {} s and are cut", DRAIN.as_secs());
        }
        self.connections.shutdown().await;
        self.tasks.shutdown().await;
        if let Some(processes) = &self.processes {
            processes.leave().await;
        }
        // The lock is still held: it is no other process's socket.
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::warn!("{} cannot be removed: {error}", self.socket.display());
        }
    }
}

/// Serves until SIGTERM or SIGINT.
pub async fn serve(config: ControlConfig) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be waited for")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be waited for")?;
    let running = start(config).await?;
    // Fails where no service manager asked to be told.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: agents go on with what they have");
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    running.stop().await;
    Ok(())
}

/// Starts a control server. When this returns it serves.
pub async fn start(config: ControlConfig) -> anyhow::Result<Running> {
    let directories = &config.directories;
    let lock = lock(&directories.state)?;
    let now = SystemTime::now();
    let place = Place::new(&directories.authority(), config.ca_passphrase.clone());
    let authority = Authority::open(place, now)?;
    if config.ca_passphrase.is_some() && has_unsealed(&directories.authority())? {
        tracing::warn!(
            "there is a passphrase, and keys of the authority that it does not seal: stop the server and run `baremesh ca seal`"
        );
    }
    let trust_domain = authority.trust_domain().clone();
    let consul = match &config.consul {
        Some(settings) => Some(Box::pin(ConsulSide::begin(settings.clone(), directories)).await?),
        None => None,
    };
    let directory = match &consul {
        Some(consul) => consul.directory(),
        None => ResourceDirectory::new(&directories.registry()),
    };
    let files = directory
        .watch(last_good::load(&directories.state, &trust_domain))
        .map_err(|refused| findings(&refused))?;
    let first = files.current.borrow().clone();
    in_force::check(&first, &trust_domain)
        .map_err(|reason| anyhow::anyhow!("{reason} (in {})", directory.path().display()))?;

    let database = directories.state.join(DATABASE);
    let ledger = Ledger::open(&database)?;
    let mut processes = None;
    let ledger = match config.shared_ledger.clone() {
        None => ledger,
        Some(settings) => {
            processes = Some(Arc::new(Processes::new(settings.clone(), &directories.state)?));
            let log = Arc::new(shared_ledger::ConsulLog::new(settings)?);
            let ledger = tokio::task::spawn_blocking(move || ledger.with_log(log)).await?;
            ledger.context("the shared ledger cannot be followed")?
        }
    };
    let domain = Some(first.mesh.config.domain.clone());
    let (workload_lifetime, node_lifetime) = (config.workload_lifetime, config.node_lifetime);
    let settings = CaSettings { workload_lifetime, node_lifetime, domain };
    let ca = Arc::new(CaService::new(authority, ledger, settings));
    // Before anything is signed, or said of trust.
    if let Some(processes) = &processes {
        Box::pin(processes.join(&ca)).await.context("this control process cannot share the ledger")?;
    }
    let grants = Arc::new(GrantBook::new(ca.clone()));
    let control = Control::open(Store::open(&database)?, settings_of(&config, &grants)).await?;
    let certificate = Arc::new(OwnCertificate::obtain(ca.clone()).await?);
    let bundle = ca.bundle()?;

    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for address in &config.listen {
        if let Some(listener) = listener::bind(*address, config.listen.len())? {
            addresses.push(listener.local_addr()?);
            listeners.push(listener);
        }
    }
    let (stop, stopped) = watch::channel(false);
    let (in_force_out, in_force) = watch::channel(InForce::nothing());
    let server = Arc::new(Server {
        trust_domain,
        ca,
        control: control.clone(),
        grants,
        directory,
        processes: processes.clone(),
        consul: consul.clone(),
        in_force,
        files: files.status.clone(),
        certificate: certificate.clone(),
        tls: watch::Sender::new(trust::acceptor(&certificate, bundle)),
        publishing: tokio::sync::Mutex::default(),
        told: AtomicU64::new(0),
        listen: addresses.clone(),
        limits: Limits::default(),
        membership: watch::Sender::new(0),
        flows: FlowBook::default(),
        federation: Federation::new(&directories.state, config.federation_allow.clone(), &first.mesh.config),
        changing: Mutex::new(first.resources()),
        stop: stopped,
    });
    let following = in_force::Following::new(server.clone(), files, in_force_out, directories.state.clone());
    // Before the first state: nobody is to be sent one without it.
    trust::begin(&server).await?;
    federation::begin(&server).await?;
    let noting = server.clone();
    tokio::task::spawn_blocking(move || orders::note_found_at_start(&noting)).await?;
    let following = following.begin().await?;
    // Last of all that can fail: what answers at the socket answers for all of it.
    make_directory(&directories.runtime, 0o755)?;
    let socket = directories.control_socket();
    let administration =
        bind_socket(&socket).with_context(|| format!("{} cannot be listened on", socket.display()))?;

    let (mut tasks, mut connections) = (JoinSet::new(), JoinSet::new());
    tasks.spawn(async move { control.run().await });
    tasks.spawn(certificate.keep());
    tasks.spawn(following.run());
    tasks.spawn(trust::keep(server.clone()));
    tasks.spawn(federation::keep(server.clone()));
    if let Some(consul) = consul {
        consul.keep(&server, &mut tasks);
    }
    if let Some(processes) = processes.clone() {
        tasks.spawn(shared_ledger::follow(server.clone()));
        tasks.spawn(shared_ledger::processes::keep(processes, server.clone()));
    }
    tasks.spawn(serve_socket(administration, socket::Administration(server.clone())));
    for listener in listeners {
        connections.spawn(listener::serve(server.clone(), listener));
    }
    tracing::info!(trust_domain = %server.trust_domain, addresses = ?addresses, "the control server serves");
    Ok(Running { addresses, stop, connections, tasks, socket, processes, _lock: lock })
}

fn settings_of(config: &ControlConfig, grants: &Arc<GrantBook>) -> Settings {
    let (grants, of_addresses) = (grants.clone(), grants.clone());
    Settings {
        lease: config.lease,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        format: Format {
            read_service,
            write_service,
            read_workload,
            write_workload,
            read_service_entry,
            write_service_entry,
        },
        allowed: Arc::new(move |host, identity| grants.allows(host, identity)),
        addresses: Arc::new(move |host, address| of_addresses.covers(host, address)),
    }
}

fn read_service(
    _: &baremesh_model::name::Key,
    value: &Value,
) -> Result<baremesh_model::service::Service, String> {
    match format::decode(value) {
        Ok(Resource::Service(service)) => Ok(*service),
        other => Err(not_of_kind(other)),
    }
}

fn read_service_entry(
    _: &baremesh_model::name::Key,
    value: &Value,
) -> Result<baremesh_model::service_entry::ServiceEntry, String> {
    match format::decode(value) {
        Ok(Resource::ServiceEntry(entry)) => Ok(*entry),
        other => Err(not_of_kind(other)),
    }
}

fn read_workload(
    _: &baremesh_model::name::Key,
    value: &Value,
) -> Result<baremesh_model::workload::Workload, String> {
    match format::decode(value) {
        Ok(Resource::Workload(workload)) => Ok(Arc::unwrap_or_clone(workload)),
        other => Err(not_of_kind(other)),
    }
}

fn not_of_kind(decoded: Result<Resource, Vec<baremesh_registry::diagnostic::Diagnostic>>) -> String {
    match decoded {
        Ok(resource) => format!("it is a {}", resource.kind()),
        Err(findings) => findings.first().map(|finding| finding.headline()).unwrap_or_default(),
    }
}

fn write_service(service: &baremesh_model::service::Service) -> Value {
    format::encode(&Resource::Service(Box::new(service.clone())))
}

fn write_workload(workload: &baremesh_model::workload::Workload) -> Value {
    format::encode(&Resource::Workload(Arc::new(workload.clone())))
}

fn write_service_entry(entry: &baremesh_model::service_entry::ServiceEntry) -> Value {
    format::encode(&Resource::ServiceEntry(Box::new(entry.clone())))
}

/// One process a state directory: two would hand out the same addresses twice.
pub(crate) fn lock(state: &Path) -> anyhow::Result<File> {
    let path = state.join(LOCK);
    let shown = path.display();
    let opened = File::options().create(true).truncate(false).write(true).open(&path);
    let file =
        opened.with_context(|| format!("{shown} cannot be opened: has `baremesh init` run on this host?"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("another `baremesh control` serves from {}", state.display()),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("{shown} cannot be locked")),
    }
}

/// Makes a directory with its parents; one that is there stays as it is.
pub(crate) fn make_directory(path: &Path, mode: u32) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.with_context(|| format!("{} cannot be made", path.display()))
}

fn findings(refused: &Refused) -> anyhow::Error {
    let text: Vec<_> = refused.0.iter().map(ToString::to_string).collect();
    anyhow::anyhow!("the resources are refused, and there is no earlier set to serve:\n{}", text.join("\n"))
}
