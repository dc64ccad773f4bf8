//! Accepted changes of resources: each has a version, what it did in words, and the files before and after it, so that it
//! can be taken back. And the audit as it is read: changes, refusals, enrolments, and certificates, in one order.

use std::time::SystemTime;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::records::{AuditRecord, append, read_audit};
use super::{Ledger, LedgerError, Outcome};
use crate::clock::{from_unix, to_unix};

/// How many versions keep their files, and can be taken back.
pub const VERSIONS_KEPT: i64 = 1_000;
/// Bytes of files that all versions keep together; the oldest lose theirs first.
pub const VERSION_BYTES_KEPT: i64 = 64 << 20;
/// Lines that one reading of the audit gives at most.
pub const MAX_READ: usize = 10_000;

/// What a change did to a file, by its path in the directory.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileChange {
    /// The path, below the directory of resources.
    pub file: String,
    /// The text before, where there was a file.
    pub before: Option<String>,
    /// The text after, where one remains.
    pub after: Option<String>,
}

/// An accepted change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeRecord {
    /// Its number: later ones have higher ones.
    pub version: i64,
    /// When.
    pub at: SystemTime,
    /// Who made it.
    pub who: String,
    /// By which order.
    pub what: String,
    /// What it did, resource by resource.
    pub difference: String,
    /// The files before and after it, as long as they are kept.
    pub files: Option<Vec<FileChange>>,
}

/// A line of the audit as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// Who, what, when, and how it ended.
    pub record: AuditRecord,
    /// The version that it made, where it changed resources.
    pub version: Option<i64>,
    /// What it did to them.
    pub difference: String,
}

/// Which lines are asked for.
#[derive(Debug, Clone, Copy)]
pub struct AuditFilter {
    /// None before this.
    pub since: SystemTime,
    /// So many of the latest, `MAX_READ` at most.
    pub limit: usize,
}

impl Ledger {
    /// Writes down an accepted change, and returns its version. `recorded` are all resources after it, where they could be
    /// read.
    pub fn record_change(
        &self,
        record: &AuditRecord,
        difference: &str,
        files: &[FileChange],
        recorded: Option<&str>,
    ) -> Result<i64, LedgerError> {
        let files = serde_json::to_string(files).map_err(|_| LedgerError::Corrupt("change"))?;
        self.write(|connection| {
            let audit = append(connection, record)?;
            connection.execute(
                "INSERT INTO changes (audit, difference, files) VALUES (?1, ?2, ?3)",
                params![audit, difference, files],
            )?;
            let version = connection.last_insert_rowid();
            forget_files(connection, version)?;
            keep_recorded(connection, recorded)?;
            // What the audit has forgotten is of no use here.
            connection.execute("DELETE FROM changes WHERE audit NOT IN (SELECT id FROM audit)", [])?;
            Ok(version)
        })
    }

    /// Adds a line to the audit with what it did, of which nothing is kept to take it back. `recorded` are all resources
    /// after it.
    pub fn audit_with(
        &self,
        record: &AuditRecord,
        difference: &str,
        recorded: &str,
    ) -> Result<(), LedgerError> {
        self.write(|connection| {
            let audit = append(connection, record)?;
            let sql = "INSERT INTO differences (audit, difference) VALUES (?1, ?2)";
            connection.execute(sql, params![audit, difference])?;
            connection.execute("DELETE FROM differences WHERE audit NOT IN (SELECT id FROM audit)", [])?;
            Ok(keep_recorded(connection, Some(recorded))?)
        })
    }

    /// The resources that the audit knows of, as they were given with the last change.
    pub fn recorded(&self) -> Result<Option<String>, LedgerError> {
        let connection = self.lock()?;
        Ok(connection.query_row("SELECT resources FROM recorded", [], |row| row.get(0)).optional()?)
    }

    /// Says which resources the audit begins with.
    pub fn begin_recorded(&self, resources: &str) -> Result<(), LedgerError> {
        self.write(|connection| Ok(keep_recorded(connection, Some(resources))?))
    }

    /// The accepted changes from `first` on, the latest first.
    pub fn changes_since(&self, first: i64) -> Result<Vec<ChangeRecord>, LedgerError> {
        self.read_changes("changes.version >= ?1 ORDER BY changes.version DESC", first)
    }

    /// The latest accepted changes, the last one first.
    pub fn changes(&self, limit: usize) -> Result<Vec<ChangeRecord>, LedgerError> {
        let limit = i64::try_from(limit.min(MAX_READ)).unwrap_or(VERSIONS_KEPT);
        self.read_changes("1 ORDER BY changes.version DESC LIMIT ?1", limit)
    }

    fn read_changes(&self, which: &str, number: i64) -> Result<Vec<ChangeRecord>, LedgerError> {
        let connection = self.lock()?;
        let mut statement = connection.prepare_cached(&format!(
            "SELECT changes.version, changes.difference, changes.files, audit.at, audit.who, audit.what
             FROM changes JOIN audit ON audit.id = changes.audit WHERE {which}"
        ))?;
        let rows = statement.query_map([number], |row| Ok(read_change(row)))?;
        rows.map(|row| row?).collect()
    }

    /// The audit, the latest line first: what was done and refused, and the certificates that were issued.
    pub fn audit_entries(&self, filter: AuditFilter) -> Result<Vec<AuditEntry>, LedgerError> {
        let since = to_unix(filter.since);
        let limit = i64::try_from(filter.limit.min(MAX_READ)).unwrap_or(0);
        let connection = self.lock()?;
        let mut statement = connection.prepare_cached(
            "SELECT audit.at, audit.who, audit.what, audit.outcome, audit.reason, changes.version,
                coalesce(changes.difference, differences.difference) AS difference
             FROM audit LEFT JOIN changes ON changes.audit = audit.id
             LEFT JOIN differences ON differences.audit = audit.id
             WHERE audit.at >= ?1 ORDER BY audit.id DESC LIMIT ?2",
        )?;
        let noted = statement.query_map([since, limit], |row| {
            Ok(AuditEntry {
                record: read_audit(row)?,
                version: row.get("version")?,
                difference: row.get::<_, Option<String>>("difference")?.unwrap_or_default(),
            })
        })?;
        let noted = noted.collect::<Result<Vec<_>, _>>()?;
        let mut statement = connection.prepare_cached(
            "SELECT serial, identity, host, issued_at FROM issued
             WHERE issued_at >= ?1 ORDER BY issued_at DESC, rowid DESC LIMIT ?2",
        )?;
        let issued = statement.query_map([since, limit], read_issued)?;
        let issued = issued.collect::<Result<Vec<_>, _>>()?;
        Ok(merge(noted, issued, filter.limit.min(MAX_READ)))
    }
}

/// Takes the files from the oldest versions, until as few and as small ones are kept as may be.
fn forget_files(connection: &Connection, last: i64) -> rusqlite::Result<()> {
    let forget = "UPDATE changes SET files = NULL WHERE version <= ?1 AND files IS NOT NULL";
    connection.prepare_cached(forget)?.execute([last - VERSIONS_KEPT])?;
    let beyond: Option<i64> = connection
        .prepare_cached(
            "SELECT version FROM (
                SELECT version, sum(length(files)) OVER (ORDER BY version DESC) AS bytes
                FROM changes WHERE files IS NOT NULL
             ) WHERE bytes > ?1 AND version < ?2 ORDER BY version DESC LIMIT 1",
        )?
        .query_row([VERSION_BYTES_KEPT, last], |row| row.get(0))
        .optional()?;
    if let Some(beyond) = beyond {
        connection.prepare_cached(forget)?.execute([beyond])?;
    }
    Ok(())
}

fn keep_recorded(connection: &Connection, resources: Option<&str>) -> rusqlite::Result<()> {
    let Some(resources) = resources else { return Ok(()) };
    connection.execute("INSERT OR REPLACE INTO recorded (id, resources) VALUES (1, ?1)", [resources])?;
    Ok(())
}

/// Two lists, each the latest first, as one.
fn merge(noted: Vec<AuditEntry>, issued: Vec<AuditEntry>, limit: usize) -> Vec<AuditEntry> {
    let mut all: Vec<_> = noted.into_iter().chain(issued).collect();
    // Stable: what is of one second keeps its order.
    all.sort_by_key(|entry| std::cmp::Reverse(entry.record.at));
    all.truncate(limit);
    all
}

fn read_issued(row: &Row<'_>) -> rusqlite::Result<AuditEntry> {
    let (serial, identity): (String, String) = (row.get("serial")?, row.get("identity")?);
    let record = AuditRecord {
        at: from_unix(row.get("issued_at")?),
        who: row.get("host")?,
        what: format!("issue {identity}, serial {serial}"),
        outcome: Outcome::Granted,
        reason: String::new(),
    };
    Ok(AuditEntry { record, version: None, difference: String::new() })
}

fn read_change(row: &Row<'_>) -> Result<ChangeRecord, LedgerError> {
    let files: Option<String> = row.get("files")?;
    let files = files.map(|files| serde_json::from_str(&files)).transpose();
    Ok(ChangeRecord {
        version: row.get("version")?,
        at: from_unix(row.get("at")?),
        who: row.get("who")?,
        what: row.get("what")?,
        difference: row.get("difference")?,
        files: files.map_err(|_| LedgerError::Corrupt("change"))?,
    })
}
