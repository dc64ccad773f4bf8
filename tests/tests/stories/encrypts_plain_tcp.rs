//! Unmodified programs speak plain TCP, and nobody between their hosts reads it.

use std::net::SocketAddr;

use baremesh_tests::output_of;

use crate::pair::{Pair, WEB_ID, real_addresses, virtual_addresses};

/// The port of agents' tunnels.
const HBONE: u16 = 15008;

#[test]
fn encrypts_plain_tcp_however_the_service_is_called() {
    let pair = Pair::new("encrypts");
    pair.serve("echo", 7000);
    let mut names = vec!["echo".to_owned(), "echo.mesh.internal".into(), "echo.default.mesh.internal".into()];
    names.extend(virtual_addresses(&pair.web, "echo").iter().map(ToString::to_string));
    names.extend(real_addresses(&pair.store.host));

    let (wire, sent) = (pair.mesh.net.capture(), pair.web.host.capture());
    for name in &names {
        let secret = format!("payload for {name}");
        assert_eq!(output_of(pair.call(name, 7000, &secret)), secret);
    }
    let (wire, sent) = (wire.stop(), sent.stop());
    assert_eq!(wire.holes(), 0, "nothing on the wire was missed");
    for name in &names {
        let secret = format!("payload for {name}");
        let sighting = sent.find(&secret).expect("what the program sent is seen on its own host");
        assert!(sighting.in_one_packet, "{sighting}");
        assert!(!sent.clone().off_loopback().contains(&secret), "{secret} leaves the host");
        assert!(wire.find(&secret).is_none(), "{:?}", wire.find(&secret));
    }
    let ends = [pair.web.host.v4().into(), pair.store.host.v4().into()];
    let ends6 = [pair.web.host.v6().into(), pair.store.host.v6().into()];
    let between = |a: SocketAddr, b: SocketAddr| {
        [ends, ends6].iter().any(|e| e.contains(&a.ip()) && e.contains(&b.ip()))
    };
    for flow in wire.flows().iter().filter(|flow| between(flow.source, flow.destination)) {
        assert!(flow.source.port() == HBONE || flow.destination.port() == HBONE, "{flow} is no tunnel");
    }
    pair.store.wait_for_log("who called", |line| line["source_principal"] == WEB_ID);
}

#[test]
fn the_same_call_without_a_mesh_is_read_on_the_wire() {
    let net = baremesh_tests::net("cleartext");
    let (web, store) = (net.host("web", 1), net.host("store", 2));
    store.serve("echo", ["echo", "[::]:7000"]);
    let wire = net.capture();
    for name in real_addresses(&store) {
        let secret = format!("payload for {name}");
        assert_eq!(output_of(web.shop(["call", &name, "7000", &secret])), secret);
    }
    let wire = wire.stop();
    assert_eq!(wire.holes(), 0);
    for name in real_addresses(&store) {
        assert!(wire.contains(format!("payload for {name}")));
    }
}
