//! Drop-ins of units: what `baremesh service register --drop-in` lays beside a unit's file, so that the unit starts after the
//! mesh, and so that systemd notes its control group in the service's set before its first process runs. A file of this name that
//! does not say in its first line that it is ours is somebody else's, and is neither changed nor removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use baremesh_ca::file::{FileError, PUBLIC, write_atomically};
use baremesh_model::name::Key;

use crate::attribution::UnitName;
use crate::capture::nft_set_setting;

/// Where systemd has the administrator's units.
const SYSTEM: &str = "/etc/systemd/system";
/// The file in a unit's directory of drop-ins.
const FILE: &str = "50-baremesh.conf";
/// What the first line begins with; the service follows.
const FIRST_LINE: &str = "# baremesh: service ";
/// The first version of systemd that has `NFTSet=`.
pub const HAS_NFT_SET: u32 = 255;

/// Why a drop-in is not laid down or removed.
#[derive(Debug, thiserror::Error)]
pub enum DropInError {
    /// A unit without a file.
    #[error(
        "`{0}` is no unit with a file of its own: a scope is made by a program, and takes no drop-in; leave `--drop-in` out"
    )]
    NoFile(String),
    /// The agent cannot start after itself.
    #[error("`{0}` is a unit of baremesh itself: it takes no drop-in")]
    Own(String),
    /// A file of that name that we did not write.
    #[error(
        "{} is there and was not written by `baremesh service register`: give it another name, or register without `--drop-in`",
        .0.display()
    )]
    Foreign(PathBuf),
    /// One that we wrote for another service.
    #[error(
        "{} is of service {service}: register that without `--drop-in` first, or deregister it",
        path.display()
    )]
    OfAnother {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        service: String,
    },
    /// It could not be read, written or removed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It could not be written.
    #[error(transparent)]
    Write(#[from] FileError),
}

/// The drop-ins below a directory of units.
#[derive(Debug, Clone)]
pub struct DropIns {
    directory: PathBuf,
}

impl DropIns {
    /// Those of the host.
    pub fn of_system() -> Self {
        Self::below(SYSTEM)
    }

    /// Those below another directory.
    pub fn below(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Where the drop-in of a service's unit belongs. Fails where something else stands in its place, or the unit can have none.
    pub fn place(&self, key: &Key, unit: &UnitName) -> Result<PathBuf, DropInError> {
        let name = unit.as_str();
        if !name.ends_with(".service") {
            return Err(DropInError::NoFile(name.to_owned()));
        }
        if matches!(name, "baremesh.service" | "baremesh-boot.service" | "baremesh-control.service") {
            return Err(DropInError::Own(name.to_owned()));
        }
        // A unit's name has no slash, so this is directly below the directory.
        let path = self.directory.join(format!("{name}.d")).join(FILE);
        match owner(&path)? {
            Owner::Nobody => Ok(path),
            Owner::Service(service) if service == key.to_string() => Ok(path),
            Owner::Service(service) => Err(DropInError::OfAnother { path, service }),
            Owner::Somebody => Err(DropInError::Foreign(path)),
        }
    }

    /// Lays it down. `systemd` is the version that will read it.
    pub fn lay(&self, key: &Key, unit: &UnitName, systemd: u32) -> Result<PathBuf, DropInError> {
        let path = self.place(key, unit)?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .map_err(|source| DropInError::File { path: directory.into(), source })?;
        }
        write_atomically(&path, text(key, systemd).as_bytes(), PUBLIC)?;
        Ok(path)
    }

    /// Removes the drop-ins of a service, but `keep`, and their directories where nothing else is in them.
    pub fn remove(&self, key: &Key, keep: Option<&Path>) -> Result<Vec<PathBuf>, DropInError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(DropInError::File { path: self.directory.clone(), source }),
        };
        let mut removed = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| DropInError::File { path: self.directory.clone(), source })?;
            let (directory, path) = (entry.path(), entry.path().join(FILE));
            let is_of_a_unit = directory.extension().is_some_and(|end| end == "d");
            let stays = keep == Some(path.as_path());
            if !is_of_a_unit || stays || owner(&path)? != Owner::Service(key.to_string()) {
                continue;
            }
            fs::remove_file(&path).map_err(|source| DropInError::File { path: path.clone(), source })?;
            // One with other files in it stays.
            let _ = fs::remove_dir(&directory);
            removed.push(path);
        }
        Ok(removed)
    }

    /// Whether a drop-in of ours has systemd note the service's unit.
    pub fn notes(&self, key: &Key, unit: &UnitName) -> bool {
        let path = self.directory.join(format!("{}.d", unit.as_str())).join(FILE);
        fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| line == nft_set_setting(key)))
    }
}

/// Whose a file is.
#[derive(Debug, PartialEq, Eq)]
enum Owner {
    Nobody,
    Service(String),
    Somebody,
}

fn owner(path: &Path) -> Result<Owner, DropInError> {
    let failed = |source| DropInError::File { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Owner::Nobody);
        }
        Err(source) => return Err(failed(source)),
        Ok(metadata) if !metadata.is_file() => return Ok(Owner::Somebody),
        Ok(_) => {}
    }
    // Somebody else's need not be text.
    let bytes = fs::read(path).map_err(failed)?;
    let text = String::from_utf8_lossy(&bytes);
    let service = text.lines().next().and_then(|line| line.strip_prefix(FIRST_LINE));
    Ok(service.map_or(Owner::Somebody, |service| Owner::Service(service.to_owned())))
}

fn text(key: &Key, systemd: u32) -> String {
    let mut text = format!(
        "{FIRST_LINE}{key}\n\
         # Written by `baremesh service register --drop-in`. Registering the service without it, or deregistering it, removes this file.\n\
         \n\
         [Unit]\n\
         Wants=baremesh.service\n\
         After=baremesh.service\n"
    );
    if systemd >= HAS_NFT_SET {
        let setting = nft_set_setting(key);
        // systemd notes no unit of which it controls nothing; where the defaults are others it would not even count tasks.
        text.push_str(&format!(
            "\n[Service]\n\
             # systemd notes the unit here before its first process runs: where it reaches the registry alone it is held from then on.\n\
             TasksAccounting=yes\n\
             {setting}\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use baremesh_model::name::Label;
    use tempfile::TempDir;

    use super::*;

    fn key(name: &str) -> Key {
        let label = |text: &str| Label::new(text).expect("a label");
        Key::new(label("shop"), label(name))
    }

    fn unit(name: &str) -> UnitName {
        UnitName::new(name).expect("a unit")
    }

    #[test]
    fn a_drop_in_is_laid_down_replaced_and_removed() {
        let directory = TempDir::new().expect("a directory");
        let drop_ins = DropIns::below(directory.path());
        let path = drop_ins.lay(&key("or-ders"), &unit("app@1.service"), 257).expect("laid");
        assert_eq!(path, directory.path().join("app@1.service.d/50-baremesh.conf"));
        let text = fs::read_to_string(&path).expect("it is there");
        assert!(text.contains("[Unit]\nWants=baremesh.service\nAfter=baremesh.service\n"), "{text}");
        assert!(text.ends_with("NFTSet=cgroup:inet:baremesh_units:unit.shop.or_ders\n"), "{text}");
        assert!(drop_ins.notes(&key("or-ders"), &unit("app@1.service")));
        drop_ins.lay(&key("or-ders"), &unit("app@1.service"), 254).expect("laid again");
        assert!(!fs::read_to_string(&path).expect("it is there").contains("NFTSet"));
        assert!(!drop_ins.notes(&key("or-ders"), &unit("app@1.service")));
        // Of another unit now.
        let other = drop_ins.lay(&key("or-ders"), &unit("b.service"), 257).expect("laid");
        assert_eq!(drop_ins.remove(&key("or-ders"), Some(&other)).expect("removed"), [path]);
        assert!(!directory.path().join("app@1.service.d").exists() && other.exists());
        fs::write(directory.path().join("b.service.d/mine.conf"), "").expect("written");
        assert_eq!(drop_ins.remove(&key("or"), None).expect("nothing"), Vec::<PathBuf>::new());
        assert_eq!(drop_ins.remove(&key("or-ders"), None).expect("removed"), [other]);
        assert!(directory.path().join("b.service.d/mine.conf").exists());
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let directory = TempDir::new().expect("a directory");
        let drop_ins = DropIns::below(directory.path());
        let path = directory.path().join("a.service.d").join(FILE);
        fs::create_dir(path.parent().expect("a directory")).expect("made");
        for theirs in ["", "[Service]\n", "\n# baremesh: service orders.shop\n"] {
            fs::write(&path, theirs).expect("written");
            let error = drop_ins.lay(&key("orders"), &unit("a.service"), 257).expect_err("refused");
            assert!(matches!(error, DropInError::Foreign(_)), "{error}");
            assert_eq!(drop_ins.remove(&key("orders"), None).expect("nothing"), Vec::<PathBuf>::new());
            assert_eq!(fs::read_to_string(&path).expect("it is there"), theirs);
        }
        fs::write(&path, "# baremesh: service carts.shop\n").expect("written");
        let error = drop_ins.lay(&key("orders"), &unit("a.service"), 257).expect_err("refused");
        assert!(error.to_string().contains("is of service carts.shop"), "{error}");
        fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink("/dev/null", &path).expect("linked");
        assert!(drop_ins.lay(&key("orders"), &unit("a.service"), 257).is_err());
    }

    #[test]
    fn units_without_a_file_take_none() {
        let drop_ins = DropIns::below("/nowhere");
        for name in ["shop.scope", "baremesh.service", "baremesh-control.service"] {
            assert!(drop_ins.place(&key("orders"), &unit(name)).is_err(), "{name}");
        }
        assert!(drop_ins.place(&key("orders"), &unit("baremesh-shop.service")).is_ok());
        // Nothing that a unit may be named leads elsewhere.
        for name in ["../../etc/x.service", "/x.service", "a/b.service", "..", "a\n.service"] {
            assert!(UnitName::new(name).is_err(), "{name}");
        }
        assert_eq!(drop_ins.remove(&key("orders"), None).expect("nothing"), Vec::<PathBuf>::new());
    }
}
