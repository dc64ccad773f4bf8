//! Hosts that joined: what each may be, and the key of its node credential.

use std::str::FromStr;
use std::time::SystemTime;

use baremesh_model::grant::{AddressGrant, Grant};
use baremesh_model::name::Label;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Ledger, LedgerError};
use crate::clock::from_unix;

/// A host that joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRecord {
    /// Its name.
    pub name: Label,
    /// Which services its token granted to it.
    pub grants: Vec<Grant>,
    /// Which addresses its token granted to it besides those that it speaks from.
    pub addresses: Vec<AddressGrant>,
    /// The fingerprint of its node credential's public key.
    pub key: [u8; 32],
    /// When it joined last.
    pub joined_at: SystemTime,
    /// How often its name was taken over by joining anew. Node credentials of an earlier generation are refused.
    pub generation: u32,
    /// Whether an operator shut it out.
    pub revoked: bool,
}

const COLUMNS: &str = "name, grants, addresses, key, joined_at, generation, revoked";

impl Ledger {
    /// The host of this name, if it joined.
    pub fn host(&self, name: &Label) -> Result<Option<HostRecord>, LedgerError> {
        find(&*self.lock()?, name)
    }

    /// All hosts, by name.
    pub fn hosts(&self) -> Result<Vec<HostRecord>, LedgerError> {
        let connection = self.lock()?;
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

    /// Notes that the node credential of a host of that generation was renewed with another key. One that was taken
    /// over meanwhile keeps the key of its successor.
    pub(crate) fn renew_node(
        &self,
        name: &Label,
        key: &[u8; 32],
        generation: u32,
    ) -> Result<(), LedgerError> {
        self.write(|connection| {
            connection.execute(
                "UPDATE hosts SET key = ?2 WHERE name = ?1 AND generation = ?3",
                params![name.as_str(), key, generation],
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
    let (grants, addresses): (String, String) = (row.get("grants")?, row.get("addresses")?);
    Ok(HostRecord {
        name: Label::new(&name).map_err(|_| LedgerError::Corrupt("host name"))?,
        grants: from_lines(&grants)?,
        addresses: from_lines(&addresses)?,
        key: row.get("key")?,
        joined_at: from_unix(row.get("joined_at")?),
        generation: row.get("generation")?,
        revoked: row.get("revoked")?,
    })
}

/// Grants stand one a line; no grant holds a line feed.
pub(super) fn to_lines<T: ToString>(grants: &[T]) -> String {
    grants.iter().map(T::to_string).collect::<Vec<_>>().join("\n")
}

pub(super) fn from_lines<T: FromStr>(text: &str) -> Result<Vec<T>, LedgerError> {
    text.lines().map(|line| line.parse().map_err(|_| LedgerError::Corrupt("grant"))).collect()
}
