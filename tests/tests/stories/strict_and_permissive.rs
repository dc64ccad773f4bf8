//! Plaintext from hosts outside the mesh: refused under STRICT, which is what a new mesh has; taken under PERMISSIVE,
//! as a caller without an identity.

use baremesh_tests::{Host, Process, exit, exit_code_of, output_of, wait_until};

use crate::pair::{Pair, because, connections_of, is_cut, real_addresses};

/// A host that never joined, and a service whose program listens on every address.
fn outsider() -> (Pair, Host, Process) {
    let pair = Pair::new("plaintext");
    let stranger = pair.mesh.net.host("stranger", 3);
    let echo = pair.store.host.serve("echo", ["echo", "[::]:7000"]);
    assert_eq!(
        output_of(stranger.shop(["call", &pair.store.host.v4().to_string(), "7000", "before"])),
        "before"
    );
    pair.register("echo", 7000);
    // Rules follow a registration a moment later.
    wait_until("it is captured", || cut(&stranger, &pair.store.host.v4().to_string()));
    (pair, stranger, echo)
}

/// Whether the stranger's call is cut off.
fn cut(stranger: &Host, address: &str) -> bool {
    is_cut(stranger.shop(["call", address, "7000", "hello"]))
}

fn mode(mode: &str) -> String {
    format!(
        "[[PeerAuthentication]]\nname = \"echo\"\nselector = {{ matchLabels = {{ app = \"echo\" }} }}\nmtls = {{ mode = \"{mode}\" }}\n"
    )
}

fn policy(lines: &str) -> String {
    format!(
        "[[AuthorizationPolicy]]\nname = \"echo\"\nselector = {{ matchLabels = {{ app = \"echo\" }} }}\n{lines}\n"
    )
}

#[test]
fn strict_refuses_plaintext_and_permissive_takes_it() {
    let (pair, stranger, echo) = outsider();
    let before = connections_of(&echo);
    for address in real_addresses(&pair.store.host) {
        assert!(cut(&stranger, &address), "STRICT, {address}");
    }
    assert_eq!(connections_of(&echo), before, "its program never saw them");
    pair.store.wait_for_log("the refusal", |line| {
        because("plaintext_refused")(line) && line["connection_security_policy"] == "none"
    });
    pair.mesh.apply(&mode("PERMISSIVE"));
    wait_until("PERMISSIVE is in force", || !cut(&stranger, &pair.store.host.v4().to_string()));
    assert!(!cut(&stranger, &pair.store.host.v6().to_string()));
    let line = pair.store.wait_for_log("a caller without identity", |line| {
        because("-")(line)
            && line["downstream_remote_address"].as_str().is_some_and(|from| from.starts_with("[fd77::3]"))
    });
    assert_eq!(line.get("source_principal"), None, "{line}");
    assert_eq!(output_of(pair.call("echo", 7000, "a member")), "a member");
    pair.mesh.apply(&mode("STRICT"));
    wait_until("STRICT is in force", || cut(&stranger, &pair.store.host.v4().to_string()));
}

#[test]
fn an_open_plaintext_connection_ends_when_strict_comes() {
    let (pair, stranger, _echo) = outsider();
    pair.mesh.apply(&mode("PERMISSIVE"));
    let address = pair.store.host.v4().to_string();
    wait_until("PERMISSIVE is in force", || !cut(&stranger, &address));
    let held = stranger.spawn("hold", stranger.shop(["hold", &address, "7000"]));
    held.wait_for_output("open");
    pair.mesh.apply(&mode("STRICT"));
    assert_eq!(held.wait().code(), Some(exit::CUT.into()), "{}", held.stdout());
}

#[test]
fn a_rule_about_identity_fails_closed_on_plaintext() {
    let (pair, stranger, echo) = outsider();
    pair.mesh.apply(&mode("PERMISSIVE"));
    let address = pair.store.host.v4().to_string();
    let source = |field: &str| format!("rules = [{{ from = [{{ source = {{ {field} }} }}] }}]");
    let check = |lines: &str, expected: bool| {
        pair.mesh.apply(&policy(lines));
        wait_until(&format!("plaintext is cut off ({expected}) under {lines}"), || {
            cut(&stranger, &address) == expected
        });
    };
    check("rules = [{}]", false);
    // In an ALLOW rule nobody is not the named one, and in a DENY rule he may be.
    for field in [
        "principals = [\"mesh.internal/ns/default/sa/web\"]",
        "namespaces = [\"default\"]",
        "serviceAccounts = [\"default/web\"]",
        "trustDomains = [\"mesh.internal\"]",
    ] {
        for rule in [source(field), format!("action = \"DENY\"\n{}", source(field))] {
            check(&rule, true);
            let before = connections_of(&echo);
            assert!(cut(&stranger, &address));
            assert_eq!(connections_of(&echo), before, "its program never sees it");
            check("rules = [{}]", false);
        }
    }
    // Whether there is an identity at all is known.
    check(&source("principals = [\"*\"]"), true);
    check("rules = [{}]", false);
    check(&format!("action = \"DENY\"\n{}", source("notPrincipals = [\"*\"]")), true);
}

#[test]
fn the_capture_ports_give_nothing_to_those_who_dial_them() {
    let (pair, stranger, echo) = outsider();
    let before = connections_of(&echo);
    let own = real_addresses(&pair.store.host);
    for port in ["15001", "15006"] {
        for address in &own {
            for host in [&stranger, &pair.web.host] {
                let dialled = host.shop(["call", "--timeout", "1", address, port, "hello"]);
                assert_eq!(
                    exit_code_of(dialled),
                    exit::NO_CONNECTION,
                    "{address}:{port} from {}",
                    host.name()
                );
            }
        }
        for address in ["127.0.0.1", "::1", &own[0]] {
            let dialled = pair.store.host.shop(["call", "--timeout", "1", address, port, "hello"]);
            assert_eq!(exit_code_of(dialled), exit::NO_CONNECTION, "{address}:{port} from the host itself");
        }
    }
    assert_eq!(connections_of(&echo), before);
    let listed = output_of(pair.store.host.sh("nft list counter inet baremesh listener_stray"));
    let packets =
        listed.rsplit("packets ").next().and_then(|rest| rest.split(' ').next()).and_then(|n| n.parse().ok());
    assert!(packets >= Some(14_u32), "they are counted: {listed}");
    assert_eq!(exit_code_of(pair.call("echo", 7000, "hello")), exit::DONE);
}
