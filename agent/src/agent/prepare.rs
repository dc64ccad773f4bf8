//! Everything that is read and checked before the agent starts anything: who the host is, what it trusts, who signs
//! for it, which services it has, and the first state of the mesh.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use baremesh_ca::authority::{Authority, Place, handed_passphrase};
use baremesh_ca::client::{CONNECT_TIMEOUT, CONTROL_PORT, Client};
use baremesh_ca::local::LocalIssuer;
use baremesh_ca::service::WORKLOAD_LIFETIME;
use baremesh_model::grant::Grant;
use baremesh_model::mesh::{Mesh, Parts};
use baremesh_model::name::Label;
use tokio::sync::{mpsc, oneshot, watch};

use super::{AgentError, doing};
use crate::addresses::{self, Detected};
use crate::capture::{AGENT_MARK, AgentPorts, Capture, DnsCapture};
use crate::config::{AgentConfig, DnsMode, SourceConfig};
use crate::demand::Demand;
use crate::flows::Flows;
use crate::identity::rotation::Node;
use crate::identity::{Issuer, NodeCredential};
use crate::machine;
use crate::membership::Membership;
use crate::proxy::socket::{self, Mark};
use crate::registration::{LocalService, file};
use crate::snapshot::Host;
use crate::snapshot::plan::CaptureSettings;
use crate::source::consul::ConsulSource;
use crate::source::consul::standing::Standing;
use crate::source::control::ControlSource;
use crate::source::control::probe::Probe;
use crate::source::files::FileSource;
use crate::trust::Trust;

/// Where the mesh comes from, ready to be followed.
pub enum Source {
    /// A directory.
    Files(FileSource),
    /// The control server.
    Control(Box<ControlSource>),
    /// Consul.
    Consul(Box<ConsulSource>),
}

impl Source {
    /// What finds out whether the control server is in reach.
    pub fn probe(&self) -> Option<Probe> {
        match self {
            Self::Files(_) | Self::Consul(_) => None,
            Self::Control(source) => Some(source.probe()),
        }
    }

    /// Tells a control server who came to this host's services.
    pub fn telling(self, flows: Arc<Flows>) -> Self {
        match self {
            Self::Files(_) | Self::Consul(_) => self,
            Self::Control(source) => Self::Control(Box::new(source.telling(flows))),
        }
    }

    /// Asks for those endpoints that are called; of files all are held.
    pub fn demanding(self, demand: &Demand) -> Self {
        match self {
            Self::Files(_) => self,
            Self::Control(source) => Self::Control(Box::new(source.asking_for(demand.subscription()))),
            Self::Consul(source) => Self::Consul(Box::new(source.asking_for(demand.subscription()))),
        }
    }

    /// The state that is on the disk now, with its version; nothing where there is none, or where files are followed.
    pub fn reread(&mut self) -> Result<Option<(Mesh, u64)>, String> {
        match self {
            Self::Files(_) => Ok(None),
            Self::Control(source) => source.reread(),
            Self::Consul(source) => source.reread(),
        }
    }

    /// By which the state in force is written to its file at once, where it is not in any case.
    pub fn flush(&self) -> Option<mpsc::Sender<oneshot::Sender<()>>> {
        match self {
            Self::Files(_) | Self::Consul(_) => None,
            Self::Control(source) => Some(source.flush()),
        }
    }

    /// How Consul stands, where it is that.
    pub fn standing(&self) -> Option<watch::Receiver<Standing>> {
        match self {
            Self::Files(_) | Self::Control(_) => None,
            Self::Consul(source) => Some(source.standing()),
        }
    }

    /// What operators ought to know of it, in words, as it changes.
    pub fn notes(&self) -> watch::Receiver<Vec<String>> {
        match self {
            Self::Files(_) | Self::Control(_) => watch::Sender::default().subscribe(),
            Self::Consul(source) => source.notes(),
        }
    }
}

/// Everything that the agent starts with.
pub struct Prepared {
    /// The control server's address as it was given at join, where the host has joined.
    pub control: Option<String>,
    /// This host.
    pub host: Host,
    /// What peers are verified against.
    pub trust: Arc<Trust>,
    /// Who signs.
    pub issuer: Issuer,
    /// The node credential.
    pub node: Option<Node>,
    /// The services of this host.
    pub registrations: Vec<Arc<LocalService>>,
    /// The first state: of the files, or the last good one.
    pub initial: Mesh,
    /// The source's version of the first state; 0 where nothing was heard of the mesh yet.
    pub version: u64,
    /// Where further states come from.
    pub source: Source,
}

/// Reads and checks it all.
pub async fn prepare(config: &AgentConfig) -> Result<Prepared, AgentError> {
    let registrations = file::read_all(&config.directories.registrations(), &config.terms())?;
    match (&config.source, Membership::load(&config.directories.node())) {
        (SourceConfig::Files(directory), Err(_)) if config.directories.authority().exists() => {
            own_mesh(config, directory, registrations)
        }
        (_, Err(error)) => Err(error.into()),
        (SourceConfig::Files(directory), Ok(membership)) => {
            let source =
                FileSource::open(directory).map_err(|refused| AgentError::State(refused.to_string()))?;
            let source = source.of(&membership.bundle);
            let initial = source.mesh().map_err(AgentError::State)?;
            let trust = Trust::new(Arc::clone(&membership.bundle), Some(config.directories.node()));
            let source = Source::Files(source);
            member(config, membership, trust, registrations, (initial, source)).await
        }
        (SourceConfig::Control, Ok(membership)) => {
            let trust = Trust::new(Arc::clone(&membership.bundle), Some(config.directories.node()));
            let mut source = ControlSource::open(&config.directories.state, &membership, &trust)?;
            let (initial, version) = source.last_good(&membership)?;
            let source = Source::Control(Box::new(source));
            let prepared = member(config, membership, trust, registrations, (initial, source));
            Ok(Prepared { version, ..prepared.await? })
        }
        (SourceConfig::Consul(settings), Ok(membership)) => {
            let trust = Trust::new(Arc::clone(&membership.bundle), Some(config.directories.node()));
            let state = &config.directories.state;
            let source = ConsulSource::open(settings.as_ref().clone(), state, &membership, &trust);
            let (initial, version) = source.last_good(&membership)?;
            let source = Source::Consul(Box::new(source));
            let prepared = member(config, membership, trust, registrations, (initial, source));
            Ok(Prepared { version, ..prepared.await? })
        }
    }
}

/// A host that joined.
async fn member(
    config: &AgentConfig,
    membership: Membership,
    trust: Arc<Trust>,
    registrations: Vec<Arc<LocalService>>,
    (initial, source): (Mesh, Source),
) -> Result<Prepared, AgentError> {
    let state = |error: baremesh_ca::issued::IssuedError| AgentError::State(error.to_string());
    let credential = NodeCredential::new(&membership.node).map_err(state)?;
    let resolver: Arc<dyn rustls::client::ResolvesClientCert> = Arc::clone(&credential) as _;
    let client = Client::new(membership.control.clone(), trust.follow(), resolver);
    let own = mark(config);
    // As the stream of the state is: with everything captured, the agent's own calls would come back to it.
    let client = client.dialing(Arc::new(move |to| Box::pin(socket::connect(to, own, CONNECT_TIMEOUT))));
    let source = match source {
        Source::Control(control) => {
            Source::Control(Box::new(control.with(Arc::clone(&credential) as _, mark(config))))
        }
        Source::Consul(consul) => Source::Consul(Box::new(consul.with(mark(config)))),
        files @ Source::Files(_) => files,
    };
    let name = config.host.clone().unwrap_or_else(|| membership.host.clone());
    if name != membership.host {
        return Err(AgentError::State(format!(
            "agent.toml names this host `{name}`, but it joined as `{}`: correct one of the two",
            membership.host
        )));
    }
    let control = membership.control.clone();
    let towards = tokio::task::spawn_blocking(move || resolve(&control)).await.ok().flatten();
    Ok(Prepared {
        control: Some(membership.control.clone()),
        host: host(config, name, towards)?,
        node: Some(Node {
            credential,
            issued: Arc::clone(&membership.node),
            directory: config.directories.node(),
        }),
        issuer: Issuer::Control(Box::new(client)),
        trust,
        registrations,
        initial,
        version: 1,
        source,
    })
}

/// A host that is its own mesh: the certificate authority is here, and so are the resources.
fn own_mesh(
    config: &AgentConfig,
    directory: &std::path::Path,
    registrations: Vec<Arc<LocalService>>,
) -> Result<Prepared, AgentError> {
    let state = |error: baremesh_ca::authority::AuthorityError| AgentError::State(error.to_string());
    let place = Place::new(&config.directories.authority(), handed_passphrase().map_err(state)?);
    let authority = Authority::open(place, SystemTime::now()).map_err(state)?;
    let name = match &config.host {
        Some(name) => name.clone(),
        None => machine::label().ok_or_else(|| {
            let name = machine::name();
            AgentError::State(format!(
                "the machine's name `{name}` cannot be one of the mesh: set `host` in agent.toml"
            ))
        })?,
    };
    let grants = vec![Grant::parse("*.*").map_err(|error| AgentError::State(error.to_string()))?];
    let bundle = Arc::new(authority.bundle().map_err(state)?);
    let issuer = LocalIssuer::new(authority, name.clone(), grants, WORKLOAD_LIFETIME);
    let source = FileSource::open(directory).map_err(|refused| AgentError::State(refused.to_string()))?;
    let source = source.of(&bundle);
    Ok(Prepared {
        control: None,
        host: host(config, name, None)?,
        issuer: Issuer::Local(Arc::new(Mutex::new(issuer))),
        node: None,
        registrations,
        initial: source.mesh().map_err(AgentError::State)?,
        version: 1,
        source: Source::Files(source),
        trust: Trust::new(bundle, None),
    })
}

/// The empty mesh that a member starts with before it has ever heard from its control server.
pub fn empty_mesh(membership: &Membership) -> Result<Mesh, AgentError> {
    let mut parts = Parts::default();
    parts.config.trust_domain = membership.bundle.trust_domain().clone();
    if let Some(domain) = &membership.domain {
        parts.config.domain = domain.clone();
    }
    // Until the mesh says otherwise nothing is let in without a certificate.
    parts.config.default_mtls = baremesh_model::peer_authentication::MtlsMode::Strict;
    Mesh::assemble(parts)
        .map_err(|errors| AgentError::State(errors.first().map(ToString::to_string).unwrap_or_default()))
}

/// The rules' keeper, where rules are wanted or can be asked for later.
pub fn capture(config: &AgentConfig) -> Result<Option<Capture>, AgentError> {
    let runtime = &config.directories.runtime;
    std::fs::create_dir_all(runtime).map_err(doing(format!("making {}", runtime.display())))?;
    match Capture::new(runtime) {
        Ok(capture) => {
            let boot = config.directories.state.join("boot.nft");
            Ok(Some(capture.by_own_name().keeping_for_boot(boot)))
        }
        Err(error) if !config.capture => {
            tracing::warn!(%error, "capture is off, and cannot be switched on");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn host(config: &AgentConfig, name: Label, towards: Option<SocketAddr>) -> Result<Host, AgentError> {
    let Detected { addresses, why } = match &config.addresses[..] {
        [] => addresses::detect(towards).map_err(doing("finding this host's addresses"))?,
        given => Detected { addresses: given.to_vec(), why: "`addresses` of agent.toml".to_owned() },
    };
    if addresses.is_empty() {
        tracing::warn!("this host has no address that others could reach: set `addresses` in agent.toml");
    }
    Ok(Host { name, addresses, why: why.into(), network: config.network.clone() })
}

/// Where the control server is.
pub fn resolve(control: &str) -> Option<SocketAddr> {
    let direct = control.to_socket_addrs().ok().and_then(|mut all| all.next());
    direct.or_else(|| (control, CONTROL_PORT).to_socket_addrs().ok().and_then(|mut all| all.next()))
}

/// The mark of the agent's own sockets. They have it where capture is off as well, if the agent may give it to them:
/// rules that know it can be asked for later.
pub fn mark(config: &AgentConfig) -> Mark {
    let may_mark = || {
        let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0));
        socket.is_ok_and(|socket| socket2::SockRef::from(&socket).set_mark(AGENT_MARK).is_ok())
    };
    Mark((config.capture || may_mark()).then_some(AGENT_MARK))
}

/// What the rules are made with, besides the state.
pub fn capture_settings(config: &AgentConfig) -> CaptureSettings {
    CaptureSettings {
        agent_uid: rustix::process::geteuid().as_raw(),
        ports: AgentPorts {
            outbound: config.ports.outbound,
            inbound: config.ports.inbound,
            hbone: config.ports.hbone,
            dns: config.dns_port,
        },
        dns: match config.dns {
            DnsMode::Capture => DnsCapture::Port53,
            DnsMode::Off => DnsCapture::Off,
            DnsMode::OfThisHost | DnsMode::Nameserver | DnsMode::Resolved => {
                match config.interfaces.is_empty() {
                    true => DnsCapture::Off,
                    false => DnsCapture::Bridges,
                }
            }
        },
        outbound: config.outbound,
        ssh_ports: config.ssh_ports.clone(),
        interfaces: config.interfaces.clone(),
    }
}
