//! Operators, each with the one certificate that counts: one that was issued before it, or to an operator who has been
//! removed since, is refused from the next request on.

use std::time::SystemTime;

use baremesh_model::name::Label;
use baremesh_model::operator::Role;
use rusqlite::{OptionalExtension, Row, params};

use super::hosts::{from_lines, to_lines};
use super::records::{AuditRecord, IssueRecord, append, insert_issued};
use super::{Ledger, LedgerError};
use crate::clock::{from_unix, to_unix};

/// An operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorRecord {
    /// Its name.
    pub name: Label,
    /// What it may do.
    pub role: Role,
    /// The serial number of the certificate that counts.
    pub serial: String,
    /// When that was issued.
    pub issued_at: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

const COLUMNS: &str = "name, role, namespaces, serial, issued_at, not_after";

impl Ledger {
    /// Writes down an operator, in place of one of that name, with the certificate and who it was that asked for it.
    pub(crate) fn put_operator(
        &self,
        operator: &OperatorRecord,
        issued: &IssueRecord,
        audit: &AuditRecord,
    ) -> Result<(), LedgerError> {
        let OperatorRecord { name, role, serial, issued_at, not_after } = operator;
        let namespaces: Vec<_> = role.namespaces().collect();
        self.write(|connection| {
            connection.execute(
                "INSERT OR REPLACE INTO operators (name, role, namespaces, serial, issued_at, not_after)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    name.as_str(),
                    role.name(),
                    to_lines(&namespaces),
                    serial,
                    to_unix(*issued_at),
                    to_unix(*not_after)
                ],
            )?;
            insert_issued(connection, issued)?;
            append(connection, audit)?;
            Ok(())
        })
    }

    /// The operator of that name.
    pub fn operator(&self, name: &Label) -> Result<Option<OperatorRecord>, LedgerError> {
        let connection = self.lock()?;
        let mut statement =
            connection.prepare_cached(&format!("SELECT {COLUMNS} FROM operators WHERE name = ?1"))?;
        statement.query_row([name.as_str()], |row| Ok(read(row))).optional()?.transpose()
    }

    /// All operators, by name.
    pub fn operators(&self) -> Result<Vec<OperatorRecord>, LedgerError> {
        let connection = self.lock()?;
        let mut statement =
            connection.prepare_cached(&format!("SELECT {COLUMNS} FROM operators ORDER BY name"))?;
        let rows = statement.query_map([], |row| Ok(read(row)))?;
        rows.map(|row| row?).collect()
    }

    /// Removes an operator, and writes down who did. False when there is none of that name.
    pub fn remove_operator(&self, name: &Label, audit: &AuditRecord) -> Result<bool, LedgerError> {
        self.write(|connection| {
            let removed = connection.execute("DELETE FROM operators WHERE name = ?1", [name.as_str()])? == 1;
            if removed {
                append(connection, audit)?;
            }
            Ok(removed)
        })
    }
}

fn read(row: &Row<'_>) -> Result<OperatorRecord, LedgerError> {
    let corrupt = || LedgerError::Corrupt("operator");
    let (name, role): (String, String) = (row.get("name")?, row.get("role")?);
    let namespaces: String = row.get("namespaces")?;
    let namespaces: Vec<Label> = from_lines(&namespaces)?;
    Ok(OperatorRecord {
        name: Label::new(&name).map_err(|_| corrupt())?,
        role: Role::new(&role, namespaces.into_iter().collect()).map_err(|_| corrupt())?,
        serial: row.get("serial")?,
        issued_at: from_unix(row.get("issued_at")?),
        not_after: from_unix(row.get("not_after")?),
    })
}
