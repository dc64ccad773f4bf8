//! The audit, as it is read.

use std::time::{Duration, UNIX_EPOCH};

use baremesh_ca::ledger::{AuditEntry, AuditFilter, MAX_READ, Outcome};
use http::StatusCode;
use serde_json::Value;

use super::told;
use crate::control::Server;
use crate::control::report::AuditReport;
use crate::control::socket::Denial;
use crate::output::to_unix;

/// Lines that are given where nobody says how many.
const USUAL: usize = 100;

/// What a query asks for: `since`, in seconds since 1970, and `limit`.
pub(super) fn filter(query: &str) -> Result<AuditFilter, Denial> {
    let mut filter = AuditFilter { since: UNIX_EPOCH, limit: USUAL };
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let bad = || {
            let error =
                format!("`{part}` is no filter: there are since and limit, with numbers up to {MAX_READ}");
            Denial::new(StatusCode::BAD_REQUEST, error)
        };
        let (key, value) = part.split_once('=').ok_or_else(bad)?;
        let number: u32 = value.parse().map_err(|_| bad())?;
        match key {
            "since" => filter.since = UNIX_EPOCH + Duration::from_secs(number.into()),
            "limit" if (1..=MAX_READ).contains(&(number as usize)) => filter.limit = number as usize,
            _ => return Err(bad()),
        }
    }
    Ok(filter)
}

/// The `limit` of a query.
pub(super) fn limit(query: &str) -> Result<usize, Denial> {
    Ok(filter(query)?.limit)
}

pub(super) fn entries(server: &Server, filter: AuditFilter) -> Result<Value, Denial> {
    let report = |entry: AuditEntry| AuditReport {
        at: to_unix(entry.record.at),
        who: entry.record.who,
        what: entry.record.what,
        refused: (entry.record.outcome == Outcome::Refused).then_some(entry.record.reason),
        version: entry.version,
        difference: entry.difference,
    };
    told(server.ca.ledger().audit_entries(filter)?.into_iter().map(report).collect::<Vec<_>>())
}
