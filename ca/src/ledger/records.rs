//! Issued certificates, and the audit: who asked for what, and how it ended. Both are bounded.

use std::time::{Duration, SystemTime};

use baremesh_model::name::Label;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::hosts::find;
use super::revoked::good_until;
use super::{Ledger, LedgerError};
use crate::clock::{from_unix, to_unix};

/// How long the record of a certificate is kept after the certificate ended.
pub const ISSUED_KEPT: Duration = Duration::from_secs(30 * 86_400);
/// How many audit records of what was done are kept.
pub const AUDIT_KEPT: i64 = 100_000;
/// How many of refusals are kept. They have a bound of their own: a host that is refused as often as it may ask pushes out
/// no record of what was done.
pub const REFUSALS_KEPT: i64 = 100_000;
/// How many bytes of what was asked for, and of a reason, are kept.
const MAX_TEXT: usize = 4_096;
/// How many records more than that there may be before the oldest are cleared away.
const CLEARED_EVERY: i64 = 256;
/// How many ended records one write clears away at most, so that no write takes long.
const CLEARED_AT_ONCE: i64 = 256;

/// How many certificates of one host may be valid at a time: what a host has that is shut out must fit into the list of what
/// is revoked, several times. With two of a service at a time, more than a host has services.
pub const MAX_VALID_OF_HOST: usize = 2_048;

/// What became of certificates that were to be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// All are.
    All,
    /// None is: the host was shut out or joined anew meanwhile.
    NoMember,
    /// None is: the host would have more than `MAX_VALID_OF_HOST`.
    TooMany,
}

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
    /// The fingerprint of the root that its chain leads to; empty of one from before this was written down.
    pub root: String,
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
    /// Records certificates that are issued to a host of that generation, all or none, and clears away what ended long
    /// ago. What is not recorded is not handed out, and so nothing is that a revocation does not know of.
    pub(crate) fn record_issued(
        &self,
        (host, generation): (&Label, u32),
        records: &[IssueRecord],
        now: SystemTime,
    ) -> Result<Recorded, LedgerError> {
        self.write(|connection| {
            let is_member = find(connection, host)?
                .is_some_and(|record| !record.revoked && record.generation == generation);
            if !is_member {
                return Ok(Recorded::NoMember);
            }
            let valid: i64 = connection.prepare_cached(
                "SELECT count(*) FROM issued WHERE host = ?1 AND not_after >= ?2",
            )?.query_row(params![host.as_str(), to_unix(now)], |row| row.get(0))?;
            if usize::try_from(valid).unwrap_or(usize::MAX).saturating_add(records.len()) > MAX_VALID_OF_HOST {
                return Ok(Recorded::TooMany);
            }
            for record in records {
                insert_issued(connection, record)?;
            }
            let before = to_unix(now).saturating_sub(ISSUED_KEPT.as_secs() as i64);
            connection.execute(
                "DELETE FROM issued WHERE serial IN (SELECT serial FROM issued WHERE not_after < ?1 LIMIT ?2)",
                params![before, CLEARED_AT_ONCE],
            )?;
            Ok(Recorded::All)
        })
    }

    /// The certificates that were issued to `host` and have not ended at `now`, the latest first.
    pub fn issued_to(&self, host: &str, now: SystemTime) -> Result<Vec<IssueRecord>, LedgerError> {
        let connection = self.lock()?;
        let mut statement = connection.prepare_cached(
            "SELECT serial, identity, host, issued_at, not_after, root FROM issued
             WHERE host = ?1 AND not_after >= ?2 ORDER BY issued_at DESC, rowid DESC",
        )?;
        let rows = statement.query_map(params![host, to_unix(now)], read_issued)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// How many certificates are good for something, lead to that root or to one that was not written down, and are the latest of
    /// their identity on their host: what nothing has taken the place of. Those of hosts that were shut out do not count,
    /// and those of operators do.
    pub fn in_use_under(&self, root: &str, now: SystemTime) -> Result<usize, LedgerError> {
        let connection = self.lock()?;
        let count: i64 = connection.query_row(
            &format!("SELECT count(*) FROM issued AS one WHERE root IN (?1, '') AND {} >= ?2
             AND (host IN (SELECT name FROM hosts WHERE revoked = 0) OR serial IN (SELECT serial FROM operators))
             AND serial NOT IN (SELECT serial FROM revoked)
             AND NOT EXISTS (SELECT 1 FROM issued AS later WHERE later.host = one.host
                 AND later.identity = one.identity AND later.rowid > one.rowid)", good_until()),
            params![root, to_unix(now)],
            |row| row.get(0),
        )?;
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// The root that the latest certificate leads to, as its fingerprint; nothing where that was not written down.
    pub fn latest_root(&self) -> Result<Option<String>, LedgerError> {
        let connection = self.lock()?;
        let mut statement = connection
            .prepare_cached("SELECT root FROM issued ORDER BY issued_at DESC, rowid DESC LIMIT 1")?;
        let root: Option<String> = statement.query_row([], |row| row.get(0)).optional()?;
        Ok(root.filter(|root| !root.is_empty()))
    }

    /// Adds one line to the audit.
    pub fn audit(&self, record: &AuditRecord) -> Result<(), LedgerError> {
        self.write(|connection| Ok(append(connection, record).map(drop)?))
    }

    /// The latest lines of the audit, the last one first.
    pub fn audit_records(&self, limit: usize) -> Result<Vec<AuditRecord>, LedgerError> {
        let connection = self.lock()?;
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
    let (what, reason) = (cut(what), cut(reason));
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

/// A text as the audit keeps it: who asks for something may write as much as he likes.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
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
            "INSERT INTO issued (serial, identity, host, issued_at, not_after, root) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![record.serial, record.identity, record.host, issued_at, not_after, record.root])?;
    Ok(())
}

fn read_issued(row: &Row<'_>) -> rusqlite::Result<IssueRecord> {
    Ok(IssueRecord {
        serial: row.get("serial")?,
        identity: row.get("identity")?,
        host: row.get("host")?,
        issued_at: from_unix(row.get("issued_at")?),
        not_after: from_unix(row.get("not_after")?),
        root: row.get("root")?,
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
