//! Hosts of two networks, which do not reach each other, call each other through gateways.

use std::net::IpAddr;

use baremesh_tests::{Host, Member, Mesh, output_of, wait_until};

use crate::peer::{HBONE, Tunnel, agent_of, config, stolen};

/// The MeshConfig by which these hosts are gateways of these networks.
fn networks(gateways: &[(&str, &Member)]) -> String {
    let network = |(name, gateway): &(&str, &Member)| {
        let (host, address) = (gateway.host.name().to_owned(), gateway.host.v4());
        format!("{{ name = \"{name}\", gateways = [{{ host = \"{host}\", address = \"{address}\" }}] }}")
    };
    let all: Vec<String> = gateways.iter().map(network).collect();
    format!("[[MeshConfig]]\nnetworks = [{}]\n", all.join(", "))
}

/// What `agent.toml` says of a host's network.
fn within(network: &str) -> String {
    format!("[network]\nname = \"{network}\"\n")
}

/// The same of a gateway.
fn gateway_of(network: &str) -> String {
    format!("drain_seconds = 1\n[network]\nname = \"{network}\"\ngateway = true\n")
}

/// No packet goes from one host to the other any more, nor back.
fn part(one: &Host, other: &Host) {
    for (from, to) in [(one, other), (other, one)] {
        for address in [IpAddr::from(to.v4()), to.v6().into()] {
            let mut route = from.command("ip");
            route.args(["route", "add", "unreachable", &address.to_string()]);
            output_of(route);
        }
    }
}

/// What `baremesh explain` says.
fn explained(from: &Member, call: &str) -> String {
    let output = from.host.baremesh(["explain", call]).output().expect("the command runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_service_of_another_network_is_called_through_its_gateway() {
    let mesh = Mesh::new("networks");
    let web = mesh.member_with("web", 1, &["web"], &within("home"));
    let store = mesh.member_with("store", 2, &["store", "pages"], &within("eu"));
    let gateway = mesh.member_with("gate", 3, &[], &gateway_of("eu"));
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    let pages = store.web("pages", "v1", &[]);
    store.register("store", ["--port", "7000"]);
    part(&web.host, &store.host);
    mesh.wait_until_in_force();

    // Nobody leads there, and whoever asks is told.
    let reason = "`networks` of MeshConfig names no gateway that leads there";
    wait_until("explain says why there is no endpoint", || {
        let said = explained(&web, "tcp://store:7000");
        said.contains("no endpoint is in reach") && said.contains(reason)
    });
    assert!(!web.host.shop(["call", "store", "7000", "x"]).status().expect("it runs").success());
    web.wait_for_log("the refusal", |line| {
        line["response_code_details"] == "no_endpoint" && line.to_string().contains("in the network eu")
    });

    mesh.enforce(&networks(&[("eu", &gateway)]));
    web.wait_for_endpoints("store.default", 1);
    let (wire, secret) = (mesh.net.capture(), "through the gateway");
    assert_eq!(output_of(web.host.shop(["call", "store", "7000", secret])), secret);
    let answers = web.host.get_all(&["--count", "5"], "http://pages/");
    assert!(answers.len() == 5 && answers.iter().all(|answer| answer.is_ok()), "{answers:?}");
    assert_eq!(pages.seen("/"), 5);
    let wire = wire.stop();
    assert_eq!(wire.holes(), 0);
    assert!(!wire.contains(secret), "the gateway carries ciphertext");
    let (caller, callee) = (IpAddr::from(web.host.v4()), IpAddr::from(store.host.v4()));
    let ends = wire.flows().into_iter().map(|flow| [flow.source.ip(), flow.destination.ip()]);
    let mut direct = ends.filter(|ends| ends.iter().all(|end| [caller, callee].contains(end)));
    assert_eq!(direct.next(), None, "nothing goes there directly");

    // The called side knows the caller, and the gateway who came through it and where to.
    let web_id = "spiffe://mesh.internal/ns/hosts/sa/web";
    let line = store.wait_for_log("the call", |line| line["reporter"] == "destination");
    assert_eq!(line["source_principal"], web_id);
    let agent = agent_of(&store.host).to_string();
    mesh.enforce(
        "[[AuthorizationPolicy]]\nname = \"nobody\"\nselector = { matchLabels = { app = \"store\" } }\n",
    );
    assert!(!web.host.shop(["call", "store", "7000", "x"]).status().expect("it runs").success());
    assert!(web.host.get(&[], "http://pages/").is_ok(), "policies are the called side's");
    gateway.stop_agent();
    let line = gateway.wait_for_log("what it carried", |line| line["upstream_host"] == agent.as_str());
    assert_eq!(line["source_principal"], web_id);
    wait_until("without the gateway nobody leads there", || !web.host.get(&[], "http://pages/").is_ok());
}

#[test]
fn a_gateway_leads_to_agents_of_its_network_alone() {
    let mesh = Mesh::new("gateway");
    let web = mesh.member_with("web", 1, &["web"], &within("home"));
    let store = mesh.member_with("store", 2, &["store"], &within("eu"));
    let gateway = mesh.member_with("gate", 3, &[], &gateway_of("eu"));
    for (member, service) in [(&web, "web"), (&store, "store")] {
        member.host.serve("echo", ["echo", "127.0.0.1:7000"]);
        member.register(service, ["--port", "7000"]);
    }
    let outsider = mesh.net.host("outsider", 9);
    outsider.serve("echo", ["echo", "0.0.0.0:15008"]);
    mesh.enforce(&networks(&[("eu", &gateway)]));
    wait_until("both have their certificates", || {
        [(&web, "web"), (&store, "store")]
            .iter()
            .all(|(member, service)| crate::peer::certificate_file(member, service).exists())
    });
    let open = |thief: &Member, service: &str, to: &Member| {
        let key = config(&mesh, stolen(thief, service));
        let name = format!("{}.hosts.mesh.internal", to.host.name());
        Tunnel::open(&thief.host, agent_of(&to.host), key, Some(&name))
    };
    let status = |tunnel: &Tunnel, authority: String| tunnel.connect(&authority).expect("an answer").status;
    let tunnel = open(&web, "web", &gateway).expect("a tunnel");
    assert_eq!(tunnel.shown, "spiffe://mesh.internal/ns/hosts/sa/gate");
    assert_eq!(status(&tunnel, agent_of(&store.host).to_string()), 200, "this is what it is for");
    let port_of_program = format!("{}:7000", store.host.v4());
    let others = [
        (port_of_program, "a port that is no agent's"),
        (format!("{}:{HBONE}", outsider.v4()), "no agent of the mesh"),
        (format!("{}:{HBONE}", mesh.control.v4()), "no agent"),
        (agent_of(&web.host).to_string(), "an agent of another network"),
        (agent_of(&gateway.host).to_string(), "itself"),
        (format!("127.0.0.1:{HBONE}"), "its own loopback"),
        (format!("store.default.mesh.internal:{HBONE}"), "a name"),
    ];
    for (authority, what) in others {
        assert_eq!(status(&tunnel, authority.clone()), 503, "{authority} is {what}");
    }
    // Who is within the network may, and has nothing of it. A host that is no gateway listens as its services alone.
    let within = open(&store, "store", &gateway).expect("a tunnel");
    assert_eq!(status(&within, agent_of(&store.host).to_string()), 200);
    assert!(open(&web, "web", &store).is_err());
}

#[test]
fn the_same_address_in_two_networks_is_two_hosts() {
    let mesh = Mesh::new("overlap");
    let web = mesh.member_with("web", 1, &["web"], &within("home"));
    let gates = [("eu", 2, "orders"), ("us", 3, "payments")].map(|(network, index, service)| {
        // Each is a gateway and has a service at an address that the other network uses, too.
        let member = mesh.member_with(network, index, &[service], &gateway_of(network));
        let mut address = member.host.command("ip");
        address.args(["address", "add", "10.200.0.1/32", "dev", "lo"]);
        output_of(address);
        member
    });
    mesh.apply("[[HostGrant]]\nname = \"same\"\nhost = \"*\"\naddresses = [\"10.200.0.1\"]\n");
    let [eu, us] = &gates;
    let at = ["--address", "10.200.0.1"];
    let _instances = (eu.web("orders", "eu", &at), us.web("payments", "us", &at));
    mesh.enforce(&networks(&[("eu", eu), ("us", us)]));
    for (service, network) in [("orders", "eu"), ("payments", "us")] {
        web.wait_for_endpoints(&format!("{service}.default"), 1);
        let answer = web.host.get(&[], &format!("http://{service}/"));
        assert_eq!(answer.instance.as_deref(), Some(network), "{answer:?}");
    }
    // The address itself is none of this network's: it is not captured, and leads nowhere.
    assert!(!output_of(web.host.baremesh(["capture", "plan"])).contains("10.200.0.1"));
}
