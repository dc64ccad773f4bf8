//! The agent's life: everything is prepared and checked, the data path starts, the rules are put in place, and only
//! then is the agent ready. It ends the other way round, and leaves the rules for a gone agent behind it.

/// The guard's post, which is never left empty.
mod guard_post;
/// What is read and checked before anything starts.
mod prepare;
/// The routes of the administration socket, the metrics and the readiness.
mod routes;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use baremesh_model::virtual_address::VirtualRanges;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::attribution::Cgroups;
use crate::capture::{AgentPorts, CaptureError, DnsCapture};
use crate::config::{AccessLogTarget, AgentConfig, DnsMode};
use crate::credentials::Credentials;
use crate::dns::{self, Dns, DnsConfig, SocketMark, Upstreams, Zone};
use crate::identity::{Rotation, RotationStatus};
use crate::membership::MembershipError;
use crate::originate::Originations;
use crate::proxy::socket::Mark;
use crate::proxy::{Listeners, Phase, Shared, Worker};
use crate::publish::Publisher;
use crate::registration::file::RegistrationError;
use crate::snapshot::plan::CaptureSettings;
use crate::steward::{Mode, Steward};
use crate::telemetry::Telemetry;
use crate::telemetry::access_log::{self, AccessLog};
use crate::telemetry::metrics::Metrics;
use guard_post::GuardPost;
use prepare::{Prepared, Source};

pub use prepare::empty_mesh;

/// How long the agent waits for its ports.
const PORTS_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Why the agent did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The membership in the mesh.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// A registration of this host.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// The capture rules.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A file, a socket, a thread.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Something in the host's state or the mesh's resources.
    #[error("{0}")]
    State(String),
}

/// Puts what was being done before what the system said.
pub(crate) fn doing(what: impl Into<String>) -> impl FnOnce(io::Error) -> AgentError {
    let what = what.into();
    move |source| AgentError::System { what, source }
}

/// Runs the agent until SIGTERM or SIGINT.
pub async fn run(config: AgentConfig) -> Result<(), AgentError> {
    let descriptors = raise_descriptor_limit();
    let prepared = Box::pin(prepare::prepare(&config)).await?;
    let metrics = Metrics::new(prepared.initial.config.name.as_str());
    let originations = Arc::new(Originations::new(config.directories.config.join("credentials")));
    let publisher = Publisher::new(
        (prepared.initial.clone(), prepared.version),
        prepared.registrations.clone(),
        (prepared.host.clone(), config.ports.hbone),
        Arc::clone(&originations),
        Arc::clone(&metrics),
    )
    .map_err(AgentError::State)?;
    let mark = prepare::mark(&config);
    let phase = watch::Sender::new(Phase::Running);
    let dns = bind_dns(&config, &prepared, &publisher, mark)?;
    let listeners = bind_listeners(&config, mark).await?;
    let capture = prepare::capture(&config)?;
    let guard = capture.as_ref().map(|capture| GuardPost::start(capture, &listeners)).transpose()?;
    let admin = routes::Sockets::bind(&config).await?;

    let credentials = Arc::new(ArcSwap::from_pointee(Credentials::new(Arc::clone(&prepared.bundle), [])));
    let status = Arc::new(Mutex::new(RotationStatus::default()));
    let rotation = Rotation {
        issuer: prepared.issuer,
        node: prepared.node,
        bundle: Arc::clone(&prepared.bundle),
        directory: config.directories.state.join("certificates"),
        published: Arc::clone(&credentials),
        wanted: publisher.wanted(),
        status: Arc::clone(&status),
        metrics: Arc::clone(&metrics),
    };
    let rotating = tokio::spawn(rotation.start().run());

    let shared = Shared {
        snapshot: publisher.snapshot(),
        snapshot_changed: publisher.changed(),
        credentials: Arc::clone(&credentials),
        originations,
        phase: phase.subscribe(),
        cgroups: Cgroups::of_system(),
        connections: Arc::default(),
        mark,
        ports: config.ports,
        limits: config.limits.within(descriptors),
        outbound: config.outbound,
    };
    let log = start_access_log(&config.access_log)?;
    let workers = start_workers(listeners, &shared, &metrics, &log)?;
    let dns_counters = dns.as_ref().map(Dns::counters);
    let dns_following =
        dns.as_ref().map(|dns| tokio::spawn(follow_mesh(dns.settings(), Arc::clone(&publisher))));
    let dns_serving = dns.map(|dns| tokio::spawn(dns.serve(until(phase.subscribe(), Phase::Closing))));

    let steward = capture.map(|capture| {
        let settings = capture_settings(&config);
        let mode = if config.capture { Mode::Keep } else { Mode::Off };
        Steward::new((capture, mode), Arc::clone(&publisher), settings, Arc::clone(&metrics))
    });
    let leaving = phase.subscribe();
    let (connected, source) = start_source(prepared.source, &publisher, &metrics, leaving);
    let agent = Arc::new(routes::Agent {
        config: config.clone(),
        publisher: Arc::clone(&publisher),
        credentials,
        rotation: status,
        steward: steward.clone(),
        connected,
        metrics,
        dns: dns_counters,
        log,
        phase: phase.subscribe(),
    });
    let serving = admin.serve(&agent);
    let keeping = match &steward {
        Some(steward) => {
            if steward.mode() == Mode::Keep {
                steward.keep_from_now().await?;
            }
            Some(tokio::spawn(Arc::clone(steward).keep()))
        }
        None => None,
    };
    let (relieve, relieved) = tokio::sync::oneshot::channel();
    let guarding = guard.map(|post| tokio::spawn(post.keep(relieved)));
    let reporting = tokio::spawn(routes::tell_service_manager(Arc::clone(&agent)));
    let rereading = tokio::spawn(Arc::clone(&publisher).reread_certificates());
    tracing::info!(host = %prepared.host.name, addresses = ?prepared.host.addresses, workers = config.workers, "baremesh agent runs");

    until_told_to_stop(&agent).await?;
    tracing::info!(limit = ?config.drain, "draining");
    phase.send_replace(Phase::Draining);
    // The source says goodbye first, so that no new call comes here while the open ones end.
    let _ = tokio::time::timeout(config.drain, source).await;
    keeping.inspect(tokio::task::JoinHandle::abort);
    drain(workers, &phase, config.drain).await;
    if let Some(steward) = &steward
        && let Err(error) = steward.leave().await
    {
        tracing::error!(%error, "the capture rules could not be exchanged for those of a gone agent");
    }
    if let Some(guarding) = guarding {
        let _ = relieve.send(());
        // A panic there has been reported already.
        let _ = guarding.await;
    }
    phase.send_replace(Phase::Closing);
    for task in
        [rotating, reporting, rereading].into_iter().chain(dns_serving).chain(dns_following).chain(serving)
    {
        task.abort();
    }
    tracing::info!("baremesh agent stopped");
    Ok(())
}

/// As many descriptors as the host allows: a connection takes one or two. Returns how many there are.
fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "the limit on open descriptors could not be raised");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Takes the ports, waiting a little for the guard of an agent that has just died to let go of them.
async fn bind_listeners(config: &AgentConfig, mark: Mark) -> Result<Vec<Listeners>, AgentError> {
    let until = tokio::time::Instant::now() + PORTS_PATIENCE;
    loop {
        let bound: io::Result<Vec<_>> =
            (0..config.workers).map(|_| Listeners::bind(config.ports, mark)).collect();
        match bound {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tokio::time::Instant::now() < until => {
                tokio::time::sleep(PORTS_PATIENCE / 100).await;
            }
            bound => return bound.map_err(doing("taking the agent's ports (is another agent running?)")),
        }
    }
}

fn bind_dns(
    config: &AgentConfig,
    prepared: &Prepared,
    publisher: &Publisher,
    mark: Mark,
) -> Result<Option<Dns>, AgentError> {
    if config.dns == DnsMode::Off {
        return Ok(None);
    }
    let mesh = &prepared.initial.config;
    let ranges = &mesh.virtual_ranges;
    let virtual_ranges = as_list(ranges);
    let mut settings = DnsConfig::new(mesh.domain.clone(), virtual_ranges);
    settings.mark = SocketMark(mark.0);
    if !config.upstreams.is_empty() {
        settings.upstreams = Upstreams::Fixed(config.upstreams.clone());
    }
    if crate::capture::ipv6_is_off().is_some() {
        settings.ipv6 = dns::Ipv6Answers::Withheld;
    }
    let (forwards, backwards) = (publisher.snapshot(), publisher.snapshot());
    let zone = Zone::new(
        move |name| forwards.load().find_name(name),
        move |address| backwards.load().find_address(address),
    );
    let listen = [
        SocketAddr::from((Ipv4Addr::LOCALHOST, config.dns_port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, config.dns_port)),
    ];
    Dns::bind(&listen, settings, zone)
        .map(Some)
        .map_err(doing("starting DNS (is another agent running, or another name server?)"))
}

fn as_list(ranges: &VirtualRanges) -> Vec<ipnet::IpNet> {
    std::iter::once(ranges.v4.into()).chain(ranges.v6.map(Into::into)).collect()
}

/// Keeps the DNS server's domain and ranges those of the mesh: a host that has just joined learns them late.
async fn follow_mesh(settings: dns::Settings, publisher: Arc<Publisher>) {
    let mut changed = publisher.changed();
    loop {
        let snapshot = publisher.snapshot().load_full();
        let config = &snapshot.mesh.config;
        settings.set(&config.domain, &as_list(&config.virtual_ranges));
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn capture_settings(config: &AgentConfig) -> CaptureSettings {
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
            DnsMode::Off | DnsMode::Nameserver => DnsCapture::Off,
        },
        outbound: config.outbound,
        ssh_ports: config.ssh_ports.clone(),
    }
}

fn start_access_log(target: &AccessLogTarget) -> Result<AccessLog, AgentError> {
    let out: Box<dyn io::Write + Send> = match target {
        AccessLogTarget::Off => return Ok(AccessLog::off()),
        AccessLogTarget::Stdout => Box::new(io::stdout()),
        AccessLogTarget::File(path) => {
            let file = std::fs::File::options().create(true).append(true).open(path);
            Box::new(file.map_err(doing(format!("opening the access log {}", path.display())))?)
        }
    };
    let (log, writer) = access_log::channel();
    let thread = std::thread::Builder::new().name("access-log".to_owned());
    thread.spawn(move || writer.run(out)).map_err(doing("starting the access log"))?;
    Ok(log)
}

/// Each worker is a thread with a runtime of its own.
fn start_workers(
    listeners: Vec<Listeners>,
    shared: &Shared,
    metrics: &Arc<Metrics>,
    log: &AccessLog,
) -> Result<Vec<JoinHandle<()>>, AgentError> {
    let start = |(index, listeners): (usize, Listeners)| {
        let shared = shared.clone();
        let telemetry = Telemetry::new(Arc::clone(metrics), log.clone());
        let thread = std::thread::Builder::new().name(format!("worker-{index}"));
        let work = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return tracing::error!(%error, "a worker has no runtime"),
            };
            let ran = runtime.block_on(async move {
                let worker = Worker::new(shared, telemetry).map_err(io::Error::other)?;
                worker.run(listeners).await
            });
            if let Err(error) = ran {
                tracing::error!(%error, "a worker stopped");
            }
        };
        thread.spawn(work).map_err(doing("starting a worker"))
    };
    listeners.into_iter().enumerate().map(start).collect()
}

/// Starts following the source. The receiver tells whether it is in reach; the task ends when it has said goodbye.
fn start_source(
    source: Source,
    publisher: &Arc<Publisher>,
    metrics: &Arc<Metrics>,
    leaving: watch::Receiver<Phase>,
) -> (watch::Receiver<bool>, tokio::task::JoinHandle<()>) {
    let connected = watch::Sender::new(matches!(source, Source::Files(_)));
    let receiver = connected.subscribe();
    metrics.registry_connected.set(i64::from(*receiver.borrow()));
    let publisher = Arc::clone(publisher);
    let metrics = Arc::clone(metrics);
    let task = tokio::spawn(async move {
        match source {
            Source::Files(files) => {
                tokio::select! {
                    () = files.follow(publisher) => {}
                    () = until(leaving, Phase::Draining) => {}
                }
            }
            Source::Control(control) => {
                control.follow(publisher, connected, metrics, until(leaving, Phase::Draining)).await;
            }
        }
    });
    (receiver, task)
}

/// Ends when the agent has come as far as `phase`.
async fn until(mut receiver: watch::Receiver<Phase>, phase: Phase) {
    // An error means that the agent is gone altogether.
    let _ = receiver.wait_for(|current| *current >= phase).await;
}

/// Waits for SIGTERM or SIGINT; SIGHUP reads the registrations anew.
async fn until_told_to_stop(agent: &routes::Agent) -> Result<(), AgentError> {
    let catch = |kind| signal(kind).map_err(doing("catching signals"));
    let mut terminate = catch(SignalKind::terminate())?;
    let mut interrupt = catch(SignalKind::interrupt())?;
    let mut hangup = catch(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => {
                if let Err(error) = agent.reload().await {
                    tracing::error!(%error, "the registrations were not taken");
                }
            }
        }
    }
}

/// Lets open connections end, for `limit` at most; then they are closed.
async fn drain(workers: Vec<JoinHandle<()>>, phase: &watch::Sender<Phase>, limit: std::time::Duration) {
    let join = tokio::task::spawn_blocking(move || {
        for worker in workers {
            let _ = worker.join();
        }
    });
    tokio::pin!(join);
    if tokio::time::timeout(limit, &mut join).await.is_err() {
        tracing::warn!("connections are still open at the end of the drain time: they are closed");
        phase.send_replace(Phase::Closing);
        let _ = join.await;
    }
}
