//! A Sidecar says which services a workload calls, and the others are none to it.

use baremesh_tests::{exit, exit_code_of, output_of, run, wait_until};

use crate::pair::{Pair, because, is_cut, real_addresses};

fn sidecar(place: &str, egress: &str) -> String {
    format!("[[Sidecar]]\n{place}\negress = [{egress}]\n")
}

#[test]
fn a_service_calls_what_its_sidecar_names_and_nothing_else() {
    let pair = Pair::new("sidecar");
    pair.serve("echo", 7000);
    pair.serve_as("other", "echo", 7001);
    let call = |name: &str, port: u16| pair.call(name, port, "hello");
    assert_eq!(output_of(call("other", 7001)), "hello", "without a Sidecar everything is called");
    let web = "name = \"web\"\nworkloadSelector = { labels = { app = \"web\" } }";
    pair.mesh.enforce(&sidecar(web, "{ hosts = [\"./echo.default.mesh.internal\"] }"));
    wait_until("other is no service to web", || is_cut(call("other", 7001)));
    assert_eq!(output_of(call("echo", 7000)), "hello");
    // By none of its addresses, and never in plaintext in its place.
    let wire = pair.mesh.net.capture();
    for address in real_addresses(&pair.store.host) {
        assert!(is_cut(pair.call(&address, 7001, "in plaintext")), "{address}");
        assert_eq!(output_of(call(&address, 7000)), "hello", "{address}");
    }
    assert!(!wire.stop().off_loopback().contains("in plaintext"));
    let line = pair.web.wait_for_log("the refusal", because("not_in_sidecar"));
    assert_eq!(
        (line["response_flags"].as_str(), line["upstream_cluster"].as_str()),
        (Some("UH"), Some("BlackHoleCluster"))
    );
    let said = line["connection_termination_details"].to_string();
    assert!(said.contains("web.default") && said.contains("other.default"), "{line}");
    // It is explained as it is done.
    let explained = run(pair.web.host.baremesh(["explain", "tcp://other:7001", "--from", "web"]));
    let text =
        String::from_utf8_lossy(&explained.stdout).into_owned() + &String::from_utf8_lossy(&explained.stderr);
    assert!(text.contains("Sidecar web.default"), "{text}");
    // What selects the workload goes before its namespace's, and that before the root namespace's.
    let namespace = sidecar("name = \"default\"", "{ hosts = [\"~/*\"] }");
    let root = sidecar("name = \"default\"\nnamespace = \"mesh-system\"", "{ hosts = [\"*/other\"] }");
    pair.mesh.enforce(&(namespace + &root));
    assert_eq!(output_of(call("echo", 7000)), "hello");
    output_of(pair.mesh.control.baremesh(["delete", "Sidecar", "web"]));
    wait_until("the namespace's holds", || is_cut(call("echo", 7000)) && is_cut(call("other", 7001)));
    output_of(pair.mesh.control.baremesh(["delete", "Sidecar", "default"]));
    wait_until("the root namespace's holds", || exit_code_of(call("other", 7001)) == exit::DONE);
    assert!(is_cut(call("echo", 7000)));
    output_of(pair.mesh.control.baremesh(["delete", "Sidecar", "default", "-n", "mesh-system"]));
    wait_until("everything is called again", || exit_code_of(call("echo", 7000)) == exit::DONE);
}
