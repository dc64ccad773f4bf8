//! Orders about certificates: taking them back, by host, by identity and one by one.

use std::sync::Arc;
use std::time::SystemTime;

use baremesh_ca::ledger::{RevokedRecord, Which};
use baremesh_model::name::Label;
use http::StatusCode;
use serde_json::Value;

use super::{audit, blocking, told};
use crate::control::report::{RevokeOrder, RevokedReport};
use crate::control::socket::Denial;
use crate::control::who::Who;
use crate::control::{Server, trust};
use crate::output::to_unix;

/// Shuts a host out: its credential first, so that it cannot come back while its endpoints are taken away, then what it
/// was issued.
pub(super) async fn shut_out(server: Arc<Server>, host: Label, who: Who) -> Result<Value, Denial> {
    let (certificates, by) = (Which::Host(host.to_string()), who.to_string());
    let revoking = {
        let host = host.clone();
        move |server: &Server| {
            if !server.ca.ledger().revoke_host(&host)? {
                let error = format!("no host {host} has joined: `baremesh host list` shows those that have");
                return Err(Denial::new(StatusCode::NOT_FOUND, error));
            }
            audit(server, &who, format!("revoke host {host}"), None);
            server.grants.refresh()?;
            server.membership.send_modify(|generation| *generation += 1);
            Ok(())
        }
    };
    blocking(server.clone(), revoking).await?;
    let revoked = take_back(&server, certificates, by).await;
    server.flows.forget(&host);
    let known = server.control.status().into_iter().find(|status| status.host == host);
    for registration in known.into_iter().flat_map(|status| status.registrations) {
        let deregistered = server.control.deregister(host.clone(), registration.service).await;
        deregistered.map_err(|error| Denial::failed(&error))?;
    }
    told(revoked?)
}

/// Takes certificates back of an identity, or one.
pub(super) async fn revoke(server: Arc<Server>, wanted: RevokeOrder, who: Who) -> Result<Value, Denial> {
    let which = match (wanted.identity, wanted.serial) {
        (Some(identity), None) => Which::Identity(identity),
        (None, Some(serial)) => Which::Serial(serial),
        _ => {
            let error = "either an identity or a serial number says which certificates are revoked";
            return Err(Denial::new(StatusCode::BAD_REQUEST, error));
        }
    };
    let revoked = take_back(&server, which, who.to_string()).await?;
    // A node credential among them opens nothing any more.
    server.membership.send_modify(|generation| *generation += 1);
    told(revoked)
}

/// Takes certificates back, and tells every agent.
async fn take_back(server: &Arc<Server>, which: Which, who: String) -> Result<Vec<RevokedReport>, Denial> {
    let revoking = move |server: &Server| Ok(server.ca.revoke(&which, &who, SystemTime::now())?);
    let revoked = blocking(server.clone(), revoking).await?;
    trust::publish(server).await.map_err(|error| Denial::failed(&format_args!("{error:#}")))?;
    Ok(revoked.into_iter().map(revoked_report).collect())
}

/// What is revoked and has not ended.
pub(super) fn revoked(server: &Server) -> Result<Value, Denial> {
    let revoked = server.ca.ledger().revoked(SystemTime::now())?;
    told(revoked.into_iter().map(revoked_report).collect::<Vec<_>>())
}

fn revoked_report(record: RevokedRecord) -> RevokedReport {
    RevokedReport {
        serial: record.serial,
        identity: record.identity,
        host: record.host,
        revoked_at: to_unix(record.revoked_at),
        not_after: to_unix(record.not_after),
    }
}
