//! What another policy would do is said beforehand, of those who really called within the last hour, and is what it then
//! does.

use baremesh_tests::{Mesh, output_of, run, wait_until};
use serde_json::Value;

use crate::pair::{Pair, WEB_ID, is_cut};

/// What a command says on the control host, in JSON, whatever it ends with.
fn asked(mesh: &Mesh, line: &str) -> Value {
    let output = run(mesh.control.sh(&format!("baremesh {line} -o json")));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn peers<'a>(report: &'a Value, list: &str) -> Vec<(&'a str, &'a str)> {
    let flows = report[list].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |flow: &'a Value, key: &str| flow[key].as_str().unwrap_or_default();
    flows.iter().map(|flow| (text(flow, "peer"), text(flow, "peerAddress"))).collect()
}

#[test]
fn who_would_be_cut_off_is_named_before_and_is_cut_off_then() {
    let pair = Pair::new("foresight");
    let stranger = pair.mesh.net.host("stranger", 3);
    let _echo = pair.store.host.serve("echo", ["echo", "[::]:7000"]);
    pair.register("echo", 7000);
    // Rules follow a registration a moment later, and what passes the agent is in no report.
    wait_until("it is captured", || {
        output_of(pair.store.host.sh("nft list table inet baremesh")).contains("7000")
    });
    let mode =
        |mode: &str| format!("[[PeerAuthentication]]\nname = \"default\"\nmtls = {{ mode = \"{mode}\" }}\n");
    pair.mesh.enforce(&mode("PERMISSIVE"));
    let store = pair.store.host.v4().to_string();
    let from_outside = || stranger.shop(["call", &store, "7000", "hello"]);
    assert_eq!(output_of(from_outside()), "hello");
    assert_eq!(output_of(pair.call("echo", 7000, "hello")), "hello");

    let outside = ("nobody of the mesh", "10.77.0.3");
    wait_until("the report names who comes in plaintext", || {
        peers(&asked(&pair.mesh, "mtls report"), "cut") == [outside]
    });
    let text = run(pair.mesh.control.baremesh(["mtls", "report"]));
    assert_eq!(text.status.code(), Some(1), "scripts learn it too");
    let said = String::from_utf8_lossy(&text.stdout).into_owned();
    for part in ["echo.default", "7000", "10.77.0.3", "STRICT"] {
        assert!(said.contains(part), "{said}");
    }

    let simulate = |text: &str| {
        let file = pair.mesh.control.path("/run/baremesh/candidate.toml");
        std::fs::write(file, text).expect("written");
        asked(&pair.mesh, "apply --simulate -f /run/baremesh/candidate.toml")
    };
    let only = |principal: &str| {
        format!(
            "[[AuthorizationPolicy]]\nname = \"echo\"\nselector = {{ matchLabels = {{ app = \"echo\" }} }}\n\
             rules = [{{ from = [{{ source = {{ principals = [\"{principal}\"] }} }}] }}]\n"
        )
    };
    let resources = output_of(pair.mesh.control.baremesh(["get", "-o", "json"]));
    assert_eq!(peers(&simulate(&mode("STRICT")), "cut"), [outside]);
    assert_eq!(peers(&simulate(&only("*/sa/web")), "cut"), [outside]);
    wait_until("the caller within the mesh is known as well", || {
        let cut = simulate(&only("*/sa/till"));
        let cut = peers(&cut, "cut");
        cut.contains(&outside) && cut.iter().any(|(peer, _)| *peer == WEB_ID)
    });
    assert_eq!(
        output_of(pair.mesh.control.baremesh(["get", "-o", "json"])),
        resources,
        "nothing was changed"
    );

    pair.mesh.enforce(&(mode("STRICT") + &only("*/sa/web")));
    wait_until("the policies are in force", || is_cut(from_outside()));
    assert_eq!(output_of(pair.call("echo", 7000, "hello")), "hello");
    let report = asked(&pair.mesh, "mtls report");
    assert!(peers(&report, "cut").is_empty() && peers(&report, "refusedAlready") == [outside], "{report}");
    // The other way round: what a policy would let in that is refused now.
    assert!(peers(&simulate(&mode("PERMISSIVE")), "opened").is_empty());
    let open = "[[AuthorizationPolicy]]\nname = \"echo\"\nselector = { matchLabels = { app = \"echo\" } }\nrules = [{}]\n";
    assert_eq!(peers(&simulate(&(mode("PERMISSIVE") + open)), "opened"), [outside]);
}
