//! The control server may be away, and hosts may come and go.

use std::time::{Duration, Instant};

use baremesh_tests::{Load, Member, Mesh, output_of, run, wait_until};
use serde_json::Value;

const NONE: [String; 0] = [];

/// A host with an endpoint of the echo `store`.
fn store(mesh: &Mesh, name: &str, index: u8) -> Member {
    let member = mesh.member(name, index, &["store"]);
    member.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    member.register("store", ["--port", "80:7000"]);
    member
}

/// A caller, and two hosts with an endpoint of `store` each.
fn three(mesh: &Mesh) -> (Member, Member, Member) {
    let web = mesh.member("web", 1, &[]);
    let (a, b) = (store(mesh, "store-a", 2), store(mesh, "store-b", 3));
    web.wait_for_endpoints("store.default", 2);
    (web, a, b)
}

/// What `baremesh status` on the control host says of the mesh.
fn control_status(mesh: &Mesh) -> Value {
    let output = run(mesh.control.baremesh(["status", "--output", "json"]));
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    status["control"].clone()
}

fn of_host(status: &Value, host: &str) -> Value {
    let hosts = status["hosts"].as_array().cloned().unwrap_or_default();
    hosts.into_iter().find(|report| report["host"] == host).unwrap_or_default()
}

#[test]
fn calls_go_on_without_the_control_server_and_over_a_restart_of_the_agents() {
    let mesh = Mesh::new("alone");
    let web = mesh.member("web", 1, &[]);
    let shop = store(&mesh, "store", 2);
    web.wait_for_endpoints("store.default", 1);
    output_of(web.host.shop(["call", "store", "80", "before"]));
    web.wait_until_kept("store");
    mesh.kill_control();
    assert_eq!(output_of(web.host.shop(["call", "store", "80", "without it"])), "without it");
    shop.stop_agent();
    web.kill_agent();
    shop.start();
    web.start();
    assert_eq!(output_of(web.host.shop(["call", "store", "80", "after a restart"])), "after a restart");
    assert_eq!(web.status().expect("a status")["source"]["connected"], false);
}

#[test]
fn a_control_server_that_was_killed_forgets_nobody() {
    // Shorter than agents wait between two attempts to reach the control server, and that long it is away.
    let (lease, pause) = (Duration::from_secs(6), Duration::from_secs(10));
    let mesh = Mesh::with_control_arguments("lease", &["--lease", "6"]);
    let (web, _a, _b) = three(&mesh);
    let load = Load::start(&web.host, "store", 80);
    load.wait_for_more(5);
    mesh.kill_control();
    let away = Instant::now();
    wait_until("every lease would have run out", || away.elapsed() > lease + pause);
    mesh.start_control();
    let back = Instant::now();
    let mut fewest = usize::MAX;
    wait_until("a period has passed, and all are connected", || {
        fewest = fewest.min(web.endpoints("store.default").unwrap_or(0));
        let status = control_status(&mesh);
        let connected = |host| of_host(&status, host)["connected"] == true;
        back.elapsed() > lease * 3 / 2 + pause && ["web", "store-a", "store-b"].into_iter().all(connected)
    });
    assert_eq!(fewest, 2, "an endpoint vanished for a while");
    // Operators compare the two: an agent has the version in force that the control server has, in its words of now.
    wait_until("agent and control server name the same version", || {
        let agent = web.status().unwrap_or_default();
        agent["source"]["version"].is_u64()
            && agent["source"]["version"] == control_status(&mesh)["stateVersion"]
    });
    assert_eq!(load.stop(), NONE);
}

#[test]
fn a_host_that_dies_is_left_out_and_calls_go_on_with_the_others() {
    let mesh = Mesh::with_control_arguments("dies", &["--lease", "6"]);
    let (web, a, _b) = three(&mesh);
    let load = Load::start_with_timeout(&web.host, "store", 80, 20);
    load.wait_for_more(20);
    let died = Instant::now();
    a.host.unplug();
    // At once, half of them towards the dead host, through a tunnel that nobody has found dead yet.
    let call = |n: usize| web.host.shop(["call", "--timeout", "20", "store", "80", &format!("call {n}")]);
    let calls: Vec<_> = (0..8).map(|n| web.host.spawn("after", call(n))).collect();
    for call in &calls {
        assert!(call.wait().success(), "{}", call.stderr());
    }
    web.wait_for_endpoints("store.default", 1);
    assert!(died.elapsed() < Duration::from_secs(20), "it took {:?}", died.elapsed());
    load.wait_for_more(20);
    a.host.plug_in();
    web.wait_for_endpoints("store.default", 2);
    // The one that the dead host had taken and not answered.
    let failures = load.stop();
    assert!(failures.len() <= 1, "{failures:?}");
}

#[test]
fn an_agent_that_stops_in_good_order_costs_no_connection() {
    let mesh = Mesh::with_control_arguments("leaves", &["--lease", "60"]);
    let (web, a, _b) = three(&mesh);
    let load = Load::start(&web.host, "store", 80);
    load.wait_for_more(10);
    a.stop_agent();
    let gone = Instant::now();
    web.wait_for_endpoints("store.default", 1);
    assert!(gone.elapsed() < Duration::from_secs(20), "a lease ran out before it was deregistered");
    load.wait_for_more(10);
    a.start();
    web.wait_for_endpoints("store.default", 2);
    load.wait_for_more(10);
    assert_eq!(load.stop(), NONE);
}

#[test]
fn a_bad_resource_file_changes_nothing_and_is_reported_with_its_line() {
    let mesh = Mesh::new("bad");
    let web = mesh.member("web", 1, &[]);
    let _shop = store(&mesh, "store", 2);
    web.wait_for_endpoints("store.default", 1);
    let before = output_of(mesh.control.baremesh(["get", "--output", "json"]));
    let bad = "[[AuthorizationPolicy]]\nname = \"shut\"\naction = \"DENY\"\nrules = [{}]\n\n[[AuthorizationPolicy]]\nname = \"typo\"\nactoin = \"DENY\"\n";
    std::fs::write(mesh.control.path("/run/baremesh/bad.toml"), bad).expect("written");
    let refused = run(mesh.control.baremesh(["apply", "-f", "/run/baremesh/bad.toml"]));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("bad.toml:8") && said.contains("actoin") && said.contains("nothing was changed"),
        "{said}"
    );
    assert_eq!(output_of(mesh.control.baremesh(["get", "--output", "json"])), before);

    // Written past `apply`, it is refused all the same, and the last good set stays in force.
    let file = mesh.control.path("/etc/baremesh/registry/bad.toml");
    std::fs::write(&file, bad).expect("written");
    wait_until("the control server says what it refused", || {
        control_status(&mesh)["resourcesRefused"].to_string().contains("bad.toml:8")
    });
    assert_eq!(run(mesh.control.baremesh(["status"])).status.code(), Some(1));
    assert_eq!(output_of(web.host.shop(["call", "store", "80", "still"])), "still");
    std::fs::remove_file(&file).expect("removed");
    wait_until("all is well again", || run(mesh.control.baremesh(["status"])).status.success());
}

#[test]
fn a_state_that_a_host_cannot_take_is_seen_on_the_control_host() {
    let mesh = Mesh::new("nack");
    let web = mesh.member("web", 1, &[]);
    let shop = store(&mesh, "store", 2);
    web.wait_for_endpoints("store.default", 1);
    // The host's own registration says another account than the Service now does.
    mesh.apply("[[Service]]\nname = \"store\"\nserviceAccount = \"clerk\"\nports = [{ port = 80, targetPort = 7000 }]\n");
    wait_until("the control host shows the refusal", || {
        of_host(&control_status(&mesh), "store")["nack"].to_string().contains("clerk")
    });
    let shown = run(mesh.control.baremesh(["status"])).stdout;
    assert!(String::from_utf8_lossy(&shown).contains("refused: "), "{}", String::from_utf8_lossy(&shown));
    wait_until("the host says so too", || {
        shop.status().is_some_and(|status| status["source"]["last_error"].to_string().contains("clerk"))
    });
    output_of(mesh.control.baremesh(["delete", "Service", "store"]));
    wait_until("the refusal is over", || of_host(&control_status(&mesh), "store")["nack"].is_null());
}

#[test]
fn a_lost_control_host_comes_back_from_its_backup() {
    let mesh = Mesh::new("restored");
    let web = mesh.member("web", 1, &[]);
    let _shop = store(&mesh, "store", 2);
    web.wait_for_endpoints("store.default", 1);
    let unused = mesh.token(&["late"]);
    let load = Load::start(&web.host, "store", 80);
    let backup = "/etc/baremesh/mesh.tar";
    // While it serves.
    output_of(mesh.control.baremesh(["backup", backup]));
    let refused = run(mesh.control.baremesh(["restore", backup, "--replace"]));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("stop the control server first"),
        "{refused:?}"
    );
    mesh.kill_control();
    let state = mesh.control.path("/var/lib/baremesh");
    for entry in std::fs::read_dir(&state).expect("the state") {
        let path = entry.expect("an entry").path();
        let lost = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        lost.expect("the disk is lost");
    }
    output_of(mesh.control.baremesh(["restore", backup, "--replace"]));
    mesh.start_control();
    wait_until("both hosts are connected", || {
        let status = control_status(&mesh);
        ["web", "store"].into_iter().all(|host| of_host(&status, host)["connected"] == true)
    });
    // Nobody can join with what was not used before, and who is given a new token can.
    let tokens: Value =
        serde_json::from_slice(&run(mesh.control.baremesh(["token", "list", "-o", "json"])).stdout)
            .expect("the tokens");
    assert!(!tokens.to_string().contains(unused.split('.').nth(1).expect("its id")), "{tokens}");
    let _late = store(&mesh, "store-b", 3);
    web.wait_for_endpoints("store.default", 2);
    assert_eq!(load.stop(), NONE);
}
