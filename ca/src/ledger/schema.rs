//! Tables and their versions. Each step brings the file from one version to the next; a file from a later version
//! is left alone.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::LedgerError;

/// Step `n` makes version `n + 1` of version `n`. Steps are appended, never changed. Times are seconds since 1970.
pub(super) const STEPS: [&str; 8] = [
    "
    CREATE TABLE tokens (
        id TEXT PRIMARY KEY,
        secret_hash BLOB NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        grants TEXT NOT NULL,
        host TEXT,
        rejoin INTEGER NOT NULL,
        redeemed_at INTEGER,
        redeemed_host TEXT,
        redeemed_key BLOB,
        answer BLOB
    ) STRICT;
    CREATE INDEX tokens_by_expiry ON tokens (expires_at);
    CREATE TABLE hosts (
        name TEXT PRIMARY KEY,
        grants TEXT NOT NULL,
        key BLOB NOT NULL,
        joined_at INTEGER NOT NULL,
        revoked INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE issued (
        serial TEXT PRIMARY KEY,
        identity TEXT NOT NULL,
        host TEXT NOT NULL,
        issued_at INTEGER NOT NULL,
        not_after INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX issued_by_end ON issued (not_after);
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at INTEGER NOT NULL,
        who TEXT NOT NULL,
        what TEXT NOT NULL,
        outcome TEXT NOT NULL,
        reason TEXT NOT NULL
    ) STRICT;
",
    // How often a host's name was taken over, and the addresses that tokens grant, one a line.
    "
    ALTER TABLE hosts ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE hosts ADD COLUMN addresses TEXT NOT NULL DEFAULT '';
    ALTER TABLE tokens ADD COLUMN addresses TEXT NOT NULL DEFAULT '';
",
    // Certificates that were taken back, and the list of them that was signed last.
    "
    CREATE TABLE revoked (
        serial TEXT PRIMARY KEY,
        identity TEXT NOT NULL,
        host TEXT NOT NULL,
        revoked_at INTEGER NOT NULL,
        not_after INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX issued_by_host ON issued (host, not_after);
    CREATE INDEX issued_by_identity ON issued (identity, not_after);
    CREATE TABLE revocation_list (id INTEGER PRIMARY KEY, list TEXT NOT NULL) STRICT;
",
    // Under which root a certificate was issued.
    "
    ALTER TABLE issued ADD COLUMN root TEXT NOT NULL DEFAULT '';
",
    // Operators, and accepted changes of resources with the files before and after each, in JSON.
    "
    CREATE TABLE operators (
        name TEXT PRIMARY KEY,
        role TEXT NOT NULL,
        namespaces TEXT NOT NULL,
        serial TEXT NOT NULL,
        issued_at INTEGER NOT NULL,
        not_after INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE changes (
        version INTEGER PRIMARY KEY AUTOINCREMENT,
        audit INTEGER NOT NULL,
        difference TEXT NOT NULL,
        files TEXT
    ) STRICT;
    CREATE TABLE differences (
        audit INTEGER PRIMARY KEY,
        difference TEXT NOT NULL
    ) STRICT;
    CREATE INDEX changes_by_audit ON changes (audit);
    CREATE INDEX audit_by_outcome ON audit (outcome, id);
    CREATE INDEX issued_by_time ON issued (issued_at);
",
    // The resources that the audit knows of, in JSON: what differs at the next start was nobody's order.
    "
    CREATE TABLE recorded (id INTEGER PRIMARY KEY CHECK (id = 1), resources TEXT NOT NULL) STRICT;
",
    // Where the ledger is shared: what its entries are sealed with, how far this file has come, and the seal of the last one.
    "
    CREATE TABLE shared (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        secret BLOB NOT NULL,
        position INTEGER NOT NULL,
        last BLOB NOT NULL
    ) STRICT;
",
    // What the log's head was changed at for that entry; 0 where that is not known.
    "
    ALTER TABLE shared ADD COLUMN head INTEGER NOT NULL DEFAULT 0;
",
];

/// The version that this program writes.
pub(super) const VERSION: i64 = STEPS.len() as i64;

/// Brings the file up to `VERSION` in one transaction.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), LedgerError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > VERSION {
        return Err(LedgerError::Newer { path: path.to_owned(), found, known: VERSION });
    }
    for step in STEPS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    Ok(transaction.commit()?)
}
