//! A real Consul for stories: the one of `tests/peers/consul`, on hosts of the story's network.

use std::cell::RefCell;
use std::fs;
use std::io::{Read as _, Write as _};
use std::process::Command;

use serde_json::{Value, json};

use crate::{Host, Net, Process, wait_until};

/// Where its data are on its host.
const DATA: &str = "/var/lib/consul";
/// Its configuration, beside the arguments.
const CONFIG: &str = "/run/consul.json";

/// A Consul server, or agent, on a host of its own or beside an agent of the mesh.
pub struct Consul {
    program: String,
    address: String,
    process: RefCell<Option<Process>>,
}

impl Consul {
    /// A server that is alone, on `host`.
    #[track_caller]
    pub fn server(host: &Host) -> Self {
        Self::start(host, &json!({ "server": true, "bootstrap_expect": 1 }))
    }

    /// As `server`, with further configuration.
    #[track_caller]
    pub fn start(host: &Host, config: &Value) -> Self {
        let consul = Self::start_without_waiting(host, config);
        Self::wait_for_leader(host);
        consul
    }

    /// As `start`, of servers that have no leader before the others are there.
    #[track_caller]
    pub fn start_without_waiting(host: &Host, config: &Value) -> Self {
        let address = host.v4().to_string();
        let mut all = json!({
            "node_name": host.name(), "data_dir": DATA, "bind_addr": address, "client_addr": "0.0.0.0",
            "log_level": "warn", "disable_update_check": true, "leave_on_terminate": false,
            // What a server that was cut off waits for before it elects, and what is lost of a write that no disk saw.
            "performance": { "raft_multiplier": 1 },
        });
        let both = all.as_object_mut().zip(config.as_object());
        both.into_iter().for_each(|(all, more)| all.extend(more.clone()));
        fs::write(host.path(CONFIG), all.to_string()).expect("the host's runtime directory");
        let consul = Self { program: program(), address, process: RefCell::new(None) };
        consul.spawn(host);
        consul
    }

    /// Starts it again, and waits until it has a leader.
    #[track_caller]
    pub fn run(&self, host: &Host) {
        self.spawn(host);
        Self::wait_for_leader(host);
    }

    #[track_caller]
    fn spawn(&self, host: &Host) {
        let mut command = host.command(&self.program);
        command.args(["agent", "-config-file", CONFIG]);
        *self.process.borrow_mut() = Some(host.spawn("consul", command));
    }

    /// Waits until the Consul of a host has a leader.
    #[track_caller]
    pub fn wait_for_leader(host: &Host) {
        wait_until("Consul has a leader", || {
            ask(host, "GET", "/v1/status/leader", None)
                .is_some_and(|(status, body)| status == 200 && body.len() > 2)
        });
    }

    /// Kills it.
    #[track_caller]
    pub fn kill(&self) {
        let process = self.process.borrow_mut().take().expect("Consul was started");
        process.kill();
        process.wait();
    }

    /// Takes everything away that it knew, once it was killed.
    #[track_caller]
    pub fn forget(&self, host: &Host) {
        fs::remove_dir_all(host.path(DATA)).expect("Consul's data");
    }

    /// What an agent's `agent.toml`, or a control server's `control.toml`, says of it. The network is the story's own.
    pub fn config(&self) -> String {
        format!(
            "[registry]\nsource = \"consul\"\n[consul]\naddresses = [\"http://{}:8500\"]\nallow_plaintext = true\n",
            self.address
        )
    }
}

/// Asks the Consul of a host.
pub fn ask(host: &Host, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, String)> {
    ask_as("", host, method, path, body)
}

/// As `ask`, with a token; without one where it is empty.
pub fn ask_as(
    token: &str,
    host: &Host,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Option<(u16, String)> {
    let mut stream = host.connect((host.v4(), 8500)).ok()?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let token = if token.is_empty() { String::new() } else { format!("X-Consul-Token: {token}\r\n") };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: consul\r\nConnection: close\r\n{token}Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let is_in_pieces = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Some((status, if is_in_pieces { joined(body)? } else { body.to_owned() }))
}

/// A body that came in pieces (RFC 9112, section 7.1), as an answer of some kilobytes does; nothing where it broke off.
fn joined(mut body: &str) -> Option<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.push_str(rest.get(..size)?);
        body = rest.get(size..)?.strip_prefix("\r\n")?;
    }
}

/// What the Consul of a host says of the instances of a service: each with the worst of its checks.
#[track_caller]
pub fn instances(host: &Host, service: &str) -> Vec<(String, String)> {
    let (_, body) = ask(host, "GET", &format!("/v1/health/service/{service}"), None).unwrap_or_default();
    let all: Value = serde_json::from_str(&body).unwrap_or_default();
    let all = all.as_array().cloned().unwrap_or_default();
    let worst = |instance: &Value| {
        let checks = instance["Checks"].as_array().cloned().unwrap_or_default();
        let is = |status: &str| checks.iter().any(|check| check["Status"] == status);
        ["critical", "warning"].into_iter().find(|status| is(status)).unwrap_or("passing").to_owned()
    };
    all.iter().map(|one| (one["Service"]["ID"].as_str().unwrap_or_default().to_owned(), worst(one))).collect()
}

/// Registers, at the Consul of `host`, a service that no agent of the mesh knows.
#[track_caller]
pub fn register_foreign(host: &Host, service: &Value) {
    let answer = ask(host, "PUT", "/v1/agent/service/register", Some(service));
    assert!(matches!(answer, Some((200, _))), "{answer:?}");
}

#[track_caller]
fn program() -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/consul");
    let output = Command::new(script).output().expect("the script runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A host on `net` with a Consul server that is alone.
#[track_caller]
pub fn host_with_consul(net: &Net, name: &str, index: u8) -> (Host, Consul) {
    let host = net.host(name, index);
    let consul = Consul::server(&host);
    (host, consul)
}
