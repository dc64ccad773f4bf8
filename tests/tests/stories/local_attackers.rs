//! A user of a member host who is nobody to the mesh: at the agent's ports, and through a program that is gone at once.

use baremesh_tests::{exit, exit_code_of, needs_root, output_of, wait_until};

use crate::pair::{Pair, WEB, WEB_ID, because, connections_of, counted, real_addresses, shop_as};

/// The scripts become it by themselves: the interpreter may be where it cannot read.
const STRANGER: u32 = 4711;

/// Speaks TLS without a certificate, and HTTP/2 in it, as a user who can read no key; says what came of it.
const TUNNEL: &str = r#"
import encodings.idna, os, socket, ssl, sys
os.setgroups([]); os.setgid(4711); os.setuid(4711)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols(["h2"])
for address in sys.argv[1:]:
    try:
        raw = socket.create_connection((address, 15008), timeout=20)
        tls = context.wrap_socket(raw, server_hostname="echo.default.mesh.internal")
        tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        print(address, "answered" if tls.recv(9) else "refused")
    except (OSError, ssl.SSLError):
        print(address, "refused")
"#;

/// Connects, speaks and is gone before anybody could ask who it was: in good order, with a reset, or by its end.
const GONE: &str = r#"
import encodings.idna, os, socket, struct, sys
os.setgroups([]); os.setgid(4711); os.setuid(4711)
for number in range(200):
    child = os.fork()
    if child == 0:
        caller = socket.create_connection((sys.argv[1], 7000), timeout=20)
        caller.sendall(b"let me in\n")
        if number % 3 == 0:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if number % 3 != 1:
            caller.close()
        os._exit(0)
    os.waitpid(child, 0)
"#;

#[test]
fn a_local_user_gets_nothing_of_the_agents_ports() {
    needs_root!("two uids");
    let pair = Pair::new("local-ports");
    let echo = pair.serve("echo", 7000);
    let own = real_addresses(&pair.store.host);
    let addresses = ["127.0.0.1", "::1", &own[0], &own[1]];
    for address in addresses {
        for port in ["15001", "15006"] {
            let dialled =
                shop_as(&pair.store.host, STRANGER, &["call", "--timeout", "1", address, port, "hello"]);
            assert_eq!(exit_code_of(dialled), exit::NO_CONNECTION, "{address}:{port}");
        }
    }
    let mut python = pair.store.host.command("python3");
    python.args(["-c", TUNNEL]).args(addresses);
    let said = output_of(python);
    assert_eq!(said.lines().count(), addresses.len(), "{said}");
    assert!(said.lines().all(|line| line.ends_with(" refused")), "{said}");
    wait_until("each handshake that was refused is in the log", || {
        let log = pair.store.log();
        log.iter().filter(|line| because("handshake_failed")(line)).count() >= addresses.len()
    });
    assert!(counted(&pair.store, "handshake_failed") >= addresses.len(), "each is counted");
    assert_eq!(connections_of(&echo), 0);
    assert_eq!(exit_code_of(pair.call("echo", 7000, "hello")), exit::DONE, "a service's program does");
}

#[test]
fn who_is_gone_before_it_is_known_is_taken_for_nobody_else() {
    needs_root!("two uids");
    let pair = Pair::new("gone");
    let echo = pair.serve("echo", 7000);
    // Only `web`, which is whatever root runs, and the kernel says of sockets without an owner that they are root's.
    pair.mesh.enforce(&format!(
        "[[AuthorizationPolicy]]\nname = \"echo\"\nselector = {{ matchLabels = {{ app = \"echo\" }} }}\n\
         rules = [{{ from = [{{ source = {{ principals = [\"{WEB}\"] }} }}] }}]\n"
    ));
    let mut python = pair.web.host.command("python3");
    let address = crate::pair::virtual_addresses(&pair.web, "echo")[0].to_string();
    python.args(["-c", GONE, &address]);
    output_of(python);
    let unknown = || pair.web.log().iter().filter(|line| because("caller_unknown")(line)).count();
    wait_until("who could not be told any more is in the log, and counted", || {
        let reason = [("reporter", "source"), ("reason", "caller_unknown")];
        let counted = pair.web.counted("baremesh_connection_failures_total", &reason);
        counted > 0 && counted == unknown()
    });
    assert_eq!(exit_code_of(pair.call("echo", 7000, "hello")), exit::DONE, "who is known is let in");
    pair.store.wait_for_log("the call", |line| line["source_principal"] == WEB_ID);
    assert_eq!(connections_of(&echo), 1, "nobody else was: {}", echo.stdout());
    let of_web = pair.store.log().into_iter().filter(|line| line["source_principal"] == WEB_ID).count();
    assert_eq!(of_web, 1, "none of the others was taken for it");
}
