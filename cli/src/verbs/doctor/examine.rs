//! Everything is looked at, in the order in which a host comes up, and judged. The agent is asked for what only it knows.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use baremesh_agent::admin::client::{Socket, SocketError};
use baremesh_agent::admin::report::capture::CaptureReport;
use baremesh_agent::admin::report::doctor::DoctorReport;
use baremesh_agent::admin::report::{CertificateReport, ServiceReport, StatusReport};
use baremesh_agent::capture::Capture as Rules;
use baremesh_agent::config::{AgentConfig, ConfigError, Directories, DnsMode, SourceConfig};
use baremesh_agent::doctor::code::Code;
use baremesh_agent::doctor::judge::certificates::{Held, certificates};
use baremesh_agent::doctor::judge::host::{Callers, kernel, limits};
use baremesh_agent::doctor::judge::names::names;
use baremesh_agent::doctor::judge::network::{peers, ports};
use baremesh_agent::doctor::judge::rules::{self, Agent};
use baremesh_agent::doctor::judge::{control as judge_control, services as judge_services};
use baremesh_agent::doctor::look::host::Host;
use baremesh_agent::doctor::look::processes::{listeners, processes};
use baremesh_agent::doctor::look::{firewall, names as look_names};
use baremesh_agent::doctor::{Check, Finding};
use baremesh_agent::membership::{Membership, MembershipError};
use baremesh_agent::registration::file::RegistrationError;
use baremesh_agent::registration::{LocalService, file};
use baremesh_agent::source::control::probe::Probe;
use baremesh_ca::issued::Issued;
use http::Method;
use serde::de::DeserializeOwned;

use super::{Diagnosis, Peers, control};
use crate::control::report::StatusReport as ControlStatus;
use crate::output::to_unix;

/// The file of the last good state, in the state directory.
const STATE_FILE: &str = "last-good.state";

/// What the agent says.
struct Answers {
    status: StatusReport,
    report: DoctorReport,
    certificates: Vec<CertificateReport>,
    services: Vec<ServiceReport>,
    capture: Option<CaptureReport>,
}

/// Looks at everything.
pub(super) async fn examine(directories: &Directories, peers_are: Peers) -> Diagnosis {
    let (config, registered, told) = configured(directories);
    let answers = Box::pin(ask(&directories.agent_socket(), peers_are)).await;
    let host = Host::look(&directories.state);
    let processes = processes();
    let wanted = wanted_ports(&config);
    let listeners = listeners(&wanted);
    let mut matchers = registered.iter().filter_map(|service| service.matcher.as_ref());
    let callers =
        if matchers.any(|matcher| matcher.names_a_place()) { Callers::ByPlace } else { Callers::ByUser };
    let mut checks = vec![told, kernel(&host, callers)];
    let mut of_agent = Check::new("agent");
    let (agent, answers) = match answers {
        Ok(answers) => {
            let status = &answers.status;
            of_agent.seen = format!(
                "version {} of host {} (process {})",
                status.version, status.host, answers.report.pid
            );
            if !status.ready {
                of_agent.found(Code::NotReady, status.not_ready.join("; "));
            }
            for refused in &status.refused {
                of_agent.found(Code::StateRefused, refused.clone());
            }
            ("running", Some(answers))
        }
        Err(error) if error.is_nobody_there() => {
            let joined = Membership::load(&directories.node());
            let is_member = config.source != SourceConfig::Control
                || !matches!(joined, Err(MembershipError::NotJoined(_)));
            match (is_member, directories.control_socket().exists()) {
                (true, _) => of_agent.found(Code::AgentDown, error.to_string()),
                (false, true) => of_agent.seen = "none: this is a control host that is no member".to_owned(),
                (false, false) => {
                    of_agent.found(Code::NotJoined, format!("nothing at {}", directories.node().display()));
                }
            }
            ("gone", None)
        }
        Err(error @ SocketError::Silent { .. }) => {
            let finding = Finding::new(Code::AgentDown, error.to_string());
            of_agent.findings.push(finding.with_remedy(
                "`systemctl status baremesh`, `journalctl -u baremesh`; `systemctl restart baremesh` starts it anew",
            ));
            ("silent", None)
        }
        Err(error) => {
            of_agent.unchecked.push(format!("what the agent knows: {error}"));
            ("not_allowed", None)
        }
    };
    checks.push(of_agent);
    let pid = answers.as_ref().map(|answers| answers.report.pid);
    // Of an agent that may not be asked nobody knows which process it is.
    checks.push(match agent {
        "not_allowed" => Check::unchecked("ports", "which process the agent is: it may not be asked"),
        "silent" => Check::unchecked("ports", "which process the agent is: it does not answer"),
        _ => ports(&wanted, &listeners, &processes, pid),
    });
    checks.push(own_rules(directories, &config, answers.as_ref(), agent));
    checks.push(match firewall::chains() {
        Ok(chains) => rules::of_others(&chains, config.ports.hbone),
        Err(error) => {
            Check::unchecked("firewall", format!("rules of others, which root alone is shown: {error}"))
        }
    });
    checks.extend(Box::pin(source(directories, &config, answers.as_ref())).await);
    checks.push(held(directories, answers.as_ref()));
    checks.push(services_by_name(&config, answers.as_ref()));
    let own = host.addresses.as_deref();
    checks.push(judge_services::services(&registered, &listeners, &processes, own));
    if let Some(answers) = &answers {
        checks.push(judge_services::calls(&answers.status.services, &answers.report.plaintext));
        checks.push(judge_services::containers(&answers.status.services));
        checks.push(judge_services::addresses(&answers.status, own));
        if peers_are == Peers::Tried {
            checks.push(peers(&answers.report));
        }
    }
    checks.push(limits(&host, answers.as_ref().map(|answers| &answers.report)));
    checks.extend(Box::pin(mesh(directories)).await);
    Diagnosis { agent, checks }
}

/// The configuration and the registrations; where they cannot be read, the defaults and none.
fn configured(directories: &Directories) -> (AgentConfig, Vec<Arc<LocalService>>, Check) {
    let mut check = Check::new("configuration");
    check.seen = directories.config.display().to_string();
    let config = AgentConfig::load(directories.clone()).unwrap_or_else(|error| {
        match &error {
            ConfigError::File { source, .. } if is_kept_from_us(source) => {
                check.unchecked.push(error.to_string());
            }
            _ => check.found(Code::ConfigInvalid, error.to_string()),
        }
        AgentConfig::parse("", directories.clone(), Path::new("")).expect("every key has a default")
    });
    let registered = file::read_all(&directories.registrations(), &config.terms()).unwrap_or_else(|error| {
        match &error {
            RegistrationError::File { source, .. } if is_kept_from_us(source) => {
                check.unchecked.push(error.to_string());
            }
            _ => check.found(Code::ConfigInvalid, error.to_string()),
        }
        Vec::new()
    });
    (config, registered, check)
}

fn is_kept_from_us(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::PermissionDenied
}

fn wanted_ports(config: &AgentConfig) -> Vec<u16> {
    let dns = (config.dns != DnsMode::Off).then_some(config.dns_port);
    let ports = [config.ports.outbound, config.ports.inbound, config.ports.hbone];
    ports.into_iter().chain([config.metrics.port(), config.ready.port()]).chain(dns).collect()
}

async fn ask(path: &Path, peers: Peers) -> Result<Answers, SocketError> {
    let socket = Socket { path, program: "baremesh agent" };
    let report = if peers == Peers::Tried { "/doctor?peers" } else { "/doctor" };
    Ok(Answers {
        status: get(socket, "/status").await?,
        // Other hosts are tried meanwhile.
        report: read(socket, report, &socket.call(Method::GET, report, Vec::new()).await?)?,
        certificates: get(socket, "/certificates").await?,
        services: get(socket, "/services").await?,
        // An agent without `nft` refuses, and says so in its status.
        capture: get(socket, "/capture/status").await.ok(),
    })
}

async fn get<T: DeserializeOwned>(socket: Socket<'_>, target: &str) -> Result<T, SocketError> {
    read(socket, target, &socket.ask(target).await?)
}

fn read<T: DeserializeOwned>(socket: Socket<'_>, target: &str, answer: &[u8]) -> Result<T, SocketError> {
    serde_json::from_slice(answer).map_err(|error| SocketError::Broken {
        path: socket.path.to_owned(),
        reason: format!("the answer to {target} cannot be read ({error}): is the agent of another version?"),
    })
}

fn own_rules(
    directories: &Directories,
    config: &AgentConfig,
    answers: Option<&Answers>,
    agent: &str,
) -> Check {
    let restored = answers.and_then(|answers| answers.report.restored.as_ref());
    if let Some(report) = answers.and_then(|answers| answers.capture.as_ref()) {
        return rules::own(report, restored, Agent::Runs);
    }
    let looked = Rules::new(&directories.runtime).and_then(|rules| rules.status());
    match looked {
        Ok(status) => rules::own(&CaptureReport::of(&status, None, false), restored, Agent::Gone),
        Err(error) if agent == "running" && !config.capture => {
            Check::unchecked("rules", format!("capture is off in agent.toml, and {error}"))
        }
        Err(error) => Check::unchecked("rules", error.to_string()),
    }
}

/// The control server, and the state that comes from there or from files.
async fn source(directories: &Directories, config: &AgentConfig, answers: Option<&Answers>) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut newest = None;
    if config.source == SourceConfig::Control {
        let reach = match answers {
            Some(answers) => Ok(answers.report.reach.clone()),
            None => match Membership::load(&directories.node()) {
                Ok(membership) => match Probe::of(&membership) {
                    Ok(probe) => Ok(Some(Box::pin(probe.run()).await)),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error.to_string()),
            },
        };
        checks.push(match &reach {
            Ok(Some(reach)) => {
                newest = reach.version;
                judge_control::reach(reach)
            }
            Ok(None) => Check::unchecked("control server", "the agent did not try it"),
            Err(error) => Check::unchecked("control server", error.clone()),
        });
    }
    checks.push(match answers {
        None => Check::unchecked("registry", "which state is in force: no agent says"),
        Some(answers) => {
            let kept = (config.source == SourceConfig::Control).then(|| kept(&directories.state)).flatten();
            judge_control::registry(&answers.status.source, newest, kept, to_unix(SystemTime::now()))
        }
    });
    checks
}

/// How old the last good state on the disk is; none where it is not there, and nothing where nobody lets us look.
fn kept(state: &Path) -> Option<Option<u64>> {
    match std::fs::metadata(state.join(STATE_FILE)) {
        Ok(found) => {
            let written = found.modified().ok()?;
            Some(Some(SystemTime::now().duration_since(written).unwrap_or_default().as_secs()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(None),
        Err(_) => None,
    }
}

/// What the agent holds; without one, what is on the disk.
fn held(directories: &Directories, answers: Option<&Answers>) -> Check {
    let now = to_unix(SystemTime::now());
    if let Some(Answers { report, certificates: of_agent, .. }) = answers {
        let held = Held {
            certificates: of_agent,
            node: report.node.as_ref(),
            missing: Some(&report.missing),
            not_granted: &report.not_granted,
        };
        return certificates(&held, now);
    }
    let kept = match on_disk(&directories.state.join("certificates")) {
        Ok(kept) => kept,
        Err(error) => return Check::unchecked("certificates", error),
    };
    let node = Membership::load(&directories.node()).ok().map(|membership| report_of(&membership.node));
    certificates(&Held { certificates: &kept, node: node.as_ref(), ..Held::default() }, now)
}

fn on_disk(directory: &Path) -> Result<Vec<CertificateReport>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", directory.display());
    let mut kept = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let text = std::fs::read_to_string(entry.map_err(failed)?.path()).map_err(failed)?;
        kept.extend(Issued::from_pem(&text).ok().map(|issued| report_of(&issued)));
    }
    Ok(kept)
}

fn report_of(issued: &Issued) -> CertificateReport {
    CertificateReport {
        identity: issued.identity.to_string(),
        serial: issued.serial.clone(),
        not_before: to_unix(issued.not_before),
        not_after: to_unix(issued.not_after),
    }
}

/// A name that programs would ask for.
fn services_by_name(config: &AgentConfig, answers: Option<&Answers>) -> Check {
    let Some(answers) = answers else {
        return Check::unchecked("names", "without an agent nobody answers for names of the mesh");
    };
    if config.dns == DnsMode::Off {
        return Check::unchecked("names", "`dns.mode` is \"off\": the agent answers for none");
    }
    let is_meant = |service: &&ServiceReport| {
        !service.addresses.is_empty() && service.host.ends_with(&answers.report.domain)
    };
    match answers.services.iter().find(is_meant) {
        None => Check::unchecked("names", "the mesh has no service with a virtual address yet"),
        Some(service) => names(&look_names::look_up(&service.host), &service.addresses),
    }
}

/// What the control server says, where this is its host.
async fn mesh(directories: &Directories) -> Option<Check> {
    let path = directories.control_socket();
    if !path.exists() {
        return None;
    }
    let asked = get::<ControlStatus>(Socket { path: &path, program: "baremesh control" }, "/status").await;
    Some(match asked {
        Ok(status) => control::mesh(&status),
        Err(error) if error.is_nobody_there() => {
            let mut check = Check { seen: "it does not answer".to_owned(), ..Check::new("mesh") };
            check.findings.push(Finding::new(Code::ControlDown, error.to_string()));
            check
        }
        Err(error) => Check::unchecked("mesh", error.to_string()),
    })
}
