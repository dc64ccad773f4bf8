//! Where Consul is the registry, too, a host holds the endpoints of the services that it calls, and waits for the first answer.

use std::fs;

use baremesh_tests::consul::register_foreign;
use baremesh_tests::{Host, Member, Mesh, output_of, wait_until};
use serde_json::{Value, json};

use crate::consul::{orders, web};

/// What an agent shows of the endpoints of a service: address and health.
fn endpoints(member: &Member, service: &str) -> Vec<(String, String)> {
    let services = member.ask("/services").unwrap_or_default();
    let all = services.as_array().cloned().unwrap_or_default();
    let known = all.into_iter().find(|known| known["service"] == service).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let endpoints = known["endpoints"].as_array().cloned().unwrap_or_default();
    endpoints.iter().map(|one| (text(&one["address"]), text(&one["health"]))).collect()
}

/// How many services an agent holds the endpoints of, and how many of them were called.
fn held(member: &Member) -> (u64, u64) {
    let endpoints = member.status().expect("a status")["endpoints"].clone();
    assert_eq!(endpoints["all"], false, "{endpoints}");
    let number = |field: &str| endpoints[field].as_u64().expect("a number");
    (number("held"), number("called"))
}

#[test]
fn what_is_called_is_held_and_a_first_call_finds_what_is_there_now() {
    let (mesh, host, consul) = Mesh::in_consul("consul-called");
    let (web, _orders) = (web(&mesh, &consul), orders(&mesh, &consul, "orders", 2));
    let [old, newer] = [("old", 3), ("newer", 4)].map(|(name, index)| mesh.net.host(name, index));
    let at = |host: &Host, port: u16| format!("{}:{port}", host.v4());
    let serve = |host: &Host, port: u16| host.serve(&format!("echo-{port}"), ["echo", &at(host, port)]);
    let _programs = [serve(&old, 7100), serve(&newer, 7100), serve(&old, 7102), serve(&old, 7103)];
    let register = |id: &str, at: &Host, port: u16| {
        let name = id.split('-').next();
        let instance = json!({ "ID": id, "Name": name, "Address": at.v4().to_string(), "Port": port });
        register_foreign(&host, &instance);
    };
    for (id, port) in [("legacy-1", 7100), ("unused-1", 7102), ("never-1", 7103)] {
        register(id, &old, port);
    }
    for service in ["orders", "legacy", "unused", "never"] {
        web.wait_for_endpoints(&format!("{service}.default"), 1);
    }
    let not_asked = |port| vec![(at(&old, port), "not-asked".to_owned())];
    assert_eq!(endpoints(&web, "legacy.default"), not_asked(7100));
    assert_eq!(held(&web), (0, 0), "nobody has called anything");

    // Of the second Consul alone knows: what nobody calls is read seldom.
    register("legacy-2", &newer, 7100);
    let call =
        |name: &str, port: &str| output_of(web.host.shop(["call", "--timeout", "60", name, port, "hello"]));
    assert_eq!(endpoints(&web, "legacy.default"), not_asked(7100), "it was not read since");
    assert_eq!(call("legacy", "7100"), "hello");
    let healthy = |host: &Host, port| (at(host, port), "healthy".to_owned());
    // A call waits a second at most for the answer, which comes all the same.
    wait_until("what is there now is known", || {
        endpoints(&web, "legacy.default") == [healthy(&old, 7100), healthy(&newer, 7100)]
    });
    assert_eq!(call("orders", "80"), "hello");
    wait_until("what was called is held", || held(&web) == (2, 2));
    assert_eq!(endpoints(&web, "unused.default"), not_asked(7102));
    // From now on its changes are waited for.
    register("legacy-3", &old, 7101);
    web.wait_for_endpoints("legacy.default", 3);
    wait_until("what was called is on the disk", || {
        fs::read_to_string(web.host.path("/var/lib/baremesh/called-services"))
            .is_ok_and(|called| called.contains("legacy.default") && called.contains("orders.default"))
    });

    consul.kill();
    assert_eq!(call("unused", "7102"), "hello", "with Consul dead what was read before is taken");
    web.kill_agent();
    web.start();
    for (name, port) in [("orders", "80"), ("unused", "7102"), ("never", "7103")] {
        assert_eq!(call(name, port), "hello", "{name} after a start without Consul");
    }
    consul.run(&host);
    wait_until("Consul is in reach again", || crate::consul::is_connected(&web));
    assert_eq!(call("never", "7103"), "hello");
}

#[test]
fn all_endpoints_are_held_where_that_is_asked_for() {
    let (mesh, host, consul) = Mesh::in_consul("consul-held");
    let config = consul.config().replace("[registry]\n", "[registry]\nendpoints = \"all\"\n");
    let web = mesh.member_with("web", 1, &["web"], &config);
    register_foreign(&host, &json!({ "ID": "l", "Name": "legacy", "Address": "10.200.0.1", "Port": 7100 }));
    wait_until("it is held", || {
        endpoints(&web, "legacy.default") == [("10.200.0.1:7100".to_owned(), "healthy".to_owned())]
    });
    assert_eq!(web.status().expect("a status")["endpoints"]["all"], true);
}
