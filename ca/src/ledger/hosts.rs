//! Hosts that joined: what each may be, and the key of its node credential.

use std::time::SystemTime;

use baremesh_model::grant::Grant;
use baremesh_model::name::Label;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Ledger, LedgerError};
use crate::clock::{from_unix, to_unix};

/// A host that joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRecord {
    /// Its name.
    pub name: Label,
    /// Which services its token granted to it.
    pub grants: Vec<Grant>,
    /// The fingerprint of its node credential's public key.
    pub key: [u8; 32],
    /// When it joined last. Node credentials from before are refused.
    pub joined_at: SystemTime,
    /// Whether an operator shut it out.
    pub revoked: bool,
}

const COLUMNS: &str = "name, grants, key, joined_at, revoked";

impl Ledger {
    /// The host of this name, if it joined.
    pub fn host(&self, name: &Label) -> Result<Option<HostRecord>, LedgerError> {
        find(&self.lock(), name)
    }

    /// All hosts, by name.
    pub fn hosts(&self) -> Result<Vec<HostRecord>, LedgerError> {
        let connection = self.lock();
        let mut statement =
            connection.prepare_cached(&format!("SELECT {COLUMNS} FROM hosts ORDER BY name"))?;
        let rows = statement.query_map([], |row| Ok(read(row)))?;
        rows.map(|row| row?).collect()
    }

    /// Shuts a host out: nothing is issued to it until it joins again with a token made for that. False when no
    /// such host joined.
    pub fn revoke_host(&self, name: &Label) -> Result<bool, LedgerError> {
        self.write(|connection| {
            Ok(connection.execute("UPDATE hosts SET revoked = 1 WHERE name = ?1", [name.as_str()])? == 1)
        })
    }

    /// Notes that the host's node credential was renewed with another key. Should the clock have been set back
    /// since the host joined, the time of joining moves with it; otherwise the new credential would look older.
    pub(crate) fn renew_node(
        &self,
        name: &Label,
        key: &[u8; 32],
        now: SystemTime,
    ) -> Result<(), LedgerError> {
        self.write(|connection| {
            connection.execute(
                "UPDATE hosts SET key = ?2, joined_at = min(joined_at, ?3) WHERE name = ?1",
                params![name.as_str(), key, to_unix(now)],
            )?;
            Ok(())
        })
    }
}

pub(super) fn find(connection: &Connection, name: &Label) -> Result<Option<HostRecord>, LedgerError> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM hosts WHERE name = ?1"))?;
    statement.query_row([name.as_str()], |row| Ok(read(row))).optional()?.transpose()
}

fn read(row: &Row<'_>) -> Result<HostRecord, LedgerError> {
    let name: String = row.get("name")?;
    let grants: String = row.get("grants")?;
    Ok(HostRecord {
        name: Label::new(&name).map_err(|_| LedgerError::Corrupt("host name"))?,
        grants: grants_from_text(&grants)?,
        key: row.get("key")?,
        joined_at: from_unix(row.get("joined_at")?),
        revoked: row.get("revoked")?,
    })
}

/// Grants stand one a line; no grant holds a line feed.
pub(super) fn grants_to_text(grants: &[Grant]) -> String {
    grants.iter().map(Grant::to_string).collect::<Vec<_>>().join("\n")
}

pub(super) fn grants_from_text(text: &str) -> Result<Vec<Grant>, LedgerError> {
    let parsed: Result<_, _> = text.lines().map(Grant::parse).collect();
    parsed.map_err(|_| LedgerError::Corrupt("grant"))
}
