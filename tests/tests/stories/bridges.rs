//! Containers on bridges of a host: networks of their own, which call and are called as services of the mesh.

use baremesh_tests::{Host, Member, Mesh, Process, exit, exit_code_of, output_of, run, wait_until};

/// A network of its own on a bridge of a host.
struct Container<'a> {
    host: &'a Host,
    holder: Process,
}

impl<'a> Container<'a> {
    /// On the bridge `br{bridge}`, which is made where it is not there: 172.30.{bridge}.{number} and fd30:{bridge}::{number}.
    fn on(host: &'a Host, bridge: u8, number: u8) -> Self {
        let mut unshare = host.command("unshare");
        unshare.args(["--net", "--", "sh", "-c", "echo up; exec sleep infinity"]);
        let holder = host.spawn(&format!("container-{bridge}-{number}"), unshare);
        holder.wait_for_output("up");
        let (pid, link) = (holder.pid(), format!("c{bridge}-{number}"));
        let lines = format!(
            "set -e
            if ! ip link show br{bridge} 2>/dev/null; then
                ip link add br{bridge} type bridge forward_delay 0
                ip addr add 172.30.{bridge}.1/24 dev br{bridge}; ip addr add fd30:{bridge}::1/64 dev br{bridge} nodad
                ip link set br{bridge} up
            fi
            ip link add {link} type veth peer name eth0 netns {pid}
            ip link set {link} master br{bridge}; ip link set {link} up
            nsenter --net=/proc/{pid}/ns/net sh -c 'ip link set lo up; ip link set eth0 up
                ip addr add 172.30.{bridge}.{number}/24 dev eth0; ip addr add fd30:{bridge}::{number}/64 dev eth0 nodad
                ip route add default via 172.30.{bridge}.1; ip -6 route add default via fd30:{bridge}::1'
            echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
        );
        output_of(host.sh(&lines));
        Self { host, holder }
    }

    fn inside(&self, line: &str) -> std::process::Command {
        self.host.sh(&format!("exec nsenter --net=/proc/{}/ns/net {line}", self.holder.pid()))
    }

    fn call(&self, to: &str, port: u16, text: &str) -> std::process::Command {
        self.inside(&format!("baremesh demo-shop call --timeout 20 {to} {port} {text}"))
    }

    fn serve(&self) -> Process {
        let echo = self.host.spawn("in-container", self.inside("baremesh demo-shop echo [::]:7000"));
        echo.wait_for_output("listening on");
        echo
    }
}

const BRIDGES: &str = "[capture]\ninterfaces = [\"br0\", \"br1\"]\n";

/// The host of the containers, and one with the echo `store`.
fn two(mesh: &Mesh) -> (Member, Member) {
    let (dock, store) =
        (mesh.member_with("dock", 1, &["cart", "till"], BRIDGES), mesh.member("store", 2, &["store"]));
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    store.register("store", ["--port", "80:7000"]);
    dock.wait_for_endpoints("store.default", 1);
    (dock, store)
}

const CART: [&str; 10] = [
    "--port",
    "81:7000",
    "--deliver",
    "172.30.0.2:7000",
    "--source",
    "172.30.0.2",
    "--source",
    "fd30:0::2",
    "--interface",
    "br0",
];

#[test]
fn a_container_calls_and_is_called_as_its_service() {
    let mesh = Mesh::new("bridge");
    let (dock, store) = two(&mesh);
    let cart = Container::on(&dock.host, 0, 2);
    let _echo = cart.serve();
    dock.register("cart", CART);
    store.wait_for_endpoints("cart.default", 1);

    // By its name: the question of the container is answered on its bridge.
    wait_until("the container is answered", || {
        run(cart.inside("getent ahostsv4 store.mesh.internal")).status.success()
    });
    assert_eq!(output_of(cart.call("store.mesh.internal", 80, "out")), "out");
    let line = store.wait_for_log("the call", |line| line["reporter"] == "destination");
    assert_eq!(line["source_principal"], "spiffe://mesh.internal/ns/default/sa/cart");
    let v6 = output_of(cart.inside("getent ahostsv6 store.mesh.internal"));
    let v6 = v6.split_whitespace().next().expect("an address").to_owned();
    assert_eq!(output_of(cart.call(&v6, 80, "six")), "six");
    // An endpoint's own address is the mesh's for a container too.
    assert_eq!(output_of(cart.call(&store.host.v4().to_string(), 7000, "direct")), "direct");
    let plain = |line: &serde_json::Value| line["connection_security_policy"] != "mutual_tls";
    assert!(
        !store.log().iter().any(|line| line["reporter"] == "destination" && plain(line)),
        "nothing in plaintext"
    );

    assert_eq!(output_of(store.host.shop(["call", "cart.mesh.internal", "81", "in"])), "in");
    assert_eq!(output_of(dock.host.shop(["call", "cart.mesh.internal", "81", "own"])), "own");
}

#[test]
fn a_container_without_a_registration_is_nobody() {
    let mesh = Mesh::new("bridge-nobody");
    let (dock, store) = two(&mesh);
    let nobody = Container::on(&dock.host, 0, 3);
    wait_until("names are answered", || {
        run(nobody.inside("getent ahostsv4 store.mesh.internal")).status.success()
    });
    assert_ne!(exit_code_of(nobody.call("store.mesh.internal", 80, "x")), exit::DONE);
    assert_ne!(exit_code_of(nobody.call(&store.host.v4().to_string(), 7000, "x")), exit::DONE);
    dock.wait_for_log("the refusal", |line| {
        line["reporter"] == "source" && line["response_code_details"] == "caller_unknown"
    });

    // Policy holds between containers of one host.
    let (cart, till) = (Container::on(&dock.host, 0, 2), Container::on(&dock.host, 1, 2));
    let _echo = cart.serve();
    dock.register("cart", CART);
    dock.register("till", ["--port", "82:7001", "--source", "172.30.1.2", "--interface", "br1"]);
    dock.wait_for_endpoints("cart.default", 1);
    mesh.apply(
        "[[AuthorizationPolicy]]\nname = \"till\"\nselector = { matchLabels = { app = \"cart\" } }\n\
         rules = [{ from = [{ source = { serviceAccounts = [\"default/till\"] } }] }]\n",
    );
    wait_until("the till is let in", || exit_code_of(till.call("cart.mesh.internal", 81, "x")) == exit::DONE);
    wait_until("the host is not", || {
        exit_code_of(dock.host.shop(["call", "cart.mesh.internal", "81", "x"])) != exit::DONE
    });
    // From the other bridge its own address leads to the agent too.
    assert_eq!(output_of(till.call("172.30.0.2", 7000, "direct")), "direct");
}

#[test]
fn an_address_is_a_container_s_on_its_own_bridge_alone() {
    let mesh = Mesh::new("bridge-spoof");
    let (dock, store) = two(&mesh);
    let cart = Container::on(&dock.host, 0, 2);
    dock.register("cart", CART);
    wait_until("it calls", || exit_code_of(cart.call("store.mesh.internal", 80, "x")) == exit::DONE);
    // On the other bridge somebody takes the address, and no check of the kernel's is in the way.
    let thief = Container::on(&dock.host, 1, 3);
    output_of(dock.host.sh("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done"));
    output_of(thief.inside("ip addr add 172.30.0.2/32 dev eth0"));
    let address = output_of(dock.host.sh("getent ahostsv4 store.mesh.internal"));
    let address = address.split_whitespace().next().expect("an address").to_owned();
    let mut stolen = thief.inside(&format!(
        "python3 -c 'import socket; s = socket.socket(); s.settimeout(3); s.bind((\"172.30.0.2\", 0)); s.connect((\"{address}\", 80))'"
    ));
    assert!(!stolen.status().expect("it runs").success());
    let counted = output_of(dock.host.sh("nft list counter inet baremesh bridge_spoofed"));
    assert!(!counted.contains("packets 0 "), "{counted}");
    assert!(store.log().iter().filter(|line| line["reporter"] == "destination").count() <= 1);
}

#[test]
fn names_are_answered_to_containers_and_to_no_other_host() {
    let mesh = Mesh::new("bridge-dns");
    let (dock, _store) = two(&mesh);
    let bare = mesh.net.host("bare", 9);
    output_of(bare.sh("ip route add 172.30.0.0/24 via 10.77.0.1"));
    let cart = Container::on(&dock.host, 0, 2);
    let dig = |at: &str, port: u16, seconds: u16| {
        format!("dig @{at} -p {port} +short +tries=1 +time={seconds} store.mesh.internal")
    };
    wait_until("the container is answered", || {
        let asked = run(cart.inside(&dig("192.0.2.53", 53, 2)));
        String::from_utf8_lossy(&asked.stdout).starts_with("240.240.")
    });
    for tcp in ["", " +tcp"] {
        let asked = output_of(cart.inside(&format!("{}{tcp}", dig("192.0.2.53", 53, 30))));
        assert!(asked.starts_with("240.240."), "{asked}");
    }
    for (at, port) in [("10.77.0.1", 15053), ("10.77.0.1", 53), ("172.30.0.1", 15053), ("172.30.0.1", 53)] {
        for tcp in ["", " +tcp"] {
            let asked = run(bare.sh(&format!("{}{tcp}", dig(at, port, 2))));
            assert!(!String::from_utf8_lossy(&asked.stdout).contains("240.240."), "{at}:{port}{tcp} answers");
        }
    }
}
