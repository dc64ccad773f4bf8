//! The durable records: registrations, who said goodbye, and virtual addresses, in tables of `control.db` that
//! start with `registry_`. One list of changes is one transaction: it is stored whole, or refused and nothing
//! has changed. Calls block on the disk and belong on a thread that may.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use baremesh_model::health::Health;
use baremesh_model::name::Label;
use rusqlite::{Connection, Row, Transaction, params};

use super::addresses::Assignment;
use super::catalog::Change;
use super::registration::Registration;
use super::subscription::service_key;

/// How long a change waits for another process that has the database locked.
pub const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Version of the tables.
const SCHEMA: i64 = 1;

/// Why records could not be read or stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database said no. Nothing was changed.
    #[error("the control server's database refused: {0}. Is the disk full, or another process at the file?")]
    Database(#[from] rusqlite::Error),
    /// Tables of a later version.
    #[error(
        "the tables of the control server's database are version {0}, this program knows {SCHEMA}: upgrade it"
    )]
    Newer(i64),
    /// A record that this program did not write.
    #[error("the control server's database holds a record that cannot be read: {0}")]
    Record(String),
}

type ReadRow = fn(&Row<'_>) -> Result<Change, StoreError>;

/// The records' database.
pub struct Store {
    connection: Mutex<Connection>,
}

impl Store {
    /// Opens the database, or makes it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::prepare(Connection::open(path)?)
    }

    /// Allows the file a few pages more than it has, as a disk that is nearly full does.
    #[cfg(test)]
    pub(super) fn limit_pages(&self) -> i64 {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).expect("a number");
        connection.pragma_update(None, "max_page_count", pages + 4).expect("a limit");
        pages + 4
    }

    fn prepare(connection: Connection) -> Result<Self, StoreError> {
        connection.busy_timeout(LOCK_WAIT)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // Other parts of the server have tables in the same file, so that `user_version` is not ours to set.
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS registry_schema (version INTEGER NOT NULL) STRICT;
             INSERT INTO registry_schema SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM registry_schema);
             CREATE TABLE IF NOT EXISTS registry_registrations (
                 sequence INTEGER PRIMARY KEY, host TEXT NOT NULL, service TEXT NOT NULL, workload TEXT NOT NULL,
                 body TEXT NOT NULL, UNIQUE (host, service)) STRICT;
             CREATE TABLE IF NOT EXISTS registry_departed (host TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS registry_virtual_addresses (
                 address TEXT PRIMARY KEY, service TEXT NOT NULL, released INTEGER) STRICT, WITHOUT ROWID;",
        )?;
        let version = connection.query_row("SELECT version FROM registry_schema", [], |row| row.get(0))?;
        if version > SCHEMA {
            return Err(StoreError::Newer(version));
        }
        Ok(Self { connection: Mutex::new(connection) })
    }

    /// All records, as the changes that lead to them.
    pub fn load(&self) -> Result<Vec<Change>, StoreError> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Vec::new();
        let queries: [(&str, ReadRow); 3] = [
            (
                "SELECT sequence, host, workload, body FROM registry_registrations ORDER BY sequence",
                registration,
            ),
            ("SELECT host FROM registry_departed", departed),
            ("SELECT address, service, released FROM registry_virtual_addresses", address),
        ];
        for (query, read) in queries {
            let mut statement = connection.prepare(query)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                changes.push(read(row)?);
            }
        }
        Ok(changes)
    }

    /// Stores changes: all of them, durably, or none.
    pub fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        // A panic while the lock was held left at most a transaction that is rolled back.
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction()?;
        for change in changes {
            write(&transaction, change)?;
        }
        Ok(transaction.commit()?)
    }
}

fn write(transaction: &Transaction<'_>, change: &Change) -> Result<(), StoreError> {
    match change {
        Change::Register { host, sequence, workload, registration } => {
            // Sequences come from this table's own integer keys, far below the limit of either type.
            let sequence = i64::try_from(*sequence).unwrap_or(i64::MAX);
            let service = registration.service.to_string();
            let body = registration.written().to_string();
            transaction
                .prepare_cached(
                    "INSERT INTO registry_registrations (sequence, host, service, workload, body)
                     VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (host, service)
                     DO UPDATE SET sequence = ?1, workload = ?4, body = ?5",
                )?
                .execute(params![sequence, host.as_str(), service, workload.as_str(), body])?;
        }
        Change::Deregister { host, service } => {
            let delete = "DELETE FROM registry_registrations WHERE host = ?1 AND service = ?2";
            transaction.prepare_cached(delete)?.execute(params![host.as_str(), service.to_string()])?;
        }
        Change::Health { host, service, health } => {
            // As `Registration::written` has it: nothing where it is healthy.
            let update = match health {
                Health::Healthy => "json_remove(body, '$.health')",
                Health::Unhealthy => "json_set(body, '$.health', 'unhealthy')",
            };
            let update =
                format!("UPDATE registry_registrations SET body = {update} WHERE host = ?1 AND service = ?2");
            transaction.prepare_cached(&update)?.execute(params![host.as_str(), service.to_string()])?;
        }
        Change::Departed { host, departed: true } => {
            let insert = "INSERT OR IGNORE INTO registry_departed (host) VALUES (?1)";
            transaction.prepare_cached(insert)?.execute(params![host.as_str()])?;
        }
        Change::Departed { host, departed: false } => {
            let delete = "DELETE FROM registry_departed WHERE host = ?1";
            transaction.prepare_cached(delete)?.execute(params![host.as_str()])?;
        }
        Change::Address((address, Some(Assignment { service, released }))) => {
            let released = released.map(seconds);
            let insert = "INSERT OR REPLACE INTO registry_virtual_addresses (address, service, released) VALUES (?1, ?2, ?3)";
            let values = params![address.to_string(), service.to_string(), released];
            transaction.prepare_cached(insert)?.execute(values)?;
        }
        Change::Address((address, None)) => {
            let delete = "DELETE FROM registry_virtual_addresses WHERE address = ?1";
            transaction.prepare_cached(delete)?.execute(params![address.to_string()])?;
        }
    }
    Ok(())
}

fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn unreadable<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> StoreError + '_ {
    move |error| StoreError::Record(format!("{what}: {error}"))
}

fn registration(row: &Row<'_>) -> Result<Change, StoreError> {
    let sequence: i64 = row.get(0)?;
    let body: String = row.get(3)?;
    let body = serde_json::from_str(&body).map_err(unreadable("a registration"))?;
    Ok(Change::Register {
        host: label(row, 1)?,
        sequence: u64::try_from(sequence).map_err(unreadable("a sequence"))?,
        workload: label(row, 2)?,
        registration: Registration::read(&body).map_err(unreadable("a registration"))?,
    })
}

fn departed(row: &Row<'_>) -> Result<Change, StoreError> {
    Ok(Change::Departed { host: label(row, 0)?, departed: true })
}

fn address(row: &Row<'_>) -> Result<Change, StoreError> {
    let (address, service): (String, String) = (row.get(0)?, row.get(1)?);
    let address: IpAddr = address.parse().map_err(unreadable("an address"))?;
    let service =
        service_key(&service).ok_or_else(|| StoreError::Record(format!("the service {service}")))?;
    let released: Option<i64> = row.get(2)?;
    let at = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    Ok(Change::Address((address, Some(Assignment { service, released: released.map(at) }))))
}

fn label(row: &Row<'_>, column: usize) -> Result<Label, StoreError> {
    Label::new(&row.get::<_, String>(column)?).map_err(unreadable("a name"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn register(sequence: u64, service: &str) -> Change {
        let raw = json!({ "service": service, "ports": [{ "port": 80 }], "addresses": ["10.0.0.1"] });
        let registration = Registration::read(&raw).expect("a registration");
        let label = |text| Label::new(text).expect("a label");
        Change::Register { host: label("h1"), sequence, workload: label("w"), registration }
    }

    fn assigned(address: &str, released: Option<u64>) -> Change {
        let released = released.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        let service = service_key("a.x").expect("a service");
        Change::Address((address.parse().expect("an address"), Some(Assignment { service, released })))
    }

    fn departed(departed: bool) -> Change {
        Change::Departed { host: Label::new("h1").expect("a label"), departed }
    }

    fn example() -> Vec<Change> {
        vec![
            register(3, "a.x"),
            register(5, "b.x"),
            departed(true),
            assigned("240.240.0.1", Some(77)),
            assigned("fd00::1", None),
        ]
    }

    #[test]
    fn reads_back_what_it_stored() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control.db");
        let store = Store::open(&path).expect("a store");
        assert_eq!(store.load().expect("empty"), []);
        store.commit(&example()).expect("stored");
        drop(store);
        let store = Store::open(&path).expect("a store");
        assert_eq!(store.load().expect("records"), example());
        let gone = Change::Deregister {
            host: Label::new("h1").expect("a label"),
            service: service_key("b.x").expect("a service"),
        };
        let free = Change::Address(("fd00::1".parse().expect("an address"), None));
        store.commit(&[gone, departed(false), free]).expect("stored");
        assert_eq!(store.load().expect("records"), [register(3, "a.x"), assigned("240.240.0.1", Some(77))]);
        for health in [Health::Unhealthy, Health::Unhealthy, Health::Healthy] {
            let host = Label::new("h1").expect("a label");
            let service = service_key("a.x").expect("a service");
            store.commit(&[Change::Health { host, service, health }]).expect("stored");
            let mut expected = register(3, "a.x");
            if let Change::Register { registration, .. } = &mut expected {
                registration.health = health;
            }
            assert_eq!(store.load().expect("records")[0], expected);
        }
    }

    /// What another process sees at any moment is what a crash at that moment leaves.
    #[test]
    fn a_crash_leaves_all_of_a_change_or_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control.db");
        let store = Store::open(&path).expect("a store");
        store.commit(&[register(1, "a.x")]).expect("stored");
        {
            let mut connection = store.connection.lock().expect("no panic before");
            let transaction = connection.transaction().expect("a transaction");
            write(&transaction, &register(2, "b.x")).expect("written");
            let crashed = directory.path().join("crashed.db");
            for suffix in ["", "-wal"] {
                let from = format!("{}{suffix}", path.display());
                std::fs::copy(from, format!("{}{suffix}", crashed.display())).expect("copied");
            }
            let left = Store::open(&crashed).expect("a store").load().expect("records");
            assert_eq!(left, [register(1, "a.x")]);
        }
        // The connection's lock is free again, and so is the database: the transaction was rolled back.
        assert_eq!(store.load().expect("records"), [register(1, "a.x")]);
    }

    #[test]
    fn refuses_when_the_disk_is_full_or_the_file_is_locked() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control.db");
        let store = Store::open(&path).expect("a store");
        store.commit(&[register(1, "a.x")]).expect("stored");
        {
            let connection = store.connection.lock().expect("no panic before");
            let pages: i64 =
                connection.query_row("PRAGMA page_count", [], |row| row.get(0)).expect("a number");
            connection.pragma_update(None, "max_page_count", pages).expect("a limit");
            connection.busy_timeout(Duration::ZERO).expect("set");
        }
        let many: Vec<_> = (2..500).map(|n| register(n, &format!("s{n}.x"))).collect();
        let full = store.commit(&many).expect_err("no page is left").to_string();
        assert!(full.contains("full"), "{full}");
        assert_eq!(store.load().expect("records"), [register(1, "a.x")]);
        let other = Connection::open(&path).expect("a connection");
        other.execute_batch("BEGIN IMMEDIATE").expect("locked");
        let locked = store.commit(&[departed(true)]).expect_err("locked").to_string();
        assert!(locked.contains("locked"), "{locked}");
        other.execute_batch("ROLLBACK").expect("unlocked");
        store.commit(&[departed(true)]).expect("stored");
    }

    #[test]
    fn refuses_tables_of_a_later_version_and_records_that_are_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control.db");
        drop(Store::open(&path).expect("a store"));
        let edit =
            |sql: &str| Connection::open(&path).expect("a connection").execute_batch(sql).expect("edited");
        edit("INSERT INTO registry_registrations VALUES (1, 'h1', 'a.x', 'w', '{}')");
        assert!(matches!(Store::open(&path).expect("a store").load(), Err(StoreError::Record(_))));
        edit("UPDATE registry_schema SET version = 2");
        assert!(matches!(Store::open(&path), Err(StoreError::Newer(2))));
    }
}
