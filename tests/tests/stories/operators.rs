//! Operators work from other machines with a credential of their own, within their role, on record; nobody else does.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use baremesh_tests::{Host, Mesh, output_of, run, wait_for_errors};
use serde_json::Value;

use crate::impostor::{bundle_of, stolen};
use crate::raw_peer;

/// Adds an operator on the control host, and takes its credential to the machine `desk`.
fn add(mesh: &Mesh, desk: &Host, arguments: &[&str]) -> String {
    let name = arguments[0];
    let file = format!("/run/baremesh/{name}.credential");
    let address = mesh.control.v4().to_string();
    let rest = ["--file", &file, "--address", &address];
    let command = ["operator", "add"].iter().chain(arguments).chain(&rest);
    output_of(mesh.control.baremesh(command));
    let made = mesh.control.path(&file);
    let mode = |path: &Path| std::fs::metadata(path).expect("a file").permissions().mode() & 0o7777;
    assert_eq!(mode(&made), 0o600);
    let taken = desk.path(&file);
    std::fs::create_dir_all(taken.parent().expect("a directory")).expect("the desk's directory");
    std::fs::copy(&made, &taken).expect("carried over");
    std::fs::remove_file(made).expect("removed");
    assert_eq!(mode(&taken), 0o600);
    file
}

/// What a command at the desk says when it is refused.
#[track_caller]
fn refused(desk: &Host, line: &str) -> String {
    let output = run(desk.sh(&format!("baremesh {line}")));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "baremesh {line}: {said}");
    said
}

fn write(desk: &Host, name: &str, text: &str) -> String {
    let file = format!("/run/baremesh/{name}");
    std::fs::write(desk.path(&file), text).expect("written");
    file
}

fn service(namespace: &str, name: &str) -> String {
    format!("[[Service]]\nname = \"{name}\"\nnamespace = \"{namespace}\"\nports = [{{ port = 80 }}]\n")
}

#[test]
fn an_editor_changes_its_namespace_from_another_machine_and_nothing_else() {
    let mesh = Mesh::new("editor");
    let desk = mesh.net.host("desk", 1);
    let credential = add(&mesh, &desk, &["alice", "--role", "editor", "--namespace", "shop"]);
    let own = write(&desk, "own.toml", &service("shop", "tea"));
    let said = output_of(desk.sh(&format!("baremesh apply -f {own} --credential {credential}")));
    assert!(said.contains("Service shop/tea created"), "{said}");
    let get = format!("BAREMESH_CREDENTIAL={credential} baremesh get services -o json");
    let listed: Value = serde_json::from_str(&output_of(desk.sh(&get))).expect("JSON");
    assert_eq!(listed["items"][0]["metadata"]["name"], "tea");

    let grant = "[[HostGrant]]\nname = \"g\"\nnamespace = \"shop\"\nhost = \"*\"\nservices = [\"*.*\"]\n";
    let route = "[[VirtualService]]\nname = \"r\"\nnamespace = \"shop\"\nhosts = [\"till.billing\"]\n\
        http = [{ route = [{ destination = { host = \"tea.shop\" } }] }]\n";
    let open = "[[PeerAuthentication]]\nname = \"default\"\nnamespace = \"mesh-system\"\nmtls = { mode = \"DISABLE\" }\n";
    for (number, beyond) in [&service("billing", "till"), grant, route, open].into_iter().enumerate() {
        let file = write(&desk, &format!("{number}.toml"), &(service("shop", "milk") + beyond));
        let said = refused(&desk, &format!("apply -f {file} --credential {credential}"));
        assert!(said.contains("operator alice may not do this"), "{said}");
    }
    for line in [
        "delete PeerAuthentication default -n mesh-system",
        "token create --service orders",
        "token list",
        "operator add mallory --role admin",
        "operator list",
        "host revoke web",
        "audit",
    ] {
        refused(&desk, &format!("{line} --credential {credential}"));
    }
    let after: Value = serde_json::from_str(&output_of(desk.sh(&get))).expect("JSON");
    assert_eq!(after, listed, "nothing of what was refused was done");
    assert!(
        output_of(desk.sh(&format!("baremesh status --credential {credential}"))).contains("Control server")
    );

    let audit: Value =
        serde_json::from_str(&output_of(mesh.control.baremesh(["audit", "-o", "json"]))).expect("JSON");
    let of_alice: Vec<_> =
        audit.as_array().expect("lines").iter().filter(|line| line["who"] == "operator alice").collect();
    assert_eq!(of_alice.iter().filter(|line| line["refused"].is_null()).count(), 1, "{audit}");
    assert_eq!(of_alice.iter().filter(|line| !line["refused"].is_null()).count(), 11, "{audit}");
    // A credential that others could read is not used, and one of another mesh is nobody's.
    std::fs::set_permissions(desk.path(&credential), std::fs::Permissions::from_mode(0o640))
        .expect("changed");
    let exposed = run(desk.sh(&format!("baremesh get --credential {credential}")));
    assert_eq!(exposed.status.code(), Some(2));
    let other = Mesh::new("editor-b");
    let stranger = add(&other, &desk, &["mallory", "--role", "admin"]);
    refused(&desk, &format!("get --credential {stranger} --control {}", mesh.control.v4()));
}

#[test]
fn a_removed_operator_is_refused_at_once() {
    let mesh = Mesh::new("removed");
    let desk = mesh.net.host("desk", 1);
    let credential = add(&mesh, &desk, &["ada", "--role", "admin"]);
    let get = format!("baremesh get --credential {credential}");
    output_of(desk.sh(&get));
    // An admin does from afar what is done on the control host, the making of others included.
    let line = format!("baremesh token create --service web --credential {credential}");
    assert!(output_of(desk.sh(&line)).starts_with("bm1."));
    assert!(
        output_of(desk.sh(&format!("baremesh audit --credential {credential}"))).contains("create token")
    );
    output_of(mesh.control.baremesh(["operator", "remove", "ada"]));
    let said = refused(&desk, &format!("get --credential {credential}"));
    assert!(said.contains("there is no operator ada"), "{said}");
    assert!(output_of(mesh.control.baremesh(["operator", "list"])).contains("no operators"));
}

#[test]
fn a_change_is_taken_back_with_its_effect() {
    let mesh = Mesh::new("rollback");
    let desk = mesh.net.host("desk", 1);
    let credential = add(&mesh, &desk, &["alice", "--role", "editor", "-n", "shop"]);
    let at = |line: &str| output_of(desk.sh(&format!("baremesh {line} --credential {credential}")));
    for name in ["tea", "milk"] {
        at(&format!("apply -f {}", write(&desk, name, &service("shop", name))));
    }
    assert!(at("history").contains("operator alice: apply"), "who did what");
    assert!(at("rollback 1 --dry-run").contains("Service shop/tea would be deleted"));
    assert_eq!(at("get services").lines().count(), 3, "a head, and both");
    at("rollback 1");
    assert_eq!(at("get services"), "no resources");
    mesh.apply(&service("shop", "honey"));
    let said = refused(&desk, &format!("rollback 2 --credential {credential}"));
    assert!(said.contains("version 4 of uid 0") && said.contains("--force"), "{said}");
    assert!(at("get services").contains("honey"));
}

/// What a host has is for being that host: its node credential and its services' certificates give no orders. And what an
/// operator has opens the control server alone.
#[test]
fn a_node_credential_gives_no_orders_and_an_operator_s_is_no_member() {
    let mesh = Mesh::new("mixed-up");
    let (web, desk) = (mesh.member("web", 1, &["web"]), mesh.net.host("desk", 2));
    web.register("web", ["--port", "80"]);
    let state = web.host.path("/var/lib/baremesh");
    let roots = std::fs::read_to_string(mesh.control.path("/var/lib/baremesh/ca/root.crt")).expect("a root");
    let file =
        write(&web.host, "evil.toml", "[[HostGrant]]\nname = \"evil\"\nhost = \"*\"\nservices = [\"*.*\"]\n");
    for pem in ["node/node.pem", "certificates/default.web.pem"] {
        let issued = stolen(&state.join(pem));
        // The command takes no other than an operator's; past it, the server refuses.
        let text = format!(
            "trust_domain = \"mesh.internal\"\ncontrol = \"{}\"\ncredential = '''\n{}'''\nroots = '''\n{roots}'''\n",
            mesh.control.v4(),
            issued.to_pem()
        );
        let forged = write(&web.host, "forged.credential", &text);
        std::fs::set_permissions(web.host.path(&forged), std::fs::Permissions::from_mode(0o600))
            .expect("changed");
        let output = run(web.host.sh(&format!("baremesh apply -f {file} --credential {forged}")));
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
        let order = |method, path| {
            raw_peer::order(&web.host, mesh.control.v4(), &issued, bundle_of(&mesh), (method, path))
        };
        assert_eq!(order("POST", "/v1/admin/apply"), Some(403), "{pem}");
        assert_eq!(order("GET", "/v1/admin/status"), Some(403), "{pem}");
    }
    wait_for_errors(&mesh.control, "control", &["not_an_operator"]);

    let credential = add(&mesh, &desk, &["web", "--role", "admin"]);
    let operator = stolen(&desk.path(&credential));
    for path in ["/v1/certificates", "/v1/state", "/v1/addresses"] {
        let answer = raw_peer::order(&desk, mesh.control.v4(), &operator, bundle_of(&mesh), ("POST", path));
        assert_eq!(answer, Some(403), "{path}");
    }
    let answer = raw_peer::connect(&desk, web.host.v4(), "web", &operator, bundle_of(&mesh), "10.77.0.1:80");
    assert_eq!(answer, None, "the handshake is refused");
    web.wait_for_log("the refusal", |line| line["response_code_details"] == "handshake_failed");
}
