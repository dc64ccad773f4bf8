//! What a transaction changed, row by row, and changing the same in another file. Triggers of the connection write each change
//! down, so that no write can be forgotten.

use rusqlite::types::Value as Sql;
use rusqlite::{Connection, params_from_iter};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::LedgerError;
use super::entry::from_hexadecimal;

/// The tables that are shared. Those of changed resources are not: each process keeps the history of what it was asked for.
const TABLES: [&str; 7] = ["tokens", "hosts", "issued", "audit", "revoked", "revocation_list", "operators"];

/// One row that is changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Change {
    /// The row is so, whether it was there or not.
    Put(String, Map<String, Json>),
    /// The row with this key is gone.
    Gone(String, Map<String, Json>),
}

/// A column.
struct Column {
    name: String,
    is_blob: bool,
    is_key: bool,
}

fn columns(connection: &Connection, table: &str) -> Result<Vec<Column>, LedgerError> {
    let mut statement =
        connection.prepare_cached("SELECT name, type, pk FROM pragma_table_info(?1) ORDER BY cid")?;
    let rows = statement.query_map([table], |row| {
        let (kind, key): (String, i64) = (row.get("type")?, row.get("pk")?);
        Ok(Column { name: row.get("name")?, is_blob: kind == "BLOB", is_key: key > 0 })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Has every change of this connection written down.
pub(super) fn watch(connection: &Connection) -> Result<(), LedgerError> {
    connection.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS changed (id INTEGER PRIMARY KEY, gone INTEGER NOT NULL, of TEXT NOT NULL, row TEXT NOT NULL);",
    )?;
    for table in TABLES {
        let columns = columns(connection, table)?;
        let object = |which: &str, keys_alone: bool| {
            let fields = columns.iter().filter(|column| column.is_key || !keys_alone).map(
                |Column { name, is_blob, .. }| match is_blob {
                    true => {
                        format!("'{name}', iif({which}.{name} IS NULL, NULL, lower(hex({which}.{name})))")
                    }
                    false => format!("'{name}', {which}.{name}"),
                },
            );
            format!("json_object({})", fields.collect::<Vec<_>>().join(", "))
        };
        let (put, gone) = (object("NEW", false), object("OLD", true));
        for (event, is_gone, row) in [("INSERT", 0, &put), ("UPDATE", 0, &put), ("DELETE", 1, &gone)] {
            connection.execute_batch(&format!(
                "CREATE TEMP TRIGGER IF NOT EXISTS {table}_{event} AFTER {event} ON main.{table} BEGIN
                    INSERT INTO changed (gone, of, row) VALUES ({is_gone}, '{table}', {row}); END;"
            ))?;
        }
    }
    Ok(())
}

/// What was changed since this was asked last, in order.
pub(super) fn taken(connection: &Connection) -> Result<Vec<Change>, LedgerError> {
    let mut statement = connection.prepare_cached("SELECT gone, of, row FROM temp.changed ORDER BY id")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let mut changes = Vec::new();
    for row in rows {
        let (gone, of, row): (bool, String, String) = row?;
        let row = serde_json::from_str(&row).map_err(|_| LedgerError::Corrupt("change"))?;
        changes.push(if gone { Change::Gone(of, row) } else { Change::Put(of, row) });
    }
    connection.prepare_cached("DELETE FROM temp.changed WHERE 1")?.execute([])?;
    Ok(changes)
}

/// Changes what another process changed.
pub(super) fn apply(connection: &Connection, changes: &[Change]) -> Result<(), LedgerError> {
    for change in changes {
        let (table, row) = match change {
            Change::Put(table, row) | Change::Gone(table, row) => (table, row),
        };
        // A name within SQL is one of these, and never what stands in an entry.
        let table = TABLES.into_iter().find(|known| known == table).ok_or(LedgerError::Corrupt("change"))?;
        let columns = columns(connection, table)?;
        if row.keys().any(|key| !columns.iter().any(|column| column.name == *key)) {
            return Err(LedgerError::Corrupt("change"));
        }
        let wanted = |column: &&Column| matches!(change, Change::Put(..)) || column.is_key;
        let columns: Vec<&Column> = columns.iter().filter(wanted).collect();
        let values = columns.iter().map(|column| value(row.get(&column.name), column));
        let values: Vec<Sql> = values.collect::<Result<_, _>>()?;
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        let sql = match change {
            Change::Put(..) => {
                let key =
                    columns.iter().find(|column| column.is_key).ok_or(LedgerError::Corrupt("change"))?;
                let places = vec!["?"; names.len()].join(", ");
                let set: Vec<String> = names.iter().map(|name| format!("{name} = excluded.{name}")).collect();
                format!(
                    "INSERT INTO {table} ({}) VALUES ({places}) ON CONFLICT ({}) DO UPDATE SET {}",
                    names.join(", "),
                    key.name,
                    set.join(", ")
                )
            }
            Change::Gone(..) => {
                let is: Vec<String> = names.iter().map(|name| format!("{name} = ?")).collect();
                format!("DELETE FROM {table} WHERE {}", is.join(" AND "))
            }
        };
        connection.prepare_cached(&sql)?.execute(params_from_iter(values))?;
    }
    // What was changed here is no news of this process.
    taken(connection).map(drop)
}

fn value(json: Option<&Json>, column: &Column) -> Result<Sql, LedgerError> {
    let corrupt = || LedgerError::Corrupt("change");
    match json {
        None | Some(Json::Null) => Ok(Sql::Null),
        Some(Json::Number(number)) => number.as_i64().map(Sql::Integer).ok_or_else(corrupt),
        Some(Json::String(text)) if column.is_blob => {
            from_hexadecimal(text).map(Sql::Blob).ok_or_else(corrupt)
        }
        Some(Json::String(text)) => Ok(Sql::Text(text.clone())),
        Some(Json::Bool(_) | Json::Array(_) | Json::Object(_)) => Err(corrupt()),
    }
}
