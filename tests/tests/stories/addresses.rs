//! Whose address it is: hosts announce the addresses that they speak from, and nobody else's.

use baremesh_tests::{Member, Mesh, errors_of, exit, exit_code_of, output_of, wait_until};
use serde_json::Value;

/// What `baremesh status` on the control host says of a service of a host.
fn registration(mesh: &Mesh, host: &str, service: &str) -> Option<Value> {
    let status: Value =
        serde_json::from_str(&output_of(mesh.control.baremesh(["status", "-o", "json"]))).ok()?;
    let hosts = status["control"]["hosts"].as_array()?;
    let host = hosts.iter().find(|known| known["host"] == host)?;
    let found = host["registrations"].as_array()?.iter().find(|known| known["service"] == service);
    found.cloned()
}

/// Whether connections to an address of a service are captured on a member, as those to its endpoints are.
fn captures(member: &Member, address: &str) -> bool {
    output_of(member.host.baremesh(["capture", "plan"])).contains(address)
}

#[test]
fn a_host_cannot_announce_another_s_address() {
    let mesh = Mesh::new("others");
    let (web, thief) = (mesh.member("web", 1, &["web"]), mesh.member("thief", 2, &["thief"]));
    // A machine that has nothing to do with the mesh, and one that has.
    let outsider = mesh.net.host("outsider", 9);
    outsider.serve("echo", ["echo", "0.0.0.0:7000"]);
    let victim = mesh.member("victim", 3, &["store"]);
    victim.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    victim.register("store", ["--port", "7000"]);
    web.wait_for_endpoints("store.default", 1);
    for (service, address) in [("thief", outsider.v4()), ("thief", victim.host.v4())] {
        let address = address.to_string();
        let arguments = ["service", "register", service, "--port", "7000", "--address", &address];
        output_of(thief.host.baremesh(arguments));
        wait_until("the control server says why not", || {
            let held = registration(&mesh, "thief", "thief.default").unwrap_or_default();
            held["held"].as_str().is_some_and(|reason| reason.contains(&address) && reason.contains("thief"))
        });
        wait_until("the thief's own agent says it, too", || {
            let said = errors_of(&thief.host, "agent");
            said.lines().any(|line| line.contains("the registration was refused") && line.contains(&address))
        });
        // Neither is taken into the mesh, and what is there answers as before.
        assert_eq!(web.endpoints("thief.default").unwrap_or(0), 0);
        assert!(!captures(&web, &outsider.v4().to_string()));
        let call = |at: &str| exit_code_of(web.host.shop(["call", at, "7000", "x"]));
        assert_eq!((call(&outsider.v4().to_string()), call("store")), (exit::DONE, exit::DONE));
    }
}

#[test]
fn a_host_of_both_families_is_reached_over_both_and_one_behind_nat_where_it_was_granted() {
    let mesh = Mesh::new("families");
    let (web, store) = (mesh.member("web", 1, &["web"]), mesh.member("store", 2, &["store"]));
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    // It joined over IPv4, and nobody was asked for anything.
    store.register("store", ["--port", "7000"]);
    web.wait_for_endpoints("store.default", 1);
    wait_until("both addresses", || {
        captures(&web, &store.host.v4().to_string()) && captures(&web, &store.host.v6().to_string())
    });
    assert_eq!(registration(&mesh, "store", "store.default").expect("known")["without"], Value::Null);

    // What another machine translates to this host cannot be shown: with its own addresses it is published at once,
    // with this one when it is granted.
    let own = store.host.v4().to_string();
    output_of(store.host.baremesh([
        "service",
        "register",
        "store",
        "--port",
        "7000",
        "--address",
        &own,
        "--address",
        "203.0.113.7",
    ]));
    wait_until("it is published without the other", || {
        let known = registration(&mesh, "store", "store.default").unwrap_or_default();
        known["without"].as_str().is_some_and(|reason| reason.contains("203.0.113.7"))
    });
    web.wait_for_endpoints("store.default", 1);
    mesh.apply("[[HostGrant]]\nname = \"nat\"\nhost = \"store\"\naddresses = [\"203.0.113.0/24\"]\n");
    wait_until("it is published with both", || captures(&web, &own) && captures(&web, "203.0.113.7"));
    output_of(mesh.control.baremesh(["delete", "HostGrant", "nat"]));
    wait_until("it is published without the other again", || {
        captures(&web, &own) && !captures(&web, "203.0.113.7")
    });
}
