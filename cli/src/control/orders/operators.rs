//! Adding, listing and removing operators.

use std::time::{Duration, SystemTime};

use baremesh_ca::client::CONTROL_PORT;
use baremesh_ca::issued::chain_to_pem;
use baremesh_ca::ledger::OperatorRecord;
use baremesh_ca::service::{OPERATOR_LIFETIME, OperatorRequest};
use baremesh_model::name::Label;
use baremesh_model::operator::Role;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde_json::{Value, json};

use super::told;
use crate::control::Server;
use crate::control::report::{OperatorAnswer, OperatorOrder, OperatorReport};
use crate::control::socket::Denial;
use crate::control::who::Who;
use crate::output::to_unix;

pub(super) fn add(server: &Server, wanted: &OperatorOrder, who: &Who) -> Result<Value, Denial> {
    let bad = |error: &dyn std::fmt::Display| Denial::new(StatusCode::BAD_REQUEST, error.to_string());
    let name = Label::new(&wanted.name).map_err(|error| bad(&error))?;
    let namespaces = wanted.namespaces.iter().map(|namespace| Label::new(namespace));
    let namespaces = namespaces.collect::<Result<_, _>>().map_err(|error| bad(&error))?;
    let role = Role::new(&wanted.role, namespaces).map_err(|error| bad(&error))?;
    let request = STANDARD.decode(&wanted.request).map_err(|_| bad(&"`request` is not base64"))?;
    let lifetime = wanted.lifetime_seconds.map_or(OPERATOR_LIFETIME, Duration::from_secs);
    let (replace, who) = (wanted.replace, who.to_string());
    let asked = OperatorRequest { name, role, request, lifetime, replace, who };
    let signed = server.ca.add_operator(&asked, SystemTime::now())?;
    // A credential before this one has ended: what is open with it is cut.
    server.membership.send_modify(|generation| *generation += 1);
    let bundle = server.ca.bundle().map_err(|error| Denial::failed(&error))?;
    told(OperatorAnswer {
        chain: chain_to_pem(&signed.chain),
        roots: bundle.to_pem(),
        trust_domain: server.trust_domain.to_string(),
        not_after: to_unix(signed.not_after),
        port: server.listen.first().map_or(CONTROL_PORT, |address| address.port()),
    })
}

pub(super) fn list(server: &Server) -> Result<Value, Denial> {
    let report = |record: OperatorRecord| OperatorReport {
        name: record.name.to_string(),
        role: record.role.name().to_owned(),
        namespaces: record.role.namespaces().map(ToString::to_string).collect(),
        issued_at: to_unix(record.issued_at),
        not_after: to_unix(record.not_after),
    };
    told(server.ca.ledger().operators()?.into_iter().map(report).collect::<Vec<_>>())
}

pub(super) fn remove(server: &Server, name: &Label, who: &Who) -> Result<Value, Denial> {
    if !server.ca.remove_operator(name, &who.to_string(), SystemTime::now())? {
        let error = format!("there is no operator {name}: `baremesh operator list` shows them");
        return Err(Denial::new(StatusCode::NOT_FOUND, error));
    }
    tracing::info!(operator = %name, %who, "an operator was removed");
    server.membership.send_modify(|generation| *generation += 1);
    Ok(json!({}))
}
