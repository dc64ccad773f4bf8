//! Registrations are files of one directory of their host, whoever writes them.

use std::fs;

use baremesh_tests::{Member, Mesh, output_of, run, wait_until};

const BILLING: &str = "name = \"billing\"\nports = [{ port = 80, targetPort = 7001 }]\n";

/// Has the agent read its registrations anew, as whoever manages the host's configuration does it.
fn hang_up(member: &Member) {
    output_of(member.host.sh(&format!("kill -HUP {}", member.agent_pid())));
}

fn registered(member: &Member) -> Vec<String> {
    let status = member.status().unwrap_or_default();
    let services = status["services"].as_array().cloned().unwrap_or_default();
    services.iter().filter_map(|service| Some(service["service"].as_str()?.to_owned())).collect()
}

/// What of the host itself was refused.
fn refused(member: &Member) -> String {
    let status = member.status().unwrap_or_default();
    status["refused"].as_array().into_iter().flatten().filter_map(|refused| refused.as_str()).collect()
}

#[test]
fn a_file_that_is_put_there_by_hand_registers_as_the_command_does_and_its_removal_deregisters() {
    let mesh = Mesh::new("registered");
    let (web, store) = (mesh.member("web", 1, &["web"]), mesh.member("store", 2, &["orders", "billing"]));
    store.host.serve("echo", ["echo", "127.0.0.1:7000", "127.0.0.1:7001"]);
    store.register("orders", ["--port", "81:7000"]);
    let directory = store.host.path("/etc/baremesh/registrations.d");
    let [orders, billing] = ["orders", "billing"].map(|name| directory.join(format!("default.{name}.toml")));
    assert!(orders.is_file(), "the command writes the file");

    fs::write(directory.join(".default.billing.toml"), "half of a fi").expect("written");
    fs::write(&billing, BILLING).expect("written");
    hang_up(&store);
    web.wait_for_endpoints("billing.default", 1);
    assert_eq!(output_of(web.host.shop(["call", "billing", "80", "hello"])), "hello");
    assert_eq!(output_of(store.host.baremesh(["service", "list"])).lines().count(), 3, "a head, and both");

    fs::remove_file(&orders).expect("removed");
    hang_up(&store);
    wait_until("one is deregistered", || registered(&store) == ["billing.default"]);
    wait_until("nobody is sent there", || web.endpoints("orders.default").unwrap_or_default() == 0);
    // What `systemctl reload` does.
    fs::remove_file(&billing).expect("removed");
    let _old = store.take_over();
    assert!(registered(&store).is_empty());
    wait_until("nobody is sent there", || web.endpoints("billing.default").unwrap_or_default() == 0);
}

/// A set with a broken file is not taken in part.
#[test]
fn a_broken_file_leaves_what_was_registered_in_force_and_is_named() {
    let mesh = Mesh::new("registered-broken");
    let store = mesh.member("store", 1, &["orders", "billing"]);
    store.register("orders", ["--port", "81:7000"]);
    let directory = store.host.path("/etc/baremesh/registrations.d");
    fs::write(directory.join("default.billing.toml"), BILLING).expect("written");
    fs::write(directory.join("default.web.toml"), "name = \"web\"\nport = 80\n").expect("written");
    hang_up(&store);
    let names_it = || refused(&store).contains("/etc/baremesh/registrations.d/default.web.toml");
    wait_until("the agent says which", names_it);
    let version = || store.status().and_then(|status| status["source"]["version"].as_u64());
    let before = version();
    mesh.apply("[[Service]]\nname = \"later\"\nports = [{ port = 80 }]\n");
    wait_until("the next state is in force", || version() > before);
    assert!(names_it(), "the next state says nothing of the file");
    let shown = run(store.host.baremesh(["status"]));
    assert!(String::from_utf8_lossy(&shown.stdout).contains("  refused       registrations: "), "{shown:?}");
    assert_eq!(shown.status.code(), Some(1));
    let new = store.start_to_take_over();
    assert!(!new.wait().success() && new.stderr().contains("default.web.toml"), "{}", new.stderr());
    assert_eq!(registered(&store), ["orders.default"]);
    fs::remove_file(directory.join("default.web.toml")).expect("removed");
    hang_up(&store);
    wait_until("the whole set is in force", || registered(&store) == ["billing.default", "orders.default"]);
    assert_eq!(refused(&store), "");
}

#[test]
fn a_service_that_another_file_registers_is_left_to_whoever_put_it_there() {
    let mesh = Mesh::new("registered-by-hand");
    let store = mesh.member("store", 1, &["billing"]);
    let directory = store.host.path("/etc/baremesh/registrations.d");
    fs::create_dir_all(&directory).expect("a directory");
    let by_hand = directory.join("10-billing.toml");
    fs::write(&by_hand, BILLING).expect("written");
    hang_up(&store);
    wait_until("it is registered", || registered(&store) == ["billing.default"]);
    for command in
        ["register billing --port 80:7001", "register billing -p 81 --unit b.service", "deregister billing"]
    {
        let refused = run(store.host.sh(&format!("baremesh service {command}")));
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("registrations.d/10-billing.toml: billing.default is registered"), "{said}");
        assert_eq!(refused.status.code(), Some(1), "{command}");
    }
    let files = fs::read_dir(&directory).expect("a directory");
    assert_eq!(files.count(), 1, "nothing is written");
    // A set with both would keep it from taking over.
    let _old = store.take_over();
    assert_eq!(registered(&store), ["billing.default"]);
    fs::remove_file(&by_hand).expect("removed");
    store.register("billing", ["--port", "80:7001"]);
    output_of(store.host.baremesh(["service", "deregister", "billing"]));
    assert!(registered(&store).is_empty());
}
