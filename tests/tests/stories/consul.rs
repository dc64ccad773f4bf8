//! A mesh whose registry is a real Consul.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use baremesh_tests::consul::{Consul, ask, instances, register_foreign};
use baremesh_tests::{Load, Member, Mesh, exit_code_of, output_of, wait_until};
use serde_json::{Value, json};

use crate::attack::memory_of;

pub const NONE: [String; 0] = [];
pub const ALLOW_WEB: &str = "[[AuthorizationPolicy]]\nname = \"orders\"\naction = \"ALLOW\"\n\
    selector = { matchLabels = { app = \"orders\" } }\n\
    rules = [{ from = [{ source = { principals = [\"mesh.internal/ns/default/sa/web\"] } }] }]\n";

/// Most questions that an agent has open at Consul at once: 64 services that are waited for, 8 that are read side by side, names,
/// resources, trust, addresses, registrations, and who leads.
const MAX_QUESTIONS: usize = 64 + 8 + 6;
/// By how much an agent may grow for 10,000 entries of the catalog. Some 20 KiB for each were seen: what was heard, what is in
/// force, and the snapshot of it are held side by side.
const MOST_GROWN_MIB: u64 = 320;

/// A host with an endpoint of the echo `orders`.
pub fn orders(mesh: &Mesh, consul: &Consul, name: &str, index: u8) -> Member {
    let member = mesh.member_with(name, index, &["orders"], &consul.config());
    member.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    member.register("orders", ["--port", "80:7000"]);
    member
}

pub fn web(mesh: &Mesh, consul: &Consul) -> Member {
    mesh.member_with("web", 1, &["web"], &consul.config())
}

fn call(from: &Member, name: &str, port: &str) -> String {
    output_of(from.host.shop(["call", name, port, "hello"]))
}

/// Waits longer than stories do otherwise: for times that are part of what is shown, and for much of something.
#[track_caller]
pub fn patiently(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(240), "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What an agent says of its source.
pub fn notes(member: &Member) -> String {
    let status = member.status().unwrap_or_default();
    let warnings = status["warnings"].as_array().cloned().unwrap_or_default();
    warnings.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
}

pub fn is_connected(member: &Member) -> bool {
    member.status().unwrap_or_default()["source"]["connected"] == true
}

/// How an agent reaches the endpoints of a service.
fn transports(member: &Member, service: &str) -> Vec<String> {
    let services = member.ask("/services").unwrap_or_default();
    let all = services.as_array().cloned().unwrap_or_default();
    let known = all.into_iter().find(|known| known["service"] == service).unwrap_or_default();
    let endpoints = known["endpoints"].as_array().cloned().unwrap_or_default();
    endpoints.iter().map(|endpoint| endpoint["transport"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn services_register_in_consul_and_are_called_by_name() {
    let (mesh, host, consul) = Mesh::in_consul("consul");
    let (web, orders) = (web(&mesh, &consul), orders(&mesh, &consul, "orders", 2));
    web.wait_for_endpoints("orders.default", 1);
    assert_eq!(call(&web, "orders", "80"), "hello");
    let line = orders.wait_for_log("the call", |line| line["reporter"] == "destination");
    assert_eq!(line["source_principal"], "spiffe://mesh.internal/ns/hosts/sa/web");
    let id = "baremesh:orders:default:orders".to_owned();
    assert_eq!(instances(&host, "orders"), [(id, "passing".to_owned())]);
    // Its address is in Consul, and so the same for everybody.
    wait_until("an address is assigned", || {
        let keys = ask(&host, "GET", "/v1/kv/baremesh/addresses/?keys", None);
        keys.is_some_and(|(_, keys)| keys.contains("240.240."))
    });
    orders.stop_agent();
    wait_until("the service is out of the catalog", || instances(&host, "orders").is_empty());
}

#[test]
fn a_service_that_others_registered_is_called_in_plaintext_and_never_under_a_meshed_name() {
    let (mesh, consul_host, consul) = Mesh::in_consul("consul-foreign");
    let (web, _orders) = (web(&mesh, &consul), orders(&mesh, &consul, "orders", 2));
    web.wait_for_endpoints("orders.default", 1);
    let old = mesh.net.host("old", 3);
    old.serve("echo", ["echo", &format!("{}:7100", old.v4())]);
    let at = |name: &str, port: u16| json!({ "ID": format!("{name}-1"), "Name": name, "Address": old.v4().to_string(), "Port": port, "Tags": ["version=v1"] });
    register_foreign(&consul_host, &at("legacy", 7100));
    web.wait_for_endpoints("legacy.default", 1);
    assert_eq!(call(&web, "legacy", "7100"), "hello");
    assert_eq!(transports(&web, "legacy.default"), ["plain"]);
    // Somebody registers himself under the name of a meshed service.
    register_foreign(&consul_host, &at("orders", 7100));
    wait_until("it is said that it was left out", || notes(&web).contains("without an agent"));
    assert_eq!(transports(&web, "orders.default"), ["hbone"]);
    assert_eq!(call(&web, "orders", "80"), "hello");
}

#[test]
fn policy_that_is_applied_reaches_agents_by_way_of_consul() {
    let (mesh, host, consul) = Mesh::in_consul("consul-policy");
    let (web, orders) = (web(&mesh, &consul), orders(&mesh, &consul, "orders", 2));
    web.wait_for_endpoints("orders.default", 1);
    assert_eq!(call(&web, "orders", "80"), "hello");
    let version = || orders.status().unwrap_or_default()["source"]["version"].as_u64();
    let before = version();
    let said = mesh.apply(ALLOW_WEB);
    assert!(said.contains("AuthorizationPolicy"), "{said}");
    wait_until("the policy is in force at the agent", || version() > before);
    // The host's own identity called, and it is web's that may.
    wait_until("the call is refused", || exit_code_of(web.host.shop(["call", "orders", "80", "hello"])) != 0);
    output_of(mesh.control.baremesh(["rollback"]));
    wait_until("the call goes well again", || {
        exit_code_of(web.host.shop(["call", "orders", "80", "hello"])) == 0
    });
    let (_, index) = ask(&host, "GET", "/v1/kv/baremesh/index?raw", None).expect("an answer");
    let index: Value = serde_json::from_str(&index).expect("JSON");
    assert!(index["resources"]["MeshConfig/default/mesh"].is_string(), "{index}");
    assert!(index["resources"].get("AuthorizationPolicy/default/orders").is_none(), "{index}");
    // What does not hold together is refused, and nothing of it is written.
    fs::write(mesh.control.path("/run/baremesh/bad.toml"), "[[Service]]\nname = \"a\"\nports = []\n")
        .expect("written");
    assert_ne!(exit_code_of(mesh.control.baremesh(["apply", "-f", "/run/baremesh/bad.toml"])), 0);
    let (_, after) = ask(&host, "GET", "/v1/kv/baremesh/index?raw", None).expect("an answer");
    assert_eq!(serde_json::from_str::<Value>(&after).expect("JSON"), index);
}

#[test]
fn what_a_check_finds_is_in_consul_and_others_go_by_it() {
    let (mesh, host, consul) = Mesh::in_consul("consul-health");
    let (web, member) = (web(&mesh, &consul), mesh.member_with("orders", 2, &["orders"], &consul.config()));
    let serve = || member.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    let echo = serve();
    member.register("orders", ["--port", "80:7000", "--check-tcp", "--check-interval", "0.2s"]);
    let status = || instances(&host, "orders").into_iter().map(|(_, status)| status).collect::<Vec<_>>();
    wait_until("the service is well in Consul", || status() == ["passing"]);
    web.wait_for_endpoints("orders.default", 1);
    let called = || exit_code_of(web.host.shop(["call", "orders", "80", "hello"])) == 0;
    // It is registered before its first look, and takes no calls until then.
    wait_until("others know that it is well", called);
    echo.kill();
    wait_until("the service is ill in Consul", || status() == ["critical"]);
    let services = || web.ask("/services").unwrap_or_default().to_string();
    wait_until("others know it", || services().contains("\"health\":\"unhealthy\""));
    serve();
    wait_until("the service is well again", || status() == ["passing"]);
    wait_until("others know that too", called);
    // What Consul has lost is registered anew.
    ask(&host, "PUT", "/v1/agent/service/deregister/baremesh:orders:default:orders", None)
        .expect("an answer");
    wait_until("it is registered again", || status() == ["passing"]);
}

#[test]
fn consul_is_killed_under_load_and_no_call_fails() {
    let (mesh, host, consul) = Mesh::in_consul("consul-killed");
    let (web, one) = (web(&mesh, &consul), orders(&mesh, &consul, "orders-a", 2));
    let two = orders(&mesh, &consul, "orders-b", 3);
    web.wait_for_endpoints("orders.default", 2);
    let load = Load::start(&web.host, "orders", 80);
    consul.kill();
    wait_until("the agents say that Consul is away", || !is_connected(&web) && !is_connected(&one));
    assert!(notes(&web).contains("Consul"), "{}", notes(&web));
    // Longer than what was told of health holds.
    let away = Instant::now();
    patiently("every check would have run out", || away.elapsed() > Duration::from_secs(40));
    // An agent that starts meanwhile starts from what it had.
    two.kill_agent();
    two.start();
    assert_eq!(web.endpoints("orders.default"), Some(2));
    consul.run(&host);
    wait_until("everybody is back", || [&web, &one, &two].into_iter().all(is_connected));
    load.wait_for_more(20);
    assert_eq!(web.endpoints("orders.default"), Some(2));
    // A killed agent cuts the calls that it carries: those alone may have failed.
    let failures = load.stop();
    assert!(failures.len() <= 2, "{failures:?}");
}

#[test]
fn a_consul_that_forgot_everything_changes_nothing_and_gets_it_all_back() {
    let (mesh, host, consul) = Mesh::in_consul("consul-forgot");
    let (web, orders) = (web(&mesh, &consul), orders(&mesh, &consul, "orders", 2));
    mesh.apply(ALLOW_WEB.replace("sa/web", "sa/*").replace("ns/default", "ns/hosts").as_str());
    web.wait_for_endpoints("orders.default", 1);
    let load = Load::start(&web.host, "orders", 80);
    consul.kill();
    consul.forget(&host);
    consul.run(&host);
    wait_until("the service is registered again", || !instances(&host, "orders").is_empty());
    wait_until("the resources are there again", || {
        let found = ask(&host, "GET", "/v1/kv/baremesh/index?raw", None);
        found.is_some_and(|(status, body)| {
            status == 200 && body.contains("AuthorizationPolicy/default/orders")
        })
    });
    wait_until("everybody is back", || is_connected(&web) && is_connected(&orders));
    load.wait_for_more(20);
    assert_eq!(web.endpoints("orders.default"), Some(1));
    assert_eq!(load.stop(), NONE);
}

/// Connections of a host to Consul's port.
fn questions_open(member: &Member, consul: Ipv4Addr) -> usize {
    let mut list = member.host.command("ss");
    list.args(["-Htn", "state", "established", "dst", &format!("{consul}:8500")]);
    output_of(list).lines().count()
}

#[test]
fn a_service_gets_its_addresses_of_both_families_at_once() {
    const SERVICES: usize = 40;
    let (_mesh, host, _consul) = Mesh::in_consul("consul-families");
    let families = || {
        let (status, body) = ask(&host, "GET", "/v1/kv/baremesh/addresses/?keys", None).expect("an answer");
        let keys: Vec<String> =
            if status == 404 { vec![] } else { serde_json::from_str(&body).expect("keys") };
        let v6 = keys.iter().filter(|key| key.contains(':')).count();
        (keys.len() - v6, v6)
    };
    for n in 0..SERVICES {
        register_foreign(
            &host,
            &json!({ "ID": format!("s{n}"), "Name": format!("s{n}"), "Address": "10.200.0.1", "Port": 7100 }),
        );
    }
    patiently("every service has its addresses", || {
        let (v4, v6) = families();
        assert_eq!(v4, v6, "a service has an address of one family only");
        v4 == SERVICES
    });
}

#[test]
fn ten_thousand_entries_of_the_catalog_are_known_and_called() {
    let (mesh, host, consul) = Mesh::in_consul("consul-many");
    let config = consul.config().replace("[registry]\n", "[registry]\nendpoints = \"all\"\n");
    let (web, all) = (web(&mesh, &consul), mesh.member_with("all", 4, &[], &config));
    let old = mesh.net.host("old", 3);
    old.serve("echo", ["echo", &format!("{}:7100", old.v4())]);
    register_foreign(
        &host,
        &json!({ "ID": "l", "Name": "legacy", "Address": old.v4().to_string(), "Port": 7100 }),
    );
    web.wait_for_endpoints("legacy.default", 1);
    all.wait_for_endpoints("legacy.default", 1);
    let (before, began) = ([&web, &all].map(memory_of), Instant::now());
    // Put into the catalog at once, as other machines' Consul agents would over time; nobody is at their addresses.
    let node = json!({ "Node": "elsewhere", "Address": "10.200.255.1" });
    ask(&host, "PUT", "/v1/catalog/register", Some(&node)).expect("an answer");
    for batch in 0..157 {
        let operations = (0..64).map(|n| {
            let (name, id) = (format!("s{}", (batch * 64 + n) % 400), format!("i{batch}-{n}"));
            let address = format!("10.200.{batch}.{n}");
            let service = json!({ "ID": id, "Service": name, "Address": address, "Port": 7100 });
            json!({ "Service": { "Verb": "set", "Node": "elsewhere", "Service": service } })
        });
        let answer = ask(&host, "PUT", "/v1/txn", Some(&operations.collect()));
        assert!(matches!(answer, Some((200, _))), "{answer:?}");
    }
    let known = |member: &Member| {
        let services = member.ask("/services").unwrap_or_default();
        let all = services.as_array().cloned().unwrap_or_default();
        (
            all.len(),
            all.iter().map(|service| service["endpoints"].as_array().map_or(0, Vec::len)).sum::<usize>(),
        )
    };
    let registered = began.elapsed();
    patiently("all of it is known where all is asked for", || known(&all) == (401, 157 * 64 + 1));
    patiently("every service is known", || known(&web).0 == 401);
    let took = began.elapsed() - registered;
    assert_eq!(call(&web, "legacy", "7100"), "hello");
    for (member, before) in [&web, &all].into_iter().zip(before) {
        let grown = memory_of(member).saturating_sub(before) >> 20;
        // 400 services, and no question that waits for each.
        let asking = questions_open(member, host.v4());
        eprintln!(
            "{}: {} of {} entries, {grown} MiB more, {asking} questions open",
            member.host.name(),
            known(member).1,
            157 * 64
        );
        assert!(asking <= MAX_QUESTIONS, "{asking} questions are open");
        assert!(grown <= MOST_GROWN_MIB, "{grown} MiB more");
    }
    eprintln!("known {took:.1?} after the last was registered, which took {registered:.1?}");
    // What nobody calls is read seldom; when it is called, it is read first.
    let name = "s399";
    let count = || web.endpoints(&format!("{name}.default"));
    let more = json!({ "Node": "elsewhere", "Address": "10.200.255.1", "SkipNodeUpdate": true,
        "Service": { "ID": "one-more", "Service": name, "Address": "10.200.254.1", "Port": 7100 } });
    let began = Instant::now();
    ask(&host, "PUT", "/v1/catalog/register", Some(&more)).expect("an answer");
    output_of(web.host.baremesh(["explain", &format!("tcp://{name}:7100")]));
    // Who asks waits a second at most for the answer, which comes all the same.
    wait_until("it is read first", || count() == Some(157 * 64 / 400 + 1));
    eprintln!("one more of a service that nobody had called: known {:.1?} later", began.elapsed());
    // An agent that starts reads each once.
    web.kill_agent();
    web.start();
    patiently("all of it is known", || known(&web) == (401, 157 * 64 + 2));
    let [some, everything] = [&web, &all].map(|member| memory_of(member) >> 20);
    eprintln!("{some} MiB where two services were called, {everything} MiB where all are asked for");
    assert!(some.max(everything) <= MOST_GROWN_MIB + (before.iter().max().unwrap_or(&0) >> 20));
}
