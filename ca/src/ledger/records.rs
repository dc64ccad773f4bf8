//! Issued certificates, and the audit: who asked for what, and how it ended. Both are bounded.

use std::time::{Duration, SystemTime};

use rusqlite::{Connection, Row, params};

use super::{Ledger, LedgerError};
use crate::clock::{from_unix, to_unix};

/// How long the record of a certificate is kept after the certificate ended.
pub const ISSUED_KEPT: Duration = Duration::from_secs(30 * 86_400);
/// How many audit records of what was done are kept.
pub const AUDIT_KEPT: i64 = 100_000;
/// How many of refusals are kept. They have a bound of their own: a host that is refused as often as it may ask pushes out
/// no record of what was done.
pub const REFUSALS_KEPT: i64 = 100_000;
/// How many records more than that there may be before the oldest are cleared away.
const CLEARED_EVERY: i64 = 256;
/// How many ended records one write clears away at most, so that no write takes long.
const CLEARED_AT_ONCE: i64 = 256;

/// That a certificate was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssueRecord {
    /// The serial number in hexadecimal.
    pub serial: String,
    /// The identity, as its URI.
    pub identity: String,
    /// The host that asked.
    pub host: String,
    /// When it was issued.
    pub issued_at: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Granted,
    /// Refused.
    Refused,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Refused => "refused",
        }
    }
}

/// One line of the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// When.
    pub at: SystemTime,
    /// Who asked: a host or an operator.
    pub who: String,
    /// For what.
    pub what: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, where there is something to say.
    pub reason: String,
}

impl Ledger {
    /// Records certificates, all or none, and clears away what ended long ago.
    pub(crate) fn record_issued(&self, records: &[IssueRecord], now: SystemTime) -> Result<(), LedgerError> {
        self.write(|connection| {
            for record in records {
                insert_issued(connection, record)?;
            }
            let before = to_unix(now).saturating_sub(ISSUED_KEPT.as_secs() as i64);
            connection.execute(
                "DELETE FROM issued WHERE serial IN (SELECT serial FROM issued WHERE not_after < ?1 LIMIT ?2)",
                params![before, CLEARED_AT_ONCE],
            )?;
            Ok(())
        })
    }

    /// The certificates that were issued to `host` and have not ended at `now`, the latest first.
    pub fn issued_to(&self, host: &str, now: SystemTime) -> Result<Vec<IssueRecord>, LedgerError> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(
            "SELECT serial, identity, host, issued_at, not_after FROM issued
             WHERE host = ?1 AND not_after >= ?2 ORDER BY issued_at DESC, rowid DESC",
        )?;
        let rows = statement.query_map(params![host, to_unix(now)], read_issued)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Adds one line to the audit.
    pub fn audit(&self, record: &AuditRecord) -> Result<(), LedgerError> {
        self.write(|connection| Ok(append(connection, record).map(drop)?))
    }

    /// The latest lines of the audit, the last one first.
    pub fn audit_records(&self, limit: usize) -> Result<Vec<AuditRecord>, LedgerError> {
        let connection = self.lock();
        let mut statement = connection
            .prepare_cached("SELECT at, who, what, outcome, reason FROM audit ORDER BY id DESC LIMIT ?1")?;
        let limit = i64::try_from(limit).unwrap_or(AUDIT_KEPT);
        let rows = statement.query_map([limit], read_audit)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// Adds a line within a transaction that does more, and returns its number.
pub(super) fn append(connection: &Connection, record: &AuditRecord) -> rusqlite::Result<i64> {
    let AuditRecord { at, who, what, outcome, reason } = record;
    connection
        .prepare_cached("INSERT INTO audit (at, who, what, outcome, reason) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![to_unix(*at), who, what, outcome.as_str(), reason])?;
    let appended = connection.last_insert_rowid();
    if appended % CLEARED_EVERY == 0 {
        for (outcome, kept) in [(Outcome::Granted, AUDIT_KEPT), (Outcome::Refused, REFUSALS_KEPT)] {
            clear(connection, outcome, kept)?;
        }
    }
    Ok(appended)
}

/// Clears away what is older than the latest `kept` records of that outcome.
fn clear(connection: &Connection, outcome: Outcome, kept: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM audit WHERE outcome = ?1 AND id <= (
                SELECT id FROM audit WHERE outcome = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        )?
        .execute(params![outcome.as_str(), kept])?;
    Ok(())
}

/// Records a certificate within a transaction that does more.
pub(super) fn insert_issued(connection: &Connection, record: &IssueRecord) -> rusqlite::Result<()> {
    let (issued_at, not_after) = (to_unix(record.issued_at), to_unix(record.not_after));
    connection
        .prepare_cached(
            "INSERT INTO issued (serial, identity, host, issued_at, not_after) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![record.serial, record.identity, record.host, issued_at, not_after])?;
    Ok(())
}

fn read_issued(row: &Row<'_>) -> rusqlite::Result<IssueRecord> {
    Ok(IssueRecord {
        serial: row.get("serial")?,
        identity: row.get("identity")?,
        host: row.get("host")?,
        issued_at: from_unix(row.get("issued_at")?),
        not_after: from_unix(row.get("not_after")?),
    })
}

pub(super) fn read_audit(row: &Row<'_>) -> rusqlite::Result<AuditRecord> {
    let outcome: String = row.get("outcome")?;
    Ok(AuditRecord {
        at: from_unix(row.get("at")?),
        who: row.get("who")?,
        what: row.get("what")?,
        outcome: if outcome == Outcome::Granted.as_str() { Outcome::Granted } else { Outcome::Refused },
        reason: row.get("reason")?,
    })
}
