//! Who calls is what the kernel says of the calling process, and nothing else; who is called is what the callee's
//! certificate says.

use baremesh_tests::{Host, Process, Refusal, needs_root, output_of};
use serde_json::Value;

use crate::pair::{Pair, WEB_ID, because, connections_of, is_cut, real_addresses, shop_as};
use crate::peer::{self, Tunnel, agent_of, authority};

fn id(service: &str) -> String {
    format!("spiffe://mesh.internal/ns/default/sa/{service}")
}

/// A line about a call from `source` that `store` took for the service `called`.
fn carried<'a>(source: &'a str, called: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |line| {
        line["reporter"] == "destination"
            && line["source_principal"] == source
            && line["destination_principal"] == id(called).as_str()
            && line["bytes_received"].as_u64() > Some(0)
    }
}

#[test]
fn tells_two_users_of_one_host_apart() {
    let pair = Pair::new("users");
    if !pair.mesh.net.privilege().has_uids() {
        needs_root!("two uids");
    }
    pair.serve("echo", 7000);
    pair.web.register("alice", ["--port", "81", "--user", "1001"]);
    pair.web.register("bob", ["--port", "82", "--user", "1002"]);
    for (uid, source) in [(1001, id("alice")), (1002, id("bob")), (0, WEB_ID.to_owned())] {
        let call = shop_as(&pair.web.host, uid, &["call", "echo", "7000", &format!("from {uid}")]);
        assert_eq!(output_of(call), format!("from {uid}"));
        pair.store.wait_for_log(&source, carried(&source, "echo"));
    }
    // A user of no service is the host, whatever it says of itself.
    assert_eq!(output_of(shop_as(&pair.web.host, 1003, &["call", "echo", "7000", "alice"])), "alice");
    let host = "spiffe://mesh.internal/ns/hosts/sa/web";
    pair.store.wait_for_log("the host itself", carried(host, "echo"));
}

#[test]
fn tells_two_cgroups_of_one_user_apart() {
    needs_root!("cgroups");
    let pair = Pair::new("cgroups");
    pair.serve("echo", 7000);
    for (service, port) in [("cart", "81"), ("bill", "82")] {
        pair.web.register(service, ["--port", port, "--cgroup", &pair.web.host.cgroup(service)]);
    }
    for service in ["cart", "bill"] {
        let call = pair.web.host.in_cgroup(service, &pair.call("echo", 7000, service));
        assert_eq!(output_of(call), service);
        pair.store.wait_for_log(service, carried(&id(service), "echo"));
    }
}

#[test]
fn the_server_name_selects_among_services_of_one_host() {
    let pair = Pair::new("sni");
    pair.serve_as("tea", "echo", 7000);
    pair.serve_as("coffee", "echo", 7001);
    for (service, port) in [("tea", 7000), ("coffee", 7001)] {
        assert_eq!(output_of(pair.call(service, port, "hello")), "hello");
        pair.store.wait_for_log(service, carried(WEB_ID, service));
    }
    let open = |sni: Option<&str>| {
        let config = peer::config(&pair.mesh, peer::stolen(&pair.web, "web"));
        Tunnel::open(&pair.web.host, agent_of(&pair.store.host), config, sni)
    };
    for service in ["tea", "coffee"] {
        let name = format!("{service}.default.mesh.internal");
        assert_eq!(open(Some(&name)).expect("a service of the host").shown, id(service));
    }
    assert!(open(Some("milk.default.mesh.internal")).is_err(), "no such service here");
    assert!(open(Some("store.hosts.mesh.internal")).is_err(), "the host's own identity takes no calls");
    assert!(open(None).is_err(), "two services, and none is the default");
    pair.store.register("coffee", ["--port", "7001", "--default"]);
    assert_eq!(open(None).expect("the default service").shown, id("coffee"));
}

/// Ports of programs that the peer must not reach: another service's, SSH's, one that nobody registered.
fn bystanders(host: &Host) -> Vec<Process> {
    [22, 9999].iter().map(|port| host.serve("bystander", ["echo", &format!("[::]:{port}")])).collect()
}

#[test]
fn an_authority_of_anything_else_is_refused() {
    let pair = Pair::new("authority");
    let echo = pair.serve("echo", 7000);
    let mut others = vec![pair.serve_as("other", "echo", 7001)];
    others.extend(bystanders(&pair.store.host));
    let config = peer::config(&pair.mesh, peer::stolen(&pair.web, "web"));
    let tunnel =
        Tunnel::open(&pair.web.host, agent_of(&pair.store.host), config, Some("echo.default.mesh.internal"));
    let tunnel = tunnel.expect("a member's certificate is taken");
    assert_eq!(tunnel.shown, id("echo"));
    let own = authority(pair.store.host.v4(), 7000);
    assert!(tunnel.echoes(&own).expect("the very same peer may call what it named"));

    let (store, web) = (pair.store.host.v4(), pair.web.host.v4());
    let mut refused: Vec<String> =
        [7001, 22, 9999, 15001, 15006, 15008, 15020].map(|p| authority(store, p)).into();
    refused.extend(["127.0.0.1:7000", "[::1]:7000", "127.0.0.1:22", "169.254.169.254:80"].map(str::to_owned));
    refused.extend([authority(web, 80), authority(web, 22), "other.default.mesh.internal:7001".to_owned()]);
    for wrong in &refused {
        let refusal = Refusal::of_connection("destination", &"not_registered");
        let answer = pair.store.refuses(&refusal, 1, || tunnel.connect(wrong).expect("an answer"));
        assert_eq!(answer.status, 503, "{wrong}");
    }
    assert!(others.iter().all(|other| connections_of(other) == 0), "none of them was reached");
    assert!(tunnel.echoes(&own).expect("the tunnel stands"));
    assert_eq!(connections_of(&echo), 2);
}

#[test]
fn neighbours_on_the_host_are_held_to_the_policy_too() {
    let pair = Pair::new("neighbours");
    if !pair.mesh.net.privilege().has_uids() {
        needs_root!("two uids");
    }
    let echo = pair.serve("echo", 7000);
    pair.store.register("friend", ["--port", "81", "--user", "1001"]);
    pair.mesh.apply(
        "[[AuthorizationPolicy]]\nname = \"echo\"\nselector = { matchLabels = { app = \"echo\" } }\n\
         rules = [{ from = [{ source = { principals = [\"mesh.internal/ns/default/sa/friend\"] } }] }]\n",
    );
    let own = real_addresses(&pair.store.host);
    let addresses = ["127.0.0.1", "127.0.0.77", "::1", &own[0], &own[1], "echo"];
    let call = |uid, address| shop_as(&pair.store.host, uid, &["call", address, "7000", "hello"]);
    baremesh_tests::wait_until("the policy is in force", || is_cut(call(1002, "echo")));
    let before = connections_of(&echo);
    for address in addresses {
        assert!(is_cut(call(1002, address)), "another user, by {address}");
        assert!(is_cut(call(0, address)), "root, who is no service, by {address}");
    }
    assert_eq!(connections_of(&echo), before, "the program never saw them");
    for (number, address) in addresses.iter().enumerate() {
        assert_eq!(output_of(call(1001, address)), "hello", "the friend, by {address}");
        assert_eq!(connections_of(&echo), before + number + 1);
    }
    let host = "spiffe://mesh.internal/ns/hosts/sa/store";
    pair.store.wait_for_log("a denied neighbour", |line| {
        because("denied")(line) && line["source_principal"] == host
    });
}
