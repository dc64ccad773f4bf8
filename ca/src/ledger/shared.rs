//! A ledger that several control processes share. Each has all of it in its own file, and what changes is a log that they
//! all see, in a store where something can be created if nobody else has created it (Consul's, by compare-and-set). A
//! transaction is decided on what the file says when it has caught up with the log, and counts if its entry becomes the
//! next one: whoever was faster made the decision anew. So what one file's transactions guarantee holds among all of them, a
//! token's single use foremost. Entries are chained and authenticated by a secret that only these processes have: who can write to
//! the store can stop them, and can let nobody in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::{Inside, Ledger, LedgerError};
use crate::key::fill_random;

/// An entry's bytes.
mod entry;
/// What a transaction changed, and changing the same elsewhere.
mod rows;

pub use entry::MAX_ENTRY_BYTES;
use entry::Sealed;

/// How many of the latest entries the log keeps. A process that was away for more takes a copy of another one's ledger.
pub const ENTRIES_KEPT: u64 = 32_768;
/// How many are taken away at once.
const FORGOTTEN_AT_ONCE: u64 = 64;
/// How long what the file says is taken for what the log says, for those who only read. A certificate is never signed, nor a
/// token redeemed, by it: those write.
pub const FRESH: Duration = Duration::from_millis(500);
/// After the store did not answer, how long nobody asks it again: every caller would wait for the same time limit.
const GIVEN_UP_FOR: Duration = Duration::from_secs(1);
/// How often a transaction is decided anew because another process was faster.
const MAX_TRIES: usize = 32;

/// Where the entries of a shared ledger are kept. Reads are consistent: what was appended by anybody before is seen.
pub trait Log: Send + Sync {
    /// The entry of a position; positions count from 1.
    fn read(&self, position: u64) -> Result<Option<Vec<u8>>, Away>;
    /// The log's head, which says what its last entry is.
    fn head(&self) -> Result<Option<Head>, Away>;
    /// Creates the entry of a position, if nobody has, and writes the head, if that was last changed at `unchanged` (0: if there
    /// is none): both or neither. On an error both may have been written.
    fn append(&self, position: u64, entry: &[u8], head: &[u8], unchanged: u64) -> Result<Appended, Away>;
    /// Takes the entries of these positions away. What remains because of an error does no harm.
    fn forget(&self, positions: std::ops::Range<u64>);
}

/// What came of an attempt to append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// The entry stands there.
    Done {
        /// What the head was changed at; 0 where that is not known.
        modified: u64,
    },
    /// Another stands there, or the head was changed.
    Taken,
}

/// The head of a log, as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// What was written.
    pub bytes: Vec<u8>,
    /// What it was changed at last, above 0: no two changes have the same. Who writes an older head back changes this.
    pub modified: u64,
}

/// The store does not answer, with what it said instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Away(pub String);

/// A ledger's part in a log.
pub(super) struct Sharing {
    log: Arc<dyn Log>,
    /// When the file was last known to say what the log says.
    confirmed: Option<Instant>,
    /// When the store did not answer, and what it said.
    away: Option<(Instant, Away)>,
}

/// How far the file has come, and what entries are sealed with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    secret: [u8; 32],
    position: u64,
    last: [u8; 32],
    /// What the head was changed at when it came to name the last entry; 0 as long as that is not known.
    head: u64,
}

impl Standing {
    fn read(connection: &Connection) -> Result<Option<Self>, LedgerError> {
        let mut statement =
            connection.prepare_cached("SELECT secret, position, last, head FROM shared WHERE id = 1")?;
        let read = statement.query_row([], |row| {
            let position: i64 = row.get("position")?;
            let head: i64 = row.get("head")?;
            Ok((row.get("secret")?, position, row.get("last")?, head))
        });
        let read = read.optional()?;
        let standing = read.map(|(secret, position, last, head)| {
            let position = u64::try_from(position).map_err(|_| LedgerError::Corrupt("position"))?;
            let head = u64::try_from(head).map_err(|_| LedgerError::Corrupt("head"))?;
            Ok(Self { secret, position, last, head })
        });
        standing.transpose()
    }

    /// As it is when the entry stands in the log, and the head was changed at `head` for it.
    fn behind(&self, entry: &Sealed, head: u64) -> Self {
        Self { secret: self.secret, position: self.position + 1, last: entry.seal, head }
    }

    /// The head that names its last entry.
    fn head(&self) -> Vec<u8> {
        entry::head(self.position, &self.last)
    }

    fn keep(&self, connection: &Connection) -> Result<(), LedgerError> {
        let position = i64::try_from(self.position).map_err(|_| LedgerError::Corrupt("position"))?;
        let head = i64::try_from(self.head).map_err(|_| LedgerError::Corrupt("head"))?;
        connection.execute(
            "UPDATE shared SET position = ?1, last = ?2, head = ?3 WHERE id = 1",
            params![position, self.last, head],
        )?;
        Ok(())
    }
}

/// Whether a file takes part in a log: then it may not be changed without it.
pub(super) fn is_shared(connection: &Connection) -> Result<bool, LedgerError> {
    Ok(Standing::read(connection)?.is_some_and(|standing| standing.position > 0))
}

impl Ledger {
    /// Begins a log with this ledger: from now on it changes by the log alone, and copies of its file can take part. Refused
    /// where the store holds a log already. After a crash it can be done again.
    pub fn share(&self, log: &dyn Log) -> Result<(), LedgerError> {
        let inside = &mut *self.inside();
        let connection = &mut inside.connection;
        let standing = match Standing::read(connection)? {
            Some(standing) if standing.position > 0 => return Err(LedgerError::SharedAlready),
            Some(standing) => standing,
            None => {
                let mut secret = [0; 32];
                fill_random(&mut secret);
                let insert = "INSERT INTO shared (id, secret, position, last) VALUES (1, ?1, 0, ?2)";
                connection.execute(insert, params![secret, [0_u8; 32]])?;
                Standing { secret, position: 0, last: [0; 32], head: 0 }
            }
        };
        let first = Sealed::first(&standing.secret);
        let is_ours = || log.read(1).map(|found| found.as_deref() == Some(&first.bytes[..]));
        let head = match log.append(1, &first.bytes, &standing.behind(&first, 0).head(), 0)? {
            Appended::Done { modified } => modified,
            Appended::Taken if is_ours()? => 0,
            Appended::Taken => {
                connection.execute("DELETE FROM shared", [])?;
                return Err(LedgerError::LogTaken);
            }
        };
        standing.behind(&first, head).keep(connection)
    }

    /// Has the ledger take part in the log that its file was shared by, and catches up with it.
    pub fn with_log(self, log: Arc<dyn Log>) -> Result<Self, LedgerError> {
        {
            let inside = &mut *self.inside();
            if !is_shared(&inside.connection)? {
                return Err(LedgerError::NotShared);
            }
            rows::watch(&inside.connection)?;
            inside.sharing = Some(Sharing { log, confirmed: None, away: None });
            inside.catch_up()?;
        }
        Ok(self)
    }

    /// Ends this file's part in a log: it is a ledger of its own again. For the last process that is left.
    pub fn leave_log(&self) -> Result<(), LedgerError> {
        let inside = &mut *self.inside();
        inside.sharing = None;
        inside.connection.execute("DELETE FROM shared", [])?;
        Ok(())
    }

    /// Whether the file takes part in a log.
    pub fn is_shared(&self) -> Result<bool, LedgerError> {
        is_shared(&self.inside().connection)
    }

    /// Up to which entry the ledger has seen the log; 0 of one that is not shared. It grows when another process changes
    /// something.
    pub fn position(&self) -> Result<u64, LedgerError> {
        let held = self.lock()?;
        Ok(Standing::read(&held)?.map_or(0, |standing| standing.position))
    }
}

impl Inside {
    /// Sees to it that what is read is not older than `FRESH`.
    pub(super) fn refresh(&mut self) -> Result<(), LedgerError> {
        match &self.sharing {
            Some(sharing) if sharing.confirmed.is_none_or(|at| at.elapsed() > FRESH) => self.catch_up(),
            _ => Ok(()),
        }
    }

    /// Brings the file to where the log is. Without a log there is nothing to do.
    fn catch_up(&mut self) -> Result<(), LedgerError> {
        let Some(sharing) = &mut self.sharing else { return Ok(()) };
        if let Some((at, away)) = &sharing.away
            && at.elapsed() < GIVEN_UP_FOR
        {
            return Err(away.clone().into());
        }
        let done = follow(&mut self.connection, &*sharing.log);
        match &done {
            Ok(()) => (sharing.confirmed, sharing.away) = (Some(Instant::now()), None),
            Err(LedgerError::Away(away)) => sharing.away = Some((Instant::now(), away.clone())),
            Err(_) => {}
        }
        done
    }

    /// A transaction that is on the disk, and in the log, when this returns.
    pub(super) fn write<T, E: From<rusqlite::Error> + From<LedgerError>>(
        &mut self,
        work: impl Fn(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        if self.sharing.is_none() {
            if is_shared(&self.connection)? {
                return Err(LedgerError::Detached.into());
            }
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = work(&transaction)?;
            transaction.commit()?;
            return Ok(done);
        }
        for _ in 0..MAX_TRIES {
            self.catch_up()?;
            let Some(sharing) = &mut self.sharing else { break };
            let standing = Standing::read(&self.connection)?.ok_or(LedgerError::NotShared)?;
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = work(&transaction)?;
            let changes = rows::taken(&transaction)?;
            if !changes.is_empty() {
                let entry = Sealed::new(&standing.secret, (standing.position + 1, &standing.last), &changes)?;
                match append(&*sharing.log, &standing, &entry) {
                    // The transaction is taken back, and decided anew on what the other has changed.
                    Ok(Appended::Taken) => continue,
                    Err(away) => {
                        sharing.away = Some((Instant::now(), away.clone()));
                        return Err(LedgerError::from(away).into());
                    }
                    Ok(Appended::Done { modified }) => {
                        standing.behind(&entry, modified).keep(&transaction)?;
                    }
                }
            }
            // An entry that stands in the log and not in the file, because this fails, is found there like another one's.
            transaction.commit()?;
            sharing.confirmed = Some(Instant::now());
            forget(&*sharing.log, standing.position + 1);
            return Ok(done);
        }
        Err(LedgerError::Contended.into())
    }
}

/// Appends, and where the answer is lost, looks whether it was done.
fn append(log: &dyn Log, standing: &Standing, entry: &Sealed) -> Result<Appended, Away> {
    let after = standing.behind(entry, 0);
    let appended = log.append(after.position, &entry.bytes, &after.head(), standing.head);
    appended.or_else(|away| match log.read(after.position) {
        Ok(Some(found)) if found == entry.bytes => Ok(Appended::Done { modified: 0 }),
        Ok(Some(_)) => Ok(Appended::Taken),
        // It may still come to stand there; then it is found like another process's.
        Ok(None) | Err(_) => Err(away),
    })
}

fn forget(log: &dyn Log, position: u64) {
    if position.is_multiple_of(FORGOTTEN_AT_ONCE)
        && let Some(below) = position.checked_sub(ENTRIES_KEPT).filter(|below| *below > 0)
    {
        log.forget(below.saturating_sub(FORGOTTEN_AT_ONCE)..below);
    }
}

/// Applies what the log has beyond the file. At its end the last entry that is known must stand in it still, and the head must name
/// it, unchanged since it did so first: a log that was set back, or whose newest entries are gone, is another one, whoever put
/// an older head back. The head's last change is taken from the store only together with an entry that is new here.
fn follow(connection: &mut Connection, log: &dyn Log) -> Result<(), LedgerError> {
    loop {
        let standing = Standing::read(connection)?.ok_or(LedgerError::NotShared)?;
        let Some(bytes) = log.read(standing.position + 1)? else {
            let last = log.read(standing.position)?;
            let known = last.is_some_and(|bytes| entry::seal_of(&bytes) == Some(standing.last));
            let head = log.head()?.filter(|head| known && head.bytes == standing.head());
            match head {
                Some(head) if head.modified == standing.head => return Ok(()),
                Some(head) if standing.head == 0 => {
                    return Standing { head: head.modified, ..standing }.keep(connection);
                }
                // Somebody may have appended between the two looks.
                _ if known && log.read(standing.position + 1)?.is_some() => continue,
                _ => return Err(LedgerError::OtherLog { position: standing.position }),
            }
        };
        let (entry, changes) =
            Sealed::open(&standing.secret, (standing.position + 1, &standing.last), bytes)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        rows::apply(&transaction, &changes)?;
        standing.behind(&entry, 0).keep(&transaction)?;
        transaction.commit()?;
    }
}

#[cfg(test)]
mod tests;
