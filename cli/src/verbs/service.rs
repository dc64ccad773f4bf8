//! `baremesh service`: what runs on this host. Registrations are files of the host; the agent is told to read them.

use std::net::IpAddr;
use std::num::NonZeroU32;

use anyhow::Context;
use baremesh_agent::admin::client::Socket;
use baremesh_agent::admin::report::{ContainerReport, HealthReport, LocalServiceReport, StatusReport};
use baremesh_agent::attribution::{Uid, uid_of};
use baremesh_agent::config::{AgentConfig, Directories};
use baremesh_agent::registration::container::WrittenDeliver;
use baremesh_agent::registration::file::{self, Registration, Written, WrittenPort, WrittenWhenGone};
use baremesh_agent::registration::{LocalService, Serves};
use baremesh_model::name::{Key, Label, default_namespace};
use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::json;

use super::values::{self, PortPair};
use super::{Global, block_on};
use crate::output::{Output, remark, say, say_json, table, usage};

/// How a service is looked at.
mod check;
/// What stands beside its unit.
mod drop_in;
/// A service's word on itself.
mod heartbeat;

use check::CheckFlags;
use heartbeat::Heartbeat;

/// Register the services of this host, deregister and list them
#[derive(Debug, Args)]
pub struct Service {
    #[command(subcommand)]
    verb: ServiceVerb,
}

#[derive(Debug, Subcommand)]
enum ServiceVerb {
    Register(Box<Register>),
    /// Take a service of this host out of the mesh
    ///
    /// What `register` wrote is removed. A service that another file of registrations.d registers goes with that file.
    Deregister {
        /// Its name
        #[arg(value_parser = Label::new)]
        name: Label,
        /// Its namespace
        #[arg(short, long, default_value_t = default_namespace(), value_parser = Label::new)]
        namespace: Label,
    },
    /// List the services that are registered on this host
    List,
    Heartbeat(Heartbeat),
}

const LONG_ABOUT: &str = "\
Say that a service runs on this host. Other hosts' programs then reach it over mutual TLS as NAME.NAMESPACE.mesh.internal
(in the namespace `default` also as NAME.mesh.internal; the domain is the mesh's). Registering it again replaces
everything that was said before. One that a file in /etc/baremesh/registrations.d registers that was put there by hand is
changed in that file, and refused here.

The host must have been granted the service, by its join token (`baremesh token create --service`) or by a HostGrant;
`baremesh status` says so if it was not.

--unit, --user and --cgroup say which processes are the service when they call others: their connections carry its
identity. Where several are given, all of them must hold. --source and --interface say it of a container by its address,
--container-label by labels that docker or podman knows it by, wherever it is; then `--deliver container:PORT` follows it.
That takes `baremesh-containers.service`, which tells the agent which containers run (docs/containers.md). Without any, others
can call the service, and its own calls carry the host's identity.

With --drop-in, systemd starts the unit after the mesh (`Wants=` and `After=baremesh.service`), and systemd 255 and later notes
it for the agent (`NFTSet=`, docs/registry-only.md). Registering it again without --drop-in, and deregistering it, removes that.

With --group, labels, account, locality, weight and probe come from a WorkloadGroup where they are not given here, and
follow it when it changes. Its ports are taken once, now: where connections are delivered is for the host alone to say. No
group makes a host run a command. While there is no such group the service takes no calls.

With --gateway there is no program: what comes to the ports leaves the mesh, as the Gateways say that select its labels
(istio=egressgateway unless given). The host's agent.toml must say `role = \"gateway\"`: nothing pushed makes a host one.

With a --check-… the agent looks at the service by itself. It takes no calls before its check passes for the first time,
and none while it fails; connections that are open go on. Without one it is called as long as it is registered.";

const EXAMPLES: &str = "\
Examples:
  baremesh service register orders --port 8080 --unit orders.service
  baremesh service register orders --port 8080 --unit orders.service --drop-in
  baremesh service register orders --port 80:8080 --protocol http --namespace shop --label version=v2
  baremesh service register db --port 5432 --deliver 10.0.3.7:5432        in a container of this host
  baremesh service register db --port 5432 --deliver 172.17.0.2:5432 --source 172.17.0.2 --interface docker0
  baremesh service register db --port 5432 --container-label app=db --deliver container:5432
  baremesh service register web --port 80 --port 443 --protocol http --protocol https --user www-data
  baremesh service register orders --port 8080 --protocol http --check-http /healthz --check-interval 5s
  baremesh service register orders --group orders-vm --unit orders.service
  baremesh service register db --port 5432 --check-exec /usr/bin/pg_isready -q
  baremesh service register egress --namespace mesh-system --gateway --port 80 --port 443 --protocol http --protocol tls

With several ports, --protocol, --port-name and --deliver are given once for each port, in the order of the ports; a
single --protocol holds for all of them.";

/// Say that a service runs on this host
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_help = EXAMPLES)]
struct Register {
    /// Its name
    #[arg(value_parser = Label::new)]
    name: Label,
    /// The port that callers name, and the one that the program listens on where it is another
    #[arg(short, long = "port", value_name = "PORT[:TARGET]", required_unless_present = "group", value_parser = values::port_pair)]
    ports: Vec<PortPair>,
    /// What the port speaks: tcp, http, http2, grpc, https, tls, mongo, mysql, redis or auto [default: tcp]
    #[arg(long = "protocol", value_name = "PROTOCOL")]
    protocols: Vec<String>,
    /// The port's name
    #[arg(long = "port-name", value_name = "NAME")]
    port_names: Vec<String>,
    /// Where the program listens; container:PORT follows the container that --container-label names [default: 127.0.0.1 and the target port]
    #[arg(long = "deliver", value_name = "ADDRESS:PORT|container:PORT")]
    deliver: Vec<WrittenDeliver>,
    /// The agent itself is behind the ports, and has what comes there leave the mesh as Gateways say (docs/egress-gateway.md)
    #[arg(long, conflicts_with_all = ["deliver", "unit", "user", "cgroup", "sources", "container_labels", "group"])]
    gateway: bool,
    /// The systemd unit whose processes are the service: orders.service
    #[arg(long)]
    unit: Option<String>,
    /// Have the unit start after the mesh, and with systemd 255 be held from its first packet on where it reaches the registry alone, by a drop-in in /etc/systemd/system; counts from the unit's next start
    #[arg(long, requires = "unit")]
    drop_in: bool,
    /// The user as whom the service's processes run
    #[arg(long, value_name = "NAME|UID")]
    user: Option<String>,
    /// The control group in which the service's processes are, as /proc/PID/cgroup shows it after `0::`
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
    /// The address of the container that the service is, on a bridge of `capture.interfaces`; can be given several times
    #[arg(long = "source", value_name = "ADDRESS", requires = "interface")]
    sources: Vec<IpAddr>,
    /// The bridge that the container is on: docker0
    #[arg(long, value_name = "NAME", requires = "sources")]
    interface: Option<String>,
    /// A label of the container that the service is, wherever it is on the bridges of `capture.interfaces`, or a label's key alone; where several are given, all must match
    #[arg(long = "container-label", value_name = "KEY[=VALUE]", conflicts_with_all = ["sources", "unit", "user", "cgroup"])]
    container_labels: Vec<String>,
    /// Its namespace [default: default]
    #[arg(short, long, value_parser = Label::new)]
    namespace: Option<Label>,
    /// The WorkloadGroup of the namespace that says what is not said here, its ports included; a change of it is followed
    #[arg(long, value_name = "NAME", value_parser = Label::new)]
    group: Option<Label>,
    /// A label, for selectors of policies; can be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = values::label)]
    labels: Vec<(String, String)>,
    /// Where it stands: eu/west/1a
    #[arg(long, value_name = "REGION/ZONE/SUBZONE")]
    locality: Option<String>,
    /// Its share of the connections, relative to its other endpoints [default: 1]
    #[arg(long, value_name = "NUMBER")]
    weight: Option<NonZeroU32>,
    /// The account in its identity [default: the service's name]
    #[arg(long, value_name = "NAME", value_parser = Label::new)]
    service_account: Option<Label>,
    /// An address at which others reach it, instead of the host's; can be given several times
    #[arg(long = "address", value_name = "ADDRESS")]
    addresses: Vec<IpAddr>,
    /// What happens to its connections while the agent is gone: refused, or let through as without a mesh
    #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
    when_gone: WhenGone,
    /// Peers that send no server name (ztunnel) reach this service, where its addresses are those of several
    #[arg(long = "default")]
    default_for_address: bool,
    #[command(flatten)]
    check: CheckFlags,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum WhenGone {
    /// Let through, as without a mesh
    Open,
    /// Refused until the agent is back
    #[default]
    Closed,
}

impl Service {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let directories = global.directories();
        match self.verb {
            ServiceVerb::Register(register) => {
                let written = register.written(&directories)?;
                let asked = register.asked_drop_in(&directories)?;
                let terms = AgentConfig::load(directories.clone())?.terms();
                let local = file::register(&directories.registrations(), &written, &terms)?;
                let laid = drop_in::follow(&directories, &local.key, asked.as_ref())?;
                let reloaded = reload(&directories)?;
                match global.output {
                    Output::Json => {
                        let mut said = json!({ "registered": local.key.to_string(), "inForce": reloaded });
                        if let Some(path) = laid {
                            said["dropIn"] = path.display().to_string().into();
                        }
                        say_json(&said)
                    }
                    _ => {
                        say_registered(&local)?;
                        if let (Some(path), Some(asked)) = (laid, asked) {
                            drop_in::say_laid(&path, &asked);
                        }
                        Ok(())
                    }
                }
            }
            ServiceVerb::Deregister { name, namespace } => {
                let key = Key::new(namespace, name);
                let still = file::deregister(&directories.registrations(), &key)?;
                drop_in::follow(&directories, &key, None)?;
                let reloaded = reload(&directories)?;
                if let Some(path) = still {
                    let path = path.display();
                    anyhow::bail!(
                        "what `register` wrote is removed, and {path} registers {key} still: remove it too"
                    );
                }
                match global.output {
                    Output::Json => {
                        say_json(&json!({ "deregistered": key.to_string(), "inForce": reloaded }))
                    }
                    _ => say(format_args!("{key} is deregistered")),
                }
            }
            ServiceVerb::List => list(&directories, global.output),
            ServiceVerb::Heartbeat(heartbeat) => heartbeat.run(&directories, global.output),
        }
    }
}

impl Register {
    fn asked_drop_in(&self, directories: &Directories) -> anyhow::Result<Option<drop_in::Asked>> {
        let Some(unit) = self.unit.as_deref().filter(|_| self.drop_in) else { return Ok(None) };
        let namespace = self.namespace.clone().unwrap_or_else(default_namespace);
        let key = Key::new(namespace, self.name.clone());
        drop_in::Asked::new(directories, &key, unit).map(Some)
    }

    fn written(&self, directories: &Directories) -> anyhow::Result<Written> {
        let user =
            self.user.as_deref().map(|user| block_on(async { Ok(uid_of(user).await?) })).transpose()?;
        Ok(Written {
            name: self.name.to_string(),
            namespace: self.namespace.as_ref().map(ToString::to_string),
            service_account: self.service_account.as_ref().map(ToString::to_string),
            group: self.group.as_ref().map(ToString::to_string),
            gateway: self.gateway,
            ports: match &self.group {
                Some(group) if self.ports.is_empty() => self.ports_of_group(directories, group)?,
                _ => self.written_ports()?,
            },
            addresses: self.addresses.clone(),
            unit: self.unit.clone(),
            cgroup: self.cgroup.clone(),
            user: user.map(|Uid(number)| number),
            sources: self.sources.clone(),
            interface: self.interface.clone(),
            container_labels: self.container_labels.clone(),
            labels: self.labels.iter().cloned().collect(),
            locality: self.locality.clone(),
            weight: self.weight.map(NonZeroU32::get),
            when_gone: match self.when_gone {
                WhenGone::Open => WrittenWhenGone::Open,
                WhenGone::Closed => WrittenWhenGone::Closed,
            },
            default_for_address: self.default_for_address,
            check: self.check.written(self.unit.as_ref())?,
        })
    }

    /// The ports of the group, as they are now. They are written down: where connections are delivered is this host's to
    /// say, so a later change of the group's ports changes nothing here.
    fn ports_of_group(&self, directories: &Directories, group: &Label) -> anyhow::Result<Vec<WrittenPort>> {
        if !(self.protocols.is_empty() && self.port_names.is_empty() && self.deliver.is_empty()) {
            let text = "--protocol, --port-name and --deliver go with --port; without it the group says them";
            return Err(usage(text.to_owned()));
        }
        let path = directories.agent_socket();
        let socket = Socket { path: &path, program: "baremesh agent" };
        let namespace = self.namespace.clone().unwrap_or_else(default_namespace);
        let route = format!("/group-ports/{namespace}/{group}/{}", self.name);
        let ports: Vec<WrittenPort> = block_on(async {
            let answer = socket.ask(&route).await;
            let answer = answer.context("the agent cannot say the group's ports: give --port")?;
            Ok(serde_json::from_slice(&answer)?)
        })?;
        anyhow::ensure!(
            !ports.is_empty(),
            "WorkloadGroup {namespace}/{group} names no ports: give --port, or set `template.ports`"
        );
        Ok(ports)
    }

    fn written_ports(&self) -> anyhow::Result<Vec<WrittenPort>> {
        let count = self.ports.len();
        let protocols = match self.protocols.as_slice() {
            [one] => vec![Some(one.clone()); count],
            several => each(several, count, "--protocol")?,
        };
        let names = each(&self.port_names, count, "--port-name")?;
        let deliver = each(&self.deliver, count, "--deliver")?;
        let ports = self.ports.iter().zip(protocols).zip(names).zip(deliver);
        let written = ports.map(|(((pair, protocol), name), deliver)| WrittenPort {
            port: pair.port,
            target_port: pair.target,
            protocol,
            name,
            deliver,
        });
        Ok(written.collect())
    }
}

/// One value a port, in their order, or none at all.
fn each<T: Clone>(values: &[T], ports: usize, option: &str) -> anyhow::Result<Vec<Option<T>>> {
    match values.len() {
        0 => Ok(vec![None; ports]),
        given if given == ports => Ok(values.iter().cloned().map(Some).collect()),
        given => Err(usage(format!(
            "{option} is given {given} times for {ports} ports: give it once for each, in their order"
        ))),
    }
}

/// Tells the agent to read the registrations again. Without one they count from its next start.
fn reload(directories: &Directories) -> anyhow::Result<bool> {
    let path = directories.agent_socket();
    let socket = Socket { path: &path, program: "baremesh agent" };
    let called = block_on(async { Ok(socket.call(Method::POST, "/reload", Vec::new()).await) })?;
    match called {
        Ok(_) => Ok(true),
        Err(error) if error.is_nobody_there() => {
            remark("note: no agent runs here; it takes effect when one starts (`systemctl start baremesh`)");
            Ok(false)
        }
        Err(error) => Err(error).context("the file is written, and the agent has not taken it"),
    }
}

fn say_registered(local: &LocalService) -> anyhow::Result<()> {
    say(format_args!("{} is registered", local.key))?;
    if local.matcher.is_none() && local.container.is_none() && local.serves == Serves::Program {
        remark(
            "note: its own calls carry the host's identity; --unit, --user or --cgroup gives them the service's",
        );
    }
    Ok(())
}

fn list(directories: &Directories, output: Output) -> anyhow::Result<()> {
    // As a set: what the agent would refuse is not to be listed as if all were well.
    let terms = AgentConfig::load(directories.clone())?.terms();
    let services = file::read_each(&directories.registrations(), &terms)?;
    let found = found_by_agent(directories);
    let of = |service: &LocalService| found.iter().find(|found| found.service == service.key.to_string());
    if output == Output::Json {
        let with_health = |Registration { written, local: service, .. }: &Registration| {
            let mut value = serde_json::to_value(written)?;
            if let (Some(found), Some(object)) = (of(service), value.as_object_mut()) {
                let health = found.health.as_ref().map(|health| ("health", serde_json::to_value(health)));
                let group =
                    found.group.as_ref().map(|group| ("groupStanding", Ok(group.standing.as_str().into())));
                let container = found.container.as_ref().map(|own| ("container", serde_json::to_value(own)));
                for (key, told) in [health, group, container].into_iter().flatten() {
                    object.insert(key.to_owned(), told?);
                }
            }
            Ok(value)
        };
        return say_json(&services.iter().map(with_health).collect::<Result<Vec<_>, serde_json::Error>>()?);
    }
    let row = |Registration { written, local: service, .. }: &Registration| {
        let ports = service.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol));
        let deliver = service.ports.iter().map(|port| match (service.serves, port.of_container) {
            (Serves::Program, None) => port.deliver.to_string(),
            (Serves::Program, Some(own)) => WrittenDeliver::Container(own.port).to_string(),
            (Serves::Gateway, _) => "gateway".to_owned(),
        });
        vec![
            service.key.to_string(),
            ports.collect::<Vec<_>>().join(" "),
            deliver.collect::<Vec<_>>().join(" "),
            match of(service).and_then(|found| found.container.as_ref()) {
                Some(own) if own.labels.is_some() => {
                    format!("{}: {}", processes(written), container_in_words(own))
                }
                _ => processes(written),
            },
            match of(service).and_then(|found| found.identity.rsplit('/').next()) {
                Some(account) => account.to_owned(),
                None => service.service_account.to_string(),
            },
            written.group.clone().unwrap_or_else(|| "-".to_owned()),
            match (&service.check, of(service).map(|found| (&found.health, &found.group))) {
                (_, Some((Some(health), _))) => health_in_words(health),
                (_, Some((None, Some(group)))) if !group.in_force => {
                    format!("unhealthy ({})", group.standing)
                }
                (None, _) => "-".to_owned(),
                (Some(check), _) => format!("unknown ({})", check.probe.kind()),
            },
        ]
    };
    let empty = "no services: `baremesh service register` adds one";
    let rows = services.iter().map(row).collect();
    say(table(&["SERVICE", "PORTS", "DELIVERED TO", "PROCESSES", "ACCOUNT", "GROUP", "HEALTH"], rows, empty))
}

/// What the agent knows of its services; nothing where no agent answers.
fn found_by_agent(directories: &Directories) -> Vec<LocalServiceReport> {
    let path = directories.agent_socket();
    let socket = Socket { path: &path, program: "baremesh agent" };
    let status = block_on(async {
        let answer = socket.ask("/status").await?;
        Ok(serde_json::from_slice::<StatusReport>(&answer)?)
    });
    status.map(|status| status.services).unwrap_or_default()
}

/// `healthy (httpGet)`, `unhealthy (httpGet: / answered 503)`.
pub(super) fn health_in_words(health: &HealthReport) -> String {
    let HealthReport { check, health, last, reason, .. } = health;
    match (last, reason) {
        (None, _) => format!("{health} ({check}: not looked at yet)"),
        (Some(_), Some(reason)) => format!("{health} ({check}: {reason})"),
        (Some(_), None) => format!("{health} ({check})"),
    }
}

/// Where a service's container is, or why it is nowhere.
pub(super) fn container_in_words(own: &ContainerReport) -> String {
    if own.in_force { own.addresses.join(", ") } else { own.standing.clone() }
}

fn processes(written: &Written) -> String {
    let unit = written.unit.as_ref().map(|unit| format!("unit {unit}"));
    let cgroup = written.cgroup.as_ref().map(|cgroup| format!("cgroup {cgroup}"));
    let user = written.user.map(|user| format!("uid {user}"));
    let sources = || written.sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let container = written.interface.as_ref().map(|bridge| format!("container {} on {bridge}", sources()));
    let labelled = || written.container_labels.join(", ");
    let by_label = (!written.container_labels.is_empty()).then(|| format!("container with {}", labelled()));
    let parts: Vec<_> = [unit, cgroup, user, container, by_label].into_iter().flatten().collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        register: Register,
    }

    fn written(line: &str) -> Result<Written, String> {
        let words = ["register"].into_iter().chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.register.written(&Directories::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn options_of_ports_belong_to_them_in_their_order() {
        let check = |line: &str, expected: &[(u16, Option<&str>)]| {
            let written = written(line).expect(line);
            let found: Vec<_> =
                written.ports.iter().map(|port| (port.port.get(), port.protocol.as_deref())).collect();
            assert_eq!(found, expected, "{line}");
        };
        check("a --port 80", &[(80, None)]);
        check("a --port 80 --port 81 --protocol http", &[(80, Some("http")), (81, Some("http"))]);
        check(
            "a --port 80 --protocol http --port 81 --protocol tcp",
            &[(80, Some("http")), (81, Some("tcp"))],
        );
        for bad in [
            "a --port 80 --protocol a --protocol b",
            "a --port 80 --port 81 --port-name x",
            "a --port 80 --port 81 --deliver 127.0.0.1:80",
        ] {
            assert!(written(bad).expect_err(bad).contains("times for"), "{bad}");
        }
    }

    #[test]
    fn one_check_is_what_its_flags_say() {
        let check = |flags: &str, expected: &str| {
            let written = written(&format!("a --port 80 --unit a.service {flags}")).expect(flags);
            let expected: Option<Written> = (!expected.is_empty()).then(|| {
                let text = format!("name = \"a\"\nports = [{{ port = 80 }}]\n[check]\n{expected}");
                toml::from_str(&text).expect(&text)
            });
            assert_eq!(written.check, expected.and_then(|expected| expected.check), "{flags}");
            LocalService::try_from(&written).expect(flags);
        };
        check("", "");
        check("--check-http", "httpGet = { path = \"/\" }");
        check(
            "--check-http /healthz --check-port 81 --check-header Host=x",
            "httpGet = { path = \"/healthz\", port = 81, httpHeaders = [{ name = \"Host\", value = \"x\" }] }",
        );
        check("--check-https /", "httpGet = { path = \"/\", scheme = \"HTTPS\" }");
        check("--check-tcp", "tcpSocket = {}");
        check("--check-grpc", "grpc = {}");
        check("--check-grpc a.B --check-port 80", "grpc = { service = \"a.B\", port = 80 }");
        check(
            "--check-exec /bin/a -q --check-tcp",
            "exec = { command = [\"/bin/a\", \"-q\", \"--check-tcp\"] }",
        );
        check(
            "--check-exec /bin/a -q ; --check-interval 5s",
            "period = \"5s\"\nexec = { command = [\"/bin/a\", \"-q\"] }",
        );
        check("--check-ttl 30s", "ttl = \"30s\"");
        check("--check-unit", "unit = \"a.service\"");
        check("--check-unit b.service", "unit = \"b.service\"");
        check(
            "--check-tcp --check-interval 5s --check-timeout 2s --check-delay 1m --check-success 2 --check-failure 4",
            "tcpSocket = {}\nperiod = \"5s\"\ntimeout = \"2s\"\ninitialDelay = \"1m\"\nsuccessThreshold = 2\nfailureThreshold = 4",
        );
        for (flags, part) in [
            ("--check-http / --check-tcp", "cannot be used with"),
            ("--check-interval 5s", "required"),
            ("--check-tcp --check-header a=b", "goes with --check-http"),
            ("--check-ttl 30s --check-port 80", "goes with --check-http"),
            ("--check-unit", "give --unit"),
        ] {
            let error = written(&format!("a --port 80 {flags}")).expect_err(flags);
            assert!(error.contains(part), "{flags}: {error}");
        }
    }

    #[test]
    fn health_is_told_with_its_reason() {
        let report = |last: Option<&str>, health: &str, reason: Option<&str>| HealthReport {
            check: "ttl".to_owned(),
            health: health.to_owned(),
            seconds: 7,
            last: last.map(str::to_owned),
            last_seconds: last.map(|_| 1),
            reason: reason.map(str::to_owned),
        };
        for (last, health, reason, expected) in [
            (None, "unhealthy", None, "unhealthy (ttl: not looked at yet)"),
            (Some("passed"), "healthy", None, "healthy (ttl)"),
            // One failure of three.
            (Some("failed"), "healthy", Some("it hangs"), "healthy (ttl: it hangs)"),
        ] {
            assert_eq!(health_in_words(&report(last, health, reason)), expected);
        }
    }

    /// The example says by which command it comes about.
    #[test]
    fn the_example_is_what_its_command_writes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/registrations/default.orders.toml");
        let text = std::fs::read_to_string(path).expect("the example");
        let command = text.lines().find_map(|line| line.strip_prefix("#   baremesh service register "));
        let command = written(command.expect("its command")).expect("a registration");
        assert_eq!(toml::from_str::<Written>(&text).expect("a registration"), command);
    }

    #[test]
    fn a_container_is_named_by_label_and_followed() {
        let line = "db --port 5432 --container-label app=db --container-label tier --deliver container:5432";
        let written = written(line).expect("a registration");
        assert_eq!(written.container_labels, ["app=db", "tier"]);
        let text = toml::to_string(&written).expect("a file");
        assert!(text.contains("deliver = \"container:5432\""), "{text}");
        assert_eq!(toml::from_str::<Written>(&text).expect("a registration"), written);
        assert_eq!(processes(&written), "container with app=db, tier");
        LocalService::try_from(&written).expect("a service");
    }

    #[test]
    fn a_container_is_named_in_one_way() {
        for (flags, part) in [
            ("--container-label app=db --source 172.17.0.2 --interface br0", "cannot be used with"),
            ("--container-label app=db --unit db.service", "cannot be used with"),
            ("--deliver container:0", "nowhere to deliver to"),
        ] {
            let error = written(&format!("db --port 5432 {flags}")).expect_err(flags);
            assert!(error.contains(part), "{flags}: {error}");
        }
    }

    #[test]
    fn everything_reaches_the_file() {
        let written = written(
            "orders -n shop -p 80:8080 --protocol http --port-name web --deliver [::1]:8080 --user 7 --unit o.service \
             --label version=v2 --locality eu/a --weight 3 --service-account clerk --address 10.0.0.1 --when-gone open \
             --default",
        )
        .expect("a registration");
        let local = LocalService::try_from(&written).expect("a service");
        assert_eq!(local.key.to_string(), "orders.shop");
        assert_eq!(local.ports[0].target_port.get(), 8080);
        assert_eq!(local.ports[0].deliver.to_string(), "[::1]:8080");
        assert_eq!((local.weight, written.user), (3, Some(7)));
        assert!(local.matcher.is_some());
        assert_eq!(written.when_gone, WrittenWhenGone::Open);
    }
}
