//! Whose an address and port are: of those who are there, and in one network of one.

use super::*;

#[test]
fn an_agent_is_where_its_node_is_or_where_its_host_was_granted_to_be() {
    let mut there = ours("orders", "h1", "10.0.0.1", None);
    let grant = resource("[[HostGrant]]\nname = \"vips\"\nhost = \"h*\"\naddresses = [\"10.0.0.0/24\"]\n");
    let other = resource("[[HostGrant]]\nname = \"other\"\nhost = \"x1\"\naddresses = [\"10.0.0.0/24\"]\n");
    let check = |one: &Value, resources: &[Value], expected: &[&str]| {
        let derived = derive(&inputs(&[("orders", json!([one]))], resources), &Settings::default());
        assert_eq!(endpoints(&derived, "orders"), expected, "{one}");
        assert_eq!(derived.report.left_out, usize::from(expected == ["no service"]), "{:?}", derived.report);
    };
    let own = ["10.0.0.1:8080 Hbone healthy"];
    check(&there, &[], &own);
    there["Node"]["Address"] = "10.9.9.9".into();
    check(&there, &[], &["no service"]);
    check(&there, std::slice::from_ref(&other), &["no service"]);
    check(&there, std::slice::from_ref(&grant), &own);
    // Its node says so, from inside or from outside; its own word for it does not count.
    for (tag, expected) in [("lan_ipv4", &own[..]), ("wan", &own[..]), ("elsewhere", &["no service"][..])] {
        there["Node"]["TaggedAddresses"] = json!({ tag: "10.0.0.1" });
        check(&there, &[], expected);
    }
    // Of several, those that are its own.
    let mut several = ours("orders", "h1", "10.0.0.1", None);
    let registration = Registration::read(&json!({
        "service": "orders.default", "ports": [{ "port": 80, "targetPort": 8080, "name": "http" }],
        "addresses": ["10.6.6.6", "10.0.0.1"],
    }));
    let made = mark::registration(&"h1".parse().expect("a label"), &registration.expect("a registration"));
    several["Service"]["Meta"] = json!(made.expect("registered").meta);
    check(&several, &[], &own);
    for nowhere in ["169.254.169.254", "100.100.100.200"] {
        check(&ours("orders", "h1", nowhere, None), &[], &["no service"]);
    }
}

#[test]
fn of_two_at_one_address_who_is_heard_of_and_at_its_node_comes_first() {
    let grant = resource("[[HostGrant]]\nname = \"all\"\nhost = \"*\"\naddresses = [\"10.0.0.0/24\"]\n");
    let check = |elsewhere: bool, silent: bool, expected: &str| {
        let (mut one, mut other) =
            (ours("one", "h1", "10.0.0.1", None), ours("other", "h2", "10.0.0.1", None));
        (one["Service"]["CreateIndex"], other["Service"]["CreateIndex"]) = (1.into(), 2.into());
        if elsewhere {
            one["Node"]["Address"] = "10.9.9.9".into();
        }
        if silent {
            one["Checks"] = json!([{ "CheckID": "serfHealth", "Status": "critical" }]);
        }
        let all = [("one", json!([one])), ("other", json!([other]))];
        let derived = derive(&inputs(&all, std::slice::from_ref(&grant)), &Settings::default());
        let lost = if expected == "one" { "other" } else { "one" };
        assert_eq!(endpoints(&derived, expected).len(), 1);
        assert_eq!(endpoints(&derived, lost), NO_ENDPOINTS, "{elsewhere} {silent}");
    };
    check(false, false, "one");
    check(true, false, "other");
    check(false, true, "other");
}

#[test]
fn no_endpoint_is_where_consul_itself_is() {
    let settings: Settings = toml::from_str(
        "addresses = [\"http://10.0.0.7:8555\"]\nagent = \"http://127.0.0.1:8500\"\nallow_plaintext = true\n",
    )
    .expect("settings");
    let at = |address: &str, port: u16| {
        let all = [
            ("consul", json!([foreign("consul", "n1", "10.0.0.8", 8300)])),
            ("db", json!([foreign("db", "n", address, port)])),
        ];
        let derived = derive(&inputs(&all, &[]), &settings);
        (derived.report.plain, derived.report.named.values().any(|why| why.contains("Consul itself")))
    };
    for (address, port) in [("10.0.0.7", 8555), ("10.0.0.7", 8500), ("10.0.0.8", 8300), ("10.0.0.8", 8503)] {
        assert_eq!(at(address, port), (0, true), "{address}:{port}");
    }
    for (address, port) in [("10.0.0.8", 5432), ("10.0.0.8", 8555), ("10.0.0.9", 8500)] {
        assert_eq!(at(address, port), (1, false), "{address}:{port}");
    }
    let mut agent = ours("orders", "h1", "10.0.0.7", None);
    let text =
        agent["Service"]["Meta"]["baremesh-registration-0"].as_str().expect("text").replace("8080", "8501");
    agent["Service"]["Meta"]["baremesh-registration-0"] = text.into();
    let derived = derive(&inputs(&[("orders", json!([agent]))], &[]), &settings);
    assert_eq!((derived.report.agents, derived.report.left_out), (0, 1), "{:?}", derived.report);
}

#[test]
fn what_operators_wrote_comes_before_the_services_of_the_catalog() {
    let entry = |more: &str| {
        format!(
            "[[WorkloadEntry]]\nname = \"w\"\naddress = \"10.0.0.50\"\nlabels = {{ app = \"db\" }}\n{more}"
        )
    };
    let orders = "[[Service]]\nname = \"orders\"\nports = [{ port = 5432 }]\n[[WorkloadEntry]]\nname = \"o\"\n\
        address = \"10.0.0.50\"\nservice = \"orders\"\ntunnel = \"hbone\"\n";
    let agent = ours("db", "h1", "10.0.0.8", None);
    let foreign = foreign("db", "n1", "10.0.0.8", 5432);
    let check = |of: &Value, toml: &str, why: Option<&str>| {
        let derived = derive(&inputs(&[("db", json!([of]))], &resources(toml)), &Settings::default());
        // A mesh in any case.
        let found = endpoints(&derived, "db");
        match why {
            None => assert!(found.iter().any(|endpoint| endpoint.contains("10.0.0.8")), "{found:?}"),
            Some(why) => {
                assert_eq!(found, ["no service"]);
                let said = &derived.report.named["db.default"];
                assert!(said.contains(why), "{said}");
            }
        }
    };
    check(&foreign, &entry(""), None);
    check(&foreign, &entry("serviceAccount = \"db\"\n"), None);
    check(&foreign, &entry("serviceAccount = \"clerk\"\n"), Some("runs as `clerk`"));
    check(&agent, &entry("serviceAccount = \"clerk\"\n"), Some("runs as `clerk`"));
    check(&foreign, &entry("tunnel = \"hbone\"\n"), None);
    let both = format!("{orders}{}", entry("tunnel = \"hbone\"\n"));
    check(&foreign, &both, Some("10.0.0.50:5432 is another identity's"));
    // Two networks may have one address: those are two hosts.
    let two = both.replace("service = \"orders\"\n", "service = \"orders\"\nnetwork = \"eu\"\n");
    let two = format!("{two}network = \"us\"\n");
    check(&foreign, &two, None);
}

#[test]
fn one_address_in_two_networks_is_two_endpoints() {
    let in_network = |service: &str, host: &str, network: Option<&str>| {
        let registration = Registration::read(&json!({
            "service": key(service).to_string(), "ports": [{ "port": 80, "targetPort": 8080, "name": "http" }],
            "addresses": ["10.0.0.1"], "network": network,
        }));
        let label = host.parse().expect("a label");
        let made = mark::registration(&label, &registration.expect("a registration")).expect("registered");
        let service = json!({ "ID": made.id, "Service": made.name, "Tags": made.tags, "Meta": made.meta, "Port": made.port });
        instance(host, "10.0.0.1", &service)
    };
    let check = |one: Option<&str>, other: Option<&str>, expected: usize| {
        let all = [
            ("one", json!([in_network("one", "h1", one)])),
            ("other", json!([in_network("other", "h2", other)])),
        ];
        let derived = derive(&inputs(&all, &[]), &Settings::default());
        assert_eq!(mesh(&derived).workloads.len(), expected, "{one:?} {other:?}");
        assert_eq!(derived.report.agents, expected);
    };
    check(Some("eu"), Some("us"), 2);
    check(Some("eu"), Some("eu"), 1);
    check(Some("eu"), None, 1);
    check(None, None, 1);
}
