//! What the authority remembers, in one SQLite file: tokens, hosts, issued certificates, and who was refused what.
//! Every write is flushed to the disk before it is answered for. Calls block; async code wraps them in
//! `spawn_blocking`.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::file::SECRET;

/// Accepted changes of resources, and the audit as it is read.
mod changes;
/// Hosts that joined.
mod hosts;
/// Operators.
mod operators;
/// Issued certificates and the audit.
mod records;
/// Certificates that were taken back.
mod revoked;
/// Tables and their versions.
mod schema;
/// One ledger of several control processes, by a log.
mod shared;
/// Tokens and their redemption.
mod tokens;

pub use changes::{
    AuditEntry, AuditFilter, ChangeRecord, FileChange, MAX_READ, VERSION_BYTES_KEPT, VERSIONS_KEPT,
};
pub use hosts::HostRecord;
pub use operators::OperatorRecord;
pub use records::{
    AUDIT_KEPT, AuditRecord, ISSUED_KEPT, IssueRecord, MAX_VALID_OF_HOST, Outcome, REFUSALS_KEPT, Recorded,
};
pub use revoked::{Revocation, RevokedRecord, Which};
pub use shared::{Appended, Away, ENTRIES_KEPT, FRESH, Head, Log, MAX_ENTRY_BYTES};
pub use tokens::{Invitation, REDEEM_AGAIN, Redemption, TOKENS_KEPT, TokenHost, TokenRecord, TokenRefusal};
pub(crate) use tokens::{RedeemError, Redeemed};

/// How long a call waits for another process (a backup, an operator's shell) that holds the file.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the ledger cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file cannot be opened.
    #[error("cannot open {path}: {reason}", path = .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system or SQLite said.
        reason: String,
    },
    /// Written by a later version of this program.
    #[error(
        "{path} has schema {found}, and this version of baremesh knows up to {known}: install the version that wrote it, or a later one", path = .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The latest that is known here.
        known: i64,
    },
    /// A read or write failed; nothing of the call took effect.
    #[error("the ledger failed, and nothing was changed (is the disk full?): {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A row that this program cannot have written.
    #[error("the ledger holds a {0} that cannot be read: restore it from a backup")]
    Corrupt(&'static str),
    /// The store of a shared ledger does not answer.
    #[error("the ledger that control processes share is out of reach, and nothing was changed: {0}")]
    Away(#[from] Away),
    /// Others were faster every time.
    #[error("other control processes changed the ledger all the while: try again")]
    Contended,
    /// A file that takes part in a log is to be changed without it.
    #[error(
        "this ledger is shared with other control processes: it is changed by a control server that was told where (`baremesh \
         control --shared-ledger FILE`)"
    )]
    Detached,
    /// A file that does not take part in a log is to take part.
    #[error(
        "this ledger is not shared: `baremesh ca share` on the first control host begins it, and others start from a backup of \
         that one (`baremesh restore`)"
    )]
    NotShared,
    /// It takes part already.
    #[error(
        "this ledger is shared already: others start from a backup of this control host (`baremesh restore`)"
    )]
    SharedAlready,
    /// The store holds another log.
    #[error(
        "a shared ledger stands there already, of other control processes: start from a backup of one of them (`baremesh \
         restore`), or give another prefix"
    )]
    LogTaken,
    /// What is known of the log does not stand in it.
    #[error(
        "the shared ledger does not hold its entry {position} as this process has seen it, or lacks what came after: the store was set \
         back, somebody deleted or changed what is below ca/, or this process was away for more than {ENTRIES_KEPT} changes. Nothing \
         is signed. Start from a backup of another control host (`baremesh restore`)"
    )]
    OtherLog {
        /// The position of that entry.
        position: u64,
    },
    /// An entry that none of the processes has written.
    #[error(
        "entry {position} of the shared ledger was not written by a control process of this mesh: who may write there? Nothing is \
         signed until it is gone"
    )]
    Forged {
        /// Its position.
        position: u64,
    },
    /// An entry of a later version.
    #[error(
        "entry {position} of the shared ledger is of a later version of baremesh: upgrade this control host"
    )]
    NewerEntry {
        /// Its position.
        position: u64,
    },
    /// More changes than an entry takes.
    #[error(
        "a change of {0} bytes at once is more than the shared ledger takes: revoke fewer certificates at a time"
    )]
    EntryTooLarge(usize),
}

/// The open ledger. One connection: writes are rare, and SQLite has one writer anyway.
pub struct Ledger {
    inside: Mutex<Inside>,
}

/// The file, and the log that it takes part in where it is shared.
struct Inside {
    connection: Connection,
    sharing: Option<shared::Sharing>,
}

/// The file, for reading.
struct Held<'l>(MutexGuard<'l, Inside>);

impl std::ops::Deref for Held<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0.connection
    }
}

impl Ledger {
    /// Opens or makes the file at `path`, and brings its tables up to date.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let failed = |reason: String| LedgerError::Open { path: path.to_owned(), reason };
        // Made here and not by SQLite, so that it is never readable by others; its journal takes its mode.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(SECRET)
            .open(path)
            .map_err(|error| failed(error.to_string()))?;
        let mut connection = Connection::open(path).map_err(|error| failed(error.to_string()))?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        schema::migrate(&mut connection, path)?;
        Ok(Self { inside: Mutex::new(Inside { connection, sharing: None }) })
    }

    /// Writes the file at `path` as it is at one moment to a new file, whoever else uses it meanwhile.
    pub fn copy(path: &Path, to: &Path) -> Result<(), LedgerError> {
        let failed =
            |error: rusqlite::Error| LedgerError::Open { path: path.to_owned(), reason: error.to_string() };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let created = OpenOptions::new().write(true).create_new(true).mode(SECRET).open(to);
        created.map_err(|error| LedgerError::Open { path: to.to_owned(), reason: error.to_string() })?;
        connection.execute("VACUUM INTO ?1", [to.to_string_lossy()])?;
        Ok(())
    }

    /// A panic elsewhere rolled its transaction back, so the connection is fit for use.
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file, which says what all processes know that share it.
    fn lock(&self) -> Result<Held<'_>, LedgerError> {
        let mut inside = self.inside();
        inside.refresh()?;
        Ok(Held(inside))
    }

    /// Runs `work` in one transaction that is on the disk when this returns, and in the log where the ledger is shared. It may
    /// be run several times, until nobody else has changed anything meanwhile.
    fn write<T, E: From<rusqlite::Error> + From<LedgerError>>(
        &self,
        work: impl Fn(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        self.inside().write(work)
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ledger")
    }
}

#[cfg(test)]
mod tests;
