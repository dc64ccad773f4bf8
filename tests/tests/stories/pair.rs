//! What most stories begin with: a host whose programs are the service `web`, and a host `store` that serves.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use baremesh_tests::{Host, Member, Mesh, Process, exit, exit_code_of, wait_until};
use serde_json::Value;

/// The principal of the programs of `web`, as policies name it.
pub const WEB: &str = "mesh.internal/ns/default/sa/web";
/// The identity of the programs of `web`, as logs name it.
pub const WEB_ID: &str = "spiffe://mesh.internal/ns/default/sa/web";

/// Two members of a mesh.
pub struct Pair {
    /// Its programs are the service `web`.
    pub web: Member,
    /// It may run any service.
    pub store: Member,
    /// The mesh.
    pub mesh: Mesh,
}

impl Pair {
    /// A mesh with both, and nothing that serves yet.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        Self::with_config(name, "")
    }

    /// The same, with further lines for `agent.toml` of both.
    #[track_caller]
    pub fn with_config(name: &str, config: &str) -> Self {
        let mesh = Mesh::new(name);
        let web = mesh.member_with("web", 1, &["*"], config);
        let store = mesh.member_with("store", 2, &["*"], config);
        web.register("web", ["--port", "80", "--user", "0"]);
        Self { web, store, mesh }
    }

    /// A program of the shop that listens on the loopback address of `store` alone, as a service of the same name.
    #[track_caller]
    pub fn serve(&self, role: &str, port: u16) -> Process {
        self.serve_as(role, role, port)
    }

    /// The same under another name.
    #[track_caller]
    pub fn serve_as(&self, service: &str, role: &str, port: u16) -> Process {
        let program = self.store.host.serve(service, [role, &format!("127.0.0.1:{port}")]);
        self.register(service, port);
        program
    }

    /// Registers a service of `store`, and waits until `web` can call it.
    #[track_caller]
    pub fn register(&self, service: &str, port: u16) {
        self.store.register(service, ["--port", &port.to_string()]);
        self.web.wait_for_endpoints(&format!("{service}.default"), 1);
    }

    /// A line to a service from a program of `web`, and the line that comes back.
    pub fn call(&self, name: &str, port: u16, text: &str) -> Command {
        self.web.host.shop(["call", name, &port.to_string(), text])
    }

    /// Both ends of a connection through the mesh, in the test's own hands: the caller's on `web`, and the called
    /// program's on `store`.
    #[track_caller]
    pub fn both_ends(&self, service: &str, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let port = listener.local_addr().expect("it is bound").port();
        let address = SocketAddr::new(virtual_addresses(&self.web, service)[0], port);
        let caller = self.web.host.connect(address).expect("a connection to the agent");
        let (called, _) = listener.accept().expect("the agent delivers");
        for end in [&caller, &called] {
            end.set_read_timeout(Some(baremesh_tests::WAIT_BOUND)).expect("a timeout");
        }
        (caller, called)
    }
}

/// The virtual addresses of a service, as a member knows it; IPv4 first.
#[track_caller]
pub fn virtual_addresses(member: &Member, service: &str) -> Vec<IpAddr> {
    let key = format!("{service}.default");
    let mut found = Vec::new();
    wait_until(&format!("virtual addresses of {service}"), || {
        let services = member.ask("/services").unwrap_or_default();
        let known = services.as_array().cloned().unwrap_or_default();
        let entry = known.iter().find(|known| known["service"] == key.as_str());
        let texts = entry.and_then(|entry| entry["addresses"].as_array().cloned()).unwrap_or_default();
        found = texts.iter().filter_map(|text| text.as_str()?.parse().ok()).collect();
        found.len() == 2
    });
    found.sort();
    found
}

/// The endpoint's real addresses, as a program would type them.
pub fn real_addresses(host: &Host) -> [String; 2] {
    [host.v4().to_string(), host.v6().to_string()]
}

/// Whether a line of the access log gives `reason`.
pub fn because(reason: &str) -> impl Fn(&Value) -> bool + '_ {
    move |line| line["response_code_details"] == reason
}

/// How many connections the called side of a member counts as not carried for this reason.
#[track_caller]
pub fn counted(member: &Member, reason: &str) -> usize {
    member.counted("baremesh_connection_failures_total", &[("reporter", "destination"), ("reason", reason)])
}

/// A program of `host` that runs as `uid`.
#[track_caller]
pub fn shop_as(host: &Host, uid: u32, args: &[&str]) -> Command {
    let mut command = host.command_as(uid, "baremesh");
    command.arg("demo-shop").args(args);
    command
}

/// How often a program of the shop was connected to.
pub fn connections_of(program: &Process) -> usize {
    program
        .stdout()
        .lines()
        .filter(|line| line.starts_with("connection from") && !line.contains("broke"))
        .count()
}

/// Whether a program of the shop was cut off before anything was said. A reset that comes at once may be seen while the
/// program still connects.
#[track_caller]
pub fn is_cut(command: Command) -> bool {
    match exit_code_of(command) {
        exit::CUT | exit::NO_CONNECTION => true,
        exit::DONE => false,
        other => panic!("neither carried nor cut: {other}"),
    }
}
