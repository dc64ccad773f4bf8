//! Certificates that an operator took back, for as long as they would be valid.

use std::time::SystemTime;

use rusqlite::{OptionalExtension, Row, params};

use super::{Ledger, LedgerError};
use crate::clock::{from_unix, to_unix};
use crate::revocation::MAX_REVOKED;
use crate::tls::NODE_GRACE;

/// Which certificates are taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// All that a host was issued, for whichever of its services.
    Host(String),
    /// All of one identity, as its URI, on whichever host.
    Identity(String),
    /// All of one identity, as its URI, that a host was issued.
    IdentityOnHost {
        /// The identity.
        identity: String,
        /// The host.
        host: String,
    },
    /// One, by its serial number in hexadecimal.
    Serial(String),
}

/// A certificate that was taken back and has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokedRecord {
    /// The serial number in hexadecimal.
    pub serial: String,
    /// The identity, as its URI.
    pub identity: String,
    /// The host that it was issued to.
    pub host: String,
    /// When it was taken back.
    pub revoked_at: SystemTime,
    /// Until when it would be valid.
    pub not_after: SystemTime,
}

/// What came of taking certificates back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revocation {
    /// These are revoked now and were not before; those that had ended are left out.
    Done(Vec<RevokedRecord>),
    /// So many would be revoked at a time, which is more than a list holds. Nothing has changed.
    TooMany(usize),
}

const COLUMNS: &str = "serial, identity, host, revoked_at, not_after";

/// Until when a certificate is good for anything, in SQL: a node credential renews itself for a while after its end.
pub(super) fn good_until() -> String {
    format!("(not_after + iif(identity LIKE 'spiffe://%/ns/nodes/sa/%', {}, 0))", NODE_GRACE.as_secs())
}

impl Ledger {
    /// Takes certificates back that were issued and have not ended, and forgets those that have.
    pub fn revoke_certificates(&self, which: &Which, now: SystemTime) -> Result<Revocation, LedgerError> {
        let (column, value, on) = match which {
            Which::Host(host) => ("host", host, None),
            Which::Identity(identity) => ("identity", identity, None),
            Which::IdentityOnHost { identity, host } => ("identity", identity, Some(host)),
            Which::Serial(serial) => ("serial", serial, None),
        };
        let at = to_unix(now);
        // The transaction ends without effect where too many would be revoked.
        let outcome = self.write(|connection| {
            let good_until = good_until();
            connection.execute(&format!("DELETE FROM revoked WHERE {good_until} < ?1"), [at])?;
            let news = {
                let select = format!(
                    "SELECT serial, identity, host, ?3 AS revoked_at, not_after FROM issued WHERE {column} = ?1 AND host = ifnull(?4, host) AND {good_until} >= ?2
                     AND serial NOT IN (SELECT serial FROM revoked) ORDER BY not_after"
                );
                let mut statement = connection.prepare_cached(&select)?;
                let rows = statement.query_map(params![value, at, at, on], read)?;
                rows.collect::<Result<Vec<_>, _>>()?
            };
            let before: i64 = connection
                .query_row("SELECT count(*) FROM revoked", [], |row| row.get(0))
                ?;
            let after = usize::try_from(before).unwrap_or(usize::MAX).saturating_add(news.len());
            if after > MAX_REVOKED {
                return Err(Stop::TooMany(after));
            }
            let insert = format!("INSERT INTO revoked ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5)");
            let mut statement = connection.prepare_cached(&insert)?;
            for RevokedRecord { serial, identity, host, not_after, .. } in &news {
                statement
                    .execute(params![serial, identity, host, at, to_unix(*not_after)])
                    ?;
            }
            Ok(news)
        });
        match outcome {
            Ok(news) => Ok(Revocation::Done(news)),
            Err(Stop::TooMany(count)) => Ok(Revocation::TooMany(count)),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    /// The certificates that are revoked and would be good for something at `now`, the latest first.
    pub fn revoked(&self, now: SystemTime) -> Result<Vec<RevokedRecord>, LedgerError> {
        let connection = self.lock()?;
        let mut statement = connection.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM revoked WHERE {} >= ?1 ORDER BY revoked_at DESC, identity, serial",
            good_until()
        ))?;
        let rows = statement.query_map([to_unix(now)], read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Which identities which hosts hold certificates of that are valid at `now` and are not revoked, as URIs and names.
    pub(crate) fn held(&self, now: SystemTime) -> Result<Vec<(String, String)>, LedgerError> {
        let connection = self.lock()?;
        let mut statement = connection.prepare_cached(
            "SELECT DISTINCT host, identity FROM issued
             WHERE not_after >= ?1 AND serial NOT IN (SELECT serial FROM revoked) ORDER BY host, identity",
        )?;
        let rows = statement.query_map([to_unix(now)], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Whether the certificate with that serial number is revoked.
    pub fn is_revoked(&self, serial: &str) -> Result<bool, LedgerError> {
        let connection = self.lock()?;
        let mut statement = connection.prepare_cached("SELECT 1 FROM revoked WHERE serial = ?1")?;
        Ok(statement.exists([serial])?)
    }

    /// The list that was signed last, if there is one.
    pub(crate) fn signed_list(&self) -> Result<Option<String>, LedgerError> {
        let connection = self.lock()?;
        let mut statement = connection.prepare_cached("SELECT list FROM revocation_list WHERE id = 1")?;
        Ok(statement.query_row([], |row| row.get(0)).optional()?)
    }

    /// Keeps the list that was signed last, in place of `before`. False where that is no longer the one that is kept.
    pub(crate) fn keep_signed_list(&self, list: &str, before: Option<&str>) -> Result<bool, LedgerError> {
        self.write(|connection| {
            let mut statement = connection.prepare_cached("SELECT list FROM revocation_list WHERE id = 1")?;
            let kept: Option<String> = statement.query_row([], |row| row.get(0)).optional()?;
            if kept.as_deref() != before {
                return Ok(false);
            }
            connection.execute(
                "INSERT INTO revocation_list (id, list) VALUES (1, ?1) ON CONFLICT (id) DO UPDATE SET list = ?1",
                [list],
            )?;
            Ok(true)
        })
    }
}

/// Why a transaction was taken back.
enum Stop {
    TooMany(usize),
    Failed(LedgerError),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<LedgerError> for Stop {
    fn from(error: LedgerError) -> Self {
        Self::Failed(error)
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<RevokedRecord> {
    Ok(RevokedRecord {
        serial: row.get("serial")?,
        identity: row.get("identity")?,
        host: row.get("host")?,
        revoked_at: from_unix(row.get("revoked_at")?),
        not_after: from_unix(row.get("not_after")?),
    })
}
