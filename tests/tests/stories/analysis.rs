//! `baremesh analyze`, over files and over what is in force.

use baremesh_tests::{Mesh, net, output_of, run};

const ROUTES: &str = "[[VirtualService]]\nname = \"orders\"\nhosts = [\"orders\"]\n\
    tcp = [{ route = [{ destination = { host = \"orders\", port = { number = PORT } } }] }]\n";

/// Ended with, on the standard output, on the standard error.
fn analyze(host: &baremesh_tests::Host, options: &str) -> (Option<i32>, String, String) {
    let output = run(host.sh(&format!("baremesh analyze {options}")));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn an_analysis_of_what_is_in_force_knows_what_hosts_registered() {
    let mesh = Mesh::new("analysis");
    let (web, orders) = (mesh.member("web", 1, &[]), mesh.member("orders", 2, &["orders"]));
    orders.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    orders.register("orders", ["--port", "80:7000"]);
    web.wait_for_endpoints("orders.default", 1);
    let file = mesh.control.path("/run/baremesh/routes.toml");
    std::fs::write(&file, ROUTES.replace("PORT", "81")).expect("written");

    // Alone, the file is about a service that nobody knows; over what is in force, about a port that is not there.
    let (code, _, said) = analyze(&mesh.control, "/run/baremesh/routes.toml");
    assert!(code == Some(1) && said.contains("host `orders` is not found"), "{said}");
    let (code, _, said) = analyze(&mesh.control, "--live /run/baremesh/routes.toml");
    let place = "routes.toml:4:72: Error [IST0101] (VirtualService default/orders) the destination's port 81 is not found";
    assert!(code == Some(1) && said.contains(place), "{said}");
    let (code, _, said) = analyze(&mesh.control, "");
    assert!(code == Some(0) && said.contains("0 errors, 0 warnings"), "{said}");

    // Applied it is in force, and told of.
    let applied = run(mesh.control.baremesh(["apply", "-f", "/run/baremesh/routes.toml"]));
    let said = String::from_utf8_lossy(&applied.stderr);
    assert!(applied.status.success() && said.contains("Warning [IST0101]"), "{said}");
    let (code, found, _) = analyze(&mesh.control, "-o json");
    let found: serde_json::Value = serde_json::from_str(&found).expect("JSON");
    assert_eq!((code, &found["findings"][0]["code"]), (Some(1), &"IST0101".into()), "{found}");
    assert!(found["findings"][0]["file"].to_string().contains("/etc/baremesh/registry/"), "{found}");

    std::fs::write(&file, ROUTES.replace("PORT", "80")).expect("written");
    assert_eq!(
        output_of(mesh.control.baremesh(["apply", "-f", "/run/baremesh/routes.toml"])).lines().count(),
        1
    );
    let (code, _, said) = analyze(&mesh.control, "");
    assert!(code == Some(0) && said.contains("0 errors, 0 warnings"), "{said}");
}

/// Without a control server it is the host's directory, with its own registrations.
#[test]
fn a_host_that_reads_files_is_analysed_by_itself() {
    let net = net("analysis-files");
    let host = net.host("orders", 1);
    let write = |file: &str, text: &str| {
        let path = host.path("/etc/baremesh").join(file);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("the host's directory");
        std::fs::write(path, text).expect("a file of the host");
    };
    write("agent.toml", "[registry]\nsource = \"files\"\n");
    write("registry/routes.toml", &ROUTES.replace("PORT", "80"));
    let (code, _, said) = analyze(&host, "");
    assert!(code == Some(1) && said.contains("registry/routes.toml:4:44: Error [IST0101]"), "{said}");
    write(
        "registrations.d/default.orders.toml",
        "name = \"orders\"\n[[ports]]\nport = 80\ndeliver = \"127.0.0.1:7000\"\n",
    );
    let (code, _, said) = analyze(&host, "");
    assert!(code == Some(0) && said.contains("1 resources in force: 0 errors, 0 warnings"), "{said}");
    let (code, _, said) = analyze(&host, "/nosuch.toml");
    assert!(code == Some(2) && said.contains("/nosuch.toml"), "{said}");
}
