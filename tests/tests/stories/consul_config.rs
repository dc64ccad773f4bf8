//! What a running Consul knows of its own mesh is made into resources.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;

use baremesh_tests::consul::{Consul, ask_as};
use baremesh_tests::{Host, net, run, wait_until};
use serde_json::{Value, json};

/// A token that may everything.
const MASTER: &str = "7a1b3c5d-0000-4000-8000-00000000c0de";
/// What the documentation has people export.
const EXPORTED: [&str; 6] = [
    "/v1/config/proxy-defaults",
    "/v1/config/service-defaults",
    "/v1/config/service-router",
    "/v1/config/service-splitter",
    "/v1/config/service-resolver",
    "/v1/connect/intentions",
];

/// A Consul with ACLs, and on its host the token of the file.
struct Configured {
    host: Host,
    _consul: Consul,
}

impl Configured {
    #[track_caller]
    fn new(name: &str) -> Self {
        let host = net(name).host("consul", 150);
        let acl = json!({ "enabled": true, "default_policy": "deny", "tokens": { "master": MASTER, "agent": MASTER } });
        let consul = Consul::start(&host, &json!({ "server": true, "bootstrap_expect": 1, "acl": acl }));
        let configured = Self { host, _consul: consul };
        wait_until("the token is known", || {
            matches!(configured.asked("GET", "/v1/acl/token/self", None), Some((200, _)))
        });
        configured
    }

    fn asked(&self, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, String)> {
        ask_as(MASTER, &self.host, method, path, body)
    }

    #[track_caller]
    fn put(&self, path: &str, body: &Value) -> String {
        let method = if path == "/v1/connect/intentions" { "POST" } else { "PUT" };
        match self.asked(method, path, Some(body)) {
            Some((200, answer)) => answer,
            other => panic!("{path}: {body}: {other:?}"),
        }
    }

    /// A token with these rules.
    #[track_caller]
    fn token(&self, name: &str, rules: &str) -> String {
        self.put("/v1/acl/policy", &json!({ "Name": name, "Rules": rules }));
        let made = self.put("/v1/acl/token", &json!({ "Policies": [{ "Name": name }] }));
        let made: Value = serde_json::from_str(&made).expect("JSON");
        made["SecretID"].as_str().expect("a token").to_owned()
    }

    /// `convert consul` with these arguments and that token.
    #[track_caller]
    fn converted(&self, token: &str, more: &[&str]) -> Output {
        let path = self.host.path("/run/baremesh/token");
        fs::write(&path, token).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
        let live = ["--http-addr", "http://127.0.0.1:8500", "--token-file", "/run/baremesh/token"];
        let line = ["convert", "consul", "--default-policy", "deny"].iter().chain(&live).chain(more);
        run(self.host.baremesh(line))
    }
}

#[track_caller]
fn made(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn refused(output: &Output) -> String {
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_running_consul_is_converted_as_its_exported_json_is() {
    let consul = Configured::new("consul-config");
    for entry in [
        json!({ "Kind": "service-defaults", "Name": "web", "Protocol": "http" }),
        json!({ "Kind": "service-defaults", "Name": "admin", "Protocol": "http" }),
        json!({ "Kind": "service-resolver", "Name": "web", "DefaultSubset": "v1", "ConnectTimeout": "3s",
                "Subsets": { "v1": { "Filter": "Service.Meta.version == v1" }, "v2": { "Filter": "Service.Meta.version == v2" } } }),
        json!({ "Kind": "service-splitter", "Name": "web",
                "Splits": [{ "Weight": 90, "ServiceSubset": "v1" }, { "Weight": 10, "ServiceSubset": "v2" }] }),
        json!({ "Kind": "service-router", "Name": "web",
                "Routes": [{ "Match": { "HTTP": { "PathPrefix": "/admin" } }, "Destination": { "Service": "admin" } }] }),
    ] {
        consul.put("/v1/config", &entry);
    }
    for (source, destination, action) in
        [("web", "admin", "allow"), ("*", "db", "deny"), ("admin", "db", "allow")]
    {
        let intention = json!({ "SourceName": source, "DestinationName": destination, "Action": action });
        consul.put("/v1/connect/intentions", &intention);
    }
    for (name, port) in [("web", 8080), ("admin", 8081), ("db", 5432), ("of_others", 1)] {
        let instance = json!({ "Node": "n", "Address": "10.200.0.1",
            "Service": { "ID": name, "Service": name, "Port": port, "Meta": { "version": "v1" } } });
        consul.put("/v1/catalog/register", &instance);
    }
    let catalog = ["web", "admin", "db"].map(|name| format!("/v1/catalog/service/{name}"));
    let paths = EXPORTED.into_iter().chain(catalog.iter().map(String::as_str));
    let exported: String =
        paths.map(|path| consul.asked("GET", path, None).expect("an answer").1 + "\n").collect();
    fs::write(consul.host.path("/run/baremesh/consul.json"), exported).expect("written");
    let line = ["convert", "consul", "/run/baremesh/consul.json", "--default-policy", "deny"];
    let of_files = made(&run(consul.host.baremesh(line)));
    for kind in ["VirtualService", "DestinationRule", "AuthorizationPolicy", "Service"] {
        assert!(of_files.contains(&format!("[[{kind}]]")), "no {kind} in\n{of_files}");
    }
    assert_eq!(made(&consul.converted(MASTER, &[])), of_files);
    let reader = consul.token(
        "reader",
        "service_prefix \"\" { policy = \"read\" intentions = \"read\" } node_prefix \"\" { policy = \"read\" }",
    );
    assert_eq!(made(&consul.converted(&reader, &[])), of_files);

    // Consul leaves out what a token may not read: with one that may not read all there would be intentions missing.
    let partial = consul.token("partial", "service \"web\" { policy = \"read\" intentions = \"read\" }");
    let without_ports =
        consul.token("without-ports", "service_prefix \"\" { policy = \"read\" intentions = \"read\" }");
    for (token, because) in [
        (partial.as_str(), "may not read every service"),
        (&without_ports, "may not read every node"),
        ("nobody-s", "Consul's ACLs forbid it"),
    ] {
        let said = refused(&consul.converted(token, &[]));
        assert!(said.contains(because) && said.contains("token"), "{said}");
    }
    // What is not converted is refused by name, as in a file, and can be left out.
    let gateway = json!({ "Kind": "ingress-gateway", "Name": "edge",
        "Listeners": [{ "Port": 8443, "Protocol": "http", "Services": [{ "Name": "web" }] }] });
    consul.put("/v1/config", &gateway);
    let said = refused(&consul.converted(MASTER, &[]));
    assert!(said.contains("ingress-gateway edge"), "{said}");
    assert_eq!(made(&consul.converted(MASTER, &["--without", "ingress-gateway"])), of_files);
}
