//! Registering and deregistering by command. Each service that is registered so has a file by its name; what stands in any
//! other file was put there by whoever manages the host's configuration, and is left to them.

use std::io;
use std::path::{Path, PathBuf};

use baremesh_ca::file::{PUBLIC, write_atomically};
use baremesh_model::name::Key;

use super::{
    LocalService, RegistrationError, Terms, Written, against_terms, conflict, path_of, paths_in, read,
    read_each,
};
use crate::registration::HostRole;

/// Registers a service: checks it beside the others, then writes its file. Registering it again replaces it, and nothing is
/// written where another file registers it, or where its file registers another service.
pub fn register(
    directory: &Path,
    written: &Written,
    terms: &Terms,
) -> Result<LocalService, RegistrationError> {
    let fault = |fault| RegistrationError::Content { path: directory.to_owned(), fault };
    let local = LocalService::try_from(written).map_err(|bad| fault(bad.to_string()))?;
    let path = path_of(directory, &local.key);
    if let Some(fault) = against_terms(&local, terms) {
        return Err(RegistrationError::Conflict { path, fault });
    }
    // What stands against another one is not this one's fault: the agent says so.
    for other in read_each(directory, &Terms { role: HostRole::Gateway, ..Terms::default() })? {
        match (other.local.key == local.key, other.path == path) {
            (true, true) => {}
            (true, false) => {
                let fault = format!(
                    "{} is registered in this file, which `baremesh service` does not write: change it there and \
                     `systemctl reload baremesh`, or remove the file first",
                    local.key
                );
                return Err(RegistrationError::Conflict { path: other.path, fault });
            }
            (false, true) => return Err(of_another(path, &other.local.key, &local.key)),
            (false, false) => {
                if let Some(fault) = conflict(&other.local, &local) {
                    return Err(RegistrationError::Conflict { path, fault });
                }
            }
        }
    }
    let text = toml::to_string(written).map_err(|error| fault(error.to_string()))?;
    std::fs::create_dir_all(directory)
        .map_err(|source| RegistrationError::File { path: directory.to_owned(), source })?;
    write_atomically(&path, text.as_bytes(), PUBLIC)?;
    Ok(local)
}

/// Deregisters a service that was registered by command, whatever has become of its file. The path is of another file that
/// registers it still, where there is one.
pub fn deregister(directory: &Path, key: &Key) -> Result<Option<PathBuf>, RegistrationError> {
    let path = path_of(directory, key);
    if let Ok((_, local)) = read(&path)
        && local.key != *key
    {
        return Err(of_another(path, &local.key, key));
    }
    // What cannot be read registers nothing, and neither that nor too many files is a reason to keep this one.
    let registers = |other: &PathBuf| *other != path && read(other).is_ok_and(|(_, local)| local.key == *key);
    let elsewhere = paths_in(directory).unwrap_or_default().into_iter().find(registers);
    match (std::fs::remove_file(&path), elsewhere) {
        (Ok(()), elsewhere) => Ok(elsewhere),
        (Err(error), Some(other)) if error.kind() == io::ErrorKind::NotFound => {
            let fault = format!(
                "{key} is registered in this file, which `baremesh service` does not write: remove it, by hand or by \
                 what put it there, and `systemctl reload baremesh`"
            );
            Err(RegistrationError::Conflict { path: other, fault })
        }
        (Err(error), None) if error.kind() == io::ErrorKind::NotFound => {
            Err(RegistrationError::Unknown(key.clone()))
        }
        (Err(source), _) => Err(RegistrationError::File { path, source }),
    }
}

/// A file by the name of one service that registers another: neither is to be lost.
fn of_another(path: PathBuf, registered: &Key, meant: &Key) -> RegistrationError {
    let fault = format!("registers {registered} under the name of {meant}: give the file another name");
    RegistrationError::Conflict { path, fault }
}

#[cfg(test)]
mod tests;
