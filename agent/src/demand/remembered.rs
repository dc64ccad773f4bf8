//! The file of what is called from this host. It says nothing that could not be learnt anew: one that is damaged is not used,
//! and the next first call waits.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use baremesh_ca::file::{FileError, SECRET, write_atomically};
use baremesh_model::name::Key;
use baremesh_registry::control::subscription::MAX_SUBSCRIBED;
use serde::{Deserialize, Serialize};

use super::Seconds;

/// Most bytes of the file: more than `MAX_SUBSCRIBED` names of full length take.
const MAX_FILE: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Remembered {
    /// Services with when they were seen called last, in seconds since 1970.
    called: BTreeMap<String, Seconds>,
}

/// What the file says; nothing where there is none.
pub(super) fn load(file: &Path) -> Result<BTreeMap<Key, Seconds>, String> {
    let failed = |error: String| format!("{}: {error}", file.display());
    let mut bytes = Vec::new();
    match File::open(file) {
        Ok(opened) => opened.take(MAX_FILE).read_to_end(&mut bytes).map_err(|e| failed(e.to_string()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(error.to_string())),
    };
    let read: Remembered = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
    let keys = read.called.into_iter().filter_map(|(name, last)| Some((Key::read(&name)?, last)));
    Ok(keys.take(MAX_SUBSCRIBED + 1).collect())
}

/// Writes the file. It blocks.
pub(super) fn save(file: &Path, called: &BTreeMap<Key, Seconds>) -> Result<(), FileError> {
    let called = called.iter().map(|(key, last)| (key.to_string(), *last)).collect();
    let bytes = serde_json::to_vec(&Remembered { called }).expect("names and numbers are JSON");
    write_atomically(file, &bytes, SECRET)
}
