//! A WorkloadGroup says what registrations leave unsaid, and makes no host do what its administrator did not say.

use std::fs;

use baremesh_tests::{exit, exit_code_of, output_of, run, wait_until};

use crate::pair::{Pair, is_cut};

/// A group for `echo`, with the label `tier`.
fn group(tier: &str) -> String {
    format!(
        "[[WorkloadGroup]]\nname = \"echo-vm\"\nmetadata = {{ labels = {{ tier = \"{tier}\" }} }}\n\
         template = {{ ports = {{ echo = 7000 }}, weight = 3 }}\n\
         probe = {{ tcpSocket = {{ port = \"echo\" }}, periodSeconds = 1 }}\n"
    )
}

const SHUT: &str = "[[AuthorizationPolicy]]\nname = \"front\"\naction = \"DENY\"\n\
    selector = { matchLabels = { tier = \"front\" } }\nrules = [{}]\n";

#[test]
fn a_group_says_what_registrations_leave_unsaid_and_is_followed() {
    let pair = Pair::new("groups");
    pair.mesh.enforce(&(group("back") + SHUT));
    let call = || pair.call("echo", 7000, "hello");
    let wait_until_carried = || wait_until("a call is carried", || exit_code_of(call()) == exit::DONE);
    let list = || output_of(pair.store.host.baremesh(["service", "list"]));
    // Ports and probe are the group's: while nothing listens, the service is not well.
    pair.store.register("echo", ["--group", "echo-vm"]);
    pair.web.wait_for_endpoints("echo.default", 1);
    wait_until("it is unhealthy", || list().contains("unhealthy (tcpSocket"));
    let _program = pair.store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    wait_until_carried();
    // Labels are: a policy that selects by them holds as soon as the group says so.
    pair.mesh.enforce(&group("front"));
    wait_until("the policy of the new label holds", || is_cut(call()));
    pair.mesh.enforce(&group("back"));
    wait_until_carried();
    // What the registration says itself goes before.
    pair.store.register("echo", ["--group", "echo-vm", "--label", "tier=front"]);
    wait_until("its own label holds", || is_cut(call()));
    pair.store.register("echo", ["--group", "echo-vm"]);
    wait_until_carried();
    // Who deletes a group stops nothing that runs, and is told what it leads to.
    output_of(pair.mesh.control.baremesh(["delete", "WorkloadGroup", "echo-vm"]));
    pair.mesh.wait_until_in_force();
    let warned = || output_of(pair.store.host.baremesh(["status"])).contains("the WorkloadGroup was deleted");
    wait_until("status warns", warned);
    wait_until_carried();
    // Started without it, nobody knows which policies select the service: it takes no calls, from this host neither.
    pair.store.stop_agent();
    pair.store.start();
    wait_until("nobody is let in", || is_cut(call()));
    let own = || pair.store.host.shop(["call", "127.0.0.1", "7000", "hello"]);
    assert!(is_cut(own()), "a neighbour is let in");
    assert!(list().contains("there is no such WorkloadGroup"), "{}", list());
    pair.mesh.enforce(&group("back"));
    wait_until_carried();
}

#[test]
fn no_group_makes_a_host_run_a_command_or_look_at_another_port() {
    let pair = Pair::new("groups-attack");
    let refused = |probe: &str, reason: &str| {
        let text = format!("[[WorkloadGroup]]\nname = \"echo-vm\"\nprobe = {{ {probe} }}\n");
        fs::write(pair.mesh.control.path("/run/baremesh/bad.toml"), text).expect("a file");
        let applied = run(pair.mesh.control.baremesh(["apply", "-f", "/run/baremesh/bad.toml"]));
        let said = String::from_utf8_lossy(&applied.stderr).into_owned();
        assert!(!applied.status.success() && said.contains(reason), "{said}");
    };
    refused("exec = { command = [\"/bin/true\"] }", "no resource makes hosts run a command");
    refused("unit = \"sshd.service\"", "which unit is looked at is the host's own to say");
    refused("tcpSocket = { host = \"10.0.0.1\", port = 80 }", "a host looks at its own service alone");
    // A port of the host that the registration does not have: something listens there, and it is not looked at.
    let other = pair.store.host.listen(std::net::SocketAddr::from(([127, 0, 0, 1], 7100)));
    other.set_nonblocking(true).expect("a listener");
    let text = group("back").replace("port = \"echo\"", "port = 7100");
    pair.mesh.enforce(&text);
    pair.store.register("echo", ["--group", "echo-vm", "--port", "7000"]);
    let list = || output_of(pair.store.host.baremesh(["service", "list"]));
    wait_until("the probe is refused", || list().contains("port 7100 is none of the registration's"));
    assert!(other.accept().is_err(), "somebody looked at it");
    // A later change of the group's ports moves no delivery.
    pair.mesh.enforce(&group("back").replace("echo = 7000", "echo = 7100"));
    wait_until("the group holds", || !list().contains("none of the registration's"));
    assert!(list().contains("127.0.0.1:7000") && !list().contains("127.0.0.1:7100"), "{}", list());
}
