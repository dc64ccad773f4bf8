//! What an agent makes of a state of that size, and what it costs: reading the entries, putting them together, compiling and
//! swapping the snapshot, for the first state and for changes of one entry. Done as the agent does it, by the same functions.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, anyhow};
use baremesh_agent::originate::Originations;
use baremesh_agent::publish::Publisher;
use baremesh_agent::registration::LocalService;
use baremesh_agent::registration::file::Written;
use baremesh_agent::snapshot::Host;
use baremesh_agent::source::resources::Resources;
use baremesh_agent::telemetry::metrics::Metrics;
use baremesh_ca::authority::Authority;
use baremesh_ca::tls::TrustBundle;
use baremesh_model::endpoint_addresses::EndpointAddresses;
use baremesh_model::health::Health;
use baremesh_model::name::TrustDomain;
use baremesh_model::workload::Workload;
use baremesh_registry::control::endpoint_addresses;
use baremesh_registry::control::followed::{Entries, Entry};
use baremesh_registry::control::registration::workload_name;
use baremesh_registry::format::encode;
use baremesh_registry::resource::Resource;
use serde_json::{Value, json};

use crate::mesh::{self, Size};

/// The port of HBONE.
const HBONE: u16 = 15_008;
/// The first virtual address.
const VIRTUAL: u32 = u32::from_be_bytes([240, 240, 0, 1]);
/// How often each kind of change is made.
const CHANGES: usize = 20;
/// Services that run on each host.
const LOCAL: usize = 10;
/// The trust domain, that of a mesh without a MeshConfig.
const TRUST_DOMAIN: &str = "mesh.internal";

/// What one agent does with a state.
struct Agent {
    resources: Resources,
    publisher: Option<Arc<Publisher>>,
    size: Size,
    number: usize,
    version: u64,
}

impl Agent {
    fn new(size: Size, number: usize) -> Self {
        Self { resources: Resources::default(), publisher: None, size, number, version: 0 }
    }

    /// Puts a state in force. Returns how long putting the mesh together took, and compiling and swapping.
    fn take(&mut self, state: &Entries, bundle: &TrustBundle) -> Result<(Duration, Duration)> {
        let began = Instant::now();
        let mesh = self.resources.mesh(state, bundle).map_err(|reason| anyhow!(reason))?;
        let (together, began) = (began.elapsed(), Instant::now());
        self.version += 1;
        match &self.publisher {
            Some(publisher) => publisher.take_mesh(mesh, self.version).map_err(|reason| anyhow!(reason))?,
            None => {
                let host = Host {
                    name: mesh::host(self.number),
                    addresses: vec![IpAddr::V4(mesh::address(self.number))],
                    why: "".into(),
                    network: None,
                };
                let services = local_services(self.size, self.number)?;
                let originations = Arc::new(Originations::new("/nonexistent".into()));
                let publisher = Publisher::new(
                    (mesh, self.version),
                    &services,
                    (host, HBONE),
                    originations,
                    Metrics::new("bench"),
                );
                self.publisher = Some(publisher.map_err(|reason| anyhow!(reason))?);
            }
        }
        Ok((together, began.elapsed()))
    }
}

/// Prints what it came to as one line of JSON.
pub fn measure(size: Size, policies: usize, agents: usize) -> Result<()> {
    let bundle = bundle()?;
    let before = resident_mib()?;
    let mut state = entries(size, policies);
    let of_entries = resident_mib()? - before;
    let mut agent = Agent::new(size, 0);
    let first = agent.take(&state, &bundle)?;
    let settled = resident_mib()? - before;
    let mut report = json!({
        "services": size.services,
        "endpoints": size.endpoints,
        "policies": policies,
        "first": times(&[first]),
        "entries_mib": of_entries,
        "resident_mib": settled,
    });
    for (name, change) in [
        ("health", health as Change),
        ("endpoint", endpoint as Change),
        ("endpoint_elsewhere", endpoint_elsewhere as Change),
        ("policy", policy as Change),
        ("local_health", health_of_ours as Change),
    ] {
        let mut took = Vec::new();
        for round in 0..CHANGES {
            for (key, value) in change(size, round) {
                if state.get(&key).is_none_or(|former| former.value() != value) {
                    state.insert(key.clone(), Arc::new(Entry::of(&key, &value)));
                }
            }
            took.push(agent.take(&state, &bundle)?);
        }
        report[name] = times(&took);
    }
    report["resident_after_changes_mib"] = (resident_mib()? - before).into();
    report["peak_mib"] = (status_mib("VmHWM:")? - before).into();
    if agents > 0 {
        report["apply"] = many(size, agents, (state, &bundle))?;
    }
    writeln!(io::stdout(), "{report}").context("nobody reads the report")
}

/// A change of one policy on so many agents, one after the other on two cores as they share a machine here: how long until the
/// last has it in force.
fn many(size: Size, agents: usize, (mut state, bundle): (Entries, &TrustBundle)) -> Result<Value> {
    let before = resident_mib()?;
    let mut all: Vec<Agent> = (1..=agents).map(|number| Agent::new(size, number)).collect();
    for agent in &mut all {
        agent.take(&state, bundle)?;
    }
    let each = (resident_mib()? - before) / agents as f64;
    for (key, value) in policy(size, CHANGES) {
        state.insert(key.clone(), Arc::new(Entry::of(&key, &value)));
    }
    let began = Instant::now();
    let half = all.len().div_ceil(2);
    std::thread::scope(|scope| {
        let state = &state;
        let workers: Vec<_> = all
            .chunks_mut(half)
            .map(|agents| {
                scope.spawn(move || agents.iter_mut().try_for_each(|a| a.take(state, bundle).map(drop)))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no panic"))
    })?;
    Ok(json!({ "agents": agents, "seconds": began.elapsed().as_secs_f64(), "mib_each": each }))
}

/// The entries that a change comes to, those that stay as they are included.
type Change = fn(Size, usize) -> Vec<(String, Value)>;

fn entries(size: Size, policies: usize) -> Entries {
    let mut all = Entries::new();
    let mut put = |(key, value): (String, Value)| {
        let entry = Arc::new(Entry::of(&key, &value));
        all.insert(key, entry);
    };
    for number in 0..size.services {
        let mut service = mesh::registration(number, 0).implicit_service();
        let address = Ipv4Addr::from(VIRTUAL + u32::try_from(number).expect("at most so many services"));
        service.addresses = vec![IpAddr::V4(address)];
        let key = format!("Service/{}/{}", service.key.namespace, service.key.name);
        put((key, encode(&Resource::Service(Box::new(service)))));
    }
    for endpoint in (0..size.endpoints).filter(|endpoint| is_called(size, endpoint % size.services)) {
        put(workload_entry(endpoint % size.services, endpoint, Health::Healthy));
    }
    for service in (0..size.services).filter(|service| !is_called(size, *service)) {
        addresses(size, service, 0).into_iter().for_each(&mut put);
    }
    for number in 0..policies {
        put(policy_of(size, number, "GET"));
    }
    all
}

/// Whether the endpoints of a service are asked for: those of the first agent's own services, and of as many as it calls.
fn is_called(size: Size, service: usize) -> bool {
    let first = size.services / 2;
    size.subscribed.is_none_or(|count| service < LOCAL || (first..first + count).contains(&service))
}

/// Where the endpoints of a service are, with so many more than there are at first.
fn addresses(size: Size, service: usize, more: usize) -> Vec<(String, Value)> {
    let hosts = (service..size.endpoints).step_by(size.services).chain(size.endpoints..size.endpoints + more);
    let workloads: Vec<_> = hosts.map(|host| workload(service, host, Health::Healthy)).collect();
    let known = EndpointAddresses::of(&mesh::registration(service, 0).implicit_service(), &workloads);
    let entries = endpoint_addresses::written(&known.unwrap_or_default()).into_iter().enumerate();
    entries.map(|(part, value)| (endpoint_addresses::entry_key(&mesh::key(service), part), value)).collect()
}

fn workload(service: usize, host: usize, health: Health) -> Workload {
    let mut registration = mesh::registration(service, host);
    registration.health = health;
    let name = workload_name(&mesh::key(service).name, &mesh::host(host), |_| false);
    registration.workload(name, mesh::host(host), &registration.implicit_service())
}

fn workload_entry(service: usize, host: usize, health: Health) -> (String, Value) {
    let workload = workload(service, host, health);
    let key = format!("WorkloadEntry/{}/{}", workload.key.namespace, workload.key.name);
    (key, encode(&Resource::Workload(Arc::new(workload))))
}

fn policy_of(size: Size, number: usize, method: &str) -> (String, Value) {
    let key = mesh::key(number % size.services);
    let rules: Vec<Value> = (0..4)
        .map(|n| {
            json!({
                "from": [{ "source": { "principals": [format!("{TRUST_DOMAIN}/ns/t{n}/sa/s{}", number + n)] } }],
                "to": [{ "operation": { "methods": [method], "paths": [format!("/v{n}/*")] } }],
            })
        })
        .collect();
    let name = format!("p{number}");
    let value = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "namespace": key.namespace.as_str() },
        "spec": { "selector": { "matchLabels": { "app": key.name.as_str() } }, "action": "ALLOW", "rules": rules },
    });
    (format!("AuthorizationPolicy/{}/{name}", key.namespace), value)
}

/// One endpoint of a service that this host calls falls ill, or is well again.
fn health(size: Size, round: usize) -> Vec<(String, Value)> {
    let service = size.services / 2;
    let health = if round.is_multiple_of(2) { Health::Unhealthy } else { Health::Healthy };
    vec![workload_entry(service, service, health)]
}

/// The same of a service that also runs here.
fn health_of_ours(size: Size, round: usize) -> Vec<(String, Value)> {
    let other = if size.endpoints > size.services { size.services } else { 0 };
    let health = if round.is_multiple_of(2) { Health::Unhealthy } else { Health::Healthy };
    vec![workload_entry(0, other, health)]
}

/// One endpoint more.
fn endpoint(size: Size, round: usize) -> Vec<(String, Value)> {
    vec![workload_entry(size.services / 2, size.endpoints + round, Health::Healthy)]
}

/// One endpoint more of a service that nobody calls here.
fn endpoint_elsewhere(size: Size, round: usize) -> Vec<(String, Value)> {
    let service = size.services - 1;
    match is_called(size, service) {
        true => vec![workload_entry(service, size.endpoints + CHANGES + round, Health::Healthy)],
        false => addresses(size, service, round + 1),
    }
}

/// A policy of a service of this host is another.
fn policy(size: Size, round: usize) -> Vec<(String, Value)> {
    vec![policy_of(size, 0, if round.is_multiple_of(2) { "POST" } else { "GET" })]
}

/// What runs on a host: a few of the services, at the addresses where the state has them.
fn local_services(size: Size, number: usize) -> Result<Vec<Arc<LocalService>>> {
    let of = |service: usize| -> Result<Arc<LocalService>> {
        let key = mesh::key(service);
        let text = format!(
            "name = \"{}\"\nnamespace = \"{}\"\nuser = {}\nports = [{{ port = 8080, targetPort = {}, protocol = \"http\", name = \"http\" }}]\n",
            key.name,
            key.namespace,
            60_000 + service,
            1_000 + service
        );
        let written: Written = toml::from_str(&text)?;
        let local = LocalService::try_from(&written);
        Ok(Arc::new(local.map_err(|fault| anyhow!(fault.text))?))
    };
    (number * LOCAL..(number + 1) * LOCAL).map(|service| of(service % size.services)).collect()
}

fn bundle() -> Result<TrustBundle> {
    let place = std::env::temp_dir().join(format!("fleet-{}", std::process::id()));
    let made = Authority::create(place.clone(), &TrustDomain::new(TRUST_DOMAIN)?, SystemTime::now());
    let bundle = made.map_err(anyhow::Error::from).and_then(|authority| Ok(authority.bundle()?));
    std::fs::remove_dir_all(&place).context("the authority of the bench cannot be removed")?;
    bundle
}

/// The middle and the longest of what the two parts and both together took, in milliseconds.
fn times(took: &[(Duration, Duration)]) -> Value {
    let of = |part: fn(&(Duration, Duration)) -> Duration| {
        let mut all: Vec<f64> = took.iter().map(|took| part(took).as_secs_f64() * 1e3).collect();
        all.sort_by(f64::total_cmp);
        json!({ "p50_ms": all[all.len() / 2], "max_ms": all[all.len() - 1] })
    };
    json!({ "together": of(|took| took.0), "build": of(|took| took.1), "both": of(|took| took.0 + took.1) })
}

fn resident_mib() -> Result<f64> {
    status_mib("VmRSS:")
}

fn status_mib(name: &str) -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc is not mounted")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix(name)).context("the kernel does not say it")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
