//! The mesh that is shown: a control host, three hosts with the services of a small shop, and a host without any.
//! It is brought up as an operator would, with the command line, and every program on it is a process of its own.
//!
//! | host | runs | calls |
//! |---|---|---|
//! | `web` | `checkout` | `orders` |
//! | `one` | `orders`, `catalog`, `support`, `reviews` v1 | `catalog` |
//! | `two` | `orders`, `reviews` v2 | `catalog` |
//! | `guest` | nothing | whatever it likes |
//!
//! An ordinary user has one uid, so that all programs of a host have the same identity: callers differ by host.

use std::fs;
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::examples::{Example, Examples};
use super::hosts::{Host, Net, Process};
use super::member::{Member, ask, baremesh};
use super::patience::Patience;
use super::reviews::ORDERS;

/// The trust domain, and the domain of names.
pub(crate) const DOMAIN: &str = "mesh.internal";
/// The port that callers name.
pub(crate) const PORT: &str = "80";
/// How long a silent host's endpoints are kept: a third of what is usual, so that nobody has to wait for it.
const LEASE_SECONDS: &str = "5";
/// The control host's index, and so the last part of its addresses.
const CONTROL_INDEX: u8 = 200;
/// A name server that nobody is: the mesh's names need none, and others are not asked for.
const NO_NAME_SERVER: [u8; 4] = [10, 77, 0, 254];

/// A service that one of the hosts runs.
struct Running {
    host: &'static str,
    name: &'static str,
    /// The shop's role, with where it calls, if it calls anybody.
    role: &'static [&'static str],
    /// Where its program listens, and nobody but its own host reaches it.
    listen: &'static str,
    /// As `service register` takes it.
    port: &'static str,
    /// What `service register` is told besides: whose programs it is where they call others, and what it speaks.
    further: &'static [&'static str],
}

const RUNNING: &[Running] = &[
    Running {
        host: "web",
        name: "checkout",
        role: &["checkout", "orders.mesh.internal", PORT],
        listen: "127.0.0.1:8080",
        port: "80:8080",
        further: &["--user", "0"],
    },
    ORDERS_ON_ONE,
    Running { host: "two", ..ORDERS_ON_ONE },
    Running {
        host: "one",
        name: "catalog",
        role: &["catalog"],
        listen: "127.0.0.1:8081",
        port: "80:8081",
        further: &[],
    },
    Running {
        host: "one",
        name: "support",
        role: &["echo"],
        listen: "127.0.0.1:8082",
        port: "80:8082",
        further: &[],
    },
    REVIEWS_V1,
    Running {
        host: "two",
        role: &["web", "v2", ORDERS],
        further: &["--protocol", "http", "--label", "version=v2"],
        ..REVIEWS_V1
    },
];

const ORDERS_ON_ONE: Running = Running {
    host: "one",
    name: "orders",
    role: &["orders", "catalog.mesh.internal", PORT],
    listen: "127.0.0.1:8080",
    port: "80:8080",
    further: &["--user", "0"],
};

const REVIEWS_V1: Running = Running {
    host: "one",
    name: "reviews",
    role: &["web", "v1", ORDERS],
    listen: "127.0.0.1:8083",
    port: "80:8083",
    further: &["--protocol", "http", "--label", "version=v1"],
};

/// How many endpoints each service has when all is well.
pub(crate) const ENDPOINTS: [(&str, usize); 5] =
    [("checkout", 1), ("orders", 2), ("catalog", 1), ("support", 1), ("reviews", 2)];

/// The mesh. Dropping it leaves nothing of it.
pub(crate) struct Stage<'n> {
    pub(crate) patience: Patience,
    pub(crate) web: Member,
    pub(crate) one: Member,
    pub(crate) two: Member,
    pub(crate) guest: Member,
    server: Mutex<Option<Process>>,
    /// The programs of [`RUNNING`], in its order.
    shop: Vec<Process>,
    examples: Examples,
    pub(crate) control: Host,
    pub(crate) net: &'n Net,
}

/// How a program on a host ended, and what it said.
pub(crate) struct Said {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Said {
    /// Whether it ended with this code.
    pub(crate) fn ended_with(&self, code: u8) -> bool {
        self.status.code() == Some(code.into())
    }

    /// What it said, if it ended well.
    pub(crate) fn success(self, what: &str) -> Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        bail!("{what} ended with {}: {}{}", self.status, self.stdout, self.stderr)
    }
}

/// Runs `command` to its end.
pub(crate) fn run(patience: &Patience, command: Command) -> Result<Said> {
    let started = Instant::now();
    let output = patience.output(command)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    Ok(Said {
        status: output.status,
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
        took: started.elapsed(),
    })
}

impl<'n> Stage<'n> {
    /// Makes the hosts, the mesh on them, and the shop on the mesh.
    pub(crate) fn set(net: &'n Net, patience: &Patience, examples: Examples) -> Result<Self> {
        let control = net.host("control", CONTROL_INDEX)?;
        run(patience, baremesh(&control, ["init", "--trust-domain", DOMAIN, "--domain", DOMAIN]))?
            .success("baremesh init")?;
        let server = start_control(&control, patience)?;
        let names = ["web", "one", "two", "guest"];
        let joined = at_once(&names, |index, name| join(net, &control, patience, (index, name)));
        let [web, one, two, guest] =
            <[Member; 4]>::try_from(joined?).map_err(|_| anyhow::anyhow!("four hosts"))?;
        let server = Mutex::new(Some(server));
        let (patience, shop) = (patience.clone(), Vec::new());
        let mut stage = Self { patience, web, one, two, guest, server, shop, examples, control, net };
        stage.shop = at_once(RUNNING, |_, service| stage.open(service))?;
        stage.wait_until_whole()?;
        Ok(stage)
    }

    /// The hosts with agents.
    pub(crate) fn members(&self) -> [&Member; 4] {
        [&self.web, &self.one, &self.two, &self.guest]
    }

    /// Starts a service of the shop, and registers it.
    fn open(&self, service: &Running) -> Result<Process> {
        let member = self.members().into_iter().find(|member| member.name() == service.host);
        let member = member.with_context(|| format!("no host {}", service.host))?;
        let program = member.host.serve(service.name, service.role.iter().chain([&service.listen]))?;
        let register = ["service", "register", service.name, "--port", service.port];
        let command = baremesh(&member.host, register.into_iter().chain(service.further.iter().copied()));
        run(&self.patience, command)?.success("baremesh service register")?;
        Ok(program)
    }

    /// The program of a service on a host.
    pub(crate) fn program(&self, member: &Member, service: &str) -> Option<&Process> {
        let is_it = |running: &Running| running.host == member.name() && running.name == service;
        RUNNING.iter().position(is_it).and_then(|index| self.shop.get(index))
    }

    /// Waits until every agent is ready and knows every endpoint.
    pub(crate) fn wait_until_whole(&self) -> Result<()> {
        for member in self.members() {
            self.patience
                .wait_long(&format!("the agent of {} is ready", member.name()), || member.is_ready())?;
            for (service, count) in ENDPOINTS {
                let what = format!("{} knows {count} endpoints of {service}", member.name());
                self.patience.wait_long(&what, || member.endpoints(service) == count)?;
            }
        }
        Ok(())
    }

    /// A program on `member` calls a service by name: the shop's client `role`, with `rest` after name and port.
    pub(crate) fn client(
        &self,
        member: &Member,
        (role, service): (&str, &str),
        rest: &[&str],
    ) -> Result<Said> {
        let name = format!("{service}.{DOMAIN}");
        let command = member.host.shop([role, &name, PORT].into_iter().chain(rest.iter().copied()));
        run(&self.patience, command)
    }

    /// Orders tea from `member`.
    pub(crate) fn order(&self, member: &Member) -> Result<Said> {
        self.client(member, ("call", "orders"), &["order tea"])
    }

    /// Puts resources in force, as an operator would.
    pub(crate) fn apply(&self, name: &str, toml: &str) -> Result<()> {
        let file = format!("/run/baremesh/{name}.toml");
        let path = self.control.path(&file);
        fs::write(&path, toml).with_context(|| format!("cannot write {}", path.display()))?;
        run(&self.patience, baremesh(&self.control, ["apply", "-f", &file]))?
            .success("baremesh apply")
            .map(drop)
    }

    /// What an example says, which may be another than the binary holds.
    pub(crate) fn text(&self, example: &Example) -> Result<String> {
        self.examples.text(example)
    }

    /// Puts an example in force, and waits until every agent has it.
    pub(crate) fn enforce(&self, example: &Example) -> Result<()> {
        self.apply(example.file.trim_end_matches(".toml"), &self.text(example)?)?;
        self.patience.wait(&format!("every agent has {} in force", example.file), || {
            let status = ask::<Value>(&self.control, "control.sock", "/status").unwrap_or_default();
            let newest = status["stateVersion"].as_u64();
            let hosts = status["hosts"].as_array().map(Vec::as_slice).unwrap_or_default();
            newest.is_some() && hosts.iter().all(|host| host["acked"].as_u64() >= newest)
        })
    }

    /// Takes an authorization policy out of force.
    pub(crate) fn withdraw(&self, name: &str) -> Result<()> {
        let delete = ["delete", "AuthorizationPolicy", name];
        run(&self.patience, baremesh(&self.control, delete))?.success("baremesh delete").map(drop)
    }

    /// Kills the control server, as a crash would.
    pub(crate) fn kill_control(&self) -> Result<()> {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        let server = server.context("no control server runs")?;
        server.kill();
        server.wait().map(drop)
    }

    /// Starts the control server again.
    pub(crate) fn start_control(&self) -> Result<()> {
        let server = start_control(&self.control, &self.patience)?;
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        Ok(())
    }
}

fn start_control(control: &Host, patience: &Patience) -> Result<Process> {
    let server = control.spawn("control", baremesh(control, ["control", "--lease", LEASE_SECONDS]))?;
    patience.wait("the control server answers", || {
        !server.is_running() || ask::<Value>(control, "control.sock", "/status").is_some()
    })?;
    match server.exit_status() {
        None => Ok(server),
        Some(status) => bail!("the control server ended with {status}: {}", server.stderr()),
    }
}

/// Plugs a host in, lets it join, and starts its agent.
fn join(net: &Net, control: &Host, patience: &Patience, (index, name): (usize, &&str)) -> Result<Member> {
    let number = u8::try_from(index + 1).context("too many hosts")?;
    let host = net.host(name, number)?;
    host.set_nameserver(NO_NAME_SERVER.into())?;
    let services = RUNNING.iter().filter(|service| service.host == *name);
    let granted = services.flat_map(|service| ["--service", service.name]);
    let create = ["token", "create", "--output", "json", "--host", name];
    let made =
        run(patience, baremesh(control, create.into_iter().chain(granted)))?.success("token create")?;
    let made: Value = serde_json::from_str(&made).context("`token create` gave no JSON")?;
    let token = made["token"].as_str().context("`token create` gave no token")?;
    let address = control.v4().to_string();
    let joined = run(patience, baremesh(&host, ["join", &address, "--token", token, "--host", name]))?;
    joined.success("baremesh join").with_context(|| format!("{name} cannot join"))?;
    let member = Member::new(host)?;
    member.start()?;
    Ok(member)
}

/// Does the same with all of `items`, each in a thread of its own, and keeps their order.
fn at_once<I: Sync, T: Send>(items: &[I], work: impl Fn(usize, &I) -> Result<T> + Sync) -> Result<Vec<T>> {
    let work = &work;
    thread::scope(|scope| {
        let start = |(index, item)| scope.spawn(move || work(index, item));
        let threads: Vec<_> = items.iter().enumerate().map(start).collect();
        let end = |thread: thread::ScopedJoinHandle<'_, Result<T>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        // All of them are waited for before the first failure is returned.
        let ended: Vec<_> = threads.into_iter().map(end).collect();
        ended.into_iter().collect()
    })
}

/// The identity of a service of the shop.
pub(crate) fn identity_of(service: &str) -> String {
    format!("spiffe://{DOMAIN}/ns/default/sa/{service}")
}

/// The identity of a host's programs that are none of its services.
pub(crate) fn identity_of_host(host: &str) -> String {
    format!("spiffe://{DOMAIN}/ns/hosts/sa/{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_is_counted_as_often_as_it_runs() {
        for (name, count) in ENDPOINTS {
            assert_eq!(RUNNING.iter().filter(|service| service.name == name).count(), count, "{name}");
        }
        let total: usize = ENDPOINTS.iter().map(|(_, count)| count).sum();
        assert_eq!(RUNNING.len(), total);
    }

    #[test]
    fn work_is_done_at_once_and_a_failure_is_told() {
        assert_eq!(at_once(&[1, 2], |index, item| Ok(index + item)).ok(), Some(vec![1, 3]));
        let failed = at_once(&[1, 2], |_, item| if *item == 2 { bail!("two") } else { Ok(()) });
        assert_eq!(failed.map(drop).map_err(|error| error.to_string()), Err("two".to_owned()));
    }
}
