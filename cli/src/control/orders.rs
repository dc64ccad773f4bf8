//! What operators ask for, over the administration socket or from afar with a credential, and who is told what of it.
//! Every order that changes something is in the audit, with who gave it, whether it was carried out or refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use baremesh_ca::ledger::{AuditRecord, HostRecord, Outcome, TokenHost, TokenRecord};
use baremesh_ca::service::{Refusal, TOKEN_LIFETIME, TokenRequest};
use baremesh_model::grant::{AddressGrant, Grant};
use baremesh_model::name::Label;
use baremesh_registry::diagnostic::Diagnostic;
use baremesh_registry::set::Refused;
use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::endpoints::{Access, Endpoint, Verb};
use super::report::{
    Fault, HostReport, HostStatus, RegistrationStatus, StatusReport, TokenAnswer, TokenOrder, TokenReport,
};
use super::socket::Denial;
use super::who::Who;
use super::{Server, trust};
use crate::output::{in_words, to_unix};

/// The audit, as it is read.
mod audit;
/// What signs.
mod authority;
/// Certificates.
mod certificates;
/// Resources: applying, deleting, listing, analysing.
mod change;
/// What policies do with the connections of the last hour.
mod flows;
/// Adding and removing operators.
mod operators;
/// Taking changes back.
mod rollback;

pub(super) use change::{note_changes_by_hand, note_found_at_start};

/// An order as it came.
pub(super) struct Order<'a> {
    pub(super) endpoint: &'static Endpoint<Verb>,
    /// The name in its path, where it has one.
    pub(super) name: &'a str,
    pub(super) query: &'a str,
    pub(super) body: Bytes,
    /// Who gave it.
    pub(super) who: Who,
}

/// Carries an order out, if whoever gave it may.
pub(super) async fn carry_out(server: Arc<Server>, order: Order<'_>) -> Result<Value, Denial> {
    let Order { endpoint, name, query, body, who } = order;
    permit(&server, endpoint, &who).await?;
    match endpoint.call {
        Verb::Apply => change::apply(server, read(&body)?, who).await,
        Verb::Analyze => {
            let request = read(&body)?;
            blocking(server, move |server| change::analyze(server, &request)).await
        }
        Verb::Delete => change::delete(server, read(&body)?, who).await,
        Verb::Resources => change::list(&server, query),
        Verb::Versions => {
            let limit = audit::limit(query)?;
            blocking(server, move |server| rollback::versions(server, limit)).await
        }
        Verb::Mtls => blocking(server, flows::strict).await,
        Verb::Simulate => {
            let request = read(&body)?;
            blocking(server, move |server| flows::simulate(server, &request)).await
        }
        Verb::Rollback => rollback::roll_back(server, read(&body)?, who).await,
        Verb::CreateToken => {
            let wanted = read(&body)?;
            blocking(server, move |server| create_token(server, &wanted, who.to_string())).await
        }
        Verb::Tokens => blocking(server, tokens).await,
        Verb::DeleteToken => {
            let id = name.to_owned();
            blocking(server, move |server| delete_token(server, &id, &who)).await
        }
        Verb::Hosts => blocking(server, hosts).await,
        Verb::RevokeHost => certificates::shut_out(server, label(name)?, who).await,
        Verb::RevokedCertificates => blocking(server, certificates::revoked).await,
        Verb::RevokeCertificates => certificates::revoke(server, read(&body)?, who).await,
        Verb::Authority => blocking(server, authority::show).await,
        Verb::Bundle => blocking(server, authority::bundle).await,
        Verb::Rotate => authority::rotate(server, read(&body)?, who.to_string()).await,
        Verb::RequestChain => {
            blocking(server, move |server| authority::request(server, &who.to_string())).await
        }
        Verb::InstallChain => authority::install(server, read(&body)?, who.to_string()).await,
        Verb::DropRoot => authority::drop_root(server, read(&body)?, who.to_string()).await,
        Verb::Status => blocking(server, status).await,
        Verb::ClearAlarm => clear_alarm(server, who).await,
        Verb::AddOperator => {
            let wanted = read(&body)?;
            blocking(server, move |server| operators::add(server, &wanted, &who)).await
        }
        Verb::Operators => blocking(server, operators::list).await,
        Verb::RemoveOperator => {
            let name = label(name)?;
            blocking(server, move |server| operators::remove(server, &name, &who)).await
        }
        Verb::Audit => {
            let filter = audit::filter(query)?;
            blocking(server, move |server| audit::entries(server, filter)).await
        }
    }
}

/// Refuses an order that the role is not enough for.
async fn permit(server: &Arc<Server>, endpoint: &'static Endpoint<Verb>, who: &Who) -> Result<(), Denial> {
    let met = match endpoint.access {
        Access::Operator(need) => who.role().meets(need),
        // Not a rule for orders.
        Access::Node | Access::NodeOrEnded | Access::Token => false,
    };
    if met {
        return Ok(());
    }
    let reason = format!("{who} is {}, and that is not enough for this: ask an admin", who.role());
    let (who, what, said) = (who.clone(), format!("{} {}", endpoint.method, endpoint.path), reason.clone());
    blocking(server.clone(), move |server| {
        audit(server, &who, what, Some(&said));
        Ok(())
    })
    .await?;
    Err(Denial::new(StatusCode::FORBIDDEN, reason))
}

fn label(text: &str) -> Result<Label, Denial> {
    Label::new(text).map_err(|error| Denial::new(StatusCode::BAD_REQUEST, error.to_string()))
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
fn audit(server: &Server, who: &Who, what: String, refused: Option<&str>) {
    let record = record(who, what, refused);
    if let Err(error) = server.ca.ledger().audit(&record) {
        tracing::error!("the order could not be recorded: {error}");
    }
}

/// A record of an order, which goes into the log as well.
fn record(who: &Who, what: String, refused: Option<&str>) -> AuditRecord {
    tracing::info!(%who, what, refused, "an order");
    AuditRecord {
        at: SystemTime::now(),
        who: who.to_string(),
        what,
        outcome: if refused.is_some() { Outcome::Refused } else { Outcome::Granted },
        reason: refused.unwrap_or_default().to_owned(),
    }
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

fn delete_token(server: &Server, id: &str, who: &Who) -> Result<Value, Denial> {
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
        warnings: {
            let consul = server.consul.as_ref().map(|consul| consul.warnings());
            [trust::warnings(server), consul.unwrap_or_default()].concat()
        },
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

async fn clear_alarm(server: Arc<Server>, who: Who) -> Result<Value, Denial> {
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
