//! systemd-resolved, told which names are the mesh's: of a link of our own it is said that the agent is its server, that
//! the mesh's domains and the hosts of ServiceEntries are asked there and nowhere else, and that no other name is. Everything else goes where it went
//! before, past the agent. A drop-in for `resolved.conf` would not do: the servers named there are of one list with those
//! that the operator named, so that names of the mesh would be asked of these too, and are asked about every other name.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::capture::command::Tools;
use crate::capture::{CaptureError, link};
use crate::config::DnsMode;
use crate::dns::{STUBS, domains_of, name_servers};
use crate::publish::Publisher;

/// So many domains resolved takes for one link (`LINK_SEARCH_DOMAINS_MAX`, 256 up to version 255).
const MAX_DOMAINS: usize = 256;
/// How long changes of the mesh are collected.
const SETTLE: Duration = Duration::from_secs(1);
/// How often it is looked whether resolved still knows.
const LOOK: Duration = Duration::from_secs(30);
/// How long the agent's start waits for it.
const FIRST: Duration = Duration::from_secs(10);
/// How long to wait after it could not be told.
const RETRY: Duration = Duration::from_secs(5);

/// The mode that an agent without one in its file has: resolved is told where programs of this host ask it and can be
/// told, and port 53 is captured otherwise.
pub fn mode_of_this_host() -> DnsMode {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let asked = asks_resolved(&text);
    if !asked {
        return DnsMode::Capture;
    }
    match Tools::find().and_then(|tools| tools.resolvectl(&["--version"])) {
        Ok(_) => DnsMode::Resolved,
        Err(error) => {
            tracing::warn!(%error, "programs ask systemd-resolved, but it cannot be told of the mesh's names: port 53 is captured");
            DnsMode::Capture
        }
    }
}

/// Whether every server in a `resolv.conf` is systemd-resolved.
fn asks_resolved(text: &str) -> bool {
    let servers = name_servers(text);
    !servers.is_empty() && servers.iter().all(|server| STUBS.contains(&server.ip()))
}

/// What resolved is told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    /// On which the agent answers at 127.0.0.1.
    port: u16,
    /// The link's address.
    address: Ipv4Addr,
    /// As resolvectl takes them, sorted.
    domains: Vec<String>,
}

/// Who tells it.
#[derive(Debug)]
pub struct Resolved {
    port: u16,
    /// Whether all was taken back: a change that was on its way then must not bring the link back.
    over: Mutex<bool>,
}

impl Resolved {
    /// The agent answers at 127.0.0.1, on `port`.
    pub fn new(port: u16) -> Arc<Self> {
        Arc::new(Self { port, over: Mutex::new(false) })
    }

    /// Tells it for the first time, as long as that takes within reason. Whatever comes of it is seen to by `keep_told`.
    pub async fn tell_first(self: &Arc<Self>, publisher: &Publisher) {
        let (told, teller) = (Told::of(publisher, self.port), Arc::clone(self));
        let telling = tokio::task::spawn_blocking(move || teller.tell(&told));
        if let Ok(Ok(Err(error))) = tokio::time::timeout(FIRST, telling).await {
            tracing::debug!(%error, "systemd-resolved is not told yet");
        }
    }

    /// Keeps it told, until the task is ended.
    pub async fn keep_told(self: Arc<Self>, publisher: Arc<Publisher>) {
        let mut changed = publisher.changed();
        let mut failing = false;
        loop {
            let (told, teller) = (Told::of(&publisher, self.port), Arc::clone(&self));
            let pause = match tokio::task::spawn_blocking(move || teller.tell(&told)).await {
                Ok(Ok(())) => {
                    if std::mem::replace(&mut failing, false) {
                        tracing::info!("systemd-resolved knows of the mesh's names");
                    }
                    LOOK
                }
                Ok(Err(error)) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "systemd-resolved cannot be told of the mesh's names, which do not resolve until it is: is it running? `dns.mode` in agent.toml has other ways");
                    }
                    RETRY
                }
                // A panic in there has been reported already.
                Err(_) => RETRY,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                change = changed.changed() => {
                    if change.is_err() {
                        return;
                    }
                    tokio::time::sleep(SETTLE).await;
                }
            }
        }
    }

    fn tell(&self, told: &Told) -> Result<(), CaptureError> {
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        if *over {
            return Ok(());
        }
        let tools = Tools::find()?.ending_with_us();
        tell(&tools, told)
    }

    /// Takes it all back, for good.
    pub async fn forget(self: Arc<Self>) {
        let withdraw = move || {
            *self.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
            Tools::find().and_then(|tools| link::withdraw(&tools))
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(withdraw).await {
            tracing::error!(%error, "the link {} could not be removed: `ip link del {}` does it", link::LINK, link::LINK);
        }
    }
}

impl Told {
    fn of(publisher: &Publisher, port: u16) -> Self {
        let snapshot = publisher.snapshot().load_full();
        let config = &snapshot.mesh.config;
        let ranges: Vec<_> = std::iter::once(config.virtual_ranges.v4.into())
            .chain(config.virtual_ranges.v6.map(Into::into))
            .collect();
        let own = domains_of(&config.domain, &ranges);
        let (mut domains, left_out) = chosen(own, snapshot.external.domains());
        if left_out > 0 {
            tracing::warn!(
                left_out,
                limit = MAX_DOMAINS,
                "systemd-resolved takes no more domains than this: the last names do not resolve; `dns.mode = \"capture\"` has no such limit"
            );
        }
        domains.sort();
        // The first address of the range, which no service gets.
        Self { port, address: config.virtual_ranges.v4.network(), domains }
    }

    /// What `resolvectl dns` and `resolvectl domain` take.
    fn server(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// The domains that resolved is told, the mesh's own first, and how many it does not take. A host within the mesh's domain
/// is asked of the agent already.
fn chosen(own: Vec<String>, external: BTreeSet<String>) -> (Vec<String>, usize) {
    let is_within = |name: &str| {
        own.iter().any(|domain| {
            name.strip_suffix(&**domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    };
    let further: Vec<_> = external.into_iter().filter(|name| !is_within(name)).collect();
    let all: Vec<_> = own.into_iter().chain(further).map(|domain| format!("~{domain}")).collect();
    let left_out = all.len().saturating_sub(MAX_DOMAINS);
    (all.into_iter().take(MAX_DOMAINS).collect(), left_out)
}

/// Tells resolved, unless it knows. Domains come first: a server without any would be asked about every name.
fn tell(tools: &Tools, told: &Told) -> Result<(), CaptureError> {
    if !link::stands(tools)? {
        link::place(tools, told.address)?;
    }
    let server = told.server();
    let knows = |what: &str, expected: &[String]| {
        tools.resolvectl(&[what, link::LINK]).map(|said| values(&said) == expected)
    };
    if knows("dns", std::slice::from_ref(&server))? && knows("domain", &told.domains)? {
        return Ok(());
    }
    let set =
        |words: &[&str]| tools.resolvectl(&[&[words[0], link::LINK][..], &words[1..]].concat()).map(drop);
    set(&["default-route", "no"])?;
    let domains: Vec<&str> = told.domains.iter().map(String::as_str).collect();
    set(&[&["domain"][..], &domains].concat())?;
    // The names are signed by nobody, and asked of nobody on the link.
    for what in ["dnssec", "dnsovertls", "llmnr", "mdns"] {
        if let Err(error) = set(&[what, "no"]) {
            tracing::debug!(%error, "systemd-resolved does not take `{what}` for a link");
        }
    }
    set(&["dns", &server])
}

/// What `resolvectl` says of a link, `Link 3 (baremesh0): A B`, sorted.
fn values(said: &str) -> Vec<String> {
    let list = said.split_once("): ").or_else(|| said.split_once("):")).map_or("", |(_, list)| list);
    let mut values: Vec<_> = list.split_whitespace().map(str::to_owned).collect();
    values.sort();
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolved_is_told_where_programs_ask_it_and_nobody_else() {
        for (text, expected) in [
            ("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n", true),
            ("nameserver 127.0.0.54\n", true),
            ("nameserver 10.0.0.1\n", false),
            ("nameserver 127.0.0.53\nnameserver 10.0.0.1\n", false),
            ("nameserver 127.0.0.1\n", false),
            ("", false),
        ] {
            assert_eq!(asks_resolved(text), expected, "{text:?}");
        }
    }

    #[test]
    fn hosts_of_service_entries_come_after_the_mesh_s_own_and_are_bounded() {
        let own = || vec!["mesh.internal".to_owned(), "240.240.in-addr.arpa".to_owned()];
        let check = |external: &[&str], expected: &[&str]| {
            let external = external.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(chosen(own(), external).0, expected);
        };
        let ours = ["~mesh.internal", "~240.240.in-addr.arpa"];
        check(&[], &ours);
        check(&["b.example", "a.example"], &[&ours[..], &["~a.example", "~b.example"]].concat());
        check(&["x.mesh.internal", "mesh.internal"], &ours);
        check(&["xmesh.internal"], &[&ours[..], &["~xmesh.internal"]].concat());
        let many = (0..MAX_DOMAINS).map(|number| format!("h{number}.example")).collect();
        let (told, left_out) = chosen(own(), many);
        assert_eq!((told.len(), left_out, &told[..2]), (MAX_DOMAINS, 2, &ours.map(str::to_owned)[..]));
    }

    #[test]
    fn reads_what_resolvectl_says_of_a_link() {
        for (said, expected) in [
            (
                "Link 3 (baremesh0): ~mesh.internal ~240.240.in-addr.arpa\n",
                &["~240.240.in-addr.arpa", "~mesh.internal"][..],
            ),
            (
                "Link 3 (baremesh0): ~mesh.internal\n                    ~a.example\n",
                &["~a.example", "~mesh.internal"],
            ),
            ("Link 3 (baremesh0): 127.0.0.1:15053\n", &["127.0.0.1:15053"]),
            ("Link 3 (baremesh0):\n", &[]),
            ("", &[]),
        ] {
            assert_eq!(values(said), expected, "{said:?}");
        }
    }
}
