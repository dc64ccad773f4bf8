//! Services that are delivered into a container: a network of its own on this host, to which the host forwards.

use baremesh_tests::{Host, Member, Mesh, Process, exit, exit_code_of, output_of, wait_until};

/// The address of the container, behind its host.
const V4: &str = "172.30.0.2";
const V6: &str = "fd30::2";

/// A network of its own on a host, with an echo at port 7000.
struct Container {
    _holder: Process,
    _echo: Process,
}

impl Container {
    fn on(host: &Host) -> Self {
        let mut unshare = host.command("unshare");
        unshare.args(["--net", "--", "sh", "-c", "echo up; exec sleep infinity"]);
        let holder = host.spawn("container", unshare);
        holder.wait_for_output("up");
        let (pid, inside) = (holder.pid(), format!("nsenter --net=/proc/{}/ns/net", holder.pid()));
        let lines = format!(
            "set -e
            ip link add c0 type veth peer name eth0 netns {pid}
            ip addr add 172.30.0.1/24 dev c0; ip addr add fd30::1/64 dev c0 nodad; ip link set c0 up
            {inside} sh -c 'ip link set lo up; ip addr add {V4}/24 dev eth0; ip addr add {V6}/64 dev eth0 nodad
                ip link set eth0 up; ip route add default via 172.30.0.1; ip -6 route add default via fd30::1'
            echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
        );
        output_of(host.sh(&lines));
        let echo =
            host.spawn("in-container", host.sh(&format!("{inside} baremesh demo-shop echo [::]:7000")));
        echo.wait_for_output("listening on");
        wait_until("the container is reached from its host", || {
            [V4, V6].iter().all(|to| call(host, to) == exit::DONE)
        });
        Self { _holder: holder, _echo: echo }
    }
}

fn call(from: &Host, to: &str) -> u8 {
    exit_code_of(from.shop(["call", "--timeout", "5", to, "7000", "plain"]))
}

/// A caller in the mesh, the host of a container, and a host without an agent that has a route to it.
fn three(mesh: &Mesh) -> (Member, Member, Host) {
    let (web, store) = (mesh.member("web", 1, &[]), mesh.member("store", 2, &["store"]));
    let bare = mesh.net.host("bare", 9);
    output_of(bare.sh("ip route add 172.30.0.0/24 via 10.77.0.2; ip -6 route add fd30::/64 via fd77::2"));
    (web, store, bare)
}

#[test]
fn a_container_is_not_reached_past_the_agent_of_its_host() {
    let mesh = Mesh::new("container");
    let (web, store, bare) = three(&mesh);
    let _container = Container::on(&store.host);
    for to in [V4, V6] {
        wait_until("it is reached without a registration", || call(&bare, to) == exit::DONE);
    }
    let before = [V4, V6].map(|to| bare.spawn("before", bare.shop(["hold", to, "7000"])));
    before.iter().for_each(|held| held.wait_for_output("open"));

    store.register("store", ["--port", "80:7000", "--deliver", "172.30.0.2:7000"]);
    web.wait_for_endpoints("store.default", 1);
    assert_eq!(output_of(web.host.shop(["call", "store", "80", "through the mesh"])), "through the mesh");
    // Refused and recorded by the agent, as soon as the rules have it, and what was open is ended.
    wait_until("it is captured", || call(&bare, V4) != exit::DONE);
    store.wait_for_log("the refusal", |line| {
        line["reporter"] == "destination" && line["response_code_details"] == "plaintext_refused"
    });
    assert_eq!(before[0].wait().code(), Some(exit::CUT.into()), "{}", before[0].stdout());
    // Only the address that it is delivered at is the service's.
    assert_eq!(call(&bare, V6), exit::DONE);
    assert!(before[1].is_running());

    mesh.apply("[[PeerAuthentication]]\nname = \"default\"\nmtls.mode = \"PERMISSIVE\"\n");
    wait_until("plaintext is taken", || call(&bare, V4) == exit::DONE);
    store.wait_for_log("a call in plaintext", |line| {
        line["reporter"] == "destination"
            && line["downstream_local_address"] == "172.30.0.2:7000"
            && line["bytes_sent"] == 6
    });
}

#[test]
fn a_container_is_closed_or_released_when_the_agent_is_gone() {
    let mesh = Mesh::new("container-gone");
    let (_web, store, bare) = three(&mesh);
    let _container = Container::on(&store.host);
    let table = || output_of(store.host.sh("nft list tables"));
    // Rules follow a registration a moment later, and an agent that is killed before is followed by those of before.
    let is_to_close = || {
        let gone = std::fs::read_to_string(store.host.path("/run/baremesh/gone.nft")).unwrap_or_default();
        gone.contains(V6)
    };
    store.register("store", ["--port", "80:7000", "--deliver", "[fd30::2]:7000"]);
    wait_until("the rules for a gone agent close it", is_to_close);
    store.kill_agent();
    wait_until("the guard has closed it", || !table().contains("anchor"));
    assert_eq!(call(&bare, V6), exit::NO_CONNECTION);
    assert_eq!(call(&store.host, V6), exit::NO_CONNECTION);
    assert_eq!(call(&bare, V4), exit::DONE, "what is not registered is left alone");
    store.start();
    output_of(store.host.baremesh([
        "service",
        "register",
        "store",
        "--port",
        "80:7000",
        "--deliver",
        "[fd30::2]:7000",
        "--when-gone",
        "open",
    ]));
    assert_ne!(call(&bare, V6), exit::DONE);
    wait_until("the rules for a gone agent open it", || !is_to_close());
    store.kill_agent();
    wait_until("the guard has released it", || table().is_empty());
    assert_eq!(call(&bare, V6), exit::DONE);
}
