//! The thin line: two hosts join, a service is registered, and a program that knows nothing of the mesh calls it by
//! name.

use baremesh_tests::{Mesh, output_of};

#[test]
fn a_program_calls_a_service_of_another_host_by_name() {
    let mesh = Mesh::new("by-name");
    let (web, orders) = (mesh.member("web", 1, &["web"]), mesh.member("orders", 2, &["orders"]));
    orders.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    orders.register("orders", ["--port", "7000"]);
    web.wait_for_endpoints("orders.default", 1);
    for name in ["orders", "orders.mesh.internal", "orders.default.mesh.internal"] {
        assert_eq!(output_of(web.host.shop(["call", name, "7000", "hello"])), "hello");
    }
    let line = orders.wait_for_log("the call", |line| line["reporter"] == "destination");
    assert_eq!(line["source_principal"], "spiffe://mesh.internal/ns/hosts/sa/web");
    assert_eq!(line["destination_principal"], "spiffe://mesh.internal/ns/default/sa/orders");
    assert_eq!(line["connection_security_policy"], "mutual_tls");
}
