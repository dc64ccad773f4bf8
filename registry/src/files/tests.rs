//! Tests of directories: reading, following, changing.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use baremesh_model::mesh::ResourceId;
use baremesh_model::name::{Key, Label};
use tempfile::TempDir;

use super::*;
use crate::resource::KINDS;

fn service(name: &str) -> String {
    format!("[[Service]]\nname = \"{name}\"\nports = [{{ port = 80 }}]\n")
}

fn id(kind: &str, name: &str) -> ResourceId {
    let kind = KINDS.into_iter().find(|known| known.name() == kind).expect("a kind");
    let label = |text: &str| Label::new(text).expect("a label");
    ResourceId { kind, key: Key::new(label("default"), label(name)) }
}

struct Place {
    root: TempDir,
    directory: ResourceDirectory,
}

impl Place {
    fn new(files: &[(&str, &str)]) -> Self {
        let root = TempDir::new().expect("a temporary directory");
        let path = root.path().join("registry");
        fs::create_dir(&path).expect("a directory");
        let place = Self { directory: ResourceDirectory::new(&path), root };
        for (name, text) in files {
            place.write(name, text);
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("a file")
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.directory.path())
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        names
    }
}

fn services(loaded: &Loaded) -> Vec<String> {
    loaded.mesh.services.keys().map(|key| key.name.to_string()).collect()
}

fn refused<T: std::fmt::Debug>(result: Result<T, Refused>) -> String {
    result.expect_err("a refusal").to_string()
}

#[test]
fn reads_what_is_meant_and_nothing_else() {
    let place = Place::new(&[
        ("b.toml", &service("b")),
        ("a.yml", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n"),
        ("team/c.toml", &service("c")),
        ("team/deeper/d.toml", &service("d")),
        (".hidden.toml", "bad"),
        ("b.toml~", "bad"),
        (".b.toml.swp", "bad"),
        ("#b.toml#", "bad"),
        ("README.md", "bad"),
    ]);
    fs::write(place.root.path().join("elsewhere"), service("linked")).expect("a file");
    symlink(place.root.path().join("elsewhere"), place.path("linked.toml")).expect("a link");
    let loaded = place.directory.load().expect("a set");
    assert_eq!(services(&loaded), ["a", "b", "c", "linked"]);
    assert_eq!(loaded.warnings.len(), 1, "the folder that lies too deep");
}

#[test]
fn what_cannot_be_read_is_never_taken_for_nothing() {
    let place = Place::new(&[]);
    assert!(place.directory.load().is_ok(), "empty from the start is a mesh of nothing");
    symlink("nowhere", place.path("a.toml")).expect("a link");
    assert!(refused(place.directory.load()).contains("a.toml: Error [BM0301] cannot be read"));
    fs::remove_file(place.path("a.toml")).expect("removed");
    fs::create_dir(place.path("a.toml")).expect("a directory");
    assert!(place.directory.load().is_ok(), "a folder may have any name");
    fs::write(place.path("b.toml"), b"a = \"\xff\"").expect("a file");
    assert!(refused(place.directory.load()).contains("not UTF-8"));
    fs::write(place.path("b.toml"), vec![b'#'; 5 << 20]).expect("a file");
    assert!(refused(place.directory.load()).contains("larger than 4194304 bytes"));
    fs::remove_dir_all(place.directory.path()).expect("removed");
    assert!(refused(place.directory.load()).contains("[BM0301]"));
}

#[test]
fn applying_gives_each_resource_a_file_of_its_own() {
    let place = Place::new(&[]);
    let text = format!("# ours\n{}", service("orders"));
    let applied = place.directory.apply(&text, "-").expect("applied");
    assert_eq!(applied.changes[0].effect, Effect::Created);
    assert_eq!(place.names(), ["service.default.orders.toml"]);
    assert_eq!(place.read("service.default.orders.toml"), text, "the comment is kept");

    let again = place.directory.apply(&text, "x.toml").expect("applied");
    assert_eq!(again.changes[0].effect, Effect::Unchanged);
    assert_eq!(again.changes[0].diff(), "");

    let yaml =
        "apiVersion: baremesh.io/v1\nkind: Service\nmetadata: {name: orders}\nspec: {ports: [{port: 81}]}\n";
    let planned = place.directory.plan(yaml, "x.yaml").expect("a plan");
    assert!(planned.changes[0].diff().contains("+"), "{}", planned.changes[0].diff());
    assert_eq!(place.read("service.default.orders.toml"), text, "a plan writes nothing");
    let changed = place.directory.apply(yaml, "x.yaml").expect("applied");
    assert_eq!(changed.changes[0].effect, Effect::Changed);
    assert!(place.read("service.default.orders.toml").contains("port = 81"));

    let two = format!("{}{}", service("a"), service("b"));
    assert_eq!(place.directory.apply(&two, "-").expect("applied").changes.len(), 2);
    assert_eq!(services(&place.directory.load().expect("a set")), ["a", "b", "orders"]);
}

#[test]
fn applying_refuses_before_it_writes() {
    let both = format!("{}{}", service("a"), service("b"));
    let place = Place::new(&[("hand.toml", &both), ("own.toml", &service("own"))]);
    let changed = "[[Service]]\nname = \"b\"\nports = [{ port = 81 }]\n";
    let shared = refused(place.directory.apply(changed, "-"));
    assert!(shared.contains("hand.toml:4:1: Error [BM0303] (Service default/b)"), "{shared}");
    let orphan = "[[WorkloadEntry]]\nname = \"w\"\naddress = \"10.0.0.1\"\nservice = \"nobody\"\n";
    assert!(refused(place.directory.apply(orphan, "-")).contains("no Service `nobody.default`"));
    assert!(refused(place.directory.apply("# nothing\n", "-")).contains("no resource"));
    assert!(refused(place.directory.apply(&format!("{0}{0}", service("x")), "-")).contains("[BM0201]"));
    assert_eq!(place.names(), ["hand.toml", "own.toml"]);
    place.directory.apply(&service("own").replace("80", "81"), "-").expect("in place");
    assert!(place.read("own.toml").contains("81"));
}

#[test]
fn applying_mends_a_broken_file_of_its_own_and_no_other() {
    let place = Place::new(&[("service.default.a.toml", "[[Service]]\nname = "), ("z.toml", &service("z"))]);
    assert!(refused(place.directory.apply(&service("b"), "-")).contains("[BM0101]"));
    place.directory.apply(&service("a"), "-").expect("mended");
    assert_eq!(services(&place.directory.load().expect("a set")), ["a", "z"]);
}

#[test]
fn deleting_keeps_the_set_whole() {
    let entry = "[[WorkloadEntry]]\nname = \"w\"\naddress = \"10.0.0.1\"\nservice = \"a\"\n";
    let place = Place::new(&[("a.toml", &service("a")), ("w.toml", entry)]);
    assert!(refused(place.directory.delete(&id("Service", "a"))).contains("no Service `a.default`"));
    assert!(refused(place.directory.delete(&id("Service", "zz"))).contains("there is no Service default/zz"));
    let deleted = place.directory.delete(&id("WorkloadEntry", "w")).expect("deleted");
    assert_eq!((deleted.effect, deleted.after), (Effect::Deleted, None));
    place.directory.delete(&id("Service", "a")).expect("deleted");
    assert_eq!(place.names(), ["a.toml"], "a directory without files would look like a lost one");
    assert!(services(&place.directory.load().expect("a set")).is_empty());
}

/// Far beyond what any of this takes: a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

async fn until(watch: &mut Watch, expected: &[&str]) {
    let current = &mut watch.current;
    let came = current.wait_for(|loaded| services(loaded) == expected);
    tokio::time::timeout(PATIENCE, came).await.expect("in time").expect("still followed");
}

async fn until_error(watch: &mut Watch, part: &str) {
    let says =
        |status: &Status| status.last_error.as_ref().is_some_and(|error| error.to_string().contains(part));
    let came = watch.status.wait_for(says);
    tokio::time::timeout(PATIENCE, came).await.expect("in time").expect("still followed");
}

#[tokio::test]
async fn follows_every_way_of_writing() {
    let place = Place::new(&[("a.toml", &service("a"))]);
    let mut watch = place.directory.watch(None).expect("followed");
    until(&mut watch, &["a"]).await;
    place.write("a.toml", &service("rewritten"));
    until(&mut watch, &["rewritten"]).await;
    place.write(".a.toml.new", &service("renamed"));
    fs::rename(place.path(".a.toml.new"), place.path("a.toml")).expect("renamed");
    until(&mut watch, &["renamed"]).await;
    place.write("team/b.toml", &service("b"));
    until(&mut watch, &["b", "renamed"]).await;
    place.write("team/b.toml", &service("b2"));
    until(&mut watch, &["b2", "renamed"]).await;
    fs::remove_file(place.path("a.toml")).expect("removed");
    until(&mut watch, &["b2"]).await;
    place.directory.apply(&service("applied"), "-").expect("applied");
    until(&mut watch, &["applied", "b2"]).await;
}

#[tokio::test]
async fn keeps_the_last_good_set() {
    let place = Place::new(&[("a.toml", &service("a"))]);
    let mut watch = place.directory.watch(None).expect("followed");
    place.write("a.toml", "[[Service]]\nname = ");
    until_error(&mut watch, "a.toml:2:").await;
    until(&mut watch, &["a"]).await;
    place.write("a.toml", "");
    until_error(&mut watch, "is empty, and was not").await;
    fs::remove_file(place.path("a.toml")).expect("removed");
    until_error(&mut watch, "all files are gone at once").await;
    fs::remove_dir_all(place.directory.path()).expect("removed");
    until_error(&mut watch, "cannot be read").await;
    until(&mut watch, &["a"]).await;
    place.write("b.toml", &service("back"));
    until(&mut watch, &["back"]).await;
    let status = watch.status.borrow().clone();
    assert!(status.last_error.is_none() && status.errors >= 4, "{status:?}");
}

#[tokio::test]
async fn follows_a_link_that_is_swapped() {
    let root = TempDir::new().expect("a temporary directory");
    for (name, service_name) in [("one", "a"), ("two", "b")] {
        fs::create_dir(root.path().join(name)).expect("a directory");
        fs::write(root.path().join(name).join("s.toml"), service(service_name)).expect("a file");
    }
    let link = root.path().join("registry");
    symlink("one", &link).expect("a link");
    let mut watch = ResourceDirectory::new(&link).watch(None).expect("followed");
    until(&mut watch, &["a"]).await;
    symlink("two", root.path().join("aside")).expect("a link");
    fs::rename(root.path().join("aside"), &link).expect("swapped");
    until(&mut watch, &["b"]).await;
    fs::write(root.path().join("two/s.toml"), service("c")).expect("a file");
    until(&mut watch, &["c"]).await;
}

#[tokio::test]
async fn starts_from_the_last_good_set() {
    let place = Place::new(&[("a.toml", &service("a"))]);
    let last_good = std::sync::Arc::new(place.directory.load().expect("a set"));
    fs::remove_file(place.path("a.toml")).expect("removed");
    let mut watch = place.directory.watch(Some(last_good)).expect("followed");
    until(&mut watch, &["a"]).await;
    until_error(&mut watch, "all files are gone at once").await;
    place.write("b.toml", &service("b"));
    until(&mut watch, &["b"]).await;
    fs::remove_dir_all(place.directory.path()).expect("removed");
    assert!(place.directory.watch(None).is_err(), "nothing to start from");
}
