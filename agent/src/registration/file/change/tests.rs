use std::fs;

use super::*;
use crate::registration::file::read_all;

const ORDERS: &str = "name = \"orders\"\nports = [{ port = 8080 }]\n";

fn orders() -> Key {
    Key::read("orders.default").expect("a key")
}

/// Registers what a file would say.
fn registered(directory: &Path, toml: &str) -> Result<LocalService, String> {
    let written: Written = toml::from_str(toml).expect("a registration");
    register(directory, &written, &Terms::default()).map_err(|error| error.to_string())
}

fn files(directory: &Path) -> Vec<(String, String)> {
    let paths = paths_in(directory).expect("a directory");
    let named = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        (name.to_owned(), fs::read_to_string(path).expect("a file"))
    };
    paths.iter().map(named).collect()
}

#[test]
fn what_another_file_registers_is_left_to_whoever_put_it_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let by_hand = directory.path().join("10-orders.toml");
    fs::write(&by_hand, ORDERS).expect("written");
    let before = files(directory.path());
    for more in ["", "user = 7\n", "unit = \"orders.service\"\n", "containerLabels = [\"app=orders\"]\n"] {
        let refused = registered(directory.path(), &format!("{more}{ORDERS}")).expect_err(more);
        assert!(refused.contains("/10-orders.toml: orders.default is registered"), "{refused}");
        assert!(refused.contains("remove the file first"), "{refused}");
    }
    let refused = deregister(directory.path(), &orders()).expect_err("not by this command").to_string();
    assert!(refused.contains("/10-orders.toml: orders.default is registered"), "{refused}");
    assert_eq!(files(directory.path()), before, "nothing is written, and nothing removed");
    assert_eq!(read_all(directory.path(), &Terms::default()).expect("a set").len(), 1);

    registered(directory.path(), "name = \"web\"\nports = [{ port = 80 }]").expect("another service");
    fs::remove_file(&by_hand).expect("removed");
    registered(directory.path(), ORDERS).expect("registered");
    assert_eq!(deregister(directory.path(), &orders()).expect("deregistered"), None);
}

#[test]
fn of_two_files_for_one_service_the_commands_own_is_removed_and_the_other_named() {
    let directory = tempfile::tempdir().expect("a directory");
    registered(directory.path(), ORDERS).expect("registered");
    let by_hand = directory.path().join("10-orders.toml");
    fs::write(&by_hand, ORDERS).expect("written");
    let refused = read_all(directory.path(), &Terms::default()).expect_err("twice").to_string();
    assert!(refused.contains("/default.orders.toml: ") && refused.contains("/10-orders.toml"), "{refused}");
    assert_eq!(deregister(directory.path(), &orders()).expect("removed"), Some(by_hand));
    assert_eq!(files(directory.path()).len(), 1);
}

#[test]
fn a_file_that_has_the_name_of_one_service_and_registers_another_is_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("default.orders.toml"), "name = \"billing\"\nports = [{ port = 81 }]")
        .expect("written");
    let before = files(directory.path());
    let refused = registered(directory.path(), ORDERS).expect_err("it would be lost");
    assert!(refused.contains("registers billing.default under the name of orders.default"), "{refused}");
    deregister(directory.path(), &orders()).expect_err("it is not orders'");
    assert_eq!(files(directory.path()), before);
}

#[test]
fn a_broken_file_of_the_command_is_removed_by_it() {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in [("default.orders.toml", "name = "), ("broken.toml", "name = ")] {
        fs::write(directory.path().join(name), text).expect("written");
    }
    assert_eq!(deregister(directory.path(), &orders()).expect("removed"), None);
    let unknown = deregister(directory.path(), &orders()).expect_err("it is gone");
    assert!(matches!(unknown, RegistrationError::Unknown(_)), "{unknown}");
}
