//! A virtual address stands for a service's ports and for nothing else.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use baremesh_tests::{exit, exit_code_of, output_of};

use crate::pair::{Pair, because, connections_of, virtual_addresses};

/// A port that the service does not have.
const UNKNOWN: u16 = 9000;

#[test]
fn an_unknown_port_reaches_no_local_process() {
    let pair = Pair::new("unknown");
    pair.serve("echo", 7000);
    let listen = ["echo", "0.0.0.0:9000", "[::]:9001", "[::1]:9000"];
    let bystanders = [&pair.web, &pair.store].map(|member| member.host.serve("bystander", listen));
    assert_eq!(
        output_of(pair.web.host.shop(["call", "127.0.0.1", "9000", "hello"])),
        "hello",
        "it does listen"
    );
    assert_eq!(output_of(pair.web.host.shop(["call", "::1", "9001", "hello"])), "hello", "on both families");
    let before: Vec<_> = bystanders.iter().map(connections_of).collect();

    let mut called: Vec<IpAddr> = virtual_addresses(&pair.web, "echo");
    // An address of the range that is no service's.
    called.push(Ipv4Addr::new(240, 240, 255, 254).into());
    for member in [&pair.web, &pair.store] {
        for address in &called {
            for port in ["9000", "9001", "22", "15001", "15008", "15020"] {
                let code = exit_code_of(member.host.shop(["call", &address.to_string(), port, "hello"]));
                let name = member.host.name();
                assert!(
                    [exit::CUT, exit::NO_CONNECTION].contains(&code),
                    "{address}:{port} from {name}: {code}"
                );
            }
        }
        member.wait_for_log("the port", because("no_such_port"));
        member.wait_for_log("the address", because("no_such_service"));
    }
    let after: Vec<_> = bystanders.iter().map(connections_of).collect();
    assert_eq!(after, before);
    assert_eq!(exit_code_of(pair.call("echo", 7000, "hello")), exit::DONE);
}

#[test]
fn other_protocols_are_rejected_at_once() {
    let pair = Pair::new("udp");
    pair.serve("echo", 7000);
    for address in virtual_addresses(&pair.web, "echo") {
        for port in [UNKNOWN, 7000] {
            let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let listening = pair.web.host.bind_udp((any, port));
            listening.set_nonblocking(true).expect("a socket");
            let socket = pair.web.host.bind_udp((any, 0));
            socket.set_read_timeout(Some(baremesh_tests::WAIT_BOUND)).expect("a timeout");
            // Which error an ICMP message becomes is the family's affair; a timeout would be `WouldBlock`.
            let told = socket
                .connect(SocketAddr::new(address, port))
                .and_then(|()| socket.send(b"a datagram"))
                .and_then(|_| socket.recv(&mut [0; 16]))
                .expect_err("nobody answers a datagram");
            assert_ne!(told.kind(), ErrorKind::WouldBlock, "{address}:{port} {told}");
            let received = listening.recv_from(&mut [0; 16]).expect_err("nobody gets the datagram");
            assert_eq!(received.kind(), ErrorKind::WouldBlock, "{address}:{port}");
        }
    }
}
