//! What operators ask for over the administration socket, and who is told what of it. Every order that changes
//! something is in the audit, with the uid that gave it, whether it was carried out or refused.

/// Orders about what signs.
mod authority;
/// Orders about certificates.
mod certificates;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use baremesh_ca::ledger::{AuditRecord, HostRecord, Outcome, TokenHost, TokenRecord};
use baremesh_ca::service::{Refusal, TOKEN_LIFETIME, TokenRequest};
use baremesh_model::grant::{AddressGrant, Grant};
use baremesh_model::mesh::ResourceId;
use baremesh_model::name::{Key, Label};
use baremesh_registry::diagnostic::Diagnostic;
use baremesh_registry::format;
use baremesh_registry::resource::{Located, Resource};
use baremesh_registry::set::{Loaded, Refused};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Server;
use super::report::{
    AnalyzeRequest, ApplyRequest, Changes, DeleteRequest, Fault, HostReport, HostStatus, RegistrationStatus,
    StatusReport, TokenAnswer, TokenOrder, TokenReport,
};
use super::resources::{self, Beside, Filter, Mode};
use super::socket::Denial;
use crate::output::{in_words, to_unix};
use crate::verbs::values;

/// How long `apply` waits until what it wrote is in force.
const IN_FORCE: Duration = Duration::from_secs(5);

/// An order as it came.
pub(super) struct Order {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) body: Bytes,
    /// Who gave it, for the audit.
    pub(super) who: String,
}

/// Carries an order out.
pub(super) async fn carry_out(server: Arc<Server>, order: Order) -> Result<Value, Denial> {
    let path: Vec<&str> = order.path.split('/').skip(1).collect();
    match (order.method.as_str(), path.as_slice()) {
        ("POST", ["apply"]) => apply(server, read(&order.body)?, order.who).await,
        ("POST", ["analyze"]) => {
            let request = read(&order.body)?;
            blocking(server, move |server| analyze(server, &request)).await
        }
        ("POST", ["delete"]) => delete(server, read(&order.body)?, order.who).await,
        ("GET", ["resources"]) => list(&server, &order.query),
        ("POST", ["token"]) => {
            let wanted = read(&order.body)?;
            blocking(server, move |server| create_token(server, &wanted, order.who)).await
        }
        ("GET", ["tokens"]) => blocking(server, tokens).await,
        ("DELETE", ["tokens", id]) => {
            let id = (*id).to_owned();
            blocking(server, move |server| delete_token(server, &id, &order.who)).await
        }
        ("GET", ["hosts"]) => blocking(server, hosts).await,
        ("POST", ["hosts", host, "revoke"]) => {
            let host =
                Label::new(host).map_err(|error| Denial::new(StatusCode::BAD_REQUEST, error.to_string()))?;
            certificates::shut_out(server, host, order.who).await
        }
        ("GET", ["certificates", "revoked"]) => blocking(server, certificates::revoked).await,
        ("POST", ["certificates", "revoke"]) => {
            let wanted = read(&order.body)?;
            certificates::revoke(server, wanted, order.who).await
        }
        ("GET", ["ca"]) => blocking(server, authority::show).await,
        ("POST", ["ca", "rotate"]) => authority::rotate(server, read(&order.body)?, order.who).await,
        ("POST", ["ca", "csr"]) => {
            blocking(server, move |server| authority::request(server, &order.who)).await
        }
        ("POST", ["ca", "chain"]) => authority::install(server, read(&order.body)?, order.who).await,
        ("POST", ["ca", "drop-root"]) => authority::drop_root(server, read(&order.body)?, order.who).await,
        ("GET", ["status"]) => blocking(server, status).await,
        ("POST", ["alarm", "clear"]) => clear_alarm(server, order.who).await,
        _ => Err(Denial::new(
            StatusCode::NOT_FOUND,
            "there is no such order: is the command of another version than the control server?",
        )),
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Denial> {
    serde_json::from_slice(body)
        .map_err(|error| Denial::new(StatusCode::BAD_REQUEST, format!("the request cannot be read: {error}")))
}

fn told(value: impl Serialize) -> Result<Value, Denial> {
    serde_json::to_value(value).map_err(|error| Denial::failed(&error))
}

/// Runs what waits for the disk.
async fn blocking<T: Send + 'static>(
    server: Arc<Server>,
    work: impl FnOnce(&Server) -> Result<T, Denial> + Send + 'static,
) -> Result<T, Denial> {
    let done = tokio::task::spawn_blocking(move || work(&server)).await;
    done.unwrap_or_else(|error| Err(Denial::failed(&error)))
}

impl From<Refused> for Denial {
    fn from(refused: Refused) -> Self {
        let text: Vec<_> = refused.0.iter().map(ToString::to_string).collect();
        let findings = refused.0.iter().map(Diagnostic::to_json).collect();
        let error = text.join("\n").trim_end().to_owned();
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, fault: Fault { error, findings } }
    }
}

impl From<Refusal> for Denial {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.status(), refusal.to_string())
    }
}

impl From<baremesh_ca::ledger::LedgerError> for Denial {
    fn from(error: baremesh_ca::ledger::LedgerError) -> Self {
        Self::failed(&error)
    }
}

/// Notes what was done or refused. That the note fails must not undo what was done.
fn audit(server: &Server, who: &str, what: String, refused: Option<&str>) {
    tracing::info!(who, what, refused, "an order");
    let record = AuditRecord {
        at: SystemTime::now(),
        who: who.to_owned(),
        what,
        outcome: if refused.is_some() { Outcome::Refused } else { Outcome::Granted },
        reason: refused.unwrap_or_default().to_owned(),
    };
    if let Err(error) = server.ca.ledger().audit(&record) {
        tracing::error!("the order could not be recorded: {error}");
    }
}

async fn apply(server: Arc<Server>, request: ApplyRequest, who: String) -> Result<Value, Denial> {
    let (mode, name) = (Mode::of_dry_run(request.dry_run), request.name.clone());
    let changing = move |server: &Server| {
        let beside = Beside { served: Some(&server.trust_domain), registered: registered(server) };
        let applied = resources::apply(&server.directory, &request, beside);
        changed(server, applied, &who, &format!("apply {name}"), mode)
    };
    let changed = blocking(server.clone(), changing).await?;
    settled(&server, changed).await
}

fn analyze(server: &Server, request: &AnalyzeRequest) -> Result<Value, Denial> {
    let beside = Beside { served: None, registered: registered(server) };
    told(resources::analyze(&server.directory, request, beside)?)
}

/// The services and workloads that are published, those of hosts among them.
fn registered(server: &Server) -> Vec<Located<Resource>> {
    let published = server.control.published();
    let resources = published.iter().filter_map(|(_, text)| {
        let document = serde_json::from_str(text).ok()?;
        // What a newer version wrote is nothing that this one can judge.
        match format::decode(&document).ok()? {
            resource @ (Resource::Service(_) | Resource::Workload(_)) => {
                Some(resources::registered(resource))
            }
            _ => None,
        }
    });
    resources.collect()
}

async fn delete(server: Arc<Server>, request: DeleteRequest, who: String) -> Result<Value, Denial> {
    let bad = |error: String| Denial::new(StatusCode::BAD_REQUEST, error);
    let label = |text: &str| Label::new(text).map_err(|error| bad(error.to_string()));
    let key = Key::new(label(&request.namespace)?, label(&request.name)?);
    let id = ResourceId { kind: values::kind(&request.kind).map_err(bad)?, key };
    let mode = Mode::of_dry_run(request.dry_run);
    let changing = move |server: &Server| {
        let deleted = resources::delete(&server.directory, &id, mode);
        changed(server, deleted, &who, &format!("delete {id}"), mode)
    };
    let changed = blocking(server.clone(), changing).await?;
    settled(&server, changed).await
}

/// A change of the directory that was made, and the set that it led to.
struct Changed {
    changes: Changes,
    wanted: Option<Loaded>,
}

fn changed(
    server: &Server,
    result: Result<Changes, Refused>,
    who: &str,
    what: &str,
    mode: Mode,
) -> Result<Changed, Denial> {
    if mode == Mode::DryRun {
        return Ok(Changed { changes: result?, wanted: None });
    }
    match result {
        Ok(changes) => {
            for change in changes.changes.iter().filter(|change| change.effect != "unchanged") {
                let (kind, namespace, name) = (&change.kind, &change.namespace, &change.name);
                audit(server, who, format!("{what}: {kind} {namespace}/{name} {}", change.effect), None);
            }
            // Somebody else's change since may be at fault: then it is not in force, and `status` says why.
            Ok(Changed { changes, wanted: server.directory.load().ok() })
        }
        Err(refused) => {
            audit(server, who, what.to_owned(), Some(&refused.to_string()));
            Err(refused.into())
        }
    }
}

/// Waits until what was written is in force, so that whoever applies a policy can count on it.
async fn settled(server: &Server, changed: Changed) -> Result<Value, Denial> {
    let Changed { mut changes, wanted } = changed;
    if let Some(wanted) = wanted {
        let mut in_force = server.in_force.clone();
        let reached = timeout(IN_FORCE, in_force.wait_for(|in_force| *in_force.loaded == wanted)).await;
        changes.in_force = matches!(reached, Ok(Ok(_)));
    }
    told(changes)
}

fn list(server: &Server, query: &str) -> Result<Value, Denial> {
    let bad = |error: String| Denial::new(StatusCode::BAD_REQUEST, error);
    let mut filter = Filter::default();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some(("kind", kind)) => filter.kind = Some(values::kind(kind).map_err(bad)?),
            Some(("namespace", namespace)) => filter.namespace = Some(namespace.to_owned()),
            Some(("name", name)) => filter.name = Some(name.to_owned()),
            _ => return Err(bad(format!("`{part}` is no filter: there are kind, namespace and name"))),
        }
    }
    let loaded = server.in_force.borrow().loaded.clone();
    told(resources::list(&loaded, &filter))
}

fn create_token(server: &Server, wanted: &TokenOrder, who: String) -> Result<Value, Denial> {
    let bad = |error: String| Denial::new(StatusCode::BAD_REQUEST, error);
    let grants = wanted.services.iter().map(|service| Grant::parse(service));
    let grants = grants.collect::<Result<Vec<_>, _>>().map_err(|error| bad(error.to_string()))?;
    let addresses = wanted.addresses.iter().map(|address| AddressGrant::parse(address));
    let addresses = addresses.collect::<Result<Vec<_>, _>>().map_err(|error| bad(error.to_string()))?;
    let host = wanted.host.as_deref().map(Label::new).transpose().map_err(|error| bad(error.to_string()))?;
    let host = match (host, wanted.rejoin) {
        (Some(host), true) => TokenHost::Rejoin(host),
        (Some(host), false) => TokenHost::Only(host),
        (None, false) => TokenHost::Any,
        (None, true) => return Err(bad("`rejoin` needs the host's name".to_owned())),
    };
    let lifetime = wanted.expires_seconds.map_or(TOKEN_LIFETIME, Duration::from_secs);
    let now = SystemTime::now();
    let token = server.ca.create_token(TokenRequest { host, grants, addresses, lifetime, who }, now)?;
    told(TokenAnswer {
        token: token.reveal(),
        id: token.id().to_owned(),
        expires_at: to_unix(now + lifetime),
        port: server.listen.first().map_or(baremesh_ca::client::CONTROL_PORT, |address| address.port()),
    })
}

fn tokens(server: &Server) -> Result<Value, Denial> {
    let report = |record: TokenRecord| {
        let (host, rejoin) = match record.invitation.host {
            TokenHost::Any => (None, false),
            TokenHost::Only(host) => (Some(host), false),
            TokenHost::Rejoin(host) => (Some(host), true),
        };
        TokenReport {
            id: record.id,
            host: host.map(|host| host.to_string()),
            rejoin,
            services: record.invitation.grants.iter().map(ToString::to_string).collect(),
            addresses: record.invitation.addresses.iter().map(ToString::to_string).collect(),
            expires_at: to_unix(record.invitation.expires_at),
            redeemed_by: record.redeemed_by.map(|host| host.to_string()),
        }
    };
    told(server.ca.ledger().tokens()?.into_iter().map(report).collect::<Vec<_>>())
}

fn delete_token(server: &Server, id: &str, who: &str) -> Result<Value, Denial> {
    let (what, missing) =
        (format!("delete token {id}"), "there is no such token: `baremesh token list` shows them");
    if !server.ca.ledger().delete_token(id)? {
        return Err(Denial::new(StatusCode::NOT_FOUND, missing));
    }
    audit(server, who, what, None);
    Ok(json!({}))
}

fn hosts(server: &Server) -> Result<Value, Denial> {
    let report = |record: HostRecord| {
        let granted = server.grants.of(&record.name);
        HostReport {
            services: granted.services.iter().map(ToString::to_string).collect(),
            addresses: granted.addresses.iter().map(ToString::to_string).collect(),
            name: record.name.to_string(),
            joined_at: to_unix(record.joined_at),
            revoked: record.revoked,
        }
    };
    told(server.ca.ledger().hosts()?.into_iter().map(report).collect::<Vec<_>>())
}

fn status(server: &Server) -> Result<Value, Denial> {
    let mut hosts: BTreeMap<Label, HostStatus> = BTreeMap::new();
    for record in server.ca.ledger().hosts()? {
        let host =
            HostStatus { host: record.name.to_string(), revoked: record.revoked, ..HostStatus::default() };
        hosts.insert(record.name, host);
    }
    for known in server.control.status() {
        let host = hosts.entry(known.host.clone()).or_default();
        host.host = known.host.to_string();
        host.connected = known.connected;
        host.agent_version = Some(known.agent_version).filter(|version| !version.is_empty());
        host.acked = (known.acked > 0).then_some(known.acked);
        host.nack = known.nack.map(|nack| format!("version {}: {}", nack.version, nack.reason));
        host.lease_seconds = known.lease.map(|lease| lease.as_secs());
        let (refused, without): (Vec<_>, Vec<_>) =
            known.refused.into_iter().partition(|outcome| outcome.refused.is_some());
        let accepted = known.registrations.into_iter().map(|registration| {
            let service = registration.service.to_string();
            let without = without.iter().find(|outcome| outcome.service == service);
            let without = without.and_then(|outcome| outcome.without.clone());
            let health = registration.health.word().to_owned();
            RegistrationStatus { service, held: registration.held, without, health }
        });
        let refused = refused.into_iter().map(|outcome| RegistrationStatus {
            service: outcome.service,
            held: outcome.refused,
            without: None,
            health: String::new(),
        });
        host.registrations = accepted.chain(refused).collect();
    }
    let in_force = server.in_force.borrow().clone();
    let unread = server.files.borrow().last_error.as_ref().map(ToString::to_string);
    told(StatusReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        trust_domain: server.trust_domain.to_string(),
        listen: server.listen.iter().map(ToString::to_string).collect(),
        certificate_not_after: to_unix(server.certificate.not_after()),
        resources: in_force.loaded.places.len(),
        resources_refused: unread.or(in_force.refused),
        warnings: server.ca.ending(SystemTime::now()),
        alarm: server.control.alarm().map(|alarm| {
            let since = in_words(alarm.since.elapsed());
            format!(
                "{} of {} hosts fell silent at once {since} ago, and their endpoints are kept: is this host's network up? \
                 `baremesh alarm clear` if they are really gone",
                alarm.silent, alarm.hosts
            )
        }),
        state_version: server.control.versions().borrow().unwrap_or_default(),
        hosts: hosts.into_values().collect(),
    })
}

async fn clear_alarm(server: Arc<Server>, who: String) -> Result<Value, Denial> {
    let gone = server.control.clear_alarm().await.map_err(|error| Denial::failed(&error))?;
    let gone: Vec<_> = gone.iter().map(ToString::to_string).collect();
    let what = format!("clear the alarm: {} hosts are gone", gone.len());
    blocking(server, move |server| {
        audit(server, &who, what, None);
        Ok(())
    })
    .await?;
    Ok(json!({ "gone": gone }))
}
