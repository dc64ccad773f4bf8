//! A mesh for a story: a control host, and members that joined it with tokens, each with a real agent.

use std::cell::RefCell;
use std::fs;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use serde_json::Value;

use crate::clock::FastClock;
use crate::consul::{Consul, host_with_consul};
use crate::{Host, Net, Process, net, output_of, run, wait_until};

/// The index of the control host, and so the last part of its addresses.
const CONTROL_INDEX: u8 = 200;
/// A name server that nobody is: what is not the mesh's stays unanswered.
const NO_NAME_SERVER: [u8; 4] = [10, 77, 0, 254];

/// A control host and the network that its members are on.
pub struct Mesh {
    /// The network.
    pub net: Rc<Net>,
    /// The control host.
    pub control: Host,
    arguments: Vec<String>,
    server: RefCell<Option<Process>>,
}

/// A host that joined, with its agent.
pub struct Member {
    /// The host.
    pub host: Host,
    agent: RefCell<Option<Process>>,
}

impl Mesh {
    /// A mesh with the usual settings.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        Self::with_control_arguments(name, &[])
    }

    /// A mesh whose control server is started with `arguments` besides the usual ones.
    #[track_caller]
    pub fn with_control_arguments(name: &str, arguments: &[&str]) -> Self {
        Self::on(Rc::new(net(name)), ("control", CONTROL_INDEX), "mesh.internal", arguments)
    }

    /// A mesh that was made already, whose control server `command` starts.
    #[track_caller]
    pub fn served(net: Net, control: Host, command: std::process::Command) -> Self {
        let server = RefCell::new(Some(control.spawn("control", command)));
        let mesh = Self { net: Rc::new(net), control, arguments: Vec::new(), server };
        mesh.wait_for_control();
        mesh
    }

    /// A mesh whose registry is a Consul server on a host of its own.
    #[track_caller]
    pub fn in_consul(name: &str) -> (Self, Host, Consul) {
        let net = Rc::new(net(name));
        let (host, consul) = host_with_consul(&net, "consul", CONTROL_INDEX + 2);
        let mesh = Self::of_consul(net, &consul);
        (mesh, host, consul)
    }

    /// A mesh whose registry is `consul`.
    #[track_caller]
    pub fn of_consul(net: Rc<Net>, consul: &Consul) -> Self {
        Self::with_registry(net, |_| consul.config())
    }

    /// A mesh whose control server's `control.toml` says what `prepare` says of its host. Its members may share a Consul agent
    /// on another host: wherever they say that they are, they are granted to be.
    #[track_caller]
    pub fn with_registry(net: Rc<Net>, prepare: impl FnOnce(&Host) -> String) -> Self {
        let control = net.host("control", CONTROL_INDEX);
        output_of(control.baremesh(["init"]));
        let granted = "[[HostGrant]]\nname = \"consul-elsewhere\"\nhost = \"*\"\naddresses = [\"0.0.0.0/0\", \"::/0\"]\n";
        fs::write(control.path("/etc/baremesh/registry/consul-elsewhere.toml"), granted).expect("written");
        let config = prepare(&control);
        fs::write(control.path("/etc/baremesh/control.toml"), config).expect("written");
        let mesh = Self { net, control, arguments: Vec::new(), server: RefCell::new(None) };
        mesh.start_control();
        mesh
    }

    /// A mesh of another trust domain on the same network.
    #[track_caller]
    pub fn beside(&self, trust_domain: &str, arguments: &[&str]) -> Self {
        Self::on(Rc::clone(&self.net), ("control2", CONTROL_INDEX + 1), trust_domain, arguments)
    }

    #[track_caller]
    fn on(net: Rc<Net>, (name, index): (&str, u8), trust_domain: &str, arguments: &[&str]) -> Self {
        let control = net.host(name, index);
        output_of(control.baremesh(["init", "--trust-domain", trust_domain]));
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let mesh = Self { net, control, arguments, server: RefCell::new(None) };
        mesh.start_control();
        mesh
    }

    /// Starts the control server, and waits until it answers.
    #[track_caller]
    pub fn start_control(&self) {
        let arguments = ["control"].into_iter().chain(self.arguments.iter().map(String::as_str));
        let server = self.control.spawn("control", self.control.baremesh(arguments));
        *self.server.borrow_mut() = Some(server);
        self.wait_for_control();
    }

    /// Starts the control server anew, by another clock.
    #[track_caller]
    pub fn restart_control_by(&self, clock: &FastClock) {
        self.kill_control();
        let mut command = self.control.baremesh(["control"]);
        clock.apply(command.args(&self.arguments));
        *self.server.borrow_mut() = Some(self.control.spawn("control", command));
        self.wait_for_control();
    }

    #[track_caller]
    fn wait_for_control(&self) {
        let socket = self.control.path("/run/baremesh/control.sock");
        wait_until("the control server answers", || get(&socket, "/status").is_some());
    }

    /// Kills the control server, as a crash would.
    #[track_caller]
    pub fn kill_control(&self) {
        let server = self.server.borrow_mut().take().expect("the control server was started");
        server.kill();
        server.wait();
    }

    /// The control server's process id.
    pub fn control_pid(&self) -> u32 {
        self.server.borrow().as_ref().expect("the control server was started").pid()
    }

    /// A token for a host that may have `services`.
    #[track_caller]
    pub fn token(&self, services: &[&str]) -> String {
        let granted = services.iter().flat_map(|service| ["--service", service]);
        let command =
            self.control.baremesh(["token", "create", "--output", "json"].into_iter().chain(granted));
        let made: Value = serde_json::from_str(&output_of(command)).expect("JSON");
        made["token"].as_str().expect("a token").to_owned()
    }

    /// A host that joins with a token for `services`, and whose agent is ready.
    #[track_caller]
    pub fn member(&self, name: &str, index: u8, services: &[&str]) -> Member {
        self.member_with(name, index, services, "")
    }

    /// As `member`, with further lines for `agent.toml`.
    #[track_caller]
    pub fn member_with(&self, name: &str, index: u8, services: &[&str], config: &str) -> Member {
        let member = self.join(self.net.host(name, index), name, services);
        member.configure(config);
        member.start();
        member
    }

    /// A host that is there already, as one that has joined; its agent does not run yet.
    #[track_caller]
    pub fn join(&self, host: Host, name: &str, services: &[&str]) -> Member {
        host.set_nameserver(NO_NAME_SERVER);
        let address = self.control.v4().to_string();
        output_of(host.baremesh(["join", &address, "--token", &self.token(services), "--host", name]));
        Member { host, agent: RefCell::new(None) }
    }

    /// Puts resources in force, and returns what the command said.
    #[track_caller]
    pub fn apply(&self, toml: &str) -> String {
        let file = self.control.path("/run/baremesh/story.toml");
        fs::write(&file, toml).expect("the control host's runtime directory");
        output_of(self.control.baremesh(["apply", "-f", "/run/baremesh/story.toml"]))
    }

    /// Puts resources in force, and waits until every host has them.
    #[track_caller]
    pub fn enforce(&self, toml: &str) {
        self.apply(toml);
        self.wait_until_in_force();
    }

    /// Waits until every host that is connected has the newest state in force.
    #[track_caller]
    pub fn wait_until_in_force(&self) {
        let socket = self.control.path("/run/baremesh/control.sock");
        wait_until("every host has the newest state", || {
            let status = get(&socket, "/status").unwrap_or_default();
            let newest = status["stateVersion"].as_u64();
            let hosts = status["hosts"].as_array().cloned().unwrap_or_default();
            let mut connected = hosts.iter().filter(|host| host["connected"] == true);
            newest.is_some() && connected.all(|host| host["acked"].as_u64() >= newest)
        });
    }
}

impl Member {
    /// The agent of a host that is a member by other means than a token.
    pub fn of(host: Host) -> Self {
        Self { host, agent: RefCell::new(None) }
    }

    /// Writes the agent's configuration; it counts from the next start.
    #[track_caller]
    pub fn configure(&self, config: &str) {
        fs::write(self.host.path("/etc/baremesh/agent.toml"), config).expect("the host's configuration");
    }

    /// Starts the agent, and waits until it is ready.
    #[track_caller]
    pub fn start(&self) {
        self.start_without_waiting();
        self.wait_until_ready();
    }

    /// Starts the agent.
    #[track_caller]
    pub fn start_without_waiting(&self) {
        *self.agent.borrow_mut() = Some(self.host.spawn("agent", self.host.baremesh(["agent"])));
    }

    /// Starts the agent anew, by another clock.
    #[track_caller]
    pub fn restart_by(&self, clock: &FastClock) {
        self.stop_agent();
        let mut command = self.host.baremesh(["agent"]);
        clock.apply(&mut command);
        *self.agent.borrow_mut() = Some(self.host.spawn("agent", command));
        self.wait_until_ready();
    }

    /// Waits until the agent has certificates, state and capture in place.
    #[track_caller]
    pub fn wait_until_ready(&self) {
        wait_until("the agent is ready", || self.status().is_some_and(|status| status["ready"] == true));
    }

    /// Asks the agent to stop, and does not wait for its end.
    #[track_caller]
    pub fn tell_agent_to_stop(&self) -> Process {
        let agent = self.agent.borrow_mut().take().expect("the agent was started");
        agent.terminate();
        agent
    }

    /// Kills the agent, as a crash would.
    #[track_caller]
    pub fn kill_agent(&self) {
        let agent = self.agent.borrow_mut().take().expect("the agent was started");
        agent.kill();
        agent.wait();
    }

    /// Stops the agent in good order, and waits for its end.
    #[track_caller]
    pub fn stop_agent(&self) {
        let agent = self.agent.borrow_mut().take().expect("the agent was started");
        agent.terminate();
        assert!(agent.wait().success(), "the agent ended in good order");
    }

    /// Lets another agent take over from the one that runs, and returns that one, which carries what is open to its end.
    #[track_caller]
    pub fn take_over(&self) -> Process {
        let new = self.start_to_take_over();
        wait_until("another agent takes over", || {
            assert!(new.is_running(), "it ended: {}", new.stderr());
            new.stderr().contains("this agent has taken over")
        });
        let old = self.agent.borrow_mut().replace(new).expect("the agent was started");
        self.wait_until_ready();
        old
    }

    /// Starts an agent that is to take over from the one that runs.
    #[track_caller]
    pub fn start_to_take_over(&self) -> Process {
        self.host.spawn("agent-that-takes-over", self.host.baremesh(["agent", "--take-over"]))
    }

    /// What the agent has written to its standard error so far.
    #[track_caller]
    pub fn agent_said(&self) -> String {
        self.agent.borrow().as_ref().expect("the agent was started").stderr()
    }

    /// The agent's process id.
    pub fn agent_pid(&self) -> u32 {
        self.agent.borrow().as_ref().expect("the agent was started").pid()
    }

    /// Registers a service as an operator would, and waits until it has its certificate.
    #[track_caller]
    pub fn register<const N: usize>(&self, name: &str, arguments: [&str; N]) {
        self.register_with(name, &arguments);
    }

    /// As `register`, with as many arguments as there happen to be.
    #[track_caller]
    pub fn register_with(&self, name: &str, arguments: &[&str]) {
        let command = ["service", "register", name].into_iter().chain(arguments.iter().copied());
        output_of(self.host.baremesh(command));
        let key = if name.contains('.') { name.to_owned() } else { format!("{name}.default") };
        wait_until("the registered service has its certificate", || self.has_certificate(&key) == Some(true));
    }

    /// Whether a service of this host (as `name.namespace`) has its certificate; nothing where it is not registered.
    pub fn has_certificate(&self, service: &str) -> Option<bool> {
        let status = self.status()?;
        status["services"].as_array()?.iter().find(|known| known["service"] == service)?["certificate"]
            .as_bool()
    }

    /// Waits until the agent knows `service` (as `name.namespace`) with so many endpoints.
    #[track_caller]
    pub fn wait_for_endpoints(&self, service: &str, count: usize) {
        wait_until(&format!("{count} endpoints of {service}"), || self.endpoints(service) == Some(count));
    }

    /// How many endpoints of `service` the agent knows.
    pub fn endpoints(&self, service: &str) -> Option<usize> {
        let services = self.ask("/services")?;
        let found = services.as_array()?.iter().find(|known| known["service"] == service)?.clone();
        Some(found["endpoints"].as_array()?.len())
    }

    /// Has the agent ask for the endpoints of `service` (as `name.namespace`), as a first call would.
    #[track_caller]
    pub fn ask_for_endpoints(&self, service: &str) {
        let port = || {
            let services = self.ask("/services")?;
            let found = services.as_array()?.iter().find(|known| known["service"] == service)?.clone();
            let (port, protocol) = found["ports"][0].as_str()?.split_once('/')?;
            let is_http = ["http", "grpc"].iter().any(|http| protocol.to_lowercase().starts_with(http));
            Some(format!("{}://{service}:{port}", if is_http { "http" } else { "tcp" }))
        };
        let mut known = None;
        wait_until(&format!("{service} is known"), || {
            known = port();
            known.is_some()
        });
        // Whether anybody could be called is not asked here.
        run(self.host.baremesh(["explain", &known.unwrap_or_default()]));
    }

    /// Waits until what the agent starts from the next time has endpoints of `service`, one of the namespace `default` that
    /// was called, and what it asks for then has the service.
    #[track_caller]
    pub fn wait_until_kept(&self, service: &str) {
        let said = |file: &str| {
            fs::read_to_string(self.host.path(format!("/var/lib/baremesh/{file}"))).unwrap_or_default()
        };
        wait_until(&format!("{service} is on the disk"), || {
            said("last-good.state").contains(&format!("WorkloadEntry/default/{service}-"))
                && said("called-services").contains(&format!("{service}.default"))
        });
    }

    /// The agent's account of itself; nothing while it does not answer.
    pub fn status(&self) -> Option<Value> {
        self.ask("/status")
    }

    /// What the agent's socket answers to a GET.
    pub fn ask(&self, target: &str) -> Option<Value> {
        get(&self.host.path("/run/baremesh/agent.sock"), target)
    }

    /// The lines of the access log, of all starts of the agent, in their order.
    pub fn log(&self) -> Vec<Value> {
        let directory = self.host.directory().join("log");
        let mut files: Vec<_> =
            fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path()).collect();
        files.retain(|file| {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with("agent") && name.ends_with(".out")
        });
        files.sort_by_key(|file| (file.as_os_str().len(), file.clone()));
        let text: String = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a line of the access log.
    #[track_caller]
    pub fn wait_for_log(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        wait_until(&format!("the log says: {what}"), || self.log().iter().any(&matches));
        self.log().into_iter().find(matches).expect("it was there a moment ago")
    }

    /// What the metrics say, as text.
    #[track_caller]
    pub fn metrics(&self) -> String {
        let mut stream = self.host.connect(([127, 0, 0, 1], 15020)).expect("the metrics port");
        exchange(&mut stream, "/metrics").map(|(_, body)| body).expect("metrics")
    }
}

/// A GET over a Unix socket, read as JSON.
fn get(socket: &std::path::Path, target: &str) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).ok()?;
    let (status, body) = exchange(&mut stream, target)?;
    (status == 200).then(|| serde_json::from_str(&body).ok()).flatten()
}

fn exchange(stream: &mut (impl std::io::Read + std::io::Write), target: &str) -> Option<(u16, String)> {
    let request = format!("GET {target} HTTP/1.1\r\nHost: story\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
