//! The shop works on bare hosts: what fails on a mesh is then the mesh's fault.

use baremesh_tests::{Host, Net, exit, exit_code_of, net, output_of};

/// A host that others know by name.
fn named(net: &Net, name: &str, index: u8, known_to: &[&Host]) -> Host {
    let host = net.host(name, index);
    for other in known_to {
        other.add_to_hosts(name, host.v6());
    }
    host
}

#[test]
fn checkout_calls_orders_and_orders_calls_the_catalog() {
    let net = net("shop");
    let customer = net.host("customer", 1);
    let checkout = named(&net, "checkout", 2, &[&customer]);
    let orders = named(&net, "orders", 3, &[&checkout]);
    let catalog = named(&net, "catalog", 4, &[&orders, &customer]);
    checkout.serve("checkout", ["checkout", "orders", "80", "[::]:80"]);
    orders.serve("orders", ["orders", "catalog", "80", "[::]:80"]);
    let prices = catalog.serve("catalog", ["catalog", "[::]:80"]);

    let buy = |what: &str| customer.shop(["call", "checkout", "80", what]);
    assert_eq!(output_of(buy("buy tea")), "thank you: ordered tea: 350 pence");
    assert_eq!(exit_code_of(buy("buy elephant")), exit::WRONG);
    assert_eq!(output_of(customer.shop(["greet", "catalog", "80"])), "catalog: ask for a price");
    prices.kill();
    prices.wait();
    assert_eq!(exit_code_of(buy("buy tea")), exit::WRONG);
    drop(checkout);
    assert_eq!(
        exit_code_of(customer.shop(["call", "--timeout", "1", "checkout", "80", "x"])),
        exit::NO_CONNECTION
    );
}

#[test]
fn bulk_is_checked_and_halves_are_closed() {
    let net = net("bulk");
    let (web, store) = (net.host("web", 1), net.host("store", 2));
    web.add_to_hosts("store", store.v4());
    for (index, role) in ["sink", "source", "echo", "catalog"].into_iter().enumerate() {
        store.serve(role, [role, &format!("0.0.0.0:{}", 8000 + index)]);
    }
    let sent = output_of(web.shop(["send", "store", "8000", "10000001"]));
    assert!(sent.starts_with("moved 10000001 bytes, checksum "), "{sent}");
    assert_eq!(output_of(web.shop(["fetch", "store", "8001", "10000001"])), sent);
    assert!(output_of(web.shop(["slow", "store", "8001", "100000"])).starts_with("moved 100000 bytes"));
    assert_eq!(output_of(web.shop(["half-close", "store", "8002", "to the end"])), "to the end");
    assert_eq!(exit_code_of(web.shop(["send", "store", "8003", "8"])), exit::WRONG);
    assert_eq!(exit_code_of(web.shop(["call", "--timeout", "1", "store", "8000", "hello"])), exit::SILENT);
}

#[test]
fn connections_are_opened_held_and_cut() {
    let net = net("hold");
    let (web, store) = (net.host("web", 1), net.host("store", 2));
    let address = store.v4().to_string();
    let echo = store.serve("echo", ["echo", "0.0.0.0:80"]);
    store.serve("source", ["source", "0.0.0.0:81"]);
    assert!(output_of(web.shop(["many", &address, "80", "500"])).ends_with("echoed on 500 of 500"));
    let held = web.spawn("hold", web.shop(["hold", &address, "80"]));
    held.wait_for_output("open");
    let stalled = web.spawn("stall", web.shop(["stall", &address, "81", "100000000", "5"]));
    stalled.wait_for_output("stalled 5");
    assert!(held.is_running() && stalled.is_running());
    echo.kill();
    let status = held.wait();
    assert_eq!(status.code(), Some(exit::CUT.into()), "{}", held.stdout());
    assert!(held.has_said("ended after"));
}
