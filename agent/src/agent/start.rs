//! Starting, from the top to the bottom of `start`: what can be refused is read and checked, the ports are taken, the
//! rules are put in place, and then what runs is started: whoever comes meanwhile waits in line.

use std::io::{self, Write as _};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use baremesh_model::health::Health;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle as Task;

use super::guard_post::{GuardPost, Guarding};
use super::handover::{Handed, InCharge, Offer, Predecessor, Sockets, Use};
use super::prepare::{self, Source};
use super::running::Running;
use super::{AgentError, Begin, doing, holder, names, own_addresses, routes, until};
use crate::attribution::{Cgroups, Tracking};
use crate::capture::Capture;
use crate::capture::interval::Interval;
use crate::config::{AccessLogTarget, AgentConfig, DnsMode};
use crate::containers::heard::Heard;
use crate::demand::Demand;
use crate::dns::Dns;
use crate::fetch::Fetcher;
use crate::headroom::{Headroom, Memory};
use crate::health::Checks;
use crate::health::commands::Commands;
use crate::health::probe::Prober;
use crate::identity::{Rotation, RotationStatus};
use crate::jwt::keeper::Keeper;
use crate::originate::Originations;
use crate::privileges;
use crate::proxy::http::upstream::KeptSockets;
use crate::proxy::socket::Mark;
use crate::proxy::{Limits, Listeners, Phase, Shared, Worker};
use crate::publish::Publisher;
use crate::registration::file;
use crate::resolution::{self, AskedNames};
use crate::resolved::Resolved;
use crate::service_manager::store;
use crate::service_manager::watchdog::Pulse;
use crate::snapshot::Snapshot;
use crate::steward::{Mode, Steward};
use crate::telemetry::Telemetry;
use crate::telemetry::access_log::{self, AccessLog, Writing};
use crate::telemetry::metrics::Metrics;

/// How long an agent that takes over waits until it could serve.
const SERVING_PATIENCE: Duration = Duration::from_secs(60);
/// What is told to who waits until it has.
pub const TAKEN: u8 = b't';
/// How long the agent waits for its ports.
const PORTS_PATIENCE: Duration = Duration::from_secs(10);

/// Starts the agent, or nothing.
pub async fn start(config: AgentConfig, commands: Commands, begin: Begin) -> Result<Running, AgentError> {
    let config = AgentConfig { dns: config.dns.settled(), ..config };
    let limits = limits_within(&config, raise_descriptor_limit());
    let at = config.directories.handover_socket();
    let (mut predecessor, handed, tell) = match begin {
        Begin::Alone => (None, Handed::by_service_manager(config.ports, config.dns_port), None),
        Begin::TakingOver(tell) => {
            let (predecessor, handed) = Predecessor::meet(&at).await?;
            (Some(predecessor), handed, tell)
        }
    };
    let Handed { sockets: mut given, healthy, watchdog } = handed;
    let mut prepared = Box::pin(prepare::prepare(&config)).await?;
    let metrics = Metrics::new(prepared.initial.config.name.as_str());
    let memory = Arc::<Memory>::default();
    metrics.show(Headroom(Arc::clone(&memory)));
    let originations = Arc::new(Originations::new(config.directories.config.join("credentials")));
    let publisher = Publisher::new(
        (prepared.initial.clone(), prepared.version),
        &prepared.registrations,
        (prepared.host.clone(), config.ports.hbone),
        Arc::clone(&originations),
        Arc::clone(&metrics),
    )
    .map_err(AgentError::State)?;
    let mark = prepare::mark(&config);

    let dns = names::bind(&config, &prepared, &publisher, (mark, &mut given))?;
    let listeners = if given.has_listeners() {
        take_listeners(&config, mark, &mut given)?
    } else {
        bind_listeners(&config, mark).await?
    };
    let capture = prepare::capture(&config)?;
    let gone_file = capture.as_ref().map(Capture::gone_file);
    let post = || {
        let file = gone_file.clone();
        file.map(|file| GuardPost::start(file, &listeners, store::is_there())).transpose()
    };
    // One that takes over is guarded once it has: a guard acts for an agent that was in charge.
    let mut guard = if predecessor.is_none() { post()? } else { None };
    let sockets = routes::Listening::bind(&config, &mut given).await?;
    let offered = offered(&listeners, dns.as_ref(), &sockets).map_err(doing("duplicating the listeners"))?;
    // Who registered a service since `prepare` read them found no socket to tell this agent by.
    let registrations = file::read_all(&config.directories.registrations(), &config.terms())?;
    publisher.take_registrations(&registrations).map_err(AgentError::State)?;
    // Whose checks passed at the agent before this one is not announced as unhealthy until they have passed here.
    let well = registrations.iter().filter(|one| healthy.contains(&one.key.to_string()));
    let well: Vec<_> = well.map(|one| (Arc::clone(one), Health::Healthy)).collect();
    publisher.take_health(&well).map_err(AgentError::State)?;
    let heard = Heard::new(Arc::clone(&publisher));

    let keys = keep_keys(&config, &publisher, &metrics, mark);
    let phase = watch::Sender::new(Phase::Running);
    let trust = prepared.trust;
    let credentials = trust.credentials();
    let connected = watch::Sender::new(matches!(prepared.source, Source::Files(_)));
    let rotation = Rotation {
        issuer: prepared.issuer,
        node: prepared.node,
        trust: Arc::clone(&trust),
        directory: config.directories.state.join("certificates"),
        wanted: publisher.wanted(),
        connected: connected.subscribe(),
        status: Arc::new(Mutex::new(RotationStatus::default())),
        metrics: Arc::clone(&metrics),
    };
    let rotation_status = Arc::clone(&rotation.status);
    let steward = capture.map(|capture| make_steward(capture, &config, &publisher, &metrics));
    let mut others = vec![tokio::spawn(rotation.start().run()), tokio::spawn(keys.run())];
    let (lines, log) = start_access_log(&config.access_log, publisher.snapshot())?;
    let prober =
        Prober::new(mark, commands).map_err(doing("speaking with the process that runs commands"))?;
    if let Some(predecessor) = &mut predecessor {
        until_it_can_serve(|| {
            routes::serving_lacks(&config.source, &publisher, (&credentials, &rotation_status))
        })
        .await?;
        let containers = predecessor.let_go_of_rules().await?;
        if let Err(reason) = heard.resume(&containers) {
            tracing::warn!(reason, "which containers run is not known before their followers say it again");
        }
    }
    // Before anything is taken: what waits in line may be for a service that the rules for a gone agent close.
    if let Some(steward) = steward.as_ref().filter(|steward| steward.mode() == Mode::Keep) {
        steward.keep_from_now().await?;
    }
    if let Some(predecessor) = &mut predecessor {
        predecessor.give_way().await?;
    }
    // From here on this agent is in charge. One that stopped for it to be started anew left its rules, for as long as this took.
    let interval = gone_file.as_deref().map(Interval::before);
    interval.iter().for_each(Interval::end);
    if let Some(predecessor) = predecessor {
        guard = post()?;
        predecessor.note_guard().await;
        tracing::info!("this agent has taken over from the one that ran");
        take_what_came_meanwhile(&config, &mut prepared.source, &publisher);
    }
    let offer = Offer::bind(&at)?;
    // From the first moment on: who is killed has no other.
    if let Err(error) = offered.lasting().and_then(|lasting| store::keep(&lasting)) {
        tracing::warn!(%error, "the service manager does not keep the listeners: connections are refused while no agent runs");
    }
    let resolver = Arc::new(names::resolver(&config, &prepared.initial, mark));
    let asked_names = Arc::new(AskedNames::new(Arc::clone(&resolver), Arc::clone(&metrics.lookups)));
    let demand = Demand::open(config.endpoints, &config.directories.state, &publisher, &metrics);
    let shared = Shared {
        snapshot: publisher.snapshot(),
        snapshot_changed: publisher.changed(),
        credentials: Arc::clone(&credentials),
        trust: trust.follow(),
        originations,
        phase: phase.subscribe(),
        cgroups: Cgroups::of_system(),
        connections: Arc::default(),
        kept: Arc::new(KeptSockets::new(limits.max_kept, metrics.kept_connections.clone())),
        mark,
        ports: config.ports,
        limits,
        outbound: config.outbound,
        flows: Arc::default(),
        asked_names,
        demand: Arc::clone(&demand),
        led: Arc::default(),
        settled: Arc::new(Semaphore::new(0)),
        pulse: Pulse::new(config.workers),
        memory: Arc::clone(&memory),
    };
    others.push(tokio::spawn(memory.watch(Arc::clone(&shared.connections))));
    if let Some(trouble) = Tracking::look().trouble() {
        tracing::error!("{trouble}");
    }
    let (settled, pulse) = (Arc::clone(&shared.settled), Arc::clone(&shared.pulse));
    tokio::spawn(learn_cgroups(Arc::clone(&shared.cgroups)));
    let tally = lines.tally();
    let workers = start_workers(listeners, &shared, &metrics, &lines)?;
    // From here on the workers alone have ends of the log: it ends with them.
    drop(lines);
    let dns = dns.map(|dns| {
        let (counters, tasks) = names::serve(dns, &publisher, phase.subscribe());
        others.extend(tasks);
        counters
    });
    let resolved = (config.dns == DnsMode::Resolved).then(|| Resolved::new(config.dns_port));
    let checks = Checks::new(Arc::clone(&publisher), prober, Arc::clone(&metrics));
    others.push(tokio::spawn(Arc::clone(&checks).run()));
    let probe = prepared.source.probe();
    let flows = Arc::clone(&shared.flows);
    let source = prepared.source.telling(Arc::clone(&flows)).demanding(&demand);
    if !matches!(source, Source::Files(_)) {
        others.push(tokio::spawn(Arc::clone(&demand).keep()));
    }
    let (source_notes, consul, flush) = (source.notes(), source.standing(), source.flush());
    let is_connected = connected.subscribe();
    let source = start_source((source, connected), &publisher, &checks, &metrics, phase.subscribe());
    let agent = Arc::new(routes::Agent {
        config,
        publisher,
        credentials,
        rotation: rotation_status,
        steward,
        checks,
        connected: is_connected,
        source_notes,
        consul,
        metrics,
        dns,
        log: tally,
        phase: phase.subscribe(),
        probe,
        flows,
        demand,
        heard,
        mark,
    });
    others.extend(sockets.serve(&agent));
    let keeping = agent.steward.as_ref().map(|steward| tokio::spawn(Arc::clone(steward).keep()));
    if let Some(resolved) = &resolved {
        // What starts after the agent asks for names of the mesh, which would go upstream.
        resolved.tell_first(&agent.publisher).await;
        others.push(tokio::spawn(Arc::clone(resolved).keep_told(Arc::clone(&agent.publisher))));
    }
    let held = guard.as_ref().map(GuardPost::sockets);
    let guarding = guard.map(Guarding::of);
    others.extend(watchdog.map(|within| tokio::spawn(pulse.feed(within))));
    others.push(tokio::spawn(routes::tell_service_manager(Arc::clone(&agent))));
    others.push(tokio::spawn(Arc::clone(&agent.publisher).reread_certificates()));
    if agent.config.addresses.is_empty() {
        others.push(tokio::spawn(own_addresses::follow(Arc::clone(&agent.publisher), prepared.control)));
    }
    let lookups = Arc::clone(&agent.metrics.lookups);
    others.push(tokio::spawn(resolution::keep(Arc::clone(&agent.publisher), Arc::clone(&resolver), lookups)));
    others.push(tokio::spawn(async move { resolver.watch().await }));
    tracing::info!(host = %prepared.host.name, addresses = ?prepared.host.addresses, workers = workers.len(), privileges = privileges::in_words(), "baremesh agent runs");
    let (steward, publisher) = (agent.steward.clone(), Arc::clone(&agent.publisher));
    let heard = Arc::clone(&agent.heard);
    let offer = (offer, InCharge { sockets: offered, steward, publisher, heard, watchdog, flush });
    if let Some(tell) = tell {
        // Who waited for it may have given up.
        let _ = std::fs::File::from(tell).write_all(&[TAKEN]);
    }
    Ok(Running {
        agent,
        phase,
        workers,
        log,
        source,
        keeping,
        held,
        interval,
        guarding,
        settled,
        offer,
        resolved,
        others,
    })
}

/// Takes up what changed at the agent before this one while this one prepared itself. What cannot be read of it stays as it was
/// read before, as at an agent that runs.
fn take_what_came_meanwhile(config: &AgentConfig, source: &mut Source, publisher: &Publisher) {
    // The publisher keeps the reason where it refuses one itself.
    match file::read_all(&config.directories.registrations(), &config.terms()) {
        Ok(registrations) => drop(publisher.take_registrations(&registrations)),
        Err(error) => publisher.refuse_registrations(error.to_string()),
    }
    match source.reread() {
        Ok(Some((mesh, version))) => drop(publisher.take_mesh(mesh, version)),
        Ok(None) => {}
        Err(reason) => publisher.refuse(reason),
    }
}

/// Waits until nothing is missing that serving needs.
async fn until_it_can_serve(lacks: impl Fn() -> Vec<String>) -> Result<(), AgentError> {
    let until = tokio::time::Instant::now() + SERVING_PATIENCE;
    loop {
        match lacks() {
            missing if missing.is_empty() => return Ok(()),
            missing if tokio::time::Instant::now() >= until => {
                return Err(AgentError::State(format!(
                    "this agent could not serve after {} s, and the one that runs stays in charge: {}",
                    SERVING_PATIENCE.as_secs(),
                    missing.join("; ")
                )));
            }
            _ => tokio::time::sleep(SERVING_PATIENCE / 600).await,
        }
    }
}

/// What another agent is handed of this one's.
fn offered(listeners: &[Listeners], dns: Option<&Dns>, listening: &routes::Listening) -> io::Result<Sockets> {
    let mut sockets = Sockets::default();
    for of_worker in listeners {
        for (of, some) in [Use::Outbound, Use::Inbound, Use::Hbone].into_iter().zip(of_worker.by_use()) {
            some.iter().try_for_each(|socket| sockets.add(of, socket))?;
        }
    }
    for (udp, tcp) in dns.iter().flat_map(|dns| dns.sockets()) {
        sockets.add(Use::DnsUdp, udp)?;
        sockets.add(Use::DnsTcp, tcp)?;
    }
    listening.offer(&mut sockets)?;
    Ok(sockets)
}

/// The listeners that another agent hands over; new ones, where there are fewer than workers.
fn take_listeners(
    config: &AgentConfig,
    mark: Mark,
    given: &mut Sockets,
) -> Result<Vec<Listeners>, AgentError> {
    let taken = [Use::Outbound, Use::Inbound, Use::Hbone].map(|of| given.take(of));
    let ports = [config.ports.outbound, config.ports.inbound, config.ports.hbone];
    Listeners::taken_over(config.workers, config.ports, mark, taken).map_err(holder::blame(&ports))
}

/// Keeps the keys that tokens are verified with; those that are on the disk are at hand when this returns.
fn keep_keys(config: &AgentConfig, publisher: &Publisher, metrics: &Arc<Metrics>, mark: Mark) -> Keeper {
    let fetcher = Fetcher {
        mark,
        allow: config.jwks.allow.clone(),
        allowed_by: "`jwks.allow` in this host's agent.toml",
        authorities: config.jwks.ca_certificates.clone(),
    };
    let states = (publisher.snapshot(), publisher.changed());
    let mut keeper = Keeper::new(states, fetcher, config.directories.state.join("jwks"), Arc::clone(metrics));
    keeper.load_stored();
    keeper
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

/// The limits of the data path, with no more connections than there are descriptors for.
fn limits_within(config: &AgentConfig, descriptors: u64) -> Limits {
    let limits = config.limits.within(descriptors);
    if limits.max_connections < config.limits.max_connections {
        tracing::warn!(
            max_connections = config.limits.max_connections,
            lowered_to = limits.max_connections,
            descriptors,
            "fewer connections are taken at once than `max_connections`: raise LimitNOFILE of the unit, or lower it"
        );
    }
    limits
}

/// Learns the cgroups that are there, so that the first connections of running services do not wait for it.
async fn learn_cgroups(cgroups: Arc<Cgroups>) {
    match cgroups.learn().await {
        Ok(count) => tracing::debug!(count, "cgroups are known"),
        // Where no service is registered by unit or cgroup, nobody misses them; else connections are refused, with this.
        Err(error) => tracing::info!(%error, "not all cgroups are known yet"),
    }
}

/// Takes the ports, waiting a little for the guard of an agent that has just died to let go of them.
async fn bind_listeners(config: &AgentConfig, mark: Mark) -> Result<Vec<Listeners>, AgentError> {
    let until = tokio::time::Instant::now() + PORTS_PATIENCE;
    let ports = [config.ports.outbound, config.ports.inbound, config.ports.hbone];
    let mut told = false;
    loop {
        let bound: io::Result<Vec<_>> =
            (0..config.workers).map(|_| Listeners::bind(config.ports, mark)).collect();
        match bound {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tokio::time::Instant::now() < until => {
                if !std::mem::replace(&mut told, true) {
                    let holders = holder::holders(&ports).unwrap_or_else(|| error.to_string());
                    tracing::warn!(holders, limit = ?PORTS_PATIENCE, "waiting for the agent's ports");
                }
                tokio::time::sleep(PORTS_PATIENCE / 100).await;
            }
            bound => return bound.map_err(holder::blame(&ports)),
        }
    }
}

fn start_access_log(
    target: &AccessLogTarget,
    snapshot: Arc<ArcSwap<Snapshot>>,
) -> Result<(AccessLog, Option<Writing>), AgentError> {
    let out: Box<dyn io::Write + Send> = match target {
        AccessLogTarget::Off => return Ok((AccessLog::off(), None)),
        AccessLogTarget::Stdout => Box::new(io::stdout()),
        AccessLogTarget::File(path) => {
            let file = std::fs::File::options().create(true).append(true).open(path);
            Box::new(file.map_err(doing(format!("opening the access log {}", path.display())))?)
        }
    };
    let (log, writing) = access_log::start(out, snapshot).map_err(doing("starting the access log"))?;
    Ok((log, Some(writing)))
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
                let worker = Worker::new(index, shared, telemetry).map_err(io::Error::other)?;
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

fn make_steward(
    capture: Capture,
    config: &AgentConfig,
    publisher: &Arc<Publisher>,
    metrics: &Arc<Metrics>,
) -> Arc<Steward> {
    let settings = prepare::capture_settings(config);
    let mode = if config.capture { Mode::Keep } else { Mode::Off };
    Steward::new((capture, mode), Arc::clone(publisher), settings, Arc::clone(metrics))
}

/// Starts following the source. The receiver tells whether it is in reach; the task ends when it has said goodbye.
fn start_source(
    (source, connected): (Source, watch::Sender<bool>),
    publisher: &Arc<Publisher>,
    checks: &Arc<Checks>,
    metrics: &Arc<Metrics>,
    leaving: watch::Receiver<Phase>,
) -> Task<()> {
    metrics.registry_connected.set(i64::from(*connected.borrow()));
    let (publisher, checks) = (Arc::clone(publisher), Arc::clone(checks));
    let metrics = Arc::clone(metrics);
    tokio::spawn(async move {
        match source {
            Source::Files(files) => {
                tokio::select! {
                    () = files.follow(publisher) => {}
                    () = until(leaving, Phase::Draining) => {}
                }
            }
            Source::Control(control) => {
                // What the control server is told first is what others are to go by.
                checks.first_results().await;
                control.follow(publisher, connected, metrics, until(leaving, Phase::Draining)).await;
            }
            Source::Consul(consul) => {
                // What is registered at first is what others are to go by.
                checks.first_results().await;
                consul.follow(publisher, connected, metrics, until(leaving, Phase::Draining)).await;
            }
        }
    })
}
