//! The local program's side: a connection that this host's policies let through is handed to the address that the
//! service was registered with.

use std::io;
use std::sync::Arc;

use baremesh_model::authorization::{Action, Carried, Decision, Hello, Request, Verdict};
use baremesh_model::flow::Way;
use baremesh_model::service::Protocol;
use tokio::net::TcpStream;

use super::Worker;
use super::error::ProxyError;
use super::http::reply::Reply;
use super::open::Delivered;
use super::relay;
use super::sniff::{First, arrives_as_http, hello_of};
use super::socket;
use crate::snapshot::{From, LocalEndpoint, Snapshot};
use crate::telemetry::metrics::Party;
use crate::telemetry::{Record, Security};

/// Why nothing is delivered where a registration names a container by label.
const NO_CONTAINER: &str = "no container is certain to be the service; `baremesh status` says why";

impl Worker {
    /// Decides whether a connection may reach a service of this host. One that carries requests is refused here only for
    /// what none of them could change.
    /// Gives back the providers that were asked, and allow it.
    pub(super) async fn authorize(
        self: &Arc<Self>,
        local: &LocalEndpoint,
        from: From<'_>,
        record: &mut Record,
    ) -> Result<Vec<Arc<str>>, ProxyError> {
        self.note_flow(local, from, record);
        local.taken()?;
        let carried = Carried::opening(local.protocol);
        self.authorize_carried(local, (from, (carried, &local.opening_hello())), record)?;
        match carried {
            Carried::Bytes if local.may_ask() && !local.waits_for_hello() => {
                self.ask_about_bytes(local, (from.0, &Hello::Unread), record).await
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Decides whether a connection that was let through because more was to come may carry bytes.
    pub(super) async fn authorize_bytes(
        self: &Arc<Self>,
        delivered: &mut Delivered,
        record: &mut Record,
    ) -> Result<(), ProxyError> {
        let local = Arc::clone(&delivered.local);
        let may_be_requests = local.protocol == Protocol::Auto;
        if may_be_requests && local.tokens.as_ref().is_some_and(|rules| rules.ask_for_one()) {
            return Err(ProxyError::Denied(
                "a RequestAuthentication asks for a token, and bytes have none".to_owned(),
            ));
        }
        self.authorize_carried(&local, (delivered.from(), (Carried::Bytes, &delivered.hello)), record)?;
        if local.may_ask() {
            let known = (delivered.source.as_ref(), &delivered.hello);
            delivered.allowed_by = self.ask_about_bytes(&local, known, record).await?;
        }
        Ok(())
    }

    /// Remembers that a connection came, for what is asked about it later.
    pub(super) fn note_flow(&self, local: &LocalEndpoint, (source, source_ip): From<'_>, record: &Record) {
        let way = match (source, record.security) {
            (None, _) => Way::Plaintext,
            (Some(_), Security::MutualTls) => Way::MutualTls,
            (Some(_), _) => Way::WithinHost,
        };
        self.shared.flows.note(local, source, source_ip, (way, record.started));
    }

    fn authorize_carried(
        &self,
        local: &LocalEndpoint,
        asked: (From<'_>, (Carried<'_>, &Hello)),
        record: &mut Record,
    ) -> Result<(), ProxyError> {
        let verdict = self.decide(local, asked, record);
        if verdict.allows() { Ok(()) } else { Err(ProxyError::Denied(verdict.to_string())) }
    }

    /// Decides whether a request may reach a service of this host; if not, what its caller is told.
    pub(super) fn authorize_request(
        &self,
        local: &LocalEndpoint,
        (from, request): (From<'_>, &Request<'_>),
        record: &mut Record,
    ) -> Result<(), Box<Reply>> {
        let verdict = self.decide(local, (from, (Carried::Request(request), &Hello::Unread)), record);
        if verdict.allows() { Ok(()) } else { Err(Box::new(Reply::denied_by(&verdict))) }
    }

    /// Decides, and notes what policies said without deciding.
    fn decide<'a>(
        &self,
        local: &'a LocalEndpoint,
        (from, (carried, hello)): (From<'a>, (Carried<'a>, &'a Hello)),
        record: &mut Record,
    ) -> Verdict<'a> {
        let Decision { verdict, dry_run, notes } = local.authorize(from, carried, hello);
        for note in notes {
            let word = match note.action {
                Action::Allow => "would allow",
                Action::Deny => "would deny",
                Action::Audit => "audit",
                // Never noted: it is asked, and what was said is.
                Action::Custom => "asks",
            };
            record.notes.push(format!("{}/{}: {word}", note.policy.namespace, note.policy.name));
            self.telemetry.metrics().policy_notes.inc();
        }
        if let Some(dry_run) = dry_run.filter(|dry_run| dry_run.allows() != verdict.allows()) {
            let metrics = self.telemetry.metrics();
            let (word, counter) = match dry_run.allows() {
                true => ("allowed", &metrics.dry_run_allowed),
                false => ("refused", &metrics.dry_run_refused),
            };
            counter.inc();
            record.dry_run = Some(format!("would be {word}: {dry_run}"));
        }
        verdict
    }

    /// Connects to the service's program.
    pub(super) async fn deliver(
        &self,
        local: &LocalEndpoint,
        record: &mut Record,
    ) -> Result<TcpStream, ProxyError> {
        let address = local.deliver;
        record.upstream = Some(address);
        if !local.is_known {
            let source = io::Error::new(io::ErrorKind::AddrNotAvailable, NO_CONTAINER);
            return Err(ProxyError::Deliver { address, source });
        }
        let connected = socket::connect(address, self.shared.mark, self.shared.limits.connect_timeout).await;
        connected.inspect(relay::reset_on_close).map_err(|source| ProxyError::Deliver { address, source })
    }
}

impl Worker {
    /// Whether a connection that was let through, by the state `decided_by`, is carried request by request. Waits for its
    /// first bytes where the port does not say what it speaks, or where a policy goes by the name that they ask for, and
    /// decides again where those are no request.
    pub(super) async fn speaks_http(
        self: &Arc<Self>,
        delivered: &mut Delivered,
        decided_by: &Arc<Snapshot>,
        (mut first, program): (First<'_>, &TcpStream),
        record: &mut Record,
    ) -> Result<bool, ProxyError> {
        let local = Arc::clone(&delivered.local);
        let is_http = match local.protocol {
            Protocol::Auto => {
                let told = arrives_as_http(&mut first, local.advertised.port(), program);
                self.while_allowed(delivered, decided_by, told).await?
            }
            declared => declared.is_http(),
        };
        if is_http {
            return Ok(true);
        }
        let may_be_tls = matches!(local.protocol, Protocol::Auto | Protocol::Tls | Protocol::Https);
        let is_asked_for = may_be_tls && local.policies.asks_for_server_names();
        if is_asked_for {
            let told = hello_of(&mut first, local.protocol, Some(program));
            delivered.hello = self.while_allowed(delivered, decided_by, told).await?;
        }
        if is_asked_for || local.protocol == Protocol::Auto {
            self.authorize_bytes(delivered, record).await?;
        }
        Ok(false)
    }

    /// Waits for what first bytes tell, for as long as a connection may be quiet and policies let it stand.
    pub(super) async fn while_allowed<T>(
        &self,
        delivered: &Delivered,
        decided_by: &Arc<Snapshot>,
        told: impl Future<Output = io::Result<T>>,
    ) -> Result<T, ProxyError> {
        let waiting = Delivered { hello: delivered.local.opening_hello(), ..delivered.clone() };
        let entry = self.open.enter(None, Some(waiting));
        entry.judge_again(decided_by, &self.shared.snapshot);
        tokio::select! {
            biased;
            reason = entry.until_closed() => Err(reason),
            told = told => told.map_err(ProxyError::ClientBroke),
            () = tokio::time::sleep(self.shared.limits.idle_timeout) => Err(ProxyError::Idle),
        }
    }
}

impl Record {
    /// The called side is a service of this host.
    pub(super) fn calls(&mut self, local: &LocalEndpoint, host: Option<Arc<str>>) {
        self.target = Party::registered(&local.identity, None, &local.labels);
        self.service_host = host;
    }
}
